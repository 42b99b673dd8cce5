"""Did it help? Methods beside the plain student: the same budget, weights and order of the data, seed by seed."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from limbeck import measure
from limbeck.core.files import hold, keep, read
from limbeck.core.heard import shown_once
from limbeck.core.method import Make
from limbeck.core.options import ranged, shown
from limbeck.core.task import Task
from limbeck.data import Data
from limbeck.data.randomness import random_state, set_random_state
from limbeck.engine.assemble import parts_of
from limbeck.engine.fit import Precision, task_of
from limbeck.engine.learner import Schedule
from limbeck.engine.named import data_of, made_by_name
from limbeck.engine.precision import Teachers, TeacherType
from limbeck.engine.run import Run
from limbeck.measure import Plan
from limbeck.report.comparison import Comparison, write_comparison
from limbeck.report.warned import keeping_warnings
from limbeck.verbs.check import vet_teacher
from limbeck.verbs.runs import BASELINE, LOCK, Outcome, Runs
from limbeck.verbs.runs import Entry as Entry

Match = Literal["epochs", "compute"]

PLAN = "plan.json"
MOST = 12
"""Seeds that a row may have where they are added row by row; ours."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the runs that other processes are at."""


def grid(method: str, **options: Sequence[Any]) -> list[Entry]:
    """Return an entry for every combination of options.

    Args:
        method: A method's name.
        options: The values of each option.

    Example:
        >>> [entry.name for entry in grid("kd", temperature=[1, 4], alpha=[0.5])]
        ['kd, temperature=1, alpha=0.5', 'kd, temperature=4, alpha=0.5']
    """
    combinations = itertools.product(*options.values())
    return [Entry(method, dict(zip(options, values, strict=True))) for values in combinations]


