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
from limbeck.losses import label_smoothing, soft_target, virtual_teacher

Y = torch.tensor([0, 3, 2, 3, 1, 0])
NOBODY = torch.full((6,), -100)
every_mode = pytest.mark.parametrize("mode", ["paper", "code"])


def target(y: int, classes: int, temperature: float, correct: float, mode: str) -> list[float]:
    """The softened virtual teacher, one probability after another."""
    p = [correct if k == y else (1 - correct) / (classes - 1) for k in range(classes)]
    soft = [p_k ** (1 / temperature) if mode == "paper" else math.exp(p_k / temperature) for p_k in p]
    return [each / sum(soft) for each in soft]


def naive(z: Tensor, labels: Tensor, temperature: float, correct: float, mode: str) -> float:
    total = 0.0
    softening = temperature if mode == "paper" else 1.0
    for row, y in zip(z.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z_k / softening) for z_k in row))
        for q, z_k in zip(target(y, len(row), temperature, correct, mode), row, strict=True):
            total += q * (math.log(q) - (z_k / softening - log_sum))
    return softening**2 * total / len(z)


@every_mode
@pytest.mark.parametrize(("temperature", "correct"), [(20.0, 0.99), (2.0, 0.9), (1.0, 0.3)])
def test_formula(mode: str, temperature: float, correct: float) -> None:
    z = normal(6, 4)
    ours = virtual_teacher(z, Y, temperature, correct, mode).item()
    assert ours == pytest.approx(naive(z, Y, temperature, correct, mode), rel=1e-10)


def test_by_hand() -> None:
    z, y = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64), torch.tensor([0])
    # T = 2: p_s = (3/4, 1/4); sqrt(0.8) : sqrt(0.2) is 2 : 1, so the target is (2/3, 1/3)
    paper = 4 * (2 / 3 * math.log(8 / 9) + 1 / 3 * math.log(4 / 3))
    assert virtual_teacher(z, y, 2.0, 0.8).item() == pytest.approx(paper, rel=1e-12)
    # p_s = (0.9, 0.1) unsoftened; softmax(0.4, 0.1) = (0.574443, 0.425557)
    code = 0.574443 * math.log(0.574443 / 0.9) + 0.425557 * math.log(4.25557)
    assert virtual_teacher(z, y, 2.0, 0.8, "code").item() == pytest.approx(code, rel=1e-5)


@every_mode
def test_it_is_label_smoothing_less_a_constant(mode: str) -> None:
    label, other = (lambda q: (q[0], q[1]))(target(0, 4, 20.0, 0.99, mode))
    for z in (normal(6, 4), normal(6, 4, seed=1)):
        softening = 20.0 if mode == "paper" else 1.0
        ours = gradient(virtual_teacher, z, Y, 20.0, 0.99, mode)
        smoothed = gradient(lambda z: label_smoothing(z, Y, 1 - (label - other)), z / softening)
        torch.testing.assert_close(ours, softening * smoothed)


def test_in_the_paper_mode_it_is_soft_targets_of_its_log_probabilities() -> None:
    z = normal(6, 4)
    log_p = torch.where(F.one_hot(Y, 4).bool(), math.log(0.99), math.log(0.01 / 3)).double()
    torch.testing.assert_close(virtual_teacher(z, Y, 7.0), soft_target(z, log_p, 7.0))


def test_how_little_the_label_stands_out_of_a_hundred_classes() -> None:
    assert max(target(0, 100, 20.0, 0.99, "code")) == pytest.approx(0.01050, abs=1e-5)
    assert max(target(0, 100, 20.0, 0.99, "paper")) == pytest.approx(0.0157, abs=1e-4)
    z, y = normal(6, 100), torch.arange(6)
    uniform = gradient(label_smoothing, z, y, 1.0)
    difference = gradient(virtual_teacher, z, y, 20.0, 0.99, "code") - uniform
    assert difference.norm() < 0.01 * uniform.norm()


@every_mode
def test_its_optimum_is_its_target(mode: str) -> None:
    q = torch.tensor([target(y, 4, 3.0, 0.9, mode) for y in Y.tolist()], dtype=torch.float64)
    z = q.log() * (3.0 if mode == "paper" else 1.0)
    assert virtual_teacher(z, Y, 3.0, 0.9, mode).abs() < 1e-14
    assert gradient(virtual_teacher, z, Y, 3.0, 0.9, mode).abs().max() < 1e-15


