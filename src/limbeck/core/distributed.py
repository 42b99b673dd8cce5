"""The one place that knows that a batch may be part of a larger one: of several processes, and of several batches.

Gradients are averaged over the processes and over the batches that share an update. A mean over samples then is one over
all of them. A mean over *labelled* samples is not, where one part has more labels than another: `of_update` weighs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(samples: Tensor) -> Tensor:
    """Return this tensor's rows from every process, in the order of the ranks; alone, the tensor itself.

    What is made of them must be the same in every process, as a loss of the global batch is: then each has the gradient of
    all rows, takes that of its own as often as there are processes, and sends nothing. Gradients are averaged over the
    processes, so that the result is that of one process. A mean of what differs is `mean_over_processes`.

    Args:
        samples: (N, ...), the same N everywhere.
    """
    _, world = place()
    if world == 1:
        return samples
    gathered: Tensor = _Gathered.apply(samples)
    return gathered


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, samples: Tensor) -> Tensor:
        rows = [torch.empty_like(samples, memory_format=torch.contiguous_format) for _ in range(place()[1])]
        distributed.all_gather(rows, samples.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        rank, world = place()
        return upstream.chunk(world)[rank] * world


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean over all processes, each of which makes something else of it: their gradients are added up.

    Args:
        values: Of the same shape everywhere.
    """
    _, world = place()
    if world == 1:
        return values
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(values.contiguous())  # type: ignore[no-untyped-call]
    return total / world


Counted = Literal["labels", "samples", "mask"]
"""What a mean is taken over, where not over all: labelled positions, samples that have one, or what a mask lets count."""
_shares: dict[Counted, Tensor] = {}  # of the batch that is being played


def of_update(mean: Tensor, counted: Counted) -> Tensor:
    """Return a mean over some positions of this batch, weighed so that the update's gradient is that of its whole mean.

    The weight is this batch's share of the counted positions over its share of the samples; without several processes or
    batches, or where all have equally many, it is 1.

    Args:
        mean: Over the labelled positions of this batch, or those that its mask lets count.
        counted: Which.
    """
    share = _shares.get(counted)
    return mean if share is None else mean * share


@contextmanager
def sharing(shares: Mapping[Counted, Tensor]) -> Iterator[None]:
    """Let `of_update` weigh by these while one batch is played."""
    _shares.update(shares)
    try:
        yield
    finally:
        _shares.clear()


def shares_of(counts: Tensor, samples: Tensor) -> Tensor:
    """Return by what to weigh means over counted positions, for the batches of one update.

    Every process must ask: the counts of all are added up.

    Args:
        counts: Counted positions of each kind and batch in this process, (kinds, batches).
        samples: Samples of each batch, (batches,), the same in every process.
    """
    _, world = place()
    total, samples = counts.sum(1, keepdim=True).double(), samples.double()
    if world > 1:
        distributed.all_reduce(total)
    # whole numbers first, so that the share of equal parts is exactly 1
    return (counts * (world * samples.sum()) / (samples * total).clamp(min=1)).float()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that is shared out among processes (FSDP2), every one of which must ask; else the tensor."""
    if not is_shared_out(tensor):
        return tensor
    here: Any = tensor.to(tensor.device_mesh.device_type)  # type: ignore[attr-defined]  # of an offloaded network
    full: Tensor = here.full_tensor()
    return full


def is_shared_out(tensor: Tensor) -> bool:
    """Whether each process holds a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def expect_gradient(net: nn.Module, path: str, value: Any) -> None:
    """Let a network that is shared out (FSDP2) expect a gradient at an inner layer, which is none of its answers.

    Its weights come together, and their gradients are summed up, as a gradient arrives at an answer of one of its blocks.

    Args:
        net: The network.
        path: The layer, as for `limbeck.record`.
        value: What it showed.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    name, *entry = path.split(":")
    for own, module in net.named_modules():
        holds = not own or f"{name}.".startswith(f"{own}.")
        if holds and hasattr(module, "set_requires_gradient_sync") and not (entry[:1] == ["in"] and own == name):
            module._get_fsdp_state()._register_pre_backward_hook(value)  # torch has no public name for it


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a whole value as this process's part of it, where a tensor is shared out; else the value.

    Args:
        tensor: A parameter.
        value: What is to be written to it, the same in every process.
    """
    if not is_shared_out(tensor):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over all processes in place of each gradient; a parameter that has one nowhere keeps none.

    What averaged them already, as ``DistributedDataParallel`` does as they are computed, changes nothing.

    Args:
        parameters: The same in every process, in the same order; those that are shared out have had their mean.
    """
    _, world = place()
    own = [p for p in parameters if not is_shared_out(p)]
    if world == 1 or not own:
        return
    for device, dtype in {(p.device, p.dtype): None for p in own}:
        of_kind = [p for p in own if (p.device, p.dtype) == (device, dtype)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in of_kind]
        there = torch.tensor([p.grad is not None for p in of_kind], dtype=dtype, device=device)
        total = torch.cat([there, *(part.flatten() for part in parts)])  # at once: one message, and not one for each
        distributed.all_reduce(total)
        found, *sums = torch.split(total, [len(of_kind), *(part.numel() for part in parts)])
        for p, some, mean in zip(of_kind, found.tolist(), sums, strict=True):
            if some:
                p.grad = (mean / world).view_as(p)
