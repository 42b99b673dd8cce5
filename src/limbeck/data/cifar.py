from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data import parquet
from limbeck.data.source import Part, Source, folder, missing, text

SIDE = 32
PIXELS = 3 * SIDE * SIDE
SAFE = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}


@dataclass(frozen=True)
class Version:
    """Names in CIFAR-10 or CIFAR-100 as its authors publish it."""

    name: str  # torchvision's
    python: str
    binary: str
    train: tuple[str, ...]
    test: str
    labels: str
    label_bytes: int  # the last of them is the class: CIFAR-100 has its 20 superclasses first
    names: tuple[str, str]  # the file, and its key, where the python version has them
    names_text: str


CIFAR10 = Version(
    name="CIFAR10",
    python="cifar-10-batches-py",
    binary="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    labels="labels",
    label_bytes=1,
    names=("batches.meta", "label_names"),
    names_text="batches.meta.txt",
)
CIFAR100 = Version(
    name="CIFAR100",
    python="cifar-100-python",
    binary="cifar-100-binary",
    train=("train",),
    test="test",
    labels="fine_labels",
    label_bytes=2,
    names=("meta", "fine_label_names"),
    names_text="fine_label_names.txt",
)


def read(version: Version, root: str | Path | None, download: bool) -> Source:
    """Read the python or the binary version, from ``root`` or the folder in it that the archives unpack to.

    Parquet files, the way Hugging Face keeps both sets, are read too.
    """
    home = folder(version.name, root)
    if (source := _read(version, home)) is None and parquet.files(home):
        return parquet.read(home, download)
    if source is None and download:
        from torchvision import datasets

        getattr(datasets, version.name)(str(home), download=True)
        source = _read(version, home)
    if source is None:
        wanted = [", ".join((*version.train, version.test)), "the same with .bin", "train-*.parquet"]
        raise missing(version.name, wanted, [home, home / version.python, home / version.binary], downloads=True)
    return source


def _read(version: Version, home: Path) -> Source | None:
    """What lies in ``home``; None if nothing does."""
    for place, suffix in ((version.python, ""), ("", ""), (version.binary, ".bin"), ("", ".bin")):
        files = [home / place / f"{file}{suffix}" for file in (*version.train, version.test)]
        if any(file.is_file() for file in files):
            if lost := [file.name for file in files if not file.is_file()]:
                raise missing(version.name, lost, [home / place], downloads=True)
            splits = [_binary(version, file) if suffix else _python(version, file) for file in files]
            train = Part(
                torch.cat([images for images, _ in splits[:-1]]), torch.cat([targets for _, targets in splits[:-1]])
            )
            names = _text(version, home / place) if suffix else _names(version, home / place)
            return Source(train, None, Part(*splits[-1]), names)
    return None


def _python(version: Version, file: Path) -> tuple[Tensor, Tensor]:
    batch = _unpickle(file)
    data, labels = batch.get("data"), batch.get(version.labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        raise ValueError(f"{file}: expected 'data' as uint8 (N, {PIXELS}), got {_kind(data)}")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"{file}: expected {version.labels!r} as a list of {len(data)}, got {_kind(labels)}")
    if not all(isinstance(label, (int, np.integer)) and 0 <= label < 100 for label in labels):
        raise ValueError(f"{file}: expected {version.labels!r} as numbers of classes: copy or download it again")
    return torch.from_numpy(data).view(-1, 3, SIDE, SIDE), torch.tensor(labels, dtype=torch.int64)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__


def _binary(version: Version, file: Path) -> tuple[Tensor, Tensor]:
    """Rows of one label byte or two, and the pixels."""
    content = bytearray(file.read_bytes())
    width = version.label_bytes + PIXELS
    if not content or len(content) % width:
        raise ValueError(
            f"{file}: expected rows of {width} bytes, got {len(content):,} bytes: copy or download it again"
        )
    rows = torch.frombuffer(content, dtype=torch.uint8).view(-1, width)
    images = rows[:, version.label_bytes :].reshape(-1, 3, SIDE, SIDE)
    return images, rows[:, version.label_bytes - 1].long()


def _names(version: Version, place: Path) -> tuple[str, ...]:
    file, key = version.names
    names = _unpickle(place / file).get(key) if (place / file).is_file() else None
    if not isinstance(names, list):
        raise missing(version.name, [f"{file} with {key}"], [place], downloads=True)
    return tuple(map(str, names))


def _text(version: Version, place: Path) -> tuple[str, ...]:
    if not (place / version.names_text).is_file():
        raise missing(version.name, [version.names_text], [place], downloads=True)
    return tuple(text(place / version.names_text).split())


class _Unpickler(pickle.Unpickler):
    """Makes numpy arrays and plain values alone: a pickle from elsewhere could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 1 wrote it
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"a {module}.{name}, which has no place in it")
        if module.startswith("numpy._core") and not hasattr(np, "_core"):
            module = module.replace("numpy._core", "numpy.core")
        return super().find_class(module, name)


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()  # written by Python 2
        return dict(content)
    except OSError:
        raise
    except Exception as error:  # unpickling a broken file raises anything, MemoryError too
        raise ValueError(f"{file}: expected a pickled dict of CIFAR, got {error}: copy or download it again") from error
