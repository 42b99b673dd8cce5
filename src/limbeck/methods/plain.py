"""The baseline: the student alone, with nobody to learn from."""

from __future__ import annotations

from torch import nn

from limbeck.core.method import Distill
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="rumelhart1986learning",
    title="Learning representations by back-propagating errors",
    authors="Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.",
    venue="Nature",
    year=1986,
    matches="labels",
    teacher="nobody",
)


def plain(student: nn.Module, *, task: Task = classification) -> Distill:
    """Train the student on the labels alone: the baseline of every comparison.

    L = CE(y, z_s), mean over the labelled samples.

    Args:
        student: The network to train.
        task: How batches are fed and measured.
    """
    return Distill(student, None, task.hard, task)
