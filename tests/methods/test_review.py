from __future__ import annotations

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
from limbeck.core.stage import rising
from limbeck.losses import review
from limbeck.methods.review import Review
from limbeck.nets.fusion import Fusion

EXAMPLE = images()[0]


def naive(s: Tensor, t: Tensor) -> float:
    """Both maps pooled, each level by itself; the height says which, as in the authors' code."""
    total, weights = (s - t).square().mean().item(), 1.0
    weight = 1.0
    for level in (4, 2, 1):
        if level < s.shape[2]:
            weight /= 2
            error = F.adaptive_avg_pool2d(s, level) - F.adaptive_avg_pool2d(t, level)
            total += weight * sum(value**2 for value in error.flatten().tolist()) / error.numel()
            weights += weight
    return total / weights


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 12])
def test_formula(side: int) -> None:
    s, t = normal(3, 2, side, side, seed=1), normal(3, 2, side, side, seed=2)
    assert review(s, t).item() == pytest.approx(naive(s, t), rel=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 2), (2, 8), (3, 12), (12, 3), (1, 6), (8, 12)])
def test_maps_that_are_not_square(height: int, width: int) -> None:
    s, t = normal(3, 2, height, width, seed=1), normal(3, 2, height, width, seed=2)
    assert review(s, t).item() == pytest.approx(naive(s, t), rel=1e-12)


def test_the_height_says_which_levels_there_are() -> None:
    ripple = torch.tensor([1.0, -1.0]).double().repeat(1, 1, 2, 4)  # of 2x8, with 1x1; there it averages out
    assert review(ripple, 0 * ripple).item() == pytest.approx(1 / (1 + 1 / 2))
    tall = ripple.mT  # of 8x2, with 4x4, 2x2 and 1x1
    assert review(tall, 0 * tall).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def test_by_hand() -> None:
    # a 2x2 map: squares 4, 0, 0, 16, mean 5; pooled to one, (2 - 4)/4 = -½; weights 1 and ½
    s = torch.tensor([[[[2.0, 0.0], [0.0, -4.0]]]])
    assert review(s, torch.zeros(1, 1, 2, 2)).item() == pytest.approx((5 + 0.25 / 2) / 1.5)


def test_a_constant_difference_counts_alike_at_every_level() -> None:
    t = normal(3, 2, 8, 8)
    assert review(t + 3, t).item() == pytest.approx(9)
    assert review(t, t).item() == 0


def test_levels_that_nest_give_the_gradient_of_those_pooled_apart() -> None:
    def apart(s: Tensor, t: Tensor) -> Tensor:
        levels = [(s, t), *((F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side)) for side in (4, 2, 1))]
        return sum(0.5**i * F.mse_loss(*level) for i, level in enumerate(levels)) / 1.875

    s, t = normal(3, 2, 8, 12, seed=1), normal(3, 2, 8, 12, seed=2)
    torch.testing.assert_close(gradient(review, s, t), gradient(apart, s, t))


def test_numerics() -> None:
    t = normal(3, 2, 8, 8, seed=2)
    assert_finite(review, normal(3, 2, 8, 8, seed=1, scale=1e4), 1e4 * t)
    assert_finite(review, torch.zeros(3, 2, 8, 8), t)
    assert_finite(review, t, t)
    assert_finite(review, t[[0, 0]], t[[1, 1]])
    assert_finite(review, t[:1], t[1:2])
    assert_full_precision(review, normal(3, 2, 8, 8, seed=1, scale=300), t)


