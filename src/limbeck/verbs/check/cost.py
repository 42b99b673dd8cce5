"""How long the training takes, and how much memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from limbeck.core.frozen import frozen
from limbeck.core.method import assign, parameters, play
from limbeck.core.task import Batch
from limbeck.data import Epochs
from limbeck.data.repeatable import Repeatable
from limbeck.engine.learner import teachers_of
from limbeck.report.table import duration
from limbeck.verbs.check.findings import Finding
from limbeck.verbs.check.setup import Setup
from limbeck.verbs.check.terms import PROGRESS

BATCHES = 8  # of which the middle one counts


def cost(setup: Setup, epochs: int | None) -> Iterator[Finding]:
    """Estimate time and memory from a few batches, with Adam."""
    # a step costs the same, and changes nothing
    optimizers = assign(parameters(setup.method, setup.stage.trains), lambda own: torch.optim.Adam(own, lr=0.0))
    on_gpu = setup.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setup.device)
    memory = 0.0 if on_gpu else _memory(setup)
    train, val, *_ = setup.loaders
    step = _seconds(setup, train, lambda batch: play(setup.method, batch, optimizers, PROGRESS))
    epoch = step * len(train)
    if val is not None:
        epoch += len(val) * _seconds(setup, val, _measure(setup))
    values = {"seconds a step": step, "seconds an epoch": epoch}
    message = f"an epoch of {len(train)} batches takes about {duration(epoch)} on {setup.device.type}"
    if val is not None:
        message += ", its validation included"
    if epochs is not None:
        values["seconds"] = epoch * epochs
        message += f"; {epochs} epochs, {duration(epoch * epochs)}, if all stages are alike"
    yield Finding("time", "ok", message, values)
    what = "estimated: weights, gradients, Adam's state, and what backward keeps of a batch"
    if on_gpu:
        memory = float(torch.cuda.max_memory_allocated(setup.device))
        what = "the measured peak of torch's memory on the GPU"
    yield Finding("memory", "ok", f"about {memory / 2**20:,.1f} MiB, {what}", {"bytes": memory})


def _seconds(setup: Setup, loader: Epochs | Repeatable, does: Callable[[Batch], object]) -> float:
    """Return the time of a batch, waiting for it included."""
    wait = torch.get_device_module(setup.device).synchronize
    times = [time.perf_counter()]
    for batch in islice(loader, BATCHES):
        does(move_data_to_device(batch, setup.device))
        wait()
        times.append(time.perf_counter())
        if times[-1] - times[0] > setup.seconds:
            break
    each = [after - before for before, after in pairwise(times)]
    return statistics.median(each[1:] or each)  # the first waits for workers and kernels


def _measure(setup: Setup) -> Callable[[Batch], None]:
    """Return what a validation does with a batch."""
    nets = [frozen(net) for net in setup.method.networks().values()]

    @torch.no_grad()
    def measure(batch: Batch) -> None:
        for net in nets:
            setup.task.feed(net, setup.task.inputs(batch))

    return measure


def _memory(setup: Setup) -> float:
    """Count the bytes of all networks, of gradients and optimizer states, and of what a batch leaves for backward."""
    method = setup.method
    nets = [method, *method.networks().values(), *(teacher.net for _, teacher in teachers_of(method))]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()  # what is kept twice is there once
        return tensor

    for net in nets:
        for tensor in (*net.parameters(), *net.buffers()):
            keep(tensor)
    turns = []  # alive, so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for turn in method.step(setup.batch, PROGRESS):
            turns.append(turn.total)
    trained = sum(p.nbytes for own in parameters(method, setup.stage.trains).values() for p in own)
    return float(sum(kept.values()) + 3 * trained)
