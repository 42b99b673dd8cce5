"""A critic of maps, given the images that they are of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class MapCritic(nn.Module):
    """Scores for patches of maps (N, K, H, W): strided convolutions, without batch norm.

    Args:
        channels: K and the channels of the images.
        width: Of the first layer; each further one has twice as many.
        depth: Strided layers.
    """

    def __init__(self, channels: int, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        widths = [channels, *(width * 2**index for index in range(depth))]
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)) for a, b in pairwise(widths))
        )
        self.real = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """Return a score for every patch, (N, 1, h, w)."""
        return self.real(self.body(torch.cat([images, maps], 1)))


def judged_by(critic: nn.Module) -> Callable[..., Any]:
    """`limbeck.nets.critic.judged_by` of a critic that takes more than one argument."""
    weights = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return lambda *shown: torch.func.functional_call(critic, weights, shown)
