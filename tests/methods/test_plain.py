from __future__ import annotations

import math

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, assert_same, batches, gradient, mlp, normal, sgd, state
from torch.nn import functional as F

import limbeck
from limbeck.losses import cross_entropy


def test_formula_over_the_labelled_samples() -> None:
    z, y = normal(5, 4), torch.tensor([0, 3, -100, 1, -100])
    naive = [-math.log(math.exp(z[n, y[n]]) / sum(math.exp(v) for v in z[n])) for n in (0, 1, 3)]
    assert cross_entropy(z, y).item() == pytest.approx(sum(naive) / 3, rel=1e-12)


def test_by_hand() -> None:
    z = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert cross_entropy(z, torch.tensor([0, 1])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_a_batch_without_labels_teaches_nothing() -> None:
    z, y = normal(3, 4), torch.full((3,), -100)
    assert cross_entropy(z, y) == 0
    assert torch.equal(gradient(cross_entropy, z, y), torch.zeros(3, 4).double())


def test_numerics() -> None:
    y = torch.tensor([0, 1, 2])
    assert_finite(cross_entropy, normal(3, 4, scale=1e4), y)
    assert_finite(cross_entropy, torch.zeros(3, 4), y)
    assert_full_precision(cross_entropy, normal(3, 4), y)


def test_playing_it_is_the_plain_loop() -> None:
    student, loop = mlp(0), mlp(0)
    method = limbeck.plain(student)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    for x, y in batches(4):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        loss = F.cross_entropy(loop(x), y)
        loss.backward()
        optimizer.step()
        assert logs["student/hard"] == pytest.approx(loss.item(), rel=1e-6)
    assert_same(state(student), state(loop))


def test_there_is_nobody_but_the_student() -> None:
    method = limbeck.plain(student := mlp(0))
    assert list(method.players()) == ["student"]
    assert method.networks() == {"student": student}
    assert len(method.teachers) == 0


def test_a_student_that_cannot_learn() -> None:
    method = limbeck.plain(mlp(0).requires_grad_(False))
    with pytest.raises(ValueError, match=r"'student' \(Sequential\) is frozen, with no parameter that requires"):
        limbeck.optimizers(method, sgd)
