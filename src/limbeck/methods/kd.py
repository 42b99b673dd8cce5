"""Knowledge distillation with soft targets.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS Deep Learning Workshop 2014,
arXiv 1503.02531. No official code.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import of_update
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import M, S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="hinton2015distilling",
    title="Distilling the Knowledge in a Neural Network",
    authors="Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
    venue="NIPS Deep Learning and Representation Learning Workshop",
    year=2014,
    arxiv="1503.02531",
    matches="softened outputs",
    teacher="frozen network",
)


@full_precision
def soft_target(student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None) -> Tensor:
    """T² KL(p_t ‖ p_s) of the outputs softened by T, sum over classes, mean over every other valid position.

    T² keeps the gradient's size independent of T: ∂/∂z_s = T (p_s − p_t) / N.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        temperature: T > 0.
        mask: Positions that count, (N, ...) without the class axis; all by default. An empty mask gives 0.
    """
    _check(student, teacher, temperature)
    log_s = F.log_softmax(student / temperature, -1)
    log_t = F.log_softmax(teacher / temperature, -1)
    divergence = log_t.exp() * (log_t - log_s)
    if mask is None:
        return divergence.sum() * (temperature**2 / max(1, student.shape[:-1].numel()))
    return temperature**2 * masked_mean(divergence.sum(-1), mask)


@full_precision
def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """T² CE(p_t, p_s) of the outputs softened by T, sum over classes, mean over every other valid position.

    It differs from `soft_target` by the teacher's entropy alone: the same gradient, a value that is not 0 at the optimum.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        temperature: T > 0.
        mask: Positions that count, (N, ...) without the class axis; all by default. An empty mask gives 0.
    """
    _check(student, teacher, temperature)
    log_s = F.log_softmax(student / temperature, -1)
    p_t = F.softmax(teacher / temperature, -1)
    if mask is not None:
        return -(temperature**2) * masked_mean((p_t * log_s).sum(-1), mask)
    return (p_t * log_s).sum() * (-(temperature**2) / max(1, student.shape[:-1].numel()))


@ranged
def kd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    task: Task = classification,
) -> Distill:
    """Distil a teacher's softened outputs.

    L = α T² KL(p_t^T ‖ p_s^T) + (1 − α) CE(y, z_s).

    What is softened is the task's: one distribution over the classes of a sample, a pixel or a token; of several labels a
    sample a Bernoulli distribution each, and then the divergence is the mean over labels. Values have none.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        temperature: T softens both outputs, in (0, 1000]. 4 as in RepDistiller and the attention-transfer code, right for
            CIFAR; the paper used 20 for wide MNIST nets, 2.5 to 4 for 30 units a layer, 2 for speech.
        alpha: The share of the soft term, in (0, 1]; 0.9 as in RepDistiller. The paper only wants the hard term
            "considerably lower".
        task: How batches are fed and measured.
    """
    soft = on(soft_target, *task.softened(S, T), name="soft", temperature=temperature, mask=M)
    return Distill(student, teacher, (1 - alpha) * task.hard + alpha * soft, task)


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless T > 0."""
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature must be positive, got {temperature}")


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    check_temperature(temperature)
    if student.shape[:-1] == teacher.shape[:-1] and student.shape != teacher.shape:
        raise ValueError(
            f"the student has {student.shape[-1]} classes and the teacher {teacher.shape[-1]}: "
            "give both the same classes in the same order, or match features instead (at, rkd)"
        )
    same_shape("logits", student, teacher)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where the mask is not 0; 0 where it is empty."""
    same_shape("the mask and the positions", values, mask)
    return of_update(values.where(mask.bool(), 0.0).sum() / mask.bool().sum().clamp(min=1), "mask")
