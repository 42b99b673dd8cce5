from __future__ import annotations

import logging
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from limbeck.core.batches import part, samples
from limbeck.core.frozen import Frozen, bare, frozen
from limbeck.core.task import Task
from limbeck.core.trace import describe
from limbeck.tasks.classification import classification

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

BATCH = 64
"""Samples in the batch that throughput is taken of."""


@dataclass(frozen=True)
class Cost:
    """What a network costs to ship and to run.

    Args:
        parameters: How many; shared ones count once.
        macs: Multiply-accumulates of one sample, in convolutions, matrix products and attention.
        bytes: Size of the weights and buffers as saved, without the file's header.
        activation_bytes: The most memory that one sample takes at any time on its way through the network, beside the
            weights and the sample.
        latency_ms: Median time of one sample, in milliseconds.
    """

    parameters: int
    macs: int
    bytes: int
    activation_bytes: int
    latency_ms: float


@torch.no_grad()
def cost(net: nn.Module, example: Any, task: Task = classification, seconds: float = 0.02) -> Cost:
    """Measure what ``net`` costs, on the device it is on and in eval mode; the network stays as it was.

    The time is that of `torch.utils.benchmark`, on a single CPU thread, since the number of cores is the machine's property
    and not the network's; on an accelerator, until the output is there. It compares networks on one machine only.

    The memory of activations is on CUDA the peak that torch allocates, workspaces of its kernels included, and torch's peak
    statistics begin anew. Elsewhere it is the most that the tensors alive after any operation take, which is the same on
    every machine: what a kernel needs while it runs is not seen, so fused transformer layers and LSTMs run operation by
    operation for it.

    Args:
        net: The network; of a teacher with a view of its own (`limbeck.Frozen`), on what the view feeds it.
        example: A batch of inputs, a column as `limbeck.core.batches` knows them: a tensor, a list with a sample an
            entry where samples are ragged, or a dict of these; its first sample is used.
        task: How inputs are fed.
        seconds: Spent on the time at least; 0.02 is ours, so that every run can afford it. A network that needs longer
            runs twice.

    Raises:
        ValueError: The example is empty, its samples cannot be counted, or ``seconds`` is not positive.
    """
    device = place_of(net)
    plain, sample, task = as_fed(frozen(net).again("eval"), _samples(example, 1, device), task)
    latency = latency_ms(partial(task.feed, plain, sample), device, seconds)
    return Cost(
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        macs=macs_of(plain, sample, task),
        bytes=_bytes(plain),
        activation_bytes=_activation_bytes(plain, sample, device, task),  # after a run: kernels keep their workspaces
        latency_ms=latency,
    )


@torch.no_grad()
def batch_latency_ms(net: nn.Module, example: Any, task: Task = classification, seconds: float = 0.02) -> float:
    """Return the median time of a batch of 64, in milliseconds; as `cost` measures that of one sample.

    Apart from `cost`, since it is what takes long: throughput is 64,000 over it, in samples a second.

    Args:
        net: As for `cost`.
        example: A batch of inputs, as for `cost`, whose samples fill the batch of 64.
        task: How inputs are fed.
        seconds: As for `cost`.

    Raises:
        ValueError: As for `cost`.
    """
    device = place_of(net)
    plain, batch, task = as_fed(frozen(net).again("eval"), _samples(example, BATCH, device), task)
    return latency_ms(partial(task.feed, plain, batch), device, seconds)


def as_fed(view: Frozen, inputs: Any, task: Task) -> tuple[nn.Module, Any, Task]:
    """Return the network itself, with the inputs and the task that its view gives it."""
    return view.net, view.inputs(inputs), replace(task, output=view.output or task.output)


def _samples(example: Any, count: int, device: torch.device) -> Any:
    """Return the first ``count`` samples, from the start again where there are fewer."""
    if not (there := samples(example)):
        raise ValueError(f"example must hold a sample at least, got {describe(example)}")
    return move_data_to_device(part(example, [row % there for row in range(count)]), device)


def place_of(net: nn.Module) -> torch.device:
    """Return the device that a network's parameters are on; that of new tensors where it has none."""
    return next(bare(net).parameters(), torch.empty(0)).device


def macs_of(net: nn.Module, sample: Any, task: Task = classification) -> int:
    """Return the multiply-accumulates of a run, in convolutions, matrix products and attention."""
    with _open_kernels(), FlopCounterMode(display=False) as counter:
        task.feed(net, sample)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition apart


@contextmanager
def _open_kernels() -> Iterator[None]:
    """Run transformer layers and LSTMs as the operations they are: within their fused kernels nothing counts."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # of oneDNN, which is being switched off
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _bytes(net: nn.Module) -> int:
    tensors = [value for value in net.state_dict().values() if isinstance(value, Tensor)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # tied weights are shipped once


def _activation_bytes(net: nn.Module, sample: Any, device: torch.device, task: Task) -> int:
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task.feed(net, sample)
        return int(torch.cuda.max_memory_allocated(device) - before)
    alive = _Alive()
    with _open_kernels(), alive:
        task.feed(net, sample)
    return alive.peak


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that were made within and are still there.

    Views and what is written in place take nothing: storages count, not tensors. What an operation is given before any
    operation has made it was there before: weights, buffers, inputs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._made: set[int] = set()
        self._before: dict[int, torch.UntypedStorage] = {}  # held, so that no other gets its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._before |= {id(storage): storage for storage in _storages((args, kwargs)) if id(storage) not in self._made}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in self._made and id(storage) not in self._before:
                self._made.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._part, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _part(self, key: int, size: int) -> None:
        self._made.remove(key)
        self.now -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_iter(values):
        if isinstance(value, Tensor) and value.layout is torch.strided:  # a sparse one has none
            yield value.untyped_storage()


def latency_ms(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median time of ``run`` on one CPU thread, in milliseconds; it takes ``seconds`` at least."""
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    # waits within the statement, since torch's own timer waits but after a row of runs, which an accelerator overlaps
    names = {"run": run, "wait": torch.get_device_module(device).synchronize}
    timer = _timer()("run(); wait()", timer=time.perf_counter, globals=names, num_threads=1)
    return 1000 * timer.blocked_autorange(min_run_time=seconds).median


def _timer() -> type[Timer]:
    """Import torch's timer, quietly: it warns of a CUDA compiler without a GPU, which nothing here compiles with."""
    log = logging.getLogger("torch.utils.cpp_extension")
    disabled, log.disabled = log.disabled, True
    try:
        from torch.utils.benchmark import Timer
    finally:
        log.disabled = disabled
    return Timer
