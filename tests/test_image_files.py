"""Image files: what is served hangs on (seed, view, lap, id) alone, whoever decodes it, and looks as torchvision has it."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import signal
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from limbeck.data import FileLoader, Items, files
from limbeck.data.epochs import digest
from limbeck.data.source import Encoded

COUNT, BATCH, SIZE = 12, 4, 16
EXIF = 0x0112


def photo(wide: int, high: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with edges, as photographs have."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (high // 40 + 2, wide // 40 + 2, 3), dtype=np.uint8))
    return coarse.resize((wide, high), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# Half of them are so large that parts of them are decoded at reduced size.
PHOTOS = [encoded(photo(*((40, 30) if row % 2 else (230, 190)), seed=row)) for row in range(COUNT)]


def loader(images: list[bytes] = PHOTOS, **options: Any) -> FileLoader:
    given = {"batch_size": BATCH, "augment": "crop-flip", "size": SIZE, "workers": 0, "shuffle": True, **options}
    return FileLoader(Encoded(images, "memory"), torch.arange(len(images)), **given)


def contents(batches: Any) -> list[str]:
    return [digest(batch) for batch in batches]


def drawn(image: bytes, size: int, seed: int) -> Tensor:
    """A random part as it is served, before normalisation, float (3, size, size)."""
    torch.manual_seed(seed)
    return files._pictures(Encoded([image], "memory"), "crop", size).samples[0][0].float()


def reference(image: Image.Image, size: int, seed: int) -> Tensor:
    """The part that torchvision draws, cuts out and resizes of a decoded image."""
    torch.manual_seed(seed)
    return v2.functional.pil_to_tensor(v2.RandomResizedCrop(size)(image)).float()


# ------------------------------------------------------------------------------------------------------- what is drawn


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """By how much files are shrunk as they are decoded."""
    shrunk: list[int] = []
    whole = files._Parts._shrunk

    def noted(self: files._Parts, row: int, by: int) -> Image.Image:
        shrunk.append(by)
        return whole(self, row, by)

    monkeypatch.setattr(files._Parts, "_shrunk", noted)
    return shrunk


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_random_parts_are_those_of_torchvision(kind: str, opened: list[int]) -> None:
    image = encoded(photo(70, 50), kind)
    whole = Image.open(io.BytesIO(image)).convert("RGB")
    for seed in range(12):
        apart = (drawn(image, 32, seed) - reference(whole, 32, seed)).abs()
        assert apart.mean() < 0.1
        assert apart.max() <= 3
    assert opened == []


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_parts_of_large_jpegs_are_decoded_at_reduced_size_and_look_the_same(
    orientation: int, opened: list[int]
) -> None:
    exif = Image.Exif()
    exif[EXIF] = orientation
    image = encoded(photo(640, 480), quality=90, exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    for seed in range(12):
        found = drawn(image, SIZE, seed)
        assert (found - reference(whole, SIZE, seed)).abs().mean() < 2  # saturated colours; photographs have 0.7
        assert (found - reference(whole, SIZE, seed + 1)).abs().mean() > 10  # another part
    assert set(opened) == {4, 8}


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_jpegs_are_reduced_too(mode: str, opened: list[int]) -> None:
    image = encoded(photo(400, 400).convert(mode), quality=90)
    whole = Image.open(io.BytesIO(image)).convert("RGB")
    apart = (drawn(image, SIZE, 1) - reference(whole, SIZE, 1)).abs()
    assert apart.mean() < 1.5
    assert len(opened) == 1


def test_what_is_no_jpeg_is_decoded_whole_and_laid_on_white(opened: list[int]) -> None:
    clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    assert drawn(encoded(clear, "PNG"), SIZE, 0).min() == 255
    assert opened == []


def test_a_part_is_reduced_no_further_than_to_twice_the_input(
    monkeypatch: pytest.MonkeyPatch, opened: list[int]
) -> None:
    image = encoded(photo(300, 300))
    for side, by in ((63, []), (64, [2]), (127, [2]), (128, [4]), (255, [4]), (256, [8]), (300, [8])):
        opened.clear()
        monkeypatch.setattr(files, "_part", lambda wide, high, side=side: (0, 0, side, side))
        drawn(image, SIZE, 0)
        assert opened == by, side


def test_a_broken_jpeg_is_named_when_it_is_decoded_at_reduced_size(opened: list[int]) -> None:
    cut = encoded(photo(640, 480), quality=95)[:-3000]
    with pytest.raises(ValueError, match=r"memory, image 0: expected a whole image file, got .*trunc"):
        drawn(cut, SIZE, 0)
    assert opened


def test_half_are_mirrored() -> None:
    pixels = torch.arange(12).reshape(1, 3, 4)
    torch.manual_seed(0)
    found = [files._mirrored(pixels, 5) for _ in range(200)]
    mirrored = [not torch.equal(each, pixels) for each, _ in found]
    assert 70 < sum(mirrored) < 130
    assert all(
        torch.equal(each, pixels.flip(-1) if turned else pixels)
        for (each, _), turned in zip(found, mirrored, strict=True)
    )
    assert {row for _, row in found} == {5}


def test_without_augmentation_pixels_are_torchvisions_own() -> None:
    shown = loader(augment="none", shuffle=False, batch_size=COUNT, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    change = v2.Compose([v2.Resize(round(SIZE * 8 / 7)), v2.CenterCrop(SIZE), v2.PILToTensor()])
    wanted = torch.stack([change(Image.open(io.BytesIO(image)).convert("RGB")) for image in PHOTOS])
    (inputs, _, _) = next(iter(shown))
    torch.testing.assert_close(inputs, wanted.float(), rtol=0, atol=1e-4)
    assert torch.equal(next(iter(loader().plain()))[0], next(iter(loader(augment="none", shuffle=False)))[0])


# ------------------------------------------------------------------------------------------------- whoever decodes it


def views(source: FileLoader, count: int = 2) -> list[list[str]]:
    return [contents(source) for _ in range(count)]


def test_workers_serve_what_this_process_would_in_every_view() -> None:
    alone = views(loader(), 3)
    assert alone[0] != alone[1]
    assert views(loader(workers=2), 3) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_a_view(workers: int) -> None:
    first, second = views(loader())
    begun = loader(workers=workers)
    iterator = iter(begun)
    assert digest(next(iterator)) == first[0]
    resumed = loader(workers=workers)
    resumed.load_state_dict(begun.state_dict())
    assert contents(resumed) == first[1:]
    assert contents(resumed) == second
    begun.load_state_dict(begun.state_dict())  # in the very loader, whose workers have batches under way
    assert contents(begun) == first[1:]
    assert contents(begun) == second


@pytest.mark.parametrize("workers", [0, 2])
def test_iterators_left_off_and_gone_on_with_later(workers: int) -> None:
    first, second, third = views(loader(), 3)
    source = loader(workers=workers)
    old = iter(source)
    assert digest(next(old)) == first[0]
    assert contents(source) == second  # while the old one stands where it stood
    assert contents(old) == first[1:]
    left = iter(source)
    next(left)
    del left
    source.set_epoch(2)
    assert contents(source) == third


def test_views_at_once_take_turns() -> None:
    first, second = views(loader())
    source = loader(workers=2)
    both = list(zip(source, source, strict=True))
    assert [digest(one) for one, _ in both] == first
    assert [digest(other) for _, other in both] == second


def test_views_that_cycle_and_batches_of_one_of_them() -> None:
    pair = [loader(seed=5, workers=workers).cycling(3, seed=1) for workers in (0, 2)]
    served = [[batch for _ in range(4) for batch in source] for source in pair]
    assert contents(served[0]) == contents(served[1])
    looks: dict[tuple[int, int], Tensor] = {}
    for number, (inputs, _, ids) in enumerate(served[1]):
        looks |= {(number // 3 % 3, row): each for row, each in zip(ids.tolist(), inputs, strict=True)}
    assert not torch.equal(looks[0, 0], looks[1, 0])
    for source in pair:
        for number in range(3):
            for inputs, _, ids in source.seen(number, torch.arange(COUNT).split(5)):
                assert all(
                    torch.equal(each, looks[number, row]) for row, each in zip(ids.tolist(), inputs, strict=True)
                )


# -------------------------------------------------------------------------------------------------- workers that stay


class Whose:
    """Samples that say which process read them."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row < 0:
            raise IndexError(row)
        return torch.tensor(multiprocessing.current_process().pid), row


