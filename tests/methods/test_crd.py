from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from method_toys import convnet, images, sgd
from method_toys import normal as normal_double
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.engine.assemble import assemble
from limbeck.engine.fit import labels_of
from limbeck.measure.cost import _Alive
from limbeck.methods.crd import Contrast, Queue
from limbeck.nets import draws


def normal(*shape: int, seed: int = 0) -> Tensor:
    return normal_double(*shape, seed=seed).float()


def contrast(memory: int = 12, dimensions: int = 3, negatives: int = 4, temperature: float = 0.5) -> Contrast:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Contrast(memory, dimensions, negatives, temperature, 0.5)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def naive(anchors: Tensor, bank: Tensor, chosen: Tensor, temperature: float) -> float:
    """The loss of one network's embeddings, term by term."""
    n, k = len(bank), chosen.shape[1] - 1
    exponentials = [
        [math.exp(float(anchor @ bank[i]) / temperature) for i in row]
        for anchor, row in zip(anchors, chosen.tolist(), strict=True)
    ]
    z = n * sum(map(sum, exponentials)) / (len(anchors) * (k + 1))
    total = 0.0
    for positive, *others in exponentials:
        p = positive / z
        total -= math.log(p / (p + k / n))
        total -= sum(math.log(k / n / (e / z + k / n)) for e in others)
    return total / len(anchors)


def test_formula() -> None:
    loss = contrast().double()
    s, t = unit(normal(5, 3, seed=1).double()), unit(normal(5, 3, seed=2).double())
    chosen = torch.cat([torch.arange(5)[:, None], loss._others(torch.arange(5))], 1)
    expected = naive(s, loss.bank_t, chosen, 0.5) + naive(t, loss.bank_s, chosen, 0.5)
    assert loss.compare(s, t, chosen).item() == pytest.approx(expected)


