from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable
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
        FileNotFoundError: There is no such folder, or it lacks train, or both val and test.
        ValueError: Two folders of one split, a split or a class without images in train, one that train does not have.
    """
    home = folder("imagefolder", root)
    homes = {
        split: place for split, names in SPLITS.items() if (place := split_folder(home, names)) and _classes(place)
    }
    if "train" not in homes or len(homes) < 2:
        refuse_train_alone("imagefolder", home, homes, "CLASS/IMAGE")
        _refuse_without_splits(home)
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


def refuse_train_alone(name: str, home: Path, found: Iterable[str], below: str) -> None:
    """Say that a folder has nothing to judge by.

    Args:
        name: Of the data.
        home: The folder.
        found: The splits that are there.
        below: What a split holds.

    Raises:
        FileNotFoundError: Train is there, and neither val nor test.
    """
    if set(found) == {"train"}:
        raise FileNotFoundError(
            f"{name}: {home} has {below} in train/, and in neither val/ nor test/: move a share, say a tenth, to "
            f"{home / 'val'}/{below}, by which networks are chosen and judged"
        )


def _refuse_without_splits(home: Path) -> None:
    """Say that the folders of classes lie one level too high."""
    splits = {name for names in SPLITS.values() for name in names}
    there = entries(home)
    if any(path.name in splits for path in there):
        return
    classes = [
        path for path in there if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in entries(path))
    ]
    if classes:
        names = ", ".join(path.name for path in classes[:8])
        raise FileNotFoundError(
            f"imagefolder: {home} holds folders of images itself, {names}: put them into {home / 'train'}/, and a share of "
            f"the images of each, say a tenth, into {home / 'val'}/ in folders of the same names"
        )


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
    if len(empty) == classes:
        raise ValueError(
            f"imagefolder: expected at least one sample in the {which} split, got none: no folder of a class in {split} "
            f"has a file that ends in {', '.join(sorted(SUFFIXES))}"
        )
    if empty and which == "train":
        hint = f"; {others[0].name} there is none by its name" if others else ""
        raise ValueError(
            f"{split / empty[0]}: expected images of class {empty[0]}, ending in {', '.join(sorted(SUFFIXES))}, found none"
            f"{hint}: add some, or delete the folder"
        )
    if empty:
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
