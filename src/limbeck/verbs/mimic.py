"""Compress a model of a table into a small network, and say what that gained: Buciluă et al.'s experiment."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from limbeck import methods, zoo
from limbeck.core.frozen import frozen
from limbeck.core.method import Method
from limbeck.core.task import Task
from limbeck.data import Data
from limbeck.data.epochs import generator
from limbeck.data.munge import munge, uniform
from limbeck.data.rows import Rows
from limbeck.data.tabular import Tabular, answered
from limbeck.engine.fit import Result, fit
from limbeck.measure.cost import cost, latency_ms
from limbeck.methods.mimic import Outputs
from limbeck.nets.ensemble import Ensemble
from limbeck.nets.estimator import SklearnTeacher
from limbeck.report.mimic import MANY, Measured
from limbeck.tasks.classification import classification
from limbeck.tasks.regression import regression
from limbeck.zoo._outside import find, parameters

Transfer = Literal["train", "unlabelled", "random", "munge"]
"""Which rows the teacher answers for the student."""

SECONDS = 0.2
"""For each time that is taken, as a forest's are long."""


@dataclass(frozen=True)
class Training:
    """How networks are trained: with Adam, at a constant rate.

    Args:
        epochs: Of the transfer set.
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


def student_of(name: str, table: Tabular) -> nn.Module:
    """Make a network by its name, as mlp-32, between the layers that encode the table's rows and rescale its values."""
    encode, rescale = table.encoder(), table.rescale()
    parts = OrderedDict[str, nn.Module](encode=encode, net=zoo.network(name, table.outputs, (encode.width,)))
    return nn.Sequential(parts if rescale is None else parts | {"rescale": rescale})


def teacher_of(names: str | Sequence[str], table: Tabular, training: Training) -> nn.Module:
    """Train a teacher on the labelled rows.

    Args:
        names: ``random-forest`` or ``gradient-boosting``, scikit-learn's with their defaults; ``package.module:factory``,
            yours, which is given ``categorical=`` (the columns' places) and ``random_state=`` only if its signature
            names them; or networks by name, several for an ensemble: ``["mlp-128", "mlp-128"]``.
        table: The data.
        training: How networks are trained.

    Raises:
        ValueError: No such name; a model of the wrong kind, without probabilities, or that cannot be pickled.
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
    members = []
    for index, name in enumerate(names):
        torch.manual_seed(training.seed + index)
        members.append(student_of(name, table))
        _train(methods.plain(members[-1], task=_task(table)), _rows(table, training), table, training)
    return Ensemble(members) if table.classes else _Mean(members)


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


def compress(
    student: nn.Module,
    teacher: nn.Module,
    table: Tabular,
    rows: Tensor,
    training: Training,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
) -> Result:
    """Let a student mimic a teacher, who is asked once for all rows.

    Args:
        student: From `student_of`; trained in place.
        teacher: From `teacher_of`, or any model of the table's rows.
        table: The data.
        rows: From `transfer`.
        training: How.
        run_dir: As for `limbeck.fit`.
        resume: As for `limbeck.fit`.
        settings: As for `limbeck.fit`.

    Raises:
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    loader = answered(rows, teacher, batch_size=training.batch_size, seed=training.seed)
    method, run = _mimic(student, table), {"run_dir": run_dir, "resume": resume, "settings": settings}
    return _train(method, loader, table, training, name="mimic", **run)


def alone(make: Callable[[], nn.Module], table: Tabular, updates: int, training: Training) -> nn.Module:
    """Train the student on the labels alone, for at most as many updates as it has with a teacher.

    So many updates on few rows would overfit, so the validation data says after which epoch to stop: then the student
    is trained anew, for these epochs, which come out the same as the rate is constant.

    Args:
        make: Makes the student.
        table: The data.
        updates: Of an epoch.
        training: How.
    """
    return _stopped(lambda: methods.plain(make(), task=_task(table)), _rows(table, training), table, updates, training)


def from_fewer(
    make: Callable[[], nn.Module],
    teacher: nn.Module,
    table: Tabular,
    rows: Tensor,
    updates: int,
    training: Training,
) -> nn.Module:
    """Let the student mimic a teacher on fewer rows than another, with at most as many updates: a point of the curve.

    Args:
        make: Makes the student.
        teacher: From `teacher_of`.
        table: The data.
        rows: The fewer ones.
        updates: Of an epoch; when to stop is found as `alone` finds it.
        training: How.
    """
    loader = answered(rows, teacher, batch_size=training.batch_size, seed=training.seed)
    return _stopped(lambda: _mimic(make(), table), loader, table, updates, training)


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


def _mimic(student: nn.Module, table: Tabular) -> Method:
    outputs: Outputs = "probabilities" if table.classes else "values"
    return methods.mimic(student, None, outputs=outputs, task=_task(table))


def _stopped(make: Callable[[], Method], loader: Rows, table: Tabular, updates: int, training: Training) -> nn.Module:
    """Train with ``updates`` an epoch, as many epochs as let the validation loss be least."""
    loader.batches = updates

    def trained(epochs: int) -> Result:
        torch.manual_seed(training.seed)
        return _train(make(), loader.with_seed(training.seed), table, replace(training, epochs=epochs))

    result = trained(training.epochs)
    losses = [float(row["val/student/loss"]) for row in result.history]
    best = 1 + losses.index(min(losses))
    return (result if best == training.epochs else trained(best)).student


def _rows(table: Tabular, training: Training) -> Rows:
    train = table.train
    return Rows(train.rows, train.targets, batch_size=training.batch_size, shuffle=True, seed=training.seed)


def _train(method: Method, loader: Rows, table: Tabular, training: Training, **run: Any) -> Result:
    def adam(parameters: list[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, training.lr)

    val, test = (Rows(part.rows, part.targets, batch_size=10 * MANY) for part in (table.val, table.test))
    shape = tuple(table.train.rows.shape[1:])
    outputs, task = table.outputs, _task(table)
    data = Data(table.name, loader, val, test, table.classes, shape, table.note, outputs=outputs, task=task)
    result = fit(
        method,
        data,
        epochs=training.epochs,
        optimizer=adam,
        seed=training.seed,
        progress=training.progress,
        **run,
    )
    if not result.finished:  # a network that was half trained must not pass for one that was
        raise KeyboardInterrupt("stopped by the user")
    return result


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
    if not table.classes:
        return SklearnTeacher(model.fit(rows, targets[:, 0].numpy()))
    if is_regressor(model) and table.outputs > 2:
        return SklearnTeacher(_fitted_to_scores(name, model, rows, targets, table.outputs), table.outputs)
    return SklearnTeacher(model.fit(rows, targets.numpy()), table.outputs)


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
