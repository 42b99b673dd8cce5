from __future__ import annotations

import math

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, batches, gradient, mlp, normal, sgd, state
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import cross_entropy, label_smoothing, soft_cross_entropy, soft_target

Y = torch.tensor([0, 3, 2, 3, 1, 0])


def test_formula() -> None:
    z, smoothing, classes = normal(6, 4), 0.2, 4
    total = 0.0
    for n, y in enumerate(Y.tolist()):
        for k, log_p in enumerate(z[n].log_softmax(0).tolist()):
            total -= ((1 - smoothing) * (k == y) + smoothing / classes) * log_p
    assert label_smoothing(z, Y, smoothing).item() == pytest.approx(total / 6, rel=1e-12)


def test_by_hand() -> None:
    z = torch.tensor([[math.log(3), 0.0]])  # p = (3/4, 1/4), q' = (0.9, 0.1) at ε = 0.2
    assert label_smoothing(z, torch.tensor([0]), 0.2).item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_it_is_distillation_from_a_uniform_teacher() -> None:
    z, uniform = normal(6, 4), torch.zeros(6, 4).double()
    smoothed = label_smoothing(z, Y, 0.3)
    torch.testing.assert_close(
        smoothed, 0.7 * cross_entropy(z, Y) + 0.3 * soft_cross_entropy(z, uniform, temperature=1.0)
    )
    torch.testing.assert_close(
        smoothed, 0.7 * cross_entropy(z, Y) + 0.3 * (soft_target(z, uniform, temperature=1.0) + math.log(4))
    )


def test_the_other_convention_is_ours_at_another_smoothing() -> None:
    z, log_p = normal(6, 4), normal(6, 4).log_softmax(-1)
    true = log_p.gather(1, Y[:, None]).squeeze(1)
    tf_kd = -(0.9 * true + 0.1 / 3 * (log_p.sum(1) - true)).mean()
    torch.testing.assert_close(label_smoothing(z, Y, 0.1 * 4 / 3), tf_kd)


def test_its_optimum_is_the_smoothed_label_and_more_entropic_the_smoother() -> None:
    entropies = []
    for smoothing in (0.05, 0.1, 0.3, 0.9):
        q = (1 - smoothing) * F.one_hot(Y, 4).double() + smoothing / 4
        assert gradient(label_smoothing, q.log(), Y, smoothing).abs().max() < 1e-15
        entropies.append(-(q * q.log()).sum().item())
    assert entropies == sorted(entropies)


def test_the_ends() -> None:
    z = normal(6, 4)
    torch.testing.assert_close(label_smoothing(z, Y, 0.0), cross_entropy(z, Y))
    torch.testing.assert_close(label_smoothing(z, Y, 1.0), label_smoothing(z, (Y + 1) % 4, 1.0))


def test_samples_without_a_label_count_neither_way() -> None:
    z, y = normal(6, 4), Y.clone()
    y[[1, 4]] = -100
    torch.testing.assert_close(label_smoothing(z, y), label_smoothing(z[[0, 2, 3, 5]], y[[0, 2, 3, 5]]))
    nobody = torch.full((6,), -100)
    assert label_smoothing(z, nobody) == 0
    assert torch.equal(gradient(label_smoothing, z, nobody), torch.zeros(6, 4).double())


def test_numerics() -> None:
    assert_finite(label_smoothing, normal(6, 4, scale=1e4), Y)
    assert_finite(label_smoothing, torch.zeros(6, 4), Y)
    assert_full_precision(label_smoothing, normal(6, 4), Y)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_smoothing_outside_0_1(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"smoothing must lie in \[0, 1\], got {smoothing}"):
        label_smoothing(normal(6, 4), Y, smoothing)


def test_playing_it_is_the_loop() -> None:
    student, loop = mlp(0), mlp(0)
    method = limbeck.ls(student, smoothing=0.2)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(loop(x), y, label_smoothing=0.2).backward()
        optimizer.step()

    for x, y in batches(4):
        limbeck.play(method, (x, y), optimizers)
        step(x, y)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)
