"""The table of FitNets, against the paper's own and by hand, and the command that prints it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import limbeck
from limbeck import zoo
from limbeck.cli.parser import Commands, Parser, underscored
from limbeck.cli.table import add
from limbeck.measure import Account
from limbeck.measure.accounts import depth, in_turn, weights
from limbeck.measure.cost import macs_of
from limbeck.report.accounts import header, markdown_table, records
from limbeck.tasks.classification import classification

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "layers", "parameters", "multiplications"),
    [("fitnet1", 11, 250e3, 30e6), ("fitnet-teacher", 5, 9e6, 725e6)],
)
def test_the_papers_table(name, layers, parameters, multiplications):
    net = zoo.network(name)
    assert depth(net, IMAGE) == layers
    assert weights(net) == pytest.approx(parameters, rel=0.01)
    assert macs_of(net.eval(), IMAGE) == pytest.approx(multiplications, rel=0.01)


def test_layers_are_those_on_the_longest_way():
    net = zoo.network("resnet8").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert depth(net, IMAGE) == 8  # the shortcuts' convolutions lie beside two of a block
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules()) > 8
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert depth(nn.ReLU(), IMAGE) == 0
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert depth(attention, torch.zeros(1, 5, 8)) == 4  # queries, the projection, two of the perceptron


def test_norms_are_not_counted_and_shared_weights_once():
    tied = nn.Linear(4, 4)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 2, 2, groups=2), tied, tied)
    assert weights(net) == (8 * 3 * 9 + 8) + (8 * 1 * 4 + 2) + 20
    assert weights(nn.MultiheadAttention(8, 2)) == 4 * 8 * 8 + 4 * 8


def test_networks_are_timed_in_turn():
    order: list[str] = []
    times = in_turn([lambda: order.append("a"), lambda: order.append("b")], torch.device("cpu"), 1e-6)
    changes = [one for one, before in zip(order, ["", *order], strict=False) if one != before]
    assert changes == ["a", "b"] * 5
    assert all(time > 0 for time in times)


TEACHER = Account("teacher", 34, 2_000_000, 90_000_000, 12.0, 0.9, classification.score)
STUDENT = Account("a|b", 18, 1_000_000, 30_000_000, 3.0, 0.875, classification.score)


def test_ratios_are_the_teachers_over_the_networks():
    teacher, student = records([TEACHER, STUDENT])
    assert {teacher[name] for name in ("speed_up", "fewer_multiplications", "compression")} == {1.0}
    assert (student["speed_up"], student["fewer_multiplications"], student["compression"]) == (4.0, 3.0, 2.0)
    named, _, _, row, *_, legend = markdown_table([TEACHER, STUDENT]).splitlines()
    assert named == f"| {' | '.join(header([TEACHER]))} |"
    assert legend.endswith("Test accuracy in percent.")
    assert row == r"| a\|b | 18 | 1.00 M | 30.0 M | 87.50 | 4.00× | 3.00× | 2.00× | 3.00 ms |"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, run in (("mlp-32-16", "teacher"), ("mlp-8", "plain"), ("mlp-8", "kd")):
        (folder / run).mkdir()
        save_file(zoo.network(name, 10, (1, 8, 8)).state_dict(), folder / run / "student.safetensors")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("limbeck.cli.table.SECONDS", 0.001)
    parser = Parser(prog="limbeck")
    commands = Commands(parser)
    add(commands)

    def command(line):
        does, leaf = commands.find(parser.parse_args([underscored(word) for word in line.split()]))
        assert does(leaf, {}) == 0
        return capsys.readouterr().out

    return command


TABLE = "table mlp-32-16@teacher/student.safetensors mlp-8@plain/student.safetensors mlp-8@kd/student.safetensors"


def test_the_command_shows_a_row_for_each(run):
    rows = json.loads(run(f"{TABLE} --json"))
    assert [row["name"] for row in rows] == ["mlp-32-16", "mlp-8 plain", "mlp-8 kd"]
    assert [row["layers"] for row in rows] == [3, 2, 2]
    assert rows[0]["multiplications"] == 64 * 32 + 32 * 16 + 16 * 10
    assert rows[1]["compression"] == pytest.approx(rows[0]["parameters"] / (64 * 8 + 8 + 8 * 10 + 10))
    data = limbeck.data.load("digits")
    plain = zoo.network("mlp-8@plain/student.safetensors", 10, data.shape)
    assert rows[1]["value"] == pytest.approx(limbeck.evaluate(plain, data.test)["accuracy"])
    assert rows[2]["speed_up"] > 0
    shown = run(TABLE)
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("mlp-8 kd", "speed-up", f"{rows[1]['compression']:.2f}×"):
        assert words in shown


def test_what_the_user_can_mend(run):
    with pytest.raises(ValueError, match="the student mlp-8 has no weights"):
        run("table mlp-32-16@teacher/student.safetensors mlp-8")
    with pytest.raises(ValueError, match=r"mlp-8@random is named twice"):
        run("table mlp-8@random mlp-8@random")
