"""`bench/gpu.py` from its start to its end on a CPU, at small sizes, so that it works on the day a GPU is there."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import limbeck
from limbeck.core import files

BENCH = Path(__file__).parents[1] / "bench"
PARTS = ("rows", "precisions", "equality", "losses", "epochs", "compiled", "syncs", "vocabulary", "nccl")
FIELDS = {"part", "device", "small", "torch", "torchdistill", "date", "rows", "failed", "left_out", "skipped"} | {
    "seconds",
    "limit",
}
COLUMNS = {
    "rows": {"first step", "step 3", "equal", "draws", "holds"},
    "precisions": {"32-true / the CPU's", "bf16-mixed / 32-true", "16-mixed / 32-true", "draws", "holds"},
    "equality": {"inputs", "beside", "value", "gradient", "holds"},
    "losses": {"inputs", "torchdistill", "ours, ms", "ours, MB", "ours / torchdistill", "torchdistill, MB"}
    | {"ours / the formula", "ours / ours again", "the formula, MB"},
    "epochs": {"an epoch, s", "/ plain", "last loss"},
    "compiled": {"compiler", "eager, ms", "compiled, ms", "compiled / eager", "the first step, s", "losses", "holds"},
    "syncs": {"aten::item", "aten::_local_scalar_dense"},
    "vocabulary": {"ms", "/ F.kl_div by hand", "MB", "F.kl_div by hand, MB", "the logits, MB"},
    "nccl": {"weights", "holds"},
}


@pytest.fixture(scope="module")
def gpu(processes):  # which its two processes start from
    sys.path.append(str(BENCH))  # and so they find it
    return importlib.import_module("gpu")


def words(folder, *more):
    return ["--small", "--device", "cpu", "--out", str(folder), *more]


@pytest.fixture(scope="module")
def whole(gpu, tmp_path_factory):
    """A folder of all parts; a machine that is busy has time for them."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "TOTAL", 3000)
        patch.setattr(gpu, "PARTS", {name: replace(part, seconds=3000) for name, part in gpu.PARTS.items()})
        assert gpu.main(words(folder, "--table")) == 0
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def of(folder, part):
    return files.read(folder / f"{part}.json", "")


def test_no_part_has_more_time_than_there_is(gpu):
    assert tuple(gpu.PARTS) == PARTS
    assert sum(part.seconds for part in gpu.PARTS.values()) <= gpu.TOTAL < 8 * 60


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_measured_and_says_of_what(whole, part):
    found = of(whole, part)
    assert found.keys() == FIELDS
    assert (found["part"], found["device"], found["small"], found["torch"]) == (part, "CPU", True, torch.__version__)
    assert found["failed"] == {}
    assert found["left_out"] == []
    assert found["rows"]
    for row in found["rows"]:
        assert row.keys() == {"row", "took, s"} | COLUMNS[part]
        numbers = [one for value in row.values() for one in (value if isinstance(value, list) else [value])]
        assert all(math.isfinite(one) for one in numbers if isinstance(one, float))


def test_what_is_measured_is_what_the_parts_say(gpu, whole):
    rows = {part: {row["row"]: row for row in of(whole, part)["rows"]} for part in PARTS}
    assert [*rows["rows"]] == [name for name in gpu.contract.ROWS if name in gpu.FEW_ROWS]
    assert rows["rows"]["jacobian"]["draws"]
    assert not rows["rows"]["kd"]["draws"]
    assert all(row["equal"] for row in rows["rows"].values())  # both are the CPU
    assert 0 < rows["precisions"]["plain"]["bf16-mixed / 32-true"] < 1  # it is near and not equal
    assert rows["precisions"]["plain"]["32-true / the CPU's"] == 0
    assert [row["draws"] for row in rows["precisions"].values()] == [False, True]
    assert rows["losses"]["soft_target"]["ours, MB"] >= 8 * 100 * 4 / 1e6  # the gradient
    assert rows["epochs"]["kd, cached"]["last loss"] == pytest.approx(rows["epochs"]["kd"]["last loss"], rel=1e-2)
    assert rows["epochs"]["kd"]["last loss"] != rows["epochs"]["plain again"]["last loss"]
    assert rows["syncs"]["kd by hand"]["aten::item"] == 0
    assert rows["syncs"]["crd, play"]["aten::item"] > 0  # on a CPU it looks at the ids
    assert [*rows["nccl"]] == ["kd", "rkd"]
    assert all(0 <= row["weights"] <= 1 for row in rows["nccl"].values())


