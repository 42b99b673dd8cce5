from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Verdict = Literal["helps", "hurts", "cannot tell"]
Best = Literal["highest", "lowest"]

LEVEL = 0.05
"""How often a verdict other than "cannot tell" may be wrong where there is no difference."""
POWER = 0.8
"""How surely the seeds that `Judgement.more` asks for would tell."""
MOST = 1000
"""Seeds beyond which nobody counts."""


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
    """What ``n`` differences, seed by seed, show.

    Args:
        difference: Their mean.
        sd: Their standard deviation (n − 1); nan for a single seed.
        low: Of the 95 % interval of the mean; nan where there is none: a single seed, or differences that are all equal.
        high: Likewise.
        n: How many.
        p: Of the two-sided paired t-test, before any correction; 1 where there is no interval.
    """

    difference: float
    sd: float
    low: float
    high: float
    n: int
    p: float


@dataclass(frozen=True)
class Judgement:
    """What one comparison of several allows to say.

    Args:
        pair: The comparison.
        p: Its p-value after Holm's correction.
        comparisons: Among how many it was made.
        best: Whether more or less of the metric is better.
    """

    pair: Paired
    p: float
    comparisons: int = 1
    best: Best = "highest"

    @property
    def verdict(self) -> Verdict:
        """What is shown at the 5 % level: "helps", "hurts", or nothing."""
        if self.p >= LEVEL:
            return "cannot tell"
        return "helps" if (self.pair.difference > 0) == (self.best == "highest") else "hurts"

    @cached_property
    def more(self) -> int | None:
        """How many more seeds would tell, if the true difference were the one seen; see `seeds_needed`.

        0 where these tell already; None where it cannot be estimated, or more than 1000 seeds would be needed.
        """
        if self.verdict != "cannot tell":
            return 0
        needed = seeds_needed(self.pair, LEVEL / self.comparisons)
        return None if needed is None else needed - self.pair.n

    @property
    def words(self) -> str:
        """The verdict in words, with the seeds that it would take."""
        if self.verdict != "cannot tell":
            return self.verdict
        unable = f"cannot tell with {self.pair.n} {'seed' if self.pair.n == 1 else 'seeds'}"
        if self.more is not None:
            return f"{unable}; {self.more} more might"
        return unable if math.isnan(self.pair.low) else f"{unable}; nor would {MOST:,}"


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
    from scipy import special

    sd = statistics.stdev(values)
    half = float(special.stdtrit(n - 1, 1 - LEVEL / 2)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


def paired(treated: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two trainings seed by seed: the mean of treated − baseline, with its t interval and t-test.

    Pairing removes what both owe to the seed (initial weights, order of the data), which is often more than the
    effect itself. A share of right answers is a count: a few seeds may give the very same difference, which says that the
    test set is too coarse to see how much they vary, and not that they do not. Then there is no interval.

    Args:
        treated: A metric over seeds.
        baseline: The same metric over the same seeds, in the same order.
    """
    if len(treated) != len(baseline):
        raise ValueError(f"expected the same seeds in both, got {len(treated)} treated and {len(baseline)} baseline")
    of = summary([after - before for after, before in zip(treated, baseline, strict=True)])
    largest = max(map(abs, [*treated, *baseline]))
    if of.n == 1 or of.sd <= 1e-6 * largest:  # in float32, equal differences of counts differ in their last bits
        return Paired(of.mean, of.sd, math.nan, math.nan, of.n, 1.0)
    from scipy import special

    p = 2 * float(special.stdtr(of.n - 1, -abs(of.mean) / of.sd * math.sqrt(of.n)))
    return Paired(of.mean, of.sd, of.low, of.high, of.n, p)


def judge(pairs: Sequence[Paired], best: Best = "highest") -> list[Judgement]:
    """Judge comparisons that are made at once: each p-value corrected after Holm, so that one in twenty such *tables*, and
    not one in twenty of their rows, claims a difference where there is none. However many there are, and however
    they depend on each other (all on the same baseline, say).

    Args:
        pairs: The comparisons.
        best: Whether more or less of their metric is better.
    """
    corrected = holm([pair.p for pair in pairs])
    return [Judgement(pair, p, len(pairs), best) for pair, p in zip(pairs, corrected, strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number m: the k-th smallest times m − k + 1, at most 1, and never below a smaller one's.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.02, 0.01, 0.5])
        [0.04, 0.03, 0.5]
    """
    corrected, before = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        before = max(before, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = before
    return corrected


def seeds_needed(pair: Paired, level: float = LEVEL, power: float = POWER) -> int | None:
    """Estimate how many seeds, in all, would show a difference like this one.

    The smallest N > n for which the t-test rejects with probability ``power`` if mean d and standard deviation s of the
    paired differences are what was seen: P(|T| > t_{1−level/2, N−1}) ≥ power, with T of the noncentral t distribution
    with N − 1 degrees of freedom and noncentrality d √N / s. With m comparisons at once, ``level`` is 5 %/m.

    It is a plan, not a promise: d and s are estimates, bad ones from few seeds. And looks cost: who adds these seeds after
    seeing a table, and then looks again, is wrong about twice as often as the 5 % (measured in our tests). Decide on the
    seeds beforehand where it matters.

    Args:
        pair: The differences so far.
        level: Of the test.
        power: How surely it shall reject.

    Returns:
        N, or None where there is no spread to estimate from, or N would be more than 1000.
    """
    if math.isnan(pair.low) or pair.difference == 0:
        return None
    from scipy import stats

    def rejects(n: int) -> float:
        critical = stats.t.ppf(1 - level / 2, n - 1)
        shift = abs(pair.difference) / pair.sd * math.sqrt(n)
        return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))

    plans = range(pair.n + 1, MOST + 1)
    enough = bisect_left(plans, power, key=rejects)
    return plans[enough] if enough < len(plans) else None
