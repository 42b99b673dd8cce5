from __future__ import annotations

import math

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
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.methods.vid import Gaussian
from limbeck.nets.connectors import common_grid, pointwise

EXAMPLE = images()[0]


def gaussian(*log_scale: float, floor: float = 1e-5) -> Gaussian:
    loss = Gaussian(len(log_scale), floor=floor).double()
    with torch.no_grad():
        loss.log_scale.copy_(torch.tensor(log_scale, dtype=torch.float64))
    return loss


def test_formula() -> None:
    mean, t, scales = normal(3, 2, 2, 4, seed=1), normal(3, 2, 2, 4, seed=2), (-1.0, 3.0)
    total = 0.0
    for n in range(3):
        for c in range(2):
            variance = math.log(1 + math.exp(scales[c])) + 1e-5
            for i in range(2):
                for j in range(4):
                    error = (mean[n, c, i, j] - t[n, c, i, j]).item()
                    total += 0.5 * (error**2 / variance + math.log(variance))
    assert gaussian(*scales)(mean, t).item() == pytest.approx(total / (3 * 2 * 2 * 4), rel=1e-12)


def test_by_hand() -> None:
    loss = gaussian(math.log(math.expm1(4.0)), floor=1e-12)  # σ² = 4
    mean, t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[3.0, -6.0]]]])
    # squared errors 4 and 36, mean 20, over 2·4
    assert loss(mean.double(), t.double()).item() == pytest.approx(2.5 + math.log(2))


def test_the_variance_starts_where_it_is_told() -> None:
    for variance in (5.0, 0.3):
        loss = Gaussian(4, variance)
        torch.testing.assert_close(F.softplus(loss.log_scale) + 1e-5, torch.full((4,), variance))
        assert loss(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)).item() == pytest.approx(0.5 * math.log(variance))


def test_the_best_variance_is_the_mean_squared_error_of_its_channel() -> None:
    mean, t = normal(4, 2, 3, 3, seed=1), normal(4, 2, 3, 3, seed=2) * torch.tensor([1.0, 4.0]).view(2, 1, 1)
    errors = (mean - t).square().mean((0, 2, 3))
    loss = gaussian(*torch.log(torch.expm1(errors - 1e-5)).tolist())
    loss(mean, t).backward()
    torch.testing.assert_close(loss.log_scale.grad, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert loss(mean, t).item() == pytest.approx(0.5 + 0.5 * errors.log().mean().item())


def test_gradient_is_the_error_over_the_variance() -> None:
    loss, mean, t = gaussian(1.0, 2.0), normal(3, 2, 2, 2, seed=1), normal(3, 2, 2, 2, seed=2)
    variance = (F.softplus(loss.log_scale) + 1e-5).detach().view(2, 1, 1)
    torch.testing.assert_close(gradient(loss, mean, t), (mean - t) / variance / mean.numel())


def test_numerics() -> None:
    loss = Gaussian(3)
    assert_finite(loss, normal(3, 3, 4, 4, seed=1, scale=1e4), normal(3, 3, 4, 4, seed=2, scale=1e4))
    assert_finite(loss, torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4))
    assert_finite(loss, torch.zeros(1, 3, 1, 1), normal(1, 3, 1, 1))
    assert_finite(gaussian(-200.0, 0.0, 200.0), normal(3, 3, 4, 4, seed=1), normal(3, 3, 4, 4, seed=1))
    assert_full_precision(loss, normal(3, 3, 4, 4, seed=1, scale=300), normal(3, 3, 4, 4, seed=2))


def test_a_variance_that_vanishes_stays_above_its_floor() -> None:
    loss = gaussian(-200.0)
    value = loss(normal(2, 1, 3, 3), normal(2, 1, 3, 3))
    assert value.item() == pytest.approx(0.5 * math.log(1e-5))
    value.backward()
    assert loss.log_scale.grad.isfinite().all()


def test_no_tensor_is_larger_than_the_features() -> None:
    with Largest() as largest:
        gradient(Gaussian(8), normal(4, 8, 6, 6, seed=1), normal(4, 8, 6, 6, seed=2))
    assert largest.elements == 4 * 8 * 6 * 6


def test_the_larger_map_is_pooled_to_the_smaller_grid() -> None:
    loss, large, small = gaussian(1.0, 2.0), normal(3, 2, 8, 8, seed=1), normal(3, 2, 4, 2, seed=2)
    pooled = F.avg_pool2d(large, (2, 4))
    torch.testing.assert_close(loss(large, small), loss(pooled, small))
    torch.testing.assert_close(loss(small, large), loss(small, pooled))
    assert [x.shape[2:] for x in common_grid(normal(1, 1, 8, 2), normal(1, 1, 4, 4))] == [(4, 2)] * 2


def test_invalid() -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\) of the same samples, got \(2, 3, 4, 4\) and \(2, 1, 4, 4\)"):
        Gaussian(3)(normal(2, 3, 4, 4), normal(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"variance must be above 0, got 0\.0"):
        limbeck.vid(convnet(0), convnet(1), variance=0.0, example=EXAMPLE)
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        limbeck.vid(convnet(0), convnet(1), layers=[("one", "fc")], example=EXAMPLE)
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        limbeck.vid(convnet(0), convnet(1), layers=[("ones", "one")], example=EXAMPLE)


def test_the_connector() -> None:
    connector = pointwise(3, 5, 5, 4)
    assert [type(step) for step in connector] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert [tuple(p.shape) for p in connector.parameters()] == [(5, 3, 1, 1), (5, 5, 1, 1), (4, 5, 1, 1)]


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    method = limbeck.vid(student, teacher, layers=[("two", "two")], information=0.5, example=EXAMPLE).double()
    mean, variances = pointwise(8, 12, 12, 12).double(), Gaussian(12).double()
    term = method.objective.terms[1]
    mean.load_state_dict(term.adapters[0].state_dict())
    optimizers, optimizer = (
        limbeck.optimizers(method, sgd),
        sgd([*loop.parameters(), *mean.parameters(), *variances.parameters()]),
    )
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        two = loop.two(loop.one(x))
        information = variances(mean(two), teacher.two(teacher.one(x)).detach())
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(two))), y) + 0.5 * information).backward()
        optimizer.step()
        assert logs["student/information.two"] == pytest.approx(information.item(), rel=1e-6)
    assert_same(state(student), state(loop))
    assert_same(state(term.loss), state(variances))
    assert not torch.equal(variances.log_scale, Gaussian(12).double().log_scale)


def test_pairs_are_found_by_the_example() -> None:
    method = limbeck.vid(convnet(0), convnet(1, width=6), example=EXAMPLE)
    assert method.objective.names == ["hard", "information.one", "information.two"]
    assert method.objective.weights == [1.0, 1.0, 1.0]
