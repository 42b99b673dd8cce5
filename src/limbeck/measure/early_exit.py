"""What an early exit saves, and what it costs: accuracy over compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.utilities.distributed import gather_all_tensors

from limbeck.core.distributed import place
from limbeck.core.frozen import Frozen
from limbeck.core.task import UNLABELLED, Task
from limbeck.measure.cost import macs_of
from limbeck.measure.evaluate import batches
from limbeck.measure.logits import check_classes
from limbeck.nets.exits import EarlyExit
from limbeck.tasks.classification import classification

THRESHOLDS = 101
"""Points of a curve: thresholds a hundredth of the samples apart."""


@dataclass(frozen=True)
class Operating:
    """Where a network with exits may be run.

    Args:
        threshold: Of all exits.
        accuracy: Top-1, in [0, 1].
        macs: Multiply-accumulates of a sample, on average.
    """

    threshold: float
    accuracy: float
    macs: float


@dataclass(frozen=True)
class ExitProfile:
    """What a network with exits does on held-out data.

    Args:
        accuracies: Of each exit on all samples, in [0, 1]; the deepest last.
        exit_macs: Multiply-accumulates of a sample that leaves at each exit, those of the exits that it passed included.
        shares: Of the samples that leave at each exit, at the network's own thresholds; they add up to 1.
        accuracy: At the network's own thresholds, in [0, 1].
        macs: Of a sample on average, at the network's own thresholds.
        curve: Where else the network may be run, see `exit_curve`.
    """

    accuracies: tuple[float, ...]
    exit_macs: tuple[int, ...]
    shares: tuple[float, ...]
    accuracy: float
    macs: float
    curve: tuple[Operating, ...]


def exit_profile(net: EarlyExit, loader: Iterable[Any], task: Task = classification) -> ExitProfile:
    """Return what each exit of a classifier reaches, what all of them do together, and accuracy over compute.

    The data is passed once, through the whole network. Among several processes all must ask: it is that of all their data.

    Args:
        net: The network; it is left as it was.
        loader: Held-out batches ``(inputs, targets)`` with a label at least.
        task: How batches are fed.

    Raises:
        ValueError: No labelled sample, or targets that are not one class a sample.
    """
    confidence, right, price = _seen(net, loader, task)
    taken = _taken(confidence, net.thresholds.cpu())
    return ExitProfile(
        accuracies=tuple(right.double().mean(0).tolist()),
        exit_macs=tuple(price.tolist()),
        shares=tuple((taken.bincount(minlength=len(price)).double() / len(taken)).tolist()),
        accuracy=_mean(right.gather(1, taken[:, None])),
        macs=_mean(price[taken]),
        curve=tuple(_curve(confidence, right, price)),
    )


def exit_curve(net: EarlyExit, loader: Iterable[Any], task: Task = classification) -> list[Operating]:
    """Return accuracy and compute over the thresholds that matter, from the cheapest point to the dearest.

    All exits have the same threshold. The data is passed once, through the whole network; the points lie a hundredth of
    the exits' confidences apart, from 0 (every sample takes the first exit) to 1 (every one the last).

    Args:
        net: The network; it is left as it was.
        loader: Held-out batches ``(inputs, targets)`` with a label at least.
        task: How batches are fed.

    Raises:
        ValueError: No labelled sample, or targets that are not one class a sample.
    """
    return _curve(*_seen(net, loader, task))


def calibrate(
    net: EarlyExit,
    loader: Iterable[Any],
    *,
    macs: float | None = None,
    accuracy: float | None = None,
    task: Task = classification,
) -> Operating:
    """Set a network's thresholds to a compute budget, or to an accuracy.

    Args:
        net: The network; its thresholds are set.
        loader: Held-out batches, which the final test does not contain.
        macs: The most multiply-accumulates that a sample may take on average: the most accurate point within it.
        accuracy: The least accuracy, in [0, 1]: the cheapest point that reaches it.
        task: How batches are fed.

    Returns:
        The point that was chosen, as measured on the loader.

    Raises:
        ValueError: Not exactly one of the two was given, or no threshold reaches it.
    """
    if (macs is None) == (accuracy is None):
        raise ValueError("expected either a budget, macs=, or an accuracy to keep, accuracy=")
    curve = exit_curve(net, loader, task)
    if macs is not None:
        within = [point for point in curve if point.macs <= macs]
        if not within:
            raise ValueError(f"macs must be at least {curve[0].macs:,.0f}, what the first exit takes, got {macs:,.0f}")
        chosen = max(within, key=lambda point: (point.accuracy, -point.macs))
    else:
        reaching = [point for point in curve if point.accuracy >= float(accuracy or 0)]
        if not reaching:
            best = max(point.accuracy for point in curve)
            raise ValueError(f"no threshold reaches an accuracy of {accuracy}: the best is {best:.4f}")
        chosen = min(reaching, key=lambda point: point.macs)
    net.set_thresholds([chosen.threshold] * len(net.exits))
    return chosen


def _curve(confidence: Tensor, right: Tensor, price: Tensor) -> list[Operating]:
    steps = torch.linspace(0, 1, THRESHOLDS)
    inner = confidence[:, :-1].flatten().quantile(steps) if confidence.shape[1] > 1 else steps
    points = {}
    for threshold in [0.0, *sorted(set(inner.tolist())), 1.0]:
        taken = _taken(confidence, threshold)
        point = Operating(threshold, _mean(right.gather(1, taken[:, None])), _mean(price[taken]))
        points[point.macs, point.accuracy] = point  # the last of equal ones: it is as far from the next as can be
    return sorted(points.values(), key=lambda point: point.macs)


def _taken(confidence: Tensor, thresholds: Tensor | float) -> Tensor:
    """Return the number of the exit that each sample takes."""
    sure = F.pad(confidence[:, :-1] > thresholds, (0, 1), value=True)
    return sure.int().argmax(1)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@torch.no_grad()
def _seen(net: EarlyExit, loader: Iterable[Any], task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each sample and exit, the confidence and whether it is right; and what each exit takes."""
    view = Frozen(net).net
    if not isinstance(view, EarlyExit):
        raise TypeError(f"expected a network with exits, limbeck.EarlyExit, got {type(view).__name__}")
    confidence, right, price = [], [], None
    for batch in batches(loader, net):
        inputs, target = task.inputs(batch), task.target(batch)
        price = _prices(view, inputs[:1]) if price is None else price
        said = torch.stack(view.all_exits(inputs), 1)
        check_classes(said[:, -1], target)
        known = target != UNLABELLED
        confidence.append(said.softmax(-1).amax(-1)[known])
        right.append((said.argmax(-1) == target[:, None])[known])
    seen = [_of_all(torch.cat(rows)).cpu() if rows else torch.empty(0) for rows in (confidence, right)]
    if price is None or not len(seen[1]):
        raise ValueError("nothing was measured: the loader gave no labelled sample")
    return seen[0], seen[1], price


def _of_all(rows: Tensor) -> Tensor:
    """Return the rows of all processes, which need not have equally many."""
    _, world = place()
    return torch.cat(gather_all_tensors(rows)) if world > 1 else rows


def _prices(net: EarlyExit, sample: Tensor) -> Tensor:
    """Return the multiply-accumulates of a sample that leaves at each exit, those that it passed included."""
    prices, passed = [], 0
    heads: Sequence[nn.Module] = [*net.exits, nn.Identity()]
    for section, leave in zip(net.sections, heads, strict=True):
        passed += macs_of(section, sample)
        sample = section(sample)
        passed += macs_of(leave, sample)
        prices.append(passed)
    return torch.tensor(prices)
