"""Whether one batch can be learned."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import chain

import torch

from limbeck.core.batches import take
from limbeck.core.copied import copied
from limbeck.core.finding import Finding
from limbeck.core.method import assign, parameters, play
from limbeck.core.stage import Stage
from limbeck.core.task import Batch
from limbeck.verbs.check.setup import Setup
from limbeck.verbs.check.terms import PROGRESS

STEPS, RATES = 50, (1e-3, 1e-2)  # of the two attempts, with Adam
FEW = 32  # samples: enough to tell, few enough to be quick


def overfit(setup: Setup) -> Iterator[Finding]:
    """Train copies on one batch until the first player's loss has halved."""
    few = take(setup.batch, slice(FEW))
    losses: list[float] = []
    end = time.perf_counter() + setup.seconds
    for loss in chain.from_iterable(_losses(setup.stage, few, rate) for rate in RATES):
        losses.append(loss)
        if loss <= losses[0] / 2 or time.perf_counter() > end:
            break
    start, best = (losses[0], min(losses)) if losses else (math.nan, math.nan)
    values = {"first": start, "best": best, "steps": float(len(losses))}
    fell = f"from {start:.3g} to {best:.3g}"
    if best <= start / 2 or start <= 1e-6:
        yield Finding("overfit", "ok", f"the loss of one batch fell {fell} in {len(losses)} steps", values)
    elif time.perf_counter() > end:
        message = f"not decided: the loss of one batch fell {fell} in {setup.seconds:.0f} s"
        yield Finding("overfit", "ok", message, values)
    else:
        message = (
            f"the loss of one batch fell only {fell} in {STEPS} steps: either the student cannot follow, or the loss has "
            "a floor, as soft labels without their entropy taken off"
        )
        yield Finding("overfit", "warning", message, values)


def _losses(stage: Stage, batch: Batch, rate: float) -> Iterator[float]:
    """Yield the first player's loss, step by step, until it is not finite."""
    trial = copied(stage)
    player = next(iter(trial.method.players()))
    optimizers = assign(parameters(trial.method, trial.trains), lambda own: torch.optim.Adam(own, lr=rate))
    for _ in range(STEPS):
        try:
            yield play(trial.method, batch, optimizers, PROGRESS)[f"{player}/loss"]
        except FloatingPointError:
            return
