"""Find out in seconds, before a long run, whether a set-up is right."""

from __future__ import annotations

import copy
import inspect
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, combinations, islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from limbeck.data import Epochs
from limbeck.data.epochs import generator
from limbeck.engine.learner import teachers_of
from limbeck.engine.loaders import Repeatable, Splits, splits
from limbeck.engine.randomness import random_state, set_random_state
from limbeck.frozen import Frozen, frozen
from limbeck.method import Distill, Method, assign, parameters, play
from limbeck.objective import Scene, Term
from limbeck.stage import Stage
from limbeck.task import UNLABELLED, Batch, Task

if TYPE_CHECKING:
    from rich.console import Group

Status = Literal["ok", "warning", "failed"]

SAMPLES, SECONDS = 2000, 4.0  # of the data that one check looks at, and the time that it has
PROGRESS = 0.5  # where in the training terms are weighed: a weight that changes is seldom 0 half-way
LIFT = 0.1  # of accuracy, from which another order of classes or another scale of inputs is suspected
DOMINANT = 0.99  # share of the gradient that leaves nothing to the other terms
CONFLICT = -0.5  # cosine of two gradients
STEPS, RATES = 50, (1e-3, 1e-2)  # of the attempts to overfit one batch, with Adam
OVERFITTED = 32  # samples: enough to tell, few enough to be quick
BROKEN = (
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
)  # what a batch that cannot be played raises


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: Of the check: ``"teacher accuracy"``, ``"balance"``.
        status: ``"failed"`` is a mistake, ``"warning"`` most likely one; what could not be checked is ``"ok"`` and says so.
        message: In words, with what to do.
        values: The numbers behind it.
    """

    name: str
    status: Status
    message: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TermCheck:
    """What one term of one player does on one batch, half-way through the schedules of the weights.

    Args:
        player: Who learns from it.
        name: The term.
        value: Unweighted.
        weight: Its weight.
        gradient: Norm of the weighted term's gradient on the player's parameters.
        share: Of the sum of the norms of all the player's terms.
        cosines: Of its gradient and each other term's of the player.
        suggested: The weight that gives it the share asked for.
    """

    player: str
    name: str
    value: float
    weight: float
    gradient: float
    share: float
    cosines: dict[str, float]
    suggested: float | None = None


@dataclass(frozen=True)
class Checkup:
    """What `check` found.

    Args:
        findings: One for each check, in the order they were made.
        terms: One for each term of each player; none where a batch could not be played.
    """

    findings: tuple[Finding, ...]
    terms: tuple[TermCheck, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings may be left."""
        return all(finding.status != "failed" for finding in self.findings)

    def json(self) -> str:
        """Return everything as JSON; numbers that are not finite are null."""
        everything = {"ok": self.ok, **asdict(self)}
        finite = pytree.tree_map(
            lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf, everything
        )
        return json.dumps(finite, indent=2, ensure_ascii=False)


