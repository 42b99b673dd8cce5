"""The algorithm box of a paper: who plays, and how one batch is played."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core.batches import count
from limbeck.core.distributed import Counted, average_gradients, is_shared_out, place, shares_of, sharing
from limbeck.core.frozen import Frozen, as_teachers, together
from limbeck.core.objective import Loss, Objective, Scene, Weight, summed
from limbeck.core.options import refuse_call, shown
from limbeck.core.sound import no_network, refuse_unsound
from limbeck.core.task import Batch, Task, default_task

if TYPE_CHECKING:
    from typing_extensions import Self

    from limbeck.core.stage import Stage

Make = Callable[[list[nn.Parameter]], Optimizer]
"""Makes an optimizer of a list of parameters."""
FULL = 1 - 1e-6
"""The stages' shares come to 1, but for rounding."""
PATIENCE = 10
"""Batches of a loop of one's own in which a term may have a gradient of 0 before there is a warning."""
NAMED = 3
"""Parameters that a message names, of many."""


class NoEffectWarning(UserWarning):
    """A term of the objective that moves nothing."""


@dataclass(frozen=True)
class Turn:
    """``player`` descends the weighted sum of ``losses``.

    With ``step=False`` its gradients wait for its next turn. A plain tensor among the losses has weight 1.
    """

    player: str
    losses: Mapping[str, Loss | Tensor]
    step: bool = True

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError(f"{self.player!r} has nothing to learn from: every term of its objective has weight 0")
        losses = {name: loss if isinstance(loss, Loss) else Loss(loss) for name, loss in self.losses.items()}
        object.__setattr__(self, "losses", losses)

    @property
    def terms(self) -> dict[str, Loss]:
        """Each loss with its weight."""
        return self.losses  # type: ignore[return-value]  # __post_init__ saw to it

    @cached_property
    def total(self) -> Tensor:
        """The weighted sum, a scalar."""
        # not sum(): its leading 0 would be one more node of the graph
        first, *rest = (loss.weighted for loss in self.terms.values())
        for loss in rest:
            first = first + loss
        return first


class Method(nn.Module, ABC):
    """A way to train: its players, and how they play one batch.

    The code after a ``yield`` in `step` is the code after that update. ``a + b`` trains by two methods at once, see `add`.
    """

    differentiates_twice = False
    """Whether its losses are made of gradients of the networks, which a backward pass then goes through."""

    @cached_property
    def task(self) -> Task:
        """How batches are fed and measured: classification, where a method does not set it."""
        return default_task()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts, but let those stay in eval mode that were put into it and frozen."""
        kept = put_away(self) if mode else []
        super().train(mode)
        for part in kept:
            part.eval()
        return self

    @abstractmethod
    def players(self) -> dict[str, list[nn.Module]]:
        """Return who learns: the modules of each player, which has one optimizer."""

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> Iterator[Turn]:
        """Play one batch at ``progress`` in [0, 1], turn by turn."""

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that training is for, by name, the one to ship first.

        By default the first module of the first player; adapters and critics stay behind.
        """
        player, (network, *_) = next(iter(self.players().items()))
        return {player: network}

    def adding(self, other: Distill, hard: Weight | None = None) -> Method:
        """Return this method with the terms of another, as `add` asks for it: one that holds a `Distill` adds to that.

        Args:
            other: The other method.
            hard: Weight of the labels, as `add` takes it.

        Raises:
            ValueError: It takes none, which is the default.
        """
        raise ValueError(
            f"{_title(self)} trains {', '.join(self.players())} in a way of its own, and takes no terms of another method: "
            "add methods that train one student by terms, as kd and at"
        )

    @overload
    def __add__(self, other: Method) -> Method: ...
    @overload
    def __add__(self, other: Iterable[Stage]) -> Iterator[Stage]: ...
    def __add__(self, other: Any) -> Any:
        return _sum(self, other) if _adds(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, int) and other == 0:  # so that sum() joins a list of methods
            return self
        return self + other if _adds(other) else NotImplemented

    def __mul__(self, weight: Any) -> Any:
        raise TypeError(
            "a method has no weight: its terms have, as options (alpha=...), or as an objective, limbeck.Distill(student, "
            "teacher, 0.5 * method.objective)"
        )

    __rmul__ = __truediv__ = __mul__

    def __sub__(self, other: Any) -> Any:
        raise TypeError("methods are added, and none is taken away: leave out the one that is not wanted")