def test_invalid_features() -> None:
    with pytest.raises(ValueError, match=r"features: .* same shape, got \(3, 2, 4, 4\) and \(1, 2, 4, 4\)"):
        review(normal(3, 2, 4, 4), normal(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"a pyramid needs features \(N, C, H, W\), got shape \(3, 2\)"):
        review(normal(3, 2), normal(3, 2))


def doubled(maps: Tensor) -> Tensor:
    """On a grid of twice the side, by the nearest."""
    return maps.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_deepest_fusion_has_nothing_to_fuse_and_hands_on_what_the_teachers_grid_shows() -> None:
    fusion, maps = Fusion(3, 4, 5, deepest=True).double(), normal(2, 3, 4, 4)
    out, passed = fusion(maps, None, torch.Size((8, 8)))
    torch.testing.assert_close(passed, doubled(F.batch_norm(fusion.enter[0](maps), None, None, training=True)))
    torch.testing.assert_close(out, F.batch_norm(fusion.leave[0](passed), None, None, training=True))
    assert fusion.attend is None


def test_a_fusion_weighs_its_own_layer_and_the_one_below_at_each_position() -> None:
    fusion, maps, below = Fusion(3, 4, 5).double(), normal(2, 3, 4, 4, seed=1), normal(2, 4, 2, 2, seed=2)
    out, passed = fusion(maps, below, torch.Size((4, 4)))
    own = F.batch_norm(fusion.enter[0](maps), None, None, training=True)
    large = doubled(below)
    for i in range(4):
        for j in range(4):
            both = torch.cat([own, large], 1)[..., i, j]
            weights = torch.sigmoid(both @ fusion.attend.weight.view(2, 8).T + fusion.attend.bias)
            expected = weights[:, :1] * own[..., i, j] + weights[:, 1:] * large[..., i, j]
            torch.testing.assert_close(passed[..., i, j], expected)
    torch.testing.assert_close(out, F.batch_norm(fusion.leave[0](passed), None, None, training=True))


def test_layers_are_fused_from_the_deepest_up() -> None:
    loss = Review([3, 6], [2, 5], middle=4).double()
    s, t = (normal(2, 3, 8, 8), normal(2, 6, 4, 4)), (normal(2, 2, 8, 8, seed=1), normal(2, 5, 4, 4, seed=1))
    deep, below = loss.fusions[1](s[1], None, torch.Size((4, 4)))
    shallow, _ = loss.fusions[0](s[0], below, torch.Size((8, 8)))
    torch.testing.assert_close(loss(*s, *t), review(deep, t[1]) + review(shallow, t[0]))
    # what is deep is told by the shallow fusion too, and not the reverse
    value = s[0].clone().requires_grad_(), s[1].clone().requires_grad_()
    review(loss.fusions[1](value[1], None, torch.Size((4, 4)))[0], t[1]).backward()
    assert value[0].grad is None
    loss(*value, *t).backward()
    assert value[0].grad is not None


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    method = limbeck.review(student, teacher, context=0.3, warmup=0.5, example=EXAMPLE).double()
    theirs = method.objective.terms[1].loss
    ours = Review([4, 8], [6, 12], middle=8).double()
    ours.load_state_dict(theirs.state_dict())
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), *ours.parameters()])
    for step, (x, y) in enumerate(batches(3, images)):
        logs = limbeck.play(method, (x, y), optimizers, step / 3)
        optimizer.zero_grad()
        one, hint = loop.one(x), teacher.one(x).detach()
        two = loop.two(one)
        context = ours(one, two, hint, teacher.two(hint).detach())
        ramp = min(1.0, 0.05 + step / 3 / 0.5)
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(two))), y) + ramp * 0.3 * context).backward()
        optimizer.step()
        assert logs["student/context"] == pytest.approx(context.item(), rel=1e-6)
    assert_same(state(theirs), state(ours))
    assert_same(state(student), state(loop))


def test_the_warm_up() -> None:
    ramp = rising(0.1)
    assert [ramp(progress) for progress in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0.05, 0.55, 1.0, 1.0])
    method = limbeck.review(convnet(0), convnet(1), warmup=0, example=EXAMPLE)
    assert method.objective.weights == [1.0, 5.0]


def test_what_passes_between_fusions() -> None:
    def middle(**options: int) -> list[int]:
        method = limbeck.review(convnet(0, width=5), convnet(1), example=EXAMPLE, **options)
        return [fusion.enter[0].out_channels for fusion in method.objective.terms[1].loss.fusions]

    assert middle() == [10, 10]
    assert middle(middle=3) == [3, 3]
    student = nn.Sequential(nn.Conv2d(3, 600, 1))
    wide = limbeck.review(student, convnet(1).float(), layers=[("0", "one")], example=EXAMPLE.float())
    assert wide.objective.terms[1].loss.fusions[0].enter[0].out_channels == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1.5}, r"warmup must be in \[0, 1\], got 1\.5"),
        ({"middle": 0}, "middle must be at least 1, got 0"),
        ({"layers": [("one", "fc")]}, "the teacher's 'fc' has shape"),
        ({"layers": [("ones", "one")]}, "has no layer 'ones'; the closest are"),
    ],
)
def test_invalid_options_fail_when_the_method_is_assembled(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.review(convnet(0), convnet(1), example=EXAMPLE, **options)
