"""`limbeck eval`: all measures of a network, alone and beside its teacher."""

import json

import pytest
import torch
from safetensors.torch import save_file

import limbeck
from limbeck import zoo
from limbeck.cli.evaluate import add
from limbeck.cli.evaluation import _tables, count_of
from limbeck.cli.parser import Commands, Parser, underscored
from limbeck.engine.run import packed

DATA = limbeck.data.load("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network that knows something, and one that does not."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, epochs in (("mlp-16-16", 2), ("mlp-8", 0)):
        net = zoo.network(name, 10, DATA.shape)
        if epochs:
            limbeck.fit(limbeck.plain(net), DATA, epochs=epochs, progress=False, accelerator="cpu")
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs the command in the folder of the weights; the parser of all commands takes seconds to build."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("limbeck.cli.evaluation.SECONDS", 0.001)
    parser = Parser(prog="limbeck")
    commands = Commands(parser)
    add(commands)

    def command(line):
        does, leaf = commands.find(parser.parse_args([underscored(word) for word in line.split()]))
        assert does(leaf, {}) == 0
        return capsys.readouterr().out

    return command


def net(name, folder):
    return zoo.network(f"{name}@{folder / name}.safetensors", 10, DATA.shape)


MLP = "mlp-16-16@mlp-16-16.safetensors"
SMALL = "mlp-8@mlp-8.safetensors"


def test_beside_a_teacher_everything_is_measured(run, folder):
    line = f"eval --network {SMALL} --teacher {MLP} --noise 0.1,3"
    record = json.loads(run(f"{line} --json"))
    student, teacher = net("mlp-8", folder), net("mlp-16-16", folder)
    assert record["teacher"]["accuracy"] == pytest.approx(limbeck.evaluate(teacher, DATA.test)["accuracy"])
    assert record["network"]["loss"] == pytest.approx(limbeck.evaluate(student, DATA.test)["loss"])
    beside = limbeck.measure.side_by_side(student, teacher, DATA.test)
    assert record["agreement"] == limbeck.measure.agreement(beside.student.logits, beside.teacher.logits)
    assert record["divergence"] == pytest.approx(
        limbeck.measure.divergence(beside.student.logits, beside.teacher.logits), rel=1e-5
    )
    assert record["gradient_cosine"] == pytest.approx(
        limbeck.measure.gradient_cosine(student, teacher, DATA.test), rel=1e-4
    )
    assert [(pair["network"], pair["teacher"]) for pair in record["cka"]] == limbeck.pairs(
        student, teacher, DATA.example()
    )
    assert 0 < record["cka"][0]["cka"] < 1
    assert list(record["teacher"]["noise"]) == ["0.1", "3"]
    assert record["teacher"]["noise"]["3"] < record["teacher"]["noise"]["0.1"]
    matrix = torch.tensor(record["teacher"]["confusion"])
    assert matrix.sum() == record["samples"] == len(DATA.test.ids)
    assert matrix.diagonal().sum() / matrix.sum() == pytest.approx(record["teacher"]["accuracy"])
    assert record["network"]["macs"] == 64 * 8 + 8 * 10
    assert record["network"]["throughput"] == pytest.approx(64_000 / record["network"]["batch_latency_ms"])

    shown = run(line)
    for words in (
        f"{100 * record['agreement']:.2f} %",
        f"{record['divergence']:.4f} nats",
        f"{record['gradient_cosine']:.3f}",
        f"{record['cka'][0]['cka']:.3f}",
        f"{100 * record['teacher']['calibration_error']:.2f} %",
        f"{100 * record['teacher']['noise']['3']:.2f} %",
    ):
        assert words in shown
    lost = record["network"]["per_class"][0] - record["teacher"]["per_class"][0]
    (first,) = (line for line in shown.splitlines() if line.split()[:2] == ["0", "36"])
    assert first.split()[-1] == f"{100 * lost:+.2f}".replace("-", "−")


def test_alone_there_is_nothing_to_compare(run):
    out = run(f"eval --network {MLP}")
    assert "calibration error" in out
    assert "noise" not in out
    assert "CKA" not in out
    assert "difference" not in out


def test_an_untrained_network_is_the_same_each_time(run):
    first, second = (json.loads(run("eval --network mlp-8@random --json"))["network"] for _ in range(2))
    assert first["loss"] == second["loss"]


def test_a_network_with_exits_keeps_a_budget(run, folder):
    torch.manual_seed(0)
    early = limbeck.with_exits(net("mlp-16-16", folder), DATA.example())
    (folder / "early-exit.safetensors").write_bytes(packed(early))
    name = "mlp-16-16@early-exit.safetensors"
    first, last = 64 * 16 + 16 * 16 + 16 * 10, 64 * 16 + 16 * 16 + 16 * 10 + 16 * 16 + 16 * 10
    budget = (first + last) / 2

    record = json.loads(run(f"eval --network {name} --macs {budget / 1000}k --to calibrated.safetensors --json"))
    exits, chosen = record["network"]["exits"], record["calibrated"]
    assert exits["after"] == ["layers.fc2:in"]
    assert exits["exit_macs"] == [first, last]
    assert first < chosen["macs"] <= budget
    assert exits["thresholds"] == pytest.approx(chosen["thresholds"])
    assert record["network"]["macs"] == exits["macs"] == pytest.approx(budget, rel=0.1)  # the test data is another
    assert record["network"]["accuracy"] == pytest.approx(exits["accuracy"])
    assert exits["accuracies"][-1] == pytest.approx(limbeck.evaluate(net("mlp-16-16", folder), DATA.test)["accuracy"])
    assert len(exits["curve"]) > 11

    kept = zoo.network("mlp-16-16@calibrated.safetensors", 10, DATA.shape)
    assert kept.thresholds.tolist() == exits["thresholds"]
    shown = run(f"eval --network {name} --accuracy {chosen['accuracy']}")
    for words in ("validation images", "leave there", "together", "accuracy over compute", "1.0000"):
        assert words in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--macs 1M", "has no exits, whose thresholds --macs and --accuracy set: `limbeck distill byot`"),
        ("--to kept.safetensors", "--to keeps the weights with other thresholds: say which"),
        ("--noise much", "noise: expected standard deviations, as 0.1,0.5, got 'much'"),
        ("--noise -1", "finite and not negative, got -1"),
        ("--teacher mlp-8", "the teacher mlp-8 has no weights"),
    ],
)
def test_what_the_user_can_mend(run, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(f"eval --network {MLP} {options}")


@pytest.mark.parametrize(("words", "count"), [("2.5M", 2.5e6), ("40 k", 4e4), ("1e3", 1e3), ("7", 7), ("1.2G", 1.2e9)])
def test_counts_are_read_as_they_are_written(words, count):
    assert count_of(words) == pytest.approx(count)


@pytest.mark.parametrize("words", ["", "much", "1.2.3M", "-5", "3X"])
def test_what_is_no_count(words):
    with pytest.raises(ValueError, match=r"expected a number above 0, as 2\.5M or"):
        count_of(words)


def test_of_many_classes_those_that_matter_are_shown():
    def role(**shares):
        of = dict.fromkeys(("parameters", "macs", "bytes", "activation_bytes", "throughput"), 1)
        of |= dict.fromkeys(("latency_ms", "batch_latency_ms", "accuracy", "loss", "calibration_error"), 0.5)
        return {**of, "name": "net", "noise": {}, **shares}

    count = 30
    matrix = [[4 if i == j != 7 else 0 for j in range(count)] for i in range(count)]  # the class 7 has no image
    own = [i / count for i in range(count)]
    own[7] = float("nan")
    its = [share if i < 15 else share / 2 for i, share in enumerate(own)]
    record = {
        "samples": 4 * (count - 1),
        "classes": [f"class {i}" for i in range(count)],
        "title": "many",
        "score": {"name": "accuracy", "unit": "%", "best": "highest"},
        "metrics": ["accuracy", "loss"],
        "network": role(per_class=own, confusion=matrix),
        "agreement": 0.5,
        "divergence": 0.1,
        "gradient_cosine": 0.1,
        "cka": [],
    }
    *_, alone = _tables(record)
    assert [str(cell) for cell in alone.columns[0].cells] == [f"class {i}" for i in range(21) if i != 7]
    *_, beside = _tables({**record, "teacher": role(per_class=its, confusion=matrix)})
    assert [str(cell) for cell in beside.columns[0].cells][:15] == [f"class {i}" for i in reversed(range(15, 30))]
    assert str(beside.title) == "accuracy of the 20 of 29 classes that differ most"
