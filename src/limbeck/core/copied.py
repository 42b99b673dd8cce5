"""Copies of networks, whatever hangs on them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def copied(thing: T, memo: dict[int, Any] | None = None) -> T:
    """Return a deep copy of a network, or of what holds networks, as a method does.

    It is what `copy.deepcopy` makes, and more than that: tensors that were computed are copied as values, as the weight of
    a pruned or weight-normed layer, which is computed anew before every call; and functions among the attributes that
    refer to the network, as ``lambda x: self.scale * x`` does, refer to the copy.

    Args:
        thing: What to copy.
        memo: What stands in the copy for an object of the original, by its id.

    Raises:
        TypeError: An attribute cannot be copied, as an open file; the message names it.
    """
    memo = {} if memo is None else memo
    try:
        with torch.no_grad(), _Values():
            twin = copy.deepcopy(thing, memo)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{_named(thing)} cannot be copied, and limbeck looks at networks through copies: {_culprit(thing, error)}. "
            "Make it where it is used, or keep it out of the network"
        ) from error
    for module in _modules(twin):
        _rebind(vars(module), memo)
    return twin


class _Values(TorchFunctionMode):
    """Copies tensors that were computed, which `copy.deepcopy` refuses, as values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return function(*args, **(kwargs or {}))


def _rebind(held: dict[Any, Any] | list[Any], memo: dict[int, Any], deep: bool = True) -> None:
    """Let functions refer to the copies of what they refer to; hooks and the like lie a level deeper."""
    for key, value in [*(held.items() if isinstance(held, dict) else enumerate(held))]:
        if isinstance(value, FunctionType) and any(id(content) in memo for content in _contents(value)):
            held[key] = _rebound(value, memo)
        elif deep and isinstance(value, (dict, list)):
            _rebind(value, memo, deep=False)


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = tuple(CellType(memo.get(id(content), content)) for content in _contents(function))
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    return twin


def _contents(function: FunctionType) -> list[Any]:
    """Return what a function refers to; nothing where a name has no value yet."""
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        return []


def _modules(thing: Any) -> Iterator[nn.Module]:
    """Yield the modules in a network, or in what holds networks."""
    held = [thing] if isinstance(thing, nn.Module) else vars(thing).values() if hasattr(thing, "__dict__") else []
    for one in held:
        if isinstance(one, nn.Module):
            yield from (module for module in one.modules() if not isinstance(module, torch.jit.ScriptModule))


def _named(thing: Any) -> str:
    return f"{'the network ' if isinstance(thing, nn.Module) else ''}{type(thing).__name__}"


def _culprit(thing: Any, error: Exception) -> str:
    """Say which attribute cannot be copied."""
    own = {id(module): module for module in _modules(thing)}
    for module in own.values():
        for name, value in vars(module).items():
            try:
                with torch.no_grad(), _Values():
                    copy.deepcopy(value, {**own, **{id(p): p for p in module.parameters()}})
            except (RuntimeError, TypeError) as reason:
                return f"the attribute {name!r} of its {type(module).__name__} is a {type(value).__name__} ({reason})"
    return str(error)
