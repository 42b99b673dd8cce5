from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import (
    CLASSES,
    assert_finite,
    assert_full_precision,
    assert_same,
    batches,
    gradient,
    mlp,
    normal,
    sgd,
    state,
    vectors,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.core.stage import Stage
from limbeck.losses import cross_entropy, cwtm, dkpp, soft_cross_entropy
from limbeck.nets.anew import check_anew, start_anew


def train(stage: Stage, epochs: int = 3) -> None:
    optimizers = limbeck.optimizers(stage.method, sgd)
    for batch in batches(epochs):
        limbeck.play(stage.method, batch, optimizers)


def loop(student: nn.Module, teacher: nn.Module | None, hard: float = 0.0, epochs: int = 3) -> None:
    """One generation by hand: the labels alone, or CE(p_{k-1}, p_k)."""
    optimizer = sgd(list(student.parameters()))
    for x, y in batches(epochs):
        optimizer.zero_grad()
        z = student(x)
        if teacher is None:
            loss = F.cross_entropy(z, y)
        else:
            p_t = teacher(x).detach().softmax(-1)
            loss = -(p_t * z.log_softmax(-1)).sum(-1).mean() + hard * F.cross_entropy(z, y)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_generations_are_the_hand_written_loop(hard: float) -> None:
    student = mlp(0)
    first = copy.deepcopy(student)
    loop(first, None)
    teacher = first
    for k, stage in enumerate(limbeck.ban(student, generations=2, hard=hard)):
        if k:
            born = copy.deepcopy(student)  # the generation as it starts
            loop(born, teacher.eval(), hard)
            teacher = born
        train(stage)
        torch.testing.assert_close(state(student), state(teacher), rtol=1e-12, atol=1e-12)
    assert k == 2


def test_by_hand() -> None:
    class Says(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight)
            nn.init.zeros_(self.bias)

    teacher, student = Says(1, 2), Says(1, 2)
    with torch.no_grad():
        teacher.bias.copy_(torch.tensor([math.log(3), 0.0]))  # p = (3/4, 1/4)
        student.bias.fill_(7.0)
    stage = next(limbeck.ban(student, teacher, generations=1, hard=2.0))
    (turn,) = stage.method.step((torch.zeros(1, 1), torch.tensor([0])))
    assert turn.terms["soft"].value.item() == pytest.approx(math.log(2))  # CE of anything with (1/2, 1/2)
    turn.total.backward()
    soft, hard = torch.tensor([0.5 - 0.75, 0.5 - 0.25]), torch.tensor([0.5 - 1, 0.5 - 0])
    torch.testing.assert_close(student.bias.grad, soft + 2 * hard)


# CWTM


def test_confidence_weights_the_labels() -> None:
    s, t, y = normal(7, 4, seed=1), normal(7, 4, seed=2, scale=3), torch.tensor([0, 3, -100, 1, 1, 2, -100])
    labelled = [b for b in range(7) if y[b] >= 0]
    sure = [max(t[b].softmax(-1).tolist()) for b in labelled]
    hard = [-s[b].log_softmax(-1)[y[b]].item() for b in labelled]
    expected = sum(w / sum(sure) * loss for w, loss in zip(sure, hard, strict=True))
    assert cwtm(s, t, y).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(cwtm(s, torch.zeros_like(t), y), cross_entropy(s, y))  # alike sure of all
    torch.testing.assert_close(cwtm(s.view(7, 1, 4), t.view(7, 1, 4), y.view(7, 1)), cwtm(s, t, y))
    assert not gradient(cwtm, s, t, y)[y < 0].any()
    nobody = torch.full_like(y, -100)
    assert cwtm(s, t, nobody).item() == 0
    assert not gradient(cwtm, s, t, nobody).any()


def test_confidence_by_hand() -> None:
    t = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # max p = 3/4 and 1/2, so the weights are 3/5 and 2/5
    s = torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])  # p(y) = 1/2 and 1/5
    assert cwtm(s, t, torch.tensor([1, 1])).item() == pytest.approx(0.6 * math.log(2) + 0.4 * math.log(5))


# DKPP


def permuted(t: Tensor, draws: Tensor) -> Tensor:
    """The target of `dkpp`, as ∂/∂z_s = (p_s − target) / N shows it."""
    s = torch.zeros_like(t)
    return s.softmax(-1) - len(t) * gradient(dkpp, s, t, draws)