def test_the_table_has_every_part_and_row(gpu, whole):
    text = (whole / "table.md").read_text()
    for part in PARTS:
        assert f"### `{part}`\n\n{gpu.PARTS[part].about}\n\nCPU, at the sizes of tests" in text
        for row in of(whole, part)["rows"]:
            assert f"| {row['row']} |" in text
    assert "Not measured yet" not in text
    assert "took, s" not in text


def never(setting):
    raise AssertionError("it is there")
    yield


def test_parts_that_are_there_are_not_made_again(gpu, copied, monkeypatch):
    """Those that are not there, damaged, of another setting, failed, or cut short are."""
    before = {path: path.read_bytes() for path in copied.glob("*.json")}
    monkeypatch.setattr(gpu, "PARTS", {name: replace(part, cases=never) for name, part in gpu.PARTS.items()})
    assert gpu.main(words(copied)) == 0
    assert {path: path.read_bytes() for path in copied.glob("*.json")} == before

    def again(setting):
        yield "again", lambda: {"holds": True}

    spoiled = {
        "rows": lambda path: path.unlink(),
        "precisions": lambda path: path.write_text(path.read_text().replace('"small": true', '"small": false')),
        "losses": lambda path: files.keep(path, {**of(copied, "losses"), "torch": "2.6.0"}),
        "epochs": lambda path: files.keep(path, {**of(copied, "epochs"), "failed": {"kd": "it broke"}}),
        "syncs": lambda path: files.keep(path, {**of(copied, "syncs"), "left_out": ["kd, play"], "limit": 1.0}),
    }
    for part, spoil in spoiled.items():
        spoil(copied / f"{part}.json")
        monkeypatch.setitem(gpu.PARTS, part, replace(gpu.PARTS[part], cases=again))
    assert gpu.main(words(copied)) == 0
    for part in PARTS:
        rows = [row["row"] for row in of(copied, part)["rows"]]
        assert (rows == ["again"]) == (part in spoiled)


def test_a_row_that_breaks_ends_alone_and_the_next_call_makes_its_part_again(gpu, tmp_path, monkeypatch, capsys):
    def broken():
        raise ValueError("the device has no such thing\nand a hint")

    def cases(setting):
        yield "one", lambda: {"ms": 1.0}
        yield "two", broken
        yield "three", lambda: {"ms": 3.0, "holds": False}
        yield "four", lambda: {"ms": 4.0, "holds": True}
        raise RuntimeError("between rows")

    monkeypatch.setitem(gpu.PARTS, "syncs", replace(gpu.PARTS["syncs"], cases=cases))
    monkeypatch.setitem(gpu.PARTS, "vocabulary", replace(gpu.PARTS["vocabulary"], cases=lambda setting: iter_of("x")))
    call = words(tmp_path, "--parts", "syncs", "vocabulary", "--table")
    assert gpu.main(call) == 1
    found = of(tmp_path, "syncs")
    assert [row["row"] for row in found["rows"]] == ["one", "three", "four"]
    assert found["failed"] == {
        "two": "ValueError: the device has no such thing",
        "three": "it is not what was expected: see its row",
        "what comes next": "RuntimeError: between rows",
    }
    assert [row["row"] for row in of(tmp_path, "vocabulary")["rows"]] == ["x"]
    assert "and a hint" in capsys.readouterr().err
    text = (tmp_path / "table.md").read_text()
    assert "- **failed**: two: ValueError: the device has no such thing\n" in text
    assert "Not measured yet: `rows`, " in text

    monkeypatch.setitem(gpu.PARTS, "syncs", replace(gpu.PARTS["syncs"], cases=lambda setting: iter_of("mended")))
    assert gpu.main(call) == 0
    assert [row["row"] for row in of(tmp_path, "syncs")["rows"]] == ["mended"]


def iter_of(*names):
    for name in names:
        yield name, lambda: {"ms": 1.0}


