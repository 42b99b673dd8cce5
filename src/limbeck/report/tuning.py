"""What a search found, and how much of it may be luck."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.core.files import Damaged, keep, read, write
from limbeck.core.task import Score
from limbeck.measure import judge, paired
from limbeck.report.comparison import Comparison, evidence, read_comparison
from limbeck.report.figures import Line, curves
from limbeck.report.notebook import Told
from limbeck.report.page import Plot, Section, render
from limbeck.report.page import Table as PageTable
from limbeck.report.table import Candidate, amount, header, legend, records, rows, told, unsigned, verdict_in_words
from limbeck.report.verdict import verdict_of_all

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["complete", "stopped", "diverged"]

FOUND, COMPARED = "tuning.json", "comparison"
"""What a search found, and the folder of the comparison after it, in the folder of the search."""
ANEW = "the same `limbeck tune` as before writes it anew, of the trials beside it"
LEVEL = 0.05
"""How surely trials must differ by more than their seeds do, before the best is called better."""


@dataclass(frozen=True)
class Trial:
    """One setting that a search tried.

    Args:
        options: The method's keyword arguments, those that all trials share too.
        state: ``"complete"``, ``"stopped"`` (early, as it was worse than the median of the others), or ``"diverged"``.
        values: The score on the validation data after the last epoch, one a seed that was trained to the end.
        epochs: How many were trained, of all seeds together.
    """

    options: Mapping[str, Any]
    state: State
    values: tuple[float, ...]
    epochs: int

    @property
    def score(self) -> float | None:
        """The mean over seeds; None where they were not all trained to the end."""
        return statistics.fmean(self.values) if self.state == "complete" else None


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Args:
        method: The method's name.
        searched: The names of the options that were searched.
        trials: In their order.
        importance: The share of the scores' differences that each option explains; empty where that cannot be told.
        samples: How many validation samples a score is counted on.
        comparison: The best options beside the defaults and the plain student, on the test data, with fresh seeds.
        fresh: The score of those trainings on the validation data, by their names in the comparison, one a seed.
        looks: After how many trials the test data was looked at.
    """

    method: str
    searched: tuple[str, ...]
    trials: tuple[Trial, ...]
    importance: Mapping[str, float]
    samples: int
    comparison: Comparison
    fresh: Mapping[str, tuple[float, ...]]
    looks: tuple[int, ...]

    @property
    def judged_by(self) -> Score:
        """What a trial's score is."""
        return self.comparison.candidates[0].score

    @property
    def best(self) -> Trial:
        """The trial of the best score; of equals the first."""
        return best_of(self.complete, self.judged_by)

    @property
    def options(self) -> Mapping[str, Any]:
        """The best trial's, for `limbeck.distill`."""
        return self.best.options

    @property
    def complete(self) -> list[Trial]:
        """The trials that have a score."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def __str__(self) -> str:
        """Return what `print` shows: whether tuning helped, the best options, and the table on the test data."""
        return self._told().text()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: likewise."""
        return self._told().html()

    def _told(self) -> Told:
        compared, best = self.comparison.candidates, words(self.options)
        said = [*tuning_opening(self), f"The best options: {best}."]
        return Told(f"Tuning {self.method}", said, header(compared), rows(compared))

    def seeds_sd(self) -> tuple[float, int]:
        """Return the standard deviation among trainings that differ in their seed alone, and its degrees of freedom."""
        groups = [group for group in (*(t.values for t in self.complete), *self.fresh.values()) if len(group) > 1]
        freedom = sum(len(group) - 1 for group in groups)
        squares = sum((len(group) - 1) * statistics.variance(group) for group in groups)
        return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)

    def chance(self) -> float:
        """Return the p-value of the trials' scores, if only seeds made them differ; nan where that cannot be told.

        An F-test of the variance among the scores of complete trials against that of seeds, divided by seeds a trial.
        """
        from scipy import stats

        sd, freedom = self.seeds_sd()
        scores = [statistics.fmean(trial.values) for trial in self.complete]
        if len(scores) < 2 or not sd > 0:
            return math.nan
        ratio = statistics.variance(scores) * len(self.best.values) / sd**2
        return float(stats.f.sf(ratio, len(scores) - 1, freedom))


def best_of(complete: Sequence[Trial], score: Score) -> Trial:
    """Return the best of trials that have a score; of equals the first."""
    return max(complete, key=lambda trial: score.gain(trial.score or 0.0, 0.0))


def tuning_findings(tuning: Tuning) -> list[str]:
    """Say whether tuning helped, what the search found and what the test shows, and where it may be luck."""
    return [*tuning_opening(tuning), *_remarks(tuning)]


