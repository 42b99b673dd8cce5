from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.frozen import Frozen, bare
from limbeck.task import Task, classification

WARM_UP = 5
"""Runs before those that are timed: caches fill, kernels are chosen."""


@dataclass(frozen=True)
class Cost:
    """What a network costs to ship and to run.

    Args:
        parameters: How many; shared ones count once.
        macs: Multiply-accumulates of one sample, in convolutions, matrix products and attention.
        bytes: Size of the weights and buffers as saved, without the file's header.
        latency_ms: Median time of one sample, in milliseconds.
    """

    parameters: int
    macs: int
    bytes: int
    latency_ms: float


@torch.no_grad()
def cost(net: nn.Module, example: Any, task: Task = classification, repeats: int = 30) -> Cost:
    """Measure what ``net`` costs, on the device it is on and in eval mode; the network stays as it was.

    Latency is taken on a single CPU thread, since the number of cores is the machine's property and not the network's.
    It compares networks on one machine only.

    Args:
        net: The network.
        example: A batch of inputs, a tensor or a dict of tensors; its first sample is used.
        task: How inputs are fed.
        repeats: Timed runs, of which the median counts.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    view = Frozen(bare(net)).net  # in eval mode, with the weights of net and a mode of its own
    device = next(view.parameters(), torch.empty(0)).device
    sample = _first(example, device)
    return Cost(
        parameters=sum(parameter.numel() for parameter in view.parameters()),
        macs=_macs(view, sample, task),
        bytes=_bytes(view),
        latency_ms=_latency_ms(view, sample, device, task, repeats),
    )


def _first(example: Any, device: torch.device) -> Any:
    if isinstance(example, Mapping):
        return {name: _first(value, device) for name, value in example.items()}
    return example[:1].to(device) if isinstance(example, Tensor) else example


def _macs(net: nn.Module, sample: Any, task: Task) -> int:
    with _open_kernels(), FlopCounterMode(display=False) as counter:
        task.feed(net, sample)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition apart


@contextmanager
def _open_kernels() -> Iterator[None]:
    """Run transformer layers and LSTMs as the matrix products they are: their fused kernels count as nothing."""
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


def _latency_ms(net: nn.Module, sample: Any, device: torch.device, task: Task, repeats: int) -> float:
    wait = torch.get_device_module(device).synchronize  # an accelerator returns before it has finished
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(WARM_UP + repeats):
            wait()
            start = time.perf_counter()
            task.feed(net, sample)
            wait()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(times[WARM_UP:])
