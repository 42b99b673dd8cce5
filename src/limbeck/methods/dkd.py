"""Decoupled knowledge distillation.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679; official code
megvii-research/mdistiller.

Where we differ from the authors' code: sums in place of the logarithm of a softmax, which is -inf for a confident student;
the label's class is left out exactly, where theirs lowers its logit by 1000; samples without a label do not count; the
warm-up rises with every batch instead of every epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import of_update
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, Y, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.stage import rising
from limbeck.core.task import UNLABELLED, Task
from limbeck.methods.kd import check_temperature
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zhao2022decoupled",
    title="Decoupled Knowledge Distillation",
    authors="Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun",
    venue="CVPR",
    year=2022,
    arxiv="2203.08679",
    matches="the label's probability and the other classes', apart",
    teacher="frozen network",
)


@full_precision
def dkd_target(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(b_t ‖ b_s) of the binary b = (p_y, 1 − p_y), mean over the labelled positions: how hard a sample is.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
        temperature: T > 0.
    """
    _check(student, teacher, targets, temperature)
    of_student, of_teacher = (_Decoupled.of(logits / temperature, targets) for logits in (student, teacher))
    return temperature**2 * _labelled_mean(_of_target(of_student, of_teacher), targets)


@full_precision
def dkd_others(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(q_t ‖ q_s) of q, the softmax over the classes but the label's; sum over them, mean over labelled positions.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
        temperature: T > 0.
    """
    _check(student, teacher, targets, temperature)
    of_student, of_teacher = (_Decoupled.of(logits / temperature, targets) for logits in (student, teacher))
    return temperature**2 * _labelled_mean(_of_others(of_student, of_teacher), targets)


@full_precision
def decoupled(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    target: float = 1.0,
    others: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """``target`` · `dkd_target` + ``others`` · `dkd_others`; with the weights 1 and 1 − p_t(y), it is `soft_target`.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
        target: Weight of the label's class against the rest, the paper's α.
        others: Weight of the other classes among themselves, the paper's β.
        temperature: T > 0.
    """
    _check(student, teacher, targets, temperature)
    both = [_Decoupled.of(logits / temperature, targets) for logits in (student, teacher)]
    return temperature**2 * _labelled_mean(target * _of_target(*both) + others * _of_others(*both), targets)


@ranged
def dkd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    target: float = 1.0,
    others: float = 8.0,
    temperature: float = 4.0,
    warmup: float = 1 / 12,
    task: Task = classification,
) -> Distill:
    """Distil how sure the teacher is of the label, and apart from it, how it ranks the other classes.

    L = CE(y, z_s) + r · (target · T² KL(b_t ‖ b_s) + others · T² KL(q_t ‖ q_s)). In `kd` a sure teacher silences the last
    term, which carries most of the knowledge. r rises from 1/20 to 1 during the warm-up; a loop of your own has to pass
    ``progress`` to `limbeck.play`, or r stays there.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        target: Weight of the label's class against the rest, at least 0; 1 as the authors' α.
        others: Weight of the other classes among themselves, at least 0; 8 as the authors' β for most pairs on CIFAR-100 (2
            for resnet56 and resnet110, 6 for vgg13 to MobileNetV2).
        temperature: T softens both outputs, in (0, 1000]; 4 as the authors'.
        warmup: The share of the training in which both terms rise to their weights, in [0, 1]; 20 of 240 epochs as the
            authors'. 0 for none.
        task: How batches are fed and measured.
    """
    refuse_all_zero(target=target, others=others)
    options = {"temperature": temperature}
    places = *task.exclusive(S, T), Y
    decoupling = target * on(dkd_target, *places, name="target", **options)
    decoupling += others * on(dkd_others, *places, name="others", **options)
    return Distill(student, teacher, task.hard + (rising(warmup) if warmup else 1.0) * decoupling, task)


class _Decoupled(NamedTuple):
    """Logits, as the label's and the others'.

    Args:
        odds: log p_y / (1 − p_y), (N, ...).
        others: The logits, with the label's so low that its probability is exactly 0. It is finite: with −∞, 0 · (∞ − ∞)
            would be NaN.
        log_sum: The logarithm of the sum of the others' exponentials, (N, ...).
    """

    odds: Tensor
    others: Tensor
    log_sum: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> _Decoupled:
        index = targets.where(targets != UNLABELLED, 0).unsqueeze(-1)  # any class will do where there is no label
        others = logits.scatter(-1, index, torch.finfo(logits.dtype).min)
        log_sum = others.logsumexp(-1)
        return cls(logits.gather(-1, index).squeeze(-1) - log_sum, others, log_sum)


def _of_target(student: _Decoupled, teacher: _Decoupled) -> Tensor:
    """KL(b_t ‖ b_s), (N, ...): p_t (log p_t − log p_s) + (1 − p_t) (log(1 − p_t) − log(1 − p_s)), with p = σ(odds)."""
    right = teacher.odds.sigmoid() * (F.logsigmoid(teacher.odds) - F.logsigmoid(student.odds))
    wrong = (-teacher.odds).sigmoid() * (F.logsigmoid(-teacher.odds) - F.logsigmoid(-student.odds))
    return right + wrong


def _of_others(student: _Decoupled, teacher: _Decoupled) -> Tensor:
    """KL(q_t ‖ q_s) = Σ q_t (z_t − z_s) + log Σ exp z_s − log Σ exp z_t, (N, ...), over the other classes."""
    q_t = (teacher.others - teacher.log_sum.unsqueeze(-1)).exp()
    return (q_t * (teacher.others - student.others)).sum(-1) + student.log_sum - teacher.log_sum


def _labelled_mean(values: Tensor, targets: Tensor) -> Tensor:
    labelled = targets != UNLABELLED
    return of_update(values.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1), "labels")


def _check(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> None:
    check_temperature(temperature)
    same_shape("logits", student, teacher)
    if targets.is_floating_point() or targets.shape != student.shape[:-1]:
        raise ValueError(
            f"targets must be class indices of shape {tuple(student.shape[:-1])}, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}: with mixed or soft labels there is no one class to decouple, use kd or dist"
        )
