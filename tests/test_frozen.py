"""`Frozen`: a network that teaches and never trains."""

import copy
import gc
import os
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from limbeck import Distill, Frozen, S, T, Task, classification, kd, matched, on, play
from limbeck.core.frozen import as_teachers, bare, frozen

MODES = ["eval", "batch_stats", "train"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))


def tensors(net):
    return {name: t.detach().clone() for name, t in (*net.named_parameters(), *net.named_buffers())}


def unchanged(before, net):
    return all(torch.equal(before[name], t) for name, t in tensors(net).items())


def modes(net):
    return [module.training for module in net.modules()]


def test_eval_mode_is_asserted_after_any_train(net):
    teacher = Frozen(net)
    method = Distill(nn.Linear(4, 3), teacher, on(nn.functional.mse_loss, S, T))
    for call in (method.train, method.eval, teacher.train, lambda: method.train(False), lambda: teacher.train(True)):
        call()
        assert not any(modes(teacher.net))
        assert not teacher.training
    x = torch.randn(5, 4)
    method.train()
    assert torch.equal(teacher(x), copy.deepcopy(net).eval()(x))


@pytest.mark.parametrize(
    ("mode", "training"), [("eval", []), ("batch_stats", ["1"]), ("train", ["", "0", "1", "2", "3"])]
)
def test_what_each_mode_trains(net, mode, training):
    teacher = Frozen(net, mode).eval()
    on_now = [path for path, module in teacher.net.named_modules() if module.training]
    assert [path for path in on_now if "." not in path] == training


@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes(net, mode):
    before, view_before = tensors(net), None
    teacher = Frozen(net, mode)
    view_before = tensors(teacher.net)
    for _ in range(3):
        teacher(torch.randn(5, 4, requires_grad=True)).sum().backward()
    assert unchanged(before, net)
    assert unchanged(view_before, teacher.net)
    assert all(p.grad is None for p in [*net.parameters(), *teacher.net.parameters()])


def test_batch_stats_normalises_with_the_batch(net):
    x = torch.randn(64, 4) + 5
    h = Frozen(net[:2], "batch_stats")(x)
    torch.testing.assert_close(h.mean(0), net[1].bias.detach().expand(6), atol=1e-5, rtol=0)
    assert (Frozen(net[:2])(x) - h).abs().max() > 0.1
    teacher = Frozen(net, "batch_stats")
    assert torch.equal(teacher(x), teacher(x))  # no dropout


def test_train_mode_drops_out(net):
    teacher, x = Frozen(net, "train"), torch.randn(64, 4)
    assert not torch.equal(teacher(x), teacher(x))


def test_no_graph_but_input_gradients(net):
    teacher, x = Frozen(net), torch.randn(5, 4)
    assert not teacher(x).requires_grad
    x.requires_grad_()
    (grad,) = torch.autograd.grad(teacher(x).sum(), x)
    (expected,) = torch.autograd.grad(copy.deepcopy(net).eval()(x).sum(), x)
    assert torch.equal(grad, expected)


def test_lies_outside_parameters_and_state(net):
    teacher = Frozen(net)
    assert list(teacher.parameters()) == list(teacher.buffers()) == []
    assert list(teacher.modules()) == [teacher]
    assert teacher.state_dict() == {}
    method = Distill(nn.Linear(4, 3), teacher, on(nn.functional.mse_loss, S, T))
    assert set(method.state_dict()) == {"student.weight", "student.bias"}


def test_original_keeps_mode_hooks_and_gradients(net):
    net.train()
    net[3].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    before = modes(net)
    teacher = Frozen(net)
    teacher(torch.randn(5, 4))
    teacher.net[0].register_forward_hook(lambda *_: seen.append(2))
    assert modes(net) == before
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    seen.clear()
    net(torch.randn(5, 4))
    assert seen == [1]


def test_weights_share_storage(net):
    teacher = Frozen(net)
    pairs = zip(net.parameters(), teacher.net.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() and not b.requires_grad for a, b in pairs)


def restore(net, other):
    net.load_state_dict(other.state_dict())


def assign(net, other):
    net.load_state_dict(other.state_dict(), assign=True)


def another_layer(net, other):
    restore(net, other)
    net[3][1] = copy.deepcopy(other[3][1])


