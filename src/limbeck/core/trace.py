"""See inside any module while it runs: `record` what named submodules take in and give out."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.jit import ScriptModule
from torch.nn.parallel import DataParallel
from torch.utils.hooks import RemovableHandle

from limbeck.core.distributed import expect_gradient
from limbeck.core.sound import no_network
from limbeck.core.wrapped import wrapped_in

Trace = dict[str, Any]
"""What a network showed: path -> tensor, or whatever a path with a last colon names; ``""`` is its answer."""


@contextmanager
def record(model: nn.Module, paths: Collection[str]) -> Iterator[Trace]:
    """Record what the submodules named by ``paths`` give out while the block runs.

    A path is a dotted module path with, optionally, what to take of it:

    - ``layer3`` is the output of ``model.layer3``;
    - ``fc:in`` is its first input (so pre-activations are reachable);
    - ``rnn:0`` and ``encoder:last_hidden_state`` are entries of a tuple or dict output, ``fc:in:1`` and ``fc:in:mask``
      of its inputs; a mapping's own keys come first, so that ``backbone:0`` is the level ``"0"`` of a pyramid;
    - ``transform:`` is all that ``transform`` gives, whatever it is, ``fc:in:`` all that it takes: lists of ragged
      tensors, say, which are recorded as they are;
    - ``""`` is the model itself.

    Hooks live as long as the block. A module that is called several times shows its last call. What is recorded stays
    as it was: the model goes on with a copy, which it may change in place. On the CPU torch makes that copy when the model
    or whoever reads the trace first writes to it, and never where nobody does; elsewhere it is made at once.

    A compiled model runs as it was written while the block lasts, since compiled code looks for no hooks. In
    `limbeck.fit`, and after `limbeck.compiled`, it has hooks that are compiled with it: then it runs compiled here too.

    Args:
        model: Any module; it is not changed.
        paths: The places to record.

    Yields:
        The trace, filled while ``model`` runs.

    Raises:
        ValueError: A path that does not exist (with the closest that do), or an entry that the output does not have; a
            layer of a TorchScript network, or of one that ``DataParallel`` runs on several devices.
        RuntimeError: A path whose module was not called before the block ended.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with record(net, ["0", "2:in"]) as trace:
        ...     out = net(torch.randn(5, 4))
        >>> trace["0"].shape, trace["2:in"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """
    trace: Trace = {}
    places = {path: locate(model, path) for path in paths}  # all of them, before the first hook is set
    for path, (module, _) in places.items():
        _refuse_unseen(model, path, module)
    taps = vars(model).get(TAPS)
    if taps is not None:
        taps.set(places)
        taps.shown.clear()  # of calls that nobody recorded
    handles = (
        [] if taps is not None else [_watch(module, trace, path, entry) for path, (module, entry) in places.items()]
    )
    try:
        with set_stance("force_eager") if handles and is_compiled(model) else nullcontext():
            yield trace
    finally:
        for handle in handles:
            handle.remove()
    if taps is not None:
        trace.update(taps.take(paths))
    for path, value in trace.items():
        expect_gradient(model, path, value)
    if missing := sorted(set(paths) - trace.keys()):
        raise RuntimeError(f"{type(model).__name__} ran without calling {missing}: its forward skips them")


TAPS = "_limbeck_taps"
"""The attribute of a network with hooks that stay."""


class Taps:
    """Hooks that stay on a compiled network: compiled code goes on with those that it saw when it was made."""

    def __init__(self) -> None:
        self.shown: Trace = {}
        self.handles: dict[str, RemovableHandle] = {}

    def set(self, places: Mapping[str, tuple[nn.Module, list[str]]]) -> None:
        """Set the hooks that are not there yet, of which code that is compiled already knows nothing."""
        new = {path: place for path, place in places.items() if path not in self.handles}
        for path, (module, entry) in new.items():
            self.handles[path] = _watch(module, self.shown, path, entry)
        if new:
            torch._dynamo.reset()

    def take(self, paths: Collection[str]) -> Trace:
        """Return what was shown last, which then is kept here no longer."""
        found = {path: self.shown[path] for path in paths if path in self.shown}
        self.shown.clear()
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles.values():
            handle.remove()
        self.handles.clear()
        self.shown.clear()


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` made something of a network, or of a part of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
        if not isinstance(module, ScriptModule)
    )


def _refuse_unseen(model: nn.Module, path: str, module: nn.Module) -> None:
    """Refuse layers that no hook sees, or sees a part of the batch in."""
    if isinstance(module, ScriptModule):
        raise ValueError(  # noqa: TRY004  # as of a layer that does not exist
            f"{path!r} lies in a TorchScript network, whose layers cannot be seen: give the network that it was made of, "
            "or take a method that compares outputs (kd, dkd, dist, logits)"
        )
    several = next((one for one in model.modules() if isinstance(one, DataParallel) and len(one.device_ids) > 1), None)
    if several is not None:
        raise ValueError(
            f"{path!r} cannot be recorded in a DataParallel network, which shows one device's part of the batch: give the "
            f"network inside, net.module, and devices={len(several.device_ids)} to limbeck.fit"
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
    """Return every submodule by every path its author knows, also inside ``torch.compile`` and ``DataParallel``."""
    if not isinstance(model, nn.Module):
        raise TypeError(no_network("net", model))
    found: dict[str, nn.Module] = {}
    paths, inside = {"": ""}, {"": wrapped_in(model)}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            parent, _, own = name.rpartition(".")
            steps = [paths[parent], "" if own == inside[parent] else own]
            paths[name], inside[name] = ".".join(filter(None, steps)), wrapped_in(module)
            if paths[name]:
                found.setdefault(paths[name], module)
    return found


def _watch(module: nn.Module, trace: Trace, path: str, entry: list[str]) -> RemovableHandle:
    """Set the hook that keeps what ``path`` shows, and hands the model a copy of a tensor that it could overwrite."""
    if entry[:1] == ["in"]:
        return module.register_forward_pre_hook(_Arriving(trace, path, entry[1:] or ["0"]), with_kwargs=True)
    return module.register_forward_hook(_Leaving(trace, path, entry))


class _Arriving:
    """Keeps what a module is given; a class, so that a network with hooks that stay can be saved."""

    def __init__(self, trace: Trace, path: str, keys: list[str]) -> None:
        self.trace, self.path, self.keys = trace, path, keys

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        named = dict(enumerate((*args, *kwargs.values()))) | kwargs
        shown = self.trace[self.path] = _entry(self.path, named, self.keys)
        return tuple(_apart(one) if one is shown and isinstance(one, Tensor) else one for one in args), kwargs


class _Leaving:
    """Keeps what a module gives out."""

    def __init__(self, trace: Trace, path: str, keys: list[str]) -> None:
        self.trace, self.path, self.keys = trace, path, keys

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.trace[self.path] = _entry(self.path, output, self.keys)
        return _apart(output) if isinstance(output, Tensor) else output


def _apart(tensor: Tensor) -> Tensor:
    """Return a copy that shares its memory with the tensor until somebody writes to either of both."""
    if not _copies_on_write(tensor):
        return tensor.clone()
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # memory that is not torch's own: NumPy's, pinned, or that of another process
        return tensor.clone()


def _copies_on_write(tensor: Tensor) -> bool:
    """Whether torch can put off the copy of a tensor."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.is_quantized:
        return False
    if torch._C._are_functorch_transforms_active():  # under vmap it would be one sample after the other
        return False
    # on a GPU torch makes the copy on the default stream, whichever is current; and a torch without it copies at once
    return tensor.is_cpu and hasattr(torch, "_lazy_clone")


def _entry(path: str, value: Any, keys: list[str]) -> Any:
    for key in filter(None, keys):
        try:
            value = entry(value, key)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path!r} asks for {key!r} of {describe(value)}") from error
    if path.split(":")[0] and not path.endswith(":") and not isinstance(value, Tensor):
        raise ValueError(
            f"{path!r} is {describe(value)}, not a tensor: name the entry, e.g. {_suggest(path, value)!r}, or take all of "
            f"it, '{path}:'"
        )
    return value


