"""The runs of a comparison: each is a training in a folder of its own, made once by whichever process takes it."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from limbeck.core.files import hold, write
from limbeck.core.frozen import frozen
from limbeck.core.method import Make, Method
from limbeck.core.task import Score, Task
from limbeck.data import Data
from limbeck.engine.assemble import assemble, paper_of, parameters_of, parts_of
from limbeck.engine.fit import Trainable, example_of, fit, labels_of, planned
from limbeck.engine.learner import Row, Schedule
from limbeck.engine.observe import exhibits_of_runs
from limbeck.engine.run import Run
from limbeck.measure import cost, paired
from limbeck.measure.evaluate import evaluate
from limbeck.report.comparison import pictured
from limbeck.report.examples import FILE, write_exhibits
from limbeck.report.table import Candidate, Role
from limbeck.tasks.classification import classification

BASELINE = "plain"
LOCK = ".lock"
Tell = Callable[[Mapping[str, float], int], None]
NETWORKS = ("peers", "assistants")
"""Options that are networks, which a run trains."""
NAMED = (*NETWORKS, "teacher")
"""Options that are networks, or their names."""
TIMED_EPOCHS, TIMED_BATCHES = 8, 10
"""What is trained to see how long a step takes: every stage of a method has its share."""


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    Args:
        method: Its name: ``limbeck list methods`` shows all; or a sum of several, ``"kd+at"``, see `limbeck.add`.
        options: Its keyword arguments, ``{"temperature": 2.0}``; in a sum ``{"kd.temperature": 2.0}``. ``peers`` and
            ``assistants`` are functions that make a network each, with weights drawn from torch's generator: every run
            calls them anew, after the student. Of a network itself every run trains a copy. ``{"teacher": None}`` is the
            method without its teacher, where it can do without.
        name: What the table calls it; by default the method with its options.
        teacher: Another teacher than the comparison's, as an untrained one for a control.
        control: Whether it is there to rule something out, and not to win.
        baseline: The name of the entry that it is compared with. By default plain; and where a method has players beside
            the student (a critic) and can do without a teacher, the same without one, which then runs too.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    teacher: nn.Module | None = None
    control: bool = False
    baseline: str = ""

    def __post_init__(self) -> None:
        words = {option: _word(value) if option in NAMED else value for option, value in self.options.items()}
        name = ", ".join([self.method, *(f"{option}={value}" for option, value in words.items())])
        object.__setattr__(self, "name", self.name or name)

    @property
    def labels_alone(self) -> bool:
        """Whether nobody teaches, so that there is nothing to learn from samples without a label."""
        nobody = ("nobody", "frozen network") if self.untaught else ("nobody",)
        return all(paper_of(part).teacher in nobody for part in parts_of(self.method))

    @property
    def untaught(self) -> bool:
        """Whether it is the method without its teacher."""
        return "teacher" in self.options and self.options["teacher"] is None

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        words = re.sub(r"[^A-Za-z0-9.=-]+", "-", self.name).strip("-.")
        return words if len(words) <= 80 else f"{words[:70]}-{_digest(words.encode())[:8]}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the score of the network to ship, and what that took."""

    value: float
    steps: int
    seconds: float


