"""The student in the teacher's place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.finding import Finding
from limbeck.core.method import Distill
from limbeck.core.objective import Scene, Term
from limbeck.verbs.check.setup import BROKEN, Setup
from limbeck.verbs.check.terms import PROGRESS


def identity(setup: Setup) -> Iterator[Finding]:
    """See that a term which compares student and teacher is least, and so 0, where the student is the teacher."""
    for part in setup.method.modules():
        if not isinstance(part, Distill) or not part.teachers:
            continue
        with torch.no_grad():
            scene = part.scene(setup.batch, PROGRESS)
        for name, (_, term) in zip(part.objective.names, part.objective.entries, strict=True):
            roles = [source.role for source in term.places]
            if "student" in roles and any(role in part.teachers for role in roles):
                yield _swapped(name, term, scene, list(part.teachers))


def _swapped(name: str, term: Term, scene: Scene, roles: list[str]) -> Finding:
    """Evaluate a term with what the teacher shows in both roles."""
    title = f"identity {name}"
    of_student = [index for index, source in enumerate(term.places) if source.role == "student"]
    of_teacher = [index for index, source in enumerate(term.places) if source.role in roles]
    if len(of_student) != len(of_teacher):
        return Finding(title, "ok", "not checked: it does not compare one place of each")
    if isinstance(term.loss, nn.Module) or any(term.adapters.children()):
        return Finding(title, "ok", "not checked: what it learns stands between student and teacher")
    if any(not isinstance(term.places[index].read(scene), Tensor) for index in (*of_student, *of_teacher)):
        return Finding(title, "ok", "not checked: it compares what is no tensor")
    try:
        shown = [source.read(scene) for source in term.places]
        swapped = list(shown)
        for mine, theirs in zip(of_student, of_teacher, strict=True):
            swapped[mine] = shown[theirs]
        here, slope_here = _slope(term, shown, of_student, scene)
        there, slope_there = _slope(term, swapped, of_student, scene)
    except BROKEN as error:  # the student's shapes are not the teacher's
        return Finding(title, "ok", f"not checked: {error}")
    values = {
        "value": here,
        "value, student = teacher": there,
        "slope": slope_here,
        "slope, student = teacher": slope_there,
    }
    if abs(there) <= 1e-3 * abs(here) + 1e-6:
        return Finding(title, "ok", f"{name!r} is 0 where the student is the teacher", values)
    if slope_there <= 1e-3 * slope_here + 1e-6:
        return Finding(title, "ok", f"{name!r} is at its minimum where the student is the teacher", values)
    message = (
        f"{name!r} is {there:.3g} where the student is the teacher, and not least there (here it is {here:.3g}): it pulls "
        "the student away from the teacher. Are softmax and temperature the same on both sides?"
    )
    return Finding(title, "warning", message, values)


def _slope(term: Term, shown: list[Any], of_student: list[int], scene: Scene) -> tuple[float, float]:
    """Return a term's value and the norm of its gradient by what the student shows."""
    leaves = {index: shown[index].detach().clone().requires_grad_() for index in of_student}
    value = term.of([leaves.get(index, one) for index, one in enumerate(shown)], scene)
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), math.hypot(*(float(slope.norm()) for slope in slopes))
