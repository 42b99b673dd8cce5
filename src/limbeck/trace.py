"""See inside any module while it runs: `record` what named submodules take in and give out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Trace = dict[str, Tensor]
"""What a network showed: path -> tensor; ``""`` is the network's own output."""


@contextmanager
def record(model: nn.Module, paths: Collection[str]) -> Iterator[Trace]:
    """Record what the submodules named by ``paths`` give out while the block runs.

    A path is a dotted module path with, optionally, what to take of it:

    - ``layer3`` is the output of ``model.layer3``;
    - ``fc:in`` is its first input (so pre-activations are reachable);
    - ``rnn:0`` and ``encoder:last_hidden_state`` are entries of a tuple or dict output, ``fc:in:1`` and ``fc:in:mask``
      of its inputs;
    - ``""`` is the model itself.

    Hooks live as long as the block. A module that is called several times shows its last call. What is recorded stays
    as it was: the model goes on with a copy, which it may change in place. A compiled model must be recorded at
    its first call in each mode: code compiled without hooks no longer looks for them, unless
    ``torch._dynamo.config.skip_nnmodule_hook_guards = False`` was set before.

    Args:
        model: Any module; it is not changed.
        paths: The places to record.

    Yields:
        The trace, filled while ``model`` runs.

    Raises:
        ValueError: A path that does not exist (with the closest that do), or an entry that the output does not have.
        RuntimeError: A path that was not called before the block ended.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with record(net, ["0", "2:in"]) as trace:
        ...     out = net(torch.randn(5, 4))
        >>> trace["0"].shape, trace["2:in"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """
    trace: Trace = {}
    places = {path: locate(model, path) for path in paths}  # all of them, before the first hook is set
    handles = [_watch(module, trace, path, entry) for path, (module, entry) in places.items()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
    if missing := sorted(set(paths) - trace.keys()):
        raise RuntimeError(
            f"{type(model).__name__} ran without calling {missing}: either its forward skips them, or it was compiled "
            "before it was recorded: record it at its first call, compile it after distillation, or set "
            "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling"
        )


def locate(model: nn.Module, path: str) -> tuple[nn.Module, list[str]]:
    """Return the module that ``path`` names and what to take of it: ``["in", "0"]`` for ``fc:in:0``."""
    name, *entry = path.split(":")
    if name and name not in (modules := submodules(model)):
        # a wrong start finds the wrong neighbours: compare the path, then its last part
        close = difflib.get_close_matches(name, modules, n=4, cutoff=0.4) or [
            other for other in modules if other.rsplit(".")[-1] == name.rsplit(".")[-1]
        ]
        hint = f"; the closest are {close[:4]}" if close else f"; there are {list(modules)[:12]}"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}{hint}. `limbeck layers` lists them all.")
    return (modules[name] if name else model), entry


def submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every submodule by every path its author knows, also inside ``torch.compile``."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if path := ".".join(part for part in name.split(".") if part != "_orig_mod"):
            found.setdefault(path, module)
    return found


def _watch(module: nn.Module, trace: Trace, path: str, entry: list[str]) -> RemovableHandle:
    """Set the hook that keeps what ``path`` shows, and hands the model a copy of a tensor that it could overwrite."""

    def arrive(module: nn.Module, args: Any, kwargs: Any) -> Any:
        named = dict(enumerate((*args, *kwargs.values()))) | kwargs
        trace[path] = _entry(path, named, entry[1:] or ["0"])
        copied = [value.clone() if value is trace[path] else value for value in args]
        return tuple(copied), kwargs

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        trace[path] = _entry(path, output, entry)
        return output.clone() if isinstance(output, Tensor) else output

    if entry[:1] == ["in"]:
        return module.register_forward_pre_hook(arrive, with_kwargs=True)
    return module.register_forward_hook(leave)


def _entry(path: str, value: Any, keys: list[str]) -> Tensor:
    for key in keys:
        entries = {} if isinstance(value, Tensor) else value  # an entry of a tensor would be a sample
        try:
            value = entries[int(key)] if key.isdigit() else entries[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path!r} asks for {key!r} of {describe(value)}") from error
    if path.split(":")[0] and not isinstance(value, Tensor):
        raise ValueError(f"{path!r} is {describe(value)}, not a tensor: name the entry, e.g. {_suggest(path, value)!r}")
    return value  # type: ignore[no-any-return]  # the model's own output may be anything: a task reads it


def describe(value: Any) -> str:
    """Return what ``value`` is, in a few words for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _suggest(path: str, value: Any) -> str:
    return f"{path}:{next(iter(value), '0') if isinstance(value, Mapping) else '0'}"
