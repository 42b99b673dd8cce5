"""What a step of `fit` leaves out, and that nothing is lost by it: random states, attributes, transfers and sums."""

# ruff: noqa: NPY002  # users draw from numpy's global generator

import inspect
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.method import Turn, log
from limbeck.core.objective import Loss
from limbeck.data.randomness import Draws
from limbeck.engine.learner import Learner
from limbeck.engine.tally import Tally


def drawn() -> list[float]:
    """One number of each generator, and normal ones, which numpy and `random` make in pairs."""
    return [torch.rand(()).item(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("before", [0, 1], ids=["no normal number waits", "one waits"])
def test_the_global_generators_are_left_as_they_were(before):
    def session(between: Any) -> list[list[float]]:
        seeded(5)
        first = [drawn() for _ in range(before)]
        between()
        return [*first, drawn(), drawn()]

    def apart() -> None:
        with Draws(1).apart():
            drawn()

    whole = session(lambda: None)
    assert session(apart) == whole


def test_a_stream_is_that_of_its_seed_in_however_many_pieces():
    seeded(3)
    whole = [drawn() for _ in range(4)]
    draws, pieces = Draws(3), []
    for count in (1, 2, 1):
        with draws.apart():
            pieces += [drawn() for _ in range(count)]
        drawn()  # the network's
        np.random.seed(0)
    assert pieces == whole


def test_streams_go_into_each_other():
    def alone(seed: int) -> list[list[float]]:
        seeded(seed)
        return [drawn() for _ in range(3)]

    expected = [alone(1), alone(2)]
    one, other = Draws(1), Draws(2)
    with one.apart():
        first = [drawn()]
        with other.apart():
            second = [drawn()]
        first.append(drawn())
    with other.apart():
        second.append(drawn())
        with one.apart():
            first.append(drawn())
        second.append(drawn())
    assert [first, second] == expected


def test_an_error_restores_and_the_stream_goes_on_behind_it():
    seeded(1)
    stream = [drawn(), drawn()]
    seeded(2)
    whole, draws = drawn(), Draws(1)
    seeded(2)

    def fails() -> None:
        with draws.apart():
            assert drawn() == stream[0]
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fails()
    assert drawn() == whole
    with draws.apart():
        assert drawn() == stream[1]


def test_a_stream_is_not_drawn_from_within_itself():
    draws = Draws(0)
    with (
        draws.apart(),
        pytest.raises(RuntimeError, match=r"drawn from already: make another, Draws\(seed\)"),
        draws.apart(),
    ):
        pass
    with draws.apart():
        pass


def test_a_generator_of_ones_own_stays_numpys_own():
    before = np.random.get_bit_generator()
    own = np.random.PCG64(7)
    np.random.set_bit_generator(own)
    try:
        state = own.state
        seeded_twin = np.random.RandomState(4)
        with Draws(4).apart():
            assert np.random.rand() == seeded_twin.rand()  # as ever, Mersenne's
            np.random.seed(9)
        assert np.random.get_bit_generator() is own
        assert own.state == state
    finally:
        np.random.set_bit_generator(before)


# the module of Lightning


@pytest.fixture
def learner() -> Learner:
    method = limbeck.plain(nn.Linear(4, 3))
    data = limbeck.data.load("digits", samples=100)
    return Learner(limbeck.Stage(method), lambda own: torch.optim.SGD(own, 0.1), data.train, 1)


def test_attributes_are_still_parameters_and_modules_where_they_are_that(learner):
    learner.extra = 1
    learner.extra = 2
    assert learner.extra == 2
    learner.extra = nn.Linear(1, 1)
    assert "extra.weight" in learner.state_dict()
    learner.extra = nn.Linear(1, 2)
    assert learner.extra.out_features == 2
    learner.extra = None
    assert "extra" in learner._modules
    learner.scale = 1.0
    learner.scale = nn.Parameter(torch.ones(2))
    assert "scale" in dict(learner.named_parameters())
    with pytest.raises(TypeError, match="cannot assign"):
        learner.scale = 1.0


def test_the_signature_that_is_kept_is_that_of_the_step():
    own = Learner.training_step.__signature__
    del Learner.training_step.__signature__
    try:
        assert inspect.signature(Learner.training_step) == own
    finally:
        Learner.training_step.__signature__ = own


def test_what_lies_elsewhere_is_moved_and_what_is_there_is_not_gone_through(learner):
    cpu, away = torch.device("cpu"), torch.device("meta")
    pair = [torch.ones(2), torch.ones(2)]
    assert learner.transfer_batch_to_device(pair, cpu, 0) is pair
    mixed = (torch.ones(2), torch.ones(2, device=away))
    for batch in (pair, mixed, {"x": pair[0], "deep": [pair[1]]}):
        moved = learner.transfer_batch_to_device(batch, away, 0)
        assert type(moved) is type(batch)
        assert {one.device for one in torch.utils._pytree.tree_leaves(moved)} == {away}


# what is logged


def test_a_tally_sums_up_in_turn_and_tells_the_latest():
    values = torch.rand(25, 2, generator=torch.Generator().manual_seed(0))
    tally, expected = Tally(), torch.zeros(2)
    for step, (a, b) in enumerate(values):
        tally.add({"a": a, "b": b} | ({"c": a} if step == 24 else {}), step)
        if step % 7 == 0:
            tally.check()
        if step == 12:
            state, tally = tally.state_dict(), Tally()
            tally.load_state_dict(state)
        if step < 24:
            expected += values[step]
    total = expected.double() + values[24].double()
    assert tally.means() == {"a": total[0].item() / 25, "b": total[1].item() / 25, "c": values[24, 0].item()}
    assert tally.latest() == {"a": values[24, 0].item(), "b": values[24, 1].item(), "c": values[24, 0].item()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tally_names_what_broke_first_however_late_it_is_asked(value):
    tally = Tally()
    fine, bad = torch.tensor(1e38), torch.tensor(value)
    for step in range(5):  # whose sum is not finite, though each is
        tally.add({"a": fine, "b": fine}, step)
    tally.check()
    for step in range(5, 9):
        tally.add({"a": bad if step > 6 else fine, "b": bad if step > 5 else fine}, step)
    with pytest.raises(FloatingPointError, match="'b' is not finite at batch 6: "):
        tally.check()


def test_a_log_is_of_no_graph_and_has_the_weighted_value_to_the_bit():
    value: Tensor = (3 * torch.tensor(0.7, requires_grad=True)).sin()
    logs = log(Turn("student", {"soft": Loss(value, 0.3), "hard": Loss(value)}))
    assert list(logs) == [f"student/{name}" for name in ("soft", "soft.weighted", "hard", "hard.weighted", "loss")]
    assert not any(one.requires_grad for one in logs.values())
    assert torch.equal(logs["student/soft.weighted"], (0.3 * value).detach())
    assert torch.equal(logs["student/hard.weighted"], value.detach())
