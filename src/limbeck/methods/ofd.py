"""Overhaul of feature distillation.

Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866; official
code clovaai/overhaul-distillation.

Where we differ from the authors' code: the teacher is in eval mode; theirs normalises by the batch, on purpose, as
``Frozen(teacher, "batch_stats")`` does in place of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.core.frozen import bare
from limbeck.core.layers import layers as layers_of
from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.core.trace import submodules
from limbeck.nets.connectors import common_grid, normalised
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="heo2019comprehensive",
    title="A Comprehensive Overhaul of Feature Distillation",
    authors="Heo, Byeongho and Kim, Jeesoo and Yun, Sangdoo and Park, Hyojin and Kwak, Nojun and Choi, Jin Young",
    venue="ICCV",
    year=2019,
    arxiv="1904.01866",
    matches="features before the ReLU",
    teacher="frozen network",
)

RECTIFIERS = ("ReLU", "ReLU6")


@full_precision
def margin_relu(student: Tensor, teacher: Tensor, margin: Tensor | float = -math.inf) -> Tensor:
    """Partial squared distance to max(t, m): nothing where s ≤ max(t, m) ≤ 0; sum over elements, mean over samples.

    Where the teacher's neuron is off, the student's need only be off as well, and no further than the margin.

    Args:
        student: Connected features before the ReLU, (N, C, ...).
        teacher: The teacher's, of the same shape.
        margin: m ≤ 0 of each channel, of C elements, or one number; −∞ is the partial distance alone.
    """
    same_shape("features", student, teacher)
    if isinstance(margin, Tensor):
        if margin.numel() not in (1, student.shape[1]):
            raise ValueError(f"expected a margin for each of {student.shape[1]} channels, got {tuple(margin.shape)}")
        margin = margin.to(student.dtype).reshape(-1, *[1] * (student.ndim - 2))
    target = teacher.clamp(min=margin) if isinstance(margin, float | int) else torch.maximum(teacher, margin)
    difference = student - target
    counts = ((difference.detach() > 0) | (target > 0)).to(difference.dtype)
    return (difference * counts).square().sum() / max(1, len(student))


def margins(weight: Tensor, bias: Tensor) -> Tensor:
    """E[x | x < 0] of each channel's x ~ N(bias, weight²), what a batch norm gives out; −3 |weight| where x < 0 is rare.

    m = μ − σ φ(μ/σ) / Φ(−μ/σ), unless Φ(−μ/σ) ≤ 0.001. In float64.

    Args:
        weight: The norm's weights, (C,); σ is their absolute value.
        bias: Its biases, (C,): μ.
    """
    mean, deviation = bias.detach().double(), weight.detach().double().abs().clamp(min=1e-12)
    standard = mean / deviation
    below = torch.special.ndtr(-standard)
    density = torch.exp(-0.5 * standard.square()) / math.sqrt(2 * math.pi)
    expected: Tensor = mean - deviation * density / below
    return expected.where(below > 0.001, -3 * deviation)


class PartialDistance(nn.Module):
    """`margin_relu` with the teacher's margins; the larger grid is pooled to the smaller.

    Args:
        margin: m of each of the teacher's channels, (C,).
    """

    margin: Tensor

    def __init__(self, margin: Tensor) -> None:
        super().__init__()
        self.register_buffer("margin", margin)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of connected features, (N, C, H, W)."""
        return margin_relu(*common_grid(student, teacher), self.margin)


@ranged
def ofd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    distance: float = 1e-3,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let the student's features before the ReLU follow the teacher's where these matter.

    L = CE(y, z_s) + distance · Σ_j 2^{j−n} d(BN(conv1x1(s_j)), max(t_j, m_j)), j = 1..n from shallow to deep, with the
    margins m of the norm before the teacher's ReLU. A group norm tells mean and deviation too, if less exactly.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers, from shallow to deep; by default the ends of the stages, paired by
            `limbeck.pairs`. A layer that ends in a ReLU stands for what enters it, one whose sum a batch norm takes over
            for what leaves that. ``relu:in`` and the like are taken as they are.
        distance: Weight of the deepest pair, halved for each before it, above 0; 1/1000 as in the authors' code for CIFAR,
            with its sum over elements and mean over samples.
        example: A batch of inputs, (N, ...), from which the connectors get their channels.
        task: How batches are fed and measured.
    """
    named = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    for index, (s, t) in enumerate(named):
        s, t = _before_relu(student, s, example, task), _before_relu(teacher, t, example, task)
        c_s, c_t = shape_at(student, s, example, task)[1], shape_at(teacher, t, example, task)[1]
        weight, bias = _normal_at(teacher, t, c_t, example, task)
        loss = PartialDistance(margins(weight, bias).to(torch.promote_types(weight.dtype, torch.float32)))
        term = on(loss, S[s].via(normalised(c_s, c_t)), T[t], name=f"distance.{named[index][0]}")
        objective += distance * 0.5 ** (len(named) - 1 - index) * term
    return Distill(student, teacher, objective, task)


def _before_relu(net: nn.Module, layer: str, example: Tensor, task: Task) -> str:
    """Where a layer's last features are before their ReLU."""
    if ":" in layer:
        return layer
    table = layers_of(net, example, task)
    inner = {one.path.rpartition(".")[0] for one in table}
    leaves = [one for one in table if one.path not in inner]
    last = max((i for i, leaf in enumerate(leaves) if f"{leaf.path}.".startswith(f"{layer}.")), default=None)
    if last is not None:
        if leaves[last].kind in RECTIFIERS:
            return f"{leaves[last].path}:in"
        if "Norm" in leaves[last].kind:
            return layer
        if last + 1 < len(leaves) and "Norm" in leaves[last + 1].kind:
            return leaves[last + 1].path
    raise ValueError(
        f"found no features before a ReLU at {type(bare(net)).__name__}'s {layer!r}, which ends neither in an nn.ReLU nor "
        "before a norm: name them, layers=[('block.relu:in', 'block.relu:in')] (`limbeck layers` lists all)"
    )


def _normal_at(net: nn.Module, place: str, channels: int, example: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Weight and bias of the norm that feeds a place: the last before it in the same block, else the last at all."""
    path = place.split(":")[0]
    modules, found = submodules(bare(net)), []
    for layer in layers_of(net, example, task):
        norm = modules.get(layer.path)
        if isinstance(norm, _BatchNorm | nn.GroupNorm) and norm.affine and norm.weight.shape == (channels,):
            found.append((layer.path, norm))
        if layer.path == path:
            break
    # a shortcut's norm lies deeper than the block's own, whose margins the authors take
    beside = [norm for name, norm in found if name.rpartition(".")[0] == path.rpartition(".")[0]]
    if not found:
        raise ValueError(
            f"the margins are those of the norm before {place!r}, but no batch or group norm of {channels} channels runs "
            f"before it in {type(bare(net)).__name__}: name other layers, or use a method without margins (at, vid)"
        )
    norm = beside[-1] if beside else found[-1][1]
    return norm.weight, norm.bias
