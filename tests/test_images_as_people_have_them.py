"""Folders, files and pixels as they are found: hidden entries, other depths, turned, transparent and broken images."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import limbeck
from limbeck import data
from limbeck.cli import main
from limbeck.cli.options import load_data, training
from limbeck.data import FileLoader, Loader, pictures

SIDE = 8
EXIF = 0x0112
DRAW = np.random.default_rng(0)


def coloured(side: int = SIDE) -> Image.Image:
    return Image.fromarray(DRAW.integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photos(root: Path, classes: tuple[str, ...] = ("ant", "bee"), side: int = SIDE, count: int = 4) -> Path:
    for split in ("train", "val", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                coloured(side).save(root / split / name / f"{number}.png")
    return root


def load(root: Path, name: str = "imagefolder", **options: Any) -> data.Data:
    return data.load(name, root, **{"workers": 0, "batch_size": 2, **options})


def shades(content: bytes) -> list[int]:
    return np.array(pictures.pixels(content, "it")[0]).reshape(-1).tolist()


# what is data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "$RECYCLE.BIN"])
def test_hidden_folders_are_no_classes(tmp_path: Path, name: str) -> None:
    photos(tmp_path)
    for place in (tmp_path / "train" / name, tmp_path / "val" / name, tmp_path / "train/ant" / name):
        place.mkdir()
        coloured().save(place / "0-checkpoint.png")
    found = load(tmp_path)
    assert (found.classes, len(found.train.ids), len(found.val.ids)) == (("ant", "bee"), 8, 8)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "._0.png", "desktop.ini", ".hidden.jpg"])
def test_hidden_files_are_no_images(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    photos(tmp_path)
    for place in ("train", "train/ant", "test/bee"):
        (tmp_path / place / name).write_bytes(b"\0\0")
    assert len(load(tmp_path).train.ids) == 8
    assert not recwarn.list


def test_hidden_files_of_other_sets(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for kind, pixels in (("images", (SIDE, SIDE, 3)), ("masks", (SIDE, SIDE))):
            place = tmp_path / "pairs" / split / kind
            place.mkdir(parents=True)
            Image.fromarray(np.zeros(pixels, np.uint8)).save(place / "0.png")
            (place / "._0.png").write_bytes(b"Mac OS X")
    assert len(load(tmp_path / "pairs", "masks", size=SIDE).test.ids) == 1
    rows = {"image": [{"bytes": encoded(coloured()), "path": None}] * 4, "label": [0, 1, 0, 1]}
    for place in (tmp_path / "hf/data", tmp_path / "hf/.cache/data"):
        place.mkdir(parents=True)
        for split in ("train", "test"):
            parquet.write_table(pa.table(rows), place / f"{split}-0.parquet")
    assert len(load(tmp_path / "hf", "parquet", val_share=0.25).test.ids) == 4


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "train/ant/notes.txt").write_text("found in May")
    coloured().save(tmp_path / "train/stray.png")
    with pytest.warns(
        UserWarning, match=r"train: 2 files are not read, as .*stray.png: images lie in the folder of their"
    ):
        load(tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "train/cat").mkdir()
    with pytest.raises(
        ValueError, match=r"train/cat: expected images of class cat, ending in .*, found none: add some, or del"
    ):
        load(tmp_path)
    (tmp_path / "train/cat/tom.heic").write_bytes(b"an image of another kind")
    with pytest.raises(ValueError, match=r"found none; tom.heic there is none by its name"):
        load(tmp_path)


def test_a_class_that_is_not_judged_is_said(tmp_path: Path) -> None:
    photos(tmp_path)
    for number in range(4):
        (tmp_path / f"test/bee/{number}.png").unlink()
    with pytest.warns(UserWarning, match=r"test has no image of 1 of 2 classes, bee: they are not judged"):
        load(tmp_path)


def test_a_class_that_cannot_be_learned_is_said(tmp_path: Path) -> None:
    features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    rows = {"image": [{"bytes": encoded(coloured()), "path": None}] * 4, "label": [0, 2, 0, 2]}
    table = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for split in ("train", "val", "test"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.warns(
        UserWarning, match=r"parquet: no training sample is of 1 of 3 classes, b: they cannot be learned"
    ):
        load(tmp_path, "parquet")


def test_folders_that_are_no_split_and_no_classes(tmp_path: Path) -> None:
    photos(tmp_path / "alone", ("images",))
    with pytest.raises(
        ValueError, match=r"train: expected a folder for each of at least two classes, got images alone"
    ):
        load(tmp_path / "alone")
    photos(tmp_path / "twice")
    (tmp_path / "twice/valid").mkdir()
    with pytest.raises(ValueError, match=r"expected one of val, valid, validation, got val and valid"):
        load(tmp_path / "twice")


def test_a_folder_that_lacks_a_split_says_which(tmp_path: Path) -> None:
    photos(tmp_path)
    for split in ("val", "test"):
        shutil.rmtree(tmp_path / split)
    with pytest.raises(
        FileNotFoundError, match=r"in train/, and in neither val/ nor test/: move a share, .*/val/CLASS"
    ):
        load(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"holds folders of images itself, ant, bee: put them into .*/train/train/"
    ):
        load(tmp_path / "train")
    for kind in ("images", "masks"):
        (tmp_path / "pairs/train" / kind).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"masks: .* in train/, and in neither val/ nor test/"):
        load(tmp_path / "pairs", "masks")
    rows = {"image": [{"bytes": encoded(coloured()), "path": None}] * 4, "label": [0, 1, 0, 1]}
    parquet.write_table(pa.table(rows), tmp_path / "train-0.parquet")
    with pytest.raises(
        FileNotFoundError, match=r"files of train, as train-0.parquet, and none whose name begins with val"
    ):
        load(tmp_path, "parquet")


def test_a_split_of_empty_folders_says_what_is_read(tmp_path: Path) -> None:
    photos(tmp_path)
    for name in ("ant", "bee"):
        shutil.rmtree(tmp_path / "val" / name)
        (tmp_path / "val" / name).mkdir()
    with pytest.raises(
        ValueError, match=r"in the val split, got none: no folder of a class in .*/val has a .*\.bmp, \.gif"
    ):
        load(tmp_path)


def test_names_and_links(tmp_path: Path) -> None:
    word, odd = "café [b] 'é'", "naïve #1 %20"
    photos(tmp_path / "data", (word, odd))
    written = tmp_path / "data/val" / word
    written.rename(written.with_name(unicodedata.normalize("NFD", word)))  # as a Mac writes it
    (tmp_path / "elsewhere/deeper").mkdir(parents=True)
    coloured().save(tmp_path / "elsewhere/deeper/x.png")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/train" / odd / "more").symlink_to(tmp_path / "elsewhere")
    found = load(tmp_path / "data")
    assert found.classes == tuple(sorted((unicodedata.normalize("NFC", word), odd)))
    assert [len(loader.ids) for loader in (found.train, found.val)] == [9, 8]
    (tmp_path / "data/train" / odd / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        ValueError, match=r"gone.png: expected a whole image file, got a name or a link that leads nowhere"
    ):
        load(tmp_path / "data")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    photos(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path / "train/ant/") + b"/\xff.png")).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"ant/\\xff.png: expected a whole image file") as raised:
        load(tmp_path)
    str(raised.value).encode()
    os.mkdir(os.fsencode(tmp_path / "train") + b"/\xfe")
    with pytest.raises(ValueError, match="expected classes whose names are text"):
        load(tmp_path)


# broken files ---------------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": (lambda whole: b"", "got an empty one: copy it again, or delete it"),
    "no image": (lambda whole: b"<html>not found</html>", "got one that Pillow does not know as an image"),
    "a pointer": (lambda whole: b"version https://git-lfs.github.com/spec/v1", "Pillow does not know as an image"),
    "cut": (lambda whole: whole[:-200], "expected a whole image file, got .*trunc"),
}


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_before_the_training_or_as_they_are_decoded(
    tmp_path: Path, case: str, side: int
) -> None:
    harm, message = BROKEN[case]
    file = photos(tmp_path, side=side) / "test/bee/2.png"
    file.write_bytes(harm(file.read_bytes()))

    def read() -> None:
        found = load(tmp_path, size=None if side == 16 else 16)
        assert case == "cut"
        assert side == 128
        list(found.test)

    with pytest.raises(ValueError, match=r"test/bee/2\.png: expected a whole image file.*") as raised:
        read()
    assert re.search(message, str(raised.value))


def test_of_many_files_a_few_are_looked_at_and_the_others_named_as_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.data.source.LOOKED_AT", 2)
    (photos(tmp_path, side=128) / "train/ant/2.png").write_bytes(b"")
    found = load(tmp_path, size=16)
    with pytest.raises(ValueError, match=r"train/ant/2.png: expected a whole image file, got an empty one"):
        list(found.train)


@pytest.mark.parametrize("labels", [["cat", "dog"], [0, -1], [0.5, 1], [0, 2**70]])
def test_damaged_labels_of_cifar(tmp_path: Path, labels: list[Any]) -> None:
    batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": labels}
    for file in ("train", "test"):
        (tmp_path / file).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(
        ValueError, match=r"train: expected 'fine_labels' as numbers of classes: copy or download it again"
    ):
        data.load("cifar100", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02X\xff\xff\xff\x7fa", b"\x80\x02]q\x00(K"])
def test_damaged_pickles_of_cifar(tmp_path: Path, content: bytes) -> None:
    for file in ("train", "test"):
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"train: expected a pickled dict of CIFAR, got .*: copy or download it again"):
        data.load("cifar100", tmp_path)


def test_names_of_classes_that_are_no_text(tmp_path: Path) -> None:
    (pairs(tmp_path, {}, {}) / "classes.txt").write_bytes("sky\nstraße\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes.txt: expected text in UTF-8, got .*: save it as UTF-8"):
        load(tmp_path, "masks")


def test_a_wrong_suffix_is_an_image_nevertheless(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "train/ant/0.png").write_bytes(encoded(coloured(), "JPEG"))
    assert isinstance(load(tmp_path).train, Loader)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_bombs_are_refused_by_name(tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(SIDE * SIDE / factor))
    with pytest.raises(ValueError, match=r"train/ant/0.png: expected at most \d+ pixels, which is Pillow's limit"):
        load(photos(tmp_path))


# pixels ---------------------------------------------------------------------------------------------------------------

SIXTEEN = np.array([[0, 257 * 3], [257 * 200, 65535]], np.uint16)
TWELVE = b"".join(
    (
        b"II*\0\x10\0\0\0" + bytes((0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00)) + b"\0\0",  # 4095, 0; 2048, 0 in 12 bits each
        (9).to_bytes(2, "little"),
        *(
            tag.to_bytes(2, "little")
            + (3).to_bytes(2, "little")
            + (1).to_bytes(4, "little")
            + value.to_bytes(4, "little")
            for tag, value in (
                (256, 2),
                (257, 2),
                (258, 12),
                (259, 1),
                (262, 1),
                (273, 8),
                (277, 1),
                (278, 2),
                (279, 6),
            )
        ),
        bytes(4),
    )
)
CLEAR = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]], [[0, 0, 0, 128], [9, 9, 9, 255]]], np.uint8)
PALETTE = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
RGB_OF_PALETTE = [10, 20, 30, 40, 50, 60, 70, 80, 90, 10, 20, 30]

FAITHFUL = {
    "16 bits": (encoded(Image.fromarray(SIXTEEN)), [0, 3, 200, 255]),
    "16 bits in a TIFF": (encoded(Image.fromarray(SIXTEEN), "TIFF"), [0, 3, 200, 255]),
    "16 bits in a PGM": (b"P5\n2 2\n65535\n" + SIXTEEN.astype(">u2").tobytes(), [0, 3, 200, 255]),
    "10 bits in a PGM": (b"P5\n2 1\n1023\n" + np.array([512, 1023], ">u2").tobytes(), [128, 255]),
    "12 bits in a TIFF": (TWELVE, [255, 0, 128, 0]),
    "16 bits with white as 0": (encoded(Image.fromarray(SIXTEEN), "TIFF", tiffinfo={262: 0}), [255, 252, 55, 0]),
    "16 bits, one of them transparent": (encoded(Image.fromarray(SIXTEEN), transparency=771), [0, 255, 200, 255]),
    "1 bit": (encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")), [0, 255]),
    "a palette": (encoded(PALETTE), RGB_OF_PALETTE),
    "a palette with transparency": (
        encoded(PALETTE, transparency=1),
        [*RGB_OF_PALETTE[:3], 255, 255, 255, *RGB_OF_PALETTE[6:]],
    ),
    "RGBA": (encoded(Image.fromarray(CLEAR)), [255, 0, 0, 255, 255, 255, 127, 127, 127, 9, 9, 9]),
    "LA": (encoded(Image.fromarray(CLEAR).convert("LA")), [76, 255, 127, 9]),
    "grey with one transparent": (encoded(Image.fromarray(np.array([[5, 7]], np.uint8)), transparency=7), [5, 255]),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
    "the first of several frames": (
        encoded(Image.new("L", (1, 1), 0), "GIF", save_all=True, append_images=[Image.new("L", (1, 1), 255)]),
        [0, 0, 0],
    ),
}


@pytest.mark.parametrize("case", FAITHFUL)
def test_pixels_of_any_depth_are_what_they_were(case: str) -> None:
    content, wanted = FAITHFUL[case]
    found = shades(content)
    assert found in (wanted, wanted[::3])  # Pillow reads a grey GIF's first frame as grey or as a palette


@pytest.mark.parametrize("kind", ["float32", "int32"])
@pytest.mark.parametrize("side", [SIDE, 128])
def test_values_without_a_range_are_refused_before_the_training(tmp_path: Path, kind: str, side: int) -> None:
    photos(tmp_path, side=side)
    Image.fromarray(np.zeros((side, side), kind)).save(tmp_path / "test/bee/3.tif")
    with pytest.raises(
        ValueError, match=r"test/bee/3.tif: expected values of 8 or 16 bits, got .* scale them to 0..255"
    ):
        load(tmp_path)


def test_lab_is_refused() -> None:
    with pytest.raises(ValueError, match="photo: expected an image in grey, RGB, CMYK or a palette, got one in LAB"):
        pictures.pixels(encoded(Image.new("LAB", (2, 2)), "TIFF"), "photo")


def test_sixteen_bits_by_name(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name, level in (("dark", 257 * 20), ("light", 257 * 180)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((SIDE, SIDE), level, np.uint16)).save(tmp_path / split / name / "0.png")
    assert load(tmp_path).train.images.unique().tolist() == [20, 180]


# turned ---------------------------------------------------------------------------------------------------------------


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    lossless = {"lossless": True} if kind == "WEBP" else {}
    image, seen = pictures.pixels(encoded(Image.fromarray(stored), kind, exif=turned(orientation), **lossless), "it")
    upright = np.rot90(stored, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert np.array_equal(np.array(image.convert("L")), upright)
    assert seen.size == image.size
    if kind != "TIFF":  # of which Pillow may have turned it
        assert seen.turned == (orientation > 1)


def test_exif_that_is_broken_turns_nothing() -> None:
    content = encoded(Image.new("L", (3, 2)), "JPEG", exif=b"Exif\0\0garbage and more of it")
    assert pictures.pixels(content, "it")[0].size == (3, 2)


def pairs(root: Path, image: dict[str, Any], mask: dict[str, Any], sides: tuple[int, int] = (12, 8)) -> Path:
    """Images that are twenty times their masks, each stored with what its EXIF data say."""
    classes = np.zeros(sides, np.uint8)
    classes[0] = 1
    for split in ("train", "val", "test"):
        for name, values, options in (("images", 20 * classes, image), ("masks", classes, mask)):
            place = root / split / name
            place.mkdir(parents=True)
            stored = np.rot90(values) if "exif" in options else values
            Image.fromarray(np.ascontiguousarray(stored)).save(place / "0.png", **options)
    return root


@pytest.mark.parametrize(("image", "mask"), [(6, None), (None, 6), (6, 6)])
def test_image_and_mask_agree_however_they_are_stored(tmp_path: Path, image: int | None, mask: int | None) -> None:
    def options(orientation: int | None) -> dict[str, Any]:
        return {} if orientation is None else {"exif": turned(orientation)}

    root = pairs(tmp_path, options(image), options(mask))
    found = load(root, "masks", size=(12, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels, classes, _ = next(iter(found.test))
    assert torch.equal((pixels[:, 0] * 255 / 20).round().long(), classes)


def test_a_mask_of_the_image_as_it_is_stored_is_refused(tmp_path: Path) -> None:
    root = pairs(tmp_path, {}, {})
    Image.fromarray(np.zeros((12, 8), np.uint8)).save(root / "train/images/0.png", exif=turned(6))
    with pytest.raises(ValueError, match=r"train/masks/0.png: expected a mask as large as its image, 12x8 .* got 8x12"):
        load(root, "masks")


@pytest.mark.parametrize("value", [-1, 300])
def test_masks_with_values_that_are_no_classes(tmp_path: Path, value: int) -> None:
    root = pairs(tmp_path, {}, {})
    (root / "classes.txt").write_text("a\nb\n")
    Image.fromarray(np.full((12, 8), value, np.int32)).save(root / "val/masks/0.tif")
    (root / "val/masks/0.png").unlink()
    found = load(root, "masks", size=SIDE)
    with pytest.raises(ValueError, match=r"val/masks/0.tif: expected classes in 0..1"):
        list(found.val)


def test_depths_are_not_counted_as_classes(tmp_path: Path) -> None:
    root = pairs(tmp_path, {}, {})
    Image.fromarray(np.full((12, 8), 40_000, np.uint16)).save(root / "val/masks/0.png")
    with pytest.raises(ValueError, match=r"expected classes in 0..255 where no file names them, got 40000"):
        load(root, "masks")


# what decides a pipeline ----------------------------------------------------------------------------------------------


def test_the_record_says_what_decided(tmp_path: Path) -> None:
    found = load(photos(tmp_path), labels=2, split_seed=1)
    assert found.pipeline["samples"] == {"train": 8, "val": 8, "test": 8}
    assert [found.pipeline[key] for key in ("labels", "classes", "inputs")] == [2, ["ant", "bee"], [3, SIDE, SIDE]]
    assert [found.pipeline[key] for key in ("in_memory", "resize", "augment")] == [True, "none", "crop-flip"]
    assert found.pipeline["mean"] == list(found.mean)
    assert found.pipeline["files"] == "24 images of 8x8"
    assert json.loads(json.dumps(found.pipeline)) == found.pipeline
    assert "classes: ant, bee; inputs: 3, 8, 8; files: 24 images of 8x8; in_memory: True" in found.in_words()
    assert found.labelled().pipeline["samples"]["train"] == 2


def test_the_record_tells_of_files_that_are_cropped(tmp_path: Path) -> None:
    photos(tmp_path, side=100)
    Image.new("RGB", (120, 110)).save(tmp_path / "train/ant/wide.png", exif=turned(6))
    Image.new("L", (90, 97)).save(
        tmp_path / "train/ant/moves.gif", save_all=True, append_images=[Image.new("L", (90, 97), 9)]
    )
    found = load(tmp_path)
    assert found.pipeline["in_memory"] is False
    assert found.pipeline["resize"].startswith("the shorter side to 256, then the central 224x224 (the default)")
    assert found.pipeline["files"] == (
        "26 images of 3 sizes, 100x100 the most frequent; 1 turned upright by their EXIF data; 1 of several frames, of "
        "which the first is taken"
    )


def test_the_record_is_in_the_log_and_in_what_a_run_depends_on(tmp_path: Path) -> None:
    found = load(photos(tmp_path / "photos"))
    net = limbeck.zoo.network("mlp-4", found.num_classes, found.shape)
    method = limbeck.plain(net)
    limbeck.fit(method, found, epochs=1, run_dir=tmp_path / "run", accelerator="cpu", progress=False)
    lines = (tmp_path / "run/train.log").read_text().splitlines()
    assert [line.partition("INFO ")[2] for line in lines].count(found.in_words()) == 1
    assert json.loads((tmp_path / "run/inputs.json").read_text())["run"]["pipeline"] == found.pipeline
    assert logging.getLogger("limbeck").handlers == []


@pytest.mark.parametrize("odd", [(17, 16), (200, 150)])
def test_one_image_of_another_size_does_not_turn_the_pipeline(tmp_path: Path, odd: tuple[int, int]) -> None:
    photos(tmp_path, side=16)
    Image.new("RGB", odd).save(tmp_path / "test/bee/odd.png")
    with pytest.raises(
        ValueError, match=rf"got 24 of 16x16 \(.*\), 1 of {odd[0]}x{odd[1]} \(.*odd.png\): say size=16 \(--size 16\)"
    ):
        load(tmp_path)
    found = load(tmp_path, size=16)
    assert (found.shape, found.pipeline["in_memory"]) == ((3, 16, 16), False)


def test_memory_and_size_can_be_set(tmp_path: Path) -> None:
    small, large = photos(tmp_path / "small", side=16), photos(tmp_path / "large", side=100)
    assert isinstance(load(small, in_memory=False, size=12).train, FileLoader)
    kept = load(large, in_memory=True)
    assert (type(kept.train), kept.shape) == (Loader, (3, 100, 100))
    assert load(small, size=16).pipeline["in_memory"] is True
    with pytest.raises(
        ValueError, match=r"images of 16x16 are kept in memory as they are, got size=24: leave size out, or"
    ):
        load(small, size=24)
    with pytest.raises(ValueError, match=r"say size=16 \(--size 16\)"):
        load(small, in_memory=False)
    with pytest.raises(ValueError, match=r"with in_memory=True images are kept as they are, 100x100, got another size"):
        load(large, in_memory=True, size=64)
    Image.new("RGB", (90, 97)).save(large / "val/ant/odd.png")
    with pytest.raises(
        ValueError, match=r"expected images of one size, to be kept in memory as they are, got 24 of 100x100"
    ):
        load(large, in_memory=True)


def test_what_cannot_be_said_of_sets_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"digits has inputs of shape \(1, 8, 8\), kept as they are: leave size out, got 32"
    ):
        data.load("digits", size=32)
    with pytest.raises(ValueError, match=r"diabetes is read into memory, and there are no files"):
        data.load("diabetes", in_memory=False)
    with pytest.raises(ValueError, match=r"masks: images with masks are always decoded one by one"):
        load(pairs(tmp_path, {}, {}), "masks", in_memory=True)


def test_mean_and_std_can_be_set(tmp_path: Path) -> None:
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    for side, size in ((SIDE, None), (128, 16)):
        found = load(photos(tmp_path / str(side), side=side), size=size, augment="none", **half)
        assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
        values = next(iter(found.train))[0]
        assert values.min() >= -2
        assert values.max() <= 2
    assert data.load("diabetes", mean=(-3.0,) * 10, std=(250.0,) * 10).std[0] == 250


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "expected mean and std of each of 1 channels"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "expected mean and std of each of 1 channels"),
        ({"mean": (127.5,), "std": (127.5,)}, "scaled to 0..1.*: divide them by 255"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"mean": (float("nan"),), "std": (0.5,)}, "finite numbers"),
    ],
)
def test_mean_and_std_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)


def test_inputs_of_another_shape_than_train() -> None:
    digits = data.load("digits")
    test = Loader(
        torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.zeros(4).long(), batch_size=2, mean=[0.5], std=[0.5]
    )
    with pytest.warns(
        UserWarning, match=r"mine: inputs have shape \(1, 9, 9\) in the test split, and \(1, 8, 8\) in train"
    ):
        data.Data("mine", digits.train, digits.val, test, digits.classes)


# labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 1, 10**9],
            r"labels that count the classes, 0, 1, 2 and so on, got 1000000000 as the highest of 3 .* sample 2",
        ),
        ([0, 7, 1], r"got 7 as the highest of 3 training samples, in sample 1"),
        ([0, 2**40, 1], r"train.parquet: expected an integer in every row of label, .* got 1099511627776 in row 1"),
        ([0, -3, 1], r"expected labels in 0..1 for 2 classes, got -3..1 in the train split, first in sample 1"),
        ([0, None, 1], r"got none in row 1"),
        (["ant", "bee", "ant"], r"expected an integer in every row of label, got string: number the classes first"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: list[Any], message: str) -> None:
    images = [{"bytes": encoded(coloured()), "path": None}] * 3
    for split, said in (("train", labels), ("val", [0, 1, 1]), ("test", [0, 1, 1])):
        parquet.write_table(pa.table({"image": images, "label": said}), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "parquet")


@pytest.mark.parametrize("images", [["a.png"], [[1, 2]], [b""], [None]])
def test_image_columns_of_other_kinds(tmp_path: Path, images: list[Any]) -> None:
    for split in ("train", "test"):
        parquet.write_table(pa.table({"image": images * 2, "label": [0, 1]}), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"(test.parquet, image 0: expected an image|a.png: expected a whole image)"):
        load(tmp_path, "parquet", val_share=0.5)


def test_a_broken_image_is_named_by_its_shard(tmp_path: Path) -> None:
    whole = encoded(coloured())
    for shard, contents in enumerate(([whole] * 3, [whole, whole[:50]])):
        rows = [{"bytes": content, "path": None} for content in contents]
        table = pa.table({"image": rows, "label": [0, 1, 0][: len(rows)]})
        parquet.write_table(table, tmp_path / f"train-{shard}.parquet")
        parquet.write_table(table, tmp_path / f"test-{shard}.parquet")
    with pytest.raises(ValueError, match=r"/train-1.parquet, image 1: expected a whole image file"):
        load(tmp_path, "parquet")


# ranges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"batch_size": -8}, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"labels": True}, "labels must be a whole number, got True"),
        ({"labels": 9}, "labels of at least 10, one of each class, got 9"),
        ({"samples": 3}, "samples of at least 10, one of each class, got 3"),
        ({"val_share": float("nan")}, r"val_share must be in \(0, 1\)"),
        ({"val_share": 1.5}, r"val_share must be in \(0, 1\)"),
        ({"seed": -1}, "seed must be in"),
        ({"split_seed": 2**32}, "split_seed must be in"),
        ({"size": 0}, "expected size to be one side"),
    ],
)
def test_options_of_data_out_of_range(options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        data.load("digits", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1.0),
        ("momentum", -0.9),
        ("weight_decay", -5e-4),
        ("clip", 0.0),
        ("clip", -1.0),
        ("epochs", 0),
        ("accumulate", 0),
        ("devices", 0),
        ("devices", 99_999),
    ],
)
def test_options_of_training_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be (at least|at most|above|in) .*, (since .*)?got"):
        training(**{option: value, "accelerator": "cpu"})


def test_the_command_line_says_ranges_and_sets_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--network", "mlp-4", "--samples", "100", "--lr", "0", "--run-dir", str(tmp_path / "a")]) == 2
    assert "lr must be above 0, got 0" in capsys.readouterr().err
    root, run = str(photos(tmp_path / "photos", side=16)), str(tmp_path / "b")
    words = f"train --network mlp-4 --data imagefolder --root {root} --epochs 1 --accelerator cpu --progress false"
    words += f" --workers 0 --in-memory false --size 12 --mean [0.5,0.5,0.5] --std [0.5,0.5,0.5] --run-dir {run}"
    assert main(words.split()) == 0
    config = (Path(run) / "config.yaml").read_text()
    assert all(line in config for line in ("size: 12", "in_memory: false", "mean:\n"))
    assert "resize: the shorter side to 14, then the central 12x12" in (Path(run) / "train.log").read_text()


def test_a_function_of_the_users_that_needs_a_size_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def mine(size: int) -> tuple[list[int], list[int]]:
        sizes.append(size)
        return [], []

    monkeypatch.setattr("limbeck.zoo._outside.find", lambda *_: mine)
    load_data(data="mine:mine")
    load_data(data="mine:mine", size=32)
    assert sizes == [224, 32]


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT")
@pytest.mark.parametrize("imported", ["limbeck.core.quiet", "torch._utils", "numpy"])
def test_ctrl_c_while_the_program_starts_is_quiet(imported: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "limbeck.cli", "list", "data"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        next(line for line in program.stderr if line.split("|")[-1].strip() == imported)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (130, "")
    assert all(line.startswith("import time:") for line in err.splitlines())
