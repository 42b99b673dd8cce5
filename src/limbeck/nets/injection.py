"""A teacher's features in a student's place: projected there, and fed to what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limbeck.core.trace import locate
from limbeck.nets.connectors import Shape, normalised
from limbeck.nets.norm import GlobalBatchNorm


def projection(teacher: Shape, student: Shape, *, rectified: bool = False) -> nn.Module:
    """Return a learned map from a teacher's layer to the shape of a student's.

    Maps: pooled to the student's grid where theirs is larger, then a 1x1 convolution, or a transposed one whose kernel and
    stride enlarge the grid, and a batch norm. Vectors and token sequences: a linear map.

    Args:
        teacher: Shape of the teacher's layer, (N, C, H, W), (N, L, D) or (N, D).
        student: Shape of the student's, of as many axes.
        rectified: End in a ReLU, as the student's layer does: what is never negative cannot follow what is.

    Raises:
        ValueError: No projection leads from one shape to the other.
    """
    steps: list[nn.Module]
    if len(teacher) == len(student) == 4:
        steps = _of_maps(teacher, student)
    elif len(teacher) == len(student) in (2, 3) and teacher[1:-1] == student[1:-1]:
        steps = [nn.Linear(teacher[-1], student[-1])]
    else:
        raise ValueError(_advice(teacher, student))
    return nn.Sequential(*steps, nn.ReLU()) if rectified else nn.Sequential(*steps)


@contextmanager
def injected(net: nn.Module, path: str, features: Tensor) -> Iterator[None]:
    """Let ``features`` stand in for what a layer gives out, or takes in (``fc:in``), while the block runs.

    The layers before it run as ever, but what they found is not used, and no gradient reaches them through it.

    Args:
        net: Any module; nothing is left on it.
        path: The layer: a module's output that is a tensor, or its first input.
        features: Of the shape that the layer has.

    Raises:
        ValueError: There is no such layer, or it has another shape.
    """
    module, entry = locate(net, path)
    if entry not in ([], ["in"], ["in", "0"]):
        raise ValueError(f"features are injected into a layer's output or first input, not into {path!r}")

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (_instead(path, args[0], features), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, kwargs | {first: _instead(path, kwargs[first], features)}

    def leave(module: nn.Module, args: Any, output: Any) -> Tensor:
        return _instead(path, output, features)

    handle = module.register_forward_pre_hook(enter, with_kwargs=True) if entry else module.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


def _instead(path: str, shown: Tensor, features: Tensor) -> Tensor:
    if shown.shape != features.shape:
        raise ValueError(f"{path!r} has shape {tuple(shown.shape)}, the injected features {tuple(features.shape)}")
    return features.clone()  # what follows may change it in place


def _of_maps(teacher: Shape, student: Shape) -> list[nn.Module]:
    height, width = student[2:]
    grid = min(teacher[2], height), min(teacher[3], width)
    if height % grid[0] or width % grid[1]:
        raise ValueError(_advice(teacher, student))
    pool: list[nn.Module] = [] if grid == teacher[2:] else [nn.AdaptiveAvgPool2d(grid)]
    if grid == (height, width):
        return [*pool, *normalised(teacher[1], student[1])]
    factor = height // grid[0], width // grid[1]
    enlarge = nn.ConvTranspose2d(teacher[1], student[1], factor, factor, bias=False)
    nn.init.kaiming_normal_(enlarge.weight, nonlinearity="relu")
    return [*pool, enlarge, GlobalBatchNorm(student[1])]


def _advice(teacher: Shape, student: Shape) -> str:
    return (
        f"no projection leads from the teacher's shape {teacher} to the student's {student}: choose two maps of which the "
        "student's is smaller or a whole number of times as large, two vectors, or two sequences of equal length "
        "(`limbeck layers STUDENT TEACHER` shows all shapes)"
    )
