"""Values: root-mean-square error, squared error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from limbeck.exhibits import Exhibit, Shown
from limbeck.finding import Examined, Finding
from limbeck.numerics import full_precision, same_shape
from limbeck.task import Score, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@full_precision
def squared_error(student: Tensor, targets: Tensor) -> Tensor:
    """(s − y)², mean over all values.

    Args:
        student: Predictions, (N, M).
        targets: The true values, (N, M), or (N) where M is 1.
    """
    targets = as_wide(targets, student)
    same_shape("values", student, targets)
    return F.mse_loss(student, targets.to(student.dtype), reduction="sum") / max(1, student.numel())


def as_wide(targets: Tensor, answer: Tensor) -> Tensor:
    """Return targets (N) as (N, 1) where the answers are: (N, 1) − (N) would be a table of all pairs."""
    return targets.unsqueeze(-1) if answer.shape == (*targets.shape, 1) else targets


def errors(answer: Tensor) -> MetricCollection:
    """``RMSE`` and ``MAE`` over all values, and mean loss."""
    from torchmetrics import MetricCollection

    from limbeck.tasks.meters import AbsoluteError, MeanLoss, RootMeanSquare

    return MetricCollection({"RMSE": RootMeanSquare(), "MAE": AbsoluteError(), "loss": MeanLoss(squared_error)})


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare targets with outputs."""
    yield from ()


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show predictions over the truth."""
    yield from ()


regression = Task(
    name="regression",
    loss=squared_error,
    outcomes=None,
    metrics=errors,
    score=Score("RMSE", unit="", best="lowest"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
