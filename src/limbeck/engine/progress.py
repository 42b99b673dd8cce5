"""The progress bar: one line, in a terminal or under a notebook's cell."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from limbeck.engine.learner import LOOK_EVERY, Learner


class LossBar(ProgressBar):
    """One line for a stage: its epochs and batches, the time that remains, the last loss, and the last epoch's score.

    In a terminal it goes when the training ends. In a notebook it is one output of the cell, which IPython draws anew in
    its place and which stays: rich's own way there needs ipywidgets.

    Args:
        console: Where it is drawn.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.line = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[found]}", markup=False),
            console=console,
            transient=True,
            expand=True,
        )
        self._cell: Any = None  # where a notebook shows it
        self._task: TaskID | None = None
        self._shown = True

    def disable(self) -> None:
        """Show nothing, as all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """Show it."""
        self._shown = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the teachers are measured."""
        self._draw(pl_module, "measuring the teacher")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch, from 1."""
        self._draw(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; a notebook is sent a new line only when there may be a new loss."""
        if self._cell is None or batch_idx % LOOK_EVERY == 0:
            self._draw(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the networks are measured."""
        if not trainer.sanity_checking:
            self._draw(pl_module, "validating")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last epoch's score."""
        self._draw(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal to what is said of it."""
        self.line.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal."""
        self.line.stop()

    def _draw(self, learner: LightningModule, doing: str = "") -> None:
        if not self._shown or not isinstance(learner, Learner):
            return
        now: dict[str, Any] = {
            "completed": learner.step,
            "description": _place(learner, doing),
            "found": _found(learner),
        }
        if self._task is None:
            self._task = self.line.add_task(total=learner.total, **now)
            self._open()
        else:
            self.line.update(self._task, **now)
        if self._cell is not None:
            self._cell.update(self.line)

    def _open(self) -> None:
        if self.console.is_jupyter:
            from IPython.display import display  # there, wherever a notebook is

            self._cell = display(self.line, display_id=True)
        else:
            self.line.start()


def _place(learner: Learner, doing: str) -> str:
    """Say which epoch it is, as tables count: from 1; and the stage, where it has a name."""
    begun = -(-learner.step // learner.batches) if doing == "validating" else learner.step // learner.batches + 1
    named = [learner.name] if learner.name != "train" else []
    return ", ".join([*named, f"epoch {min(begun, learner.epochs)}/{learner.epochs}", *([doing] if doing else [])])


def _found(learner: Learner) -> str:
    """Say the loss that was looked at last, and the score of the last epoch."""
    player, network = next(iter(learner.method.players())), next(iter(learner.method.networks()))
    last = learner.history[-1] if learner.history and learner.history[-1]["stage"] == learner.name else {}
    score = learner.method.task.score
    loss = learner.shown.get(f"{player}/loss", last.get(f"train/{player}/loss"))
    reached = last.get(f"val/{network}/{score.name}")
    told = [] if loss is None else [f"loss {float(loss):.3g}"]
    return ", ".join(told if reached is None else [*told, f"{score.name} {score.show(float(reached))}"])


def bars(progress: bool | None) -> list[Callback]:
    """Return the progress bar: always, never, or where somebody looks on, at a terminal or a notebook."""
    console = Console(stderr=True)
    if progress or (progress is None and (sys.stderr.isatty() or console.is_jupyter)):
        return [LossBar(console)]
    return []
