from __future__ import annotations

import math

import pytest
import torch
from method_toys import (
    assert_finite,
    assert_full_precision,
    assert_same,
    batches,
    convnet,
    gradient,
    images,
    normal,
    sgd,
    state,
)
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage
from limbeck.losses import factor
from limbeck.nets.translator import Paraphraser, translator

EXAMPLE = images()[0]


def optimizers_of(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    return assign(parameters(stage.method, stage.trains), sgd)


@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
def test_formula(p: float) -> None:
    f_s, f_t = normal(3, 2, 2, 4, seed=1), normal(3, 2, 2, 4, seed=2)
    total = 0.0
    for n in range(3):
        s, t = f_s[n].flatten().tolist(), f_t[n].flatten().tolist()
        length_s, length_t = math.sqrt(sum(x**2 for x in s)), math.sqrt(sum(x**2 for x in t))
        powers = [abs(a / length_s - b / length_t) ** p for a, b in zip(s, t, strict=True)]
        total += (sum(powers) / 16) ** (1 / p)
    assert factor(f_s, f_t, p).item() == pytest.approx(total / 3, rel=1e-12)


def test_by_hand() -> None:
    # directions (0.6, 0.8) and (0, 1); then both (1, 0)
    f_s, f_t = torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.1, 0.0]])
    assert factor(f_s, f_t).item() == pytest.approx((0.6 + 0.2) / 4)
    assert factor(f_s, f_t, p=2).item() == pytest.approx(math.sqrt((0.36 + 0.04) / 2) / 2)


def test_the_larger_map_is_pooled_to_the_smaller_by_the_mean() -> None:
    small, large = normal(3, 2, 2, 3, seed=1), normal(3, 2, 4, 6, seed=2)
    pooled = large.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(factor(small, large), factor(small, pooled))
    torch.testing.assert_close(factor(large, small), factor(pooled, small))
    wide, tall = normal(3, 2, 2, 6, seed=3), normal(3, 2, 4, 3, seed=4)  # each is larger on one side
    both = wide.unflatten(3, (3, 2)).mean(4), tall.unflatten(2, (2, 2)).mean(3)
    torch.testing.assert_close(factor(wide, tall), factor(*both))


def test_p_1_is_the_mean_over_all_elements() -> None:
    f_s, f_t = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2)
    expected = F.l1_loss(F.normalize(f_s.flatten(1)), F.normalize(f_t.flatten(1)))
    torch.testing.assert_close(factor(f_s, f_t), expected)


def test_invariances() -> None:
    f_s, f_t = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2)
    scales = torch.tensor([0.01, 1.0, 300.0]).double().view(3, 1, 1, 1)  # one for each sample
    torch.testing.assert_close(factor(scales * f_s, f_t), factor(f_s, f_t))
    torch.testing.assert_close(factor(f_s, scales * f_t), factor(f_s, f_t))
    assert factor(7 * f_t, f_t).item() == pytest.approx(0, abs=1e-15)
    assert abs(factor(-f_s, f_t) - factor(f_s, f_t)) > 1e-4


@pytest.mark.parametrize("p", [1, 2, 3])
def test_numerics(p: float) -> None:
    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return factor(student, teacher, p)

    f_t = normal(3, 2, 4, 4, seed=2)
    assert_finite(loss, normal(3, 2, 4, 4, seed=1, scale=1e4), 1e4 * f_t)
    assert_finite(loss, torch.zeros(3, 2, 4, 4), f_t)
    assert_finite(loss, f_t, torch.zeros(3, 2, 4, 4))
    assert_finite(loss, f_t, f_t)
    assert_finite(loss, f_t[[0, 0]], f_t[[1, 1]])
    assert_finite(loss, f_t[:1], f_t[1:2])
    assert_full_precision(loss, normal(3, 2, 4, 4, seed=1, scale=300), f_t)


def test_a_factor_without_direction_gets_no_gradient() -> None:
    f_s, f_t = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2)
    f_s[1] = 0
    found = gradient(factor, f_s, f_t)
    assert not found[1].any()
    assert found[0].any()
    # and counts with its distance to 0, the length of the teacher's
    expected = F.l1_loss(F.normalize(f_s.flatten(1)), F.normalize(f_t.flatten(1)))
    torch.testing.assert_close(factor(f_s, f_t), expected)


