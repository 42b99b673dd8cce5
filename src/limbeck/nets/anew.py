"""Networks that start anew."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from limbeck.core.copied import copied

Anew = Callable[[], nn.Module]
"""Makes a network, with weights drawn from torch's generator."""
MANY, ALIKE = 256, (0.8, 1.25)
"""So many weights tell the spread that they were drawn with; theirs, over that of others drawn alike, lies in between."""


def check_anew(net: nn.Module, anew: Anew | None = None) -> None:
    """See that a network can start anew, and elsewhere each time; it stays as it is.

    Args:
        net: The network.
        anew: As for `start_anew`.

    Raises:
        ValueError: It cannot.
    """
    first = copied(net)
    start_anew(first, anew)
    second = copied(first)
    with undrawn(net):  # one start's random numbers are enough
        start_anew(second, anew)
    if not _differ(first, second):
        source = "its reset_parameters()" if anew is None else "anew()"
        raise ValueError(
            f"{type(net).__name__} starts with the same weights every time: {source} draws nothing, or seeds its "
            "own draws. A generation or branch must begin elsewhere than the one before: draw from torch's generator"
        )
    if anew is None:
        _warn_of_another_spread(net, first)


def draws(anew: Anew) -> bool:
    """Whether what makes a network draws any of its weights, and does not load them all."""
    with torch.random.fork_rng([]):
        return _differ(anew(), anew())


def undrawn(net: nn.Module) -> AbstractContextManager[None]:
    """Give back the random numbers that a block draws, on the CPU and where a network is; torch would start every GPU."""
    return torch.random.fork_rng({p.device.index for p in net.parameters() if p.device.type not in ("cpu", "meta")})


def start_anew(net: nn.Module, anew: Anew | None = None) -> None:
    """Initialise a network in place.

    Args:
        net: The network.
        anew: Makes another of its kind, whose weights it takes. By default the ``reset_parameters`` of its modules set
            them, inner ones first.

    Raises:
        ValueError: A parameter that none of them sets, so that generations would pass it on, or another network than
            this; it is as before.
    """
    if anew is not None:
        _take_over(net, anew())
        return
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(torch.nan)
    net.apply(_reset)
    if stuck := [name for name, p in net.named_parameters() if p.isnan().any()]:
        net.load_state_dict(before)
        raise ValueError(
            f"{type(net).__name__} has parameters that no reset_parameters() touches: {stuck[:4]}. To start anew, "
            "pass anew=, a function that makes the network, or give the module that owns them that method"
        )


def _differ(first: nn.Module, second: nn.Module) -> bool:
    return any(not torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))


def _take_over(net: nn.Module, made: nn.Module) -> None:
    weights, shapes = made.state_dict(), {name: value.shape for name, value in net.state_dict().items()}
    other = [name for name in {**shapes, **weights} if name not in weights or weights[name].shape != shapes.get(name)]
    if other:
        raise ValueError(
            f"anew() makes another network than the {type(net).__name__} that is to start anew: they differ in {other[:4]}"
        )
    net.load_state_dict(weights)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _warn_of_another_spread(net: nn.Module, fresh: nn.Module) -> None:
    """Tell of a network that was initialised otherwise than its modules do by themselves, as torchvision's are."""
    own, others = dict(net.named_parameters()), dict(fresh.named_parameters())
    sizes = {name: (_size(p), _size(others[name])) for name, p in own.items() if p.numel() >= MANY}
    least, most = ALIKE
    for name, (mine, new) in sizes.items():
        if not least * new <= mine <= most * new:
            warnings.warn(
                f"{type(net).__name__} starts anew by the reset_parameters() of its modules, which is not how it began: "
                f"{name} has a root mean square of {new:.3g} then, and {mine:.3g} now. If it was not trained before, pass "
                "anew=, a function that makes the network with its own initialisation",
                stacklevel=2,
            )
            return


def _size(weights: Tensor) -> float:
    return float(weights.detach().float().square().mean().sqrt())
