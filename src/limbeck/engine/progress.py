"""The progress bar: what is trained, and every term's loss."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar

from limbeck.engine.learner import LOOK_EVERY, Learner


class LossBar(RichProgressBar):
    """Lightning's bar, with the losses that the learner looked at last."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the raw value of each term; weighted ones are in ``metrics.csv``."""
        shown = pl_module.shown if isinstance(pl_module, Learner) else {}
        return {name: value for name, value in shown.items() if not name.endswith(".weighted")}


def bars(progress: bool | None) -> list[Callback]:
    """Return the progress bar: always, never, or where standard error is a terminal."""
    if progress or (progress is None and sys.stderr.isatty()):
        return [LossBar(refresh_rate=LOOK_EVERY, leave=False)]
    return []