def check(
    method: Method | Iterable[Stage],
    data: Any,
    *,
    expect: float | None = None,
    epochs: int | None = None,
    shares: Mapping[str, float] | None = None,
) -> Checkup:
    """Look for mistakes in a set-up, before it is trained.

    Labels, classes and inputs; the teacher's accuracy, the order of its classes, whether it answers the same twice; every
    term's gradient on its player; whether one batch can be learned; how long the training will take. All of it happens
    to a copy: networks, random numbers and loaders are left as they were. But a generator of stages is used up by its first
    stage, the one that can be checked without training: make it anew for `fit`.

    Args:
        method: A method, or the stages of one that has several.
        data: As for `fit`.
        expect: The accuracy that the teacher is known to have, in [0, 1].
        epochs: Of the training, for the estimate of its time.
        shares: The share of the gradient on the first player that a term should have, by its name, in (0, 1).
            ``"attention"`` means all of ``attention.layer1``, ``attention.layer2`` together. Terms not named keep their
            weights.

    Raises:
        ValueError: An argument that makes no sense.

    Example:
        >>> import limbeck
        >>> from limbeck import check
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> _ = limbeck.fit(limbeck.plain(teacher), data, epochs=5)
        >>> check(limbeck.kd(student, teacher), data, epochs=30).ok
        True
    """
    if expect is not None and not 0 <= expect <= 1:
        raise ValueError(f"expect is an accuracy and must lie in [0, 1], got {expect}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    before = random_state()
    try:
        torch.manual_seed(0)
        stage = _first_stage(method)
        _set_modes(stage)
        with torch.compiler.set_stance("force_eager"), _untouched(splits(data, seed=0)) as loaders:
            found, terms = _examine(stage, loaders, expect, epochs)
    finally:
        set_random_state(before)
    if not isinstance(method, Method):
        name = f" {stage.name!r}" if stage.name else ""
        note = f"only the first stage{name} was checked: later ones depend on its training"
        found = [Finding("stages", "ok", note), *found]
    if shares and terms:
        terms = _suggested(terms, shares)
    return Checkup(tuple(found), tuple(terms))


# What is looked at, without touching it ------------------------------------------------------------------------------


def _first_stage(method: Method | Iterable[Stage]) -> Stage:
    """Return a copy of the first stage, where the training will be; the networks are left as they were."""
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
        part.to(_device())
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


def _device() -> torch.device:
    """Where `fit` trains by default, so that the time is that of the training."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _set_modes(stage: Stage) -> None:
    stage.method.train(stage.trains is None)
    for module in stage.trains or ():
        module.train()


@contextmanager
def _untouched(loaders: Splits) -> Iterator[Splits]:
    """Put the generators of the user's own loaders back to where they were."""
    own = [loader for loader in loaders[:3] if isinstance(loader, Repeatable)]
    states = [loader._states() for loader in own]
    try:
        yield loaders
    finally:
        for loader, state in zip(own, states, strict=True):
            loader._set_states(state)


def _some(loader: Epochs | Repeatable, task: Task, samples: int = SAMPLES) -> Iterator[Batch]:
    """Yield batches until there are enough samples or the time is up."""
    if isinstance(loader, Epochs):  # any of its samples, since the first may all be of one class
        loader = loader.plain()
        loader.ids = loader.ids[torch.randperm(len(loader.ids), generator=generator("check"))[:samples]]
    seen, end = 0, time.perf_counter() + SECONDS * samples / SAMPLES
    for batch in loader:
        yield move_data_to_device(batch, _device())
        seen += len(task.target(batch))
        if seen >= samples or time.perf_counter() > end:
            return


def _labelled_batch(loader: Epochs | Repeatable, task: Task) -> Batch:
    """Return the first training batch in which there is a label: few labels may leave a batch without."""
    first = None
    for batch in islice(loader, 20):
        first = batch if first is None else first
        if (task.target(batch) != UNLABELLED).any():
            first = batch
            break
    return move_data_to_device(first, _device())


def _examine(
    stage: Stage, loaders: Splits, expect: float | None, epochs: int | None
) -> tuple[list[Finding], list[TermCheck]]:
    method, task = stage.method, stage.method.task
    found: list[Finding] = []
    weighed: list[TermCheck] = []
    try:
        batch = _labelled_batch(loaders.train, task)
        found += _inputs(task.inputs(batch))
        widths = {name: width for name, net in method.networks().items() if (width := _width(net, batch, task))}
        if widths:
            found += _labels(method, loaders, widths)
        else:
            found.append(Finding("labels", "ok", "not checked: the targets are no classes of the outputs"))
        if any(finding.status == "failed" for finding in found):
            return found, []  # on a GPU the loss of a label out of range is the end of the process
        known = loaders.num_classes or min(widths.values(), default=0)
        for role, teacher in teachers_of(method):
            found += _teacher(role, teacher, loaders, task, batch, known, expect)
        found += _bystanders(method)
        weighed = _weigh(stage, batch)
        found += _balance(weighed, method.networks())
        found += _identity(method, batch)
        found += _overfit(stage, batch)
        found += _cost(stage, loaders.train, batch, epochs)
    except BROKEN as error:
        found.append(Finding("batch", "failed", f"a batch cannot be played: {error}"))
    return found, weighed


# The data ------------------------------------------------------------------------------------------------------------


def _inputs(inputs: Any) -> Iterator[Finding]:
    """Compare each channel with mean 0 and standard deviation 1."""
    if not _is_scaled(inputs):
        yield Finding("inputs", "ok", "not checked: the inputs are no tensor of real numbers")
        return
    mean, std = _channels(inputs)
    values = {
        "mean, furthest from 0": float(mean.flatten()[mean.abs().argmax()]),
        "std, smallest": float(std.min()),
        "std, largest": float(std.max()),
    }
    if bool((mean.abs() > 1).any() or (std < 0.2).any() or (std > 5).any()):
        yield Finding(
            "inputs",
            "warning",
            f"a channel of the inputs has mean {values['mean, furthest from 0']:.3g} or a std between "
            f"{values['std, smallest']:.3g} and {values['std, largest']:.3g}: normalise them to about mean 0 and std 1",
            values,
        )
    else:
        yield Finding("inputs", "ok", "every channel has about mean 0 and std 1", values)


def _is_scaled(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim > 1


def _channels(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel of (N, C, ...), shaped to be broadcast; of vectors, (N, D), those of all together."""
    over = [axis for axis in range(inputs.ndim) if axis != 1 or inputs.ndim == 2]
    std, mean = torch.std_mean(inputs, over, correction=0, keepdim=True)
    return mean, std


def _labels(method: Method, loaders: Splits, widths: Mapping[str, int]) -> Iterator[Finding]:
    """Compare the labels with the classes of the data and of the networks."""
    targets = torch.cat([_targets(loader, method.task) for loader in loaders[:3] if loader is not None])
    targets = targets[targets != UNLABELLED]
    if not len(targets):
        yield Finding("labels", "ok", "not checked: there are none")
    else:
        low, high, known = int(targets.min()), int(targets.max()), loaders.num_classes or min(widths.values())
        values = {"lowest": float(low), "highest": float(high), "classes": float(known)}
        right = low >= 0 and high < known
        message = f"labels lie between {low} and {high}, of {known} classes"
        if not right:
            message += f": they must lie between 0 and {known - 1}, or be {UNLABELLED} where there is none"
        yield Finding("labels", "ok" if right else "failed", message, values)
    for name, width in widths.items():
        yield _outputs(name, width, loaders.num_classes or width)


def _outputs(name: str, width: int, known: int) -> Finding:
    status: Status = "failed" if width < known else "warning" if width > known else "ok"
    advice = "" if width == known else f": make it with num_classes={known}"
    message = f"the {name} has {width} classes, and the data {known}{advice}"
    return Finding(f"{name} outputs", status, message, {"outputs": float(width), "classes": float(known)})


@torch.no_grad()
def _width(net: nn.Module, batch: Batch, task: Task) -> int | None:
    """Return how many classes a network tells apart; None where its outputs are no class scores for the targets."""
    output, target = task.feed(frozen(net), task.inputs(batch)), task.target(batch)
    scores = not target.is_floating_point() and output.shape[:1] + output.shape[2:] == target.shape
    return output.shape[1] if scores else None


def _targets(loader: Epochs | Repeatable, task: Task) -> Tensor:
    """Return the targets, of a loader of the user's own those of its first batches."""
    if isinstance(loader, Epochs):
        return loader.targets.cpu()[loader.ids]
    return torch.cat([task.target(batch).flatten().cpu() for batch in _some(loader, task)])


# The teacher ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _teacher(
    role: str, teacher: Frozen, loaders: Splits, task: Task, batch: Batch, known: int, expect: float | None
) -> Iterator[Finding]:
    yield _mode(role, teacher)
    yield from _repeats(role, teacher, task, batch)
    width = _width(teacher, batch, task)
    if width is None or width != known:
        message = f"not checked: the {role} has {width or 'no'} classes, and the data {known or 'none'}"
        yield Finding(f"{role} accuracy", "ok" if width is None else "warning", message)
        return
    loader = loaders.train if loaders.val is None else loaders.val
    said, right = _answers(teacher, _some(loader, task), task)
    if not len(right):
        yield Finding(f"{role} accuracy", "ok", "not checked: there are no labels")
        return
    yield _accuracy(role, said, right, width, expect, "training" if loaders.val is None else "validation")
    yield _order(role, said, right, width)
    if _is_scaled(task.inputs(batch)):
        yield _scale(role, teacher, loader, task, task.inputs(batch))


def _mode(role: str, teacher: Frozen) -> Finding:
    if teacher.mode == "eval":
        return Finding(f"{role} mode", "ok", f"the {role} is in eval mode")
    what = "the batch's own statistics" if teacher.mode == "batch_stats" else "dropout and the batch's own statistics"
    return Finding(
        f"{role} mode",
        "warning" if teacher.mode == "batch_stats" else "failed",
        f"the {role} is in {teacher.mode} mode: it uses {what}, and is not what was measured. Let it be frozen in eval "
        "mode, limbeck.Frozen(teacher)",
    )


def _repeats(role: str, teacher: Frozen, task: Task, batch: Batch) -> Iterator[Finding]:
    """Ask twice; compare answers and buffers."""
    buffers = {name: buffer.clone() for name, buffer in teacher.net.named_buffers()}
    first, second = (task.look(teacher, batch)[""].float() for _ in range(2))
    difference = float((first - second).abs().max() / first.abs().max().clamp(min=1e-12))
    values = {"largest relative difference": difference}
    if not difference < 1e-3:  # a GPU adds in any order; NaN fails too
        yield Finding(
            f"{role} determinism",
            "failed",
            f"the {role} answers the same batch differently the second time, by {difference:.1%}: something in it draws "
            "random numbers or counts, as F.dropout does without training=self.training",
            values,
        )
    else:
        yield Finding(f"{role} determinism", "ok", f"the {role} answers the same batch alike twice", values)
    changed = [name for name, buffer in teacher.net.named_buffers() if not torch.equal(buffer, buffers[name])]
    if changed:
        message = f"a pass through the {role} changes its buffers {changed[:4]}: its answers depend on what came before"
        yield Finding(f"{role} buffers", "failed", message)
    else:
        yield Finding(f"{role} buffers", "ok", f"a pass leaves the {role}'s buffers as they were")


def _answers(
    net: nn.Module, batches: Iterable[Batch], task: Task, scale: Callable[[Any], Any] = lambda inputs: inputs
) -> tuple[Tensor, Tensor]:
    """Return what a network says, and what is right, of every labelled sample."""
    said, right = [], []
    for batch in batches:
        target = task.target(batch)
        output = task.feed(net, scale(task.inputs(batch)))
        said.append(output.argmax(1)[target != UNLABELLED].cpu())
        right.append(target[target != UNLABELLED].cpu())
    return torch.cat(said), torch.cat(right)


def _share_right(said: Tensor, right: Tensor) -> float:
    return float((said == right).float().mean())


def _accuracy(role: str, said: Tensor, right: Tensor, width: int, expect: float | None, split: str) -> Finding:
    """Compare the accuracy with what is expected, or else with guessing, give or take two standard errors."""
    accuracy, n, guess = _share_right(said, right), len(right), 1 / width
    values = {"accuracy": accuracy, "samples": float(n), "chance": guess}
    measured = f"the {role} has accuracy {accuracy:.1%} on {n} {split} samples"
    advice = "check its weights, the order of its classes, and how its inputs were normalised"
    if expect is not None:
        values["expected"] = expect
        if accuracy < expect - 2 * _standard_error(expect, n):
            return Finding(f"{role} accuracy", "failed", f"{measured}, expected {expect:.1%}: {advice}", values)
    if accuracy <= guess + 2 * _standard_error(guess, n):
        message = f"{measured}, no better than chance: {advice}; as a control, an untrained teacher is right"
        return Finding(f"{role} accuracy", "warning", message, values)
    return Finding(f"{role} accuracy", "ok", measured, values)


def _standard_error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _order(role: str, said: Tensor, right: Tensor, width: int) -> Finding:
    """Find the order of classes that fits best on every other sample, and see whether it fits the others better."""
    from scipy.optimize import linear_sum_assignment

    confusion = torch.zeros(width, width).index_put_(
        (said[::2], right[::2]), torch.ones(len(said[::2])), accumulate=True
    )
    confusion += 1e-3 * torch.eye(width)  # classes that were not seen stay where they are
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    order = torch.empty(width, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    as_is, permuted = _share_right(said[1::2], right[1::2]), _share_right(order[said[1::2]], right[1::2])
    moved = (order != torch.arange(width)).nonzero().flatten().tolist()
    values = {"accuracy": as_is, "accuracy, permuted": permuted, "classes moved": float(len(moved))}
    # an untrained network gains a little too, but does not lose half of its errors
    if permuted - as_is > LIFT and 1 - permuted < (1 - as_is) / 2:
        which = ", ".join(f"{index} is {int(order[index])}" for index in moved[:4])
        message = (
            f"the {role}'s classes are permuted: with its output {which}{', …' if len(moved) > 4 else ''} its accuracy "
            f"rises from {as_is:.1%} to {permuted:.1%}. Put them into the data's order"
        )
        return Finding(f"{role} classes", "failed", message, values)
    return Finding(f"{role} classes", "ok", f"no other order of the {role}'s classes fits much better", values)


def _scale(role: str, teacher: Frozen, loader: Epochs | Repeatable, task: Task, inputs: Tensor) -> Finding:
    """See whether the teacher is right more often on inputs scaled otherwise."""
    accuracies = {}
    for name, scale in {"as they are": lambda inputs: inputs, **_scales(inputs)}.items():
        said, right = _answers(teacher, _some(loader, task, SAMPLES // 8), task, scale)
        accuracies[name] = _share_right(said, right) if len(right) else 0.0
        n = len(right)
    as_is = accuracies["as they are"]
    best = max(accuracies, key=lambda name: accuracies[name])
    if accuracies[best] - as_is > max(LIFT, 3 * _standard_error(0.5, max(n, 1))):
        message = (
            f"the inputs are not normalised as the {role}'s were: {best} they lift its accuracy from {as_is:.1%} to "
            f"{accuracies[best]:.1%}"
        )
        return Finding(f"{role} inputs", "warning", message, accuracies)
    return Finding(f"{role} inputs", "ok", f"no other scale of the inputs suits the {role} much better", accuracies)


def _scales(inputs: Tensor) -> dict[str, Callable[[Any], Any]]:
    """Return the usual ways to scale inputs, each as a function of inputs like these."""
    mean, std = _channels(inputs)
    std = std.where(std > 0, 1.0)
    low, high = inputs.min(), inputs.max()

    def unit(x: Tensor) -> Tensor:
        return (x - low) / (high - low).clamp(min=1e-12)

    return {
        "standardised to mean 0 and std 1": lambda x: (x - mean) / std,
        "scaled to [0, 1]": unit,
        "scaled to [-1, 1]": lambda x: 2 * unit(x) - 1,
        "scaled to [0, 255]": lambda x: 255 * unit(x),
    }


def _bystanders(method: Method) -> Iterator[Finding]:
    """Find networks in train mode that no player trains: teachers of a user's own method that were not frozen."""
    played = {module for modules in method.players().values() for root in modules for module in root.modules()}
    loose = [
        name
        for name, module in method.named_modules()
        if module.training and module not in played and isinstance(module, (_BatchNorm, _DropoutNd))
    ]
    if loose:
        yield Finding(
            "modes",
            "failed",
            f"nobody trains {loose[:4]}, and yet they are in train mode: wrap the network in limbeck.Frozen, or name it "
            "among the players",
        )


# The terms -----------------------------------------------------------------------------------------------------------


def _weigh(stage: Stage, batch: Batch) -> list[TermCheck]:
    """Differentiate every term by the parameters of its player; nothing is updated between the turns."""
    owned = parameters(stage.method, stage.trains)
    found: dict[str, list[tuple[str, float, float, Tensor]]] = {player: [] for player in owned}
    for turn in stage.method.step(batch, PROGRESS):
        if turn.player not in owned:
            raise ValueError(f"the turn of {turn.player!r}, who is not among the players {sorted(owned)}")
        for name, loss in turn.terms.items():
            gradient = _gradient(loss.weighted, owned[turn.player])
            found[turn.player].append((name, float(loss.value.detach()), loss.weight, gradient))
    return [term for player, own in found.items() for term in _compared(player, own)]


def _gradient(loss: Tensor, own: list[nn.Parameter]) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in own))
    parts = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.detach().flatten().float() for part in parts]).cpu()


def _compared(player: str, own: list[tuple[str, float, float, Tensor]]) -> Iterator[TermCheck]:
    norms = [float(gradient.norm()) for *_, gradient in own]
    cosines: list[dict[str, float]] = [{} for _ in own]
    for a, b in combinations(range(len(own)), 2):
        cosine = float(F.cosine_similarity(own[a][3], own[b][3], dim=0))
        cosines[a][own[b][0]] = cosines[b][own[a][0]] = cosine
    for (name, value, weight, _), norm, others in zip(own, norms, cosines, strict=True):
        share = norm / sum(norms) if sum(norms) else 0.0
        yield TermCheck(player, name, value, weight, norm, share, others)


def _balance(terms: list[TermCheck], shipped: Collection[str]) -> Iterator[Finding]:
    """Find terms that train nothing, that leave nothing to others, or that pull against each other."""
    moved = True
    for term in terms:
        name = f"{term.player}/{term.name}"
        if not math.isfinite(term.value) or not math.isfinite(term.gradient):
            message = (
                f"the term {name!r} is {term.value}, its gradient {term.gradient}: look for a division or root at 0"
            )
            yield Finding("gradients", "failed", message)
            moved = False
        elif term.gradient == 0:
            message = (
                f"the term {name!r} gives its player no gradient: it trains nothing. Perhaps its layers come after what "
                "it should teach, are detached, or the loss is 0 for all"
            )
            yield Finding("gradients", "failed", message, {"value": term.value, "gradient": 0.0})
            moved = False
        elif term.share >= DOMINANT and any(other.gradient for other in terms if other.name in term.cosines):
            message = (
                f"the term {name!r} has {term.share:.2%} of the gradient, and the others next to nothing: lower its "
                "weight, or ask for the weights of other shares (shares=)"
            )
            yield Finding("balance", "warning", message, {"share": term.share})
    if moved:
        yield Finding("gradients", "ok", "every term moves its player")
    for a, b in combinations(terms, 2):
        cosine = a.cosines.get(b.name, 0.0) if a.player == b.player else 0.0
        if cosine < CONFLICT and a.player in shipped:  # a critic's terms are meant to
            message = (
                f"the terms {a.name!r} and {b.name!r} of {a.player!r} pull against each other: cosine {cosine:.2f}"
            )
            yield Finding("conflict", "warning", message, {"cosine": cosine})


def _suggested(terms: list[TermCheck], shares: Mapping[str, float]) -> list[TermCheck]:
    """Return the first player's terms with the weights that give each its share of the gradient's norm.

    Raises:
        ValueError: A term that is not there or has no gradient, or shares that do not add up.
    """
    own = [term for term in terms if term.player == terms[0].player]
    asked: dict[str, str] = {}
    for key, share in shares.items():
        members = [term.name for term in own if term.name == key or term.name.startswith(f"{key}.")]
        if not 0 < share < 1:
            raise ValueError(f"the share of {key!r} must lie in (0, 1), got {share}")
        if not sum(term.gradient for term in own if term.name in members) > 0:
            raise ValueError(f"no term {key!r} with a gradient: there are {[term.name for term in own]}")
        asked |= dict.fromkeys(members, key)
    total = sum(shares.values())
    rest = sum(term.gradient for term in own if term.name not in asked)
    if (rest and total >= 1) or (not rest and not math.isclose(total, 1)):
        raise ValueError(f"shares must add up to {'less than 1' if rest else '1'}, got {total:g}")
    # the others keep their weights, and so their norms; of all terms the sum of the norms stays
    whole = rest / (1 - total) if rest else sum(term.gradient for term in own)
    factors = {
        key: share * whole / sum(term.gradient for term in own if asked.get(term.name) == key)
        for key, share in shares.items()
    }
    return [
        replace(term, suggested=term.weight * factors.get(asked.get(term.name, ""), 1.0)) if term in own else term
        for term in terms
    ]


# The student in the teacher's place ----------------------------------------------------------------------------------


def _identity(method: Method, batch: Batch) -> Iterator[Finding]:
    """See that a term which compares student and teacher is least, and so 0, where the student is the teacher."""
    for part in method.modules():
        if not isinstance(part, Distill) or not part.teachers:
            continue
        with torch.no_grad():
            scene = part.scene(batch, PROGRESS)
        for name, (_, term) in zip(part.objective.names, part.objective.entries, strict=True):
            roles = [source.role for source in term.sources]
            if "student" in roles and any(role in part.teachers for role in roles):
                yield _swapped(name, term, scene, list(part.teachers))


def _swapped(name: str, term: Term, scene: Scene, roles: list[str]) -> Finding:
    """Evaluate a term with what the teacher shows in both roles."""
    title = f"identity {name}"
    of_student = [index for index, source in enumerate(term.sources) if source.role == "student"]
    of_teacher = [index for index, source in enumerate(term.sources) if source.role in roles]
    if len(of_student) != len(of_teacher):
        return Finding(title, "ok", "not checked: it does not compare one place of each")
    if isinstance(term.loss, nn.Module) or any(term.adapters.children()):
        return Finding(title, "ok", "not checked: what it learns stands between student and teacher")
    try:
        shown = [source.read(scene) for source in term.sources]
        swapped = list(shown)
        for mine, theirs in zip(of_student, of_teacher, strict=True):
            swapped[mine] = shown[theirs]
        here, slope_here = _slope(term, shown, of_student)
        there, slope_there = _slope(term, swapped, of_student)
    except BROKEN as error:
        return Finding(title, "ok", f"not checked: {error}")
    values = {
        "value": here,
        "value, student = teacher": there,
        "slope": slope_here,
        "slope, student = teacher": slope_there,
    }
    if abs(there) <= 1e-3 * abs(here) + 1e-6:
        return Finding(title, "ok", f"{name!r} is 0 where the student is the teacher", values)
    if slope_there <= 1e-3 * slope_here + 1e-6:
        return Finding(title, "ok", f"{name!r} is at its minimum where the student is the teacher", values)
    message = (
        f"{name!r} is {there:.3g} where the student is the teacher, and not least there (here it is {here:.3g}): it pulls "
        "the student away from the teacher. Are softmax and temperature the same on both sides?"
    )
    return Finding(title, "warning", message, values)


def _slope(term: Term, shown: list[Any], of_student: list[int]) -> tuple[float, float]:
    """Return a term's value and the norm of its gradient by what the student shows."""
    leaves = {index: shown[index].detach().clone().requires_grad_() for index in of_student}
    value = term.loss(*(leaves.get(index, one) for index, one in enumerate(shown)), **term.options)
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), math.hypot(*(float(slope.norm()) for slope in slopes))


