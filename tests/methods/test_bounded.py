from __future__ import annotations

import copy

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, assert_same, batches, gradient, mlp, normal, sgd, state

import limbeck
from limbeck.losses import bounded_regression


def test_formula() -> None:
    s, t, y = normal(7, 4, seed=1), normal(7, 4, seed=2), normal(7, 4, seed=3)
    for margin in (0.0, 0.5, 3.0, 1e3):
        naive = 0.0
        for n in range(7):
            mine = sum((s[n, k] - y[n, k]).item() ** 2 for k in range(4))
            bound = sum((t[n, k] - y[n, k]).item() ** 2 for k in range(4))
            naive += mine if mine + margin > bound else 0.0
        assert bounded_regression(s, t, y, margin).item() == pytest.approx(naive / 7, rel=1e-12)


def test_by_hand() -> None:
    """The first is worse than the teacher: 2² + 1² = 5. The second is better by 3, 1 against 4: a margin of 3.5 asks on."""
    s, t, y = torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.zeros(2, 2)
    assert bounded_regression(s, t, y).item() == 5 / 2
    assert bounded_regression(s, t, y, margin=2.5).item() == 5 / 2
    assert bounded_regression(s, t, y, margin=3.5).item() == (5 + 1) / 2


def test_the_gradient_is_the_squared_errors_or_none() -> None:
    s, t, y = normal(40, 3, seed=1), normal(40, 3, seed=2), normal(40, 3, seed=3)
    worse = (s - y).square().sum(1) > (t - y).square().sum(1)
    assert 0 < worse.sum() < 40
    slope = gradient(bounded_regression, s, t, y)
    torch.testing.assert_close(slope[worse], 2 * (s - y)[worse] / 40)
    assert not slope[~worse].any()


def test_the_teacher_is_no_target() -> None:
    """Other values at the same distance bound alike, and no gradient reaches them."""
    s, y = normal(9, 2, seed=1), normal(9, 2, seed=2)
    t = normal(9, 2, seed=3).requires_grad_()
    assert bounded_regression(s, t, y).item() == bounded_regression(s, 2 * y - t, y).item()
    assert not bounded_regression(s, t, y).requires_grad


def test_a_student_that_is_its_teacher_is_asked_for_nothing() -> None:
    s, y = normal(5, 3, seed=1), normal(5, 3, seed=2)
    assert bounded_regression(s, s.clone(), y) == 0
    assert bounded_regression(s, s.clone(), y, margin=1e-9) > 0


def test_one_value_a_sample() -> None:
    """(N, 1) − (N) would be all pairs."""
    s, t, y = normal(6, 1, seed=1), normal(6, 1, seed=2), normal(6, seed=3)
    assert (
        bounded_regression(s, t, y) == bounded_regression(s, t, y[:, None]) == bounded_regression(s[:, 0], t[:, 0], y)
    )


def test_images_are_samples() -> None:
    s, t, y = (normal(4, 2, 3, 3, seed=seed) for seed in range(3))
    flat = bounded_regression(s.flatten(1), t.flatten(1), y.flatten(1))
    torch.testing.assert_close(bounded_regression(s, t, y), flat)


def test_unknown_values_do_not_count() -> None:
    s, t, y = normal(5, 3, seed=1), normal(5, 3, seed=2), normal(5, 3, seed=3)
    y[0], y[1, 2] = torch.nan, torch.nan
    known = [
        bounded_regression(s[n : n + 1, keep], t[n : n + 1, keep], y[n : n + 1, keep])
        for n, keep in ((1, slice(2)), (2, slice(3)), (3, slice(3)), (4, slice(3)))
    ]
    torch.testing.assert_close(bounded_regression(s, t, y), torch.stack(known).mean())
    assert gradient(bounded_regression, s, t, y).isfinite().all()
    assert bounded_regression(s, t, torch.full_like(y, torch.nan)) == 0


def test_numerics() -> None:
    many = [normal(6, 4, seed=seed, scale=1e4) for seed in range(3)]
    assert_finite(bounded_regression, *many)
    assert_finite(bounded_regression, torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(6, 4))
    assert_full_precision(bounded_regression, *(normal(6, 4, seed=seed) for seed in range(3)))


def test_invalid() -> None:
    s = normal(5, 4)
    with pytest.raises(ValueError, match=r"values: .* the same shape, got \(5, 4\) and \(5, 1\)"):
        bounded_regression(s, normal(5, 1), s)
    with pytest.raises(ValueError, match=r"values and targets: .* got \(5, 4\) and \(5,\)"):
        bounded_regression(s, s, normal(5))
    with pytest.raises(ValueError, match=r"margin must not be negative, got -0\.1"):
        bounded_regression(s, s, s, margin=-0.1)
    with pytest.raises(ValueError, match="margin must be at least 0, got nan"):
        limbeck.bounded(mlp(0), mlp(1), margin=float("nan"))


@pytest.mark.parametrize("task", [limbeck.classification, limbeck.multilabel])
def test_it_is_for_values(task: limbeck.Task) -> None:
    with pytest.raises(
        ValueError, match=f"in {task.name} answers are scores: kd softens them.*task=limbeck.regression"
    ):
        limbeck.bounded(mlp(0), mlp(1), task=task)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.bounded(student, teacher, bounded=0.5, margin=0.25)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, _ in batches(4):
        y = x[:, :5].sin()
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        s, t = loop(x), teacher(x).detach()
        mine, bound = ((z - y).square().sum(1) for z in (s, t))
        hard, limit = (s - y).square().mean(), mine[mine + 0.25 > bound].sum() / len(x)
        (hard + 0.5 * limit).backward()
        optimizer.step()
        assert logs["student/bounded"] == pytest.approx(limit.item(), rel=1e-6)
        assert logs["student/hard"] == pytest.approx(hard.item(), rel=1e-6)
    for name, value in state(student).items():
        torch.testing.assert_close(value, state(loop)[name], rtol=1e-12, atol=1e-12)


def test_a_hopeless_teacher_leaves_the_plain_student() -> None:
    """It bounds nothing: not a bit differs."""
    student, teacher = mlp(0), mlp(1)
    alone = copy.deepcopy(student)
    with torch.no_grad():
        teacher[-1].bias += 1e3
    for method in (limbeck.bounded(student, teacher), limbeck.plain(alone, task=limbeck.regression)):
        optimizers = limbeck.optimizers(method, sgd)
        for x, _ in batches(3):
            limbeck.play(method, (x, x[:, :5]), optimizers)
    assert_same(state(student), state(alone))
