"""The one place that knows about several processes: the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(samples: Tensor) -> Tensor:
    """Return this tensor's rows from every process, in the order of the ranks; alone, the tensor itself.

    The gradient of every process's loss flows back to the process that a row came from. Since each process
    computes the same loss of the global batch and DDP averages the gradients, the result is that of one process.

    Args:
        samples: (N, ...), the same N everywhere.
    """
    _, world = place()
    if world == 1:
        return samples
    if not samples.requires_grad:
        rows = [torch.empty_like(samples) for _ in range(world)]
        distributed.all_gather(rows, samples.contiguous())
        return torch.cat(rows)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(samples.contiguous()))  # type: ignore[no-untyped-call]
