"""Did it help? Methods beside the plain student: the same budget, weights and order of the data, seed by seed."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from limbeck.core.files import hold
from limbeck.core.method import Make
from limbeck.core.options import ranged
from limbeck.core.task import Task
from limbeck.data import Data
from limbeck.engine.assemble import parts_of
from limbeck.engine.fit import Precision, task_of
from limbeck.engine.learner import Schedule
from limbeck.report.comparison import Comparison, write_comparison
from limbeck.verbs.runs import BASELINE, LOCK, Outcome, Runs
from limbeck.verbs.runs import Entry as Entry

Match = Literal["epochs", "compute"]

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
def compare(
    entries: Iterable[str | Entry],
    student: Callable[[], nn.Module],
    teacher: nn.Module | None,
    data: Any,
    *,
    task: Task | None = None,
    epochs: int,
    seeds: int = 3,
    match: Match = "epochs",
    run_dir: str | os.PathLike[str] | None = None,
    optimizer: Make | Mapping[str, Make] | None = None,
    schedule: Schedule | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    accumulate: int = 1,
    clip: float | None = None,
    progress: bool | None = None,
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
    cannot tell, it estimates how many more seeds would (`limbeck.measure.seeds_needed`).

    Where the teacher, or a student after its training, is no better than guessing, the comparison says so before all else
    (`Comparison.doubts`); entries that are named as controls are meant to learn from such a teacher.

    A method that diverges with one of the seeds, or whose score is then no number, has no row, and the comparison's note
    says so; the others go on.

    Args:
        entries: Methods by name, or with options as `Entry`; `grid` makes those of a grid.
        student: Makes the student, with weights drawn from torch's generator.
        teacher: The network to learn from; None where no method needs one. Methods of peers get a second student,
            unless their `Entry` has others.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)`` without generators of their own, as for `fit`.
        task: How networks are fed, and by which score they are judged: ``limbeck.multilabel``, or one of your own. By
            default the data's; loaders are taken for classification.
        epochs: Of each run, all its stages together, at least 1.
        seeds: How many, from 0 on, at least 1.
        match: What is equal: ``"epochs"``, so that every run has as many steps as plain; or ``"compute"``, so that every
            run takes about as long: a method has the epochs of plain divided by the ratio of their times a step. These
            are measured once, each over 80 steps, by the median of epochs after the first of each stage.
        run_dir: The folder of the comparison; nothing is written without one.
        optimizer: As for `fit`.
        schedule: As for `fit`.
        precision: As for `fit`.
        accelerator: As for `fit`.
        devices: As for `fit`, at least 1.
        strategy: As for `fit`.
        accumulate: As for `fit`, at least 1.
        clip: As for `fit`, above 0.
        progress: Show a progress bar; by default where standard error is a terminal.

    Returns:
        The teacher, the plain student and every entry, with the score on the test data by seed.

    Raises:
        ValueError, TypeError: An entry that cannot be assembled, before anything is trained; a baseline that is no entry; a
            student that is not made anew, or not of the seed; runs in ``run_dir`` that are not of this comparison, or are
            damaged (the message names the file and what to remove); a method
            with more stages than epochs; runs on several devices each while another process makes them.
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
    if match == "compute" and (devices > 1 or not isinstance(data, Data)):
        raise ValueError("match='compute' needs one device, and a limbeck.data.Data, whose epochs can be cut short")
    listed = _line_up(entries)
    runs = Runs(
        student,
        teacher,
        data,
        None if run_dir is None else Path(run_dir),
        training={
            "optimizer": optimizer,
            "schedule": schedule,
            "precision": precision,
            "accelerator": accelerator,
            "devices": devices,
            "strategy": strategy,
            "accumulate": accumulate,
            "clip": clip,
        },
        task=task or task_of(data),
    )
    listed = runs.with_baselines(listed)
    runs.check(listed, epochs if match == "epochs" else None)
    budget = {entry.name: epochs for entry in listed}
    with _together(run_dir, devices), progress_bar(progress) as bar:
        shown = bar.add_task("timing", total=None)
        if match == "compute":
            budget = {name: max(1, round(epochs / ratio)) for name, ratio in runs.step_times(listed).items()}
        bar.update(shown, total=seeds * sum(budget.values()))
        outcomes, diverged = _all_outcomes(runs, listed, seeds, budget, match, bar, shown)
    listed = [entry for entry in listed if entry.name in outcomes]
    comparison = Comparison(
        f"{runs.data_name}: {epochs} epochs, {seeds} {'seed' if seeds == 1 else 'seeds'}",
        _note(budget, match, diverged, data),
        tuple(runs.candidates(listed, outcomes)),
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


def _all_outcomes(
    runs: Runs,
    entries: Sequence[Entry],
    seeds: int,
    budget: Mapping[str, int],
    match: Match,
    bar: Progress,
    task: TaskID,
) -> tuple[dict[str, list[Outcome]], dict[str, str]]:
    """Return the outcomes of each entry by seed, whichever process trains them, and what is said of those that diverge."""
    found: dict[tuple[str, int], Outcome] = {}
    diverged: dict[str, str] = {}
    baselines = {BASELINE, *(entry.baseline for entry in entries)}
    others = sum(entry.name not in baselines for entry in entries)
    left, done = [(entry, seed) for seed in range(seeds) for entry in entries], 0  # what fails fails in the first seed
    while left:
        elsewhere = []
        for entry, seed in left:
            if entry.name in diverged:
                continue
            bar.update(task, description=f"{entry.name}, seed {seed}")
            try:
                outcome = runs.outcome(entry, seed, budget[entry.name], partial(_tick, bar, task, done, runs.batches))
            except FloatingPointError as error:  # the others are not to wait for somebody to see it
                if entry.name in baselines or len(diverged) == others - 1:
                    raise
                diverged[entry.name] = f"{entry.name} diverged with seed {seed} and has no row: {error}."
                continue
            if outcome is None:
                elsewhere.append((entry, seed))
                continue
            found[entry.name, seed] = outcome
            done += budget[entry.name]
            bar.update(task, completed=done)
        if len(elsewhere) == len(left):
            bar.update(task, description="waiting for other processes")
            time.sleep(LOOK_EVERY)
        left = elsewhere
    stayed = [entry.name for entry in entries if entry.name not in diverged]
    return {name: [found[name, seed] for seed in range(seeds)] for name in stayed}, diverged


def _tick(bar: Progress, task: TaskID, done: int, batches: int, metrics: Mapping[str, float], step: int) -> None:
    """Move the bar on after an epoch of a run, ``done`` being those of the runs before."""
    bar.update(task, completed=done + step / batches)


@contextmanager
def _together(run_dir: str | os.PathLike[str] | None, devices: int) -> Iterator[None]:
    """Keep other processes out where each run is made by several of its own, which could not agree who takes what."""
    if run_dir is None or devices == 1 or int(getattr(rank_zero_only, "rank", 0)) > 0:
        yield
        return
    with hold(Path(run_dir) / LOCK) as mine:
        if not mine:
            raise ValueError(
                f"another process makes the comparison in {run_dir}: with devices={devices} one at a time can"
            )
        yield


def _line_up(entries: Iterable[str | Entry]) -> list[Entry]:
    """Return the entries, the plain student first."""
    if isinstance(entries, str):
        raise TypeError(f"entries must be a list, got the string {entries!r}: write [{entries!r}]")
    listed = [Entry(entry) if isinstance(entry, str) else entry for entry in entries]
    listed = [Entry(BASELINE), *(entry for entry in listed if entry != Entry(BASELINE))]
    for entry in listed:
        parts_of(entry.method)
    folders = [entry.folder for entry in listed]
    if twice := [entry.name for entry in listed if folders.count(entry.folder) > 1]:
        raise ValueError(f"two entries have the same name, {twice[0]!r}: give one another, Entry(..., name=...)")
    names = [entry.name for entry in listed]
    if lost := [entry for entry in listed if entry.baseline and entry.baseline not in set(names) - {entry.name}]:
        raise ValueError(
            f"{lost[0].name} is to be compared with {lost[0].baseline!r}, which is no other entry's name: there are {names}"
        )
    if len(listed) == 1:
        raise ValueError("there is nothing to compare with the plain student: name a method")
    return listed


def _note(budget: Mapping[str, int], match: Match, diverged: Mapping[str, str], data: Any) -> str:
    sentences = [*([data.note] if isinstance(data, Data) and data.note else []), *diverged.values()]
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
