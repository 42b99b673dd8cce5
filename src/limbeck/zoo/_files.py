"""What weights a file holds: a usual checkpoint of any kind, known by its content; nothing that is pickled in it is run."""

from __future__ import annotations

import codecs
import io
import os
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.files import Damaged, read
from limbeck.zoo._runs import how_far, in_run, is_checkpoint, so_far

REMEDY = "take another copy of it, or write it again: torch.save(net.state_dict(), path)"
NESTED = 3
"""Dictionaries within dictionaries that are looked into; those of Lightning, timm and most trainers have two at most."""
NO_WEIGHTS = re.compile(r"optim|sched|scaler")
"""Begins the names of what lies beside weights and has names of weights too."""
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that files of torch before 1.6 begin with."""
ZIP = b"PK\x03\x04"
STATE = "write its weights where it can be loaded, torch.save(net.state_dict(), path), and name that file"

BEGINS = {
    b"version https://git-lfs": "a git-lfs pointer in place of the file: `git lfs pull` fetches it",
    b"/annex/objects": "a git-annex pointer in place of the file: `git annex get` fetches it",
    b"\x93NUMPY": f"one array of numpy, where tensors by name are needed: {STATE}",
    b"\x89HDF\r\n": f"an HDF5 file, as Keras writes it: {STATE}",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"GGUF": f"a GGUF file, of quantised weights: {STATE}",
}


class Candidate(NamedTuple):
    """One dictionary of tensors in a file, and the names of the dictionaries that it lies in."""

    key: str
    tensors: Mapping[str, Tensor]
    others: Mapping[str, Any]  # of its entries, those that are no tensors


class Weights(NamedTuple):
    """What a file says.

    Args:
        file: As the user named it.
        candidates: Its dictionaries of tensors; which of them is meant, the network says.
        key: Which the user asked for.
        facts: What the file says of the network.
        news: What the user should know of where they come from.
    """

    file: str
    candidates: list[Candidate]
    key: str | None
    facts: Mapping[str, str]
    news: str = ""


def weights_in(words: str) -> Weights:
    """Read the weights that ``FILE``, ``FILE:KEY``, ``RUN`` or ``RUN:NETWORK`` names.

    Raises:
        ValueError: There is no such file, it is damaged, or holds no weights; the text says what it is.
    """
    place, key = split_key(words)
    path = in_run(place, key) if place.is_dir() else place
    if not path.is_file():
        what = "is no ordinary file" if path.exists() else "there is no such file of weights"
        raise ValueError(f"{what}: {path.absolute()}; after '@' comes a file, a run's folder, 'pretrained' or 'random'")
    if place.is_dir() and path.suffix == ".safetensors":
        key = None  # it has named the file
    if refused := _stranger(path):
        raise ValueError(f"{path} is {refused}")
    if not _is_torch(path):
        tensors, facts = read(path, REMEDY, ".safetensors")
        return Weights(words, _nonempty([Candidate("", tensors, {})], path), key, facts)
    content = _torch(path)
    if is_checkpoint(content):
        name, state, facts = so_far(content, key, place)
        return Weights(words, [Candidate(name, state, {})], None, facts, how_far(content, place))
    if isinstance(content, Mapping):
        news = how_far(content, place) if place.is_dir() else ""
        return Weights(words, _nonempty(list(_candidates(content)), path, content), key, {}, news)
    raise ValueError(_no_mapping(path, content))


def split_key(words: str) -> tuple[Path, str | None]:
    """Split ``FILE:KEY``; a colon may be part of a file's name, and that comes first."""
    whole = Path(os.path.expanduser(words))
    file, colon, key = words.rpartition(":")
    part = Path(os.path.expanduser(file))
    return (part, key) if colon and key and file and part.exists() and not whole.exists() else (whole, None)


