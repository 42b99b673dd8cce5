"""Random states: taken, put back, and kept apart from each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import get_bit_generator, set_bit_generator  # type: ignore[attr-defined]  # public, but not to numpy's stubs

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
            set_bit_generator(np.random.MT19937())
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            self._state: CpuState | None = _cpu_state()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Draw from this stream.

        Raises:
            RuntimeError: It is being drawn from already.
        """
        state, self._state = self._state, None
        if state is None:
            raise RuntimeError("this stream is being drawn from already: make another, Draws(seed)")
        with _restored():
            _set_cpu_state(state)
            try:
                yield
            finally:
                self._state = _cpu_state()


CpuState = tuple[torch.Tensor, Any, np.random.BitGenerator, Any]
"""Of torch and `random`; numpy's generator itself, which is exchanged; numpy's state, if a normal number waits in it."""


def _cpu_state() -> CpuState:
    numpy = np.random.get_state(legacy=False)
    waits = numpy["has_gauss"]  # they come in pairs, and the second is lost where generators are exchanged
    return torch.get_rng_state(), random.getstate(), get_bit_generator(), numpy if waits else None


def _set_cpu_state(state: CpuState) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    set_bit_generator(state[2])  # a tenth of what it takes to copy its state to another
    if state[3] is not None:
        np.random.set_state(state[3])


@contextmanager
def _restored() -> Iterator[None]:
    before = _cpu_state()
    try:
        yield
    finally:
        _set_cpu_state(before)
