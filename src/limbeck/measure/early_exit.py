"""What an early exit saves, and what it costs: accuracy over compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
LOOKED_AT = 3_000_000
"""Samples times shared thresholds that a search begins with, at most; ours, for some seconds."""
TOGETHER = 1_000_000
"""Samples times seeds that are looked at together, for the memory."""
AROUND = 50
"""Points on each side of the best one from which a search goes on."""


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
class Calibrated:
    """Where a network with exits was set to run.

    Args:
        thresholds: One for each exit.
        accuracy: Top-1, in [0, 1].
        macs: Multiply-accumulates of a sample, on average.
    """

    thresholds: tuple[float, ...]
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
) -> Calibrated:
    """Set a network's thresholds, one for each exit, to a compute budget or to an accuracy.

    The thresholds lie between the confidences that occur. The search begins with one threshold for all exits, at every
    confidence, and goes on from the best points by changing one exit's threshold at a time, to every confidence. So the
    point is at least as good as the best with one threshold for all exits, and no exit's threshold alone can be changed
    for a better one. With one or two exits and up to 1,000 samples it is the best there is.

    What is chosen on these samples flatters itself on them: measure it on others.

    Args:
        net: The network; its thresholds are set.
        loader: Held-out batches, which the final test does not contain.
        macs: The most multiply-accumulates that a sample may take on average: the most accurate point within it.
        accuracy: The least accuracy, in [0, 1]: the cheapest point that reaches it.
        task: How batches are fed.

    Returns:
        The point that was chosen, as measured on the loader.

    Raises:
        ValueError: Not exactly one of the two was given, or no thresholds reach it; no labelled sample, targets that are
            not one class a sample, or answers that are not finite.
    """
    if (macs is None) == (accuracy is None):
        raise ValueError("expected either a budget, macs=, or an accuracy to keep, accuracy=")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is a share of the samples and must lie in [0, 1], got {accuracy}")
    confidence, right, price = _seen(net, loader, task)
    if macs is not None and not macs >= float(price[0]):
        raise ValueError(f"macs must be at least {int(price[0]):,}, what the first exit takes, got {macs:,.0f}")
    chosen = _search(_Seen(confidence[:, :-1], right.long(), price), _Goal(len(right), macs, accuracy))
    if accuracy is not None and chosen.accuracy < accuracy:
        raise ValueError(f"no thresholds reach an accuracy of {accuracy}: the best is {chosen.accuracy:.4f}")
    net.set_thresholds(chosen.thresholds)
    return chosen


# The search ----------------------------------------------------------------------------------------------------------


class _Points(NamedTuple):
    """Points where a network may run: thresholds (P, E), and over all samples what is right (P) and what it takes (P)."""

    thresholds: Tensor
    right: Tensor
    macs: Tensor

    def take(self, which: Tensor) -> _Points:
        return _Points(*(values[which] for values in self))

    def with_better(self, others: _Points) -> _Points:
        """Return, of a front and other points, those that no other beats, the cheapest first."""
        if len(self.right):
            below = torch.searchsorted(self.macs, others.macs, right=True) - 1  # few are left to be sorted
            others = others.take(others.right > self.right[below.clamp(min=0)].where(below >= 0, -1))
        both = _Points(*map(torch.cat, zip(self, others, strict=True)))
        both = both.take(both.right.argsort(descending=True, stable=True))
        both = both.take(both.macs.argsort(stable=True))
        best_before = F.pad(both.right.cummax(0).values[:-1], (1, 0), value=-1)
        return both.take(both.right > best_before)


class _Goal(NamedTuple):
    """What is looked for, over so many samples: the most within a budget, or else the least that is enough."""

    samples: int
    macs: float | None
    accuracy: float | None

    def best(self, front: _Points) -> int:
        """Return the place of the point that is to be chosen, or that comes nearest."""
        if self.macs is not None:
            return int((front.macs.double() / self.samples <= self.macs).sum()) - 1
        least = float(self.accuracy or 0)
        return min(int((front.right.double() / self.samples < least).sum()), len(front.right) - 1)


def _search(seen: _Seen, goal: _Goal) -> Calibrated:
    """Change one exit's threshold at a time, from the points that are nearest to the goal, until none gets better."""
    front, seeds = seen.front(), seen.beginnings()
    begun: set[tuple[float, ...]] = set()
    while True:
        for part in torch.split(seeds, max(1, TOGETHER // seen.samples)):
            for exit in range(seen.exits):
                front = front.with_better(seen.moves(part, exit))
        best = goal.best(front)
        nearest = front.thresholds[max(0, best - AROUND) : best + AROUND + 1]
        fresh = [row for row in map(tuple, nearest.tolist()) if row not in begun]
        if not fresh:
            counts = (float(values[best]) / goal.samples for values in (front.right, front.macs))
            return Calibrated(tuple(front.thresholds[best].tolist()), *counts)
        begun.update(fresh)
        seeds = torch.tensor(fresh, dtype=seeds.dtype)


class _Seen:
    """What the exits say of all samples; what becomes of them as a threshold rises comes by cumulative sums.

    Args:
        confidence: Of every exit but the deepest, (N, E).
        right: Whether each of all exits is right, (N, E + 1), as 0 and 1.
        price: What each exit takes, (E + 1).
    """

    def __init__(self, confidence: Tensor, right: Tensor, price: Tensor) -> None:
        self.confidence, self.right, self.price = confidence, right, price
        self.samples, self.exits = confidence.shape

    def front(self) -> _Points:
        """Return the best points of all thresholds that the exits may share."""
        passed, order = self.confidence.cummax(1).values.flatten().sort(stable=True)  # where a sample goes on
        gains = self.right.diff(dim=1), self.price.diff().expand(self.samples, -1)
        thresholds, ends = _between(passed)
        firsts = self.right[:, 0].sum(), self.price[0] * self.samples
        sums = (first + _up_to(gain.flatten()[order])[ends] for first, gain in zip(firsts, gains, strict=True))
        points = _Points(thresholds[:, None].expand(-1, self.exits), *sums)
        return points.take(torch.zeros(0, dtype=torch.int64)).with_better(points)

    def beginnings(self) -> Tensor:
        """Return thresholds that the exits share, (B, E): all, or some at even distances where there are many."""
        thresholds, _ = _between(self.confidence.flatten().sort().values)
        count = min(len(thresholds), max(THRESHOLDS, LOOKED_AT // self.samples))
        places = torch.linspace(0, len(thresholds) - 1, count).round().long()
        return thresholds[places, None].repeat(1, self.exits)

    def moves(self, seeds: Tensor, exit: int) -> _Points:
        """Return all points that differ from one of the seeds (B, E) in one exit's threshold."""
        confidence, order = self.confidence[:, exit].sort(stable=True)
        thresholds, ends = _between(confidence)
        sure = F.pad(self.confidence > seeds[:, None], (0, 1), value=True)  # (B, N, E + 1)
        sure[..., exit] = True
        leaving = sure.int().argmax(-1)
        sure[..., exit] = False
        passing = sure.int().argmax(-1)  # where they leave that pass this exit; the same where they left before
        sums = []
        for value in (self.right, self.price.expand_as(self.right)):
            here, there = (value.gather(1, taken.T).T for taken in (leaving, passing))
            sums.append((here.sum(1, keepdim=True) + _up_to((there - here)[:, order])[:, ends]).flatten())
        moved = seeds[:, None].repeat(1, len(thresholds), 1)
        moved[..., exit] = thresholds
        return _Points(moved.flatten(0, 1), *sums)


def _between(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return thresholds from 0 to 1, one between each two confidences, and how many confidences are at most each."""
    levels, counts = torch.unique_consecutive(ordered, return_counts=True)
    low, high = levels[:-1], levels[1:]
    middle = ((low.double() + high.double()) / 2).to(levels.dtype)
    inner = torch.where(middle < high, middle, low)  # of neighbours in this precision the lower
    ends = [levels.new_zeros(1), inner, levels.new_ones(1)]
    return torch.cat(ends), F.pad(counts.cumsum(0), (1, 0))


def _up_to(gains: Tensor) -> Tensor:
    """Return what the first 0, 1, ... of the gains come to, along the last axis."""
    return F.pad(gains.cumsum(-1), (1, 0))


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
        if not said.isfinite().all():
            raise ValueError(
                "the network's answers are not finite, so no exit can be sure: train it again, or look at its inputs"
            )
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
