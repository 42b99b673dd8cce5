from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import CLASSES, assert_finite, assert_full_precision, assert_same, batches, mlp, normal, sgd, state
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import absolute_error
from limbeck.methods.adversarial import Adversarial, _says
from limbeck.nets.critic import Critic


def game(**options: float) -> Adversarial:
    torch.manual_seed(5)
    method = limbeck.adversarial(mlp(0), mlp(1, width=16), num_classes=CLASSES, width=7, **options)
    return method.double()


def bce(score: Tensor, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))


def test_playing_it_is_the_hand_written_loop() -> None:
    method, teacher = game(absolute=2.0, adversarial=0.3), mlp(1, width=16).eval()
    student, critic = mlp(0), copy.deepcopy(method.critic)
    optimizers = limbeck.optimizers(method, sgd)
    of_student, of_critic = sgd(list(student.parameters())), sgd(list(critic.parameters()))
    for x, y in batches(5):
        logs = limbeck.play(method, (x, y), optimizers)
        z_s, z_t = student(x), teacher(x).detach()

        of_critic.zero_grad()
        (real_t, label_t), (real_s, label_s) = critic(z_t), critic(z_s.detach())
        labels = F.cross_entropy(label_t, y) + F.cross_entropy(label_s, y)
        (bce(real_t, True) + bce(real_s, False) + labels).backward()
        of_critic.step()

        of_student.zero_grad()
        real, label = critic(z_s)
        fool, labels = bce(real, True), F.cross_entropy(label, y)
        (F.cross_entropy(z_s, y) + 2 * (z_s - z_t).abs().mean() + 0.3 * (fool + labels)).backward()
        of_student.step()
        assert logs["student/fool"] == pytest.approx(fool.item(), rel=1e-6)
    for ours, theirs in ((method.distill.student, student), (method.critic, critic)):
        torch.testing.assert_close(state(ours), state(theirs), rtol=1e-12, atol=1e-13)


def test_scores_are_compared_in_full_precision() -> None:
    score = normal(6, seed=1)
    assert_full_precision(lambda given: _says(given, 1.0), score)
    assert _says(score, 0.0).item() == pytest.approx(F.softplus(score).mean().item(), rel=1e-15)


def test_by_hand() -> None:
    method, (x, y) = game(), next(batches(1))
    for parameter in method.critic.parameters():
        nn.init.zeros_(parameter)  # undecided: real with 1/2, each class with 1/K
    still = limbeck.optimizers(method, lambda params: torch.optim.SGD(params, 0.0))
    logs = limbeck.play(method, (x, y), still)
    assert logs["critic/teacher"] == pytest.approx(math.log(2))
    assert logs["critic/student"] == pytest.approx(math.log(2))
    assert logs["critic/label"] == pytest.approx(2 * math.log(CLASSES))
    assert logs["student/fool"] == pytest.approx(math.log(2))
    assert logs["student/label"] == pytest.approx(math.log(CLASSES))
    assert logs["student/label.weighted"] == pytest.approx(0.1 * math.log(CLASSES))


def test_absolute_error() -> None:
    assert absolute_error(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]])) == (2 + 2.5) / 2
    assert_finite(absolute_error, normal(3, 4, scale=1e4), torch.zeros(3, 4))
    assert_finite(absolute_error, torch.zeros(3, 4), torch.zeros(3, 4))
    assert_full_precision(absolute_error, normal(3, 4, seed=1), normal(3, 4, seed=2))
    with pytest.raises(ValueError, match=r"the same shape, got \(3, 4\) and \(1, 4\)"):
        absolute_error(normal(3, 4), normal(1, 4))


def test_no_gradient_leaks_between_the_players() -> None:
    method = game()
    student, critic = method.distill.student, method.critic
    for player, turn in zip(("critic", "student"), method.step(next(batches(1))), strict=True):
        assert turn.player == player
        method.zero_grad()
        turn.total.backward()
        reached = [any(p.grad is not None for p in net.parameters()) for net in (student, critic)]
        assert reached == [player == "student", player == "critic"]


def test_the_student_meets_the_critic_after_its_update() -> None:
    method = game()
    optimizer = sgd(list(method.critic.parameters()))
    turns = method.step(next(batches(1)))
    stale = method.critic(method.distill.student(next(batches(1))[0]))[0]
    next(turns).total.backward()
    optimizer.step()
    z_s = mlp(0)(next(batches(1))[0])
    fool = next(turns).terms["fool"].value
    assert fool.item() == pytest.approx(bce(method.critic(z_s)[0], True).item(), rel=1e-6)
    assert abs(fool.item() - bce(stale, True).item()) > 1e-4


def test_without_the_game_the_student_follows_the_absolute_error() -> None:
    with pytest.raises(ValueError, match=r"adversarial must be above 0, got 0\.0"):
        game(adversarial=0.0)
    method, student = game(adversarial=1e-300), mlp(0)  # too little to count
    teacher = mlp(1, width=16).eval()
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(student.parameters()))
    for x, y in batches(3):
        limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        z = student(x)
        (F.cross_entropy(z, y) + F.l1_loss(z, teacher(x).detach())).backward()
        optimizer.step()
    assert_same(state(method.distill.student), state(student))


def test_the_critic() -> None:
    critic = Critic(num_classes=4, width=7, depth=2)
    real, label = critic(torch.randn(3, 4))
    assert (real.shape, label.shape) == ((3,), (3, 4))
    linear = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(4, 7), (7, 7), (7, 1), (7, 4)]
    assert not any("Norm" in type(m).__name__ for m in critic.modules())


def test_the_critic_stays_behind() -> None:
    method = game()
    assert method.networks() == {"student": method.distill.student}


def test_numerics() -> None:
    method, (x, y) = game(), next(batches(1))
    logs = limbeck.play(method, (1e4 * x, y), limbeck.optimizers(method, sgd))
    assert max(logs.values()) > 1e2  # play() itself refuses what is not finite
    assert all(p.isfinite().all() for p in method.parameters())


def test_the_classes_are_found_by_an_example() -> None:
    x, _ = next(batches(1))
    teacher = mlp(1).train()
    before = state(teacher)
    method = limbeck.adversarial(mlp(0), teacher, example=x)
    assert method.critic.label.out_features == CLASSES
    assert teacher.training
    assert_same(state(teacher), before)  # its batch norm did not notice
    with pytest.raises(
        ValueError, match="the critic needs the number of classes: pass num_classes=K or example=inputs"
    ):
        limbeck.adversarial(mlp(0), mlp(1))
