"""What is examined, opened so that nothing of the user's own is changed by looking at it."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils import _pytree as pytree

from limbeck.checkup.findings import TermCheck
from limbeck.checkup.terms import weigh
from limbeck.data import Epochs
from limbeck.data.epochs import generator
from limbeck.engine.loaders import Repeatable, Splits, splits
from limbeck.engine.randomness import random_state, set_random_state
from limbeck.frozen import frozen
from limbeck.method import Method
from limbeck.stage import Stage
from limbeck.task import UNLABELLED, Batch, Task

BROKEN = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError)
"""What a batch that cannot be played raises."""


@dataclass(frozen=True)
class Setup:
    """A method and its data under examination.

    Args:
        stage: A copy of the method's first stage.
        loaders: The data.
        device: Where the stage is.
        samples: How many one look at the data takes.
        seconds: The time that it has.
    """

    stage: Stage
    loaders: Splits
    device: torch.device
    samples: int
    seconds: float

    @property
    def method(self) -> Method:
        """The stage's."""
        return self.stage.method

    @property
    def task(self) -> Task:
        """The method's."""
        return self.stage.method.task

    @cached_property
    def batch(self) -> Batch:
        """The first training batch in which there is a label: few labels may leave a batch without."""
        first = None
        for batch in islice(self.loaders.train, 20):
            first = batch if first is None else first
            if (self.task.target(batch) != UNLABELLED).any():
                first = batch
                break
        return move_data_to_device(first, self.device)

    @cached_property
    def terms(self) -> list[TermCheck]:
        """What every term does on the batch."""
        return weigh(self.stage, self.batch)

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many classes each network to train tells apart; those that tell none are left out."""
        found = {name: self.width(net) for name, net in self.method.networks().items()}
        return {name: width for name, width in found.items() if width is not None}

    @property
    def classes(self) -> int:
        """How many classes there are, as far as the data or the networks say; else 0."""
        return self.loaders.num_classes or min(self.widths.values(), default=0)

    @torch.no_grad()
    def width(self, net: nn.Module) -> int | None:
        """Return how many classes a network tells apart; None where its outputs are no class scores for the targets."""
        output, target = self.task.feed(frozen(net), self.task.inputs(self.batch)), self.task.target(self.batch)
        scores = not target.is_floating_point() and output.shape[:1] + output.shape[2:] == target.shape
        return output.shape[1] if scores else None

    def some(self, loader: Epochs | Repeatable, share: float = 1.0) -> Iterator[Batch]:
        """Yield batches until there are enough samples or the time is up, or a share of both."""
        samples = int(share * self.samples)
        if isinstance(loader, Epochs):  # any of its samples, since the first may all be of one class
            loader = loader.plain()
            loader.ids = loader.ids[torch.randperm(len(loader.ids), generator=generator("check"))[:samples]]
        seen, end = 0, time.perf_counter() + share * self.seconds
        for batch in loader:
            yield move_data_to_device(batch, self.device)
            seen += len(self.task.target(batch))
            if seen >= samples or time.perf_counter() > end:
                return


@contextmanager
def opened(
    method: Method | Iterable[Stage], data: Any, samples: int, seconds: float, accelerator: str = "auto"
) -> Iterator[Setup]:
    """Open a set-up; networks, random numbers and loaders are afterwards as they were.

    Raises:
        TypeError: What is no method, one that cannot be copied, or no data.
        ValueError: Nothing to train, or no data.
    """
    before = random_state()
    try:
        torch.manual_seed(0)
        device = _device(accelerator)
        stage = _first_stage(method, device)
        with torch.compiler.set_stance("force_eager"), _untouched(splits(data, seed=0)) as loaders:
            yield Setup(stage, loaders, device, samples, seconds)
    finally:
        set_random_state(before)


def _device(accelerator: str) -> torch.device:
    """Where `fit` trains, so that the time is that of the training."""
    here = accelerator != "cpu" and torch.accelerator.is_available()
    return (torch.accelerator.current_accelerator() if here else None) or torch.device("cpu")


def _first_stage(method: Method | Iterable[Stage], device: torch.device) -> Stage:
    """Return a copy of the first stage, where and in the modes in which it will be trained."""
    if isinstance(method, nn.Module) and not isinstance(method, Method):
        raise TypeError(
            f"expected a method, got the network {type(method).__name__}: limbeck.plain(net) trains it on the labels"
        )
    given = list(inspect.getgeneratorlocals(method).values()) if inspect.isgenerator(method) else []
    # ban starts its student anew before it yields
    with _weights_kept([one for one in pytree.tree_leaves(given) if isinstance(one, nn.Module)]):
        first = Stage(method) if isinstance(method, Method) else next(iter(method), None)
        if first is None:
            raise ValueError("there is nothing to check: the method has no stage")
        try:
            stage = copy.deepcopy(first)
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"the method cannot be copied, so it cannot be checked untouched: {error}") from error
        if inspect.isgenerator(method):
            method.close()  # `fit` is told that it is used up, and does not begin with the second stage
    for part in (stage.method, *stage.method.networks().values()):
        part.to(device)
    stage.method.train(stage.trains is None)
    for module in stage.trains or ():
        module.train()
    return stage


@contextmanager
def _weights_kept(nets: list[nn.Module]) -> Iterator[None]:
    tensors = [tensor for net in nets for tensor in (*net.parameters(), *net.buffers())]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)


@contextmanager
def _untouched(loaders: Splits) -> Iterator[Splits]:
    """Put the generators of the user's own loaders back to where they were."""
    own = [loader for loader in loaders[:3] if isinstance(loader, Repeatable)]
    states = [loader.generator_states() for loader in own]
    try:
        yield loaders
    finally:
        for loader, state in zip(own, states, strict=True):
            loader.set_generator_states(state)
