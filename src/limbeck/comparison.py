"""Did it help? Methods beside the plain student: the same budget, weights and order of the data, seed by seed."""

from __future__ import annotations

import csv
import hashlib
import inspect
import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.engine.assemble import assemble, find
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import Precision, Trainable, example_of, fit
from limbeck.engine.learner import Row, Schedule
from limbeck.engine.run import Run
from limbeck.files import write
from limbeck.frozen import Frozen, bare
from limbeck.measure import cost, paired
from limbeck.method import Make, Method
from limbeck.report.comparison import Comparison, write_comparison
from limbeck.report.table import Candidate, Role

Match = Literal["epochs", "compute"]

BASELINE = "plain"
TIMED_EPOCHS, TIMED_BATCHES = 8, 10
"""What is trained to see how long a step takes: every stage of a method has its share."""


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    Args:
        method: Its name: ``limbeck list methods`` shows all.
        options: Its keyword arguments, ``{"temperature": 2.0}``.
        name: What the table calls it; by default the method with its options.
        teacher: Another teacher than the comparison's, as an untrained one for a control.
        control: Whether it is there to rule something out, and not to win.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    teacher: nn.Module | None = None
    control: bool = False

    def __post_init__(self) -> None:
        words = [self.method, *(f"{option}={value}" for option, value in self.options.items())]
        object.__setattr__(self, "name", self.name or ", ".join(words))

    @property
    def labels_alone(self) -> bool:
        """Whether nobody teaches, so that there is nothing to learn from samples without a label."""
        return bool(sys.modules[find(self.method).__module__].PAPER.teacher == "nobody")

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        words = re.sub(r"[^A-Za-z0-9.=-]+", "-", self.name).strip("-.")
        return words if len(words) <= 80 else f"{words[:70]}-{_digest(words.encode())[:8]}"


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


def compare(
    entries: Iterable[str | Entry],
    student: Callable[[], nn.Module],
    teacher: nn.Module | None,
    data: Any,
    *,
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

    The plain student is always among them. What nobody teaches (``plain``, ``ls``) trains on the labelled samples alone,
    and takes as many steps as the others. Every seed gives all of them the same initial weights and order of the data.

    In ``run_dir`` each run has a folder, ``METHOD/seed-0``, and beside them are ``report.html``, ``table.md``,
    ``table.csv``, ``table.tex`` and ``results.json``. The same call goes on where a former one ended, however it ended:
    what is finished is read, what was under way is resumed. More entries or seeds may be asked for then; another
    training is refused.

    The verdict on each method is that of a paired t-test, corrected for their number (`limbeck.measure.judge`); where it
    cannot tell, it estimates how many more seeds would (`limbeck.measure.seeds_needed`).

    Args:
        entries: Methods by name, or with options as `Entry`; `grid` makes those of a grid.
        student: Makes the student, with weights drawn from torch's generator.
        teacher: The network to learn from; None where no method needs one. Methods of peers get a second student.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)`` without generators of their own, as for `fit`.
        epochs: Of each run, all its stages together.
        seeds: How many, from 0 on.
        match: What is equal: ``"epochs"``, so that every run has as many steps as plain; or ``"compute"``, so that every
            run takes about as long: a method has the epochs of plain divided by the ratio of their times a step. These
            are measured once, each over 80 steps, by the median of epochs after the first of each stage.
        run_dir: The folder of the comparison; nothing is written without one.
        optimizer: As for `fit`.
        schedule: As for `fit`.
        precision: As for `fit`.
        accelerator: As for `fit`.
        devices: As for `fit`.
        strategy: As for `fit`.
        accumulate: As for `fit`.
        clip: As for `fit`.
        progress: Show a progress bar; by default where standard error is a terminal.

    Returns:
        The teacher, the plain student and every entry, with the accuracies on the test data by seed.

    Raises:
        ValueError, TypeError: An entry that cannot be assembled, before anything is trained; a student that is not made
            anew, or not of the seed; runs in ``run_dir`` that are not of this comparison; a method with more stages than
            epochs.
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
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if match not in ("epochs", "compute"):
        raise ValueError(f"match must be 'epochs' or 'compute', got {match!r}")
    if match == "compute" and (devices > 1 or not isinstance(data, Data)):
        raise ValueError("match='compute' needs one device, and a limbeck.data.Data, whose epochs can be cut short")
    listed = _line_up(entries)
    runs = _Runs(
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
    )
    runs.check(listed)
    budget = {entry.name: epochs for entry in listed}
    outcomes: dict[str, list[_Outcome]] = {entry.name: [] for entry in listed}
    with _bar(progress) as bar:
        task, done = bar.add_task("timing", total=None), 0
        if match == "compute":
            budget = {name: max(1, round(epochs / ratio)) for name, ratio in runs.step_times(listed).items()}
        bar.update(task, total=seeds * sum(budget.values()))
        for seed, entry in itertools.product(range(seeds), listed):  # seed by seed: what fails fails in the first
            bar.update(task, description=f"{entry.name}, seed {seed}")
            outcome = runs.outcome(entry, seed, budget[entry.name], _Ticks(bar, task, done, runs.batches))
            if match == "epochs":
                _same_steps(entry, outcome, outcomes[BASELINE][seed] if entry.name != BASELINE else outcome)
            outcomes[entry.name].append(outcome)
            done += budget[entry.name]
            bar.update(task, completed=done)
    comparison = Comparison(
        f"{runs.data_name}: {epochs} epochs, {seeds} {'seed' if seeds == 1 else 'seeds'}",
        _note(budget, match, data),
        tuple(runs.candidates(listed, outcomes)),
    )
    if run_dir is not None:
        seconds = {name: [outcome.seconds for outcome in of] for name, of in outcomes.items()}
        versions = {"torch": torch.__version__, "Python": sys.version.split()[0]}
        rank_zero_only(write_comparison)(
            comparison,
            Path(run_dir),
            facts={
                "Training": f"{sum(map(sum, seconds.values())):.0f} s",
                "Versions": ", ".join(map(" ".join, versions.items())),
            },
            details={"match": match, "epochs": budget, "seconds": seconds, "versions": versions},
        )
    return comparison


