"""Several labels a sample, each true or not: mean average precision, binary cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.exhibits import Exhibit, Shown
from limbeck.finding import Examined, Finding
from limbeck.numerics import full_precision, same_shape
from limbeck.task import UNLABELLED, Score, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@full_precision
def binary_cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """−y log σ(z) − (1 − y) log(1 − σ(z)), mean over the known labels; 0 where none of the batch is known.

    Args:
        student: Logits, (N, K), one for each label.
        targets: 1 where a label is true, 0 where not, −100 where unknown, (N, K), of any type.
    """
    same_shape("labels", student, targets)
    known = targets != UNLABELLED
    loss = F.binary_cross_entropy_with_logits(student, targets.where(known, 0).to(student.dtype), reduction="none")
    return loss.where(known, 0.0).sum() / known.sum().clamp(min=1)


def two_outcomes(answer: Tensor) -> Tensor:
    """Return the logits of a label being true and not, (N, K, 2): softmax((z, 0)) = (σ(z), 1 − σ(z)), at any temperature.

    So `limbeck.losses.soft_target` is the divergence of a Bernoulli distribution a label, mean over samples and labels.
    """
    return torch.stack([answer, torch.zeros_like(answer)], -1)


def precision(answer: Tensor) -> MetricCollection:
    """``mAP``, the mean over labels of average precision, macro ``F1`` at 0.5, and mean loss, of the known labels."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

    from limbeck.tasks.meters import MeanLoss

    labels = answer.shape[-1]
    return MetricCollection(
        {
            "mAP": MultilabelAveragePrecision(labels, ignore_index=UNLABELLED),
            "F1": MultilabelF1Score(labels, ignore_index=UNLABELLED),
            "loss": MeanLoss(binary_cross_entropy),
        }
    )


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare targets with outputs."""
    yield from ()


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show which labels each network finds likely."""
    yield from ()


multilabel = Task(
    name="multilabel",
    loss=binary_cross_entropy,
    outcomes=two_outcomes,
    metrics=precision,
    score=Score("mAP"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
