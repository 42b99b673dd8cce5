"""Matching of intermediate weights, and the other reading of it.

Han, "TinyML and Efficient Deep Learning Computing", MIT 6.S965, lecture 10: Knowledge Distillation. There is no paper, and
the lecture can be read in two ways. Its heading matches *weights* in the middle of the model; its recipe compares what
layers give out, through a fully connected layer from the student's width to the teacher's. `weights` is the first,
`weights_outputs` the second, which is FitNets' hint without its stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from limbeck.core.distributed import whole
from limbeck.core.frozen import bare
from limbeck.core.layers import Layer, Pair, Shape, by_depth, paired, shape_at
from limbeck.core.layers import layers as table
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import Objective, S, T, Weight, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Batch, Task
from limbeck.core.trace import locate, submodules
from limbeck.methods.fitnets import hint_distance
from limbeck.nets.connectors import regressor
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="han2022tinyml",
    title="TinyML and Efficient Deep Learning Computing, lecture 10: Knowledge Distillation",
    authors="Han, Song",
    venue="MIT 6.S965",
    year=2022,
    matches="weights of inner layers, through learned maps",
    teacher="frozen network",
)
PAPER_OF = {"weights_outputs": {"matches": "outputs of layers, through learned maps"}}
"""What is otherwise than in `PAPER`, of the other reading."""


@full_precision
def weight_matching(
    student: Tensor, teacher: Tensor, rows: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """Squared error of a layer's weights through linear maps, ‖A W_s Bᵀ − W_t‖² / numel(W_t): mean over elements.

    Args:
        student: W_s, (n_s, m_s, ...): outputs, inputs, kernel.
        teacher: W_t, (n_t, m_t, ...), of the same kernel.
        rows: A, (n_t, n_s); the identity if not given.
        columns: B, (m_t, m_s); likewise.
    """
    if rows is not None:
        student = torch.einsum("ts,s...->t...", rows, student)
    if columns is not None:
        student = torch.einsum("ts,ns...->nt...", columns, student)
    same_shape("weights", student, teacher)
    return F.mse_loss(student, teacher)


class Maps(nn.Module):
    """`weight_matching` with maps that learn: they start as the identity, cut off or filled up with zeros.

    Args:
        student: Shape of the student's weight.
        teacher: Shape of the teacher's.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.eye(teacher[0], student[0]))
        self.columns = nn.Parameter(torch.eye(teacher[1], student[1]))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of two weights."""
        return weight_matching(student, teacher, self.rows, self.columns)


class Matching(Method):
    """A student that learns, and whose weights follow a teacher's.

    Args:
        distill: The student, the teacher, and what the student learns besides.
        matching: An objective in which ``S["layer"]`` and ``T["layer"]`` are the weights of layers, not what they give out.
    """

    def __init__(self, distill: Distill, matching: Objective) -> None:
        super().__init__()
        self.distill, self.matching = distill, matching
        self.task = distill.task

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student with the maps."""
        return {"student": [self.distill.student, self.distill.objective, self.matching]}

    def adding(self, other: Distill, hard: Weight | None = None) -> Matching:
        """Return it with the terms of another method."""
        return Matching(self.distill.adding(other, hard), self.matching)

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Let the student descend both; the teacher is not run, since its weights are all that counts."""
        learned = self.distill.objective(self.distill.scene(batch, progress))
        networks = {"student": self.distill.student, **self.distill.teachers}
        shown = {role: weights_at(net, self.matching.paths(role)) for role, net in networks.items()}
        yield Turn("student", {**learned, **self.matching({"progress": progress, **shown})})


@ranged
def weights(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    weights: float = 1e-2,
    until: float = 0.5,
    example: Tensor | None = None,
    task: Task = classification,
) -> Matching:
    """Let the student's weights become the teacher's, but for linear maps on either side.

    L = CE(y, z_s) + r · weights · Σ_l ‖A_l W_s^l B_lᵀ − W_t^l‖² / numel(W_t^l). A and B start as truncated identities,
    train with the student and stay behind. Biases and norms are not matched. r falls from 1 to 0 until the middle of the
    training: a loop of your own has to pass ``progress`` to `limbeck.play`, or r stays 1. The teacher is never run.

    Known failure: units may be permuted and scaled without any change of the function, and free maps can make the loss
    small where the networks disagree. Look at their agreement (`limbeck eval --teacher`), not at this loss.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers with weights of equal kernels; by default all convolutions and linear
            layers but the first and the last, those of one kernel paired by their depth.
        weights: Weight of each pair, a mean over elements, above 0; 1e-2 is ours, the lecture has none.
        until: The share of the training after which the term is gone, in (0, 1]; 0.5 is ours.
        example: A batch of inputs, (N, ...), needed where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    matching = Objective([])
    for s, t in _alike(student, teacher, example, task) if layers is None else layers:
        maps = Maps(*_shapes(student, teacher, s, t))
        matching += weights * on(maps, S[s], T[t], name=f"weights.{s}")
    if not matching.terms:
        raise ValueError("layers names no pair, so that there are no weights to match: leave it out to find them")
    falling = (lambda progress: max(0.0, 1 - progress / until)) * matching
    return Matching(Distill(student, teacher, task.hard, task), falling)


