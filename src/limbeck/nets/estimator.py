"""A scikit-learn model where a network is expected."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
            that a classifier knows, in the order of its ``classes_``, which of text is that of the alphabet: "10" before
            "9". The attribute ``classes`` says which.
        least: The smallest probability, since the logarithm of 0 is not finite. 1e-6 is ours: far below what a
            forest of a thousand trees can say.
        classes: Instead of ``num_classes`` the names of the student's classes in the order of its outputs,
            ``data.classes``, where a classifier was fitted to names: its answers are put into that order.

    Raises:
        sklearn.exceptions.NotFittedError: The model is not fitted.
        TypeError: It is no classifier or regressor.
        ValueError: A classifier without probabilities, with several outputs, or of other classes than the given ones.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> teacher = SklearnTeacher(RandomForestClassifier(5, random_state=0).fit(*load_iris(return_X_y=True)))
        >>> teacher(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, estimator: Any, num_classes: int | None = None, least: float = 1e-6, classes: Sequence[str] | None = None
    ) -> None:
        from sklearn.base import is_regressor
        from sklearn.utils.validation import check_is_fitted

        super().__init__()
        check_is_fitted(estimator)
        if not 0 < least < 1:
            raise ValueError(f"least is a probability and must lie between 0 and 1, got {least}")
        if classes is not None and num_classes not in (None, len(classes)):
            raise ValueError(
                f"num_classes is {num_classes}, but there are {len(classes)} classes: one of the two is enough"
            )
        self.estimator, self.least = estimator, least
        self.num_classes = num_classes if classes is None else len(classes)
        self.regresses = bool(is_regressor(estimator))
        self.classes: tuple[str, ...] = () if classes is None else tuple(classes)
        if not self.regresses:
            known = _known(estimator)
            self._places = _places(type(estimator).__name__, known, self.num_classes, self.classes)
            self.classes = self.classes or tuple(map(str, known if num_classes is None else range(num_classes)))

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (N, D) to logits (N, K), or to predictions (N, M) of a regressor without classes."""
        if rows.ndim != 2:
            raise ValueError(
                f"expected rows (N, D), got shape {tuple(rows.shape)}: nn.Sequential(nn.Flatten(), teacher) makes rows of "
                "images, for a model that learned from such"
            )
        name, fitted = type(self.estimator).__name__, getattr(self.estimator, "n_features_in_", None)
        if fitted is not None and rows.shape[1] != fitted:
            raise ValueError(f"{name} was fitted to rows of {fitted} columns, got rows of shape {tuple(rows.shape)}")
        narrow = rows.dtype in (torch.float16, torch.bfloat16)  # numpy has but one of them, scikit-learn none
        inputs = (rows.float() if narrow else rows).detach().cpu().numpy()
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

    def _tensor(self, values: Any, rows: Tensor) -> Tensor:
        """Return answers beside the rows; in float32 at least, as a forest may count in halves."""
        kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
        answers = torch.as_tensor(values, dtype=kind)
        if not answers.isfinite().all():
            raise ValueError(
                f"{type(self.estimator).__name__} gives answers that are not finite in {kind}, from which nothing can be "
                "learned: look at the rows it is given, or at the unit of its values"
            )
        return answers.to(rows.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> SklearnTeacher:
        """Share the model, which predicting does not change: a forest is large, and every `Frozen` makes a copy."""
        return SklearnTeacher(self.estimator, self.num_classes, self.least, self.classes or None)


def _known(estimator: Any) -> list[Any]:
    """Return a classifier's labels, in the order of its columns: numbers, and words for all else."""
    name = type(estimator).__name__
    if not hasattr(estimator, "classes_"):
        raise TypeError(f"expected a classifier or a regressor of scikit-learn, got {name}")
    if getattr(estimator.classes_[0], "ndim", 0):  # an array of classes for each output
        raise ValueError(f"{name} has several outputs: fit one classifier for each")
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{name} gives no probabilities, and a student has nothing to mimic in labels alone: wrap it in "
            "sklearn.calibration.CalibratedClassifierCV before fitting it"
        )
    return [_label(label) for label in estimator.classes_]


def _label(label: Any) -> int | str:
    label = label.item() if hasattr(label, "item") else label  # numpy's
    return int(label) if isinstance(label, (bool, int, float)) and float(label).is_integer() else str(label)


def _places(name: str, known: Sequence[int | str], count: int | None, classes: Sequence[str]) -> list[int]:
    """Return the output that each of a classifier's columns belongs to."""
    if count is None:
        texts = [label for label in known if isinstance(label, str) and label.isdecimal()]
        if len(texts) == len(known) and texts != sorted(texts, key=int):
            warnings.warn(
                f"{name} was fitted to numbers as text, {_few(known)}, in this order: its outputs have it too. If the "
                "student's classes are in another, say so: SklearnTeacher(..., classes=data.classes)",
                stacklevel=4,
            )
        return list(range(len(known)))
    numbers = [label for label in known if isinstance(label, int) and 0 <= label < count]
    order = {each: place for place, each in enumerate(classes)}
    named = [order[str(label)] for label in known if str(label) in order]
    by_number, by_name = (places if len(places) == len(known) else None for places in (numbers, named))
    if by_number and by_name and by_number != by_name:
        raise ValueError(
            f"{name} knows the classes {_few(known)}, which may be places from 0 on, or names among {_few(classes)}: fit "
            "it to one that can be told, data.train.targets or the names as text"
        )
    found = by_name or by_number
    if found is None:
        expected = f"0 to {count - 1}" + (f", or {_few(classes)}" if classes else "")
        advice = "" if classes else ". Where it was fitted to names, say in which order: classes=data.classes"
        raise ValueError(f"{name} knows the classes {_few(known)}: expected them among {expected}{advice}")
    return found


def _few(labels: Sequence[Any]) -> str:
    return ", ".join(map(repr, labels[:6])) + (", ..." if len(labels) > 6 else "")