def tuning_opening(tuning: Tuning) -> list[str]:
    """Say what comes before all else: what makes it worth nothing, whether tuning helped, and whether the method did."""
    verdict = verdict_of_all(tuning.comparison.candidates)
    return [*tuning.comparison.doubts, _gain(tuning), *[verdict] * bool(verdict)]


def _remarks(tuning: Tuning) -> list[str]:
    return [*_of_search(tuning), *_of_test(tuning)]


def console_table(tuning: Tuning) -> Table:
    """Return the trials as a table for `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_title(tuning)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for index, heading in enumerate(_header(tuning)):
        table.add_column(
            heading, justify="left" if index in (0, len(tuning.searched) + 2) else "right", overflow="fold"
        )
    for trial, cells in zip(tuning.trials, _rows(tuning), strict=True):
        table.add_row(*map(Text, cells), style="bold" if trial is tuning.best else None)
    return table


def write_tuning(tuning: Tuning, folder: str | Path, *, facts: Mapping[str, str]) -> None:
    """Write a search as ``tuning.json`` and ``report.html``.

    Args:
        tuning: What to write.
        folder: Where; its comparison is in ``comparison/`` already.
        facts: What the page says was run.
    """
    folder = Path(folder)
    found = {
        "method": tuning.method,
        "searched": tuning.searched,
        "options": tuning.options,
        "score": tuning.best.score,
        "judged_by": asdict(tuning.judged_by),
        "samples": tuning.samples,
        "importance": tuning.importance,
        "findings": tuning_findings(tuning),
        "looks": tuning.looks,
        "trials": [{**asdict(trial), "score": trial.score} for trial in tuning.trials],
        "test": records(tuning.comparison.candidates),
        "fresh": tuning.fresh,
        "facts": dict(facts),
    }
    keep(folder / FOUND, json.loads(json.dumps(found, default=str)))
    _draw(tuning, facts, folder / "report.html")


def redraw_tuning(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a search, of the files in its folder.

    Args:
        folder: The search's, with ``tuning.json``.
        path: The file to write; by default ``report.html`` in the folder.

    Returns:
        The page.

    Raises:
        Damaged: One of the files is not what was written.
    """
    folder = Path(folder)
    found = read(folder / FOUND, ANEW)
    comparison, _ = read_comparison(folder / COMPARED)
    try:
        tuning = Tuning(
            found["method"],
            tuple(found["searched"]),
            tuple(Trial(of["options"], of["state"], tuple(of["values"]), of["epochs"]) for of in found["trials"]),
            found["importance"],
            found["samples"],
            comparison,
            {name: tuple(values) for name, values in found["fresh"].items()},
            tuple(found["looks"]),
        )
        facts = dict(found["facts"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{folder / FOUND} is no search of limbeck's, or an incomplete one ({type(error).__name__}: {error}); {ANEW}"
        ) from error
    return _draw(tuning, facts, Path(path or folder / "report.html"))


def _draw(tuning: Tuning, facts: Mapping[str, str], path: Path) -> Path:
    return write(path, render(f"Tuning {tuning.method}", tuning_opening(tuning), _sections(tuning, facts)))


def words(options: Mapping[str, Any]) -> str:
    """Return options as words: "temperature=4.0, alpha=0.9"."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _of_search(tuning: Tuning) -> list[str]:
    best, score, found = tuning.best, tuning.judged_by, []
    states = [trial.state for trial in tuning.trials]
    ends = {"stopped early": states.count("stopped"), "diverged": states.count("diverged")}
    left_out = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
    found.append(
        f"Best of {_count(len(states), 'trial')}{f' ({left_out})' if left_out else ''}: {words(_searched(tuning, best))}, "
        f"{told(score, best.score or 0)} on {tuning.samples:,} validation samples."
    )
    sd, _ = tuning.seeds_sd()
    spread = statistics.stdev(scores) if len(scores := [trial.score or 0.0 for trial in tuning.complete]) > 1 else 0.0
    if not tuning.chance() < LEVEL:  # nan too
        seeds = unsigned(score.difference(sd))
        known = (
            f": their scores vary by {_spread(score, spread)} (standard deviation), and trainings that differ in their "
            f"seed alone by {seeds}"
        )
        found.append(
            "Which options are best is not shown"
            + ("" if math.isnan(sd) else known)
            + ". More seeds a trial, or more validation samples, might tell."
        )
    fresh = tuning.fresh.get(_tuned(tuning).name, ())
    if fresh and score.gain(again := statistics.fmean(fresh), best.score or 0) < 0:
        found.append(
            f"With fresh seeds the best options reach {score.show(again)} on the validation data and not "
            f"{score.show(best.score or 0)}: the best of several scores is luck in part."
        )
    return found


def _gain(tuning: Tuning) -> str:
    """Say whether the options that were found are better than the defaults, on the test data."""
    tuned, default, score = _tuned(tuning), _default(tuning), tuning.judged_by
    if tuned is default:
        return "Tuning: nothing gained. The defaults are the best that was found."
    pair, say = paired(tuned.values, default.values), score.difference
    interval = "" if math.isnan(pair.low) else f", 95 % interval {say(pair.low)} to {say(pair.high)}"
    return (
        f"Tuning: {verdict_in_words(judge([pair], score.best)[0], score)}. {amount(score, pair.difference)} on the "
        f"test data against the defaults over {_count(pair.n, 'seed')}{interval}."
    )


def _of_test(tuning: Tuning) -> list[str]:
    found = evidence(tuning.comparison)
    if len(tuning.looks) > 1:
        found.append(
            f"The test data was looked at after {' and '.join(map(str, tuning.looks))} trials: whoever searches on after a "
            "look has chosen by it."
        )
    return found


def _tuned(tuning: Tuning) -> Candidate:
    return tuning.comparison.candidates[-1]


def _default(tuning: Tuning) -> Candidate:
    """Return the method with its defaults."""
    return next(one for one in tuning.comparison.candidates if one.name == f"{tuning.method}, defaults")


def _searched(tuning: Tuning, trial: Trial) -> dict[str, Any]:
    return {name: trial.options[name] for name in tuning.searched}


def _title(tuning: Tuning) -> str:
    seeds = len(tuning.best.values)
    return f"{tuning.method}: {_count(len(tuning.trials), 'trial')} of {_count(seeds, 'seed')}, scored on validation"


def _header(tuning: Tuning) -> tuple[str, ...]:
    score = tuning.judged_by
    return ("trial", *tuning.searched, "score, %" if score.unit == "%" else score.label, "end")


def _rows(tuning: Tuning) -> list[tuple[str, ...]]:
    return [
        (str(number), *map(str, _searched(tuning, trial).values()), *_end(tuning, trial))
        for number, trial in enumerate(tuning.trials, 1)
    ]


def _end(tuning: Tuning, trial: Trial) -> tuple[str, str]:
    if trial.score is not None:
        return tuning.judged_by.number(trial.score), "best" if trial is tuning.best else ""
    return "–", f"{'stopped after' if trial.state == 'stopped' else 'diverged in'} {_count(trial.epochs, 'epoch')}"


def _sections(tuning: Tuning, facts: Mapping[str, str]) -> list[Section]:
    compared = tuning.comparison.candidates
    sections = [
        Section(
            "On the test data",
            table=PageTable(header(compared), rows(compared), legend(compared)),
            remarks=_remarks(tuning),
        ),
        Section("Trials", table=PageTable(_header(tuning), _rows(tuning), _caption(tuning)), plots=[_history(tuning)]),
    ]
    if tuning.importance:
        shares = [(name, f"{100 * share:.0f} %") for name, share in tuning.importance.items()]
        meaning = (
            f"The share of the differences between good and other scores of {len(tuning.complete)} trials that goes with "
            "each option alone (PED-ANOVA): of fewer than 50 a rough guess."
        )
        sections.append(Section("Which option matters", table=PageTable(("option", "importance"), shares, meaning)))
    return [*sections, Section("What was run", facts=facts)]


def _caption(tuning: Tuning) -> str:
    score, best = tuning.judged_by, tuning.best.score or 0
    error = ""
    if score.unit == "%":  # of a share, at least about
        deviation = _spread(score, math.sqrt(best * (1 - best) / tuning.samples))
        error = f"; which samples these are makes a standard error of {deviation}"
    worse = "below" if score.best == "highest" else "above"
    return (
        f"A score is the {score.name} on {tuning.samples:,} validation samples after the last epoch, mean over the seeds "
        f"of a trial{error}. Trials {worse} the median of the others were stopped early."
    )


def _history(tuning: Tuning) -> Plot:
    score, best = tuning.judged_by, max if tuning.judged_by.best == "highest" else min
    numbered = [(float(number), trial.score) for number, trial in enumerate(tuning.trials, 1)]
    known = [(number, score.scale * value) for number, value in numbered if value is not None]
    numbers, values = zip(*known, strict=True)
    so_far = tuple(best(values[: index + 1]) for index in range(len(values)))
    lines = [Line("score", numbers, values), Line("best so far", numbers, so_far)]
    chart = curves(lines, "scores of the trials", y_label=score.unit or score.name, x_label="trial")
    return Plot(chart, "Score of each complete trial")


def _spread(score: Score, deviation: float) -> str:
    return unsigned(amount(score, deviation))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"
