"""What `fit` does beyond playing every batch, which the contract checks: runs on disk, Ctrl-C, users' loaders, doubts."""

import csv
import itertools
import json
import logging
import math
import random
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

import limbeck
from limbeck import S, Stage, T, classification, on

FEATURES, CLASSES, BATCH, PER_EPOCH = 4, 3, 8, 5
DRAW = torch.Generator().manual_seed(0)
RULE = torch.randn(CLASSES, FEATURES, generator=DRAW)
INPUTS = torch.randn(PER_EPOCH * BATCH, FEATURES, generator=DRAW)
TARGETS = (INPUTS @ RULE.T).argmax(1)
BATCHES = list(zip(INPUTS.split(BATCH), TARGETS.split(BATCH), strict=True))
HELD_OUT = [(INPUTS, TARGETS)]

pytestmark = [
    pytest.mark.filterwarnings("error::limbeck.ChanceWarning"),
    pytest.mark.filterwarnings("ignore:after the training:limbeck.ChanceWarning"),  # which is short here
]


class Alarm(nn.Dropout):
    """A dropout in which something happens once, in the training batch of a number that counts from 1."""

    def __init__(self, at: int, happens: Callable[[], None]) -> None:
        super().__init__(0.3)
        self.calls, self.at, self.happens = 0, at, happens

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            self.happens()
        return super().forward(x)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def net(seed: int = 0, *, classes: int = CLASSES, at: int = 0, happens: Callable[[], None] = ctrl_c) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), Alarm(at, happens), nn.Linear(8, classes)
    )


def good_teacher() -> nn.Module:
    """It knows the rule."""
    teacher = nn.Linear(FEATURES, CLASSES, bias=False)
    teacher.weight.data = 3 * RULE
    return teacher


def fit(method: Any, train: Any = BATCHES, **options: Any) -> limbeck.Result:
    settings = {"epochs": 2, "optimizer": sgd, "accelerator": "cpu", "progress": False, **options}
    return limbeck.fit(method, train if isinstance(train, tuple) else (train, HELD_OUT), **settings)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def plain_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def two_stages(student: nn.Module) -> Iterator[Stage]:
    """The code between the stages looks at what the first one left, and draws."""
    yield Stage(limbeck.kd(student, good_teacher()), 0.5, name="first")
    with torch.no_grad():
        student[-1].weight *= 0.5 + torch.rand(())
    yield Stage(limbeck.plain(student), 0.5, name="second")


def test_networks_that_are_no_part_of_the_method_come_back_from_the_accelerator():
    """Or the former generations of an ensemble would be there, and the last one here."""

    class Former(nn.Linear):
        back = False

        def cpu(self):
            self.back = True
            return super().cpu()

    class Generation(limbeck.Distill):
        def networks(self):
            return {"student": self.student, "former": former}

    former = Former(FEATURES, CLASSES)
    fit(Generation(net(), None, classification.hard), epochs=1)
    assert former.back


# the run's folder


