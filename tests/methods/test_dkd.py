from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from method_toys import CLASSES, assert_finite, assert_full_precision, batches, gradient, mlp, normal, sgd, state
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import dkd, dkd_others, dkd_target, soft_target
from limbeck.methods.dkd import decoupled

BOTH = pytest.mark.parametrize("loss", [dkd_target, dkd_others])
LABELS = torch.tensor([0, 3, 3, 4, 1, 2])


def softened(logits: Tensor, temperature: float) -> list[float]:
    weights = [math.exp(z / temperature) for z in logits.tolist()]
    return [w / sum(weights) for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive(z_s: Tensor, z_t: Tensor, y: Tensor, temperature: float) -> tuple[float, float]:
    target = others = 0.0
    for s, t, label in zip(z_s, z_t, y.tolist(), strict=True):
        p_s, p_t = softened(s, temperature), softened(t, temperature)
        target += divergence([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
        rest = [k for k in range(len(p_s)) if k != label]
        others += divergence([p_t[k] / (1 - p_t[label]) for k in rest], [p_s[k] / (1 - p_s[label]) for k in rest])
    return temperature**2 * target / len(y), temperature**2 * others / len(y)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_formula(temperature: float) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1, scale=3), normal(6, CLASSES, seed=2, scale=3)
    target, others = naive(z_s, z_t, LABELS, temperature)
    assert dkd_target(z_s, z_t, LABELS, temperature).item() == pytest.approx(target, rel=1e-12)
    assert dkd_others(z_s, z_t, LABELS, temperature).item() == pytest.approx(others, rel=1e-12)
    both = dkd(z_s, z_t, LABELS, target=0.5, others=3.0, temperature=temperature)
    assert both.item() == pytest.approx(0.5 * target + 3 * others, rel=1e-12)
    assert dkd is decoupled


def test_by_hand() -> None:
    # p_t = (6, 3, 1)/10 and p_s = (2, 4, 4)/10: the label against the rest, then 3:1 against 1:1
    z_t, z_s = torch.tensor([[6.0, 3.0, 1.0]]).log(), torch.tensor([[2.0, 4.0, 4.0]]).log()
    y = torch.tensor([0])
    target = 0.6 * math.log(3) + 0.4 * math.log(0.5)
    others = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert dkd_target(z_s, z_t, y, temperature=1.0).item() == pytest.approx(target)
    assert dkd_others(z_s, z_t, y, temperature=1.0).item() == pytest.approx(others)
    assert dkd(z_s, z_t, y, temperature=1.0).item() == pytest.approx(target + 8 * others)


def test_the_divergence_is_decoupled() -> None:
    z_s, z_t = normal(1, CLASSES, seed=1), normal(1, CLASSES, seed=2)
    y = torch.tensor([3])
    doubt = 1 - (z_t / 2).softmax(-1)[0, 3]
    whole = dkd(z_s, z_t, y, target=1.0, others=doubt.item(), temperature=2.0)
    torch.testing.assert_close(whole, soft_target(z_s, z_t, temperature=2.0))


@BOTH
def test_invariances(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    value = loss(z_s, z_t, LABELS)
    torch.testing.assert_close(loss(z_s + normal(6, 1), z_t + normal(6, 1, seed=5), LABELS), value)
    order = [2, 0, 4, 1, 3]  # of the classes
    torch.testing.assert_close(loss(z_s[:, order], z_t[:, order], torch.tensor(order).argsort()[LABELS]), value)
    assert loss(z_t, z_t, LABELS).item() == pytest.approx(0, abs=1e-15)
    assert gradient(loss, z_t, z_t, LABELS).abs().max() < 1e-15


def test_each_is_blind_to_what_the_other_sees() -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    surer = z_s + 5 * F.one_hot(LABELS, CLASSES)
    torch.testing.assert_close(dkd_others(surer, z_t, LABELS), dkd_others(z_s, z_t, LABELS))
    assert gradient(dkd_others, z_s, z_t, LABELS).gather(1, LABELS[:, None]).abs().max() == 0
    assert dkd_target(surer, z_t, LABELS) != dkd_target(z_s, z_t, LABELS)


def test_gradient() -> None:
    z_s, z_t = normal(6, CLASSES, seed=1).requires_grad_(), normal(6, CLASSES, seed=2)
    assert torch.autograd.gradcheck(lambda z: dkd(z, z_t, LABELS), z_s)


@BOTH
def test_numerics(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    for scale in (50, 1000):
        assert_finite(loss, scale * z_s.sign(), z_t, LABELS)
        assert_finite(loss, z_s, scale * z_t.sign(), LABELS)
        for sign in (1, -1):  # sure of the label, in both directions
            sure = sign * scale * F.one_hot(LABELS, CLASSES).double()
            assert_finite(loss, sure, z_t, LABELS)
            assert_finite(loss, sure, -sure, LABELS)
    assert_finite(loss, torch.zeros(6, CLASSES), z_t, LABELS)
    assert_finite(loss, z_t, z_t, LABELS)
    assert_finite(loss, z_s[:1].repeat(6, 1), z_t, LABELS)
    assert_finite(loss, z_s[:1], z_t[:1], LABELS[:1])
    assert_full_precision(loss, z_s, z_t, LABELS)


def test_a_confident_student_is_still_corrected() -> None:
    # where the authors' code takes the logarithm of a probability of exactly 0
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    y = torch.tensor([1])
    assert dkd_target(sure, torch.zeros(1, 3), y, temperature=1.0).item() == pytest.approx(500 / 3, rel=0.01)
    assert gradient(dkd_target, sure, torch.zeros(1, 3), y, temperature=1.0)[0, 1].item() == pytest.approx(-1 / 3)


@BOTH
def test_what_has_no_label_does_not_count(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    y = LABELS.where(torch.arange(6) < 4, -100)
    torch.testing.assert_close(loss(z_s, z_t, y), loss(z_s[:4], z_t[:4], y[:4]))
    assert not gradient(loss, z_s, z_t, y)[4:].any()
    none = torch.full_like(LABELS, -100)
    assert loss(z_s, z_t, none) == 0
    assert not gradient(loss, z_s, z_t, none).any()


@BOTH
def test_every_position_is_a_sample(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(2, 3, CLASSES, seed=1), normal(2, 3, CLASSES, seed=2)
    torch.testing.assert_close(
        loss(z_s, z_t, LABELS.view(2, 3)), loss(z_s.view(6, CLASSES), z_t.view(6, CLASSES), LABELS)
    )


@BOTH
def test_invalid(loss: Callable[..., Tensor]) -> None:
    z = normal(6, CLASSES)
    with pytest.raises(ValueError, match=r"logits: .* must have the same shape, got \(6, 5\) and \(6, 4\)"):
        loss(z, z[:, :4], LABELS)
    with pytest.raises(ValueError, match=r"class indices of shape \(6,\), got torch.int64 of shape \(5,\)"):
        loss(z, z, LABELS[:5])
    with pytest.raises(ValueError, match="no one class to decouple, use kd or dist"):
        loss(z, z, torch.ones(6))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        loss(z, z, LABELS, temperature=0)


def test_playing_it_is_the_loop_and_rises_through_the_warm_up() -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.dkd(student, teacher, target=2.0, others=3.0, temperature=2.0, warmup=0.5)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for progress, rising, (x, y) in zip([0, 0.2, 0.475, 1], [0.05, 0.45, 1, 1], batches(4), strict=True):
        logs = limbeck.play(method, (x, y), optimizers, progress)
        optimizer.zero_grad()
        z = loop(x)
        target, others = (loss(z, teacher(x).detach(), y, 2.0) for loss in (dkd_target, dkd_others))
        (F.cross_entropy(z, y) + rising * (2 * target + 3 * others)).backward()
        optimizer.step()
        assert logs["student/target"] == pytest.approx(target.item(), rel=1e-6)
        assert logs["student/others.weighted"] == pytest.approx(rising * 3 * others.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


def test_options() -> None:
    student, teacher = mlp(0), mlp(1)
    assert limbeck.dkd(student, teacher, warmup=0).objective.weights == [1.0, 1.0, 8.0]
    with pytest.raises(ValueError, match=r"warmup must be in \[0, 1\], got 20"):
        limbeck.dkd(student, teacher, warmup=20)
    with pytest.raises(ValueError, match=r"temperature must be in \(0, 1000\], got -1"):
        limbeck.dkd(student, teacher, temperature=-1)
