from __future__ import annotations

import math

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
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.losses import attention
from limbeck.methods.at import attention_map


def naive_map(features: Tensor, power: float) -> list[float]:
    """One sample's map, (C, H, W) -> H·W, divided by its length."""
    channels, height, width = features.shape
    q = [
        sum(abs(features[c, i, j].item()) ** power for c in range(channels)) / channels
        for i in range(height)
        for j in range(width)
    ]
    length = math.sqrt(sum(value**2 for value in q))
    return [value / length for value in q]


@pytest.mark.parametrize("power", [1, 2, 3, 4, 1.5])
def test_formula(power: float) -> None:
    a_s, a_t = normal(3, 5, 2, 4, seed=1), normal(3, 7, 2, 4, seed=2)
    total = 0.0
    for n in range(3):
        pairs = zip(naive_map(a_s[n], power), naive_map(a_t[n], power), strict=True)
        total += sum((q_s - q_t) ** 2 for q_s, q_t in pairs)
    assert attention(a_s, a_t, power).item() == pytest.approx(total / (3 * 2 * 4), rel=1e-12)


def test_by_hand() -> None:
    # maps (9, 16)/2 and (0, 4)/1: lengths √337/2 and 4
    a_s = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])
    a_t = torch.tensor([[[[0.0, 2.0]]]])
    expected = ((9 / math.sqrt(337)) ** 2 + (16 / math.sqrt(337) - 1) ** 2) / 2
    assert attention(a_s, a_t).item() == pytest.approx(expected)
    torch.testing.assert_close(attention_map(a_s), torch.tensor([[[4.5, 8.0]]]))


def test_invariances() -> None:
    a_s, a_t = normal(3, 6, 4, 4, seed=1), normal(3, 5, 4, 4, seed=2)
    value = attention(a_s, a_t)
    scales = torch.tensor([0.01, 1.0, 300.0]).double().view(3, 1, 1, 1)  # one for each sample
    torch.testing.assert_close(attention(scales * a_s, a_t), value)
    torch.testing.assert_close(attention(a_s, scales * a_t), value)
    torch.testing.assert_close(attention(a_s[:, [5, 0, 3, 1, 4, 2]], a_t), value)
    torch.testing.assert_close(attention(-a_s, a_t), value)
    torch.testing.assert_close(attention(a_s.repeat(1, 3, 1, 1), a_t), value)
    assert abs(attention(a_s.flip(3), a_t) - value) > 1e-4  # positions do matter


def test_it_is_zero_where_maps_are_proportional() -> None:
    a_t = normal(3, 5, 4, 4)
    a_s = 7 * attention_map(a_t).sqrt().unsqueeze(1)  # one channel that looks where the five look
    assert attention(a_s, a_t).item() == pytest.approx(0, abs=1e-15)


def test_the_larger_map_is_pooled_to_the_smaller_grid() -> None:
    a_s, a_t = normal(3, 5, 8, 8, seed=1), normal(3, 2, 4, 2, seed=2)
    q = F.normalize(F.avg_pool2d(a_s.square().mean(1), (2, 4)).flatten(1))
    expected = (q - F.normalize(a_t.square().mean(1).flatten(1))).square().mean()
    torch.testing.assert_close(attention(a_s, a_t), expected)
    torch.testing.assert_close(attention(a_t, a_s), expected)


def test_numerics() -> None:
    assert_finite(attention, normal(3, 5, 4, 4, seed=1, scale=1e4), normal(3, 5, 4, 4, seed=2, scale=1e4))
    assert_finite(attention, torch.zeros(3, 5, 4, 4), normal(3, 5, 4, 4))
    assert_finite(attention, normal(3, 5, 4, 4), torch.zeros(3, 5, 4, 4))
    assert_full_precision(attention, normal(3, 5, 4, 4, seed=1, scale=300), normal(3, 5, 4, 4, seed=2))


def test_a_blind_map_gets_no_gradient() -> None:
    assert not gradient(attention, torch.zeros(3, 5, 4, 4).double(), normal(3, 5, 4, 4)).any()


def test_invalid_features() -> None:
    with pytest.raises(ValueError, match=r"an attention map needs features \(N, C, H, W\), got shape \(3, 5\)"):
        attention(normal(3, 5), normal(3, 5, 4, 4))
    with pytest.raises(ValueError, match="must look at the same samples, got 1 and 3"):
        attention(normal(1, 5, 4, 4), normal(3, 5, 4, 4))


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.at(student, teacher, layers=[("one", "one"), ("two", "two")], attention=500.0)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()

    def look(net: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = net.one(x)
        two = net.two(one)
        return one, two, net.fc(net.flat(net.pool(two)))

    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        one, two, z = look(loop, x)
        hint_one, hint_two, _ = look(teacher, x)
        terms = [attention(one, hint_one.detach()), attention(two, hint_two.detach())]
        (F.cross_entropy(z, y) + 500 * terms[0] + 500 * terms[1]).backward()
        optimizer.step()
        assert logs["student/attention.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    assert_same(state(student), state(loop))


def test_pairs_are_found_by_an_example() -> None:
    x, _ = images()
    method = limbeck.at(convnet(0), convnet(1, width=6), example=x)
    assert method.objective.names == ["hard", "attention.one", "attention.two"]
    assert method.objective.weights == [1.0, 1000.0, 1000.0]


def test_invalid_layers() -> None:
    x, _ = images()
    with pytest.raises(ValueError, match="layers are paired by running an example"):
        limbeck.at(convnet(0), convnet(1))
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        limbeck.at(convnet(0), convnet(1), layers=[("ones", "one")])
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        limbeck.at(convnet(0), convnet(1), layers=[("one", "fc")], example=x)