@pytest.mark.usefixtures("reports")
def test_a_run_is_a_folder(tmp_path):
    student, folder = net(), tmp_path / "run"
    result = fit(limbeck.kd(student, good_teacher()), (BATCHES, HELD_OUT, HELD_OUT), run_dir=folder, name="kd", seed=3)

    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "examples.npz",
        "inputs.json",
        "metrics.csv",
        "report.html",
        "result.json",
        "student.safetensors",
        "train.log",
    }
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["stage-0.ckpt"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert "stage train: 2 epochs of 5 batches" in (folder / "train.log").read_text()
    assert "<html" in (folder / "report.html").read_text()

    weights, twin = load_file(folder / "student.safetensors"), net(1)
    assert weights.keys() == student.state_dict().keys()
    twin.load_state_dict(weights)
    assert torch.equal(twin.eval()(INPUTS), student.eval()(INPUTS))

    told = json.loads((folder / "result.json").read_text())
    assert (told["method"], told["seed"], told["finished"]) == ("kd", 3, True)
    assert told["teacher"]["accuracy"] == 1.0
    assert told["networks"]["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    assert told["networks"]["student"]["test"]["accuracy"] == result.metrics["test/student/accuracy"]
    assert result.metrics["test/student/loss"] == pytest.approx(limbeck.evaluate(student, HELD_OUT)["loss"])


def test_metrics_have_a_line_an_epoch_with_the_mean_of_every_term(tmp_path):
    fit(limbeck.kd(net(), good_teacher(), alpha=0.25), run_dir=tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    terms = ("soft", "soft.weighted", "hard", "hard.weighted", "loss")
    losses = {f"train/student/{term}" for term in terms}
    place = {"stage", "epoch", "step", "seconds"}
    assert set(rows[0]) == place | losses | {"lr/student", "val/student/accuracy", "val/student/loss"}
    assert [(row["stage"], row["epoch"], row["step"]) for row in rows] == [("train", "1", "5"), ("train", "2", "10")]

    method = limbeck.kd(net(), good_teacher(), alpha=0.25)
    optimizers = limbeck.optimizers(method, sgd)
    torch.manual_seed(0)
    logs = [limbeck.play(method, batch, optimizers) for batch in BATCHES * 2]
    for row, epoch in zip(rows, (logs[:5], logs[5:]), strict=True):
        for name in losses:
            mean = sum(each[name.removeprefix("train/")] for each in epoch) / 5
            assert float(row[name]) == pytest.approx(mean, rel=1e-5)


def test_every_stage_has_its_rows_and_steps_go_on():
    history = fit(two_stages(net()), epochs=4).history
    assert [row["stage"] for row in history] == ["first", "first", "second", "second"]
    assert [row["epoch"] for row in history] == [1, 2, 1, 2]
    assert [row["step"] for row in history] == [5, 10, 15, 20]


def test_without_held_out_data_nothing_is_measured():
    result = fit(limbeck.plain(net()), (BATCHES,))
    assert result.metrics == {}
    assert not any(name.startswith("val/") for name in result.history[0])


def test_loggers_get_every_row(tmp_path):
    result = fit(limbeck.plain(net()), loggers=[CSVLogger(tmp_path)])
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5, 10]
    assert [float(row["train/student/loss"]) for row in rows] == [row["train/student/loss"] for row in result.history]


def test_data_that_was_used_before_is_served_from_its_beginning():
    data = limbeck.data.load("digits", samples=100)

    def train() -> dict[str, Tensor]:
        torch.manual_seed(0)
        student = limbeck.zoo.network("mlp-8", 10, data.shape)
        limbeck.fit(limbeck.plain(student), data, epochs=1, accelerator="cpu", progress=False)
        return tensors(student)

    assert identical(train(), train())


# going on


def test_a_finished_run_is_not_trained_again(tmp_path):
    student = net()
    result = fit(two_stages(student), run_dir=tmp_path)
    other = net(1, at=1, happens=lambda: pytest.fail("it trains"))
    again = fit(two_stages(other), run_dir=tmp_path, resume=True)
    assert identical(tensors(other), tensors(student))
    assert again.finished
    assert again.history == result.history


def test_a_run_that_is_there_is_not_overwritten(tmp_path):
    fit(limbeck.plain(net()), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already: pass resume=True"):
        fit(limbeck.plain(net()), run_dir=tmp_path)
    with pytest.raises(ValueError, match="needs the run_dir"):
        fit(limbeck.plain(net()), resume=True)


@pytest.mark.parametrize("at", [0, 7], ids=["finished", "interrupted"])
def test_a_run_goes_on_with_the_same_settings_only(tmp_path, at):
    fit(limbeck.plain(net(at=at)), run_dir=tmp_path)
    config = (tmp_path / "config.yaml").read_text()
    for other, message in (
        ({"epochs": 3}, "another epochs: 2, and not 3. Go on with the same settings, or take another run_dir"),
        ({"seed": 1}, "another seed: 0, and not 1"),
        ({"clip": 1.0}, "another clip: None, and not 1.0"),
        ({"epochs": 3, "settings": {"note": "mine"}}, "another epochs: 2, and not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(limbeck.plain(net()), run_dir=tmp_path, resume=True, **other)
    assert (tmp_path / "config.yaml").read_text() == config


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[dict[str, Tensor], int]:
    student = net()
    return tensors(student) if fit(two_stages(student), epochs=4).finished else {}, student[3].calls


@pytest.mark.parametrize(
    ("at", "happens", "done"),
    [
        (7, ctrl_c, 7),
        (7, sigterm, 7),
        (5, ctrl_c, 5),
        (10, ctrl_c, 11),  # the stage is finished, so one batch of the next is played
        (11, ctrl_c, 11),
        (19, ctrl_c, 19),
    ],
    ids=["in an epoch", "SIGTERM", "last of an epoch", "last of a stage", "first of a stage", "before the last"],
)
def test_ctrl_c_ends_after_the_batch_and_resume_is_exact(tmp_path, undisturbed, at, happens, done):
    student = net(at=at, happens=happens)
    stopped = fit(two_stages(student), epochs=4, run_dir=tmp_path)
    assert not stopped.finished
    assert student[3].calls == done
    assert len(stopped.history) == done // PER_EPOCH
    assert json.loads((tmp_path / "result.json").read_text())["finished"] is False
    assert not (tmp_path / "student.safetensors").exists()
    assert f"stopped by the user in stage {'first' if done <= 10 else 'second'}" in (tmp_path / "train.log").read_text()

    other = net(1)
    result = fit(two_stages(other), epochs=4, run_dir=tmp_path, resume=True)
    assert result.finished
    assert [row["step"] for row in result.history] == [5, 10, 15, 20]
    assert other[3].calls == undisturbed[1] - done
    assert identical(tensors(other), undisturbed[0])


def test_ctrl_c_in_the_last_batch_of_all_finishes(undisturbed):
    student = net(at=20)
    result = fit(two_stages(student), epochs=4)
    assert (result.finished, result.interrupted) == (True, True)
    assert identical(tensors(student), undisturbed[0])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    before, student = signal.getsignal(signal.SIGINT), net(at=7, happens=lambda: (ctrl_c(), ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        fit(limbeck.plain(student), run_dir=tmp_path)
    assert student[3].calls == 7
    assert signal.getsignal(signal.SIGINT) is before
    assert fit(limbeck.plain(net(1)), run_dir=tmp_path, resume=True).finished


# callbacks, and schedules that look at the validation


class Recorder(Callback):
    """It sums up what it saw, and keeps the sum."""

    def __init__(self) -> None:
        self.total, self.epochs = torch.zeros(()), 0

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx) -> None:
        self.total += sum(p.detach().sum() for p in learner.method.student.parameters())

    def on_train_epoch_end(self, trainer, learner) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.epochs = state["total"].clone(), state["epochs"]


def patient(patience: int = 2) -> EarlyStopping:
    """Nothing is an improvement of as much as that, so it stops after a patience."""
    return EarlyStopping("val/student/loss", patience=patience, min_delta=100.0)


def plateau(optimizer: torch.optim.Optimizer, updates: int) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=100.0, threshold_mode="abs")


@pytest.mark.usefixtures("reports")
def test_early_stopping_ends_a_training_after_its_patience(tmp_path):
    student = net()
    result = fit(limbeck.plain(student), epochs=9, callbacks=[patient()], run_dir=tmp_path)
    assert result.finished
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.metrics["val/student/loss"] == result.history[-1]["val/student/loss"]
    assert json.loads((tmp_path / "result.json").read_text())["finished"] is True
    assert "<html" in (tmp_path / "report.html").read_text()

    other = net(1, at=1, happens=lambda: pytest.fail("it trains"))
    again = fit(limbeck.plain(other), epochs=9, callbacks=[patient()], run_dir=tmp_path, resume=True)
    assert again.history == result.history
    assert identical(tensors(other), tensors(student))


@pytest.mark.parametrize("monitored", ["train/student/loss", "lr/student", "val/student/accuracy"])
def test_what_callbacks_may_monitor_has_the_names_of_metrics_csv(monitored):
    stopping = EarlyStopping(monitored, mode="max", patience=9)
    history = fit(limbeck.plain(net()), callbacks=[stopping]).history
    assert float(stopping.best_score) == pytest.approx(max(row[monitored] for row in history))


@pytest.mark.parametrize("at", [2, 5, 7, 10, 11], ids=lambda at: f"batch {at}")
@pytest.mark.parametrize("schedule", [None, plateau], ids=["constant", "plateau"])
def test_callbacks_and_schedules_go_on_exactly(tmp_path, at, schedule):
    def train(student: nn.Module, **options: Any) -> tuple[limbeck.Result, list[Any]]:
        mine = [Recorder(), EMAWeightAveraging(decay=0.8), patient(3)]
        method = limbeck.kd(student, good_teacher())
        result = fit(method, epochs=9, callbacks=mine, schedule=schedule, **options)
        return result, [float(mine[0].total), mine[0].epochs, mine[2].wait_count, mine[2].stopped_epoch]

    undisturbed = net()
    whole, seen = train(undisturbed)
    assert not train(net(at=at), run_dir=tmp_path)[0].finished
    student = net(1)
    result, again = train(student, run_dir=tmp_path, resume=True)
    assert identical(tensors(student), tensors(undisturbed))
    assert again == seen
    strip = [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]
    assert strip == [{name: value for name, value in row.items() if name != "seconds"} for row in whole.history]
    assert len(strip) == 4


def test_a_run_that_is_killed_after_its_last_epoch_is_not_trained_further(tmp_path, monkeypatch):
    """Between the checkpoint of the epoch in which a callback ends a training, and what says that it is over."""

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.engine.fit._Training._keep", kill)
        with pytest.raises(KeyboardInterrupt):
            fit(limbeck.plain(net()), epochs=9, callbacks=[patient()], run_dir=tmp_path)
    other = net(1, at=1, happens=lambda: pytest.fail("it trains"))
    result = fit(limbeck.plain(other), epochs=9, callbacks=[patient()], run_dir=tmp_path, resume=True)
    assert result.finished
    assert len(result.history) == 3


def test_what_is_shipped_is_the_average_of_a_callback_that_averages():
    student, plain = net(), net()
    result = fit(limbeck.kd(student, good_teacher()), callbacks=[EMAWeightAveraging(decay=0.5)])
    fit(limbeck.kd(plain, good_teacher()))
    assert not identical(tensors(student), tensors(plain))
    assert result.metrics["val/student/loss"] == pytest.approx(limbeck.evaluate(student, HELD_OUT)["loss"])


def test_each_stage_begins_with_callbacks_as_they_were_given():
    history = fit(two_stages(net()), epochs=18, callbacks=[patient()]).history
    assert [(row["stage"], row["epoch"]) for row in history] == [(s, e) for s in ("first", "second") for e in (1, 2, 3)]


def test_a_run_goes_on_with_the_same_callbacks_only(tmp_path):
    fit(limbeck.plain(net(at=7)), callbacks=[patient()], run_dir=tmp_path)
    for other in ([], [patient(5)]):
        with pytest.raises(ValueError, match="has another callbacks"):
            fit(limbeck.plain(net()), callbacks=other, run_dir=tmp_path, resume=True)


def test_the_best_checkpoint_is_kept_where_the_user_says(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/student/accuracy", mode="max", save_weights_only=True)
    fit(limbeck.plain(net()), callbacks=[best], run_dir=tmp_path / "run")
    assert Path(best.best_model_path).parent == tmp_path / "best"
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"stage-0.ckpt"}


class Unkept(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"open": lambda: None}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (object(), TypeError, r"callbacks\[0\] must be a Callback of lightning, got object"),
        (EarlyStopping, TypeError, r"got the class EarlyStopping: call it, EarlyStopping\(\.\.\.\)"),
        (StochasticWeightAveraging(0.1), ValueError, "take WeightAveraging or EMAWeightAveraging"),
        (GradientAccumulationScheduler({0: 2}), ValueError, "take accumulate="),
        (RichProgressBar(), ValueError, "take progress="),
        (ModelCheckpoint(), ValueError, "must say where it writes, dirpath='best'.*got dirpath=None"),
        (Unkept(), ValueError, r"Unkept has state that no checkpoint can hold: let its state_dict\(\)"),
    ],
)
def test_callbacks_that_cannot_do_what_they_are_for_are_refused(given, error, message, tmp_path):
    untouched = net(at=1, happens=lambda: pytest.fail("it trains"))
    with pytest.raises(error, match=message):
        fit(limbeck.plain(untouched), callbacks=[given], run_dir=tmp_path)
    with pytest.raises(ValueError, match="and not among the run's own checkpoints, got dirpath="):
        fit(limbeck.plain(untouched), callbacks=[ModelCheckpoint(tmp_path / "checkpoints")], run_dir=tmp_path)


def test_a_plateau_lowers_the_rate_after_its_patience():
    history = fit(limbeck.plain(net()), epochs=6, schedule=plateau).history
    assert [row["lr/student"] for row in history] == [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]


@pytest.mark.parametrize(("mode", "metric"), [("min", "loss"), ("max", "accuracy")])
def test_a_plateau_is_shown_the_loss_or_the_score(mode, metric, monkeypatch):
    seen = []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, value: seen.append(value))
    history = fit(limbeck.plain(net()), schedule=lambda optimizer, updates: ReduceLROnPlateau(optimizer, mode)).history
    assert seen == [row[f"val/student/{metric}"] for row in history]


def test_each_player_has_its_own_plateau(monkeypatch):
    seen = []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, value: seen.append(value))
    row = fit(limbeck.dml(net(), net(1)), epochs=1, schedule=plateau).history[0]
    assert seen == [value for name, value in row.items() if name.startswith("val/") and name.endswith("/loss")]
    assert len(set(seen)) == 2


def test_a_plateau_without_what_it_looks_at_is_refused():
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau looks at the validation .* pass \(train, val\)"):
        fit(limbeck.plain(net()), (BATCHES,), schedule=plateau)
    lowest = replace(limbeck.regression, target=lambda batch: nn.functional.one_hot(batch[1], CLASSES).float())
    with pytest.raises(ValueError, match="whose best is the lowest: take mode='min'"):
        fit(limbeck.plain(net(), task=lowest), schedule=lambda optimizer, updates: ReduceLROnPlateau(optimizer, "max"))


# updates


def flat() -> nn.Sequential:
    """A network whose gradient of a batch is the mean over its samples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def by_hand(groups: Iterable[list[Any]], limit: float = math.inf) -> dict[str, Tensor]:
    student = flat()
    optimizer = plain_sgd(list(student.parameters()))
    for group in groups:
        optimizer.zero_grad()
        torch.stack([nn.functional.cross_entropy(student(x), y) for x, y in group]).mean().backward()
        nn.utils.clip_grad_norm_(student.parameters(), limit)
        optimizer.step()
    return tensors(student)


def test_accumulation_descends_the_mean_gradient():
    student = flat()
    fit(limbeck.plain(student), epochs=1, accumulate=2, optimizer=plain_sgd)
    expected = by_hand([BATCHES[:2], BATCHES[2:4], BATCHES[4:]])  # the last one of an epoch waits for nothing
    for name, value in tensors(student).items():
        torch.testing.assert_close(value, expected[name])


def test_clipping_limits_the_norm_of_the_gradient():
    student = flat()
    fit(limbeck.plain(student), epochs=1, clip=0.1, optimizer=plain_sgd)
    clipped, free = (by_hand([[batch] for batch in BATCHES], limit) for limit in (0.1, math.inf))
    for name, value in tensors(student).items():
        torch.testing.assert_close(value, clipped[name])
    assert not torch.allclose(clipped["0.weight"], free["0.weight"])


def test_a_schedule_advances_with_every_update():
    asked = []

    def tenth(optimizer: torch.optim.Optimizer, updates: int) -> LRScheduler:
        asked.append(updates)
        return LambdaLR(optimizer, lambda update: 0.1**update)

    history = fit(limbeck.plain(net()), accumulate=2, schedule=tenth).history
    assert asked == [6]
    assert [row["lr/student"] for row in history] == pytest.approx([1e-4, 1e-7])


def test_what_lies_outside_a_stage_stays_as_it_is():
    torch.manual_seed(0)
    head = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
    student = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), *head)
    teacher = nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    seen = [tensors(student)]

    def watched() -> Iterator[Stage]:
        for stage in limbeck.fitnets(student, teacher, guided="1", hint="1", example=INPUTS):
            yield stage
            seen.append(tensors(student))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", limbeck.ChanceWarning)
        fit(watched())
    for name, value in seen[1].items():
        assert torch.equal(value, seen[0][name]) == (not name.startswith("0.")), name
        assert not torch.equal(value, seen[2][name]), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    flawless = limbeck.ban(net(), good_teacher(), generations=2)  # stages, and networks made of others
    result = fit(flawless, (BATCHES, HELD_OUT, HELD_OUT), precision=precision)
    assert {p.dtype for network in result.networks.values() for p in network.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert "test/ensemble/loss" in result.metrics


# the user's own loaders


class Noisy(Dataset):
    """Every sample draws from all three generators."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        self.seen.append(INPUTS[index] + noise)
        return self.seen[-1].float(), TARGETS[index]


def shuffled(data: Dataset) -> DataLoader:
    return DataLoader(data, BATCH, shuffle=True)


def own_generator(data: Dataset) -> DataLoader:
    return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(5))


