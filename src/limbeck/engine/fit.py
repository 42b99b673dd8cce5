"""Train a method on data, with everything that a training needs."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import io
import logging
import os
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core.compiled import compiling
from limbeck.core.distributed import gather, place
from limbeck.core.exhibits import Exhibit
from limbeck.core.files import VERSION, keep
from limbeck.core.heard import shown_once
from limbeck.core.method import Make, Method, no_method, objectives_of
from limbeck.core.options import ranged
from limbeck.core.sound import refuse_unsound
from limbeck.core.stage import Stage
from limbeck.core.task import Batch, Score, Task
from limbeck.data import Data, Epochs
from limbeck.data.cache import Brought
from limbeck.data.epochs import Answers
from limbeck.data.randomness import random_state, set_random_state
from limbeck.data.repeatable import Repeatable, Splits, samples_in, splits
from limbeck.engine.assemble import find
from limbeck.engine.callbacks import describe_callbacks, keeps_checkpoints, refuse_callbacks
from limbeck.engine.devices import Devices
from limbeck.engine.examined import refuse_unfit
from limbeck.engine.inputs import describe_stage, describe_updates, inputs_of
from limbeck.engine.interrupt import interruptible
from limbeck.engine.learner import ChanceWarning, Interrupted, Learner, Row, Schedule, teachers_of
from limbeck.engine.observe import exhibits_of
from limbeck.engine.precision import Precision as Precision
from limbeck.engine.precision import Teachers, TeacherType
from limbeck.engine.progress import bars
from limbeck.engine.run import Run, about, kept
from limbeck.engine.taught import absent, described_cache, known_of, refuse_what_is_not_said, told_to
from limbeck.measure.cost import cost
from limbeck.measure.early_exit import exit_profile
from limbeck.measure.evaluate import evaluate
from limbeck.nets.exits import EarlyExit
from limbeck.report.examples import FILE, write_exhibits
from limbeck.report.notebook import Told
from limbeck.report.run import run_report, run_told
from limbeck.tasks.classification import classification

logger = logging.getLogger("limbeck")


class NotCompiledWarning(UserWarning):
    """Something that torch runs as it was written, though it was to be compiled."""


Trainable = Method | Iterable[Stage]
"""What `fit` trains: a method, or the stages of one."""


@dataclass(frozen=True)
class Result:
    """What a training gave.

    Args:
        networks: The trained networks by name, the one to ship first, on the CPU.
        metrics: ``test/student/accuracy`` and so on, by the task's names, and ``val/...``, after the last epoch. What could
            not be measured on the test data is left out, with a warning.
        history: One row an epoch: the lines of ``metrics.csv``.
        seconds: How long the training took, over all its sessions.
        finished: False where Ctrl-C ended it; then ``resume=True`` goes on.
        run_dir: The run's folder, if there is one.
        missing: What could not be measured, drawn or written after the training, each with the reason.
        score: What it is judged by.
        interrupted: Whether Ctrl-C came. A training that was over by then is finished all the same, and who makes several
            is to make no more.
    """

    networks: dict[str, nn.Module]
    metrics: dict[str, float]
    history: list[Row]
    seconds: float
    finished: bool = True
    run_dir: Path | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    score: Score = classification.score
    interrupted: bool = False

    @property
    def student(self) -> nn.Module:
        """The network to ship."""
        return next(iter(self.networks.values()))

    def __str__(self) -> str:
        """Return what `print` shows: what came out, as the run's page says it."""
        return self._told().text()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: likewise."""
        return self._told().html()

    def _told(self) -> Told:
        known = {} if self.run_dir is None else Run(self.run_dir).result()
        networks = {
            name: {split: _of(self.metrics, f"{split}/{name}/") for split in ("val", "test")} for name in self.networks
        }
        mine = {"networks": networks, "finished": self.finished, "missing": self.missing, "score": asdict(self.score)}
        return run_told({**mine, **known}, len(self.history), self.run_dir)


@ranged
def fit(
    method: Trainable,
    data: Any,
    *,
    epochs: int,
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
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Train a method.

    The networks are trained in place. Every epoch ends with a validation, a line in ``metrics.csv`` and a checkpoint. The
    first Ctrl-C ends the training after the batch, with a checkpoint from which ``resume=True`` goes on exactly; where that
    was the last batch, or it comes later, the training is finished, and `Result.interrupted` says that it came.

    The weights and the validation metrics are written first. What follows, the test metrics, costs and pictures, may fail
    without costing them: there is a warning, ``result.json`` says what is missing and why, and the same call with
    ``resume=True`` tries it again; ``limbeck report`` draws the page again.

    A run goes on with what it began with, and says what is another: the method with its options, the weights of those who
    teach, the task, the data, the optimizer and its schedule, the numbers here, and limbeck's version. Of the networks that
    train it is the architecture alone, as a checkpoint brings their weights.

    Args:
        method: A method, or the stages of one that has several.
        data: A `limbeck.data.Data`; or loaders of batches as the method's task reads them, ``(inputs, targets)`` or a dict:
            ``(train, val, test)``, ``(train, val)`` or train alone. Among several processes a batch of theirs is the
            global one.
        epochs: Of all stages together, at least 1; each has its share, and at least one.
        optimizer: Makes an optimizer of a list of parameters, for all players or by player. By default SGD with
            learning rate 0.05, momentum 0.9 and weight decay 5e-4, as in RepDistiller, and with Nesterov's correction,
            which is ours.
        schedule: Makes a learning-rate schedule of an optimizer and its number of updates, and is stepped after each;
            constant by default. A ``ReduceLROnPlateau`` is stepped after each epoch, with the validation loss of the
            player's network as PyTorch's own examples do; with ``mode="max"`` by the task's score, as accuracy.
        precision: Lightning's name.
        accelerator: Lightning's name; the best there is by default.
        devices: How many in each machine, at least 1.
        nodes: How many machines, at least 1, on each of which ``torchrun`` or SLURM starts the same call.
        strategy: ``"ddp"``, the default of several devices; ``"fsdp2"``, which shares out weights, gradients and the
            optimizers' states, and trains a twin of the method from which the given networks get their weights at the end;
            or another of Lightning's names. Means over labelled samples, or those that a mask lets count, are those of the
            whole batch in each of them, and relations are between all of its samples.
        sync_batchnorm: Let batch norm take its statistics over all processes, on GPUs; else each has its own, and those of
            the first are validated and kept.
        channels_last: Lay the weights of convolutions out with channels last, which many GPUs are faster with.
        compile: Compile the networks and the losses, see `limbeck.compiled`.
        teachers: Where the teachers' weights lie while they teach, whatever the strategy is: ``"whole"`` on each device;
            ``"sharded"`` among the devices, or ``"offloaded"`` in the host's memory, and brought together block by block.
        teacher_dtype: In which numbers teachers compute, whatever ``precision`` is: ``"own"`` as they come, ``"bfloat16"``
            or ``"float16"``.
        accumulate: How many batches share an update, at least 1. A mean is then over all of them, as of one large batch,
            also where they have unequally many samples or labels. Losses that compare samples with each other are refused;
            batch norm and what draws see one batch at a time.
        clip: The largest norm of a player's gradient, above 0; unlimited by default.
        seed: Of everything random but the data, at least 0; theirs is an option of `limbeck.data.load`.
        run_dir: The run's folder; nothing is written without one.
        resume: Go on with the run in ``run_dir``, by the same settings but for where it runs; start it if there is none.
        loggers: Further loggers, Lightning's.
        callbacks: Lightning's, as ``EarlyStopping`` and ``EMAWeightAveraging``. What they may monitor has the names of
            ``metrics.csv``: ``val/student/accuracy``, ``val/student/loss``, ``train/student/loss``, ``lr/student``. A
            training that one ends is finished, with the networks as they stand and not those of the best epoch.
            Checkpoints hold their ``state_dict()``, so that a run goes on exactly. Each stage of a method that has several
            begins with copies of them. Those that descend otherwise, as ``StochasticWeightAveraging``, are refused, and
            ``ModelCheckpoint`` needs its ``dirpath``.
        progress: Show progress bars; by default where standard error is a terminal.
        name: What ``result.json`` and the report call the method.
        settings: What ``config.yaml`` holds in place of these arguments: the whole command, say.

    Raises:
        TypeError: An argument of another type; the message says which was expected.
        ValueError: An argument that makes no sense, empty data, a term that would never run, or that compares
            samples which ``accumulate`` keeps apart; a method whose task is not
            that of the data, or what the task finds wrong with them; layers whose state no file of weights can hold; a run
            that is there, or one to go on with that depends on something else or is damaged; another process that trains
            in its folder.
        FloatingPointError: A loss is not finite; the message names its term. The last good checkpoint stays.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> student = limbeck.zoo.network("mlp-32", data.num_classes, data.shape)
        >>> result = limbeck.fit(limbeck.plain(student), data, epochs=2)
        >>> result.metrics["test/student/accuracy"] > 0.5
        True

        Stop when the accuracy has not risen for three epochs:

        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> patient = EarlyStopping("val/student/accuracy", mode="max", patience=3)
        >>> len(limbeck.fit(limbeck.plain(student), data, epochs=60, callbacks=[patient]).history) < 60
        True
    """
    seed_everything(seed, workers=True, verbose=False)
    own: dict[str, Any] = {
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "accumulate": accumulate,
        "clip": clip,
    }
    own |= {"sync_batchnorm": sync_batchnorm} if sync_batchnorm else {}
    own |= {"teacher_dtype": teacher_dtype} if teacher_dtype != "own" else {}
    settings = settings or own
    stages, loaders, run = _stages(method), splits(data, seed), _run(run_dir, resume)
    where = Devices(
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        sync_batchnorm=sync_batchnorm,
        channels_last=channels_last,
        teachers=teachers,
        teacher_dtype=teacher_dtype,
    )
    if where.shares_weights and precision in ("16-mixed", "64-true"):
        raise ValueError(f"strategy='fsdp2' computes in 32-true, bf16-mixed or bf16-true, got precision={precision!r}")
    refuse_callbacks(callbacks, None if run is None else run.last.parent, shares_weights=where.shares_weights)
    training = _Training(
        loaders,
        loaders.train.answers,
        task_of(data),
        run,
        optimizer or _sgd,
        schedule,
        accumulate,
        clip,
        trainer={
            "precision": precision,
            "accelerator": accelerator,
            "devices": devices,
            "num_nodes": nodes,
            "logger": list(loggers) or False,
        },
        where=where,
        compile=compile,
        progress=progress,
        callbacks=callbacks,
        copies=None if isinstance(method, Method) else copy.deepcopy(callbacks),
    )
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(shown_once())
        wants_stop = stack.enter_context(interruptible())
        if run is not None and _is_main():
            stack.enter_context(run.held())
            run.check(settings, resume)
            known = data.pipeline if isinstance(data, Data) else {}
            inputs = {
                "pipeline": dict(known),
                "callbacks": describe_callbacks(callbacks),
                "cache": described_cache(loaders.train.answers),
                **inputs_of(loaders, training.task, own, settings),
            }
            if run.begun:
                run.compare(inputs, loaders)
            else:
                run.begin(settings, inputs)
                stack.push(_forgets(run))
            stack.enter_context(run.logging())
            if isinstance(data, Data) and known:
                logger.info("%s", data.in_words())
        last, finished = training.run_all(stages, epochs, wants_stop)
        what = {"method": name, "data": getattr(data, "name", None), "seed": seed}
        result = _finish(training, last, finished, what, getattr(data, "classes", ()))
        return replace(result, interrupted=wants_stop())