@every_mode
def test_samples_without_a_label_count_neither_way(mode: str) -> None:
    z, y, rest = normal(6, 4), Y.clone(), [0, 2, 3, 5]
    y[[1, 4]] = -100
    torch.testing.assert_close(virtual_teacher(z, y, mode=mode), virtual_teacher(z[rest], y[rest], mode=mode))
    assert virtual_teacher(z, NOBODY, mode=mode) == 0
    assert torch.equal(gradient(virtual_teacher, z, NOBODY, mode=mode), torch.zeros(6, 4).double())


@every_mode
def test_numerics(mode: str) -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return virtual_teacher(z, y, mode=mode)

    for z in (torch.zeros(6, 4), torch.ones(6, 4), *(normal(6, 4, scale=s) for s in (50, 1e3, 1e4))):
        assert_finite(loss, z, Y)
    assert_finite(loss, normal(1, 4), Y[:1])  # a batch of one
    assert_finite(lambda z, y: virtual_teacher(z, y, 0.01, 1 - 1e-9, mode), normal(6, 4), Y)
    assert_full_precision(loss, normal(6, 4), Y)


@every_mode
def test_playing_it_is_the_loop(mode: str) -> None:
    student, twin = mlp(0), mlp(0)
    options = {"temperature": 5.0, "correct": 0.9, "mode": mode}
    method = limbeck.tfkd_reg(student, alpha=0.3, **options)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(twin.parameters()))
    for x, y in batches(4):
        limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        z = twin(x)
        (0.7 * F.cross_entropy(z, y) + 0.3 * virtual_teacher(z, y, **options)).backward()
        optimizer.step()
    torch.testing.assert_close(state(student), state(twin), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be in \(0, 1000\], got 0.0"),
        ({"correct": 1.0}, r"correct must be in \(0, 1\), got 1.0"),
        ({"correct": 0.0}, r"correct must be in \(0, 1\), got 0.0"),
        ({"mode": "papers"}, "mode must be 'paper' or 'code', got 'papers'"),
        ({"alpha": 1.1}, r"alpha must be in \(0, 1\], got 1.1"),
    ],
)
def test_invalid_options_of_reg(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.tfkd_reg(mlp(0), **options)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_virtual_teacher_that_is_wrong(classes: int) -> None:
    with pytest.raises(ValueError, match=f"correct must be above 1/K = .* for {classes} classes, got 0.25"):
        virtual_teacher(normal(6, classes), torch.zeros(6, dtype=torch.long), correct=0.25)


# the former self


def train(stage: Stage) -> None:
    optimizers = limbeck.optimizers(stage.method, sgd)
    for batch in batches(3):
        limbeck.play(stage.method, batch, optimizers)


def loop(net: nn.Module, former: nn.Module | None) -> None:
    """One half by hand: the labels alone, or a share of 0.8 of the former self at T = 2."""
    optimizer = sgd(list(net.parameters()))
    for x, y in batches(3):
        optimizer.zero_grad()
        z = net(x)
        loss = F.cross_entropy(z, y)
        if former is not None:
            log_s, log_t = (z / 2).log_softmax(-1), (former(x).detach() / 2).log_softmax(-1)
            loss = 0.2 * loss + 0.8 * 4 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
        loss.backward()
        optimizer.step()


def test_both_halves_are_the_hand_written_loop() -> None:
    student, by_hand, former = mlp(0), mlp(0), None
    for stage in limbeck.tfkd_self(student, temperature=2.0, alpha=0.8):
        if former is not None:
            by_hand = copy.deepcopy(student)  # as it starts anew
        loop(by_hand, former)
        train(stage)
        torch.testing.assert_close(state(student), state(by_hand), rtol=1e-12, atol=1e-12)
        former = by_hand.eval()


def test_it_starts_anew_and_its_former_self_stays() -> None:
    student = mlp(0)
    stages = limbeck.tfkd_self(student)
    train(next(stages))
    former = state(student)
    second = next(stages)
    start = state(student)
    assert not start["1.running_mean"].any()
    assert not torch.equal(start["0.weight"], mlp(0)[0].weight)
    assert not torch.equal(start["0.weight"], former["0.weight"])
    train(second)
    teacher = second.method.teachers["teacher"]
    assert_same(state(teacher.net), former)
    assert list(second.method.networks()) == ["student"]


def test_it_shares_the_epochs_equally_and_draws_nothing_before_it_starts() -> None:
    student = mlp(0)
    before, random = state(student), torch.get_rng_state()
    stages = limbeck.tfkd_self(student)
    first = next(stages)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(state(student), before)
    second = next(stages)
    assert [(stage.name, stage.share) for stage in (first, second)] == [("former-self", 0.5), ("self", 0.5)]


def test_it_leaves_devices_alone_that_the_network_is_not_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail(f"GPU {device} was started"))
    next(limbeck.tfkd_self(mlp(0)))


