from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.measure import calibrate, exit_curve, exit_profile
from limbeck.nets.exits import EarlyExit


def network(seed: int = 0) -> EarlyExit:
    torch.manual_seed(seed)
    sections = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)]
    exits = [nn.Linear(8, 3), nn.Linear(8, 3)]
    for leave in exits:
        nn.init.normal_(leave.weight)
    return EarlyExit(sections, exits)


def batches(count: int = 4, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(25, 6, generator=draw), torch.randint(3, (25,), generator=draw)) for _ in range(count)]


FIRST, SECOND, ALL = 48 + 24, 48 + 24 + 64 + 24, 48 + 24 + 64 + 24 + 24  # multiplications by hand


def test_every_point_is_what_the_network_does() -> None:
    net = network().eval()
    curve = exit_curve(net, batches())
    assert len(curve) > 10
    for point in curve[:: len(curve) // 7]:
        net.set_thresholds([point.threshold] * 2)
        said, taken = zip(*(net.answer(x) for x, _ in batches()), strict=True)
        right = torch.cat(said).argmax(1) == torch.cat([y for _, y in batches()])
        macs = torch.tensor([FIRST, SECOND, ALL])[torch.cat(taken)].float()
        assert point.accuracy == pytest.approx(right.float().mean().item(), abs=1e-6)
        assert point.macs == pytest.approx(macs.mean().item())


def test_from_the_first_exit_to_the_last() -> None:
    curve = exit_curve(network(), batches())
    assert (curve[0].macs, curve[-1].macs) == (FIRST, ALL)
    assert [point.macs for point in curve] == sorted(point.macs for point in curve)
    assert curve[-1].threshold == 1.0


def test_the_profile_is_what_the_network_does() -> None:
    net = network().eval()
    net.set_thresholds([0.6, 0.5])
    profile = exit_profile(net, batches())
    x, y = map(torch.cat, zip(*batches(), strict=True))
    said, taken = net.answer(x)
    assert profile.exit_macs == (FIRST, SECOND, ALL)
    assert profile.shares == pytest.approx([(taken == exit).double().mean().item() for exit in range(3)])
    assert min(profile.shares) > 0
    assert profile.accuracy == pytest.approx((said.argmax(1) == y).double().mean().item())
    assert profile.macs == pytest.approx(sum(s * m for s, m in zip(profile.shares, profile.exit_macs, strict=True)))
    each = [(logits.argmax(1) == y).double().mean().item() for logits in net.all_exits(x)]
    assert profile.accuracies == pytest.approx(each)
    assert profile.curve == tuple(exit_curve(net, batches()))
    first, last = profile.curve[0], profile.curve[-1]  # thresholds of 0 and 1 are the first and the last exit
    assert (first.macs, last.macs) == (FIRST, ALL)
    assert (first.accuracy, last.accuracy) == pytest.approx((each[0], each[-1]))
    for threshold, alone in ((0.0, 0), (1.0, 2)):
        net.set_thresholds([threshold] * 2)
        assert torch.equal(net(x), net.all_exits(x)[alone])


def test_the_network_stays_as_it_was() -> None:
    net = network().train()
    before = copy.deepcopy(net.state_dict())
    exit_curve(net, batches())
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_calibration_to_a_budget_and_to_an_accuracy() -> None:
    net = network().eval()
    curve = exit_curve(net, batches())
    budget = (FIRST + ALL) / 2
    chosen = calibrate(net, batches(), macs=budget)
    assert chosen.macs <= budget
    assert chosen.accuracy == max(point.accuracy for point in curve if point.macs <= budget)
    assert net.thresholds.tolist() == pytest.approx([chosen.threshold] * 2)
    least = sorted(point.accuracy for point in curve)[len(curve) // 2]
    chosen = calibrate(net, batches(), accuracy=least)
    assert chosen.accuracy >= least
    assert chosen.macs == min(point.macs for point in curve if point.accuracy >= least)


def test_unlabelled_samples_do_not_count() -> None:
    some = [(x, torch.where(torch.arange(25) < 5, y, -100)) for x, y in batches()]
    few = [(x[:5], y[:5]) for x, y in batches()]
    assert exit_curve(network(), some) == exit_curve(network(), few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a budget"),
        ({"macs": 1e6, "accuracy": 0.5}, "either a budget"),
        ({"macs": 10.0}, "macs must be at least 72, what the first exit takes, got 10"),
        ({"accuracy": 1.0}, "no threshold reaches an accuracy of 1.0: the best is 0"),
    ],
)
def test_what_cannot_be_reached(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(network(), batches(), **options)


def test_a_network_without_exits() -> None:
    with pytest.raises(TypeError, match=r"expected a network with exits, limbeck\.EarlyExit, got Linear"):
        calibrate(nn.Linear(4, 3), [(torch.randn(2, 4), torch.tensor([0, 1]))], macs=100)


def test_no_labels() -> None:
    with pytest.raises(ValueError, match="no labelled sample"):
        exit_curve(network(), [(torch.randn(3, 6), torch.full((3,), -100))])


def test_a_run_shows_accuracy_over_compute(tmp_path: Path, reports: None) -> None:
    data = limbeck.data.load("digits", samples=100)
    student = limbeck.zoo.network("mlp-8-8", 10, data.shape)
    result = limbeck.fit(limbeck.byot(student, example=data.example()), data, epochs=1, run_dir=tmp_path)
    exits = json.loads((tmp_path / "result.json").read_text())["exits"]["early-exit"]
    assert exits["after"] == ["layers.fc2:in"]
    assert exits["shares"] == [0.0, 1.0]
    assert exits["accuracies"][0] == pytest.approx(result.metrics["test/exit-1/accuracy"])
    assert exits["accuracies"][1] == pytest.approx(result.metrics["test/student/accuracy"])
    page = (tmp_path / "report.html").read_text()
    assert "What leaving early saves: early-exit" in page
    assert "leaving when sure" in page
    assert "MACs, k" not in page  # 712 of them


def test_values_and_several_labels_are_no_classes() -> None:
    x = torch.randn(4, 6)
    for target in (torch.randn(4, 3), torch.ones(4, 3).long(), torch.randn(4)):
        with pytest.raises(ValueError, match="expected a class for each of 4 samples"):
            exit_profile(network(), [(x, target)])
