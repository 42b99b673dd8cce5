"""Images in memory: only those asked for are decoded, and the next start finds them on disk, or decodes them again."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageFile
from pyarrow import parquet
from torch import Tensor

from limbeck import data
from limbeck.data import FileLoader, Loader, decoded, pictures
from limbeck.data.epochs import generator
from limbeck.data.source import Encoded
from limbeck.data.split import balanced, hold_out

COUNTS = {"train": 40, "test": 12}
SIDE = 6
KNOWN = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which all images are kept that these tests decode."""
    monkeypatch.setenv("LIMBECK_DECODED", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "LEAST", 1)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "set", {split: drawn(count) for split, count in COUNTS.items()})


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of images that were decoded."""
    names: list[str] = []
    plain = pictures.pixels

    def counted(file: bytes | str, name: str) -> Any:
        names.append(name)
        return plain(file, name)

    monkeypatch.setattr(pictures, "pixels", counted)
    return names


def drawn(count: int, *channels: int) -> list[Image.Image]:
    shape = (count, SIDE, SIDE, *(channels or (3,)))
    return [Image.fromarray(one) for one in np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)]


def grey(count: int) -> list[Image.Image]:
    return [image.convert("L") for image in drawn(count)]


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def written(root: Path, splits: dict[str, list[Any]]) -> Path:
    """Write images, or the bytes of files, as parquet; their classes are 0 1 0 1."""
    root.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        rows = [{"bytes": each if isinstance(each, bytes) else as_file(each), "path": None} for each in images]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        labels = [row % 2 for row in range(len(rows))]
        parquet.write_table(pa.table({"image": pa.array(rows, kind), "label": labels}), root / f"{split}-0.parquet")
    return root


def in_folders(root: Path) -> Path:
    for split, count in COUNTS.items():
        for row, image in enumerate(drawn(count)):
            place = root / split / "ab"[row % 2]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{row:02}.png")
    return root


def load(root: Path, name: str = "parquet", **options: Any) -> data.Data:
    return data.load(name, root, **{"workers": 0, "batch_size": 4, **options})


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])


def same(one: data.Data, other: data.Data) -> bool:
    pairs = [(getattr(one, split), getattr(other, split)) for split in ("train", "val", "test")]
    held = all(torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in pairs)
    return held and one.pipeline == other.pipeline


def only(folder: Path) -> Path:
    """The larger of the files kept: that of train."""
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


# what is decoded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"samples": 9}, {"samples": 9, "labels": 4, "split_seed": 3}])
@pytest.mark.parametrize("known", [{}, KNOWN])
@pytest.mark.parametrize("name", ["parquet", "imagefolder"])
def test_the_samples_are_those_that_decoding_all_and_choosing_gives(
    tmp_path: Path, root: Path, name: str, options: Any, known: Any
) -> None:
    images, targets = pixels(drawn(COUNTS["train"])), torch.arange(COUNTS["train"]) % 2
    order = torch.arange(COUNTS["train"])
    if name == "imagefolder":  # one class after the other
        root, order = in_folders(tmp_path / "folders"), targets.argsort(stable=True)
    seed = options.get("split_seed", 0)
    kept, held = hold_out(targets[order], 0.1, generator("val", seed))
    if "samples" in options:
        kept = kept[balanced(targets[order][kept], 9, generator("samples", seed), "samples")[1]]
    found = load(root, name, **options, **known)
    for again in (found, load(root, name, **options, **known)):
        assert isinstance(again.train, Loader)
        assert torch.equal(again.train.images, images[order][kept])
        assert torch.equal(again.val.images, images[order][held])
        assert torch.equal(again.val.targets, targets[order][held])
        assert again.pipeline["files"] == "52 images of 6x6"
        assert same(again, found)
    hidden = found.train.targets == -100
    assert torch.equal(found.train.targets[~hidden], targets[order][kept][~hidden])
    assert int((~hidden).sum()) == options.get("labels", len(kept))
    shades = images.double() / 255
    wanted = known.get("mean", shades.mean((0, 2, 3)).tolist())
    assert found.mean == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({**KNOWN}, 40 + 12),
        ({**KNOWN, "samples": 9}, 9 + 4 + 12),
        ({"samples": 9}, 40 + 12),  # of which the mean is computed
    ],
)
def test_only_what_is_asked_for_is_decoded_and_once(root: Path, decodings: list[str], options: Any, count: int) -> None:
    load(root, **options)
    assert len(decodings) == len(set(decodings)) == count
    load(root, **options)
    assert len(decodings) == count


def test_all_that_are_kept_serve_some(root: Path, decodings: list[str]) -> None:
    whole = load(root)
    decodings.clear()
    some = load(root, samples=9)
    assert decodings == []
    assert set(map(bytes, some.train.images.flatten(1).numpy())) <= set(
        map(bytes, whole.train.images.flatten(1).numpy())
    )


def test_as_many_others_are_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [load(root, samples=9, split_seed=seed, **KNOWN) for seed in (0, 1, 0)]
    monkeypatch.setenv("LIMBECK_DECODED", "off")
    assert same(found[1], load(root, samples=9, split_seed=1, **KNOWN))
    assert same(found[2], found[0])
    assert not same(found[1], found[0])


@pytest.mark.parametrize("off", [False, True])
def test_what_is_not_asked_for_decides_channels_sizes_and_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: bool
) -> None:
    if off:
        monkeypatch.setenv("LIMBECK_DECODED", "off")
    plain = grey(COUNTS["train"])
    seen = load(written(tmp_path / "plain", {"train": plain, "test": grey(12)}), samples=4, mean=(0.5,), std=(0.5,))
    assert seen.shape == (1, SIDE, SIDE)
    used = {bytes(one) for split in (seen.train, seen.val) for one in split.images.flatten(1).numpy()}
    unused = [row for row, image in enumerate(plain) if image.tobytes() not in used][-1]

    def beside(name: str, odd: Any) -> data.Data:
        images = [odd if row == unused else image for row, image in enumerate(plain)]
        channels = 3 if name in ("coloured", "larger") else 1
        means = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
        options = {**means, "size": SIDE} if name == "larger" else means
        root = written(tmp_path / name, {"train": images, "test": grey(12)})
        return [load(root, samples=4, **options) for _ in range(2)][1]

    coloured = beside("coloured", drawn(1)[0])
    assert torch.equal(coloured.train.images, seen.train.images.expand(-1, 3, -1, -1))
    assert coloured.shape == (3, SIDE, SIDE)
    assert isinstance(beside("larger", Image.new("L", (SIDE + 1, SIDE))).train, FileLoader)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = beside("turned", as_file(plain[unused], exif=exif))
    assert turned.pipeline["files"] == "52 images of 6x6; 1 turned upright by their EXIF data"
    with pytest.raises(ValueError, match=rf"train-0.parquet, image {unused}: expected a whole image file"):
        beside("broken", b"no image")
    with pytest.raises(ValueError, match=rf"image {unused}: .*floating-point values"):
        beside("floating", as_file(Image.new("F", (SIDE, SIDE)), "TIFF"))


def test_a_grey_split_among_coloured_ones_has_their_channels(tmp_path: Path) -> None:
    root = written(tmp_path, {"train": drawn(40), "test": grey(12)})
    for found in (load(root), load(root)):
        assert torch.equal(found.test.images, pixels(grey(12)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "clear"])
def test_a_header_tells_whether_the_image_will_be_grey(mode: str) -> None:
    grey = Image.new("L", (4, 4), 7)
    content = {
        "CMYK": lambda: as_file(Image.new("CMYK", (4, 4)), "JPEG"),
        "I;16": lambda: as_file(Image.fromarray(np.full((4, 4), 5, np.uint16))),
        "clear": lambda: as_file(grey, transparency=7),
    }.get(mode, lambda: as_file(grey.convert(mode)))()
    image, seen = pictures.pixels(content, "it")
    assert decoded._grey(seen) == (image.mode == "L") == (mode in ("1", "L", "LA", "I;16", "clear"))


# what is kept ---------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(bytes(pixels(drawn(40))[0, 0, 0].tolist()))
    content[place] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Put the other split's in its place, whole and of limbeck's making."""
    other = next(one for one in path.parent.iterdir() if one != path)
    path.write_bytes(other.read_bytes())


