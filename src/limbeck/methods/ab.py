"""Activation boundaries.

Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
arXiv 1811.03233; official code bhheo/AB_distillation.

Where we differ from the authors' code: the teacher is in eval mode, where theirs is in train mode and so its batch norm
drifts (``Frozen(teacher, mode="batch_stats")`` is close to it); a connector sees each batch once, not twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.frozen import frozen
from limbeck.core.layers import layers as table
from limbeck.core.layers import paired
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import M, Objective, S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.methods.kd import soft_target
from limbeck.nets.connectors import normalised
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="heo2019knowledge",
    title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    authors="Heo, Byeongho and Lee, Minsik and Yun, Sangdoo and Choi, Jin Young",
    venue="AAAI",
    year=2019,
    arxiv="1811.03233",
    matches="which neurons are active, then softened outputs",
    teacher="frozen network",
)

ACTIVATIONS = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SiLU", "GELU", "Hardswish", "Mish")


@full_precision
def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Σ max(0, μ − s)² where the teacher's neuron is active (t > 0), Σ max(0, μ + s)² elsewhere; mean over samples.

    0 where every response lies beyond the margin on the teacher's side of 0; how strong the teacher's is does not matter.

    Args:
        student: Responses before the activation, after a connector if need be, (N, ...).
        teacher: Responses of the same shape, before the activation or after a ReLU.
        margin: μ > 0.
    """
    check_margin(margin)
    same_shape("responses", student, teacher)
    short = F.relu(margin + student * torch.where(teacher > 0, -1.0, 1.0))
    return short.square().sum() / len(student)


@ranged
def ab(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    boundary: float = 0.003,
    margin: float = 1.0,
    temperature: float = 3.0,
    soft: float = 1.0,
    hard: float = 0.0,
    init_share: float = 0.375,
    example: Tensor,
    task: Task = classification,
) -> Iterator[Stage]:
    """Make the student's neurons active where the teacher's are, then train it with soft targets.

    Stage 1, without labels: boundary · Σ_i 2^(i − n) L(r_i(S_i), T_i), i = 1 ... n. Where channels differ, the connector r
    is a 1x1 convolution, whose weights start as N(0, 2/C_t), and a batch norm. Elsewhere there is none. Stage 2:
    soft · KL(p_t^T ‖ p_s^T) + hard · CE(y, z_s).

    It is an initialisation, worth most where data are few; in RepDistiller's table it ends below the plain student.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers, from shallow to deep; by default the ends of the stages, paired by
            `limbeck.pairs`. A layer that ends in an activation is read before it.
        boundary: Weight of the last pair, each one before it has half, above 0; 3/1000 as in the authors' code, with the
            sum over elements.
        margin: μ of the loss, above 0; 1 as in the paper.
        temperature: T of stage 2, in (0, 1000]; 3 as in the authors' code.
        soft: Weight of the soft targets without T², at least 0; 1 as in the authors' code.
        hard: Weight of the labels, at least 0; 0 as in the authors' code, which uses them only in place of soft targets.
        init_share: Stage 1's part of the epochs, in (0, 1); 60 of 160 as in the authors' transfer experiments.
        example: A batch of inputs, (N, ...), from which the connectors get their channels.
        task: How batches are fed and measured.
    """
    if soft == hard == 0:
        raise ValueError("stage 2 has nothing to learn from: give soft or hard a weight other than 0")
    outputs = task.softened(S, T) if soft else (S, T)  # complains before the first stage
    pairs = paired(student, teacher, layers, example, task, maps=True)
    learn_boundaries = Objective([])
    for later, (s, t) in enumerate(reversed(pairs)):
        (at_s, seen_s), (at_t, seen_t) = _response(student, s, example, task), _response(teacher, t, example, task)
        _check(s, t, seen_s, seen_t)
        place = S[at_s] if seen_s.shape == seen_t.shape else S[at_s].via(normalised(seen_s.shape[1], seen_t.shape[1]))
        loss = on(activation_boundary, place, T[at_t], name=f"boundary.{s}", margin=margin)
        learn_boundaries = boundary / 2**later * loss + learn_boundaries
    yield Stage(Distill(student, teacher, learn_boundaries, task), init_share, name="boundaries")

    without_t2 = on(soft_target, *outputs, name="soft", temperature=temperature, mask=M)
    everything = hard * task.hard + soft / temperature**2 * without_t2
    yield Stage(Distill(student, teacher if soft else None, everything, task), 1 - init_share, name="knowledge")


def check_margin(margin: float) -> None:
    """Raise a ValueError unless μ > 0."""
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")


def _response(net: nn.Module, path: str, example: Tensor, task: Task) -> tuple[str, Tensor]:
    """Where the responses are that ``path`` shows, before an activation that it ends in, and what they are."""
    inside = [layer for layer in table(net, example, task) if f"{layer.path}.".startswith(f"{path}.")]
    active = [layer.path for layer in inside if layer.kind in ACTIVATIONS][-1:]
    places = {path, *active, *(f"{last}:in" for last in active)}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        seen = task.look(frozen(net).again("eval"), example, places)
    if active and torch.equal(seen[path], seen[active[0]]):
        path = f"{active[0]}:in"
    return path, seen[path]


def _check(s: str, t: str, seen_s: Tensor, seen_t: Tensor) -> None:
    if seen_s.shape[2:] != seen_t.shape[2:]:
        raise ValueError(
            f"the student's {s!r} has maps of {tuple(seen_s.shape[2:])} and the teacher's {t!r} of "
            f"{tuple(seen_t.shape[2:])}: name layers of equal resolution (`limbeck layers` shows all shapes)"
        )
    if (seen_s >= 0).all():
        raise ValueError(
            f"the student's {s!r} is never negative, so that it has no boundary to learn: name the layer before its "
            "activation, such as 'layer1.1.bn2', or the activation's input, 'layer1.1.relu:in'"
        )
