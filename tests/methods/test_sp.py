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
from limbeck.losses import similarity


def naive(features: Tensor) -> list[list[float]]:
    rows = [sample.flatten().tolist() for sample in features]
    gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    return [[g / math.sqrt(sum(h**2 for h in row)) for g in row] for row in gram]


def test_formula() -> None:
    f_s, f_t = normal(4, 3, 2, 2, seed=1), normal(4, 5, 3, 3, seed=2)
    g_s, g_t = naive(f_s), naive(f_t)
    expected = sum((g_s[i][j] - g_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert similarity(f_s, f_t).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    # Gram matrices (1 0; 0 4) and (1 1; 1 2), rows divided by 1, 4, √2 and √5
    f_s, f_t = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    first = (1 - math.sqrt(0.5)) ** 2 + 0.5
    second = 0.2 + (1 - 2 / math.sqrt(5)) ** 2
    assert similarity(f_s, f_t).item() == pytest.approx((first + second) / 4)


def test_invariances() -> None:
    f_s, f_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    value = similarity(f_s, f_t)
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    for moved in (f_s @ rotation, 1000 * f_s, 0.001 * f_s, -f_s):
        torch.testing.assert_close(similarity(moved, f_t), value)
        torch.testing.assert_close(similarity(f_t, moved), similarity(f_t, f_s))
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(similarity(f_s[order], f_t[order]), value)
    assert abs(similarity(f_s[order], f_t) - value) > 1e-4  # it matters which sample is where


def test_it_is_zero_for_a_rotated_teacher() -> None:
    f_t = normal(6, 4, seed=1)
    f_s = 5 * f_t @ torch.linalg.qr(normal(9, 9, seed=3)).Q[:4]  # into more dimensions
    assert similarity(f_s, f_t).item() == pytest.approx(0, abs=1e-20)
    assert gradient(similarity, f_s, f_t).abs().max() < 1e-10


def test_gradient_is_that_of_the_naive_formula() -> None:
    def naive(f_s: Tensor, f_t: Tensor) -> Tensor:
        return (F.normalize(f_s @ f_s.T) - F.normalize(f_t @ f_t.T)).square().mean()

    f_s, f_t = normal(5, 3, seed=1), normal(5, 4, seed=2)
    torch.testing.assert_close(gradient(similarity, f_s, f_t), gradient(naive, f_s, f_t))


def test_the_teacher_gets_no_gradient() -> None:
    f_s, f_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2).requires_grad_()
    similarity(f_s, f_t).backward()
    assert f_s.grad is not None
    assert f_t.grad is None


def test_numerics() -> None:
    f_s, f_t = normal(6, 4, 3, 3, seed=1), normal(6, 5, 3, 3, seed=2)
    assert_finite(similarity, 1e4 * f_s, f_t)
    assert_finite(similarity, 1e4 * f_s.sign(), 1e4 * f_t.sign())
    assert_finite(similarity, f_s[[0, 1, 0, 2, 3, 3]], f_t)
    assert_finite(similarity, torch.zeros(6, 4), f_t)
    assert_finite(similarity, f_s, torch.zeros(6, 5))
    assert_finite(similarity, f_t, f_t)
    assert_full_precision(similarity, f_s, f_t)


def test_a_dead_sample_learns_from_the_others_rows_alone() -> None:
    def naive(f_s: Tensor, f_t: Tensor) -> Tensor:
        gram, alive = f_s @ f_s.T, [0, 1, 3, 4, 5]
        rows = gram.index_copy(0, torch.tensor(alive), F.normalize(gram[alive]))
        rows = rows.where(torch.arange(6)[:, None] != 2, 0.0)
        return (rows - F.normalize(f_t @ f_t.T)).square().mean()

    f_s, f_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    f_s[2] = 0
    torch.testing.assert_close(gradient(similarity, f_s, f_t), gradient(naive, f_s, f_t))
    assert gradient(similarity, f_s, f_t).abs().max() < 1  # torch's normalize alone would give 1e10


def test_a_single_sample_has_nothing_to_be_similar_to() -> None:
    assert similarity(normal(1, 4), normal(1, 5)) == 0
    assert gradient(similarity, normal(1, 4), normal(1, 5)).abs().max() < 1e-15


def test_invalid() -> None:
    with pytest.raises(ValueError, match="must show the same samples, got 5 and 4"):
        similarity(normal(5, 3), normal(4, 3))


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.sp(student, teacher, layers=[("one", "one"), ("two", "two")], similarity=500.0)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()

    def look(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = net.one(x)
        two = net.two(one)
        return one, two, net.fc(net.flat(net.pool(two)))

    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        one, two, z = look(loop, x)
        one_t, two_t, _ = look(teacher, x)
        terms = [similarity(one, one_t), similarity(two, two_t)]
        (F.cross_entropy(z, y) + 500 * terms[0] + 500 * terms[1]).backward()
        optimizer.step()
        assert logs["student/similarity.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


def test_the_deepest_pair_is_found_by_an_example() -> None:
    x, _ = images()
    method = limbeck.sp(convnet(0), convnet(1, width=6), example=x)
    assert method.objective.names == ["hard", "similarity.two"]
    assert method.objective.weights == [1.0, 3000.0]
    perceptrons = limbeck.sp(mlp(0), mlp(1, width=16), example=normal(4, 6))  # vectors will do
    assert perceptrons.objective.names == ["hard", "similarity.3:in"]


def test_invalid_layers() -> None:
    with pytest.raises(ValueError, match="layers are paired by running an example"):
        limbeck.sp(convnet(0), convnet(1))
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        limbeck.sp(convnet(0), convnet(1), layers=[("ones", "one")])
