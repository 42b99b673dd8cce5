from __future__ import annotations

import math

import pytest
import torch
from method_toys import (
    assert_finite,
    assert_full_precision,
    batches,
    convnet,
    gradient,
    images,
    mlp,
    normal,
    sgd,
    state,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import correlation


def naive(e: Tensor, gamma: float, order: int) -> list[list[float]]:
    unit = [[x / math.sqrt(sum(y**2 for y in row)) for x in row] for row in e.tolist()]

    def kernel(a: list[float], b: list[float]) -> float:
        cosine = sum(x * y for x, y in zip(a, b, strict=True))
        series = sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))
        return math.exp(-2 * gamma) * series

    return [[kernel(a, b) for b in unit] for a in unit]


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.5, 3), (1.0, 1)])
def test_formula(gamma: float, order: int) -> None:
    e_s, e_t = normal(5, 3, seed=1), normal(5, 7, seed=2)
    k_s, k_t = naive(e_s, gamma, order), naive(e_t, gamma, order)
    expected = sum((k_s[i][j] - k_t[i][j]) ** 2 for i in range(5) for j in range(5)) / 5**2
    assert correlation(e_s, e_t, gamma, order).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    # cosines 0 and 1/2 beside those of 1 with oneself: e^(−1) (1 + 1/2 + 1/8) against e^(−1)
    e_s, e_t = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[4.0, 0.0], [1.0, math.sqrt(3)]])
    expected = 2 * (math.exp(-1) * (1 / 2 + 1 / 8)) ** 2 / 4
    assert correlation(e_s, e_t, gamma=0.5).item() == pytest.approx(expected)


def test_the_series_approaches_the_gaussian_kernel() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    k_s, k_t = (torch.exp(-0.4 * torch.cdist(F.normalize(e), F.normalize(e)).square()) for e in (e_s, e_t))
    torch.testing.assert_close(correlation(e_s, e_t, order=20), (k_s - k_t).square().mean())


def test_invariances() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    value = correlation(e_s, e_t)
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    lengths = torch.tensor([0.001, 1, 2, 50, 1000, 7]).double()[:, None]  # one for each sample
    for moved in (e_s @ rotation, lengths * e_s, -e_s):
        torch.testing.assert_close(correlation(moved, e_t), value)
        torch.testing.assert_close(correlation(e_t, moved), correlation(e_t, e_s))
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(correlation(e_s[order], e_t[order]), value)
    assert abs(correlation(e_s[order], e_t) - value) > 1e-4  # it matters which sample is where


def test_it_is_zero_for_a_rotated_teacher() -> None:
    e_t = normal(6, 4, seed=1)
    e_s = 5 * e_t @ torch.linalg.qr(normal(9, 9, seed=3)).Q[:4]  # into more dimensions
    assert correlation(e_s, e_t).item() == pytest.approx(0, abs=1e-20)
    assert gradient(correlation, e_s, e_t).abs().max() < 1e-10


def test_gradient() -> None:
    e_s, e_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda e: correlation(e, e_t), e_s)


def test_the_teacher_gets_no_gradient() -> None:
    e_s, e_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2).requires_grad_()
    correlation(e_s, e_t).backward()
    assert e_s.grad is not None
    assert e_t.grad is None


def test_numerics() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    assert_finite(correlation, 1e4 * e_s, e_t)
    assert_finite(correlation, 1e4 * e_s.sign(), 1e4 * e_t.sign())
    assert_finite(correlation, e_s[[0, 1, 0, 2, 3, 3]], e_t)
    assert_finite(correlation, torch.zeros(6, 4), e_t)
    assert_finite(correlation, e_s, torch.zeros(6, 5))
    assert_finite(correlation, e_t, e_t)
    assert_full_precision(correlation, e_s, e_t)


def test_a_dead_sample_gets_no_gradient() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    e_s[2] = 0
    there = gradient(correlation, e_s, e_t)
    assert not there[2].any()
    assert 0 < there.abs().max() < 1


def test_a_single_sample_correlates_with_itself_alone() -> None:
    assert correlation(normal(1, 4), normal(1, 5)).item() == pytest.approx(0, abs=1e-30)
    assert gradient(correlation, normal(1, 4), normal(1, 5)).abs().max() < 1e-15


def test_invalid() -> None:
    with pytest.raises(ValueError, match="must embed the same samples, got 5 and 4"):
        correlation(normal(5, 3), normal(4, 3))
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        correlation(normal(5, 3), normal(5, 3), gamma=0)
    with pytest.raises(ValueError, match=r"order must be at least 1, .* got 0"):
        correlation(normal(5, 3), normal(5, 3), order=0)


def test_playing_it_is_the_loop_with_a_connector() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    x, _ = images()
    method = limbeck.cc(student, teacher, correlation=20.0, dimensions=3, example=x)
    method.objective.double()
    weights = [p.detach().clone().requires_grad_() for p in method.objective.parameters()]
    assert [tuple(p.shape) for p in weights] == [(3, 8), (3,)]
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), *weights])
    teacher.eval()

    def embed(net: nn.Module, x: Tensor) -> Tensor:
        return net.flat(net.pool(net.two(net.one(x))))

    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        e_s = embed(loop, x)
        difference = correlation(F.linear(e_s, *weights), embed(teacher, x))
        (F.cross_entropy(loop.fc(e_s), y) + 20 * difference).backward()
        optimizer.step()
        assert logs["student/correlation"] == pytest.approx(difference.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close([*method.objective.parameters()], weights, rtol=1e-10, atol=1e-12)


def test_maps_are_flattened() -> None:
    student, teacher, (x, y) = convnet(0), convnet(1).eval(), images()
    method = limbeck.cc(student, teacher, layer="two", dimensions=5, example=x).double()
    logs = limbeck.play(method, (x, y), limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.0)))
    weight, bias = method.objective.parameters()
    e_s = student.two(student.one(x)).reshape(6, 8 * 4 * 4) @ weight.T + bias
    e_t = teacher.two(teacher.one(x)).reshape(6, 8 * 4 * 4)
    k_s, k_t = (torch.tensor(naive(e, 0.4, 2)) for e in (e_s, e_t))
    assert logs["student/correlation"] == pytest.approx((k_s - k_t).square().mean().item(), rel=1e-6)


def test_options_fail_when_it_is_assembled() -> None:
    with pytest.raises(ValueError, match="gamma must be above 0, got -1"):
        limbeck.cc(mlp(0), mlp(1), gamma=-1, example=normal(4, 6))
    with pytest.raises(ValueError, match="order must be at least 1"):
        limbeck.cc(mlp(0), mlp(1), order=0, example=normal(4, 6))
