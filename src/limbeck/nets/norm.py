"""Batch norm for adapters, with the statistics of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import mean_over_processes, place


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes, so that two equal one; alone it is torch's own.

    ``nn.SyncBatchNorm`` does so on some devices only. Every process must have equally many samples. A single value, as a
    gate has it of a batch of one, has no variance: it is normalised as in eval mode, where torch would raise.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps, (N, C, H, W)."""
        _, world = place()
        if self.training and world * maps.numel() == maps.shape[1]:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if not self.training or world == 1:
            return super().forward(maps)
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        mean = mean_over_processes(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance = mean_over_processes(centred.square().mean((0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), world * maps.numel() // maps.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        for memory, value in ((self.running_mean, mean), (self.running_var, variance * count / max(1, count - 1))):
            if memory is not None:
                memory.lerp_(value.to(memory.dtype), momentum)
