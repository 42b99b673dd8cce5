"""Relational knowledge distillation.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068; official code lenscloth/RKD.

Where we differ from the authors' code: the angles come from one Gram matrix, so that no (N, N, N, D) or (N, N, D) tensor
exists; the geometry is computed on centred features in float64; duplicates have angle 0 and no gradient, where
theirs explodes; angles may be taken at some samples of a batch only, which is ours and not the paper's.

Value and gradient of the angles are made in one pass, by hand, over each pair of sides once: a quarter of the time of
autograd's passes over both orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import gather, place
from limbeck.core.layers import embeddings
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, sloped
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.nets.draws import Draws
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

AT_ONCE, AT_ONCE_ON_DEVICE = 2**17, 2**23
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
def rkd_angle(student: Tensor, teacher: Tensor, vertices: Tensor | None = None) -> Tensor:
    """Huber loss between the cosines at i of all triples (j, i, k); mean over all N³ entries, degenerate ones 0.

    Of the cosines only some are there at a time, so memory grows with N². The gradient is made with the value: to
    differentiate it twice raises a RuntimeError.

    Args:
        student: Embeddings, (N, ...), flattened per sample; N ≥ 2.
        teacher: Embeddings, (N, ...); their dimensions may differ.
        vertices: The samples i, (A), integers; all by default. j and k are all samples, and the mean is over A · N².
    """
    _check(student, teacher)
    if vertices is not None and (vertices.ndim != 1 or len(vertices) == 0):
        raise ValueError(f"vertices must be places of samples, (A), at least one, got shape {tuple(vertices.shape)}")
    squares, inverse = _geometry(student)
    with torch.no_grad():
        of_student, of_teacher = _triangles(squares, inverse, vertices), _triangles(*_geometry(teacher), vertices)
        value, slope = _angle_errors(of_student, of_teacher, vertices)
    count = of_student.sides.numel() * len(student)
    return sloped(squares, value / count, slope / count).to(student.dtype)


class Angles(nn.Module):
    """`rkd_angle` at some samples of the batch, drawn anew at each call: ours, not the paper's.

    Its mean over the draws is `rkd_angle` at all samples: this is the mean over the vertices i of (1/N²) Σ_jk, and each is
    as likely to be drawn, without replacement. Time grows with ``anchors`` · N². The draws are part of its state, see
    `Draws`; their seed is that of torch's generator, from which nothing is drawn.

    Args:
        anchors: How many samples of the global batch; all where it has no more.
    """

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.draws = Draws(torch.initial_seed() % 2**31)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the global batch's embeddings, (N, ...): of every process the same."""
        device, (_, world) = student.device, place()
        lots = self.draws(
            lambda samples, generator: torch.randperm(samples, generator=generator, device=device),
            len(student) // world,
            device,
        )
        return rkd_angle(student, teacher, gather(lots).argsort()[: self.anchors])


@ranged
def rkd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: str | tuple[str, str] | None = None,
    distance: float = 25.0,
    angle: float = 50.0,
    anchors: int | None = None,
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
        anchors: At how many samples of the batch, drawn anew in each step, angles are taken, at least 1: an unbiased
            estimate of the loss in anchors / N of the time, ours and not the paper's. By default at all of them.
        example: A batch of inputs, (N, ...), to find the last linear layer that runs; without it the last registered.
        task: How batches are fed and measured.
    """
    refuse_all_zero(distance=distance, angle=angle)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    places = S[at_s].via(gather), T[at_t].via(gather)
    angles = rkd_angle if anchors is None else Angles(anchors)
    relations = distance * on(rkd_distance, *places, name="distance") + angle * on(angles, *places, name="angle")
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
    """‖e_i − e_j‖², and 1 / ‖e_i − e_j‖ as a constant: 0 of a degenerate side, whose cosine with every other is 0."""
    gram = _gram(embeddings)
    squares, norms = _squared_distances(gram), gram.detach().diagonal()
    rounding = 512 * torch.finfo(gram.dtype).eps * (norms[:, None] + norms)
    return squares, squares.detach().where(squares > rounding, torch.inf).rsqrt()


class _Triangles(NamedTuple):
    """Squared distances of all samples, (N, N); of the sides at the vertices, (A, N), these, lengths and inverses."""

    squares: Tensor
    sides: Tensor
    lengths: Tensor
    inverse: Tensor

    def projections(self, block: slice, rest: slice) -> Tensor:
        """Twice the length of e_j − e_i along e_k − e_i, at [i, j, k] of some j and k: (d_ij + d_ik − d_jk) / √d_ik."""
        found = self.sides[:, block, None] - self.squares[block, rest]
        return torch.addcmul(self.lengths[:, None, rest], found, self.inverse[:, None, rest], out=found)


def _triangles(squares: Tensor, inverse: Tensor, vertices: Tensor | None) -> _Triangles:
    at = slice(None) if vertices is None else vertices
    return _Triangles(squares, squares[at], (squares * inverse)[at], inverse[at])


def _angle_errors(student: _Triangles, teacher: _Triangles, vertices: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the Huber loss between the cosines at some samples, the sum over all, and its slope by the student's squares.

    As (j, i, k) has the angle of (k, i, j), that is twice the loss of j < k, and that of j = k: 1 or degenerate, constant.
    """
    inverse, slope = student.inverse, torch.zeros_like(student.squares)
    of_sides = slope if vertices is None else torch.zeros_like(student.sides)
    value = ((inverse > 0) ^ (teacher.inverse > 0)).sum() / 4  # half of what 1 against 0 costs
    at_once = AT_ONCE if inverse.device.type == "cpu" else AT_ONCE_ON_DEVICE
    for block, rest in _pairs(len(inverse), len(slope), at_once):
        cosines = student.projections(block, rest).mul_(inverse[:, block, None] / 2)
        errors = teacher.projections(block, rest)  # less one pass than by the teacher's cosines
        torch.addcmul(cosines, errors, teacher.inverse[:, block, None], value=-0.5, out=errors)
        errors[..., : block.stop - block.start].triu_(1)
        pulls = errors.clamp(-1, 1)  # the derivative of the Huber loss, which is pull · (error − pull / 2)
        value = value + pulls.flatten() @ errors.flatten() - pulls.flatten() @ pulls.flatten() / 2
        if not student.squares.requires_grad:
            continue
        # with squares d and inverse lengths r, cos_ijk has the slope r_ij r_ik / 2 − cos r_ij² / 2 by d_ij, the like by
        # d_ik, and −r_ij r_ik / 2 by d_jk; both halves are left out, as each angle counts twice
        turned = cosines.mul_(pulls)
        moved = pulls.mul_(inverse[:, block, None]).mul_(inverse[:, None, rest])
        of_sides[:, block] += moved.sum(2) - turned.sum(2) * inverse[:, block].square()
        of_sides[:, rest] += moved.sum(1) - turned.sum(1) * inverse[:, rest].square()
        slope[block, rest] -= moved.sum(0)
    return 2 * value, slope if vertices is None else slope.index_add_(0, vertices, of_sides)


def _pairs(vertices: int, samples: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of samples j and, of each, all k from its first on, so that there are about so many cosines."""
    first = 0
    while first < samples:
        end = min(samples, first + max(1, at_once // (vertices * (samples - first))))
        yield slice(first, end), slice(first, samples)
        first = end


def _check(student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must embed the same samples, got {len(student)} and {len(teacher)}")
    if len(student) < 2:
        raise ValueError("relations need at least 2 samples in the batch, got 1: use a larger batch or drop_last=True")
