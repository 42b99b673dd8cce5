from __future__ import annotations

import os
import unicodedata
import warnings
from pathlib import Path

import torch

from limbeck.data.source import Encoded, Part, Source, assemble, entries, folder, missing, visible

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CALLER = 7
"""How far above `_tell` the caller of `limbeck.data.load` stands, whose line a warning names."""
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read(root: str | Path | None, download: bool) -> Source:
    """Read ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/``, each with a folder of images per class.

    Classes are the folders of ``train/`` in alphabetical order, as in torchvision's ``ImageFolder``. Hidden files and
    folders, and what systems leave (``__MACOSX``, ``Thumbs.db``), are no data; links are followed. A test folder without
    class folders has no labels and is left alone.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two folders of one split, a class without images in train, one that train does not have.
    """
    home = folder("imagefolder", root)
    homes = {
        split: place for split, names in SPLITS.items() if (place := split_folder(home, names)) and _classes(place)
    }
    if "train" not in homes or len(homes) < 2:
        wanted = ["train/CLASS/IMAGE", "val/CLASS/IMAGE or test/CLASS/IMAGE"]
        raise missing("imagefolder", wanted, [home], downloads=False)
    classes = tuple(_classes(homes["train"]))
    if len(classes) == 1:
        raise ValueError(
            f"{homes['train']}: expected a folder for each of at least two classes, got {classes[0]} alone: put the images "
            "of each class into a folder of its own"
        )
    parts = {split: _part(place, classes, split) for split, place in homes.items()}
    return assemble("imagefolder", parts, classes)


def split_folder(home: Path, names: tuple[str, ...]) -> Path | None:
    """Return the folder of a split, by the one of its names that is there."""
    found = [home / name for name in names if (home / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{home}: expected one of {', '.join(names)}, got {' and '.join(path.name for path in found)}")
    return found[0] if found else None


def _classes(split: Path) -> dict[str, Path]:
    """Return the folders of classes by their names, in alphabetical order; "é" is one letter however it is written."""
    found: dict[str, Path] = {}
    for path in entries(split):
        if not path.is_dir():
            continue
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{split}: expected classes whose names are text, got {path.name!r}: rename it") from error
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise ValueError(
                f"{split}: expected classes of different names, got {name} written in two ways: rename one"
            )
        found[name] = path
    return dict(sorted(found.items()))


def _part(split: Path, classes: tuple[str, ...], which: str) -> Part:
    places = _classes(split)
    if unknown := sorted(set(places) - set(classes)):
        raise ValueError(f"{split}: expected the classes of train, got others too: {', '.join(unknown[:8])}")
    files: list[bytes | str] = []
    targets: list[int] = []
    others = [path for path in entries(split) if path.is_file()]
    empty = []
    for target, name in enumerate(classes):
        found = _files(places[name]) if name in places else []
        images = [path for path in found if path.suffix.lower() in SUFFIXES]
        others += [path for path in found if path.suffix.lower() not in SUFFIXES]
        files += map(str, images)
        targets += [target] * len(images)
        empty += [] if images else [name]
    _tell(split, which, empty, others, len(classes))
    return Part(Encoded(files, str(split)), torch.tensor(targets, dtype=torch.int64))


def _files(place: Path) -> list[Path]:
    """Return the files below a folder in order, hidden ones not; links are followed, once."""
    found: list[Path] = []
    seen = set()
    for where, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(where)
        here = Path(where)
        folders[:] = [] if real in seen else [name for name in folders if visible(Path(name), Path())]
        if real not in seen:
            found += [here / name for name in files if visible(Path(name), Path())]
        seen.add(real)
    return sorted(found)


def _tell(split: Path, which: str, empty: list[str], others: list[Path], classes: int) -> None:
    """Say which classes have no images, and which files are none; a class that cannot be learned is refused."""
    if empty and which == "train" and len(empty) < classes:  # of a split without any, `checked` speaks
        hint = f"; {others[0].name} there is none by its name" if others else ""
        raise ValueError(
            f"{split / empty[0]}: expected images of class {empty[0]}, ending in {', '.join(sorted(SUFFIXES))}, found none"
            f"{hint}: add some, or delete the folder"
        )
    if 0 < len(empty) < classes:
        warnings.warn(
            f"{split} has no image of {len(empty)} of {classes} classes, {', '.join(empty[:8])}: they are not judged",
            stacklevel=CALLER,
        )
    if others:
        warnings.warn(
            f"{split}: {len(others)} files are not read, as {others[0]}: images lie in the folder of their class and end "
            f"in {', '.join(sorted(SUFFIXES))}",
            stacklevel=CALLER,
        )