class Distill(Method):
    """Offline distillation: the student follows an objective in sight of frozen teachers.

    Args:
        student: The network to train.
        teachers: One network, several by role (``{"teacher": a, "second": b}`` are `T` and ``T.of("second")``), or none.
            They are frozen unless they are `Frozen` already.
        objective: The weighted sum to descend.
        task: How batches are fed and measured; `limbeck.classification` by default.
    """

    shown = frozenset({"student", "input", "target", "ids", "mask", "progress"})
    """The roles of a scene but for the teachers'."""

    def __init__(
        self,
        student: nn.Module,
        teachers: nn.Module | Mapping[str, nn.Module] | None,
        objective: Objective,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(no_network("student", student))
        if not isinstance(objective, Objective):
            raise TypeError(
                f"the objective must be made by limbeck.on(loss, limbeck.S, limbeck.T), got {shown(objective)}"
            )
        self.student, self.objective = student, objective
        self.task = task = task or default_task()
        frozen = as_teachers(teachers)
        self.teachers = nn.ModuleDict(frozen)
        if taken := sorted(self.shown & self.teachers.keys()):
            raise ValueError(f"a teacher cannot play the role {taken[0]!r}: rename it, every scene has that already")
        if task.ask is not None and (moody := [role for role, one in frozen.items() if one.mode != "eval"]):
            raise ValueError(
                f"the {moody[0]} must be in eval mode: {task.name} asks its parts, and buffers would change"
            )
        known = self.shown | self.teachers.keys()
        if unknown := objective.roles() - known:
            raise ValueError(f"the objective reads {sorted(unknown)}, but only {sorted(known)} are there")

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student with the adapters of its objective."""
        return {"student": [self.student, self.objective]}

    def adding(self, other: Distill, hard: Weight | None = None) -> Distill:
        """Return this method with the terms of another; a subclass that is made of other arguments has a way of its own."""
        _check_alike(self, other)
        teachers = together(as_teachers(dict(self.teachers)), as_teachers(dict(other.teachers)))
        return type(self)(
            self.student, teachers, summed(self.objective, other.objective, self.task.hard, hard), self.task
        )

    def scene(self, batch: Batch, progress: float = 0.0) -> Scene:
        """Return what the objective sees of a batch; only networks that it reads are run."""
        task, roles = self.task, self.objective.roles()
        scene = self.read(batch, progress)
        inputs = scene["input"]
        brought = task.traces(batch)  # of teachers that were asked before
        # the student last, since a teacher leaves nothing behind on which its graph would lie; but where a task asks
        # teachers about what the student showed, and not in a stage that trains adapters of the teacher alone
        order = [*self.teachers, "student"] if task.ask is None else ["student", *self.teachers]
        for role in order:
            if role not in roles:
                continue
            if role in brought:
                scene[role] = brought[role]
            elif role == "student":
                shown = task.shows if self.teachers else ()
                scene[role] = task.look(self.student, inputs, {*self.objective.paths(role), *shown})
            else:
                teacher = self.teachers[role]
                scene[role] = task.look(teacher, inputs, self.objective.paths(role), scene.get("student"))
        return scene

    def read(self, batch: Batch, progress: float = 0.0) -> dict[str, Any]:
        """Return what the objective sees of a batch before any network runs."""
        task, roles = self.task, self.objective.roles()
        scene = {"progress": progress, "input": task.inputs(batch)}
        for role, read in (("target", task.target), ("ids", task.ids), ("mask", task.mask)):
            if role in roles:
                scene[role] = read(batch)
        return scene

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Let the student descend the objective."""
        yield Turn("student", self.objective(self.scene(batch, progress)))


@overload
def add(*methods: Method, hard: Weight | None = None) -> Method: ...
@overload
def add(*methods: Method | Iterable[Stage], hard: Weight | None = None) -> Method | Iterator[Stage]: ...
def add(*methods: Method | Iterable[Stage], hard: Weight | None = None) -> Method | Iterator[Stage]:
    """Train by several methods at once: ``limbeck.kd(s, t) + limbeck.at(s, t)``.

    The labels teach once, with weight 1, as in the sums of the classic benchmarks: in RepDistiller's γ · hard + α · kd +
    β · at, γ is 1. All other terms keep the weights that they have in their methods. The order does not matter.

    Where one method smooths the labels (`ls`, `tfkd_reg`), it is the smoothed ones that teach. Stages stay as they are, and
    what is added joins the last, in which the student learns the task.

    Args:
        methods: Two or more, of the same student, task and teachers, each teacher the same network in all. One of them may
            play a batch in a way of its own (`adversarial`, `jacobian`, `weights`), and one may have stages (`fitnets`).
        hard: Weight of the labels; 1 by default, and 0 where no method has a term for them.

    Returns:
        A method; an iterator of stages where one of the methods is that.

    Raises:
        ValueError: Another student, task or teacher, the same term twice, two ways to teach the labels, or a method that
            takes no terms of others: of peers, former selves or assistants, or of a network with branches. Each stage says
            so when it begins; methods by name, as ``"kd+at"``, say so before the first.

    Example:
        >>> from limbeck import add, kd, logits
        >>> student, teacher = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> both = add(kd(student, teacher), logits(student, teacher), hard=0.5)
        >>> dict(zip(both.objective.names, both.objective.weights))
        {'hard': 0.5, 'regression': 1.0, 'soft': 0.9}
    """
    if len(methods) < 2:
        raise ValueError(f"a sum is of two methods or more, got {len(methods)}")
    if strange := [one for one in methods if not _adds(one)]:
        raise TypeError(f"expected methods, or the stages of one, got {type(strange[0]).__name__}")
    return reduce(partial(_sum, hard=hard), methods)  # type: ignore[return-value]  # two at least


def _sum(one: Method | Iterable[Stage], other: Method | Iterable[Stage], hard: Weight | None = None) -> Any:
    if isinstance(one, Method) and isinstance(other, Method):
        if type(one) is Distill:  # whoever plays a batch in a way of its own takes the other's terms
            one, other = other, one
        if not isinstance(other, Distill) or type(other) not in (Distill, type(one)):
            raise ValueError(
                f"{_title(one)} and {_title(other)} each play a batch in a way of their own: add one of them"
            )
        return one.adding(other, hard)
    stages, method = (other, one) if isinstance(one, Method) else (one, other)
    if isinstance(method, Method) and not isinstance(stages, Method):
        return _in_the_last(stages, method, hard)
    raise ValueError("both methods have stages, and there is no saying which of these go together: add one of them")


def _in_the_last(stages: Iterable[Stage], other: Method, hard: Weight | None) -> Iterator[Stage]:
    """Let another method join a staged one where the student learns the task: in the stage that makes the shares full."""
    share = 0.0
    own = [part for parts in other.players().values() for part in parts if part is not _student(other)]
    for stage in stages:
        share += stage.share
        if share > FULL:
            trains = None if stage.trains is None else [*stage.trains, *own]
            yield replace(stage, method=_sum(stage.method, other, hard), trains=trains)
            continue
        _check_alike(stage.method, other)
        taught = [part for part in stage.method.modules() if isinstance(part, Frozen)]
        for teacher in (part for part in other.modules() if isinstance(part, Frozen)):
            if not any(teacher.says_as(one) for one in taught):
                raise ValueError(
                    f"the stage {stage.name!r} has another teacher than the method that is added: a sum is of methods with "
                    "the same, and not with former selves or assistants in its place"
                )
        # a run that is resumed starts what waits from the same weights; no objective waits, whose terms would be looked for
        learns = [part.terms if isinstance(part, Objective) else part for part in own]
        stage.method.add_module("waiting", nn.ModuleList([*getattr(stage.method, "waiting", []), *learns]))
        yield stage
    if share <= FULL:
        raise ValueError(f"the shares of the stages come to {share:.3f}, so that none is the last, which others join")


def _check_alike(one: Method, other: Method) -> None:
    """Raise a ValueError unless two methods train one student for one task."""
    if _student(one) is not _student(other):
        raise ValueError(
            "the methods train different students: a sum is of methods that were given the same network, as stages are too"
        )
    if one.task != other.task:
        unlike = [key for key, value in vars(one.task).items() if value != getattr(other.task, key)]
        raise ValueError(
            f"the methods are for different tasks, {one.task.name} and {other.task.name}, with another {unlike[0]}: give "
            "all the same task="
        )


def _student(method: Method) -> nn.Module:
    return next(iter(method.networks().values()))


def _adds(given: Any) -> bool:
    """Whether it may be part of a sum: a method, or stages, but no network that can be iterated over."""
    return isinstance(given, Method) or (isinstance(given, Iterable) and not isinstance(given, nn.Module | str))


def _title(method: Method) -> str:
    return f"{type(method).__module__}.{type(method).__qualname__}".removeprefix("limbeck.methods.")


def parameters(method: Method, trains: Collection[nn.Module] | None = None) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that each player trains, each once.

    Args:
        method: The method.
        trains: Only parameters of these modules; all by default.

    Raises:
        ValueError: A player has nothing to train, two players share a parameter, or a player and a teacher do; a network
            without weights or with broken ones, or one that cannot learn, as a quantised one.
        TypeError: Stages, each of which has a method of its own.
    """
    _check_method(method)
    taught = {name.rpartition(".")[2]: part for name, part in method.named_modules() if isinstance(part, Frozen)}
    refuse_unsound(method.networks(), {role: teacher.net for role, teacher in taught.items()})
    allowed = None if trains is None else {id(p) for module in trains for p in module.parameters()}
    owner: dict[int, str] = {}
    players: dict[str, list[nn.Parameter]] = {}
    for player, modules in method.players().items():
        own = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        if shared := [owner[key] for key in own if key in owner]:
            raise ValueError(
                f"the players {shared[0]!r} and {player!r} share parameters, so one's update would undo the other's. "
                "Give each its own network: copy.deepcopy(net), with a fresh initialisation"
            )
        owner |= dict.fromkeys(own, player)
        players[player] = [p for key, p in own.items() if allowed is None or key in allowed]
    if idle := [player for player, own_parameters in players.items() if not own_parameters]:
        raise ValueError(f"{idle} have no parameter that requires a gradient: nothing would train")
    _refuse_a_teacher_that_learns(method, players)
    return players


def _refuse_a_teacher_that_learns(method: Method, players: Mapping[str, list[nn.Parameter]]) -> None:
    """A teacher of the weights that train would say what its student says already."""
    taught = {p.data_ptr() for part in method.modules() if isinstance(part, Frozen) for p in part.net.parameters()}
    taught.discard(0)  # of what holds nothing
    for player, own in players.items():
        if any(p.data_ptr() in taught for p in own):
            raise ValueError(
                f"{player!r} shares parameters with its teacher, who would change as it learns. Give the teacher weights "
                "of its own: copy.deepcopy(net)"
            )


def optimizers(method: Method, make: Make | Mapping[str, Make]) -> dict[str, Optimizer]:
    """Return one optimizer for each player.

    It covers the player's adapters too: weight decay pulls identity maps and VID's variances to 0 with all else, and where
    gradients are clipped, one norm is that of all.

    Args:
        method: The method.
        make: Makes an optimizer of a list of parameters, all of them, in groups if that is wanted; or one such function for
            each player. What is not to train is not in the list: ``parameter.requires_grad_(False)`` before.

    Raises:
        TypeError: It is made by what is no function of them, or returns no optimizer.
        ValueError: A player has none, or its optimizer leaves out parameters or holds those of somebody else.

    Example:
        >>> from limbeck import kd
        >>> method = kd(nn.Linear(4, 2), nn.Linear(4, 2))
        >>> list(optimizers(method, lambda params: torch.optim.SGD(params, 0.05)))
        ['student']
    """
    return assign(parameters(method), make, method)


def assign(
    players: Mapping[str, list[nn.Parameter]], make: Make | Mapping[str, Make], method: nn.Module | None = None
) -> dict[str, Optimizer]:
    """Make the optimizer of each player's parameters.

    Args:
        players: The parameters, by player.
        make: Makes an optimizer of them; or one such function for each player.
        method: Where the parameters have their names.

    Raises:
        TypeError: It is made by what is no function of them, or returns no optimizer.
        ValueError: A player has none, or one of other parameters than its own.
    """
    if isinstance(make, Mapping) and (missing := sorted(players.keys() - make.keys())):
        raise ValueError(f"no optimizer for the players {missing}: got {sorted(make)}")
    names = {} if method is None else {id(p): name for name, p in method.named_parameters()}
    made = {name: _made(make[name] if isinstance(make, Mapping) else make, own) for name, own in players.items()}
    for player, optimizer in made.items():
        _refuse_others(player, players[player], optimizer, names)
    return made


def _made(make: Make, own: list[nn.Parameter]) -> Optimizer:
    like = "optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
    refuse_call("the optimizer", make, like, own)
    made = make(own)
    if not isinstance(made, Optimizer):
        raise TypeError(f"the optimizer is made by a function that returns it, {like}, got {shown(made)}")
    return made


def _refuse_others(player: str, own: list[nn.Parameter], optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Find an optimizer that does not train what it was made for, or trains more; frozen parameters do no harm in it."""
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    mine = {id(p) for p in own}
    left_out = [p for p in own if id(p) not in held]
    foreign = [p for key, p in held.items() if key not in mine and p.requires_grad]
    if not left_out and not foreign:
        return
    said = []
    if left_out:
        said.append(f"leaves out {len(left_out)} of its {len(own)} parameters{_by_name(left_out, names)}")
    if foreign:
        said.append(f"holds {len(foreign)} that it was not given{_by_name(foreign, names)}")
    raise ValueError(
        f"the optimizer of {player!r} {' and '.join(said)}: make it of the parameters that the function is given, "
        "optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05), in groups if that is wanted. What is not to "
        "train is frozen before, by parameter.requires_grad_(False), and then not among them"
    )


def _by_name(some: Sequence[nn.Parameter], names: Mapping[int, str]) -> str:
    """Return the first names in brackets, of those that have one."""
    known = [names[id(p)] for p in some if id(p) in names]
    return f" ({', '.join(known[:NAMED])}{', ...' if len(some) > NAMED else ''})" if known else ""


def play(method: Method, batch: Batch, optimizers: Mapping[str, Optimizer], progress: float = 0.0) -> dict[str, float]:
    """Play one batch in your own loop.

    In a process group a batch is this process's part of the global one, of as many samples as everywhere, and gradients are
    averaged: networks that begin alike stay alike. Those of `DistributedDataParallel` and FSDP2 have been averaged by then.

    Args:
        method: The method.
        batch: ``(inputs, targets)`` on the method's device.
        optimizers: One for each player, as `limbeck.optimizers` makes them.
        progress: How far training is, in [0, 1], for weights that change.

    Returns:
        For each player and term, ``player/term`` raw, ``player/term.weighted``, and ``player/loss``, their sum.

    Raises:
        FloatingPointError: A term is NaN or infinite; the player has not been updated by it.
        RuntimeError: A player's gradients still wait when the batch is over.
        TypeError: Stages, each of which has a method of its own; optimizers that are not by player.

    Warns:
        NoEffectWarning: Once, of a term that gives its player no gradient: it does not reach it, or was
            0 in ten batches whose loss was not.
    """
    _check_method(method)
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            f"expected an optimizer for each player, got {shown(optimizers)}: optimizers = limbeck.optimizers(method, "
            "lambda parameters: torch.optim.SGD(parameters, lr=0.05))"
        )
    values: dict[str, float] = {}
    waiting: set[str] = set()
    _, world = place()

    def backward(turn: Turn) -> None:
        optimizer = optimizers[turn.player]
        _watch(method, turn, optimizer)
        _backward(turn)
        average_gradients(p for group in optimizer.param_groups for p in group["params"])
        logs = log(turn)
        told = dict(zip(logs, torch.stack([v.float() for v in logs.values()]).tolist(), strict=True))  # one transfer
        if broken := [name for name, value in told.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"{broken[0]!r} is {told[broken[0]]}: lower the learning rate or its weight")
        values.update(told)

    with sharing(shares(method, [batch])[0] if world > 1 else {}):
        for _ in descend(method, batch, optimizers, progress, waiting, backward):
            pass
    if waiting:
        raise RuntimeError(f"the batch is over, and the gradients of {sorted(waiting)} wait for a turn with step=True")
    return values