_teachers_known: ContextVar[bool] = ContextVar("teachers_known", default=False)


@contextmanager
def teachers_known() -> Iterator[None]:
    """Leave out what teachers reach on the test data: who makes many runs of one teacher has measured it once."""
    token = _teachers_known.set(True)
    try:
        yield
    finally:
        _teachers_known.reset(token)


@dataclass
class _Training:
    """A `fit` under way: what stays the same from stage to stage, and what has been done."""

    loaders: Splits
    answers: Answers | None
    task: Task
    run: Run | None
    make: Make | Mapping[str, Make]
    schedule: Schedule | None
    accumulate: int
    clip: float | None
    trainer: dict[str, Any]
    where: Devices
    compile: bool
    progress: bool | None
    callbacks: Sequence[Callback]
    copies: Sequence[Callback] | None
    history: list[Row] = field(default_factory=list)
    teachers: dict[str, dict[str, float]] = field(default_factory=dict)
    tested: dict[str, dict[str, float]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def asks_teachers(self) -> bool:
        """Whether teachers are measured on the test data: not those that have no room on a device as a whole."""
        return self.where.teachers == "whole" and not _teachers_known.get()

    @property
    def kept(self) -> Run | None:
        """The run, in the process that writes it."""
        return self.run if _is_main() else None

    def run_all(self, stages: Iterable[Stage], epochs: int, wants_stop: Callable[[], bool]) -> tuple[Method, bool]:
        """Train every stage, one after the other; return the last one's method, and whether all were trained."""
        stage: Stage | None = None
        for index, (stage, own) in enumerate(planned(stages, epochs)):
            if not self._train(index, stage, own, wants_stop):
                return stage.method, False
        if stage is None:
            raise ValueError("there is nothing to train: the method has no stage")
        return stage.method, True

    def _train(self, index: int, stage: Stage, epochs: int, wants_stop: Callable[[], bool]) -> bool:
        """Train one stage, or what is left of it; return False if the user stopped it."""
        refuse_unsound(stage.method.networks(), {})
        self._compare(stage, index, epochs)
        if self.run is not None and (trained := self.run.finished(index)).exists():
            self._restore(stage, trained)
            return True
        _refuse_no_task(stage.method.task, self.task)
        refuse_unfit(stage.method, self.loaders, self.trainer["precision"])
        if self.accumulate > 1:
            refuse_parts_of_relations(stage.method, self.accumulate)
        if self.run is not None:
            refuse_what_cannot_be_kept(stage.method)
        known = self._bring(stage.method, index)
        logger.info("stage %s: %d epochs of %d batches", stage.name or "train", epochs, len(self.loaders.train))
        with absent(stage.method, known), self.where.holding(stage) as own:
            with compiling(own.method, self.compile) as fell_back:
                finished = self._descend(own, stage, epochs, index, known, wants_stop)
            _tell_fallen_back(fell_back, stage.name or "train")
        if not finished:
            return False
        self._keep(stage, index, epochs)
        return True

    def _descend(
        self,
        own: Stage,
        stage: Stage,
        epochs: int,
        index: int,
        known: Mapping[str, dict[str, float]],
        wants_stop: Callable[[], bool],
    ) -> bool:
        """Train a stage, or a twin of it that lies otherwise on the devices; return False if the user stopped it."""
        learner = Learner(
            own,
            self.make,
            self.loaders.train,
            epochs,
            schedule=self.schedule,
            accumulate=self.accumulate,
            clip=self.clip,
            index=index,
            name=stage.name or "train",
            history=self.history,
            wants_stop=wants_stop,
            save=self._save,
            measured=self.loaders.val is not None,
            where=self.where,
            given=None if own is stage else stage,
        )
        learner.teachers |= known
        learner.set_modes()
        shown, heard = bars(self.progress), self.callbacks if self.copies is None else copy.deepcopy(self.copies)
        trainer = Trainer(
            **self.trainer,
            strategy=self.where.engine(),
            max_epochs=epochs,
            callbacks=[*shown, *heard],
            plugins=[_Checkpoints(self.run, stage.method, own.method)] if self.run is not None else None,
            enable_progress_bar=bool(shown),
            enable_checkpointing=keeps_checkpoints(heard),
            enable_model_summary=False,
            num_sanity_val_steps=-1 if {*dict(teachers_of(own.method))} - {*known} else 0,  # the teachers, before it
            use_distributed_sampler=False,  # loaders share each batch out themselves
        )
        if isinstance(around := getattr(trainer.strategy, "cluster_environment", None), SLURMEnvironment):
            around.auto_requeue = False  # its checkpoints are Lightning's, in the working directory
        try:
            finished = self._fit(trainer, learner, index)
            self.where.bring_back(own, stage)
            return finished
        finally:
            self.device = trainer.strategy.root_device
            self.teachers |= learner.teachers
            self.doubts = learner.doubts
            self.suspects += [told for told in learner.suspects if told not in self.suspects]
            for part in (own.method, *own.method.networks().values()):  # as they came, what is no submodule too
                part.cpu()
                if self.trainer["precision"] in ("bf16-true", "64-true"):
                    part.float()

    def _fit(self, trainer: Trainer, learner: Learner, index: int) -> bool:
        """Train what is left of a stage; return False if the user stopped it."""
        try:
            trainer.fit(learner, self.loaders.train, self.loaders.val, ckpt_path=self._unfinished(index))
        except Interrupted:
            logger.info(
                "stopped by the user in stage %s after %d of %d batches", learner.name, learner.step, learner.total
            )
            return False
        except SystemExit as error:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from error
        return True

    def _bring(self, method: Method, index: int) -> dict[str, dict[str, float]]:
        """Let batches bring along what a cache has of a stage's teacher; return what else is known of it, by role."""
        train, all_of_it = self.loaders.train, self.answers
        self.tested = {}
        if not isinstance(all_of_it, Brought):
            return {}
        train.answers = read = told_to(method, all_of_it, first=index == 0)
        if read is None:
            return {}
        refuse_what_is_not_said(read, method, train)
        self.tested = known_of(read.cache, "test", self.loaders.test)
        return known_of(read.cache, "val", self.loaders.val)

    def _save(self, learner: Learner) -> None:
        """Keep the rows and the state of a stage that is under way."""
        if self.history:
            logger.info("%s", _line(self.history[-1]))
        if self.run is None:
            return
        learner.trainer.save_checkpoint(self.run.last)
        if _is_main():
            self.run.write_metrics(self.history)

    def _compare(self, stage: Stage, index: int, epochs: int) -> None:
        """See that a stage of a run that goes on is what it was, and keep what it depends on."""
        if self.kept is None:
            return
        updates = -(-len(self.loaders.train) // self.accumulate) * epochs
        told = {
            "epochs": epochs,
            **describe_stage(stage, self.loaders.few()),
            **describe_updates(stage, self.make, self.schedule, updates),
        }
        self.kept.compare_stage(index, told)

    def _keep(self, stage: Stage, index: int, epochs: int) -> None:
        """Keep a stage that has been trained, so that a later one need not train it again."""
        if self.kept is None:
            return
        state = {
            "method": stage.method.state_dict(),
            "random": random_state(),
            "loader": self.loaders.train.state_dict(),
            "history": self.history,
            "teachers": self.teachers,
            "epochs": epochs,
            "doubts": self.doubts,
            "suspects": self.suspects,
            "limbeck": _networks(stage.method),
        }
        keep(self.kept.finished(index), state)
        self.kept.last.unlink(missing_ok=True)

    def _restore(self, stage: Stage, trained: Path) -> None:
        """Put a stage where its training left it, so that what follows it in the method finds what it would have."""
        assert self.run is not None
        saved = self.run.checkpoint(trained)
        stage.method.load_state_dict(saved["method"])
        set_random_state(saved["random"])
        self.loaders.train.load_state_dict(saved["loader"])
        self.history[:], self.teachers = saved["history"], saved["teachers"]
        self.doubts, self.suspects = saved.get("doubts", []), saved.get("suspects", [])

    def _unfinished(self, index: int) -> Path | None:
        """Return the checkpoint in the middle of this stage, if there is one."""
        if self.run is None or not self.run.last.exists():
            return None
        if self.run.checkpoint(self.run.last)["limbeck"]["stage"] != index:
            return None  # of the stage before: the run was killed between two files
        return self.run.last

    @contextmanager
    def may_miss(self, what: str) -> Iterator[None]:
        """Do what a finished training does not depend on: where it fails there is a warning, and the result says so."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # of networks and tasks of the user's own, anything
            reason = f"{type(error).__name__}: {error}".strip()
            self.missing[what] = reason
            warnings.warn(f"the training is done and its networks are kept, but without {what}: {reason}", stacklevel=3)


class _Checkpoints(TorchCheckpointIO):
    """Keeps checkpoints as all else: beside their place, with checksums; and in them the networks so far, see `Run`."""

    def __init__(self, run: Run, method: Method, trained: Method) -> None:
        self.run, self.method, self.trained = run, method, trained

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Keep a checkpoint."""
        if self.trained is not self.method:
            state = checkpoint["state_dict"]
            self.method.load_state_dict({name.removeprefix("method."): value for name, value in state.items()})
        own = {**checkpoint["limbeck"], **_networks(self.method)}
        keep(Path(path), {**checkpoint, "limbeck": own})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one back, on the CPU."""
        return self.run.checkpoint(Path(path))


def _networks(method: Method) -> dict[str, Any]:
    """What a checkpoint holds for those who read networks from it, see `Run`."""
    networks = {name: kept(net, about(method.task)) for name, net in method.networks().items()}
    return {
        "format": VERSION,
        "networks": {name: {"state": state, "about": told} for name, (state, told) in networks.items()},
    }


def planned(stages: Iterable[Stage], epochs: int) -> Iterator[tuple[Stage, int]]:
    """Share epochs out among stages, as each begins: each has one at least."""
    share, before = 0.0, 0
    for stage in stages:
        share += stage.share
        upto = max(before + 1, round(epochs * share))
        yield stage, upto - before
        before = upto


def _finish(
    training: _Training, method: Method, finished: bool, what: Mapping[str, Any], classes: Sequence[str]
) -> Result:
    """Write the networks with what is known of them, and then what may fail: what is measured, drawn and told of them."""
    networks, run, task = method.networks(), training.run, method.task
    last = training.history[-1] if finished else {}
    metrics = {name: float(value) for name, value in last.items() if name.startswith("val/")}
    result = Result(
        networks,
        metrics,
        training.history,
        sum(float(row["seconds"]) for row in training.history),
        finished,
        None if run is None else run.folder,
        training.missing,
        task.score,
    )
    for doubt in training.doubts if finished else []:
        warnings.warn(doubt, ChanceWarning, stacklevel=4)  # of who called fit, which is held to its ranges
    told: dict[str, Any] = {**what, **_summary(result, training, task, {})}
    if training.kept is not None:
        if finished:
            training.kept.write_networks(networks, task)
            training.kept.write_metrics(training.history)
        if not training.kept.result().get("finished"):  # what a finished run had measured stays until there is more
            training.kept.write_result(told)
    if finished and training.loaders.test is not None:
        for name, net in networks.items():
            with training.may_miss(f"the test metrics of {name}"):
                tested = evaluate(net, training.loaders.test, task)
                metrics |= {f"test/{name}/{metric}": value for metric, value in tested.items()}
    if run is None:
        return result
    costs: dict[str, Any] = {}
    for name, net in networks.items():
        with training.may_miss(f"the cost of {name}"):
            costs[name] = asdict(cost(net, task.inputs(training.loaders.few()), task))
    taught: dict[str, Any] = {}
    for name, teacher in teachers_of(method):
        taught[name] = {"val": training.teachers.get(name, {})}
        answers = taught[name]["val"]  # else it has none to these targets
        if finished and training.tested.get(name):
            taught[name]["test"] = training.tested[name]
        elif finished and training.loaders.test is not None and answers and training.asks_teachers:
            with training.may_miss(f"the test metrics of {name}"):
                view = training.where.seen(teacher.again("eval")).to(training.device)  # which moves alone
                taught[name]["test"] = evaluate(view, training.loaders.test, task)
        with training.may_miss(f"the cost of {name}"):
            taught[name] |= asdict(cost(teacher.again("eval"), task.inputs(training.loaders.few()), task))
    exits: dict[str, Any] = {}
    exhibits: list[Exhibit] = []
    if finished:
        with training.may_miss("what leaving early saves"):
            exits = _exits(training, networks, task)
        with training.may_miss("the examples"):
            exhibits = _exhibits(training, method, classes)  # of all processes together
    if training.kept is not None:
        _tell(training, {**what, **_summary(result, training, task, costs), "teachers": taught, **exits}, exhibits)
    return result


def _tell(training: _Training, told: Mapping[str, Any], exhibits: Sequence[Exhibit]) -> None:
    """Write what was found, and the page."""
    assert training.kept is not None
    if exhibits:
        with training.may_miss("the examples"):
            write_exhibits(exhibits, training.kept.folder / FILE)
    training.kept.write_result({**told, "missing": training.missing})
    before = len(training.missing)
    with training.may_miss("the page"):
        run_report(training.kept.folder)
    if len(training.missing) > before:
        training.kept.write_result({**told, "missing": training.missing})


def _exhibits(training: _Training, method: Method, classes: Sequence[str]) -> list[Exhibit]:
    """Return what the report shows of held-out data: of the test data, if there are."""
    _, val, test, _ = training.loaders
    loader = val if test is None else test
    return [] if loader is None else exhibits_of(method, loader, classes)


def _exits(training: _Training, networks: Mapping[str, nn.Module], task: Task) -> dict[str, Any]:
    """What networks with exits do on the test data, by name."""
    test = training.loaders.test
    early = {name: net for name, net in networks.items() if isinstance(net, EarlyExit)}
    if test is None or not early or not _has_classes(task, training.loaders.few()):
        return {}
    profiles = {name: {"after": net.after, **asdict(exit_profile(net, test, task))} for name, net in early.items()}
    return {"exits": profiles}


def _has_classes(task: Task, batch: Batch) -> bool:
    """Whether each sample has one class, of which an exit may be sure."""
    target = task.target(batch)
    return task.one_class and isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()


def _summary(result: Result, training: _Training, task: Task, costs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``result.json`` holds."""
    networks = {
        name: {
            **costs.get(name, {}),
            **{split: _of(result.metrics, f"{split}/{name}/") for split in ("val", "test")},
        }
        for name in result.networks
    }
    return {
        "finished": result.finished,
        "task": task.name,
        "score": asdict(task.score),
        "seconds": round(result.seconds, 3),
        "networks": networks,
        "teacher": next(iter(training.teachers.values()), None),
        "versions": {name: importlib.metadata.version(name) for name in ("limbeck", "torch", "lightning")},
        "missing": training.missing,
        "doubts": [*training.suspects, *(training.doubts if result.finished else [])],
    }


def _of(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _tell_fallen_back(fell_back: Mapping[str, int], stage: str) -> None:
    """Say what a training that was to be compiled ran as it was written."""
    for reason, times in fell_back.items():
        logger.info("stage %s: not compiled, %d times: %s", stage, times, reason)
    if fell_back:
        first, others = next(iter(fell_back)), len(fell_back) - 1
        warnings.warn(
            f"stage {stage}: torch did not compile all of it, and ran the rest as it was written: "
            f"{textwrap.shorten(first, 200)}; with {others} other reasons, which train.log lists",
            NotCompiledWarning,
            stacklevel=6,
        )


def _run(run_dir: str | os.PathLike[str] | None, resume: bool) -> Run | None:
    if run_dir is None and resume:
        raise ValueError("resume=True needs the run_dir of the run to go on with")
    return None if run_dir is None else Run(run_dir)


def _forgets(run: Run) -> Callable[..., None]:
    """Take a run back that fails before anything was trained, so that the mended call finds its folder free."""

    def forget(kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and not run.begun:
            run.forget()

    return forget


def refuse_parts_of_relations(method: Method, accumulate: int) -> None:
    """Find losses that compare the samples of a batch, of which several small ones do not make a large one.

    Raises:
        ValueError: There is one.
    """
    for objective in objectives_of(method):
        for weight, term in objective.entries:
            if (callable(weight) or weight) and any(gather in source.steps for source in term.sources):
                raise ValueError(
                    f"accumulate={accumulate}: the term {term.name!r} compares the samples of a batch with each other, and "
                    "those of several small batches are not those of one large batch. Serve larger batches, with "
                    "accumulate=1, or train on several devices, whose samples are all compared"
                )


def refuse_what_cannot_be_kept(method: Method) -> None:
    """Find, before the first epoch, what no file could hold after the last.

    Raises:
        ValueError: A layer's extra state is neither a tensor nor plain values.
    """
    for net in method.networks().values():
        kept(net)
    state = method.state_dict()
    for name in (name for name, value in state.items() if not isinstance(value, Tensor)):
        content = io.BytesIO()
        try:
            torch.save(state[name], content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"the layer of {name!r} keeps state that no checkpoint can hold, {type(state[name]).__name__}: let "
                "get_extra_state() return a tensor, or numbers and words in a dict or list"
            ) from error


def example_of(data: Any, net: nn.Module, task: Task = classification) -> Any:
    """Return a few inputs of what `fit` accepts as data, where ``net`` is."""
    parameter = next(net.parameters(), torch.empty(0))
    return move_data_to_device(task.inputs(splits(data, seed=0).few()), parameter.device)


def labels_of(data: Any) -> Tensor | None:
    """Return the class of every training sample, at the place of its id; None where there are no ids or no classes."""
    train = getattr(data, "train", None)
    return train.labels if isinstance(train, Epochs) else None


def refuse_unremembered(method: str, options: Mapping[str, Any], data: Any, task: Task) -> None:
    """Say how many samples there are to a method that remembers them, where nobody said and the data do not.

    Args:
        method: Its name, or that of a sum.
        options: The method's.
        data: As for `fit`.
        task: Finds the ids of samples in a batch.

    Raises:
        ValueError: The method remembers samples, and is told neither how many nor to keep a queue of them.
    """
    part = next((part for part in method.split("+") if "memory" in inspect.signature(find(part)).parameters), None)
    own = [f"{part}.{name}" if "+" in method else name for name in ("memory", "queue")]
    if part is None or labels_of(data) is not None or any(options.get(name) is not None for name in own):
        return
    train = splits(data, seed=0).train
    samples = samples_in(train)
    try:
        task.ids(train.first if isinstance(train, Repeatable) else train.few())
    except (ValueError, LookupError):
        said = f"{part} remembers samples, and these batches have no ids of them: write {own[1]}={min(samples, 16384)}"
        raise ValueError(
            f"{said}, to remember the last ones; or serve (inputs, targets, ids), an id the sample's index, and write "
            f"{own[0]}={samples}"
        ) from None
    raise ValueError(f"{part} remembers every training sample, by its id: write {own[0]}={samples}")


def task_of(data: Any) -> Task:
    """Return the task of what `fit` accepts as data: its own, or classification where it has none."""
    return data.task if isinstance(data, Data) else classification


def _refuse_no_task(task: Task, of_data: Task) -> None:
    """Find a method that was not told what its data are for; another task that the user names is the user's to choose."""
    if task.name == Task.name != of_data.name:
        raise ValueError(
            f"the data are for {of_data.name}, and the method's task is {task.name}: pass task=data.task "
            f"(--task {of_data.name}), or give the data another task, dataclasses.replace(data, task=...)"
        )


def _stages(method: Trainable) -> Iterable[Stage]:
    if isinstance(method, Method):
        return [Stage(method)]
    if isinstance(method, (nn.Module, str)) or not isinstance(method, Iterable):
        raise TypeError(no_method(method))
    return _each(method)


def _each(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Go through the stages of a method, each of which must be one."""
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(no_method(stage))
        yield stage


def _is_main() -> bool:
    rank, world = place()
    # Lightning has read the rank as it was imported, which may have been before there were several
    return rank == 0 if world > 1 else int(getattr(rank_zero_only, "rank", 0)) == 0


def _line(row: Row) -> str:
    """One epoch in words, for the log."""
    shown = {name: value for name, value in row.items() if not name.endswith(".weighted")}
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling what devices there are, and from doubting loaders that are not torch's."""
    theirs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [one.level for one in theirs]
    for one in theirs:
        one.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # lightning 2.6 on torch 2.15
            warnings.filterwarnings("ignore", message=".*model that overrides the configure_model.*")
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            yield
    finally:
        for one, level in zip(theirs, levels, strict=True):
            one.setLevel(level)
