from __future__ import annotations

import copy
import itertools
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
    assert chosen.accuracy >= max(point.accuracy for point in curve if point.macs <= budget)
    assert net.thresholds.tolist() == pytest.approx(chosen.thresholds)
    least = sorted(point.accuracy for point in curve)[len(curve) // 2]
    chosen = calibrate(net, batches(), accuracy=least)
    assert chosen.accuracy >= least
    assert chosen.macs <= min(point.macs for point in curve if point.accuracy >= least)
    profile = exit_profile(net, batches())
    assert (profile.accuracy, profile.macs) == pytest.approx((chosen.accuracy, chosen.macs))


def speaking(logits: Tensor) -> tuple[EarlyExit, list[tuple[Tensor, Tensor]]]:
    """A network whose exits say ``logits``, (N, M, K), of samples that are all of class 0; the batch is these."""
    count, exits, classes = logits.shape
    width = exits * classes

    def linear(weight: Tensor) -> nn.Linear:
        layer = nn.Linear(width, len(weight), bias=False)
        layer.weight.data = weight
        return layer

    heads = [linear(torch.eye(width)[exit * classes : (exit + 1) * classes]) for exit in range(exits)]
    sections = [linear(torch.eye(width)) for _ in range(exits - 1)]
    net = EarlyExit([*sections, nn.Sequential(linear(torch.eye(width)), heads[-1])], heads[:-1]).eval()
    return net, [(logits.flatten(1), torch.zeros(count, dtype=torch.int64))]


def all_points(net: EarlyExit, batch: tuple[Tensor, Tensor]) -> list[tuple[float, float]]:
    """Accuracy and compute at every combination of thresholds that tells samples apart, by running the network."""
    x, y = batch
    prices = torch.tensor(exit_profile(net, [batch]).exit_macs).double()
    sure = [logits.softmax(-1).amax(-1).unique().tolist() for logits in net.all_exits(x)[:-1]]
    points = []
    for thresholds in itertools.product(*([0.0, *each] for each in sure)):
        net.set_thresholds(thresholds)
        said, taken = net.answer(x)
        points.append(((said.argmax(1) == y).double().mean().item(), prices[taken].mean().item()))
    return points


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("exits", [1, 2])
@torch.no_grad()
def test_calibration_finds_what_trying_all_thresholds_finds(exits: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, exits + 1, 3, generator=draw)
    net, loader = speaking(logits.round() if seed == 0 else logits)  # of rounded ones many are alike
    points = all_points(net, loader[0])
    for wanted in sorted({accuracy for accuracy, _ in points}):
        chosen = calibrate(net, loader, accuracy=wanted)
        assert chosen.accuracy >= wanted
        assert chosen.macs == pytest.approx(min(macs for accuracy, macs in points if accuracy >= wanted))
    for budget in sorted({macs for _, macs in points}):
        chosen = calibrate(net, loader, macs=budget + 1e-6)
        assert chosen.macs <= budget + 1e-6
        assert chosen.accuracy == pytest.approx(max(accuracy for accuracy, macs in points if macs <= budget + 1e-6))


def test_an_exit_that_is_sure_and_wrong_does_not_cost_the_next_one() -> None:
    """One threshold for both keeps the second exit, which is right and less sure, from answering."""
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    draw = torch.Generator().manual_seed(0)
    first = wrong * (4 + torch.rand(40, 1, generator=draw))
    second, last = right * (1 + torch.rand(40, 1, generator=draw)), right.expand(40, 2)
    net, loader = speaking(torch.stack([first, second, last], 1))
    cheapest = min(point.macs for point in exit_curve(net, loader) if point.accuracy == 1)
    chosen = calibrate(net, loader, accuracy=1.0)
    assert chosen.thresholds == (1.0, 0.0)
    assert chosen.accuracy == 1
    assert chosen.macs < 0.7 * cheapest


def test_an_accuracy_that_a_single_threshold_reaches_is_not_refused() -> None:
    """Of 2,000 samples one needs the deep exit, and one must not take it: the hundredths of the samples lie beside it."""
    sure = torch.linspace(0.1, 3, 2000)
    early = torch.stack([sure, torch.zeros(2000)], 1)
    deep = early.clone()
    early[1000], deep[1001] = early[1000].flip(0), deep[1001].flip(0)
    net, loader = speaking(torch.stack([early, deep], 1))
    assert max(point.accuracy for point in exit_curve(net, loader)) < 1
    assert calibrate(net, loader, accuracy=1.0).accuracy == 1
    assert net(loader[0][0]).argmax(1).tolist() == [0] * 2000


def test_answers_that_are_no_numbers() -> None:
    net, loader = speaking(torch.tensor([[[1.0, torch.nan], [1.0, 0.0]]]))
    with pytest.raises(ValueError, match="answers are not finite"):
        calibrate(net, loader, accuracy=0.5)


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
        ({"macs": float("nan")}, "macs must be at least 72, what the first exit takes, got nan"),
        ({"accuracy": 1.0}, r"no thresholds reach an accuracy of 1.0: the best is 0"),
        ({"accuracy": 75.0}, r"must lie in \[0, 1\], got 75"),
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
