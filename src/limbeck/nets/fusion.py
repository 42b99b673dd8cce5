"""ReviewKD's fusion of a student's layer with what the deeper ones have told."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.nets.norm import GlobalBatchNorm


class Fusion(nn.Module):
    """The paper's attention-based fusion: a layer and the fusion below it, weighed at each position.

    Args:
        channels: Of the student's layer.
        middle: Of what passes from fusion to fusion.
        outputs: Of the teacher's layer.
        deepest: There is nothing below to fuse with.
    """

    def __init__(self, channels: int, middle: int, outputs: int, deepest: bool = False) -> None:
        super().__init__()
        self.enter = _normed(channels, middle, 1)
        self.leave = _normed(middle, outputs, 3)
        self.attend = None if deepest else nn.Conv2d(2 * middle, 2, 1)

    def forward(self, maps: Tensor, below: Tensor | None, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """Return what is compared with the teacher, (N, outputs, *grid), and what passes on, (N, middle, *grid).

        Args:
            maps: The student's layer, (N, channels, H, W).
            below: What the deeper fusion passes on, on the grid of its teacher's map; None for the deepest.
            grid: The size of the teacher's map.
        """
        fused: Tensor = self.enter(maps)
        if self.attend is not None and below is not None:
            own, other = torch.split(self._weights(fused, below).sigmoid(), 1, dim=1)
            fused = torch.addcmul(own * fused, other, _resized(below, fused.shape[2:]))
        fused = _resized(fused, grid)
        return self.leave(fused), fused

    def _weights(self, fused: Tensor, below: Tensor) -> Tensor:
        """Return ``attend`` of both maps, one upon the other, (N, 2, H, W).

        It is the sum over either's channels, so that no such pile is made, and ``below`` is weighed on its own grid.
        """
        assert self.attend is not None
        mine, its = torch.split(self.attend.weight, fused.shape[1], dim=1)
        return F.conv2d(fused, mine, self.attend.bias) + _resized(F.conv2d(below, its), fused.shape[2:])


def _normed(channels: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, GlobalBatchNorm(outputs))


def _resized(maps: Tensor, grid: torch.Size) -> Tensor:
    return maps if maps.shape[2:] == grid else F.interpolate(maps, grid, mode="nearest")
