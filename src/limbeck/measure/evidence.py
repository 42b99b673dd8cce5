from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["helped", "hurt", "no difference shown"]


@dataclass(frozen=True)
class Summary:
    """A metric over ``n`` seeds: mean, standard deviation and 95 % interval of the mean; nan where one seed cannot tell."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean of the ``n`` differences, seed by seed, and its 95 % interval; nan where one seed cannot tell."""

    difference: float
    low: float
    high: float
    n: int


def summary(values: Sequence[float]) -> Summary:
    """Summarise a metric over seeds: mean, standard deviation (n − 1) and the t interval mean ± t₀.₉₇₅ sd/√n.

    Example:
        >>> summary([0.8, 0.9]).mean
        0.85
    """
    if not values:
        raise ValueError("expected at least one value, got none")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Summary(mean, math.nan, math.nan, math.nan, 1)
    from scipy import stats

    sd = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


def paired(treated: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two trainings seed by seed: the mean of treated − baseline, with its t interval.

    Pairing removes what both owe to the seed (initial weights, order of the data), which is often more than the
    effect itself.

    Args:
        treated: A metric over seeds.
        baseline: The same metric over the same seeds, in the same order.
    """
    if len(treated) != len(baseline):
        raise ValueError(f"expected the same seeds in both, got {len(treated)} treated and {len(baseline)} baseline")
    of = summary([after - before for after, before in zip(treated, baseline, strict=True)])
    return Paired(of.mean, of.low, of.high, of.n)


def verdict(difference: Paired) -> Verdict:
    """Say what the interval allows: "helped" or "hurt" where it lies on one side of 0, and nothing of a single seed."""
    if difference.low > 0:
        return "helped"
    return "hurt" if difference.high < 0 else "no difference shown"
