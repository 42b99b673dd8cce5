from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from limbeck.measure.looks import limits

Verdict = Literal["helps", "hurts", "no difference", "cannot tell"]
Best = Literal["highest", "lowest"]

LEVEL = 0.05
"""In how many tables one verdict or more may be wrong: that a row helps or hurts; and likewise, that it differs by less."""
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
class Plan:
    """How many seeds there are, and what is to be told of them.

    Args:
        seeds: How many; where rows are decided one by one, how many before the first look, at least 2 then.
        most: How many undecided rows may have, more than ``seeds``; None where the number is fixed.
        smallest: The smallest difference that matters, above 0, in the metric's own unit (an accuracy's is the share of
            1): rows are told, too, that differ by less. None where that is not asked.
        among: How many rows are judged at once; by default as many as there are. It stays where one diverges.

    Raises:
        ValueError: One of these is out of its range.
    """

    seeds: int = 3
    most: int | None = None
    smallest: float | None = None
    among: int | None = None

    def __post_init__(self) -> None:
        if self.most is not None and not 2 <= self.seeds < self.most:
            raise ValueError(
                "to decide row by row, expected at least 2 seeds before the first look and more at the last, got "
                f"seeds={self.seeds}, most={self.most}"
            )
        if self.smallest is not None and not 0 < self.smallest < math.inf:
            raise ValueError(f"smallest must be a difference above 0, got {self.smallest}")


@dataclass(frozen=True)
class Judgement:
    """What one comparison of several allows to say.

    Args:
        pair: The comparison.
        p: Its p-value, corrected for the number of comparisons, and of looks if there are several; below 0.05 the row
            helps or hurts.
        comparisons: Among how many it was made.
        best: Whether more or less of the metric is better.
        smallest: The smallest difference that matters, if one was named.
        p_smaller: The p-value of the two one-sided tests that the difference is smaller than that, corrected likewise.
        decided: Whether seeds were added until it told.
    """

    pair: Paired
    p: float
    comparisons: int = 1
    best: Best = "highest"
    smallest: float | None = None
    p_smaller: float = 1.0
    decided: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it is shown that the difference is smaller than what matters, whatever else is shown of it."""
        return self.p_smaller < LEVEL

    @property
    def verdict(self) -> Verdict:
        """What is shown at the 5 % level: "helps", "hurts", "no difference" that matters, or nothing."""
        if self.p < LEVEL:
            return "helps" if (self.pair.difference > 0) == (self.best == "highest") else "hurts"
        return "no difference" if self.is_small else "cannot tell"

    @cached_property
    def more(self) -> int | None:
        """How many more seeds would tell, if the true difference were the one seen; see `seeds_needed`.

        0 where these tell already; None where it cannot be estimated, more than 1000 seeds would be needed, or the seeds
        were added until it told or the most was reached.
        """
        if self.verdict != "cannot tell":
            return 0
        needed = None if self.decided else seeds_needed(self.pair, LEVEL / self.comparisons)
        return None if needed is None else needed - self.pair.n


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


def paired_over_shared(treated: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two trainings over the seeds that both have: where seeds are added row by row, one may have more."""
    n = min(len(treated), len(baseline))
    return paired(treated[:n], baseline[:n])


def judge(pairs: Sequence[Paired], best: Best = "highest", plan: Plan = Plan()) -> list[Judgement]:
    """Judge comparisons that are made at once, after a number of seeds that was fixed before.

    Each p-value is corrected after Holm, so that one in twenty such *tables*, and not one in twenty of their rows, claims a
    difference where there is none. However many there are, and however they depend on each other (all on the same baseline,
    say). Where the plan names the smallest difference that matters, two one-sided tests (Schuirmann, "A comparison of the
    two one-sided tests procedure and the power approach", J. Pharmacokinetics and Biopharmaceutics 15, 1987), corrected
    likewise, tell which rows differ by less; one table in twenty says so of a row that differs by as much.

    Args:
        pairs: The comparisons.
        best: Whether more or less of their metric is better.
        plan: What is to be told; its seeds are those of the comparisons.
    """
    among = plan.among or len(pairs)
    return _judged(pairs, among, among, best, replace(plan, most=None))