def foreign(value: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(value(path), path)


def entry(path: Path, **changes: Any) -> dict[str, Any]:
    return {**torch.load(path, weights_only=True), **changes}


HARM = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "another's": exchange,
    "a list": foreign(lambda path: [1, 2]),
    "fewer": foreign(lambda path: entry(path, pixels=torch.zeros(39, 3, SIDE, SIDE, dtype=torch.uint8))),
    "floats": foreign(lambda path: entry(path, pixels=torch.zeros(40, 3, SIDE, SIDE))),
    "four channels": foreign(lambda path: entry(path, pixels=torch.zeros(40, 4, SIDE, SIDE, dtype=torch.uint8))),
    "no name": foreign(lambda path: entry(path, of="")),
}


@pytest.mark.parametrize("case", HARM)
def test_what_is_damaged_or_foreign_is_decoded_again_and_replaced(
    folder: Path, root: Path, decodings: list[str], caplog: pytest.LogCaptureFixture, case: str
) -> None:
    whole = load(root)
    path = only(folder)
    good = path.read_bytes()
    HARM[case](path)
    assert path.read_bytes() != good
    decodings.clear()
    with caplog.at_level(logging.INFO, "limbeck"):
        assert same(load(root), whole)
    assert len(decodings) == 40
    assert [path.name in line for line in caplog.messages] == [True]
    assert entry(path).keys() == {"of", "pixels", "turned", "frames"}
    assert same(load(root), whole)
    assert len(decodings) == 40


def test_what_lies_elsewhere_in_the_folder_is_not_read(folder: Path, root: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".half.123.ckpt").write_bytes(b"half")
    assert same(load(root), load(root))


