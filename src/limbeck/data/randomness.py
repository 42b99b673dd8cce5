"""Random states: taken, put back, and kept apart from each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def random_state() -> State:
    """Return the state of every global generator, in types that ``torch.load(weights_only=True)`` reads."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (str(algorithm), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
    }


def set_random_state(state: State) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))


class Draws:
    """A stream of random numbers apart from the global ones.

    Whatever draws from torch, numpy or `random` on the CPU within `apart` goes on in this stream, and leaves the global
    generators as they were: data that is drawn there depends on the seed alone, and not on what the network drew.
    """

    def __init__(self, seed: int) -> None:
        with _restored():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            self._state = _cpu_state()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Draw from this stream."""
        with _restored():
            _set_cpu_state(self._state)
            yield
            self._state = _cpu_state()


CpuState = tuple[torch.Tensor, Any, Any]


def _cpu_state() -> CpuState:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _set_cpu_state(state: CpuState) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


@contextmanager
def _restored() -> Iterator[None]:
    before = _cpu_state()
    try:
        yield
    finally:
        _set_cpu_state(before)