@dataclass(frozen=True)
class _Outcome:
    """What a run came to."""

    accuracy: float
    steps: int
    seconds: float


@dataclass
class _Runs:
    """The runs of a comparison: what all of them share."""

    student: Callable[[], nn.Module]
    teacher: nn.Module | None
    data: Any
    folder: Path | None
    training: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            _check_loaders(self.data)
        self.shared = {
            **{name: self.training[name] for name in ("precision", "accumulate", "clip")},
            "optimizer": _describe_optimizer(self.training["optimizer"]),
            "schedule": _describe_schedule(self.training["schedule"]),
            "data": self._describe_data(),
        }

    @property
    def batches(self) -> int:
        """In an epoch."""
        return len(self.data.train if isinstance(self.data, Data) else self.data[0])

    @property
    def data_name(self) -> str:
        return self.data.name if isinstance(self.data, Data) else "data"

    def check(self, entries: Sequence[Entry]) -> None:
        """Assemble everything once: what cannot be trained is found before anything is."""
        one, other = self._student(0), self._student(0)
        if one is other:
            raise ValueError("student() gives the same network twice: it must make a new one at each call")
        if _fingerprint(one) != _fingerprint(other):
            raise ValueError(
                "student() makes other weights at each call, so that runs cannot be paired: "
                "draw them from torch's generator, which is seeded before"
            )
        for entry in entries:
            method = self._assemble(entry, 0)
            if not isinstance(method, Method):
                next(iter(method))  # a generator complains when it begins

    def outcome(self, entry: Entry, seed: int, epochs: int, ticks: Logger) -> _Outcome:
        """Train, or go on, or read what is there."""
        folder = None if self.folder is None else self.folder / entry.folder / f"seed-{seed}"
        settings = self._settings(entry, seed, epochs)
        if folder is not None and (kept := _kept(Run(folder), settings)):
            return kept
        result = fit(
            self._assemble(entry, seed),
            self._data(entry, seed),
            epochs=epochs,
            seed=seed,
            run_dir=folder,
            resume=folder is not None,
            loggers=[ticks],
            progress=False,
            name=entry.name,
            settings=settings,
            **self.training,
        )
        if not result.finished:
            raise KeyboardInterrupt(f"stopped in {entry.name}, seed {seed}: the same call goes on from there")
        accuracy = result.metrics[f"test/{next(iter(result.networks))}/accuracy"]
        return _Outcome(accuracy, int(result.history[-1]["step"]), result.seconds)

    def step_times(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Return each entry's time a step as a multiple of plain's: measured once, and kept, as budgets depend on it."""
        path = None if self.folder is None else self.folder / "step-times.json"
        ratios: dict[str, float] = json.loads(path.read_text()) if path is not None and path.exists() else {}
        if missing := [entry for entry in entries if entry.name not in ratios]:
            plain = self._step_time(Entry(BASELINE))
            ratios |= {entry.name: self._step_time(entry) / plain for entry in missing if entry.name != BASELINE}
            ratios[BASELINE] = 1.0
            if path is not None:
                write(path, json.dumps(ratios, indent=2) + "\n")
        return {entry.name: ratios[entry.name] for entry in entries}

    def candidates(self, entries: Sequence[Entry], outcomes: Mapping[str, Sequence[_Outcome]]) -> Iterator[Candidate]:
        """Yield the rows of the table."""
        student = self._student(0)
        example = example_of(self.data, student)
        price = cost(student, example)
        if self.teacher is not None:
            test = self.data.test if isinstance(self.data, Data) else self.data[2]
            device = Fabric(accelerator=self.training["accelerator"], devices=1).device
            accuracy = evaluate(Frozen(bare(self.teacher)).to(device).net, test)["accuracy"]  # a view moves alone
            yield Candidate("teacher", "teacher", cost(self.teacher, example), (accuracy,))
        reached = {name: tuple(outcome.accuracy for outcome in of) for name, of in outcomes.items()}
        for entry in entries:
            mine = reached[entry.name]
            if entry.name == BASELINE:
                yield Candidate(BASELINE, "baseline", price, mine)
            else:
                role: Role = "control" if entry.control or entry.labels_alone else "distilled"
                yield Candidate(entry.name, role, price, mine, paired(mine, reached[BASELINE]))

    def _student(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.student()

    def _assemble(self, entry: Entry, seed: int) -> Trainable:
        student = self._student(seed)
        return assemble(entry.method, student, self._teacher(entry), example_of(self.data, student), entry.options)

    def _teacher(self, entry: Entry) -> nn.Module | None:
        parameters = inspect.signature(find(entry.method)).parameters
        if entry.teacher is not None:
            return entry.teacher
        if "peers" in parameters:
            return self.student()  # the generator has gone on: other weights than the student's
        return self.teacher if "teacher" in parameters else None

    def _data(self, entry: Entry, seed: int) -> Any:
        if not isinstance(self.data, Data):
            return self.data
        return (self.data.labelled() if entry.labels_alone else self.data).with_seed(seed)

    def _step_time(self, entry: Entry) -> float:
        """Return the seconds of a step of `fit` itself, over all stages of a method."""
        train = self._data(entry, 0).train
        train.batches = TIMED_BATCHES
        result = fit(self._assemble(entry, 0), train, epochs=TIMED_EPOCHS, progress=False, **self.training)
        return _typical(result.history) / TIMED_BATCHES

    def _settings(self, entry: Entry, seed: int, epochs: int) -> dict[str, Any]:
        """What a run is, as its ``config.yaml`` keeps it: a finished run is taken for this one only if all agrees."""
        student = self._student(seed)
        teacher = self._teacher(entry)
        return {
            "method": entry.method,
            "options": json.loads(json.dumps(entry.options, default=_named)),
            "epochs": epochs,
            "seed": seed,
            **self.shared,
            "student": _fingerprint(student),
            "teacher": None if teacher is None else _fingerprint(teacher),
        }

    def _describe_data(self) -> dict[str, Any]:
        if not isinstance(self.data, Data):
            return {"batches": self.batches}
        labels = _digest(*(_bytes(loader.targets) for loader in (self.data.train, self.data.val, self.data.test)))
        return {
            "name": self.data.name,
            "batches": self.batches,
            "batch_size": self.data.train.batch_size,
            "labels": labels,
        }


class _Ticks(Logger):
    """Moves a bar on after each epoch of a run.

    Args:
        bar: The bar.
        task: Its line.
        start: Epochs of the runs before.
        batches: Steps of an epoch.
    """

    def __init__(self, bar: Progress, task: TaskID, start: int, batches: int) -> None:
        super().__init__()
        self._bar, self._task, self._start, self._batches = bar, task, start, batches

    @property
    def name(self) -> str:
        return "progress"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._bar.update(self._task, completed=self._start + (step or 0) / self._batches)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def _line_up(entries: Iterable[str | Entry]) -> list[Entry]:
    """Return the entries, the plain student first."""
    if isinstance(entries, str):
        raise TypeError(f"entries must be a list, got the string {entries!r}: write [{entries!r}]")
    listed = [Entry(entry) if isinstance(entry, str) else entry for entry in entries]
    listed = [Entry(BASELINE), *(entry for entry in listed if entry != Entry(BASELINE))]
    for entry in listed:
        find(entry.method)
    folders = [entry.folder for entry in listed]
    if twice := [entry.name for entry in listed if folders.count(entry.folder) > 1]:
        raise ValueError(f"two entries have the same name, {twice[0]!r}: give one another, Entry(..., name=...)")
    if len(listed) == 1:
        raise ValueError("there is nothing to compare with the plain student: name a method")
    return listed


def _check_loaders(data: Any) -> None:
    loaders = data if isinstance(data, tuple) else ()
    if len(loaders) != 3 or loaders[2] is None:
        raise TypeError("a comparison needs test data: a limbeck.data.Data, or loaders (train, val, test)")
    holders = [holder for loader in loaders for holder in (loader, getattr(loader, "sampler", None))]
    if any(getattr(holder, "generator", None) is not None for holder in holders):
        raise ValueError(
            "a loader draws from a generator of its own, which goes on from run to run, so that methods would see "
            "other orders: leave generator= out, every run's seed is set before it"
        )


def _kept(run: Run, settings: Mapping[str, Any]) -> _Outcome | None:
    """Read a finished run.

    Raises:
        ValueError: What is there is the run of another training.
    """
    if not run.exists:
        return None
    was = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    if other := [name for name in settings if was.get(name) != settings[name]]:
        raise ValueError(
            f"the run in {run.folder} has another {other[0]}: {was.get(other[0])}, and not {settings[other[0]]}. "
            "Go on with the same settings, or take another run_dir"
        )
    path = run.folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not result.get("finished"):
        return None
    shipped = next(iter(result["networks"].values()))
    with (run.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)][-1]
    return _Outcome(shipped["test"]["accuracy"], steps, result["seconds"])


def _same_steps(entry: Entry, outcome: _Outcome, plain: _Outcome) -> None:
    if outcome.steps != plain.steps:
        raise ValueError(
            f"{entry.name} took {outcome.steps} steps and plain {plain.steps}, which is no fair comparison: each "
            "stage of a method takes an epoch at least, so give more epochs"
        )


def _typical(history: Sequence[Row]) -> float:
    """Return the seconds of an epoch: each stage's median, without its first epoch if there are more, by its epochs."""
    seconds: dict[str, list[float]] = {}
    for row in history:
        seconds.setdefault(str(row["stage"]), []).append(float(row["seconds"]))
    return sum(len(of) * statistics.median(of[1:] or of) for of in seconds.values()) / len(history)


def _note(budget: Mapping[str, int], match: Match, data: Any) -> str:
    sentences = [data.note] if isinstance(data, Data) and data.note else []
    if match == "compute":
        each = ", ".join(f"{name} {epochs}" for name, epochs in budget.items())
        sentences.append(f"Compute-matched by measured time a step; epochs: {each}.")
    return " ".join(sentences)


def _describe_optimizer(make: Make | Mapping[str, Make] | None) -> Any:
    """Tell optimizers apart by what they make: functions cannot be compared."""
    if isinstance(make, Mapping):
        return {player: _describe_optimizer(each) for player, each in make.items()}
    return None if make is None else repr(make([nn.Parameter(torch.zeros(1))]))


def _describe_schedule(schedule: Schedule | None) -> str | None:
    if schedule is None:
        return None
    made = schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 100)
    return f"{type(made).__name__} {made.state_dict()}"


def _named(value: Any) -> str:
    """Name what JSON cannot hold, alike in every process."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _fingerprint(net: nn.Module) -> str:
    """Tell weights apart."""
    return _digest(*(_bytes(value) for value in net.state_dict().values() if isinstance(value, Tensor)))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def _bar(progress: bool | None) -> Iterator[Progress]:
    shown = sys.stderr.isatty() if progress is None else progress
    words = TextColumn("{task.description:>30}"), TextColumn("{task.percentage:>3.0f} %")
    columns = (words[0], BarColumn(), words[1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        yield bar
