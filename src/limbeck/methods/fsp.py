"""Flow of solution procedure.

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
CVPR 2017. No official code.

RepDistiller and Knowledge-Distillation-Zoo take the mean over a matrix's entries where the paper sums, and pool by the
average where it takes the maximum. A flow is between two layers of one network, never between student and teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import Layer, layers, paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import Objective, S, T, on
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="yim2017gift",
    title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
    authors="Yim, Junho and Joo, Donggyu and Bae, Jihoon and Kim, Junmo",
    venue="CVPR",
    year=2017,
    matches="flow between two layers",
    teacher="frozen network",
)

Section = tuple[str, str]
"""The first and the last layer of a part of one network."""


@full_precision
def flow_matrix(first: Tensor, last: Tensor) -> Tensor:
    """G = Σ_hw F¹ F²ᵀ / (H·W), (N, m, H, W) and (N, n, H, W) -> (N, m, n).

    Where grids differ the larger map is max-pooled to the smaller, as in the paper.

    Args:
        first: What a section begins with, (N, m, H, W).
        last: What it ends with, (N, n, H, W).
    """
    for features in (first, last):
        if features.ndim != 4:
            raise ValueError(f"a flow is between feature maps (N, C, H, W), got shape {tuple(features.shape)}")
    grid = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    first, last = (x if x.shape[2:] == grid else F.adaptive_max_pool2d(x, grid) for x in (first, last))
    share = 1 / (grid[0] * grid[1])  # taken within the product: channels are many, so the matrix is the largest tensor
    return torch.baddbmm(first.new_zeros(()), first.flatten(2), last.flatten(2).mT, beta=0, alpha=share)


@full_precision
def flow_distance(student_pair: tuple[Tensor, Tensor], teacher_pair: tuple[Tensor, Tensor]) -> Tensor:
    """‖G_t − G_s‖² of the `flow_matrix` of each network, the sum over its entries, mean over samples.

    Args:
        student_pair: What a section of the student begins and ends with, (N, m, H, W) and (N, n, H, W).
        teacher_pair: The teacher's, of as many channels; the grids may differ from the student's.
    """
    flow_s, flow_t = flow_matrix(*student_pair), flow_matrix(*teacher_pair)
    same_shape("flow matrices, (N, channels of the first layer, of the last)", flow_s, flow_t)
    return F.mse_loss(flow_s, flow_t, reduction="sum") / len(flow_s)


def fsp(
    student: nn.Module,
    teacher: nn.Module,
    *,
    sections: Sequence[tuple[Section, Section]] | None = None,
    flow: float = 1.0,
    flow_share: float = 0.25,
    example: Tensor | None = None,
    task: Task = classification,
) -> Iterator[Stage]:
    """Teach the student how the teacher's features flow from layer to layer, then the task.

    Stage 1, without labels: flow · Σ_i ‖G_t^i − G_s^i‖². Stage 2: CE(y, z_s), no distillation.

    The two networks must have as many channels at the layers of each section: they differ in depth, not in width.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        sections: For each section the student's and the teacher's (first layer, last layer). By default the stages that
            `limbeck.pairs` pairs, each from the first layer in it to its end: a residual network's blocks.
        flow: Weight of each section; 1, equal as in the paper. It acts through the learning rate alone, unless that adapts.
        flow_share: Stage 1's part of the epochs; a quarter is ours. The paper restarts the learning rate for stage 2, and
            has a hundredth of it in stage 1.
        example: A batch of inputs, (N, ...), needed where ``sections`` are not named.
        task: How batches are fed and measured.
    """
    if not 0 < flow_share < 1:
        raise ValueError(f"flow_share must lie in (0, 1), got {flow_share}")
    learn_flow = Objective([])
    for of_s, of_t in _sections(student, teacher, sections, example, task):
        places = S[of_s[0]], S[of_s[1]], T[of_t[0]], T[of_t[1]]
        learn_flow += flow * on(_flows, *places, name=f"flow.{of_s[1]}")
    yield Stage(Distill(student, teacher, learn_flow, task), flow_share, name="flow")
    yield Stage(Distill(student, None, task.hard, task), 1 - flow_share, name="task")


def _flows(first_s: Tensor, last_s: Tensor, first_t: Tensor, last_t: Tensor) -> Tensor:
    return flow_distance((first_s, last_s), (first_t, last_t))


def _sections(
    student: nn.Module,
    teacher: nn.Module,
    named: Sequence[tuple[Section, Section]] | None,
    example: Tensor | None,
    task: Task,
) -> list[tuple[Section, Section]]:
    """The named sections or those found, checked as far as the example allows."""
    if named is None:
        ends = paired(student, teacher, None, example, task, maps=True)
        table_s, table_t = layers(student, example, task), layers(teacher, example, task)
        named = [(_section(s, table_s), _section(t, table_t)) for s, t in ends]
    named = [(_pair(of_s), _pair(of_t)) for of_s, of_t in named]
    for index in (0, 1):
        paired(student, teacher, [(of_s[index], of_t[index]) for of_s, of_t in named], example, task, maps=True)
    if example is not None:
        for of_s, of_t in named:
            shapes = [
                [shape_at(net, path, example, task)[1] for path in of] for net, of in ((student, of_s), (teacher, of_t))
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the student's {of_s} have {shapes[0]} channels and the teacher's {of_t} {shapes[1]}: "
                    "flows compare only where these are equal. Take a teacher that is deeper, not wider, or a method for "
                    "any channels (at, nst)"
                )
    return named


def _section(end: str, table: list[Layer]) -> Section:
    """From the first layer at the resolution of a stage's end: inside it or, if it contains none, beside it."""
    shapes = {layer.path: layer.shape for layer in table}

    def at_end(parent: str) -> list[str]:
        return [path for path in shapes if path.rpartition(".")[0] == parent and shapes[path][2:] == shapes[end][2:]]

    inside = at_end(end)
    return (inside or at_end(end.rpartition(".")[0]))[0], end


def _pair(section: Sequence[str]) -> Section:
    if isinstance(section, str) or len(section) != 2:
        raise ValueError(
            f"a section is (first layer, last layer), got {section!r}: sections=[(('layer1.0', 'layer1.2'), "
            "('layer1.0', 'layer1.8'))], the student's before the teacher's"
        )
    return str(section[0]), str(section[1])
