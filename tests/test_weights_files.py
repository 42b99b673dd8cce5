"""Usual files of weights load; what cannot be loaded is refused by its name, and nothing in it is run."""

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import limbeck
from limbeck import zoo
from limbeck.cli import main
from limbeck.core.files import keep
from limbeck.engine.run import Run, packed

NAME, SHAPE = "mlp-8-8", (6,)


def net(seed: int = 0, outputs: int = 3, name: str = NAME) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.network(name, outputs, SHAPE)


def load(file: object, outputs: int = 3, **options: bool) -> nn.Module:
    torch.manual_seed(99)
    return zoo.network(f"{NAME}@{file}", outputs, SHAPE, **options)


def refused(file: object, words: str, outputs: int = 3, **options: bool) -> None:
    with pytest.raises(ValueError, match=words):
        load(file, outputs, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


STATE = net().state_dict()
OTHER = net(1).state_dict()


def prefixed(prefix: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in (STATE if state is None else state).items()}


class AttributesDict(dict):
    """A dictionary whose entries are attributes too, as the settings of many trainers are."""

    def __init__(self, entries: dict[str, object]) -> None:
        super().__init__(entries)
        self.__dict__.update(entries)


class Heads(nn.Module):
    """A network with a dictionary of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"one": nn.Linear(2, 2)})


class Strange:
    """What checkpoints have beside weights; to make it again would be to run something."""

    def __reduce__(self):
        return (os.mkdir, ("was_run",))


# what loads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", ["", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".model", ".pth.tar", ".safetensors", ".x y"]
)
@pytest.mark.parametrize("form", ["torch", "torch before 1.6", "safetensors"])
def test_the_content_counts_and_not_the_suffix(tmp_path: Path, suffix: str, form: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if form == "safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=form == "torch")
    assert same(load(file), net())


CHECKPOINTS = {
    "state_dict": {"epoch": 3, "state_dict": STATE},
    "model_state_dict": {
        "model_state_dict": STATE,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}},
    },
    "any other key": {"my very own": STATE, "best_acc1": torch.tensor(71.0)},
    "nested twice": {"trainer": {"student": STATE}, "epoch": torch.tensor(3)},
    "of Lightning": {
        "state_dict": prefixed("model."),
        "pytorch-lightning_version": "2.5",
        "loops": {},
        "callbacks": {},
    },
    "of timm": {"arch": "x", "state_dict": STATE, "args": argparse.Namespace(lr=0.1), "metric": np.float64(3)},
    "flat, with numbers": {**STATE, "epoch": 3, "name": "x"},
    "one prefix": prefixed("backbone."),
    "two prefixes": prefixed("net.model."),
    "prefix and key": {"params": prefixed("_orig_mod.module.")},
    "arrays of numpy": {name: value.numpy() for name, value in STATE.items()},
    "arrays of the other byte order": {name: value.numpy().astype(">f4") for name, value in STATE.items()},
    "parameters": OrderedDict((name, nn.Parameter(value)) for name, value in STATE.items()),
    "double": {name: value.double() for name, value in STATE.items()},
    "the optimizer has the names, too": {"optimizer": dict(OTHER), "net": STATE},
    "a defaultdict": defaultdict(dict, {"net": STATE}),
    "settings with attributes": {"state_dict": STATE, "cfg": AttributesDict({"lr": 0.1})},
    "in a dictionary with attributes": {"net": AttributesDict(dict(STATE))},
    "the same twice": {"last": STATE, "best": {name: value.clone() for name, value in STATE.items()}},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_usual_checkpoints_load(tmp_path: Path, form: str) -> None:
    torch.save(CHECKPOINTS[form], tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing to tell
        assert same(load(tmp_path / "a.pt"), net())


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_pickled_beside_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": STATE, "path": Path("x"), "hyper": defaultdict(list, {"a": [1]})}
    torch.save(content, "a.pt", _use_new_zipfile_serialization=not legacy)
    assert same(load("a.pt"), net())
    torch.save({**content, "hook": nn.Linear(2, 2)}, "a.pt", _use_new_zipfile_serialization=not legacy)
    if legacy:  # which cannot be read past a network
        refused("a.pt", "a whole network was pickled in it")
    else:
        assert same(load("a.pt"), net())
    torch.save({"state_dict": STATE, "strange": Strange()}, "b.pt", _use_new_zipfile_serialization=not legacy)
    refused("b.pt", "b.pt cannot be read .*posix")  # torch blocks these modules altogether
    assert not Path("was_run").exists()


def test_half_precision_loads_into_float32(tmp_path: Path) -> None:
    torch.save({name: value.bfloat16() for name, value in STATE.items()}, tmp_path / "a.pt")
    loaded = load(tmp_path / "a.pt")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert torch.equal(loaded.layers.fc1.weight, STATE["layers.fc1.weight"].bfloat16().float())


def test_a_wrapped_network_takes_plain_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = "from torch import nn\n\ndef make():\n    return nn.DataParallel(nn.Linear(3, 2))\n"
    (tmp_path / "wrapped_net.py").write_text(make)
    monkeypatch.chdir(tmp_path)
    linear = nn.Linear(3, 2)
    torch.save(linear.state_dict(), "a.pt")
    loaded = zoo.network("wrapped_net:make@a.pt", 2, (3,))
    assert torch.equal(loaded.module.weight, linear.weight)


TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

class Stateful(nn.Linear):
    kept = None
    def __init__(self):
        super().__init__(3, 2)
    def get_extra_state(self):
        return {"steps": 7}
    def set_extra_state(self, state):
        self.kept = state

def lazy():
    return nn.LazyLinear(2)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, with a name of its own for each test: modules stay imported."""
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(TIED)
    monkeypatch.chdir(tmp_path)
    return name


def test_tied_weights_may_be_there_once_and_must_agree(mine: str) -> None:
    state = zoo.network(f"{mine}:Tied").state_dict()
    save_file({name: value for name, value in state.items() if name != "two.weight"}, "once.safetensors")
    loaded = zoo.network(f"{mine}:Tied@once.safetensors")
    assert torch.equal(loaded.two.weight, state["one.weight"])
    torch.save({**state, "two.weight": torch.zeros(3, 3)}, "twice.pt")
    with pytest.raises(ValueError, match=r"one.weight and two.weight are one tensor .* two that differ in twice.pt"):
        zoo.network(f"{mine}:Tied@twice.pt")


def test_state_that_is_no_tensor_comes_back(mine: str) -> None:
    torch.save(zoo.network(f"{mine}:Stateful").state_dict(), "a.pt")
    assert zoo.network(f"{mine}:Stateful@a.pt").kept == {"steps": 7}
    Path("b.safetensors").write_bytes(packed(zoo.network(f"{mine}:Stateful")))
    assert zoo.network(f"{mine}:Stateful@b.safetensors").kept == {"steps": 7}


def test_lazy_layers_take_their_shape_from_the_file(mine: str) -> None:
    torch.save(nn.Linear(5, 2).state_dict(), "a.pt")
    assert zoo.network(f"{mine}:lazy@a.pt").weight.shape == (2, 5)


# several in one file -------------------------------------------------------------------------------------------------


def test_the_trained_one_is_taken_before_its_average_which_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": STATE, "state_dict_ema": OTHER}, file)
    with pytest.warns(UserWarning, match=r"under 'state_dict' is taken; averages .*/a.ckpt:state_dict_ema"):
        assert same(load(file), net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load(f"{file}:state_dict_ema"), net(1))
    torch.save({"params_ema": STATE}, file)
    assert same(load(file), net())  # where it is all there is


def test_several_that_differ_must_be_chosen_from(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"best": STATE, "last": OTHER}, file)
    refused(file, "has 2 weights that fit: say which, .*a.pt:best or .*a.pt:last")
    assert same(load(f"{file}:last"), net(1))
    refused(f"{file}:first", "has nothing under 'first': it has best")


