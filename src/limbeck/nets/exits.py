"""A network that can answer early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.frozen import Frozen
from limbeck.core.layers import classifier, stages
from limbeck.core.task import Task
from limbeck.core.trace import describe
from limbeck.nets.branches import pooled
from limbeck.nets.norm import GlobalBatchNorm
from limbeck.nets.sections import sections
from limbeck.tasks.classification import classification

Shape = tuple[int, ...]


class Exit(nn.Module):
    """A classifier of what a network shows early: a bottleneck to the size of the deepest features, and a linear layer.

    Maps are halved by depthwise separable convolutions of stride 2 as often as it takes to come to the deepest map's
    resolution; tokens and vectors pass a linear layer.

    Args:
        shape: Of the features, (N, C, H, W), (N, L, C) or (N, C).
        deepest: Of the deepest features of the same kind.
        width: Of the bottleneck's output: as wide as what the network's own classifier is given.
        classes: K.
    """

    def __init__(self, shape: Shape, deepest: Shape, width: int, classes: int) -> None:
        super().__init__()
        if len(shape) != len(deepest):
            raise ValueError(f"an exit needs features of one kind, got shapes {shape} and {deepest}")
        self.bottleneck = nn.Sequential(*_narrowing(shape, deepest, width))
        self.fc = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        logits: Tensor = self.fc(self.bottleneck(features))
        return logits


class Pooled(nn.Module):
    """The mean over positions."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) or (N, L, C) to (N, C)."""
        return pooled(features)


def _narrowing(shape: Shape, deepest: Shape, width: int) -> list[nn.Module]:
    if len(shape) != 4:
        return [Pooled(), nn.Linear(shape[-1], width), nn.ReLU()]
    layers: list[nn.Module] = []
    channels, size = shape[1], shape[2]
    while size > deepest[2]:
        layers += _separable(channels, min(2 * channels, width), stride=2)
        channels, size = min(2 * channels, width), -(-size // 2)
    return [*layers, *_separable(channels, width, stride=1), Pooled()]


def _separable(channels: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, outputs, 1, bias=False),
        GlobalBatchNorm(outputs),
        nn.ReLU(),
    ]


class EarlyExit(nn.Module):
    """A network with exits: each sample leaves at the first whose largest probability exceeds that exit's threshold.

    So a threshold of 0 stops everything and one of 1 nothing. The deeper sections run on the samples that are left alone.
    In training mode all exits run on all samples, and the deepest answers.

    Args:
        sections: The network, in consecutive parts.
        exits: One for each section but the last.
        thresholds: One for each exit, in [0, 1]; 1 by default, so that nothing leaves early. Kept with the weights.
        after: The layers after which the exits are, where they have names: limbeck's files of weights hold them, so that
            `limbeck.zoo.network` and the command line build the same network again.
    """

    thresholds: Tensor

    def __init__(
        self,
        sections: Sequence[nn.Module],
        exits: Sequence[nn.Module],
        thresholds: Sequence[float] | None = None,
        after: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if len(exits) != len(sections) - 1:
            raise ValueError(f"expected an exit for each section but the last, got {len(exits)} for {len(sections)}")
        self.sections, self.exits, self.after = nn.ModuleList(sections), nn.ModuleList(exits), tuple(after)
        self.register_buffer("thresholds", torch.ones(len(exits)))
        if thresholds is not None:
            self.set_thresholds(thresholds)

    def set_thresholds(self, thresholds: Sequence[float]) -> None:
        """Set the probability above which a sample leaves, one for each exit, in [0, 1]."""
        if (
            isinstance(thresholds, float)
            or len(thresholds) != len(self.exits)
            or not all(0 <= each <= 1 for each in thresholds)
        ):
            raise ValueError(f"expected {len(self.exits)} thresholds in [0, 1], got {thresholds}")
        self.thresholds.copy_(torch.tensor(thresholds))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, K), each sample's from where it left."""
        return self.all_exits(x)[-1] if self.training else self.answer(x)[0]

    def up_to(self, exit: int) -> Shallow:
        """Return the network that ends in an exit, counted from 1: a smaller one, of the same parameters."""
        if not 1 <= exit <= len(self.exits):
            raise ValueError(f"exit must lie between 1 and {len(self.exits)}, got {exit}")
        return Shallow([*self.sections[:exit], self.exits[exit - 1]], self.after[:exit])

    def all_exits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every exit on all samples, each (N, K), the deepest last."""
        said = []
        for section, leave in zip(self.sections[:-1], self.exits, strict=True):
            x = section(x)
            said.append(leave(x.clone()))  # what comes next may begin in place
        return [*said, self.sections[-1](x)]

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, (N, K), and the number of the exit that each sample took, (N); the last is that of all."""
        taken = torch.full((len(x),), len(self.exits), device=x.device)
        waiting, said = torch.arange(len(x), device=x.device), []
        for number, (section, leave) in enumerate(zip(self.sections[:-1], self.exits, strict=True)):
            x = section(x)
            logits = leave(x.clone())  # as in all_exits
            sure = logits.softmax(-1).amax(-1) > self.thresholds[number]
            taken[waiting[sure]] = number
            said.append((waiting[sure], logits[sure]))
            waiting, x = waiting[~sure], x[~sure]
            if not len(waiting):
                break
        else:
            said.append((waiting, self.sections[-1](x)))
        rows, logits = (torch.cat(parts) for parts in zip(*said, strict=True))
        return logits[rows.argsort()], taken