@pytest.mark.parametrize("at_once", [2**24, 500])
@pytest.mark.parametrize("memory", [20, 400])
def test_both_ways_to_similarities_are_those_of_the_whole_bank(
    memory: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows are told from a large bank, and the whole of a small one is read, in parts where it is too much at once."""
    module = sys.modules["limbeck.methods.crd"]
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    anchors, bank = normal_double(5, 3, seed=1).requires_grad_(), normal_double(memory, 3, seed=2)
    chosen = torch.randint(memory, (5, 8), generator=torch.Generator().manual_seed(0))
    chosen[:, 3] = chosen[:, 5]  # drawn twice
    assert module._whole_bank_is_cheaper(bank, chosen) == (memory == 20)
    upstream = normal_double(5, 8, seed=3)
    expected = (anchors @ bank.T).gather(1, chosen)
    there = module._Similarities.apply(anchors, bank, chosen)
    torch.testing.assert_close(there, expected)
    (of_there,), (of_expected,) = (torch.autograd.grad(v, anchors, upstream) for v in (there, expected))
    torch.testing.assert_close(of_there, of_expected)


def test_of_a_large_bank_only_the_chosen_rows_take_memory() -> None:
    memory, chosen = 2**15, torch.arange(16 * 21).reshape(16, 21)
    loss, (s, t) = contrast(memory, negatives=20), (normal(16, 3, seed=seed).requires_grad_() for seed in (1, 2))
    alive = _Alive()
    with alive:
        loss.eval().compare(unit(s), unit(t), chosen).backward()
    assert alive.peak < 4 * memory


def test_by_hand() -> None:
    """Two samples, one negative, all similarities 0: P = 1/n = 1/2 = K/n, so each of the four terms is log 2."""
    loss = contrast(memory=2, dimensions=2, negatives=1)
    loss.bank_s, loss.bank_t = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [1, 0]])
    value = loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([1]))
    assert value.item() == pytest.approx(4 * math.log(2))
    assert loss.bank_s.flatten().tolist() == pytest.approx([1, 0, math.sqrt(0.5), math.sqrt(0.5)])


def test_z_is_that_of_the_first_batch_and_banks_follow_the_embeddings() -> None:
    loss, ids = contrast(), torch.tensor([7, 2])
    s, t, before = normal(2, 3, seed=1), normal(2, 3, seed=2), loss.bank_s.clone()
    loss(s, t, ids)
    z = loss.of_student.log_mean, loss.of_teacher.log_mean
    torch.testing.assert_close(loss.bank_s[ids], unit(0.5 * before[ids] + 0.5 * unit(s)))
    others = [i for i in range(12) if i not in ids]
    assert torch.equal(loss.bank_s[others], before[others])
    loss(t, s, ids)
    assert z == (loss.of_student.log_mean, loss.of_teacher.log_mean)
    remembered = loss.eval().bank_s.clone()
    loss(s, t, ids)
    assert torch.equal(loss.bank_s, remembered)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9])
def test_keep_is_the_share_of_the_old(keep: float) -> None:
    loss, ids = Contrast(12, 3, 4, 0.5, keep), torch.tensor([7, 2])
    s, t = normal(2, 3, seed=1), normal(2, 3, seed=2)
    before = loss.bank_s[ids], loss.bank_t[ids]
    loss(s, t, ids)
    for bank, old, new in ((loss.bank_s, before[0], s), (loss.bank_t, before[1], t)):
        torch.testing.assert_close(bank[ids], unit(keep * old + (1 - keep) * unit(new)))


def test_negatives_are_other_samples_and_all_of_them() -> None:
    loss, ids = contrast(memory=5, negatives=500), torch.tensor([0, 3, 4])
    for own, others in zip(ids.tolist(), loss._others(ids).tolist(), strict=True):
        assert set(others) == set(range(5)) - {own}


def test_both_networks_learn_and_the_scale_of_an_embedding_does_not_matter() -> None:
    s, t, ids = normal(4, 3, seed=1).requires_grad_(), normal(4, 3, seed=2).requires_grad_(), torch.arange(4)
    loss, twin = contrast(), contrast()
    value = loss(s, t, ids)
    value.backward()
    assert s.grad.any()
    assert t.grad.any()
    assert twin(100 * s, 0.01 * t, ids).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("samples", [1, 4])
def test_numerics(dtype: torch.dtype, scale: float, samples: int) -> None:
    """Zeros, duplicates, large embeddings, a student equal to its teacher, a batch of one."""
    t = normal(1, 3, seed=1).repeat(samples, 1).to(dtype)
    for x in (scale * t, t.clone()):
        s = x.detach().requires_grad_()
        loss = contrast(temperature=0.07)
        for _ in range(2):
            value = loss(s, t, torch.arange(samples))
        value.backward()
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert s.grad.isfinite().all()
        assert loss.bank_s.isfinite().all()


def test_its_state_goes_on_exactly() -> None:
    loss, other = contrast(), Contrast(12, 3, 4, 0.5, 0.5)
    s, t, ids = normal(4, 3, seed=1), normal(4, 3, seed=2), torch.arange(4)
    loss(s, t, ids)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    for _ in range(3):
        assert torch.equal(loss(s, t, ids), other(s, t, ids))
    assert torch.equal(loss.bank_t, other.bank_t)


INPUTS = images()[0].float()


def method(**options: object) -> limbeck.Distill:
    settings = {"memory": 16, "negatives": 8, "example": INPUTS, **options}
    return limbeck.crd(convnet(0).float(), convnet(1).float(), **settings)


def test_a_dict_of_named_entries_has_ids() -> None:
    batch = {"x": INPUTS[:2], "labels": torch.zeros(2, dtype=torch.long), "ids": torch.tensor([3, 1])}
    assert limbeck.classification.ids(batch).tolist() == [3, 1]


def test_a_batch_without_ids_is_refused() -> None:
    crd, batch = method(), (INPUTS[:4], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no sample ids in the batch.*crd"):
        limbeck.play(crd, batch, limbeck.optimizers(crd, sgd))
    limbeck.play(crd, (*batch, torch.arange(4)), limbeck.optimizers(crd, sgd))


@pytest.mark.parametrize("batch", [{"labels": torch.zeros(2)}, (torch.zeros(2), torch.zeros(2))])
def test_neither_a_dict_nor_a_tuple_without_ids_has_them(batch: object) -> None:
    with pytest.raises(ValueError, match="no sample ids"):
        limbeck.classification.ids(batch)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 12]), r"memory=12 holds the ids 0 to 11, got 0 to 12"),
        (torch.tensor([-1, 2]), r"got -1 to 2"),
        (torch.tensor([0.0, 1.0]), r"ids \(N\) of integers, one for each of the 2 samples, got torch.float32"),
        (torch.tensor([0]), r"of shape \(1,\)"),
    ],
)
def test_invalid_ids(ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast()(normal(2, 3), normal(2, 3), ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1}, "memory must hold at least 2 samples"),
        ({"memory": None}, r"in banks or in a queue, one of them: .*; got memory=None and queue=None"),
        ({"queue": 8}, r"got memory=16 and queue=8"),
        ({"memory": None, "queue": 8, "classes": torch.arange(8)}, "classes are for the banks"),
        ({"memory": None, "queue": 1}, "must hold at least 2"),
        ({"classes": torch.arange(15)}, r"integers of shape \(16,\), .* got torch.int64 of shape \(15,\)"),
        ({"classes": torch.zeros(16)}, "got torch.float32"),
        ({"classes": torch.full((16,), 3)}, "all classes are 3, so no sample could be a negative"),
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
        ({"temperature": 0.0}, r"temperature must be in \(0, 1000\], got 0\.0"),
        ({"keep": 1.0}, r"keep must be in \[0, 1\), got 1\.0"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_the_maps_train_and_stay_behind() -> None:
    crd = method()
    linear = [m for m in crd.objective.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [128, 128]
    assert {id(p) for m in linear for p in m.parameters()} <= {id(p) for p in crd.objective.parameters()}


def test_negatives_are_of_other_classes_each_as_likely() -> None:
    classes = torch.tensor([2, 0, -100, 2, 0, 2, -100, 5])
    loss, ids = Contrast(8, 3, 6000, 0.5, 0.5, classes), torch.tensor([0, 4, 2, 7])
    expected = [{1, 2, 4, 6, 7}, {0, 2, 3, 5, 6, 7}, {0, 1, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6}]
    for allowed, drawn in zip(expected, loss._others(ids), strict=True):
        values, counts = drawn.unique(return_counts=True)
        assert set(values.tolist()) == allowed
        assert (counts / 6000 * len(allowed) - 1).abs().max() < 0.15  # 4 sd


def test_two_processes_draw_and_estimate_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, ids = contrast(), torch.tensor([7, 2, 5, 0])
    twins, whole = (copy.deepcopy(loss), copy.deepcopy(loss)), loss._others(ids)
    for rank, twin in enumerate(twins):
        monkeypatch.setattr(draws, "place", lambda rank=rank: (rank, 2))
        assert torch.equal(twin._others(ids[rank::2]), whole[rank::2])


def test_by_name_it_remembers_the_data_and_leaves_out_their_classes() -> None:
    labels = torch.tensor([0, 1, -100, 1])

    def bank(**options: object) -> Contrast | Queue:
        made = assemble("crd", convnet(0).float(), convnet(1).float(), INPUTS, {"negatives": 3, **options}, labels)
        (remembered,) = (m for m in made.objective.modules() if isinstance(m, Contrast | Queue))
        return remembered

    counts = {"of the data": bank(), "by none": bank(memory=None, queue=None, classes=None)}
    assert {name: (one.memory, one.own.tolist()) for name, one in counts.items()} == dict.fromkeys(
        counts, (4, [1, 2, 1, 2])
    )
    assert bank(classes=torch.tensor([0, 0, 0, 1])).own.tolist() == [3, 3, 3, 1]
    assert bank(memory=9).own.tolist() == [1] * 9
    assert isinstance(bank(queue=8), Queue)
    with pytest.raises(ValueError, match="crd remembers samples in banks or in a queue"):
        assemble("crd", convnet(0).float(), convnet(1).float(), INPUTS, {})


def test_labels_are_those_of_the_training_samples_by_id() -> None:
    data = limbeck.data.load("digits", labels=100)
    assert torch.equal(labels_of(data), data.train.targets)
    assert torch.equal(labels_of(data.labelled()), data.train.targets)
    assert labels_of(data.train) is None
    assert labels_of(([], [])) is None


def queue(length: int = 6, temperature: float = 0.5) -> Queue:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Queue(length, 3, temperature)


def test_queue_formula() -> None:
    """The banks' formula, with the sample's own embedding first and the whole queue as its negatives."""
    loss = queue().double()
    s, t = unit(normal(4, 3, seed=1).double()), unit(normal(4, 3, seed=2).double())
    queues = {"s": loss.queue_s.clone(), "t": loss.queue_t.clone()}
    value = loss(3 * s, 5 * t)
    total = 0.0
    for anchors, own, others in ((s, t, queues["t"]), (t, s, queues["s"])):
        exponentials = [[math.exp(float(a @ u) / 0.5) for u in (v, *others)] for a, v in zip(anchors, own, strict=True)]
        mean = sum(map(sum, exponentials)) / (4 * 7)
        for positive, *negatives in exponentials:
            odds = positive / mean / 6
            total -= math.log(odds / (odds + 1))
            total -= sum(math.log(1 / (e / mean / 6 + 1)) for e in negatives)
    assert value.item() == pytest.approx(total / 4)


def test_a_queue_forgets_the_oldest_and_has_no_gradient_through_the_other_network() -> None:
    loss = queue(length=5)
    s, t = normal(3, 3, seed=1).requires_grad_(), normal(3, 3, seed=2).requires_grad_()
    before = loss.queue_t.clone()
    loss(s, t)
    torch.testing.assert_close(loss.queue_t, torch.cat([unit(t).detach(), before[3:]]))
    loss(t, s)
    torch.testing.assert_close(
        loss.queue_t, torch.cat([unit(s)[2:], unit(t)[1:], unit(s)[:2]])[[0, 1, 2, 3, 4]].detach()
    )
    long = normal(7, 3, seed=3)
    loss(long, long)
    # the oldest was at place 1, and of seven only the last five fit
    torch.testing.assert_close(loss.queue_s, unit(long)[2:].roll(1, 0))
    frozen = loss.eval().queue_s.clone()
    loss(s, t)
    assert torch.equal(loss.queue_s, frozen)
    (only,) = torch.autograd.grad(loss.of_student(loss._scores(unit(s), unit(t), loss.queue_t)), t, allow_unused=True)
    assert only is None


def test_a_queue_goes_on_exactly() -> None:
    loss, other = queue(), Queue(6, 3, 0.5)
    loss(normal(4, 3, seed=1), normal(4, 3, seed=2))
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    for seed in range(3, 6):
        s, t = normal(4, 3, seed=seed), normal(4, 3, seed=seed + 9)
        assert torch.equal(loss(s, t), other(s, t))
    assert torch.equal(loss.queue_s, other.queue_s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_queue_numerics(dtype: torch.dtype, scale: float) -> None:
    t = normal(1, 3, seed=1).repeat(4, 1).to(dtype)
    for x in (scale * t, t.clone()):
        s = x.detach().requires_grad_()
        loss = queue(temperature=0.07)
        for _ in range(2):
            value = loss(s, t)
        value.backward()
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert s.grad.isfinite().all()
        assert loss.queue_s.isfinite().all()


def test_a_queue_needs_no_ids() -> None:
    crd, batch = method(memory=None, queue=8), (INPUTS[:4], torch.zeros(4, dtype=torch.long))
    optimizers = limbeck.optimizers(crd, sgd)
    (remembered,) = (m for m in crd.objective.modules() if isinstance(m, Queue))
    maps = [m for m in crd.objective.modules() if isinstance(m, nn.Linear)]
    before, weights = remembered.queue_s.clone(), [m.weight.clone() for m in maps]
    limbeck.play(crd, batch, optimizers)
    assert (remembered.queue_s != before).all(1).tolist() == [True] * 4 + [False] * 4
    assert all((m.weight != weight).any() for m, weight in zip(maps, weights, strict=True))
    with pytest.raises(ValueError, match=r"embeddings \(N, 3\) of the same samples by both networks, got \(4, 3\) and"):
        queue()(normal(4, 3), normal(5, 3))