def test_other_bytes_are_other_images(tmp_path: Path, decodings: list[str]) -> None:
    """One pixel, in files that are as long and begin alike."""
    images = drawn(40)
    root = written(tmp_path, {"train": [as_file(image, "BMP") for image in images], "test": drawn(12)})
    before = load(root)
    decodings.clear()
    images[5].putpixel((3, 3), (1, 2, 3))
    after = load(written(root, {"train": [as_file(image, "BMP") for image in images]}))
    assert len(decodings) == 40
    assert sum(
        int((getattr(after, split).images != getattr(before, split).images).sum()) for split in ("train", "val")
    ) in (1, 2, 3)


def test_files_where_they_lie_are_known_by_their_bytes(tmp_path: Path, decodings: list[str]) -> None:
    root = in_folders(tmp_path / "folders")
    whole = load(root, "imagefolder")
    decodings.clear()
    assert same(load(root.rename(tmp_path / "elsewhere"), "imagefolder"), whole)
    assert decodings == []
    path = tmp_path / "elsewhere" / "train" / "a" / "00.png"
    times = path.stat()
    Image.new("RGB", (SIDE, SIDE), "white").save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not same(load(tmp_path / "elsewhere", "imagefolder"), whole)


@pytest.mark.parametrize(
    ("thing", "name", "value"),
    [
        ("PIL", "__version__", "0.1"),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        (decoded, "FORMAT", 0),
        ("PIL.features", "version", lambda name: "1"),
        ("inspect", "getsource", lambda module: "def pixels(): ..."),
    ],
)
def test_another_decoder_decodes_again(
    root: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch, thing: Any, name: str, value: Any
) -> None:
    load(root)
    decodings.clear()
    target = thing if not isinstance(thing, str) else __import__(thing, fromlist=["it"])
    monkeypatch.setattr(target, name, value)
    load(root)
    assert len(decodings) == 52


# where it is kept -----------------------------------------------------------------------------------------------------


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIMBECK_DECODED", "~/mine")
    assert decoded.cache() == tmp_path / "mine/decoded"
    monkeypatch.setenv("LIMBECK_DECODED", "off")
    assert decoded.cache() is None
    monkeypatch.delenv("LIMBECK_DECODED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/users")
    assert decoded.cache() == Path("/of/users/limbeck/decoded")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert decoded.cache() == tmp_path / ".cache/limbeck/decoded"

    def homeless(*_: Any) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert decoded.cache() is None


def test_nothing_is_kept_where_the_user_wants_none_or_images_are_few(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[str]
) -> None:
    monkeypatch.setattr(decoded, "LEAST", 41)
    load(root)
    monkeypatch.setattr(decoded, "LEAST", 40)
    monkeypatch.setattr(decoded, "MOST", 40 * 3 * SIDE * SIDE - 1)
    load(root)
    monkeypatch.undo()
    monkeypatch.setenv("LIMBECK_DECODED", "off")
    monkeypatch.setattr(decoded, "LEAST", 1)
    monkeypatch.chdir(root)
    load(root)
    assert not folder.exists()
    assert not Path("off").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed"), None])
def test_a_folder_that_takes_nothing_is_told_of_and_no_more(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    monkeypatch.setenv("LIMBECK_DECODED", "off")
    whole = load(root)
    monkeypatch.setenv("LIMBECK_DECODED", str(folder.parent))

    def failing(*_: Any) -> None:
        assert error is not None
        raise error

    if error is None:
        folder.parent.write_text("a file, where a folder is to be made")
    else:
        monkeypatch.setattr("limbeck.core.files.torch.save", failing)
    assert same(load(root), whole)
    assert len(caplog.records) == 1
    assert "decoded images are not kept for the next start" in caplog.text
    assert error is None or not list(folder.iterdir())


def test_what_was_not_read_for_longest_makes_room(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "LEAST", 30)  # of train alone

    def kept(count: int) -> Path:
        there = set(folder.glob("*"))
        load(root(count))
        return next(iter(set(folder.glob("*")) - there))

    def root(count: int) -> Path:
        return written(tmp_path / str(count), {"train": drawn(count), "test": drawn(12)})

    files = [kept(count) for count in (37, 38, 39)]
    for age, file in enumerate(files):
        os.utime(file, (age, age))
    load(root(37))  # which is of use again
    beside = folder.parent / "mine.ckpt"
    beside.write_bytes(bytes(10**6))
    monkeypatch.setattr(decoded, "MOST", int(3.5 * files[2].stat().st_size))
    newest = kept(40)
    assert {*folder.iterdir()} == {files[0], files[2], newest}
    assert beside.exists()


def test_two_that_decode_at_once_keep_the_same(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has written while this one decoded."""
    plain, others = decoded._decode, []

    def slow(split: Encoded, rows: Tensor) -> Any:
        if not others:
            others.append(None)
            others[0] = load(root)
        return plain(split, rows)

    monkeypatch.setattr(decoded, "_decode", slow)
    assert same(load(root), others[0])
    assert len(list(folder.iterdir())) == 2
