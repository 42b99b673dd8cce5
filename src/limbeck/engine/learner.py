"""The one `LightningModule`: it trains every method."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from limbeck.core.copied import copied
from limbeck.core.distributed import sharing, whole
from limbeck.core.finding import beside_guessing, diverged, learned_nothing, no_better
from limbeck.core.frozen import Frozen, frozen
from limbeck.core.method import (
    Distill,
    Make,
    Method,
    Turn,
    assign,
    descend,
    log,
    moves,
    parameters,
    put_away,
    shares,
    sizes,
    warn_of,
)
from limbeck.core.method import NoEffectWarning as NoEffectWarning
from limbeck.core.objective import Objective
from limbeck.core.stage import Stage
from limbeck.core.task import Batch, Score
from limbeck.data.epochs import Epochs
from limbeck.data.randomness import random_state, set_random_state
from limbeck.data.repeatable import Repeatable
from limbeck.engine.devices import Devices
from limbeck.engine.schedule import Schedule as Schedule
from limbeck.engine.schedule import judged, scheduled
from limbeck.engine.tally import Tally
from limbeck.measure.evaluate import Measurement
from limbeck.nets.elsewhere import Elsewhere

Row = dict[str, float | int | str]
"""One line of ``metrics.csv``."""

LOOK_EVERY = 10  # batches between two looks at the losses, each of which waits for the device


class ChanceWarning(UserWarning):
    """A teacher that is no better than guessing."""


class Interrupted(Exception):
    """The user asked to stop; what was done is on disk."""


class Learner(LightningModule):
    """Trains one stage of a method, as `limbeck.play` would batch by batch.

    Args:
        stage: The stage.
        make: Makes the optimizers, unless the stage brings its own.
        loader: The training batches.
        epochs: How often they are served.
        schedule: Makes the learning-rate schedules; constant by default.
        accumulate: Batches whose gradients are averaged before an update.
        clip: The largest norm of a player's gradient.
        index: Which stage it is.
        name: What logs call it.
        history: The rows of the epochs before; this stage's are appended.
        wants_stop: Whether the user asked to stop.
        save: Keeps the row and the state after each epoch, and when the user stops.
        measured: Whether there are validation data, which some schedules look at.
        where: On which devices.
        given: The stage of which this one is a twin.
    """

    def __init__(
        self,
        stage: Stage,
        make: Make | Mapping[str, Make],
        loader: Epochs | Repeatable,
        epochs: int,
        *,
        schedule: Schedule | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        index: int = 0,
        name: str = "train",
        history: list[Row] | None = None,
        wants_stop: Callable[[], bool] = lambda: False,
        save: Callable[[Learner], None] = lambda learner: None,
        measured: bool = True,
        where: Devices | None = None,
        given: Stage | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method, self.stage, self.loader = stage.method, stage, loader
        self.make, self.schedule = stage.optimizer or make, schedule
        self.accumulate, self.clip, self.where = accumulate, clip, where or Devices()
        self.given = given
        self.batches, self.epochs, self.total = len(loader), epochs, len(loader) * epochs
        self.wants_stop, self.save, self.measured = wants_stop, save, measured
        self._was_stopped = False  # by a callback, in the epoch that a checkpoint is of
        self.index, self.name, self.history = index, name, [] if history is None else history
        self.past = int(self.history[-1]["step"]) if self.history else 0  # batches of the stages before
        self.step = 0
        self._group: list[Batch] = []  # those of one update, which wait for its last
        self._parts = 1.0  # how many times a batch's samples go into its update's
        self.teachers: dict[str, dict[str, float]] = {}
        self.shown: dict[str, float] = {}
        self._tally, self._waiting = Tally(), set[str]()
        self._measurements: dict[str, Measurement] = {}
        self._validated: Row = {}
        self.doubts: list[str] = []  # of the networks, if training ended here
        self.suspects: list[str] = []  # of the teachers, before it
        self._effective: set[str] = set()
        self._idle: set[str] = set()
        self._random: dict[str, Any] | None = random_state()  # as the first batch finds it, whatever the trainer draws
        self._elapsed = 0.0
        self._owned = parameters(stage.method, stage.trains)
        _refuse_terms_that_never_run(stage.method, self.total)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a plain attribute as Python does: Lightning sets one 32 times a step, each of which torch asks what it is."""
        if name in self.__dict__ and not isinstance(value, (nn.Module, Tensor)):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Share weights out, now that processes have found each other."""
        self.where.arrange(self.method, self.trainer.strategy.root_device)
        if self.where.shares_weights:  # they are others now
            self._owned = parameters(self.method, self.stage.trains)

    def configure_optimizers(self) -> Any:
        """Return one optimizer, and one schedule, for each player."""
        optimizers = self._assigned()
        if self.schedule is None:
            return list(optimizers.values())
        updates = -(-self.batches // self.accumulate) * self.epochs
        schedules = [scheduled(self.schedule, own, updates, self.measured) for own in optimizers.values()]
        return list(optimizers.values()), schedules

    def _assigned(self) -> dict[str, Optimizer]:
        """Make the optimizers; of what is shared out by the parameters that were given, which who makes groups may know."""
        if self.given is None:
            return assign(self._owned, self.make, self.method)
        known = parameters(self.given.method, self.given.trains)
        optimizers = assign(known, self.make, self.given.method)
        pairs = [pair for player in known for pair in zip(known[player], self._owned[player], strict=True)]
        own = {id(theirs): mine for theirs, mine in pairs}
        for group in (group for each in optimizers.values() for group in each.param_groups):
            group["params"] = [own.get(id(p), p) for p in group["params"]]
        return optimizers

    def configure_callbacks(self) -> list[Callback]:
        """Return what ends each epoch, after all callbacks of the user's."""
        return [_Last()]

    def on_fit_start(self) -> None:
        """Bring along what is no submodule: networks made of others, and the data."""
        for net in self.method.networks().values():
            self.trainer.precision_plugin.convert_module(net.to(self.device))
        self.where.lay_teachers_out(self.method)
        if isinstance(self.loader, Epochs):
            self.loader.to(self.device)
        self._started = time.perf_counter() - self._elapsed
        self.trainer.should_stop = self._was_stopped

    def __deepcopy__(self, memo: dict[int, Any]) -> Learner:
        """Copy what trains, as a callback does that averages weights: data, teachers and records are the same."""
        teachers = [part for part in self.method.modules() if isinstance(part, Frozen)]
        stages, calls = (self.stage, self.given), (self.make, self.schedule, self.wants_stop, self.save)
        same = (self.loader, self.history, *stages, *calls, *teachers)
        memo |= {id(one): one for one in same}
        twin = memo[id(self)] = Learner.__new__(Learner)
        twin.__dict__.update(copied(self.__getstate__(), memo))
        return twin

    def set_modes(self) -> None:
        """Put what trains into train mode, and all else into eval mode, so that batch-norm statistics stay as they are.

        What the user froze and put into eval mode stays so.
        """
        kept = put_away(self.method)
        self.train(self.stage.trains is None)
        for module in self.stage.trains or ():
            module.train()
        for module in kept:
            module.eval()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Any:
        """Bring a batch along; a pair of tensors that lie there already is not gone through."""
        if isinstance(batch, (tuple, list)) and all(isinstance(own, Tensor) and own.device == device for own in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Play the batches of an update, once all are there: what one has no label for counts in none."""
        if self._random is not None:  # ddp seeds anew, and a run that goes on draws what it would have drawn
            set_random_state(self._random)
            self._random = None
        self._group.append(batch)
        if not self._group_ends(self.step + len(self._group) - 1):
            return
        group, self._group = self._group, []
        alone = len(group) == 1 and self.trainer.world_size == 1
        counted = [{}] if alone else shares(self.method, group)
        samples = [1] if alone else sizes(group)
        progress = self.step / self.total  # one update, one weight of each term
        for one, own, size in zip(group, counted, samples, strict=True):
            self._parts = sum(samples) / size
            with sharing(own):
                self._play(one, progress)
        self._advance_schedules()

    def _play(self, batch: Batch, progress: float) -> None:
        optimizers = self._by_player(self.optimizers())
        logs: dict[str, Tensor] = {}
        for turn in descend(self.method, batch, optimizers, progress, self._waiting, self._backward, self._update):
            logs |= log(turn)
        self._tally.add(logs, self.step)
        self.step += 1

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Look at the losses now and then, and stop if asked to."""
        if self._group:
            return
        at_end = self.step % self.batches == 0
        if self.step % LOOK_EVERY == 0 and not at_end:
            self._look()
            self.shown = self._tally.latest()
        if not at_end and not self._waiting and self._stop_here():
            self._check()
            self.save(self)
            raise Interrupted

    def on_validation_epoch_start(self) -> None:
        """Start anew to measure: the teachers before the training, then the networks that it is for."""
        before = self.trainer.sanity_checking
        self.where.before_validation(self.method)
        self._measured = dict(teachers_of(self.method)) if before else self.method.networks()
        for net in self._measured.values():
            net.eval()
        self._measurements = {name: Measurement(self.method.task) for name in self._measured}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch; but no teacher whose answers are none to these targets, as layers are compared with it."""
        task, inputs = self.method.task, self.method.task.inputs(batch)
        first = self.trainer.sanity_checking and batch_idx == 0
        student = next(iter(self.method.networks().values()))
        # a view changes nothing of a network that writes to its buffers, but there is none of what is shared out
        own = task.feed(student if self.where.shares_weights else frozen(student), inputs) if first else None
        for name, net in [*self._measured.items()]:
            answer = task.feed(net, inputs)
            if _comparable(answer, own, task.one_class):
                self._measurements[name].add(answer, task.target(batch))
            else:
                del self._measured[name], self._measurements[name]

    def on_validation_epoch_end(self) -> None:
        """Keep what was measured for this epoch's row, and doubt a teacher that knows nothing."""
        self.where.after_validation(self.method)
        values = {name: measurement.compute() for name, measurement in self._measurements.items()}
        if self.trainer.sanity_checking:
            self.teachers |= values
            for role, measurement in self._measurements.items():
                if told := _doubt(role, values[role], measurement, self.method.task.score):
                    self.suspects.append(told)
                    warnings.warn(told, ChanceWarning, stacklevel=2)
            return
        self.doubts = self._doubts(values)
        self._validated = {
            f"val/{name}/{metric}": value for name, metrics in values.items() for metric, value in metrics.items()
        }
        self._tell_callbacks(self._validated)

    def _doubts(self, values: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return what is to be said of networks that are no better than guessing, if training ends here."""
        score, found = self.method.task.score, self._measurements.items()
        taught = any(isinstance(module, Frozen) for module in self.method.modules())
        called = {name: name if taught or len(found) > 1 else "network" for name, _ in found}
        of = [(called[name], score, values[name][score.name], one.guess, one.samples) for name, one in found]
        doubts = [learned_nothing(*each) for each in of]
        if self.method.task.one_class:  # whose loss is a cross-entropy, unless it is one of the user's own
            doubts += [diverged(called[name], values[name].get("loss", 0.0), one.guess) for name, one in found]
        return [finding.message for finding in doubts if finding is not None]

    def on_train_epoch_end(self) -> None:
        """Add the epoch's row, unless something broke, and let schedules look at what was measured."""
        self._check()
        self._warn_of_idle_terms()
        rates = {
            f"lr/{player}": optimizer.param_groups[0]["lr"]
            for player, optimizer in self._by_player(self.optimizers()).items()
        }
        means = {f"train/{name}": value for name, value in self._averaged(self._tally.means()).items()}
        now = time.perf_counter()
        place: Row = {
            "stage": self.name,
            "epoch": self.step // self.batches,
            "step": self.past + self.step,
            "seconds": round(now - self._started, 3),
        }
        self._started, self._tally = now, Tally()
        self.history.append({**place, **means, **rates, **self._validated})
        self._tell_loggers(self.history[-1])
        self._tell_callbacks({**means, **rates})
        self._look_back()

    def end_epoch(self) -> None:
        """Keep the epoch, once callbacks have seen it, and stop if asked to."""
        self.save(self)
        if self.step < self.total and not self.trainer.should_stop and self._stop_here():
            raise Interrupted

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: the place in the data, and the random states."""
        checkpoint["limbeck"] = {
            "stage": self.index,
            "epochs": self.epochs,
            "step": self.step,
            "random": random_state() if self._random is None else self._random,
            "loader": self.loader.state_dict(),
            "tally": self._tally.state_dict(),
            "effective": sorted(self._effective),
            "seconds": time.perf_counter() - self._started,
            "history": self.history,
            "past": self.past,
            "teachers": self.teachers,
            "stopped": self.trainer.should_stop,
            "doubts": self.doubts,
            "suspects": self.suspects,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        saved = checkpoint["limbeck"]
        self.step, self._random = saved["step"], saved["random"]
        self._tally.load_state_dict(saved["tally"])
        self._effective = set(saved["effective"])
        self._elapsed, self.past, self.teachers = saved["seconds"], saved["past"], saved["teachers"]
        self.history[:] = saved["history"]
        self.loader.load_state_dict(saved["loader"])
        self._was_stopped = saved.get("stopped", False)
        self.doubts, self.suspects = saved.get("doubts", []), saved.get("suspects", [])

    def _by_player(self, optimizers: Any) -> dict[str, Optimizer]:
        listed = optimizers if isinstance(optimizers, list) else [optimizers]
        return dict(zip(self._owned, cast("list[Optimizer]", listed), strict=True))

    def _group_ends(self, step: int) -> bool:
        within = step % self.batches + 1
        return within % self.accumulate == 0 or within == self.batches

    def _backward(self, turn: Turn) -> None:
        self._look_for_effect(turn)
        with self._unsent():
            self.manual_backward(turn.total if self._parts == 1 else turn.total / self._parts)

    def _unsent(self) -> AbstractContextManager[None]:
        """Let gradients wait for the last batch of an update before DDP sends them."""
        model: Any = self.trainer.model
        waits = isinstance(model, DistributedDataParallel) and not self._group_ends(self.step)
        return cast("AbstractContextManager[None]", model.no_sync()) if waits else nullcontext()

    def _update(self, optimizer: Optimizer) -> bool:
        if not self._group_ends(self.step):
            return False
        if self.clip is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            limit = self.clip * (scaler.get_scale() if scaler is not None else 1.0)  # gradients are scaled too
            self.clip_gradients(optimizer, gradient_clip_val=limit, gradient_clip_algorithm="norm")
        optimizer.step()
        self.where.after_update(self.method)
        return True

    def _look(self) -> None:
        """Raise where a loss is not finite, in all processes if in one: the others would wait for it."""
        broken: FloatingPointError | None = None
        try:
            self._tally.check()
        except FloatingPointError as error:
            broken = error
        several = self.trainer.world_size > 1
        if self.trainer.strategy.reduce_boolean_decision(broken is not None, all=False) if several else broken:
            raise broken or FloatingPointError("a loss is not finite in another process, whose error names its term")

    def _check(self) -> None:
        """Raise before a checkpoint keeps anything that is not finite: a finite loss may have another gradient."""
        self._look()
        for player, own in self._owned.items():
            if not all(bool(whole(p).isfinite().all()) for p in own):
                raise FloatingPointError(
                    f"the parameters of {player!r} are not finite after batch {self.step - 1}, though its losses were: a "
                    "term's gradient is not. Lower the learning rate, or look for a square root or a division at 0"
                )

    def _advance_schedules(self) -> None:
        for schedule in self._schedules():
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()

    def _look_back(self) -> None:
        """Step the schedules that look at an epoch: a network's own at its validation, others at the first network's."""
        networks = [*self.method.networks()]
        for player, schedule in zip(self._owned, self._schedules(), strict=False):
            if isinstance(schedule, ReduceLROnPlateau):
                network = player if player in networks else networks[0]
                schedule.step(judged(schedule, _of(self._validated, f"val/{network}/"), self.method.task.score))

    def _schedules(self) -> list[Any]:
        schedules = self.lr_schedulers()
        listed = schedules if isinstance(schedules, list) else [schedules]
        return [schedule for schedule in listed if schedule is not None]

    def _stop_here(self) -> bool:
        """Whether to stop; processes agree, and ask each other only now and then."""
        if self.trainer.world_size == 1:
            return self.wants_stop()
        if self.step % LOOK_EVERY and self.step % self.batches:
            return False
        return self.trainer.strategy.reduce_boolean_decision(self.wants_stop(), all=False)

    def _tell_loggers(self, row: Row) -> None:
        numbers = {name: float(value) for name, value in row.items() if not isinstance(value, str)}
        for one in self.trainer.loggers:
            one.log_metrics(numbers, step=int(row["step"]))

    def _tell_callbacks(self, values: Mapping[str, Any]) -> None:
        """Let callbacks monitor what was measured, by the names of ``metrics.csv``; loggers get whole rows."""
        told = {
            name: torch.tensor(float(value), device=self.device, dtype=torch.float32) for name, value in values.items()
        }
        self.log_dict(told, logger=False, on_epoch=True, sync_dist=self.trainer.world_size > 1)  # equal in all

    def _averaged(self, means: dict[str, float]) -> dict[str, float]:
        """The mean over all processes, each of which saw its share of every batch."""
        if self.trainer.world_size == 1:
            return means
        values = torch.tensor(list(means.values()), device=self.device)
        reduced = cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="mean"))
        return dict(zip(means, reduced.tolist(), strict=True))

    def _look_for_effect(self, turn: Turn) -> None:
        """Find out, once for each term, whether it gives its player a gradient at all."""
        for name, loss in turn.terms.items():
            term = f"{turn.player}/{name}"
            if term in self._effective:
                continue
            if moves(self.method, loss.weighted, self._owned[turn.player]):
                self._effective.add(term)
                self._idle.discard(term)
            else:
                self._idle.add(term)

    def _warn_of_idle_terms(self) -> None:
        for term in sorted(self._idle):
            warn_of(term, "in a whole epoch")
        self._effective |= self._idle  # once is enough
        self._idle = set()


# Lightning asks what it takes at every step, and Python would find out each time
Learner.training_step.__signature__ = inspect.signature(Learner.training_step)  # type: ignore[attr-defined]


class _Last(Checkpoint):
    """Ends an epoch, after the callbacks that are called last of all: those that stop early, and keep checkpoints."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch."""
        cast("Learner", pl_module).end_epoch()


def teachers_of(method: nn.Module) -> Iterator[tuple[str, Frozen]]:
    """Yield each teacher that can be asked with its role: those of a `Distill`, and what a method holds itself."""
    for part in method.modules():
        if isinstance(part, Distill):
            taught = cast("dict[str, Frozen]", part.teachers).items()
            yield from ((role, own) for role, own in taught if not isinstance(own.net, Elsewhere))
        elif isinstance(part, Method):
            yield from ((name, own) for name, own in part.named_children() if isinstance(own, Frozen))


def _of(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in values.items() if name.startswith(prefix)}


def _comparable(answer: Any, own: Any, one_class: bool) -> bool:
    """Whether an answer is shaped as the student's own, or knows classes beyond these, which are but wrong."""
    if not isinstance(answer, Tensor) or not isinstance(own, Tensor) or answer.shape == own.shape:
        return True
    return one_class and answer.shape[:-1] == own.shape[:-1] and answer.shape[-1] > own.shape[-1]


def _doubt(role: str, metrics: Mapping[str, float], measurement: Measurement, score: Score) -> str | None:
    """Say so of a teacher whose score is within two standard errors of guessing."""
    if measurement.guess is None or not measurement.samples:
        return None
    of = score, metrics[score.name], measurement.guess, measurement.samples
    if no_better(*of):
        told = beside_guessing(*of, "validation samples")
        return (
            f"the {role} {told}. Load its weights (NAME@FILE), and check that its outputs are in the data's order and its "
            "inputs are normalised alike; as a control, an untrained teacher is right"
        )
    return None


def _refuse_terms_that_never_run(method: nn.Module, total: int) -> None:
    """A weight that is 0 at every step is a mistake: it is found before the training and not after."""
    steps = range(0, total, max(1, total // 1000))
    for objective in (module for module in method.modules() if isinstance(module, Objective)):
        for name, (weight, _) in zip(objective.names, objective.entries, strict=True):
            if callable(weight) and all(weight(step / total) == 0 for step in steps):
                raise ValueError(
                    f"the term {name!r} would never run: its weight is 0 over the whole stage. Give it a weight "
                    "that is not, or leave the term out"
                )
