"""Turns, players and `play`: the algorithm box of a paper."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    Distill,
    Loss,
    Method,
    S,
    Stage,
    T,
    Task,
    Turn,
    X,
    Y,
    ban,
    kd,
    on,
    optimizers,
    plain,
    play,
    tfkd_self,
)
from limbeck.core.method import assign, descend, log, parameters


def sgd(params):
    return torch.optim.SGD(params, 0.1, momentum=0.9)


def linear(seed, *, out=3):
    torch.manual_seed(seed)
    return nn.Linear(4, out)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)


class Script(Method):
    """A method whose turns are written in the test."""

    def __init__(self, players, turns):
        super().__init__()
        self.nets = nn.ModuleDict(players)
        self.turns = turns
        self.after = []

    def players(self):
        return {name: [net] for name, net in self.nets.items()}

    def step(self, batch, progress=0.0) -> Iterator[Turn]:
        for turn in self.turns(self.nets, batch, progress):
            yield turn
            self.after.append({name: net.weight.detach().clone() for name, net in self.nets.items()})


def squared(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def test_turn_takes_plain_tensors_with_weight_one():
    turn = Turn("p", {"a": torch.tensor(2.0), "b": Loss(torch.tensor(3.0), 0.5)})
    assert turn.terms["a"] == Loss(torch.tensor(2.0), 1.0)
    assert turn.total.item() == 3.5


def test_turn_without_terms_is_refused():
    with pytest.raises(ValueError, match="'p' has nothing to learn from"):
        Turn("p", {})
    net = linear(0)
    method = Distill(net, None, 0 * on(F.cross_entropy, S, Y))
    with pytest.raises(ValueError, match="'student' has nothing to learn from"):
        play(method, batch(), {"student": sgd(net.parameters())})


def test_play_equals_the_hand_written_loop_bitwise():
    student, teacher, twin = linear(0).double(), linear(1).double(), linear(0).double()
    method = kd(student, teacher, temperature=2.0, alpha=0.7)
    ours, theirs = optimizers(method, sgd), sgd(twin.parameters())
    for seed in range(5):
        x, y = batch(seed)
        x = x.double()
        play(method, (x, y), ours)
        with torch.no_grad():
            z_t = teacher(x)
        z_s = twin(x)
        soft = (
            4.0 * F.kl_div((z_s / 2).log_softmax(-1), (z_t / 2).log_softmax(-1), log_target=True, reduction="sum") / 6
        )
        theirs.zero_grad()
        ((1 - 0.7) * F.cross_entropy(z_s, y) + 0.7 * soft).backward()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), twin.parameters(), strict=True))


def test_play_logs_every_term_raw_and_weighted():
    method = kd(linear(0), linear(1), alpha=0.75)
    logs = play(method, batch(), optimizers(method, sgd))
    assert set(logs) == {
        "student/hard", "student/hard.weighted", "student/soft", "student/soft.weighted", "student/loss",
    }  # fmt: skip
    assert all(type(value) is float for value in logs.values())
    assert logs["student/hard.weighted"] == pytest.approx(0.25 * logs["student/hard"])
    assert logs["student/soft.weighted"] == pytest.approx(0.75 * logs["student/soft"])
    assert logs["student/loss"] == pytest.approx(logs["student/hard.weighted"] + logs["student/soft.weighted"])


def test_logs_are_detached():
    net = linear(0)
    turn = Turn("p", {"a": squared(net, torch.ones(2, 4))})
    assert not any(value.requires_grad for value in log(turn).values())


def test_progress_reaches_weights_and_scene():
    seen = []
    method = Distill(linear(0), None, (lambda p: seen.append(p) or 2 * p) * on(F.cross_entropy, S, Y, name="hard"))
    logs = play(method, batch(), optimizers(method, sgd), progress=0.25)
    assert seen == [0.25]
    assert logs["student/hard.weighted"] == pytest.approx(0.5 * logs["student/hard"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_term_is_named(bad):
    net = linear(0)
    method = Distill(net, None, on(F.cross_entropy, S, Y, name="fine") + on(lambda z: bad * z.sum(), S, name="broken"))
    with pytest.raises(FloatingPointError, match=r"'student/broken' is (nan|-?inf)"):
        play(method, batch(), optimizers(method, sgd))
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), linear(0).parameters(), strict=True))


def test_stages_are_no_method():
    with pytest.raises(TypeError, match=r"expected a method, got generator: .*for stage in limbeck\.ban\(net\)"):
        optimizers(ban(linear(0)), sgd)
    with pytest.raises(TypeError, match="expected a method, got generator"):
        play(tfkd_self(linear(0)), batch(), {})


def test_the_code_after_a_yield_is_the_code_after_that_update():
    x, _ = batch()

    def turns(nets, batch, progress):
        yield Turn("a", {"loss": squared(nets["a"], x)})
        yield Turn("b", {"loss": squared(nets["b"], x)})

    method = Script({"a": linear(0), "b": linear(1)}, turns)
    start = {name: net.weight.detach().clone() for name, net in method.nets.items()}
    play(method, batch(), optimizers(method, sgd))
    first, second = method.after
    assert not torch.equal(first["a"], start["a"])
    assert torch.equal(first["b"], start["b"])
    assert torch.equal(second["a"], first["a"])
    assert not torch.equal(second["b"], start["b"])


def test_the_code_after_a_yield_sees_the_update_under_autocast_too():
    said = []

    def turns(nets, batch, progress):
        for _ in range(2):
            said.append(nets["a"](batch[0]))
            yield Turn("a", {"own": said[-1].square().mean()})

    method = Script({"a": linear(0)}, turns)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        play(method, batch(), optimizers(method, sgd))
    assert not torch.equal(*said)


def test_step_false_accumulates_until_the_next_turn():
    x, z = torch.randn(5, 4), torch.randn(5, 4)

    def turns(nets, batch, progress):
        yield Turn("a", {"one": squared(nets["a"], x)}, step=False)
        yield Turn("a", {"two": squared(nets["a"], z)})

    method, twin = Script({"a": linear(0)}, turns), linear(0)
    ours, theirs = optimizers(method, sgd), sgd(twin.parameters())
    for _ in range(2):
        logs = play(method, None, ours)
        theirs.zero_grad()
        squared(twin, x).backward()
        squared(twin, z).backward()
        theirs.step()
        assert {"a/one", "a/two"} <= logs.keys()
    assert torch.equal(method.nets["a"].weight, twin.weight)


def test_waiting_gradients_are_not_disturbed_by_another_player():
    x = torch.randn(5, 4)

    def turns(nets, batch, progress):
        yield Turn("a", {"one": squared(nets["a"], x)}, step=False)
        yield Turn("b", {"through a": (nets["a"](x) * nets["b"](x)).mean()})  # its gradient reaches a
        yield Turn("a", {"two": squared(nets["a"], 2 * x)})

    method, twin = Script({"a": linear(0), "b": linear(1)}, turns), linear(0)
    play(method, None, optimizers(method, sgd))
    squared(twin, x).backward()
    squared(twin, 2 * x).backward()
    sgd(twin.parameters()).step()
    assert torch.equal(method.nets["a"].weight, twin.weight)


def test_waiting_gradients_survive_a_failing_backward():
    x = torch.randn(5, 4)

    def turns(nets, batch, progress):
        yield Turn("a", {"one": squared(nets["a"], x)}, step=False)
        yield Turn("b", {"two": squared(nets["b"], x)})

    method = Script({"a": linear(0), "b": linear(1)}, turns)

    def backward(turn):
        if turn.player == "b":
            raise ZeroDivisionError
        turn.total.backward()

    with pytest.raises(ZeroDivisionError):
        list(descend(method, None, optimizers(method, sgd), 0.0, set(), backward=backward))
    assert method.nets["a"].weight.grad is not None


def test_gradients_that_would_be_lost_at_the_end_of_the_batch():
    method = Script(
        {"a": linear(0)}, lambda nets, *_: [Turn("a", {"loss": squared(nets["a"], torch.ones(1, 4))}, False)]
    )
    with pytest.raises(RuntimeError, match=r"gradients of \['a'\] wait"):
        play(method, None, optimizers(method, sgd))


def test_descend_accumulates_over_batches_with_one_set_of_waiting_players():
    xs = [torch.randn(5, 4), torch.randn(5, 4)]
    method = Script({"a": linear(0)}, lambda nets, x, _: [Turn("a", {"loss": squared(nets["a"], x)})])
    twin, waiting = linear(0), set()
    ours = optimizers(method, sgd)

    def update(optimizer):
        if len(method.after) == 0:
            return False
        optimizer.step()
        return True

    for x, left in zip(xs, [{"a"}, set()], strict=True):
        list(descend(method, x, ours, 0.0, waiting, update=update))
        assert waiting == left
        squared(twin, x).backward()
    sgd(twin.parameters()).step()
    assert torch.equal(method.nets["a"].weight, twin.weight)


def test_old_gradients_do_not_leak_into_the_first_turn():
    method, twin = plain(linear(0)), linear(0)
    method.student.weight.grad = torch.full_like(method.student.weight, 100.0)
    play(method, batch(), optimizers(method, sgd))
    play(plain(twin), batch(), {"student": sgd(twin.parameters())})
    assert torch.equal(method.student.weight, twin.weight)


def test_unknown_player():
    method = Script({"a": linear(0)}, lambda nets, *_: [Turn("z", {"loss": squared(nets["a"], torch.ones(1, 4))})])
    with pytest.raises(ValueError, match=r"no optimizer for the player 'z': got \['a'\]"):
        play(method, None, optimizers(method, sgd))


def test_optimizers_one_function_or_one_for_each_player():
    method = Script({"a": linear(0), "b": linear(1)}, lambda *_: [])
    assert list(optimizers(method, sgd)) == ["a", "b"]
    made = optimizers(method, {"a": sgd, "b": torch.optim.Adam})
    assert [type(optimizer) for optimizer in made.values()] == [torch.optim.SGD, torch.optim.Adam]
    with pytest.raises(ValueError, match=r"no optimizer for the players \['b'\]: got \['a'\]"):
        optimizers(method, {"a": sgd})


def test_optimizer_holds_exactly_the_players_parameters_once():
    adapter = nn.Linear(3, 3)
    student = linear(0)
    student.bias.requires_grad_(False)
    objective = on(F.mse_loss, S.via(adapter), T, name="one") + on(F.l1_loss, S.via(adapter), T, name="two")
    method = Distill(student, linear(1), objective)
    (optimizer,) = optimizers(method, sgd).values()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(student.weight), *(id(p) for p in adapter.parameters())]


def groups(given):
    return torch.optim.SGD([{"params": given[:1], "lr": 0.1}, {"params": (p for p in given[1:])}], 0.05)


@pytest.mark.parametrize("make", [groups, lambda given: sgd(p for p in given), torch.optim.Adam])
def test_an_optimizer_may_group_its_parameters_and_see_them_once(make):
    net = linear(0)
    before = net.weight.detach().clone()
    play(plain(net), batch(), optimizers(plain(net), make))
    assert not torch.equal(net.weight, before)


def test_frozen_parameters_in_an_optimizer_do_no_harm():
    net = nn.Sequential(linear(0), linear(1))
    net[0].requires_grad_(False)
    (made,) = optimizers(plain(net), lambda _: sgd(net.parameters())).values()
    assert len(made.param_groups[0]["params"]) == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net, own: sgd(linear(1).parameters()), r"leaves out 2 of its 2 parameters \(.*bias\) and holds 2"),
        (
            lambda net, own: sgd(own[:1]),
            r"of 'student' leaves out 1 of its 2 parameters \(.*bias\): make it of the param",
        ),
        (
            lambda net, own: sgd([*own, nn.Parameter(torch.ones(1))]),
            r"'student' holds 1 that it was not given: make it",
        ),
        (
            lambda net, own: torch.optim.SGD([{"params": own[1:]}], 0.1),
            r"leaves out 1 of its 2 parameters \(.*weight\)",
        ),
    ],
    ids=["another network", "fewer", "more", "a group too few"],
)
def test_an_optimizer_of_other_parameters_is_refused(make, said):
    net = linear(0)
    with pytest.raises(ValueError, match=said):
        optimizers(plain(net), lambda own: make(net, own))


def test_each_players_optimizer_is_looked_at():
    nets = {"a": linear(0), "b": linear(1)}
    method = Script(nets, lambda *_: [])
    with pytest.raises(ValueError, match=r"of 'b' leaves out 2 of its 2 param.* and holds 2 that it was not given \("):
        optimizers(method, {"a": sgd, "b": lambda own: sgd(nets["a"].parameters())})


def test_players_that_share_a_parameter():
    net = linear(0)
    method = Script({"a": net, "b": nn.Sequential(net, nn.Linear(3, 3))}, lambda *_: [])
    with pytest.raises(ValueError, match="players 'a' and 'b' share parameters"):
        parameters(method)


def test_a_teacher_that_is_the_student():
    net = nn.Sequential(linear(0), nn.Linear(3, 3))
    for teacher in (net, nn.Sequential(net[0])):  # one layer is enough
        with pytest.raises(ValueError, match=r"'student' shares parameters with its teacher.*copy\.deepcopy"):
            optimizers(kd(net, teacher), sgd)
    net[0].requires_grad_(False)
    assert len(parameters(kd(net, nn.Sequential(net[0])))["student"]) == 2  # what does not train may be shared


def test_nothing_to_train():
    method = plain(linear(0).requires_grad_(False))
    with pytest.raises(ValueError, match=r"'student' \(Linear\) is frozen, with no parameter that requires"):
        optimizers(method, sgd)


def test_trains_restricts_the_parameters():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    assert parameters(plain(net), trains=[net[1]]) == {"student": list(net[1].parameters())}
    with pytest.raises(ValueError, match="have no parameter"):
        parameters(plain(net), trains=[nn.Linear(1, 1)])


def test_assign_ignores_no_player():
    with pytest.raises(ValueError, match="no optimizer for the players"):
        assign({"a": [], "b": []}, {"b": sgd})


def test_only_networks_and_targets_that_are_read_are_used():
    class Silent(nn.Linear):
        def forward(self, x):
            raise AssertionError("a teacher nobody reads was run")

    method = Distill(linear(0), Silent(4, 3), on(lambda z, x: (z.mean() - x.mean()).square(), S, X, name="own"))
    assert set(method.scene((torch.randn(2, 4),))) == {"progress", "input", "student"}  # a batch without targets


def test_several_teachers_by_role():
    a, b = linear(1), linear(2)
    objective = on(F.mse_loss, S, T, name="one") + on(F.mse_loss, S, T.of("second"), name="two")
    method = Distill(linear(0), {"teacher": a, "second": b}, objective)
    x, y = batch()
    scene = method.scene((x, y))
    assert torch.equal(scene["teacher"][""], a(x))
    assert torch.equal(scene["second"][""], b(x))


class Noted(nn.Linear):
    """Notes when it runs."""

    def __init__(self, name, order, seed):
        torch.manual_seed(seed)
        super().__init__(4, 3)
        self.name, self.order = name, order

    def forward(self, x):
        self.order.append(self.name)
        return super().forward(x)

    def __deepcopy__(self, memo):  # the view of a teacher notes in the same list
        return Noted(self.name, self.order, 1)


def test_a_batch_may_bring_what_teachers_said():
    """The weights are bitwise those of a training that asks them, and they are not asked."""
    order, trained = [], []
    for brings in (False, True):
        student, teacher = linear(0), Noted("teacher", order, 1)
        method = kd(student, teacher)
        steps = optimizers(method, sgd)
        for seed in range(3):
            x, y = batch(seed)
            brought = {"teacher": {"": teacher(x).detach()}}
            order.clear()
            play(method, (x, y, torch.arange(6), brought) if brings else (x, y), steps)
            assert order == ([] if brings else ["teacher"])
        trained.append(student.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_batch_that_brings_one_of_two_teachers():
    order = []
    objective = on(F.mse_loss, S, T, name="one") + on(F.mse_loss, S, T.of("second"), name="two")
    teachers = {"teacher": Noted("teacher", order, 1), "second": Noted("second", order, 2)}
    x, y = batch()
    given = torch.ones(6, 3)
    scene = Distill(linear(0), teachers, objective).scene((x, y, None, {"second": {"": given}}))
    assert order == ["teacher"]
    assert scene["second"][""] is given


def test_the_student_runs_first_where_the_task_asks_in_sight_of_it():
    order = []
    student, teacher = Noted("student", order, 0), Noted("teacher", order, 1)
    x, y = batch()
    kd(student, teacher).scene((x, y))
    assert order == ["teacher", "student"]
    order.clear()

    def ask(net, inputs, beside):
        order.append("asked")
        assert set(beside) == {"", ":in"}
        return net(beside[":in"] + 1)

    task = Task(ask=ask, shows=(":in",))
    scene = kd(student, teacher, task=task).scene((x, y))
    assert order == ["student", "asked", "teacher"]
    assert torch.equal(scene["teacher"][""], F.linear(x + 1, teacher.weight, teacher.bias))
    order.clear()
    assert set(plain(student, task=task).scene((x, y))["student"]) == {""}  # nobody is asked: nothing is shown
    assert order == ["student"]


def test_networks_by_default_the_first_players_first_module():
    student, critic = linear(0), linear(1)
    assert plain(student).networks() == {"student": student}
    assert Script({"student": student, "critic": critic}, lambda *_: []).networks() == {"student": student}


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_a_stages_share(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        Stage(plain(linear(0)), share)
