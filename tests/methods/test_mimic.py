from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import assert_finite, assert_full_precision, assert_same, batches, gradient, mlp, normal, sgd, state
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

import limbeck
from limbeck import SklearnTeacher, regression
from limbeck.data.munge import munge, neighbours, uniform
from limbeck.losses import mimic, squared_error
from limbeck.nets.tabular import Encode

CATEGORICAL = (1, 3)


def table(n: int = 40, seed: int = 0) -> Tensor:
    """Three columns of numbers at different scales, two of categories."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.rand(n, 5, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 1, 100, 1, 1e-2])
    rows[:, 1] = torch.randint(3, (n,), generator=draw)
    rows[:, 3] = torch.randint(5, (n,), generator=draw)
    return rows


def with_a_gap() -> Tensor:
    rows = table()
    rows[3, 2] = math.nan
    return rows


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the loss ------------------------------------------------------------------------------------------------------------


def test_formula() -> None:
    z_s, z_t = normal(5, 4, seed=1), normal(5, 4, seed=2)
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    naive = sum((p_s[n, k] - p_t[n, k]).item() ** 2 for n in range(5) for k in range(4)) / 20
    assert mimic(z_s, z_t).item() == pytest.approx(naive, rel=1e-12)
    naive = sum((z_s[n, k] - z_t[n, k]).item() ** 2 for n in range(5) for k in range(4)) / 20
    assert squared_error(z_s, z_t).item() == pytest.approx(naive, rel=1e-12)


def test_two_classes_are_the_papers_one_probability() -> None:
    """Sure of ¾ against ½: the error is 1/16."""
    z_s, z_t = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    assert mimic(z_s, z_t).item() == pytest.approx(1 / 16, rel=1e-6)
    many_s, many_t = normal(6, 2, seed=1), normal(6, 2, seed=2)
    of_one = (many_s.softmax(1)[:, 1] - many_t.softmax(1)[:, 1]).square().mean()
    torch.testing.assert_close(mimic(many_s, many_t), of_one)


def test_an_offset_of_the_logits_does_not_matter() -> None:
    z = normal(5, 4)
    torch.testing.assert_close(mimic(z + 3, z), torch.tensor(0.0).double())


def test_the_gradient_vanishes_where_the_student_is_sure() -> None:
    sure, other = torch.tensor([[30.0, 0.0]]).double(), torch.tensor([[0.0, 30.0]]).double()
    assert gradient(mimic, sure, other).abs().max() < 1e-10


def test_numerics() -> None:
    for loss in (mimic, squared_error):
        assert_finite(loss, normal(6, 4, seed=1, scale=1e4), normal(6, 4, seed=2, scale=1e4))
        assert_finite(loss, torch.zeros(6, 4), torch.zeros(6, 4))
        assert_full_precision(loss, normal(6, 4, seed=1), normal(6, 4, seed=2))
        with pytest.raises(ValueError, match=r"the same shape, got \(5, 4\) and \(5, 1\)"):
            loss(normal(5, 4), normal(5, 1))


# the method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_before", [False, True])
def test_playing_it_is_the_hand_written_loop(asked_before: bool) -> None:
    student, loop, teacher = mlp(0), mlp(0), mlp(1, width=16)
    method = limbeck.mimic(student, None if asked_before else teacher)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, y in batches(4):
        answers = teacher(x).detach()
        limbeck.play(method, (x, answers if asked_before else y), optimizers)
        optimizer.zero_grad()
        (loop(x).softmax(1) - answers.softmax(1)).square().mean().backward()
        optimizer.step()
    assert_same(state(student), state(loop))


def test_values_are_regressed_as_they_are() -> None:
    student, teacher = mlp(0), mlp(1)
    method = limbeck.mimic(student, teacher, outputs="values", task=regression)
    x, y = next(batches(1))
    teacher.eval()
    expected = (copy.deepcopy(student)(x) - teacher(x)).square().mean()
    logs = limbeck.play(method, (x, y), limbeck.optimizers(method, sgd))
    assert logs["student/mimic"] == pytest.approx(expected.item(), rel=1e-6)


def test_what_is_matched_by_default_is_the_tasks() -> None:
    x, y = next(batches(1))
    for task, matched in (
        (limbeck.classification, lambda z: z.softmax(1)),
        (limbeck.multilabel, lambda z: z.sigmoid()),
        (regression, lambda z: z),
    ):
        student, teacher = mlp(0), mlp(1).eval()
        method = limbeck.mimic(student, teacher, task=task)
        expected = (matched(copy.deepcopy(student)(x)) - matched(teacher(x))).square().mean()
        logs = limbeck.play(method, (x, y), limbeck.optimizers(method, sgd))
        assert logs["student/mimic"] == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="no probabilities to soften in regression"):
        limbeck.mimic(mlp(0), mlp(1), outputs="probabilities", task=regression)


def test_unknown_outputs() -> None:
    with pytest.raises(ValueError, match="'probabilities' or 'values', got 'logits'"):
        limbeck.mimic(mlp(0), mlp(1), outputs="logits")  # type: ignore[arg-type]


# MUNGE ---------------------------------------------------------------------------------------------------------------


def nearest_by_hand(i: int, rows: Tensor, given: Tensor, categorical: tuple[int, ...]) -> int:
    """Euclid on numbers in [0, 1], a mismatch of categories counting 1."""
    distances = []
    for j, other in enumerate(rows):
        total = 0.0
        for a in range(rows.shape[1]):
            if a in categorical:
                total += float(rows[i, a] != other[a])
            else:
                total += ((rows[i, a] - other[a]) / (given[:, a].max() - given[:, a].min())).item() ** 2
        distances.append(math.inf if i == j else total)
    return distances.index(min(distances))


def munge_by_hand(
    rows: Tensor,
    generator: torch.Generator,
    passes: int,
    swap: float,
    s: float,
    categorical: tuple[int, ...],
    follow: bool,
) -> Tensor:
    """One row after the other, one attribute after the other, with the same random numbers."""
    out = []
    for _ in range(passes):
        chance = torch.rand(rows.shape, generator=generator)
        noise = torch.randn(2, *rows.shape, generator=generator, dtype=rows.dtype)
        made = rows.clone()
        for i in range(len(rows)):
            j = nearest_by_hand(i, made if follow else rows, rows, categorical)
            for a in range(rows.shape[1]):
                if chance[i, a] >= swap:
                    continue
                mine, its = made[i, a].item(), made[j, a].item()
                spread = 0.0 if a in categorical else abs(mine - its) / s
                made[i, a] = its + spread * noise[0, i, a]
                made[j, a] = mine + spread * noise[1, i, a]
        out.append(made)
    return torch.cat(out)


@pytest.mark.parametrize("follow", [False, True])
def test_munge_is_the_papers_loop(follow: bool) -> None:
    rows = table()
    nearest = [nearest_by_hand(i, rows, rows, CATEGORICAL) for i in range(len(rows))]
    assert neighbours(rows, CATEGORICAL).tolist() == nearest
    made = munge(rows, draws(), passes=2, swap=0.6, variance=2.0, follow=follow, categorical=CATEGORICAL)
    expected = munge_by_hand(rows, draws(), 2, 0.6, 2.0, CATEGORICAL, follow)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=0)
    assert not torch.equal(made[:40], made[40:])


def test_rows_stay_as_they_are_without_swaps() -> None:
    rows = table()
    assert torch.equal(munge(rows, draws(), passes=2, swap=0, categorical=CATEGORICAL), rows.repeat(2, 1))


def test_what_is_given_is_not_changed() -> None:
    rows = table()
    before = rows.clone()
    for follow in (False, True):
        munge(rows, draws(), swap=1, follow=follow, categorical=CATEGORICAL)
    assert torch.equal(rows, before)


def test_categories_alone_are_only_shuffled_within_their_attribute() -> None:
    rows = torch.randint(4, (50, 3), generator=draws()).float()
    made = munge(rows, draws(), passes=2, categorical=range(3))
    assert not torch.equal(made[:50], rows)
    for part in made.split(50):
        assert torch.equal(part.sort(0).values, rows.sort(0).values)


def test_duplicates_copy_their_values() -> None:
    rows = torch.tensor([[1.0, 5.0], [1.0, 5.0]])
    assert torch.equal(munge(rows, draws(), swap=1), rows)


def test_a_larger_variance_keeps_closer_to_the_values_there_are() -> None:
    rows = table(200)
    near, far = (munge(rows, draws(), swap=1, variance=s, categorical=CATEGORICAL)[:, 0] for s in (1e6, 0.5))
    seen = rows[:, 0]
    assert (near[:, None] - seen).abs().amin(1).max() < 1e-4 < (far[:, None] - seen).abs().amin(1).max()


def test_uniform_rows_fill_the_ranges() -> None:
    rows = table()
    drawn = uniform(rows, 2000, draws(), categorical=CATEGORICAL)
    assert drawn.shape == (2000, 5)
    assert bool((drawn >= rows.amin(0)).all() and (drawn <= rows.amax(0)).all())
    assert set(drawn[:, 3].tolist()) == set(rows[:, 3].tolist())
    middle = (rows[:, 2].amin() + rows[:, 2].amax()) / 2
    assert drawn[:, 2].mean().item() == pytest.approx(middle.item(), rel=0.05)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table(), {"swap": 1.5}, r"swap is a probability .* got 1.5"),
        (table(), {"variance": 0.0}, "variance .* must be positive, got 0.0"),
        (table(), {"passes": 0}, "passes must be at least 1, got 0"),
        (table(), {"categorical": [7]}, "categorical: expected columns 0 to 4, got 7"),
        (table(1), {}, "at least two rows"),
        (with_a_gap(), {}, r"column 2 has 1 values that are missing .*SimpleImputer"),
    ],
)
def test_rows_and_options_that_cannot_be_munged(rows, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        munge(rows, draws(), **options)


def test_text_and_codes_are_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"got list\. Text has no distance"):
        munge([["a", "b"]], draws())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got torch.int64"):
        munge(torch.zeros(3, 2, dtype=torch.int64), draws())


# scikit-learn teaches ------------------------------------------------------------------------------------------------


def labelled(n: int = 60) -> tuple[Tensor, Tensor]:
    rows = table(n).float()
    return rows, (rows[:, 0] > 0.5).long() + (rows[:, 2] > 50)


def test_a_classifiers_logits_are_its_probabilities() -> None:
    rows, classes = labelled()
    model = LogisticRegression(max_iter=500).fit(rows.numpy(), classes.numpy())
    answers = SklearnTeacher(model)(rows)
    torch.testing.assert_close(answers.softmax(1), torch.from_numpy(model.predict_proba(rows.numpy())).float())


def test_certainty_stays_finite() -> None:
    rows, classes = labelled()
    answers = SklearnTeacher(DecisionTreeClassifier(random_state=0).fit(rows.numpy(), classes.numpy()))(rows)
    assert bool(answers.isfinite().all())
    assert torch.equal(answers.argmax(1), classes)


def test_classes_that_were_never_seen_have_a_place() -> None:
    rows, classes = labelled()
    some = classes != 1
    model = RandomForestClassifier(5, random_state=0).fit(rows[some].numpy(), classes[some].numpy())
    p = SklearnTeacher(model, num_classes=4)(rows).softmax(1)
    assert p[:, [1, 3]].max() < 1e-5
    torch.testing.assert_close(
        p[:, [0, 2]].double(), torch.from_numpy(model.predict_proba(rows.numpy())), atol=1e-5, rtol=0
    )


def test_regressors_answer_values_or_scores_of_classes() -> None:
    rows, _ = labelled()
    values = rows[:, 2] / 100
    model = LinearRegression().fit(rows.numpy(), values.numpy())
    torch.testing.assert_close(SklearnTeacher(model)(rows), values[:, None], atol=1e-4, rtol=0)
    score = SklearnTeacher(model, num_classes=2)(rows).softmax(1)[:, 1]
    torch.testing.assert_close(score, values.clamp(0, 1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="1 values a row for 3 classes"):
        SklearnTeacher(model, num_classes=3)(rows)


def test_models_that_cannot_teach() -> None:
    rows, classes = (each.numpy() for each in labelled())
    with pytest.raises(NotFittedError):
        SklearnTeacher(RandomForestClassifier())
    hard = RidgeClassifier().fit(rows, classes)
    with pytest.raises(ValueError, match=r"RidgeClassifier gives no probabilities.*CalibratedClassifierCV"):
        SklearnTeacher(hard)
    SklearnTeacher(CalibratedClassifierCV(RidgeClassifier(), cv=2).fit(rows, classes))  # as the error says
    with pytest.raises(ValueError, match=r"expected them among 0 to 1"):
        SklearnTeacher(RandomForestClassifier(2).fit(rows, classes), num_classes=2)
    with pytest.raises(ValueError, match="several outputs"):
        SklearnTeacher(RandomForestClassifier(2).fit(rows, [[c, c] for c in classes]))


@pytest.mark.parametrize("method", [limbeck.kd, limbeck.logits, limbeck.mimic])
def test_a_forest_teaches_in_any_method(method) -> None:
    rows, classes = labelled()
    forest = RandomForestClassifier(5, random_state=0).fit(rows.numpy(), classes.numpy())
    student = nn.Sequential(Encode([0, 3, 0, 5, 0]), nn.Linear(11, 3))
    before = state(student)
    built = method(student, SklearnTeacher(forest))
    logs = [limbeck.play(built, (rows, classes), limbeck.optimizers(built, sgd)) for _ in range(2)]
    assert all(math.isfinite(value) for value in logs[-1].values())
    assert any(not torch.equal(value, before[name]) for name, value in state(student).items())
    assert not any("estimator" in name for name in built.state_dict())


def test_a_frozen_forest_is_not_copied() -> None:
    rows, classes = labelled()
    forest = RandomForestRegressor(2, random_state=0).fit(rows.numpy(), classes.numpy())
    assert limbeck.Frozen(SklearnTeacher(forest)).net.estimator is forest


def test_a_model_of_rows_is_not_shown_images() -> None:
    model = DecisionTreeClassifier(random_state=0).fit(torch.randn(20, 4).numpy(), torch.arange(20).numpy() % 3)
    with pytest.raises(ValueError, match=r"expected rows \(N, D\), got shape \(2, 1, 2, 2\): .*nn\.Flatten"):
        SklearnTeacher(model)(torch.randn(2, 1, 2, 2))
