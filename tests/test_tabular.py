"""Tables: reading, splitting, encoding, and compressing a model of one."""

from __future__ import annotations

import json
import math
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import limbeck
from limbeck.cli import main
from limbeck.core.files import Damaged, keep, sha256_of
from limbeck.data import Rows, tabular
from limbeck.data.munge import munge, uniform
from limbeck.data.tabular import answered
from limbeck.nets.tabular import Encode
from limbeck.report.history import read_rows
from limbeck.report.mimic import read_compression
from limbeck.verbs.mimic import Training, alone, compress, measured, student_of, taught, teacher_of, transfer
from pages import read

ADULT = (
    "39, Private, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, {}, {}\n"
)


@pytest.fixture
def folder(tmp_path):
    """A file of 80 flats: two columns of numbers, one of words, one of numbers without an order."""
    draw = random.Random(0)
    lines = ["id,rooms, area,town,kind,dear"]
    for index in range(80):
        rooms, area = draw.randint(1, 5), round(draw.uniform(20, 120), 1)
        town, kind = draw.choice(["Bath", "York", ""]), draw.choice([2, 10, 9])
        lines.append(f"{index},{rooms}, {area},{town} ,{kind},{'yes' if area + 10 * rooms > 100 else 'no'}")
    (tmp_path / "flats.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def flats(folder, **options):
    given = {"categorical": ["town", "kind"], "drop": ["id"], **options}
    return tabular.load("flats.csv", folder, **given)


# reading -------------------------------------------------------------------------------------------------------------


def test_a_csv_file_becomes_numbers_and_categories(folder):
    table = flats(folder)
    assert [column.name for column in table.columns] == ["rooms", "area", "town", "kind"]
    assert table.columns[2].categories == ("", "Bath", "York")
    assert table.columns[3].categories == ("2", "9", "10")
    assert table.categorical == (2, 3)
    assert table.classes == ("no", "yes")
    parts = [table.train, table.val, table.test]
    assert [len(part) for part in parts] == [54, 6, 20]
    rows, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "targets"))
    assert rows.dtype == torch.float32
    assert torch.equal((rows[:, 1] + 10 * rows[:, 0] > 100).long(), targets)


def test_splits_are_repeatable_and_keep_the_classes_in_proportion(folder):
    one, same, other = flats(folder), flats(folder), flats(folder, split_seed=1)
    assert torch.equal(one.train.rows, same.train.rows)
    assert not torch.equal(one.train.rows, other.train.rows)
    shares = [part.targets.float().mean().item() for part in (one.train, one.test)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)


def test_labels_are_put_away(folder):
    table, whole = flats(folder, labels=14), flats(folder)
    assert (len(table.train), len(table.val), len(table.unlabelled)) == (13, 1, 46)  # 14 labels in all
    together, others = (
        torch.cat([one.train.rows, one.val.rows, one.unlabelled]).sort(0).values for one in (table, whole)
    )
    assert torch.equal(together, others)
    assert torch.equal(table.test.rows, whole.test.rows)
    assert len(flats(folder, labels=60).unlabelled) == 0


def test_a_number_may_be_predicted(folder):
    table = flats(folder, target="area", drop=["id", "dear"], regression=True)
    assert table.classes == ()
    assert table.outputs == 1
    assert table.train.targets.shape == (54, 1)


def test_adult_is_read_as_uci_has_it(tmp_path):
    (tmp_path / "adult.data").write_text(
        "".join(ADULT.format(c, i) for c, i in [("?", "<=50K"), ("Cuba", ">50K")] * 10) + "\n"
    )
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n" + ADULT.format("Peru", ">50K."))
    table = tabular.load("adult", tmp_path)
    assert (len(table.train) + len(table.val), len(table.test)) == (20, 1)
    assert table.classes == ("<=50K", ">50K")
    assert table.test.targets.tolist() == [1]
    assert table.columns[-1].categories == ("?", "Cuba", "Peru")
    assert [column.name for column in table.columns if not column.categories] == [
        "age",
        "fnlwgt",
        "education-num",
        "capital-gain",
        "capital-loss",
        "hours-per-week",
    ]


