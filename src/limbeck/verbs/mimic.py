"""Compress a model of a table into a small network, and say what that gained: Buciluă et al.'s experiment."""

from __future__ import annotations

import importlib.metadata
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from limbeck import methods, zoo
from limbeck.core.files import digest, keep, read
from limbeck.core.frozen import frozen
from limbeck.core.method import Method
from limbeck.core.task import Task
from limbeck.data import Data
from limbeck.data.epochs import generator
from limbeck.data.munge import munge, uniform
from limbeck.data.rows import Rows
from limbeck.data.tabular import Tabular, answered
from limbeck.engine.fit import Result, fit
from limbeck.engine.inputs import refuse_another
from limbeck.engine.run import Run
from limbeck.measure.cost import cost, latency_ms
from limbeck.methods.mimic import Outputs
from limbeck.nets.ensemble import Ensemble
from limbeck.nets.estimator import SklearnTeacher
from limbeck.report.mimic import MANY, Compression, Measured, Model, write_compression
from limbeck.report.run import run_report
from limbeck.report.table import Role
from limbeck.tasks.classification import classification
from limbeck.tasks.regression import regression
from limbeck.zoo._outside import find, parameters

Transfer = Literal["train", "unlabelled", "random", "munge"]
"""Which rows the teacher answers for the student."""

NAMES: Mapping[Transfer, str] = {
    "train": "soft labels",
    "unlabelled": "unlabelled rows too",
    "random": "random rows × {}",
    "munge": "MUNGE × {}",
}
"""What a student is called by what it learned from."""
SECONDS = 0.2
"""For each time that is taken, as a forest's are long."""
WHOLE = "all-epochs"
"""The folder of the training that shows after which epoch to stop, in that of the one that stops there."""
INPUTS = "mimic-inputs.json"
"""What a compression depends on, in its folder."""


@dataclass(frozen=True)
class Training:
    """How networks are trained: with Adam, at a constant rate, up to the epoch after which the validation loss is least.

    Args:
        epochs: Of the transfer set, at most.
        lr: Learning rate.
        batch_size: Rows in a batch.
        seed: Of everything random.
        progress: Show progress bars; by default in a terminal.
    """

    epochs: int = 20
    lr: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@dataclass(frozen=True)
class Compressed:
    """What `compress` leaves: the networks, and what they and those beside them come to.

    Args:
        student: The one to ship.
        teacher: The one it learned from.
        compression: The table.
    """

    student: nn.Module
    teacher: nn.Module
    compression: Compression


