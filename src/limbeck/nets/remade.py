"""Networks made of a plain one: what the file of their weights says, so that the plain one's name makes them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from limbeck.core.copied import copied
from limbeck.nets.branches import Branches, EqualShares, with_branches
from limbeck.nets.ensemble import Ensemble
from limbeck.nets.exits import EarlyExit, ExitsEnsemble, Shallow, with_exits

EXITS, ENDS, MEAN, BRANCHES, MEMBERS = "exits", "ends in exit", "mean of exits", "branches", "members"
MADE = {EXITS, ENDS, MEAN, BRANCHES, MEMBERS}
"""What only the file of a network made of another one says."""


def facts_of(net: nn.Module) -> dict[str, str]:
    """Return what makes a network again of a plain one, as `remade` reads it; nothing of a plain one."""
    match net:
        case EarlyExit(after=after) if after:
            return {EXITS: json.dumps(after)}
        case Shallow(after=after) if after:
            return {ENDS: json.dumps(after)}
        case ExitsEnsemble(net=EarlyExit(after=after)) if after:
            return {MEAN: json.dumps(after)}
        case Branches(after=after) if after:
            gate = not isinstance(net.gate, EqualShares)
            return {BRANCHES: json.dumps({"after": after, "branches": len(net.branches), "gate": gate})}
        case Ensemble() if _alike(net.members):
            return {MEMBERS: json.dumps({"weights": net.weights, "mean": net.mean, "temperature": net.temperature})}
    return {}


def remade(net: nn.Module, facts: Mapping[str, str], example: Any) -> nn.Module:
    """Return the network that a file is of, with fresh weights.

    Args:
        net: The plain network.
        facts: What the file says.
        example: A batch of inputs, (N, ...).

    Raises:
        ValueError: The network does not have the layers that the file names.
    """
    if EXITS in facts:
        return with_exits(net, example, json.loads(facts[EXITS]))
    if ENDS in facts:
        after = json.loads(facts[ENDS])
        return with_exits(net, example, after).up_to(len(after))
    if MEAN in facts:
        return ExitsEnsemble(with_exits(net, example, json.loads(facts[MEAN])))
    if BRANCHES in facts:
        return with_branches(net, example, **json.loads(facts[BRANCHES]))
    if MEMBERS in facts:
        mean = json.loads(facts[MEMBERS])
        return Ensemble([copied(net) for _ in mean["weights"]], **mean)
    return net


def _alike(members: nn.ModuleList) -> bool:
    """Whether all are of one plain network."""
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in members]
    return all(each == shapes[0] for each in shapes) and not facts_of(members[0])