def own_sampler(data: Dataset) -> DataLoader:
    return DataLoader(data, BATCH, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("loader", [shuffled, own_generator, own_sampler])
def test_users_loaders_are_repeated_and_resumed_exactly(tmp_path, loader):
    def session(at: int = 0, **options: Any) -> tuple[bool, dict[str, Tensor], list[Tensor]]:
        student, data = net(at=at), Noisy()
        torch.rand(random.randrange(10))  # whatever was drawn before
        result = fit(limbeck.plain(student), (loader(data), DataLoader(Noisy(), BATCH)), epochs=3, **options)
        losses = [row["val/student/loss"] for row in result.history]
        return result.finished, {**tensors(student), "val": torch.tensor(losses)}, data.seen

    finished, whole, seen = session()
    assert finished
    assert identical(session()[1], whole)
    first, second = (torch.stack(seen[start : start + 20]).sort(0).values for start in (8, 28))  # 8 were looked at
    assert not torch.equal(first, second)
    assert not session(at=4, run_dir=tmp_path)[0]
    assert not session(at=2, run_dir=tmp_path, resume=True)[0]
    finished, parts, _ = session(run_dir=tmp_path, resume=True)
    assert finished
    assert identical(parts, whole)


class Named(nn.Module):
    """A network that is called by keyword, as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return self.fc(features * scale[:, None])


def test_batches_may_be_dicts():
    data = [{"features": x, "scale": torch.ones(len(x)), "labels": y} for x, y in BATCHES]
    torch.manual_seed(0)
    result = fit(limbeck.plain(Named()), (data, data, data), epochs=20)
    assert result.metrics["test/student/accuracy"] > 0.8


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(BATCHES)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "an iterator": (iter(BATCHES), TypeError, r"a loader with a length .* got list_iterator: wrap it in .*DataLoader"),
    "no length": (DataLoader(Endless()), TypeError, "the train data has no length"),
    "empty": ([], ValueError, "the train data is empty: 0 batches"),
    "too few to fill a batch": (DataLoader(Noisy(), 32, drop_last=True), ValueError, "0 batches .* lower batch_size"),
    "empty validation": ((BATCHES, []), ValueError, "the val data is empty"),
    "a tensor": (INPUTS, TypeError, "got Tensor"),
    "a data set": (Noisy(), TypeError, "got Noisy: wrap it in"),
    "a list of loaders": ([DataLoader(Noisy()), DataLoader(Noisy())], TypeError, r"pass a tuple, \(train, val\)"),
    "four": ((BATCHES,) * 4, TypeError, "got a tuple of 4"),
    "none": (None, TypeError, "holds no training loader"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_trained_on(case):
    data, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        limbeck.fit(limbeck.plain(net()), data, epochs=1)


# doubts and mistakes


class Fragile(nn.Module):
    """A loss that breaks in one of its calls: its value, or just its gradient."""

    def __init__(self, at: int, gradient_only: bool) -> None:
        super().__init__()
        self.calls, self.breaks, self.how = 0, at, gradient_only  # no options: a run goes on without what broke it

    def forward(self, student: Tensor) -> Tensor:
        self.calls += 1
        if self.calls != self.breaks:
            return student.square().mean()
        return (0 * student).sum().abs().sqrt() if self.how else student.mean() * math.nan


@pytest.mark.parametrize(
    ("at", "gradient_only", "message"),
    [(12, False, "'student/fragile' is not finite at batch 11"), (15, True, "parameters of 'student' are not finite")],
    ids=["a loss", "a gradient in an epoch's last batch"],
)
def test_what_is_not_finite_leaves_the_last_good_checkpoint(tmp_path, at, gradient_only, message):
    def session(at: int, folder: Path, seed: int = 0, **options: Any) -> dict[str, Tensor]:
        student = net(seed)
        fragile = on(Fragile(at, gradient_only), S, name="fragile")
        fit(limbeck.Distill(student, None, classification.hard + fragile), epochs=4, run_dir=folder, **options)
        return tensors(student)

    with pytest.raises(FloatingPointError, match=message):
        session(at, tmp_path / "run")
    assert message in (tmp_path / "run" / "train.log").read_text()
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["limbeck"]["step"] == 10
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert identical(session(0, tmp_path / "run", seed=1, resume=True), session(0, tmp_path / "whole"))


def test_a_term_without_effect_is_told_once_and_logged(tmp_path):
    detached = on(lambda z: z.detach().square().mean(), S, name="vain")
    with pytest.warns(limbeck.NoEffectWarning, match="'student/vain' gave its player no gradient") as caught:
        fit(limbeck.Distill(net(), None, classification.hard + detached), run_dir=tmp_path)
    assert sum(issubclass(each.category, limbeck.NoEffectWarning) for each in caught) == 1
    assert "NoEffectWarning: the term 'student/vain'" in (tmp_path / "train.log").read_text()


def test_a_weight_that_is_0_throughout_is_found_before_the_training():
    student = net(at=1, happens=lambda: pytest.fail("it trains"))
    off = (lambda progress: max(0.0, progress - 1)) * on(torch.mean, S, name="off")
    with pytest.raises(ValueError, match="the term 'off' would never run"):
        fit(limbeck.Distill(student, None, classification.hard + off))
    late = (lambda progress: max(0.0, progress - 0.5)) * on(torch.mean, S, name="late")
    assert "train/student/late" in fit(limbeck.Distill(net(), None, classification.hard + late)).history[1]


def test_a_teacher_no_better_than_chance_is_doubted():
    constant = nn.Linear(FEATURES, CLASSES)
    nn.init.zeros_(constant.weight)
    nn.init.constant_(constant.bias, 0)
    guessed = (TARGETS == 0).float().mean().item()
    told = f"accuracy {100 * guessed:.2f} %, where guessing has 33.33 %, on 40 validation samples"
    with pytest.warns(limbeck.ChanceWarning, match=told):
        fit(limbeck.kd(net(), constant))


def test_a_teacher_above_chance_on_too_few_samples_cannot_be_told_from_it():
    labels = TARGETS[:4].clone()
    labels[0] = (labels[0] + 1) % CLASSES
    few, told = (INPUTS[:4], labels), "the teacher cannot be told from guessing: accuracy 75.00 %, .* on 4 .* too few"
    with pytest.warns(limbeck.ChanceWarning, match=told):
        limbeck.fit(limbeck.kd(net(), good_teacher()), (BATCHES, [few]), epochs=1, accelerator="cpu", progress=False)


def test_a_teacher_of_several_stages_is_doubted_once(recwarn):
    warnings.simplefilter("always")
    student = net()
    stages = [Stage(limbeck.kd(student, net(1)), 0.5, name=name) for name in ("first", "second")]
    student_alone = [Stage(limbeck.kd(net(), net(1)))]
    for method in (stages, student_alone):
        recwarn.clear()
        fit(method, (BATCHES, [(INPUTS, torch.randint(3, (40,), generator=torch.Generator().manual_seed(1)))]))
        assert sum(str(one.message).startswith("the teacher") for one in recwarn.list) == 1


def words(result: limbeck.Result) -> str:
    """What a notebook shows, without markup."""
    return re.sub("<.*?>", "", result._repr_html_())


def test_the_teacher_is_measured_on_the_test_data_as_it_is_fed(tmp_path):
    """Its classes are in another order, and it sees other inputs: the run's page has it beside its student."""
    rolled = nn.Linear(FEATURES, CLASSES, bias=False)
    rolled.weight.data = -3 * RULE.roll(1, 0)
    teacher = limbeck.Frozen(rolled, inputs=torch.neg, classes=[1, 2, 0])
    result = fit(limbeck.kd(net(), teacher), (BATCHES, HELD_OUT, [(INPUTS[:9], TARGETS[:9])]), run_dir=tmp_path)
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["teachers"]["teacher"]["test"]["accuracy"] == 1.0
    assert not result.missing
    assert "Its teacher has 100.00 % on the test data." in words(result)


def test_a_teacher_that_fails_on_the_test_data_costs_no_run(tmp_path):
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) != 9
            return super().forward(x)

    teacher = Picky(FEATURES, CLASSES, bias=False)
    teacher.weight.data = 3 * RULE
    with pytest.warns(UserWarning, match="kept, but without the test metrics of teacher: AssertionError"):
        result = fit(limbeck.kd(net(), teacher), (BATCHES, HELD_OUT, [(INPUTS[:9], TARGETS[:9])]), run_dir=tmp_path)
    assert "test/student/accuracy" in result.metrics
    assert list(result.missing) == ["the test metrics of teacher"]
    assert "Its teacher has 100.00 % on the validation data." in words(result)


