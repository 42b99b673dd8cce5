"""Similarity-preserving knowledge distillation.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682. No official code; RepDistiller's
was verified by the authors.

We differ from the public code where a sample's features are all zero: its row of the similarities has no gradient, where
theirs is 1e12 times too large.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.distributed import gather
from limbeck.core.layers import paired
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, unit_rows
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="tung2019similarity",
    title="Similarity-Preserving Knowledge Distillation",
    authors="Tung, Frederick and Mori, Greg",
    venue="ICCV",
    year=2019,
    arxiv="1907.09682",
    matches="similarities of samples",
    teacher="frozen network",
)


@full_precision
def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the similarities Ĝ, mean over all N² pairs of samples.

    G = F Fᵀ, (N, N), of the features flattened per sample; Ĝ is G with each row divided by its length. Neither channels nor
    sizes need be equal. It is 0 for a single sample.

    Args:
        student: Features, (N, ...).
        teacher: Features, (N, ...).
    """
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must show the same samples, got {len(student)} and {len(teacher)}")
    with torch.no_grad():
        similarities_t = _similarities(teacher)
    return (_similarities(student) - similarities_t).square().mean()


@ranged
def sp(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    similarity: float = 3000.0,
    example: Tensor | None = None,
    task: Task = classification,
) -> Distill:
    """Let samples that look alike to the teacher look alike to the student.

    L = CE(y, z_s) + similarity · Σ_j mean (Ĝ_s^j − Ĝ_t^j)². On several devices the similarities are those of the global
    batch.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the deepest pair of `limbeck.pairs`.
        similarity: Weight of each pair, above 0; 3000 as in the paper, with the mean over N² pairs of samples.
        example: A batch of inputs, (N, ...), needed where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    pairs = paired(student, teacher, layers, example, task)
    objective = task.hard
    for s, t in pairs if layers is not None else pairs[-1:]:
        objective += similarity * on(similarity_distance, S[s].via(gather), T[t].via(gather), name=f"similarity.{s}")
    return Distill(student, teacher, objective, task)


def _similarities(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return unit_rows(flat @ flat.T)
