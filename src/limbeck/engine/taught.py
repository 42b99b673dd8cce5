"""What of a cache a method reads, and whether it is what the method's teacher says."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.batches import take
from limbeck.core.copied import copied
from limbeck.core.files import read
from limbeck.core.frozen import Frozen, frozen
from limbeck.core.method import Distill, Method
from limbeck.core.objective import Scene, Source, Term
from limbeck.core.task import Batch, Task, identified, numbers_of, traces_of
from limbeck.core.trace import Trace
from limbeck.data.cache import Brought, Cache
from limbeck.data.epochs import Epochs
from limbeck.data.identity import described, differences, of_loader
from limbeck.data.repeatable import Repeatable
from limbeck.engine.inputs import describe_teacher
from limbeck.nets.elsewhere import Elsewhere

logger = logging.getLogger("limbeck")

MEASURED = "measured.json"
"""What the teacher reaches on held-out data."""
FEW = 8
"""Samples of a view of which the teacher is asked before a training."""
NEAR = 0.1
"""How far answers may be from those that are kept, in the spread of answers from sample to sample. Rounding leaves 0.001;
of eight CIFAR-10 images and a resnet20 another view leaves 0.4 to 0.9, and other samples 1.7 to 2.0."""


def readers(method: Method, role: str) -> list[Distill]:
    """Return the parts of a method to which a batch may bring what the teacher in a role says.

    One that differentiates its teacher, as `jacobian`, makes its scene itself.
    """
    return [
        part
        for part in method.modules()
        if isinstance(part, Distill)
        and type(part).scene is Distill.scene
        and role in part.teachers
        and role in part.objective.roles()
    ]


def places(method: Method, role: str = "teacher") -> list[Source]:
    """Return the places of the teacher in a role that a method reads of a batch."""
    found = [one for part in readers(method, role) for one in part.objective.sources() if one.role == role]
    return list(dict.fromkeys(found))


def kept_as(place: Source, cache: Cache) -> str | None:
    """Return by which name a cache keeps a place, as `Source.read` finds it; None where it does not."""
    names = [place.path, *(place.after(done) for done in range(place.plain_steps, 0, -1))]
    return next((name for name in names if name in cache.places), None)


def told_to(method: Method, told: Brought, first: bool) -> Brought | None:
    """Return what of a cache the batches of a method's stage bring along; None where its teacher is asked.

    Args:
        method: That of the stage.
        told: What there is.
        first: Whether it is the first stage, whose teacher is the one that was given.

    Raises:
        ValueError: The cache is of another teacher than the first stage's, or lacks what the method reads.
    """
    cache = told.cache
    wanted = places(method, cache.role)
    roles = sorted({role for part in method.modules() if isinstance(part, Distill) for role in part.teachers})
    if roles and cache.role not in roles:
        raise ValueError(f"the cache in {cache.folder} is of a {cache.role}, and the method has {', '.join(roles)}")
    if not wanted:
        if roles:
            logger.info(
                "the method asks its %s itself, for gradients, and reads nothing in %s", cache.role, cache.folder
            )
        return None
    for part in readers(method, cache.role):
        teacher = cast("Frozen", part.teachers[cache.role])
        if first:
            refuse_another_teacher(cache, teacher, method.task)
        elif another_teacher(cache, teacher, method.task) is not None:
            logger.info("the %s of this stage is another than that of %s, and is asked", cache.role, cache.folder)
            return None
    names = {place: kept_as(place, cache) for place in wanted}
    if lacking := [place.path for place, name in names.items() if name is None]:
        raise ValueError(
            f"the cache in {cache.folder} holds {said(cache.places)} of the teacher, and the method reads {said(lacking)}: "
            "`limbeck cache build` another, in a folder of its own, whose --methods name this one; or leave the cache out"
        )
    if method.task.traces is not traces_of:
        raise ValueError(
            f"the task {method.task.name} has a way of its own to find what a batch brings along of teachers, traces=, and "
            "does not find what a cache brings: leave that out, or the cache"
        )
    return replace(told, places=frozenset(name for name in names.values() if name is not None))


def described_cache(answers: Any) -> Any:
    """Return what a run depends on of a cache: how exactly it holds what the teacher said; where it lies does not count."""
    if not isinstance(answers, Brought):
        return None
    places = [described(asdict(one)) for one in answers.cache.places.values()]
    who = answers.cache.made_with.get("teacher")
    return {"places": places, "elsewhere": who} if isinstance(who, str) else {"places": places}


def known_of(cache: Cache, split: str, loader: Epochs | Repeatable | None) -> dict[str, dict[str, float]]:
    """Return what the teacher reaches on held-out data, by role, if it was measured on just these when it was asked.

    Where there are none there is nothing to know, and the role is there nevertheless: nobody need ask the teacher.

    Args:
        cache: The cache.
        split: ``"val"`` or ``"test"``.
        loader: The data.
    """
    if loader is None:
        return {cache.role: {}}
    path = cache.folder / MEASURED
    if not path.exists():
        return {}
    there = read(path, f"delete {path}").get(split, {})
    if there.get("data") != json.loads(json.dumps(of_loader(loader))):
        return {}
    return {cache.role: there["values"]}


def said(names: Iterable[str]) -> str:
    """Return places in words."""
    return ", ".join(repr(name) if name else "the answer" for name in names)


def facts_of(teacher: Frozen, task: Task) -> dict[str, Any]:
    """Return what of a teacher a cache is made with."""
    return {
        **describe_teacher(teacher, task, None),
        "fed by": described(task.inputs),
        "read by": described(task.output),
    }


def another_teacher(cache: Cache, teacher: Frozen, task: Task) -> tuple[str, Any, Any] | None:
    """Return the first thing in which a teacher differs from the one of whom a cache is; one from elsewhere is anybody."""
    was = cache.made_with.get("teacher")
    return next(differences(was, facts_of(teacher, task)), None) if isinstance(was, Mapping) else None


def refuse_another_teacher(cache: Cache, teacher: Frozen, task: Task) -> None:
    """See that a cache is of a teacher.

    Raises:
        ValueError: It is of another.
    """
    if (other := another_teacher(cache, teacher, task)) is not None:
        what, before, after = other
        raise ValueError(
            f"the cache in {cache.folder} is of another teacher: its {what} was {before}, and is {after}. Take that one, "
            "or `limbeck cache build` another cache, in a folder of its own"
        )


@contextmanager
def absent(method: Method, roles: Collection[str]) -> Iterator[None]:
    """Let teachers stay where they are while a method trains by what batches bring along: they need no room on a device."""
    held = [(part.teachers, role, part.teachers[role]) for role in roles for part in readers(method, role)]
    for teachers, role, _ in held:
        teachers[role] = Frozen(Elsewhere())
    try:
        yield
    finally:
        for teachers, role, teacher in held:
            teachers[role] = teacher


def refuse_what_is_not_said(told: Brought, method: Method, loader: Epochs | Repeatable) -> None:
    """Ask the teacher of a few samples, and compare: this finds what no description does, as a loader that draws.

    Args:
        told: What of a cache the method reads.
        method: That of the stage.
        loader: The training data.

    Raises:
        ValueError: The teacher says something else than what is kept; or what is kept does not serve a loss.
    """
    cache = told.cache
    part = readers(method, cache.role)[0]
    teacher = cast("Frozen", part.teachers[cache.role])
    for number in sorted({0, cache.views - 1}) if isinstance(loader, Epochs) else [0]:
        batch, ids, views = some(loader, FEW, number)
        kept = cache.read(ids, views, told.places)
        if not isinstance(teacher.net, Elsewhere):
            shown = shown_at(teacher, part.task, batch, named(places(method, cache.role), cache))
            _refuse_far(cache, shown, kept)
    if (answer := cache.places.get("")) is not None and answer.top is not None and "" in kept:
        for each in readers(method, cache.role):
            _refuse_shifted(each, cache, batch, kept)


def _refuse_far(cache: Cache, shown: Trace, kept: Trace) -> None:
    for name, values in kept.items():
        if (far := apart(cache.places[name].again(shown[name]), values)) > NEAR:
            raise ValueError(
                f"the teacher's {name or 'answer'!r} of the first samples is not what {cache.folder} holds: it is "
                f"{far:.2f} of their spread away, where rounding leaves 0.001. The data are prepared otherwise, or draw by "
                "something else than an id and the number of a view: limbeck.data.Items(dataset, transform=...) draws by "
                "these. `limbeck cache verify` shows more; `limbeck cache build` makes another"
            )


def _refuse_shifted(part: Distill, cache: Cache, batch: Batch, kept: Trace) -> None:
    """Find what takes logits as they are, where a cache keeps their log-probabilities: these differ by a number a sample.

    Raises:
        ValueError: A loss of the answers that is another where that number is.
    """
    student = frozen(part.student)
    device = next(student.net.parameters(), torch.empty(0)).device
    scene = part.read(move_data_to_device(batch, device))
    with torch.no_grad():
        scene["student"] = part.task.look(student, scene["input"], part.objective.paths("student"))
    for name, (_, term) in zip(part.objective.names, part.objective.entries, strict=True):
        if not any(one.role == cache.role and not one.path for one in term.sources):
            continue
        there, shifted = (_loss(term, {**scene, cache.role: {**kept, "": kept[""] + by}}) for by in (0.0, 3.0))
        if not torch.allclose(there, shifted, rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"the term {name!r} takes the teacher's logits as they are, and the cache in {cache.folder} keeps their "
                f"{cache.places[''].top} largest log-probabilities: `limbeck cache build` another without --top, in a "
                "folder of its own"
            )


def _loss(term: Term, scene: Scene) -> Tensor:
    """Return a term's loss, and leave the term and the random numbers as they were."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        loss: Tensor = copied(term)(scene)
        return loss


