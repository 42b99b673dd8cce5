"""Images with masks, whose pixels' values are classes: in VOC's folders, in Cityscapes', or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.task import UNLABELLED
from limbeck.data.files import RECIPES
from limbeck.data.imagefolder import SPLITS, SUFFIXES, refuse_train_alone, split_folder
from limbeck.data.pictures import NUMBERS
from limbeck.data.source import Encoded, Part, Source, assemble, entries, folder, missing, text, track, visible

if TYPE_CHECKING:
    from limbeck.data.items import Sample, Transform

NAMES = "classes.txt"
"""Where the classes have their names: a line each, ``name``, or ``number name`` with a tab between."""
HIGHEST = 255
"""The highest class that is counted and not named: larger values tend to be instances or depths."""
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The 19 classes that count, by their value in a mask of the authors' ``labelIds``."""


@dataclass(frozen=True)
class Masks:
    """Mask files, decoded one at a time.

    Args:
        files: One a sample.
        classes: How many there are.
        ignore: The value of a pixel without a label.
        values: The value that each class has in the files, where it is not its number; others have no label.
        hidden: Which samples have their labels put away, bool (N,); none by default.
    """

    files: Encoded
    classes: int
    ignore: int = 255
    values: tuple[int, ...] = ()
    hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Tensor) -> Masks:
        """Return the masks in ``rows``."""
        return replace(self, files=self.files.take(rows), hidden=None if self.hidden is None else self.hidden[rows])

    def hide(self, rows: Tensor) -> Masks:
        """Return the same masks, with the labels in ``rows`` put away."""
        hidden = torch.zeros(len(self), dtype=torch.bool) if self.hidden is None else self.hidden
        return replace(self, hidden=hidden.index_fill(0, rows, True))

    def read(self, row: int) -> Tensor:
        """Return the class of each pixel, int16 (H, W), -100 where it has no label.

        Raises:
            ValueError: A class that there is none of; the message names the file.
        """
        values = _values(self.files, row)
        if self.hidden is not None and bool(self.hidden[row]):
            return torch.full(values.shape, UNLABELLED, dtype=torch.int16)
        if self.values:
            table = torch.full((256,), UNLABELLED, dtype=torch.int16)
            table[list(self.values)] = torch.arange(len(self.values), dtype=torch.int16)
            return table[values.where((values >= 0) & (values < 256), 255)]  # -1, too, is nothing that counts
        wrong = values[((values < 0) | (values >= self.classes)) & (values != self.ignore)]
        if len(wrong):
            raise ValueError(
                f"{self.files.path(row)}: expected classes in 0..{self.classes - 1}, or {self.ignore} where a pixel has no "
                f"label, got {int(wrong.max())}: say which value means that, ignore={int(wrong.max())}, or name all "
                f"classes in {NAMES}"
            )
        return values.masked_fill(values == self.ignore, UNLABELLED).short()


@dataclass(frozen=True)
class Pairs:
    """Images with the classes of their pixels, as torchvision's transforms change them together."""

    images: Encoded
    masks: Masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Sample:
        from torchvision import tv_tensors

        pixels = np.array(self.images.read(row).convert("RGB")).transpose(2, 0, 1)
        mask = self.masks.read(row)
        _refuse_other_size(self.masks.files.path(row), mask.shape, self.images.path(row), pixels.shape[1:])
        return tv_tensors.Image(torch.from_numpy(pixels)), tv_tensors.Mask(mask)


