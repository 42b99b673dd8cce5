"""Correlation congruence.

Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802.
The authors' code, in RepDistiller, is of another quantity: the products of |f_s − f_t| of neighbours in the batch, which
depend on its order. We follow the paper's equations.

The student's embedding passes a trained linear map; the teacher's does not, since two trained maps could agree on a single
point. Batches are drawn as they are for every method, without the paper's class balance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import gather
from limbeck.core.layers import embeddings, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, unit_rows
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="peng2019correlation",
    title="Correlation Congruence for Knowledge Distillation",
    authors="Peng, Baoyun and Jin, Xiao and Liu, Jiaheng and Zhou, Shunfeng and Wu, Yichao and Liu, Yu and Li, Dongsheng "
    "and Zhang, Zhaoning",
    venue="ICCV",
    year=2019,
    arxiv="1904.01802",
    matches="correlations of samples",
    teacher="frozen network",
)


@full_precision
def correlation_distance(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Squared difference of the correlations K, mean over all N² pairs of samples.

    K_ij = exp(−2γ) Σ_{p ≤ order} (2γ cos(e_i, e_j))^p / p!, the Taylor series of the Gaussian kernel exp(−γ ‖e_i − e_j‖²)
    of embeddings of length 1. It is 0 for a single sample.

    Args:
        student: Embeddings, (N, ...), flattened per sample.
        teacher: Embeddings, (N, ...); their dimensions may differ.
        gamma: γ > 0, how fast the correlation falls with the distance.
        order: Where the series ends, ≥ 1.
    """
    _check_kernel(gamma, order)
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must embed the same samples, got {len(student)} and {len(teacher)}")
    with torch.no_grad():
        correlations_t = _correlations(teacher, gamma, order)
    return F.mse_loss(_correlations(student, gamma, order), correlations_t)


@ranged
def cc(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: str | tuple[str, str] | None = None,
    correlation: float = 100.0,
    gamma: float = 0.4,
    order: int = 2,
    dimensions: int = 128,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let the student's samples correlate as the teacher's do.

    L = CE(y, z_s) + correlation · mean (K(W e_s) − K(e_t))². On several devices the correlations are those of the
    global batch.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        correlation: Weight of the difference, with the mean over N² pairs, above 0; 100 as in Knowledge-Distillation-Zoo's
            script for CIFAR-10, whose loss it is. The 0.02 of RepDistiller belongs to the other quantity.
        gamma: γ of the kernel, above 0; 0.4 as in the same script.
        order: Where its series ends, at least 1; 2 as in the paper.
        dimensions: Of the linear map W of the student's embedding, at least 1; 128 as in RepDistiller.
        example: A batch of inputs, (N, ...), from which W gets its shape.
        task: How batches are fed and measured.
    """
    _check_kernel(gamma, order)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    connector = nn.Linear(math.prod(shape_at(student, at_s, example, task)[1:]), dimensions)
    places = S[at_s].via(_flat, connector, gather), T[at_t].via(gather)
    follow = correlation * on(correlation_distance, *places, name="correlation", gamma=gamma, order=order)
    return Distill(student, teacher, task.hard + follow, task)


def _flat(samples: Tensor) -> Tensor:
    return samples.flatten(1)


def _correlations(samples: Tensor, gamma: float, order: int) -> Tensor:
    unit = unit_rows(samples.flatten(1))
    exponents = unit @ (2 * gamma * unit).T
    series = 1 + exponents / order
    for p in range(order - 1, 0, -1):  # Horner's rule
        series = 1 + exponents / p * series
    return math.exp(-2 * gamma) * series


def _check_kernel(gamma: float, order: int) -> None:
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    if order < 1:
        raise ValueError(f"order must be at least 1, or all correlations are equal; got {order}")