def test_its_terms_by_hand() -> None:
    class Says(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight)
            nn.init.zeros_(self.bias)

    student = Says(1, 2)
    stages = limbeck.tfkd_self(student, temperature=2.0, alpha=0.75)
    next(stages)
    with torch.no_grad():
        student.bias.copy_(torch.tensor([math.log(9), 0.0]))  # (3/4, 1/4) at T = 2
    (turn,) = next(stages).method.step((torch.zeros(1, 1), torch.tensor([0])))  # the new one says (1/2, 1/2)
    soft = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert turn.total.item() == pytest.approx(0.25 * math.log(2) + 0.75 * soft)


def test_extreme_logits_of_the_former_self() -> None:
    student = mlp(0, norm=False)
    for stage in limbeck.tfkd_self(student):
        train(stage)
        assert all(p.isfinite().all() for p in student.parameters())
        with torch.no_grad():
            student[-1].weight.mul_(1e4)  # what the second half learns from


class Scaled(nn.Module):
    """A module whose scale nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, CLASSES), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def test_a_network_that_cannot_start_anew_is_told_before_it_trains() -> None:
    net = Scaled()
    before = state(net)
    with pytest.raises(ValueError, match=r"Scaled has parameters that no reset_parameters\(\) touches: \['scale'\]"):
        next(limbeck.tfkd_self(net))
    assert_same(state(net), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be in \(0, 1000\], got -1.0"),
        ({"alpha": -0.1}, r"alpha must be in \(0, 1\], got -0.1"),
    ],
)
def test_invalid_options_of_self(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(limbeck.tfkd_self(mlp(0), **options))


def test_alone_among_samples_batch_norm_aside() -> None:
    student = mlp(0, norm=False)
    for stage in limbeck.tfkd_self(student):
        logs = limbeck.play(stage.method, vectors(n=1), limbeck.optimizers(stage.method, sgd))
        assert all(math.isfinite(value) for value in logs.values())


def test_reversed_distillation_is_kd() -> None:
    student, teacher, batch = mlp(0, width=16), mlp(1), vectors(2)
    ours = next(iter(limbeck.rekd(student, teacher, temperature=3.0, alpha=0.4).step(batch, 0.0)))
    kd = next(iter(limbeck.kd(student, teacher, temperature=3.0, alpha=0.4).step(batch, 0.0)))
    assert torch.equal(ours.total, kd.total)
    with pytest.raises(ValueError, match=r"the teacher is the smaller one, but the student has .* swap them"):
        limbeck.rekd(teacher, student)


def test_a_poor_teacher_is_trained_first_and_in_a_copy() -> None:
    student, teacher = mlp(0), mlp(1)
    before = state(teacher)
    poor, first = copy.deepcopy(teacher), copy.deepcopy(student)
    stages = limbeck.dekd(student, teacher, schooling=0.25, temperature=2.0, alpha=0.5)
    names = []
    for stage in stages:
        names.append((stage.name, stage.share))
        optimizers = limbeck.optimizers(stage.method, sgd)
        for batch in batches(2):
            limbeck.play(stage.method, batch, optimizers)
    assert names == [("poor-teacher", 0.25), ("student", 0.75)]
    assert_same(state(teacher), before)
    optimizer = sgd(list(poor.parameters()))
    for x, y in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(poor(x), y).backward()
        optimizer.step()
    learner = limbeck.kd(first, poor, temperature=2.0, alpha=0.5)
    optimizers = limbeck.optimizers(learner, sgd)
    for batch in batches(2):
        limbeck.play(learner, batch, optimizers)
    assert_same(state(student), state(first))


def test_a_frozen_teacher_goes_to_school_too() -> None:
    teacher = limbeck.Frozen(mlp(1))
    before = state(teacher.net)
    train(next(limbeck.dekd(mlp(0), teacher)))
    assert_same(state(teacher.net), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schooling": 0.0}, r"schooling must be in \(0, 1\), got 0.0"),
        ({"schooling": 1.0}, r"schooling must be in \(0, 1\), got 1.0"),
        ({"alpha": 2.0}, r"alpha must be in \(0, 1\], got 2.0"),
        ({"temperature": 0.0}, r"temperature must be in \(0, 1000\], got 0.0"),
    ],
)
def test_schooling_that_is_none(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(limbeck.dekd(mlp(0), mlp(1), **options))
