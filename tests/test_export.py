"""`limbeck export`: every file is loaded again and answers as the network does, or it is not there."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchmetrics import MeanMetric, MetricCollection

import limbeck
from limbeck import Exported, ExportError, Frozen, Score, Task, export
from limbeck.cli import main
from limbeck.core.files import hold
from limbeck.core.task import answer_at
from limbeck.data import Data
from limbeck.tasks.classification import classification
from limbeck.tasks.multilabel import multilabel
from limbeck.tasks.regression import regression
from limbeck.verbs.export import FILES, console_table

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def briefly() -> Iterator[None]:
    """A file's time is measured in a moment: how long it takes is looked at nowhere here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.verbs.export.SECONDS", 0.001)
        yield


@pytest.fixture(scope="module")
def data() -> Data:
    return limbeck.data.load("digits", batch_size=100)  # 359 test images: the last batch is smaller


@pytest.fixture(scope="module")
def net(data: Data) -> nn.Module:
    """A network in train mode, with dropout and batch norm, which an export must see in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)]
        net = nn.Sequential(*hidden, nn.Linear(32, data.outputs))
        taught(net, [(inputs, targets) for _ in range(8) for inputs, targets, _ in data.train])
    return net.train()


@pytest.fixture(scope="module")
def shipped(net: nn.Module, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(net, data, tmp_path_factory.mktemp("shipped"), name="small")


def taught(net: nn.Module, batches: Batches) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    update_bn(batches, net)  # a few steps are too few for running statistics, of mobile networks above all
    return net


def coloured(data: Data, split: str) -> Batches:
    """The digits as photographs: three channels, 32 pixels a side."""
    loader = getattr(data, split).plain()
    return [(F.interpolate(x, size=32, mode="bilinear").expand(-1, 3, -1, -1).clone(), y) for x, y, _ in loader]


def session(exported: Exported, format: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.folder / FILES[format], providers=["CPUExecutionProvider"])


def named(exported: Exported) -> dict[str, Any]:
    return {artefact.format: artefact for artefact in exported.artefacts}


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Linear(nn.Module):
    """What the awkward networks below have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def logits(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Branching(Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = self.logits(x)
        if y.sum() > 0:  # the line
            return y
        return -y


class Counting(Linear):
    """Knows the number of its samples from a Python loop."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.logits(one[None])[0] for one in [x[i] for i in range(x.shape[0])]])


class Untranslatable(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.logits(x))  # no such thing in ONNX


class Noisy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) + torch.rand(10)


class Named(Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.flatten(1), "logits": self.logits(x)}


class Pair(Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(x), x


# what is written -----------------------------------------------------------------------------------------------------


def test_every_file_is_there_with_its_numbers(shipped, net, data):
    assert left(shipped.folder) == {*FILES.values(), "export.json"}
    assert not shipped.failures
    own = limbeck.evaluate(net, data.test)["accuracy"]
    assert shipped.value == pytest.approx(own)
    assert shipped.samples == 359
    for artefact in shipped.artefacts:
        assert artefact.bytes == (shipped.folder / artefact.file).stat().st_size
        assert artefact.latency_ms > 0
        if artefact.format != "int8":
            assert artefact.difference <= 1e-5
            assert artefact.value == shipped.value
    artefacts = named(shipped)
    assert 0 < artefacts["int8"].difference < 1
    assert abs(artefacts["int8"].value - own) < 0.03
    assert artefacts["int8"].bytes < artefacts["onnx"].bytes
    assert json.loads((shipped.folder / "export.json").read_text()) == json.loads(shipped.json())


def test_safetensors_load_into_a_plain_network_and_know_what_they_are(shipped, net, data):
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )
    file = shipped.folder / "student.safetensors"
    plain.load_state_dict(load_file(file))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in plain.state_dict().items())
    with safe_open(file, "pt") as opened:
        assert_about(opened.metadata(), data)


def test_graphs_know_what_they_are_and_take_any_number_of_samples(shipped, net, data):
    inputs, _, _ = next(iter(data.test))
    expected = net.eval()(inputs).detach().numpy()
    net.train()
    for format in ("onnx", "int8"):
        model = session(shipped, format)
        assert_about(model.get_modelmeta().custom_metadata_map, data)
        assert (model.get_inputs()[0].name, model.get_inputs()[0].shape) == ("input", ["batch", 1, 8, 8])
        for count in (1, 2, 7, 100):
            (logits,) = model.run(["logits"], {"input": inputs[:count].numpy()})
            np.testing.assert_allclose(logits, expected[:count], atol=1e-4 if format == "onnx" else 0.5)
    note = {"limbeck.json": ""}
    program = torch.export.load(shipped.folder / "student.pt2", extra_files=note).module()
    assert_about(json.loads(note["limbeck.json"]), data)
    for count in (1, 2, 7, 100):
        np.testing.assert_allclose(program(inputs[:count]).detach().numpy(), expected[:count], atol=1e-5)


def test_a_network_with_exits_ships_all_of_them(net, data, tmp_path):
    early = limbeck.with_exits(copy.deepcopy(net), data.example(2), ["1"])
    x = next(iter(data.test))[0]
    sure = early.eval().all_exits(x)[0].detach().softmax(1).amax(1).sort().values
    early.set_thresholds([float(sure[len(sure) // 2 : len(sure) // 2 + 2].mean())])  # between two samples
    exported = export(early, data, tmp_path, formats=["safetensors", "torch_export", "onnx"], name="early")
    assert exported.value == named(exported)["onnx"].value == named(exported)["torch_export"].value
    said, taken = early.answer(x)
    assert set(taken.tolist()) == {0, 1}
    for count in (1, len(x)):
        logits, exits = session(exported, "onnx").run(["logits", "exits"], {"input": x[:count].numpy()})
        np.testing.assert_allclose(logits, said[:count].detach().numpy(), atol=1e-4)
        np.testing.assert_allclose(exits, torch.stack(early.all_exits(x[:count]), 1).detach().numpy(), atol=1e-4)
    with safe_open(tmp_path / "student.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["exits"]) == ["1"]


def assert_about(told: Mapping[str, str], data: Data) -> None:
    assert told["network"] == "small"
    assert told["limbeck"] == importlib.metadata.version("limbeck")
    assert told["data"] == "digits"
    assert json.loads(told["input_shape"]) == [1, 8, 8]
    assert tuple(json.loads(told["classes"])) == data.classes
    pixels = data.test.images[:3] / 255
    mean, std = (torch.tensor(json.loads(told[name]))[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((pixels - mean) / std, next(iter(data.test))[0][:3])


def test_the_network_is_left_as_it_was(net, data, tmp_path):
    hooked = []
    handle = net[1].register_forward_hook(lambda *_: hooked.append(1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    requires = [parameter.requires_grad for parameter in net.parameters()]
    export(net, data, tmp_path, formats=["safetensors", "torch_export"])
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == requires
    assert len(net[1]._forward_hooks) == 1
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_compiled_network_ships_as_the_plain_one(net, data, tmp_path):
    exported = export(torch.compile(net), data, tmp_path, formats=["safetensors"])
    assert load_file(tmp_path / "student.safetensors").keys() == net.state_dict().keys()
    assert exported.artefacts[0].difference == 0


def test_drafts_of_a_killed_export_are_taken_away_and_those_of_another_that_runs_are_not(net, data, tmp_path):
    killed, running = tmp_path / ".export-killed", tmp_path / ".export-running"
    for folder in (killed, running):
        folder.mkdir()
        (folder / "student.onnx").write_bytes(b"half")
    (killed / "lock").touch()
    with hold(running / "lock"):
        export(net, data, tmp_path, formats=["safetensors"])
    assert {path.name for path in tmp_path.iterdir()} == {running.name, "student.safetensors", "export.json"}
    export(net, data, tmp_path, formats=["safetensors"])
    assert not running.exists()


def test_an_ensemble_ships_as_one_network(net, data, tmp_path):
    exported = export(limbeck.Ensemble([net, copy.deepcopy(net)]), data, tmp_path, formats=["torch_export", "onnx"])
    assert not exported.failures
    assert max(artefact.difference for artefact in exported.artefacts) < 1e-4


@pytest.mark.parametrize("name", ["resnet8", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet"])
def test_onnx_agrees_with_the_networks_of_zoo_torchvision_and_timm(name, data, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = taught(limbeck.zoo.network(name, 10, (3, 32, 32)), coloured(data, "train"))
    test = coloured(data, "test")[-2:]
    exported = export(network, test, tmp_path, formats=["onnx", "int8"])
    assert max(float(network.eval()(x).detach().abs().max()) for x, _ in test) > 1  # or 1e-4 would say nothing
    artefacts = named(exported)
    assert artefacts["onnx"].difference < 1e-4
    assert artefacts["onnx"].value == exported.value > 0.3
    assert abs(artefacts["int8"].value - exported.value) < 0.05
    assert artefacts["int8"].bytes < 0.6 * artefacts["onnx"].bytes
    operations = Counter(node.op_type for node in onnx.load(tmp_path / "student.int8.onnx").graph.node)
    assert operations["ConvInteger"]
    assert "classes" not in exported.about  # nobody told


# other tasks, other networks -----------------------------------------------------------------------------------------

DRAW = torch.Generator().manual_seed(0)


def told(exported: Exported) -> dict[str, Any]:
    return json.loads((exported.folder / "export.json").read_text())


class House(nn.Module):
    """A house model: it is given its image by name, and answers with a dict."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(12, 8), nn.Linear(8, outputs)

    def forward(self, image: Tensor, path: list[str] | None = None) -> dict[str, Any]:
        features = self.hidden(image.flatten(1)).relu()
        return {"features": features, "scores": self.head(features), "path": path}


def house_batches(targets: Callable[[int], Tensor]) -> list[dict[str, Any]]:
    """Batches of the user's own, which name their columns; the last is smaller."""
    return [
        {"image": torch.randn(count, 3, 2, 2, generator=DRAW), "label": targets(count), "path": ["a.png"] * count}
        for count in (8, 5)
    ]


def classes(count: int) -> Tensor:
    return torch.randint(3, (count,), generator=DRAW)


def scores(out: dict[str, Any]) -> Tensor:
    return out["scores"]


def image_by_name(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"image": batch["image"]}


HOUSE = Task(inputs=image_by_name, output=scores)


def test_a_network_of_dicts_ships_on_dict_batches_with_its_names(tmp_path):
    net, batches = House().eval(), house_batches(classes)
    exported = export(net, batches, tmp_path, task=HOUSE)
    assert not exported.failures
    assert exported.samples == 13
    assert exported.value == pytest.approx(limbeck.evaluate(net, batches, HOUSE)["accuracy"])
    assert exported.about["input_shape"] == {"image": [3, 2, 2]}
    assert max(one.difference for one in exported.artefacts if one.format != "int8") < 1e-5
    images = torch.randn(7, 3, 2, 2, generator=DRAW)
    expected = net(images)["scores"].detach()
    program = torch.export.load(tmp_path / "student.pt2").module()
    torch.testing.assert_close(program(image=images), expected)
    for format in ("onnx", "int8"):
        (given,), (answer,) = session(exported, format).get_inputs(), session(exported, format).get_outputs()
        assert (given.name, given.shape, answer.name) == ("image", ["batch", 3, 2, 2], "logits")
    (logits,) = session(exported, "onnx").run(None, {"image": images.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    House().load_state_dict(load_file(tmp_path / "student.safetensors"))


def test_values_ship_with_their_score(tmp_path):
    net, batches = House(outputs=1), house_batches(lambda count: torch.randn(count, generator=DRAW))
    task = replace(regression, inputs=lambda batch: batch["image"], output=scores)
    exported = export(net, batches, tmp_path, formats=["safetensors", "onnx"], task=task)
    rmse = limbeck.evaluate(net, batches, task)["RMSE"]
    assert [exported.value, *(one.value for one in exported.artefacts)] == pytest.approx([rmse] * 3)
    assert told(exported)["RMSE"] == exported.value
    assert told(exported)["artefacts"][1]["RMSE"] == exported.artefacts[1].value
    assert not {"score", "value", "accuracy"} & told(exported).keys()
    assert [output.name for output in session(exported, "onnx").get_outputs()] == ["output"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(console_table(exported))
    shown = console.export_text()
    assert "RMSE" in shown
    assert regression.score.show(rmse) in shown
    assert "%" not in shown


def test_several_labels_a_sample_ship_with_their_precision(tmp_path):
    net, batches = House(outputs=4), house_batches(lambda count: torch.randint(2, (count, 4), generator=DRAW))
    task = replace(multilabel, inputs=image_by_name, output=scores)
    exported = export(net, batches, tmp_path, formats=["torch_export"], task=task)
    assert told(exported)["mAP"] == exported.artefacts[0].value == exported.value
    assert exported.samples == 13  # and not 4 times as many


def test_the_data_say_the_task_and_the_argument_wins(net, data, tmp_path):
    by_loss = replace(classification, score=Score("loss", unit="nats", best="lowest"))
    own = export(net, replace(data, task=by_loss), tmp_path, formats=["safetensors"])
    assert (own.score, told(own)["loss"]) == (by_loss.score, own.value)
    given = export(net, replace(data, task=by_loss), tmp_path, formats=["safetensors"], task=classification)
    assert given.score.name == "accuracy"


@dataclass
class Said:
    logits: Tensor
    pooled: Tensor


class Reader(nn.Module):
    """A language model's kind: tokens and their mask by name, arguments that nobody gives, a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Said:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (self.words(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Said(self.fc(pooled), pooled)


def test_texts_ship_for_any_length(tmp_path):
    batches = [
        {
            "attention_mask": torch.ones(4, length).long(),
            "input_ids": torch.randint(20, (4, length)),
            "labels": classes(4),
        }
        for length in (7, 3)
    ]
    exported = export(Reader(), batches, tmp_path, formats=["torch_export", "onnx"])
    assert max(one.difference for one in exported.artefacts) < 1e-5
    assert [one.name for one in session(exported, "onnx").get_inputs()] == ["attention_mask", "input_ids"]


def test_a_teacher_ships_as_its_own_view_sees_it(tmp_path):
    net, batches = House().eval(), [(torch.randn(4, 3, 1, 1, generator=DRAW), classes(4).clamp(max=1))]
    view = Frozen(net, inputs=lambda x: x.expand(-1, -1, 2, 2), output=scores, classes=[2, 0])
    exported = export(view, batches, tmp_path, formats=["torch_export"])
    wide = torch.randn(3, 3, 2, 2, generator=DRAW)
    program = torch.export.load(tmp_path / "student.pt2").module()
    torch.testing.assert_close(program(wide), net(wide)["scores"][:, [2, 0]].detach())
    assert exported.about["input_shape"] == [3, 2, 2]


class Boxes(nn.Module):
    """A detector's kind: ragged images, and as many boxes a sample as it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"boxes": self.fc(image.flatten(1).T), "labels": torch.arange(image[0].numel())} for image in images]


class Found(MeanMetric):
    def update(self, answer: Any, target: Any) -> None:
        super().update(float(sum(len(one["boxes"]) for one in answer)) / len(target))


def test_a_detector_ships_its_weights_and_says_why_no_graph(tmp_path):
    batches = [([torch.randn(3, 2, 2), torch.randn(3, 1, 4)], [{"boxes": torch.ones(1, 4)}] * 2)]
    task = Task(
        name="detection",
        output=lambda out: out,
        metrics=lambda answer: MetricCollection({"boxes": Found()}),
        score=Score("boxes", unit=""),
        guess=None,
    )
    with pytest.raises(
        ExportError, match=r"^torch_export: a graph takes tensors .* and here 'input' is a list of 2"
    ) as caught:
        export(Boxes(), batches, tmp_path, formats=["safetensors", "torch_export"], task=task)
    (weights,) = caught.value.exported.artefacts
    assert (weights.format, weights.value, weights.difference) == ("safetensors", 4.0, 0.0)
    assert left(tmp_path) == {"student.safetensors", "export.json"}


def test_paths_do_not_enter_a_graph(tmp_path):
    task = Task(inputs=lambda batch: {"image": batch["image"], "path": batch["path"]}, output=scores)
    with pytest.raises(
        ExportError, match=r"torch_export, onnx: .*'path' is a list of 2\. Leave out .*formats=\['safet"
    ):
        export(House(), house_batches(classes), tmp_path, formats=["torch_export", "onnx"], task=task)


# what fails ----------------------------------------------------------------------------------------------------------


def test_what_differs_is_not_written_and_takes_the_file_of_a_former_export_away(data, tmp_path):
    (tmp_path / "student.pt2").write_text("of a former export")
    (tmp_path / "student.safetensors").write_text("weights that nobody else has")
    with pytest.raises(
        ExportError, match=r"differs from the network by up to [\d.]+, more than the tolerance of 0.0001"
    ) as caught:
        export(Noisy(), data, tmp_path, formats=["safetensors", "torch_export"])
    assert "torch_export: " in str(caught.value)
    assert not caught.value.exported.artefacts
    assert left(tmp_path) == {"student.safetensors", "export.json"}
    assert (tmp_path / "student.safetensors").read_text() == "weights that nobody else has"


def test_int8_is_not_made_of_a_graph_that_differs(net, data, tmp_path):
    with pytest.raises(
        ExportError, match=r"^onnx, int8: differs from the network by up to .* tolerance of 0, "
    ) as caught:
        export(net, data, tmp_path, tolerance=0.0)
    assert named(caught.value.exported).keys() == {"safetensors", "torch_export"}
    assert left(tmp_path) == {"student.safetensors", "student.pt2", "export.json"}


@pytest.mark.parametrize(
    ("network", "failed", "message"),
    [
        (Branching, {"torch_export", "onnx", "int8"}, r"data-dependent.*test_export.py, line \d+: if y.sum\(\) > 0"),
        (Counting, {"torch_export", "onnx", "int8"}, r"works for one number of samples only"),
        (Untranslatable, {"onnx", "int8"}, r"bessel_j0.*test_export.py, line \d+: return torch.special.bessel_j0"),
    ],
)
def test_what_cannot_be_traced_names_the_line_and_leaves_the_other_formats(
    network, failed, message, data, tmp_path, capfd
):
    with pytest.raises(ExportError, match=message) as caught:
        export(network(), data, tmp_path)
    assert caught.value.exported.failures.keys() == failed
    assert len(str(caught.value).splitlines()) == 1
    assert left(tmp_path) == {"export.json"} | {file for format, file in FILES.items() if format not in failed}
    assert capfd.readouterr() == ("", "")


def test_what_else_a_network_returns_is_told_and_left_out(data, tmp_path):
    exported = export(Named(), data, tmp_path, formats=["safetensors", "onnx"])
    assert [output.name for output in session(exported, "onnx").get_outputs()] == ["logits"]
    assert load_file(tmp_path / "student.safetensors").keys() == {"fc.weight", "fc.bias"}
    (note,) = exported.notes
    assert "also returns features" in note
    assert "also=['features']" in note
    assert json.loads((tmp_path / "export.json").read_text())["notes"] == [note]
    assert session(exported, "onnx").get_modelmeta().custom_metadata_map["note"] == note
    with pytest.raises(TypeError, match="a tuple of 2"):
        export(Pair(), data, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
    task = Task(output=lambda out: out[0])
    pair = export(Pair(), data, tmp_path / "pair", formats=["torch_export"], task=task)
    assert not pair.failures
    assert "also returns 1, which" in pair.notes[0]


def test_nothing_is_left_out_where_the_answer_is_a_view_of_all_that_is_returned(data, tmp_path):
    task = replace(classification, output=lambda out: out["logits"].view(-1, 10))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Keyed("logits"))
    assert export(net, data, tmp_path, formats=["safetensors"], task=task).notes == ()


class Keyed(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.key: x}


@pytest.mark.parametrize(
    ("make", "task", "key"),
    [(Named, classification, "features"), (Pair, replace(classification, output=lambda out: out[0]), "1")],
    ids=["dict", "tuple"],
)
def test_what_is_asked_for_becomes_an_output_and_is_compared(make, task, key, data, tmp_path):
    net = make()
    exported = export(net, data, tmp_path, task=task, also=[key])
    assert (exported.failures, exported.notes) == ({}, ())
    inputs = torch.randn(3, 1, 8, 8)
    for format in ("onnx", "int8"):
        runs = session(exported, format)
        assert [output.name for output in runs.get_outputs()] == ["logits", key]
        (other,) = runs.run([key], {"input": inputs.numpy()})
        assert np.array_equal(other, answer_at(key)(net(inputs)))
    logits, other = torch.export.load(tmp_path / "student.pt2").module()(inputs)
    assert torch.equal(logits, net.logits(inputs))
    assert torch.equal(other, answer_at(key)(net(inputs)))


def test_what_differs_beside_the_answer_is_not_written(data, tmp_path):
    with pytest.raises(ExportError) as caught:
        export(NoisyBeside(), data, tmp_path, formats=["torch_export"], also=["noise"])
    assert "differs from the network" in caught.value.exported.failures["torch_export"]


class NoisyBeside(Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.logits(x), "noise": torch.rand_like(x)}


def test_a_dict_batch_may_ask_for_more_too(tmp_path):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(left + right), "sum": left + right}

    batches = [{"left": torch.randn(6, 4), "right": torch.randn(6, 4), "labels": torch.arange(6) % 3}]
    exported = export(Both(), batches, tmp_path, formats=["onnx"], also=["sum"], classes=["a", "b", "c"])
    left, right = torch.randn(2, 5, 4)
    logits, total = session(exported, "onnx").run(None, {"left": left.numpy(), "right": right.numpy()})
    assert logits.shape == (5, 3)
    assert np.allclose(total, left + right)


# what files say of the data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader() -> list[tuple[Tensor, Tensor]]:
    """Batches that know nothing of themselves."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 10) for _ in range(2)]


def said_by(folder: Path) -> Iterator[Mapping[str, str]]:
    """What each file in a folder says of itself."""
    with safe_open(folder / "student.safetensors", framework="pt") as file:
        yield file.metadata()
    extra = {"limbeck.json": ""}
    torch.export.load(folder / "student.pt2", extra_files=extra)
    yield json.loads(extra["limbeck.json"])
    for name in ("student.onnx", "student.int8.onnx"):
        yield onnxruntime.InferenceSession(folder / name).get_modelmeta().custom_metadata_map


def test_mean_std_and_classes_are_said_where_loaders_do_not_know_them(net, loader, tmp_path):
    names = [f"digit {number}" for number in range(10)]
    exported = export(net, loader, tmp_path, mean=[0.3], std=[0.2], classes=names)
    assert exported.notes == ()
    for said in said_by(tmp_path):
        assert (json.loads(said["mean"]), json.loads(said["std"])) == ([0.3], [0.2])
        assert json.loads(said["classes"]) == names
        assert "note" not in said


def test_what_nobody_says_is_told_in_words_by_every_file(net, loader, tmp_path):
    exported = export(net, loader, tmp_path)
    normalised, classes = exported.notes
    assert "export(mean=..., std=...)" in normalised
    assert "export(classes=[...])" in classes
    for said in said_by(tmp_path):
        assert {"mean", "std", "classes"}.isdisjoint(said)
        assert said["note"] == f"{normalised} {classes}"


def test_values_have_no_classes_to_be_named(tmp_path):
    batches = [(torch.randn(6, 4), torch.randn(6, 1))]
    exported = export(nn.Linear(4, 1), batches, tmp_path, formats=["onnx"], task=regression, mean=[0] * 4, std=[1] * 4)
    assert exported.notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.3]}, "expected mean and std of each of 1 channels, got .*std=None"),
        ({"mean": [0.3] * 3, "std": [0.2] * 3}, "mean and std of each of 1 channels"),
        ({"mean": [77.0], "std": [60.0]}, "divide them by 255"),
        ({"mean": [0.3], "std": [0.0]}, "std above 0"),
        ({"classes": ["a", "b"]}, "each of the network's 10 outputs, got 2 names"),
        ({"classes": "0123456789"}, "names of the classes"),
        ({"also": ["features"]}, "no entry 'features'"),
        ({"also": "features"}, "also must be a list"),
        ({"also": ["logits"]}, "'logits' is the name of an input or output already"),
    ],
)
def test_what_cannot_be_true_of_the_data_is_refused(options, message, net, loader, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        export(net, loader, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_the_data_know_is_not_said_otherwise(net, data, tmp_path):
    with pytest.raises(ValueError, match="the data are normalised by mean"):
        export(net, data, tmp_path, mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match="the data have the classes 0, 1"):
        export(net, data, tmp_path, classes=list("abcdefghij"))
    same = export(net, data, tmp_path, formats=["safetensors"], mean=data.mean, std=data.std, classes=data.classes)
    assert same.about["mean"] == data.mean


def test_inputs_by_name_have_no_mean(tmp_path):
    batches = [{"ids": torch.randn(4, 2), "labels": torch.zeros(4).long()}]
    with pytest.raises(TypeError, match="inputs that are one tensor"):
        export(
            nn.Linear(2, 2),
            batches,
            tmp_path,
            mean=[0, 0],
            std=[1, 1],
            task=Task(inputs=lambda batch: {"input": batch["ids"]}),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onnx", "tflite"]}, "formats must be out of safetensors, torch_export, onnx, int8, got tflite"),
        ({"formats": []}, "formats must name one at least"),
        ({"tolerance": -1.0}, "tolerance must be at least 0, got -1"),
        ({"tolerance": float("nan")}, "tolerance must be at least 0, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message, net, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(net, data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_test_data_or_with_inputs_of_another_there_is_nothing_to_compare_on(net, tmp_path):
    with pytest.raises(ValueError, match="no batch"):
        export(net, [], tmp_path)
    with pytest.raises(TypeError, match=r"takes \['input'\], and is given a dict with \['mask'\].*task=: limbeck.Task"):
        export(net, [{"ids": torch.zeros(2, 4), "mask": torch.ones(2, 4), "labels": torch.zeros(2)}], tmp_path)


def test_a_missing_extra_says_what_to_install(net, data, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"need onnxscript: pip install .*\[export\]'"):
        export(net, data, tmp_path, formats=["onnx"])
    assert not export(net, data, tmp_path, formats=["safetensors"]).failures


# the command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[[str], tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)  # main() sets its own; put back after the test
    torch.manual_seed(0)
    save_file(limbeck.zoo.network("mlp-16", 10, (1, 8, 8)).state_dict(), "weights.safetensors")

    def command(line: str) -> tuple[int, str, str]:
        code = main(f"export --network mlp-16@weights.safetensors {line}".split())
        return code, *capsys.readouterr()

    return command


def test_the_command_writes_files_that_run(run, tmp_path):
    code, out, err = run("--to out --formats safetensors,onnx,int8 --json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [one["file"] for one in told["artefacts"]] == ["student.safetensors", "student.onnx", "student.int8.onnx"]
    assert told["about"]["network"] == "mlp-16"
    assert left(tmp_path / "out") == {"student.safetensors", "student.onnx", "student.int8.onnx", "export.json"}
    limbeck.zoo.network("mlp-16@out/student.safetensors", 10, (1, 8, 8))


def test_the_command_shows_what_is_left_when_a_format_fails(run, tmp_path):
    code, out, err = run("--to out --formats safetensors,onnx --tolerance 0")
    assert code == 2
    assert "student.safetensors" in out
    assert "student.onnx" not in out
    assert "onnx: differs from the network" in err
    assert left(tmp_path / "out") == {"student.safetensors", "export.json"}
    code, _, err = run("--to out --formats onx")
    assert code == 2
    assert "got onx" in err


def test_the_table_fits_a_terminal_of_80(shipped):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(console_table(shipped))
    lines = console.export_text().splitlines()
    assert lines[0].startswith("small, 359 test samples of digits")
    assert sum("student." in line for line in lines) == 4
    assert not any("…" in line for line in lines)


def test_the_page_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs/export.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)
    for line in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0].splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    assert left(tmp_path / "shipped") == {*FILES.values(), "export.json"}
    names: dict[str, Any] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for text in snippets:
        exec(compile(text, "export.md", "exec"), names)
    assert names["answer"].shape == (5, 10)
    assert len(names["exported"].artefacts) == 2


@pytest.mark.parametrize(
    ("task", "shape", "said"),  # any two of them meet in all ways
    [
        (classification, (3, 6, 4), True),
        (classification, (5,), False),
        (regression, (3, 6, 4), False),
        (regression, (5,), True),
    ],
    ids=["classes of images", "classes of rows", "values of images", "values of rows"],
)
def test_what_the_page_runs_runs_on_files_of_any_loader(task, shape, said, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs/export.md").read_text()
    monkeypatch.chdir(tmp_path)
    targets = torch.arange(6) % 3 if task is classification else torch.randn(6, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3))
    nn.init.constant_(net[1].bias[:1], 99)  # whatever is seen is a cat
    known: dict[str, Any] = {"mean": [0.5] * shape[0], "std": [0.2] * shape[0]} if said else {}
    if said and task is classification:
        known["classes"] = ["cat", "dog", "bird"]
    export(net, [(torch.randn(6, *shape), targets)], "shipped", formats=["onnx"], task=task, **known)
    snippet = next(
        text for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "onnxruntime" in text
    )
    names: dict[str, Any] = {}
    exec(compile(snippet, "export.md", "exec"), names)
    pixels = torch.from_numpy(names["pixels"])
    expected = net((pixels - 0.5) / 0.2 if said else pixels).detach()
    assert np.allclose(names["answer"], expected, atol=1e-5)
    assert ("cat" in capsys.readouterr().out) == ("classes" in known)


def test_a_name_is_no_network(data, tmp_path):
    with pytest.raises(
        TypeError, match=r"net must be a network .*got the string 'mlp-8': make it, limbeck.zoo.network"
    ):
        export("mlp-8", data, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_the_user_has_to_say_is_in_every_file(net, data, tmp_path):
    said = "These weights are those of the second night."
    exported = export(net, data, tmp_path, formats=["safetensors", "onnx"], notes=[said])
    assert exported.notes == (said,)
    assert json.loads((tmp_path / "export.json").read_text())["about"]["note"] == said
    about = {prop.key: prop.value for prop in onnx.load(tmp_path / "student.onnx").metadata_props}
    assert about["note"] == said
    with pytest.raises(TypeError, match="notes must be a list of sentences"):
        export(net, data, tmp_path, notes=said)