def shares(method: Method, batches: Sequence[Batch]) -> list[dict[Counted, Tensor]]:
    """Return by what to weigh the means over labelled or masked positions of each batch of one update.

    Args:
        method: The method, which says what it reads.
        batches: Those of this process, in turn.
    """
    found = [_counts(method, batch) for batch in batches]
    kinds = [kind for kind in found[0] if all(kind in of for of in found)]
    if not kinds:
        return [{} for _ in batches]
    counts = torch.stack([torch.stack([of[kind] for of in found]) for kind in kinds])
    weights = shares_of(counts, torch.tensor(sizes(batches), device=counts.device))
    return [dict(zip(kinds, own, strict=True)) for own in weights.unbind(1)]


def sizes(batches: Sequence[Batch]) -> list[int]:
    """Return how many samples each batch has; where that cannot be said, all count alike."""
    try:
        return [count(batch if not isinstance(batch, Mapping) else dict(batch)) for batch in batches]
    except ValueError:
        return [1 for _ in batches]


def _counts(method: Method, batch: Batch) -> dict[Counted, Tensor]:
    """Count the positions that a method's means may be taken over."""
    roles, counts = reads(method), dict[Counted, Tensor]()
    if "target" in roles and isinstance(target := method.task.target(batch), Tensor):
        known = method.task.known(target)
        counts = {"labels": known.sum(), "samples": known.reshape(len(known), -1).any(1).sum()}
    if "mask" in roles and (mask := method.task.mask(batch)) is not None:
        counts["mask"] = mask.bool().sum()
    return counts