def test_when_the_time_is_up_no_row_and_no_part_begins(gpu, tmp_path, monkeypatch, capsys):
    ended = []

    def cases(setting):
        try:
            yield from iter_of("a", "b")
        finally:
            ended.append(True)

    monkeypatch.setattr(gpu, "PARTS", {name: replace(part, cases=cases, seconds=0) for name, part in gpu.PARTS.items()})
    assert gpu.main(words(tmp_path, "--parts", "rows")) == 0
    found = of(tmp_path, "rows")
    assert (found["rows"], found["left_out"]) == ([], ["a", "b"])
    assert ended
    assert "- left out, as the time was up: a, b" in gpu.table(tmp_path)

    monkeypatch.setattr(gpu, "TOTAL", 0.0)
    assert gpu.main(words(tmp_path, "--parts", "rows", "losses")) == 0
    assert not (tmp_path / "losses.json").exists()
    assert "losses: the time is up" in capsys.readouterr().out


def test_a_part_without_rows_says_why(gpu, tmp_path, monkeypatch):
    def cases(setting):
        raise gpu.NothingToMeasureError("there is one GPU")
        yield

    monkeypatch.setitem(gpu.PARTS, "nccl", replace(gpu.PARTS["nccl"], cases=cases))
    assert gpu.main(words(tmp_path, "--parts", "nccl")) == 0
    assert of(tmp_path, "nccl")["skipped"] == "there is one GPU"
    assert "Not measured: there is one GPU." in gpu.table(tmp_path)


def test_a_device_that_an_error_has_lost_is_not_asked_again(gpu, tmp_path, monkeypatch, capsys):
    def cases(setting):
        yield "one", lambda: 1 / 0
        yield "two", never

    monkeypatch.setitem(gpu.PARTS, "rows", replace(gpu.PARTS["rows"], cases=cases))
    monkeypatch.setitem(gpu.PARTS, "losses", replace(gpu.PARTS["losses"], cases=never))
    monkeypatch.setattr(gpu, "awaited", lambda device: (_ for _ in ()).throw(RuntimeError("illegal memory access")))
    assert gpu.main(words(tmp_path, "--parts", "rows", "losses")) == 1
    assert of(tmp_path, "rows")["left_out"] == ["two"]
    assert not (tmp_path / "losses.json").exists()
    assert "the device is lost" in capsys.readouterr().out


def test_what_is_not_equal_does_not_hold(gpu, monkeypatch):
    of_device = iter([])
    monkeypatch.setattr(gpu, "played", lambda name, device: next(of_device))

    def holds(own, drawn=False):
        nonlocal of_device
        of_device = iter([([[{"loss": value} for value in own]], drawn), ([[{"loss": 1.0}] * 3], drawn)])
        return gpu.row_on_both("kd", torch.device("cpu"))["holds"]

    assert holds([1.00005, 1.002, 1.0005])
    assert not holds([1.0002, 1.0, 1.0])
    assert not holds([1.0, 1.0, 1.002])
    assert not holds([1.0, 1.0, math.nan])
    assert holds([7.0, 8.0, 9.0], drawn=True)
    assert not holds([7.0, 8.0, math.inf], drawn=True)

    def near(here, there, half, drawn=False):
        of = {
            ("cpu", "32-true"): here,
            ("gpu", "32-true"): there,
            ("gpu", "bf16-mixed"): 1.1,
            ("gpu", "16-mixed"): half,
        }
        monkeypatch.setattr(gpu, "fitted", lambda name, *how: ({"loss": of[how]}, drawn))
        return gpu.in_each_precision("kd", SimpleNamespace(accelerator="gpu"))["holds"]

    assert near(1.1, 1.0, 1.11)
    assert not near(1.0, 1.0, 1.2)
    assert not near(1.0, 1.0, math.nan)
    assert not near(2.0, 1.0, 1.0)
    assert near(2.0, 1.0, 1.0, drawn=True)
    assert not near(math.nan, 1.0, 1.0, drawn=True)
    with pytest.raises(ValueError, match=r"expected the terms \['a'\], got \['b'\]"):
        gpu.beyond({"b": 1.0}, {"a": 1.0}, 1e-3, 0.0)


def test_a_loss_that_is_another_does_not_hold(gpu):
    setting = gpu.Setting(torch.device("cpu"), True)
    first, second = (gpu.made_of(gpu.families(setting, 8)[0], setting, torch.device("cpu"))[0] for _ in range(2))
    assert gpu.loss_on_both(first, second)["holds"]
    assert not gpu.loss_on_both(first, replace(second, ours=lambda: 1.01 * second.ours()))["holds"]
    same_value = replace(second, ours=lambda: (x := second.ours()).detach() + 1.01 * (x - x.detach()))
    facts = gpu.loss_on_both(first, same_value)
    assert facts["value"] < 1 < facts["gradient"]


