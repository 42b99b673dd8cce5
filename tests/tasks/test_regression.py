"""Values: their loss, their metrics, and what is wrong with targets."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn

import limbeck
from limbeck import regression
from limbeck.losses import squared_error
from limbeck.nets.tabular import Rescale
from limbeck.verbs.check import check

N, FEATURES, OUTPUTS = 60, 6, 3
DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, FEATURES, generator=DRAW)
RULE = torch.randn(OUTPUTS, FEATURES, generator=DRAW)
TRUE = INPUTS @ RULE.T / 2


def net(outputs: int = OUTPUTS, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs))


def knowing() -> nn.Module:
    teacher = nn.Linear(FEATURES, OUTPUTS, bias=False)
    teacher.weight.data = RULE / 2
    return teacher


def loaders(targets: Tensor, inputs: Tensor = INPUTS) -> tuple[Any, Any]:
    batches = list(zip(inputs.split(20), targets.split(20), strict=True))
    return batches, batches


def fit(method: Any, targets: Tensor = TRUE, **options: Any) -> limbeck.Result:
    return limbeck.fit(method, loaders(targets), **{"epochs": 1, "accelerator": "cpu", "progress": False, **options})


def flagged(targets: Tensor = TRUE, student: nn.Module | None = None) -> dict[str, tuple[str, str]]:
    checkup = check(limbeck.plain(student or net(), task=regression), loaders(targets))
    ours = [one for one in checkup.findings if one.name.startswith(("targets", "student")) and one.status != "ok"]
    return {one.name: (one.status, one.message) for one in ours}


def partly_unknown() -> Tensor:
    targets = TRUE.clone()
    targets[::7, 1], targets[5], targets[3, 0] = math.nan, math.nan, math.nan
    return targets


# loss and metrics ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_known_values() -> None:
    s, y = torch.randn(N, OUTPUTS, generator=DRAW), partly_unknown()
    known = ~y.isnan()
    torch.testing.assert_close(squared_error(s, y), (s - y)[known].square().mean())
    torch.testing.assert_close(squared_error(s, TRUE), (s - TRUE).square().mean())
    s.requires_grad_()
    (slope,) = torch.autograd.grad(squared_error(s, y), s)
    torch.testing.assert_close(slope[known], 2 * (s - y)[known] / known.sum())
    assert not slope[~known].any()
    assert squared_error(s, torch.full_like(y, math.nan)) == 0


def test_one_value_a_sample() -> None:
    """(N, 1) − (N) would be all pairs."""
    s, y = torch.randn(N, 1, generator=DRAW), TRUE[:, 0]
    assert squared_error(s, y) == squared_error(s, y[:, None]) == squared_error(s[:, 0], y)
    narrow, wide = (regression.metrics(s) for _ in range(2))
    narrow.update(s, y)
    wide.update(s, y[:, None])
    assert narrow.compute() == wide.compute()
    assert fit(limbeck.bounded(net(1), net(1, 1)), y).finished


def test_metrics_are_scikit_learns() -> None:
    """Over batches; in R² each output has its own mean, however far it is from 0; −100 is a value as any."""
    y = TRUE * torch.tensor([0.1, 1.0, 3.0]) + torch.tensor([1e3, 0.0, -100.0])
    s = y + 0.3 * torch.randn(N, OUTPUTS, generator=DRAW)
    y[4, 2] = -100
    metrics = regression.metrics(s)
    for start, stop in ((0, 7), (7, 7), (7, N)):
        metrics.update(s[start:stop], y[start:stop])
    got, exact = metrics.compute(), (y.double().numpy(), s.double().numpy())
    assert got["RMSE"].item() == pytest.approx(root_mean_squared_error(*(each.ravel() for each in exact)), rel=1e-4)
    assert got["MAE"].item() == pytest.approx(mean_absolute_error(*exact), rel=1e-4)
    assert got["R2"].item() == pytest.approx(r2_score(*exact, multioutput="variance_weighted"), abs=1e-4)
    assert got["loss"].item() == pytest.approx(got["RMSE"].item() ** 2, rel=1e-4)


def test_unknown_values_do_not_count() -> None:
    s, y = torch.randn(N, OUTPUTS, generator=DRAW), partly_unknown()
    metrics, known = regression.metrics(s), ~y.isnan()
    metrics.update(s, y)
    got, error = metrics.compute(), (s - y)[known]
    assert got["RMSE"].item() == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    assert got["MAE"].item() == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert got["loss"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    spread = sum((y[known[:, k], k] - y[known[:, k], k].mean()).square().sum() for k in range(OUTPUTS))
    assert got["R2"].item() == pytest.approx((1 - error.square().sum() / spread).item(), rel=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_r2_of_what_does_not_vary_is_0(count: int) -> None:
    metrics = regression.metrics(torch.zeros(count, 1))
    metrics.update(torch.ones(count, 1), torch.full((count, 1), 2.0))
    assert metrics.compute()["R2"] == 0


def test_half_precision_answers_do_not_round_the_targets() -> None:
    y = torch.tensor([[1000.5], [1001.5]])
    metrics = regression.metrics(y)
    metrics.update(torch.tensor([[1000.0], [1000.0]], dtype=torch.bfloat16), y)
    assert metrics.compute()["MAE"].item() == pytest.approx(1.0)  # 1000 is a bfloat16


# distillation --------------------------------------------------------------------------------------------------------


def test_bounded_and_logits_learn_of_a_teacher() -> None:
    for method in (limbeck.bounded(net(), knowing()), limbeck.logits(net(), knowing(), task=regression)):
        result = fit(method, epochs=30)
        assert result.metrics["val/student/R2"] > 0.9


def test_unlabelled_samples_are_taught_by_the_teacher_alone() -> None:
    few = torch.full_like(TRUE, math.nan)
    few[:6] = TRUE[:6]
    train, val = loaders(few)[0], loaders(TRUE)[1]
    method = limbeck.logits(net(), knowing(), hard=0.5, task=regression)
    result = limbeck.fit(method, (train, val), epochs=20, accelerator="cpu", progress=False)
    assert result.metrics["val/student/R2"] > 0.8


def test_other_outputs_than_the_teachers() -> None:
    for method in (
        limbeck.bounded(net(), net(7)),
        limbeck.logits(net(), net(7), task=regression),
        limbeck.mimic(net(), net(7), task=regression),
    ):
        with pytest.raises(
            ValueError, match=r"student and teacher must have the same shape, got \(20, 3\) and \(20, 7\)"
        ):
            fit(method)
    assert fit(limbeck.rkd(net(), net(7), task=regression)).finished  # which compares embeddings


# what is wrong with targets ------------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert flagged() == {}
    assert flagged(TRUE[:, 0], net(1)) == {}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full_like(TRUE, math.nan), "the targets are all NaN: no value is known"),
        (TRUE.where(TRUE < 1.2, math.inf), "targets are infinite: leave them out"),
        (TRUE[:, :2], r"the student answers with a tensor of shape \(20, 3\), but .* make it with 2 outputs"),
        (TRUE[:, 0], "make it with 1 outputs, a value each"),
        (torch.arange(N) % OUTPUTS, r"a class a sample\? task=limbeck.classification \(--task classification\)"),
    ],
)
def test_targets_that_are_wrong(targets: Tensor, message: str) -> None:
    ((status, told),) = flagged(targets).values()
    assert status == "failed"
    assert re.search(message, told)
    with pytest.raises(ValueError, match=message):
        fit(limbeck.plain(net(), task=regression), targets)
    with pytest.raises(ValueError, match=message):
        limbeck.distill(net(), knowing(), loaders(targets), "bounded", task=regression, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("targets", "name", "message"),
    [
        (partly_unknown(), "targets", "the others are NaN and do not count: leave such samples out unless"),
        (torch.full((N, OUTPUTS), 2.5), "targets scale", "the targets of 3 of 3 outputs are always the same, 2.5"),
        (TRUE * 300, "targets scale", "Standardise them"),
        (TRUE / 300, "targets scale", "Standardise them"),
        (TRUE + 50, "targets scale", r"a mean of 50(\.\d+)? and deviations"),
        (
            TRUE.round().long(),
            "targets kind",
            r"different whole numbers: are they classes\? task=limbeck.classification",
        ),
    ],
)
def test_targets_that_are_most_likely_wrong(targets: Tensor, name: str, message: str) -> None:
    found = flagged(targets)
    assert [*found] == [name]
    assert found[name][0] == "warning"
    assert re.search(message, found[name][1])


def test_a_network_that_answers_in_the_unit_of_its_targets() -> None:
    """As the message says."""
    targets = 300 * TRUE + 1000
    assert flagged(targets)["targets scale"][0] == "warning"
    student = nn.Sequential(net(), Rescale(targets.mean(0), targets.std(0)))
    assert flagged(targets, student) == {}
