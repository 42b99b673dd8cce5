"""What things are, in words and digests that are alike in every process: data above all, and what functions are made of."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from limbeck.core.files import sha256_of
from limbeck.data.epochs import Epochs
from limbeck.data.randomness import Draws
from limbeck.data.repeatable import Repeatable, Splits, splits
from limbeck.data.source import Encoded

WHOLE, ENDS, OPENED = 2**31, 2**16, 4096
"""Bytes of files that are hashed whole, in their order; of the others, bytes at the head and at the tail of each that is
opened, and how many of them are, evenly spread."""
DEEP, LONG, PRINTED = 6, 16, 200
"""How far described values lie in each other at most; entries of a list, and characters of how a module prints, beyond
which a digest stands for them."""
STANDING = {"workers", "device", "labels", "answers"}
"""Attributes of our loaders that say where they serve, or again what their targets say."""
ORDER = {"ids", "targets", "batch_size", "shuffle", "seed", "batches", "views"}
"""Attributes of our loaders that say which samples they serve, and in which order, but not how these look."""
HELD = ("tensors", "targets", "labels", "data", "samples", "imgs", "images", "indices", "dataset", "datasets")
"""Where data sets of torch, torchvision and most users keep what they serve."""
READ = ("LOAD_CONST", "LOAD_SMALL_INT", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "RETURN_CONST")
"""How Python reads names and constants."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity(data: Any) -> dict[str, Any]:
    """Return what tells data from others: the same for the same data in every process and on every machine.

    Of a `limbeck.data.Data`, all: pixels, rows and targets that are in memory by a digest, and files by their names below
    their common folder, sizes and digests. 2 GB of files are read whole. Of those beyond, the first and last 64 KiB of
    4,096 are read, so that a change that keeps a file's size may not be seen.

    Of a list of batches, all. Of another loader its length, and the batch that `fit` looks at before it trains; of a
    `DataLoader` besides how it batches, and what its data set keeps where those of torch and torchvision keep it
    (``tensors``, ``targets``, ``data``, ``samples``).

    Args:
        data: As `limbeck.fit` takes it.

    Returns:
        Words and digests by ``train``, ``val`` and ``test``, as JSON can hold them.
    """
    loaders = data if isinstance(data, Splits) else splits(data, seed=0)
    return {
        name: None if loader is None else of_loader(loader)
        for name, loader in zip(("train", "val", "test"), loaders[:3], strict=True)
    }


def of_loader(loader: Epochs | Repeatable) -> dict[str, Any]:
    """Return what tells the data of one loader from others, see `identity`."""
    return _of_epochs(loader) if isinstance(loader, Epochs) else _of_given(loader)


def described(value: Any, deep: int = 0) -> Any:
    """Return a value as JSON can hold it: plain values as they are, all else by its name, what it was made of, and digests.

    A function is its name, what it holds (closure, defaults), and the names and constants that it reads; an object its
    class and those of its attributes that its constructor takes by these names, since counters and caches change; a
    module that, and how it prints; a tensor its type, shape and a digest.

    Args:
        value: Anything.
        deep: How far it lies in what is described.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes {_sha(value)}"
    if isinstance(value, Encoded):
        return _encoded(value)
    if isinstance(value, (torch.dtype, torch.device, Path, np.generic, torch.Size)):
        return str(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if deep > DEEP:
        return _name(type(value))
    if isinstance(value, Mapping):
        return {str(key): described(each, deep + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, range)):
        return _row([described(each, deep + 1) for each in value])
    if isinstance(value, (set, frozenset)):
        return _row(sorted((described(each, deep + 1) for each in value), key=str))
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return {"calls": described(value.func, deep + 1), "with": described([value.args, value.keywords], deep + 1)}
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return _function(value, deep)
    if isinstance(value, types.BuiltinFunctionType):
        return _name(value)
    return _object(value, deep)


def looks_of(loader: Epochs | Repeatable) -> dict[str, Any]:
    """Return what decides how the samples of a loader look, whichever are served, and in which order: see `identity`.

    Labels and the batch's size do not; nor the seed, where views cycle.

    Args:
        loader: Of training data.
    """
    if isinstance(loader, Repeatable):
        told = _of_given(loader)
        return {name: told[name] for name in ("samples", "form", "content") if name in told}
    return {name: value for name, value in _of_epochs(loader, loader.example).items() if name not in ORDER}


def differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two descriptions differ: the path of each difference, and both values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*was, *now]):
            yield from differences(was.get(name), now.get(name), f"{path} {name}".strip())
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, f"{path} {index}")
    elif was != now:
        yield path, was, now


def _of_epochs(loader: Epochs, look: Callable[[], Any] | None = None) -> dict[str, Any]:
    """What one of our loaders serves, and in which order: everything it was made of, but for where it serves it.

    Args:
        loader: The loader.
        look: Shows a few samples of a data set of which nothing else is known, by default with their targets.
    """
    made = {name: value for name, value in vars(loader).items() if name not in STANDING and not name.startswith("_")}
    if not loader.shuffle:  # it draws nothing
        made.pop("seed", None)
    if (transforms := getattr(loader, "_transforms", None)) is not None:
        made["transforms"] = transforms
    if "targets" not in made:
        made["targets"] = loader.labels
    normalise = made.pop("normalise", None)
    told = {"loader": type(loader).__name__, **{name: _held(value) for name, value in made.items()}}
    told["normalised"] = None if normalise is None else described([normalise.scale, normalise.shift])
    if isinstance(samples := made.get("samples"), list | tuple) or dataclasses.is_dataclass(samples) or samples is None:
        return told
    return {**told, "a few": _twice(look or loader.few)}


def _of_given(given: Repeatable) -> dict[str, Any]:
    """What a loader of the user's own serves, as far as that is told without reading more than `fit` does."""
    loader: Any = given.loader
    told: dict[str, Any] = {"loader": type(loader).__name__, "batches": len(given)}
    if isinstance(loader, (list, tuple)):
        return {**told, "content": _digest_of(loader)}
    if isinstance(loader, DataLoader):
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        told |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last, "sampler": type(sampler).__name__}
        told["samples"] = _held(loader.dataset)
        if isinstance(loader.sampler, DistributedSampler):  # its batches depend on how many processes there are
            return told
    return {**told, "form": _form(given.first), "a few": _digest_of(given.first)}


