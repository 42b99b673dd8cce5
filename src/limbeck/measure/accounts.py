"""What compression saves: the table of FitNets (Romero et al., ICLR 2015, arXiv 1412.6550), for any networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.nn.modules.conv import _ConvNd

from limbeck.core.frozen import Frozen, frozen
from limbeck.core.task import Score, Task
from limbeck.data import Data, Epochs
from limbeck.data.repeatable import splits
from limbeck.measure.cost import as_fed, latency_ms, macs_of
from limbeck.measure.evaluate import evaluate
from limbeck.tasks.classification import classification

LAYERS = frozenset({"ConvolutionBackward0", "AddmmBackward0", "MmBackward0"})
"""What autograd calls convolutions and linear layers."""
ROUNDS = 5
"""In which networks are timed in turn, so that what else the machine does slows all of them alike."""


@dataclass(frozen=True)
class Account:
    """A network in the table of FitNets.

    Args:
        name: As the reader knows it.
        layers: Convolutions and linear layers on the longest way from the inputs to the outputs: 18 of a ResNet-18, whose
            shortcuts have three convolutions more.
        parameters: Weights and biases of convolutions and linear layers; those of norms are not counted.
        multiplications: Of one sample, in the same; pooling, norms and activations are free.
        latency_ms: Median time of one sample on one CPU thread, in milliseconds.
        value: The score on the test data.
        score: What that is.
    """

    name: str
    layers: int
    parameters: int
    multiplications: int
    latency_ms: float
    value: float
    score: Score


@torch.no_grad()
def accounts(
    nets: Mapping[str, nn.Module], data: Any, task: Task | None = None, *, seconds: float = 0.5
) -> list[Account]:
    """Return what each of some networks takes and reaches: what the teacher's student saves is the ratio of the two.

    The score is measured on an accelerator if there is one, costs on the CPU, in eval mode; networks are left as they were.

    Args:
        nets: By name.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)``: the test data is used.
        task: How networks are fed and judged; by default as the data say.
        seconds: Spent on timing each network, a fifth at a time, in turn with the others.

    Raises:
        ValueError: There are no test data.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> nets = {name: limbeck.zoo.network(name, 10, data.shape) for name in ("mlp-64-64", "mlp-16")}
        >>> [(one.layers, one.parameters) for one in accounts(nets, data, seconds=0.01)]
        [(3, 8970), (2, 1210)]
    """
    task, loaders = task or (data.task if isinstance(data, Data) else classification), splits(data, seed=0)
    if (test := loaders.test) is None:
        raise ValueError("there are no test data: pass a limbeck.data.Data, or loaders (train, val, test)")
    views = {name: frozen(net).again("eval").to("cpu") for name, net in nets.items()}
    sample = move_data_to_device(task.inputs(loaders.few(1)), torch.device("cpu"))
    asked = [as_fed(view, sample, task) for view in views.values()]
    times = in_turn([partial(own.feed, net, inputs) for net, inputs, own in asked], torch.device("cpu"), seconds)
    counts = [(depth(*each), weights(each[0]), macs_of(*each)) for each in asked]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(test, Epochs):
        test.to(device)
    reached = [evaluate(view.to(device), test, task)[task.score.name] for view in views.values()]
    return [
        Account(name, *count, latency_ms=time, value=value, score=task.score)
        for name, count, time, value in zip(views, counts, times, reached, strict=True)
    ]


def weights(net: nn.Module) -> int:
    """Return the parameters of a network's convolutions, linear layers and attention; shared ones count once."""
    counted = [module for module in net.modules() if isinstance(module, (_ConvNd, nn.Linear, nn.MultiheadAttention))]
    found = {id(each): each.numel() for module in counted for each in module.parameters(recurse=False)}
    return sum(found.values())


def depth(net: nn.Module, example: Any, task: Task = classification) -> int:
    """Return how many convolutions and linear layers lie on the longest way through a network."""
    view = Frozen(net).net.requires_grad_()  # a view's parameters are its own to ask gradients of
    with torch.enable_grad():
        return _longest(task.feed(view, example).grad_fn)


def _longest(end: Any) -> int:
    """Return the most layers on a way through autograd's graph; by hand, since deep networks would recurse too far."""
    longest: dict[Any, int] = {}
    waiting = [end] if end is not None else []
    while waiting:
        node = waiting[-1]
        before = [each for each, _ in node.next_functions if each is not None]
        if missing := [each for each in before if each not in longest]:
            waiting += missing
            continue
        longest[node] = (node.name() in LAYERS) + max((longest[each] for each in before), default=0)
        waiting.pop()
    return longest.get(end, 0)


def in_turn(runs: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> list[float]:
    """Return the median time of each run in milliseconds, as `latency_ms` does, but timed in turn with the others."""
    rounds = [[latency_ms(run, device, seconds / ROUNDS) for run in runs] for _ in range(ROUNDS)]
    return [median(times) for times in zip(*rounds, strict=True)]
