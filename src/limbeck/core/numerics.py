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
        if not torch._C._is_any_autocast_enabled():  # to ask by device takes as long as a small loss's arithmetic
            return loss(*wide, **wide_options)
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
    return rows / (lengths(rows) + epsilon if epsilon else lengths(rows))


def settled(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """Return ``loss(student)``, a scalar whose gradient is made at once, so that what it came from may be written anew.

    Of several large tensors of a graph, only the gradient stays until the backward pass. The loss is linear from there on:
    to differentiate it twice raises a RuntimeError.
    """
    if not (torch.is_grad_enabled() and student.requires_grad):
        return loss(student)
    leaf = student.detach().requires_grad_()
    value = loss(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    return sloped(student, value.detach(), slope)


def sloped(student: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return ``value``, a scalar whose gradient by ``student`` is ``slope``, of the same shape, made by hand.

    The loss is linear from there on, as of `settled`.
    """
    linear: Tensor = _Sloped.apply(student, value, slope)
    return linear


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(student, slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, slope = ctx.saved_tensors
        gradient = upstream * slope
        if torch.is_grad_enabled():  # it depends on the student in a way that autograd knows nothing of
            gradient = _Once.apply(gradient, student)
        return gradient, None, None


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, student: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        raise RuntimeError(
            "this loss makes its gradient together with its value, so it cannot be differentiated twice: take its gradient "
            "without create_graph=True, or leave this loss out of what is differentiated again"
        )


def lengths(rows: Tensor) -> Tensor:
    """Return each row's length, (..., 1), to divide by: that of a row of zeros is infinite, and has no gradient."""
    squares = rows.square().sum(-1, keepdim=True)
    return squares.where(squares > 0, torch.inf).sqrt()