def comes_again(given: Repeatable) -> bool:
    """Whether a loader of the user's own shows the same when it is looked at again; else a digest of it says nothing."""
    return _digest_of(given.first) == _digest_of(given.look())


def _twice(look: Callable[[], Any]) -> Any:
    """A digest of what a look shows, if it comes the same twice; else its form alone."""
    shown = []
    for _ in range(2):
        with Draws(0).apart():
            shown.append(look())
    first, again = map(_digest_of, shown)
    return first if first == again else _form(shown[0])


def _held(value: Any, deep: int = 0) -> Any:
    """What a data set keeps, where it is known to; and of what is none, what it is."""
    if isinstance(value, (list, tuple)) and len(value) > LONG:
        return f"{len(value)} entries {_digest_of(value)}"
    if (
        isinstance(value, (Tensor, np.ndarray, Encoded, nn.Module))
        or dataclasses.is_dataclass(value)
        or callable(value)
    ):
        return described(value)
    kept = [name for name in HELD if name in getattr(value, "__dict__", {})]
    if not kept or deep > DEEP:
        return described(value)
    words = {name: _held(getattr(value, name), deep + 1) for name in kept}
    return {"class": type(value).__name__, "length": len(value) if hasattr(value, "__len__") else None, **words}


def _digest_of(value: Any) -> str:
    """A digest of plain values and tensors, whatever they lie in; of other objects the class counts."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _parts(each)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}[".encode()
        for each in value:
            yield from _parts(each)
    elif isinstance(value, (Tensor, np.ndarray)):
        yield _array(value).encode()
    elif isinstance(value, bytes):
        yield value
    elif value is None or isinstance(value, (str, int, float, bool, np.generic)):
        yield repr(value).encode()
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of PIL
        yield f"{value.size}".encode() + value.tobytes()
    else:
        yield _name(type(value)).encode()


def _form(value: Any) -> Any:
    """How a batch is built, without its values."""
    if isinstance(value, Mapping):
        return {str(key): _form(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_form(each) for each in value[:LONG]]
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} of {value.ndim} dimensions"
    return type(value).__name__


def _array(value: Tensor | np.ndarray[Any, Any]) -> str:
    """A tensor's type, shape and digest."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return f"objects {value.shape} {_digest_of(value.tolist())}"
        return f"{value.dtype} {value.shape} {_sha(np.ascontiguousarray(value).tobytes())}"
    tensor = value.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    flat = tensor.cpu().contiguous().flatten().view(torch.uint8)
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {_sha(flat.numpy().data)}"


def _encoded(images: Encoded) -> str:
    """Image files: how many, and a digest of names, sizes and bytes of those that are served."""
    rows = range(len(images.files)) if images.rows is None else images.rows.tolist()
    files = [images.files[row] for row in rows]
    if all(isinstance(file, bytes) for file in files):
        return f"{len(files)} files {_digest_of(files)}"
    return f"{len(files)} files {_of_files([file for file in files if isinstance(file, str)])}"


