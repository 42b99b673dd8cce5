"""What makes a comparison worth nothing, and so is said before all else: teachers and students that only guess."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.core.finding import beside_guessing, no_better
from limbeck.core.frozen import frozen
from limbeck.core.task import Task
from limbeck.measure.evaluate import Measurement, batches

LOAD = "Load its weights (NAME@FILE), and look whether classes and normalisation agree; or call the entry a control."


def measured(net: nn.Module, loader: Iterable[Any], task: Task, device: torch.device) -> Measurement | None:
    """Measure a network; None, with a warning, where it has no answer to these targets.

    Args:
        net: It stays as it is.
        loader: Held-out batches.
        task: How it is fed, and what is measured.
        device: Where it runs.
    """
    view, measurement = frozen(net).again("eval").to(device), Measurement(task)  # a view moves alone
    try:
        with torch.no_grad():
            for batch in batches(loader, view):
                measurement.update(view, batch)
        measurement.compute()
    except Exception as error:  # noqa: BLE001  # whatever a network raises, what was trained is worth its table
        warnings.warn(f"{type(net).__name__} could not be measured on the test data: {error}", stacklevel=2)
        return None
    return measurement


def of_teacher(measurement: Measurement | None, task: Task, whose: str, learned: str) -> Iterator[str]:
    """Say that a teacher guesses, if it does.

    Args:
        measurement: Of the teacher.
        task: Its task.
        whose: What it is called.
        learned: Who learned from it.
    """
    if measurement is None or measurement.guess is None or not measurement.samples:
        return
    of = task.score, measurement.compute()[task.score.name], measurement.guess, measurement.samples
    if no_better(*of):
        yield f"{whose} {beside_guessing(*of, 'test samples')}. What {learned} learned from it is no knowledge. {LOAD}"


def of_students(reached: Mapping[str, Sequence[float]], task: Task, measurement: Measurement | None) -> Iterator[str]:
    """Say which students guess after their training, if any do.

    Args:
        reached: Their scores by name, one a seed.
        task: Their task.
        measurement: Of any network with their answers: it knows what guessing has, and of how many samples.
    """
    if measurement is None or measurement.guess is None or not measurement.samples:
        return
    score, guess = task.score, measurement.guess
    means = {name: statistics.fmean(values) for name, values in reached.items()}
    lost = [name for name, mean in means.items() if no_better(score, mean, guess, measurement.samples)]
    if lost:
        named = ", ".join(f"{name} ({score.show(means[name])})" for name in lost)
        yield (
            f"After the training these cannot be told from guessing, which has {score.show(guess)}, on "
            f"{measurement.samples} test samples: {named}. A row of such a student shows nothing about its method: train "
            "longer, or look at the data and the learning rate."
        )
