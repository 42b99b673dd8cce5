from __future__ import annotations

import math
import sys

import pytest
import torch
from method_toys import (
    Largest,
    assert_finite,
    assert_full_precision,
    assert_same,
    batches,
    convnet,
    gradient,
    images,
    normal,
    sgd,
    state,
)
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import neuron_selectivity

KERNELS = pytest.mark.parametrize("kernel", ["linear", "poly", "gaussian"])


def unit(values: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values] if length else values


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def distance(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def naive(student: Tensor, teacher: Tensor, kernel: str, sigma: float | None = None) -> float:
    """The paper's equation, pair of channels by pair of channels."""
    s, t = ([[unit(c.flatten().tolist()) for c in sample] for sample in x] for x in (student, teacher))
    crossed = [distance(a, b) for s_n, t_n in zip(s, t, strict=True) for a in s_n for b in t_n]
    variance = sum(crossed) / len(crossed) if sigma is None else sigma**2
    k = {
        "linear": dot,
        "poly": lambda x, y: dot(x, y) ** 2,
        "gaussian": lambda x, y: math.exp(-distance(x, y) / (2 * variance)),
    }[kernel]

    def mean(xs: list[list[float]], ys: list[list[float]]) -> float:
        return sum(k(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    each = [mean(t_n, t_n) + mean(s_n, s_n) - 2 * mean(t_n, s_n) for s_n, t_n in zip(s, t, strict=True)]
    return sum(each) / len(each)


@KERNELS
@pytest.mark.parametrize("grid", [(1, 3), (2, 4), (5, 6)])  # 3 < 5, 7 channels < 30: both sides of the identity
def test_formula(kernel: str, grid: tuple[int, int]) -> None:
    f_s, f_t = normal(3, 5, *grid, seed=1), normal(3, 7, *grid, seed=2)
    assert neuron_selectivity(f_s, f_t, kernel).item() == pytest.approx(naive(f_s, f_t, kernel), rel=1e-10)


def test_a_sigma_of_ones_own() -> None:
    f_s, f_t = normal(3, 5, 2, 4, seed=1), normal(3, 7, 2, 4, seed=2)
    expected = naive(f_s, f_t, "gaussian", sigma=0.5)
    assert neuron_selectivity(f_s, f_t, "gaussian", sigma=0.5).item() == pytest.approx(expected, rel=1e-10)


def test_by_hand() -> None:
    # channels (1, 0) and (0.6, 0.8) of the student, (0, 1) of the teacher
    f_s = torch.tensor([[[[2.0, 0.0]], [[3.0, 4.0]]]])
    f_t = torch.tensor([[[[0.0, 5.0]]]])
    # s·s' = 1, 0.6, 0.6, 1; t·t = 1; s·t = 0, 0.8
    assert neuron_selectivity(f_s, f_t, "linear").item() == pytest.approx(1 + 3.2 / 4 - 2 * 0.8 / 2)
    assert neuron_selectivity(f_s, f_t, "poly").item() == pytest.approx(1 + 2.72 / 4 - 2 * 0.64 / 2)
    # ‖s − s'‖² = 0.8, ‖s − t‖² = 2, 0.4 with mean 1.2
    within, across = (2 + 2 * math.exp(-0.8 / 2.4)) / 4, (math.exp(-2 / 2.4) + math.exp(-0.4 / 2.4)) / 2
    assert neuron_selectivity(f_s, f_t, "gaussian").item() == pytest.approx(1 + within - 2 * across)


@KERNELS
@pytest.mark.parametrize("grid", [(1, 3), (4, 4)])
def test_invariances(kernel: str, grid: tuple[int, int]) -> None:
    f_s, f_t = normal(3, 6, *grid, seed=1), normal(3, 5, *grid, seed=2)
    value = neuron_selectivity(f_s, f_t, kernel)
    scales = torch.tensor([0.01, 1.0, 300.0, 2.0, 5.0, 0.3]).double().view(1, 6, 1, 1)  # one for each channel
    torch.testing.assert_close(neuron_selectivity(scales * f_s, f_t, kernel), value)
    torch.testing.assert_close(neuron_selectivity(f_s[:, [5, 0, 3, 1, 4, 2]], f_t, kernel), value)
    torch.testing.assert_close(neuron_selectivity(f_s, f_t[:, [4, 2, 0, 1, 3]], kernel), value)
    torch.testing.assert_close(neuron_selectivity(f_s.repeat(1, 2, 1, 1), f_t, kernel), value)
    assert abs(neuron_selectivity(f_s.flip(3), f_t, kernel) - value) > 1e-4  # positions do matter
    assert value > 0


@KERNELS
@pytest.mark.parametrize("grid", [(1, 3), (4, 4)])
def test_it_is_zero_for_the_same_maps_up_to_scale(kernel: str, grid: tuple[int, int]) -> None:
    f_t = normal(3, 6, *grid)
    f_s = torch.tensor([0.5, 1.0, 2.0, 9.0, 1e-3, 1e3]).double().view(1, 6, 1, 1) * f_t[:, [3, 1, 5, 0, 2, 4]]
    assert neuron_selectivity(f_s, f_t, kernel).item() == pytest.approx(0, abs=1e-14)
    assert gradient(neuron_selectivity, f_t, f_t, kernel).abs().max() < 1e-14


@KERNELS
@pytest.mark.parametrize("grid", [(1, 3), (4, 4)])
def test_gradient_is_that_of_differences(kernel: str, grid: tuple[int, int]) -> None:
    f_s, f_t = normal(2, 4, *grid, seed=1), normal(2, 5, *grid, seed=2)
    sigma = 0.7 if kernel == "gaussian" else None  # its default is held constant
    assert torch.autograd.gradcheck(lambda x: neuron_selectivity(x, f_t, kernel, sigma), f_s.requires_grad_())


def test_the_default_sigma_gets_no_gradient() -> None:
    f_s, f_t = normal(2, 4, 3, 3, seed=1), normal(2, 5, 3, 3, seed=2)
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (f_s, f_t))
    sigma = torch.cdist(s, t).square().mean().sqrt().item()
    expected = gradient(neuron_selectivity, f_s, f_t, "gaussian", sigma)
    torch.testing.assert_close(gradient(neuron_selectivity, f_s, f_t, "gaussian"), expected)


def test_the_larger_map_is_pooled_to_the_smaller_grid() -> None:
    f_s, f_t = normal(3, 5, 8, 8, seed=1), normal(3, 2, 4, 2, seed=2)
    pooled = F.avg_pool2d(f_s, (2, 4))
    torch.testing.assert_close(neuron_selectivity(f_s, f_t), neuron_selectivity(pooled, f_t))
    torch.testing.assert_close(neuron_selectivity(f_t, f_s), neuron_selectivity(f_t, pooled))


@KERNELS
@pytest.mark.parametrize("size", [2, 4])
def test_numerics(kernel: str, size: int) -> None:
    def loss(f_s: Tensor, f_t: Tensor) -> Tensor:
        return neuron_selectivity(f_s, f_t, kernel)

    f_s, f_t, dead = normal(3, 6, size, size, seed=1), normal(3, 6, size, size, seed=2), torch.zeros(3, 6, size, size)
    assert_finite(loss, 1e4 * f_s, 1e4 * f_t)
    assert_finite(loss, dead, f_t)
    assert_finite(loss, f_s, dead)
    assert_finite(loss, dead, dead)
    assert_finite(loss, f_t, f_t)
    assert_finite(loss, torch.ones(3, 6, size, size), torch.ones(3, 6, size, size))  # every channel the same
    assert_finite(loss, f_s[[0, 0, 0]], f_t[[0, 0, 0]])
    assert_finite(loss, f_s[:1], f_t[:1])
    assert_full_precision(loss, 300 * f_s, f_t)


@KERNELS
def test_a_dead_channel_gets_no_gradient(kernel: str) -> None:
    f_s = normal(3, 6, 4, 4, seed=1)
    f_s[:, 2] = 0
    grad = gradient(neuron_selectivity, f_s, normal(3, 5, 4, 4, seed=2), kernel)
    assert not grad[:, 2].any()
    assert grad[:, 1].any()


@KERNELS
@pytest.mark.parametrize("size", [4, 16])
def test_no_tensor_has_a_map_for_every_pair_of_channels(kernel: str, size: int) -> None:
    with Largest() as largest:
        gradient(neuron_selectivity, normal(2, 48, size, size, seed=1), normal(2, 64, size, size, seed=2), kernel)
    assert largest.elements <= 2 * max(64 * size**2, 64 * 64)


def test_invalid() -> None:
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\), but the student's have shape \(3, 5\): name a conv"):
        neuron_selectivity(normal(3, 5), normal(3, 5, 4, 4))
    with pytest.raises(ValueError, match="must look at the same samples, got 1 and 3"):
        neuron_selectivity(normal(1, 5, 4, 4), normal(3, 5, 4, 4))
    with pytest.raises(ValueError, match="kernel must be one of 'linear', 'poly', 'gaussian', got 'cubic'"):
        neuron_selectivity(normal(3, 5, 4, 4), normal(3, 5, 4, 4), "cubic")
    with pytest.raises(ValueError, match="kernel must be one of 'linear', 'poly', 'gaussian', got 'cubic'"):
        limbeck.nst(convnet(0), convnet(1), layers=[("one", "one")], kernel="cubic")
    with pytest.raises(ValueError, match="layers are paired by running an example"):
        limbeck.nst(convnet(0), convnet(1))
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        limbeck.nst(convnet(0), convnet(1), layers=[("one", "fc")], example=images()[0])


@KERNELS
def test_playing_it_is_the_loop(kernel: str) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.nst(student, teacher, layers=[("one", "one"), ("two", "two")], selectivity=20.0, kernel=kernel)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        one, hint_one = loop.one(x), teacher.one(x).detach()
        two, hint_two = loop.two(one), teacher.two(hint_one).detach()
        terms = [neuron_selectivity(one, hint_one, kernel), neuron_selectivity(two, hint_two, kernel)]
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(two))), y) + 20 * terms[0] + 20 * terms[1]).backward()
        optimizer.step()
        assert logs["student/selectivity.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    assert_same(state(student), state(loop))


def test_the_last_three_stages_are_found_by_an_example() -> None:
    x, _ = images()
    method = limbeck.nst(convnet(0), convnet(1, width=6), example=x)
    assert method.objective.names == ["hard", "selectivity.one", "selectivity.two"]
    assert method.objective.weights == [1.0, 50.0, 50.0]
    resnet = limbeck.zoo.network("torchvision:resnet18", 10)
    four = limbeck.nst(resnet, resnet, example=torch.randn(2, 3, 64, 64))
    assert four.objective.names == ["hard", "selectivity.layer2", "selectivity.layer3", "selectivity.layer4"]


def test_two_processes_have_the_global_batchs_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees every other sample; the mean of both losses is that of one process."""
    s, t = normal(6, 5, 3, 3, seed=1), normal(6, 7, 3, 3, seed=2)
    whole = neuron_selectivity(s, t, kernel="gaussian")
    seen: list[Tensor] = []
    module = sys.modules[limbeck.nst.__module__]  # its name is the method's too
    monkeypatch.setattr(module, "gather", lambda own: seen.append(own) or own)
    parts = [(s[rank::2], t[rank::2]) for rank in (0, 1)]
    for part in parts:
        neuron_selectivity(*part, kernel="gaussian")
    assert len(seen) == 2
    monkeypatch.setattr(module, "gather", lambda own: torch.cat(seen))
    losses = [neuron_selectivity(*part, kernel="gaussian") for part in parts]
    torch.testing.assert_close(sum(losses) / 2, whole)
