"""The equation of a paper: a weighted sum of losses, each bound to the places whose tensors it compares."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor, nn

from limbeck.core.options import refuse_call, shown

Scene = Mapping[str, Any]
"""What one batch shows: role -> a `Trace` or a plain value (``input``, ``target``, ``ids``, ``progress``)."""

Weight = float | Callable[[float], float]
"""A number, or a function of the training progress in [0, 1]."""


class Loss(NamedTuple):
    """One term's value and weight, so that logs show both."""

    value: Tensor
    weight: float = 1.0

    @property
    def weighted(self) -> Tensor:
        """``weight * value``."""
        return self.value if self.weight == 1.0 else self.weight * self.value


@dataclass(frozen=True)
class Source:
    """Where a tensor comes from: what ``role`` showed at ``path``, after ``steps``.

    ``S["layer3"]`` is the student's layer 3, ``S["layer3"].via(module)`` the same after an adapter; modules among the
    steps are trained with the objective. ``T.of("second")`` is a teacher of another role.
    """

    role: str
    path: str = ""
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __getitem__(self, path: str) -> Source:
        return replace(self, path=path)

    def of(self, role: str) -> Source:
        """Return the same place in what another role shows."""
        return replace(self, role=role)

    def via(self, *steps: Callable[[Tensor], Tensor]) -> Source:
        """Return the same place seen through further modules or functions."""
        return replace(self, steps=self.steps + steps)

    def read(self, scene: Scene) -> Any:
        """Return the tensor that ``scene`` holds here.

        Raises:
            KeyError: The scene has no such role or path.
        """
        if self.role not in scene:
            raise KeyError(f"nothing plays the role {self.role!r} here: there are {sorted(scene)}")
        value, steps = scene[self.role], self.steps
        if isinstance(value, dict):
            value, steps = self._shown(value)
        elif self.path:
            raise KeyError(f"{self.role!r} is a plain value and has no layer {self.path!r}")
        for step in steps:
            value = step(value)
        return value

    def after(self, done: int) -> str:
        """Return the name of this place after its first steps: ``layer3``, and after one ``layer3 > at.attention_map``.

        A trace that is kept may hold the place as it is after steps that are plain functions, which have names.
        """
        return " > ".join([self.path, *map(_spoken, self.steps[:done])])

    @property
    def plain_steps(self) -> int:
        """How many of its steps, from the first on, are functions whose name tells them from all others."""
        return next((i for i, step in enumerate(self.steps) if "<" in _spoken(step)), len(self.steps))

    def _shown(self, trace: Mapping[str, Any]) -> tuple[Any, tuple[Callable[[Tensor], Tensor], ...]]:
        """Return what a trace shows here, and the steps that are left."""
        if self.path not in trace:
            for done in range(self.plain_steps, 0, -1):
                if (name := self.after(done)) in trace:
                    return trace[name], self.steps[done:]
        return trace[self.path], self.steps


S = Source("student")
"""The student's output; ``S["layer3"]`` is that of a submodule."""
T = Source("teacher")
"""The teacher's output; ``T.of("second")`` is another teacher's."""
X = Source("input")
"""The inputs of the batch."""
Y = Source("target")
"""The targets of the batch."""
M = Source("mask")
"""Which positions of the answers count; None where all do: ``on(soft_target, S, T, mask=M)``."""
IDS = Source("ids")
"""The ids of the batch's samples, the same in every epoch."""


class Term(nn.Module):
    """One loss bound to its places: the positional ones, and those among its options."""

    def __init__(
        self, loss: Callable[..., Tensor], places: tuple[Source, ...], options: Mapping[str, Any], name: str
    ) -> None:
        super().__init__()
        self.loss, self.places, self.name = loss, places, name
        # a plain dict: a module among the options stays the student's own, and DDP sees it once
        self.options = {option: value for option, value in options.items() if not isinstance(value, Source)}
        self.placed = {option: value for option, value in options.items() if isinstance(value, Source)}
        self.sources = (*places, *self.placed.values())
        # an adapter may be shared by several places of one term: ModuleList.parameters() yields it once
        self.adapters = nn.ModuleList(
            step for source in self.sources for step in source.steps if isinstance(step, nn.Module)
        )

    @property
    def of_labels(self) -> bool:
        """Whether the labels teach and nobody else: it reads the student's answer and the targets alone."""
        read = {source.role for source in self.sources} - {"mask"}
        return read == {"student", "target"} and not any(s.path for s in self.sources if s.role == "student")

    @property
    def compares(self) -> tuple[Any, ...]:
        """What it compares, and by which loss: equal for two terms that do the same, but for their options."""
        places = [*enumerate(self.places), *self.placed.items()]
        return _kind(self.loss), *((at, of.role, of.path, *map(_kind, of.steps)) for at, of in places)

    def forward(self, scene: Scene) -> Tensor:
        """Return the loss, a scalar."""
        return self.of([source.read(scene) for source in self.places], scene)

    def of(self, values: Sequence[Any], scene: Scene) -> Tensor:
        """Return the loss of these values in place of what the positional places show."""
        read = {option: source.read(scene) for option, source in self.placed.items()}
        value = self.loss(*values, **self.options, **read)
        if value.ndim:
            raise ValueError(f"the term {self.name!r} must be a scalar, got shape {tuple(value.shape)}")
        return value