def some(loader: Epochs | Repeatable, count: int, number: int = 0) -> tuple[Batch, Tensor, Tensor]:
    """Return a batch of a few samples as a training sees them in a view, with their ids and the numbers of their views.

    Args:
        loader: The training data; of ours one whose views cycle.
        count: How many samples at most.
        number: Of the view; a loader of the user's own has its own.
    """
    if isinstance(loader, Repeatable):
        batch = take(loader.first, slice(count))
        ids = loader.ids(batch)
        return batch, ids, numbers_of(batch, ids)
    wanted = loader.spread(count)
    batch = next(loader.seen(number, [wanted]))
    ids = identified(batch, wanted)
    return batch, ids, torch.full_like(ids, number)


def named(wanted: Iterable[Source], cache: Cache) -> dict[str, Source]:
    """Return places by the names that they have in a cache, those that are there."""
    found = {kept_as(place, cache): place for place in wanted}
    return {name: place for name, place in found.items() if name is not None}


def shown_at(teacher: Frozen, task: Task, batch: Batch, wanted: Mapping[str, Source]) -> Trace:
    """Ask a teacher, and return what it shows at each place by its name, after the steps that the name has."""
    device = next(teacher.net.parameters(), torch.empty(0)).device
    inputs = move_data_to_device(task.inputs(batch), device)
    with torch.no_grad():
        trace = task.look(teacher, inputs, {place.path for place in wanted.values() if place.path})
        shown = {}
        for name, place in wanted.items():
            value = trace[place.path]
            for done, step in enumerate(place.steps):
                if place.after(done) == name:
                    break
                value = step(value)
            shown[name] = value
    return shown


def alike(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the smallest cosine that a sample's answers have, and the largest difference of a number.

    Args:
        one: (N, ...).
        other: Of the same shape.
    """
    ours, theirs = _rows(one), _rows(other)
    zero = (ours == 0).all(1) & (theirs == 0).all(1)
    cosines = F.cosine_similarity(ours, theirs, dim=1).where(~zero, 1.0)
    return float(cosines.min()), float((ours - theirs).abs().max())


def apart(one: Tensor, other: Tensor) -> float:
    """Return how far two answers to a sample are from each other at most, in the spread of answers from sample to sample.

    A cosine would not do: log-probabilities of a thousand classes, or maps that are nowhere negative, are all alike by it.

    Args:
        one: (N, ...).
        other: Of the same shape.
    """
    ours, theirs = _rows(one), _rows(other)
    spread = (ours - ours.mean(0)).square().sum(1).mean().sqrt()
    length = ours.square().sum(1).mean().sqrt()  # of answers that are all the same a hundredth counts
    away: Tensor = (ours - theirs).square().sum(1).max().sqrt()
    return float(away / torch.maximum(spread, length / 100).clamp(min=1e-12))


def _rows(values: Tensor) -> Tensor:
    return values.detach().cpu().double().flatten(1)
