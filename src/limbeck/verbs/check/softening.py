"""Losses of the user's own between answers: over which axis they take a distribution, and a mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.finding import Finding
from limbeck.core.method import Distill
from limbeck.core.objective import Scene, Term
from limbeck.verbs.check.setup import BROKEN, Setup
from limbeck.verbs.check.terms import PROGRESS

SAMPLES = 8
NEVER = -1e4  # a logit of what has no probability, at any temperature in use
SLOPE = 1e3  # by which a divergence grows with the logits, and a difference of probabilities does not


def softening(setup: Setup) -> Iterator[Finding]:
    """Try losses of the user's own, of the student's and the teacher's answer, on logits that are made for it."""
    for part in setup.method.modules():
        if not isinstance(part, Distill) or not part.teachers:
            continue
        with torch.no_grad():
            scene = part.scene(setup.batch, PROGRESS)
            for name, (weight, term) in zip(part.objective.names, part.objective.entries, strict=True):
                if _of_answers(term, list(part.teachers)):
                    lighter = not callable(weight) and abs(weight) <= 1
                    yield from _tried(name, term, scene, lighter)


def _of_answers(term: Term, roles: list[str]) -> bool:
    """Whether a term compares the student's answer with a teacher's, by a function that is none of ours."""
    places = [(source.role, source.path) for source in term.places]
    if len(places) != 2 or any(path for _, path in places) or term.placed or any(term.adapters.children()):
        return False
    ours = getattr(term.loss, "__module__", type(term.loss).__module__).startswith("limbeck.")
    return not ours and not isinstance(term.loss, nn.Module) and places[0][0] == "student" and places[1][0] in roles


def _tried(name: str, term: Term, scene: Scene, lighter: bool) -> Iterator[Finding]:
    shown = [scene[source.role][source.path] for source in term.places]
    if any(not isinstance(one, Tensor) or one.ndim < 2 for one in shown) or shown[0].shape != shown[1].shape:
        return
    draw = torch.Generator().manual_seed(0)
    shape = (min(SAMPLES, len(shown[0])), *shown[0].shape[1:])
    student, teacher = (torch.randn(shape, generator=draw).to(shown[0]) for _ in range(2))

    def loss(s: Tensor, t: Tensor) -> float:
        seen = [s, t]
        for at, source in enumerate(term.places):
            for step in source.steps:
                seen[at] = step(seen[at])
        return float(term.loss(*seen, **term.options))

    try:
        yield from _axis(name, loss, student, teacher)
        if lighter:
            yield from _reduction(name, loss, student, teacher)
    except BROKEN:  # it wants other shapes than these
        return


def _axis(name: str, loss: Callable[[Tensor, Tensor], float], student: Tensor, teacher: Tensor) -> Iterator[Finding]:
    """A softmax does not see what is added to all it runs over: find out what that is."""
    here = loss(student, teacher)
    if _blind(loss, student, teacher, student.ndim - 1, here) or _alike(loss(2 * student, 2 * teacher), here):
        return
    for axis in range(student.ndim - 1):
        order = torch.rand(student.shape, generator=torch.Generator().manual_seed(1)).argsort(axis).to(student.device)
        moved = loss(student.gather(axis, order), teacher.gather(axis, order))
        # distances between samples do not see it either, but see what is moved within each class apart
        if _blind(loss, student, teacher, axis, here) and _alike(moved, here):
            yield Finding(
                f"axis {name}",
                "warning",
                f"{name!r} takes its softmax over axis {axis} of the answers {tuple(student.shape)}, "
                + ("which is the batch" if axis == 0 else "which is not that of the classes")
                + ": the classes come last, softmax(-1)",
            )
            return


def _blind(loss: Callable[[Tensor, Tensor], float], student: Tensor, teacher: Tensor, axis: int, here: float) -> bool:
    shape = [1 if at == axis else size for at, size in enumerate(student.shape)]
    added = 3 * torch.rand(shape, generator=torch.Generator().manual_seed(2)).to(student)
    return _alike(loss(student + added, teacher), here)


def _reduction(
    name: str, loss: Callable[[Tensor, Tensor], float], student: Tensor, teacher: Tensor
) -> Iterator[Finding]:
    """Add as many classes that have no probability: a divergence stays as it is, but not where it is a mean over them."""
    here, classes = loss(student, teacher), student.shape[-1]
    if not _blind(loss, student, teacher, student.ndim - 1, here):
        return
    padded = loss(*(F.pad(one, (0, classes), value=NEVER) for one in (student, teacher)))
    grows = loss(SLOPE * student, teacher) > 10 * abs(here)
    if grows and _alike(padded, here / 2):
        yield Finding(
            f"reduction {name}",
            "warning",
            f"{name!r} is a mean over the {classes} classes too, 1/{classes} of the divergence, as nn.KLDivLoss() is by "
            f"default: reduction='batchmean', or {classes} times the weight",
            {"classes": float(classes)},
        )


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-3 * abs(other) + 1e-9
