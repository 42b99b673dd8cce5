"""scikit-learn's models as teachers: what they were fitted to, and in which order they answer."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from limbeck import Frozen, SklearnTeacher
from limbeck.core.frozen import matched

ROWS = np.random.default_rng(0).normal(size=(30, 2)).astype("float32")
PLACES = np.arange(30) % 3
X = torch.from_numpy(ROWS)
NAMES = ("9", "10", "cat")
"""In limbeck's order; scikit-learn has "10" before "9"."""


def fitted(labels: np.ndarray, rows: np.ndarray = ROWS) -> DecisionTreeClassifier:
    return DecisionTreeClassifier(random_state=0).fit(rows, labels)


@pytest.mark.parametrize("make", [fitted, lambda y: make_pipeline(StandardScaler(), fitted(PLACES)).fit(ROWS, y)])
def test_names_are_put_into_the_order_of_the_student(make) -> None:
    model = make(np.array(NAMES)[PLACES])
    teacher = SklearnTeacher(model, classes=NAMES)
    assert teacher(X).argmax(1).tolist() == PLACES.tolist()
    assert teacher.classes == NAMES
    assert copy.deepcopy(teacher)(X).argmax(1).tolist() == PLACES.tolist()
    other = SklearnTeacher(model)  # as its outputs are told, a view may put them right
    assert other.classes == ("10", "9", "cat")
    assert Frozen(other, classes=matched(NAMES, other.classes))(X).shape == (30, 3)


def test_a_class_that_the_model_never_saw_stays_unlikely() -> None:
    seen = PLACES != 1
    teacher = SklearnTeacher(fitted(np.array(NAMES)[PLACES[seen]], ROWS[seen]), classes=NAMES)
    assert teacher(X).shape == (30, 3)
    assert bool((teacher(X).softmax(1)[:, 1] < 1e-5).all())
    assert teacher(X[seen]).argmax(1).tolist() == PLACES[seen].tolist()


def test_numbers_are_places_or_names_and_never_guessed() -> None:
    kinds = {"int": PLACES, "float": PLACES.astype(float), "bool": PLACES > 0}
    for kind, labels in kinds.items():
        count = 2 if kind == "bool" else 3
        assert SklearnTeacher(fitted(labels), num_classes=count)(X).argmax(1).tolist() == labels.astype(int).tolist()
    ones = fitted(PLACES + 1)
    assert SklearnTeacher(ones, classes=["1", "2", "3"])(X).argmax(1).tolist() == PLACES.tolist()
    assert SklearnTeacher(fitted(PLACES), classes=["1", "2", "3"])(X).argmax(1).tolist() == PLACES.tolist()
    two = fitted(PLACES[PLACES < 2] + 1, ROWS[PLACES < 2])  # of 1 and 2: the second and third, or the first and second
    with pytest.raises(
        ValueError, match=r"knows the classes 1, 2, which may be places .* or names among '1', '2', '3'"
    ):
        SklearnTeacher(two, classes=["1", "2", "3"])


def test_numbers_as_text_have_an_order_of_their_own() -> None:
    with pytest.warns(UserWarning, match=r"fitted to numbers as text, '10', '9', in this order.*classes=data\.classes"):
        SklearnTeacher(fitted(np.array(["9", "10"])[PLACES % 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SklearnTeacher(fitted(np.array(["1", "2", "3"])[PLACES]))
        copy.deepcopy(SklearnTeacher(fitted(np.array(["9", "10"])[PLACES % 2]), classes=["9", "10"]))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (fitted(np.array(NAMES)[PLACES]), {"num_classes": 3}, r"'cat': expected them among 0 to 2\. .*classes=data"),
        (fitted(np.array(NAMES)[PLACES]), {"classes": ("9", "10", "dog")}, r"or '9', '10', 'dog'$"),
        (fitted(PLACES), {"num_classes": 2}, "knows the classes 0, 1, 2: expected them among 0 to 1"),
        (fitted(PLACES), {"num_classes": 2, "classes": NAMES}, "num_classes is 2, but there are 3 classes"),
        (fitted(PLACES), {"least": 0.0}, "least is a probability"),
        (fitted(np.stack([PLACES, PLACES], 1)), {}, "several outputs"),
        (IsolationForest(n_estimators=2).fit(ROWS), {}, "expected a classifier or a regressor"),
        (GaussianMixture(2).fit(ROWS), {}, "expected a classifier or a regressor of scikit-learn, got GaussianMixture"),
    ],
)
def test_what_is_no_teacher(model, options, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SklearnTeacher(model, **options)


def test_rows_and_answers_that_are_none() -> None:
    teacher = SklearnTeacher(fitted(PLACES))
    with pytest.raises(ValueError, match=r"was fitted to rows of 2 columns, got rows of shape \(3, 4\)"):
        teacher(torch.zeros(3, 4))
    assert teacher(X.bfloat16()).dtype == torch.float32
    line = LinearRegression().fit(ROWS.astype(float), 1e300 * ROWS[:, 0].astype(float))
    with pytest.raises(ValueError, match=r"LinearRegression gives answers that are not finite in torch\.float32"):
        SklearnTeacher(line)(X)
    assert SklearnTeacher(LogisticRegression().fit(ROWS, PLACES), num_classes=5)(X).shape == (30, 5)