@ranged
@shown_once()
def compare(
    entries: Iterable[str | Entry],
    student: Callable[[], nn.Module] | str,
    teacher: nn.Module | str | None,
    data: Any,
    *,
    task: Task | None = None,
    epochs: int,
    seeds: int = 3,
    decide: bool = False,
    most: int | None = None,
    smallest: float | None = None,
    match: Match = "epochs",
    run_dir: str | os.PathLike[str] | None = None,
    optimizer: Make | Mapping[str, Make] | None = None,
    schedule: Schedule | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    sync_batchnorm: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    teachers: Teachers = "whole",
    teacher_dtype: TeacherType = "own",
    accumulate: int = 1,
    clip: float | None = None,
    progress: bool | None = None,
    check: bool = True,
) -> Comparison:
    """Train a student by several methods, and by none, over the same seeds; say what that shows.

    The plain student is always among them, and what the others are compared with unless an `Entry` names another baseline.
    A method with players beside the student, as a critic, is compared with the same method without its teacher, where it
    can do without; that is added. What nobody teaches (``plain``, ``ls``) trains on the labelled samples alone,
    and takes as many steps as the others. Every seed gives all of them the same initial weights and order of the data.

    In ``run_dir`` each run has a folder, ``METHOD/seed-0``, and beside them are ``report.html``, ``table.md``,
    ``table.csv``, ``table.tex`` and ``results.json``. The same call goes on where a former one ended, however it ended:
    what is finished is read, what was under way is resumed, and a page that is missing is drawn. More entries or seeds may
    be asked for then; another training is refused, by all that a run depends on: method and options, data, task, optimizer,
    the weights of everybody who teaches or begins, and limbeck's version.

    The same call may be made by several processes at once, each on a device of its own, say, or with its share of the
    cores: each takes the next run that no other is at, and all return the same. A process that dies, however it dies,
    leaves its run to the others. ``limbeck compare --jobs`` starts them.

    The verdict on each method is that of a paired t-test, corrected for their number (`limbeck.measure.judge`); where it
    cannot tell, it estimates how many more seeds would (`limbeck.measure.seeds_needed`). With ``smallest`` there is one
    verdict more, that a method makes no difference which is larger.

    Few seeds and many methods can hardly ever tell. ``decide`` adds seeds where they are needed: it looks after ``seeds``
    seeds, and then after each one more, which the methods that are not told get, and what these are compared with, until
    all are told or have ``most``. All looks together are wrong as seldom as the one look of a fixed number
    (`limbeck.measure.decide`). The plan of the first call stays in ``run_dir/plan.json``, and another is refused there: who
    plans anew after a look is wrong more often than the verdict says.

    Where the teacher, or a student after its training, is no better than guessing, the comparison says so before all else
    (`Comparison.doubts`); entries that are named as controls are meant to learn from such a teacher.

    A method that diverges with one of the seeds, or whose score is then no number, has no row, and the comparison's note
    says so; the others go on.

    Args:
        entries: Methods by name, or with options as `Entry`; `grid` makes those of a grid.
        student: Makes the student, with weights drawn from torch's generator; or its name, as ``"resnet8"``.
        teacher: The network to learn from, or its name with its weights, as ``"resnet20@runs/teacher"``; None where no
            method needs one. Methods of peers get a second student, unless their `Entry` has others.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)`` without generators of their own, as for `fit`; of
            ``(train, val)`` the validation data serve as test. Or a name, as ``"digits"``.
        task: How networks are fed, and by which score they are judged: ``limbeck.multilabel``, or one of your own. By
            default the data's; loaders are taken for classification.
        epochs: Of each run, all its stages together, at least 1.
        seeds: How many, from 0 on, at least 1; with ``decide`` those before the first look, at least 2.
        decide: Add seeds to the methods that are not told yet, and to them alone.
        most: How many seeds a method may have then, more than ``seeds``; 12 by default, which is ours. Without ``decide``
            there is nothing that it could limit, and it is refused.
        smallest: The smallest difference that matters, above 0, as the table shows differences: 0.3 points of an accuracy,
            0.05 of an RMSE. By default "no difference" is no verdict.
        match: What is equal: ``"epochs"``, so that every run has as many steps as plain; or ``"compute"``, so that every
            run takes about as long: a method has the epochs of plain divided by the ratio of their times a step. These
            are measured once, each over 80 steps, by the median of epochs after the first of each stage.
        run_dir: The folder of the comparison; nothing is written without one.
        optimizer: As for `fit`.
        schedule: As for `fit`.
        precision: As for `fit`.
        accelerator: As for `fit`.
        devices: As for `fit`, at least 1.
        nodes: As for `fit`, at least 1.
        strategy: As for `fit`.
        sync_batchnorm: As for `fit`.
        channels_last: As for `fit`.
        compile: As for `fit`.
        teachers: As for `fit`.
        teacher_dtype: As for `fit`.
        accumulate: As for `fit`, at least 1.
        clip: As for `fit`, above 0.
        progress: Show a progress bar; by default where standard error is a terminal.
        check: Look at the teachers before the first training, as `distill` does: are their classes permuted?

    Returns:
        The teacher, the plain student and every entry, with the score on the test data by seed.

    Raises:
        ValueError, TypeError: An entry that cannot be assembled, before anything is trained; a baseline that is no entry;
            ``most`` without ``decide``; a student that is not made anew, or not of the seed; runs in ``run_dir`` that are
            not of this comparison, or are damaged (the message names the file and what to remove); another plan of looks
            than that which was begun; a method with more stages than epochs; runs on several devices each while another
            process makes them.
        FloatingPointError: The plain student diverged, or another baseline, or every method.
        KeyboardInterrupt: Ctrl-C, after a checkpoint: the same call goes on.

    Example:
        >>> import limbeck
        >>> from limbeck import compare, grid
        >>> data = limbeck.data.load("digits", labels=100)
        >>> teacher = limbeck.zoo.network("mlp-64", 10, data.shape)
        >>> _ = limbeck.fit(limbeck.plain(teacher), limbeck.data.load("digits"), epochs=5)
        >>> student = lambda: limbeck.zoo.network("mlp-16", 10, data.shape)
        >>> comparison = compare(grid("kd", temperature=[1, 4]), student, teacher, data, epochs=2, seeds=2)
        >>> [candidate.name for candidate in comparison.candidates]
        ['teacher', 'plain', 'kd, temperature=1', 'kd, temperature=4']
    """
    if match not in ("epochs", "compute"):
        raise ValueError(f"match must be 'epochs' or 'compute', got {match!r}")
    if match == "compute" and (devices * nodes > 1 or not isinstance(data, Data)):
        raise ValueError("match='compute' needs one device, and a limbeck.data.Data, whose epochs can be cut short")
    most = _most(most, seeds, decide)
    listed = _line_up(entries)
    data = data_of(data, seed=0)
    task = task or task_of(data)
    served, why = _with_test(data)
    runs = Runs(
        *made_by_name(student, teacher, data, task),
        served,
        None if run_dir is None else Path(run_dir),
        training={
            "optimizer": optimizer,
            "schedule": schedule,
            "precision": precision,
            "accelerator": accelerator,
            "devices": devices,
            "nodes": nodes,
            "strategy": strategy,
            "sync_batchnorm": sync_batchnorm,
            "channels_last": channels_last,
            "compile": compile,
            "teachers": teachers,
            "teacher_dtype": teacher_dtype,
            "accumulate": accumulate,
            "clip": clip,
        },
        task=task,
    )
    listed = runs.with_baselines(listed)
    plan = Plan(
        seeds,
        most,
        None if smallest is None else smallest / runs.score.scale,
        len(listed) - 1 if decide else None,
    )
    runs.check(listed, epochs if match == "epochs" else None)
    if decide and run_dir is not None:
        planned = {"rows": [entry.name for entry in listed], "seeds": seeds, "most": most, "smallest": smallest}
        _keep_to(planned, Path(run_dir))
    if check and not any((place := runs.place(entry, 0)) is not None and Run(place).begun for entry in listed):
        _look_at_teachers(runs, listed, accelerator)
    budget = {entry.name: epochs for entry in listed}
    with _together(run_dir, devices * nodes), _warnings_kept(run_dir), progress_bar(progress) as bar:
        shown = bar.add_task("timing", total=None)
        if match == "compute":
            budget = {name: max(1, round(epochs / ratio)) for name, ratio in runs.step_times(listed).items()}
        bar.update(shown, total=seeds * sum(budget.values()))
        gathered = _Gathered(runs, listed, budget, bar, shown)
        at_first = [(entry, seed) for seed in range(seeds) for entry in listed]  # what fails fails in the first seed
        gathered.train(at_first)
        for seed in range(seeds, most or seeds):
            gathered.train([(entry, seed) for entry in gathered.undecided(plan)])
    outcomes, diverged = gathered.outcomes(), gathered.diverged
    listed = [entry for entry in listed if entry.name in outcomes]
    with _warnings_kept(run_dir):
        comparison = Comparison(
            f"{runs.data_name}: {_several(epochs, 'epoch')}, {_seeds_in_words(outcomes)}",
            _note(budget, match, diverged, data, why),
            runs.candidates(listed, outcomes, plan),
            tuple(runs.doubts(listed, outcomes)),
        )
    if run_dir is not None:
        seconds = {name: [outcome.seconds for outcome in of] for name, of in outcomes.items()}
        versions = {"torch": torch.__version__, "Python": sys.version.split()[0]}
        with hold(Path(run_dir) / ".table.lock", wait=True):  # latency is measured by each: all files say one process's
            rank_zero_only(runs.keep_examples)(listed, comparison.candidates)
            rank_zero_only(write_comparison)(
                comparison,
                Path(run_dir),
                facts={
                    "Training": f"{sum(map(sum, seconds.values())):.0f} s",
                    "Versions": ", ".join(map(" ".join, versions.items())),
                },
                details={
                    "match": match,
                    "epochs": budget,
                    "seconds": seconds,
                    "versions": versions,
                    "folders": {entry.name: entry.folder for entry in listed},
                },
            )
    return comparison


