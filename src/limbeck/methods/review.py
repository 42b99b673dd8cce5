"""ReviewKD: knowledge review.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044; official code
dvlab-research/ReviewKD.

Where we differ from the authors' code: a grid of the pyramid is pooled from the grid before it where that is the same; we
compare the ends of the stages as they are, where theirs for CIFAR takes the teacher's before the ReLU (name ``relu:in`` for
that) and adds the pooled embedding as one more stage; fusions normalise by the global batch; the warm-up rises with every
batch. Their grids are square, and ours need not be.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import rising
from limbeck.core.task import Task
from limbeck.nets.fusion import Fusion
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="chen2021distilling",
    title="Distilling Knowledge via Knowledge Review",
    authors="Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya",
    venue="CVPR",
    year=2021,
    arxiv="2104.09044",
    matches="features, fused from the deepest up",
    teacher="frozen network",
)

LEVELS = (4, 2, 1)


@full_precision
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: the squared error of the maps and of their pooled versions, weighted mean.

    Σ_l w_l mean (pool_l(s) − pool_l(t))² / Σ_l w_l, over the map itself, w = 1, and those of the grids 4x4, 2x2 and 1x1
    whose side is less than the map's height. Each has half the weight of the one before. The height alone decides, as in
    all public codes: of a map of 8x2, the grid of 4x4 counts each column twice.

    Args:
        student: Fused features, (N, C, H, W).
        teacher: The teacher's, of the same shape.
    """
    same_shape("features", student, teacher)
    if student.ndim != 4:
        raise ValueError(f"a pyramid needs features (N, C, H, W), got shape {tuple(student.shape)}")
    nested = all(size % LEVELS[0] == 0 for size in student.shape[2:])
    loss, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    s, t = student, teacher
    for level in LEVELS:
        if level < student.shape[2]:
            # each by itself, as pooling their difference would keep that until the backward pass; where 4 divides both
            # sides, each cell of a grid is the mean of four cells, or of a block, of the grid before
            s, t = (F.adaptive_avg_pool2d(one, level) for one in ((s, t) if nested else (student, teacher)))
            weight /= 2
            weights += weight
            loss = loss + weight * F.mse_loss(s, t)
    return loss / weights


class Review(nn.Module):
    """Fuses a student's layers from the deepest up, and compares each fusion with the teacher's layer.

    Args:
        students: Channels of the student's layers, from shallow to deep.
        teachers: Channels of the teacher's.
        middle: Channels of what passes from fusion to fusion.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int], middle: int) -> None:
        super().__init__()
        deepest = len(students) - 1
        self.fusions = nn.ModuleList(
            Fusion(c_s, middle, c_t, deepest=index == deepest)
            for index, (c_s, c_t) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the sum of `hierarchical_context` over the layers: the student's maps first, then the teacher's."""
        depth = len(self.fusions)
        below, losses = None, []
        for index in reversed(range(depth)):
            target = maps[depth + index]
            fused, below = self.fusions[index](maps[index], below, target.shape[2:])
            losses.append(hierarchical_context(fused, target))
        return sum(losses[1:], losses[0])


@ranged
def review(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    context: float = 5.0,
    warmup: float = 1 / 12,
    middle: int | None = None,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let each of the student's stages, fused with all the deeper ones, tell what the teacher's does.

    L = CE(y, z_s) + r · context · Σ_j HCL(fusion_j(s_j, fusion_{j+1}), t_j), from the deepest layer up. The fusions train
    with the student and stay behind. r rises from 1/20 to 1 during the warm-up; a loop of your own has to pass ``progress``
    to `limbeck.play`, or r stays there.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers, from shallow to deep; by default the ends of the stages, paired by
            `limbeck.pairs`.
        context: Weight of the sum over layers, above 0; 5 is one of the authors' for CIFAR-100, which go from 0.6 to 8.
        warmup: The share of the training in which the term rises to its weight, in [0, 1]; 20 of 240 epochs as the
            authors'. 0 for none.
        middle: Channels of what passes from fusion to fusion, at least 1; the deepest layer's, at most 512, as in the
            authors' code.
        example: A batch of inputs, (N, ...), from which the fusions get their channels.
        task: How batches are fed and measured.
    """
    pairs = paired(student, teacher, layers, example, task, maps=True)
    students = [shape_at(student, s, example, task)[1] for s, _ in pairs]
    teachers = [shape_at(teacher, t, example, task)[1] for _, t in pairs]
    middle = min(512, students[-1]) if middle is None else middle
    places = [*(S[s] for s, _ in pairs), *(T[t] for _, t in pairs)]
    reviewing = context * on(Review(students, teachers, middle), *places, name="context")
    return Distill(student, teacher, task.hard + (rising(warmup) if warmup else 1.0) * reviewing, task)