def test_a_good_teacher_is_not_doubted(recwarn):
    fit(limbeck.kd(net(), good_teacher()))
    assert not recwarn.list


@pytest.mark.parametrize("staged", [False, True])
def test_a_network_with_too_few_classes_is_refused_before_its_first_batch(staged):
    student = net(classes=2, at=1, happens=lambda: pytest.fail("it trains"))
    with pytest.raises(ValueError, match="the student has 2 classes, but the data has 3"):
        fit([Stage(limbeck.plain(student))] if staged else limbeck.plain(student), HELD_OUT)


FLOATS = torch.randn(len(TARGETS), CLASSES, generator=DRAW)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((FLOATS > 0).float(), r"float32 of shape \(8, 3\).*several labels a sample\? task=limbeck.multilabel"),
        (FLOATS, r"values\? task=limbeck.regression \(--task regression\); soft labels add up to 1"),
        (torch.full((len(TARGETS),), math.nan), "values"),
        (TARGETS + 7, r"the student has 3 classes, but the data has (9|10)\. Make it with num_classes="),
        (TARGETS - 1, r"labels lie between -1 and \d, of 3 classes: they must lie between 0 and 2, or be -100"),
    ],
    ids=["several labels", "values", "NaN", "too high", "too low"],
)
def test_targets_that_are_no_classes_are_refused_before_the_first_batch(targets, message):
    train = list(zip(INPUTS.split(BATCH), targets.split(BATCH), strict=True))
    student = net(at=1, happens=lambda: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=message):
        fit(limbeck.plain(student), (train, train))
    with pytest.raises(ValueError, match=message):
        limbeck.distill(student, good_teacher(), (train, train), epochs=1, progress=False)


