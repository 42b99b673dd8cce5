"""`limbeck.compiled` and `fit(compile=True)`: what is compiled trains alike, and what is compared is never stale."""

from __future__ import annotations

import copy
import io
import shutil
import warnings
from collections import OrderedDict
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import limbeck
from contract import (
    CLASSES,
    SIZE,
    Served,
    batches,
    build,
    ctrl_c,
    fit,
    hooks,
    networks,
    prepare,
    sgd,
    stages_of,
    tensors,
    train,
)
from limbeck import S, T, compiled, on, record
from limbeck.core.method import play
from limbeck.core.trace import TAPS
from limbeck.engine.fit import NotCompiledWarning

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")  # teachers are untrained
ROWS = ("kd + crd", "fitnets", "dkd", "review", "dml", "byot", "vid", "adversarial")
PAIRS = [("layer1", "layer1"), ("layer2", "layer2")]


@pytest.fixture(autouse=True)
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch):
    """Lets `fit` compile with another backend; with torch's tracer alone at first, which needs no C++ compiler."""

    def choose(backend):
        monkeypatch.setattr("limbeck.core.compiled.compiled", partial(compiled, backend=backend))

    choose("eager")
    return choose


def frames():
    """How often torch has compiled something."""
    return torch._dynamo.utils.counters["frames"]["ok"]


