from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import CLASSES, assert_same, convnet, images, mlp, state, vectors
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.engine.run import Run
from limbeck.methods.one import ramp
from limbeck.nets.branches import Branches, EqualShares, Gate


def terms(method: limbeck.Method, batch, progress: float = 0.5):
    return next(iter(method.step(batch, progress))).terms


def test_the_equation() -> None:
    student, batch = convnet(0), images(0)
    x, y = batch
    method = limbeck.one(student, layer="one", branches=3, temperature=2.0, warmup=0.8, example=x).double()
    twin = copy.deepcopy(method.student).train()
    method.train()
    found = terms(method, batch, progress=0.4)
    h = twin.trunk(x)
    z = [branch(h) for branch in twin.branches]
    scores = twin.gate.fc(h.mean((2, 3)))
    normed = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + 1e-5).sqrt()
    g = normed.relu().softmax(1)
    z_e = sum(g[:, i, None] * z[i] for i in range(3))
    p_e = (z_e / 2).softmax(1)
    weight = math.exp(-5 * (1 - 0.4 / 0.8) ** 2)
    expected = {"hard": F.cross_entropy(z_e, y)}
    for i in range(3):
        expected[f"hard.{i + 1}"] = F.cross_entropy(z[i], y)
        expected[f"soft.{i + 1}"] = 4 * (p_e * (p_e.log() - (z[i] / 2).log_softmax(1))).sum(1).mean()
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        torch.testing.assert_close(loss.value, expected[name], rtol=1e-5, atol=1e-6)
        assert loss.weight == pytest.approx(weight if name.startswith("soft") else 1.0)


def test_the_ensemble_is_a_constant_to_its_branches() -> None:
    """The soft term moves the branch it belongs to and the trunk below it; no other branch, and not the gate."""
    method = limbeck.one(convnet(0), layer="one", example=images(0)[0]).double()
    branches = method.student
    assert isinstance(branches, Branches)
    terms(method, images(1))["soft.1"].value.backward()
    assert all(p.grad is not None for p in branches.branches[0].parameters())
    assert all(p.grad is None for part in (branches.branches[1], branches.gate) for p in part.parameters())


def test_the_student_is_the_first_branch() -> None:
    student, (x, _) = convnet(0), images(0)
    method = limbeck.one(student, layer="one", example=x).double()
    networks = method.eval().networks()
    assert list(networks) == ["student", "ensemble"]
    assert networks["student"] is student
    ensemble = networks["ensemble"]
    student.eval()
    assert torch.equal(ensemble.branches[0](ensemble.trunk(x)), student(x))
    others = [torch.cat([p.flatten() for p in branch.parameters()]) for branch in ensemble.branches]
    assert not torch.equal(others[0], others[1])  # each starts anew
    assert not torch.equal(others[1], others[2])


def test_training_changes_the_student_itself() -> None:
    student = mlp(0)
    method = limbeck.one(student, layer="2", example=vectors(0)[0]).double()
    before = state(student)
    limbeck.play(method, vectors(1), limbeck.optimizers(method, lambda p: torch.optim.SGD(p, 0.1)), progress=0.9)
    assert all(not torch.equal(before[name], value) for name, value in student.named_parameters())


def test_equal_branches_agree_with_their_ensemble() -> None:
    student, (x, y) = convnet(0), images(0)
    method = limbeck.one(student, layer="one", example=x).double().eval()
    student.eval()
    ensemble = method.student
    for other in ensemble.branches[1:]:
        other.load_state_dict(ensemble.branches[0].state_dict())
    found = terms(method, (x, y))
    assert all(found[f"soft.{i}"].value.item() == pytest.approx(0, abs=1e-6) for i in (1, 2, 3))
    torch.testing.assert_close(found["hard"].value, found["hard.1"].value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", [True, False])
def test_the_ensemble_is_a_network_by_its_name(gate: bool, tmp_path) -> None:
    name, shape = "mlp-8-6", (1, 4, 4)
    method = limbeck.one(
        limbeck.zoo.network(name, CLASSES, shape), branches=2, gate=gate, example=torch.zeros(1, *shape)
    )
    Run(tmp_path).write_networks(method.networks())
    again = limbeck.zoo.network(f"{name}@{tmp_path / 'ensemble.safetensors'}", CLASSES, shape)
    x = torch.randn(5, *shape)
    assert isinstance(again, Branches)
    assert torch.equal(again.eval()(x), method.student.eval()(x))


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4), (6, 4, 2, 2)])
def test_shares_sum_to_one(shape: tuple[int, ...]) -> None:
    shared = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for gate in (Gate(4, 3), EqualShares(3)):
        shares = gate(shared)
        assert shares.shape == (6, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))


