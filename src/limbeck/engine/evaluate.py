"""How good a network is on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from limbeck.frozen import bare, frozen
from limbeck.task import UNLABELLED, Batch, Task, classification


class Measurement:
    """One network's metrics over the batches of a loader; among several processes, over those of all."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.num_classes = 0
        self._metrics: MetricCollection | None = None
        self._loss = MeanMetric(nan_strategy=math.nan)  # a NaN stays one

    def update(self, net: nn.Module, batch: Batch) -> None:
        """Measure one batch."""
        self.add(self.task.look(net, batch)[""], self.task.target(batch))

    def add(self, output: Tensor, target: Tensor) -> None:
        """Measure what a network answered."""
        if self._metrics is None:
            self.num_classes = output.shape[1]
            self._metrics = self.task.metrics(self.num_classes).to(output.device)
            self._loss = self._loss.to(output.device)
        self._metrics.update(output, target)
        self._loss.update(self.task.loss(output, target), weight=_labelled(target))

    @property
    def samples(self) -> int:
        """How many labelled samples were measured."""
        return int(self._loss.weight)

    def compute(self) -> dict[str, float]:
        """Return each metric, with the mean ``loss``.

        Raises:
            ValueError: No batch was measured.
        """
        if self._metrics is None:
            raise ValueError("nothing was measured: the loader gave no batch")
        values = {**self._metrics.compute(), "loss": self._loss.compute()}
        return {name: float(value) for name, value in values.items()}


def evaluate(net: nn.Module, loader: Iterable[Any], task: Task = classification) -> dict[str, float]:
    """Return how good a network is: top-1 ``accuracy`` in [0, 1] and ``loss``, the mean cross-entropy.

    It runs in eval mode and without gradients, where its parameters are, and is left as it was.

    Args:
        net: Any classifier.
        loader: Batches ``(inputs, targets)``; targets of -100 do not count.
        task: How batches are fed and measured.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> net = limbeck.zoo.network("mlp-32", data.num_classes, data.shape)
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


def _labelled(target: Tensor) -> Tensor:
    return (target != UNLABELLED).sum().float()
