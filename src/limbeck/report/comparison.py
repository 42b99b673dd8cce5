from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.core.digits import digits
from limbeck.core.exhibits import Exhibit, Matrix
from limbeck.core.files import Damaged, keep, read, unsealed, write
from limbeck.measure import Cost, Judgement, Plan, paired_over_shared
from limbeck.report.examples import FILE, read_exhibits
from limbeck.report.figures import Line, Point, curves, panels, strip, tradeoff
from limbeck.report.history import Row, over_seeds, players, read_rows, score_columns, terms
from limbeck.report.notebook import Told
from limbeck.report.page import File, Plot, Section, Table, linked, render
from limbeck.report.palette import Look, looks
from limbeck.report.run import read_result, read_score
from limbeck.report.sections import changes_section, exhibit_sections
from limbeck.report.table import (
    Candidate,
    amount,
    as_judged,
    at_start,
    csv_table,
    header,
    judgements,
    latex_table,
    legend,
    markdown_table,
    mean_sd,
    records,
    rows,
    size,
    verdict_in_words,
)
from limbeck.report.verdict import quoted, verdict_of_all
from limbeck.report.warned import read_warned, warned_section

TITLE = "Did distillation help?"
PICTURED = 2
"""Students whose answers are shown beside the plain one's: those that are best by their mean."""
RESULTS = "results.json"
ANEW = "the same `limbeck compare` as before writes it anew, of the runs beside it"
FILES = {
    "table.csv": "the table as numbers",
    "table.md": "the table for a README",
    "table.tex": "the table for a paper",
    "results.json": "all numbers and settings",
    "plan.json": "when seeds are added",
    "step-times.json": "times of a step",
    "examples.npz": "the pictures' data",
}
"""The files of a comparison, and what they are."""
CAPTION = (
    "Left: a point is one seed, a bar the mean, the dashed line the plain student's mean. Right: mean difference to {whom} "
    "over the same seeds with its 95 % interval; an interval across the dashed line shows nothing."
)
COSTS = (
    "{score} on the test data over parameters and over latency (one sample, one CPU thread), mean and standard deviation "
    "over seeds. Networks of one size stand a little apart."
)
CURVES = "{score} on the validation data, mean over seeds; the band is one standard deviation."
TERMS = (
    "The parts of the loss, each before it is multiplied by its weight: mean over seeds, and a band of one standard "
    "deviation."
)


@dataclass(frozen=True)
class Comparison:
    """Networks compared under one condition.

    Args:
        title: The condition, as "100 labels, all images".
        note: What the reader has to know about it; may be empty.
        candidates: In the order they are shown.
        doubts: What makes it worth nothing, as a teacher that only guesses: said before all else.
    """

    title: str
    note: str
    candidates: tuple[Candidate, ...]
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return what `print` shows: the verdict in a sentence, and the table."""
        return self._told().text()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: likewise."""
        return self._told().html()

    def _told(self) -> Told:
        return Told(self.title, opening(self), header(self.candidates), rows(self.candidates), self.note)


def comparison_report(
    comparisons: Sequence[Comparison],
    path: str | Path,
    *,
    title: str = TITLE,
    sentences: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    files: Sequence[File] = (),
) -> Path:
    """Write a page with a section for each condition: the verdict in a sentence, before all else, the table, every seed.

    Args:
        comparisons: The conditions.
        path: The file to write.
        title: Of the page.
        sentences: What it says after the verdicts.
        facts: What was run: command, seeds, time, versions.
        files: What lies beside the page.

    Returns:
        ``path``.
    """
    sections = [_section(comparison) for comparison in comparisons]
    if facts:
        sections.append(Section("What was run", facts=facts))
    if files:
        sections.append(Section("Files", files=files))
    named = len(comparisons) > 1
    said = [
        f"{comparison.title}: {sentence}" if named else sentence
        for comparison in comparisons
        for sentence in opening(comparison)
    ]
    return write(Path(path), render(title, [*said, *sentences], sections))