def test_the_one_hot_columns_of_covtype_become_categories(tmp_path):
    header = "Id,Elevation,Wilderness_Area1,Wilderness_Area2,Soil_Type1,Soil_Type2,Soil_Type3,Cover_Type\n"
    (tmp_path / "covtype").mkdir()
    for file in ("train.csv", "test.csv"):
        (tmp_path / "covtype" / file).write_text(header + "7,2596,0,1,0,0,1,5\n8,2590,1,0,1,0,0,2\n" * 5)
    table = tabular.load("covtype", tmp_path)
    assert [(column.name, column.categories) for column in table.columns] == [
        ("Elevation", ()),
        ("Wilderness_Area", ("1", "2")),
        ("Soil_Type", ("1", "3")),
    ]
    assert table.classes == ("2", "5")
    assert table.test.rows[:2].tolist() == [[2596, 1, 1], [2590, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categorical": []}, r"column 'town' has \d+ missing values in 80 rows: .*SimpleImputer.*drop=\['town'\]"),
        ({"categorical": ["town", "rent"]}, r"no column 'rent': it has id, rooms, area"),
        ({"target": "rent"}, "no column 'rent'"),
        ({"target": "id", "drop": ["dear"]}, r"target 'id' has 80 classes in 80 rows.*regression=True"),
        ({"regression": True}, r"column 'dear' holds text, '(yes|no)' in 80 of 80 rows\. A number cannot be predicted"),
        ({"drop": ["id", "dear"]}, r"'dear' is the target and cannot be left out: name another, target="),
        ({"test_share": 0.999}, r"lower test_share \(0\.999\)"),
        ({"target": "town", "drop": ["id", "dear"], "categorical": []}, r"'town' has \d+ missing.*teaches nothing"),
        ({"drop": ["id", "rooms", "area", "town", "kind"]}, "no column is left"),
        ({"labels": 90}, "labels: expected between 2 and the 60 rows outside the test, got 90"),
        ({"labels": 1}, "labels: expected between 2 and the 60 rows outside the test, got 1"),
        ({"labels": 2}, "the 1 labelled rows to learn from are all of one class: keep more labels"),
        ({"test_share": 1.5}, "test_share: expected a share between 0 and 1, got 1.5"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(folder, options, message):
    with pytest.raises(ValueError, match=message):
        flats(folder, **options)


def test_text_that_is_not_declared(folder):
    text = (folder / "flats.csv").read_text().replace(",2,yes", ",two,yes")
    (folder / "flats.csv").write_text(text)
    with pytest.raises(ValueError, match=r"column 'kind' holds text, 'two' in \d+ of 80 rows.*categorical=\['kind'\]"):
        flats(folder, categorical=["town"])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("inf", "values that are infinite in 32 bits, 'inf'.*bound"),
        ("1e39", "values .*'1e39'"),
        ("-NaN", "missing values"),
    ],
)
def test_numbers_that_are_none(folder, cell, message):
    header, first, rest = (folder / "flats.csv").read_text().split("\n", 2)
    number, rooms, _, *others = first.split(",")
    (folder / "flats.csv").write_text("\n".join([header, ",".join([number, rooms, cell, *others]), rest]))
    with pytest.raises(ValueError, match=f"column 'area' has 1 {message}"):
        flats(folder)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        tabular.load("none.csv", tmp_path)
    with pytest.raises(ValueError, match=r"a table out of adult, covtype, or a file that ends in \.csv, got 'iris'"):
        tabular.load("iris", tmp_path)
    with pytest.raises(ValueError, match="adult needs root"):
        tabular.load("adult")
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match=r"broken\.csv: expected rows of values"):
        tabular.load("broken.csv", tmp_path)
    (tmp_path / "twice.csv").write_text("a,a,b\n1,2,x\n")
    with pytest.raises(ValueError, match="a name of its own for each column"):
        tabular.load("twice.csv", tmp_path)
    (tmp_path / "twice.csv").write_text("a, a,b\n1,2,x\n")
    with pytest.raises(ValueError, match="a name of its own for each column, got a, a, b"):
        tabular.load("twice.csv", tmp_path)
    (tmp_path / "semicolons.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ValueError, match="expected columns between commas, got the single one 'a;b'"):
        tabular.load("semicolons.csv", tmp_path)
    (tmp_path / "nameless.csv").write_text("5.1,3.5,0\n4.9,3.0,0\n")
    with pytest.raises(
        ValueError, match=r"begins with a row of numbers, 5\.1, 3\.5, 0: put the columns' names above it"
    ):
        tabular.load("nameless.csv", tmp_path)


# feeding -------------------------------------------------------------------------------------------------------------


def test_rows_are_standardised_and_one_hot(folder):
    table = flats(folder, labels=30)
    encode = table.encoder()
    seen = torch.cat([table.train.rows, table.unlabelled])
    out = encode(seen)
    assert out.shape == (57, encode.width) == (57, 8)
    torch.testing.assert_close(out[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, :2].std(0, correction=0), torch.ones(2))
    assert torch.equal(out[:, 2:5].argmax(1), seen[:, 2].long())
    assert torch.equal(out[:, 5:].argmax(1), seen[:, 3].long())
    assert bool((out[:, 2:].sum(1) == 2).all())


def test_a_constant_column_is_0_and_a_wrong_width_an_error():
    encode = Encode([0, 0], torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert encode(torch.tensor([[3.0, 5.0]])).tolist() == [[0.0, 2.0]]
    with pytest.raises(ValueError, match=r"rows of 2 columns, got shape \(1, 3\)"):
        encode(torch.zeros(1, 3))


class Counting(nn.Module):
    """A teacher who says how often it was asked."""

    asked = 0

    def forward(self, rows: Tensor) -> Tensor:
        Counting.asked += 1
        assert not self.training
        return torch.stack([rows[:, 0], -rows[:, 0]], 1)


def test_a_teacher_is_asked_once():
    rows = torch.arange(10.0)[:, None]
    Counting.asked = 0
    loader = answered(rows, Counting(), batch_size=4, chunk=5)
    for _ in range(3):
        for inputs, answers, ids in loader:
            assert torch.equal(answers, torch.cat([inputs, -inputs], 1))
            assert torch.equal(inputs[:, 0], ids.float())
    assert Counting.asked == 2
    with pytest.raises(ValueError, match="a target for each of 10 rows, got 3"):
        Rows(rows, torch.zeros(3), batch_size=4)


def test_transfer_sets(folder):
    table = flats(folder, labels=14)
    assert torch.equal(transfer(table, "train"), table.train.rows)
    assert len(transfer(table, "unlabelled")) == 59
    for kind in ("munge", "random"):
        rows = transfer(table, kind, times=3)
        assert rows.shape == (39, 4)
        assert torch.equal(rows, transfer(table, kind, times=3))
        assert not torch.equal(rows, transfer(table, kind, times=3, seed=1))
        assert bool((rows[:, 2:] == rows[:, 2:].round()).all())
    with pytest.raises(ValueError, match="no unlabelled rows"):
        transfer(flats(folder), "unlabelled")


# teachers ------------------------------------------------------------------------------------------------------------

FAST = Training(epochs=2, batch_size=16)

OWN = """
from sklearn.ensemble import GradientBoostingRegressor as single
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

def logistic(random_state, categorical):
    assert categorical and random_state == 0
    return LogisticRegression(max_iter=500)

line, hard, nothing = LinearRegression, LinearSVC, dict

def nameless():
    return make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression())
"""


def test_rows_of_no_kind(folder):
    with pytest.raises(ValueError, match="transfer: expected 'train', 'unlabelled', 'random' or 'munge', got 'mung'"):
        transfer(flats(folder), "mung")
    with pytest.raises(ValueError, match="variance divides a distance and must be positive, got nan"):
        transfer(flats(folder), variance=math.nan)


def test_teachers_by_name(folder, monkeypatch):
    (folder / "models_of_flats.py").write_text(OWN)
    monkeypatch.chdir(folder)
    table = flats(folder)
    for name in ("random-forest", "gradient-boosting", "models_of_flats:logistic", "models_of_flats:line"):
        answers = teacher_of(name, table, FAST)(table.test.rows)
        assert answers.shape == (20, 2)
        assert (answers.argmax(1) == table.test.targets).float().mean() > 0.6, name
    with pytest.raises(ValueError, match="LinearSVC gives no probabilities"):
        teacher_of("models_of_flats:hard", table, FAST)
    with pytest.raises(
        ValueError, match=r"Pipeline cannot be pickled, which is how its size is measured: .*a lambda has"
    ):
        teacher_of("models_of_flats:nameless", table, FAST)
    three = flats(folder, target="kind", drop=["id", "dear"], categorical=["town"])
    with pytest.raises(
        ValueError, match=r"GradientBoostingRegressor cannot be .* each of 3 classes: .*MultiOutputRegressor"
    ):
        teacher_of("models_of_flats:single", three, FAST)
    with pytest.raises(TypeError, match="expected a scikit-learn classifier or regressor, got dict"):
        teacher_of("models_of_flats:nothing", table, FAST)
    with pytest.raises(ValueError, match="an ensemble is made of networks"):
        teacher_of(["mlp-8", "random-forest"], table, FAST)
    values = flats(folder, target="area", drop=["id", "dear"], regression=True)
    assert teacher_of("models_of_flats:line", values, FAST)(values.test.rows).shape == (20, 1)
    with pytest.raises(ValueError, match="makes the classifier LogisticRegression, but"):
        teacher_of("models_of_flats:logistic", values, FAST)


def test_networks_are_an_ensemble(folder):
    table = flats(folder)
    teacher = teacher_of(["mlp-8", "mlp-8"], table, FAST)
    assert isinstance(teacher, limbeck.Ensemble)
    one, two = (member(table.test.rows) for member in teacher.members)
    assert not torch.equal(one, two)


def test_what_is_measured(folder):
    table = flats(folder)
    student = student_of("mlp-8", table)
    found = measured(student, table, seconds=0.01)
    p = student(table.test.rows).softmax(1)[:, 1]
    assert found.rmse == pytest.approx((p - table.test.targets).square().mean().sqrt().item(), rel=1e-5)
    assert found.accuracy == pytest.approx(((p > 0.5).long() == table.test.targets).float().mean().item())
    assert found.bytes == 4 * ((8 + 1) * 8 + (8 + 1) * 2 + 4)  # and mean and deviation of the two columns of numbers
    assert found.row_ms > 0
    assert found.many_ms > 0


# the command ---------------------------------------------------------------------------------------------------------


FLATS = "mimic --data flats.csv --categorical [town,kind] --drop id --run-dir run"


def test_the_command_prints_and_writes_what_was_gained(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    words = [
        "mimic",
        "--data",
        "flats.csv",
        "--root",
        ".",
        "--categorical",
        "[town,kind]",
        "--drop",
        "id",
        "--student",
        "mlp-8",
    ]
    words += ["--times", "[3,1]", "--epochs", "2", "--batch-size", "16", "--run-dir", "runs/flats"]
    assert main(words) == 0
    out = capsys.readouterr().out
    names = ["teacher", "labels alone", "soft labels", "MUNGE × 1", "MUNGE × 3"]
    assert all(word in out for word in [*names, "RMSE", "20 test rows"])
    found = read_compression(folder / "runs/flats")
    assert [model.name for model in found.models] == names
    assert [model.rows for model in found.models] == [54, 54, 54, 54, 162]
    assert (found.labels, found.stopping) == (54, 6)
    assert "60 labels in all: 54 to learn from, 6 to say after which epoch to stop." in out
    teacher, *_, student = (model.measured for model in found.models)
    assert student.bytes < teacher.bytes
    assert student.accuracy > 0.4
    assert math.isfinite(student.rmse)
    assert (folder / "runs/flats/student.safetensors").exists()
    page, said = read(folder / "runs/flats/report.html")
    assert f"RMSE over rows answered: 54: {found.models[3].measured.rmse:.4f}, 162: {student.rmse:.4f}" in page
    assert "What it was compressed into" in said


def test_sizes_are_those_of_rows_that_are_made_up(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = "mimic --data flats.csv --root . --categorical [town,kind] --drop id --student mlp-8 --transfer train"
    assert main([*words.split(), "--times", "[1,3]"]) == 2
    assert "several sizes are those of made-up rows" in capsys.readouterr().err
    assert main([*words.replace("train", "munge").split(), "--times", "[0,3]"]) == 2
    assert "times must be at least 1, got 0" in capsys.readouterr().err


def test_values_are_mimicked_in_whatever_unit(folder):
    header, *lines = (folder / "flats.csv").read_text().splitlines()
    priced = [f"{line},{200_000 + 1000 * float(line.split(',')[2])}" for line in lines]
    (folder / "flats.csv").write_text("\n".join([header + ",price", *priced]) + "\n")
    table = flats(folder, target="price", categorical=["town", "kind", "dear"], regression=True)
    teacher = teacher_of("random-forest", table, FAST)
    torch.manual_seed(0)
    student = student_of("mlp-8", table)
    spread = float(table.test.targets.std())
    assert measured(student, table, seconds=0.01).rmse < 2 * spread  # and not as far off as 0 is from a price
    training = Training(epochs=10, batch_size=16, lr=1e-2)
    result = taught(lambda: student_of("mlp-8", table), teacher, table, transfer(table, times=10), training)
    found = measured(result.student, table, seconds=0.01)
    assert found.accuracy is None
    assert found.rmse == pytest.approx(result.metrics["test/student/RMSE"], rel=1e-4)
    assert found.rmse < spread / 3


def test_all_students_keep_the_epoch_of_the_least_validation_loss(folder, tmp_path):
    """Whatever they learn from; and what a run leaves behind is of the training that was stopped there."""
    table, training = flats(folder, labels=40), replace(FAST, epochs=4, lr=0.1)
    table = replace(table, val=replace(table.val, targets=1 - table.val.targets))  # what is learned there does harm
    make, teacher = lambda: student_of("mlp-8", table), teacher_of("random-forest", table, training)
    results = [
        alone(make, table, training, updates=4, run_dir=tmp_path / "alone"),
        taught(make, teacher, table, transfer(table, times=2), training, run_dir=tmp_path / "taught"),
    ]
    for result in results:
        whole = read_rows(result.run_dir / "all-epochs" / "metrics.csv")
        losses = [float(row["val/student/loss"]) for row in whole]
        assert len(losses) == 4
        assert len(result.history) < 4
        assert [float(row["val/student/loss"]) for row in result.history] == losses[: 1 + losses.index(min(losses))]
        kept = student_of("mlp-8", table)
        kept.load_state_dict(load_file(result.run_dir / "student.safetensors"))
        assert torch.equal(kept(table.test.rows), result.student(table.test.rows))
        said = json.loads((result.run_dir / "result.json").read_text())
        found = measured(result.student, table, seconds=0.01)
        assert said["networks"]["student"]["test"]["accuracy"] == pytest.approx(found.accuracy)


def test_the_verb_is_the_command_and_goes_on_with_the_same_table_alone(folder, tmp_path):
    table, run = flats(folder, labels=40), tmp_path / "run"
    kept = compress(table, "random-forest", "mlp-4", times=2, training=FAST, run_dir=run)
    assert [model.name for model in kept.compression.models] == ["teacher", "labels alone", "MUNGE × 2"]
    assert all(model.epochs in (1, 2) for model in kept.compression.models[1:])
    assert read_compression(run) == kept.compression
    weights = sha256_of(run / "student.safetensors")
    (run / "mimic.json").write_text("{")  # a kill between the training and its page
    with pytest.raises(Damaged, match=r"mimic\.json .*limbeck mimic` with --resume writes it again"):
        read_compression(run)
    again = compress(table, "random-forest", "mlp-4", times=2, training=FAST, run_dir=run, resume=True)
    assert read_compression(run) == again.compression
    assert [model.measured.rmse for model in again.compression.models] == [
        model.measured.rmse for model in kept.compression.models
    ]
    assert sha256_of(run / "student.safetensors") == weights
    other = replace(table, test=replace(table.test, rows=table.test.rows + 1))
    forest = teacher_of("gradient-boosting", table, FAST)
    for options, message in (
        ({"resume": False}, "holds a run already"),
        ({"table": other}, "has another table"),
        ({"teacher": "gradient-boosting"}, "another teacher: random-forest, and not gradient-boosting"),
        ({"teacher": forest}, "another teacher: random-forest, and not SklearnTeacher"),
        ({"training": replace(FAST, epochs=3)}, "another epochs: 2, and not 3"),
        ({"times": [1, 2]}, "another times"),
    ):
        said = {"table": table, "teacher": "random-forest", "student": "mlp-4", "times": 2, "training": FAST}
        with pytest.raises(ValueError, match=message):
            compress(**{**said, "resume": True, **options}, run_dir=run)


def test_a_kept_table_of_results_says_what_is_wrong_with_it(tmp_path):
    keep(
        tmp_path / "mimic.json", {"data": "flats", "teacher": "a", "student": "b", "tests": 2, "models": [{"name": 1}]}
    )
    with pytest.raises(Damaged, match=r"mimic\.json is not what limbeck mimic writes"):
        read_compression(tmp_path)
    assert read_compression(tmp_path / "none") is None


def test_the_command_says_what_is_wrong(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["mimic", "--data", "flats.csv"]) == 2
    assert "--categorical town" in capsys.readouterr().err
    words = f"{FLATS} --epochs 1 --times 1".split()
    monkeypatch.setattr("limbeck.verbs.mimic.teacher_of", lambda *_: pytest.fail("a teacher learns first"))
    for wrong, message in (
        ("--student mlp", "unknown network 'mlp'"),
        ("--swap 2", "swap is a probability"),
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--lr 0", "lr must be positive, got 0.0"),
        ("--transfer unlabelled", "there are no unlabelled rows"),
    ):
        assert main([*words, *wrong.split()]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_another_run_is_not_taken_for_this_one(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = f"{FLATS} --student mlp-4 --epochs 1".split()
    assert main([*words, "--times", "2"]) == 0
    monkeypatch.setattr("limbeck.verbs.mimic.teacher_of", lambda *_: pytest.fail("a teacher learns first"))
    capsys.readouterr()
    for other, message in (
        ("--times 2", "run holds a run already: pass resume=True (--resume)"),
        ("--times 3 --resume", "the run in run has another times: 2, and not 3"),
        ("--times 2 --teacher gradient-boosting --resume", "another teacher: random-forest, and not gradient-boosting"),
    ):
        assert main([*words, *other.split()]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("at", ["teacher", "labels alone"])
def test_ctrl_c_leaves_nothing_half_trained(folder, monkeypatch, capsys, at):
    monkeypatch.chdir(folder)
    words = f"{FLATS} --student mlp-4 --teacher [mlp-8] --epochs 2 --times 1".split()
    calls: list[Path] = []

    def stopping(*given: object, **options: object) -> limbeck.Result:
        calls.append(options["run_dir"])
        result = limbeck.fit(*given, **options)
        return replace(result, finished=len(calls) < (1 if at == "teacher" else 3))

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.verbs.mimic.fit", stopping)
        assert main(words) == 130
    assert calls[-1] == Path("run") / ("teacher-0" if at == "teacher" else "labels-alone") / "all-epochs"
    assert "stopped; the same command with --run-dir run --resume goes on" in capsys.readouterr().out
    assert not (folder / "run/mimic.json").exists()
    assert main([*words, "--resume"]) == 0
    assert (folder / "run/mimic.json").exists()


# what tables may hold ------------------------------------------------------------------------------------------------


BODY = "".join(f"{index},{index % 7},{'ab'[index % 2]}\n" for index in range(40))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("x,y,zß\n" + BODY).encode("latin-1"), r"not text in UTF-8 \(byte 5 is 0xdf\): write it anew, as with iconv"),
        (("x,y,z\n" + BODY.replace("a", "ä")).encode("latin-1"), "not text in UTF-8"),
        (("x,y,z\n" + BODY).encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        (b"", "Empty CSV file"),
        (b"x,y,z\n", "expected at least one row, got none"),
        (b"x;y\n1,5;2,5\n2,5;3,5\n", "got the single one 'x;y' with semicolons in it: write commas instead"),
        (("x,y,z\n" + BODY).replace(",", "\t").encode(), "with tabs in it"),
        (("x,y,z\n" + BODY).replace(",b", ",a").encode(), "has 1 classes in 40 rows"),
        (("x,y,z\n" + BODY.replace("3,3,b", "3,3,")).encode(), "column 'z' has 1 missing values"),
        (("x,y,z\n" + BODY.replace("3,3,b", "1_0,3,b")).encode(), "column 'x' holds text, '1_0'"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tabular.load("t.csv", tmp_path)


def test_what_a_table_may_have(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ("x,y,z\r\n" + BODY.replace("\n", "\r\n")).encode())
    assert [column.name for column in tabular.load("t.csv", tmp_path).columns] == ["x", "y"]
    path.write_text("x,y,z\n" + "".join(f"{index},1,{['10', '010'][index % 2]}\n" for index in range(40)))
    assert tabular.load("t.csv", tmp_path).classes == ("010", "10")  # in one order, whatever the process
    path.write_text("x,y,z\n" + "".join(f"{1_700_000_000 + index},1,{'ab'[index % 2]}\n" for index in range(40)))
    with pytest.warns(
        UserWarning, match=r"column 'x' has 40 different numbers, of which 32 bits, 7 digits, leave \d apart"
    ):
        tabular.load("t.csv", tmp_path)
    with pytest.raises(ValueError, match="the target 'y' is 1 in all 40 rows"):
        tabular.load("t.csv", tmp_path, target="y", categorical=["z"], regression=True)


def test_labels_that_are_fewer_than_the_classes(tmp_path):
    lines = [f"{index},{index % 7},c{index % 5}" for index in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["x,y,z", *lines]))
    with pytest.raises(ValueError, match="labels: expected between 5 and the 45 rows outside the test, got 4"):
        tabular.load("t.csv", tmp_path, labels=4)
    with pytest.warns(UserWarning, match=r"no row to learn from is of 'c\d', 1 of 5 classes"):
        table = tabular.load("t.csv", tmp_path, labels=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("random-forest", "gradient-boosting"):
            assert teacher_of(name, table, FAST)(table.test.rows).shape == (15, 5)


def test_covtype_without_labels_for_the_test(tmp_path):
    header = "Id,Elevation,Wilderness_Area1,Wilderness_Area2,Soil_Type1,Soil_Type2"
    (tmp_path / "train.csv").write_text(f"{header},Cover_Type\n7,2596,0,1,0,1,5\n")
    (tmp_path / "test.csv").write_text(f"{header}\n7,2596,0,1,0,1\n")
    with pytest.raises(ValueError, match=r"'Cover_Type' is not in both\. Kaggle's own test\.csv has no labels"):
        tabular.load("covtype", tmp_path)
    for file in ("train.csv", "test.csv"):
        (tmp_path / file).write_text(f"{header},Cover_Type\n7,2596,0,1,1,1,5\n")
    with pytest.raises(ValueError, match=r"a single 1 in the columns Soil_Type\.\.\. of each row"):
        tabular.load("covtype", tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[3e38, 1.0], [-3e38, 2.0]],
            r"column 0 reaches from -3e\+38 to 3e\+38, a range that is infinite in torch\.float32",
        ),
        ([[], []], r"expected at least one column, got shape \(2, 0\)"),
        ([[1.0, 2.0]], "expected at least two rows"),
        ([[1.0, math.inf], [2.0, 3.0]], "column 1 has 1 values that are missing or infinite"),
    ],
)
def test_rows_that_cannot_be_made_up(rows, message):
    for make in (munge, lambda given, draw: uniform(given, 3, draw)):
        with pytest.raises(ValueError, match=message):
            make(torch.tensor(rows), torch.Generator().manual_seed(0))


def test_rows_that_can_be_made_up():
    wide = torch.tensor([[3e38, 1.0], [-3e38, 2.0]]).double()
    alike = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 5.0]])
    for rows in (wide, alike, torch.ones(3, 2), torch.randn(5, 2).half(), torch.randn(5, 2).bfloat16()):
        for follow in (False, True):
            made = munge(rows, torch.Generator().manual_seed(0), follow=follow)
            assert made.shape == rows.shape
            assert bool(made.isfinite().all())
    with pytest.raises(ValueError, match="variance=1e-38 is so small that made-up values are infinite"):
        munge(1e10 * torch.randn(9, 2), torch.Generator().manual_seed(0), variance=1e-38)
