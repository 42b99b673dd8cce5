"""What a network costs, and what the seeds show."""

import math

import pytest
import torch
from torch import nn

import limbeck
from limbeck.measure import judge, paired, summary


def verdict(pair):
    return judge([pair])[0].verdict


COUNTED = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)
)
EXAMPLE = torch.randn(7, 3, 6, 6)


def test_cost_by_hand():
    price = limbeck.cost(COUNTED, EXAMPLE, repeats=3)
    assert price.parameters == 3 * 4 * 9 + 2 * 4 + 4 * 36 * 5 + 5
    assert price.macs == 36 * 4 * 3 * 9 + 4 * 36 * 5  # of one sample, whatever the batch
    assert price.bytes == 4 * (price.parameters + 2 * 4) + 8  # running mean and variance, and a counter of int64
    assert 0 < price.latency_ms < 1000


def test_cost_leaves_the_network_as_it_was():
    COUNTED.train()
    COUNTED[1].eval()
    before = {name: value.clone() for name, value in COUNTED.state_dict().items()}
    state = torch.get_rng_state()
    limbeck.cost(COUNTED, EXAMPLE, repeats=2)
    assert [module.training for module in COUNTED] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in COUNTED.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in COUNTED.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    price = limbeck.cost(net, torch.randn(2, 4), repeats=1)
    assert (price.parameters, price.macs) == (16, 32)


def test_cost_of_named_inputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, pixel_values):
            return {"logits": self.fc(pixel_values)}

    assert limbeck.cost(Named(), {"pixel_values": torch.randn(3, 4)}, repeats=1).macs == 8


def test_cost_needs_a_repeat():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        limbeck.cost(COUNTED, EXAMPLE, repeats=0)


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