def write_comparison(
    comparison: Comparison, folder: str | Path, *, facts: Mapping[str, str] | None = None, details: Mapping[str, Any]
) -> None:
    """Write a comparison as ``results.json``, ``table.csv``, ``table.md``, ``table.tex`` and ``report.html``.

    Args:
        comparison: What to write.
        folder: Where.
        facts: What the page says was run.
        details: What ``results.json`` holds beside the rows; the page reads ``epochs``, ``seconds`` (of each run) and
            ``folders`` of them, each by the name of its candidate.
    """
    folder, candidates = Path(folder), comparison.candidates
    costs = [{"cost": asdict(candidate.cost)} for candidate in candidates]
    results = {
        "title": comparison.title,
        "note": comparison.note,
        "doubts": list(comparison.doubts),
        "score": asdict(candidates[0].score),
        "plan": asdict(candidates[0].plan),
        "facts": dict(facts or {}),
        "rows": [record | cost for record, cost in zip(records(candidates), costs, strict=True)],
        **details,
    }
    keep(folder / RESULTS, results)
    write(folder / "table.csv", csv_table(candidates).encode())
    write(folder / "table.md", markdown_table(candidates, opening(comparison)))
    write(folder / "table.tex", latex_table(candidates, comparison.doubts))
    redraw_comparison(folder)


