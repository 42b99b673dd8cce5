"""A network that only teaches."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Mode = Literal["eval", "batch_stats", "train"]


class Frozen(nn.Module):
    """A network that teaches and never trains.

    It is a view: its weights are the given network's own storage, seen without gradients, in a module tree of its
    own; the given network keeps its mode, its hooks and its gradients. Since no parameter needs a gradient, its outputs
    enter the autograd graph only where its *inputs* need one (Jacobian matching). It lies outside `parameters()` and
    `state_dict()`, so that no optimizer, checkpoint or DDP bucket ever meets it; `.to()` moves it.

    Args:
        net: The network.
        mode: ``"eval"``: as it would be deployed. ``"batch_stats"``: batch norm uses the batch's own statistics (what AB
            and OFD did, by accident or not). ``"train"``: that and dropout. Buffers never change in any mode.
        inputs: Makes what the network is fed of what the student is fed: another size or normalisation, other tokens.
        output: Finds the answer in what the network returns; by default as the student's is found.
        classes: Which of the network's outputs each output of the student is, ``{student's: teacher's}`` or a list of the
            teacher's; the others are left out, so that a softmax is one over the common classes. `matched` finds them
            by name. None: all, in the same order.

    Example:
        >>> larger = Frozen(nn.Flatten(), inputs=nn.Upsample(scale_factor=2), classes={0: 3, 1: 0})
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "eval",
        *,
        inputs: Callable[[Any], Any] | None = None,
        output: Callable[[Any], Any] | None = None,
        classes: Mapping[int, int] | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("eval", "batch_stats", "train"):
            raise ValueError(f"mode must be 'eval', 'batch_stats' or 'train', got {mode!r}")
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"expected a network to teach, got {type(net).__name__}: limbeck.SklearnTeacher makes one of a model of "
                "scikit-learn"
            )
        self.mode = mode
        # tuples keep modules from being registered
        self._hidden = (_view(net),)
        self._seen = (inputs, output)
        self.classes = None if classes is None else _positions(classes)
        self.train()

    @property
    def net(self) -> nn.Module:
        """The network, to look into; train the original instead."""
        return self._hidden[0]

    @property
    def output(self) -> Callable[[Any], Any] | None:
        """Finds the answer in what the network returns, where it is not found as the student's."""
        return self._seen[1]

    def inputs(self, inputs: Any) -> Any:
        """Return what the network is fed of what the student is fed."""
        return inputs if self._seen[0] is None else self._seen[0](inputs)

    def translate(self, answer: Any) -> Any:
        """Return an answer, (N, ..., K), in the student's classes."""
        if self.classes is None:
            return answer
        if max(self.classes) >= answer.shape[-1]:
            raise ValueError(f"classes names the teacher's output {max(self.classes)}, but it has {answer.shape[-1]}")
        return answer[..., self.classes]

    def says_as(self, other: Frozen) -> bool:
        """Whether ``other`` is a view of the same weights, fed and read alike."""
        views = [(one.mode, one._seen, one.classes, _weights(one.net)) for one in (self, other)]
        return self is other or (views[0] == views[1] and bool(views[0][-1]))

    def again(self, mode: Mode | None = None) -> Frozen:
        """Return another view of the same weights, fed and read alike, which moves alone."""
        fed, read = self._seen
        return Frozen(self.net, mode or self.mode, inputs=fed, output=read, classes=self.classes)

    def train(self, mode: bool = True) -> Frozen:
        """Assert the teacher's own mode again, whatever is asked for."""
        self.training = False
        self.net.train(self.mode == "train")
        if self.mode == "batch_stats":
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        if self.mode == "eval":
            return self.net(*args, **kwargs)
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return torch.func.functional_call(self.net, buffers, args, kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.net._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def frozen(net: nn.Module, mode: Mode = "eval") -> Frozen:
    """Return ``net`` as a teacher; one that is frozen already stays as it is."""
    return net if isinstance(net, Frozen) else Frozen(net, mode)


def matched(student: Sequence[str], teacher: Sequence[str], same: Mapping[str, str] | None = None) -> dict[int, int]:
    """Return which output of a teacher is which of the student's, for `Frozen`'s ``classes``, by the names of the classes.

    Args:
        student: The names of the student's classes, in the order of its outputs: ``data.classes``.
        teacher: Those of the teacher's.
        same: The teacher's name for a class of the student's, where they differ: ``{"automobile": "car"}``.

    Raises:
        ValueError: A class of the student's that the teacher does not know, with the closest that it does.

    Example:
        >>> matched(["cat", "car"], ["automobile", "bird", "cat"], {"car": "automobile"})
        {0: 2, 1: 0}
    """
    places, same = {name: place for place, name in enumerate(teacher)}, same or {}
    for name in student:
        if same.get(name, name) not in places:
            close = difflib.get_close_matches(name, places, n=3) or list(places)[:6]
            raise ValueError(
                f"the teacher has no class {same.get(name, name)!r}; it has {close}: say which is meant, {{{name!r}: ...}}"
            )
    return {place: places[same.get(name, name)] for place, name in enumerate(student)}


def _positions(classes: Mapping[int, int] | Sequence[int]) -> list[int]:
    if isinstance(classes, Mapping):
        if sorted(classes) != list(range(len(classes))):
            raise ValueError(
                f"classes must name a teacher's output for each output of the student, 0 to {len(classes) - 1}, got "
                f"{sorted(classes)}"
            )
        classes = [classes[place] for place in range(len(classes))]
    if not classes or min(classes) < 0:
        raise ValueError(f"classes must be outputs of the teacher, from 0 on, got {list(classes)}")
    return list(classes)


def bare(net: nn.Module) -> nn.Module:
    """Return the user's network, whether frozen or not: the one whose layers have the user's names."""
    return net.net if isinstance(net, Frozen) else net


def _view(net: nn.Module) -> nn.Module:
    """Copy the module tree but not the parameters: these are shared, without gradients; buffers are copied."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in net.parameters()}
    try:
        return copy.deepcopy(net, shared)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"the teacher {type(net).__name__} cannot be copied ({error}). Drop what is not a module, parameter or "
            "buffer from its attributes: non-leaf tensors, open files, lambdas bound to devices"
        ) from error


def _weights(net: nn.Module) -> list[tuple[str, int, torch.Size]]:
    """Where the weights of a network lie."""
    return [(name, p.data_ptr(), p.shape) for name, p in net.named_parameters()]


def together(some: Mapping[str, Frozen], others: Mapping[str, Frozen]) -> dict[str, Frozen]:
    """Return the teachers of two methods by role.

    Raises:
        ValueError: They have different networks in one role.
    """
    for role in sorted(some.keys() & others.keys()):
        if not some[role].says_as(others[role]):
            raise ValueError(
                f"the methods have different networks as their {role}, or see one in different ways (mode, inputs, output, "
                "classes): give both the same, teacher = limbeck.Frozen(net)"
            )
    return {role: {**others, **some}[role] for role in sorted(some.keys() | others.keys())}


def as_teachers(teachers: nn.Module | Mapping[str, nn.Module] | None) -> dict[str, Frozen]:
    """Return teachers by role; a single one plays ``"teacher"``."""
    if teachers is None:
        return {}
    if isinstance(teachers, nn.Module):
        teachers = {"teacher": teachers}
    return {role: frozen(net) for role, net in teachers.items()}