@dataclass
class Runs:
    """What the runs of a comparison share.

    Args:
        student: Makes the student, with weights drawn from torch's generator.
        teacher: The network to learn from, if there is one.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)``.
        folder: Where each run has its own; nothing is written without one.
        training: How, as `fit` takes it.
        split: What the networks are measured on. With ``"val"`` the test data is not touched.
        task: How networks are fed and judged.
    """

    student: Callable[[], nn.Module]
    teacher: nn.Module | None
    data: Any
    folder: Path | None
    training: Mapping[str, Any]
    split: Literal["val", "test"] = "test"
    task: Task = classification

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            _check_loaders(self.data)
        self.shared = {
            **{name: self.training[name] for name in ("precision", "accumulate", "clip")},
            "optimizer": _describe_optimizer(self.training["optimizer"]),
            "schedule": _describe_schedule(self.training["schedule"]),
            "data": self._describe_data(),
            "task": f"{self.task.name}, judged by the {self.score.best} {self.score.label}",
        }

    @property
    def score(self) -> Score:
        """What judges."""
        return self.task.score

    @property
    def batches(self) -> int:
        """In an epoch."""
        return len(self.data.train if isinstance(self.data, Data) else self.data[0])

    @property
    def data_name(self) -> str:
        """What the table says."""
        return self.data.name if isinstance(self.data, Data) else "data"

    def with_baselines(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries, plain first, with the baselines that they need and nobody listed."""
        plain, *others = entries
        needed: list[Entry] = []
        paired_up = []
        for entry in others:
            if not entry.baseline and self._plays_apart(entry):
                options = {**entry.options, "teacher": None}
                there = (one for one in (*others, *needed) if (one.method, one.options) == (entry.method, options))
                alone = next(there, Entry(entry.method, options, f"{entry.name}, no teacher", control=True))
                needed += [] if alone in (*others, *needed) else [alone]
                entry = replace(entry, baseline=alone.name)
            paired_up.append(entry)
        return [plain, *needed, *paired_up]

    def _plays_apart(self, entry: Entry) -> bool:
        """Whether plain is no measure of a method's teacher, since players beside the student make another game of it."""
        teacher = parameters_of(entry.method).get("teacher")
        if teacher is None or teacher.default is not None or entry.untaught:
            return False
        method = self._assemble(entry, 0)
        return isinstance(method, Method) and len(method.players()) > 1

    def check(self, entries: Sequence[Entry], epochs: int | None = None) -> None:
        """Assemble everything once: what cannot be trained is found before anything is.

        Args:
            entries: What will be trained.
            epochs: Of each, if all shall have the same.
        """
        _check_made_anew(self.student, "student()")
        for entry in entries:
            for name in NETWORKS:
                for make in _makers(entry.options.get(name)):
                    _check_made_anew(make, f"{entry.name}: what makes {name}")
            method = self._assemble(entry, 0)
            if isinstance(method, Method):
                continue
            took = sum(own for _, own in planned(method, epochs or 1))  # a generator complains when it goes on
            if epochs is not None and took > epochs:
                raise ValueError(
                    f"{entry.name} takes {took} epochs, and plain {epochs}, which is no fair comparison: each stage of a "
                    "method takes an epoch at least, so give more epochs"
                )

    def outcome(self, entry: Entry, seed: int, epochs: int, tell: Tell) -> Outcome | None:
        """Train, or go on, or read what is there; None where another process is at it.

        Args:
            entry: What to train.
            seed: Of the weights and the data.
            epochs: Of all its stages.
            tell: Is told what each epoch measured, and after how many batches; what it raises ends the training.

        Raises:
            FloatingPointError: The training diverged, or its score is no number.
            KeyboardInterrupt: Ctrl-C, after a checkpoint.
        """
        folder = None if self.folder is None else self.folder / entry.folder / f"seed-{seed}"
        with self._take(folder) as mine:
            outcome = self._outcome(folder, entry, seed, epochs, tell) if mine else None
        if outcome is not None and not math.isfinite(outcome.value):
            raise FloatingPointError(f"its {self.score.name} on the {self.split} data is {outcome.value}")
        return outcome

    def _take(self, folder: Path | None) -> AbstractContextManager[bool]:
        """Take a run, unless another process has; the processes of several devices make each together."""
        if folder is None or self.training["devices"] > 1:
            return nullcontext(True)
        return hold(folder / LOCK)

    def _outcome(self, folder: Path | None, entry: Entry, seed: int, epochs: int, tell: Tell) -> Outcome:
        settings = self.settings(entry, seed, epochs)
        if folder is not None and (kept := _kept(Run(folder), settings, self.split, self.score.name)):
            return kept
        result = fit(
            self._assemble(entry, seed),
            self._data(entry, seed),
            epochs=epochs,
            seed=seed,
            run_dir=folder,
            resume=folder is not None,
            loggers=[_Teller(tell)],
            progress=False,
            name=entry.name,
            settings=settings,
            **self.training,
        )
        if not result.finished:
            raise KeyboardInterrupt(f"stopped in {entry.name}, seed {seed}: the same call goes on from there")
        value = result.metrics[f"{self.split}/{next(iter(result.networks))}/{self.score.name}"]
        return Outcome(value, int(result.history[-1]["step"]), round(result.seconds, 3))

    def in_stages(self, entry: Entry) -> bool:
        """Whether it trains something else before the student that is measured."""
        return not isinstance(self._assemble(entry, 0), Method)

    def step_times(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Return each entry's time a step as a multiple of plain's: measured once, and kept, as budgets depend on it."""
        if self.folder is None:
            return self._measured(entries, {})
        path = self.folder / "step-times.json"
        with hold(
            self.folder / ".step-times.lock", wait=True
        ):  # one process measures while the others wait for its word
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            ratios = self._measured(entries, known)
            write(path, json.dumps(known | ratios, indent=2) + "\n")
        return ratios

    def candidates(self, entries: Sequence[Entry], outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[Candidate]:
        """Yield the rows of the table."""
        student, task = self._student(0), self.task
        example = example_of(self.data, student, task)
        price = cost(student, example, task)
        if self.teacher is not None:
            test = self.data.test if isinstance(self.data, Data) else self.data[2]
            device = Fabric(accelerator=self.training["accelerator"], devices=1).device
            teacher = frozen(self.teacher).again("eval")
            own = cost(teacher, example, task)
            value = evaluate(teacher.to(device), test, task)[self.score.name]  # a view moves alone
            yield Candidate("teacher", "teacher", own, (value,), score=self.score)
        reached = {name: tuple(outcome.value for outcome in of) for name, of in outcomes.items()}
        for entry in entries:
            mine = reached[entry.name]
            if entry.name == BASELINE:
                yield Candidate(BASELINE, "baseline", price, mine, score=self.score)
                continue
            role: Role = "control" if entry.control or entry.labels_alone else "distilled"
            pair = paired(mine, reached[entry.baseline or BASELINE])
            against = entry.baseline if entry.baseline != BASELINE else ""
            yield Candidate(entry.name, role, price, mine, pair, self.score, against)

    def keep_examples(self, entries: Sequence[Entry], candidates: Sequence[Candidate]) -> None:
        """Keep what the teacher and the best students of the first seed make of a few test samples, for the report."""
        if self.folder is None:
            return
        shown = pictured(candidates)
        runs = {entry.name: self.folder / entry.folder / "seed-0" for entry in entries if entry.name in shown}
        device = Fabric(accelerator=self.training["accelerator"], devices=1).device
        if exhibits := exhibits_of_runs(runs, self.student, self.teacher, self.data, self.task, device):
            write_exhibits(exhibits, self.folder / FILE)

    def _student(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.student()

    def _assemble(self, entry: Entry, seed: int) -> Trainable:
        student, teacher, options = self._given(entry, seed)
        example = example_of(self.data, student, self.task)
        return assemble(entry.method, student, teacher, example, options, labels_of(self.data), self.student, self.task)

    def _given(self, entry: Entry, seed: int) -> tuple[nn.Module, nn.Module | list[nn.Module] | None, dict[str, Any]]:
        """Make what a run is given: its student, who teaches, and its options, of which peers teach."""
        student = self._student(seed)  # the generator goes on: what is made next has other weights
        options = {name: _made(name, value) if name in NETWORKS else value for name, value in entry.options.items()}
        parameters = parameters_of(entry.method)
        if "peers" in parameters:
            others = self.student if entry.teacher is None else entry.teacher
            return student, options.pop("peers") if "peers" in options else _made("peers", others), options
        if entry.untaught:
            del options["teacher"]
            return student, None, options
        if entry.teacher is not None:
            return student, entry.teacher, options
        return student, self.teacher if "teacher" in parameters else None, options

    def _data(self, entry: Entry, seed: int) -> Any:
        """Return what `fit` is given: without the test data where it must not be touched."""
        if not isinstance(self.data, Data):
            return self.data if self.split == "test" else self.data[:2]
        data = (self.data.labelled() if entry.labels_alone else self.data).with_seed(seed)
        return data if self.split == "test" else (data.train, data.val)

    def _measured(self, entries: Sequence[Entry], known: Mapping[str, float]) -> dict[str, float]:
        ratios = {BASELINE: 1.0, **known}
        if missing := [entry for entry in entries if entry.name not in ratios]:
            plain = self._step_time(Entry(BASELINE))
            ratios |= {entry.name: self._step_time(entry) / plain for entry in missing}
        return {entry.name: ratios[entry.name] for entry in entries}

    def _step_time(self, entry: Entry) -> float:
        """Return the seconds of a step of `fit` itself, over all stages of a method."""
        train = self._data(entry, 0).train
        train.batches = TIMED_BATCHES
        result = fit(self._assemble(entry, 0), train, epochs=TIMED_EPOCHS, progress=False, **self.training)
        return _typical(result.history) / TIMED_BATCHES

    def settings(self, entry: Entry, seed: int, epochs: int) -> dict[str, Any]:
        """What a run is, as its ``config.yaml`` keeps it: a finished run is taken for this one only if all agrees."""
        student, teacher, options = self._given(entry, seed)
        return {
            "method": entry.method,
            "options": json.loads(json.dumps(options, default=_named)),
            "epochs": epochs,
            "seed": seed,
            **self.shared,
            "student": _fingerprint(student),
            "teacher": json.loads(json.dumps(teacher, default=_named)),
        }

    def _describe_data(self) -> dict[str, Any]:
        if not isinstance(self.data, Data):
            return {"batches": self.batches}
        loaders = [self.data.train, self.data.val, *([self.data.test] if self.split == "test" else [])]
        labels = _digest(
            *(loader.fingerprint().encode() if loader.targets is None else _bytes(loader.targets) for loader in loaders)
        )
        return {
            "name": self.data.name,
            "batches": self.batches,
            "batch_size": self.data.train.batch_size,
            "labels": labels,
        }


class _Teller(Logger):
    """Passes on what each epoch of a run measured."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    @property
    def name(self) -> str:
        return "teller"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tell(metrics, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


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


def _made(name: str, given: Any) -> Any:
    """Return the networks that an option says: made now, or copied, as they will be trained."""
    if isinstance(given, (list, tuple)):
        return [_made(name, each) for each in given]
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if not callable(given):
        raise TypeError(f"{name} must be networks, or functions that make one each, got {given!r}")
    return given()


def _makers(given: Any) -> list[Callable[[], nn.Module]]:
    """Return those of an option's values that make a network."""
    listed = given if isinstance(given, (list, tuple)) else [given]
    return [each for each in listed if callable(each) and not isinstance(each, nn.Module)]


def _check_made_anew(make: Callable[[], nn.Module], what: str) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make())
    if nets[0] is nets[1]:
        raise ValueError(f"{what} gives the same network twice: it must make a new one at each call")
    if _fingerprint(nets[0]) != _fingerprint(nets[1]):
        raise ValueError(
            f"{what} makes other weights at each call, so that runs cannot be paired: "
            "draw them from torch's generator, which is seeded before"
        )


def _word(given: Any) -> str:
    """Call networks, or what makes them, by a name for the table, and so for a folder: alike in every process."""
    if isinstance(given, (list, tuple)):
        return f"[{', '.join(map(_word, given))}]"
    if given is None or isinstance(given, str):
        return str(given)
    return str(getattr(given, "__name__", type(given).__name__))


def _kept(run: Run, settings: Mapping[str, Any], split: str, score: str) -> Outcome | None:
    """Read a finished run.

    Raises:
        ValueError: What is there is the run of another training.
    """
    if not run.exists:
        return None
    run.check(settings, resume=True)
    path = run.folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not result.get("finished"):
        return None
    shipped = next(iter(result["networks"].values()))
    with (run.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)][-1]
    return Outcome(shipped[split][score], steps, result["seconds"])


def _typical(history: Sequence[Row]) -> float:
    """Return the seconds of an epoch: each stage's median, without its first epoch if there are more, by its epochs."""
    seconds: dict[str, list[float]] = {}
    for row in history:
        seconds.setdefault(str(row["stage"]), []).append(float(row["seconds"]))
    return sum(len(of) * statistics.median(of[1:] or of) for of in seconds.values()) / len(history)


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
    """Name what JSON cannot hold, alike in every process: of a network its weights, as assistants have."""
    if isinstance(value, nn.Module):
        return _fingerprint(value)
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