def tiny(seed, width=2):
    """A network that torch traces in a moment, with a ReLU that writes to what a hook has seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(inplace=True))
        head = nn.Linear(width * (SIZE // 2) ** 2, CLASSES)
        return nn.Sequential(OrderedDict(layer1=layer1, flat=nn.Flatten(), fc=head))


def both():
    return tiny(0), tiny(1, 3)


def between(student, teacher):
    """Compares maps of other widths."""
    return F.mse_loss(student.mean(1), teacher.mean(1))


def mapped(student, teacher, layer="layer1.0"):
    return limbeck.Distill(student, teacher, limbeck.classification.hard + on(between, S[layer], T["layer1.0"]))


def short(built, **options):
    """Train without validation, which is other code to torch."""
    return limbeck.fit(built, Served(3), epochs=1, optimizer=sgd, accelerator="cpu", progress=False, **options)


@cache
def eager(**options):
    """What `mapped` networks come to in a short eager training: the history, and the student."""
    student, teacher = both()
    return short(mapped(student, teacher), **options).history, student


def left(*nets):
    """What a compiled training could have left on networks."""
    parts = [part for net in nets for part in net.modules()]
    return hooks(*nets) + sum(TAPS in vars(part) or part._compiled_call_impl is not None for part in parts)


def same(got, expected, rel=1e-4):
    """Losses, or rows of a history."""
    for mine, theirs in zip(got, expected, strict=True):
        wanted = {name: value for name, value in theirs.items() if name not in ("seconds", "stage")}
        assert {name: mine[name] for name in wanted} == pytest.approx(wanted, rel=rel, abs=1e-5)


def same_weights(got, expected):
    for name, value in tensors(expected).items():
        torch.testing.assert_close(got.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_losses_and_weights_are_those_of_the_eager_method(name):
    (student, teacher), (eager, eager_teacher) = networks(), networks()
    expected, got, before = train(build(name, eager, eager_teacher), batches(3)), [], frames()
    for part in stages_of(build(name, student, teacher)):
        optimizers = prepare(part)
        compiled(part.method, backend="eager")
        got += [play(part.method, batch, optimizers, index / 3) for index, batch in enumerate(batches(3))]
    assert frames() >= before + 3
    same(got, expected)
    same_weights(student, eager)
    assert list(student.state_dict()) == list(eager.state_dict())


def decaying(own):
    return torch.optim.SGD(own, 0.05, weight_decay=0.1)


@pytest.mark.parametrize("made", [lambda net: net, lambda net: torch.compile(net, backend="aot_eager")])
def test_what_has_no_gradient_is_not_shrunk(backend, made):
    """Compiled code has gradients of 0 there: a student of which a layer alone is compared runs as it is written."""
    backend("aot_eager")
    (student, teacher), twins = both(), both()
    alone = on(between, S["layer1.0"], T["layer1.0"])
    options = {"epochs": 1, "optimizer": decaying, "accelerator": "cpu", "progress": False}
    with pytest.warns(NotCompiledWarning, match="no term reads its answer"):
        limbeck.fit(limbeck.Distill(made(student), teacher, alone), Served(2), compile=True, **options)
    limbeck.fit(limbeck.Distill(made(twins[0]), twins[1], alone), Served(2), **options)
    assert torch.equal(student.fc.weight, tiny(0).fc.weight)
    assert torch.equal(twins[0].fc.weight, student.fc.weight)
    assert not torch.equal(student.layer1[0].weight, tiny(0).layer1[0].weight)
    same_weights(student, twins[0])


def test_no_step_compiles_anew():
    """Also where a weight is a function of the progress, and where negatives are drawn."""
    counter, seen = CompileCounterWithBackend("eager"), []
    method = build("kd + crd", *networks())
    features = on(F.mse_loss, S["layer1"], S["layer1"].via(torch.zeros_like), name="small")
    method += limbeck.Distill(method.student, None, (lambda progress: 1 - progress) * features)
    optimizers = limbeck.optimizers(compiled(method, backend=counter), sgd)
    for index in range(10):
        play(method, batches(8)[index % 8], optimizers, index / 10)
        seen.append(counter.frame_count)
    assert seen[2] >= 3
    assert seen[2:] == seen[2:3] * 8


def test_batches_of_other_sizes_compile_once_more_each_part():
    counter, seen = CompileCounterWithBackend("eager"), []
    method = compiled(limbeck.kd(*networks()), backend=counter)
    optimizers = limbeck.optimizers(method, sgd)
    for size in (8, 8, 5, 5, 3, 7):
        play(method, tuple(part[:size] for part in batches(1)[0]), optimizers)
        seen.append(counter.frame_count)
    assert seen == [4, 4, 8, 8, 8, 8]  # the student, the teacher and two terms


def test_what_is_recorded_is_of_the_latest_call():
    student, teacher = networks()
    eager = copy.deepcopy(student)
    compiled(limbeck.at(student, teacher, layers=PAIRS), backend="eager")

    def compare(batch, paths):
        with record(student, paths) as got:
            answer = student(batch[0])
        with record(eager, paths) as expected:
            torch.testing.assert_close(answer, eager(batch[0]))
        assert got.keys() == expected.keys()
        for path in expected:
            torch.testing.assert_close(got[path], expected[path])

    for index, batch in enumerate(batches(6)):
        for net in (student, eager):
            net.train(index % 2 == 0)
        compare(batch, ["layer1", "layer2"])
    before = frames()
    compare(batches(7)[6], ["fc:in", "layer1"])  # one that nobody has asked for before
    assert frames() > before


def test_fit_trains_alike_and_leaves_nothing_behind(backend):
    student, teacher = both()
    names, before = vars(student).keys(), frames()
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompiledWarning)
        got = short(mapped(student, teacher), compile=True)
    assert frames() > before
    expected, twin = eager()
    same(got.history, expected)
    same_weights(student, twin)
    assert left(student, teacher) == 0
    assert vars(student).keys() == names


def test_a_run_goes_on_compiled_and_is_validated(backend, tmp_path):
    (whole, taught), (again, also) = both(), both()
    expected = fit(mapped(whole, taught), Served(2), epochs=2)
    assert not fit(mapped(*both()), Served(2, at=3, happens=ctrl_c), epochs=2, run_dir=tmp_path).finished
    before = frames()
    got = fit(mapped(again, also), Served(2), epochs=2, run_dir=tmp_path, resume=True, compile=True)
    assert frames() > before
    same(got.history, expected.history)
    same_weights(again, whole)


@pytest.mark.parametrize(
    "options",
    [{"strategy": "ddp"}, {"accumulate": 2}, {"precision": "bf16-mixed"}, {"channels_last": True}],
    ids=lambda options: next(iter(options)),
)
def test_it_goes_with_other_options(backend, options):
    student, teacher = both()
    before = frames()
    got = short(mapped(student, teacher), compile=True, **options)
    assert frames() > before
    same(got.history, eager(**options)[0], rel=2e-2 if "precision" in options else 1e-4)  # of 8 bits
    assert all(p.is_contiguous() for net in (student, teacher) for p in net.parameters())
    assert left(student, teacher) == 0


def test_channels_last_is_an_order_in_memory_and_nothing_else():
    orders = []

    def look(student, teacher):
        orders.extend(maps.is_contiguous(memory_format=torch.channels_last) for maps in (student, teacher))
        return between(student, teacher)

    student, teacher = both()
    method = mapped(student, teacher)
    method.objective.terms[1].loss = look
    got = short(method, channels_last=True)
    assert len(orders) == 2 * 3
    assert all(orders)
    same(got.history, eager()[0])
    assert all(p.is_contiguous() for net in (student, teacher) for p in net.parameters())


def wrapped(net):
    return torch.compile(net, backend="eager")


def called_before(net):
    made, state = wrapped(net), tensors(net)
    made(batches(1)[0][0])
    net.load_state_dict(state)
    return made


def in_place(net):
    net.compile(backend="eager")
    return net


def inside(net):
    net.layer1 = wrapped(net.layer1)
    return net


@pytest.mark.parametrize(
    ("made", "asked"), [(wrapped, False), (wrapped, True), (called_before, False), (in_place, False), (inside, False)]
)
def test_networks_that_come_compiled_run_compiled(backend, made, asked):
    """The layers that are compared, which lie inside of what is compiled, are seen."""
    own, taught = (made(net) for net in both())
    parts = [part for net in (own, taught) for part in net.modules()]
    ours, before = [part._compiled_call_impl for part in parts], frames()
    got = short(mapped(own, taught), compile=asked)
    # a teacher is a view, which is a copy, and what was compiled in place is in none: it runs as it is written
    assert frames() >= before + (1 if made is in_place else 2)
    same(got.history, eager()[0])
    assert hooks(own, taught) == sum(TAPS in vars(part) for part in parts) == 0
    assert [part._compiled_call_impl for part in parts] == ours


def test_what_limbeck_compiled_stays_so_in_fit():
    method = compiled(mapped(*both()), backend="eager")
    short(method)
    assert TAPS in vars(method.student)
    assert method.student._compiled_call_impl is not None
    before = frames()
    torch._dynamo.reset()
    play(method, batches(1)[0], limbeck.optimizers(method, sgd))
    assert frames() > before


def raises(graph, example):
    raise RuntimeError("this backend has no such kernel")


def plays(graph, example):
    return graph.forward


no_backward = aot_autograd(fw_compiler=plays, bw_compiler=raises)


@pytest.mark.parametrize("broken", [raises, no_backward], ids=["forward", "backward"])
def test_what_a_backend_cannot_do_runs_as_it_is_written(backend, tmp_path, broken):
    backend(broken)
    student, teacher = both()
    with pytest.warns(NotCompiledWarning, match="as it was written: .* other reasons, which train.log"):
        got = short(mapped(student, teacher), compile=True, run_dir=tmp_path)
    same(got.history, eager()[0])
    assert left(student, teacher) == 0
    log = (tmp_path / "train.log").read_text()
    assert "not compiled, " in log
    assert "RuntimeError: this backend has no such kernel" in log
    assert not torch._dynamo.config.suppress_errors


class Odd(nn.Module):
    """Asks for the value of a tensor in the middle, which ends a graph."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        answer = self.net(x)
        return answer * 2 if answer.sum().item() > 1e9 else answer


