"""Attention transfer.

Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer", ICLR 2017, arXiv 1612.03928; official code szagoruyko/attention-transfer.

We differ from the paper's equation 2 as its authors' code does: the squared difference, mean over positions and samples,
instead of the norm; the default weight belongs to that reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import paired
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zagoruyko2017paying",
    title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
    "Attention Transfer",
    authors="Zagoruyko, Sergey and Komodakis, Nikos",
    venue="ICLR",
    year=2017,
    arxiv="1612.03928",
    matches="attention maps",
    teacher="frozen network",
)


@full_precision
def attention_map(features: Tensor, power: float = 2) -> Tensor:
    """Q = mean_c |A_c|^p: where a layer looks, (N, C, H, W) -> (N, H, W).

    Args:
        features: A layer's output, (N, C, H, W).
        power: p; 2 as in the paper.
    """
    if features.ndim != 4:
        raise ValueError(f"an attention map needs features (N, C, H, W), got shape {tuple(features.shape)}")
    strength = features.square() if power == 2 else features.abs().pow(power)
    return strength.mean(1)


def attention_distance(student: Tensor, teacher: Tensor, power: float = 2) -> Tensor:
    """Squared difference of the attention maps, each normalised to length 1 per sample; mean over positions and samples.

    Channels may differ, they are averaged out. Where sizes differ the larger map is pooled to the smaller grid.

    Args:
        student: Features, (N, C_s, H_s, W_s).
        teacher: Features, (N, C_t, H_t, W_t).
        power: p of `attention_map`.
    """
    return map_distance(attention_map(student, power), attention_map(teacher, power))


@full_precision
def map_distance(q_s: Tensor, q_t: Tensor) -> Tensor:
    """`attention_distance` of attention maps that are made already, (N, H, W)."""
    if len(q_s) != len(q_t):
        raise ValueError(f"student and teacher must look at the same samples, got {len(q_s)} and {len(q_t)}")
    grid = (min(q_s.shape[1], q_t.shape[1]), min(q_s.shape[2], q_t.shape[2]))
    q_s, q_t = (F.normalize(_pool(q, grid).flatten(1)) for q in (q_s, q_t))
    return (q_s - q_t).square().mean()


@ranged
def at(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    attention: float = 1000.0,
    power: float = 2,
    example: Tensor | None = None,
    task: Task = classification,
) -> Distill:
    """Let the student look where the teacher looks.

    L = CE(y, z_s) + attention · Σ_j mean (q_s^j − q_t^j)², with q = vec(mean_c |A|^p) / ‖·‖₂.

    Known failure: across dissimilar architectures (VGG or ResNet to MobileNetV2) it lands below the plain student.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the ends of the stages, paired by `limbeck.pairs`.
        attention: Weight of each pair, above 0; 1000 as in the authors' code, with its mean over positions and samples.
        power: p of the attention maps, above 0; 2 as in the paper.
        example: A batch of inputs, (N, ...), needed where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    pairs = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    looks = attention_map if power == 2 else partial(attention_map, power=power)
    for s, t in pairs:  # maps are made of the places, so that a cache need keep no more of the teacher
        objective += attention * on(map_distance, S[s].via(looks), T[t].via(looks), name=f"attention.{s}")
    return Distill(student, teacher, objective, task)


def _pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps if maps.shape[1:] == grid else F.adaptive_avg_pool2d(maps, grid)
