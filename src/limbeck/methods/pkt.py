"""Probabilistic knowledge transfer.

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837;
official code passalis/probabilistic_kt.

We differ from the paper as its authors' code does: a sample's similarity to itself counts, and the divergence is the mean
over all N² pairs. An embedding that is all zero has no gradient here, where the authors' has NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.core.distributed import gather
from limbeck.core.layers import embeddings
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, unit_rows
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="passalis2018learning",
    title="Learning Deep Representations with Probabilistic Knowledge Transfer",
    authors="Passalis, Nikolaos and Tefas, Anastasios",
    venue="ECCV",
    year=2018,
    arxiv="1803.10837",
    matches="probabilities that samples are neighbours",
    teacher="frozen network",
)

EPSILON = 1e-7
"""The authors', beside every length and every probability in the logarithm."""


@full_precision
def probability_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """P_t log (P_t / P_s), mean over all N² pairs of samples.

    P(j | i) = (1 + cos(e_i, e_j)) / Σ_k (1 + cos(e_i, e_k)). It is 0 for a single sample.

    Args:
        student: Embeddings, (N, ...), flattened per sample.
        teacher: Embeddings, (N, ...); their dimensions may differ.
    """
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must embed the same samples, got {len(student)} and {len(teacher)}")
    with torch.no_grad():
        p_t = _neighbours(teacher)
    return (p_t * ((p_t + EPSILON) / (_neighbours(student) + EPSILON)).log()).mean()


@ranged
def pkt(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: str | tuple[str, str] | None = None,
    probability: float = 30000.0,
    example: Tensor | None = None,
    task: Task = classification,
) -> Distill:
    """Let the student's samples have the neighbours that the teacher's have.

    L = CE(y, z_s) + probability · mean P_t log (P_t / P_s). On several devices the neighbours are those of the
    global batch.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        probability: Weight of the divergence, above 0; 30000 as in RepDistiller, with its mean over N² pairs of samples.
        example: A batch of inputs, (N, ...), to find the last linear layer that runs; without it the last registered.
        task: How batches are fed and measured.
    """
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    follow = probability * on(probability_divergence, S[at_s].via(gather), T[at_t].via(gather), name="probability")
    return Distill(student, teacher, task.hard + follow, task)


def _neighbours(samples: Tensor) -> Tensor:
    unit = unit_rows(samples.flatten(1), EPSILON)
    similarities = (1 + unit @ unit.T).clamp(min=0)  # rounding may leave a cosine below −1
    return similarities / similarities.sum(1, keepdim=True)
