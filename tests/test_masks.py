"""Images with masks by name: where they lie, what is refused, and that image and mask move alike."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import limbeck
from limbeck import data
from limbeck.data.masks import CITYSCAPES

SIDE, VOID = 32, 255


def write(path: Path, pixels: Any, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if mode == "P":
        image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    image.save(path)


def scene(seed: int, height: int = SIDE, width: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is 80 times its class, with a lower border that has none."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    mask[draw.integers(4, 12) :, :] = 1
    mask[:, draw.integers(18, 28) :] = 2
    image = np.stack([80 * mask, draw.integers(0, 255, mask.shape), 0 * mask], -1).astype(np.uint8)
    mask[-3:] = VOID
    return image, mask


def voc(root: Path, counts: dict[str, int] | None = None, folder: str = "VOCdevkit/VOC2012") -> Path:
    home, seed = root / folder, 0
    for split, count in (counts or {"train": 6, "val": 4, "test": 2}).items():
        stems = [f"{split}_{index}" for index in range(count)]
        for stem in stems:
            image, mask = scene(seed := seed + 1)
            write(home / f"JPEGImages/{stem}.png", image)
            write(home / f"SegmentationClass/{stem}.png", mask, "P")
        listing = home / f"ImageSets/Segmentation/{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(stems) + "\n")
    return home


def side_by_side(root: Path, splits: tuple[str, ...] = ("train", "val", "test"), count: int = 4) -> Path:
    for place, split in enumerate(splits):
        for index in range(count):
            image, mask = scene(10 * place + index)
            write(root / split / f"images/{index}.png", image)
            write(root / split / f"masks/{index}.png", mask)
    return root


def load(name: str, root: Path, **options: Any) -> data.Data:
    return data.load(name, root, **{"size": SIDE, "batch_size": 2, "workers": 0, **options})


def all_of(loader: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat(column) for column in zip(*loader, strict=True))  # type: ignore[return-value]


def red(found: data.Data, images: Tensor) -> Tensor:
    """The class that an image's red stands for, after normalisation."""
    return ((images[:, 0] * found.std[0] + found.mean[0]) * 255 / 80).round().long()


# layouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_vocs_layout(tmp_path: Path, below: str) -> None:
    voc(tmp_path)
    found = load("voc-masks", tmp_path / below)
    assert [len(each.ids) for each in (found.train, found.val, found.test)] == [6, 4, 2]
    assert (found.outputs, found.classes, found.shape, found.note) == (3, ("0", "1", "2"), (3, SIDE, SIDE), "")
    assert found.task is limbeck.segmentation()
    images, masks, ids = all_of(found.val)
    image, mask = scene(7)
    assert ids.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(masks[0], torch.from_numpy(mask).long().where(torch.from_numpy(mask != VOID), -100))
    mean, std = (torch.tensor(each)[:, None, None] for each in (found.mean, found.std))
    torch.testing.assert_close(images[0], (torch.from_numpy(image).movedim(-1, 0) / 255 - mean) / std)


def test_classes_have_names_where_a_file_names_them(tmp_path: Path) -> None:
    home = voc(tmp_path)
    (home / "classes.txt").write_text("0\tsky\t1,2,3\n1\troad\t3,2,1\n2\ttree\t1,1,1\n3\tcar\t0,0,9\n")
    assert load("voc-masks", tmp_path).classes == ("sky", "road", "tree", "car")
    assert load("voc-masks", tmp_path, ignore=255).outputs == 4
    (home / "classes.txt").write_text("sky\nthe road\n\ntree\n")
    assert load("voc-masks", tmp_path).classes == ("sky", "the road", "tree")
    (home / "classes.txt").write_text("0\tsky\n2\ttree\n")
    with pytest.raises(ValueError, match=r"classes.txt: expected the classes 0..1, one a line, got \[0, 2\]"):
        load("voc-masks", tmp_path)


def test_the_last_name_may_be_that_of_what_has_no_label(tmp_path: Path) -> None:
    """As CamVid's: twelve names, of which the last is ignored."""
    home = side_by_side(tmp_path)
    (home / "classes.txt").write_text("0\tsky\n1\troad\n2\tunlabelled\n")
    for path in home.glob("*/masks/*.png"):
        mask = np.array(Image.open(path))
        write(path, np.where(mask == VOID, 2, mask))
    found = load("masks", home, ignore=2)
    assert found.classes == ("sky", "road")
    assert all_of(found.test)[1].unique().tolist() == [-100, 0, 1]


