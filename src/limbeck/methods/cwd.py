"""Channel-wise knowledge distillation for dense prediction.

Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv 2011.13256;
official code irfanICMLL/TorchDistiller.

A 1x1 convolution takes the student's channels to the teacher's where their numbers differ; where the grids differ, we pool
the larger one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, Source, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.methods.kd import soft_target
from limbeck.nets.connectors import common_grid, pointwise
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="shu2021channel",
    title="Channel-wise Knowledge Distillation for Dense Prediction",
    authors="Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua",
    venue="ICCV",
    year=2021,
    arxiv="2011.13256",
    matches="where each channel responds",
    teacher="frozen network",
)


@full_precision
def channelwise_divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(φ_t ‖ φ_s) of each channel's softmax φ over the positions, sum over positions, mean over channels and samples.

    It is `soft_target` with positions in place of classes. Where sizes differ the larger map is pooled to the smaller grid.

    Args:
        student: Feature or score maps, (N, C, H, W).
        teacher: Maps of the same channels.
        temperature: T > 0.
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "channels are compared between maps (N, C, H, W) of the same samples and channels, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}: take the student's through a 1x1 convolution, "
            "S['layer'].via(nn.Conv2d(C_s, C_t, 1))"
        )
    student, teacher = common_grid(student, teacher)
    return soft_target(student.flatten(2), teacher.flatten(2), temperature)


@ranged
def cwd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    channelwise: float = 3.0,
    temperature: float = 4.0,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let each of the student's channels respond where the teacher's does.

    L = CE(y, z_s) + channelwise · Σ_j T² KL(φ_t^j ‖ φ_s^j), mean over channels and samples.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layers: Pairs of student and teacher layers with maps, of features or scores (``":out"`` is an entry of the output,
            ``":"`` the output as it came); by default the deepest pair of `limbeck.pairs`.
        channelwise: Weight of each pair, above 0; 3 as in the authors' command for score maps, with T² and the mean over
            channels and samples. For feature maps they give no command: their runs' names have weights of 35 and 40 at T
            from 1 to 10; mmrazor has 10 at T = 1 on the levels of a neck.
        temperature: T softens both maps, in (0, 1000]; 4 as in the same command.
        example: A batch of inputs, (N, ...), from which the convolutions between unequal channels get their shapes.
        task: How batches are fed and measured.
    """
    pairs = paired(student, teacher, layers, example, task, maps=True)
    objective = task.hard
    for s, t in pairs if layers is not None else pairs[-1:]:
        c_s, c_t = shape_at(student, s, example, task)[1], shape_at(teacher, t, example, task)[1]
        place: Source = S[s] if c_s == c_t else S[s].via(pointwise(c_s, c_t))
        name = f"channelwise.{s}" if s else "channelwise"
        objective += channelwise * on(channelwise_divergence, place, T[t], name=name, temperature=temperature)
    return Distill(student, teacher, objective, task)