def test_all_but_the_largest_probability_are_shuffled() -> None:
    t, draws = normal(40, 6, seed=1, scale=2), torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
    p, target = t.softmax(-1), permuted(t, draws)
    top = p.argmax(-1, keepdim=True)
    torch.testing.assert_close(target.gather(-1, top), p.gather(-1, top))
    torch.testing.assert_close(target.sort(-1).values, p.sort(-1).values)
    moved = (target - p).abs() > 1e-6
    assert moved.sum() > 100  # of 200; a fifth stays by chance
    for row, source, best, order in zip(target, p, top, draws, strict=True):
        others = [k for k in range(6) if k != best]
        torch.testing.assert_close(row[others], source[[others[rank] for rank in order.argsort()]])


def test_every_order_is_as_likely_as_another() -> None:
    t = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).expand(6000, -1)
    target = permuted(t, torch.rand(6000, 3, generator=torch.Generator().manual_seed(0)))
    _, counts = target.mul(1e4).round().unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_dkpp_formula_and_by_hand() -> None:
    s, t = normal(5, 3, 4, seed=1), normal(5, 3, 4, seed=2)
    in_order = torch.arange(3.0).expand(5, 3, 3)
    torch.testing.assert_close(dkpp(s, t, in_order), soft_cross_entropy(s, t, temperature=1.0))
    two = s[..., :2], t[..., :2]
    torch.testing.assert_close(dkpp(*two, torch.rand(5, 3, 1)), soft_cross_entropy(*two, temperature=1.0))
    p, q = torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.1, 0.2, 0.7]])
    expected = -(0.3 * math.log(0.1) + 0.5 * math.log(0.2) + 0.2 * math.log(0.7))
    assert dkpp(q.log(), p.log(), torch.tensor([[0.9, 0.1]])).item() == pytest.approx(expected)


def test_the_variants_are_finite_and_computed_in_full_precision() -> None:
    s, t, y, draws = normal(6, 4), normal(6, 4, seed=2), torch.tensor([0, 1, 2, 3, -100, 0]), torch.rand(6, 3)
    for scale in (0.0, 1.0, 1e4):
        assert_finite(cwtm, scale * s, scale * t, y)
        assert_finite(dkpp, scale * s, scale * t, draws)
    assert_finite(cwtm, t[[0, 0]], t[[0, 0]], y[:2])
    assert_full_precision(cwtm, s, t, y)
    assert_full_precision(lambda s, t: dkpp(s, t, draws), s, t)
    for loss, last in ((cwtm, y), (dkpp, draws)):
        with pytest.raises(ValueError, match=r"logits.*got \(6, 4\) and \(6, 3\)"):
            loss(s, t[:, :3], last)


def test_the_variants_are_terms_of_a_generation() -> None:
    (x, y), teacher = vectors(), mlp(1).eval()
    terms = []
    for stage in limbeck.ban(mlp(0), teacher, generations=2, soft=0.5, cwtm=2.0, dkpp=3.0):
        method = stage.method.distill
        student = copy.deepcopy(method.student)
        (turn,) = stage.method.step((x, y))
        z, former = student(x), method.teachers["teacher"].net(x)
        assert {name: loss.weight for name, loss in turn.terms.items()} == {"soft": 0.5, "cwtm": 2.0, "dkpp": 3.0}
        torch.testing.assert_close(turn.terms["soft"].value, soft_cross_entropy(z, former, temperature=1.0))
        torch.testing.assert_close(turn.terms["cwtm"].value, cwtm(z, former, y))
        terms += [loss.terms["dkpp"].value.item() for _ in range(2) for loss in stage.method.step((x, y))]
    assert len({round(term, 9) for term in terms}) == 4  # other orders at every step, and in every generation
    (turn,) = next(limbeck.ban(mlp(0), teacher, soft=0.0, hard=1.0)).method.step((x, y))
    assert list(turn.terms) == ["hard"]


# generations


def test_every_generation_starts_differently_and_from_nothing() -> None:
    student, starts = mlp(0), []
    for stage in limbeck.ban(student, mlp(1), generations=3):
        starts.append(state(student))
        train(stage)
    for i, start in enumerate(starts):
        assert not start["1.running_mean"].any()
        assert start["1.num_batches_tracked"] == 0
        assert all(not torch.equal(start["0.weight"], other["0.weight"]) for other in starts[:i])


def test_the_stages() -> None:
    def of(stages: list[Stage]) -> list[tuple[str, float]]:
        return [(stage.name, pytest.approx(stage.share)) for stage in stages]

    alone, taught = list(limbeck.ban(mlp(0), generations=2)), list(limbeck.ban(mlp(0), mlp(1), generations=2))
    assert of(alone) == [("generation-0", 1 / 3), ("generation-1", 1 / 3), ("generation-2", 1 / 3)]
    assert of(taught) == [("generation-1", 1 / 2), ("generation-2", 1 / 2)]


