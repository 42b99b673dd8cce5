"""Inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from limbeck.core.finding import Finding
from limbeck.verbs.check.setup import Setup


def inputs(setup: Setup) -> Iterator[Finding]:
    """Compare each channel of the inputs with mean 0 and standard deviation 1."""
    shown = setup.task.inputs(setup.batch)
    if not is_scaled(shown):
        yield Finding("inputs", "ok", "not checked: the inputs are no tensor of real numbers")
        return
    mean, std = channels(shown)
    values = {
        "mean, furthest from 0": float(mean.flatten()[mean.abs().argmax()]),
        "std, smallest": float(std.min()),
        "std, largest": float(std.max()),
    }
    if bool((mean.abs() > 1).any() or (std < 0.2).any() or (std > 5).any()):
        yield Finding(
            "inputs",
            "warning",
            f"a channel of the inputs has mean {values['mean, furthest from 0']:.3g} or a std between "
            f"{values['std, smallest']:.3g} and {values['std, largest']:.3g}: normalise them to about mean 0 and std 1",
            values,
        )
    else:
        yield Finding("inputs", "ok", "every channel has about mean 0 and std 1", values)


def is_scaled(inputs: Any) -> TypeGuard[Tensor]:
    """Whether inputs are numbers of which there is a scale."""
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim > 1


def channels(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel of (N, C, ...), shaped to be broadcast; of vectors, (N, D), those of all together."""
    over = [axis for axis in range(inputs.ndim) if axis != 1 or inputs.ndim == 2]
    std, mean = torch.std_mean(inputs, over, correction=0, keepdim=True)
    return mean, std