def facts_in(words: str) -> Mapping[str, str]:
    """Return what a file of weights says of itself, without its tensors where that can be; nothing if it cannot be read."""
    place, key = split_key(words)
    try:
        path = in_run(place, key) if place.is_dir() else place
        if path.suffix == ".ckpt" and path.is_file():
            return weights_in(words).facts
        if not path.is_file() or _is_torch(path):
            return {}
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as opened:
                return opened.metadata() or {}
        except SafetensorError:
            return {}
    except ValueError:
        return {}  # whoever reads the weights themselves is told


# what a file is ------------------------------------------------------------------------------------------------------


def _stranger(path: Path) -> str:
    """Say what a file is that no weights can be read from, and what to do; empty if they can."""
    head = _head_of(path)
    if not head:
        return "empty: take another copy of it"
    for begin, what in BEGINS.items():
        if head.startswith(begin):
            return what
    if _is_torch(path):
        return _stranger_in_zip(path) if head.startswith(ZIP) else ""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # safetensors, and its own bound
        return ""
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return f"an ONNX graph, to run and not to train: {STATE}"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite graph: {STATE}"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if head[:1] == b"\x80":
        return f"a pickle, which could run any code and is not opened: {STATE}"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        text = ""
    if text and "\0" not in text:
        return f"a text file, which begins with {text.strip()[:40]!r}, and holds no weights: {REMEDY}"
    if path.suffix == ".safetensors":
        return ""  # so it says, and whoever reads it finds the damage
    return f"no file of weights that can be told by its content, which begins with {head[:8]!r}: {REMEDY}"


def _stranger_in_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as parts:
            names = parts.namelist()
    except zipfile.BadZipFile:
        return f"damaged: it was cut short, or changed. {REMEDY[0].upper()}{REMEDY[1:]}"
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return (
            "an archive of TorchScript, which holds a program: write its weights, "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt'), and name that file"
        )
    if "data.pkl" in inner:
        return ""
    if any(name.endswith(".npy") for name in names):
        return f"an archive of numpy arrays (.npz): {STATE}"
    if any(name.endswith(("archive_format", "archive_version", "serialized_exported_program.json")) for name in names):
        return f"a program of torch.export (.pt2): {STATE}"
    return f"a zip archive of {some(names)}, and no file of torch: unpack it first"


def _is_torch(path: Path) -> bool:
    """Whether a file is one of `torch.save`, of any version, and not of safetensors."""
    head = _head_of(path)
    return head.startswith(ZIP) or LEGACY in head[:32]


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


# a file of torch -----------------------------------------------------------------------------------------------------


class Unread:
    """Stands for an object of a pickle that is no tensor, whatever made it: nothing of that is imported, or run."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_module(self) -> bool:
        return isinstance(self.state, Mapping) and "_modules" in self.state


class _Filled:
    """Stands for a dictionary of another class, whose entries are read."""

    def __new__(cls, *_: Any, **__: Any) -> Any:  # the one dictionary that torch lets have entries, and attributes too
        return OrderedDict()


def _torch(path: Path) -> Any:
    """Read a file of `torch.save`, of any version; classes in it that are no tensors are replaced by stand-ins."""
    zipped = _head_of(path).startswith(ZIP)
    try:
        with torch.serialization.safe_globals(_stand_ins(path, zipped)):
            if zipped:
                return read(path, REMEDY, ".ckpt")
            content = io.BytesIO(path.read_bytes())  # of a path torch would believe the suffix
            return torch.load(content, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a reader of a broken file raises anything
        if isinstance(error, Damaged) and error.__cause__ is None:
            raise
        raise Damaged(f"{path} cannot be read as weights of torch ({_reason(error)}): {REMEDY}") from error


def _reason(error: Exception) -> str:
    """Return why torch could not read a file, without its advice to trust it."""
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Weights only load failed"):
        lines = [line for line in lines[1:] if not line.startswith(("Please file an issue", "Check the doc"))] or lines
    if "persistent_load of storage" in lines[0]:
        return "a whole network was pickled in it, by torch before 1.6"
    return lines[0].strip()[:200]


def _stand_ins(path: Path, zipped: bool) -> list[Any]:
    """Return what stands for the classes and functions that a file's pickle names; torch's own go before it."""
    named = set()
    if zipped:
        with zipfile.ZipFile(path) as parts:
            pickle = next(name for name in parts.namelist() if name.endswith("data.pkl"))
            with parts.open(pickle) as file:
                named |= _named(file)
    else:
        with path.open("rb") as file:
            for _ in range(4):  # magic number, version, system, and then the object
                named |= _named(file)
    known = _of_numpy() if any(name.startswith("numpy") for name in named) else []
    told = {name for _, name in known}
    return [*known, *((_stand_in(name), name) for name in sorted(named - told))]


def _named(pickle: IO[bytes]) -> set[str]:
    """Return the classes and functions that a pickle names; Python 2's modules by their names of today."""
    names = (str(value) for code, value, _ in pickletools.genops(pickle) if code.name == "GLOBAL")
    renamed = {"__builtin__": "builtins", "copy_reg": "copyreg"}
    return {f"{renamed.get(module, module)}.{name}" for module, _, name in (each.partition(" ") for each in names)}


