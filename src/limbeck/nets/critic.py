"""A critic that tells a student's outputs from a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """A small perceptron on logits with two heads: real or fake, and the class (AC-GAN).

    It has no batch norm, which would tell real batches from fake ones by their statistics.

    Args:
        num_classes: K, the width of the logits.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
    """

    def __init__(self, num_classes: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        widths = [num_classes, *[width] * depth]
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.LeakyReLU(0.2)) for a, b in pairwise(widths)))
        self.real = nn.Linear(widths[-1], 1)
        self.label = nn.Linear(widths[-1], num_classes)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score for "teacher", (N,), and class scores, (N, K)."""
        hidden = self.body(logits)
        return self.real(hidden).squeeze(-1), self.label(hidden)


def judged_by(critic: nn.Module) -> Callable[..., Any]:
    """Return ``critic`` as it is now, as a function whose gradients reach its inputs but not its weights."""
    weights = {name: p.detach() for name, p in critic.named_parameters()}
    return lambda *shown: torch.func.functional_call(critic, weights, shown)
