from __future__ import annotations

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, assert_same, batches, gradient, mlp, normal, sgd, state
from torch.nn import functional as F

import limbeck
from limbeck.losses import logit_regression, soft_target


def test_formula() -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    naive = sum((z_s[n, k] - z_t[n, k]).item() ** 2 / 2 for n in range(5) for k in range(4)) / 5
    assert logit_regression(z_s, z_t).item() == pytest.approx(naive, rel=1e-12)


def test_by_hand() -> None:
    z_s, z_t = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, -1.0]])
    assert logit_regression(z_s, z_t).item() == (4 / 2 + (9 + 1) / 2) / 2


def test_the_mean_over_elements_is_2_over_k_of_it() -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    torch.testing.assert_close(F.mse_loss(z_s, z_t), 2 / 4 * logit_regression(z_s, z_t))


def test_its_gradient_is_the_limit_of_distillation() -> None:
    z_s, z_t = (z - z.mean(-1, keepdim=True) for z in (normal(5, 4, seed=1), normal(5, 4, seed=2)))
    regression = gradient(logit_regression, z_s, z_t)
    torch.testing.assert_close(regression, (z_s - z_t) / 5)
    torch.testing.assert_close(4 * gradient(soft_target, z_s, z_t, 1e4), regression, rtol=1e-2, atol=1e-5)


def test_a_common_offset_is_penalised_as_in_the_paper() -> None:
    z = normal(5, 4)
    torch.testing.assert_close(logit_regression(z + 1, z), torch.tensor(2.0).double())  # K/2


def test_every_position_counts_alike() -> None:
    z_s, z_t = normal(3, 7, 4, seed=1), normal(3, 7, 4, seed=2)
    torch.testing.assert_close(logit_regression(z_s, z_t), logit_regression(z_s.flatten(0, 1), z_t.flatten(0, 1)))


def test_numerics() -> None:
    assert_finite(logit_regression, normal(6, 4, seed=1, scale=1e4), normal(6, 4, seed=2, scale=1e4))
    assert_finite(logit_regression, torch.zeros(6, 4), torch.zeros(6, 4))
    assert_full_precision(logit_regression, normal(6, 4, seed=1), normal(6, 4, seed=2))


def test_nothing_is_broadcast() -> None:
    with pytest.raises(ValueError, match=r"logits: .* the same shape, got \(5, 4\) and \(5, 1\)"):
        logit_regression(normal(5, 4), normal(5, 1))


def test_playing_it_is_the_loop_without_labels() -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.logits(student, teacher)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, _ in batches(4):
        limbeck.play(method, (x, None), optimizers)
        optimizer.zero_grad()
        ((loop(x) - teacher(x).detach()).square().sum() / (2 * len(x))).backward()
        optimizer.step()
    assert_same(state(student), state(loop))


def test_labels_may_be_added() -> None:
    method = limbeck.logits(mlp(0), mlp(1), regression=0.5, hard=2.0)
    logs = limbeck.play(method, next(batches(1)), limbeck.optimizers(method, sgd))
    total = 0.5 * logs["student/regression"] + 2.0 * logs["student/hard"]
    assert logs["student/loss"] == pytest.approx(total, rel=1e-6)
