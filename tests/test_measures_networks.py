"""What networks answer over a loader, and that they stay as they were."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck.measure import agreement, answer_difference, outputs, robustness, side_by_side
from limbeck.tasks.regression import regression


def network(width, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(width * 16, 3),
        )


DRAW = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(22, 2, 4, 4, generator=DRAW), torch.randint(3, (22,), generator=DRAW)
TARGETS[5] = -100
DATA = TensorDataset(INPUTS, TARGETS)
LOADER = [DATA[start : start + 8] for start in (0, 8, 16)]  # a DataLoader draws from torch's generator as it starts
PAIR = ("2", "2")


@pytest.fixture
def student():
    return network(4, seed=1)


@pytest.fixture
def teacher():
    return network(6, seed=2)


def answers(net):
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        return net(INPUTS)


def test_outputs_are_those_in_eval_mode_in_the_loaders_order(student):
    seen = outputs(student, LOADER)
    torch.testing.assert_close(seen.logits, answers(student))
    assert torch.equal(seen.targets, TARGETS)
    assert not seen.logits.requires_grad


def test_the_metrics_of_outputs_are_those_of_evaluate(student):
    assert outputs(student, LOADER).metrics() == pytest.approx(limbeck.evaluate(student, LOADER))


def test_side_by_side_is_both_alone(student, teacher):
    beside = side_by_side(student, teacher, LOADER, [PAIR])
    torch.testing.assert_close(beside.student.logits, answers(student))
    torch.testing.assert_close(beside.teacher.logits, answers(teacher))
    assert torch.equal(beside.student.targets, TARGETS)
    assert -0.5 < beside.cka[PAIR] < 1


def test_side_by_side_of_a_loader_that_shuffles(student):
    shuffled = DataLoader(DATA, batch_size=8, shuffle=True)
    beside = side_by_side(student, student, shuffled, [("2", "2"), ("5:in", "2"), ("0", "")])
    assert agreement(beside.student.logits, beside.teacher.logits) == 1
    assert beside.cka["2", "2"] == pytest.approx(1)
    assert beside.cka["5:in", "2"] == pytest.approx(1)
    assert beside.cka["0", ""] < 0.95


def test_side_by_side_runs_each_network_once_a_batch(student, teacher):
    calls = []
    for net in (student, teacher):
        net.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    side_by_side(student, teacher, LOADER, [PAIR, ("0", "1")])
    assert sorted(calls) == [6, 6, 8, 8, 8, 8]


def test_the_cka_is_that_of_the_layers_named(student, teacher):
    whole = DataLoader(DATA, batch_size=22)
    measure = limbeck.measure.MinibatchCKA()
    measure.update(answers(student), answers(teacher))
    assert side_by_side(student, teacher, whole, [("", "5")]).cka["", "5"] == pytest.approx(measure.compute().item())


def test_robustness_repeats_and_has_the_noise_it_says(student):
    first = robustness(student, LOADER, [0.0, 0.3, 5.0])
    assert first == robustness(student, LOADER, [0.0, 0.3, 5.0])
    assert first[0.3] == robustness(student, LOADER, [0.3])[0.3]
    assert first[0.3] != robustness(student, LOADER, [0.3], seed=1)[0.3]
    assert first[0.0] == pytest.approx(limbeck.evaluate(student, LOADER))

    seen = []

    class Sees(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :3]

    zeros = DataLoader(TensorDataset(torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.int64)), batch_size=16)
    robustness(Sees(), zeros, [0.5, 2.0])
    half, two = torch.cat(seen[::2]), torch.cat(seen[1::2])
    torch.testing.assert_close(4 * half, two)
    assert half.std().item() == pytest.approx(0.5, rel=0.02)
    assert half.mean().item() == pytest.approx(0, abs=0.02)
    assert not torch.equal(half[:16], half[16:32])


@pytest.mark.parametrize(
    "measure",
    [
        lambda net, other: outputs(net, LOADER),
        lambda net, other: side_by_side(net, other, LOADER, [PAIR]),
        lambda net, other: side_by_side(other, net, LOADER, [PAIR]),
        lambda net, other: robustness(net, LOADER, [0.5]),
    ],
    ids=["outputs", "student", "teacher", "robustness"],
)
def test_networks_stay_as_they_were(measure, student, teacher):
    student.train()
    student[1].eval()
    before, random = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    measure(student, teacher)
    assert [module.training for module in student] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert not any(module._forward_hooks for module in student.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_frozen_network_is_as_good(student):
    assert torch.equal(outputs(limbeck.Frozen(student), LOADER).logits, outputs(student, LOADER).logits)


def test_a_teacher_is_seen_as_its_own_view_sees_the_data(student):
    larger = nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), *student)
    view = limbeck.Frozen(larger, inputs=lambda x: 2 * x, output=lambda out: 3 * out, classes=[2, 0])
    beside = side_by_side(nn.Sequential(student, nn.Linear(3, 2)), view, LOADER, [("0.2", "4")])
    expected = 3 * copy.deepcopy(larger).eval()(2 * INPUTS)[:, [2, 0]]
    torch.testing.assert_close(beside.teacher.logits, expected.detach())
    assert beside.cka["0.2", "4"] < 0.999  # of the doubled inputs


def test_values_are_measured_by_their_task(student, teacher):
    loader = [(inputs, inputs.flatten(1)[:, :3]) for inputs, _ in LOADER]
    beside = side_by_side(student, teacher, loader, [PAIR], regression)
    assert beside.student.metrics(regression) == pytest.approx(limbeck.evaluate(student, loader, regression), abs=1e-5)
    apart = (answers(student) - answers(teacher)).square().mean().sqrt().item()
    assert answer_difference(beside.student.logits, beside.teacher.logits) == pytest.approx(apart)
    noisy = robustness(student, loader, [0.1, 3.0], task=regression)
    assert noisy[0.1]["RMSE"] < noisy[3.0]["RMSE"]


class Lists(nn.Module):
    """A detector's kind: a list of answers, each of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, images):
        maps = [self.conv(image[None]) for image in images]
        return [{"boxes": one.flatten(2)[0].T} for one in maps]


