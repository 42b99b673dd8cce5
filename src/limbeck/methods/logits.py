"""Logit regression.

Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv 1312.6184. No official code.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="ba2014deep",
    title="Do Deep Nets Really Need to be Deep?",
    authors="Ba, Jimmy and Caruana, Rich",
    venue="NIPS",
    year=2014,
    arxiv="1312.6184",
    matches="logits, or values",
    teacher="frozen network",
)


@full_precision
def logit_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """½ ‖z_s − z_t‖², sum over classes, mean over samples.

    Public code often takes the mean over classes too, which is 2/K of this.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
    """
    same_shape("logits", student, teacher)
    return F.mse_loss(student, teacher, reduction="sum") / (2 * max(1, student.shape[:-1].numel()))


@ranged
def logits(
    student: nn.Module,
    teacher: nn.Module,
    *,
    regression: float = 1.0,
    hard: float = 0.0,
    task: Task = classification,
) -> Distill:
    """Let the student regress the teacher's logits, without labels, temperature or softmax.

    L = regression · ½ ‖z_s − z_t‖² + hard · CE(y, z_s).

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        regression: Weight of the regression, with its sum over classes, above 0; 1 as in the paper's equation 1.
        hard: Weight of the labels, at least 0; 0 as in the paper, which uses none.
        task: How batches are fed and measured.
    """
    regress = on(logit_regression, S, T, name="regression")
    return Distill(student, teacher, regression * regress + hard * task.hard, task)
