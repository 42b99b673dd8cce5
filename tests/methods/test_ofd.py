from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from method_toys import (
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
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import margin_relu
from limbeck.methods.ofd import margins
from limbeck.nets import norm
from limbeck.nets.connectors import normalised
from limbeck.nets.norm import GlobalBatchNorm

EXAMPLE = images()[0]


def places(method: limbeck.Distill) -> list[list[str]]:
    return [[source.path for source in term.sources] for term in list(method.objective.terms)[1:]]


def test_formula() -> None:
    s, t, m = normal(3, 2, 3, 4, seed=1), normal(3, 2, 3, 4, seed=2), [-0.3, -0.9]
    total = 0.0
    for n in range(3):
        for c in range(2):
            for a, b in zip(s[n, c].flatten().tolist(), t[n, c].flatten().tolist(), strict=True):
                target = max(b, m[c])
                if not a <= target <= 0:
                    total += (a - target) ** 2
    margin = torch.tensor(m, dtype=torch.float64)
    assert margin_relu(s, t, margin).item() == pytest.approx(total / 3, rel=1e-12)
    assert margin_relu(s, t, margin.view(1, 2, 1, 1)).item() == pytest.approx(total / 3, rel=1e-12)


def test_by_hand() -> None:
    # m = -1: on and too low (4), off and below the target -0.5, off above it (1.5²), clipped to -1 and above it (3²)
    s, t = torch.tensor([[[[1.0, -2.0, 1.0, 2.0]]]]), torch.tensor([[[[3.0, -0.5, -0.5, -7.0]]]])
    assert margin_relu(s, t, -1.0).item() == 4 + 2.25 + 9
    assert margin_relu(s, t).item() == 4 + 2.25 + 81  # without a margin
    assert margin_relu(s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1), -1.0).item() == 15.25  # the mean over samples


def test_a_neuron_that_is_off_like_the_teachers_is_left_alone() -> None:
    t = -normal(3, 2, 4, 4).abs()
    s, m = t - 1, torch.tensor([-5.0, -0.5]).double()
    assert margin_relu(s, t).item() == 0
    assert not gradient(margin_relu, s, t, m)[:, 0].any()
    s = normal(3, 2, 4, 4, seed=1)
    target = t.maximum(m.view(2, 1, 1))
    torch.testing.assert_close(gradient(margin_relu, s, t, m), 2 * (s - target) * (s > target) / 3)


def test_where_the_teacher_is_on_it_is_the_squared_distance() -> None:
    s, t = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2).abs()
    torch.testing.assert_close(margin_relu(s, t, -1.0), (s - t).square().sum() / 3)


def test_numerics() -> None:
    t, m = normal(3, 2, 4, 4, seed=2), torch.tensor([-0.5, -2.0])
    assert_finite(margin_relu, normal(3, 2, 4, 4, seed=1, scale=1e4), 1e4 * t, m)
    assert_finite(margin_relu, torch.zeros(3, 2, 4, 4), t, m)
    assert_finite(margin_relu, t, t, m)
    assert_finite(margin_relu, t[[0, 0]], t[[1, 1]], m)
    assert_finite(margin_relu, t[:1], t[1:2])
    assert_full_precision(margin_relu, normal(3, 2, 4, 4, seed=1), t, m)
    assert margin_relu(t[:0], t[:0], m).item() == 0


def test_invalid_features() -> None:
    with pytest.raises(ValueError, match=r"features: .* same shape, got \(3, 2, 4, 4\) and \(3, 1, 4, 4\)"):
        margin_relu(normal(3, 2, 4, 4), normal(3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"expected a margin for each of 2 channels, got \(3,\)"):
        margin_relu(normal(3, 2, 4, 4), normal(3, 2, 4, 4), torch.zeros(3))


def test_margins_are_the_mean_of_what_is_below_zero() -> None:
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -3.0])
    x = bias.double() + weight.double() * normal(400_000, 3)
    sampled = torch.stack([column[column < 0].mean() for column in x.T])
    torch.testing.assert_close(margins(weight, bias), sampled, atol=2e-2, rtol=0)
    # the half-normal distribution's mean
    assert margins(weight, bias)[0].item() == pytest.approx(-math.sqrt(2 / math.pi))


def test_margins_at_their_ends() -> None:
    found = margins(torch.tensor([1.0, 0.0, 0.0, -2.0]), torch.tensor([4.0, -1.0, 1.0, 50.0]))
    # hardly ever negative; always -1; never; never
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.0, 0.0, -6.0]).double())


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    with torch.no_grad():
        teacher.two[1].weight.uniform_(-1, 1)
        teacher.two[1].bias.uniform_(-1, 1)
    method = limbeck.ofd(student, teacher, layers=[("two", "two")], distance=0.02, example=EXAMPLE).double()
    connector = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)).double()
    connector.load_state_dict(method.objective.terms[1].adapters[0].state_dict())
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), *connector.parameters()])
    bound = margins(teacher.two[1].weight, teacher.two[1].bias).view(12, 1, 1)
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        before = loop.two[1](loop.two[0](loop.one(x)))
        target = teacher.two[1](teacher.two[0](teacher.one(x))).detach().maximum(bound)
        s = connector(before)
        distance = ((s - target).square() * ~((s <= target) & (target <= 0))).sum() / len(x)
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(before.relu()))), y) + 0.02 * distance).backward()
        optimizer.step()
        assert logs["student/distance.two"] == pytest.approx(distance.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-9, atol=1e-12)


