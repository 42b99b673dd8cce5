"""A scikit-learn model where a network is expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SklearnTeacher(nn.Module):
    """A fitted scikit-learn classifier or regressor as a teacher of rows, in methods that match outputs.

    A classifier answers log-probabilities, which are logits: their softmax is `predict_proba`. So does a regressor that
    was fitted to labels 0 and 1, or to one column for each class, if it is told the number of classes: its scores are
    clipped to [0, 1] and normalised. Any other regressor answers its predictions.

    It computes on the CPU, and each call waits for the rows to get there: where a training sees rows again,
    let `limbeck.data.tabular.answered` ask once.

    Args:
        estimator: The model, fitted; a `Pipeline` too.
        num_classes: K, where the labels are 0 to K − 1: classes that the model never saw get ``least``. By default those
            that a classifier knows, in the order of its ``classes_``.
        least: The smallest probability, since the logarithm of 0 is not finite. 1e-6 is ours: far below what a
            forest of a thousand trees can say.

    Raises:
        sklearn.exceptions.NotFittedError: The model is not fitted.
        ValueError: A classifier without probabilities, or of classes other than 0 to K − 1.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> teacher = SklearnTeacher(RandomForestClassifier(5, random_state=0).fit(*load_iris(return_X_y=True)))
        >>> teacher(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, estimator: Any, num_classes: int | None = None, least: float = 1e-6) -> None:
        from sklearn.base import is_regressor
        from sklearn.utils.validation import check_is_fitted

        super().__init__()
        check_is_fitted(estimator)
        self.estimator, self.num_classes, self.least = estimator, num_classes, least
        self.regresses = bool(is_regressor(estimator))
        if not self.regresses:
            self._places = _places(estimator, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (N, D) to logits (N, K), or to predictions (N, M) of a regressor without classes."""
        if rows.ndim != 2:
            raise ValueError(
                f"expected rows (N, D), got shape {tuple(rows.shape)}: nn.Sequential(nn.Flatten(), teacher) makes rows of "
                "images, for a model that learned from such"
            )
        inputs = rows.detach().cpu().numpy()
        if not self.regresses:
            known = self._tensor(self.estimator.predict_proba(inputs), rows)
            probabilities = known.new_zeros(len(rows), self.num_classes or known.shape[1])
            probabilities[:, self._places] = known
            return probabilities.clamp(min=self.least).log()
        values = self._tensor(self.estimator.predict(inputs), rows).reshape(len(rows), -1)
        return values if self.num_classes is None else self._scores(values, self.num_classes)

    def _scores(self, values: Tensor, classes: int) -> Tensor:
        """Read a regressor's values as probabilities."""
        if values.shape[1] == 1 and classes == 2:
            values = torch.cat([1 - values, values], 1)
        if values.shape[1] != classes:
            raise ValueError(
                f"the regressor gives {values.shape[1]} values a row for {classes} classes: "
                "fit it to one column for each class, sklearn.preprocessing.LabelBinarizer().fit_transform(labels)"
            )
        return values.clamp(self.least, 1).log().log_softmax(-1)

    @staticmethod
    def _tensor(values: Any, rows: Tensor) -> Tensor:
        """Return answers beside the rows; in float32 at least, as a forest may count in halves."""
        kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
        return torch.as_tensor(values, dtype=kind).to(rows.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> SklearnTeacher:
        """Share the model, which predicting does not change: a forest is large, and every `Frozen` makes a copy."""
        return SklearnTeacher(self.estimator, self.num_classes, self.least)


def _places(estimator: Any, num_classes: int | None) -> list[int]:
    """Return the output that each of a classifier's columns belongs to."""
    name = type(estimator).__name__
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{name} gives no probabilities, and a student has nothing to mimic in labels alone: wrap it in "
            "sklearn.calibration.CalibratedClassifierCV before fitting it"
        )
    known = list(estimator.classes_)
    if getattr(known[0], "ndim", 0):  # an array of classes for each output
        raise ValueError(f"{name} has several outputs: fit one classifier for each")
    if num_classes is None:
        return list(range(len(known)))
    if any(not 0 <= int(label) < num_classes or int(label) != label for label in known):
        raise ValueError(f"{name} knows the classes {known}: expected them among 0 to {num_classes - 1}")
    return [int(label) for label in known]
