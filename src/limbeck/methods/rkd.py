"""Relational knowledge distillation.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068; official code lenscloth/RKD.

Where we differ from the authors' code: the angles come from one Gram matrix, so that no (N, N, N, D) or (N, N, D) tensor
exists; the geometry is computed on centred features in float64; duplicates have angle 0 and no gradient, where
theirs explodes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limbeck.core.distributed import gather
from limbeck.core.layers import embeddings
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="park2019relational",
    title="Relational Knowledge Distillation",
    authors="Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu",
    venue="CVPR",
    year=2019,
    arxiv="1904.05068",
    matches="relations between samples",
    teacher="frozen network",
)

AT_ONCE, AT_ONCE_ON_DEVICE = 2**18, 2**23
"""How many cosines there are at a time: as many as a core's cache holds; elsewhere 64 MB, for few launches."""


@full_precision
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between pairwise distances, each in units of its batch's mean; mean over all N² entries.

    ψ(i, j) = ‖e_i − e_j‖ / μ, μ the mean over i ≠ j. Squared distances are clamped at 1e-12 before the root, as in the
    authors' code: duplicates count in μ, and have no gradient.

    Args:
        student: Embeddings, (N, ...), flattened per sample; N ≥ 2.
        teacher: Embeddings, (N, ...); their dimensions may differ.
    """
    _check(student, teacher)
    with torch.no_grad():
        psi_t = _relative_distances(teacher)
    return F.smooth_l1_loss(_relative_distances(student), psi_t.to(student.dtype))


@full_precision
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines at i of all triples (j, i, k); mean over all N³ entries, degenerate ones 0.

    Of the N³ cosines only some are there at a time, so memory grows with N².

    Args:
        student: Embeddings, (N, ...), flattened per sample; N ≥ 2.
        teacher: Embeddings, (N, ...); their dimensions may differ.
    """
    _check(student, teacher)
    with torch.no_grad():
        of_teacher = _geometry(teacher)
    of_student, n = _geometry(student), len(student)
    anchors = max(1, (AT_ONCE if student.device.type == "cpu" else AT_ONCE_ON_DEVICE) // n**2)
    if anchors >= n:
        return (_angle_errors(*of_student, *of_teacher, slice(None)) / n**3).to(student.dtype)
    total = of_student[0].new_zeros(())
    for first in range(0, n, anchors):  # of these the backward pass makes the cosines anew
        places = slice(first, first + anchors)
        total = total + checkpoint(
            _angle_errors, *of_student, *of_teacher, places, use_reentrant=False, preserve_rng_state=False
        )
    return (total / n**3).to(student.dtype)


@ranged
def rkd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: str | tuple[str, str] | None = None,
    distance: float = 25.0,
    angle: float = 50.0,
    example: Tensor | None = None,
    task: Task = classification,
) -> Distill:
    """Let the student's embeddings keep the distances and angles that the teacher's have.

    L = CE(y, z_s) + distance · L_D + angle · L_A. On several devices the relations are those of the global batch.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        distance: Weight of the distances, at least 0; 25 as in RepDistiller's classification runs (the paper: 1, metric
            learning).
        angle: Weight of the angles, at least 0; 50 likewise (the paper: 2).
        example: A batch of inputs, (N, ...), to find the last linear layer that runs; without it the last registered.
        task: How batches are fed and measured.
    """
    refuse_all_zero(distance=distance, angle=angle)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    places = S[at_s].via(gather), T[at_t].via(gather)
    relations = distance * on(rkd_distance, *places, name="distance") + angle * on(rkd_angle, *places, name="angle")
    return Distill(student, teacher, task.hard + relations, task)


def _gram(embeddings: Tensor) -> Tensor:
    """⟨e_i, e_j⟩ of the centred embeddings, (N, N); distances and angles do not depend on the centre."""
    dtype = embeddings.dtype if embeddings.device.type == "mps" else torch.float64  # mps has no float64
    e = embeddings.flatten(1).to(dtype)
    e = e - e.mean(0).detach()
    return e @ e.T


def _squared_distances(gram: Tensor) -> Tensor:
    norms = gram.diagonal()
    return torch.add(norms[:, None] + norms, gram, alpha=-2)


def _relative_distances(embeddings: Tensor) -> Tensor:
    squares = _squared_distances(_gram(embeddings)).to(embeddings.dtype)  # what could cancel has done so
    distances, n = squares.clamp(min=1e-12).sqrt(), len(squares)
    distances = distances.masked_fill(torch.eye(n, dtype=torch.bool, device=distances.device), 0.0)
    return distances * (n * (n - 1) / distances.sum())


def _geometry(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix, and 1 / ‖e_i − e_j‖, 0 of a degenerate side: its cosine with every other is 0."""
    gram = _gram(embeddings)
    squares = _squared_distances(gram)
    norms = gram.diagonal()
    rounding = 512 * torch.finfo(gram.dtype).eps * (norms[:, None] + norms[None])
    return gram, squares.where(squares > rounding, torch.inf).rsqrt()


def _angle_errors(gram_s: Tensor, inverse_s: Tensor, gram_t: Tensor, inverse_t: Tensor, at: slice) -> Tensor:
    """Huber loss between the cosines at some samples, the sum over all."""
    cosines_t = _cosines(gram_t, inverse_t, at)
    return F.smooth_l1_loss(_cosines(gram_s, inverse_s, at), cosines_t, reduction="sum")


def _cosines(gram: Tensor, inverse: Tensor, at: slice) -> Tensor:
    """Cos ∠(e_j − e_i, e_k − e_i) at [i, j, k], of some i: ⟨e_j − e_i, e_k − e_i⟩ = G_jk − G_ij − G_ik + G_ii."""
    sides = gram[at] - gram.diagonal()[at, None] / 2
    inner = gram - sides[:, :, None] - sides[:, None, :]
    return inner * inverse[at][:, :, None] * inverse[at][:, None, :]


def _check(student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must embed the same samples, got {len(student)} and {len(teacher)}")
    if len(student) < 2:
        raise ValueError("relations need at least 2 samples in the batch, got 1: use a larger batch or drop_last=True")
