"""Variational information distillation.

Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
arXiv 1904.05835. No official code; we follow RepDistiller.

The learned variances are parameters of the loss, and so in the student's optimizer: mdistiller keeps its own outside of any
module, where they never train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.nets.connectors import common_grid, pointwise
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="ahn2019variational",
    title="Variational Information Distillation for Knowledge Transfer",
    authors="Ahn, Sungsoo and Hu, Shell Xu and Damianou, Andreas and Lawrence, Neil D. and Dai, Zhenwen",
    venue="CVPR",
    year=2019,
    arxiv="1904.05835",
    matches="features, by a learned Gaussian",
    teacher="frozen network",
)


class Gaussian(nn.Module):
    """−log q(t | s) without its constant, where q has the mean μ(s) and a variance learned for each channel.

    ½ ((t − μ)² / σ_c² + log σ_c²), mean over all elements; σ_c² = softplus(α_c) + floor.

    Args:
        channels: C, of the teacher.
        variance: σ² at the start; 5 as in RepDistiller.
        floor: The least variance, which keeps the loss from below.
    """

    def __init__(self, channels: int, variance: float = 5.0, floor: float = 1e-5) -> None:
        super().__init__()
        if not 0 < floor < variance:
            raise ValueError(f"variance must exceed its floor, and that 0: got variance {variance}, floor {floor}")
        self.floor = floor
        self.log_scale = nn.Parameter(torch.full((channels,), math.log(math.expm1(variance - floor))))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of predicted means, (N, C, H, W), for the teacher's features; the larger grid is pooled."""
        if student.shape[:2] != teacher.shape[:2] or teacher.shape[1] != len(self.log_scale):
            raise ValueError(
                f"expected means and features (N, {len(self.log_scale)}, H, W) of the same samples, "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        student, teacher = common_grid(student, teacher)
        variance = F.softplus(self.log_scale.to(student.dtype)) + self.floor
        errors = (student - teacher).square().mean((0, 2, 3))  # each channel's first: the variance is its own
        return 0.5 * (errors / variance + variance.log()).mean()


@ranged
def vid(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    information: float = 1.0,
    variance: float = 5.0,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let the student's features tell as much as they can of the teacher's.

    L = CE(y, z_s) + information · Σ_j mean ½ ((t_j − μ_j(s_j))² / σ_jc² + log σ_jc²), a bound on the mutual information.
    μ is three 1x1 convolutions; they and the variances train with the student and stay behind. The loss may be negative.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the ends of the stages, paired by `limbeck.pairs`.
        information: Weight of each pair, above 0; 1 as in RepDistiller, with its mean over all elements.
        variance: σ² at the start, above 0; 5 as in RepDistiller.
        example: A batch of inputs, (N, ...), from which the connectors get their channels.
        task: How batches are fed and measured.
    """
    pairs = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    for s, t in pairs:
        c_s, c_t = shape_at(student, s, example, task)[1], shape_at(teacher, t, example, task)[1]
        mean = S[s].via(pointwise(c_s, c_t, c_t, c_t))
        objective += information * on(Gaussian(c_t, variance), mean, T[t], name=f"information.{s}")
    return Distill(student, teacher, objective, task)