def a_longer_row(net, other):
    restore(net, other)
    net.append(nn.Linear(3, 3))


def pruned(net, other):
    restore(net, other)
    prune.l1_unstructured(net[0], "weight", 0.5)


def parametrised(net, other):
    restore(net, other)
    torch.nn.utils.parametrizations.weight_norm(net[0])
    with torch.no_grad():
        net[0].parametrizations.weight.original0.mul_(2)


def another_type(net, other):
    restore(net, other)
    net.double().float()


def statistics_alone(net, other):
    net[1].running_mean = other[1].running_mean


def values_alone(net, other):
    net[0].weight.data = other[0].weight.data


CHANGES = [
    restore,
    assign,
    another_layer,
    a_longer_row,
    pruned,
    parametrised,
    another_type,
    statistics_alone,
    values_alone,
]


def trained(net):
    """Another of its kind, whose batch norm has seen something."""
    other = copy.deepcopy(net)
    for value in [*other.parameters(), *other.buffers()]:
        value.data = value.data + 1
    return other


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
@pytest.mark.parametrize("mode", ["eval", "batch_stats"])
def test_whatever_becomes_of_the_network_its_view_shows(net, change, moved, mode):
    teacher, x = Frozen(net, mode), torch.randn(5, 4)
    views = {"frozen": teacher, "of the view": teacher.again()}
    if moved:  # as fit moves it to a GPU
        for view in views.values():
            view.to(torch.float64)
    before = teacher(x)
    change(net, trained(net))
    expected = copy_of(net, mode)(x)
    assert torch.allclose(before, expected) == (mode == "batch_stats" and change is statistics_alone)
    for name, view in views.items():
        torch.testing.assert_close(view(x), expected.to(x.dtype), msg=name)
        assert not view(x).requires_grad
        assert {p.dtype for p in view.net.parameters()} == {torch.float64 if moved else torch.float32}


def copy_of(net, mode):
    from limbeck.core.copied import copied

    twin = copied(net).eval()
    twin[1].train(mode == "batch_stats")
    return twin


def test_a_view_that_comes_back_shares_again(net):
    teacher = Frozen(net).to(torch.bfloat16).to(torch.float32)  # bf16-true, and afterwards
    for mine, its in zip(teacher.net.state_dict().values(), net.state_dict().values(), strict=True):
        assert mine.data_ptr() == its.data_ptr()
    with torch.no_grad():
        net[0].weight.add_(1)
    assert torch.equal(teacher.net[0].weight, net[0].weight)
    net.double()
    assert teacher.net[0].weight.dtype == torch.float64  # it follows


def test_a_view_outlives_its_network():
    x, made = torch.randn(5, 4), nn.Linear(4, 3)
    expected, teacher = made(x).detach(), Frozen(made)
    del made
    gc.collect()
    assert torch.equal(teacher(x), expected)
    torch.testing.assert_close(teacher.to(torch.float64)(x), expected)


