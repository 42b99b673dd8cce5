"""Whether networks can do what is asked of them: found before anything is trained or measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from limbeck.core.wrapped import unwrapped

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types in which networks compute: their tensors are cast from one to another."""


def flaw(net: nn.Module) -> str | None:
    """Return what is wrong with a network whatever it is for, as the end of a sentence that begins with its name."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    for name, value in tensors:
        if is_lazy(value):
            return f"has lazy layers without weights ({name}): run one batch through it first, net(inputs)"
        if value.is_meta:
            return (
                f"has shapes and no weights, on the device 'meta' ({name}): net.to_empty(device='cpu'), and then load "
                "its weights"
            )
    broken = next((name for name, value in _must_be_finite(net) if not bool(value.isfinite().all())), None)
    if broken is not None:
        return (
            f"has weights that are NaN or infinite ({broken}), and answers nothing: load others. A training that diverged "
            "leaves such; lower its learning rate"
        )
    return None


def no_network(name: str, value: Any, call: str = "") -> str:
    """Return what to say of what was given as a network and is none.

    Args:
        name: Of the argument.
        value: What came.
        call: How the function is called, for arguments in the wrong order.
    """
    wanted = f"{name} must be a network (torch.nn.Module)"
    if isinstance(value, str):
        return (
            f"{wanted}, got the string {value!r}: make it, limbeck.zoo.network({value!r}, num_classes, shape). "
            "limbeck.distill takes names too"
        )
    if isinstance(value, type):
        return f"{wanted}, got the class {value.__name__}: call it, {value.__name__}(...)"
    if isinstance(value, Sequence) and value and all(isinstance(one, nn.Module) for one in value):
        return f"{name} must be one network, got {len(value)}: limbeck.Ensemble makes one of several"
    if isinstance(value, Mapping) and value and all(isinstance(one, Tensor) for one in value.values()):
        return f"{wanted}, got its weights alone, a {type(value).__name__}: net.load_state_dict(...) into a network"
    if hasattr(value, "predict"):
        return (
            f"{wanted}, got {type(value).__name__}: limbeck.SklearnTeacher makes a teacher of a model of scikit-learn"
        )
    return f"{wanted}, got {type(value).__name__}" + (f". The order is {call}" if call else "")


def refuse_unsound(learners: Mapping[str, nn.Module], teachers: Mapping[str, nn.Module]) -> None:
    """See that networks can learn, and others teach.

    Args:
        learners: Networks that are trained, by name.
        teachers: Frozen ones, by role; each is looked at as it is now.

    Raises:
        ValueError: A network has a `flaw`; one that is to learn is quantised, or has no parameter that could.
    """
    for role, teacher in teachers.items():
        if wrong := flaw(teacher):
            raise ValueError(f"the {role} ({_kind(teacher)}) {wrong}")
    for name, net in learners.items():
        if wrong := flaw(net) or _cannot_learn(net):
            raise ValueError(f"the network {name!r} ({_kind(net)}) {wrong}")


def quantised(net: nn.Module) -> str | None:
    """Return the first layer of a network whose weights are integers; None where there is none."""
    return next((name for name, part in net.named_modules() if ".quantized." in f"{type(part).__module__}."), None)


def _cannot_learn(net: nn.Module) -> str | None:
    if (layer := quantised(net)) is not None:
        return (
            f"is quantised ({layer}): its weights are integers, which nothing trains. Train the network that it was made "
            "of, and quantise that afterwards, as limbeck.export does (int8)"
        )
    own = list(net.parameters())
    if not own:
        return "has no parameters: there is nothing to train. Layers in a plain list are none of it: use nn.ModuleList"
    if not any(p.requires_grad for p in own):
        return "is frozen, with no parameter that requires a gradient: net.requires_grad_(), or freeze fewer layers"
    return None


def _must_be_finite(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, and the statistics of norms; other buffers may be masks of -inf."""
    yield from ((name, value) for name, value in net.named_parameters() if value.dtype in FLOATS)
    for path, part in net.named_modules():
        if isinstance(part, _NormBase):
            yield from ((f"{path}.{name}", value) for name, value in part.named_buffers() if value.dtype in FLOATS)


def _kind(net: nn.Module) -> str:
    return type(unwrapped(net)).__name__
