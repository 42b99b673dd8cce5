from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data.source import Part, Source, folder, missing

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
PREFIXES = {"train": "train", "test": "t10k"}
UINT8 = 0x08


def read(dataset: str, root: str | Path | None, download: bool, classes: tuple[str, ...]) -> Source:
    """Read the four idx files, gzipped or not, of one of torchvision's ``MNIST`` family.

    Args:
        dataset: torchvision's name, also of the folder it makes: MNIST, FashionMNIST.
        root: holds the files, or torchvision's ``MNIST/raw/`` with the files.
        download: let torchvision fetch them if they are not there.
        classes: names.
    """
    home = folder(dataset, root)
    places = [home / dataset / "raw", home / "raw", home]
    if download and not any(_files(place) for place in places):
        from torchvision import datasets

        getattr(datasets, dataset)(str(home), download=True)
    for place in places:
        if files := _files(place):
            parts = {split: _part(*files[split]) for split in PREFIXES}
            return Source(parts["train"], None, parts["test"], classes)
    wanted = [f"{prefix}-{kind}[.gz]" for prefix in PREFIXES.values() for kind in (IMAGES, LABELS)]
    raise missing(dataset, wanted, [home, *places[:-1]], downloads=True)


def _files(place: Path) -> dict[str, tuple[Path, Path]] | None:
    """Files of images and labels by split; None unless all are in ``place``."""
    found = {}
    for split, prefix in PREFIXES.items():
        images, labels = (_either(place / f"{prefix}-{kind}") for kind in (IMAGES, LABELS))
        if images is None or labels is None:
            return None
        found[split] = images, labels
    return found


def _either(file: Path) -> Path | None:
    return next((path for path in (file, file.with_name(f"{file.name}.gz")) if path.is_file()), None)


def _part(images: Path, labels: Path) -> Part:
    pixels, targets = parse(images, 3), parse(labels, 1)
    if len(pixels) != len(targets):
        raise ValueError(
            f"expected a label for each of the {len(pixels)} images of {images}, got {len(targets)} in {labels}"
        )
    return Part(pixels[:, None], targets.long())


def parse(file: Path, ndim: int) -> Tensor:
    """Return the uint8 tensor of ``ndim`` axes in an idx file (LeCun's format), gzipped or not.

    The file is: two zero bytes, the type, the number of axes, each axis as a big-endian int32, the elements.
    """
    content = _content(file)
    header = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, UINT8, ndim)) or len(content) < header:
        raise ValueError(
            f"{file}: expected an idx file of bytes with {ndim} axes, got one that starts with {content[:4].hex()}"
        )
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + torch.Size(shape).numel()
    if len(content) != expected:
        raise ValueError(
            f"{file}: expected {expected:,} bytes for shape {tuple(shape)}, got {len(content):,}: copy or download it again"
        )
    return torch.frombuffer(content, dtype=torch.uint8)[header:].view(shape)


def _content(file: Path) -> bytearray:
    if file.suffix != ".gz":
        return bytearray(file.read_bytes())
    try:
        return bytearray(gzip.decompress(file.read_bytes()))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: expected a whole gzip file, got {error}: copy or download it again") from error
