"""What answers say: pure functions of a classifier's logits (N, K) and targets (N), where -100 is "no label".

They tell one class a sample apart; `answer_difference` is of any task's answers.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.task import UNLABELLED
from limbeck.core.trace import describe
from limbeck.methods.kd import soft_target


def answer_difference(student: Tensor, teacher: Tensor) -> float:
    """Return the root mean square of s − t over all values of two networks' answers, in the answers' unit.

    It is how far a student is from its teacher where answers are values, as in regression; labels play no part. Of logits
    it says little, since a softmax does not see what is added to all: see `divergence`.

    Args:
        student: Answers, (N, ...).
        teacher: Answers, of the same shape.

    Raises:
        TypeError: Answers that are not one tensor, as a detector's.
        ValueError: Other shapes, or no value.

    Example:
        >>> import torch
        >>> answer_difference(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
        1.4142135381698608
    """
    for side, answer in (("student", student), ("teacher", teacher)):
        if not isinstance(answer, Tensor):
            raise TypeError(f"expected answers that are one tensor, got {describe(answer)} of the {side}")
    same_shape("answer_difference", student, teacher)
    if not student.numel():
        raise ValueError(f"expected an answer at least, got shape {tuple(student.shape)}")
    return float(_root_mean_square(student, teacher))


@full_precision
def _root_mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher).sqrt()


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Return the share of samples to which both networks give the same first answer, in [0, 1]; labels play no part.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).

    Raises:
        ValueError: Other shapes, or no sample.

    Example:
        >>> import torch
        >>> agreement(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[9.0, 0.0], [3.0, 2.0]]))
        0.5
    """
    _check_pair("agreement", student, teacher)
    return float((student.argmax(1) == teacher.argmax(1)).float().mean())


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Return the mean over samples of KL(teacher ‖ student) of their softmax outputs, in nats; labels play no part.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).

    Raises:
        ValueError: Other shapes, or no sample.
    """
    _check_pair("divergence", student, teacher)
    return float(soft_target(student, teacher, temperature=1.0))


@full_precision
def calibration(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, in [0, 1].

    Samples go by their confidence (the largest softmax output) into ``bins`` equal intervals of [0, 1]; the result is
    Σ_b n_b/N |accuracy_b − confidence_b|. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv 1706.04599. nan where a logit is.

    Args:
        logits: (N, K).
        targets: Classes, int64 (N); -100 does not count.
        bins: 15, as in the paper.

    Raises:
        ValueError: Other shapes, a class out of range, or no label.
    """
    logits, targets = _labelled(logits, targets)
    shares = logits.softmax(1)
    if shares.isnan().any():  # torchmetrics would take it for a confidence of 0
        return math.nan
    shares = shares.clamp(max=1 - 2**-24)  # it has a bin of its own for a confidence of 1
    return float(multiclass_calibration_error(shares, targets, shares.shape[1], n_bins=bins, norm="l1"))


def confusion(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many samples of class i were taken for class j: int64 (K, K), a row for each true class.

    Args:
        logits: (N, K).
        targets: Classes, int64 (N); -100 does not count.

    Raises:
        ValueError: Other shapes, a class out of range, or no label.

    Example:
        >>> import torch
        >>> confusion(torch.eye(2)[[0, 1, 1]], torch.tensor([0, 0, 1])).tolist()
        [[1, 1], [0, 1]]
    """
    logits, targets = _labelled(logits, targets)
    return multiclass_confusion_matrix(logits.argmax(1), targets, logits.shape[1])


def per_class(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of each class's samples that are recognised: (K), in [0, 1]; nan for a class without any.

    What a student changed is a difference: ``per_class(student, targets) - per_class(teacher, targets)``.

    Args:
        logits: (N, K).
        targets: Classes, int64 (N); -100 does not count.

    Raises:
        ValueError: Other shapes, a class out of range, or no label.
    """
    counts = confusion(logits, targets)
    return counts.diagonal() / counts.sum(1)


def _check_pair(measure: str, student: Tensor, teacher: Tensor) -> None:
    same_shape(measure, student, teacher)
    _check_logits(student)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"expected a classifier's logits (N, K) of a sample at least, got shape {tuple(logits.shape)}")
    if logits.shape[1] == 1:
        raise ValueError(
            f"expected a classifier's logits (N, K), got shape {tuple(logits.shape)}: one value a sample tells no classes "
            "apart, and limbeck.measure.answer_difference compares values"
        )


def check_classes(logits: Tensor, targets: Tensor) -> None:
    """Raise where there is not one class a sample: several labels, values.

    Raises:
        ValueError: In words.
    """
    _check_logits(logits)
    if targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"expected a class for each of {len(logits)} samples, got targets {targets.dtype} {tuple(targets.shape)}"
        )


def _labelled(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check, and drop what has no label."""
    check_classes(logits, targets)
    known = targets != UNLABELLED
    logits, targets = logits[known], targets[known]
    if len(targets) == 0:
        raise ValueError(f"expected a labelled sample at least, but every target is {UNLABELLED}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"expected targets in [0, {logits.shape[1]}) for {logits.shape[1]} logits, got {low} to {high}"
        )
    return logits, targets