def _of_files(listed: Sequence[str]) -> str:
    """A digest of files: their names below their common folder, their sizes, and as many of their bytes as `WHOLE` says."""
    home = os.path.commonpath([os.path.dirname(path) for path in listed])
    sizes = [Path(path).stat().st_size for path in listed]
    whole = [read <= WHOLE for read in itertools.accumulate(sizes)]
    beyond = [place for place, known in enumerate(whole) if not known]
    # to open each of a million files would take minutes, at each start
    opened = {*beyond[:: max(1, len(beyond) // OPENED)]}
    found = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # reading waits for the disk, and hashing lets others run
        read = pool.map(_whole, [path for path, known in zip(listed, whole, strict=True) if known])
        ends = pool.map(_ends, [listed[place] for place in sorted(opened)])
        for place, (path, size, known) in enumerate(zip(listed, sizes, whole, strict=True)):
            content = next(read) if known else next(ends) if place in opened else ""
            found.update(json.dumps([Path(os.path.relpath(path, home)).as_posix(), size, content]).encode())
    return found.hexdigest()[:16]


def _whole(path: str) -> str:
    return sha256_of(Path(path))


def _ends(path: str) -> str:
    with open(path, "rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, Path(path).stat().st_size - ENDS))
        return hashlib.sha256(head + file.read(ENDS)).hexdigest()


def _function(value: Any, deep: int) -> Any:
    """A function: its name, what it holds, and what it reads, unless it comes with a library, whose version says that."""
    function = inspect.unwrap(value)
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return _name(function)
    holds: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            holds[name] = described(cell.cell_contents, deep + 1)
        except ValueError:  # it is empty still
            holds[name] = None
    holds |= {f"default {index}": described(each, deep + 1) for index, each in enumerate(function.__defaults__ or ())}
    holds |= {name: described(each, deep + 1) for name, each in (function.__kwdefaults__ or {}).items()}
    if isinstance(value, types.MethodType) and not isinstance(value.__self__, type):
        holds["of"] = described(value.__self__, deep + 1)
    words: dict[str, Any] = {"function": _name(function)}
    if (function.__module__ or "").partition(".")[0] not in ("limbeck", "torch", "torchvision"):
        words["reads"] = " ".join(dict.fromkeys(_read_by(function.__code__)))
        plain = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        holds |= {name: each for name, each in plain.items() if isinstance(each, (bool, int, float, str))}
    if holds:
        words["holds"] = holds
    return words if len(words) > 1 else words["function"]


def _read_by(code: types.CodeType) -> Iterator[str]:
    """The names and constants that a function reads: nearly alike in all versions of Python, as its bytes are not."""
    for step in dis.get_instructions(code):
        value = step.argval
        if isinstance(value, types.CodeType):
            yield from _read_by(value)
        elif value is None or not step.opname.startswith(READ) or isinstance(value, tuple):
            continue
        else:
            yield repr(sorted(value, key=str) if isinstance(value, frozenset) else value)


def made_of(value: Any) -> dict[str, Any]:
    """Return those attributes of an object that its constructor takes by their names, public or not.

    Others may be counters and caches, which change while it is used.
    """
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
    else:
        try:
            names = list(inspect.signature(type(value)).parameters)
        except (TypeError, ValueError):  # made in C
            names = []
    kept = getattr(value, "__dict__", {}) | {
        name: getattr(value, name, None) for name in getattr(value, "__slots__", ())
    }
    found = {name: next((kept[each] for each in (name, f"_{name}") if each in kept), _NONE) for name in names}
    return {name: each for name, each in found.items() if each is not _NONE}


def _object(value: Any, deep: int) -> Any:
    """An object: its class, how it prints if it is a module, and what its constructor took."""
    words = {name: described(each, deep + 1) for name, each in made_of(value).items() if not _is_network(each)}
    if isinstance(value, nn.Module):
        prints = _ADDRESS.sub("", repr(value))
        words["prints"] = prints if len(prints) <= PRINTED else _sha(prints.encode())
    return {"class": _name(type(value)), **words} if words else _name(type(value))


_NONE = object()


def _is_network(value: Any) -> bool:
    """Whether it is described elsewhere: a module, or several."""
    return isinstance(value, nn.Module) or (
        isinstance(value, Sequence) and any(isinstance(each, nn.Module) for each in value)
    )


def _name(thing: Any) -> str:
    """A class's or function's name; that of the script it was started from may change."""
    module = getattr(thing, "__module__", None) or ""
    name = str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)
    return name if module in ("", "__main__", "builtins") else f"{module}.{name}"


def _row(values: list[Any]) -> Any:
    if len(values) <= LONG:
        return values
    return f"{len(values)} entries {_sha(json.dumps(values, sort_keys=True).encode())}"


def _sha(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
