"""A task: how a batch is fed to a network, what the labels alone would teach, and how the result is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.frozen import bare
from limbeck.numerics import full_precision
from limbeck.objective import Objective, S, Y, on
from limbeck.trace import Trace, describe, record

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

Batch = Any
"""``(inputs, targets)``, ``(inputs, targets, ids)``, or a dict of named inputs with ``labels``."""

UNLABELLED = -100
"""The target of a sample without a label: torch's own `ignore_index`."""


@full_precision
def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the labels, mean over the labelled samples; 0 where none of the batch is labelled.

    Args:
        student: Logits, (N, K) or (N, K, ...).
        targets: Class indices, (N) or (N, ...); -100 is "no label".
    """
    loss = F.cross_entropy(student, targets, ignore_index=UNLABELLED)
    return torch.where((targets != UNLABELLED).any(), loss, 0.0)


def logits(output: Any) -> Tensor:
    """Return the logits in what a classifier gave: the tensor itself, ``.logits``, ``["out"]``, or a dict's only tensor.

    Raises:
        TypeError: There is no saying which tensor is meant.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        for key in ("logits", "out"):
            if key in tensors:
                return tensors[key]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
    if isinstance(named := getattr(output, "logits", None), Tensor):  # GoogLeNetOutputs, a dataclass
        return named
    raise TypeError(
        f"expected the network to return logits, got {describe(output)}. "
        "Say where they are: Task(output=lambda out: out['scores'])"
    )


def inputs_of(batch: Batch) -> Any:
    """Return a batch's inputs: its first entry, or all but ``labels`` of a dict."""
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in ("labels", "label", "ids")}
    return batch[0]


def target_of(batch: Batch) -> Tensor:
    """Return a batch's targets: its second entry, or ``labels`` of a dict."""
    if isinstance(batch, Mapping):
        found = [batch[key] for key in ("labels", "label") if key in batch]
    else:
        found = list(batch[1:2])
    if not found:
        raise ValueError(
            f"found no targets in the batch, {describe(batch)}. Say where they are: "
            "Task(target=lambda batch: batch['answers'])"
        )
    return found[0]  # type: ignore[no-any-return]


def ids_of(batch: Batch) -> Tensor:
    """Return the ids of a batch's samples: its third entry, or ``ids`` of a dict."""
    found = [batch["ids"]] if isinstance(batch, Mapping) and "ids" in batch else []
    if not isinstance(batch, Mapping):
        found = list(batch[2:3])
    if not found:
        raise ValueError(
            f"found no sample ids in the batch, {describe(batch)}; methods that remember samples, such as crd, need them. "
            "Serve (inputs, targets, ids) as limbeck.data does, an id the sample's index in the data set, "
            "or say where they are: Task(ids=lambda batch: batch['index'])"
        )
    return found[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Task:
    """How a batch is fed, what the labels teach and what is measured; by default, single-label classification.

    Args:
        loss: The hard loss of (outputs, targets).
        output: Finds the tensor to learn from in what a network returns.
        inputs: Finds the inputs in a batch; a dict is passed to the network as keyword arguments.
        target: Finds the targets in a batch.
        ids: Finds the ids of the samples in a batch, for methods that remember samples.
    """

    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    output: Callable[[Any], Tensor] = logits
    inputs: Callable[[Batch], Any] = inputs_of
    target: Callable[[Batch], Tensor] = target_of
    ids: Callable[[Batch], Tensor] = ids_of

    @property
    def hard(self) -> Objective:
        """What the labels alone teach."""
        return on(self.loss, S, Y, name="hard")

    def feed(self, net: Callable[..., Any], inputs: Any) -> Tensor:
        """Run ``net`` on ``inputs`` and return its logits."""
        return self.output(net(**inputs) if isinstance(inputs, Mapping) else net(inputs))

    def look(self, net: nn.Module, batch: Batch, paths: Collection[str] = ()) -> Trace:
        """Run ``net`` on a batch and return its output, under ``""``, with the layers in ``paths``."""
        inputs = self.inputs(batch)
        if not paths:
            return {"": self.feed(net, inputs)}
        with record(bare(net), paths) as trace:
            output = self.feed(net, inputs)
        return {**trace, "": output}

    def metrics(self, num_classes: int) -> MetricCollection:
        """Return what is measured on held-out data: top-1 accuracy, over the labelled samples."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        return MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED)})


classification = Task()
"""Single-label classification: cross-entropy, top-1 accuracy."""
