"""Files that are either whole or not there, and that are known again when they are read; and locks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEAL, FORMAT = "sha256", "limbeck_format"
"""What a file says of its own content, and that it does: if one of the two is lost, the other tells."""
VERSION = 1
"""Of the files' format; a file of a later one is refused by name."""
_FIRST_LINE = "# sealed: the last line is the checksum of those before it\n"
_BESIDE = re.compile(r"\..*\.[0-9a-f]{12}(\.[^.]*)?")
"""What `write` calls a file that is not yet in its place."""
_LAST_LINE = re.compile(r"# sha256 ([0-9a-f]{64})\n?\Z")


class Damaged(ValueError):
    """A file that is not what was written; the message names it, what was expected, and a remedy."""


def write(path: Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file beside its place and move it there, so that no reader ever finds half of one.

    It is on the disk before it takes the former one's place. What is to be read back goes through `keep`.

    Args:
        path: Where it belongs; its folder is made.
        content: Text, bytes, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a random name, as processes of two machines may have the same number
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        if callable(content):
            content(beside)
        elif isinstance(content, bytes):
            beside.write_bytes(content)
        else:
            beside.write_text(content, encoding="utf-8")
        _flush(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    with suppress(OSError):  # folders cannot be flushed everywhere
        _flush(path.parent)
    return path


def sweep(folder: Path) -> None:
    """Delete what a process that was killed while it wrote left in a folder; nobody else may be writing there."""
    for path in folder.glob(".*"):
        if _BESIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def keep(path: Path, value: Any) -> Path:
    """Write what `read` gives back, with a checksum of its content, by the file's suffix.

    ``.json`` and ``.yaml`` take a mapping, ``.safetensors`` tensors by name or a pair of these and facts about them,
    ``.ckpt`` what `torch.save` takes. The files are what other programs expect of these formats.

    Args:
        path: Where it belongs; its folder is made.
        value: What to keep.
    """
    if path.suffix == ".json":
        sealed = {**value, FORMAT: VERSION}
        return write(path, json.dumps({**sealed, SEAL: _of_json(sealed)}, indent=2, ensure_ascii=False) + "\n")
    if path.suffix == ".yaml":
        import yaml

        text = _FIRST_LINE + yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
        return write(path, f"{text}# {SEAL} {_sha(text.encode())}\n")
    if path.suffix == ".safetensors":
        return write(path, packed(*value) if isinstance(value, tuple) else packed(value))
    if path.suffix == ".ckpt":  # a zip: each of its parts has a checksum
        return write(path, lambda beside: torch.save(value, beside))
    raise ValueError(f"{path.name}: there is no way to keep a {path.suffix} file")


def read(path: Path, remedy: str, suffix: str | None = None) -> Any:
    """Return what `keep` wrote; a file without a checksum, an older one or another program's, is read as it is.

    Of ``.safetensors`` it is a pair: the tensors, and the facts about them. ``.npz`` files, whose parts have checksums of
    their own, are read into memory.

    Args:
        path: Its suffix says how.
        remedy: What the user may do if it cannot be read: "train again, with another run_dir".
        suffix: Says how in place of the file's own.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is not whole, not what was written, not of its format, or of a later version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: {remedy}")
    reader = {".json": _json, ".yaml": _yaml, ".safetensors": _safetensors, ".ckpt": _checkpoint, ".npz": _arrays}
    suffix = suffix or path.suffix
    try:
        value = reader[suffix](path)
    except Damaged as error:
        raise Damaged(f"{path} is damaged: {error}. Perhaps a disk or a copy failed; {remedy}") from None
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # a reader of a broken file raises anything
        what = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
        raise Damaged(
            f"{path} cannot be read as {suffix[1:]} ({what}): it is damaged, or another file; {remedy}"
        ) from error
    return value


def unsealed(text: str) -> str:
    """Return what a ``.yaml`` file that `keep` wrote says, without the lines that seal it."""
    return text.removeprefix(_FIRST_LINE).partition(f"\n# {SEAL} ")[0]


def packed(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file, with facts about them and a checksum of both."""
    from safetensors.torch import save

    # clones, since shared storage (tied weights) is more than the format can say
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    sealed = {**(facts or {}), FORMAT: str(VERSION)}
    content = save(plain, {**sealed, SEAL: digest(plain, sealed)})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # its order is drawn anew in every process
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """Return a checksum of tensors by name, whatever their order and device: names, types, shapes and values.

    Args:
        tensors: By name.
        facts: What else counts.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    sha.update(json.dumps(dict(sorted((facts or {}).items()))).encode())
    return sha.hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's checksum, of its bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


@contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that one process at a time can hold; yields whether this one does.

    The operating system takes it back when the process ends, however it ends. The file is empty, and stays.

    Args:
        path: The lock; its folder is made.
        wait: Wait for it, rather than do without where another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _of_json(value: Mapping[str, Any]) -> str:
    return _sha(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise Damaged(f"expected a JSON object, got {type(value).__name__}")
    seal = value.pop(SEAL, None)
    _expect(value.get(FORMAT), seal, lambda: _of_json(value))
    value.pop(FORMAT, None)
    return value


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    text = path.read_text(encoding="utf-8")
    if sealed := _LAST_LINE.search(text):
        _expect(VERSION, sealed[1], lambda: _sha(text[: sealed.start()].encode()))
    elif text.startswith(_FIRST_LINE) or re.search(r"sha256|[0-9a-f]{32}", text.rstrip("\n").rpartition("\n")[2]):
        raise Damaged("its checksum, the last line, was changed or lost")
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise Damaged(f"expected options by name, got {type(value).__name__}")
    return value


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    seal = facts.pop(SEAL, None)
    known = facts.get(FORMAT)
    if known is not None or seal is not None:
        _expect(None if known is None else int(known), seal, lambda: digest(tensors, facts))
    facts.pop(FORMAT, None)
    return tensors, facts


def _checkpoint(path: Path) -> Any:
    with zipfile.ZipFile(path) as parts:
        try:
            broken = parts.testzip()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            broken = "that its table of contents leads to"  # a place that no file has
        if broken is not None:
            raise Damaged(f"its part {broken} is not what was written")
    source = io.BytesIO(path.read_bytes()) if path.suffix == ".safetensors" else path  # torch would believe the suffix
    return torch.load(source, map_location="cpu", weights_only=True)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _expect(version: Any, seal: str | None, content: Callable[[], str]) -> None:
    """Compare a content with its checksum; an old file has none."""
    if version is None and seal is None:
        return
    if version is None or seal is None:
        raise Damaged("its checksum was lost")
    if seal != content():
        raise Damaged("its content is not what its checksum says")
    if version != VERSION:
        raise Damaged(f"it has format {version}, of another version of limbeck, and this one reads {VERSION}")
