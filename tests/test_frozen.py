"""`Frozen`: a network that teaches and never trains."""

import copy

import pytest
import torch
from torch import nn

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


def test_what_cannot_be_copied_is_named():
    class Stateful(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.cache = self.weight * 2

    with pytest.raises(TypeError, match="the teacher Stateful cannot be copied"):
        Frozen(Stateful())


def test_what_is_no_network():
    with pytest.raises(TypeError, match=r"expected a network to teach, got list: limbeck\.SklearnTeacher"):
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
    with pytest.raises(IndexError):
        task.feed(Frozen(nn.Sequential(net, nn.Flatten(0))), x[:0])


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