def test_what_stands_beside_a_network_is_left_out_and_told(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": prefixed("student.") | prefixed("teacher.", net(1, name="mlp-99").state_dict())}, file)
    with pytest.warns(UserWarning, match=r"under 'state_dict.student' is taken, and teacher left out"):
        assert same(load(file), net())
    save_file(prefixed("one.") | prefixed("two.", OTHER), tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "say which, .*a.safetensors:one or .*a.safetensors:two")
    with pytest.warns(UserWarning, match="left out"):
        assert same(load(tmp_path / "a.safetensors:two"), net(1))


def test_hostile_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b@c:d" / "ü[red]"
    folder.mkdir(parents=True)
    torch.save({"best": STATE, "last": OTHER}, folder / "e:f.pt")
    monkeypatch.chdir(folder)
    assert same(load("e:f.pt:last"), net(1))
    assert same(load(f"{folder}/e:f.pt:best"), net())
    torch.save(OTHER, "e:f.pt:best")
    assert same(load("e:f.pt:best"), net(1))  # a file of that very name comes first
    monkeypatch.setenv("HOME", str(folder))
    assert same(load("~/e:f.pt:best"), net(1))
    refused("~nobody-here/x.pt", "no such file of weights")


# what does not load --------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
STRANGERS = {
    "empty": (b"", "is empty"),
    "a git-lfs pointer": (POINTER, "a git-lfs pointer .*git lfs pull"),
    "text": (b"epoch,loss\n1,0.3\n", "a text file, which begins with 'epoch,loss"),
    "a page": ("<!DOCTYPE html><title>Sign in – ü</title>".encode(), "a text file, which begins with '<!DOCTYPE"),
    "an ONNX graph": (b"\x08\x08\x12\x07pytorch\x1a\x052.5.1", "an ONNX graph"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file, as Keras"),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "compressed by gzip: unpack it first"),
    "a pickle": (pickle.dumps({"a": [1.0]}), "a pickle, which could run any code and is not opened"),
    "noise": (b"\xff\xfe\x00\x01" * 20, "no file of weights that can be told"),
    "half a zip": (b"PK\x03\x04" + bytes(200), "damaged: it was cut short"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("what", STRANGERS)
def test_other_files_are_refused_by_name(tmp_path: Path, what: str, suffix: str) -> None:
    content, words = STRANGERS[what]
    (tmp_path / f"a{suffix}").write_bytes(content)
    if suffix == ".safetensors" and what == "noise":
        words = "cannot be read as safetensors .*damaged, or another file"
    refused(tmp_path / f"a{suffix}", f"^{NAME}: .*a{re.escape(suffix)} (is )?{words}")


def test_archives_are_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "a.npz", fc=np.zeros(3))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as parts:
        parts.writestr("readme.txt", "hello")
    for file, words in {
        "a.npy": "one array of numpy",
        "a.npz": "an archive of numpy arrays",
        "script.pt": r"an archive of TorchScript.*torch.jit.load\(path\).state_dict",
        "program.pt2": "a program of torch.export",
        "a.zip": "a zip archive of readme.txt",
    }.items():
        refused(tmp_path / file, words)


@pytest.mark.parametrize(("suffix", "legacy"), [(".pt", False), (".pt", True), (".safetensors", False)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str, legacy: bool, share: float) -> None:
    file = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(STATE, file, _use_new_zipfile_serialization=not legacy)
    else:
        file.write_bytes(packed(net()))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(file, f"{NAME}: .*a{suffix} .*(damaged|cannot be read)")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flipped_bit_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(STATE, file)
    else:
        file.write_bytes(packed(net()))
    content, weights = bytearray(file.read_bytes()), STATE["layers.fc1.weight"].numpy().tobytes()
    content[content.index(weights) + 5] ^= 4
    file.write_bytes(content)
    refused(file, f"a{suffix} is damaged")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "has no tensors: it is empty inside"),
        ({"epoch": 3, "lr": [0.1]}, "has no tensors: it holds epoch, lr"),
        ({"model": nn.Linear(2, 2)}, r"holds under 'model' a whole network \(torch.nn.modules.linear.Linear\)"),
        ({"model": Heads()}, r"holds under 'model' a whole network \(.*Heads\)"),
        (Heads(), r"holds a whole network \(.*Heads\)"),
        (3, "got a int"),
        ({**STATE, "layers.fc1.bias": "gone"}, r"missing .*layers.fc1.bias \(there it is no tensor, but str\)"),
        (
            {name: value.to(torch.int8) for name, value in STATE.items()},
            "other kind of number .*file int8, network float32",
        ),
        ({name: value.to("meta") for name, value in STATE.items()}, "has no values"),
        (
            {name.replace("fc2", "fc9"): value for name, value in STATE.items()},
            r"fc2.weight \(closest there: layers.fc9.weight",
        ),
        (
            {**STATE, "layers.fc2.weight": torch.full((8, 8), torch.nan)},
            "not finite: layers.fc2.weight has 64 of 64 values",
        ),
        ({**STATE, "layers.fc2.bias": torch.tensor([torch.inf] * 8)}, "not finite: layers.fc2.bias has 8 of 8"),
    ],
)
def test_contents_that_are_no_weights_of_the_network(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", words)


# a fresh last layer --------------------------------------------------------------------------------------------------


def test_a_fresh_last_layer_is_asked_for_told_and_drawn_by_the_seed(tmp_path: Path) -> None:
    save_file(net(outputs=7).state_dict(), tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "trained for 7 classes, the data has 3.*layers.fc3, fits: .*--new-head")
    with pytest.warns(UserWarning, match=r"the last layer, layers.fc3, is fresh .*: 3 outputs in place of 7"):
        loaded = load(tmp_path / "a.safetensors", new_head=True)
    fresh, torch_state = net(99), net(outputs=7).state_dict()
    assert torch.equal(loaded.layers.fc3.weight, fresh.layers.fc3.weight)
    assert torch.equal(loaded.layers.fc2.weight, torch_state["layers.fc2.weight"])


def test_a_file_without_a_last_layer_may_have_a_fresh_one(tmp_path: Path) -> None:
    torch.save({name: value for name, value in STATE.items() if "fc3" not in name}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "missing in the file .2.: layers.fc3.weight.*--new-head")
    with pytest.warns(UserWarning, match="3 outputs where the file has none"):
        loaded = load(tmp_path / "a.pt", new_head=True)
    assert torch.equal(loaded.layers.fc1.weight, STATE["layers.fc1.weight"])


@pytest.mark.parametrize("name", ["mlp-8-9", "mlp-9-8", "mlp-8"])
def test_nothing_but_the_last_layer_may_be_fresh(tmp_path: Path, name: str) -> None:
    torch.save(net(outputs=7, name=name).state_dict(), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "do not fit the network", new_head=True)
    state = {name: value for name, value in STATE.items() if name != "layers.fc3.bias"}
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "missing in the file .1.: layers.fc3.bias", new_head=True)


def test_all_exits_begin_anew_together(tmp_path: Path) -> None:
    early = limbeck.with_exits(net(outputs=7), torch.zeros(2, 6))
    (tmp_path / "early.safetensors").write_bytes(packed(early))
    with pytest.warns(UserWarning, match="the last layer, .*exits.*fc3"):
        loaded = load(tmp_path / "early.safetensors", new_head=True)
    assert loaded(torch.zeros(2, 6)).shape == (2, 3)


@pytest.fixture
def torchvisions(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """What torchvision would download, by the model's name."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(5)
    states = {name: models.get_model(name, weights=None).state_dict() for name in ("shufflenet_v2_x0_5", "googlenet")}

    def fetch(url: str, **_: object) -> dict[str, torch.Tensor]:
        name = "googlenet" if "googlenet" in url else "shufflenet_v2_x0_5"
        return dict(states[name])

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return states


def test_torchvisions_weights_get_a_fresh_last_layer(torchvisions: dict[str, dict[str, torch.Tensor]]) -> None:
    name, state = "torchvision:shufflenet_v2_x0_5@pretrained", torchvisions["shufflenet_v2_x0_5"]
    with pytest.warns(UserWarning, match=r"the last layer, fc, is fresh .*: 10 outputs in place of 1000"):
        one = zoo.network(name, 10, (3, 32, 32))
    assert torch.equal(one.conv1[0].weight, state["conv1.0.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(zoo.network(name, 1000, (3, 32, 32)).fc.weight, state["fc.weight"])
    with pytest.raises(ValueError, match="has 1000 classes, the data has 10"):
        zoo.network(name, 10, (3, 32, 32), new_head=False)


def test_a_fresh_last_layer_keeps_what_else_a_pretrained_network_does(
    torchvisions: dict[str, dict[str, torch.Tensor]],
) -> None:
    with pytest.warns(UserWarning, match="the last layer, fc, is fresh"):
        googlenet = zoo.network("torchvision:googlenet@pretrained", 4, (3, 64, 64))
    assert googlenet.transform_input  # it rescales its inputs as its weights expect


def test_timms_weights_get_a_fresh_last_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    state = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda _: ("state_dict", dict(state)))
    with pytest.warns(
        UserWarning, match=r"timm:resnet10t@pretrained: the last layer, fc, .*: 10 outputs in place of 1000"
    ):
        loaded = zoo.network("timm:resnet10t@pretrained", 10, (3, 32, 32))
    assert torch.equal(loaded.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert loaded.fc.out_features == 10


def test_weights_that_cannot_be_fetched_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    tries = []

    def fetch(url: str, **_: object) -> None:
        tries.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(ConnectionError, match=r"could not be fetched \(no route to host\).*torchvision:resnet18@FILE"):
        zoo.network("torchvision:resnet18@pretrained", 1000)
    assert len(tries) == 1


# runs ----------------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, name: str, networks: dict[str, nn.Module], epochs: int) -> Path:
    """A checkpoint as the engine writes it."""
    held = {each: {"state": module.state_dict(), "about": {"task": "multilabel"}} for each, module in networks.items()}
    history = [{"stage": "train", "epoch": epoch + 1} for epoch in range(epochs)]
    (folder / "config.yaml").write_text("epochs: 9\n")
    content = {"epoch": 1, "state_dict": {}, "limbeck": {"networks": held, "history": history}}
    return keep(folder / "checkpoints" / name, content)


def test_the_student_of_a_finished_run(tmp_path: Path) -> None:
    Run(tmp_path).write_networks({"student": net(), "peer": net(1)})
    Run(tmp_path).write_result({"finished": True, "networks": {"peer": {}, "student": {}}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load(tmp_path), net())
        assert same(load(f"{tmp_path}:peer"), net(1))
    refused(f"{tmp_path}:teacher", "has no weights of teacher.*it has peer, student")
    (tmp_path / "student.safetensors").unlink()
    assert same(load(tmp_path), net(1))  # that result.json names first


def test_the_student_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    checkpoint(tmp_path, "stage-0.ckpt", {"student": net(3)}, 2)
    checkpoint(tmp_path, "stage-10.ckpt", {"student": net(2)}, 4)
    with pytest.warns(UserWarning, match="is a run that is not finished: .* after 4 epochs"):
        assert same(load(tmp_path), net(2))
    last = checkpoint(tmp_path, "last.ckpt", {"peer": net(1), "student": net()}, 0)
    with pytest.warns(UserWarning, match="in its first epoch"):
        assert same(load(tmp_path), net())
    with pytest.warns(UserWarning, match="last.ckpt is a checkpoint of a training"):
        assert same(load(f"{last}:peer"), net(1))
    assert zoo.trained_for(f"{NAME}@{tmp_path}") == "multilabel"
    refused(f"{tmp_path}:teacher", "has no network 'teacher': it has peer, student")


def test_checkpoints_of_before_have_the_student_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 9\n")
    content = {"state_dict": prefixed("method.student."), "limbeck": {"history": [{"stage": "hint", "epoch": 1}]}}
    keep(tmp_path / "checkpoints" / "last.ckpt", content)
    with pytest.warns(UserWarning, match="not finished: .* after 1 epoch, in its stage hint"):
        assert same(load(tmp_path), net())


def test_folders_that_are_no_run_say_what_is_in_them(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder that is empty, and not a run")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "is a folder that holds notes.txt, and not a run")
    Run(tmp_path / "kd" / "seed-0").write_networks({"student": net()})
    (tmp_path / "kd" / "seed-0" / "config.yaml").write_text("epochs: 1\n")
    refused(tmp_path, "a folder with runs in it, and none itself: .* as .*kd/seed-0")
    assert same(load(tmp_path / "kd" / "seed-0"), net())
    (tmp_path / "kd" / "seed-0" / "result.json").write_text("[1, 2")
    refused(tmp_path / "kd" / "seed-0", "result.json cannot be read as json")


def test_a_run_that_has_trained_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    refused(tmp_path, "has no weights of student.*it has none yet; let the run go on")


# functions of the user's ---------------------------------------------------------------------------------------------

FACTORIES = """
import sys
from torch import nn

def leaves():
    sys.exit(7)

def leaves_quietly():
    raise SystemExit

def raises():
    return {}["width"]

def a_class():
    return nn.Linear

def nothing():
    nn.Linear(2, 2)

def needs(width, num_classes):
    return nn.Linear(width, num_classes)

def needs_by_place(num_classes, /):
    return nn.Linear(2, num_classes)

def takes_more(num_classes, *args, width=3, **more):
    return nn.Linear(width, num_classes)
"""


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("leaves", r"leaves\(\) ended the program, sys.exit\(7\) .*line 6"),
        ("leaves_quietly", r"ended the program, sys.exit\(\)"),
        ("raises", r"raises\(\) failed with KeyError: 'width' .*py, line 12"),
        ("a_class", r"got the class Linear: let it return Linear\(...\)"),
        ("nothing", "got NoneType None: is there a return at its end"),
        ("needs", "needs width, which nobody gives it"),
        ("needs_by_place", "needs num_classes, which nobody gives it"),
    ],
)
def test_factories_that_fail_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, words: str
) -> None:
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=words):
        zoo.network(f"{name}:{factory}")
    assert isinstance(zoo.network(f"{name}:takes_more"), nn.Linear)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", r"ended the program, sys.exit\(2\)"),
        ("def f(:\n", r"failed with SyntaxError: .*py, line 1"),
        ("width = 1 / 0", "failed with ZeroDivisionError"),
    ],
)
def test_modules_that_fail_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"importing {name} {words}"):
        zoo.network(f"{name}:make")


# on the command line -------------------------------------------------------------------------------------------------

COMMANDS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Broken(nn.Linear):
    def __init__(self, weight=0.0, last=0.0):
        super().__init__(6, 3)
        self.last = last
        if weight:
            nn.init.constant_(self.weight, weight)

    def forward(self, x):
        return super().forward(x) + torch.where(x[:, :1] > 2, self.last, 0.0)

def sound():
    return Broken()

def infinite():
    return Broken(weight=float("inf"))

def sometimes():
    return Broken(last=float("nan"))

def masked():
    return Broken(last=torch.tensor([0.0, 0.0, -float("inf")]))

def loader(size):
    x = torch.randn(60, size, generator=torch.Generator().manual_seed(0))
    x[-1, 0] = 3
    return DataLoader(TensorDataset(x, torch.arange(60) % 2), 20)

def data():
    return loader(6), loader(6), loader(6)

def larger():
    return loader(6), loader(6), loader(7)

def unequal():
    batches = [next(iter(loader(6))), next(iter(loader(5)))]
    return loader(6), loader(6), batches
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command with a module of the user's, ``M``; returns its exit code and what it said."""
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(COMMANDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own

    def run(words: str) -> tuple[int, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code = main([word.replace("M:", f"{name}:") for word in words.split()])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


@pytest.mark.parametrize(
    ("network", "data", "words"),
    [
        ("infinite", "data", r"infinite: its layer weight has values that are nan or infinite"),
        ("sometimes", "data", r"sometimes answers with values that are nan or infinite"),
        ("sound", "larger", r"made for inputs of shape \(6,\).*test data, \(7,\), they cannot take"),
        ("sound", "unequal", r"made for inputs of shape \(6,\).*test data, \(5,\), they cannot take"),
    ],
)
def test_eval_refuses_what_no_score_means_anything_of(command, network: str, data: str, words: str) -> None:
    code, said = command(f"eval --network M:{network} --data M:{data} --num-outputs 3")
    assert code == 2
    assert re.search(words, said), said


def test_eval_takes_classes_that_are_left_out(command) -> None:
    code, said = command("eval --network M:masked --data M:data --num-outputs 3")
    assert code == 0, said


def test_commands_begin_with_a_fresh_last_layer_and_teachers_do_not(command) -> None:
    torch.save(net(outputs=7).state_dict(), "seven.pt")
    rest = "--data M:data --num-outputs 3 --epochs 1 --progress false"
    code, said = command(f"train --network {NAME}@seven.pt {rest} --run-dir a")
    assert code == 2
    assert "trained for 7 classes" in said
    assert "may begin with a fresh one, --new-head" in said
    code, said = command(f"train --network {NAME}@seven.pt --new-head {rest} --run-dir b")
    assert code == 0, said
    assert "the last layer, layers.fc3, is fresh" in said
    code, said = command(f"distill kd --student {NAME}@b --teacher {NAME}@seven.pt --new-head {rest} --run-dir c")
    assert code == 2
    assert "trained for 7 classes" in said
    assert "a teacher, or a network that is measured or shipped, never has a fresh one" in said
    assert f"`limbeck train --network {NAME}@seven.pt --new-head`" in said
    assert "may begin" not in said
