"""What a network costs, and what the seeds show."""

import importlib
import logging
import math
import sys

import pytest
import torch
from torch import nn

import limbeck
from limbeck.measure import judge, paired, summary
from limbeck.measure.cost import _timer


def verdict(pair):
    return judge([pair])[0].verdict


COUNTED = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)
)
EXAMPLE = torch.randn(7, 3, 6, 6)


def test_cost_by_hand():
    price = limbeck.cost(COUNTED, EXAMPLE, seconds=0.001)
    assert price.parameters == 3 * 4 * 9 + 2 * 4 + 4 * 36 * 5 + 5
    assert price.macs == 36 * 4 * 3 * 9 + 4 * 36 * 5  # of one sample, whatever the batch
    assert price.bytes == 4 * (price.parameters + 2 * 4) + 8  # running mean and variance, and a counter of int64
    assert price.activation_bytes == 2 * 4 * 4 * 36  # batch norm's input and output; what flattens is a view
    assert 0 < price.latency_ms < 1000
    assert price.latency_ms / 10 < limbeck.measure.batch_latency_ms(COUNTED, EXAMPLE, seconds=0.001) < 10_000


class Residual(nn.Module):
    """Three maps of 4 x 6 x 6 at once: the input of the block, of the sum, and the sum; what is in place takes nothing."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.offset = torch.zeros(4, 1, 1)  # neither parameter nor buffer, and there before

    def forward(self, x):
        x = self.relu(self.stem(x))
        return (x + self.relu(self.conv(x))).add_(self.offset.view(1, 4, 1, 1))


def test_activations_are_those_alive_at_once():
    whole = 4 * 4 * 36
    assert limbeck.cost(Residual(), EXAMPLE, seconds=0.001).activation_bytes == 3 * whole
    assert limbeck.cost(nn.Sequential(Residual(), *[nn.Identity()] * 9), EXAMPLE).activation_bytes == 3 * whole
    deeper = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(9)])  # each frees what is before the one before it
    assert limbeck.cost(deeper, EXAMPLE).activation_bytes == 2 * 4 * 3 * 36


def test_activations_within_fused_layers_count():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=64, batch_first=True)
    assert limbeck.cost(layer, torch.randn(1, 10, 8)).activation_bytes >= 4 * 10 * (64 + 8)  # hidden, and what is added


def test_the_batch_of_64_is_filled_from_the_example():
    sizes = []

    class Notes(nn.Linear):
        def forward(self, x):
            sizes.append(tuple(x.shape))
            return super().forward(x)

    limbeck.cost(Notes(4, 2), torch.randn(3, 4), seconds=0.001)
    assert set(sizes) == {(1, 4)}
    sizes.clear()
    limbeck.measure.batch_latency_ms(Notes(4, 2), torch.randn(3, 4), seconds=0.001)
    assert set(sizes) == {(64, 4)}


def test_cost_leaves_the_network_as_it_was():
    COUNTED.train()
    COUNTED[1].eval()
    before = {name: value.clone() for name, value in COUNTED.state_dict().items()}
    state = torch.get_rng_state()
    limbeck.cost(COUNTED, EXAMPLE)
    assert [module.training for module in COUNTED] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in COUNTED.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in COUNTED.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    price = limbeck.cost(net, torch.randn(2, 4))
    assert (price.parameters, price.macs) == (16, 32)


def test_cost_of_named_inputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, pixel_values):
            return {"logits": self.fc(pixel_values)}

    assert limbeck.cost(Named(), {"pixel_values": torch.randn(3, 4)}).macs == 8


def test_cost_of_ragged_inputs_is_of_the_first_and_64_are_the_list_again_and_again():
    seen = []

    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, images, names):
            seen.append((len(images), names[-1]))
            return [self.fc(image) for image in images]

    example = {"images": [torch.randn(5, 4), torch.randn(1, 4), torch.randn(2, 4)], "names": ["a", "b", "c"]}
    task = limbeck.Task(output=lambda out: out)
    assert limbeck.cost(Each(), example, task, seconds=1e-6).macs == 5 * 8
    assert set(seen) == {(1, "a")}
    seen.clear()
    limbeck.measure.batch_latency_ms(Each(), example, task, seconds=1e-6)
    assert set(seen) == {(64, "a")}
    with pytest.raises(ValueError, match=r"cannot be counted: its columns have the lengths \[1, 3\]"):
        limbeck.cost(Each(), example | {"names": ["a"]}, task)


def test_cost_of_a_teacher_is_on_what_its_own_view_feeds_it():
    view = limbeck.Frozen(
        nn.Conv2d(1, 1, 1, bias=False), inputs=nn.Upsample(scale_factor=2), output=lambda out: out["scores"]
    )
    view.net.register_forward_hook(lambda net, given, out: {"scores": out})
    assert limbeck.cost(view, torch.zeros(1, 1, 3, 3)).macs == 36


def test_cost_needs_time_and_a_sample():
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        limbeck.cost(COUNTED, EXAMPLE, seconds=0)
    with pytest.raises(ValueError, match=r"a sample at least, got a tensor of shape \(0, 3, 6, 6\)"):
        limbeck.cost(COUNTED, EXAMPLE[:0])


def test_the_timer_is_imported_quietly(monkeypatch):
    """On a machine with CUDA's compiler and no GPU, what torch's benchmark imports warns."""
    heard = []
    monkeypatch.setattr(logging.getLogger("torch.utils.cpp_extension"), "handle", heard.append)
    monkeypatch.setenv("CUDA_HOME", "/somewhere")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in [name for name in sys.modules if name.startswith(("torch.utils.benchmark", "torch.utils.cpp_ext"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("torch.utils.cpp_extension", raising=False)
    _timer()
    assert not heard
    monkeypatch.delitem(sys.modules, "torch.utils.cpp_extension")
    importlib.import_module("torch.utils.cpp_extension")
    assert len(heard) == 1


def test_summary_by_hand():
    of = summary([0.1, 0.2, 0.3])
    assert (of.mean, of.sd, of.n) == (pytest.approx(0.2), pytest.approx(0.1), 3)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t at 0.975 with 2 degrees of freedom, from tables
    assert (of.low, of.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))


def test_one_seed_shows_nothing():
    pair = paired([0.9], [0.5])
    assert pair.difference == pytest.approx(0.4)
    assert math.isnan(pair.low)
    assert verdict(pair) == "cannot tell"


@pytest.mark.parametrize(
    ("treated", "said"),
    [
        ([0.52, 0.622, 0.718], "helps"),
        ([0.48, 0.578, 0.682], "hurts"),
        ([0.60, 0.55, 0.70], "cannot tell"),
        ([0.50, 0.60, 0.70], "cannot tell"),
    ],
)
def test_verdict(treated, said):
    assert verdict(paired(treated, [0.5, 0.6, 0.7])) == said


def test_pairing_removes_what_both_owe_to_the_seed():
    baseline = [0.1, 0.5, 0.9]
    assert (
        verdict(paired([value + gain for value, gain in zip(baseline, (0.02, 0.021, 0.019), strict=True)], baseline))
        == "helps"
    )


def test_other_seeds_are_refused():
    with pytest.raises(ValueError, match="2 treated and 1 baseline"):
        paired([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="at least one value"):
        summary([])
