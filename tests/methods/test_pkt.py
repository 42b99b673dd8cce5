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
from limbeck.losses import probability


def naive(e: Tensor) -> list[list[float]]:
    """Each sample's neighbours, cosine by cosine."""
    rows = e.tolist()
    lengths = [math.sqrt(sum(x**2 for x in row)) + 1e-7 for row in rows]
    similar = [
        [
            (sum(x * y for x, y in zip(rows[i], rows[j], strict=True)) / lengths[i] / lengths[j] + 1) / 2
            for j in range(len(e))
        ]
        for i in range(len(e))
    ]
    return [[s / sum(row) for s in row] for row in similar]


def test_formula() -> None:
    e_s, e_t = normal(5, 3, seed=1), normal(5, 7, seed=2)
    p_s, p_t = naive(e_s), naive(e_t)
    pairs = [(t, s) for row_t, row_s in zip(p_t, p_s, strict=True) for t, s in zip(row_t, row_s, strict=True)]
    expected = sum(t * math.log((t + 1e-7) / (s + 1e-7)) for t, s in pairs) / 5**2
    assert probability(e_s, e_t).item() == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # cosines 0 for the student, so 2:1 with oneself; 1 for the teacher, so 1:1
    e_s, e_t = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [5.0]])
    divergence = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert probability(e_s, e_t).item() == pytest.approx(2 * divergence / 4, rel=1e-5)


def test_invariances() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    value = probability(e_s, e_t)
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    lengths = torch.tensor([0.1, 1, 2, 50, 1000, 7]).double()[:, None]  # one for each sample
    for moved in (e_s @ rotation, lengths * e_s, -e_s):
        torch.testing.assert_close(probability(moved, e_t), value, rtol=1e-5, atol=0)
        torch.testing.assert_close(probability(e_t, moved), probability(e_t, e_s), rtol=1e-5, atol=0)
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(probability(e_s[order], e_t[order]), value)
    assert abs(probability(e_s[order], e_t) - value) > 1e-5  # it matters which sample is where


def test_it_is_zero_for_a_rotated_teacher_and_positive_else() -> None:
    e_t = normal(6, 4, seed=1)
    e_s = 5 * e_t @ torch.linalg.qr(normal(9, 9, seed=3)).Q[:4]  # into more dimensions
    assert probability(e_s, e_t).item() == pytest.approx(0, abs=1e-8)
    assert gradient(probability, e_s, e_t).abs().max() < 1e-8
    assert all(probability(normal(6, 4, seed=seed), e_t) > 1e-4 for seed in range(2, 6))


def test_gradient() -> None:
    e_s, e_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda e: probability(e, e_t), e_s)


def test_the_teacher_gets_no_gradient() -> None:
    e_s, e_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2).requires_grad_()
    probability(e_s, e_t).backward()
    assert e_s.grad is not None
    assert e_t.grad is None


def test_numerics() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    assert_finite(probability, 1e4 * e_s, e_t)
    assert_finite(probability, 1e4 * e_s.sign(), 1e4 * e_t.sign())
    assert_finite(probability, e_s[[0, 1, 0, 2, 3, 3]], e_t)
    assert_finite(probability, torch.cat([e_s[:3], -e_s[:3]]), e_t)  # cosines of −1
    assert_finite(probability, torch.zeros(6, 4), e_t)
    assert_finite(probability, e_s, torch.zeros(6, 5))
    assert_finite(probability, e_t, e_t)
    assert_full_precision(probability, e_s, e_t)


def test_opposite_samples_stay_finite_in_many_dimensions() -> None:
    half = normal(8, 20000, seed=1).float()  # the cosines' rounding exceeds epsilon
    assert_finite(probability, torch.cat([half, -half]), normal(16, 5, seed=2))


def test_a_dead_sample_gets_no_gradient() -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    e_s[2] = 0
    there = gradient(probability, e_s, e_t)
    assert not there[2].any()
    assert 0 < there.abs().max() < 1


def test_a_single_sample_has_no_neighbours() -> None:
    assert probability(normal(1, 4), normal(1, 5)) == 0
    assert gradient(probability, normal(1, 4), normal(1, 5)).abs().max() < 1e-15


def test_invalid() -> None:
    with pytest.raises(ValueError, match="must embed the same samples, got 5 and 4"):
        probability(normal(5, 3), normal(4, 3))


def test_playing_it_is_the_loop_on_the_embeddings() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.pkt(student, teacher, probability=20.0)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()

    def embed(net: nn.Module, x: Tensor) -> Tensor:
        return net.flat(net.pool(net.two(net.one(x))))

    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        e_s = embed(loop, x)
        divergence = probability(e_s, embed(teacher, x))
        (F.cross_entropy(loop.fc(e_s), y) + 20 * divergence).backward()
        optimizer.step()
        assert logs["student/probability"] == pytest.approx(divergence.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("layer", "places"), [(None, ("3:in", "3:in")), ("0", ("0", "0")), (("0", ""), ("0", ""))])
def test_where_the_embeddings_are(layer: str | tuple[str, str] | None, places: tuple[str, str]) -> None:
    method = limbeck.pkt(mlp(0), mlp(1), layer=layer)
    assert [source.path for source in method.objective.terms[1].sources] == list(places)


def test_invalid_layers() -> None:
    with pytest.raises(ValueError, match="has no linear layer whose input could serve as embedding"):
        limbeck.pkt(nn.Flatten(), mlp(1))
