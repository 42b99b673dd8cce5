"""The one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any

from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from limbeck import methods
from limbeck.core.heard import listening
from limbeck.core.options import ranged
from limbeck.core.task import Task
from limbeck.data.randomness import random_state, set_random_state
from limbeck.engine.assemble import GIVEN, assemble, parameters_of
from limbeck.engine.fit import Result, Trainable, example_of, fit, labels_of, refuse_unremembered, task_of
from limbeck.engine.named import Namer, data_of
from limbeck.engine.run import Run
from limbeck.verbs.check import vet


@ranged
@listening()
def distill(
    student: nn.Module | str,
    teacher: nn.Module | str | Sequence[nn.Module | str] | None,
    data: Any,
    method: str = "kd",
    *,
    task: Task | None = None,
    epochs: int = 30,
    check: bool = True,
    **options: Any,
) -> Result:
    """Train a student by a method's name.

    It begins with the short form of `limbeck.check`: the work of about three batches, and at most a second for each look
    at data. It changes nothing of the training, and is left out where a run goes on.

    Args:
        student: The network to train, in place; or its name, as ``"resnet8"``, of which `limbeck.zoo.network` makes one
            that suits the data, with weights drawn by the seed.
        teacher: The network to learn from; for methods of peers, these. None for methods without one. A name says its
            weights: ``"resnet20@runs/teacher"``.
        data: A `limbeck.data.Data`, or loaders, as for `fit`; or a name, as ``"digits"``, which `limbeck.data.load` loads.
        method: Its name: ``limbeck list methods`` shows all; or a sum of several, ``"kd+at"``, see `limbeck.add`.
        task: What the networks are made to do, as `limbeck.multilabel`: how batches are fed, answers found, and the result
            judged. By default the data's own; loaders are taken for classification.
        epochs: As for `fit`, at least 1; 30 is ours.
        check: Look for mistakes first, as `limbeck.check` does in its short form: labels out of range, a teacher with
            permuted classes, a term that trains nothing, validation samples among the training's, and more.
        options: Those of the method (``temperature=2.0``; in a sum ``**{"kd.temperature": 2.0}``) and of `fit`
            (``run_dir="runs/a"``).

    Raises:
        TypeError: An argument of another type; the message says which was expected.
        ValueError: An unknown name, method or option, with the closest; the mistakes that the check found; and what the
            method and `fit` raise.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> _ = limbeck.fit(limbeck.plain(teacher), data, epochs=5)
        >>> limbeck.distill(student, teacher, data, method="kd", epochs=2, temperature=2.0).finished
        True
        >>> limbeck.distill("mlp-16", teacher, "digits", epochs=2).finished
        True
    """
    _refuse_order(student, teacher, data)
    of_method = parameters_of(method)
    of_fit = set(signature(fit).parameters) - set(of_method)
    training = {name: value for name, value in options.items() if name in of_fit}
    own = {name: value for name, value in options.items() if name not in of_fit}
    _refuse_unknown(method, own, [name for name in of_method if name not in GIVEN], of_fit)
    if any(isinstance(one, str) for one in (student, data, *_listed(teacher), *_listed(own.get("assistants")))):
        seed_everything(training.get("seed", 0), verbose=False)  # weights are drawn as the command line draws them
    data = data_of(data, training.get("seed", 0))
    task = task or task_of(data)
    namer = Namer(data, task)
    if "assistants" in own:
        own["assistants"] = namer.learners(_listed(own["assistants"]))
    learner, anew = namer.learner(student), partial(namer.learner, student) if isinstance(student, str) else None
    taught = _teachers(namer, teacher, peers="peers" in of_method)
    example = example_of(data, learner, task)
    refuse_unremembered(method, own, data, task)

    def make() -> Trainable:
        return assemble(method, learner, taught, example, own, labels_of(data), anew, task)

    if check and not goes_on(training.get("run_dir"), training.get("resume", False)):
        look_first(make, data, training.get("accelerator", "auto"))
    return fit(make(), data, epochs=epochs, **{"name": method, **training})


def _refuse_order(student: Any, teacher: Any, data: Any) -> None:
    """Find a method's name where something else belongs, before that is looked for among networks and data."""
    for place, given in (("student", student), ("teacher", teacher), ("data", data)):
        if isinstance(given, str) and set(given.split("+")) <= set(methods.__all__):
            raise ValueError(
                f"{given!r} is a method, and stands in the place of the {place}: the order is limbeck.distill(student, "
                f"teacher, data, {given!r})"
            )


def _refuse_unknown(method: str, options: Iterable[str], of_method: Sequence[str], of_fit: Collection[str]) -> None:
    """Find an option that neither the method nor the training has."""
    mine = {*signature(distill).parameters, *GIVEN, "data", "settings", "name"}
    others = sorted(name for name in of_fit if name not in mine)
    for name in options:
        if name in of_method:
            continue
        close = get_close_matches(name, [*of_method, *others], n=3)
        told = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(of_method) or 'none'}"
        raise ValueError(
            f"{method} has no option {name!r}: {told}" + ("" if close else f"; of fit, {', '.join(others)}")
        )


def _teachers(namer: Namer, teacher: Any, *, peers: bool) -> Any:
    """Return who teaches, given by name or not: peers learn, and all others have learned."""
    if teacher is None:
        return None
    made = namer.learner if peers else namer.teacher
    return made(teacher) if isinstance(teacher, (nn.Module, str)) else [made(one) for one in teacher]


def _listed(given: Any) -> list[Any]:
    """Return one, several or none of something as a list."""
    return [] if given is None else [given] if isinstance(given, (nn.Module, str)) else list(given)


def look_first(make: Callable[[], Trainable], data: Any, accelerator: str) -> None:
    """Vet a method that is made for that alone, in the first process; random numbers stay where they are.

    Args:
        make: Makes the method.
        data: As for `fit`.
        accelerator: As for `fit`.

    Raises:
        ValueError: It is wrong.
    """
    before = random_state()
    rank_zero_only(vet)(make(), data, accelerator)
    set_random_state(before)


def goes_on(run_dir: str | os.PathLike[str] | None, resume: bool) -> bool:
    """Whether `fit` goes on with a run, and does not begin one."""
    return resume and run_dir is not None and Run(run_dir).begun
