"""Adapters between the shapes of a student's and a teacher's layer."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.nets.norm import GlobalBatchNorm

Shape = tuple[int, ...]


def regressor(student: Shape, teacher: Shape, *, rectified: bool = False) -> nn.Module:
    """Return FitNets' regressor, from a guided layer's shape to its hint's.

    Maps: a convolution without padding whose kernel, (H_s − H_t + 1, W_s − W_t + 1), takes one grid to the other. Vectors
    and token sequences: a linear map. Its weights start uniform in ±0.05, as in the authors' code.

    Args:
        student: Shape of the guided layer, (N, C, H, W), (N, L, D) or (N, D).
        teacher: Shape of the hint, of as many axes.
        rectified: End in a ReLU, for a hint that does: a linear output fits no rectified hint, nor the reverse.

    Raises:
        ValueError: No regressor leads from one shape to the other.
    """
    if len(student) != len(teacher) or len(student) not in (2, 3, 4):
        raise ValueError(
            _advice(student, teacher, "layers of the same kind: two maps, two token sequences or two vectors")
        )
    head: nn.Conv2d | nn.Linear
    if len(student) == 4:
        kernel = (student[2] - teacher[2] + 1, student[3] - teacher[3] + 1)
        if min(kernel) < 1:
            raise ValueError(_advice(student, teacher, "a guided layer whose map is at least as large as the hint's"))
        head = nn.Conv2d(student[1], teacher[1], kernel)
    else:
        if len(student) == 3 and student[1] != teacher[1]:
            raise ValueError(_advice(student, teacher, "token sequences of equal length"))
        head = nn.Linear(student[-1], teacher[-1])
    nn.init.uniform_(head.weight, -0.05, 0.05)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return nn.Sequential(head, nn.ReLU()) if rectified else head


def _advice(student: Shape, teacher: Shape, need: str) -> str:
    return (
        f"no regressor leads from the student's shape {student} to the teacher's {teacher}: choose {need} "
        "(`limbeck layers STUDENT TEACHER` shows all shapes)"
    )


def common_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps, (N, C, H, W), on the smaller grid of the two: the larger is pooled."""
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pooled(student, grid), _pooled(teacher, grid)


def pointwise(*channels: int) -> nn.Sequential:
    """Return 1x1 convolutions without bias from each number of channels to the next, with ReLUs between."""
    steps: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        steps += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def normalised(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the grid, without bias and started as He's (fan-out), and a batch norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, GlobalBatchNorm(outputs))


def _pooled(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == grid else F.adaptive_avg_pool2d(maps, grid)
