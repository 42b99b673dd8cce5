from __future__ import annotations

from pathlib import Path

import torch

from limbeck.data.source import Encoded, Part, Source, assemble, folder, in_memory, missing

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read(root: str | Path | None, download: bool) -> Source:
    """Read ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/``, each with a folder of images per class.

    Classes are the folders of ``train/`` in alphabetical order, as in torchvision's ``ImageFolder``. A test folder without
    class folders has no labels and is left alone.
    """
    home = folder("imagefolder", root)
    homes = {split: path for split, names in SPLITS.items() if (path := _first(home, names)) and _classes(path)}
    if "train" not in homes or len(homes) < 2:
        wanted = ["train/CLASS/IMAGE", "val/CLASS/IMAGE or test/CLASS/IMAGE"]
        raise missing("imagefolder", wanted, [home], downloads=False)
    classes = _classes(homes["train"])
    parts = {split: _part(path, classes) for split, path in homes.items()}
    return assemble("imagefolder", in_memory(parts), classes)


def _first(home: Path, names: tuple[str, ...]) -> Path | None:
    return next((home / name for name in names if (home / name).is_dir()), None)


def _classes(split: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in split.iterdir() if path.is_dir()))


def _part(split: Path, classes: tuple[str, ...]) -> Part:
    if unknown := sorted(set(_classes(split)) - set(classes)):
        raise ValueError(f"{split}: expected the classes of train, got others too: {', '.join(unknown[:8])}")
    files: list[bytes | str] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        images = sorted(path for path in (split / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        files += map(str, images)
        targets += [target] * len(images)
    return Part(Encoded(files, str(split)), torch.tensor(targets, dtype=torch.int64))