class Counting(nn.Module):
    """Writes to its buffers in eval mode too, in place and not."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), AlwaysTrains(6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.last = x[0].detach()
        return self.norm(self.fc(x))


class AlwaysTrains(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_network_writes_to_its_buffers_is_lost(mode):
    net = nn.Sequential(Counting(), nn.Linear(6, 3))
    before, teacher = tensors(net), Frozen(net, mode)
    for _ in range(2):
        teacher(torch.randn(5, 4))
    assert unchanged(before, net)
    assert unchanged(before, teacher.net)


def test_a_function_that_refers_to_the_network_refers_to_the_view():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
            self.act = lambda x: self.scale * x
            self.acts = {"twice": lambda x: 2 * self.act(x), "plain": torch.relu}
            self.register_forward_hook(lambda module, args, output: output + self.fc.bias)

        def forward(self, x):
            return self.acts["twice"](self.fc(x))

    net, x = Scaled(), torch.randn(5, 4)
    teacher, snapshot = Frozen(net), copy.deepcopy(Frozen(net))
    expected = net(x).detach()
    assert not teacher(x).requires_grad
    assert torch.equal(teacher(x), expected)
    with torch.no_grad():
        net.scale.mul_(3)
    assert torch.equal(teacher(x), net(x))
    assert not torch.equal(teacher(x), expected)
    assert torch.equal(snapshot(x), expected)


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    view = Frozen(net).net
    assert view[0].weight is view[1].weight


def test_to_moves_the_view_alone(net):
    teacher = Frozen(net).to(torch.float64)
    assert {t.dtype for t in teacher.net.parameters()} == {torch.float64}
    assert teacher.net[1].running_mean.dtype == torch.float64
    assert {t.dtype for t in net.parameters()} == {torch.float32}
    assert teacher(torch.randn(5, 4, dtype=torch.float64)).dtype == torch.float64
    method = Distill(nn.Linear(4, 3), net, on(nn.functional.mse_loss, S, T)).double()
    assert next(method.teachers["teacher"].net.parameters()).dtype == torch.float64


def test_deepcopy_and_pickle_free_of_the_original(net):
    teacher = copy.deepcopy(Frozen(net, "batch_stats"))
    assert teacher.mode == "batch_stats"
    with torch.no_grad():
        net[0].weight.zero_()
    assert teacher.net[0].weight.abs().sum() > 0


def test_keyword_arguments_reach_the_network():
    class Net(nn.Module):
        def forward(self, a, *, b):
            return a - b

    for mode in MODES:
        assert Frozen(Net(), mode)(3, b=1) == 2


def test_compiled_teacher(net):
    torch._dynamo.reset()
    x = torch.randn(5, 4)
    teacher = Frozen(torch.compile(net, backend="eager"))
    torch.testing.assert_close(teacher(x), copy.deepcopy(net).eval()(x))
    assert not teacher(x).requires_grad
    torch._dynamo.reset()


def test_frozen_and_bare_are_idempotent(net):
    teacher = frozen(net, "train")
    assert frozen(teacher) is teacher
    assert bare(teacher) is teacher.net
    assert bare(net) is net


def test_teachers_by_role(net):
    assert as_teachers(None) == {}
    assert list(as_teachers(net)) == ["teacher"]
    mine = Frozen(net, "batch_stats")
    named = as_teachers({"teacher": mine, "second": net})
    assert named["teacher"] is mine
    assert isinstance(named["second"], Frozen)


def test_unknown_mode(net):
    with pytest.raises(ValueError, match="got 'evaluate'"):
        Frozen(net, "evaluate")


def test_what_was_computed_is_copied_as_a_value():
    class Stateful(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.cache = self.weight * 2
            self.history = [self.bias + 1]

    net = Stateful()
    view = Frozen(net).net
    assert torch.equal(view.cache, net.cache)
    assert not view.cache.requires_grad
    assert not view.history[0].requires_grad


def test_what_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[1].log = open(os.devnull)  # noqa: SIM115
    with net[1].log, pytest.raises(TypeError, match="the attribute 'log' of its ReLU is a TextIOWrapper"):
        Frozen(net)
    del net[1].log
    net[0].lock = threading.Lock()
    with pytest.raises(TypeError, match="the attribute 'lock' of its Linear"):
        kd(nn.Linear(2, 2), net)


def test_what_is_no_network():
    with pytest.raises(TypeError, match=r"net must be one network, got 1: limbeck\.Ensemble"):
        Frozen([nn.Linear(2, 2)])


class Worded(nn.Module):
    """Takes what the student does not, and answers as it does not."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, pixels, scale):
        return {"note": "words", "scores": scale * self.fc(pixels), "aux": pixels}


def view(net, **more):
    return Frozen(
        net,
        inputs=lambda x: {"pixels": x / 2, "scale": 3.0},
        output=lambda out: out["scores"],
        classes=[4, 0, 2],
        **more,
    )


def test_a_teacher_is_fed_and_read_in_its_own_way():
    torch.manual_seed(0)
    net, x = Worded(), torch.randn(6, 4)
    teacher = view(net)
    expected = (3 * net.fc(x / 2)).detach()[:, [4, 0, 2]]
    assert torch.equal(classification.feed(teacher, x), expected)
    trace = classification.look(teacher, x, ["fc:in", ":aux"])
    assert torch.equal(trace[""], expected)
    assert torch.equal(trace["fc:in"], x / 2)
    assert torch.equal(trace[":aux"], x / 2)  # what is recorded is the network's own
    student = nn.Linear(4, 3)
    method = kd(student, teacher, temperature=1.0, alpha=1.0)
    logs = play(method, (x, torch.zeros(6, dtype=torch.long)), {"student": torch.optim.SGD(student.parameters(), 0.1)})
    assert logs["student/soft"] > 0