def test_a_library_beside_ours_that_breaks_leaves_its_cells_empty(gpu):
    setting = gpu.Setting(torch.device("cpu"), True)
    row = gpu.made_of(gpu.families(setting, 8)[0], setting, setting.device)[0]

    def breaks():
        raise RuntimeError("it has no kernel")

    facts = gpu.loss_cost(replace(row, peer=breaks), setting)
    assert facts["torchdistill"] == "RuntimeError: it has no kernel"
    assert facts["ours / torchdistill"] is facts["torchdistill, MB"] is None
    facts = gpu.loss_cost(replace(row, peer=row.formula), setting)
    assert facts["torchdistill"] == "the same"
    assert len(facts["ours / torchdistill"]) == 3
    assert facts["torchdistill, MB"] == facts["the formula, MB"]


def test_a_compiled_step_is_compared_with_the_eager_one(gpu, monkeypatch):
    setting = gpu.Setting(torch.device("cpu"), True)

    def compiled(method, scale=1.0):
        method.student.compile(backend="eager")
        with torch.no_grad():
            method.student.fc.bias += scale - 1
            method.student.fc.weight *= scale

    monkeypatch.setattr(limbeck, "compiled", compiled, raising=False)
    assert gpu.compiled_beside_eager("kd", setting)["losses"] == 0
    monkeypatch.setattr(limbeck, "compiled", lambda method: compiled(method, 1.1), raising=False)
    facts = gpu.compiled_beside_eager("kd", setting)
    assert facts["losses"] > 1
    assert not facts["holds"]


def test_two_processes_that_differ_or_end_are_found(gpu, tmp_path):
    setting, name = gpu.Setting(torch.device("cpu"), True), "plain"
    weights = gpu.weights_after(name, "cpu", 1)
    started = SimpleNamespace(join=lambda timeout: True)
    with pytest.raises(TimeoutError, match="two processes ended without 'plain'"):
        gpu.two_beside_one(name, setting, started, tmp_path)
    for rank in range(2):
        files.keep(gpu.of_rank(tmp_path, name, rank), weights)
    assert gpu.two_beside_one(name, setting, started, tmp_path)["holds"]
    other = {key: value + 1e-3 * (key == "fc.bias") for key, value in weights.items()}
    files.keep(gpu.of_rank(tmp_path, name, 1), other)
    assert not gpu.two_beside_one(name, setting, started, tmp_path)["holds"]


def test_losses_are_made_on_the_device_and_stay_there(gpu):
    """Without one: fake tensors know their device. What counts cannot be faked, nor what asks autograd in between."""
    device = torch.device("cuda")
    unknown, seen = {"dkd_others", "dkd", "rkd_distance"}, 0
    for family in gpu.families(gpu.Setting(device, False), 4)[:3]:
        with FakeTensorMode():
            for row in gpu.made_of(family, gpu.Setting(device, False), device):
                assert {one.device.type for one in row.leaves} == {"cuda"}
                assert row.ours().device.type == "cuda"
                try:
                    assert row.formula().device.type == "cuda"
                except DynamicOutputShapeException:
                    assert row.loss in unknown
                seen += 1
    assert seen > 30


def test_the_page_is_of_a_gpu_alone(gpu, copied, monkeypatch, capsys):
    page = copied / "performance.md"
    page.write_text("before\n<!-- gpu: written by bench/gpu.py -->\nold\n<!-- gpu: end -->\nafter\n")
    monkeypatch.setattr(sys.modules["marks"], "PAGE", page)
    with pytest.raises(SystemExit) as ended:
        gpu.main(words(copied, "--parts", "--write"))
    assert ended.value.code == 2
    assert "the page is of a GPU" in capsys.readouterr().err
    for part in PARTS:
        files.keep(copied / f"{part}.json", {**of(copied, part), "device": "NVIDIA H200", "small": False})
    assert gpu.main(["--out", str(copied), "--parts", "--write"]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- gpu: written")
    assert text.endswith("<!-- gpu: end -->\nafter\n")
    assert "NVIDIA H200; torch" in text
    assert "sizes of tests" not in text
    assert "\nold\n" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--device cpu --small rehearses" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there is no part in"):
        gpu.table(tmp_path)


def test_files_are_plain_json(whole):
    assert json.loads((whole / "rows.json").read_text())["rows"][0]["row"] == "kd"
