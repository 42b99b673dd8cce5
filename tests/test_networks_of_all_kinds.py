"""Networks as people have them: each cell of the table of docs/networks.md."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck.core.copied import copied
from limbeck.core.sound import flaw
from limbeck.core.wrapped import shipped

pytestmark = [
    pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning"),  # its teachers are untrained
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch's old norms
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript and eager quantisation
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),  # of compiled modules and observers
]
PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
X, Y = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
LAYERS = [("layer1", "layer1")]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Widening(Net):
    """Half precision up to its classifier."""

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x.half())).mean((2, 3)).float())


class Quantisable(Net):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()

    def forward(self, x):
        return self.dequant(super().forward(self.quant(x)))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).repeat(1, 3)


def pruned(net):
    prune.l1_unstructured(net.layer1[0], "weight", 0.5)
    prune.random_structured(net.layer1[0], "weight", 0.25, dim=0)  # twice, and another layer
    prune.l1_unstructured(net.fc, "bias", 1)
    return net


def normed(norm, layer="fc"):
    def make(net):
        norm(net.get_submodule(layer))
        return net

    return make


def parametrised(net):
    parametrize.register_parametrization(net.fc, "weight", Doubled())
    parametrize.register_parametrization(net.layer1[0], "bias", Doubled())
    return net


def inside(wrap):
    def make(net):
        net.layer1 = wrap(net.layer1)
        return net

    return make


def compiled(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def mixed(net):
    twin = Widening()
    twin.load_state_dict(net.state_dict())
    twin.layer1.half()
    twin.layer2.half()
    return twin


def traced(net):
    return torch.jit.trace(net.eval(), X[:2])


def quantised(net):
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


def statically(net):
    twin = Quantisable().eval()
    twin.load_state_dict(net.state_dict())
    twin.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
    torch.ao.quantization.prepare(twin, inplace=True)
    twin(X)
    return torch.ao.quantization.convert(twin)


def lazy(net):
    net.fc = nn.LazyLinear(3)
    return net


def tied(net):
    net.fc.weight = nn.Parameter(torch.randn(3, 6))
    net.extra = nn.Linear(6, 3)
    net.extra.weight = net.fc.weight
    return net


def computed(net):
    net.cache, net.history = net.fc.weight * 2, [net.fc.bias + 1]
    return net


def closing(net):
    net.scale = nn.Parameter(torch.ones(3))
    net.register_forward_hook(lambda module, args, output: net.scale * output)
    return net


def logging(net):
    net.layer1.log = open(PAGE.parent / "index.md", encoding="utf-8")  # noqa: SIM115
    return net


def broken(net):
    with torch.no_grad():
        net.fc.bias[0] = torch.nan
    return net


def infinite(net):
    net.layer1[1].running_var.fill_(torch.inf)
    return net


def put_away(net):
    return net.requires_grad_(False)


WORKS, OUTPUTS, WEIGHTS = "works", "outputs alone", "weights alone"


@dataclass(frozen=True)
class Kind:
    """What becomes of a kind of network: it works, or what the refusal says."""

    make: Callable[[nn.Module], nn.Module]
    teacher: str = WORKS
    student: str = WORKS
    export: str = WORKS


HALF = Kind(lambda net: net.half(), student="half precision.*bf16-mixed", export=r"float16.*net\)\.float\(\)")
SCRIPT = Kind(torch.jit.script, OUTPUTS, OUTPUTS, WEIGHTS)
QUANTISED = Kind(quantised, student="is quantised", export="is quantised already")
KINDS = {
    "pruned": {"": Kind(pruned)},
    "weight norm": {
        "old": Kind(normed(torch.nn.utils.weight_norm)),
        "new": Kind(normed(parametrizations.weight_norm, "layer2.0")),
    },
    "spectral norm": {
        "old": Kind(normed(torch.nn.utils.spectral_norm)),
        "new": Kind(normed(parametrizations.spectral_norm, "layer1.0")),
    },
    "parametrised": {"": Kind(parametrised), "orthogonal": Kind(normed(parametrizations.orthogonal))},
    "compiled": {"": Kind(compiled), "inside": Kind(inside(compiled)), "in place": Kind(compiled_in_place)},
    "DataParallel": {
        "": Kind(nn.DataParallel),
        "inside": Kind(inside(nn.DataParallel)),
        "and compiled": Kind(lambda net: compiled(nn.DataParallel(net))),
    },
    "half precision": {
        "": HALF,
        "bfloat16": Kind(lambda net: net.bfloat16(), student=HALF.student, export=r"bfloat16.*net\)\.float\(\)"),
    },
    "partly half precision": {"": Kind(mixed, student=HALF.student)},
    "float64": {"": Kind(lambda net: net.double(), student=r"float64.*64-true", export=r"float64.*net\)\.float\(\)")},
    "TorchScript": {"": SCRIPT, "traced": Kind(traced, OUTPUTS, OUTPUTS, WEIGHTS)},
    "quantised": {
        "dynamic": QUANTISED,
        "static": Kind(statically, student=QUANTISED.student, export=QUANTISED.export),
    },
    "lazy": {"": Kind(lazy, *3 * ("lazy layers without weights .fc.weight.",))},
    "without parameters": {"": Kind(lambda net: Mean(), OUTPUTS, "no parameters")},
    "on the meta device": {"": Kind(lambda net: net.to("meta"), *3 * ("no weights, on the device 'meta'",))},
    "NaN or infinite": {
        "": Kind(broken, *3 * ("NaN or infinite .fc.bias.",)),
        "statistics": Kind(infinite, *3 * ("NaN or infinite .layer1.1.running_var.",)),
    },
    "frozen": {"": Kind(put_away, student="is frozen, with no parameter that requires a gradient")},
    "tied parameters": {"": Kind(tied)},
    "computed tensors as attributes": {"": Kind(computed)},
    "functions as attributes": {"": Kind(closing)},
    "open files as attributes": {"": Kind(logging, *3 * ("'log' of its Sequential is a TextIOWrapper",))},
}
EACH = [
    pytest.param(kind, id=" ".join(filter(None, (name, variant))))
    for name, variants in KINDS.items()
    for variant, kind in variants.items()
]
each_kind = pytest.mark.parametrize("kind", EACH)


@pytest.fixture(scope="module", autouse=True)
def briefly():
    """Exported files are timed in a moment: nobody looks at their time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.verbs.export.SECONDS", 0.001)
        yield


