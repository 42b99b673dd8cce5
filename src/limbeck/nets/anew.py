"""Networks that start anew."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn


def check_anew(net: nn.Module) -> None:
    """See that a network can start anew, and elsewhere each time; it stays as it is.

    Raises:
        ValueError: It cannot.
    """
    first = copy.deepcopy(net)
    start_anew(first)
    second = copy.deepcopy(first)
    with undrawn(net):  # one start's random numbers are enough
        start_anew(second)
    drawn = [p for p in zip(first.parameters(), second.parameters(), strict=True) if not torch.equal(*p)]
    if not drawn:
        raise ValueError(
            f"{type(net).__name__} starts with the same weights every time: its reset_parameters() draws nothing, or seeds "
            "its own draws. A generation or branch must begin elsewhere than the one before: draw the weights from torch's "
            "generator"
        )


def undrawn(net: nn.Module) -> AbstractContextManager[None]:
    """Give back the random numbers that a block draws, on the CPU and where a network is; torch would start every GPU."""
    return torch.random.fork_rng({p.device.index for p in net.parameters() if p.device.type not in ("cpu", "meta")})


def start_anew(net: nn.Module) -> None:
    """Initialise a network in place, by the ``reset_parameters`` of its modules, inner ones first.

    Raises:
        ValueError: A parameter that none of them sets, so that generations would pass it on; the network is as before.
    """
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(torch.nan)
    net.apply(_reset)
    if stuck := [name for name, p in net.named_parameters() if p.isnan().any()]:
        net.load_state_dict(before)
        raise ValueError(
            f"{type(net).__name__} has parameters that no reset_parameters() touches: {stuck[:4]}. "
            "Give the module that owns them a reset_parameters method, so that a generation can start anew"
        )


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