class Objective(nn.Module):
    """A weighted sum of terms.

    ``a + b`` joins two; ``weight * a``, ``a * weight`` and ``a / weight`` weigh one. The weight may be a function of the
    training progress in [0, 1]. Terms of weight zero cost nothing: they are not computed, and their places are not
    recorded. Terms of the same name are told apart by a number.
    """

    def __init__(self, terms: list[tuple[Weight, Term]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(term for _, term in terms)
        self.names = _distinct([term.name for _, term in terms])

    @property
    def entries(self) -> list[tuple[Weight, Term]]:
        """Each term with its weight."""
        return list(zip(self.weights, self.terms, strict=True))  # type: ignore[arg-type]  # ModuleList forgets types

    def sources(self) -> list[Source]:
        """Return the places that terms of a weight other than zero read."""
        return [source for weight, term in self.entries if _on(weight) for source in term.sources]

    def roles(self) -> set[str]:
        """Return the roles that are read: the student, the teachers, ``input``, ``target``, ``ids``."""
        return {source.role for source in self.sources()}

    def paths(self, role: str) -> set[str]:
        """Return the layers to record in the network that plays ``role``."""
        return {source.path for source in self.sources() if source.role == role and source.path}

    def forward(self, scene: Scene) -> dict[str, Loss]:
        """Return every active term by name, raw and with its weight at this progress."""
        progress = scene.get("progress", 0.0)
        losses = {}
        for name, (weight, term) in zip(self.names, self.entries, strict=True):
            now = weight(progress) if callable(weight) else weight
            if now != 0.0:
                losses[name] = Loss(term(scene), float(now))
        return losses

    def __add__(self, other: Objective) -> Objective:
        given: Any = other
        if not isinstance(given, Objective):
            raise TypeError(
                f"an objective is added to an objective, got {shown(given)}: limbeck.on(loss, limbeck.S, limbeck.T) makes "
                "one of a loss, and that of a method is its .objective"
            )
        return Objective([*self.entries, *other.entries])

    def __radd__(self, other: int) -> Objective:
        if other == 0:  # so that sum() joins a list of objectives
            return self
        return NotImplemented

    def __sub__(self, other: Any) -> Objective:
        raise TypeError(
            "objectives are added, each with its weight, a + 0.5 * b: leave out the term that is not wanted, and give one "
            "that is to rise a negative weight, a + -0.5 * b"
        )

    __rsub__ = __sub__

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, weight: Weight) -> Objective:
        return self._weighed(operator.mul, weight)

    __rmul__ = __mul__

    def __truediv__(self, weight: Weight) -> Objective:
        return self._weighed(operator.truediv, weight)

    def _weighed(self, by: Callable[[float, float], float], weight: Weight) -> Objective:
        given: Any = weight
        if not isinstance(given, (Real, Tensor)):
            refuse_call("the weight of an objective", weight, "lambda progress: 1 - progress, or a number", 0.0)
        elif by is operator.truediv and not given:
            raise ValueError("the weight of an objective cannot be divided by 0: leave the term out, or weigh it by 0")
        return Objective([(_both(by, own, weight), term) for own, term in self.entries])


def on(loss: Callable[..., Tensor], *sources: Source, name: str | None = None, **options: Any) -> Objective:
    """Return the objective ``loss(*sources, **options)``.

    Args:
        loss: Any function of tensors that returns a scalar, or a module where it learns or remembers.
        sources: The places it compares, in the order of its arguments.
        name: The name in logs, else the function's own.
        options: Keyword arguments of the loss; those that are places, such as ``mask=M``, are read from each batch.

    Raises:
        TypeError: A loss that cannot be called, or something else than places.

    Example:
        >>> from limbeck.losses import soft_target
        >>> objective = 0.9 * on(soft_target, S, T, temperature=4.0)
    """
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            f"the loss must be a function of tensors, or a module that is made, as torch.nn.MSELoss(), got {shown(loss)}"
        )
    given: Sequence[Any] = sources
    for one in given:
        if not isinstance(one, Source):
            layer = f"limbeck.S[{one!r}] of the student, limbeck.T[{one!r}] of the teacher"
            where = layer if isinstance(one, str) else "limbeck.S, limbeck.T, limbeck.X or limbeck.Y"
            raise TypeError(f"the loss compares places, got {shown(one)}: {where}")
    name = name or str(getattr(loss, "__name__", type(loss).__name__.lower()))
    return Objective([(1.0, Term(loss, sources, options, name))])