def decide(
    treated: Sequence[Sequence[float]],
    baselines: Sequence[Sequence[float]],
    best: Best = "highest",
    plan: Plan = Plan(3, 12),
) -> list[Judgement]:
    """Judge comparisons whose seeds are added where they are needed: a row that is told keeps its seeds, and its verdict.

    After ``plan.seeds`` seeds, and after each one more, the rows that are not told are looked at, until they are or have
    ``plan.most``. The looks share the level of 5 % (`limbeck.measure.looks.limits`), so that peeking is part of the
    method; Holm's correction among the rows holds for such looks as it does for one (Ye, Li, Liu & Yao, "A group sequential
    Holm procedure with multiple primary endpoints", Statistics in Medicine 32, 2013). Of what was seen, all looks are made
    anew here: the same values give the same verdicts, whenever and by whomever they are asked for.

    Args:
        treated: The metric of each row by seed, from 0 on.
        baselines: Of what each row is compared with, over at least as many seeds.
        best: Whether more or less of it is better.
        plan: When to look, and what is to be told.

    Returns:
        Each row's judgement: that at which it was told, or that at the last look that all undecided rows have seeds for; at
        the first look's number of seeds at least.

    Raises:
        ValueError: The plan has no ``most``, or a row has fewer seeds than the first look needs.
    """
    if plan.most is None:
        raise ValueError("expected a plan with most=, the most seeds that an undecided row may have")
    rows, among = list(zip(treated, baselines, strict=True)), plan.among or len(treated)
    if short := [index for index, (values, _) in enumerate(rows) if len(values) < plan.seeds]:
        raise ValueError(f"the first look is after {plan.seeds} seeds, row {short[0]} has {len(rows[short[0]][0])}")
    judged: dict[int, Judgement] = {}
    for n in range(plan.seeds, plan.most + 1):
        undecided = {index: row for index, row in enumerate(rows) if not _told(judged.get(index))}
        if any(len(values) < n for values, _ in undecided.values()):
            break
        told = [judgement.verdict for judgement in judged.values()]
        differ, smaller = among - told.count("helps") - told.count("hurts"), among - told.count("no difference")
        pairs = [paired(values[:n], base[:n]) for values, base in undecided.values()]
        judged |= dict(zip(undecided, _judged(pairs, differ, smaller, best, plan), strict=True))
    return [judged[index] for index in range(len(rows))]


def _told(judgement: Judgement | None) -> bool:
    return judgement is not None and judgement.verdict != "cannot tell"


Limit = Callable[[int], float]
"""The largest p-value that tells, where so many hypotheses are left."""


def _limits_of(plan: Plan, n: int) -> tuple[Limit, Limit]:
    """Return the limits after n seeds: of the test of no difference, and of those in one direction."""
    if plan.most is None:
        return (lambda left: LEVEL / left,) * 2
    first, most = plan.seeds, plan.most
    return (
        lambda left: limits(LEVEL / left, first, most)[n - first],
        lambda left: limits(LEVEL / left, first, most, sides=1)[n - first],
    )


def _judged(pairs: Sequence[Paired], differ: int, smaller: int, best: Best, plan: Plan) -> list[Judgement]:
    """Judge comparisons at one look: ``differ`` and ``smaller`` are the hypotheses of each kind not rejected so far."""
    if not pairs:
        return []
    two_sided, one_sided = _limits_of(plan, pairs[0].n)
    p, p_smaller = _corrected([pair.p for pair in pairs], differ, two_sided), [1.0] * len(pairs)
    if plan.smallest is not None:
        p_smaller = _corrected([_is_smaller(pair, plan.smallest) for pair in pairs], smaller, one_sided)
    among, decided = plan.among or differ, plan.most is not None
    return [
        Judgement(pair, own, among, best, plan.smallest, own_smaller, decided)
        for pair, own, own_smaller in zip(pairs, p, p_smaller, strict=True)
    ]


def _is_smaller(pair: Paired, smallest: float) -> float:
    """Return the p-value of the two one-sided tests that the true difference lies within ± ``smallest``."""
    if math.isnan(pair.low):
        return 1.0
    from scipy import special

    away = (smallest - abs(pair.difference)) / pair.sd * math.sqrt(pair.n)
    return float(special.stdtr(pair.n - 1, -away))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number m: the k-th smallest times m − k + 1, at most 1, and never below a smaller one's.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.02, 0.01, 0.5])
        [0.04, 0.03, 0.5]
    """
    return _stepped(p, len(p), lambda left: left)


def _corrected(p: Sequence[float], left: int, limit: Callable[[int], float]) -> list[float]:
    """Correct p-values after Holm for limits other than level / number left: 0.05 is where one begins to tell."""
    return _stepped(p, left, lambda remaining: LEVEL / limit(remaining))


def _stepped(p: Sequence[float], left: int, times: Callable[[int], float]) -> list[float]:
    """Multiply p-values from the smallest on by what is due when so many hypotheses are left."""
    corrected, before = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        before = max(before, min(1.0, times(left - rank) * p[index]))
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
