"""Callbacks of Lightning's: which of them go with a training that descends by itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from limbeck.data.identity import described

INSTEAD: Mapping[type[Callback], str] = {
    theirs.StochasticWeightAveraging: "WeightAveraging or EMAWeightAveraging",
    theirs.GradientAccumulationScheduler: "accumulate=",
    theirs.LearningRateFinder: "schedule=, or a few learning rates side by side",
    theirs.BatchSizeFinder: "the batch size of the loader",
    theirs.BaseFinetuning: "limbeck.Stage(method, trains=[...])",
    theirs.ModelPruning: "torch.nn.utils.prune on the network before",
    theirs.ProgressBar: "progress=",
}
"""Callbacks that would change how a training descends, which is limbeck's own, and what to take instead."""


def refuse_callbacks(callbacks: Sequence[Callback], checkpoints: Path | None, *, shares_weights: bool = False) -> None:
    """Find callbacks that cannot do here what they are for.

    Args:
        callbacks: What the user gave.
        checkpoints: Where a run has its own checkpoints, if there is one.
        shares_weights: Whether the weights are shared out among processes.

    Raises:
        ValueError: One that would descend otherwise; one that copies weights which are shared out; one that writes among
            the run's own checkpoints, or nobody knows where; one whose state no checkpoint can hold.
    """
    for one in callbacks:
        name = type(one).__name__
        if instead := next((other for kind, other in INSTEAD.items() if isinstance(one, kind)), None):
            raise ValueError(f"{name} cannot change this training, which descends by itself: take {instead}")
        if shares_weights and isinstance(one, theirs.WeightAveraging):
            raise ValueError(
                f"{name} copies the network, and torch copies none whose weights are shared out: take 'ddp'"
            )
        if isinstance(one, ModelCheckpoint) and _among(one.dirpath, checkpoints):
            raise ValueError(
                f"{name} must say where it writes, dirpath='best', and not among the run's own checkpoints, got "
                f"dirpath={one.dirpath!r}"
            )
        if not _can_be_kept(one.state_dict()):
            raise ValueError(
                f"{name} has state that no checkpoint can hold: let its state_dict() return tensors, numbers and words in "
                "a dict or list"
            )


def keeps_checkpoints(callbacks: Sequence[Callback]) -> bool:
    """Whether one of them writes checkpoints of its own."""
    return any(isinstance(one, Checkpoint) for one in callbacks)


def describe_callbacks(callbacks: Sequence[Callback]) -> list[Any] | None:
    """Return what tells callbacks from others: names and options, and the state in which they begin."""
    return [[one.state_key, described(one.state_dict())] for one in callbacks] or None


def _among(folder: Any, checkpoints: Path | None) -> bool:
    return folder is None or (checkpoints is not None and Path(folder).resolve() == checkpoints.resolve())


def _can_be_kept(state: Mapping[str, Any]) -> bool:
    content = io.BytesIO()
    try:
        torch.save(state, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception:  # noqa: BLE001  # of objects of the user's own, anything
        return False
    return True
