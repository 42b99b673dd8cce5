"""How good a network is on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, distributed, nn
from torchmetrics import MetricCollection

from limbeck.core.batches import samples, tensors
from limbeck.core.distributed import place
from limbeck.core.frozen import bare, frozen
from limbeck.core.task import UNLABELLED, Batch, Task
from limbeck.tasks.classification import classification


class Measurement:
    """One network's metrics over the batches of a loader; among several processes, over those of all."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.guess: float | None = None
        self._metrics: MetricCollection | None = None
        self._labelled: list[Tensor | int] = []
        self._everywhere: int | None = None

    def update(self, net: nn.Module, batch: Batch) -> None:
        """Measure one batch."""
        self.add(self.task.feed(net, self.task.inputs(batch)), self.task.target(batch))

    def add(self, answer: Any, target: Any) -> None:
        """Measure what a network answered."""
        if self._metrics is None:
            device = next(iter(tensors((answer, target))), torch.empty(0)).device
            self._metrics = self.task.metrics(answer).to(device)
            self.guess = None if self.task.guess is None else self.task.guess(answer)
        self._metrics.update(answer, target)
        self._labelled.append(_labelled(target))

    @property
    def samples(self) -> int:
        """How many labelled samples were measured: by all processes once `compute` has asked them, before that here."""
        return sum(map(int, self._labelled)) if self._everywhere is None else self._everywhere

    def compute(self) -> dict[str, float]:
        """Return each metric that is one number.

        Raises:
            ValueError: No batch was measured, or the metrics lack the task's score.
        """
        if self._metrics is None:
            raise ValueError("nothing was measured: the loader gave no batch")
        self._everywhere = self._counted()
        values = {name: float(value) for name, value in self._metrics.compute().items() if value.numel() == 1}
        if (score := self.task.score.name) not in values:
            raise ValueError(
                f"the task {self.task.name!r} is judged by {score!r}, but its metrics give {sorted(values)}: name one of "
                f"these, score=limbeck.Score({next(iter(values), 'loss')!r})"
            )
        return values

    def _counted(self) -> int:
        """Ask all processes how many labelled samples they measured."""
        here = sum(map(int, self._labelled))
        if place()[1] == 1:
            return here
        assert self._metrics is not None
        total = torch.tensor(here, device=next(iter(self._metrics.values())).device)
        distributed.all_reduce(total)
        return int(total)


def _labelled(target: Any) -> Tensor | int:
    """Return how many samples have a label at least; a tensor, so that no device is waited for."""
    if not isinstance(target, Tensor):
        return samples(target)
    known = target != UNLABELLED
    return (known.flatten(1).any(1) if known.ndim > 1 else known).sum()


def evaluate(net: nn.Module, loader: Iterable[Any], task: Task = classification) -> dict[str, float]:
    """Return how good a network is, by each metric of the task: in classification ``accuracy``, in [0, 1], and ``loss``.

    It runs in eval mode and without gradients, where its parameters are, and is left as it was.

    Args:
        net: Any network.
        loader: Batches ``(inputs, targets)``; targets of -100 do not count.
        task: How batches are fed, and what is measured.

    Raises:
        ValueError: No batch, or metrics without the task's score.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> net = limbeck.zoo.network("mlp-32", data.outputs, data.shape)
        >>> 0 <= limbeck.evaluate(net, data.test)["accuracy"] <= 1
        True
    """
    view, measurement = frozen(net), Measurement(task)
    with torch.no_grad():
        for batch in batches(loader, net):
            measurement.update(view, batch)
    return measurement.compute()


def batches(loader: Iterable[Any], net: nn.Module) -> Iterator[Batch]:
    """Yield a loader's batches where a network's parameters are."""
    parameter = next(bare(net).parameters(), None)
    for batch in loader:
        yield batch if parameter is None else move_data_to_device(batch, parameter.device)
