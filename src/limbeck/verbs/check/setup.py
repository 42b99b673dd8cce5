"""What is examined, opened so that nothing of the user's own is changed by looking at it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from limbeck.core.copied import copied
from limbeck.core.method import Method, NoEffectWarning, no_method, parameters
from limbeck.core.stage import Stage
from limbeck.data.randomness import random_state, set_random_state
from limbeck.data.repeatable import Repeatable, Splits, splits
from limbeck.engine.examined import Look
from limbeck.engine.learner import teachers_of
from limbeck.verbs.check.findings import TermCheck
from limbeck.verbs.check.terms import Played, weigh

BROKEN = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError)
"""What a batch that cannot be played raises."""


@dataclass(frozen=True)
class Setup(Look):
    """A method and its data under examination.

    Args:
        stage: A copy of the method's first stage.
        wrong: Why its players cannot train, if so; a copy does not show what the networks share.
    """

    stage: Stage
    wrong: str | None = None

    @property
    def method(self) -> Method:
        """The stage's."""
        return self.stage.method

    @cached_property
    def played(self) -> Played:
        """What every term does on the batch."""
        return weigh(self.stage, self.batch)

    @property
    def terms(self) -> list[TermCheck]:
        """What every term does on the batch, to its player."""
        return self.played.terms

    @cached_property
    def _answers(self) -> dict[nn.Module, Any]:
        return {}

    def answer(self, net: nn.Module) -> Any:
        """Return what a network answers to ``batch``, in eval mode and without gradients; each is asked once."""
        if net not in self._answers:
            self._answers[net] = self.asked(net)
        return self._answers[net]

    def asked(self, net: nn.Module) -> Any:
        """Ask a network anew."""
        return super().answer(net)


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
        device = device_of(accelerator)
        stage, wrong = _first_stage(method, device)
        with (
            torch.compiler.set_stance("force_eager"),
            _untouched(splits(data, seed=0)) as loaders,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", NoEffectWarning)  # it is a finding
            method = stage.method
            teachers = dict(teachers_of(method))
            yield Setup(method.task, method.networks(), teachers, loaders, device, samples, seconds, stage, wrong)
    finally:
        set_random_state(before)


def device_of(accelerator: str) -> torch.device:
    """Return where `fit` trains, so that the time is that of the training."""
    here = accelerator != "cpu" and torch.accelerator.is_available()
    return (torch.accelerator.current_accelerator() if here else None) or torch.device("cpu")


def _first_stage(method: Method | Iterable[Stage], device: torch.device) -> tuple[Stage, str | None]:
    """Return a copy of the first stage, where and in the modes in which it will be trained, and why it cannot be."""
    if not isinstance(method, Method) and (isinstance(method, (nn.Module, str)) or not isinstance(method, Iterable)):
        raise TypeError(no_method(method))
    given = _given(method)
    # ban starts its student anew before it yields
    with _weights_kept([one for one in pytree.tree_leaves(given) if isinstance(one, nn.Module)]):
        first = Stage(method) if isinstance(method, Method) else next(iter(method), None)
        if first is None:
            raise ValueError("there is nothing to check: the method has no stage")
        if not isinstance(first, Stage):
            raise TypeError(no_method(first))
        wrong = _wrong(first)
        if wrong is not None and "'meta'" in wrong:  # which cannot be moved
            raise ValueError(wrong)
        stage = copied(first)
        if inspect.isgenerator(method):
            method.close()  # `fit` is told that it is used up, and does not begin with the second stage
    for part in (stage.method, *stage.method.networks().values()):
        part.to(device)
    stage.method.train(stage.trains is None)
    for module in stage.trains or ():
        module.train()
    return stage, wrong


def _wrong(stage: Stage) -> str | None:
    try:
        parameters(stage.method, stage.trains)
    except ValueError as error:
        return str(error)
    return None


def _given(stages: Any) -> list[Any]:
    """Return what a generator of stages was given, and what those were that it goes through, in a sum of methods."""
    given = list(inspect.getgeneratorlocals(stages).values()) if inspect.isgenerator(stages) else []
    return [*given, *(more for one in given for more in _given(one))]


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
