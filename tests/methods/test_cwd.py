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
from limbeck.losses import channelwise


def naive(channel: Tensor, temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in channel.flatten().tolist()]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_formula(temperature: float) -> None:
    f_s, f_t = normal(2, 3, 2, 4, seed=1, scale=3), normal(2, 3, 2, 4, seed=2, scale=3)
    total = 0.0
    for n in range(2):
        for c in range(3):
            both = zip(naive(f_s[n, c], temperature), naive(f_t[n, c], temperature), strict=True)
            total += sum(t * math.log(t / s) for s, t in both)
    expected = temperature**2 * total / (2 * 3)
    assert channelwise(f_s, f_t, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    # one channel looks (3, 1)/4 for the teacher and (1, 1)/2 for the student, the other (1, 1)/2 for both
    f_t = torch.tensor([[[[3.0, 1.0]], [[5.0, 5.0]]]]).log()
    f_s = torch.zeros(1, 2, 1, 2)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert channelwise(f_s, f_t, temperature=1.0).item() == pytest.approx(expected)


def test_invariances() -> None:
    f_s, f_t = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    value = channelwise(f_s, f_t)
    offsets = normal(2, 3, 1, 1, seed=3, scale=100)  # one for each channel
    torch.testing.assert_close(channelwise(f_s + offsets, f_t - offsets), value)
    torch.testing.assert_close(channelwise(f_s.flip(3), f_t.flip(3)), value)
    torch.testing.assert_close(channelwise(f_s[:, [2, 0, 1]], f_t[:, [2, 0, 1]]), value)
    assert abs(channelwise(f_s[:, [2, 0, 1]], f_t) - value) > 1e-4  # it matters which channel is where
    assert channelwise(f_t + offsets, f_t).item() == pytest.approx(0, abs=1e-12)
    assert gradient(channelwise, f_t + offsets, f_t).abs().max() < 1e-12


def test_gradient() -> None:
    f_s, f_t = normal(2, 3, 2, 2, seed=1).requires_grad_(), normal(2, 3, 2, 2, seed=2)
    assert torch.autograd.gradcheck(lambda f: channelwise(f, f_t), f_s)


def test_the_larger_map_is_pooled_to_the_smaller_grid() -> None:
    f_s, f_t = normal(3, 5, 8, 8, seed=1), normal(3, 5, 4, 2, seed=2)
    torch.testing.assert_close(channelwise(f_s, f_t), channelwise(F.avg_pool2d(f_s, (2, 4)), f_t))
    torch.testing.assert_close(channelwise(f_t, f_s), channelwise(f_t, F.avg_pool2d(f_s, (2, 4))))


def test_numerics() -> None:
    f_s, f_t = normal(3, 5, 4, 4, seed=1), normal(3, 5, 4, 4, seed=2)
    for scale in (50, 1000, 1e4):
        assert_finite(channelwise, scale * f_s.sign(), f_t)
        assert_finite(channelwise, f_s, scale * f_t.sign())
        assert_finite(channelwise, scale * f_s.sign(), scale * f_t.sign())
    assert_finite(channelwise, torch.zeros(3, 5, 4, 4), f_t)
    assert_finite(channelwise, f_s, torch.zeros(3, 5, 4, 4))
    assert_finite(channelwise, f_t, f_t)
    assert_finite(channelwise, f_s[:1], f_t[:1])
    assert_finite(channelwise, f_s[:, :, :1, :1], f_t[:, :, :1, :1])  # a single position: nothing to compare
    assert_full_precision(channelwise, f_s, f_t)


def test_invalid() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 5, 4, 4\) and \(3, 6, 4, 4\): .*nn.Conv2d\(C_s, C_t, 1\)"):
        channelwise(normal(3, 5, 4, 4), normal(3, 6, 4, 4))
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\) .* got \(3, 5\) and \(3, 5\)"):
        channelwise(normal(3, 5), normal(3, 5))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        channelwise(normal(3, 5, 4, 4), normal(3, 5, 4, 4), temperature=0)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1)
    x, _ = images()
    method = limbeck.cwd(
        student, teacher, layers=[("one", "one"), ("two", "two")], channelwise=5.0, temperature=2.0, example=x
    )
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
        terms = [channelwise(one, one_t.detach(), 2.0), channelwise(two, two_t.detach(), 2.0)]
        (F.cross_entropy(z, y) + 5 * terms[0] + 5 * terms[1]).backward()
        optimizer.step()
        assert logs["student/channelwise.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


def test_unequal_channels_meet_in_a_convolution() -> None:
    x, _ = images()
    method = limbeck.cwd(convnet(0), convnet(1, width=6), example=x)
    assert method.objective.names == ["hard", "channelwise.two"]
    assert method.objective.weights == [1.0, 3.0]
    assert [tuple(p.shape) for p in method.objective.parameters()] == [(12, 8, 1, 1)]
    assert not list(limbeck.cwd(convnet(0), convnet(1), example=x).objective.parameters())


def test_the_scores_of_a_dense_network() -> None:
    def segmenter(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 1))

    x, _ = images()

    class Dense(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.net = segmenter(width)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.net(x)}

    task = limbeck.Task(output=lambda out: out["out"].movedim(1, -1))  # answers have their classes last
    student, teacher = Dense(4), Dense(8)
    method = limbeck.cwd(student, teacher, layers=[(":out", ":out")], example=x.float(), task=task)
    expected = channelwise(student(x.float())["out"], teacher(x.float())["out"], 4.0).item()
    batch = x.float(), torch.ones(6, 8, 8, dtype=torch.long)
    logs = limbeck.play(method, batch, limbeck.optimizers(method, sgd))
    (name,) = {name for name in method.objective.names if name != "hard"}
    assert logs[f"student/{name}"] == pytest.approx(expected, rel=1e-6)


def test_invalid_options() -> None:
    x, _ = images()
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        limbeck.cwd(convnet(0), convnet(1), layers=[("one", "fc")], example=x)
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        limbeck.cwd(convnet(0), convnet(1), layers=[("ones", "one")], example=x)
    with pytest.raises(ValueError, match="this method compares feature maps"):
        limbeck.cwd(mlp(0), mlp(1), example=normal(4, 6))
    with pytest.raises(ValueError, match=r"temperature must be in \(0, 1000\], got -1"):
        limbeck.cwd(convnet(0), convnet(1), temperature=-1, example=x)
