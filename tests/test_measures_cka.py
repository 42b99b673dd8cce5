"""Centred kernel alignment, at once and batch by batch."""

import math

import pytest
import torch

from limbeck.measure import MinibatchCKA, cka


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_naive(x, y):
    """The unbiased estimate of Song et al. 2012, term by term."""
    n = len(x)
    k, other = x @ x.T, y @ y.T
    for gram in (k, other):
        gram.fill_diagonal_(0)
    ones = torch.ones(n, dtype=x.dtype)
    trace = torch.trace(k @ other)
    means = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (ones @ k @ other @ ones)
    return (trace + means - cross) / (n * (n - 3))


def minibatch(pairs):
    measure = MinibatchCKA().set_dtype(torch.float64)
    for x, y in pairs:
        measure.update(x, y)
    return measure.compute().item()


X, Y = drawn(24, 5), drawn(24, 7, seed=1) + drawn(24, 5) @ drawn(5, 7, seed=2)
ROTATION = torch.linalg.qr(drawn(5, 5, seed=3)).Q


def test_by_hand():
    """Centred, X is (-1, 1) and Y (-1, 0, 1): X'X = 2 and so on, with one feature each the squared correlation."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    assert cka(x, y) == pytest.approx(0.25)


@pytest.mark.parametrize("measure", [cka, lambda x, y: minibatch([(x, y)])], ids=["at once", "batches"])
def test_rotations_scales_and_means_do_not_matter(measure):
    assert measure(X, X @ ROTATION) == pytest.approx(1)
    assert measure(X, -3 * X + 100) == pytest.approx(1)
    assert measure(X, Y) == pytest.approx(measure(X @ ROTATION + 5, 0.1 * Y - 3))
    assert measure(X, Y) == pytest.approx(measure(Y, X))
    assert 0.2 < measure(X, Y) < 0.95


def test_maps_are_features():
    maps = drawn(24, 2, 3, 4)
    assert cka(maps, Y) == cka(maps.flatten(1), Y)
    assert minibatch([(maps, Y)]) == minibatch([(maps.flatten(1), Y)])


def test_either_way_to_multiply_is_the_same():
    few, many = drawn(6, 30), drawn(6, 40, seed=1)
    centred = [features - features.mean(0) for features in (few, many)]
    products = [(a.T @ b).square().sum() for a, b in ((centred[1], centred[0]), (centred[0],) * 2, (centred[1],) * 2)]
    assert cka(few, many) == pytest.approx((products[0] / (products[1] * products[2]).sqrt()).item())


def test_minibatches_are_the_papers_estimate():
    batches = [(drawn(8, 5, seed=s), drawn(8, 6, seed=s + 50) + 2 * drawn(8, 5, seed=s)[:, :1]) for s in range(5)]
    mean = {
        name: sum(hsic_naive(*of(x, y)) for x, y in batches)
        for name, of in {"xy": lambda x, y: (x, y), "xx": lambda x, y: (x, x), "yy": lambda x, y: (y, y)}.items()
    }
    assert minibatch(batches) == pytest.approx((mean["xy"] / (mean["xx"] * mean["yy"]).sqrt()).item())


def test_batches_count_by_their_samples():
    x, y = drawn(12, 5), drawn(12, 5, seed=1)
    parts = [(x[:8], y[:8]), (x[8:], y[8:])]
    mean = {
        name: sum(len(part[0]) * hsic_naive(part[a], part[b]) for part in parts)
        for name, (a, b) in {"xy": (0, 1), "xx": (0, 0), "yy": (1, 1)}.items()
    }
    assert minibatch(parts) == pytest.approx((mean["xy"] / (mean["xx"] * mean["yy"]).sqrt()).item())


def test_unrelated_layers_are_near_zero_but_for_the_biased_estimate():
    """With more features than samples, as maps have, the biased one finds likeness in noise."""
    batches = [(drawn(16, 64, seed=s), drawn(16, 64, seed=1000 + s)) for s in range(200)]
    assert abs(minibatch(batches)) < 0.01
    assert cka(*batches[0]) > 0.5


def test_small_batches_say_nothing():
    rest = drawn(3, 5, seed=8), drawn(3, 7, seed=9)
    assert minibatch([(X, Y), rest]) == minibatch([(X, Y)])
    assert math.isnan(minibatch([rest]))


def test_a_constant_layer_is_like_none():
    constant = torch.ones(24, 3, dtype=torch.float64)
    assert math.isnan(cka(X, constant))
    assert math.isnan(minibatch([(X, constant)]))


def test_half_precision_and_large_features():
    """Products of features at 1e4 overflow in float16."""
    x, y = (1e4 * X).half(), Y.half()
    assert cka(x, y) == pytest.approx(cka(X, Y), abs=1e-3)
    measure = MinibatchCKA()
    measure.update(x, y)
    assert measure.compute().item() == pytest.approx(minibatch([(X, Y)]), abs=1e-3)


@pytest.mark.parametrize("measure", [cka, MinibatchCKA().update], ids=["at once", "batches"])
def test_samples_must_be_the_same(measure):
    with pytest.raises(ValueError, match="got 24 of the student and 23 of the teacher"):
        measure(X, Y[:23])


def test_one_sample_has_no_likeness():
    with pytest.raises(ValueError, match="2 or more, got 1"):
        cka(X[:1], Y[:1])
