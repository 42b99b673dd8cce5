"""Find out in seconds, before a long run, whether a set-up is right."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.core.finding import Finding
from limbeck.core.method import Distill, Method
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.data import Data
from limbeck.verbs.check.answers import constant, finite
from limbeck.verbs.check.brought import brought
from limbeck.verbs.check.cost import cost
from limbeck.verbs.check.data import inputs, left_over, unlabelled
from limbeck.verbs.check.fed import another_precision, why_not
from limbeck.verbs.check.findings import Checkup, TermCheck, failed
from limbeck.verbs.check.identity import identity
from limbeck.verbs.check.leaks import leaks
from limbeck.verbs.check.learning import overfit
from limbeck.verbs.check.setup import BROKEN, Setup, opened
from limbeck.verbs.check.shares import suggested
from limbeck.verbs.check.softening import softening
from limbeck.verbs.check.teacher import bystanders, scales, teachers
from limbeck.verbs.check.terms import balance, gradients
from limbeck.verbs.check.wiring import modes, wiring

SAMPLES, SECONDS = 2000, 4.0  # of the data that one look of `check` takes, and the time that it has
FEWER, SHORTER = 1000, 1.0  # the same of `vet`


def check(
    method: Method | Iterable[Stage],
    data: Any,
    *,
    expect: float | None = None,
    epochs: int | None = None,
    shares: Mapping[str, float] | None = None,
) -> Checkup:
    """Look for mistakes in a set-up, before it is trained.

    Inputs; what the task examines, as labels and the order of the teacher's classes; the teacher's score, and whether it
    answers the same twice; every
    term's gradient on its player; whether one batch can be learned; how long the training will take. All of it happens
    to a copy: networks, random numbers and loaders are left as they were. But a generator of stages is used up by its first
    stage, the one that can be checked without training: make it anew for `fit`.

    Args:
        method: A method, or the stages of one that has several.
        data: As for `fit`.
        expect: The score that the teacher is known to have, as the task measures it: an accuracy in [0, 1].
        epochs: Of the training, for the estimate of its time.
        shares: The share of the gradient on the first player that a term should have, by its name, in (0, 1).
            ``"attention"`` means all of ``attention.layer1``, ``attention.layer2`` together. Terms not named keep their
            weights.

    Raises:
        ValueError: An argument that makes no sense.

    Example:
        >>> import limbeck
        >>> from limbeck import check
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> _ = limbeck.fit(limbeck.plain(teacher), data, epochs=5)
        >>> check(limbeck.kd(student, teacher), data, epochs=30).ok
        True
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    with opened(method, data, SAMPLES, SECONDS) as setup:
        score = setup.task.score
        if expect is not None and score.unit == "%" and not 0 <= expect <= 1:
            raise ValueError(f"expect is {score.name}, a share, and must lie in [0, 1], got {expect}")
        found: list[Finding] = []
        terms: list[TermCheck] = []
        if not isinstance(method, Method):
            name = f" {setup.stage.name!r}" if setup.stage.name else ""
            note = f"only the first stage{name} was checked: later ones depend on its training"
            found.append(Finding("stages", "ok", note))
        try:
            if _sound(found, setup):
                found += inputs(setup)
                found += setup.task.examine(setup)
                if _playable(found, setup):
                    found += _first_looks(setup, expect)
                    terms = setup.terms
                    found += _further_looks(setup, epochs)
        except BROKEN as error:
            found.append(Finding("batch", "failed", why_not(setup) or f"a batch cannot be played: {error}"))
    if shares and terms:
        terms = suggested(terms, shares)
    return Checkup(tuple(found), tuple(terms))


