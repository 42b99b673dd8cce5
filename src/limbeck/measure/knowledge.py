"""Whether a student took over what its method says it does: on which side of 0 neurons lie, how inputs move the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.frozen import frozen
from limbeck.core.layers import Pair
from limbeck.core.numerics import same_shape, unit_rows
from limbeck.core.task import Task
from limbeck.core.trace import describe
from limbeck.measure.evaluate import batches
from limbeck.measure.networks import beside
from limbeck.tasks.classification import classification


@torch.no_grad()
def sign_agreement(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    pairs: Sequence[Pair],
    task: Task = classification,
) -> dict[Pair, float]:
    """Return for pairs of layers the share of neurons that both networks have active, or both not, in [0, 1].

    Active is a response above 0, so that it does not matter whether a layer is read before its ReLU or after it. It is what
    `limbeck.ab` moves: a share over neurons, positions and samples; 1/2 is chance where half of the neurons are active.
    Both networks run in eval mode, where the student's parameters are, and are left as they were.

    Args:
        student: Any network.
        teacher: Another.
        loader: Batches of held-out data.
        pairs: Layers to compare, (student's path, teacher's path), neuron by neuron.
        task: How batches are fed.

    Raises:
        ValueError: The loader gave no batch, a layer does not exist, or layers of a pair differ in shape: neurons of
            networks of different widths belong together only through a method's connector, which the student leaves behind.
    """
    views = frozen(student), beside(student, teacher)
    agreeing, count = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0)
    for batch in batches(loader, student):
        inputs = task.inputs(batch)
        shown, taught = (task.look(view, inputs, {pair[side] for pair in pairs}) for side, view in enumerate(views))
        for pair in pairs:
            mine, its = shown[pair[0]], taught[pair[1]]
            _check_neurons(pair, mine, its)
            agreeing[pair] += float(((mine > 0) == (its > 0)).sum())
            count[pair] += mine.numel()
    if pairs and not all(count.values()):
        raise ValueError("nothing was measured: the loader gave no batch")
    return {pair: agreeing[pair] / count[pair] for pair in pairs}


@torch.enable_grad()
def gradient_cosine(
    student: nn.Module, teacher: nn.Module, loader: Iterable[Any], task: Task = classification
) -> float:
    """Return the cosine of both networks' gradients of the loss at a sample's input, mean over samples, in [−1, 1].

    It is what `limbeck.gradient` and `limbeck.jacobian` move: 1 where both losses fall in the same direction, about 0 for
    unrelated networks. Samples without a label, or with a gradient of exactly 0 by either network, do not count; nan
    where none does. Both run in eval mode, where the student's parameters are, and are left as they were.

    Args:
        student: Any network.
        teacher: Another, of the same inputs and outputs.
        loader: Batches ``(inputs, targets)`` of held-out data.
        task: How batches are fed, and the loss.

    Raises:
        ValueError: The loader gave no batch.
        TypeError: The inputs are not one tensor of real numbers.
    """
    views = frozen(student), beside(student, teacher)
    total, count, seen = 0.0, 0, False
    for batch in batches(loader, student):
        seen, target = True, task.target(batch)
        mine, its = (_input_gradient(view, task.inputs(batch), target, task) for view in views)
        cosines = (unit_rows(mine) * unit_rows(its)).sum(1)
        both = mine.any(1) & its.any(1)
        total, count = total + float(cosines[both].sum()), count + int(both.sum())
    if not seen:
        raise ValueError("nothing was measured: the loader gave no batch")
    return total / count if count else math.nan


def _input_gradient(net: nn.Module, inputs: Any, target: Tensor, task: Task) -> Tensor:
    """The loss's gradient at each sample, (N, D), in units of its largest entry: squares of small ones would vanish."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        what = f"a tensor of {inputs.dtype}" if isinstance(inputs, Tensor) else describe(inputs)
        raise TypeError(f"gradients need inputs that are one tensor of real numbers, got {what}")
    place = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(task.loss(task.feed(net, place), target), place)
    rows = slope.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    return rows / largest.where(largest > 0, 1.0)


def _check_neurons(pair: Pair, student: Tensor, teacher: Tensor) -> None:
    try:
        same_shape(f"signs of {pair[0]!r} and {pair[1]!r}", student, teacher)
    except ValueError as error:
        raise ValueError(
            f"{error}: neurons are compared one by one, so name layers of equal width and resolution (`limbeck layers "
            "STUDENT TEACHER` shows all shapes); limbeck.measure.cka compares layers of any two widths"
        ) from error
