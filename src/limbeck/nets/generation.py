"""Masked generation: a teacher's features out of parts of the student's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.distributed import place

Masks = Literal["channels", "positions"]


class Generation(nn.Module):
    """Hides parts of a student's features, and generates the teacher's from what is left.

    A 1x1 convolution to the teacher's channels where they differ; the mask, anew for each sample and call, in train mode
    only; 3x3 convolution, ReLU, 3x3 convolution. The masks depend on a seed and on how often it was called, both part of
    its state: a run that goes on masks as it would have, and two processes as one.

    Args:
        channels: Of the student's features.
        outputs: Of the teacher's.
        masked: The share that is hidden, in [0, 1).
        masks: Whether whole channels are hidden or positions in all channels.
    """

    def __init__(self, channels: int, outputs: int, masked: float, masks: Masks) -> None:
        super().__init__()
        self.masked, self.masks = masked, masks
        self.align: nn.Module = nn.Identity() if channels == outputs else nn.Conv2d(channels, outputs, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.seed, self.calls = int(torch.randint(2**31, ())), 0

    def forward(self, maps: Tensor) -> Tensor:
        """Return generated features, (N, outputs, H, W)."""
        aligned = self.align(maps)
        if self.training:
            aligned = aligned * self._kept(aligned.shape).to(aligned.device, aligned.dtype)
        generated: Tensor = self.generate(aligned)
        return generated

    def get_extra_state(self) -> Tensor:
        """Return the seed and the number of calls: on the CPU, since the next mask is drawn there."""
        return torch.tensor([self.seed, self.calls])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.seed, self.calls = state.tolist()

    def _kept(self, shape: torch.Size) -> Tensor:
        samples, channels, height, width = shape
        rank, world = place()
        of_sample = (channels, 1, 1) if self.masks == "channels" else (1, height, width)
        draw = torch.Generator().manual_seed(self.seed * 2**31 + self.calls)
        self.calls += 1
        # of the global batch, of which each process has every world-th sample
        return torch.rand(samples * world, *of_sample, generator=draw)[rank::world] >= self.masked
