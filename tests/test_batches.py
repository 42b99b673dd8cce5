"""The samples of a batch, whatever it is made of."""

import pytest
import torch

from limbeck.core.batches import count, part, samples, take, tensors

X, Y = torch.arange(12.0).view(4, 3), torch.tensor([3, 2, 1, 0])
IMAGES = [torch.full((3, 4 + at, 5), float(at)) for at in range(4)]
BOXES = [{"boxes": torch.full((at, 4), float(at)), "labels": torch.full((at,), at)} for at in range(4)]
WORDS = {"input_ids": X.long(), "attention_mask": torch.ones(4, 3)}


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 4, 2), [3, 0]])
def test_rows_of_tensors(rows):
    inputs, targets = take((X, Y), rows)
    assert torch.equal(inputs, X[rows])
    assert torch.equal(targets, Y[rows])


def test_a_batch_that_is_a_list():
    inputs, targets = take([X, Y], [2])
    assert torch.equal(inputs, X[2:3])
    assert torch.equal(targets, Y[2:3])


@pytest.mark.parametrize(("rows", "which"), [(slice(1, 3), [1, 2]), ([3, 0], [3, 0])])
def test_ragged_samples_keep_their_channels(rows, which):
    images, targets, ids = take((IMAGES, BOXES, Y), rows)
    assert [image.shape for image in images] == [IMAGES[at].shape for at in which]
    assert all(image is IMAGES[at] for image, at in zip(images, which, strict=True))
    assert [target["labels"].tolist() for target in targets] == [[at] * at for at in which]
    assert torch.equal(ids, Y[which])


def test_ragged_samples_in_tuples():
    images, _ = take((tuple(IMAGES), tuple(BOXES)), slice(1, 2))
    assert images == (IMAGES[1],)


def test_named_columns():
    batch = {**WORDS, "labels": Y, "loss": torch.tensor(0.5), "name": "sst", "more": {"lengths": Y + 1}}
    some = take(batch, slice(2))
    assert torch.equal(some["input_ids"], X.long()[:2])
    assert torch.equal(some["labels"], Y[:2])
    assert torch.equal(some["more"]["lengths"], Y[:2] + 1)
    assert some["loss"] is batch["loss"]  # what has no samples stays
    assert some["name"] == "sst"
    assert count({name: batch[name] for name in (*WORDS, "labels", "loss", "name", "more")}) == 4


def test_traces_are_columns_too():
    batch = X, Y, Y, {"teacher": {"": X, "body": X[:, None]}}
    *_, traces = take(batch, [1])
    assert torch.equal(traces["teacher"][""], X[1:2])
    assert traces["teacher"]["body"].shape == (1, 1, 3)
    assert count(batch) == 4


@pytest.mark.parametrize(
    "batch", [(X, Y), [X, Y], (IMAGES, BOXES), (tuple(IMAGES), Y), {**WORDS, "labels": Y}, (WORDS, Y)]
)
def test_how_many_there_are(batch):
    assert count(batch) == 4


def test_samples_of_a_column():
    assert [samples(column) for column in (X, IMAGES, BOXES, WORDS)] == [4] * 4


def test_columns_that_do_not_agree():
    with pytest.raises(
        ValueError, match=r"its columns have the lengths \[3, 4\]\. A batch is a tuple or dict of columns"
    ):
        count((X, Y[:3]))
    with pytest.raises(ValueError, match=r"the lengths \[2, 4\].*several inputs of a network are a dict"):
        count(([X, X], Y))  # what default_collate makes of samples of two tensors


@pytest.mark.parametrize("batch", [(), {}, (torch.tensor(1.0), "name")])
def test_columns_without_samples(batch):
    with pytest.raises(ValueError, match=r"its columns have the lengths \[\]"):
        count(batch)


def test_part_of_inputs():
    assert torch.equal(part(X, slice(2)), X[:2])
    assert part(IMAGES, slice(1)) == IMAGES[:1]


def test_tensors_in_anything():
    assert [tensor.shape for tensor in tensors((X, [BOXES[1], "name"], {"y": Y}))] == [(4, 3), (1, 4), (1,), (4,)]
    assert tensors("none") == []