def _stand_in(name: str) -> type:
    module, _, last = name.rpartition(".")
    is_mapping = last.lower().endswith("dict") and not name.startswith("torch.nn.")  # a ModuleDict is a network
    return type(last, (_Filled if is_mapping else Unread,), {"__module__": module})


def _of_numpy() -> list[tuple[Any, str]]:
    """Return what arrays of numpy are made of, which is data alone."""
    import numpy as np

    array, scalar = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    functions = [
        (made, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for made, name in ((array, "_reconstruct"), (scalar, "scalar"))
    ]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSU"}
    return [
        *functions,
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        *((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds),
    ]


def _candidates(content: Mapping[Any, Any], key: str = "", depth: int = 0) -> Iterator[Candidate]:
    """Find the dictionaries of tensors in what a file of torch holds, the outermost first."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: tensor for name, value in named.items() if (tensor := _tensor(value)) is not None}
    if tensors:
        yield Candidate(key, tensors, {name: value for name, value in named.items() if name not in tensors})
    for name, value in named.items():
        if isinstance(value, Mapping) and depth < NESTED and not NO_WEIGHTS.match(name):
            yield from _candidates(value, f"{key}.{name}" if key else name, depth + 1)


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor, a parameter, or an array of numpy, as a tensor."""
    if isinstance(value, Tensor):
        return value.detach()
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if type(value).__module__ == "numpy" and hasattr(value, "astype") and value.ndim and kind in ("f", "i", "u", "b"):
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return None


def _nonempty(found: list[Candidate], path: Path, content: Mapping[Any, Any] | None = None) -> list[Candidate]:
    """Refuse a file without a tensor, and say what is there instead."""
    if any(candidate.tensors for candidate in found):
        return found
    for key, value in (content or {}).items():
        if isinstance(value, Unread) and value.is_module:
            raise ValueError(_pickled(path, value, f" under {key!r}"))
    there = f"holds {some(map(str, content))}" if content else "is empty inside"
    raise ValueError(f"{path} has no tensors: it {there}. {STATE[0].upper()}{STATE[1:]}")


def _no_mapping(path: Path, content: Any) -> str:
    """Say what a file of torch holds in place of a dictionary."""
    if isinstance(content, Unread):
        return _pickled(path, content)
    return (
        f"expected a dictionary of tensors in {path}, or one with them under a key, as 'state_dict', got a "
        f"{type(content).__name__}: {STATE}"
    )


def _pickled(path: Path, thing: Unread, where: str = "") -> str:
    """Say that a whole object was pickled, which only its own code could read."""
    kind = f"{type(thing).__module__}.{type(thing).__name__}"
    what = "whole network" if thing.is_module else "whole object"
    return (
        f"{path} holds{where} a {what} ({kind}), pickled, which could run any code and is not opened: load it where you "
        "trust it, write its weights, torch.save(net.state_dict(), path), and name that file"
    )


def some(items: Any, most: int = 4) -> str:
    """List the first few."""
    items = list(items)
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def first_line(error: BaseException) -> str:
    """Return what an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
