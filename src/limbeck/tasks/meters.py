"""What tasks measure and torchmetrics lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError

from limbeck.task import UNLABELLED
from limbeck.tasks.regression import as_wide


class MeanLoss(MeanMetric):
    """The mean of a loss over everything that is labelled; a NaN stays one.

    Args:
        loss: Of answers and targets, a mean over what is labelled.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__(nan_strategy=math.nan)
        self.loss = loss

    def update(self, answer: Any, target: Tensor) -> None:  # type: ignore[override]
        """Measure a batch."""
        super().update(self.loss(answer, target), weight=(target != UNLABELLED).sum().float())


class RootMeanSquare(MeanSquaredError):
    """The root of the mean squared error over all values of (N, M)."""

    def __init__(self) -> None:
        super().__init__(squared=False)

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; targets may be (N) where answers are (N, 1)."""
        super().update(answer.flatten(), as_wide(target, answer).flatten().to(answer.dtype))


class AbsoluteError(MeanAbsoluteError):
    """The mean absolute error over all values of (N, M)."""

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; targets may be (N) where answers are (N, 1)."""
        super().update(answer.flatten(), as_wide(target, answer).flatten().to(answer.dtype))
