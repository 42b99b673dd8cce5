"""A network whose deeper part is there several times, over one trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.copied import copied
from limbeck.core.frozen import Frozen
from limbeck.nets.anew import Anew, check_anew, start_anew, undrawn
from limbeck.nets.norm import GlobalBatchNorm
from limbeck.nets.sections import sections


class Branches(nn.Module):
    """A trunk with several branches, whose logits a gate mixes: z_e = Σ_i g_i z_i.

    Args:
        trunk: What all branches share; gives h, a map (N, C, H, W), tokens (N, L, C) or a vector (N, C).
        branches: Each maps h to logits (N, K).
        gate: Maps h to the shares g, (N, branches).
        after: The last layer of the trunk, where it has a name.
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module], gate: nn.Module, after: str = "") -> None:
        super().__init__()
        self.trunk, self.branches, self.gate, self.after = trunk, nn.ModuleList(branches), gate, after

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated logits, (N, K)."""
        shared = self.trunk(x)
        logits = torch.stack([branch(shared.clone()) for branch in self.branches], 1)  # one may begin in place
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


def with_branches(
    net: nn.Module, example: Any, after: str, branches: int = 3, gate: bool = True, anew: Anew | None = None
) -> Branches:
    """Give a network branches: its own, and copies that start anew.

    The trunk and the first branch share the network's parameters.

    Args:
        net: The network.
        example: A batch of inputs, (N, ...).
        after: The last layer that all branches share.
        branches: How many in all.
        gate: Whether their shares depend on what the trunk shows.
        anew: Makes the network, with its own initialisation, for the copies; by default the ``reset_parameters`` of
            their modules start them anew.

    Raises:
        ValueError: A layer after which the network cannot be cut, or a deeper part that does not start anew.
    """
    trunk, head = sections(net, [after])
    if not any(True for _ in head.parameters()):
        raise ValueError(
            f"nothing that trains lies behind {after!r}, so there is nothing to copy: name a layer before it"
        )
    deeper = None if anew is None else lambda: sections(anew(), [after])[1]
    with undrawn(head):  # branches that start alike stay alike
        check_anew(head, deeper)
    others = [copied(head) for _ in range(branches - 1)]
    for other in others:
        start_anew(other, deeper)
    with torch.no_grad():
        shown = Frozen(trunk)(example)
    channels = shown.shape[-1] if shown.ndim == 3 else shown.shape[1]
    return Branches(trunk, [head, *others], Gate(channels, branches) if gate else EqualShares(branches), after)


def pooled(features: Tensor) -> Tensor:
    """Return the mean over positions of a map (N, C, H, W) or of tokens (N, L, C), as (N, C); a vector as it is."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features