def test_ragged_answers_are_kept_a_sample_an_entry():
    loader = [([torch.randn(2, 2, 3), torch.randn(2, 1, 2)], [0, 1]), ([torch.randn(2, 4, 4)], [2])]
    seen = outputs(Lists(), loader, limbeck.Task(output=lambda out: out))
    assert [len(one["boxes"]) for one in seen.logits] == [6, 2, 16]
    assert seen.targets == [0, 1, 2]
    assert limbeck.cost(Lists(), loader[0][0], limbeck.Task(output=lambda out: out)).macs == 2 * 4 * 6


def test_answers_that_do_not_fit_together_are_refused(student):
    loader = [(torch.zeros(2, 3), TARGETS[:2]), (torch.zeros(2, 4), TARGETS[:2])]
    with pytest.raises(ValueError, match=r"shape \(3,\) and \(4,\) cannot be kept together.*limbeck.evaluate"):
        outputs(nn.Identity(), loader)


def test_nothing_to_measure(student, teacher):
    for measure in (
        lambda: outputs(student, []),
        lambda: side_by_side(student, teacher, []),
        lambda: robustness(student, [], [0.1]),
    ):
        with pytest.raises(ValueError, match="the loader gave no batch"):
            measure()


def test_unknown_layers_are_named(student, teacher):
    with pytest.raises(ValueError, match="no layer '12'"):
        side_by_side(student, teacher, LOADER, [("2", "12")])


@pytest.mark.parametrize("deviation", [-0.1, float("nan"), float("inf")])
def test_noise_must_make_sense(student, deviation):
    with pytest.raises(ValueError, match=f"not negative, got {deviation}"):
        robustness(student, LOADER, [deviation])


def test_noise_needs_real_inputs(student):
    with pytest.raises(TypeError, match=r"got a tensor of torch.uint8"):
        robustness(student, [(torch.zeros(2, 2, 4, 4, dtype=torch.uint8), TARGETS[:2])], [0.1])
    with pytest.raises(TypeError, match=r"got a dict with \['pixels'\]"):
        robustness(student, [{"pixels": INPUTS, "labels": TARGETS}], [0.1])
