from __future__ import annotations

import copy
import warnings

import pytest
import torch
from method_toys import CLASSES, assert_same, batches, mlp, sgd, state
from torch import nn
from torch.nn import functional as F

import limbeck


def train(stage: limbeck.Stage) -> None:
    optimizers = limbeck.optimizers(stage.method, sgd)
    for batch in batches(2):
        limbeck.play(stage.method, batch, optimizers)


def edge(student: nn.Module, teacher: nn.Module, temperature: float, alpha: float) -> None:
    """One step of the chain by hand."""
    optimizer = sgd(list(student.parameters()))
    for x, y in batches(2):
        optimizer.zero_grad()
        z, p_t = student(x), (teacher(x).detach() / temperature).softmax(-1)
        soft = (p_t * (p_t.log() - (z / temperature).log_softmax(-1))).sum(-1).mean()
        (alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(z, y)).backward()
        optimizer.step()


def test_the_chain_is_the_hand_written_loop() -> None:
    teacher, first, second, student = (mlp(seed) for seed in range(4))
    mine, before = [copy.deepcopy(net) for net in (first, second, student)], teacher.eval()
    for net in mine:
        edge(net, before, 3.0, 0.8)
        before = net.eval()
    names = []
    for stage in limbeck.takd(student, teacher, [first, second], temperature=3.0, alpha=0.8):
        train(stage)
        names.append(stage.name)
        assert stage.share == pytest.approx(1 / 3)
    assert names == ["assistant-1", "assistant-2", "student"]
    torch.testing.assert_close(state(student), state(mine[-1]), rtol=1e-12, atol=1e-12)


def test_each_learns_from_the_one_before_alone() -> None:
    """A student whose assistant is trained does not depend on the teacher any more."""
    ends = []
    for seed in (1, 2):
        student, assistant = mlp(3), mlp(4)
        stages = limbeck.takd(student, mlp(seed), assistant)
        next(iter(stages))  # the assistant is not trained, so its teacher says nothing to the student
        train(next(stages))
        ends.append(state(student))
    assert_same(*ends)


def test_assistants_stay_as_they_are() -> None:
    assistant = mlp(1)
    before = copy.deepcopy(assistant.state_dict())
    for stage in limbeck.takd(mlp(0), mlp(2), [assistant]):
        train(stage)
    assert all(torch.equal(before[name], value) for name, value in assistant.state_dict().items())


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda student, teacher, other: [], "without one it is limbeck.kd"),
        (lambda student, teacher, other: student, "an assistant is the student or the teacher itself"),
        (lambda student, teacher, other: [other, teacher], "the student or the teacher itself"),
        (lambda student, teacher, other: [other, other], "stands twice in the chain"),
    ],
)
def test_chains_that_are_none(pick, message) -> None:
    student, teacher, other = mlp(0), mlp(1), mlp(2)
    with pytest.raises(ValueError, match=message):
        next(limbeck.takd(student, teacher, pick(student, teacher, other)))


def test_a_chain_that_grows_is_told() -> None:
    with pytest.warns(
        UserWarning, match=r"assistant 2 has \d+ parameters and learns from a network of \d+: .* the largest"
    ):
        next(limbeck.takd(mlp(0, width=4), mlp(1, width=16), [mlp(2, width=6), mlp(3, width=8)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(limbeck.takd(mlp(0, width=4), mlp(1, width=16), [mlp(2, width=8), mlp(3, width=8)]))


def test_a_chain_of_one_network() -> None:
    net = mlp(0)
    with pytest.raises(ValueError, match="the student is the teacher itself"):
        next(limbeck.takd(net, net, mlp(1)))


def test_another_number_of_classes() -> None:
    wider = nn.Sequential(mlp(2), nn.Linear(CLASSES, CLASSES + 1).double())
    stages = limbeck.takd(mlp(0), mlp(1), wider)
    with pytest.raises(ValueError, match="classes"):
        train(next(stages))
