"""What an early exit saves, and what it costs: accuracy over compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.evaluate import batches
from limbeck.frozen import Frozen
from limbeck.measure.cost import macs_of
from limbeck.nets.exits import EarlyExit
from limbeck.task import UNLABELLED, Task, classification

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


def exit_curve(net: EarlyExit, loader: Iterable[Any], task: Task = classification) -> list[Operating]:
    """Return accuracy and compute over the thresholds that matter, from the cheapest point to the dearest.

    All exits have the same threshold. The data is passed once, through the whole network; the points lie a hundredth of
    the exits' confidences apart, from 0 (every sample takes the first exit) to 1 (every one the last).

    Args:
        net: The network; it is left as it was.
        loader: Held-out batches ``(inputs, targets)`` with a label at least.
        task: How batches are fed.

    Raises:
        ValueError: No labelled sample.
    """
    confidence, right, price = _seen(net, loader, task)
    steps = torch.linspace(0, 1, THRESHOLDS, device=confidence.device)
    inner = confidence[:, :-1].flatten().quantile(steps) if confidence.shape[1] > 1 else steps
    points = {}
    for threshold in [0.0, *sorted(set(inner.tolist())), 1.0]:
        sure = confidence > threshold
        sure[:, -1] = True
        taken = sure.int().argmax(1)
        point = Operating(threshold, float(right.gather(1, taken[:, None]).float().mean()), float(price[taken].mean()))
        points[point.macs, point.accuracy] = point  # the last of equal ones: it is as far from the next as can be
    return sorted(points.values(), key=lambda point: point.macs)


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


@torch.no_grad()
def _seen(net: EarlyExit, loader: Iterable[Any], task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each sample and exit, the confidence and whether it is right; and what each exit takes."""
    view = Frozen(net).net
    assert isinstance(view, EarlyExit)
    confidence, right, price = [], [], None
    for batch in batches(loader, net):
        inputs, target = task.inputs(batch), task.target(batch)
        price = _prices(view, inputs[:1]) if price is None else price
        said = torch.stack(view.all_exits(inputs), 1)
        known = target != UNLABELLED
        confidence.append(said.softmax(-1).amax(-1)[known])
        right.append((said.argmax(-1) == target[:, None])[known])
    if price is None or not sum(map(len, right)):
        raise ValueError("nothing was measured: the loader gave no labelled sample")
    return torch.cat(confidence), torch.cat(right), price.to(confidence[0].device)


def _prices(net: EarlyExit, sample: Tensor) -> Tensor:
    """Return the multiply-accumulates of a sample that leaves at each exit, those that it passed included."""
    prices, passed = [], 0
    heads: Sequence[nn.Module] = [*net.exits, nn.Identity()]
    for section, leave in zip(net.sections, heads, strict=True):
        passed += macs_of(section, sample)
        sample = section(sample)
        passed += macs_of(leave, sample)
        prices.append(passed)
    return torch.tensor(prices, dtype=torch.float32)
