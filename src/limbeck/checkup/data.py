"""Labels, classes and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from limbeck.checkup.findings import Finding, Status
from limbeck.checkup.setup import Setup
from limbeck.data import Epochs
from limbeck.engine.loaders import Repeatable
from limbeck.task import UNLABELLED


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


def classes(setup: Setup) -> Iterator[Finding]:
    """Compare the labels with the classes of the data, and these with the networks' outputs."""
    if not setup.widths:
        yield Finding("labels", "ok", "not checked: the targets are no classes of the outputs")
        return
    yield _labels(setup)
    for name, width in setup.widths.items():
        yield _outputs(name, width, setup.loaders.num_classes or width)


def _labels(setup: Setup) -> Finding:
    targets = torch.cat([_targets(setup, loader) for loader in setup.loaders[:3] if loader is not None])
    targets = targets[targets != UNLABELLED]
    if not len(targets):
        return Finding("labels", "ok", "not checked: there are none")
    low, high, known = int(targets.min()), int(targets.max()), setup.classes
    values = {"lowest": float(low), "highest": float(high), "classes": float(known)}
    message = f"labels lie between {low} and {high}, of {known} classes"
    if low >= 0 and high < known:
        return Finding("labels", "ok", message, values)
    message += f": they must lie between 0 and {known - 1}, or be {UNLABELLED} where there is none"
    return Finding("labels", "failed", message, values)


def _targets(setup: Setup, loader: Epochs | Repeatable) -> Tensor:
    """Return the targets, of a loader of the user's own those of its first batches."""
    if isinstance(loader, Epochs):
        return loader.targets.cpu()[loader.ids]
    return torch.cat([setup.task.target(batch).flatten().cpu() for batch in setup.some(loader)])


def _outputs(name: str, width: int, known: int) -> Finding:
    status: Status = "failed" if width < known else "warning" if width > known else "ok"
    advice = "" if width == known else f": make it with num_classes={known}"
    message = f"the {name} has {width} classes, and the data {known}{advice}"
    return Finding(f"{name} outputs", status, message, {"outputs": float(width), "classes": float(known)})