def transform(augment: str, size: tuple[int, int]) -> Transform:
    """Return what brings an image and its mask to a size, (H, W), both alike.

    Args:
        augment: ``"none"``: the whole image; ``"crop"``: a part of a quarter to all of it, whose sides are 3/4 to 4/3 of
            those of ``size``; ``"crop-flip"``: mirrored in half of the cases too. It draws from torch's generator.
        size: Images are resized to it with antialiasing, masks to the nearest pixel; (H, W).
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    if augment not in RECIPES:
        raise ValueError(
            f"expected augment to be one of default, {', '.join(RECIPES)} for images with masks, got {augment!r}"
        )
    wide = size[1] / size[0]
    whole, crop = v2.Resize(size), v2.RandomResizedCrop(size, scale=(0.25, 1.0), ratio=(wide * 3 / 4, wide * 4 / 3))
    steps: dict[str, list[Any]] = {"none": [whole], "crop": [crop], "crop-flip": [crop, v2.RandomHorizontalFlip()]}
    as_classes = v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None})
    change: Callable[..., Any] = v2.Compose([*steps[augment], as_classes])
    return change


def read_voc(root: str | Path | None, download: bool, ignore: int) -> Source:
    """Read VOC's layout: ``JPEGImages/``, ``SegmentationClass/``, and lists in ``ImageSets/Segmentation/``.

    ``root`` is the folder that has them, ``VOC2012``, or one above it. Its classes are named in ``classes.txt`` there.
    """
    name, home = "voc-masks", folder("voc-masks", root)
    places = [home, *sorted(home.glob("VOC*")), *sorted(home.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if (place / "ImageSets/Segmentation/train.txt").is_file()]
    if not found:
        wanted = ["ImageSets/Segmentation/train.txt", "JPEGImages/", "SegmentationClass/"]
        raise missing(name, wanted, [home, home / "VOCdevkit/VOC*"], downloads=False)
    if len(found) > 1:
        raise ValueError(f"{name}: expected one year, found {', '.join(map(str, found))}: pass one of them as root")
    (voc,) = found
    images, masks = _by_stem(voc / "JPEGImages"), _by_stem(voc / "SegmentationClass")
    pairs = {}
    for split in SPLITS:
        listing = voc / "ImageSets/Segmentation" / f"{split}.txt"
        stems = text(listing).split() if listing.is_file() else []
        if lost := [stem for stem in stems if stem not in images]:
            raise ValueError(
                f"{listing}: found no image of {lost[0]!r} in {voc / 'JPEGImages'}, and of {len(lost)} in all"
            )
        if stems and (split != "test" or any(stem in masks for stem in stems)):  # VOC's test masks are not published
            pairs[split] = [(images[stem], masks.get(stem)) for stem in stems]
    return _source(name, pairs, ignore, _names(voc, home), voc / "SegmentationClass")


def read_cityscapes(root: str | Path | None, download: bool, ignore: int) -> Source:
    """Read Cityscapes' layout: ``leftImg8bit/SPLIT/CITY/``, and ``gtFine/SPLIT/CITY/`` with masks of ``labelIds``.

    19 classes count, as the benchmark has them; its test masks are not published.
    """
    home = folder("cityscapes", root)
    pairs = {}
    for split in ("train", "val"):
        place = home / "leftImg8bit" / split
        images = sorted(path for path in place.glob("*/*_leftImg8bit.*") if visible(path, place))
        masks = [_label_ids(home / "gtFine" / split / path.parent.name, path) for path in images]
        pairs[split] = [
            (str(path), str(mask) if mask.is_file() else None) for path, mask in zip(images, masks, strict=True)
        ]
    if not all(pairs.values()):
        wanted = [f"leftImg8bit/{split}/CITY/*_leftImg8bit.png" for split in pairs]
        raise missing("cityscapes", wanted, [home], downloads=False)
    return _source("cityscapes", pairs, ignore, tuple(CITYSCAPES.values()), home / "gtFine", tuple(CITYSCAPES))


def read_pairs(root: str | Path | None, download: bool, ignore: int) -> Source:
    """Read ``train/images/``, ``train/masks/`` and ``val/`` or ``test/`` likewise: a mask has its image's name.

    Classes are named in ``classes.txt`` beside them.
    """
    home = folder("masks", root)
    homes = {
        split: place
        for split, names in SPLITS.items()
        if (place := split_folder(home, names)) and (place / "images").is_dir()
    }
    if "train" not in homes or len(homes) < 2:
        refuse_train_alone("masks", home, homes, "images/ and masks/")
        wanted = ["train/images/", "train/masks/", "val/images/ or test/images/, with masks/ beside"]
        raise missing("masks", wanted, [home], downloads=False)
    pairs = {}
    for split, place in homes.items():
        masks = _by_stem(place / "masks")
        pairs[split] = [(path, masks.get(stem)) for stem, path in _by_stem(place / "images").items()]
    return _source("masks", pairs, ignore, _names(home), home)


def _by_stem(place: Path) -> dict[str, str]:
    """Return the images in a folder by their names without ending, in their order."""
    found: dict[str, str] = {}
    for path in entries(place):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise ValueError(f"{path}: expected one image of its name, found {found[path.stem]} too")
        found[path.stem] = str(path)
    return found


def _label_ids(place: Path, image: Path) -> Path:
    return place / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"


def _names(*places: Path) -> tuple[str, ...]:
    """Return the names of the classes, of the first folder that has a file of them; nothing where none has."""
    path = next((place / NAMES for place in places if (place / NAMES).is_file()), None)
    if path is None:
        return ()
    lines = [line.split("\t") for line in text(path).splitlines() if line.strip()]
    if not all(len(line) > 1 and line[0].strip().isdigit() for line in lines):
        return tuple(line[0].strip() for line in lines)
    named = {int(line[0]): line[1].strip() for line in lines}
    if sorted(named) != list(range(len(lines))):
        raise ValueError(f"{path}: expected the classes 0..{len(lines) - 1}, one a line, got {sorted(named)}")
    return tuple(named[number] for number in range(len(lines)))


def _source(
    name: str,
    pairs: dict[str, list[tuple[str, str | None]]],
    ignore: int,
    names: tuple[str, ...],
    masks: Path,
    values: tuple[int, ...] = (),
) -> Source:
    """Make a source of each split's paths, of images and masks."""
    for split, found in pairs.items():
        if lost := [image for image, mask in found if mask is None]:
            raise ValueError(
                f"{name}: {len(lost)} of {len(found)} images of the {split} split have no mask of their name in {masks}, "
                f"the first is {lost[0]}"
            )
    splits = {
        split: (
            Encoded([image for image, _ in found], str(masks)),
            Encoded([mask or "" for _, mask in found], str(masks)),
        )
        for split, found in pairs.items()
    }
    for images, files in splits.values():
        for row in track(range(len(images)), f"looking at {masks}"):
            _refuse_unlike(images, files, row)
    if ignore == len(names) - 1:  # the last of those that have a name, as CamVid's "unlabelled"
        names = names[:-1]
    if not names:
        names = tuple(map(str, range(1 + max(_highest(files, ignore) for _, files in splits.values()))))
    parts = {
        split: Part(images, torch.zeros(len(images), dtype=torch.int64), Masks(files, len(names), ignore, values))
        for split, (images, files) in splits.items()
    }
    return assemble(name, parts, names)


