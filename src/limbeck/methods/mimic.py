"""Model compression: a small network mimics what a large ensemble says of many rows.

Buciluă, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006. No arXiv number, no official code; the text was not to be
had, and where the sources about it differ, the docstrings say what we follow. Its rows, MUNGE, are made by
`limbeck.data.munge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.method import Distill
from limbeck.numerics import full_precision, same_shape
from limbeck.objective import S, T, Y, on
from limbeck.paper import Paper
from limbeck.task import Task, classification

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

PAPER = Paper(
    key="bucila2006model",
    title="Model Compression",
    authors="Bucil{\\u{a}}, Cristian and Caruana, Rich and Niculescu-Mizil, Alexandru",
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


@full_precision
def value_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """(s − t)², mean over all elements.

    Args:
        student: Predictions, (N, ...).
        teacher: Predictions of the same shape.
    """
    same_shape("predictions", student, teacher)
    return F.mse_loss(student, teacher, reduction="sum") / max(1, student.numel())


@dataclass(frozen=True)
class Regression(Task):
    """Real-valued targets (N, M): the squared error, measured by its root."""

    def metrics(self, num_classes: int) -> MetricCollection:
        """Return what is measured on held-out data: the root-mean-square error, over all outputs."""
        from torchmetrics import MeanSquaredError, MetricCollection

        return MetricCollection({"rmse": MeanSquaredError(squared=False)})


regression = Regression(loss=value_regression)
"""Real-valued targets: squared error, its root."""


def mimic(
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    outputs: Outputs = "probabilities",
    task: Task = classification,
) -> Distill:
    """Let the student regress the teacher's probabilities, without labels or temperature.

    L = (p_s − p_t)², mean over classes and samples; without softmax where ``outputs`` are values. The paper's point is
    the rows: as many as `limbeck.data.munge` makes, all answered by the teacher. The answers may be there already, as
    `limbeck.data.tabular.answered` has them, so that no training step waits for a forest: then there is no teacher.

    Args:
        student: The network to train.
        teacher: The model to learn from, of the same classes: a network, `limbeck.Ensemble`, or `limbeck.SklearnTeacher`.
            None where the batches' targets are its answers: logits (N, K), or values (N, M).
        outputs: ``"probabilities"``, the softmax of both, as in the paper; ``"values"`` of a regression, as they are.
        task: How batches are fed and measured; `limbeck.methods.mimic.regression` where values are learnt.

    Raises:
        ValueError: Unknown outputs.
    """
    losses = {"probabilities": probability_regression, "values": value_regression}
    if outputs not in losses:
        raise ValueError(f"outputs must be 'probabilities' or 'values', got {outputs!r}")
    return Distill(student, teacher, on(losses[outputs], S, Y if teacher is None else T, name="mimic"), task)
