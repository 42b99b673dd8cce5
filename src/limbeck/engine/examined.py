"""A set-up as a task examines it, before the training and in `limbeck.check`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from limbeck.core.batches import samples as samples_of
from limbeck.core.frozen import Frozen, bare, frozen
from limbeck.core.method import Method
from limbeck.core.task import Batch, Task
from limbeck.data import Epochs
from limbeck.data.epochs import generator, known
from limbeck.data.repeatable import Repeatable, Splits
from limbeck.engine.learner import teachers_of
from limbeck.measure.evaluate import Measurement


@dataclass(frozen=True)
class Look:
    """Networks and data to look at: a `limbeck.core.finding.Examined`.

    Args:
        task: The task.
        networks: Those that training is for, by name.
        teachers: By role.
        loaders: The data.
        device: Where the networks are.
        samples: How many one look at the data takes.
        seconds: The time that it has.
    """

    task: Task
    networks: Mapping[str, nn.Module]
    teachers: Mapping[str, Frozen]
    loaders: Splits
    device: torch.device
    samples: int
    seconds: float

    @property
    def outputs(self) -> int | None:
        """How many outputs the data say that a network needs, if they do."""
        return self.loaders.outputs

    @cached_property
    def batch(self) -> Batch:
        """The first training batch in which there is a label: few labels may leave a batch without."""
        train = self.loaders.train
        first = None
        for batch in islice(train, 20):
            first = batch if first is None else first
            target = self.task.target(batch)
            if not isinstance(target, Tensor) or bool(known(target).any()):
                first = batch
                break
        return move_data_to_device(first, self.device)

    @torch.no_grad()
    def answer(self, net: nn.Module) -> Any:
        """Return what a network answers to ``batch``, in eval mode and without gradients."""
        device = next(bare(net).parameters(), torch.empty(0)).device  # before a training, each network's own
        return self.task.feed(frozen(net), move_data_to_device(self.task.inputs(self.batch), device))

    def targets(self) -> Iterator[Any]:
        """Yield the targets of all splits: those of data by name all, those of a loader of the user's own a few."""
        for loader in self.loaders[:3]:
            if isinstance(loader, Epochs) and loader.targets is not None:
                yield loader.targets.cpu()[loader.ids]
            elif loader is not None:
                yield from (self.task.target(batch) for batch in self.some(loader))

    def held_out(self, share: float = 1.0) -> Iterator[Batch]:
        """Yield batches of validation data, or of training data where there is no other."""
        train, val, *_ = self.loaders
        yield from self.some(train if val is None else val, share)

    def some(self, loader: Epochs | Repeatable, share: float = 1.0) -> Iterator[Batch]:
        """Yield batches until there are enough samples or the time is up, or a share of both."""
        enough = int(share * self.samples)
        if isinstance(loader, Epochs):  # any of its samples, since the first may all be of one class
            loader = loader.plain()
            loader.ids = loader.ids[torch.randperm(len(loader.ids), generator=generator("check"))[:enough]]
        seen, end = 0, time.perf_counter() + share * self.seconds
        for batch in loader:
            yield move_data_to_device(batch, self.device)
            seen += samples_of(self.task.target(batch))
            if seen >= enough or time.perf_counter() > end:
                return


class _First(Look):
    """A look that costs one batch: what training sees first."""

    @cached_property
    def batch(self) -> Batch:
        """A batch to look at; what the training will see is not touched."""
        return move_data_to_device(_first(self.loaders.train), self.device)

    def targets(self) -> Iterator[Any]:
        """Yield what is known without reading further."""
        train = self.loaders.train
        yield train.targets if isinstance(train, Epochs) and train.targets is not None else self.task.target(self.batch)

    def held_out(self, share: float = 1.0) -> Iterator[Batch]:
        """Yield nothing: teachers are measured in the first validation."""
        return iter(())


def refuse_unfit(method: Method, loaders: Splits) -> None:
    """Find targets and networks that cannot go together before the first batch does, which on a GPU has no words for it.

    Raises:
        ValueError: What the task finds wrong, or metrics without the task's score.
    """
    networks = method.networks()
    where = [next(net.parameters(), torch.empty(0)).device for net in networks.values()]
    look = _First(method.task, networks, dict(teachers_of(method)), loaders, where[0], samples=1, seconds=0.0)
    if wrong := [finding.message for finding in method.task.examine(look) if finding.status == "failed"]:
        raise ValueError("\n".join(wrong))
    if loaders.val is None:
        return
    batch = _first(loaders.val)
    for net, device in zip(networks.values(), where, strict=True):
        _measure(net, move_data_to_device(batch, device), method.task)


@torch.no_grad()
def _measure(net: nn.Module, batch: Batch, task: Task) -> None:
    """Measure one batch for nothing but to see that the score is among the metrics."""
    measurement = Measurement(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics that one batch is too little for
        measurement.update(frozen(net), batch)
        measurement.compute()


def _first(loader: Epochs | Repeatable) -> Batch:
    return loader.few(8) if isinstance(loader, Epochs) else loader.first
