"""Several networks that speak with one voice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.task import logits


class Ensemble(nn.Module):
    """The mean prediction of several networks, as logits: a teacher anywhere a teacher is accepted.

    ``"arithmetic"``: log Σ_m w_m softmax(z_m), the mean of probabilities. ``"geometric"``: Σ_m w_m z_m, whose softmax is
    the normalised geometric mean.

    Args:
        networks: The members, of the same classes in the same order.
        weights: One for each, normalised to sum 1; equal by default.
        mean: Which mean.
    """

    def __init__(
        self, networks: Sequence[nn.Module], weights: Sequence[float] | None = None, mean: str = "arithmetic"
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        if mean not in ("arithmetic", "geometric"):
            raise ValueError(f"mean must be 'arithmetic' or 'geometric', got {mean!r}")
        weights = [1.0] * len(networks) if weights is None else list(weights)
        if len(weights) != len(networks) or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"expected {len(networks)} weights ≥ 0, not all 0, got {weights}")
        self.members, self.mean = nn.ModuleList(networks), mean
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean's logits, (N, K)."""
        outputs = [logits(member(*args, **kwargs)) for member in self.members]
        if self.mean == "geometric":
            return torch.stack([w * z for w, z in zip(self.weights, outputs, strict=True)]).sum(0)
        shares = [math.log(w) if w else -math.inf for w in self.weights]
        terms = [z.log_softmax(-1) + share for share, z in zip(shares, outputs, strict=True)]
        return torch.logsumexp(torch.stack(terms), 0)
