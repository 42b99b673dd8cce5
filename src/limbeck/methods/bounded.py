"""The teacher's error as a bound: bounded regression.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017. No
arXiv number, no official code.

The paper has it for a detector's boxes, beside a smooth L1 loss; here it is for any values, beside the task's own loss.
Some public code compares one error of the whole batch, which lets a good sample excuse a bad one, or takes norms that are
not squared and the margin from the other side.
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.core.distributed import of_update
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, Y, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.regression import as_wide, regression

PAPER = Paper(
    key="chen2017learning",
    title="Learning Efficient Object Detection Models with Knowledge Distillation",
    authors="Chen, Guobin and Choi, Wongun and Yu, Xiang and Han, Tony and Chandraker, Manmohan",
    venue="NIPS",
    year=2017,
    matches="values, as long as the teacher is nearer to the truth",
    teacher="frozen network",
)


@full_precision
def bounded_regression(student: Tensor, teacher: Tensor, targets: Tensor, margin: float = 0.0) -> Tensor:
    """‖s − y‖² where ‖s − y‖² + m > ‖t − y‖², and 0 elsewhere; sum over a sample's values, mean over samples.

    The teacher is no target: where the student is better than it by the margin, nothing is asked any more.

    Args:
        student: Predictions, (N, ...).
        teacher: Predictions of the same shape.
        targets: The true values, of the same shape, or (N) for (N, 1); NaN where unknown.
        margin: m ≥ 0, in squared units of the values.
    """
    check_margin(margin)
    targets = as_wide(targets, student)
    same_shape("values", student, teacher)
    same_shape("values and targets", student, targets)
    known = ~targets.isnan()
    error_s, error_t = (_error(values, targets, known) for values in (student, teacher))
    samples = known.reshape(len(known), -1).any(1).sum().clamp(min=1)
    return of_update(error_s.where(error_s + margin > error_t, 0.0).sum() / samples, "samples")


@ranged
def bounded(
    student: nn.Module,
    teacher: nn.Module,
    *,
    bounded: float = 0.5,
    margin: float = 0.0,
    task: Task = regression,
) -> Distill:
    """Let the student come nearer to the true values until it is better than the teacher: regression has no soft labels.

    L = mean (s − y)² + bounded · 1/N Σ_n ‖s_n − y_n‖² [‖s_n − y_n‖² + margin > ‖t_n − y_n‖²].

    The teacher chooses samples, and tells no values: what it knows beyond the truth is not taught. `logits` teaches its
    values, and copies its errors too.

    Args:
        student: The network to train.
        teacher: The network that bounds, of the same outputs.
        bounded: Weight of the bounded term, with its sum over a sample's values, above 0; ν = 0.5 as in the paper, where a
            sample is a box of 4 values. The task's own loss is the mean over values, a share of that sum.
        margin: m, in squared units of the values, at least 0; 0 as in most public code, the paper does not say. A large one
            lets the term be the squared error of every sample.
        task: How batches are fed and measured; one whose answers are values.

    Raises:
        ValueError: A task whose answers are scores of classes or labels, or a negative margin.
    """
    if task.outcomes is not None:
        raise ValueError(
            f"bounded compares errors of values, and in {task.name} answers are scores: kd softens them, logits matches "
            "them. Values are task=limbeck.regression (--task regression)"
        )
    bound = on(bounded_regression, S, T, Y, name="bounded", margin=margin)
    return Distill(student, teacher, task.hard + bounded * bound, task)


def check_margin(margin: float) -> None:
    """Raise a ValueError unless m ≥ 0."""
    if not margin >= 0:  # nor NaN
        raise ValueError(f"margin must not be negative, got {margin}")


def _error(values: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """‖v − y‖² of each sample, (N), of its known values."""
    errors = values - targets.to(values.dtype).where(known, values.detach())
    return errors.square().reshape(len(errors), -1).sum(1)