def summed(one: Objective, other: Objective, hard: Objective, weight: Weight | None = None) -> Objective:
    """Return what two methods teach together: the labels once, and all else of either with its own weight.

    The terms are in the order of their names, so that it does not matter which of the two is the first.

    Args:
        one: What one method teaches.
        other: What the other does.
        hard: What the labels alone teach. Where one method has another term for them, as smoothed labels, that one stands.
        weight: Of the labels; 1 by default, and none where neither method has them.

    Raises:
        ValueError: Both have the same term, or each another one for the labels.
    """
    parts = [[(own, term) for own, term in each.entries if _on(own)] for each in (one, other)]
    labels, lessons = ([[e for e in part if e[1].of_labels is of] for part in parts] for of in (True, False))
    for _, mine in lessons[0]:
        for _, theirs in lessons[1]:
            if (mine.name, mine.compares) == (theirs.name, theirs.compares):
                raise ValueError(
                    f"both methods have the term {mine.name!r}, of the same loss and places: leave one out, and give the "
                    "other a larger weight"
                )
    taught = _labels(labels, hard)
    if weight is None:
        weight = 1.0 if any(labels) else 0.0
    return weight * taught + Objective(sorted(chain(*lessons), key=lambda entry: _order(entry[1])))


def _labels(parts: Sequence[list[tuple[Weight, Term]]], hard: Objective) -> Objective:
    """What the labels teach in both parts, of weight 1 in all."""
    (_, plain) = hard.entries[0]
    unlike = [part for part in parts if any(_does(term) != _does(plain) for _, term in part)]
    if not unlike:
        return hard
    alone: list[list[tuple[Weight, Term]]] = [[(1.0, part[0][1])] if len(part) == 1 else part for part in unlike]
    mine, theirs = alone[0], alone[-1]
    if [(own, *_does(term)) for own, term in mine] != [(own, *_does(term)) for own, term in theirs]:
        names = [" and ".join(term.name for _, term in part) for part in unlike]
        raise ValueError(
            f"the labels teach by {names[0]} in one method and by {names[1]} in the other, and no sum can tell which is "
            "meant: leave one of the methods out"
        )
    weights = [own for own, _ in mine if not callable(own)]
    if len(weights) < len(mine):
        raise ValueError(
            f"the labels teach by {[term.name for _, term in mine]}, whose weights change as the training goes on: a sum "
            "cannot share its own weight out among them"
        )
    return Objective(mine) / sum(weights)


def _does(term: Term) -> tuple[Any, str]:
    """What a term does, options and all."""
    return term.compares, repr(term.options)


def _order(term: Term) -> tuple[str, str]:
    """Where a term stands among others, whichever came first, and alike in every process."""

    def spoken(part: Any) -> Any:
        return [*map(spoken, part)] if isinstance(part, tuple) else getattr(part, "__qualname__", part)

    return term.name, str(spoken(term.compares))


def _on(weight: Weight) -> bool:
    return callable(weight) or weight != 0.0


def _both(by: Callable[[float, float], float], left: Weight, right: Weight) -> Weight:
    if not callable(left) and not callable(right):
        return by(left, right)
    return lambda progress: by(_at(left, progress), _at(right, progress))


def _at(weight: Weight, progress: float) -> float:
    return weight(progress) if callable(weight) else weight


def _kind(function: Any) -> Any:
    """A function is what it is; of modules, each with weights of its own, the type says what they do."""
    if isinstance(function, partial):
        return function.func, function.args, tuple(sorted(function.keywords.items()))
    return type(function) if isinstance(function, nn.Module) else function


def _spoken(function: Any) -> str:
    """A function's name, with what it was given; in angles what is made anew each time: lambdas, modules, methods."""
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{_spoken(function.func)}({', '.join(given)})"
    if not hasattr(function, "__qualname__") or hasattr(function, "__self__"):
        return f"<{type(function).__qualname__}>"
    module = str(function.__module__ or "").removeprefix("limbeck.").removeprefix("methods.")
    return f"{module}.{function.__qualname__}".removeprefix(".")


def _distinct(names: list[str]) -> list[str]:
    numbered = [
        name if names.count(name) == 1 else f"{name}.{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
    # a number may spell a name that is there already: "a", "a", "a.1"
    return numbered if len(set(numbered)) == len(numbered) else _distinct(numbered)