def test_vocs_test_split_without_masks_is_left_alone(tmp_path: Path) -> None:
    home = voc(tmp_path)
    for path in (home / "SegmentationClass").glob("test_*"):
        path.unlink()
    found = load("voc-masks", tmp_path, val_share=0.5)
    assert [len(each.ids) for each in (found.train, found.val, found.test)] == [3, 3, 4]
    assert "the validation split serves as test" in found.note


def test_cityscapes_layout(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for index in range(count):
            image, mask = scene(index, 16, 32)
            stem = f"city_{index:06d}_000019"
            write(tmp_path / f"leftImg8bit/{split}/city/{stem}_leftImg8bit.png", image)
            values = np.choose(np.minimum(mask, 3), [7, 23, 33, 4])  # road, sky, bicycle, static: no class
            write(tmp_path / f"gtFine/{split}/city/{stem}_gtFine_labelIds.png", values)
    found = load("cityscapes", tmp_path, size=(16, 32), val_share=0.25)
    assert [len(each.ids) for each in (found.train, found.val, found.test)] == [3, 1, 2]
    assert (found.outputs, found.classes[0], found.classes[-1], found.shape) == (19, "road", "bicycle", (3, 16, 32))
    _, masks, _ = all_of(found.test)
    assert masks.unique().tolist() == [-100, 0, 10, 18]
    assert len(CITYSCAPES) == 19
    (tmp_path / "gtFine/val/city/city_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=r"cityscapes: 1 of 2 images of the val split have no mask .*city_000001"):
        load("cityscapes", tmp_path)


def test_masks_side_by_side(tmp_path: Path) -> None:
    found = load("masks", side_by_side(tmp_path, ("train", "valid")), size=(24, 40), val_share=0.25)
    assert [len(each.ids) for each in (found.train, found.val, found.test)] == [3, 1, 4]
    images, masks, _ = all_of(found.train)
    assert (tuple(images.shape), tuple(masks.shape)) == ((2, 3, 24, 40), (2, 24, 40))  # of three, a full batch
    assert masks.dtype == torch.int64


def test_fewer_samples_and_labels(tmp_path: Path) -> None:
    """The masks of the others are put away; what is left is served alone by ``labelled``."""
    root = side_by_side(tmp_path, count=6)
    found = load("masks", root, labels=2, samples=4, augment="none", batch_size=4)
    _, masks, ids = all_of(found.train)
    has = {int(row): bool((mask != -100).any()) for row, mask in zip(ids, masks, strict=True)}
    assert (len(has), sum(has.values())) == (4, 2)
    few = found.train.labelled()
    assert {int(row) for _, _, rows in few for row in rows} == {row for row, labelled in has.items() if labelled}
    assert all((all_of(found.val)[1] != -100).flatten(1).any(1))


@pytest.mark.parametrize("size", [(24, 40), SIDE])
def test_images_and_masks_move_alike(tmp_path: Path, size: Any) -> None:
    """Wherever a pixel's red says a class, so does the mask: but at borders, which are blended in the image alone."""
    found = load("masks", side_by_side(tmp_path, count=8), size=size, batch_size=8)
    plain = all_of(found.train.plain())[1]
    for _ in range(2):
        images, masks, ids = all_of(found.train)
        labelled = masks != -100
        assert (red(found, images) == masks)[labelled].float().mean() > 0.93
        assert not torch.equal(masks, plain[ids])


def test_what_is_drawn_depends_on_seed_view_and_id_alone(tmp_path: Path) -> None:
    root = side_by_side(tmp_path, count=8)

    def view(number: int, **options: Any) -> dict[int, Tensor]:
        loader = load("masks", root, **options).train
        loader.set_epoch(number)
        images, masks, ids = all_of(loader)
        return {int(row): torch.cat([image.flatten(), mask.flatten()]) for row, image, mask in zip(ids, images, masks)}  # noqa: B905

    first = view(0)
    for again in (view(0), view(0, batch_size=4), view(0, workers=2)):
        assert all(torch.equal(first[row], again[row]) for row in first)
    assert not any(torch.equal(first[row], other[row]) for other in (view(1), view(0, seed=1)) for row in first)
    state = torch.get_rng_state()
    view(0)
    assert torch.equal(torch.get_rng_state(), state)


# what is refused -----------------------------------------------------------------------------------------------------


def drop(root: Path) -> None:
    (root / "train/masks/2.png").unlink()


def shrink(root: Path) -> None:
    write(root / "val/masks/1.png", scene(1, 16, SIDE)[1])


def paint(root: Path) -> None:
    write(root / "train/masks/1.png", scene(1)[0])


def double(root: Path) -> None:
    write(root / "train/images/1.bmp", scene(1)[0])


def break_one(root: Path) -> None:
    (root / "train/masks/1.png").write_bytes(b"PNG")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            drop,
            r"masks: 1 of 4 images of the train split have no mask of their name in .*, the first is .*train/images/2.png",
        ),
        (shrink, r"val/masks/1.png: expected a mask as large as its image, 32x32 as .*val/images/1.png is, got 32x16"),
        (
            paint,
            r"train/masks/1.png: expected a mask of one channel whose values are classes.* of mode RGB: make each colour",
        ),
        (double, r"train/images/1.png: expected one image of its name, found .*1.bmp too"),
        (break_one, r"train/masks/1.png: expected a whole image file"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(side_by_side(tmp_path))
    with pytest.raises(ValueError, match=message):
        load("masks", tmp_path)


def test_a_class_out_of_range_is_named_as_it_is_read(tmp_path: Path) -> None:
    root = side_by_side(tmp_path)
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    write(root / "test/masks/3.png", np.full((SIDE, SIDE), 7))
    found = load("masks", root)
    message = r"test/masks/3.png: expected classes in 0..2, or 255 where .* got 7: say which value means that, ignore=7"
    with pytest.raises(ValueError, match=message):
        all_of(found.test)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("voc-masks", {}, FileNotFoundError, "voc-masks: looked for ImageSets/Segmentation/train.txt"),
        ("cityscapes", {}, FileNotFoundError, r"cityscapes: looked for leftImg8bit/train/CITY/\*_leftImg8bit.png"),
        ("masks", {}, FileNotFoundError, "masks: looked for train/images/, train/masks/"),
        ("digits", {"ignore": 3}, ValueError, "digits has no masks in which values could be ignored"),
    ],
)
def test_what_is_not_there(tmp_path: Path, name: str, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.load(name, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"augment": "cutout"},
            ValueError,
            "expected augment to be one of default, none, crop, crop-flip for images with",
        ),
        ({"size": (8, 8, 8)}, ValueError, r"expected size to be one side, or height and width, got \(8, 8, 8\)"),
        ({"size": 0}, ValueError, "expected size to be one side, or height and width, got 0"),
    ],
)
def test_options_that_are_wrong(tmp_path: Path, options: Any, error: type[Exception], message: str) -> None:
    side_by_side(tmp_path)
    with pytest.raises(error, match=message):
        load("masks", tmp_path, **options)