def test_soft_labels_are_classes():
    soft = FLOATS.softmax(1)
    train = list(zip(INPUTS.split(BATCH), soft.split(BATCH), strict=True))
    result = fit(limbeck.plain(net()), (train, train))
    right = result.student(INPUTS).argmax(1) == FLOATS.argmax(1)
    assert result.metrics["val/student/accuracy"] == pytest.approx(right.float().mean().item())
    hard = list(zip(INPUTS.split(BATCH), torch.eye(CLASSES)[TARGETS].split(BATCH), strict=True))
    assert fit(limbeck.plain(net()), (hard, HELD_OUT)).finished


def test_a_score_that_is_none_of_the_metrics_is_refused_before_the_first_batch():
    student = net(at=1, happens=lambda: pytest.fail("it trains"))
    task = replace(classification, score=limbeck.Score("mIoU"))
    with pytest.raises(ValueError, match=r"is judged by 'mIoU', but its metrics give \['accuracy', 'loss'\]"):
        fit(limbeck.plain(student, task=task))


def test_teachers_of_another_task():
    """Their answers have another shape: the loss says so, and where layers are compared nothing is wrong."""
    other = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="the student has 3 classes and the teacher 1: give both the same classes"):
        fit(limbeck.kd(net(), other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", limbeck.ChanceWarning)
        assert fit(limbeck.rkd(net(), other)).finished


def test_arguments_that_make_no_sense():
    for name in ("epochs", "accumulate", "devices"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            fit(limbeck.plain(net()), **{name: 0})
    with pytest.raises(TypeError, match=r"expected a method, got the network Sequential: limbeck.plain\(net\)"):
        fit(net())
    with pytest.raises(ValueError, match="no stage"):
        fit([])


def test_nothing_is_left_behind_in_the_process(tmp_path):
    show, level = warnings.showwarning, logging.getLogger("limbeck").level
    with pytest.raises(ValueError, match="has 2 classes"):
        fit(limbeck.plain(net(classes=2)), HELD_OUT, run_dir=tmp_path)
    assert warnings.showwarning is show
    assert logging.getLogger("limbeck").level == level
    assert logging.getLogger("limbeck").handlers == []


# the one call


def distill(teacher: Any, method: str, **options: Any) -> limbeck.Result:
    settings = {"epochs": 1, "accelerator": "cpu", "progress": False, **options}
    return limbeck.distill(net(), teacher, (BATCHES, HELD_OUT), method, **settings)


def test_distill_is_fit_of_a_method_by_name(tmp_path):
    result = distill(good_teacher(), "kd", temperature=2.0, alpha=0.5, optimizer=sgd, seed=1, run_dir=tmp_path)
    student = net()
    fit(limbeck.kd(student, good_teacher(), temperature=2.0, alpha=0.5), epochs=1, seed=1)
    assert identical(tensors(result.student), tensors(student))
    assert json.loads((tmp_path / "result.json").read_text())["method"] == "kd"


def test_distill_gives_methods_what_they_take():
    assert distill(None, "plain").finished
    assert list(distill([net(1), net(2)], "dml").networks) == ["student", "peer1", "peer2"]


@pytest.mark.parametrize(
    ("teacher", "method", "options", "message"),
    [
        (good_teacher(), "kdd", {}, "unknown method 'kdd': did you mean kd"),
        (good_teacher(), "kd", {"temprature": 2.0}, "kd has no option 'temprature': did you mean temperature"),
        (good_teacher(), "kd", {"epoch": 2}, "kd has no option 'epoch'"),
        (None, "kd", {}, "kd needs a teacher: none was given"),
        (None, "dml", {}, "dml needs a peer"),
        (good_teacher(), "plain", {}, "plain has no teacher: leave it out"),
        ([good_teacher()] * 2, "kd", {}, "kd has one teacher, got 2: limbeck.Ensemble makes one of several"),
    ],
)
def test_distill_says_what_is_wrong(teacher, method, options, message):
    with pytest.raises(ValueError, match=message):
        distill(teacher, method, **options)


def test_an_ensemble_teaches():
    teacher = limbeck.Ensemble([good_teacher(), good_teacher()])
    result = fit(limbeck.Distill(net(), teacher, on(limbeck.losses.soft_target, S, T, name="soft")))
    assert result.finished


def test_a_student_that_is_no_better_than_chance_after_its_training_is_doubted():
    with pytest.warns(limbeck.ChanceWarning, match="after the training the network is no better than chance: accuracy"):
        fit(limbeck.plain(net()), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0))
