"""Data sets: every format as it lies on disk, and loaders whose batches depend on (seed, view, ids) alone."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional

import limbeck
from limbeck import data
from limbeck.data import Data, Epochs, FileLoader, Loader, Rows
from limbeck.data.augment import Cutout, Flip, PadCrop
from limbeck.data.epochs import known
from limbeck.data.repeatable import splits
from limbeck.data.sets import statistics
from limbeck.data.source import Encoded

SHARED = Path(__file__).resolve().parents[2] / "shared"
Batches = list[tuple[Tensor, Tensor, Tensor]]


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def classes(count: int, num_classes: int = 10) -> np.ndarray:
    return (np.arange(count) % num_classes).astype(np.int64)


def equal(left: Iterable, right: Iterable) -> bool:
    left, right = list(left), list(right)
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


def ids_of(batches: Iterable) -> list[int]:
    return torch.cat([ids for _, _, ids in batches]).tolist()


def recovered(loader: Loader) -> Tensor:
    """The pixels that a loader without augmentation serves, normalisation undone."""
    inputs = torch.cat([inputs for inputs, _, _ in loader.plain()])
    return ((inputs - loader.normalise.shift) / loader.normalise.scale).round().to(torch.uint8)


# ---------------------------------------------------------------------------------------------------- formats on disk


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_idx(root: Path, *, zipped: bool = False, train: int = 60, test: int = 20) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        for kind, array in (("images-idx3", pixels(count, 28, 28, seed=count)), ("labels-idx1", classes(count))):
            content = idx_bytes(array)
            name = f"{prefix}-{kind}-ubyte" + ".gz" * zipped
            (root / name).write_bytes(gzip.compress(content) if zipped else content)
    return root


def write_cifar10(root: Path, *, binary: bool = False, count: int = 20) -> Path:
    place = root / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    place.mkdir(parents=True)
    names = [f"class{target}" for target in range(10)]
    for seed, file in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        images, targets = pixels(count, 3072, seed=seed), classes(count)
        if binary:
            rows = np.concatenate([targets[:, None].astype(np.uint8), images], 1)
            (place / f"{file}.bin").write_bytes(rows.tobytes())
        else:
            batch = {"data": images, "labels": targets.tolist(), "batch_label": file}
            (place / file).write_bytes(pickle.dumps(batch, protocol=2))
    if binary:
        (place / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    else:
        (place / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))
    return root


def write_cifar100(root: Path, *, binary: bool = False, count: int = 200) -> Path:
    place = root / ("cifar-100-binary" if binary else "cifar-100-python")
    place.mkdir(parents=True)
    fine = classes(count, 100)
    names = [f"class{target}" for target in range(100)]
    for seed, file in enumerate(("train", "test")):
        images, coarse = pixels(count, 3072, seed=seed), fine // 5
        if binary:
            labels = np.stack([coarse, fine], 1).astype(np.uint8)
            (place / f"{file}.bin").write_bytes(np.concatenate([labels, images], 1).tobytes())
        else:
            batch = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            (place / file).write_bytes(pickle.dumps(batch, protocol=2))
    if binary:
        (place / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (place / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    return root


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def write_folder(
    root: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), side: int = 16, count: int = 12
) -> Path:
    for split in splits:
        for name in ("ant", "bee"):
            place = root / split / name
            place.mkdir(parents=True)
            for number, image in enumerate(pixels(count, side, side, 3, seed=len(name + split))):
                (place / f"{number:03}.png").write_bytes(encoded(image))
    return root


def write_parquet(
    file: Path,
    images: list[bytes | None],
    labels: Iterable[object],
    names: list[str] | None = None,
    column: str = "image",
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": None} for image in images]
    table = pa.table(
        {column: pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": list(labels)}
    )
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, file)


def write_hf(root: Path, *, splits: tuple[str, ...] = ("train", "test"), count: int = 30, side: int = 8) -> Path:
    for split in splits:
        images = [encoded(image) for image in pixels(count, side, side, 3, seed=len(split))]
        write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", images, classes(count, 3), ["a", "b", "c"])
    return root


# ------------------------------------------------------------------------------------------------------- small loaders


def in_memory(count: int = 48, **options: object) -> Loader:
    images = torch.from_numpy(pixels(count, 3, 8, 8))
    options = {"batch_size": 8, "augment": (PadCrop(2), Flip(), Cutout(4)), "shuffle": True, **options}
    targets = options.pop("targets", torch.from_numpy(classes(count)))
    return Loader(images, targets, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def from_files(count: int = 48, **options: object) -> FileLoader:
    files = [encoded(image, "BMP") for image in pixels(count, 20, 24, 3)]
    options = {"batch_size": 8, "augment": "crop-flip", "size": 12, "workers": 0, "shuffle": True, **options}
    targets = options.pop("targets", torch.from_numpy(classes(count)))
    return FileLoader(Encoded(files, "memory"), targets, **options)


both = pytest.mark.parametrize("make", [in_memory, from_files])
Make = Callable[..., Epochs]


# --------------------------------------------------------------------------------------------------------- load(): each


def test_digits_are_the_default_that_needs_no_files():
    digits = data.load("digits")
    assert (digits.shape, digits.num_classes) == ((1, 8, 8), 10)
    assert [len(loader.targets) for loader in (digits.train, digits.val, digits.test)] == [1294, 144, 359]
    assert torch.bincount(digits.test.targets).min() >= 34


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    parts = torch.cat([recovered(loader) for loader in (digits.train, digits.val, digits.test)])
    ours = sorted(tuple(image) for image in (parts.flatten(1) // 15).tolist())
    assert ours == sorted(tuple(image) for image in load_digits().data.astype(int).tolist())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "MNIST/raw", "raw"])
def test_idx(tmp_path: Path, zipped: bool, place: str):
    write_idx(tmp_path / place, zipped=zipped)
    mnist = data.load("mnist", tmp_path)
    assert (mnist.shape, mnist.num_classes) == ((1, 28, 28), 10)
    assert torch.equal(recovered(mnist.test), torch.from_numpy(pixels(20, 28, 28, seed=20))[:, None])
    assert torch.equal(mnist.test.targets, torch.from_numpy(classes(20)))


def test_fashion_is_not_taken_for_mnist_where_both_lie(tmp_path: Path):
    write_idx(tmp_path / "MNIST/raw", test=20)
    write_idx(tmp_path / "FashionMNIST/raw", test=30)
    assert len(data.load("mnist", tmp_path).test.targets) == 20
    fashion = data.load("fashion-mnist", tmp_path)
    assert (len(fashion.test.targets), fashion.classes[9]) == (30, "Ankle boot")


@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(tmp_path: Path, binary: bool):
    cifar = data.load("cifar10", write_cifar10(tmp_path, binary=binary))
    assert (cifar.shape, cifar.classes[9], len(cifar.train.targets)) == ((3, 32, 32), "class9", 90)
    assert torch.equal(recovered(cifar.test), torch.from_numpy(pixels(20, 3, 32, 32, seed=5)))
    assert torch.equal(cifar.test.targets, torch.from_numpy(classes(20)))


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_has_the_fine_labels(tmp_path: Path, binary: bool):
    cifar = data.load("cifar100", write_cifar100(tmp_path, binary=binary))
    assert (cifar.num_classes, cifar.classes[99]) == (100, "class99")
    assert torch.equal(cifar.test.targets, torch.from_numpy(classes(200, 100)))
    assert torch.equal(recovered(cifar.test), torch.from_numpy(pixels(200, 3, 32, 32, seed=1)))


def test_cifar_files_may_lie_in_root_itself(tmp_path: Path):
    write_cifar10(tmp_path)
    assert len(data.load("cifar10", tmp_path / "cifar-10-batches-py").test.targets) == 20


def test_imagefolder(tmp_path: Path):
    folder = data.load("imagefolder", write_folder(tmp_path))
    assert (folder.shape, folder.classes) == ((3, 16, 16), ("ant", "bee"))
    assert isinstance(folder.train, Loader)
    assert folder.val.targets.tolist() == [0] * 12 + [1] * 12
    expected = torch.from_numpy(pixels(12, 16, 16, 3, seed=len("anttest"))).permute(0, 3, 1, 2)
    assert torch.equal(recovered(folder.test)[:12], expected)


def test_validation_serves_as_test_where_there_is_no_other(tmp_path: Path):
    folder = data.load("imagefolder", write_folder(tmp_path, splits=("train", "val")), val_share=0.25)
    assert [len(loader.targets) for loader in (folder.train, folder.val, folder.test)] == [18, 6, 24]
    assert "serves as test" in folder.note


def test_a_test_folder_without_classes_is_left_alone(tmp_path: Path):
    write_folder(tmp_path, splits=("train", "val"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_bytes(encoded(pixels(1, 16, 16, 3)[0]))
    assert len(data.load("imagefolder", tmp_path).test.targets) == 24


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "{}.parquet", "default/{}/0000.parquet"])
def test_parquet(tmp_path: Path, layout: str):
    for split in ("train", "validation", "test"):
        images = [encoded(image) for image in pixels(30, 8, 8, 3, seed=len(split))]
        write_parquet(tmp_path / layout.format(split), images, classes(30, 3), ["a", "b", "c"], column="img")
    hf = data.load("parquet", tmp_path)
    assert (hf.shape, hf.classes, len(hf.val.targets)) == ((3, 8, 8), ("a", "b", "c"), 30)
    assert torch.equal(recovered(hf.test), torch.from_numpy(pixels(30, 8, 8, 3, seed=4)).permute(0, 3, 1, 2))


def test_parquet_without_metadata_numbers_its_classes_and_joins_its_shards(tmp_path: Path):
    grey = [encoded(image) for image in pixels(10, 8, 8)]
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(tmp_path / f"{name}.parquet", grey, classes(10, 4))
    hf = data.load("parquet", tmp_path, val_share=0.2)
    assert (hf.classes, hf.shape) == (("0", "1", "2", "3"), (1, 8, 8))
    assert len(hf.train.targets) + len(hf.val.targets) == 20


def test_parquet_test_rows_without_labels_are_no_test_split(tmp_path: Path):
    write_hf(tmp_path, splits=("train", "validation"))
    write_parquet(tmp_path / "data/test-0.parquet", [encoded(pixels(1, 8, 8, 3)[0])] * 5, [-1] * 5)
    hf = data.load("parquet", tmp_path)
    assert len(hf.test.targets) == 30
    assert "the test split has no labels" in hf.note


def test_cifar_is_read_from_parquet_too(tmp_path: Path):
    assert data.load("cifar10", write_hf(tmp_path)).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "root", "shape", "counts"),
    [
        ("mnist", "data-mini/mnist", (1, 28, 28), (2000, 1000)),
        ("cifar10", "data-mini/cifar10", (3, 32, 32), (5000, 1000)),
        ("parquet", "data-mini/tiny_imagenet", (3, 64, 64), (1200, 400)),
        ("mnist", "data/mnist", (1, 28, 28), (60000, 10000)),
    ],
)
def test_real_data_as_it_lies(name: str, root: str, shape: tuple[int, ...], counts: tuple[int, int]):
    if not (SHARED / root).is_dir():
        pytest.skip(f"{SHARED / root} is not here")
    real = data.load(name, SHARED / root)
    assert real.shape == shape
    assert (len(real.train.targets) + len(real.val.targets), len(real.test.targets)) == counts
    inputs, targets, _ = next(iter(real.train))
    assert inputs.shape == (128, *shape)
    assert targets.max() < real.num_classes
    plain = real.example(512)
    assert plain.mean().abs() < 0.1
    assert 0.9 < plain.std() < 1.1


def test_downloading_is_torchvisions_and_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(root: str, download: bool) -> None:
        asked.append(download)
        write_cifar10(Path(root))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fetch)
    with pytest.raises(FileNotFoundError, match="download=True"):
        data.load("cifar10", tmp_path)
    assert asked == []
    data.load("cifar10", tmp_path, download=True)
    data.load("cifar10", tmp_path, download=True)
    assert asked == [True]


def test_names_and_their_lines():
    built_in = ["digits", "digits-attributes", "diabetes"]
    files = ["mnist", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "parquet"]
    assert data.names() == [*built_in, *files, "voc-masks", "cityscapes", "masks"]
    assert [name for name, _ in data.describe()] == data.names()
    assert all(10 < len(line) <= 100 for _, line in data.describe())


# -------------------------------------------------------------------------------------------- load(): splits and labels


def test_splits_are_disjoint_and_hang_on_split_seed_alone(tmp_path: Path):
    root = write_idx(tmp_path, train=200)

    def split(**seeds: int) -> tuple[Tensor, Tensor]:
        mnist = data.load("mnist", root, **seeds)
        return recovered(mnist.train), recovered(mnist.val)

    train, val = split()
    together = {image.numpy().tobytes() for image in torch.cat([train, val])}
    assert together == {image.tobytes() for image in pixels(200, 28, 28, seed=200)}
    assert (len(train), len(val)) == (180, 20)
    assert all(torch.equal(a, b) for a, b in zip((train, val), split(seed=1), strict=True))
    assert not torch.equal(val, split(split_seed=1)[1])


def test_validation_has_every_class_in_proportion():
    assert torch.bincount(data.load("digits", val_share=0.2).val.targets).tolist() == pytest.approx([29] * 10, abs=1)


def test_samples_and_labels_are_balanced():
    few = data.load("digits", samples=200, labels=50)
    assert len(few.train.targets) == 200
    kept = few.train.targets[few.train.targets >= 0]
    assert torch.bincount(kept).tolist() == [5] * 10
    assert set(few.train.targets.tolist()) == {-100, *range(10)}
    assert (few.val.targets >= 0).all()


def test_more_labels_contain_fewer():
    few, more = (data.load("digits", labels=count).train.targets >= 0 for count in (50, 500))
    assert (more[few]).all()
    assert int(more.sum()) == 500


def test_labelled_trains_as_many_steps_on_the_labels_alone():
    few = data.load("digits", labels=50, batch_size=64)
    labelled = few.labelled()
    batches = list(labelled.train)
    assert len(batches) == len(few.train) == len(labelled.train)
    assert {len(ids) for _, _, ids in batches} == {64}
    assert all((targets >= 0).all() for _, targets, _ in batches)
    served = torch.bincount(torch.tensor(ids_of(batches)), minlength=1294)
    assert served[few.train.targets >= 0].max() - served[few.train.targets >= 0].min() <= 1
    assert served[few.train.targets < 0].sum() == 0


def test_labelled_draws_every_lap_anew():
    loader = in_memory(16, augment=(PadCrop(3),))
    loader.targets[4:] = -100
    (first, _, ids), (second, _, others) = list(loader.labelled())
    rows = [first[ids == 0], second[others == 0]]
    looks = torch.cat(rows)
    assert len(looks) == 4
    assert len(torch.unique(looks, dim=0)) > 1


def test_all_labelled_is_what_it_was():
    digits = data.load("digits")
    assert equal(digits.labelled().train, digits.train)


def test_example_is_not_augmented_and_leaves_the_loaders_alone():
    digits = data.load("digits")
    example = digits.example(4)
    assert example.shape == (4, 1, 8, 8)
    assert torch.equal(example, data.load("digits", augment="none", seed=3).example(4))
    assert digits.train.state_dict() == {"view": 0, "batch": 0}


def test_with_seed_is_load_with_that_seed_and_shares_memory():
    digits = data.load("digits")
    other = digits.with_seed(5)
    assert equal(other.train, data.load("digits", seed=5).train)
    assert not equal(other.train, digits.train)
    assert other.train.images.data_ptr() == digits.train.images.data_ptr()


def test_images_stay_bytes():
    digits = data.load("digits")
    list(digits.train)
    floats = [value for value in vars(digits.train).values() if isinstance(value, Tensor) and value.is_floating_point()]
    assert digits.train.images.dtype == torch.uint8
    assert floats == []


def test_moving_changes_where_batches_are_and_not_what():
    meta = data.load("digits").to("meta")
    assert next(iter(meta.test))[0].device.type == "meta"
    digits = data.load("digits")
    before = list(digits.test)
    assert equal(digits.to("cpu").test, before)


def test_statistics_are_numpys():
    images = pixels(20, 3, 5, 7)
    mean, std = statistics(torch.from_numpy(images))
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)))
    assert std == pytest.approx((images / 255).std((0, 2, 3)))


def test_computed_statistics_normalise():
    inputs = torch.cat([inputs for inputs, _, _ in data.load("digits").train.plain()])
    assert inputs.mean().item() == pytest.approx(0, abs=0.01)
    assert inputs.std().item() == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------------------------------------------- loaders


@both
def test_every_sample_once_a_view_in_a_new_order(make: Make):
    loader = make()
    first, second = ids_of(loader), ids_of(loader)
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert ids_of(loader.plain()) == list(range(48))


@both
def test_a_batch_hangs_on_seed_and_view_alone(make: Make):
    loader = make()
    views = [list(loader) for _ in range(3)]
    torch.rand(7)
    again = make()
    again.set_epoch(2)
    assert equal(again, views[2])
    assert not equal(make(seed=1), views[0])
    assert equal(make(seed=1), loader.with_seed(1))


@both
def test_an_image_hangs_on_its_id_and_not_on_its_batch(make: Make):
    small, large = list(make(batch_size=4)), list(make(batch_size=48))
    assert ids_of(small) == ids_of(large)
    assert torch.equal(torch.cat([inputs for inputs, _, _ in small]), large[0][0])


@both
def test_augmentation_changes_from_view_to_view(make: Make):
    loader = make(batch_size=48)
    (first, _, ids), (second, _, others) = next(iter(loader)), next(iter(loader))
    assert not torch.equal(first[ids.argsort()], second[others.argsort()])


@both
def test_samples_are_augmented_apart(make: Make):
    loader = make(batch_size=48)
    if isinstance(loader, Loader):
        loader.images[:] = loader.images[0].clone()
    else:
        loader.images.files[:] = [loader.images.files[0]] * 48
    ((inputs, _, _),) = loader
    assert len(torch.unique(inputs, dim=0)) > 20


@both
def test_the_users_generator_is_left_alone(make: Make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make())
    assert torch.equal(torch.get_rng_state(), before)


@both
@pytest.mark.parametrize("done", [0, 2, 5])
def test_resume_in_the_middle_of_a_view(make: Make, done: int):
    loader = make()
    list(loader)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state = loader.state_dict() if done else {"view": 1, "batch": 0}
    rest = list(iterator)
    resumed = make()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # as an engine does before every epoch; the loaded place is kept
    assert equal(resumed, rest)
    assert len(rest) == 6 - done
    assert equal(resumed, loader)


@both
def test_resume_after_the_last_batch_goes_on_with_the_next_view(make: Make):
    loader = make()
    list(loader)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert equal(resumed, loader)


def test_iterators_that_are_not_used_skip_nothing():
    loader = in_memory()
    iter(loader)
    iter(loader)
    assert equal(loader, in_memory())


def test_an_abandoned_iterator_does_not_move_the_loader():
    loader = in_memory()
    abandoned = iter(loader)
    next(abandoned)
    current = iter(loader)
    next(current)
    list(abandoned)
    assert loader.state_dict() == {"view": 1, "batch": 1}


@both
@pytest.mark.parametrize("count", [6, 48, 51])
@pytest.mark.parametrize("labels", [None, 5])
def test_two_processes_see_what_one_would(make: Make, monkeypatch: pytest.MonkeyPatch, count: int, labels: int | None):
    def served() -> Batches:
        loader = make(count)
        if labels is not None:
            loader.targets[labels:] = -100
            loader = loader.labelled()
        batches = list(loader)
        assert len(batches) == len(loader)
        return batches

    alone = served()
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("limbeck.data.epochs.share", lambda rank=rank: (rank, 2))
        shares.append(served())
    for whole, *parts in zip(alone, *shares, strict=True):
        for one, left, right in zip(whole, *parts, strict=True):
            assert torch.equal(torch.stack([left, right], 1).flatten(0, 1), one)


@both
@pytest.mark.parametrize(("count", "sizes"), [(50, [8] * 6), (16, [8, 8]), (7, [7]), (1, [1])])
def test_training_batches_are_complete(make: Make, count: int, sizes: list[int]):
    loader = make(count)
    assert [len(ids) for _, _, ids in loader] == sizes
    assert len(loader) == len(sizes)


def test_few_samples_are_shared_evenly(monkeypatch: pytest.MonkeyPatch):
    for rank in (0, 1):
        monkeypatch.setattr("limbeck.data.epochs.share", lambda rank=rank: (rank, 2))
        assert [len(ids) for _, _, ids in in_memory(7)] == [3]


@pytest.mark.parametrize("count", [8, 9, 10, 11, 50])
def test_evaluation_over_processes_drops_and_repeats_nothing(monkeypatch: pytest.MonkeyPatch, count: int):
    seen, lengths = [], set()
    for rank in range(3):
        monkeypatch.setattr("limbeck.data.epochs.share", lambda rank=rank: (rank, 3))
        batches = list(in_memory(count, shuffle=False))
        seen += ids_of(batches)
        lengths.add(len(batches))
    assert sorted(seen) == list(range(count))
    assert len(lengths) == 1


def test_processes_that_cannot_share_a_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limbeck.data.epochs.share", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"divisible by the number of processes \(3\).*batch_size 8"):
        next(iter(in_memory()))
    with pytest.raises(ValueError, match="2 samples"):
        next(iter(in_memory(2, shuffle=False)))


def test_example_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch):
    alone = in_memory().example(5)
    monkeypatch.setattr("limbeck.data.epochs.share", lambda: (1, 2))
    assert torch.equal(in_memory().example(5), alone)


def test_workers_serve_what_this_process_would():
    assert equal(from_files(workers=2), from_files())


def test_lightning_resumes_a_loader_where_it_stood():
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    loader = in_memory()
    combined = CombinedLoader(loader)
    iterator = iter(combined)
    next(iterator), next(iterator)
    (state,) = combined._state_dicts()
    rest = [next(iterator)[0] for _ in range(4)]
    again = CombinedLoader(in_memory())
    again._load_state_dicts([state])
    assert equal([batch for batch, _, _ in again], rest)


# -------------------------------------------------------------------------------------------------------- large images


def test_large_images_come_from_workers_as_square_crops(tmp_path: Path):
    folder = data.load("imagefolder", write_folder(tmp_path, side=100, count=3), size=64, workers=0)
    assert isinstance(folder.train, FileLoader)
    assert folder.shape == (3, 64, 64)
    assert next(iter(folder.train))[0].shape == (6, 3, 64, 64)
    assert folder.example(2).shape == (2, 3, 64, 64)


def test_images_of_different_sizes_are_not_kept_in_memory(tmp_path: Path):
    write_folder(tmp_path)
    (tmp_path / "test" / "bee" / "011.png").write_bytes(encoded(pixels(1, 16, 17, 3)[0]))
    assert isinstance(data.load("imagefolder", tmp_path, workers=0, size=16).train, FileLoader)


def test_splits_of_files_are_disjoint(tmp_path: Path):
    folder = data.load("imagefolder", write_folder(tmp_path, splits=("train", "test"), side=100), samples=10, workers=0)
    rows = [set(loader.images.rows.tolist()) for loader in (folder.train, folder.val)]
    assert [len(part) for part in rows] == [10, 2]
    assert not rows[0] & rows[1]


def test_a_part_of_a_part_of_the_files_is_the_right_one():
    files = Encoded([encoded(np.full((4, 4), level, np.uint8)) for level in range(5)], "grey")
    part = files.take(torch.tensor([1, 3, 4])).take(torch.tensor([2, 0]))
    assert [part.read(index).getpixel((0, 0)) for index in range(len(part))] == [4, 1]


def test_large_images_are_normalised_with_imagenets_statistics():
    white = Encoded([encoded(np.full((20, 20, 3), 255, np.uint8))], "white")
    loader = FileLoader(white, torch.zeros(1, dtype=torch.int64), batch_size=1, size=8, workers=0)
    (inputs, _, _) = next(iter(loader))
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


# ------------------------------------------------------------------------------------------------------- augmentations


def test_crops_are_cut_where_drawn():
    images = torch.from_numpy(pixels(4, 3, 6, 6))
    places = torch.tensor([[0, 0], [2, 2], [4, 1], [3, 4]])
    padded = functional.pad(images, (2, 2, 2, 2))
    expected = [padded[i, :, top : top + 6, left : left + 6] for i, (top, left) in enumerate(places.tolist())]
    assert torch.equal(PadCrop(2).apply(images, places), torch.stack(expected))


def test_crops_reach_every_place():
    places = PadCrop(1).draw(500, torch.Generator().manual_seed(0))
    assert len(torch.unique(places, dim=0)) == 9


def test_flip_mirrors_the_chosen():
    images = torch.from_numpy(pixels(2, 1, 3, 4))
    flipped = Flip().apply(images, torch.tensor([True, False]))
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1]]))


def test_cutout_clears_one_square_that_may_reach_over_the_edge():
    cut = Cutout(4).apply(torch.ones(2, 1, 8, 8), torch.tensor([[0.5, 0.5], [0.0, 0.99]]))
    assert (cut[0, 0] == 0).nonzero().tolist() == [[row, column] for row in range(2, 6) for column in range(2, 6)]
    assert (cut[1, 0] == 0).nonzero().tolist() == [[row, column] for row in range(2) for column in range(5, 8)]


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "cutout"])
def test_recipes_differ(augment: str):
    default = data.load("digits").train
    inputs = next(iter(data.load("digits", augment=augment).train))[0]
    assert torch.equal(inputs, next(iter(default))[0]) == (augment == "crop")


# --------------------------------------------------------------------------------------------- several labels, values


def test_the_digits_attributes_are_those_of_the_digits():
    digits, attributes = data.load("digits"), data.load("digits-attributes")
    assert (attributes.task, attributes.outputs, attributes.shape) == (limbeck.multilabel, 5, (1, 8, 8))
    assert attributes.classes == ("even", "above four", "prime", "loop", "straight")
    assert torch.equal(attributes.test.images, digits.test.images)
    of = dict(zip(digits.test.targets.tolist(), attributes.test.targets.tolist(), strict=True))
    assert (of[0], of[4], of[7]) == ([1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 1, 0, 1])
    assert len(attributes.train.ids) == len(digits.train.ids)


def test_diabetes_has_standardised_rows_and_values_in_hundreds():
    diabetes = data.load("diabetes")
    assert (diabetes.task, diabetes.outputs, diabetes.shape) == (limbeck.regression, 1, (10,))
    parts = [
        torch.cat([rows for rows, _, _ in loader.plain()]) for loader in (diabetes.train, diabetes.val, diabetes.test)
    ]
    assert [len(part) for part in parts] == [319, 35, 88]
    known = torch.cat(parts[:2])
    assert known.mean(0).abs().max() < 1e-5
    assert torch.allclose(known.std(0, correction=0), torch.ones(10), atol=1e-5)
    values = torch.cat([loader.targets for loader in (diabetes.train, diabetes.val, diabetes.test)])
    assert [values.min().item(), values.max().item()] == pytest.approx([0.25, 3.46])
    assert torch.equal(data.load("diabetes", split_seed=1).test.rows, diabetes.test.rows)


@pytest.mark.parametrize("name", ["digits-attributes", "diabetes"])
def test_labels_and_samples_without_classes_are_chosen_at_random(name: str):
    few, more = (data.load(name, samples=200, labels=count) for count in (20, 50))
    kept = [known(each.train.targets) for each in (few, more)]
    assert [(len(each), int(each.sum())) for each in kept] == [(200, 20), (200, 50)]
    assert bool(kept[1][kept[0]].all())
    assert not torch.equal(kept[0], known(data.load(name, samples=200, labels=20, split_seed=1).train.targets))
    labelled = few.labelled().train
    assert (len(labelled.ids), len(labelled)) == (20, len(few.train))
    assert all(known(targets).all() for _, targets, _ in labelled)


@pytest.mark.parametrize(
    ("targets", "labelled"),
    [
        (torch.tensor([3, -100, 0, -1]), [True, False, True, False]),
        (torch.tensor([[0, -100], [-100, -100]]), [True, False]),
        (torch.tensor([[0.0, -100.0], [-100.0, -100.0]]), [True, False]),
        (torch.tensor([[-100.0], [torch.nan], [2.5]]), [True, False, True]),
        (torch.tensor([1.5, torch.nan]), [True, False]),
        (torch.full((2, 3, 3), -100).index_fill(0, torch.tensor([1]), 7), [False, True]),
    ],
)
def test_what_has_a_label(targets: Tensor, labelled: list[bool]):
    assert known(targets).tolist() == labelled
    loader = Rows(torch.arange(len(targets)), targets, batch_size=2, shuffle=True).labelled()
    assert set(ids_of(loader)) == {row for row, one in enumerate(labelled) if one}


@pytest.mark.parametrize(
    "targets", [torch.rand(48, 2), torch.randint(2, (48, 3)), torch.rand(48), torch.rand(48, 8, 8)]
)
@pytest.mark.parametrize("make", [in_memory, from_files])
def test_any_targets_are_served_as_they_are(make: Make, targets: Tensor):
    loader = make(targets=targets)
    assert loader.labels is None
    for _, served, ids in loader:
        assert torch.equal(served, targets[ids])


def test_classes_are_labels_and_stay_where_they_are():
    loader = in_memory()
    assert loader.labels is loader.targets
    assert loader.to("meta").labels.device.type == "cpu"


def test_fingerprints_tell_samples_and_targets_apart():
    digits = data.load("digits")
    assert digits.train.fingerprint() == data.load("digits", seed=3, augment="none").train.fingerprint()
    others = [
        data.load("digits", labels=50),
        data.load("digits", labels=50).labelled(),
        data.load("digits", samples=100),
    ]
    assert len({each.train.fingerprint() for each in (digits, *others)}) == 4
    assert data.load("diabetes").train.fingerprint() != data.load("diabetes", split_seed=1).train.fingerprint()


# -------------------------------------------------------------------------------------------------------------- errors


def test_unknown_names():
    with pytest.raises(ValueError, match=r"out of digits, digits-attributes, .*mnist.*got 'minst'"):
        data.load("minst")
    with pytest.raises(ValueError, match=r"augment to be one of default, none.*got 'mixup'"):
        data.load("digits", augment="mixup")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagefolder", "parquet"])
def test_a_wrong_folder_is_described(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="needs a folder to read from: pass --root"):
        data.load(name)
    with pytest.raises(FileNotFoundError, match="is empty"):
        data.load(name, tmp_path)
    (tmp_path / "letters.txt").touch()
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looked for .* in .*; .* holds letters.txt, raw/\."):
        data.load(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        data.load(name, tmp_path / "letters.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.load(name, tmp_path / "nowhere")


def test_what_was_meant_by_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    with pytest.raises(ValueError, match=r"got 'digit': did you mean digits"):
        data.load("digit")
    with pytest.raises(
        ValueError, match=r"a folder: of images by class it is limbeck.data.load\('imagefolder', root='photos'"
    ):
        data.load("photos")
    with pytest.raises(
        TypeError, match=r"got str: load data by their name, limbeck.data.load\('NAME'\), which is a folder"
    ):
        splits("photos", seed=0)
    loader = data.load("digits").val
    with pytest.raises(TypeError, match=r"got dict: pass a tuple of loaders, \(train, val\) or"):
        splits({"train": loader, "val": loader}, seed=0)


@pytest.mark.parametrize("option", ["samples", "labels"])
@pytest.mark.parametrize("count", [0, 5000])
def test_more_than_there_is(option: str, count: int):
    with pytest.raises(ValueError, match=f"{option} between 1 and the 1294 training samples, got {count}"):
        data.load("digits", **{option: count})


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_val_share_out_of_range(share: float):
    with pytest.raises(ValueError, match=rf"val_share must be in \(0, 1\), got {share}"):
        data.load("digits", val_share=share)


def test_batch_size_of_none():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.load("digits", batch_size=0)


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_idx(tmp_path: Path, zipped: bool):
    write_idx(tmp_path, zipped=zipped)
    file = next(tmp_path.glob("train-images*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"train-images.*: expected (47,056 bytes|a whole gzip file).*download it again"
    ):
        data.load("mnist", tmp_path)


def test_idx_that_is_none(tmp_path: Path):
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(
        ValueError, match="expected an idx file of bytes with 3 axes, got one that starts with 3c68746d"
    ):
        data.load("mnist", tmp_path)


def test_idx_with_more_images_than_labels(tmp_path: Path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(classes(59)))
    with pytest.raises(ValueError, match=r"a label for each of the 60 images .*, got 59"):
        data.load("mnist", tmp_path)


def test_label_out_of_range(tmp_path: Path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(classes(20, 12)))
    with pytest.raises(ValueError, match=r"labels in 0\.\.9 for 10 classes, got 0\.\.11 in the test split"):
        data.load("mnist", tmp_path)


def test_empty_split(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one sample in the test split, got none"):
        data.load("mnist", write_idx(tmp_path, test=0))


def test_a_missing_cifar_batch_is_named(tmp_path: Path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for data_batch_3 in .*batches-py; .* holds batches.meta"):
        data.load("cifar10", tmp_path)


def test_truncated_cifar(tmp_path: Path):
    for binary in (False, True):
        write_cifar10(tmp_path, binary=binary)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="test_batch: expected a pickled dict of CIFAR"):
        data.load("cifar10", tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="expected rows of 3073 bytes, got 59,460 bytes"):
        data.load("cifar10", file.parent)


def test_a_pickle_runs_nothing(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(ValueError, match=r"data_batch_2: .* got a pathlib\.\S+, which has no place in it"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_cifar_of_another_version(tmp_path: Path):
    write_cifar100(tmp_path)
    place = tmp_path / "cifar-100-python"
    batch = {"data": pixels(5, 100), "fine_labels": [0] * 5}
    (place / "train").write_bytes(pickle.dumps(batch, protocol=5))
    with pytest.raises(ValueError, match=r"train: expected 'data' as uint8 \(N, 3072\), got uint8 \(5, 100\)"):
        data.load("cifar100", tmp_path)
    (place / "train").write_bytes(pickle.dumps({"data": pixels(5, 3072), "labels": [0] * 5}, protocol=4))
    with pytest.raises(ValueError, match="expected 'fine_labels' as a list of 5, got NoneType"):
        data.load("cifar100", tmp_path)


def test_a_class_that_train_has_not(tmp_path: Path):
    write_folder(tmp_path)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(ValueError, match="val: expected the classes of train, got others too: cat"):
        data.load("imagefolder", tmp_path)


def test_folders_without_images(tmp_path: Path):
    for place in ("train/ant", "train/bee", "test/ant"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(ValueError, match="imagefolder: expected at least one sample in the train split"):
        data.load("imagefolder", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_a_broken_image_file_is_named(tmp_path: Path, content: bytes | str):
    file = write_folder(tmp_path) / "train" / "bee" / "003.png"
    file.write_bytes(file.read_bytes()[:200] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"bee/003.png: expected a whole image file"):
        data.load("imagefolder", tmp_path)


def test_a_broken_image_in_parquet_is_named(tmp_path: Path):
    write_hf(tmp_path)
    images = [encoded(image) for image in pixels(5, 8, 8, 3)]
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", [*images, images[0][:60]], classes(6, 3))
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet, image 5: expected a whole image file"):
        data.load("parquet", tmp_path)


def test_a_broken_large_image_is_named_when_its_turn_comes():
    loader = from_files()
    loader.images.files[7] = b"no image"
    with pytest.raises(ValueError, match="memory, image 7: expected a whole image file"):
        list(loader)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"x", None], [0, 1], r"expected an image in every row as struct\{bytes, path\}"),
        ([b"x", b"x"], ["cat", "dog"], "expected an integer in every row of label, got string"),
        ([b"x", b"x"], [0, None], "got none in row 1, and 1 rows empty"),
    ],
)
def test_parquet_of_another_kind(tmp_path: Path, images: list, labels: list, message: str):
    write_hf(tmp_path)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", images, labels)
    with pytest.raises(ValueError, match=message):
        data.load("parquet", tmp_path)


def test_parquet_that_is_none(tmp_path: Path):
    write_hf(tmp_path)
    (tmp_path / "data/test-00000-of-00001.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet: expected a parquet file"):
        data.load("parquet", tmp_path)
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "data/test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"expected columns image or img and label .*, got text"):
        data.load("parquet", tmp_path)


def test_only_unlabelled():
    loader = in_memory()
    loader.targets[:] = -100
    with pytest.raises(ValueError, match="at least one labelled sample"):
        loader.labelled()


def test_a_state_of_something_else():
    with pytest.raises(ValueError, match="a state with 'view' and 'batch', got \\['epoch'\\]"):
        in_memory().load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "images as uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "each of 2 images, got 3"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int32),
            r"a class .*: pass targets.long",
        ),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "mean for each of 1 channels"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "got an empty data set"),
    ],
)
def test_loader_refuses(images: Tensor, targets: Tensor, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        Loader(images, targets, batch_size=2, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_data_need_names_or_a_number_of_outputs():
    digits = data.load("digits")
    with pytest.raises(ValueError, match=r"mine: how many outputs .*outputs=, 1 for a value"):
        Data("mine", digits.train, digits.val, digits.test)
    assert Data("mine", digits.train, digits.val, digits.test, outputs=7).num_classes == 7
    assert replace(digits, note="other").outputs == 10


def test_rows_are_not_augmented():
    with pytest.raises(ValueError, match="default or none for rows of numbers, got 'crop'"):
        data.load("diabetes", augment="crop")


def test_data_is_frozen():
    digits: Data = data.load("digits")
    with pytest.raises(AttributeError):
        digits.name = "other"