@ranged
def weights_outputs(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    outputs: float = 100.0,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let linear maps of what the student's layers give out be what the teacher's do: the lecture's recipe for weights.

    L = CE(y, z_s) + outputs · Σ_l mean (W_l s_l − t_l)². W is a 1x1 convolution for maps (a larger one where the student's
    grid is larger), a linear layer for tokens and vectors; it trains with the student and stays behind.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers; by default the ends of the stages, paired by `limbeck.pairs`.
        outputs: Weight of each pair, a mean over elements, above 0; 100 as RepDistiller has it for a hint, the lecture has
            none.
        example: A batch of inputs, (N, ...), from which the maps get their shapes.
        task: How batches are fed and measured.
    """
    objective = task.hard
    for s, t in paired(student, teacher, layers, example, task):
        map_s = regressor(shape_at(student, s, example, task), shape_at(teacher, t, example, task))
        objective += outputs * on(hint_distance, S[s].via(map_s), T[t], name=f"outputs.{s}")
    return Distill(student, teacher, objective, task)


def weights_at(net: nn.Module, paths: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of layers.

    Raises:
        ValueError: There is no such layer, or it has no weight for both outputs and inputs.
    """
    return {path: _weight(net, path) for path in paths}


def _weight(net: nn.Module, path: str) -> Tensor:
    module, entry = locate(bare(net), path)
    weight = getattr(module, "weight", None)
    if entry or not isinstance(weight, Tensor) or weight.ndim < 2:
        raise ValueError(
            f"{type(bare(net)).__name__}'s {path!r} has no weight of outputs and inputs to match: name a convolution or a "
            "linear layer (`limbeck layers` lists all)"
        )
    return whole(weight)


def _shapes(student: nn.Module, teacher: nn.Module, s: str, t: str) -> tuple[Shape, Shape]:
    of_student, of_teacher = tuple(_weight(student, s).shape), tuple(_weight(teacher, t).shape)
    if of_student[2:] != of_teacher[2:]:
        raise ValueError(
            f"maps of outputs and inputs leave the kernel as it is: the student's {s!r} has weights {of_student}, the "
            f"teacher's {t!r} {of_teacher}: name layers of equal kernels, or match what they give out (weights_outputs)"
        )
    return of_student, of_teacher


def _alike(student: nn.Module, teacher: nn.Module, example: Tensor | None, task: Task) -> list[Pair]:
    """Pair the inner layers of each kernel by their depth; in order where there are equally many."""
    if example is None:
        raise ValueError(
            "layers are paired by running an example: pass example=inputs (a batch of inputs), "
            "or name the pairs, layers=[('student.layer', 'teacher.layer')]"
        )
    of_student, of_teacher = _inner(student, example, task), _inner(teacher, example, task)
    both = [kernel for kernel in of_student if kernel in of_teacher]
    pairs = [(s, t) for kernel in both for s, t in by_depth(of_student[kernel], of_teacher[kernel])]
    if not pairs:
        raise ValueError(
            "found no weights to match: between its first and its last layer, the student has none of a kernel that the "
            "teacher has there. Name pairs, layers=[('student.layer', 'teacher.layer')], or match what layers give out "
            "(weights_outputs)"
        )
    return [(s.path, t.path) for s, t in pairs]


def _inner(net: nn.Module, example: Tensor, task: Task) -> dict[Shape, list[Layer]]:
    """Convolutions and linear layers by kernel, in the order in which they run, but for the first and the last of all."""
    modules = submodules(bare(net))
    found = [layer for layer in table(net, example, task) if isinstance(modules[layer.path], nn.Linear | _ConvNd)]
    kernels: dict[Shape, list[Layer]] = {}
    for layer in found[1:-1]:
        kernels.setdefault(tuple(_weight(net, layer.path).shape[2:]), []).append(layer)
    return kernels
