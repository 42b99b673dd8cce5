"""What tasks measure and torchmetrics lacks, or measures of targets of another shape or type."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MultilabelF1Score
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from limbeck.core.task import UNLABELLED
from limbeck.tasks.regression import as_wide
from limbeck.tasks.segmentation import at_labels, overlaps


def labelled(target: Tensor) -> Tensor:
    """Return how many entries of a target are labelled."""
    return (target != UNLABELLED).sum()


class MeanLoss(MeanMetric):
    """The mean of a loss over everything that counts; a NaN stays one.

    Args:
        loss: Of answers and targets, a mean over what counts.
        counted: How many entries of a target do; by default those that are labelled.
    """

    def __init__(
        self, loss: Callable[[Any, Any], Tensor], counted: Callable[[Tensor], Tensor | int] = labelled
    ) -> None:
        super().__init__(nan_strategy=math.nan)
        self.loss, self.counted = loss, counted

    def update(self, answer: Any, target: Tensor) -> None:  # type: ignore[override]
        """Measure a batch."""
        super().update(self.loss(answer, target), weight=torch.as_tensor(self.counted(target)).float())


class Top1(MulticlassAccuracy):
    """The share of labelled positions of logits (N, ..., K) whose largest is that of the label."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="micro", ignore_index=UNLABELLED)

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; the label is the likeliest class where labels are soft.

        Raises:
            ValueError: Floats that are no soft labels, since they do not add up to 1.
        """
        if target.is_floating_point() and not bool(((target.sum(-1) - 1).abs() < 1e-3).all()):
            raise ValueError(
                "accuracy needs one class a sample, or soft labels that add up to 1: with several labels, task="
                "limbeck.multilabel; with values, task=limbeck.regression; or metrics and a score of your own"
            )
        label = target.argmax(-1) if target.is_floating_point() else target
        super().update(answer.flatten(0, -2), label.flatten())


class MeanPrecision(Metric):
    """The mean over labels of average precision, of the known labels of logits (N, ..., K).

    A label that is never true has none, and is left out; it is 0 where no label is.
    """

    chances: list[Tensor]
    truths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("chances", default=[], dist_reduce_fx="cat")
        self.add_state("truths", default=[], dist_reduce_fx="cat")

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch."""
        chances, truths = _chances(answer, target)
        self.chances.append(chances)
        self.truths.append(truths)

    def compute(self) -> Tensor:
        """Return the mean."""
        chances, truths = dim_zero_cat(self.chances), dim_zero_cat(self.truths)
        found = [
            binary_average_precision(chance[true != UNLABELLED], true[true != UNLABELLED])
            for chance, true in zip(chances.unbind(1), truths.unbind(1), strict=True)
            if bool((true == 1).any())
        ]
        return torch.stack(found).mean() if found else chances.new_zeros(())


class MeanF1(MultilabelF1Score):
    """The mean over labels of F1 at a probability of 0.5, of the known labels of logits (N, ..., K)."""

    def __init__(self, labels: int) -> None:
        super().__init__(labels, ignore_index=UNLABELLED, validate_args=False)

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch."""
        super().update(*_chances(answer, target))


class RootMeanSquare(MeanSquaredError):
    """The root of the mean squared error over the known values of (N, M)."""

    def __init__(self) -> None:
        super().__init__(squared=False)

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; targets may be (N) where answers are (N, 1)."""
        super().update(*_known(answer, target))


class AbsoluteError(MeanAbsoluteError):
    """The mean absolute error over the known values of (N, M)."""

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; targets may be (N) where answers are (N, 1)."""
        super().update(*_known(answer, target))


class Determination(Metric):
    """R² = 1 − Σ (s − y)² / Σ (y − ȳ)² over the known values of (N, ..., M), where ȳ is the mean of each of the M outputs.

    1 is perfect, and 0 as good as answering the mean; where no output varies it is 0.
    """

    parts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # of each batch: sums of squares over all data would lose a small deviation from a large mean
        self.add_state("parts", default=[], dist_reduce_fx="cat")

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch; targets may be (N) where answers are (N, 1)."""
        answer, target = (values.reshape(-1, values.shape[-1]) for values in _values(answer, target))
        count = (~target.isnan()).sum(0).to(target.dtype)
        mean = target.nansum(0) / count.clamp(min=1)
        spread, error = (each.square().nansum(0) for each in (target - mean, answer - target))
        self.parts.append(torch.stack([count, mean, spread, error])[None])

    def compute(self) -> Tensor:
        """Return R²."""
        count, mean, spread, error = dim_zero_cat(self.parts).unbind(1)
        whole = (count * mean).sum(0) / count.sum(0).clamp(min=1)
        total = (spread + count * (mean - whole).square()).sum()
        return torch.where(total > 0, 1 - error.sum() / total, 0.0)


class Confusions(MulticlassConfusionMatrix):
    """How many labelled pixels of a class (row) are taken for another (column), (K, K), of logits (N, h, w, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, ignore_index=UNLABELLED, validate_args=False)

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Measure a batch."""
        super().update(at_labels(answer, target).argmax(-1), target)


class MeanOverlap(Confusions):
    """The mean intersection over union of the classes in labels or answers, of one table of all pixels; 0 without any."""

    def compute(self) -> Tensor:
        """Return the mean."""
        return overlaps(self.confmat).nanmean().nan_to_num(0.0)


class RightPixels(Confusions):
    """The share of labelled pixels that are right."""

    def compute(self) -> Tensor:
        """Return the share."""
        return self.confmat.trace() / self.confmat.sum().clamp(min=1)


def _chances(answer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each label, (N, K), and whether it is true; soft labels are rounded.

    torchmetrics would take logits that happen to lie in [0, 1] for probabilities.
    """
    true = torch.where(target == UNLABELLED, UNLABELLED, (target >= 0.5).long())
    return answer.float().flatten(0, -2).sigmoid(), true.flatten(0, -2)


def _known(answer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the known values, and what is answered in their places."""
    answer, target = _values(answer, target)
    known = ~target.isnan()
    return answer[known], target[known]


def _values(answer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return answers and targets of one shape, in full precision."""
    wide = torch.promote_types(answer.dtype, torch.float32)
    return answer.to(wide), as_wide(target, answer).to(wide)
