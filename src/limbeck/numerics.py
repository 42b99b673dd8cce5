"""What every loss does about precision, in one place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Let a loss compute in float32 at least: half-precision arguments are widened, autocast is off inside.

    Float64 stays float64. Softmax, norms and squares of features at 1e4 overflow or lose their meaning in
    float16 (65504 at most) and bfloat16 (8 bits).
    """

    @functools.wraps(loss)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        wide = [_widen(value) for value in args]
        wide_options = {name: _widen(value) for name, value in kwargs.items()}
        device = next((tensor.device.type for tensor in _tensors([*wide, *wide_options.values()])), "cpu")
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return loss(*wide, **wide_options)
        return loss(*wide, **wide_options)

    return widened


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, (tuple, list)):
        return type(value)(_widen(entry) for entry in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)


def same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError unless both tensors have the same shape.

    ``name`` is what they are, for the message; broadcasting would silently train a wrong loss.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student and teacher must have the same shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def unit_rows(rows: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return each row divided by its length plus ``epsilon``; a row of zeros stays so and has no gradient.

    `torch.nn.functional.normalize` would multiply that row's gradient by 1e12.
    """
    squares = rows.square().sum(-1, keepdim=True)
    return rows / (squares.where(squares > 0, torch.inf).sqrt() + epsilon)
