"""Flow of solution procedure.

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
CVPR 2017. No official code.

RepDistiller and Knowledge-Distillation-Zoo take the mean over a matrix's entries where the paper sums, and pool by the
average where it takes the maximum. Their sections begin at a stage's input. Ours begin at the first layer in it, as the
paper's do, and at the input only where a stage is one block: that block alone would be the first layer and the last. A flow
is between two layers of one network, never between student and teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.frozen import bare, frozen
from limbeck.core.layers import Layer, layers, paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import Objective, S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.core.trace import submodules
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="yim2017gift",
    title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
    authors="Yim, Junho and Joo, Donggyu and Bae, Jihoon and Kim, Junmo",
    venue="CVPR",
    year=2017,
    matches="flow between two layers, then labels",
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
    if len(first) != len(last):
        raise ValueError(f"both layers must show the same samples, got {len(first)} and {len(last)}")
    grid = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    first, last = (x if x.shape[2:] == grid else F.adaptive_max_pool2d(x, grid) for x in (first, last))
    # divided before the product: the matrix may be far larger than the maps
    return (first.flatten(2) / (grid[0] * grid[1])) @ last.flatten(2).mT


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


@ranged
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
            `limbeck.pairs` pairs, each from the first layer in it to its end: a residual network's blocks. Where a stage of
            the student's or the teacher's is a single block, or convolution, both begin at the input of their first.
        flow: Weight of each section, above 0; 1, equal as in the paper. It acts through the learning rate alone, unless
            that adapts.
        flow_share: Stage 1's part of the epochs, in (0, 1); a quarter is ours. The paper restarts the learning rate for
            stage 2, and has a hundredth of it in stage 1.
        example: A batch of inputs, (N, ...), needed where ``sections`` are not named.
        task: How batches are fed and measured.

    Raises:
        ValueError: The example shows other numbers of channels in student and teacher, or a section that begins with what
            it ends with.
    """
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
        named = [_both(student, teacher, s, t, example, task) for s, t in ends]
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
            for who, net, of in (("student", student, of_s), ("teacher", teacher, of_t)):
                if _nothing_flows(net, of, example, task):
                    raise ValueError(
                        f"the {who}'s section {of} begins with the very features that it ends with, so that nothing flows: "
                        f"name an earlier layer, such as the input, ('{of[1]}:in', '{of[1]}')"
                    )
    return named


def _both(
    student: nn.Module, teacher: nn.Module, s: str, t: str, example: Tensor | None, task: Task
) -> tuple[Section, Section]:
    """The student's section and the teacher's that end with a pair of stages."""
    begins = [_begin(net, end, layers(net, example, task)) for net, end in ((student, s), (teacher, t))]
    if not all(followed for _, followed in begins):
        begins = [(f"{first}:in", True) for first, _ in begins]
    (first_s, _), (first_t, _) = begins
    return (first_s, s), (first_t, t)


def _begin(net: nn.Module, end: str, table: list[Layer]) -> tuple[str, bool]:
    """The first layer at the resolution of a stage's end, inside it or else beside it, and whether weights follow on it."""
    shapes = {layer.path: layer.shape for layer in table}
    modules = submodules(bare(net))

    def at_end(parent: str) -> list[str]:
        return [path for path in shapes if path.rpartition(".")[0] == parent and shapes[path][2:] == shapes[end][2:]]

    first = (at_end(end) or at_end(end.rpartition(".")[0]))[0]
    while isinstance(modules[first], nn.Sequential) and at_end(first):  # a row of blocks: the first of them
        first = at_end(first)[0]
    order = list(shapes)
    after = order[order.index(first) + 1 : order.index(end) + 1]
    return first, any(p.ndim > 1 for path in after for p in modules[path].parameters(recurse=False))


def _nothing_flows(net: nn.Module, section: Section, example: Tensor, task: Task) -> bool:
    """Whether a section begins with what it ends with, as a stage of one block does with that block."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        shown = task.look(frozen(net).again("eval"), example, section)
    return torch.equal(*(shown[path] for path in section))


def _pair(section: Sequence[str]) -> Section:
    if isinstance(section, str) or len(section) != 2:
        raise ValueError(
            f"a section is (first layer, last layer), got {section!r}: sections=[(('layer1.0', 'layer1.2'), "
            "('layer1.0', 'layer1.8'))], the student's before the teacher's"
        )
    return str(section[0]), str(section[1])