@pytest.fixture(autouse=True)
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net()
        made(X)  # its batch norm has seen something
        return made


def loaders():
    return tuple(DataLoader(TensorDataset(X, Y), 8) for _ in range(3))


def fit(method, **options):
    return limbeck.fit(method, loaders(), epochs=1, progress=False, accelerator="cpu", **options)


def both(student, teacher):
    return limbeck.kd(student, teacher) + limbeck.at(student, teacher, layers=LAYERS)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05)


def play(method):
    return limbeck.play(method, (X, Y), limbeck.optimizers(method, sgd))


def values(net):
    return [value.detach().clone() for value in (*net.parameters(), *net.buffers())]


def same(before, net):
    return all(torch.equal(one, other) for one, other in zip(before, values(net), strict=True))


def own_answer(net):
    """What a network says to the samples by itself, in eval mode."""
    kinds = {p.dtype for p in net.parameters()}
    kind = kinds.pop() if len(kinds) == 1 else torch.float32
    with torch.no_grad():
        return net.eval()(X.to(kind)).float()


@each_kind
def test_as_teacher(kind):
    teacher, student = kind.make(net(1)), net(0)
    if kind.teacher not in (WORKS, OUTPUTS):
        for train in (fit, play):
            with pytest.raises((ValueError, TypeError), match=kind.teacher):
                train(limbeck.kd(student, teacher))
        return
    before, method = values(teacher), limbeck.kd(student, teacher)
    play(method)
    answer = method.scene((X, Y))["teacher"][""]
    assert not answer.requires_grad
    assert answer.dtype == torch.float32
    assert same(before, teacher)
    torch.testing.assert_close(answer, own_answer(teacher), rtol=1e-3, atol=1e-4)
    if kind.teacher == OUTPUTS:
        fit(method)
        with pytest.raises(ValueError, match=r"no layer 'layer1'|'layer1' lies in a TorchScript network"):
            play(limbeck.at(student, teacher, layers=LAYERS))
    else:
        torch._dynamo.reset()  # a compiled network is recorded at its first call
        play(both(student, teacher))
        fit(both(student, teacher))
    assert same(before, teacher)


@each_kind
def test_a_teacher_is_a_live_view(kind):
    """Whatever is loaded into it is seen, parameters and buffers."""
    if kind.teacher not in (WORKS, OUTPUTS):
        pytest.skip("refused")
    teacher, other = kind.make(net(1)), kind.make(net(2))
    other.eval()
    method = limbeck.kd(net(0), teacher)
    before = method.scene((X, Y))["teacher"][""]
    teacher.load_state_dict(other.state_dict())
    after = method.scene((X, Y))["teacher"][""]
    torch.testing.assert_close(after, own_answer(other), rtol=1e-3, atol=1e-4)
    assert torch.equal(before, after) == isinstance(teacher, Mean)


@each_kind
def test_as_student(kind, tmp_path):
    student, teacher = kind.make(net(1)), net(0)
    if kind.student not in (WORKS, OUTPUTS):
        with pytest.raises((ValueError, TypeError), match=kind.student):
            fit(limbeck.kd(student, teacher), run_dir=tmp_path / "run")
        assert not (tmp_path / "run" / "metrics.csv").exists()
        return
    before = values(student)
    result = fit((both if kind.student == WORKS else limbeck.kd)(student, teacher), run_dir=tmp_path / "run")
    assert not same(before, student)
    assert result.student is student
    assert "test/student/accuracy" in result.metrics
    play((both if kind.student == WORKS else limbeck.kd)(student, teacher))
    if kind.student == OUTPUTS:
        with pytest.raises(ValueError, match="'layer1' lies in a TorchScript network"):
            play(limbeck.at(student, teacher, layers=LAYERS))