def _refuse_unlike(images: Encoded, files: Encoded, row: int) -> None:
    """Refuse a mask of another size than its image, or of colours, without decoding either."""
    image, mask = images.header(row), files.header(row)
    if mask.mode not in NUMBERS:
        raise ValueError(
            f"{files.path(row)}: expected a mask of one channel whose values are classes, as a palette or grey image has, "
            f"got an image of mode {mask.mode}: make each colour a number first"
        )
    _refuse_other_size(files.path(row), mask.size[::-1], images.path(row), image.size[::-1])


def _refuse_other_size(mask: str, size: Sequence[int], image: str, wanted: Sequence[int]) -> None:
    """Refuse a mask of another size, (H, W), than its image; both are upright."""
    if tuple(size) != tuple(wanted):
        raise ValueError(
            f"{mask}: expected a mask as large as its image, {wanted[1]}x{wanted[0]} as {image} is, got "
            f"{size[1]}x{size[0]} (both once they are turned upright, as their EXIF data say)"
        )


def _highest(files: Encoded, ignore: int) -> int:
    """Return the highest class in masks of which no names are known."""
    highest = 0
    for row in track(range(len(files)), f"counting classes in {files.origin}"):
        values = _values(files, row)
        found = int(values.where(values != ignore, 0).max())
        if found > HIGHEST:
            raise ValueError(
                f"{files.path(row)}: expected classes in 0..{HIGHEST} where no file names them, got {found}: name all "
                f"classes in {NAMES}, or make masks whose values are classes; ignore= says which value has no label"
            )
        highest = max(highest, found)
    return highest


def _values(files: Encoded, row: int) -> Tensor:
    """Return a mask's values, int32 (H, W): of a palette image the numbers of its colours."""
    return torch.from_numpy(files.numbers(row).astype(np.int32))


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of inputs, of one number for both, or of two."""
    found = (size, size) if isinstance(size, int) else tuple(size)
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"expected size to be one side, or height and width, got {size}")
    return found[0], found[1]