def entry(value: Any, key: str) -> Any:
    """Return an entry of what a network gave: a mapping's key, a place in a sequence, or a field of a dataclass.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: There is none.
    """
    if isinstance(value, Tensor):
        raise TypeError("an entry of a tensor would be a sample")
    if isinstance(value, Mapping):  # the levels of torchvision's pyramids are named "0", "1", ...
        return value[key] if key in value or not key.isdigit() else value[int(key)]
    return value[int(key)] if key.isdigit() else getattr(value, key)


def describe(value: Any) -> str:
    """Return what ``value`` is, in a few words for an error message."""
    kind = type(value).__name__
    name = f"{'an' if kind[:1].lower() in 'aeio' else 'a'} {kind}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{name} with {list(value)}"
    if fields := _fields(value):
        return f"{name} with {list(fields)}"
    if isinstance(value, (tuple, list)):
        return f"{name} of {len(value)}"
    return name


def tensors_in(value: Any) -> dict[str, Tensor]:
    """Return the tensors in what a network gave, by the code that reads them: ``['scores']``.

    They are those among its entries, and those that lie deeper, ``['heads'][0]``, where there is none.
    """
    if isinstance(value, Mapping):
        entries = {f"[{key!r}]": one for key, one in value.items()}
    elif fields := _fields(value):
        entries = {f".{name}": getattr(value, name) for name in fields}
    else:
        entries = {f"[{at}]": one for at, one in enumerate(value)} if isinstance(value, (tuple, list)) else {}
    tensors = {code: one for code, one in entries.items() if isinstance(one, Tensor)}
    return tensors or {code + deeper: one for code, own in entries.items() for deeper, one in tensors_in(own).items()}


def _fields(value: Any) -> tuple[str, ...]:
    """The names of a dataclass's fields or a named tuple's entries."""
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    return tuple(getattr(value, "_fields", ()))


def _suggest(path: str, value: Any) -> str:
    return f"{path}:{next(iter(value), '0') if isinstance(value, Mapping) else '0'}"
