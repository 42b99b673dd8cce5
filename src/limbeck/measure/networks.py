"""What networks answer on held-out data, in one pass over it: what `limbeck.measure`'s functions of answers are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.frozen import Frozen, frozen
from limbeck.core.layers import Pair
from limbeck.core.task import Task
from limbeck.core.trace import describe
from limbeck.measure.cka import MinibatchCKA
from limbeck.measure.cost import place_of
from limbeck.measure.evaluate import Measurement, batches
from limbeck.tasks.classification import classification


@dataclass(frozen=True)
class Outputs:
    """What a network answered, sample by sample, in the order of the loader.

    Args:
        logits: The answers, where the network is: a classifier's logits (N, K), values (N, M), any tensor (N, ...), or a
            list with a sample an entry, as a detector's.
        targets: A classifier's classes, int64 (N), where -100 is "no label"; else as the task finds them.
    """

    logits: Any
    targets: Any

    def metrics(self, task: Task = classification) -> dict[str, float]:
        """Return what `limbeck.evaluate` would: in classification ``accuracy``, in [0, 1], and the mean ``loss``."""
        measurement = Measurement(task)
        measurement.add(self.logits, self.targets)
        return measurement.compute()


@dataclass(frozen=True)
class SideBySide:
    """What two networks showed on the same batches.

    Args:
        student: The student's answers.
        teacher: The teacher's, to the same samples.
        cka: How alike each pair of layers is; see `MinibatchCKA`.
    """

    student: Outputs
    teacher: Outputs
    cka: dict[Pair, float]


@torch.no_grad()
def outputs(net: nn.Module, loader: Iterable[Any], task: Task = classification) -> Outputs:
    """Run a network over held-out data and keep its answers: of a classifier logits, N × K numbers.

    It runs in eval mode and without gradients, where its parameters are, and is left as it was.

    Args:
        net: Any network.
        loader: Batches ``(inputs, targets)``.
        task: How batches are fed, and where the answer is.

    Raises:
        ValueError: The loader gave no batch, or answers of one batch and the next differ in shape.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> net = limbeck.zoo.network("mlp-32", data.outputs, data.shape)
        >>> answers = outputs(net, data.test)
        >>> 0 <= limbeck.measure.calibration(answers.logits, answers.targets) <= 1
        True
    """
    view = frozen(net)
    seen = [(task.feed(view, task.inputs(batch)), task.target(batch)) for batch in batches(loader, net)]
    return _joined(seen)


@torch.no_grad()
def side_by_side(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    pairs: Sequence[Pair] = (),
    task: Task = classification,
) -> SideBySide:
    """Run two networks on the same batches, each once, and compare layers of theirs on the way.

    Both run in eval mode and without gradients, where the student's parameters are, and are left as they were.

    Args:
        student: Any network.
        teacher: Another.
        loader: Batches ``(inputs, targets)``, in any order: both see the same ones.
        pairs: Layers to compare, (student's path, teacher's path); `limbeck.pairs` finds those that belong together.
        task: How batches are fed, and where the answer is.

    Raises:
        ValueError: The loader gave no batch, answers of one batch and the next differ in shape, or a layer does not exist.
    """
    device = place_of(student)
    views = frozen(student), beside(student, teacher)
    alike = {pair: MinibatchCKA().to(device) for pair in pairs}
    of_student, of_teacher = [], []
    for batch in batches(loader, student):
        shown, taught = (
            task.look(view, task.inputs(batch), set(paths)) for view, paths in zip(views, _sides(pairs), strict=True)
        )
        target = task.target(batch)
        of_student.append((shown[""], target))
        of_teacher.append((taught[""], target))
        for (layer, its), measure in alike.items():
            measure.update(shown[layer], taught[its])
    joined = _joined(of_student), _joined(of_teacher)
    return SideBySide(*joined, {pair: float(measure.compute()) for pair, measure in alike.items()})


@torch.no_grad()
def robustness(
    net: nn.Module,
    loader: Iterable[Any],
    deviations: Sequence[float],
    *,
    seed: int = 0,
    task: Task = classification,
) -> dict[float, dict[str, float]]:
    """Return what `limbeck.evaluate` would for inputs with Gaussian noise: x + σ ε, ε of mean 0 and variance 1.

    ε depends on ``seed`` and the batches alone: it is the same for every σ, network and device, and leaves torch's
    generators as they were. Nothing is clipped. The network runs once for each σ.

    Args:
        net: Any network.
        loader: Batches ``(inputs, targets)``.
        deviations: Each a σ, in units of the network's inputs: of data that is normalised, in its standard deviations.
        seed: Of ε.
        task: How batches are fed.

    Returns:
        For each σ, each metric of the task: in classification ``accuracy``, in [0, 1], and ``loss``.

    Raises:
        ValueError: A σ is negative or not finite, or the loader gave no batch.
        TypeError: The inputs are not one tensor of real numbers.
    """
    for deviation in deviations:
        if not 0 <= deviation < math.inf:
            raise ValueError(f"deviations must be finite and not negative, got {deviation}")
    view, draw = frozen(net), torch.Generator().manual_seed(seed)
    measured = {deviation: Measurement(task) for deviation in deviations}
    for batch in batches(loader, net):
        inputs, target = task.inputs(batch), task.target(batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = f"a tensor of {inputs.dtype}" if isinstance(inputs, Tensor) else describe(inputs)
            raise TypeError(f"noise needs inputs that are one tensor of real numbers, got {what}")
        noise = torch.randn(inputs.shape, generator=draw).to(inputs)  # on the CPU, so that devices do not differ
        for deviation, measurement in measured.items():
            measurement.add(task.feed(view, inputs + deviation * noise), target)
    return {deviation: measurement.compute() for deviation, measurement in measured.items()}


def _sides(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [layer for layer, _ in pairs], [layer for _, layer in pairs]


def _joined(seen: Sequence[tuple[Any, Any]]) -> Outputs:
    if not seen:
        raise ValueError("nothing was measured: the loader gave no batch")
    answers, targets = zip(*seen, strict=True)
    return Outputs(_together(answers), _together(targets))


def _together(columns: Sequence[Any]) -> Any:
    """Return the samples of several batches as one column, see `limbeck.core.batches`."""
    first = columns[0]
    if isinstance(first, Mapping):
        return {name: _together([column[name] for column in columns]) for name in first}
    if not isinstance(first, Tensor):
        return list(chain.from_iterable(columns))
    if shapes := {tuple(column.shape[1:]) for column in columns} - {tuple(first.shape[1:])}:
        raise ValueError(
            f"samples of shape {tuple(first.shape[1:])} and {shapes.pop()} cannot be kept together: serve all of one shape "
            "(padded texts, images of one size), or measure batch by batch with limbeck.evaluate"
        )
    return torch.cat(list(columns))


def beside(student: nn.Module, teacher: nn.Module) -> Frozen:
    """Return a teacher as it sees the data, where the student is."""
    return frozen(teacher).again("eval").to(place_of(student))  # a view moves alone