def redraw_comparison(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a comparison, of the files in its folder.

    Args:
        folder: The comparison's, with ``results.json``.
        path: The file to write; by default ``report.html`` in the folder.

    Returns:
        The page.

    Raises:
        Damaged: One of the files is not what was written.
    """
    folder = Path(folder)
    path = Path(path or folder / "report.html")
    comparison, results = read_comparison(folder)
    runs = _Runs.find(folder, comparison.candidates, results.get("folders", {}))
    sections = [
        _section(comparison),
        warned_section(_warned(folder, runs)),
        _learning(runs),
        *exhibit_sections(runs.exhibits, runs.looks),
        *_confusions(runs),
        _what_was_run(runs, results),
        *_files(folder, runs, path),
    ]
    page = render(TITLE, opening(comparison), [section for section in sections if section is not None])
    return write(path, page)


def pictured(candidates: Sequence[Candidate]) -> list[str]:
    """Return whose answers a page shows beside the teacher's: the plain student, and the two best others by their score.

    Controls are among them only where nothing else is compared.
    """
    baseline = [candidate.name for candidate in candidates if candidate.role == "baseline"]
    compared = [candidate for candidate in candidates if candidate.paired and candidate.values]
    distilled = [candidate for candidate in compared if candidate.role == "distilled"] or compared
    best = sorted(distilled, key=lambda one: one.score.gain(0.0, statistics.fmean(one.values)))[:PICTURED]
    return [*baseline, *(candidate.name for candidate in candidates if candidate in best)]


def read_comparison(folder: Path) -> tuple[Comparison, dict[str, Any]]:
    """Return the comparison that `write_comparison` wrote, and all that its ``results.json`` holds.

    Raises:
        Damaged: It is not what was written, or the file of another program.
    """
    path = folder / RESULTS
    results = read(path, ANEW)
    try:
        return _comparison(results), results
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{path} is no comparison of limbeck's, or an incomplete one ({type(error).__name__}: {error}); {ANEW}"
        ) from error


def opening(comparison: Comparison) -> list[str]:
    """Say what comes before all else: what makes it worth nothing, and whether it helped, of all rows in a sentence."""
    verdict = verdict_of_all(comparison.candidates)
    return [*comparison.doubts, *[verdict] * bool(verdict)]


def sentences(comparison: Comparison) -> list[str]:
    """Say all that is to be said: its opening, what each row shows, and what the reader has to know of the data."""
    return [*opening(comparison), *remarks(comparison)]


def remarks(comparison: Comparison) -> list[str]:
    """Say what comes after the opening: what each row shows, what the teacher costs, and the note."""
    return [*evidence(comparison), *[comparison.note] * bool(comparison.note)]


def findings(comparison: Comparison) -> list[str]:
    """Say in plain words what each compared network shows, good or bad, and what makes that worth nothing, first."""
    return [*comparison.doubts, *evidence(comparison)]


def evidence(comparison: Comparison) -> list[str]:
    """Say in plain words what each compared network shows, good or bad, and what the teacher costs beside the student."""
    judged = zip(comparison.candidates, judgements(comparison.candidates), strict=True)
    found = [_finding(candidate, judgement) for candidate, judgement in judged if judgement]
    by_role = {candidate.role: candidate for candidate in reversed(comparison.candidates)}
    teacher, student = by_role.get("teacher"), by_role.get("baseline")
    return [*found, _sizes(teacher, student)] if teacher and teacher.values and student else found


@dataclass(frozen=True)
class _Runs:
    """The files of a comparison: each candidate's runs by seed, and how it is drawn."""

    candidates: tuple[Candidate, ...]
    folders: Mapping[str, Sequence[Path]]
    looks: Mapping[str, Look]
    exhibits: Sequence[Exhibit]

    @classmethod
    def find(cls, folder: Path, candidates: Sequence[Candidate], folders: Mapping[str, str]) -> _Runs:
        found = {
            candidate.name: [folder / folders[candidate.name] / f"seed-{seed}" for seed in range(len(candidate.values))]
            for candidate in candidates
            if candidate.name in folders
        }
        drawn = looks({candidate.name: candidate.role for candidate in candidates})
        return cls(tuple(candidates), found, drawn, read_exhibits(folder / FILE))

    def histories(self) -> dict[str, list[list[Row]]]:
        return {name: [read_rows(run / "metrics.csv") for run in of] for name, of in self.folders.items()}


def _comparison(results: Mapping[str, Any]) -> Comparison:
    score, plan = read_score(results), Plan(**results.get("plan", {}))
    values = {row["name"]: tuple(row["values"] if "values" in row else row["accuracies"]) for row in results["rows"]}
    values[""] = next((values[row["name"]] for row in results["rows"] if row["role"] == "baseline"), ())
    candidates = []
    for row in results["rows"]:
        cost = Cost(**{field.name: row["cost"][field.name] for field in fields(Cost)})
        mine, against = values[row["name"]], row.get("against") or ""
        pair = paired_over_shared(mine, values[against]) if row["role"] in ("distilled", "control") else None
        candidates.append(Candidate(row["name"], row["role"], cost, mine, pair, score, against, plan))
    return Comparison(results["title"], results["note"], as_judged(candidates), tuple(results.get("doubts", ())))


def _section(comparison: Comparison) -> Section:
    name = at_start(comparison.candidates[0].score.name)
    trained = [candidate for candidate in comparison.candidates if candidate.values]
    plots = []
    if trained:
        whom = "its baseline" if any(candidate.against for candidate in trained) else "the plain student"
        plots.append(Plot(strip(trained, f"{name} by seed: {comparison.title}"), CAPTION.format(whom=whom)))
    if costly := [each for each in trained if each.cost.parameters and each.cost.latency_ms]:
        plots.append(Plot(_tradeoff(costly, f"{name} over cost: {comparison.title}"), COSTS.format(score=name)))
    return Section(
        comparison.title,
        table=Table(header(comparison.candidates), rows(comparison.candidates), legend(comparison.candidates)),
        remarks=remarks(comparison),
        plots=plots,
    )


def _tradeoff(candidates: Sequence[Candidate], label: str) -> str:
    drawn = looks({candidate.name: candidate.role for candidate in candidates})
    return tradeoff(
        [
            Point(
                each.name,
                {"parameters": each.cost.parameters, "latency, ms": each.cost.latency_ms},
                each.values,
                drawn[each.name],
            )
            for each in candidates
        ],
        label,
        candidates[0].score,
    )


def _learning(runs: _Runs) -> Section | None:
    score = runs.candidates[0].score
    reached: list[Line] = []
    charts: dict[str, list[Line]] = {}
    for name, histories in runs.histories().items():
        first = next((rows for rows in histories if rows), [])
        for column in list(score_columns(first, score).values())[:1]:
            reached.append(over_seeds(histories, column, name, runs.looks[name], scale=score.scale))
        for player in players(first):
            for term in terms(first, player):
                chart = term if player == players(first)[0] else f"{player}: {term}"
                column = f"train/{player}/{term}"
                charts.setdefault(chart, []).append(over_seeds(histories, column, name, runs.looks[name]))
    plots = []
    if drawn := [each for each in reached if each.x]:
        chart = curves(drawn, f"validation {score.name} over epochs", y_label=score.unit or score.name)
        plots.append(Plot(chart, CURVES.format(score=at_start(score.name))))
    if kept := {chart: known for chart, lines in charts.items() if (known := [each for each in lines if each.x])}:
        plots.append(Plot(panels(kept, "losses over epochs, by term"), TERMS))
    return Section("How they learnt", plots=plots) if plots else None


def _confusions(runs: _Runs) -> list[Section]:
    """Compare the pictured students by the means of their tables, over the seeds of which all have one."""
    names = pictured(runs.candidates)
    if len(names) < 2:
        return []
    plain, *others = names
    tables_of = [[_matrices(run) for run in runs.folders.get(name, ())] for name in names]
    seeds = list(zip(*tables_of, strict=False))  # a row that was told early has fewer
    sections = []
    for what in dict.fromkeys(key for seed in seeds for tables in seed for key in tables):
        complete = [[tables[what] for tables in seed] for seed in seeds if all(what in tables for tables in seed)]
        if complete:
            counts = np.array([[table.counts for table in seed] for seed in complete], dtype=np.float64)
            means = dict(zip(names, counts.mean(0), strict=True))
            classes, unit = complete[0][0].labels, complete[0][0].unit
            changed = {name: means[name] for name in others}
            sections.append(changes_section(means[plain], changed, classes, len(complete), unit))
    return [section for section in sections if section is not None]


def _matrices(run: Path) -> dict[tuple[str, ...], Matrix]:
    """Return a run's tables of confusions by title and labels: tables that agree in both can be compared."""
    exhibits = read_exhibits(run / FILE)
    return {(each.title, *each.labels): each for each in exhibits if isinstance(each, Matrix)}


def _what_was_run(runs: _Runs, results: Mapping[str, Any]) -> Section:
    epochs, seconds = results.get("epochs", {}), results.get("seconds", {})
    lines = [
        (name, str(epochs.get(name, "–")), str(len(of)), f"{statistics.fmean(of):.1f} s")
        for name, of in seconds.items()
        if of
    ]
    configs = [run[0] / "config.yaml" for run in runs.folders.values() if run]
    texts = [f"# {path.parent.parent.name}\n{_config(path)}" for path in configs if path.exists()]
    known = [read_result(of[0]).get("versions", {}) for of in runs.folders.values() if of]
    versions = ", ".join(f"{name} {version}" for name, version in (known[0] if known else {}).items())
    return Section(
        "What was run",
        table=Table(("network", "epochs", "seeds", "time of a run"), lines) if lines else None,
        facts={**results.get("facts", {}), "Trained with": versions} if versions else results.get("facts", {}),
        listing="\n".join(texts),
    )


def _warned(folder: Path, runs: _Runs) -> dict[str, str]:
    """Return what was warned of in the comparison and in its runs, each once, with the networks and seeds it came from."""
    places: dict[str, dict[str, list[int]]] = {one.message: {} for one in read_warned(folder)}
    for name, folders in runs.folders.items():
        for seed, run in enumerate(folders):
            for one in read_warned(run):
                places.setdefault(one.message, {}).setdefault(name, []).append(seed)
    return {message: _where(seeds, runs) for message, seeds in places.items()}


def _where(seeds: Mapping[str, Sequence[int]], runs: _Runs) -> str:
    if not seeds or all(len(seeds.get(name, ())) == len(of) for name, of in runs.folders.items()):
        return ""
    said = [
        quoted(name) if len(of) == len(runs.folders[name]) else f"{quoted(name)}, {_numbered(of)}"
        for name, of in seeds.items()
    ]
    return "; ".join(said)


def _numbered(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _files(folder: Path, runs: _Runs, page: Path) -> list[Section]:
    """Return the links to the comparison's own files, and to the page of each run."""
    own = [
        linked(folder / name, page, f"{what}, {size((folder / name).stat().st_size)}")
        for name, what in FILES.items()
        if (folder / name).exists()
    ]
    pages = [
        linked(run / "report.html", page, name=f"{name}, seed {seed}")
        for name, of in runs.folders.items()
        for seed, run in enumerate(of)
        if run.exists()
    ]
    sections = [Section("Files", files=own)] if own else []
    return [*sections, Section("The pages of the runs", files=pages)] if pages else sections


def _config(path: Path) -> str:
    """Return a run's settings as they stand there, without their checksum."""
    read(path, f"remove the folder {path.parent}, and the same call makes this run again")
    return unsealed(path.read_text(encoding="utf-8")) + "\n"


def _finding(candidate: Candidate, judgement: Judgement) -> str:
    name, score, pair = candidate.name, candidate.score, judgement.pair
    evidence = f"{amount(score, pair.difference)} against {candidate.against or 'the plain student'}"
    if pair.n == 1:
        return f"{name}: {evidence} in a single seed, which shows nothing."
    evidence += f" over {pair.n} seeds"
    if math.isnan(pair.low):
        return f"{name}: {evidence}, the same in each; a test set too coarse to see how seeds vary shows nothing."
    interval = f"95 % interval {score.difference(pair.low)} to {score.difference(pair.high)}"
    return f"{name}: {verdict_in_words(judgement, score)}. {evidence}, {interval}."


def _sizes(teacher: Candidate, student: Candidate) -> str:
    parameters = teacher.cost.parameters / max(1, student.cost.parameters)
    macs = teacher.cost.macs / max(1, student.cost.macs)
    reached = f"{mean_sd(teacher)} {teacher.score.unit or teacher.score.name}"
    times = digits(parameters), digits(macs)
    more = f"{times[0]} times the student's parameters and {times[1]} times its MACs"
    if times == ("1", "1"):
        more = "about as many parameters and MACs as the student"
    return f"The teacher reaches {reached} with {more}."
