"""The one call."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from limbeck.core.options import ranged
from limbeck.core.task import Task
from limbeck.data.randomness import random_state, set_random_state
from limbeck.engine.assemble import assemble, parameters_of
from limbeck.engine.fit import Result, Trainable, example_of, fit, labels_of, task_of
from limbeck.engine.run import Run
from limbeck.verbs.check import vet


@ranged
def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
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
        student: The network to train, in place.
        teacher: The network to learn from; for methods of peers, these. None for methods without one.
        data: A `limbeck.data.Data`, or loaders, as for `fit`.
        method: Its name: ``limbeck list methods`` shows all; or a sum of several, ``"kd+at"``, see `limbeck.add`.
        task: What the networks are made to do, as `limbeck.multilabel`: how batches are fed, answers found, and the result
            judged. By default the data's own; loaders are taken for classification.
        epochs: As for `fit`, at least 1; 30 is ours.
        check: Look for mistakes first, as `limbeck.check` does in its short form: labels out of range, a teacher with
            permuted classes, a term that trains nothing, validation samples among the training's, and more.
        options: Those of the method (``temperature=2.0``; in a sum ``**{"kd.temperature": 2.0}``) and of `fit`
            (``run_dir="runs/a"``).

    Raises:
        ValueError: An unknown method or option, with the closest; the mistakes that the check found; and what the
            method and `fit` raise.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> _ = limbeck.fit(limbeck.plain(teacher), data, epochs=5)
        >>> limbeck.distill(student, teacher, data, method="kd", epochs=2, temperature=2.0).finished
        True
    """
    of_fit = set(inspect.signature(fit).parameters) - set(parameters_of(method))
    training = {name: value for name, value in options.items() if name in of_fit}
    own = {name: value for name, value in options.items() if name not in of_fit}
    task = task or task_of(data)
    example = example_of(data, student, task)

    def make() -> Trainable:
        return assemble(method, student, teacher, example, own, labels_of(data), task=task)

    if check and not goes_on(training.get("run_dir"), training.get("resume", False)):
        look_first(make, data, training.get("accelerator", "auto"))
    return fit(make(), data, epochs=epochs, **{"name": method, **training})


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