def readers(batches: Any) -> set[int]:
    return {pid for pids, _, _ in batches for pid in pids.tolist()}


@pytest.fixture
def whose() -> Items:
    return Items(Whose(), batch_size=BATCH, workers=2, transform=lambda inputs, target: (inputs, target))


def test_workers_stay_for_the_next_view_and_for_copies(whose: Items) -> None:
    first = readers(whose)
    assert len(first) == 2
    assert readers(whose) == first
    assert readers(whose.with_seed(3)) == first
    next(iter(whose))
    assert readers(whose) == first


def test_a_single_batch_is_read_here(whose: Items) -> None:
    here = {multiprocessing.current_process().pid}
    assert readers([whose.few(), *whose.cycling(1).seen(0, [torch.arange(3)])]) == here
    assert multiprocessing.active_children() == []


def test_views_at_once_have_workers_of_their_own(whose: Items) -> None:
    pairs = list(zip(whose, whose, strict=True))
    one, other = (readers(batches) for batches in zip(*pairs, strict=True))
    assert not one & other
    assert readers(whose) in (one, other)


def test_copies_by_value_have_workers_of_their_own() -> None:
    source = loader(workers=2)
    first, second = views(source)
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        other.set_epoch(0)
        assert views(other) == [first, second]


def test_workers_end_with_the_loader(whose: Items) -> None:
    source = loader(workers=2)
    contents(source)
    assert len(multiprocessing.active_children()) == 2
    del source
    assert multiprocessing.active_children() == []


def test_workers_leave_ctrl_c_to_the_main_process(whose: Items) -> None:
    first = readers(whose)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    assert readers(whose) == first
