"""Schedules of learning rates: most know how many updates there will be, and some look at the validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from limbeck.core.options import refuse_call, shown
from limbeck.core.task import Score

Schedule = Callable[[Optimizer, int], LRScheduler]
"""Makes a learning-rate schedule of an optimizer and its number of updates in the stage."""

LIKE = "schedule=lambda optimizer, updates: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)"


def scheduled(schedule: Schedule, optimizer: Optimizer, updates: int, measured: bool = True) -> LRScheduler:
    """Make an optimizer's schedule.

    Args:
        schedule: What makes it.
        optimizer: The optimizer.
        updates: How many there will be.
        measured: Whether there are validation data.

    Raises:
        TypeError: It is no function of these two, or returns no schedule.
        ValueError: It looks at a validation that there is not, or steps another optimizer.
    """
    refuse_call("the schedule", schedule, LIKE, optimizer, updates)
    made = schedule(optimizer, updates)
    if not isinstance(made, LRScheduler):
        raise TypeError(f"the schedule is made by a function that returns it, {LIKE}, got {shown(made)}")
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            f"the schedule steps another optimizer than the one that trains: make it of the one that is given, {LIKE}"
        )
    if isinstance(made, ReduceLROnPlateau) and not measured:
        raise ValueError(
            "ReduceLROnPlateau looks at the validation after each epoch, and there are no validation data: pass (train, "
            "val), or take a schedule that knows the number of updates, as CosineAnnealingLR"
        )
    return made


def judged(schedule: ReduceLROnPlateau, measured: Mapping[str, float], score: Score) -> float:
    """Return what a schedule that looks at an epoch is given: the loss if less of it is better, or else the task's score.

    Raises:
        ValueError: There is none, or less of the score is better.
    """
    name = "loss" if schedule.mode == "min" and "loss" in measured else score.name
    better = "min" if name == "loss" or score.best == "lowest" else "max"
    if schedule.mode != better:
        raise ValueError(
            f"ReduceLROnPlateau has mode={schedule.mode!r}, and of what is measured, {sorted(measured)}, it would be given "
            f"{name!r}, whose best is the {'lowest' if better == 'min' else 'highest'}: take mode={better!r}"
        )
    return measured[name]