def compress(
    table: Tabular,
    teacher: str | Sequence[str] | nn.Module = "random-forest",
    student: str = "mlp-32",
    *,
    rows: Transfer = "munge",
    times: int | Sequence[int] = 25,
    swap: float = 0.5,
    variance: float = 5.0,
    follow: bool = False,
    training: Training | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Compressed:
    """Compress a model of a table into a small network that mimics it, and measure what that gained.

    Beside the student stand the same one that learned from the labels alone and, if there are several ``times``, those
    that learned from the teacher's answers to fewer rows. All begin with the same weights, have as many updates an epoch
    as the student, and keep the epoch with the least validation loss. The labels of the validation rows count among those
    that were used: the table says how many.

    Args:
        table: The data, as `limbeck.data.tabular.load` has them.
        teacher: As for `teacher_of`; or a model of the table's rows, as a `limbeck.SklearnTeacher`.
        student: A network by name.
        rows: Which rows the teacher answers, as for `transfer`.
        times: How many times as many made-up rows as labelled ones, or several such numbers: the student to ship is that of
            the most.
        swap: As for `transfer`.
        variance: As for `transfer`.
        follow: As for `transfer`.
        training: How networks are trained.
        run_dir: The run's folder, with the student's run and page, and one for each training beside it; nothing is
            written without one.
        resume: Go on with what is in ``run_dir``; what is trained there is not trained again.
        settings: What its ``config.yaml`` holds in place of these arguments: the whole command, say.

    Raises:
        ValueError: A name that is none, options out of their range, a folder that holds a run already, or one to go on with
            that began with another table, teacher or options.
        KeyboardInterrupt: Ctrl-C, after a checkpoint: the same call with ``resume=True`` goes on.

    Example:
        >>> from limbeck.data import tabular
        >>> found = compress(tabular.load("adult", "data", labels=4000), run_dir="runs/adult")  # doctest: +SKIP
    """
    training = training or Training()
    names = _names(rows, [times] if isinstance(times, int) else list(times))
    make = partial(student_of, student, table)
    make()  # a name that is none is told before a teacher has learned
    taught_by = teacher if isinstance(teacher, str) else type(teacher).__name__
    if isinstance(teacher, Sequence) and not isinstance(teacher, str):
        taught_by = "+".join(teacher)
    asked = {"teacher": taught_by, "student": student, "transfer": rows, "times": sorted(names), "swap": swap}
    asked |= {"variance": variance, "follow": follow, **asdict(training)}
    folder, settings = None if run_dir is None else Path(run_dir), settings or {"mimic": asked}
    if folder is not None:
        _refuse_other_folder(folder, table, asked, settings, resume)
    asks = transfer(table, rows, max(names), swap, variance, follow, training.seed)
    teaches = teacher if isinstance(teacher, nn.Module) else teacher_of(teacher, table, training, folder)
    if folder is not None:
        keep(folder / INPUTS, _depends(table, asked))
    models: list[Model] = []
    last: Result | None = None
    for model, result in _models(names, teaches, make, table, asks, training, folder, settings):
        models.append(model)
        last = result
    assert last is not None
    labels = len(table.train), len(table.val)
    found = Compression(table.name, taught_by, student, len(table.test), tuple(models), *labels)
    if folder is not None:
        write_compression(found, folder)
        run_report(folder)
    return Compressed(last.student, teaches, found)


def _names(kind: Transfer, sizes: Sequence[int]) -> dict[int, str]:
    """Name the student of each size, the smallest first."""
    if kind not in NAMES:
        raise ValueError(f"transfer: expected 'train', 'unlabelled', 'random' or 'munge', got {kind!r}")
    if not sizes or (len(set(sizes)) > 1 and kind in ("train", "unlabelled")):
        raise ValueError(
            f"times: several sizes are those of made-up rows, --transfer munge or random, got {list(sizes)}"
        )
    if min(sizes) < 1:
        raise ValueError(f"times must be at least 1, got {min(sizes)}")
    return {times: NAMES[kind].format(times) for times in sorted(set(sizes))}


def _models(
    names: Mapping[int, str],
    teacher: nn.Module,
    make: Callable[[], nn.Module],
    table: Tabular,
    rows: Tensor,
    training: Training,
    folder: Path | None,
    settings: Mapping[str, Any],
) -> Iterator[tuple[Model, Result | None]]:
    """Train and measure the teacher, what learned from less, and last the student to ship."""
    known, updates = len(table.train), max(1, len(rows) // training.batch_size)
    *fewer, most = names

    def beside(name: str) -> Path | None:
        return None if folder is None else folder / re.sub(r"[^A-Za-z0-9]+", "-", name).lower()

    def told(name: str, role: Role, count: int, result: Result) -> tuple[Model, Result]:
        return Model(name, role, count, measured(result.student, table), len(result.history)), result

    def mimics(name: str, role: Role, some: Tensor, run_dir: Path | None, **said: Any) -> tuple[Model, Result]:
        result = taught(make, teacher, table, some, training, updates=updates, run_dir=run_dir, **said)
        return told(name, role, len(some), result)

    yield Model("teacher", "teacher", known, measured(teacher, table)), None
    plain = "labels alone"
    yield told(plain, "baseline", known, alone(make, table, training, updates=updates, run_dir=beside(plain)))
    if fewer:
        yield mimics(NAMES["train"], "control", table.train.rows, beside(NAMES["train"]))
    for times in fewer:
        yield mimics(names[times], "distilled", rows[: times * known], beside(names[times]))
    yield mimics(names[most], "distilled", rows, folder, settings=settings)


def _depends(table: Tabular, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a compression depends on; of the table by its content."""
    parts = {"train": table.train, "val": table.val, "test": table.test}
    tensors = {f"{name} {kind}": getattr(part, kind) for name, part in parts.items() for kind in ("rows", "targets")}
    columns = {f"column {place}": repr(column) for place, column in enumerate(table.columns)}
    held = digest(tensors | {"unlabelled": table.unlabelled}, {**columns, "classes": repr(table.classes)})
    told = {name: value for name, value in asked.items() if name != "progress"}
    return {"limbeck": importlib.metadata.version("limbeck"), "data": table.name, "table": held[:16], **told}


def _refuse_other_folder(
    folder: Path, table: Tabular, asked: Mapping[str, Any], settings: Mapping[str, Any], resume: bool
) -> None:
    """See that a compression may begin in a folder, or go on there as it began."""
    run, path = Run(folder), folder / INPUTS
    if path.exists() and not resume:
        raise ValueError(
            f"{folder} holds a run already: pass resume=True (--resume) to go on with it, or another run_dir"
        )
    run.check(settings, resume)
    if path.exists():
        refuse_another(folder, read(path, "take another run_dir"), _depends(table, asked))


def student_of(name: str, table: Tabular) -> nn.Module:
    """Make a network by its name, as mlp-32, between the layers that encode the table's rows and rescale its values."""
    encode, rescale = table.encoder(), table.rescale()
    parts = OrderedDict[str, nn.Module](encode=encode, net=zoo.network(name, table.outputs, (encode.width,)))
    return nn.Sequential(parts if rescale is None else parts | {"rescale": rescale})


def teacher_of(
    names: str | Sequence[str],
    table: Tabular,
    training: Training,
    run_dir: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Train a teacher on the labelled rows.

    Args:
        names: ``random-forest`` or ``gradient-boosting``, scikit-learn's with their defaults; ``package.module:factory``,
            yours, which is given ``categorical=`` (the columns' places) and ``random_state=`` only if its signature
            names them; or networks by name, several for an ensemble: ``["mlp-128", "mlp-128"]``.
        table: The data.
        training: How networks are trained.
        run_dir: Where networks are kept as they learn, each in a folder; the same call goes on there.

    Raises:
        ValueError: No such name; a model of the wrong kind, without probabilities, or that cannot be fitted or pickled.
        TypeError: A factory that does not make a scikit-learn model.
        KeyboardInterrupt: Ctrl-C, in the training of a network.
    """
    names = [names] if isinstance(names, str) else list(names)
    if len(names) == 1 and (names[0] in _ESTIMATORS or ":" in names[0]):
        return _fitted(names[0], table, training.seed)
    if wrong := [name for name in names if name in _ESTIMATORS or ":" in name]:
        raise ValueError(
            f"teacher: an ensemble is made of networks by name, as mlp-128; got {wrong[0]!r} among {names}"
        )
    if not names:
        raise ValueError("teacher: expected a name, or several, got none")
    members = []
    for index, name in enumerate(names):
        folder = None if run_dir is None else Path(run_dir) / f"teacher-{index}"
        make = partial(_seeded, training.seed + index, name, table)
        members.append(alone(make, table, training, run_dir=folder).student)
    return Ensemble(members) if table.classes else _Mean(members)


def _seeded(seed: int, name: str, table: Tabular) -> nn.Module:
    torch.manual_seed(seed)
    return student_of(name, table)


def transfer(
    table: Tabular,
    rows: Transfer = "munge",
    times: int = 25,
    swap: float = 0.5,
    variance: float = 5.0,
    follow: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return the rows that the teacher is to answer.

    Args:
        table: The data.
        rows: ``"train"``: the labelled ones; ``"unlabelled"``: these and those whose labels were put away; ``"random"``:
            uniform ones, a control; ``"munge"``.
        times: How many times as many random or munged rows as labelled ones; 25 is the most of our table, the
            paper went up to 100. With the same seed, fewer are the first of more.
        swap: See `limbeck.data.munge.munge`.
        variance: Likewise.
        follow: Likewise.
        seed: Of random and munged rows.

    Raises:
        ValueError: Other rows than these, unlabelled ones where there are none, ``times`` below 1, and what `munge` raises.
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, got {times}")
    known = table.train.rows
    if rows == "train":
        return known
    if rows == "unlabelled":
        if not len(table.unlabelled):
            raise ValueError(
                "transfer: there are no unlabelled rows; labels=4000 (--labels 4000) puts the others' away"
            )
        return torch.cat([known, table.unlabelled])
    if rows not in ("random", "munge"):
        raise ValueError(f"transfer: expected 'train', 'unlabelled', 'random' or 'munge', got {rows!r}")
    draw = generator("transfer", rows, seed)
    if rows == "random":
        return uniform(known, times * len(known), draw, categorical=table.categorical)
    return munge(known, draw, passes=times, swap=swap, variance=variance, follow=follow, categorical=table.categorical)


def alone(
    make: Callable[[], nn.Module],
    table: Tabular,
    training: Training,
    *,
    updates: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """Train a network on the labels alone.

    Args:
        make: Makes the network, with weights drawn from torch's generator.
        table: The data.
        training: How; its seed is set before each ``make()``.
        updates: Of an epoch, where a student shall have as many as with a teacher; by default one pass through the rows.
        run_dir: As for `limbeck.fit`; the same call goes on there.

    Raises:
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    train = table.train
    loader = Rows(train.rows, train.targets, batch_size=training.batch_size, shuffle=True, seed=training.seed)
    return _stopped(lambda: methods.plain(make(), task=_task(table)), loader, table, training, updates, run_dir)


def taught(
    make: Callable[[], nn.Module],
    teacher: nn.Module,
    table: Tabular,
    rows: Tensor,
    training: Training,
    *,
    updates: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Let a student mimic a teacher, who is asked once for all rows.

    Args:
        make: As for `alone`.
        teacher: From `teacher_of`, or any model of the table's rows.
        table: The data.
        rows: From `transfer`.
        training: As for `alone`.
        updates: As for `alone`.
        run_dir: As for `alone`.
        settings: As for `limbeck.fit`.

    Raises:
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    loader = answered(rows, teacher, batch_size=training.batch_size, seed=training.seed)
    outputs: Outputs = "probabilities" if table.classes else "values"
    return _stopped(
        lambda: methods.mimic(make(), None, outputs=outputs, task=_task(table)),
        loader,
        table,
        training,
        updates,
        run_dir,
        settings,
    )


def measured(model: nn.Module, table: Tabular, seconds: float = SECONDS) -> Measured:
    """Measure a model of a table on the CPU: a network, or a `limbeck.SklearnTeacher`.

    Args:
        model: The model; it stays as it was.
        table: Its test rows are used.
        seconds: Spent on each of the two times at least.
    """
    view, rows, targets = frozen(model), table.test.rows, table.test.targets
    cpu = torch.device("cpu")
    with torch.no_grad():
        answers = torch.cat([view(part) for part in torch.split(rows, 10 * MANY)])
        many = rows[torch.arange(MANY) % len(rows)]
        row_ms, many_ms = (latency_ms(partial(view, part), cpu, seconds) for part in (rows[:1], many))
    size = len(pickle.dumps(model.estimator)) if isinstance(model, SklearnTeacher) else cost(model, rows[:1]).bytes
    if not table.classes:
        return Measured(size, row_ms, many_ms, _rms(answers - targets), None)
    errors = answers.softmax(-1) - F.one_hot(targets, table.outputs)
    accuracy = float((answers.argmax(-1) == targets).float().mean())
    return Measured(size, row_ms, many_ms, _rms(errors), accuracy)


def _rms(errors: Tensor) -> float:
    return float(errors.double().square().mean().sqrt())


def _task(table: Tabular) -> Task:
    return classification if table.classes else regression


def _stopped(
    make: Callable[[], Method],
    loader: Rows,
    table: Tabular,
    training: Training,
    updates: int | None,
    run_dir: str | os.PathLike[str] | None,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Train for all epochs, and then anew for as many as let the validation loss be least.

    So many updates on few rows overfit. All that is trained here is stopped by this one rule, whatever it learns from, so
    that none looks worse for having learned too long. The second training goes as the first did, since the learning
    rate is constant: so what a run leaves behind is of one training, and the test rows are asked once.
    """
    loader.batches = updates
    val, test = (Rows(part.rows, part.targets, batch_size=10 * MANY) for part in (table.val, table.test))

    def adam(parameters: list[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, training.lr)

    def trained(epochs: int, data: Any, folder: Path | None, **said: Any) -> Result:
        torch.manual_seed(training.seed)
        result = fit(
            make(),
            data,
            epochs=epochs,
            optimizer=adam,
            seed=training.seed,
            progress=training.progress,
            run_dir=folder,
            resume=folder is not None,
            name="mimic",
            **said,
        )
        if not result.finished or result.interrupted:  # a network that was half trained must not pass for one that was
            raise KeyboardInterrupt("stopped by the user")
        return result

    folder = None if run_dir is None else Path(run_dir)
    whole = trained(training.epochs, (loader.with_seed(training.seed), val), folder and folder / WHOLE)
    epochs = _best([float(row["val/student/loss"]) for row in whole.history])
    shape, task = tuple(table.train.rows.shape[1:]), _task(table)
    train = loader.with_seed(training.seed)
    data = Data(table.name, train, val, test, table.classes, shape, table.note, outputs=table.outputs, task=task)
    return trained(epochs, data, folder, settings=settings)


def _best(losses: Sequence[float]) -> int:
    """Return after how many epochs the loss was least, the first time."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        raise FloatingPointError("the validation loss was never finite: lower lr (--lr), or look at the table's values")
    return 1 + losses.index(min(finite))


class _Mean(nn.Module):
    """The mean value of several networks."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.stack([member(rows) for member in self.members]).mean(0)


# scikit-learn's ------------------------------------------------------------------------------------------------------


def _forest(table: Tabular, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    return (RandomForestClassifier if table.classes else RandomForestRegressor)(random_state=seed)


def _boosting(table: Tabular, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if table.classes else HistGradientBoostingRegressor
    return kind(categorical_features=list(table.categorical) or None, random_state=seed)


_ESTIMATORS = {"random-forest": _forest, "gradient-boosting": _boosting}


def _fitted(name: str, table: Tabular, seed: int) -> SklearnTeacher:
    """Make a scikit-learn model and fit it to the labelled rows."""
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    model = _ESTIMATORS[name](table, seed) if name in _ESTIMATORS else _own(name, table, seed)
    if not (isinstance(model, BaseEstimator) and (is_classifier(model) or is_regressor(model))):
        raise TypeError(f"{name}: expected a scikit-learn classifier or regressor, got {type(model).__name__}")
    if not table.classes and not is_regressor(model):
        raise ValueError(
            f"{name} makes the classifier {type(model).__name__}, but {table.name} has a number to predict"
        )
    _check_pickles(name, model)  # before anything is trained: its size is that of its pickle
    rows, targets = table.train.rows.numpy(), table.train.targets
    if is_regressor(model) and table.outputs > 2:
        return SklearnTeacher(_fitted_to_scores(name, model, rows, targets, table.outputs), table.outputs)
    try:
        model.fit(rows, (targets if table.classes else targets[:, 0]).numpy())
    except ValueError as error:
        raise ValueError(f"{name}: {type(model).__name__} cannot be fitted to {table.name}: {error}") from error
    return SklearnTeacher(model, table.outputs if table.classes else None)


def _fitted_to_scores(name: str, model: Any, rows: Any, targets: Tensor, classes: int) -> Any:
    """Fit a regressor to a score for each class."""
    try:
        return model.fit(rows, F.one_hot(targets, classes).numpy())
    except ValueError as error:
        raise ValueError(
            f"{name}: {type(model).__name__} cannot be fitted to a score for each of {classes} classes: {error}. Wrap it "
            "in sklearn.multioutput.MultiOutputRegressor, or take a classifier"
        ) from error


def _check_pickles(name: str, model: Any) -> None:
    try:
        pickle.dumps(model)
    except Exception as error:  # whatever its parts raise
        raise ValueError(
            f"{name}: {type(model).__name__} cannot be pickled, which is how its size is measured: {error}. Name functions "
            "with def in a module, a lambda has no name"
        ) from error


def _own(name: str, table: Tabular, seed: int) -> Any:
    path, _, attribute = name.partition(":")
    factory = find(name, path, attribute)
    if not callable(factory):
        raise TypeError(f"{name}: expected a function or class that makes a scikit-learn model, got {factory!r:.60}")
    offered = {"categorical": list(table.categorical), "random_state": seed}
    taken = parameters(factory)
    return factory(**{key: value for key, value in offered.items() if key in taken})