def test_a_given_teacher_is_generation_0_and_stays_as_it_is() -> None:
    student, teacher = mlp(0), mlp(1, width=16)
    before, (x, _) = state(teacher), vectors()
    stage = next(limbeck.ban(student, teacher, generations=1))
    (turn,) = stage.method.step(vectors())
    expected = -(teacher.eval()(x).softmax(-1) * student(x).log_softmax(-1)).sum(-1).mean()
    assert turn.total.item() == pytest.approx(expected.item(), rel=1e-9)
    train(stage)
    assert_same(state(teacher), before)


def test_the_ensemble_averages_probabilities_of_all_generations() -> None:
    student, x, born = mlp(0), normal(4, 6, seed=9), []
    for k, stage in enumerate(limbeck.ban(student, mlp(1), generations=3), 1):
        train(stage)
        born.append(copy.deepcopy(student).eval()(x).softmax(-1))
        networks = stage.method.networks()
        assert networks["student"] is student
        former = [f"generation-{i}" for i in range(1, k)]
        assert list(networks) == ["student", *former, *(["ensemble"] if k > 1 else [])]
        for name, answers in zip(former, born, strict=False):
            torch.testing.assert_close(networks[name].eval()(x).softmax(-1), answers)
        if k > 1:
            torch.testing.assert_close(networks["ensemble"].eval()(x).softmax(-1), torch.stack(born).mean(0))


def test_the_first_generation_is_kept_and_has_no_vote() -> None:
    stages = list(limbeck.ban(mlp(0), generations=2))
    assert list(stages[-1].method.networks()) == ["student", "generation-0", "generation-1", "ensemble"]
    assert len(stages[-1].method.networks()["ensemble"].members) == 2


def test_numerics() -> None:
    teacher = mlp(1, norm=False)
    teacher[-1].weight.data *= 1e4
    for stage in limbeck.ban(mlp(0, norm=False), teacher, generations=2):
        train(stage)
        assert all(p.isfinite().all() for p in stage.method.parameters())


class Scaled(nn.Module):
    """A module whose scale nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, CLASSES), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def test_starting_anew_resets_everything() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2), nn.LSTM(2, 3))
    before = state(net)
    with torch.no_grad():
        net[0].weight.fill_(3.0)
        net[1].running_mean.fill_(3.0)
        net[2].weight.fill_(3.0)
    start_anew(net)
    assert net[2].weight.item() == 0.25
    assert not net[1].running_mean.any()
    assert net[0].weight.std().item() == pytest.approx(before["0.weight"].std().item(), rel=0.5)
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[5].weight_ih_l0, before["5.weight_ih_l0"])


def test_a_network_that_cannot_start_anew_is_told_at_once_and_kept() -> None:
    net = Scaled()
    before = state(net)
    with pytest.raises(ValueError, match=r"Scaled has parameters that no reset_parameters\(\) touches: \['scale'\]"):
        start_anew(net)
    assert_same(state(net), before)
    with pytest.raises(ValueError, match=r"touches: \['scale'\]"):
        next(limbeck.ban(net))  # before generation 0 trains


class Seeded(nn.Linear):
    """A layer that always starts alike, as public code has it."""

    def reset_parameters(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().reset_parameters()


def test_a_generation_must_not_begin_where_the_last_one_did() -> None:
    net = nn.Sequential(Seeded(6, 8), nn.BatchNorm1d(8), Seeded(8, CLASSES))
    before = state(net)
    for method in (limbeck.ban(net), limbeck.tfkd_self(net)):
        with pytest.raises(ValueError, match="Sequential starts with the same weights every time"):
            next(method)
    assert_same(state(net), before)
    check_anew(nn.Sequential(Seeded(6, 8), nn.Linear(8, CLASSES)))  # one layer that differs is enough


def test_a_teacher_that_would_start_anew_with_its_student() -> None:
    net = mlp(0)
    before = state(net)
    with pytest.raises(ValueError, match=r"the teacher is the student itself, which starts anew: .*copy\.deepcopy"):
        next(limbeck.ban(net, net))
    assert_same(state(net), before)


def test_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="generations must be at least 1, got 0"):
        next(limbeck.ban(mlp(0), generations=0))
    with pytest.raises(ValueError, match="soft must be at least 0, got -1"):
        next(limbeck.ban(mlp(0), soft=-1))
    with pytest.raises(ValueError, match="soft, hard, cwtm and dkpp are all 0"):
        next(limbeck.ban(mlp(0), soft=0.0))
