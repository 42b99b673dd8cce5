from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from limbeck.core.digits import digits
from limbeck.core.task import Score
from limbeck.measure import Cost, Judgement, Paired, Plan, decide, judge, summary
from limbeck.measure.evidence import MOST
from limbeck.report.notebook import markdown

if TYPE_CHECKING:
    from rich.table import Table

Role = Literal["teacher", "baseline", "distilled", "control"]

NARROW = 5
"""How many columns of a table a terminal of 80 has room for: all but what networks cost."""

UNSAID = Score("accuracy")
"""What judged where a file does not say: the files of limbeck before it knew other scores."""

Record = dict[str, Any]
"""A row's numbers by name."""


@dataclass(frozen=True)
class Candidate:
    """A network of a comparison, with what it costs and what it reached.

    Args:
        name: As the reader knows it.
        role: ``"teacher"``, ``"baseline"`` (the plain student), ``"distilled"`` or ``"control"``.
        cost: What it costs.
        values: Its score on the test data, one a seed.
        paired: Its difference to its baseline over the same seeds; None for the plain student and the teacher.
        score: What it is judged by, the same for all networks of a comparison.
        against: Which candidate is its baseline, by name; empty for the plain student.
        plan: How many seeds there are and what is to be told, the same for all networks of a comparison.
    """

    name: str
    role: Role
    cost: Cost
    values: tuple[float, ...]
    paired: Paired | None = None
    score: Score = UNSAID
    against: str = ""
    plan: Plan = Plan()


def judgements(candidates: Sequence[Candidate]) -> list[Judgement | None]:
    """Judge all candidates at once; None for those that are compared with nothing."""
    compared, plan, best = [one for one in candidates if one.paired], candidates[0].plan, candidates[0].score.best
    if plan.most is None:
        found = judge([one.paired for one in compared if one.paired], best, plan)
    else:
        reached = {one.name: one.values for one in candidates} | {"": baseline(candidates)}
        found = decide([one.values for one in compared], [reached[one.against] for one in compared], best, plan)
    judged = iter(found)
    return [next(judged) if candidate.paired else None for candidate in candidates]


def baseline(candidates: Sequence[Candidate]) -> tuple[float, ...]:
    """Return what the plain student reached; nothing where there is none."""
    return next((one.values for one in candidates if one.role == "baseline"), ())


