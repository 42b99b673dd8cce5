"""Model compression: a small network mimics what a large ensemble says of many rows.

Buciluă, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006. No arXiv number, no official code; the text was not to be
had, and where the sources about it differ, the docstrings say what we follow. Its rows, MUNGE, are made by
`limbeck.data.munge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.finding import Examined, Finding
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, Y, on
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification
from limbeck.tasks.regression import squared_error

PAPER = Paper(
    key="bucila2006model",
    title="Model Compression",
    authors="Buciluă, Cristian and Caruana, Rich and Niculescu-Mizil, Alexandru",
    venue="KDD",
    year=2006,
    matches="probabilities, on rows made up like the data",
    teacher="any frozen model",
)

Outputs = Literal["probabilities", "values"]


@full_precision
def probability_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """(p_s − p_t)², mean over classes and every other position.

    Of two classes this is the paper's squared error of the one probability. Its gradient vanishes where the student is
    sure of itself, unlike that of `logit_regression`.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
    """
    same_shape("logits", student, teacher)
    return F.mse_loss(student.softmax(-1), teacher.softmax(-1), reduction="sum") / max(1, student.numel())


def answers_already(setup: Examined) -> Iterator[Finding]:
    """Find nothing wrong with targets that are a teacher's answers."""
    return iter(())


def mimic(
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    outputs: Outputs | None = None,
    task: Task = classification,
) -> Distill:
    """Let the student regress the teacher's probabilities, without labels or temperature.

    L = (p_s − p_t)², mean over classes and samples; of a task without probabilities, the squared error of its values. The
    paper's point is the rows: as many as `limbeck.data.munge` makes, all answered by the teacher. The answers may be there
    already, as `limbeck.data.tabular.answered` has them, so that no training step waits for a forest: then there is no
    teacher.

    Args:
        student: The network to train.
        teacher: The model to learn from, of the same classes: a network, `limbeck.Ensemble`, or `limbeck.SklearnTeacher`.
            None where the batches' targets are its answers: logits (N, K), or values (N, M).
        outputs: ``"probabilities"``, the softmax of both, as in the paper; ``"values"``, as they are. By default what the
            task has: values of `limbeck.regression`, probabilities of others.
        task: How batches are fed and measured.

    Raises:
        ValueError: Unknown outputs, or probabilities of a task that has none.
    """
    if outputs not in (None, "probabilities", "values"):
        raise ValueError(f"outputs must be 'probabilities' or 'values', got {outputs!r}")
    answers = Y if teacher is None else T
    if teacher is None:
        task = replace(task, examine=answers_already)
    if outputs == "values" or (outputs is None and task.outcomes is None):
        return Distill(student, teacher, on(squared_error, S, answers, name="mimic"), task)
    return Distill(student, teacher, on(probability_regression, *task.softened(S, answers), name="mimic"), task)