def test_vocs_lists_and_years(tmp_path: Path) -> None:
    home = voc(tmp_path)
    (home / "ImageSets/Segmentation/val.txt").write_text("val_0\nnobody\n")
    with pytest.raises(ValueError, match=r"val.txt: found no image of 'nobody' in .*JPEGImages, and of 1 in all"):
        load("voc-masks", tmp_path)
    voc(tmp_path, folder="VOCdevkit/VOC2007")
    with pytest.raises(ValueError, match=r"expected one year, found .*VOC2007, .*VOC2012: pass one of them as root"):
        load("voc-masks", tmp_path)


# end to end ----------------------------------------------------------------------------------------------------------


class Tiny(torch.nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 1, 1), torch.nn.ReLU())
        self.head = torch.nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def test_a_training_by_name(tmp_path: Path, reports: None) -> None:
    found = load("masks", side_by_side(tmp_path / "data", count=8))
    torch.manual_seed(0)
    teacher, student = Tiny(12), Tiny()
    assert limbeck.check(limbeck.kd(student, teacher, task=found.task), found).ok
    limbeck.fit(limbeck.plain(teacher, task=found.task), found, epochs=4, accelerator="cpu", progress=False)
    result = limbeck.distill(
        student, teacher, found, method="kd", epochs=4, run_dir=tmp_path / "run", accelerator="cpu", progress=False
    )
    assert result.metrics["test/student/pixel_accuracy"] > 0.5
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert re.search(">What each pixel is<", page)


def test_the_example_reads_frames_that_its_networks_take(tmp_path: Path) -> None:
    where = Path(__file__).parents[1] / "examples/camvid.py"
    spec = importlib.util.spec_from_file_location("camvid", where)
    assert spec is not None
    assert spec.loader is not None
    camvid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(camvid)
    home = voc(tmp_path)
    (home / "classes.txt").write_text("".join(f"{number}\tclass {number}\n" for number in range(12)))
    for path in (home / "SegmentationClass").glob("*.png"):
        mask = np.array(Image.open(path))
        write(path, np.where(mask == VOID, 11, mask))
    found = camvid.frames(str(tmp_path), batch_size=2)
    images, masks, _ = next(iter(found.train))
    assert (found.outputs, found.shape) == (11, (3, 96, 128))
    for net in (camvid.teacher(found.outputs), camvid.student(found.outputs)):
        assert found.task.feed(net, images).shape == (*masks.shape, 11)