def as_judged(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates with the differences that they were judged by: those of the seeds when a row was told."""
    return tuple(
        replace(candidate, paired=judgement.pair) if judgement else candidate
        for candidate, judgement in zip(candidates, judgements(candidates), strict=True)
    )


def header(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Return the names of a comparison's columns."""
    score = candidates[0].score
    reached = score.name if score.unit == "%" else score.label
    versus = "vs baseline" if any(candidate.against for candidate in candidates) else "vs plain student"
    return ("network", "verdict", versus, reached, "p", "parameters", "MACs", "latency")


def legend(candidates: Sequence[Candidate]) -> str:
    """Say what the columns of a comparison mean."""
    score = candidates[0].score
    unit, points = ("percent", ", in percentage points") if score.unit == "%" else (score.unit, "")
    measured = f"{score.name} in {unit}" if unit else score.name
    less = "" if score.best == "highest" else ", less is better"
    named = ", or to whom a row names," if any(candidate.against for candidate in candidates) else ""
    return (
        f"Test {measured}, mean ± standard deviation over seeds{less}. Difference to the plain student{named} over the "
        f"same seeds{points}, with the 95 % t interval of each on its own; it covers weights and order of the data, "
        f"not the choice of test samples. {_rule(candidates[0].plan, score)} MACs (multiply-accumulates) and latency are "
        "those of one sample, latency on one CPU thread."
    )


def _rule(plan: Plan, score: Score) -> str:
    """Say how the verdicts are made."""
    looks = "" if plan.most is None else " and for looks after each seed"
    rule = (
        f"p: paired t-test, corrected after Holm for all rows at once{looks}; below 0.05 a row helps or hurts, so an "
        "interval without 0 need not be enough."
    )
    if plan.smallest is not None:
        smallest = unsigned(score.difference(plan.smallest))
        rule += (
            f" No difference > {smallest}: two one-sided t-tests, corrected likewise, show that the true difference is "
            "smaller than that."
        )
    if plan.most is None:
        return (
            f"{rule} +n seeds: so many more would tell with 80 % probability, if the true difference is the one seen; who "
            "adds them and looks again is wrong in one table of ten, not of twenty."
        )
    return (
        f"{rule} Seeds were added to rows that were not told, from {plan.seeds} to at most {plan.most}; beside a verdict "
        "stands how many it took. At most one table in twenty has a false verdict, all looks counted; a "
        "difference that was told early is on average a little smaller than it looks."
    )


def console_table(candidates: Sequence[Candidate], title: str = "") -> Table:
    """Return the comparison as a table for `rich.print`; `limbeck.report.comparison.findings` says what it shows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for index, heading in enumerate(header(candidates)[:NARROW]):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index > 2, overflow="fold")
    for cells in rows(candidates):
        table.add_row(*map(Text, cells[:NARROW]))  # Text: a name in [brackets] is no markup
    return table


def markdown_table(candidates: Sequence[Candidate], sentences: Sequence[str] = ()) -> str:
    """Return the comparison as a Markdown table with its legend, after what is to be said before it."""
    said = "".join(f"{sentence}\n\n" for sentence in sentences)
    return f"{said}{markdown(header(candidates), rows(candidates))}\n{legend(candidates)}\n"


def latex_table(candidates: Sequence[Candidate], doubts: Sequence[str] = ()) -> str:
    """Return the comparison as a LaTeX table, after what makes it worth nothing; it needs the package booktabs."""
    names = header(candidates)
    head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in (names, *rows(candidates))]
    columns = "ll" + "r" * (len(names) - 2)
    lines = [
        *(r"\noindent " + _latex(doubt) + r"\par" for doubt in doubts),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*lines, r"% \caption{" + _latex(legend(candidates)) + "}"]) + "\n"


def csv_table(candidates: Sequence[Candidate]) -> str:
    """Return the comparison's numbers, in full, as CSV: of percentages shares of 1, empty where there is none."""
    lines = records(candidates)
    text = io.StringIO(newline="")
    left_out = {"values"} if any(candidate.against for candidate in candidates) else {"values", "against"}
    table = csv.DictWriter(text, [name for name in lines[0] if name not in left_out], extrasaction="ignore")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def records(candidates: Sequence[Candidate]) -> list[Record]:
    """Return the numbers of each candidate by name, in full: of percentages shares of 1, None where there is none."""
    return [
        _record(candidate, judgement) for candidate, judgement in zip(candidates, judgements(candidates), strict=True)
    ]


def rows(candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """Return the cells of each candidate, in the order of `header`."""
    return [
        _cells(candidate, judgement) for candidate, judgement in zip(candidates, judgements(candidates), strict=True)
    ]


def _record(candidate: Candidate, judgement: Judgement | None) -> Record:
    of = summary(candidate.values) if candidate.values else None
    pair = judgement and judgement.pair
    return {
        "name": candidate.name,
        "role": candidate.role,
        "parameters": candidate.cost.parameters,
        "macs": candidate.cost.macs,
        "latency_ms": candidate.cost.latency_ms,
        "n": len(candidate.values),
        "mean": of and of.mean,
        "sd": of and _known(of.sd),
        "pairs": pair and pair.n,
        "difference": pair and pair.difference,
        "difference_sd": pair and _known(pair.sd),
        "low": pair and _known(pair.low),
        "high": pair and _known(pair.high),
        "p": pair and pair.p,
        "p_holm": judgement and judgement.p,
        "p_smaller": judgement and judgement.p_smaller if candidate.plan.smallest is not None else None,
        "verdict": judgement and judgement.verdict,
        "more_seeds": judgement and judgement.more,
        "against": candidate.against or None,
        "values": list(candidate.values),
    }


def _cells(candidate: Candidate, judgement: Judgement | None) -> tuple[str, ...]:
    price = candidate.cost
    costs = quantity(price.parameters), quantity(price.macs), milliseconds(price.latency_ms)
    if judgement is None:
        return (candidate.name, "–", "–", mean_sd(candidate), "–", *costs)
    difference, p = _evidence(candidate, judgement)
    return (candidate.name, verdict(judgement, candidate.score), difference, mean_sd(candidate), p, *costs)


def verdict(judgement: Judgement, score: Score) -> str:
    """Return the verdict as a table has it, with the seeds that it took or would take."""
    what = str(judgement.verdict)
    if judgement.verdict == "no difference" and judgement.smallest is not None:
        what = f"no difference > {unsigned(score.difference(judgement.smallest))}"
    if judgement.decided:
        return f"{what} ({judgement.pair.n} seeds)"
    return what + (f" (+{judgement.more} {'seed' if judgement.more == 1 else 'seeds'})" if judgement.more else "")


def verdict_in_words(judgement: Judgement, score: Score) -> str:
    """Return the verdict as a sentence has it, with the seeds that it would take."""
    if judgement.verdict == "cannot tell":
        return _unable(judgement)
    if judgement.smallest is None or not judgement.is_small:
        return judgement.verdict
    smallest = unsigned(amount(score, judgement.smallest))
    small = (
        "no difference larger than" if judgement.verdict == "no difference" else f"{judgement.verdict}, by less than"
    )
    return f"{small} {smallest}"


def _unable(judgement: Judgement) -> str:
    n = judgement.pair.n
    unable = f"cannot tell with {n} {'seed' if n == 1 else 'seeds'}"
    if judgement.more is not None:
        return f"{unable}; {judgement.more} more might"
    return unable if judgement.decided or math.isnan(judgement.pair.low) else f"{unable}; nor would {MOST:,}"


def unsigned(difference: str) -> str:
    """Return a difference that only has a size: "0.30 points"."""
    return difference.lstrip("+")


def _evidence(candidate: Candidate, judgement: Judgement) -> tuple[str, str]:
    """The difference with its interval, and p; neither interval nor p where there is no spread to make them of."""
    pair, say = judgement.pair, candidate.score.difference
    against = f" against {candidate.against}" if candidate.against else ""
    if math.isnan(pair.low):
        return f"{say(pair.difference)} (no interval){against}", "–"
    interval = f"{say(pair.difference)} [{say(pair.low)}, {say(pair.high)}]{against}"
    return interval, "<0.001" if judgement.p < 0.001 else f"{judgement.p:.3f}"


def _known(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value


def _latex(text: str) -> str:
    escaped = "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)
    return escaped.replace("−", "$-$").replace("–", "--").replace("<", "$<$")


def quantity(number: float) -> str:
    """Return a count in three digits: 78.0 k, 1.24 M, 4.09 G; beyond 999 T as a power of ten."""
    if number >= 999.5e12:
        return digits(number)
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # 999 950 is 1.00 M and not 1000 k
            return _three_digits(number / size) + unit
    return f"{number:.0f}"


def size(count: int) -> str:
    """Return a number of bytes in three digits: 640 B, 9.64 kB, 44.8 MB."""
    return f"{quantity(count)}B" if count >= 1000 else f"{count} B"


def duration(seconds: float) -> str:
    """Return a length of time in its largest unit of which there are two: 45 s, 3.3 min, 11.0 h."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def milliseconds(value: float) -> str:
    """Return a time in three digits: 0.43 ms, 12.5 ms."""
    return _three_digits(value) + " ms"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def mean_sd(candidate: Candidate) -> str:
    """Return a score over seeds without its unit: "91.20 ± 0.35", of a single seed "91.20"; "–" where there is none."""
    if not candidate.values:
        return "–"
    of, number = summary(candidate.values), candidate.score.number
    return f"{number(of.mean)} ± {number(of.sd)}" if of.n > 1 else number(of.mean)


def amount(score: Score, difference: float) -> str:
    """Return a difference with what it is counted in: "+1.20 points", "−0.12 px", "−0.12 RMSE"."""
    return f"{score.difference(difference)} {score.points or score.name}"


def told(score: Score, value: float) -> str:
    """Return a value with its name and unit, "mAP 91.20 %", "RMSE 0.1200"; of an accuracy, "91.20 %" says it all."""
    return score.show(value) if score == UNSAID else f"{score.name} {score.show(value)}"


def at_start(name: str) -> str:
    """Return a score's name as a sentence begins with it: "Accuracy", "mAP"."""
    return name.capitalize() if name.islower() else name


def percent(value: float) -> str:
    """Return a share of 1 in percent, without the sign: 0.912 is 91.20."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, signed: "+1.20", "−0.35"; a zero has no sign."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")
