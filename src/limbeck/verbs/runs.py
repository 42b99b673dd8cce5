"""The runs of a comparison: each is a training in a folder of its own, made once by whichever process takes it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger
from torch import nn

from limbeck.core.copied import copied
from limbeck.core.files import Damaged, hold, keep, read, sha256_of
from limbeck.core.frozen import Frozen, bare, frozen
from limbeck.core.heard import placed
from limbeck.core.method import Method
from limbeck.core.stage import Stage
from limbeck.core.task import Score, Task
from limbeck.data import Data
from limbeck.data.cache import Brought
from limbeck.data.cached import uncached
from limbeck.data.identity import described, identity
from limbeck.data.repeatable import Cached, splits
from limbeck.engine.assemble import assemble, parameters_of, parts_of
from limbeck.engine.fit import Trainable, example_of, fit, labels_of, planned, refuse_unremembered, teachers_known
from limbeck.engine.inputs import (
    architecture_of,
    describe_optimizer,
    describe_schedule,
    describe_task,
    describe_teacher,
    refuse_another,
    weights_of,
)
from limbeck.engine.learner import Row
from limbeck.engine.observe import exhibits_of_runs
from limbeck.engine.run import Occupied, Run
from limbeck.engine.taught import described_cache, told_to
from limbeck.measure import Plan, cost, paired_over_shared
from limbeck.measure.evaluate import Measurement
from limbeck.methods._papers import paper_of
from limbeck.nets.elsewhere import Elsewhere
from limbeck.report.comparison import pictured
from limbeck.report.examples import FILE, write_exhibits
from limbeck.report.history import read_rows
from limbeck.report.run import run_report
from limbeck.report.table import Candidate, Role, as_judged
from limbeck.tasks.classification import classification
from limbeck.verbs.doubts import measured, of_students, of_teacher

BASELINE = "plain"
LOCK = ".lock"
USUAL = {"sync_batchnorm": False, "teacher_dtype": "own"}
"""What else of a training changes what it comes to, as it is where nobody says."""
Tell = Callable[[Mapping[str, float], int], None]
NETWORKS = ("peers", "assistants")
"""Options that are networks, which a run trains."""
NAMED = (*NETWORKS, "teacher")
"""Options that are networks, or their names."""
PAGE = "report.html"
MEASURED = "settings"
"""What a file of times calls the settings that they were measured with."""
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
        if len(words) <= 80:
            return words
        return f"{words[:70]}-{hashlib.blake2b(words.encode(), digest_size=8).hexdigest()[:8]}"


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

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all runs have in common, as their settings say it."""
        return {
            "limbeck": importlib.metadata.version("limbeck"),
            **{name: self.training[name] for name in ("precision", "accumulate", "clip")},
            **{name: self.training.get(name, usual) for name, usual in USUAL.items()},
            "optimizer": describe_optimizer(self.training["optimizer"]),
            "schedule": describe_schedule(self.training["schedule"]),
            "data": self._describe_data(),
            "cache": described_cache(splits(self.data, seed=0).train.answers),
            "task": f"{self.task.name}, judged by the {self.score.best} {self.score.label}",
            "asked of networks": _digest(describe_task(self.task)),
        }

    @cached_property
    def few(self) -> Any:
        """A batch of a few training samples."""
        return splits(self.data, seed=0).few()

    @property
    def asked(self) -> nn.Module | None:
        """The teacher, if it is here."""
        return None if self.teacher is None or isinstance(bare(self.teacher), Elsewhere) else self.teacher

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
            stages = [Stage(method)] if isinstance(method, Method) else method
            listed = list(planned(stages, epochs or 1))  # a generator complains when it goes on
            self._check_cache(entry, listed[0][0].method)
            took = sum(own for _, own in listed)
            if epochs is not None and took > epochs:
                raise ValueError(
                    f"{entry.name} takes {took} epochs, and plain {epochs}, which is no fair comparison: each stage of a "
                    "method takes an epoch at least, so give more epochs"
                )

    def _check_cache(self, entry: Entry, method: Method) -> None:
        """Find what a cache cannot give to a method that learns from the teacher of all."""
        answers = splits(self.data, seed=0).train.answers
        if entry.teacher is None and isinstance(answers, Brought):
            try:
                told_to(method, answers, first=True)
            except ValueError as error:
                raise ValueError(f"{entry.name}: {error}") from error

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
        folder = self.place(entry, seed)
        outcome = None if folder is None else self.kept(entry, seed, epochs)
        if outcome is None:
            try:
                with placed(f"{entry.name}, seed {seed}"):
                    outcome = self._outcome(folder, entry, seed, epochs, tell)
            except Occupied:
                return None
        if not math.isfinite(outcome.value):
            raise FloatingPointError(f"its {self.score.name} on the {self.split} data is {outcome.value}")
        return outcome

    def place(self, entry: Entry, seed: int) -> Path | None:
        """Return the folder of a run, if it has one."""
        return None if self.folder is None else self.folder / entry.folder / f"seed-{seed}"

    def kept(self, entry: Entry, seed: int, epochs: int) -> Outcome | None:
        """Return what a finished run came to; None where there is none, or where something is still to be written.

        Raises:
            ValueError: What is there is the run of another training, or is damaged.
        """
        folder = self.place(entry, seed)
        if folder is None or not (run := Run(folder)).begun:
            return None
        self._refuse_another(run, self.settings(entry, seed, epochs))
        result = run.result()
        if not result.get("finished"):
            return None
        _see_files(folder, result.get("files", {}))
        rows = read_rows(folder / "metrics.csv")
        if run.latest is not None and not (rows and (folder / PAGE).exists()):  # it was killed while it wrote these
            return None
        try:
            value = next(iter(result["networks"].values())).get(self.split, {}).get(self.score.name)
            seconds, steps = float(result["seconds"]), int(rows[-1]["step"])
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise Damaged(
                f"{folder / 'result.json'} and metrics.csv beside it are not those of a finished run: {_anew(folder)}"
            ) from error
        if not (folder / PAGE).exists():
            run_report(folder)
        return None if value is None else Outcome(float(value), steps, seconds)

    def _refuse_another(self, run: Run, settings: Mapping[str, Any]) -> None:
        """See that a run is one of this comparison, by all that it depends on."""
        was = read(run.config, _anew(run.folder))
        if "limbeck" not in was:
            raise ValueError(
                f"{run.config} does not say all that its run depends on, as those of an older limbeck do not: nobody can "
                "tell whether it belongs here. Take another run_dir"
            )
        refuse_another(run.folder, was, settings)

    def _outcome(self, folder: Path | None, entry: Entry, seed: int, epochs: int, tell: Tell) -> Outcome:
        with teachers_known():
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
                settings=self.settings(entry, seed, epochs),
                **self.training,
            )
        if result.interrupted:  # one that is finished is read by the call that goes on
            raise KeyboardInterrupt(f"stopped in {entry.name}, seed {seed}: the same call goes on from there")
        score = f"{self.split}/{next(iter(result.networks))}/{self.score.name}"
        if score not in result.metrics:
            raise ValueError(
                f"{entry.name}, seed {seed}, was trained, but its {self.score.name} was not measured: "
                f"{'; '.join(result.missing.values())}"
            )
        return Outcome(result.metrics[score], int(result.history[-1]["step"]), round(result.seconds, 3))

    def in_stages(self, entry: Entry) -> bool:
        """Whether it trains something else before the student that is measured."""
        return not isinstance(self._assemble(entry, 0), Method)

    def step_times(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Return each entry's time a step as a multiple of plain's: measured once, and kept, as budgets depend on it."""
        if self.folder is None:
            return self._measured(entries, {})
        path = self.folder / "step-times.json"
        of = {entry.name: _digest(self.settings(entry, 0, TIMED_EPOCHS)) for entry in entries}
        with hold(
            self.folder / ".step-times.lock", wait=True
        ):  # one process measures while the others wait for its word
            known = read(path, f"remove it, and what is trained under {self.folder}") if path.exists() else {}
            was = known.pop(MEASURED, {})
            both = was.keys() & of.keys()
            refuse_another(path, {name: was[name] for name in both}, {name: of[name] for name in both})
            ratios = self._measured(entries, known)
            keep(path, {**known, **ratios, MEASURED: {**was, **of}})
        return ratios

    def candidates(
        self, entries: Sequence[Entry], outcomes: Mapping[str, Sequence[Outcome]], plan: Plan = Plan()
    ) -> tuple[Candidate, ...]:
        """Return the rows of the table, with the differences that they are judged by."""
        return as_judged(tuple(self._candidates(entries, outcomes, plan)))

    def _candidates(
        self, entries: Sequence[Entry], outcomes: Mapping[str, Sequence[Outcome]], plan: Plan
    ) -> Iterator[Candidate]:
        student, task = self._student(0), self.task
        example = example_of(self.data, student, task)
        price = cost(student, example, task)
        if self.asked is not None:
            own = cost(frozen(self.asked).again("eval"), example, task)
            values = (
                () if self._teachers_measurement is None else (self._teachers_measurement.compute()[self.score.name],)
            )
            yield Candidate("teacher", "teacher", own, values, score=self.score, plan=plan)
        reached = {name: tuple(outcome.value for outcome in of) for name, of in outcomes.items()}
        for entry in entries:
            mine = reached[entry.name]
            if entry.name == BASELINE:
                yield Candidate(BASELINE, "baseline", price, mine, score=self.score, plan=plan)
                continue
            role: Role = "control" if entry.control or entry.labels_alone else "distilled"
            pair = paired_over_shared(mine, reached[entry.baseline or BASELINE])
            against = entry.baseline if entry.baseline != BASELINE else ""
            yield Candidate(entry.name, role, price, mine, pair, self.score, against, plan)

    def doubts(self, entries: Sequence[Entry], outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
        """Say which teachers and which students are no better than guessing, so that their rows show nothing."""
        if self.task.guess is None:
            return
        taught = [entry.name for entry in entries if self._is_taught(entry) and not entry.control]
        if taught:
            yield from of_teacher(self._teachers_measurement, self.task, "The teacher", ", ".join(taught))
        for entry in entries:
            if isinstance(entry.teacher, nn.Module) and not entry.control:
                own = self._measurement(entry.teacher)
                yield from of_teacher(own, self.task, f"The teacher of {entry.name}", entry.name)
        reached = {name: [outcome.value for outcome in of] for name, of in outcomes.items()}
        yield from of_students(reached, self.task, self._measurement(self._student(0)))

    def _is_taught(self, entry: Entry) -> bool:
        """Whether it learns from the teacher that all share."""
        return entry.teacher is None and not entry.untaught and "teacher" in parameters_of(entry.method)

    @cached_property
    def _teachers_measurement(self) -> Measurement | None:
        return None if self.asked is None else self._measurement(self.asked)

    def _measurement(self, net: nn.Module) -> Measurement | None:
        test = self.data.test if isinstance(self.data, Data) else self.data[2]
        return measured(net, test, self.task, Fabric(accelerator=self.training["accelerator"], devices=1).device)

    def keep_examples(self, entries: Sequence[Entry], candidates: Sequence[Candidate]) -> None:
        """Keep what the teacher and the best students of the first seed make of a few test samples, for the report."""
        if self.folder is None:
            return
        shown = pictured(candidates)
        runs = {entry.name: self.folder / entry.folder / "seed-0" for entry in entries if entry.name in shown}
        device = Fabric(accelerator=self.training["accelerator"], devices=1).device
        if exhibits := exhibits_of_runs(runs, self.student, self.asked, self.data, self.task, device):
            write_exhibits(exhibits, self.folder / FILE)

    def _student(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.student()

    def _assemble(self, entry: Entry, seed: int) -> Trainable:
        student, teacher, options = self._given(entry, seed)
        example = example_of(self.data, student, self.task)
        refuse_unremembered(entry.method, options, self.data, self.task)
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
        """Return what `fit` is given: no test data where none may be touched, no cache where the teacher is another."""
        given = self.data if entry.teacher is None else uncached(self.data)
        if not isinstance(given, Data):
            return given if self.split == "test" else given[:2]
        data = (given.labelled() if entry.labels_alone else given).with_seed(seed)
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
        with placed(f"{entry.name}, timed"):
            result = fit(self._assemble(entry, 0), train, epochs=TIMED_EPOCHS, progress=False, **self.training)
        if result.interrupted:  # times of half a training are none
            raise KeyboardInterrupt(f"stopped while {entry.name} was timed: the same call goes on")
        return _typical(result.history) / TIMED_BATCHES

    def settings(self, entry: Entry, seed: int, epochs: int) -> dict[str, Any]:
        """What a run is, as its ``config.yaml`` keeps it: a finished run is taken for this one only if all agrees."""
        student, teacher, options = self._given(entry, seed)
        told = {
            "method": entry.method,
            "options": {name: self._told(value) for name, value in options.items()},
            "epochs": epochs,
            "seed": seed,
            **self.shared,
            "student": _network(student),
            "teacher": self._shared_teacher if teacher is self.teacher and teacher is not None else self._told(teacher),
        }
        return json.loads(json.dumps(told))  # type: ignore[no-any-return]

    @cached_property
    def _shared_teacher(self) -> Any:
        return self._told(self.teacher)

    def _told(self, value: Any) -> Any:
        """Describe an option: of networks all that they are, of one that teaches how it is asked too."""
        if isinstance(value, (list, tuple)) and any(isinstance(each, nn.Module) for each in value):
            return [self._told(each) for each in value]
        if isinstance(value, Frozen):
            return _digest([_network(value), describe_teacher(value, self.task, self.few)])
        if isinstance(value, nn.Module):
            return _network(value) if any(True for _ in value.state_dict()) else self._told(frozen(value))
        return described(value)

    def _describe_data(self) -> dict[str, Any]:
        """What is trained and measured on: the test data only where it may be touched."""
        data = self.data.with_seed(0) if isinstance(self.data, Data) else self.data  # each run has its own
        served = splits(data, seed=0)
        if self.split == "val":
            served = served._replace(test=None)
        content = {name: _digest(told) for name, told in identity(served).items()}
        if not isinstance(data, Data):
            return {"batches": self.batches, "content": content}
        return {"name": data.name, "batches": self.batches, "batch_size": data.train.batch_size, "content": content}


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
        raise TypeError(
            "a comparison needs data to judge by: a limbeck.data.Data, or loaders (train, val, test) or (train, val)"
        )
    loaders = tuple(loader.loader if isinstance(loader, Cached) else loader for loader in loaders)
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
        return copied(given)
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
    if weights_of(nets[0]) != weights_of(nets[1]):
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


def _typical(history: Sequence[Row]) -> float:
    """Return the seconds of an epoch: each stage's median, without its first epoch if there are more, by its epochs."""
    seconds: dict[str, list[float]] = {}
    for row in history:
        seconds.setdefault(str(row["stage"]), []).append(float(row["seconds"]))
    return sum(len(of) * statistics.median(of[1:] or of) for of in seconds.values()) / len(history)


def _network(net: nn.Module) -> str:
    """Tell networks apart, by what they are and by their weights."""
    return f"{type(bare(net)).__name__} {architecture_of(net)}, weights {weights_of(net)}"


def _see_files(folder: Path, sums: Mapping[str, str]) -> None:
    """See that a finished run's files are what it wrote, by the checksums in its result."""
    for name, known in sums.items():
        if (path := folder / name).exists() and sha256_of(path) != known:
            raise Damaged(f"{path} is damaged: it is not what this run wrote, by its result.json; {_anew(folder)}")


def _anew(folder: Path) -> str:
    """Say how a run is made again, and none but that."""
    return f"remove the folder {folder}, and the same call makes this run again; or take another run_dir"


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
