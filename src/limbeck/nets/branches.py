"""A network whose deeper part is there several times, over one trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.nets.norm import GlobalBatchNorm


class Branches(nn.Module):
    """A trunk with several branches, whose logits a gate mixes: z_e = Σ_i g_i z_i.

    Args:
        trunk: What all branches share; gives h, a map (N, C, H, W), tokens (N, L, C) or a vector (N, C).
        branches: Each maps h to logits (N, K).
        gate: Maps h to the shares g, (N, branches).
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.trunk, self.branches, self.gate = trunk, nn.ModuleList(branches), gate

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated logits, (N, K)."""
        shared = self.trunk(x)
        logits = torch.stack([branch(shared) for branch in self.branches], 1)
        mixed: Tensor = (self.gate(shared)[..., None] * logits).sum(1)
        return mixed


class Gate(nn.Module):
    """Shares of several branches, which depend on what the trunk shows: g = softmax(ReLU(BN(W GAP(h)))).

    Args:
        channels: Of the trunk's output.
        branches: How many.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(channels, branches), GlobalBatchNorm(branches)

    def forward(self, shared: Tensor) -> Tensor:
        """Return the shares, (N, branches), of sum 1."""
        scores: Tensor = self.norm(self.fc(pooled(shared))[..., None, None])
        return scores.flatten(1).relu().softmax(1)


class EqualShares(nn.Module):
    """The same share for each of several branches.

    Args:
        branches: How many.
    """

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = branches

    def forward(self, shared: Tensor) -> Tensor:
        """Return the shares, (N, branches)."""
        return shared.new_full((len(shared), self.branches), 1 / self.branches)


def pooled(features: Tensor) -> Tensor:
    """Return the mean over positions of a map (N, C, H, W) or of tokens (N, L, C), as (N, C); a vector as it is."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features
