from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import CLASSES, assert_same, batches, mlp, normal, sgd, state, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.methods.ban import start_anew
from limbeck.stage import Stage


def train(stage: Stage, epochs: int = 3) -> None:
    optimizers = limbeck.optimizers(stage.method, sgd)
    for batch in batches(epochs):
        limbeck.play(stage.method, batch, optimizers)


def loop(student: nn.Module, teacher: nn.Module | None, hard: float = 0.0, epochs: int = 3) -> None:
    """One generation by hand: the labels alone, or CE(p_{k-1}, p_k)."""
    optimizer = sgd(list(student.parameters()))
    for x, y in batches(epochs):
        optimizer.zero_grad()
        z = student(x)
        if teacher is None:
            loss = F.cross_entropy(z, y)
        else:
            p_t = teacher(x).detach().softmax(-1)
            loss = -(p_t * z.log_softmax(-1)).sum(-1).mean() + hard * F.cross_entropy(z, y)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_generations_are_the_hand_written_loop(hard: float) -> None:
    student = mlp(0)
    first = copy.deepcopy(student)
    loop(first, None)
    teacher = first
    for k, stage in enumerate(limbeck.ban(student, generations=2, hard=hard)):
        if k:
            born = copy.deepcopy(student)  # the generation as it starts
            loop(born, teacher.eval(), hard)
            teacher = born
        train(stage)
        torch.testing.assert_close(state(student), state(teacher), rtol=1e-12, atol=1e-12)
    assert k == 2


def test_by_hand() -> None:
    class Says(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    teacher, student = Says(1, 2), Says(1, 2)
    with torch.no_grad():
        teacher.bias.copy_(torch.tensor([math.log(3), 0.0]))  # p = (3/4, 1/4)
        student.bias.fill_(7.0)
    stage = next(limbeck.ban(student, teacher, generations=1, hard=2.0))
    (turn,) = stage.method.step((torch.zeros(1, 1), torch.tensor([0])))
    assert turn.terms["soft"].value.item() == pytest.approx(math.log(2))  # CE of anything with (1/2, 1/2)
    turn.total.backward()
    soft, hard = torch.tensor([0.5 - 0.75, 0.5 - 0.25]), torch.tensor([0.5 - 1, 0.5 - 0])
    torch.testing.assert_close(student.bias.grad, soft + 2 * hard)


def test_every_generation_starts_differently_and_from_nothing() -> None:
    student, starts = mlp(0), []
    for stage in limbeck.ban(student, mlp(1), generations=3):
        starts.append(state(student))
        train(stage)
    for i, start in enumerate(starts):
        assert not start["1.running_mean"].any()
        assert start["1.num_batches_tracked"] == 0
        assert all(not torch.equal(start["0.weight"], other["0.weight"]) for other in starts[:i])


def test_the_stages() -> None:
    def of(stages: list[Stage]) -> list[tuple[str, float]]:
        return [(stage.name, pytest.approx(stage.share)) for stage in stages]

    alone, taught = list(limbeck.ban(mlp(0), generations=2)), list(limbeck.ban(mlp(0), mlp(1), generations=2))
    assert of(alone) == [("generation-0", 1 / 3), ("generation-1", 1 / 3), ("generation-2", 1 / 3)]
    assert of(taught) == [("generation-1", 1 / 2), ("generation-2", 1 / 2)]


def test_a_given_teacher_is_generation_0_and_stays_as_it_is() -> None:
    student, teacher = mlp(0), mlp(1, width=16)
    before, (x, _) = state(teacher), vectors()
    stage = next(limbeck.ban(student, teacher, generations=1))
    (turn,) = stage.method.step(vectors())
    expected = -(teacher.eval()(x).softmax(-1) * student(x).log_softmax(-1)).sum(-1).mean()
    assert turn.total.item() == pytest.approx(expected.item(), rel=1e-9)
    train(stage)
    assert_same(state(teacher), before)


def test_the_ensemble_averages_probabilities_of_all_generations() -> None:
    student, x, born = mlp(0), normal(4, 6, seed=9), []
    for k, stage in enumerate(limbeck.ban(student, mlp(1), generations=3), 1):
        train(stage)
        born.append(copy.deepcopy(student).eval()(x).softmax(-1))
        networks = stage.method.networks()
        assert networks["student"] is student
        assert list(networks) == (["student"] if k == 1 else ["student", "ensemble"])
        if k > 1:
            torch.testing.assert_close(networks["ensemble"].eval()(x).softmax(-1), torch.stack(born).mean(0))


def test_ensembles() -> None:
    x, (a, b) = normal(4, 6), (mlp(1).eval(), mlp(2).eval())
    p, q = a(x).softmax(-1), b(x).softmax(-1)
    torch.testing.assert_close(limbeck.Ensemble([a, b], weights=[3, 1])(x).softmax(-1), (3 * p + q) / 4)
    geometric = (p * q).sqrt()
    torch.testing.assert_close(
        limbeck.Ensemble([a, b], mean="geometric")(x).softmax(-1), geometric / geometric.sum(-1, keepdim=True)
    )


def test_numerics() -> None:
    teacher = mlp(1, norm=False)
    teacher[-1].weight.data *= 1e4
    for stage in limbeck.ban(mlp(0, norm=False), teacher, generations=2):
        train(stage)
        assert all(p.isfinite().all() for p in stage.method.parameters())


class Scaled(nn.Module):
    """A module whose scale nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, CLASSES), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def test_starting_anew_resets_everything() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2), nn.LSTM(2, 3))
    before = state(net)
    with torch.no_grad():
        net[0].weight.fill_(3.0)
        net[1].running_mean.fill_(3.0)
        net[2].weight.fill_(3.0)
    start_anew(net)
    assert net[2].weight.item() == 0.25
    assert not net[1].running_mean.any()
    assert net[0].weight.std().item() == pytest.approx(before["0.weight"].std().item(), rel=0.5)
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[5].weight_ih_l0, before["5.weight_ih_l0"])


def test_a_network_that_cannot_start_anew_is_told_at_once_and_kept() -> None:
    net = Scaled()
    before = state(net)
    with pytest.raises(ValueError, match=r"Scaled has parameters that no reset_parameters\(\) touches: \['scale'\]"):
        start_anew(net)
    assert_same(state(net), before)
    with pytest.raises(ValueError, match=r"touches: \['scale'\]"):
        next(limbeck.ban(net))  # before generation 0 trains


def test_no_generation() -> None:
    with pytest.raises(ValueError, match="generations must be at least 1, got 0"):
        next(limbeck.ban(mlp(0), generations=0))
