"""Neuron selectivity transfer.

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219; official code
TuSimple/neuron-selectivity-transfer (MXNet).

Where we differ from the authors' code: the mean over the batch, not the sum; the constant teacher-teacher term is kept,
so that 0 means equal; and no (C_s, C_t, H·W) tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from limbeck.core.distributed import gather
from limbeck.core.layers import paired
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.nets.connectors import common_grid
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="huang2017like",
    title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    authors="Huang, Zehao and Wang, Naiyan",
    venue="arXiv preprint",
    year=2017,
    arxiv="1707.01219",
    matches="where neurons fire, as a distribution",
    teacher="frozen network",
)

KERNELS = ("linear", "poly", "gaussian")
Kernel = Callable[[Tensor, Tensor], Tensor]


@full_precision
def neuron_selectivity(student: Tensor, teacher: Tensor, kernel: str = "poly", sigma: float | None = None) -> Tensor:
    """MMD² between the channels' maps, each of length 1: where neurons fire, whichever they are; mean over samples.

    MMD² = mean k(t, t') + mean k(s, s') − 2 mean k(t, s), the means over all pairs of channels of one sample. Channels may
    differ in number; where grids differ the larger is pooled to the smaller. A dead channel is the zero vector and has
    no gradient.

    Args:
        student: Features, (N, C_s, H_s, W_s).
        teacher: Features, (N, C_t, H_t, W_t).
        kernel: ``"linear"``, x·y; ``"poly"``, (x·y)²; ``"gaussian"``, exp(−‖x − y‖² / 2σ²).
        sigma: σ of the Gaussian kernel; by default σ² is the mean of ‖s − t‖² over the batch, as in the paper; on several
            devices over the global one.
    """
    check_kernel(kernel)
    s, t = _selectivities(student, teacher)
    if kernel == "linear":
        return (s.mean(1) - t.mean(1)).square().sum(1).mean()
    if kernel == "gaussian":
        return _mmd(s, t, _gaussian(s, t, sigma))
    if s.shape[2] < max(s.shape[1], t.shape[1]):  # ‖Σ ŝŝᵀ/C_s − Σ t̂t̂ᵀ/C_t‖², on the smaller of two sides
        return (s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]).square().sum((1, 2)).mean()
    return _mmd(s, t, lambda x, y: (x @ y.mT).square())


@ranged
def nst(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    selectivity: float = 50.0,
    kernel: str = "poly",
    example: Tensor | None = None,
    task: Task = classification,
) -> Distill:
    """Let the student's neurons be selective for the same places as the teacher's.

    L = CE(y, z_s) + selectivity · Σ_j MMD²(F_s^j, F_t^j).

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the ends of the last three stages, paired by
            `limbeck.pairs`.
        selectivity: Weight of each pair, above 0; 50 as in RepDistiller, with the mean over samples. It is the paper's λ/2.
        kernel: ``"poly"`` as in the authors' code, ``"linear"`` or ``"gaussian"``.
        example: A batch of inputs, (N, ...), needed where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    check_kernel(kernel)
    pairs = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    for s, t in pairs if layers is not None else pairs[-3:]:
        objective += selectivity * on(neuron_selectivity, S[s], T[t], name=f"selectivity.{s}", kernel=kernel)
    return Distill(student, teacher, objective, task)


def check_kernel(kernel: str) -> None:
    """Raise a ValueError unless ``kernel`` is one of `KERNELS`."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")


def _selectivities(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both networks' maps as vectors of length 1 on one grid, (N, C, H·W)."""
    for who, features in (("student", student), ("teacher", teacher)):
        if features.ndim != 4:
            raise ValueError(
                f"neuron selectivity needs feature maps (N, C, H, W), but the {who}'s have shape "
                f"{tuple(features.shape)}: name a convolutional layer"
            )
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must look at the same samples, got {len(student)} and {len(teacher)}")
    s, t = common_grid(student, teacher)
    return _directions(s), _directions(t)


def _directions(features: Tensor) -> Tensor:
    maps = features.flatten(2)
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=2, keepdim=True)
    return maps / lengths.where(lengths > 1e-12, torch.inf)  # normalize() would multiply a dead map's gradient by 1e12


def _mmd(s: Tensor, t: Tensor, kernel: Kernel) -> Tensor:
    return (kernel(t, t).mean((1, 2)) + kernel(s, s).mean((1, 2)) - 2 * kernel(s, t).mean((1, 2))).mean()


def _gaussian(s: Tensor, t: Tensor, sigma: float | None) -> Kernel:
    with torch.no_grad():
        # a floor above the rounding of distances, for channels that all coincide
        variance = _mean_distance(s, t).clamp(min=1e-6) if sigma is None else sigma**2

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        lengths = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]
        return torch.baddbmm(lengths / (-2 * variance), x, y.mT / variance).exp()

    return kernel


def _mean_distance(s: Tensor, t: Tensor) -> Tensor:
    """The mean of ‖s − t‖² over the global batch, of which every process has as much."""
    products = (s.mean(1) * t.mean(1)).sum(1)  # the mean over pairs of ⟨s, t⟩ is the means' product
    mean = s.square().sum(2).mean() + t.square().sum(2).mean() - 2 * products.mean()
    return gather(mean.unsqueeze(0)).mean()