def test_each_pair_counts_half_as_much_as_the_next() -> None:
    method = limbeck.ofd(convnet(0), convnet(1, width=6), example=EXAMPLE)
    assert method.objective.names == ["hard", "distance.one", "distance.two"]
    assert method.objective.weights == [1.0, 0.0005, 0.001]
    assert places(method) == [["one.2:in", "one.2:in"], ["two.2:in", "two.2:in"]]


def test_a_pooled_grid() -> None:
    method = limbeck.ofd(convnet(0), convnet(1), layers=[("one", "two"), ("two", "one")], example=EXAMPLE).double()
    logs = limbeck.play(method, images(), limbeck.optimizers(method, sgd))
    assert logs["student/distance.one"] > 0


def block(channels: int) -> nn.Module:
    """The end of a residual block: its own norm, then a shortcut with one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
            self.shortcut = nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels))
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.bn(self.conv(x)) + self.shortcut(x))

    return Block()


def classifier(body: nn.Module, channels: int) -> nn.Module:
    parts = OrderedDict(body=body, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(channels, 5))
    return nn.Sequential(parts).double()


def test_margins_are_those_of_the_blocks_own_norm() -> None:
    teacher = classifier(block(4), 4)
    nn.init.constant_(teacher.body.bn.weight, 2.0)
    method = limbeck.ofd(classifier(block(3), 3), teacher, layers=[("body", "body")], example=EXAMPLE)
    assert places(method) == [["body.relu:in", "body.relu:in"]]
    expected = torch.full((4,), -2 * math.sqrt(2 / math.pi), dtype=torch.float64)
    torch.testing.assert_close(method.objective.terms[1].loss.margin, expected)


def test_a_bare_sum_is_read_behind_the_norm_that_takes_over() -> None:
    student = classifier(nn.Conv2d(3, 4, 3, padding=1), 4)
    student.pool = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), student.pool).double()
    method = limbeck.ofd(student, convnet(1), layers=[("body", "one")], example=EXAMPLE)
    assert places(method) == [["pool.0", "one.2:in"]]


def test_a_norm_at_the_end_is_before_the_relu() -> None:
    method = limbeck.ofd(convnet(0), convnet(1), layers=[("one.1", "one.2:in")], example=EXAMPLE)
    assert places(method) == [["one.1", "one.2:in"]]


def test_the_teacher_may_use_the_batch_s_statistics_as_the_authors_does() -> None:
    teacher = limbeck.Frozen(convnet(1), "batch_stats")
    method = limbeck.ofd(convnet(0), teacher, example=EXAMPLE).double()
    assert method.teachers["teacher"] is teacher
    limbeck.play(method, images(), limbeck.optimizers(method, sgd))


def test_invalid_layers() -> None:
    plain = classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 4)
    with pytest.raises(ValueError, match=r"no batch or group norm of 4 channels runs before it in Sequential"):
        limbeck.ofd(convnet(0), plain, layers=[("one", "body")], example=EXAMPLE)
    with pytest.raises(ValueError, match=r"found no features before a ReLU at Sequential's 'pool', which ends"):
        limbeck.ofd(convnet(0), convnet(1), layers=[("pool", "two")], example=EXAMPLE)
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        limbeck.ofd(convnet(0), convnet(1), layers=[("ones", "one")], example=EXAMPLE)
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        limbeck.ofd(convnet(0), convnet(1), layers=[("one", "fc")], example=EXAMPLE)


def test_the_connector_keeps_the_grid() -> None:
    for kernel in (1, 3):
        assert normalised(3, 5, kernel)(torch.randn(2, 3, 6, 4)).shape == (2, 5, 6, 4)
    torch.manual_seed(0)
    assert normalised(16, 400)[0].weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)


def test_alone_the_global_batch_norm_is_torchs() -> None:
    ours, torchs, x = GlobalBatchNorm(3), nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    assert torch.equal(ours(x), torchs(x))
    assert_same(state(ours), state(torchs))


def test_of_two_processes_the_global_batch_norm_is_that_of_both_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = normal(4, 3, 5, 5, seed=1).requires_grad_(), normal(4, 3, 5, 5, seed=2) + 3
    ours, torchs = GlobalBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    mean = torch.cat([mine, other]).mean((0, 2, 3)).detach()
    theirs = iter([other.mean((0, 2, 3)), (other - mean.view(3, 1, 1)).square().mean((0, 2, 3))])
    monkeypatch.setattr(norm, "place", lambda: (0, 2))
    monkeypatch.setattr(norm, "mean_over_processes", lambda values: (values + next(theirs)) / 2)
    out, whole = ours(mine), torchs(torch.cat([mine, other]))[:4]
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    ours.eval()
    assert torch.equal(ours(other), F.batch_norm(other, ours.running_mean, ours.running_var, ours.weight, ours.bias))
