"""Five steps of a method beside the authors', written anew by a test: the same batches, and at the end the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage

STEPS = 5


def nesterov(own: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(own, 0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)


def started_as(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Give a module that a test built the weights of ours, one after the other: names may differ, the order may not."""
    values = list(ours.state_dict().values())
    theirs.double().load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    return theirs


def assert_five_steps(
    stage: Stage | limbeck.Method,
    loss: Callable[[Tensor, Tensor], Tensor],
    pairs: list[tuple[nn.Module, nn.Module]],
    make: Callable[[int], tuple[Tensor, Tensor]],
    remember: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """Train our modules by ``limbeck.play`` and theirs by ``loss``, and compare all weights.

    Args:
        stage: Ours, in float64: a method, or a stage of one.
        loss: The authors' of a batch ``(x, y)``.
        pairs: Our modules, and theirs that learn the same.
        make: Makes the batch of a step.
        remember: What the authors do after a step.
    """
    method, trains = (stage.method, stage.trains) if isinstance(stage, Stage) else (stage, None)
    before = [[p.clone() for p in ours.parameters()] for ours, _ in pairs]
    optimizers = assign(parameters(method, trains), nesterov)
    optimizer = nesterov([p for _, theirs in pairs for p in theirs.parameters()])
    for step in range(STEPS):
        batch = make(step)
        limbeck.play(method, batch, optimizers)
        optimizer.zero_grad()
        loss(*batch[:2]).backward()
        optimizer.step()
        if remember is not None:
            remember(*batch[:2])
    for (ours, theirs), started in zip(pairs, before, strict=True):
        for p, q, start in zip(ours.parameters(), theirs.parameters(), started, strict=True):
            assert p.dtype == torch.float64
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
            assert q.grad is None or not torch.equal(p, start)  # it has learned