def test_a_batch_of_one_trains() -> None:
    """Whose scores have no variance: the gate then goes by its memory, as in eval mode."""
    method = limbeck.one(convnet(0), layer="one", example=images(0)[0]).double()
    batch, optimizers = images(1, n=1), limbeck.optimizers(method, lambda p: torch.optim.SGD(p, 0.1))
    for progress in (0.0, 0.9):  # before its first statistics, too
        limbeck.play(method, batch, optimizers, progress)
    assert all(p.isfinite().all() for p in method.parameters())
    gate, shared = method.student.gate, torch.randn(1, 4, 8, 8).double()
    memory = state(gate)
    assert torch.equal(gate.train()(shared), gate.eval()(shared))
    assert_same(state(gate), memory)


def test_branches_may_begin_in_place() -> None:
    """As after a convolution or a batch norm: none spoils what the others, and the gate, are shown."""
    student, twin = (nn.Sequential(convnet(0)[0][0], nn.ReLU(inplace), *convnet(0)[1:]) for inplace in (True, False))
    methods = []
    for net in (student, twin):
        torch.manual_seed(0)
        methods.append(limbeck.one(net, layer="0", example=images(0)[0]).double())
    found, expected = (terms(method, images(1)) for method in methods)
    assert {name: loss.value.item() for name, loss in found.items()} == {
        name: loss.value.item() for name, loss in expected.items()
    }
    sum(loss.value for loss in found.values()).backward()
    sum(loss.value for loss in expected.values()).backward()
    assert torch.equal(student[0].weight.grad, twin[0].weight.grad)


def test_without_a_gate_the_ensemble_is_the_mean_of_the_logits() -> None:
    student, (x, _) = convnet(0), images(0)
    ensemble = limbeck.one(student, layer="one", gate=False, example=x).double().networks()["ensemble"].eval()
    shared = ensemble.trunk(x)
    torch.testing.assert_close(ensemble(x), sum(branch(shared) for branch in ensemble.branches) / 3)


def test_the_ramp() -> None:
    r = ramp(0.25)
    assert r(0.0) == pytest.approx(math.exp(-5))
    assert r(0.125) == pytest.approx(math.exp(-1.25))
    assert r(0.25) == r(1.0) == 1.0


class Seeded(nn.Linear):
    """A layer that always starts alike, as public code has it."""

    def reset_parameters(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().reset_parameters()


def test_nothing_to_copy() -> None:
    net = nn.Sequential(nn.Linear(6, CLASSES), nn.Identity())
    with pytest.raises(ValueError, match="nothing that trains lies behind '0', so there is nothing to copy"):
        limbeck.one(net, layer="0", example=torch.randn(2, 6))
    with pytest.raises(ValueError, match="''"):
        limbeck.one(mlp(0), layer="", example=vectors()[0])


def test_branches_must_not_start_alike() -> None:
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Seeded(8, CLASSES)).double()
    with pytest.raises(ValueError, match=r"starts with the same weights every time.*A generation or branch"):
        limbeck.one(student, layer="1", example=vectors(0)[0])


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)).double()


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (mlp(0), {"branches": 1}, "branches must be at least 2, got 1"),
        (mlp(0), {"temperature": 0.0}, r"temperature must be in \(0, 1000\], got 0\.0"),
        (mlp(0), {"layer": "nope"}, "no layer 'nope'"),
        (mlp(0), {"layer": "2", "warmup": 0.0}, "warmup is a share"),
        (flat(), {}, "no two stages to share the first of"),
    ],
)
def test_bad_input(student: nn.Module, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.one(student, example=vectors(0)[0], **options).double()