def moves(method: Method, loss: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether a method's loss gives any of the parameters a gradient that is not 0.

    Of parameters that are shared out (FSDP2) no gradient can be asked for, and of compiled code none that is asked for
    again: there it is whether the loss reaches any.

    Raises:
        ValueError: The student's layers are compared, and some lie where no loss reaches them.
    """
    if not loss.requires_grad:
        return False
    reaches, compiled = _traced(loss)
    if compiled or any(is_shared_out(p) for p in parameters):
        return reaches
    try:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        if any(one.paths("student") - {""} for one in objectives_of(method)):
            raise ValueError(
                "a network calls torch.utils.checkpoint with use_reentrant=True, which hides the gradient of the layers "
                "inside from losses that compare them: call it with use_reentrant=False, or compare outputs alone"
            ) from error
        return True  # such checkpointing cannot be asked
    return any(bool(gradient.any()) for gradient in gradients if gradient is not None)


def _traced(loss: Tensor) -> tuple[bool, bool]:
    """Return whether a loss was computed of anything that learns, and whether by code that was compiled."""
    reaches = compiled = False
    waiting, seen = [loss.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reaches |= isinstance(getattr(node, "variable", None), Tensor)
        compiled |= type(node).__name__ == "CompiledFunctionBackward"
        waiting += [before for before, _ in node.next_functions]
    return reaches, compiled


def _watch(method: Method, turn: Turn, optimizer: Optimizer) -> None:
    """Warn once of a term that trains nothing; what has moved its player is not looked at again."""
    watched: dict[str, int] = vars(method).setdefault("_watched", {})  # batches without effect; -1: told, or it has one
    for name, loss in turn.terms.items():
        term = f"{turn.player}/{name}"
        if watched.setdefault(term, 0) < 0:
            continue
        if moves(method, loss.weighted, [p for group in optimizer.param_groups for p in group["params"]]):
            watched[term] = -1
            continue
        watched[term] += bool(loss.value)  # a loss of 0 has nothing to teach in this batch: no labels, say
        if watched[term] >= PATIENCE or not loss.weighted.requires_grad:
            watched[term] = -1
            warn_of(term, f"in {PATIENCE} batches" if loss.weighted.requires_grad else "at all")


def warn_of(term: str, when: str) -> None:
    """Warn of a term that trains nothing."""
    warnings.warn(
        f"the term {term!r} gave its player no gradient {when}: it trains nothing. Perhaps its layers come after what "
        "it should teach, are detached, or lie inside torch.utils.checkpoint, which needs use_reentrant=False; or the loss "
        "is 0 for all",
        NoEffectWarning,
        stacklevel=4,
    )


def called(method: Method) -> Iterator[nn.Module]:
    """Yield what players call: networks and objectives; of lists and dictionaries, which nobody calls, the members."""
    for modules in method.players().values():
        for module in modules:
            yield from module.children() if isinstance(module, nn.ModuleList | nn.ModuleDict) else [module]


def reads(method: nn.Module) -> set[str]:
    """Return the roles that a method reads in a batch; what has no objective to tell may read targets and masks."""
    objectives = objectives_of(method)
    return {role for one in objectives for role in one.roles()} if objectives else {"target", "mask"}


def objectives_of(method: nn.Module) -> list[Objective]:
    """Return the objectives in a method."""
    return [part for part in method.modules() if isinstance(part, Objective)]


def put_away(method: nn.Module) -> list[nn.Module]:
    """Return the parts that somebody froze and put into eval mode: they have parameters, and none of them trains."""
    resting = [(part, list(part.parameters())) for part in method.modules() if not part.training]
    return [part for part, own in resting if own and not any(p.requires_grad for p in own)]


def no_method(given: Any) -> str:
    """Return what to say of what was given as a method and is none."""
    said = f"expected a method, got {shown(given)}"
    if isinstance(given, nn.Module):
        return f"expected a method, got the network {type(given).__name__}: limbeck.plain(net) trains it on the labels"
    if isinstance(given, str):
        return f"{said}: limbeck.distill(student, teacher, data, {given!r}) takes methods by name"
    return f"{said}: make one of networks, as limbeck.kd(student, teacher)"


def _check_method(method: Any) -> None:
    if not isinstance(method, Method) and (isinstance(method, nn.Module) or not isinstance(method, Iterator)):
        raise TypeError(no_method(method))
    if not isinstance(method, Method):
        raise TypeError(
            f"expected a method, got {type(method).__name__}: a staged method gives several, one after the other, "
            "`for stage in limbeck.ban(net): optimizers = limbeck.optimizers(stage.method, ...)`"
        )


def _backward(turn: Turn) -> None:
    turn.total.backward()  # type: ignore[no-untyped-call]


def descend(
    method: Method,
    batch: Batch,
    optimizers: Mapping[str, Optimizer],
    progress: float,
    waiting: set[str],
    backward: Callable[[Turn], None] = _backward,
    update: Callable[[Optimizer], bool] = lambda optimizer: bool(optimizer.step()) or True,
) -> Iterator[Turn]:
    """Play one batch: for each turn, descend its loss, then hand it on.

    Args:
        method: The method.
        batch: The batch.
        optimizers: One for each player.
        progress: In [0, 1].
        waiting: The players whose gradients wait for an update; changed in place, so that a caller who accumulates
            over batches passes the same set again.
        backward: How a turn's loss is differentiated.
        update: How a player steps; returns False to let its gradients wait for the next batch.
    """
    for turn in method.step(batch, progress):
        if turn.player not in optimizers:
            raise ValueError(f"no optimizer for the player {turn.player!r}: got {sorted(optimizers)}")
        optimizer = optimizers[turn.player]
        if turn.player not in waiting:
            optimizer.zero_grad()
            waiting.add(turn.player)
        with _undisturbed([optimizers[other] for other in waiting if other != turn.player]):
            backward(turn)
        if turn.step and update(optimizer):
            waiting.discard(turn.player)
            torch.clear_autocast_cache()  # it holds the weights before the update, which those who go on would see
        yield turn


@contextmanager
def _undisturbed(others: list[Optimizer]) -> Iterator[None]:
    """Keep the waiting gradients of other players free of what this player's loss sends them."""
    held = [(p, p.grad) for other in others for group in other.param_groups for p in group["params"]]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in held:
            parameter.grad = grad


def log(turn: Turn) -> dict[str, Tensor]:
    """Return what is logged of a turn: each term raw and weighted, and their sum, detached."""
    logs = {}
    for name, loss in turn.terms.items():
        told = Loss(loss.value.detach(), loss.weight)  # first, so that no graph is made of the product
        logs[f"{turn.player}/{name}"] = told.value
        logs[f"{turn.player}/{name}.weighted"] = told.weighted
    logs[f"{turn.player}/loss"] = turn.total.detach()
    return logs
