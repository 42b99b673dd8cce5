"""Inputs, labels that are missing, and batches that are left over."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from limbeck.core.batches import count, samples, take
from limbeck.core.copied import copied
from limbeck.core.finding import Finding
from limbeck.core.task import UNLABELLED
from limbeck.data import Epochs
from limbeck.data.repeatable import Repeatable
from limbeck.verbs.check.setup import Setup
from limbeck.verbs.check.terms import PROGRESS

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
    if last_of(setup.loaders.train) != 1:
        return
    trial = copied(setup.stage)  # statistics move
    try:
        for _ in trial.method.step(take(setup.batch, slice(1)), PROGRESS):
            pass
    except ValueError as error:
        yield Finding(
            "last batch",
            "failed",
            f"the last batch of an epoch has one sample, and cannot be trained on ({error}): drop_last=True, or another "
            "batch_size",
        )


def last_of(loader: Epochs | Repeatable) -> int | None:
    """Return how many samples the last batch of an epoch has, of a loader that says so without being read."""
    own = loader.loader if isinstance(loader, Repeatable) else None
    if isinstance(own, DataLoader) and own.batch_size is not None and isinstance(own.sampler, Sized):
        rest = len(own.sampler) % own.batch_size
        return own.batch_size if own.drop_last or not rest else rest
    return count(own[-1]) if isinstance(own, list) else None


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
