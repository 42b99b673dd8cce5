"""Numbers that are none, and answers that are the same to all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.batches import samples, tensors
from limbeck.core.copied import copied
from limbeck.core.finding import Finding
from limbeck.core.frozen import bare
from limbeck.core.method import assign, parameters, play
from limbeck.core.sound import flaw
from limbeck.verbs.check.setup import Setup
from limbeck.verbs.check.terms import PROGRESS

ENOUGH = 4  # samples that have to be answered alike


def finite(setup: Setup) -> Iterator[Finding]:
    """Find networks without sound weights, and inputs that are NaN; masks may be infinite."""
    for name, net in _all(setup):
        if (wrong := flaw(bare(net))) is not None:
            yield Finding(f"{name} weights", "failed", f"the {name} {wrong}")
    broken = sum(int(tensor.isnan().sum()) for tensor in tensors(setup.task.inputs(setup.batch)))
    if broken:
        message = f"{broken} numbers of a batch's inputs are NaN: fill them in, or leave out such samples"
        yield Finding("inputs", "failed", message)


def constant(setup: Setup) -> Iterator[Finding]:
    """Find networks that answer the same to all: a teacher that does, and a student that goes on so after an update."""
    inputs = tensors(setup.task.inputs(setup.batch))
    if not inputs or samples(setup.task.inputs(setup.batch)) < ENOUGH or all(_same(tensor) for tensor in inputs):
        return
    for name, net in _all(setup):
        answer = setup.answer(net)
        if not isinstance(answer, Tensor) or len(answer) < ENOUGH or not _same(answer):
            continue
        if name not in setup.teachers and not _stays(setup, name):
            continue  # as where the last layer begins at 0
        advice = (
            "check its weights and its inputs; as a control, that is right"
            if name in setup.teachers
            else "its last layers may be dead, as a rectifier after the last one, or after biases that are far below 0"
        )
        yield Finding(
            f"{name} answers", "warning", f"the {name} answers the same to all {len(answer)} samples: {advice}"
        )


def _all(setup: Setup) -> Iterator[tuple[str, nn.Module]]:
    yield from setup.networks.items()
    yield from setup.teachers.items()


def _same(column: Any) -> bool:
    """Whether all samples are alike, but for rounding."""
    rows = column.detach().float().flatten(1) if column.ndim > 1 else column.detach().float().unsqueeze(1)
    return bool(((rows - rows[0]).abs() <= 1e-6 * rows.abs().max()).all())


def _stays(setup: Setup, name: str) -> bool:
    """Whether a network still answers the same to all after an update of a copy."""
    trial = copied(setup.stage)
    play(trial.method, setup.batch, assign(parameters(trial.method, trial.trains), torch.optim.Adam), PROGRESS)
    answer = setup.asked(trial.method.networks()[name])
    return isinstance(answer, Tensor) and _same(answer)
