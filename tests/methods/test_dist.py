from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from method_toys import CLASSES, assert_finite, assert_full_precision, batches, gradient, mlp, normal, sgd, state
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import dist, dist_inter, dist_intra
from limbeck.methods.dist import relations

BOTH = pytest.mark.parametrize("loss", [dist_inter, dist_intra])


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_formula(temperature: float) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1, scale=3), normal(6, CLASSES, seed=2, scale=3)
    p_s, p_t = ([[math.exp(z / temperature) for z in row] for row in logits.tolist()] for logits in (z_s, z_t))
    p_s, p_t = ([[w / sum(row) for w in row] for row in p] for p in (p_s, p_t))
    inter = 1 - sum(correlation(s, t) for s, t in zip(p_s, p_t, strict=True)) / 6
    columns = zip(zip(*p_s, strict=True), zip(*p_t, strict=True), strict=True)
    intra = 1 - sum(correlation(s, t) for s, t in columns) / CLASSES
    inter, intra = temperature**2 * inter, temperature**2 * intra
    assert dist_inter(z_s, z_t, temperature).item() == pytest.approx(inter, rel=1e-6)
    assert dist_intra(z_s, z_t, temperature).item() == pytest.approx(intra, rel=1e-6)
    both = dist(z_s, z_t, inter=0.5, intra=3.0, temperature=temperature)
    assert both.item() == pytest.approx(0.5 * inter + 3 * intra, rel=1e-6)
    assert dist is relations


def test_by_hand() -> None:
    # p_s = (2, 1, 1)/4 and (1, 1, 2)/4, p_t = (4, 2, 2)/8 and (2, 5, 1)/8
    z_s = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    z_t = torch.tensor([[4.0, 2.0, 2.0], [2.0, 5.0, 1.0]]).log()
    # the first row is in step; in the second (−1, −1, 2)/3 · (−2, 7, −5)/3 = −15/9 against √6/3 · √78/3
    inter = 1 - (1 - 15 / math.sqrt(6 * 78)) / 2
    assert dist_inter(z_s, z_t).item() == pytest.approx(inter)
    # class 1 falls in both, class 2 is constant for the student, class 3 rises against a fall
    assert dist_intra(z_s, z_t).item() == pytest.approx(1 - (1 + 0 - 1) / 3)
    assert dist(z_s, z_t, inter=2.0, intra=3.0).item() == pytest.approx(2 * inter + 3)


def test_only_the_ranking_counts() -> None:
    p_t = normal(6, CLASSES, seed=1).softmax(-1)
    unsure = (0.3 * p_t + 0.7 / CLASSES).log()  # each row is a positive affine map of the teacher's
    assert dist_inter(unsure, p_t.log()).item() == pytest.approx(0, abs=1e-5)
    assert dist_intra(unsure, p_t.log()).item() == pytest.approx(0, abs=1e-5)
    assert gradient(dist, unsure, p_t.log()).abs().max() < 1e-5


@BOTH
def test_invariances(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    value = loss(z_s, z_t)
    torch.testing.assert_close(loss(z_s + normal(6, 1), z_t + normal(6, 1, seed=5)), value)
    classes, samples = [2, 0, 4, 1, 3], [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(loss(z_s[:, classes], z_t[:, classes]), value)
    torch.testing.assert_close(loss(z_s[samples], z_t[samples]), value)
    torch.testing.assert_close(loss(z_s.view(2, 3, CLASSES), z_t.view(2, 3, CLASSES)), value)
    assert loss(z_t, z_t).item() == pytest.approx(0, abs=1e-5)
    assert gradient(loss, z_t, z_t).abs().max() < 1e-6


def test_gradient() -> None:
    z_s, z_t = normal(6, CLASSES, seed=1).requires_grad_(), normal(6, CLASSES, seed=2)
    assert torch.autograd.gradcheck(lambda z: dist(z, z_t, temperature=2.0), z_s)


@BOTH
def test_numerics(loss: Callable[..., Tensor]) -> None:
    z_s, z_t = normal(6, CLASSES, seed=1), normal(6, CLASSES, seed=2)
    for scale in (50, 1000):
        assert_finite(loss, scale * z_s.sign(), z_t)
        assert_finite(loss, z_s, scale * z_t.sign())
        assert_finite(loss, scale * F.one_hot(z_s.argmax(1), CLASSES).double(), z_t)
    assert_finite(loss, torch.zeros(6, CLASSES), z_t)
    assert_finite(loss, z_t, torch.zeros(6, CLASSES))
    assert_finite(loss, z_s[:1].repeat(6, 1), z_t[:1].repeat(6, 1))
    assert_finite(loss, z_s[:1], z_t[:1])
    assert_finite(loss, z_t, z_t)
    assert_full_precision(loss, z_s, z_t)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes", [5, 7, 1000])
def test_what_does_not_vary_correlates_with_nothing(
    loss: Callable[..., Tensor], dtype: torch.dtype, classes: int
) -> None:
    z = normal(6, classes, seed=1).to(dtype)
    assert loss(torch.zeros_like(z), z, 2.0) == 4
    assert loss(z, torch.zeros_like(z), 2.0) == 4
    assert not gradient(loss, torch.zeros_like(z), z).any()
    assert not gradient(loss, z, torch.zeros_like(z)).any()


def test_of_a_single_sample_or_twins_there_is_no_relation_within_a_class() -> None:
    z_s, z_t = normal(1, CLASSES, seed=1).float(), normal(1, CLASSES, seed=2).float()
    for s, t in ((z_s, z_t), (z_s.repeat(7, 1), z_t.repeat(7, 1))):
        assert dist_intra(s, t) == 1
        assert not gradient(dist_intra, s, t).any()
        torch.testing.assert_close(dist_inter(s, t), dist_inter(z_s, z_t))


@BOTH
def test_invalid(loss: Callable[..., Tensor]) -> None:
    z = normal(6, CLASSES)
    with pytest.raises(ValueError, match=r"logits: .* must have the same shape, got \(6, 5\) and \(6, 4\)"):
        loss(z, z[:, :4])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        loss(z, z, temperature=0)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.dist(student, teacher, inter=0.5, intra=3.0, temperature=2.0)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, y in batches(3):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        z, z_t = loop(x), teacher(x).detach()
        inter, intra = dist_inter(z, z_t, 2.0), dist_intra(z, z_t, 2.0)
        (F.cross_entropy(z, y) + 0.5 * inter + 3 * intra).backward()
        optimizer.step()
        assert logs["student/inter"] == pytest.approx(inter.item(), rel=1e-6)
        assert logs["student/intra"] == pytest.approx(intra.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


def test_options() -> None:
    assert limbeck.dist(mlp(0), mlp(1)).objective.weights == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match=r"temperature must be in \(0, 1000\], got -1"):
        limbeck.dist(mlp(0), mlp(1), temperature=-1)
