from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, assert_same, batches, gradient, mlp, normal, sgd, state
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import logit_regression, soft_cross_entropy, soft_target


def softened(z: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(v / temperature) for v in z.tolist()]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_formulas(temperature: float) -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    divergence = entropy = 0.0
    for n in range(5):
        for p_s, p_t in zip(softened(z_s[n], temperature), softened(z_t[n], temperature), strict=True):
            divergence += p_t * math.log(p_t / p_s)
            entropy -= p_t * math.log(p_s)
    scale = temperature**2 / 5
    assert soft_target(z_s, z_t, temperature).item() == pytest.approx(scale * divergence, rel=1e-12)
    assert soft_cross_entropy(z_s, z_t, temperature).item() == pytest.approx(scale * entropy, rel=1e-12)


def test_by_hand() -> None:
    # at T = 2: p_s = (1/2, 1/2), p_t = (3/4, 1/4), so KL = 3/4 ln 3/2 + 1/4 ln 1/2
    z_s, z_t = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    assert soft_target(z_s, z_t, 2.0).item() == pytest.approx(4 * (0.75 * math.log(1.5) - 0.25 * math.log(2)))
    assert soft_cross_entropy(z_s, z_t, 2.0).item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("loss", [soft_target, soft_cross_entropy])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_gradient_is_the_difference_of_the_probabilities(loss: Callable[..., Tensor], temperature: float) -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    difference = F.softmax(z_s / temperature, -1) - F.softmax(z_t / temperature, -1)
    torch.testing.assert_close(gradient(loss, z_s, z_t, temperature), temperature * difference / 5)


def test_they_differ_by_the_teachers_entropy() -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    p_t = F.softmax(z_t / 3, -1)
    entropy = -(p_t * p_t.log()).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(z_s, z_t, 3.0) - soft_target(z_s, z_t, 3.0), 9 * entropy)


def test_at_a_high_temperature_it_is_logit_regression() -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    centred_s, centred_t = (z - z.mean(-1, keepdim=True) for z in (z_s, z_t))
    expected = logit_regression(centred_s, centred_t) / 4  # 1/K
    assert soft_target(z_s, z_t, 1e3).item() == pytest.approx(expected.item(), rel=1e-2)
    assert soft_target(z_s, z_t, 1.0).item() != pytest.approx(expected.item(), rel=1e-2)


def test_it_is_zero_for_the_same_distribution_alone() -> None:
    z = normal(5, 4)
    assert soft_target(z, z + normal(5, 1, seed=1)).item() == pytest.approx(0, abs=1e-14)
    assert soft_target(z, 1.1 * z) > 1e-4


def test_every_position_counts_alike() -> None:
    z_s, z_t = normal(3, 7, 4, seed=1), normal(3, 7, 4, seed=2)
    for loss in (soft_target, soft_cross_entropy):
        torch.testing.assert_close(loss(z_s, z_t), loss(z_s.flatten(0, 1), z_t.flatten(0, 1)))


def test_mask() -> None:
    z_s, z_t = normal(3, 7, 4, seed=1), normal(3, 7, 4, seed=2)
    mask = torch.arange(21).view(3, 7) % 3 == 0
    torch.testing.assert_close(soft_target(z_s, z_t, mask=mask), soft_target(z_s[mask], z_t[mask]))
    torch.testing.assert_close(soft_target(z_s, z_t, mask=mask.long()), soft_target(z_s[mask], z_t[mask]))
    assert not gradient(soft_target, z_s, z_t, mask=mask)[~mask].any()


def test_what_a_mask_hides_may_be_anything() -> None:
    z_s, z_t = normal(4, 3, seed=1), normal(4, 3, seed=2)
    z_t[0] = math.nan
    mask = torch.tensor([False, True, True, True])
    torch.testing.assert_close(soft_target(z_s, z_t, mask=mask), soft_target(z_s[1:], z_t[1:]))
    assert soft_target(z_s, z_t, mask=torch.zeros(4, dtype=torch.bool)) == 0


@pytest.mark.parametrize("loss", [soft_target, soft_cross_entropy])
def test_numerics(loss: Callable[..., Tensor]) -> None:
    assert_finite(loss, normal(6, 4, seed=1, scale=1e4), normal(6, 4, seed=2, scale=1e4))
    assert_finite(loss, torch.zeros(6, 4), normal(6, 4, scale=1e4))
    assert_full_precision(loss, normal(6, 4, seed=1), normal(6, 4, seed=2))


@pytest.mark.parametrize("loss", [soft_target, soft_cross_entropy])
def test_invalid(loss: Callable[..., Tensor]) -> None:
    z = normal(5, 4)
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0"):
        loss(z, z, 0)
    with pytest.raises(ValueError, match="the student has 4 classes and the teacher 7"):
        loss(z, normal(5, 7))
    with pytest.raises(ValueError, match=r"logits: .* the same shape, got \(5, 4\) and \(1, 4\)"):
        loss(z, z[:1])


def test_invalid_mask() -> None:
    z = normal(5, 4)
    with pytest.raises(ValueError, match="the mask and the positions"):
        soft_target(z, z, mask=torch.ones(5, 4))


@pytest.mark.parametrize("alpha", [-0.1, 0.0, 1.1])
def test_alpha_outside_0_1(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \(0, 1\], got {alpha}"):
        limbeck.kd(mlp(0), mlp(1), alpha=alpha)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.kd(student, teacher, temperature=3.0, alpha=0.7)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    before = state(teacher)
    for x, y in batches(4):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        z_s, z_t = loop(x), teacher(x).detach()
        hard, soft = F.cross_entropy(z_s, y), soft_target(z_s, z_t, 3.0)
        ((1 - 0.7) * hard + 0.7 * soft).backward()
        optimizer.step()
        assert logs["student/soft"] == pytest.approx(soft.item(), rel=1e-6)
        assert logs["student/soft.weighted"] == pytest.approx(0.7 * soft.item(), rel=1e-6)
        assert logs["student/hard.weighted"] == pytest.approx(0.3 * hard.item(), rel=1e-6)
    assert_same(state(student), state(loop))
    assert_same(state(teacher), before)


def test_alpha_1_needs_no_labels() -> None:
    method = limbeck.kd(mlp(0), mlp(1), alpha=1.0)
    logs = limbeck.play(method, (normal(4, 6), None), limbeck.optimizers(method, sgd))
    assert set(logs) == {"student/soft", "student/soft.weighted", "student/loss"}
