"""Masked generation: a teacher's features out of parts of the student's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.nets.draws import Draws

Masks = Literal["channels", "positions"]


class Generation(nn.Module):
    """Hides parts of a student's features, and generates the teacher's from what is left.

    A 1x1 convolution to the teacher's channels where they differ; the mask, anew for each sample and call, in train mode
    only; 3x3 convolution, ReLU, 3x3 convolution. The masks are part of its state, see `Draws`: a run that goes on masks
    as it would have, and two processes as one.

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
        self.draws = Draws(int(torch.randint(2**31, ())))

    def forward(self, maps: Tensor) -> Tensor:
        """Return generated features, (N, outputs, H, W)."""
        aligned = self.align(maps)
        if self.training:
            aligned = aligned * self._kept(aligned.shape).to(aligned.device, aligned.dtype)
        generated: Tensor = self.generate(aligned)
        return generated

    def _kept(self, shape: torch.Size) -> Tensor:
        samples, channels, height, width = shape
        of_sample = (channels, 1, 1) if self.masks == "channels" else (1, height, width)
        # on the CPU: the masks of a GPU would be others
        kept: Tensor = self.draws(lambda count, generator: torch.rand(count, *of_sample, generator=generator), samples)
        return kept >= self.masked