def test_where_a_graph_ends_is_told(backend, tmp_path):
    student, teacher = both()
    method = limbeck.Distill(
        Odd(student), teacher, limbeck.classification.hard + on(between, S["net.layer1.0"], T["layer1.0"])
    )
    with pytest.warns(NotCompiledWarning, match="as it was written"):
        got = short(method, compile=True, run_dir=tmp_path)
    assert "Unsupported Tensor.item() call" in (tmp_path / "train.log").read_text()
    same(got.history, eager()[0])


def test_more_kinds_of_a_part_than_torch_keeps_are_told(backend, tmp_path):
    with torch._dynamo.config.patch(recompile_limit=1), pytest.warns(NotCompiledWarning):
        short(limbeck.kd(*both()), compile=True, run_dir=tmp_path)  # train and eval are two
    assert "torch._dynamo hit config.recompile_limit (1)" in (tmp_path / "train.log").read_text()


def test_terms_that_draw_are_told(backend):
    with pytest.warns(NotCompiledWarning, match="the term 'contrast' draws"):
        short(build("crd", *networks()), compile=True)


@pytest.mark.parametrize("name", ["gradient", "jacobian"])
def test_losses_made_of_gradients_are_not_compiled(backend, name):
    student, teacher = networks()
    with pytest.raises(ValueError, match="losses are made of gradients"):
        compiled(build(name, student, teacher))
    before = frames()
    with pytest.warns(NotCompiledWarning, match="losses are made of gradients"):
        assert short(build(name, student, teacher), compile=True).finished
    assert frames() == before


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match=r"expected a method, got Sequential: limbeck\.compiled\("):
        compiled(both()[0])


def test_copies_of_a_compiled_student_are_independent():
    student, teacher = both()
    method = compiled(mapped(student, teacher), backend="eager")
    play(method, batches(1)[0], limbeck.optimizers(method, sgd))
    saved = io.BytesIO()
    torch.save(student, saved)
    saved.seek(0)
    student.eval()
    for twin in (copy.deepcopy(student), torch.load(saved, weights_only=False).eval()):
        batch = batches(2)[1]
        with record(student, ["layer1"]) as own, record(twin, ["layer1"]) as other:
            torch.testing.assert_close(twin(batch[0]), student(batch[0]))
        torch.testing.assert_close(other["layer1"], own["layer1"])
        with record(student, ["layer1"]) as own, record(twin, ["layer1"]) as other:
            twin(batch[0] + 1)
            student(batch[0])
        assert not torch.equal(other["layer1"], own["layer1"])


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_comes_to_the_same():
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, CLASSES)) for _ in range(2))
    twin, before = copy.deepcopy(student), frames()
    got = train(compiled(limbeck.mimic(student, teacher)), batches(2))
    assert frames() > before
    same(got, train(limbeck.mimic(twin, teacher), batches(2)))
    same_weights(student, twin)
