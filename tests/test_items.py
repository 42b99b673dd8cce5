"""Batches of any samples: repeatable whatever is drawn, of whatever shape, and shared among processes by samples."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import limbeck
from limbeck import data
from limbeck.data import Data, Items, ragged
from limbeck.data.epochs import digest
from limbeck.data.repeatable import shared, splits
from limbeck.engine.examined import Look

COUNT, BATCH = 12, 4


class Boxes:
    """Pictures of different sizes, each with its boxes: 0 of the first, 1 of the second, 2, 0, ..."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not 0 <= index < COUNT:
            raise IndexError(index)
        draw = torch.Generator().manual_seed(index)
        size = (20 + index, 24)
        corner = torch.rand(index % 3, 2, generator=draw) * 8
        boxes = tv_tensors.BoundingBoxes(torch.cat([corner, corner + 9], 1), format="XYXY", canvas_size=size)
        labels = torch.arange(index % 3)
        return tv_tensors.Image(torch.rand(3, *size, generator=draw)), {"boxes": boxes, "labels": labels}


class Pictures:
    """Pictures of one size with a class, which draw some noise as they are read."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)) + torch.rand(2), index % 3


jitter = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])


def boxes(**options: Any) -> Items:
    given = {"batch_size": BATCH, "transform": jitter, "collate": ragged, "shuffle": True, **options}
    return Items(Boxes(), **given)


def named(samples: list[Any], ids: Tensor) -> dict[str, Any]:
    """A batch as many a code base has it."""
    images, labels = zip(*samples, strict=True)
    paths = [f"{row}.png" for row in ids.tolist()]
    return {"image": torch.stack(images), "label": torch.tensor(labels), "path": paths, "ids": ids}


def contents(batches: Any) -> list[str]:
    return [digest(batch) for batch in batches]


def test_boxes_and_pictures_repeat_together():
    loader = boxes()
    first, second = contents(loader), contents(loader)
    assert len(first) == 3
    assert first != second
    assert contents(boxes()) == first
    again = boxes()
    again.set_epoch(1)
    assert contents(again) == second
    assert contents(boxes(seed=1)) != first
    assert contents(boxes(seed=1)) == contents(loader.with_seed(1))


def test_workers_serve_what_this_process_would():
    assert contents(boxes(workers=2)) == contents(boxes())


def test_a_sample_hangs_on_its_id_and_not_on_its_batch():
    small, (large,) = list(boxes(batch_size=3)), list(boxes(batch_size=COUNT))
    pictures = [picture for pictures, _, _ in small for picture in pictures]
    assert all(torch.equal(a, b) for a, b in zip(pictures, large[0], strict=True))


def test_what_a_data_set_draws_itself_repeats_too_and_leaves_the_users_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = (contents(Items(Pictures(), batch_size=BATCH)) for _ in range(2))
    assert one == other
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_samples_are_not_augmented_and_in_order():
    whole = next(iter(boxes(batch_size=COUNT, shuffle=False).plain()))
    assert all(torch.equal(a, b[0]) for a, b in zip(whole[0], [Boxes()[row] for row in range(COUNT)], strict=True))
    doubled = boxes(plain=lambda picture, target: (picture * 2, target)).plain()
    assert torch.equal(next(iter(doubled))[0][3], Boxes()[3][0] * 2)


def test_stacked_samples_are_tensors():
    inputs, targets, ids = next(iter(Items(Pictures(), batch_size=BATCH)))
    assert (inputs.shape, targets.tolist(), ids.tolist()) == ((4, 2), [0, 1, 2, 0], [0, 1, 2, 3])


@pytest.mark.parametrize("done", [0, 1, 3])
def test_resume_in_the_middle_of_a_view(done: int):
    loader = boxes()
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state, rest = loader.state_dict(), contents(iterator)
    resumed = boxes()
    resumed.load_state_dict(state)
    assert contents(resumed) == (rest or contents(loader))


@pytest.mark.parametrize("collate", [ragged, named])
def test_two_processes_see_what_one_would(monkeypatch: pytest.MonkeyPatch, collate: Any):
    samples = Boxes() if collate is ragged else Pictures()

    def served() -> list[Any]:
        return list(Items(samples, batch_size=BATCH, collate=collate, shuffle=True))

    alone, parts = served(), []
    for rank in range(2):
        monkeypatch.setattr("limbeck.data.epochs.share", lambda rank=rank: (rank, 2))
        parts.append(served())
    for rank, part in enumerate(parts):
        assert contents(part) == [digest(shared(batch, rank, 2, even=True)) for batch in alone]


def test_labels_choose_and_are_told():
    labels = torch.tensor([0, 1, -100] * 4)
    loader = Items(Pictures(), batch_size=BATCH, labels=labels, shuffle=True)
    assert {row for _, _, ids in loader.labelled() for row in ids.tolist()} == {0, 1, 3, 4, 6, 7, 9, 10}
    assert len(loader.labelled()) == len(loader)
    assert len(boxes().labelled().ids) == COUNT
    assert boxes().targets is None


def test_fingerprints_look_at_samples_where_no_labels_are_known():
    assert boxes().fingerprint() == boxes(seed=1, workers=2).fingerprint()
    assert boxes().fingerprint() != boxes(plain=lambda picture, target: (picture / 2, target)).fingerprint()
    labels = [torch.zeros(COUNT, dtype=torch.int64).index_fill(0, torch.tensor([row]), 1) for row in range(2)]
    assert len({Items(Pictures(), batch_size=BATCH, labels=each).fingerprint() for each in labels}) == 2


def test_examples_of_ragged_and_dict_batches():
    pictures, targets, ids = boxes().few(3)
    assert (len(pictures), [len(each["boxes"]) for each in targets], ids.tolist()) == (3, [0, 2, 2], [0, 5, 11])
    assert torch.equal(boxes().example(3)[1], pictures[1])
    assert sorted(Items(Pictures(), batch_size=BATCH, collate=named).example(2)) == ["image"]  # words feed nothing


@pytest.mark.parametrize("collate", [ragged, named])
def test_a_set_up_of_any_batches_can_be_looked_at(collate: Any):
    train = Items(Boxes() if collate is ragged else Pictures(), batch_size=BATCH, collate=collate, shuffle=True)
    whole = Data("mine", train, train.plain(), train.plain(), outputs=3)
    look = Look(limbeck.classification, {}, {}, splits(whole, 0), torch.device("cpu"), samples=4, seconds=10)
    assert len(list(look.targets())) == 3
    assert len(look.task.target(look.batch)) == BATCH
    assert len(look.task.target(next(look.held_out()))) == BATCH


@pytest.mark.parametrize(
    ("samples", "transform", "message"),
    [
        ([{"image": torch.zeros(1)}], None, r"expected a sample to be \(inputs, target\), got a dict with \['image'\]"),
        ([(torch.zeros(1), 0)], lambda x, y: x, "expected a transform to return .*, got a tensor of shape"),
    ],
)
def test_what_is_no_pair_is_refused(samples: Any, transform: Any, message: str):
    with pytest.raises(TypeError, match=message):
        list(Items(samples, batch_size=1, transform=transform))


def test_labels_of_another_kind_are_refused():
    with pytest.raises(
        TypeError, match=r"expected labels as int64 \(12,\), a class for each sample, got torch.float32"
    ):
        Items(Pictures(), batch_size=1, labels=torch.zeros(COUNT))
    with pytest.raises(ValueError, match="an empty data set"):
        Items([], batch_size=1)


# ----------------------------------------------------------------------------------- batches of the user's own, shared


def test_ragged_batches_are_shared_by_samples():
    pictures = [torch.rand(3, 4 + row, 5) for row in range(5)]
    batch = pictures, [{"boxes": torch.rand(row, 4)} for row in range(5)], torch.arange(5)
    (left, first, ids), (right, second, others) = (shared(batch, rank, 2, even=True) for rank in range(2))
    assert [image.shape for image in left + right] == [pictures[row].shape for row in (0, 2, 1, 3)]
    assert [len(each["boxes"]) for each in first + second] == [0, 2, 1, 3]
    assert (ids.tolist(), others.tolist()) == ([0, 2], [1, 3])
    assert [len(shared(batch, rank, 2, even=False)[0]) for rank in range(2)] == [3, 2]


def test_dict_batches_are_shared_by_samples_with_their_lists_and_traces():
    batch = {
        "image": torch.arange(6.0)[:, None],
        "label": torch.arange(6),
        "path": [f"{row}.png" for row in range(6)],
        "traces": {"teacher": {"": torch.arange(6.0)[:, None]}},
    }
    mine = shared(batch, 1, 2, even=True)
    assert mine["path"] == ["1.png", "3.png", "5.png"]
    assert mine["label"].tolist() == [1, 3, 5]
    assert torch.equal(mine["image"], mine["traces"]["teacher"][""])


def test_columns_that_disagree_cannot_be_shared():
    with pytest.raises(ValueError, match=r"its columns have the lengths \[4, 6\]"):
        shared({"image": torch.zeros(6, 2), "label": torch.zeros(4)}, 0, 2, even=True)
    with pytest.raises(ValueError, match="a batch of 1 cannot be shared among 2 processes"):
        shared((torch.zeros(1, 3), torch.zeros(1)), 0, 2, even=True)


# ------------------------------------------------------------------------------------------------------- through fit


def test_a_dict_of_items_trains_a_network_with_memory_of_no_targets(tmp_path):
    random.seed(0)
    train = Items(Pictures(), batch_size=BATCH, collate=named, labels=torch.arange(COUNT) % 3, shuffle=True)
    mine = Data("mine", train, train.plain(), train.plain(), ("a", "b", "c"))
    task = limbeck.Task(inputs=lambda batch: batch["image"])
    torch.manual_seed(0)
    method = limbeck.plain(torch.nn.Linear(2, 3), task=task)
    result = limbeck.fit(method, mine, epochs=1, progress=False)
    assert 0 <= result.metrics["test/student/accuracy"] <= 1


@pytest.mark.parametrize(("name", "score"), [("diabetes", "RMSE"), ("digits-attributes", "mAP")])
def test_named_data_train_for_their_own_task(name: str, score: str):
    mine = data.load(name, batch_size=64)
    torch.manual_seed(0)
    net = limbeck.zoo.network("mlp-32", mine.outputs, mine.shape)
    result = limbeck.fit(limbeck.plain(net, task=mine.task), mine, epochs=15, progress=False)
    found = result.metrics[f"test/student/{score}"]
    spread = float(torch.cat([mine.train.targets, mine.val.targets]).float().std())
    assert found < 0.85 * spread if name == "diabetes" else found > 0.9
