from __future__ import annotations

import copy

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
from limbeck.losses import masked_generative
from limbeck.nets import draws as draws_file
from limbeck.nets.generation import Generation

EXAMPLE = images()[0]


def test_formula() -> None:
    s, t = normal(3, 2, 2, 4, seed=1), normal(3, 2, 2, 4, seed=2)
    squares = [(a - b).item() ** 2 for a, b in zip(s.flatten(), t.flatten(), strict=True)]
    assert masked_generative(s, t).item() == pytest.approx(sum(squares) / 3, rel=1e-12)
    torch.testing.assert_close(gradient(masked_generative, s, t), 2 * (s - t) / 3)


def test_by_hand() -> None:
    s, t = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[1.0, 4.0]]], [[[3.0, -1.0]]]])
    assert masked_generative(s, t).item() == (4 + 9 + 1) / 2
    assert masked_generative(t, t).item() == 0


def test_the_larger_map_is_pooled_to_the_smaller_grid() -> None:
    large, small = normal(3, 2, 8, 8, seed=1), normal(3, 2, 4, 2, seed=2)
    pooled = F.avg_pool2d(large, (2, 4))
    torch.testing.assert_close(masked_generative(large, small), masked_generative(pooled, small))
    torch.testing.assert_close(masked_generative(small, large), masked_generative(small, pooled))


def test_numerics() -> None:
    t = normal(3, 2, 4, 4, seed=2)
    assert_finite(masked_generative, normal(3, 2, 4, 4, seed=1, scale=1e4), 1e4 * t)
    assert_finite(masked_generative, torch.zeros(3, 2, 4, 4), t)
    assert_finite(masked_generative, t, t)
    assert_finite(masked_generative, t[[0, 0]], t[[1, 1]])
    assert_finite(masked_generative, t[:1], t[1:2])
    assert_full_precision(masked_generative, normal(3, 2, 4, 4, seed=1, scale=300), t)


def test_invalid_features() -> None:
    with pytest.raises(ValueError, match=r"same samples and channels, got \(3, 2, 4, 4\) and \(3, 1, 4, 4\)"):
        masked_generative(normal(3, 2, 4, 4), normal(3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 2\)"):
        masked_generative(normal(3, 2), normal(3, 2))


def kept(net: Generation, maps: Tensor) -> Tensor:
    """What of ``maps`` the generator sees."""
    seen = []
    handle = net.generate.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(maps)
    handle.remove()
    return seen[0]


def test_channels_are_hidden_whole_and_each_samples_own() -> None:
    torch.manual_seed(0)
    net = Generation(64, 64, masked=0.25, masks="channels")
    seen = kept(net, torch.ones(40, 64, 3, 3))
    assert (seen == seen[..., :1, :1]).all()
    hidden = seen[..., 0, 0] == 0
    assert set(seen.unique().tolist()) == {0.0, 1.0}  # what is left is not scaled up
    assert hidden.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(hidden[0], hidden[1])


def test_positions_are_hidden_in_all_channels() -> None:
    torch.manual_seed(0)
    seen = kept(Generation(5, 5, masked=0.65, masks="positions"), torch.ones(20, 5, 8, 8))
    assert (seen == seen[:, :1]).all()
    assert (seen[:, 0] == 0).double().mean().item() == pytest.approx(0.65, abs=0.04)
    assert not torch.equal(seen[0], seen[1])


def test_masks_change_with_every_call_and_are_part_of_the_state() -> None:
    net, maps = Generation(8, 8, masked=0.5, masks="channels"), torch.ones(4, 8, 2, 2)
    first = kept(net, maps)
    twin, other = copy.deepcopy(net), Generation(8, 8, masked=0.5, masks="channels")
    other.load_state_dict(net.state_dict())
    second = kept(net, maps)
    assert not torch.equal(first, second)
    assert torch.equal(kept(twin, maps), second)
    assert torch.equal(kept(other, maps), second)


def test_masks_leave_the_global_random_state_alone() -> None:
    net = Generation(8, 8, masked=0.5, masks="positions")
    before = torch.get_rng_state()
    net(torch.ones(4, 8, 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_mask_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net, maps = Generation(8, 8, masked=0.5, masks="channels"), normal(6, 8, 2, 2).float()
    twins = copy.deepcopy(net), copy.deepcopy(net)
    whole = kept(net, maps)
    for rank, twin in enumerate(twins):
        monkeypatch.setattr(draws_file, "place", lambda rank=rank: (rank, 2))
        assert torch.equal(kept(twin, maps[rank::2]), whole[rank::2])


def test_nothing_is_hidden_in_eval_mode_or_without_a_share() -> None:
    maps = normal(4, 8, 2, 2).float()
    assert torch.equal(kept(Generation(8, 8, masked=0.5, masks="channels").eval(), maps), maps)
    assert torch.equal(kept(Generation(8, 8, masked=0.0, masks="channels"), maps), maps)


def test_channels_are_aligned_where_they_differ() -> None:
    net, x = Generation(6, 8, 0.5, "channels").double().eval(), normal(2, 6, 4, 3)
    weight, bias = net.align.weight.flatten(1), net.align.bias  # of a channel out of the channels, at each position
    aligned = torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]
    torch.testing.assert_close(net(x), net.generate(aligned))
    same = Generation(8, 8, 0.5, "channels").double().eval()
    torch.testing.assert_close(same(aligned), same.generate(aligned))


@pytest.mark.parametrize("masks", ["channels", "positions"])
def test_playing_it_is_the_loop(masks: str) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    method = limbeck.mgd(student, teacher, generation=0.01, masked=0.4, masks=masks, example=EXAMPLE).double()
    net = method.objective.terms[1].adapters[0]
    ours = copy.deepcopy(net)
    mine = [*ours.align.parameters(), *ours.generate.parameters()]
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), *mine])
    for x, y in batches(3, images):
        draw = torch.Generator().manual_seed(ours.draws.seed * 2**31 + net.draws.calls)
        mask = torch.rand((6, 12, 1, 1) if masks == "channels" else (6, 1, 4, 4), generator=draw) >= 0.4
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        two = loop.two(loop.one(x))
        target = teacher.two(teacher.one(x)).detach()
        error = (ours.generate(ours.align(two) * mask) - target).square().sum() / len(x)
        (F.cross_entropy(loop.fc(loop.flat(loop.pool(two))), y) + 0.01 * error).backward()
        optimizer.step()
        assert logs["student/generation.two"] == pytest.approx(error.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-9, atol=1e-12)
    assert_same(state(net.align), state(ours.align))


def test_which_layers_are_generated() -> None:
    method = limbeck.mgd(convnet(0), convnet(1), example=EXAMPLE)
    assert method.objective.names == ["hard", "generation.two"]
    assert method.objective.weights == [1.0, 7e-5]
    every = limbeck.mgd(convnet(0), convnet(1), layers=[("one", "one"), ("two", "two")], example=EXAMPLE)
    assert every.objective.names == ["hard", "generation.one", "generation.two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masked": 1.0}, r"masked must be in \[0, 1\), got 1\.0"),
        ({"masked": -0.1}, r"masked must be in \[0, 1\), got -0\.1"),
        ({"masks": "pixels"}, "masks must be 'channels' or 'positions', got 'pixels'"),
        ({"layers": [("one", "fc")]}, "the teacher's 'fc' has shape"),
        ({"layers": [("ones", "one")]}, "has no layer 'ones'; the closest are"),
    ],
)
def test_invalid_options_fail_when_the_method_is_assembled(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.mgd(convnet(0), convnet(1), example=EXAMPLE, **options)
