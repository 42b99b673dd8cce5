"""Masked generative distillation.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529; official code yzd-v/MGD.

The paper masks positions; the authors' code does so for detection and segmentation, and masks channels for classification,
where the last maps are small. Where we differ: maps of two sizes are pooled to the smaller, theirs must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.nets.connectors import common_grid
from limbeck.nets.generation import Generation, Masks
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="yang2022masked",
    title="Masked Generative Distillation",
    authors="Yang, Zhendong and Li, Zhe and Shao, Mingqi and Shi, Dachuan and Yuan, Zehuan and Yuan, Chun",
    venue="ECCV",
    year=2022,
    arxiv="2205.01529",
    matches="features, generated from masked ones",
    teacher="frozen network",
)


@full_precision
def masked_generative(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the features that were generated from the student's; sum over elements, mean over samples.

    Args:
        student: Generated features, (N, C, H, W): the student's after `Generation`, which masks and generates.
        teacher: The teacher's; where sizes differ, the larger map is pooled to the smaller grid.
    """
    if student.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "expected generated features and the teacher's, (N, C, H, W) of the same samples and channels, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = common_grid(student, teacher)
    return F.mse_loss(student, teacher, reduction="sum") / max(1, len(student))


@ranged
def mgd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    generation: float = 7e-5,
    masked: float = 0.15,
    masks: Masks = "channels",
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let the student's features, with parts hidden, generate the teacher's whole ones.

    L = CE(y, z_s) + generation · Σ_j Σ (t_j − G_j(align_j(s_j) · mask))² / N. G is conv3x3, ReLU, conv3x3; it trains with
    the student and stays behind.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the last of `limbeck.pairs`, as in the authors' code for
            classification. Detection takes every level of the neck.
        generation: Weight of each pair, above 0; 7e-5 as in the authors' code for classification, with its sum over
            elements and mean over samples (2e-5 for segmentation). Smaller maps may need more: the sum is then smaller too.
        masked: The share that is hidden, in [0, 1); 0.15 as in the authors' code for classification (0.75 of the positions
            for segmentation; 0.65 is mmrazor's default for detection).
        masks: ``"channels"`` as in the authors' code for classification, or ``"positions"`` as in the paper.
        example: A batch of inputs, (N, ...), from which the generators get their channels.
        task: How batches are fed and measured.
    """
    if masks not in get_args(Masks):
        raise ValueError(f"masks must be 'channels' or 'positions', got {masks!r}")
    pairs = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    for s, t in pairs if layers is not None else pairs[-1:]:
        c_s, c_t = shape_at(student, s, example, task)[1], shape_at(teacher, t, example, task)[1]
        generated = S[s].via(Generation(c_s, c_t, masked, masks))
        objective += generation * on(masked_generative, generated, T[t], name=f"generation.{s}")
    return Distill(student, teacher, objective, task)
