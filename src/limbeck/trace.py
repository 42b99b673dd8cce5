"""See inside any module while it runs: `record` what named submodules take in and give out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Trace = dict[str, Tensor]
"""What a network showed: path -> tensor; ``""`` is the network's own output."""


@contextmanager
def record(model: nn.Module, paths: Collection[str]) -> Iterator[Trace]:
    """Record what the submodules named by ``paths`` give out while the block runs.

    A path is a dotted module path with, optionally, what to take of it:

    - ``layer3`` is the output of ``model.layer3``;
    - ``fc:in`` is its first input (so pre-activations are reachable);
    - ``rnn:0`` and ``encoder:last_hidden_state`` are entries of a tuple or dict output, ``fc:in:1`` of its inputs;
    - ``""`` is the model itself.

    Hooks live as long as the block. A module that is called several times shows its last call. A compiled model
    must be recorded at its first call: compiled code no longer looks for hooks.

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
    handles = [module.register_forward_hook(_hook(trace, path, entry)) for path, (module, entry) in places.items()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
    if missing := sorted(set(paths) - trace.keys()):
        raise RuntimeError(
            f"{type(model).__name__} ran without calling {missing}: either its forward skips them, or it was compiled "
            "before it was recorded (then record it at its first call, or compile it after distillation)"
        )


def locate(model: nn.Module, path: str) -> tuple[nn.Module, list[str]]:
    """Return the module that ``path`` names and what to take of it: ``["in", "0"]`` for ``fc:in:0``."""
    name, *entry = path.split(":")
    if name and name not in (modules := _modules(model)):
        # a wrong start finds the wrong neighbours: compare the path, then its last part
        close = difflib.get_close_matches(name, modules, n=4, cutoff=0.4) or [
            other for other in modules if other.rsplit(".")[-1] == name.rsplit(".")[-1]
        ]
        hint = f"; the closest are {close[:4]}" if close else f"; there are {list(modules)[:12]}"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}{hint}. `limbeck layers` lists them all.")
    return (modules[name] if name else model), entry


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by the path its author knows, also inside ``torch.compile``."""
    return {
        name.removeprefix("_orig_mod").removeprefix("."): module
        for name, module in model.named_modules()
        if name not in ("", "_orig_mod")
    }


def _hook(trace: Trace, path: str, entry: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        trace[path] = _entry(path, inputs, output, entry)

    return keep


def _entry(path: str, inputs: Any, output: Any, entry: list[str]) -> Tensor:
    if entry[:1] == ["in"]:
        value, keys = inputs, entry[1:] or ["0"]
    else:
        value, keys = output, entry
    for key in keys:
        try:
            value = value[int(key)] if key.isdigit() else value[key]
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