@each_kind
def test_the_written_file_loads_into_the_plain_network(kind, tmp_path):
    if kind.student not in (WORKS, OUTPUTS):
        pytest.skip("refused")
    student = kind.make(net(1))
    fit(limbeck.kd(student, net(0)), run_dir=tmp_path)
    plain = kind.make(net(2)) if kind.make in (tied, closing) else net(2)
    plain.load_state_dict(load_file(tmp_path / "student.safetensors"))
    torch.testing.assert_close(own_answer(plain), own_answer(student), rtol=1e-4, atol=1e-5)


@each_kind
def test_export(kind, tmp_path):
    made = kind.make(net(1))
    before = None if kind.export not in (WORKS, WEIGHTS) else values(made)
    formats = ["safetensors", "torch_export"]
    if before is None:
        with pytest.raises((ValueError, TypeError), match=kind.export):
            limbeck.export(made, loaders(), tmp_path / "out", formats=formats, progress=False)
        assert not (tmp_path / "out").exists()
        return
    if kind.export == WEIGHTS:
        with pytest.raises(
            limbeck.ExportError, match="a TorchScript network cannot be followed: export the network that"
        ):
            limbeck.export(made, loaders(), tmp_path, formats=formats, progress=False)
        formats = formats[:1]
    exported = limbeck.export(made, loaders(), tmp_path, formats=formats, progress=False)
    assert [one.format for one in exported.artefacts] == formats
    assert same(before, made)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"export.json", *(one.file for one in exported.artefacts)}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_precision_that_casts_takes_students_of_any_type(precision, dtype):
    student = net(1).to(dtype)
    assert fit(limbeck.kd(student, net(0)), precision=precision).finished


def test_a_student_that_casts_what_it_is_fed_is_fed_anything():
    class Casting(Net):
        def forward(self, x):
            return super().forward(x.to(self.fc.weight.dtype)).float()

    assert fit(limbeck.kd(Casting().double(), net(0))).finished


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_layers_of_a_teacher_of_another_type_come_in_the_students(dtype):
    method = limbeck.fitnets(net(0), net(1).to(dtype), hint="layer2", guided="layer1", example=X[:2])
    stage = next(iter(method))
    assert stage.method.scene((X, Y))["teacher"]["layer2"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["pruned", "spectral norm", "parametrised"])
def test_what_is_plain_answers_alike_and_leaves_the_other_as_it_was(kind):
    for one in KINDS[kind].values():
        made = one.make(net(1))
        keys, answer = list(made.state_dict()), own_answer(made)
        plain = shipped(made)
        assert set(plain.state_dict()) == set(net(1).state_dict())
        torch.testing.assert_close(own_answer(plain), answer)
        assert list(made.state_dict()) == keys
        assert torch.equal(own_answer(made), answer)
        plain.load_state_dict(plain.state_dict())  # no hook of the norm is left
    assert shipped(plain) is plain


def test_a_copy_trains_alone():
    for make in (pruned, computed, closing):
        made = make(net(1))
        twin, before = copied(made), values(made)
        twin.train()(X).sum().backward()
        torch.optim.SGD(twin.parameters(), 0.1).step()
        assert same(before, made)
        assert not same(before, twin)
        assert all(p.grad is None for p in made.parameters())


def test_masks_of_minus_infinity_are_no_flaw():
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert flaw(masked) is None
    assert "bias" in flaw(broken(net(0)))


def test_a_data_parallel_network_on_several_devices_shows_a_part_of_the_batch(monkeypatch):
    student = nn.DataParallel(net(0))
    monkeypatch.setattr(student, "device_ids", [0, 1])
    with pytest.raises(ValueError, match=r"'layer1' cannot be recorded in a DataParallel network.*devices=2"):
        limbeck.at(student, net(1), layers=LAYERS).scene((X, Y))


def test_the_page_says_what_is_tested():
    """The table's words are those of KINDS: refused is all that neither works nor has a limit."""

    def cell(word):
        return word if word in (WORKS, OUTPUTS, WEIGHTS) else "refused"

    rows = re.findall(
        r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", PAGE.read_text("utf-8"), re.M
    )
    told = {name: tuple(cells) for name, *cells in rows[1:]}
    wanted = {}
    for name, variants in KINDS.items():
        (cells,) = {(cell(one.teacher), cell(one.student), cell(one.export)) for one in variants.values()}
        teacher, student, export = cells
        wanted[name] = (teacher, student, "–" if student == "refused" else "plain", export)
    assert told == wanted
