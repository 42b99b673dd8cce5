"""DIST: distillation from a stronger teacher.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536; official
code hunto/DIST_KD.

Where we differ from the authors' code: what does not vary, as the equal probabilities of a zero student, correlates with
nothing and has no gradient, where theirs is 1e8 times too large; on several devices a class is correlated over the
global batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import gather
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.methods.kd import check_temperature
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="huang2022knowledge",
    title="Knowledge Distillation from A Stronger Teacher",
    authors="Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang",
    venue="NeurIPS",
    year=2022,
    arxiv="2205.10536",
    matches="correlations of softened outputs",
    teacher="frozen network",
)

EPSILON = 1e-8
"""The authors', beside the product of the two lengths."""


@full_precision
def dist_inter(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² (1 − the correlation of p_s with p_t over a sample's classes, mean over samples): how it ranks the classes.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last; every position is a sample.
        teacher: Logits of the same shape.
        temperature: T > 0.
    """
    return temperature**2 * (1 - _correlation(*_softened(student, teacher, temperature), 1).mean())


@full_precision
def dist_intra(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² (1 − the correlation of p_s with p_t over a class's samples, mean over classes): how a class ranks the samples.

    A single sample correlates with nothing: T², without gradient.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last; every position is a sample.
        teacher: Logits of the same shape.
        temperature: T > 0.
    """
    return temperature**2 * (1 - _correlation(*_softened(student, teacher, temperature), 0).mean())


@full_precision
def relations(
    student: Tensor, teacher: Tensor, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """``inter`` · `dist_inter` + ``intra`` · `dist_intra`.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last; every position is a sample.
        teacher: Logits of the same shape.
        inter: Weight of the relations between classes, the paper's β.
        intra: Weight of the relations within a class, the paper's γ.
        temperature: T > 0.
    """
    p_s, p_t = _softened(student, teacher, temperature)
    related = inter * (1 - _correlation(p_s, p_t, 1).mean()) + intra * (1 - _correlation(p_s, p_t, 0).mean())
    return temperature**2 * related


@ranged
def dist(
    student: nn.Module,
    teacher: nn.Module,
    *,
    inter: float = 2.0,
    intra: float = 2.0,
    temperature: float = 4.0,
    task: Task = classification,
) -> Distill:
    """Let the student rank as the teacher does, classes for a sample and samples for a class, instead of being as sure.

    L = CE(y, z_s) + inter · T² (1 − mean_n ρ(p_s[n, :], p_t[n, :])) + intra · T² (1 − mean_k ρ(p_s[:, k], p_t[:, k])), with
    Pearson's correlation ρ. On several devices the samples are those of the global batch.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        inter: Weight of the relations between classes, at least 0; 2 as in mmrazor's configuration for ImageNet, at T = 1.
            The authors' code has β = γ = 1 and a weight of both on its command line.
        intra: Weight of the relations within a class, at least 0; likewise.
        temperature: T softens both outputs, in (0, 1000]; 1 for ImageNet. 4, for CIFAR-100, we recall from the paper and
            could not check.
        task: How batches are fed and measured.
    """
    refuse_all_zero(inter=inter, intra=intra)
    options, everyone = {"temperature": temperature}, task.exclusive(S.via(gather), T.via(gather))
    between = inter * on(dist_inter, *task.exclusive(S, T), name="inter", **options)
    within = intra * on(dist_intra, *everyone, name="intra", **options)
    return Distill(student, teacher, task.hard + between + within, task)


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both probabilities, one row a position."""
    check_temperature(temperature)
    same_shape("logits", student, teacher)
    p_s, p_t = (F.softmax(logits.flatten(0, -2) / temperature, -1) for logits in (student, teacher))
    return p_s, p_t


def _correlation(p_s: Tensor, p_t: Tensor, over: int) -> Tensor:
    """Pearson's correlation over an axis; 0 where either does not vary."""
    (a, length_a, varies_a), (b, length_b, varies_b) = (_deviations(p, over) for p in (p_s, p_t))
    correlation: Tensor = (a * b).sum(over) / (length_a * length_b + EPSILON)
    return correlation.where(varies_a & varies_b, 0.0)


def _deviations(p: Tensor, over: int) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations from the mean, their length, and whether that is more than rounding."""
    mean = p.mean(0) if over == 0 else 1 / p.shape[1]  # which is the mean of a softmax
    deviations = p - mean
    length: Tensor = torch.linalg.vector_norm(deviations, dim=over)
    rounding = 16 * torch.finfo(p.dtype).eps * math.sqrt(p.shape[over])  # √n · mean is the length of what does not vary
    return deviations, length, length > rounding * mean
