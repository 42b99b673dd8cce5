"""Inputs, labels that are missing, and batches that are left over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from limbeck.core.batches import samples
from limbeck.core.finding import Finding
from limbeck.core.task import UNLABELLED
from limbeck.data import Epochs
from limbeck.engine.examined import one_left_over
from limbeck.verbs.check.setup import Setup

RARE = 0.01  # batches an epoch without a label, below which none is to be expected


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


def left_over(setup: Setup) -> Iterator[Finding]:
    """Find a last training batch of one sample, which batch norm refuses at the end of the first epoch."""
    if (wrong := one_left_over(setup.stage.method, setup.loaders)) is not None:
        yield Finding("last batch", "failed", wrong)


def unlabelled(setup: Setup) -> Iterator[Finding]:
    """Find a loss of the user's own that is not finite on a batch without a label, where there are such batches."""
    task, target = setup.task, setup.task.target(setup.batch)
    if not task.one_class or not isinstance(target, Tensor) or target.is_floating_point():
        return
    train = setup.loaders.train
    targets = train.targets if isinstance(train, Epochs) else target
    if targets is None or targets.ndim != 1 or not bool((targets == UNLABELLED).any()):
        return
    chance = float((targets == UNLABELLED).float().mean()) ** samples(target)
    if chance * len(train) < RARE:
        return
    for name, net in setup.networks.items():
        value = float(task.loss(setup.answer(net), torch.full_like(target, UNLABELLED)))
        if not torch.tensor(value).isfinite():
            yield Finding(
                "labels",
                "failed",
                f"the task's loss is {value} for the {name} on a batch without any label, as there are some: it is a mean "
                "over nothing. Let it be 0 there, as limbeck.classification's own is, or take larger batches",
                {"batches without a label, of all": chance},
            )


def is_scaled(inputs: Any) -> TypeGuard[Tensor]:
    """Whether inputs are numbers of which there is a scale."""
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim > 1


def channels(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel of (N, C, ...), shaped to be broadcast; of vectors, (N, D), those of all together."""
    over = [axis for axis in range(inputs.ndim) if axis != 1 or inputs.ndim == 2]
    std, mean = torch.std_mean(inputs, over, correction=0, keepdim=True)
    return mean, std