class Shallow(nn.Sequential):
    """A network up to one of its exits, which answers.

    Args:
        parts: The sections up to the exit, and it.
        after: As for `EarlyExit`, up to this exit.
    """

    def __init__(self, parts: Sequence[nn.Module], after: Sequence[str] = ()) -> None:
        super().__init__(*parts)
        self.after = tuple(after)


class ExitsEnsemble(nn.Module):
    """The mean of what all exits of a network say, at the cost of all.

    Args:
        net: The network.
    """

    def __init__(self, net: EarlyExit) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, (N, K)."""
        return torch.stack(self.net.all_exits(x)).mean(0)


class AllExits(nn.Module):
    """A network with exits as a graph without branches, for what cannot decide sample by sample.

    Every section runs on every sample, so that no compute is saved; what is answered is the same.

    Args:
        net: The network; its thresholds are part of the graph.
    """

    def __init__(self, net: EarlyExit) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the first exit that is sure, (N, K), and those of every exit, (N, M, K)."""
        said = self.net.all_exits(x)
        logits = said[-1]
        for early, threshold in zip(said[-2::-1], self.net.thresholds.flip(0), strict=True):
            sure = early.softmax(-1).amax(-1, keepdim=True) > threshold
            logits = torch.where(sure, early, logits)
        return logits, torch.stack(said, 1)


def with_exits(
    net: nn.Module, example: Any, after: Sequence[str] | None = None, task: Task = classification
) -> EarlyExit:
    """Give a network exits, untrained ones: `limbeck.byot` trains them.

    The sections share the network's parameters. With the weights that a training left, this is how the trained network
    is made again: ``with_exits(net, example, after).load_state_dict(weights)``.

    Args:
        net: The network; its last layer is linear.
        example: A batch of inputs, (N, ...).
        after: The layers after which an exit is; by default all resolutions of its maps (its blocks, or hidden layers)
            but the deepest.
        task: How inputs are fed.

    Raises:
        TypeError: A network that has exits already, is fed more than one tensor, or returns more than its logits.
        ValueError: No linear layer at the end, no layer to leave after, or layers between which the network cannot be cut,
            as for `limbeck.sections`.

    Example:
        >>> import torch, limbeck
        >>> net = limbeck.zoo.network("resnet8")
        >>> early = with_exits(net, torch.zeros(1, 3, 32, 32))
        >>> early.after
        ('layer1', 'layer2')
    """
    if isinstance(net, EarlyExit):
        raise TypeError("the network has exits already: give the plain one, without them")
    if not isinstance(example, Tensor):
        raise TypeError(f"a network with exits passes one tensor on, (N, ...), and is given {describe(example)}")
    found = stages(net, example, task)
    if len(found) < (2 if after is None else 1):
        raise ValueError(
            f"{type(net).__name__} has {len(found)} stages (resolutions of its maps, blocks or hidden layers), and an exit "
            "comes before the deepest: take a deeper network, or name the layers, exits=['layer1']"
        )
    *early, deepest = found
    after = [stage.path for stage in early] if after is None else list(after)
    parts = sections(net, after)
    last = classifier(net, example, task)
    if last is None:
        raise ValueError(f"{type(net).__name__} ends in no nn.Linear: an exit is as wide as what that is given")
    if last.path not in dict(parts[-1].named_modules()):
        raise ValueError(f"{after[-1]!r} does not come before the classifier, {last.path!r}: an exit leaves earlier")
    width, classes = last.input_shape[-1], last.shape[-1]
    exits = [Exit(shape, deepest.shape, width, classes) for shape in _shapes(parts, example)]
    return EarlyExit(parts, exits, after=after).to(next(net.parameters()).device)


@torch.no_grad()
def _shapes(parts: Sequence[nn.Module], example: Any) -> list[Shape]:
    """Return the shapes of what all sections but the last show; the last must answer as an exit does."""
    shown = []
    for part in parts:
        example = Frozen(part)(example)
        shown.append(example)
    if not isinstance(example, Tensor):
        raise TypeError(
            f"exits answer with logits (N, K), and the network with {describe(example)}: give one that returns its logits "
            "alone"
        )
    return [tuple(features.shape) for features in shown[:-1]]