# A short training ----------------------------------------------------------------------------------------------------


def _adam(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda own: torch.optim.Adam(own, lr=rate)


def _overfit(stage: Stage, batch: Batch) -> Iterator[Finding]:
    """Train copies on one batch until the first player's loss has halved."""
    few = pytree.tree_map(lambda leaf: leaf[:OVERFITTED] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)
    losses: list[float] = []
    end = time.perf_counter() + SECONDS
    for loss in chain.from_iterable(_losses(stage, few, rate) for rate in RATES):
        losses.append(loss)
        if loss <= losses[0] / 2 or time.perf_counter() > end:
            break
    start, best = (losses[0], min(losses)) if losses else (math.nan, math.nan)
    values = {"first": start, "best": best, "steps": float(len(losses))}
    fell = f"from {start:.3g} to {best:.3g}"
    if best <= start / 2 or start <= 1e-6:
        yield Finding("overfit", "ok", f"the loss of one batch fell {fell} in {len(losses)} steps", values)
    elif time.perf_counter() > end:
        yield Finding("overfit", "ok", f"not decided: the loss of one batch fell {fell} in {SECONDS:.0f} s", values)
    else:
        message = (
            f"the loss of one batch fell only {fell} in {STEPS} steps: either the student cannot follow, or the loss has "
            "a floor, as soft labels without their entropy taken off"
        )
        yield Finding("overfit", "warning", message, values)


def _losses(stage: Stage, batch: Batch, rate: float) -> Iterator[float]:
    """Yield the first player's loss, step by step, until it is not finite."""
    trial = copy.deepcopy(stage)
    player = next(iter(trial.method.players()))
    optimizers = assign(parameters(trial.method, trial.trains), _adam(rate))
    for _ in range(STEPS):
        try:
            yield play(trial.method, batch, optimizers, PROGRESS)[f"{player}/loss"]
        except FloatingPointError:
            return


def _cost(stage: Stage, loader: Epochs | Repeatable, batch: Batch, epochs: int | None) -> Iterator[Finding]:
    """Estimate how long the training takes, and how much memory."""
    device, method = _device(), stage.method
    wait = torch.get_device_module(device).synchronize
    optimizers = assign(parameters(method, stage.trains), _adam(0.0))  # a step costs the same, and changes nothing
    on_gpu = device.type == "cuda"
    memory = 0.0 if on_gpu else _memory(stage, batch)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    started = time.perf_counter()
    for one in islice(loader, 8):
        play(method, move_data_to_device(one, device), optimizers, PROGRESS)
        wait()
        times.append(time.perf_counter())
        if times[-1] - started > SECONDS:
            break
    # the first batch waits for workers and kernels; it counts where there is no other
    steps = [after - before for before, after in zip([started, *times], times, strict=False)]
    step = statistics.median(steps[1:] or steps)
    epoch = step * len(loader)
    values = {"seconds a step": step, "seconds an epoch": epoch}
    message = f"an epoch of {len(loader)} batches takes about {_duration(epoch)} on {device.type}"
    if epochs is not None:
        values["seconds"] = epoch * epochs
        message += f", {epochs} epochs {_duration(epoch * epochs)}"
    yield Finding("time", "ok", f"{message}; validation comes on top, and stages are taken to be alike", values)
    what = "estimated: weights, gradients, Adam's state, and what backward keeps of a batch"
    if on_gpu:
        memory, what = float(torch.cuda.max_memory_allocated(device)), "the measured peak of torch's memory on the GPU"
    yield Finding("memory", "ok", f"about {memory / 2**20:,.1f} MiB, {what}", {"bytes": memory})


def _memory(stage: Stage, batch: Batch) -> float:
    """Count the bytes of all networks, of gradients and optimizer states, and of what a batch leaves for backward."""
    method = stage.method
    nets = [method, *method.networks().values(), *(teacher.net for _, teacher in teachers_of(method))]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()  # what is kept twice is there once
        return tensor

    for net in nets:
        for tensor in (*net.parameters(), *net.buffers()):
            keep(tensor)
    turns = []  # alive, so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for turn in method.step(batch, PROGRESS):
            turns.append(turn.total)
    trained = sum(p.nbytes for own in parameters(method, stage.trains).values() for p in own)
    return float(sum(kept.values()) + 3 * trained)


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


# What is shown -------------------------------------------------------------------------------------------------------

_COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def console_table(checkup: Checkup) -> Group:
    """Return the findings, and what each term weighs, for `rich.print`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    findings = Table("", "check", "finding", box=box.SIMPLE_HEAD)
    for finding in checkup.findings:
        status = Text(finding.status, _COLOURS[finding.status])
        findings.add_row(status, Text(finding.name), Text(finding.message))  # Text: [brackets] are no markup
    if not checkup.terms:
        return Group(findings)
    asked = any(term.suggested is not None for term in checkup.terms)
    terms = Table("term", box=box.SIMPLE_HEAD)
    for heading in ("value", "weight", "gradient", "share", *(["weight for that share"] if asked else [])):
        terms.add_column(heading, justify="right")
    for term in checkup.terms:
        cells = [f"{number:.3g}" for number in (term.value, term.weight, term.gradient)]
        last = ["–" if term.suggested is None else f"{term.suggested:.3g}"] if asked else []
        terms.add_row(Text(f"{term.player}/{term.name}"), *cells, f"{term.share:.1%}", *last)
    return Group(findings, terms)