def vet(method: Method | Iterable[Stage], data: Any, accelerator: str = "auto") -> None:
    """Stop what would train in vain: the short form of `check`, with which every `distill` begins.

    Labels, outputs, teachers, layers that nobody trains, and terms that move nobody. It costs about as much as three
    batches of the training, and at most a second for each look at data: the validation samples, of which 1,000
    are enough, and the labels of each loader of the user's own.

    Args:
        method: As for `check`; a generator of stages is used up.
        data: As for `fit`.
        accelerator: As for `fit`.

    Raises:
        ValueError: The mistakes that were found. What is but probably one is a warning; so is what cannot be checked.
        Exception: What a batch raises that cannot be played, where no words of ours say why.
    """
    with opened(method, data, FEWER, SHORTER, accelerator) as setup:
        found = _vetted(setup, data)
    for finding in found:
        if finding.status == "warning":
            warnings.warn(finding.message, stacklevel=3)
    if wrong := failed(found):
        more = "`limbeck check` shows more; check=False (--check false) trains nevertheless"
        last = "Nothing was trained" if wrong[-1].name == "batch" else f"Nothing was trained. {more}"
        raise ValueError("\n".join([*(finding.message for finding in wrong), last]))


def vet_teacher(teacher: nn.Module, student: nn.Module, data: Any, task: Task, accelerator: str = "auto") -> None:
    """Stop several trainings by a teacher of whom nothing could be learned: what `vet` finds of it, whatever the method.

    Args:
        teacher: Who teaches.
        student: One of those who learn; it is looked at too, as the labels are.
        data: As for `fit`.
        task: What they are made to do.
        accelerator: As for `fit`.

    Raises:
        ValueError: The mistakes that were found; `vet` says more.
    """
    vet(Distill(student, teacher, task.hard, task), data, accelerator)


def _vetted(setup: Setup, data: Any) -> list[Finding]:
    found: list[Finding] = []
    try:
        if _sound(found, setup):
            found += setup.task.examine(setup)
            if _playable(found, setup):
                found += _first_looks(setup)
    except BROKEN as error:
        if isinstance(data, Data) and data.task.name != setup.task.name:
            return found  # `fit` says why
        if not another_precision(setup) and not _plays(setup):
            if (why := why_not(setup)) is None:
                raise
            return [*found, Finding("batch", "failed", why)]
        found.append(Finding("batch", "warning", f"not everything was checked before the training: {error}"))
    if setup.loaders.val is None:
        return found
    score = setup.task.score.name
    # `fit` measures the teachers on all of the validation data, and warns of those that guess
    return [one for one in found if not (one.status == "warning" and one.name.endswith(f" {score}"))]


def _plays(setup: Setup) -> bool:
    """Whether the method itself can do with a batch what it does in training; memory may be too little for a copy."""
    try:
        setup.played  # noqa: B018  # it is kept
    except BROKEN as error:
        return isinstance(error, torch.OutOfMemoryError)
    return True


def _sound(found: list[Finding], setup: Setup) -> bool:
    """Add why nothing further is worth a look: who trains what is taught, and numbers that are none."""
    found += finite(setup)
    found += brought(setup)
    if setup.wrong is not None and not failed(found):
        found.append(Finding("players", "failed", setup.wrong))
    return not failed(found)


def _playable(found: list[Finding], setup: Setup) -> bool:
    """Whether a batch may be played: on a GPU the loss of a label out of range is the end of the process."""
    return all(one.name.startswith(tuple(setup.teachers)) for one in failed(found))


def _first_looks(setup: Setup, expect: float | None = None) -> Iterator[Finding]:
    yield from teachers(setup, expect)
    yield from bystanders(setup.method)
    yield from modes(setup.method)
    yield from left_over(setup)
    yield from unlabelled(setup)
    yield from gradients(setup.terms, setup.played.reentrant)
    yield from wiring(setup)
    yield from constant(setup)
    yield from leaks(setup)


def _further_looks(setup: Setup, epochs: int | None) -> Iterator[Finding]:
    yield from scales(setup)
    yield from balance(setup.terms, setup.method.networks())
    yield from identity(setup)
    yield from softening(setup)
    yield from overfit(setup)
    yield from cost(setup, epochs)