def test_invalid_factors() -> None:
    with pytest.raises(ValueError, match=r"factors: .* same shape, got \(3, 2, 4, 4\) and \(3, 3, 4, 4\)"):
        factor(normal(3, 2, 4, 4), normal(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"factors: .* same shape, got \(3, 8\) and \(3, 6\)"):
        factor(normal(3, 8), normal(3, 6))
    with pytest.raises(ValueError, match=r"must be at least 1, got 0\.5"):
        factor(normal(3, 2), normal(3, 2), p=0.5)


def test_the_paraphraser() -> None:
    net = Paraphraser(6, 3)
    kernels = [tuple(p.shape) for p in net.parameters() if p.ndim == 4]
    # a transposed convolution has its inputs first
    assert kernels == [(6, 6, 3, 3), (3, 6, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 6, 3, 3), (6, 6, 3, 3)]
    slopes = [step.negative_slope for step in net.modules() if isinstance(step, nn.LeakyReLU)]
    assert slopes == [0.1] * 6
    x = torch.randn(2, 6, 5, 4)
    assert net.encoder(x).shape == (2, 3, 5, 4)
    assert net(x).shape == x.shape


def test_stage_1_is_the_loop_on_the_reconstruction_and_leaves_the_student() -> None:
    student, teacher = convnet(0), convnet(1, width=6).eval()
    before = state(student)
    stage = next(limbeck.ft(student, teacher, example=EXAMPLE))
    stage.method.double()
    (term,) = stage.method.objective.terms
    loop = Paraphraser(12, 6).double()
    loop.load_state_dict(term.adapters[0].state_dict())
    optimizers, optimizer = optimizers_of(stage), sgd(list(loop.parameters()))
    stage.method.eval()  # as `fit` has it: what trains is the objective
    student.register_forward_hook(lambda *_: pytest.fail("the student has nothing to say yet"))
    for x, _ in batches(3, images):
        logs = limbeck.play(stage.method, (x, None), optimizers)  # no labels
        optimizer.zero_grad()
        features = teacher.two(teacher.one(x)).detach()
        error = (loop(features) - features).abs().mean()
        error.backward()
        optimizer.step()
        assert logs["student/paraphrase"] == pytest.approx(error.item(), rel=1e-6)
    assert_same(state(term.adapters[0]), state(loop))
    assert_same(state(student), before)


def test_stage_2_is_the_loop_on_the_factors() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    first, second = limbeck.ft(student, teacher, factor=30.0, example=EXAMPLE)
    paraphraser = first.method.objective.terms[0].adapters[0].double()
    kept = state(paraphraser)
    second.method.double()
    theirs = second.method.objective.terms[1].adapters[0]
    ours = translator(8, 6).double()
    ours.load_state_dict(theirs.state_dict())
    optimizers, optimizer = optimizers_of(second), sgd([*loop.parameters(), *ours.parameters()])
    for x, y in batches(3, images):
        logs = limbeck.play(second.method, (x, y), optimizers)
        optimizer.zero_grad()
        two = loop.two(loop.one(x))
        u_s = F.normalize(ours(two).flatten(1))
        u_t = F.normalize(paraphraser.encoder(teacher.two(teacher.one(x))).detach().flatten(1))
        distance = (u_s - u_t).abs().mean()
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(two))), y) + 30 * distance).backward()
        optimizer.step()
        assert logs["student/factor"] == pytest.approx(distance.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)
    assert_same(state(paraphraser), kept)
    assert all(p.grad is None for p in paraphraser.parameters())


def test_stage_2_sees_the_paraphraser_as_stage_1_left_it() -> None:
    stages = limbeck.ft(convnet(0).float(), convnet(1).float(), example=EXAMPLE.float())
    paraphraser = next(stages).method.objective.terms[0].adapters[0]
    with torch.no_grad():
        for p in paraphraser.parameters():
            p.add_(1)
    frozen = next(stages).method.objective.terms[1].adapters[1]
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(frozen(x), paraphraser.encoder(x))
    assert not list(frozen.parameters())


def test_the_epochs_and_the_rate() -> None:
    first, second = limbeck.ft(convnet(0), convnet(1, width=3), paraphraser_share=0.25, rate=0.25, example=EXAMPLE)
    assert (first.name, first.share, second.name, second.share) == ("paraphraser", 0.25, "factors", 0.75)
    assert first.method.networks() == second.method.networks()
    assert first.method.objective.terms[0].adapters[0].encoder[-1][0].weight.shape == (2, 2, 3, 3)  # of 6 channels
    assert second.method.objective.names == ["hard", "factor"]


def test_the_paraphraser_learns_to_restore() -> None:
    torch.manual_seed(0)
    teacher = convnet(1)
    stage = next(limbeck.ft(convnet(0), teacher, rate=1.0, example=EXAMPLE))
    stage.method.double()
    make = assign(parameters(stage.method, stage.trains), lambda own: torch.optim.Adam(own, 0.01))
    logs = [limbeck.play(stage.method, images(), make)["student/paraphrase"] for _ in range(60)]
    assert logs[-1] < 0.5 * logs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ("ones", "one")}, "has no layer 'ones'; the closest are"),
        ({"layer": ("fc", "one")}, "the student's 'fc' has shape"),
        ({"rate": 0.0}, r"rate must be above 0, got 0\.0"),
        ({"p": 0}, "p must be at least 1, got 0"),
        ({"paraphraser_share": 1.0}, r"paraphraser_share must be in \(0, 1\), got 1\.0"),
    ],
)
def test_what_is_invalid_fails_before_anything_trains(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(limbeck.ft(convnet(0), convnet(1), example=EXAMPLE, **options))
