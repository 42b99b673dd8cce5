"""A network that only teaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
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
    """

    def __init__(self, net: nn.Module, mode: Mode = "eval") -> None:
        super().__init__()
        if mode not in ("eval", "batch_stats", "train"):
            raise ValueError(f"mode must be 'eval', 'batch_stats' or 'train', got {mode!r}")
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"expected a network to teach, got {type(net).__name__}: limbeck.SklearnTeacher makes one of a model of "
                "scikit-learn"
            )
        self.mode = mode
        self._hidden = (_view(net),)  # a tuple keeps it from being registered as a submodule
        self.train()

    @property
    def net(self) -> nn.Module:
        """The network, to look into; train the original instead."""
        return self._hidden[0]

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


def as_teachers(teachers: nn.Module | Mapping[str, nn.Module] | None) -> dict[str, Frozen]:
    """Return teachers by role; a single one plays ``"teacher"``."""
    if teachers is None:
        return {}
    if isinstance(teachers, nn.Module):
        teachers = {"teacher": teachers}
    return {role: frozen(net) for role, net in teachers.items()}
