"""`record`: what it sees, what it leaves behind, what it refuses."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from limbeck import record
from limbeck.core.trace import locate


class Tower(nn.Module):
    """Nested modules, tuple and dict outputs, keyword inputs, a module used twice and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.both = Both()
        self.mix = Mix()
        self.again = nn.Linear(4, 4)
        self.alias = self.again
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(self.stem(x)[:, None])
        h = self.both(h[:, 0])["twice"]
        h = self.mix(h, other=x)
        return self.again(self.again(h))


class Both(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"once": x, "twice": 2 * x}


class Mix(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


class InPlace(nn.Module):
    """The torchvision block: in-place ReLU and an in-place sum after the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.fc(x))
        h += x
        return self.relu(h)


class Modeless(nn.Module):
    """No module that behaves differently in train and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_kind_of_path(tower):
    x = torch.randn(3, 4)
    paths = ["stem.0", "stem.1:in", "rnn:0", "rnn:1:0", "both:twice", "both:in", "mix:in:1", "mix:in:other", ":in", ""]
    with record(tower, paths) as trace:
        out = tower(x)
    assert set(trace) == set(paths)
    linear = tower.stem[0](x)
    sequence, (hidden, _) = tower.rnn(linear.relu()[:, None])
    torch.testing.assert_close(trace["stem.0"], linear)
    torch.testing.assert_close(trace["stem.1:in"], linear)
    torch.testing.assert_close(trace["rnn:0"], sequence)
    torch.testing.assert_close(trace["rnn:1:0"], hidden)
    torch.testing.assert_close(trace["both:in"], sequence[:, 0])
    torch.testing.assert_close(trace["both:twice"], 2 * sequence[:, 0])
    assert torch.equal(trace["mix:in:1"], x)
    assert torch.equal(trace["mix:in:other"], x)
    assert torch.equal(trace[":in"], x)
    assert torch.equal(trace[""], out)


def test_first_input_may_be_a_keyword():
    model = nn.Sequential(Mix())
    with record(model, ["0:in"]) as trace:
        model[0](x=torch.ones(2), other=torch.zeros(2))
    assert torch.equal(trace["0:in"], torch.ones(2))


def test_last_call_wins_and_shared_modules_have_every_name(tower):
    with record(tower, ["again", "alias", "again:in"]) as trace:
        out = tower(torch.randn(3, 4))
    assert torch.equal(trace["again"], out)
    assert torch.equal(trace["alias"], out)
    torch.testing.assert_close(tower.again(trace["again:in"]), out)


def test_sequential_indices():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    x = torch.randn(5, 4)
    with record(model, ["0", "1.0", "1"]) as trace:
        out = model(x)
    assert torch.equal(trace["1.0"], model[0](x).relu())
    assert torch.equal(trace["1"], out)


def test_what_follows_in_place_does_not_change_the_record():
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(6, 4)
    reference = model.bn(model.fc(x))
    with record(model, ["bn", "relu:in", "relu"]) as trace:
        out = model(x)
    torch.testing.assert_close(trace["bn"], reference)
    torch.testing.assert_close(trace["relu:in"], reference + x)
    torch.testing.assert_close(trace["relu"], out)


WRITES = {
    "relu": lambda x: nn.functional.relu(x, inplace=True),
    "add": lambda x: x.__iadd__(1),
    "set": lambda x: x.__setitem__((slice(None), 0), 9.0),
    "view": lambda x: x.view(-1).zero_(),
    "part": lambda x: x[1:].mul_(3),
    "data": lambda x: x.data.zero_(),
    "numpy": lambda x: x.detach().numpy().fill(7),
    "out": lambda x: torch.add(x.detach(), 1, out=x.detach()),
    "foreach": lambda x: torch._foreach_mul_([x], 2.0),
}


class Writing(nn.Module):
    """Gives what its layer gives after something is written to it, and hands both on."""

    def __init__(self, write) -> None:
        super().__init__()
        self.fc, self.same, self.write = nn.Linear(4, 4), nn.Identity(), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.same(self.fc(x))
        self.write(h)
        return h


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_whatever_writes_does_not_change_the_record(write, mode):
    torch.manual_seed(0)
    net, x = Writing(WRITES[write]), torch.randn(3, 4)
    with mode():
        expected = net.fc(x).clone()
        with record(net, ["fc", "same:in", "same"]) as trace:
            out = net(x)
        out.data.fill_(5)  # nor after the block
        assert all(torch.equal(trace[path], expected) for path in trace)


def test_who_writes_to_the_record_does_not_change_what_the_model_goes_on_with():
    torch.manual_seed(0)
    net, x = Modeless().requires_grad_(False), torch.randn(3, 4)
    with record(net, ["b"]) as trace:
        out = net(x)
    trace["b"].zero_()
    torch.testing.assert_close(out, net(x))


def test_a_write_that_comes_in_a_later_pass_does_not_change_the_record():
    net, x = Writing(lambda x: x), torch.randn(3, 4)
    for write in (WRITES["relu"], lambda x: x, WRITES["relu"]):
        net.write = write
        with record(net, ["fc"]) as trace:
            net(x)
        assert torch.equal(trace["fc"], net.fc(x))


def memory(tensor: Tensor) -> int:
    """Return where a tensor lies; data_ptr() would make the copy that has been put off."""
    return torch._C._data_address(tensor)


def test_nothing_is_copied_that_nobody_changes():
    class Kept(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = []
            for module in self:
                x = module(x)
                self.seen.append(x)
            return x

    net = Kept(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with record(net, ["0", "1", "2"]) as trace:
        net(torch.randn(5, 3)).sum().backward()
    assert [memory(trace[path]) == memory(seen) for path, seen in zip("012", net.seen, strict=False)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: x.clone().share_memory_(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        lambda x: x.to_sparse(),
        lambda x: x.to_mkldnn(),
        nn.Parameter,
        lambda x: x.to("meta"),
        lambda x: x[:0],
        lambda x: x[0, 0],
        lambda x: x[:, :1].expand(-1, 3),
        lambda x: torch.complex(x, x).conj(),
    ],
)
def test_tensors_of_all_kinds(make):
    class Gives(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.given

    net = nn.Sequential(Gives(), nn.Identity())
    net[0].given = given = make(torch.randn(2, 4))
    with record(net, ["0", "1:in"]) as trace:
        out = net(torch.empty(0))
    assert trace["0"] is given
    assert out.layout == given.layout
    assert out.dtype == given.dtype
    assert out.shape == given.shape
    if given.device.type == "cpu":
        dense = given.layout == torch.strided
        assert torch.equal(*((one if dense else one.to_dense()).resolve_conj() for one in (out, given)))


def test_functions_of_functions():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)), torch.randn(5, 4)

    def seen(x: Tensor) -> tuple[Tensor, Tensor]:
        with record(net, ["0"]) as trace:
            out = net(x)
        return trace["0"], out

    inner, out = torch.vmap(seen)(x)
    torch.testing.assert_close(inner, net[0](x))
    torch.testing.assert_close(out, net(x))
    slopes = torch.vmap(torch.func.jacrev(lambda x: seen(x)[1]))(x)
    torch.testing.assert_close(slopes, torch.vmap(torch.func.jacrev(net))(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    torch.manual_seed(0)
    net, x = InPlace(), torch.randn(6, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    net.bn.reset_running_stats()
    with record(net, ["bn"]) as trace:
        out = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant)
    torch.testing.assert_close(trace["bn"], net.bn(net.fc(x)))
    out.square().sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [False, True])
def test_on_a_gpu_copies_wait_for_what_they_copy(side):
    net = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(inplace=True), nn.Linear(2048, 2)).cuda()
    x = torch.randn(4096, 2048, device="cuda")
    expected, answer = net[0](x), net(x)
    stream = torch.cuda.Stream() if side else torch.cuda.default_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            torch.cuda._sleep(10_000_000)
            with record(net, ["0", "1"]) as trace:
                out = net(x)
            out.sum().backward()
            torch.cuda.synchronize()
            torch.testing.assert_close(trace["0"], expected)
            torch.testing.assert_close(trace["1"], expected.relu())
            torch.testing.assert_close(out, answer)


def test_recording_changes_neither_output_nor_gradients():
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(6, 4)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with record(model, ["bn", "relu:in"]):
        out = model(x)
    got = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_output_can_be_differentiated_by_what_is_recorded(tower):
    with record(tower, ["stem.0", "mix:in"]) as trace:
        out = tower(torch.randn(3, 4))
    grads = torch.autograd.grad(out.sum(), [trace["stem.0"], trace["mix:in"]])
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_hooks_are_gone_after_the_block(tower):
    with record(tower, ["stem", "both:in"]) as trace:
        assert hooks(tower) == 2
        tower(torch.randn(2, 4))
    kept = trace["stem"]
    assert hooks(tower) == 0
    tower(torch.randn(2, 4))
    assert trace["stem"] is kept


def test_hooks_are_gone_after_an_exception(tower):
    with pytest.raises(ZeroDivisionError), record(tower, ["stem", "both:in"]):
        raise ZeroDivisionError
    assert hooks(tower) == 0


def test_hooks_are_gone_after_a_failing_hook_or_a_wrong_path(tower):
    with pytest.raises(ValueError, match="rnn"), record(tower, ["stem", "rnn"]):
        tower(torch.randn(2, 4))
    assert hooks(tower) == 0
    with pytest.raises(ValueError, match="no layer 'nope'"), record(tower, ["stem", "nope"]):
        raise AssertionError("unreachable")
    assert hooks(tower) == 0


def test_deepcopy_after_and_inside_the_block(tower):
    with record(tower, ["stem"]) as trace:
        out = tower(torch.randn(2, 4))
    assert hooks(copy.deepcopy(tower)) == 0
    assert out.requires_grad
    assert trace["stem"].requires_grad


def test_users_hooks_stay(tower):
    calls = []
    tower.stem.register_forward_hook(lambda *_: calls.append(1))
    with record(tower, ["stem"]):
        tower(torch.randn(2, 4))
    tower(torch.randn(2, 4))
    assert len(calls) == 2


def test_two_records_at_once(tower):
    with record(tower, ["stem"]) as outer, record(tower, ["stem"]) as inner:
        tower(torch.randn(2, 4))
    assert torch.equal(outer["stem"], inner["stem"])
    assert hooks(tower) == 0


@pytest.mark.parametrize(
    ("path", "close"), [("stem.O", "stem.0"), ("agian", "again"), ("encoder.unused", "unused"), ("STEM", "there are")]
)
def test_unknown_path_names_the_closest(tower, path, close):
    with pytest.raises(ValueError, match=f"Tower has no layer '{path}'") as error:
        locate(tower, path)
    assert close in str(error.value)


def test_path_that_was_not_called(tower):
    with pytest.raises(RuntimeError, match=r"without calling \['unused'\]"), record(tower, ["stem", "unused"]):
        tower(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rnn", "'rnn' is a tuple of 2, not a tensor: name the entry, e.g. 'rnn:0', or take all of it, 'rnn:'"),
        (
            "both",
            "'both' is a dict with .'once', 'twice'., not a tensor: name the entry, e.g. 'both:once', or take all",
        ),
        ("rnn:1", "'rnn:1' is a tuple of 2, not a tensor: name the entry, e.g. 'rnn:1:0', or take all of it, 'rnn:1:'"),
        ("both:thrice", "asks for 'thrice' of a dict with .'once', 'twice'."),
        ("rnn:7", "asks for '7' of a tuple of 2"),
        ("stem:in:3", "asks for '3' of"),
        ("stem:0", "asks for '0' of a tensor of shape"),
        ("stem:key", "asks for 'key' of a tensor of shape"),
    ],
)
def test_wrong_entries(tower, path, message):
    with pytest.raises(ValueError, match=message), record(tower, [path]):
        tower(torch.randn(2, 4))


class Pyramid(nn.Module):
    """Levels by the names that torchvision's have, of images of any size."""

    def forward(self, images: list[Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        return {"1": scale * images[1], "0": scale * images[0], "pool": images[0].mean()}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.pool = Pyramid(), nn.Identity()

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        levels = self.backbone(images, scale=2.0)
        return [levels["0"], self.pool(levels["pool"])]


IMAGES = [torch.randn(1, 2), torch.randn(2, 3)]


def test_a_mappings_own_keys_come_before_positions():
    net = Detector()
    with record(net, ["backbone:0", "backbone:1", "backbone:pool", ":0"]) as trace:
        net(IMAGES)
    assert torch.equal(trace["backbone:0"], 2 * IMAGES[0])  # the key "0", not the first entry
    assert torch.equal(trace["backbone:1"], 2 * IMAGES[1])
    assert torch.equal(trace["backbone:pool"], IMAGES[0].mean())
    assert torch.equal(trace[":0"], 2 * IMAGES[0])
    with (
        pytest.raises(ValueError, match=r"'backbone:2' asks for '2' of a dict with .'1', '0', 'pool'."),
        record(net, ["backbone:2"]),
    ):
        net(IMAGES)


def test_a_mappings_numbers_are_keys_too():
    class Numbered(nn.Module):
        def forward(self, x: Tensor) -> dict[int, Tensor]:
            return {3: x, 4: 2 * x}

    net = nn.Sequential(Numbered())
    with record(net, ["0:4"]) as trace:
        net(IMAGES[0])
    assert torch.equal(trace["0:4"], 2 * IMAGES[0])


def test_all_that_a_module_gives_and_takes():
    net = Detector()
    paths = [
        "backbone:",
        "backbone:in:",
        "backbone:in:0:",
        "backbone:in:scale:",
        "backbone:in:0:1",
        ":",
        ":in:0:",
        "pool:",
    ]
    with record(net, paths) as trace:
        out = net(IMAGES)
    assert set(trace["backbone:"]) == {"0", "1", "pool"}
    assert trace["backbone:in:"][0] is trace["backbone:in:0:"] is trace[":in:0:"] is IMAGES  # lists are not copied
    assert trace["backbone:in:0:1"] is IMAGES[1]
    assert trace["backbone:in:scale:"] == trace["backbone:in:"]["scale"] == 2.0
    assert trace[":"] is out
    assert torch.equal(trace["pool:"], IMAGES[0].mean())
    assert hooks(net) == 0


def test_a_list_is_no_tensor():
    net = Detector()
    with (
        pytest.raises(ValueError, match=r"'backbone:in' is a list of 2, not a tensor: .*'backbone:in:0'"),
        record(net, ["backbone:in"]),
    ):
        net(IMAGES)


def test_fields_of_a_dataclass():
    net = nn.Sequential(Answers())
    with record(net, ["0:scores", "0:pair:1"]) as trace:
        out = net(torch.ones(2))
    assert trace["0:scores"] is out.scores
    assert trace["0:pair:1"] is out.pair[1]
    with (
        pytest.raises(ValueError, match=r"'0:score' asks for 'score' of an Answer with .'scores', 'pair'."),
        record(net, ["0:score"]),
    ):
        net(torch.ones(2))


@dataclass
class Answer:
    scores: Tensor
    pair: tuple[Tensor, Tensor]


class Answers(nn.Module):
    def forward(self, x: Tensor) -> Answer:
        return Answer(x, (x + 1, x + 2))


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("before", [False, True])
def test_a_compiled_model_shows_its_latest_call_whenever_it_was_compiled(before):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    compiled, reference = torch.compile(copy.deepcopy(model), backend="eager"), model
    if before:
        compiled(torch.ones(2, 4))
        reference(torch.ones(2, 4))
    for _ in range(3):  # training with a validation after each epoch
        x = torch.randn(5, 4)
        with record(compiled.train(), ["1", "3:in", "2:in"]) as got:
            compiled(x)
        with record(reference.train(), ["1", "3:in", "2:in"]) as expected:
            reference(x)
        for path in expected:
            torch.testing.assert_close(got[path], expected[path])
        kept = got["1"].clone()
        torch.testing.assert_close(compiled.eval()(x), reference.eval()(x))
        assert torch.equal(got["1"], kept)
    assert hooks(compiled) == 0


@pytest.mark.usefixtures("compiler")
def test_compiled_part_of_a_model():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    x = torch.randn(2, 4)
    expected = model[0][0](x)
    model[0] = torch.compile(model[0], backend="eager")
    with record(model, ["0", "0.0", "1:in"]) as trace:
        model(x)
    torch.testing.assert_close(trace["0.0"], expected)
    torch.testing.assert_close(trace["0"], expected.relu())
    torch.testing.assert_close(trace["1:in"], trace["0"])