def _look_at_teachers(runs: Runs, entries: Sequence[Entry], accelerator: str) -> None:
    """Refuse a teacher of whom nothing could be learned, before all seeds are trained; a control may be anybody."""
    taught = [runs.teacher, *(entry.teacher for entry in entries if not entry.control)]
    before = random_state()
    for teacher in {id(one): one for one in taught if one is not None}.values():
        rank_zero_only(vet_teacher)(teacher, runs.student(), runs.data, runs.task, accelerator)
    set_random_state(before)


@dataclass
class _Gathered:
    """The outcomes of runs, whichever process trains them, and what is said of those that diverge."""

    runs: Runs
    entries: Sequence[Entry]
    budget: Mapping[str, int]
    bar: Progress
    task: TaskID
    found: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    done: int = 0

    def train(self, left: list[tuple[Entry, int]]) -> None:
        """Train these, or read what others trained, until all are there."""
        while left:
            elsewhere = [run for run in left if not self._is_settled(*run)]
            if len(elsewhere) == len(left):
                self.bar.update(self.task, description="waiting for other processes")
                time.sleep(LOOK_EVERY)
            left = elsewhere

    def _is_settled(self, entry: Entry, seed: int) -> bool:
        """Train one if no other process is at it; whether there is nothing to wait for."""
        if entry.name in self.diverged:
            return True
        self.bar.update(self.task, description=f"{entry.name}, seed {seed}")
        epochs, tell = self.budget[entry.name], partial(_tick, self.bar, self.task, self.done, self.runs.batches)
        try:
            outcome = self.runs.outcome(entry, seed, epochs, tell)
        except FloatingPointError as error:  # the others are not to wait for somebody to see it
            if self._is_needed(entry):
                raise
            self.diverged[entry.name] = f"{entry.name} diverged with seed {seed} and has no row: {error}."
            return True
        if outcome is None:
            return False
        self.found[entry.name, seed] = outcome
        self.done += epochs
        self.bar.update(self.task, completed=self.done)
        return True

    def _is_needed(self, entry: Entry) -> bool:
        """Whether nothing is left to compare without it."""
        baselines = {BASELINE, *(entry.baseline for entry in self.entries)}
        others = sum(entry.name not in baselines for entry in self.entries)
        return entry.name in baselines or len(self.diverged) == others - 1

    def undecided(self, plan: Plan) -> list[Entry]:
        """Return the entries that are not told by the seeds so far, before them what they are compared with."""
        reached = {name: [outcome.value for outcome in of] for name, of in self.outcomes().items()}
        compared = [entry for entry in self.entries if entry.name != BASELINE and entry.name in reached]
        bases = [reached[entry.baseline or BASELINE] for entry in compared]
        judged = measure.decide([reached[entry.name] for entry in compared], bases, self.runs.score.best, plan)
        open_ = [entry for entry, of in zip(compared, judged, strict=True) if of.verdict == "cannot tell"]
        needed = {name for entry in open_ for name in (entry.name, entry.baseline or BASELINE)}
        self.bar.update(self.task, total=self.done + sum(self.budget[name] for name in needed))
        return [entry for entry in self.entries if entry.name in needed]

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Return what there is of each entry that did not diverge, by seed."""
        names = [entry.name for entry in self.entries if entry.name not in self.diverged]
        return {name: [of for (own, _), of in sorted(self.found.items()) if own == name] for name in names}


def _tick(bar: Progress, task: TaskID, done: int, batches: int, metrics: Mapping[str, float], step: int) -> None:
    """Move the bar on after an epoch of a run, ``done`` being those of the runs before."""
    bar.update(task, completed=done + step / batches)


@contextmanager
def _together(run_dir: str | os.PathLike[str] | None, processes: int) -> Iterator[None]:
    """Keep other processes out where each run is made by several of its own, which could not agree who takes what."""
    if run_dir is None or processes == 1 or int(getattr(rank_zero_only, "rank", 0)) > 0:
        yield
        return
    with hold(Path(run_dir) / LOCK) as mine:
        if not mine:
            raise ValueError(
                f"another process makes the comparison in {run_dir}: with {processes} processes one at a time can"
            )
        yield


def _warnings_kept(run_dir: str | os.PathLike[str] | None) -> AbstractContextManager[None]:
    """Keep what is warned of for the page; what a run warns of is kept in its own folder."""
    return nullcontext() if run_dir is None else keeping_warnings(Path(run_dir))


def _line_up(entries: Iterable[str | Entry]) -> list[Entry]:
    """Return the entries, the plain student first."""
    if isinstance(entries, str) or not isinstance(entries, Iterable):
        raise TypeError(f"entries must be a list, got {shown(entries)}: write it in brackets")
    listed = [Entry(entry) if isinstance(entry, str) else entry for entry in entries]
    if strange := [one for one in listed if not isinstance(one, Entry)]:
        raise TypeError(f"an entry is a method's name, or limbeck.Entry('kd', {{...}}), got {shown(strange[0])}")
    listed = [Entry(BASELINE), *(entry for entry in listed if entry != Entry(BASELINE))]
    for entry in listed:
        parts_of(entry.method)
    folders = [entry.folder for entry in listed]
    if twice := [entry.name for entry in listed if folders.count(entry.folder) > 1]:
        raise ValueError(
            f"two entries have the same name, {twice[0]!r}: leave one out, or give it another, Entry(name=)"
        )
    names = [entry.name for entry in listed]
    if lost := [entry for entry in listed if entry.baseline and entry.baseline not in set(names) - {entry.name}]:
        raise ValueError(
            f"{lost[0].name} is to be compared with {lost[0].baseline!r}, which is no other entry's name: there are {names}"
        )
    if len(listed) == 1:
        raise ValueError("there is nothing to compare with the plain student: name a method")
    return listed


def _most(most: int | None, seeds: int, decide: bool) -> int | None:
    """Return how many seeds a row may have, where they are added row by row; else None."""
    if decide:
        return MOST if most is None else most
    if most is not None:
        raise ValueError(
            f"most={most} limits the seeds that decide=True (--decide) adds, and every row has seeds={seeds} of them: add "
            "decide, or leave most out"
        )
    return None


def _with_test(data: Any) -> tuple[Any, str]:
    """Return the data with something to judge by, and what the reader has to know of that."""
    loaders = data if isinstance(data, tuple) else ()
    if len(loaders) not in (2, 3) or loaders[1] is None or loaders[2:] not in ((), (None,)):
        return data, ""
    train, val = loaders[:2]
    return (train, val, val), "There are no test data: the validation data, by which no run was chosen, serve as test."


def _keep_to(planned: Mapping[str, Any], folder: Path) -> None:
    """Keep the plan of a comparison that is decided row by row; refuse another once it is begun.

    Raises:
        ValueError: Another plan, or other rows, than those that were begun.
    """
    path = folder / PLAN
    with hold(folder / ".plan.lock", wait=True):
        if not path.exists():
            keep(path, planned)
            return
        was = read(path, f"remove it if nobody has seen a verdict of the runs in {folder} yet")
    if other := [name for name in planned if was.get(name) != planned[name]]:
        raise ValueError(
            f"{folder} holds a comparison that was planned with {other[0]}={was.get(other[0])}, and now "
            f"{other[0]}={planned[other[0]]} is asked for: who plans anew after a look is wrong more often than the "
            "verdict says. Keep to the plan, or take another run_dir"
        )


def _seeds_in_words(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    fewest, most = (number(len(of) for of in outcomes.values()) for number in (min, max))
    return f"{fewest} to {most} seeds" if fewest < most else _several(most, "seed")


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _note(budget: Mapping[str, int], match: Match, diverged: Mapping[str, str], data: Any, why: str) -> str:
    known = data.note if isinstance(data, Data) else why
    sentences = [*[known] * bool(known), *diverged.values()]
    if match == "compute":
        each = ", ".join(f"{name} {epochs}" for name, epochs in budget.items())
        sentences.append(f"Compute-matched by measured time a step; epochs: {each}.")
    return " ".join(sentences)


@contextmanager
def progress_bar(progress: bool | None) -> Iterator[Progress]:
    """Show what is trained and how far it is; by default where standard error is a terminal."""
    shown = sys.stderr.isatty() if progress is None else progress
    words = TextColumn("{task.description:>30}"), TextColumn("{task.percentage:>3.0f} %")
    columns = (words[0], BarColumn(), words[1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        yield bar
