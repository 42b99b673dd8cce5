"""A range is said once, in the docstring, and holds for Python and the command line."""

import inspect
import math

import pytest
from torch import nn

import limbeck
from limbeck.core.options import range_in, ranged, refuse_all_zero


@ranged
def train(
    net, *, weight: float = 1.0, share: float | None = 0.5, order: int = 2, both: tuple = (1, 1), free: float = 0
):
    """Train.

    Args:
        net: What.
        weight: Weight of the term, above 0; 1 as in the paper, which is at least 5 years old.
        share: The share of the soft term,
            in (0, 1]; a half.
        order: Where it ends, at least 1.
        both: At the start and the end, at least 0.
        free: Anything; above 0 is usual.
    """
    return net


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 1e-9},
        {"share": 1},
        {"share": None},
        {"order": 1},
        {"both": (0, 3)},
        {"free": -7},
    ],
    ids=str,
)
def test_what_lies_inside_passes(options):
    assert train("net", **options) == "net"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0}, "weight must be above 0, got 0"),
        ({"weight": math.nan}, "weight must be above 0, got nan"),
        ({"weight": math.inf}, "weight must be above 0, got inf"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"share": 1.01}, r"share must be in \(0, 1\], got 1.01"),
        ({"order": 0}, "order must be at least 1, got 0"),
        ({"both": (1, -1)}, r"both must be at least 0, got \(1, -1\)"),
    ],
    ids=str,
)
def test_what_lies_outside_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        train("net", **options)


def test_the_signature_stays():
    assert list(inspect.signature(train).parameters) == ["net", "weight", "share", "order", "both", "free"]


def test_functions_of_the_progress_pass():
    assert train("net", weight=lambda progress: -progress) == "net"


def test_words_without_a_range_say_none():
    assert range_in("T of stage 2") is None
    assert range_in("at least one of them") is None
    assert range_in("in [0.5, 2)").words == "in [0.5, 2)"


def test_weights_that_are_all_0_leave_nothing():
    refuse_all_zero(distance=0.0, angle=1.0)
    with pytest.raises(ValueError, match="distance and angle are all 0"):
        refuse_all_zero(distance=0.0, angle=0)
    with pytest.raises(ValueError, match="distance and angle are all 0"):
        limbeck.rkd(nn.Linear(3, 2), nn.Linear(3, 2), distance=0, angle=0)
    with pytest.raises(ValueError, match="target and others are all 0"):
        limbeck.dkd(nn.Linear(3, 2), nn.Linear(3, 2), target=0, others=0)
