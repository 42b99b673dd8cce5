"""The equation of a paper: a weighted sum of losses, each bound to the places whose tensors it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

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
        value = scene[self.role]
        if isinstance(value, dict):
            value = value[self.path]
        elif self.path:
            raise KeyError(f"{self.role!r} is a plain value and has no layer {self.path!r}")
        for step in self.steps:
            value = step(value)
        return value


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
        # an adapter may be shared by several places of one term: ModuleList.parameters() yields it once
        self.adapters = nn.ModuleList(
            step for source in self.sources for step in source.steps if isinstance(step, nn.Module)
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """All places that the term reads."""
        return *self.places, *self.placed.values()

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

    ``a + b`` joins two, ``weight * a`` weighs one; the weight may be a function of the training progress in [0, 1].
    Terms of weight zero cost nothing: they are not computed, and their places are not recorded. Terms of the same
    name are told apart by a number.
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
        return Objective([*self.entries, *other.entries])

    def __radd__(self, other: int) -> Objective:
        if other == 0:  # so that sum() joins a list of objectives
            return self
        return NotImplemented

    def __rmul__(self, weight: Weight) -> Objective:
        return Objective([(_times(weight, own), term) for own, term in self.entries])


def on(loss: Callable[..., Tensor], *sources: Source, name: str | None = None, **options: Any) -> Objective:
    """Return the objective ``loss(*sources, **options)``.

    Args:
        loss: Any function of tensors that returns a scalar, or a module where it learns or remembers.
        sources: The places it compares, in the order of its arguments.
        name: The name in logs, else the function's own.
        options: Keyword arguments of the loss; those that are places, such as ``mask=M``, are read from each batch.

    Example:
        >>> from limbeck.losses import soft_target
        >>> objective = 0.9 * on(soft_target, S, T, temperature=4.0)
    """
    name = name or str(getattr(loss, "__name__", type(loss).__name__.lower()))
    return Objective([(1.0, Term(loss, sources, options, name))])


def _on(weight: Weight) -> bool:
    return callable(weight) or weight != 0.0


def _times(left: Weight, right: Weight) -> Weight:
    if not callable(left) and not callable(right):
        return left * right
    return lambda progress: _at(left, progress) * _at(right, progress)


def _at(weight: Weight, progress: float) -> float:
    return weight(progress) if callable(weight) else weight


def _distinct(names: list[str]) -> list[str]:
    numbered = [
        name if names.count(name) == 1 else f"{name}.{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
    # a number may spell a name that is there already: "a", "a", "a.1"
    return numbered if len(set(numbered)) == len(numbered) else _distinct(numbered)
