"""What each term of the loss does to its player."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.method import parameters
from limbeck.core.objective import Loss
from limbeck.core.stage import Stage
from limbeck.core.task import Batch
from limbeck.verbs.check.findings import Finding, TermCheck

PROGRESS = 0.4  # where in the training terms are weighed: what rises is there by then, what falls is not gone yet
DOMINANT = (
    0.998  # share of the gradient that leaves nothing to the other terms: at's own 1000 comes to 0.996 in small nets
)
CONFLICT = -0.5  # cosine of two gradients


class _Weighed(NamedTuple):
    name: str
    loss: Loss
    gradient: Tensor  # of all the player's parameters, on the CPU
    reaches: bool


class Played(NamedTuple):
    """What one batch showed, half-way through the schedules of the weights.

    Args:
        terms: What each term does to its player.
        leaves: The tensors that need a gradient and that the losses depend on, each once.
        reentrant: Whether a part ran under ``torch.utils.checkpoint`` with ``use_reentrant=True``.
    """

    terms: list[TermCheck]
    leaves: list[Tensor]
    reentrant: bool


def weigh(stage: Stage, batch: Batch) -> Played:
    """Differentiate every term by the parameters of its player; nothing is updated between the turns."""
    owned = parameters(stage.method, stage.trains)
    weighed: dict[str, list[_Weighed]] = {player: [] for player in owned}
    leaves: dict[int, Tensor] = {}
    reentrant = False
    for turn in stage.method.step(batch, PROGRESS):
        if turn.player not in owned:
            raise ValueError(f"the turn of {turn.player!r}, who is not among the players {sorted(owned)}")
        found, again = _graph(turn.total)
        leaves |= found
        reentrant |= again
        weighed[turn.player] += [_weighed(name, loss, owned[turn.player], again) for name, loss in turn.terms.items()]
    terms = [term for player, own in weighed.items() for term in _compared(player, own)]
    return Played(terms, list(leaves.values()), reentrant)


def _graph(loss: Tensor) -> tuple[dict[int, Tensor], bool]:
    """Return the leaves of a loss's graph, and whether a part of it is made again in the backward pass, and hidden."""
    leaves: dict[int, Tensor] = {}
    waiting, seen, reentrant = [loss.grad_fn], set[Any](), False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves[id(leaf)] = leaf
        reentrant |= type(node).__name__ == "CheckpointFunctionBackward"
        waiting += [of for of, _ in node.next_functions]
    return leaves, reentrant


def gradients(terms: Sequence[TermCheck], reentrant: bool = False) -> Iterator[Finding]:
    """Find terms that train nothing, or whose gradient is not finite.

    Args:
        terms: Of all players.
        reentrant: Whether a part ran under ``torch.utils.checkpoint`` with ``use_reentrant=True``.
    """
    moved = True
    for term in terms:
        name, values = f"{term.player}/{term.name}", {"value": term.value, "gradient": term.gradient}
        if not math.isfinite(term.value) or not math.isfinite(term.gradient):
            message = (
                f"the term {name!r} is {term.value}, its gradient {term.gradient}: look for a division or root at 0, a "
                "logarithm of 0, or a mean over nothing, as of the labels of a batch without any"
            )
            yield Finding("gradients", "failed", message, values)
        elif not term.reaches:
            message = f"the term {name!r} gives its player no gradient: it trains nothing. " + (
                "A network calls torch.utils.checkpoint with use_reentrant=True, which hides layers inside from losses: "
                "use_reentrant=False does not"
                if reentrant
                else "Its layers come after what it should teach, or are detached"
            )
            yield Finding("gradients", "failed", message, values)
        elif term.gradient == 0:
            message = (
                f"the gradient of the term {name!r} is 0 on the batch that was looked at: unless no sample has "
                "a label, or student and teacher are the same network, something is rounded, saturated or masked away"
            )
            yield Finding("gradients", "warning", message, values)
        else:
            continue
        moved = False
    if moved:
        yield Finding("gradients", "ok", "every term moves its player")


def balance(terms: Sequence[TermCheck], shipped: Collection[str]) -> Iterator[Finding]:
    """Find terms that leave nothing to others, or that pull against each other.

    Args:
        terms: Of all players.
        shipped: The players that training is for.
    """
    for term in terms:
        if term.share >= DOMINANT and any(other.gradient for other in terms if other.name in term.cosines):
            message = (
                f"the term '{term.player}/{term.name}' has {term.share:.2%} of the gradient, and the others next to "
                "nothing: lower its weight, or ask for the weights of other shares (shares=, --share)"
            )
            yield Finding("balance", "warning", message, {"share": term.share})
    for a, b in combinations(terms, 2):
        cosine = a.cosines.get(b.name, 0.0) if a.player == b.player else 0.0
        if cosine < CONFLICT and a.player in shipped:  # a critic's terms are meant to
            message = (
                f"the terms {a.name!r} and {b.name!r} of {a.player!r} pull against each other: cosine {cosine:.2f}"
            )
            yield Finding("conflict", "warning", message, {"cosine": cosine})


def _weighed(name: str, loss: Loss, own: list[nn.Parameter], reentrant: bool) -> _Weighed:
    parts: Sequence[Tensor | None] = [None] * len(own)
    if loss.weighted.requires_grad:
        differentiate = _by_backward if reentrant else _by_grad
        parts = differentiate(loss.weighted, own)
    flat = [
        torch.zeros(p.numel()) if part is None else part.detach().flatten().float().cpu()
        for p, part in zip(own, parts, strict=True)
    ]
    return _Weighed(name, loss, torch.cat(flat), any(part is not None for part in parts))


def _by_grad(loss: Tensor, own: list[nn.Parameter]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)


def _by_backward(loss: Tensor, own: list[nn.Parameter]) -> Sequence[Tensor | None]:
    """Reentrant checkpointing knows `backward` alone; the parameters are a copy's, and have no gradients yet."""
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    parts = [p.grad for p in own]
    for p in own:
        p.grad = None
    return parts


def _compared(player: str, own: list[_Weighed]) -> Iterator[TermCheck]:
    norms = [float(term.gradient.norm()) for term in own]
    cosines: list[dict[str, float]] = [{} for _ in own]
    for a, b in combinations(range(len(own)), 2):
        cosine = float(F.cosine_similarity(own[a].gradient, own[b].gradient, dim=0))
        cosines[a][own[b].name] = cosines[b][own[a].name] = cosine
    for (name, loss, _, reaches), norm, others in zip(own, norms, cosines, strict=True):
        share = norm / sum(norms) if sum(norms) else 0.0
        yield TermCheck(player, name, float(loss.value.detach()), loss.weight, norm, share, others, reaches)
