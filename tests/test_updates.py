"""What an update is made of: several batches and processes, parts that are frozen, terms that move nothing."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import limbeck
from limbeck import S, T, classification, on
from limbeck.core.distributed import of_update, shares_of, sharing

CLASSES = 3


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def data(samples=12):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(samples, 5, generator=draw), torch.randint(CLASSES, (samples,), generator=draw)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def fitted(build, sizes, accumulate, x, y, mask=None):
    """The weights after one update by batches of these sizes."""
    torch.manual_seed(0)
    student, columns = net(), (x, y) if mask is None else (x, y, mask)
    loader = list(zip(*(column.split(sizes) for column in columns), strict=True))
    limbeck.fit(build(student), loader, epochs=1, accumulate=accumulate, optimizer=sgd, progress=False)
    return torch.cat([p.detach().flatten() for p in student.parameters()])


@pytest.mark.parametrize("sizes", [[4, 4, 4], [8, 4], [1, 2, 9]], ids=str)
def test_batches_of_one_update_train_as_one_however_labels_and_samples_are_spread(sizes):
    x, y = data()
    y[[0, 1, 2, 3, 5, 9]] = -100

    def build(student):
        return limbeck.kd(student, net(1), alpha=0.5)

    torch.testing.assert_close(fitted(build, sizes, len(sizes), x, y), fitted(build, [12], 1, x, y))


def test_a_mask_counts_over_the_whole_update():
    x, y = data()
    mask = torch.tensor([True, False, False, False] + [True] * 8)
    task = replace(classification, mask=lambda batch: batch[2])

    def build(student):
        return limbeck.kd(student, net(1), task=task)

    torch.testing.assert_close(fitted(build, [4, 8], 2, x, y, mask), fitted(build, [12], 1, x, y, mask))


def test_values_that_are_not_known_count_in_no_mean():
    x, _ = data()
    y = torch.randn(12, CLASSES)
    y[[0, 1, 2], :] = torch.nan
    y[5, 1] = torch.nan

    def build(student):
        return limbeck.bounded(student, net(1), margin=5.0, task=limbeck.regression)

    torch.testing.assert_close(fitted(build, [4, 8], 2, x, y), fitted(build, [12], 1, x, y))


def test_an_update_without_any_label_moves_nothing_by_them():
    x, y = data()
    before = torch.cat([p.detach().flatten() for p in net().parameters()])
    with pytest.warns(limbeck.NoEffectWarning, match="student/hard"):
        after = fitted(limbeck.plain, [6, 6], 2, x, torch.full_like(y, -100))
    assert torch.equal(after, before)


def test_shares_by_hand():
    counts, samples = torch.tensor([[1, 3, 0], [4, 4, 4]]), torch.tensor([4, 4, 4])
    assert shares_of(counts, samples).tolist() == [[0.75, 2.25, 0.0], [1.0, 1.0, 1.0]]
    with sharing({"labels": torch.tensor(0.75)}):
        assert of_update(torch.tensor(2.0), "labels") == 1.5
        assert of_update(torch.tensor(2.0), "mask") == 2.0
    assert of_update(torch.tensor(2.0), "labels") == 2.0


# what the user put away stays as it is


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES))

    def forward(self, x):
        return self.head(self.stem(x))


@pytest.mark.parametrize("way", ["fit", "play", "staged"])
def test_a_part_that_was_frozen_in_eval_mode_stays_so(way):
    torch.manual_seed(0)
    student, (x, y) = Backbone(), data()
    student.stem.requires_grad_(False).eval()
    before, bn = copy.deepcopy(student.stem.state_dict()), student.head[1].running_mean.clone()
    if way == "fit":
        limbeck.fit(limbeck.kd(student, net(1)), ([(x, y)], [(x, y)]), epochs=2, optimizer=sgd, progress=False)
    elif way == "staged":
        staged = limbeck.fitnets(student, net(1), hint="1", guided="head.0", example=x)
        limbeck.fit(staged, ([(x, y)], [(x, y)]), epochs=2, optimizer=sgd, progress=False)
    else:
        method = limbeck.kd(student, net(1)).train()
        limbeck.play(method, (x, y), limbeck.optimizers(method, sgd))
    assert not any(part.training for part in student.stem.modules())
    assert all(torch.equal(value, before[name]) for name, value in student.stem.state_dict().items())
    assert not torch.equal(student.head[1].running_mean, bn)


def test_a_student_that_was_measured_trains_nevertheless():
    """Eval mode alone puts nothing away, nor does freezing alone."""
    student, (x, y) = Backbone(), data()
    student.stem.requires_grad_(False)
    student.head.eval()
    before = {name: value.clone() for name, value in student.state_dict().items() if "running" in name}
    limbeck.fit(limbeck.plain(student), [(x, y)], epochs=1, optimizer=sgd, progress=False)
    assert all(not torch.equal(student.state_dict()[name], value) for name, value in before.items())


# terms that move nothing, in a loop of one's own


def played(method, times=15):
    x, y = data()
    optimizers = limbeck.optimizers(method, sgd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            limbeck.play(method, (x, y), optimizers)
    return [str(one.message) for one in caught if one.category is limbeck.NoEffectWarning]


def test_a_detached_term_is_told_once():
    follow = classification.hard + on(lambda s, t: F.mse_loss(s.detach(), t), S["0"], T["0"], name="vain")
    (message,) = played(limbeck.Distill(net(), net(1), follow))
    assert "'student/vain' gave its player no gradient at all" in message


def test_a_term_of_zero_gradient_is_told_after_ten_batches():
    follow = classification.hard + on(lambda s: 1 + s.clamp(min=50).mean() - 50, S, name="flat")
    method = limbeck.Distill(net(), None, follow)
    assert played(method, 9) == []
    (message,) = played(method, 5)
    assert "'student/flat' gave its player no gradient in 10 batches" in message


def test_sound_terms_are_not_told_of():
    x, y = data()
    y[:] = -100
    method = limbeck.kd(net(), net(1))
    optimizers = limbeck.optimizers(method, sgd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            limbeck.play(method, (x, y), optimizers)  # no label in sight: the hard term is 0


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.stem, self.body, self.head = (
            reentrant,
            nn.Linear(5, 4),
            nn.Linear(4, 4),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x):
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant))


def test_layers_that_reentrant_checkpointing_hides_are_refused():
    follow = classification.hard + on(F.mse_loss, S["body"], T["body"], name="hint")
    with pytest.raises(ValueError, match="use_reentrant=False"):
        played(limbeck.Distill(Checkpointed(True), Checkpointed(False), follow), 1)
    assert played(limbeck.Distill(Checkpointed(False), Checkpointed(False), follow), 2) == []
    assert played(limbeck.kd(Checkpointed(True), Checkpointed(False)), 2) == []  # outputs are beyond it


# batches that lack something


def test_where_no_label_is_read_none_is_asked_for():
    x, _ = data()
    student = net()
    before = student[0].weight.clone()
    result = limbeck.fit(limbeck.kd(student, net(1), alpha=1.0), [(x,)], epochs=1, optimizer=sgd, progress=False)
    assert result.finished
    assert not torch.equal(student[0].weight, before)
    with pytest.raises(ValueError, match="found no targets in the batch"):
        limbeck.fit(limbeck.kd(student, net(1)), [(x,)], epochs=1, optimizer=sgd, progress=False)


def test_a_last_batch_of_one_sample_is_found_before_the_first_epoch():
    x, y = data(13)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    student = Backbone()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"the last batch of an epoch has one sample.*drop_last=True"):
        limbeck.fit(limbeck.plain(student), loader, epochs=1, optimizer=sgd, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert limbeck.fit(limbeck.plain(net()), loader, epochs=1, optimizer=sgd, progress=False).finished