def test_its_output_stands_in_for_the_tasks():
    task = Task(output=lambda out: out[1])
    net = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    assert torch.equal(task.feed(Frozen(net, output=lambda out: out), x), net(x).detach())
    with pytest.raises(TypeError, match="output= does not find the answer"):
        task.feed(Frozen(nn.Sequential(net, nn.Flatten(0))), x[:0])


def test_a_view_of_a_view_is_one_of_the_network():
    net, x = Worded(), torch.randn(6, 4)
    teacher = Frozen(view(net), classes=[1, 0])
    expected = (3 * net.fc(x / 2)).detach()[:, [1, 0]]
    assert torch.equal(classification.feed(teacher, x), expected)
    net.fc = nn.Linear(4, 5)
    assert not torch.equal(classification.feed(teacher, x), expected)
    assert teacher.net.fc.weight.data_ptr() == net.fc.weight.data_ptr()


def test_weights_made_in_inference_mode_teach():
    with torch.inference_mode():
        net = nn.Linear(4, 3)
    teacher, student, x = Frozen(net), nn.Linear(4, 3), torch.randn(5, 4)
    method = kd(student, teacher)
    play(method, (x, torch.zeros(5, dtype=torch.long)), {"student": torch.optim.SGD(student.parameters(), 0.1)})
    torch.testing.assert_close(teacher.to(torch.float64)(x), net(x).detach())


def test_another_view_of_the_same_weights():
    torch.manual_seed(0)
    net, x = Worded(), torch.randn(6, 4)
    teacher = view(net, mode="batch_stats")
    again = teacher.again()
    assert again is not teacher
    assert (again.mode, teacher.again("eval").mode) == ("batch_stats", "eval")
    assert again.net.fc.weight.data_ptr() == net.fc.weight.data_ptr()
    assert torch.equal(classification.feed(again, x), classification.feed(teacher, x))
    again.to(torch.float64)
    assert teacher.net.fc.weight.dtype == torch.float32  # it moves alone
    assert torch.equal(classification.feed(copy.deepcopy(teacher), x), classification.feed(teacher, x))


@pytest.mark.parametrize("classes", [{0: 2, 1: 0}, {1: 0, 0: 2}, [2, 0], (2, 0)])
def test_a_teacher_of_other_classes(classes):
    x = torch.eye(3)
    teacher = Frozen(nn.Identity(), classes=classes)
    assert torch.equal(classification.feed(teacher, x), x[:, [2, 0]])
    assert torch.equal(teacher.translate(x[None]), x[None][..., [2, 0]])  # the last axis, of pixels too


def test_classes_that_make_no_sense():
    with pytest.raises(ValueError, match=r"a teacher's output for each output of the student, 0 to 1, got \[0, 2\]"):
        Frozen(nn.Identity(), classes={0: 1, 2: 0})
    for classes in ([], [0, -1]):
        with pytest.raises(ValueError, match="classes must be outputs of the teacher, from 0 on"):
            Frozen(nn.Identity(), classes=classes)
    with pytest.raises(ValueError, match="classes names the teacher's output 3, but it has 3"):
        classification.feed(Frozen(nn.Identity(), classes=[0, 3]), torch.eye(3))


def test_classes_by_name():
    assert matched(["cat", "dog"], ["dog", "bird", "cat"]) == {0: 2, 1: 0}
    assert matched(["car", "dog"], ["dog", "automobile"], {"car": "automobile"}) == {0: 1, 1: 0}
    with pytest.raises(ValueError, match=r"no class 'truk'; it has \['truck'\]: say which is meant, .'truk'"):
        matched(["truk"], ["truck", "plane"])
    with pytest.raises(ValueError, match=r"no class 'lorry'; it has \['truck', 'plane'\]: .*'car'"):
        matched(["car"], ["truck", "plane"], {"car": "lorry"})
