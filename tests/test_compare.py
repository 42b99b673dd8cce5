"""Comparisons: the same budget for all, resumable run by run, and verdicts that are wrong as rarely as they say."""

import copy
import csv
import html
import json
import math
import os
import re
import shutil
import signal
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from conftest import undrawn
from limbeck.cli import main
from limbeck.core.heard import hearing, placed, shown_once
from limbeck.engine import fit as engine
from limbeck.engine.learner import Learner
from limbeck.measure import Plan, decide, judge, paired
from limbeck.measure.cost import Cost
from limbeck.measure.evidence import holm, seeds_needed
from limbeck.measure.looks import limits
from limbeck.report.comparison import Comparison, findings, read_comparison
from limbeck.report.redraw import redraw
from limbeck.report.table import Candidate, csv_table, judgements, latex_table, markdown_table, rows, verdict_in_words
from limbeck.verbs.compare import Entry, compare, grid
from limbeck.verbs.doubts import measured
from limbeck.verbs.runs import Outcome, Runs

DATA = limbeck.data.load("digits", labels=100, batch_size=128)
ACCURACY = limbeck.Score("accuracy")
ENTRIES = ["fitnets", Entry("kd", {"temperature": 2.0})]
NAMES = ["plain", "fitnets", "kd, temperature=2.0"]
EPOCHS, SEEDS, BATCHES = 2, 2, len(DATA.train)


def network(name):
    return limbeck.zoo.network(name, DATA.num_classes, DATA.shape)


student = partial(network, "mlp-16")


def make_teacher(seed=0):
    torch.manual_seed(seed)
    return network("mlp-32")


def run(run_dir=None, entries=ENTRIES, **changed):
    settings = {"epochs": EPOCHS, "seeds": SEEDS, "clip": 1.0, "progress": False, "accelerator": "cpu"} | changed
    given = [settings.pop(name, default) for name, default in (("student", student), ("teacher", make_teacher()))]
    return compare(entries, *given, DATA, run_dir=run_dir, **settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def tables(folder):
    """What the tables say, but for the latency, which is measured anew."""
    with (folder / "table.csv").open(newline="") as file:
        records = [{**row, "latency_ms": ""} for row in csv.DictReader(file)]
    return records, *(re.sub(r"[\d.]+ ms", "ms", (folder / f"table.{kind}").read_text()) for kind in ("md", "tex"))


def finished(folder):
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/result.json"))]
    return sum(result["finished"] for result in results)


def stop_at(batch, number):
    """Send this process a signal after so many batches of all its runs together."""
    left, original = [batch], Learner.on_train_batch_end

    def count(self, *args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        original(self, *args)

    return count


# runs ----------------------------------------------------------------------------------------------------------------


def stopped(folder, batch):
    """The other process."""
    Learner.on_train_batch_end, engine.run_report = stop_at(batch, signal.SIGKILL), undrawn
    run(folder)


def test_killed_half_way_and_resumed_gives_the_same_table(unbroken, tmp_path, processes):
    # in the second epoch of kd with the first seed: two runs are finished, three not begun
    batch = 2 * EPOCHS * BATCHES + BATCHES + BATCHES // 2
    process = processes.Process(target=stopped, args=(tmp_path, batch))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert finished(tmp_path) == 2
    assert (tmp_path / "kd-temperature=2.0/seed-0/checkpoints/last.ckpt").exists()
    assert not (tmp_path / "table.md").exists()

    resumed = run(tmp_path)
    assert tables(tmp_path) == tables(unbroken[0])
    assert [c.values for c in resumed.candidates] == [c.values for c in unbroken[1].candidates]  # bitwise


def test_ctrl_c_ends_with_a_checkpoint_and_the_same_call_goes_on(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "on_train_batch_end", stop_at(BATCHES + 3, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="plain, seed 0"):
            run(tmp_path)
    assert finished(tmp_path) == 0
    run(tmp_path)
    assert tables(tmp_path) == tables(unbroken[0])


@pytest.mark.parametrize("what", ["evaluate", "cost", "run_report"])
def test_ctrl_c_between_two_trainings_ends_there_and_the_same_call_goes_on(unbroken, tmp_path, monkeypatch, what):
    """It comes while the first run is measured or drawn, which is finished all the same."""
    original, trained = getattr(engine, what), []

    def pressed(*given):
        signal.raise_signal(signal.SIGINT)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(engine, what, pressed)
        with pytest.raises(KeyboardInterrupt, match="plain, seed 0: the same call goes on"):
            run(tmp_path)
    assert finished(tmp_path) == 1
    monkeypatch.setattr(Learner, "on_train_start", lambda self: trained.append(self.name))
    run(tmp_path)
    assert tables(tmp_path) == tables(unbroken[0])
    assert trained.count("train") == 3  # plain with the other seed, and kd with both: the first is read


def test_ctrl_c_while_steps_are_timed_leaves_no_times(tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "on_train_batch_end", stop_at(3, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="while plain was timed"):
        run(tmp_path, match="compute")
    assert not (tmp_path / "step-times.json").exists()


def test_a_warning_says_its_run_and_is_shown_once(tmp_path, recwarn):
    """An untrained teacher is doubted in each of four runs: the terminal says so once, and the page for every run."""
    run(tmp_path, entries=["kd", "logits"], epochs=1)
    shown = [str(one.message) for one in recwarn.list if "the teacher" in str(one.message)]
    assert len(shown) == 1
    assert shown[0].startswith("kd, seed 0: the teacher ")
    kept = [json.loads(path.read_text())["warnings"] for path in tmp_path.glob("*/seed-*/warnings.json")]
    told = [one["message"] for of in kept for one in of if "the teacher" in one["message"]]
    assert len(told) == 4
    assert all(message.startswith("the teacher ") for message in told)


def test_shown_once_means_whatever_the_numbers_and_places_but_not_the_names(recwarn):
    warnings.simplefilter("always")  # else Python itself forgets the second of the same words and line
    heard = []
    said = [
        "loss 1.5 in 3 batches",
        "loss -2e-05 in 41 batches",
        "the term 'student/l1' idles",
        "the term 'student/l2' idles",
    ]
    with shown_once(), hearing(heard.append):
        for row in ("kd", "at"):
            with placed(row), shown_once():
                for words in (*said, "resnet8 at layers.1", "resnet8 at layers.2"):
                    warnings.warn(words, UserWarning, stacklevel=1)
        warnings.warn(said[0], RuntimeWarning, stacklevel=1)  # of another kind
    shown = [str(one.message) for one in recwarn.list]
    names = ["the term 'student/l1' idles", "the term 'student/l2' idles", "resnet8 at layers.1", "resnet8 at layers.2"]
    assert shown == ["kd: loss 1.5 in 3 batches", *(f"kd: {name}" for name in names), said[0]]
    assert len(heard) == 13
    assert all(not one.message.startswith(("kd:", "at:")) for one in heard)


def test_what_is_finished_is_read_and_not_trained_again(unbroken, monkeypatch):
    folder, comparison = unbroken
    before = tables(folder)
    monkeypatch.setattr(Learner, "training_step", lambda *args: pytest.fail("it trains"))
    again = run(folder)
    assert tables(folder) == before
    assert (
        again.candidates[1:]
        == tuple(  # all but latency, which is measured
            replace(c, cost=a.cost) for c, a in zip(comparison.candidates[1:], again.candidates[1:], strict=True)
        )
    )


def test_a_method_that_diverges_has_no_row_and_the_others_go_on(tmp_path):
    steep = Entry("rkd", {"distance": 1e30})
    found = run(tmp_path, [steep, "kd"], clip=None)
    assert [candidate.name for candidate in found.candidates] == ["teacher", "plain", "kd"]
    assert [len(candidate.values) for candidate in found.candidates[1:]] == [SEEDS, SEEDS]
    assert "rkd, distance=1e+30 diverged with seed 0 and has no row: 'student/" in found.note
    assert found.note in (tmp_path / "report.html").read_text().replace("&#x27;", "'").replace("&#39;", "'")
    with pytest.raises(FloatingPointError, match="student/"):
        run(None, [steep], clip=None)


def test_every_run_has_the_same_budget_weights_and_order(unbroken):
    folder, _ = unbroken
    runs = [folder / name / f"seed-{seed}" for name in ("plain", "fitnets", "kd-temperature=2.0") for seed in range(2)]
    steps, weights = set(), {}
    for path in runs:
        with (path / "metrics.csv").open() as file:
            steps.add(int(list(csv.DictReader(file))[-1]["step"]))
        settings = yaml.safe_load((path / "config.yaml").read_text())
        weights.setdefault(settings["seed"], set()).add(settings["student"])
    assert steps == {EPOCHS * BATCHES}
    assert [len(same) for same in weights.values()] == [1, 1]
    assert weights[0] != weights[1]


def test_a_run_is_what_fit_gives_with_its_seed(unbroken):
    """Paired runs are no invention of the comparison: plain on the labelled samples, kd on all, the seed everywhere."""
    found = {candidate.name: candidate.values[1] for candidate in unbroken[1].candidates[1:]}
    for name, data, make in (
        ("plain", DATA.labelled(), limbeck.plain),
        ("kd, temperature=2.0", DATA, partial(limbeck.kd, teacher=make_teacher(), temperature=2.0)),
    ):
        torch.manual_seed(1)
        options = {"epochs": EPOCHS, "seed": 1, "clip": 1.0, "accelerator": "cpu", "progress": False}
        result = limbeck.fit(make(student()), data.with_seed(1), **options)
        assert result.metrics["test/student/accuracy"] == found[name]


def test_the_shared_teacher_is_measured_on_the_test_data_once(unbroken):
    run_of_kd = json.loads((unbroken[0] / "kd-temperature=2.0/seed-0/result.json").read_text())
    assert "test" not in run_of_kd["teachers"]["teacher"]
    assert unbroken[1].candidates[0].values


def test_the_folder_holds_every_form_of_the_table(unbroken):
    folder, comparison = unbroken
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["teacher", *NAMES]
    assert [tuple(row["values"]) for row in results["rows"]] == [c.values for c in comparison.candidates]
    assert results["epochs"] == dict.fromkeys(NAMES, EPOCHS)
    with (folder / "table.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in results["rows"]]
    page = (folder / "report.html").read_text()
    assert all(f">{name}<" in page for name in NAMES)


def test_peers_and_methods_without_a_teacher_and_other_teachers():
    entries = ["plain", "ls", "dml", Entry("kd", name="untrained", teacher=make_teacher(1), control=True), "kd"]
    comparison = run(entries=entries, epochs=1, seeds=1)
    roles = {candidate.name: candidate.role for candidate in comparison.candidates}
    assert roles == {
        "teacher": "teacher",
        "plain": "baseline",
        "ls": "control",
        "dml": "distilled",
        "untrained": "control",
        "kd": "distilled",
    }
    reached = {candidate.name: candidate.values for candidate in comparison.candidates}
    assert reached["untrained"] != reached["kd"]


def test_loaders_of_ones_own():
    torch.manual_seed(0)
    parts = [TensorDataset(torch.randn(64, *DATA.shape), torch.randint(10, (64,))) for _ in range(3)]

    def loaders(**options):
        return tuple(DataLoader(part, batch_size=16, shuffle=True, **options) for part in parts)

    options = {"epochs": 1, "seeds": 2, "progress": False, "accelerator": "cpu"}
    plain_again = Entry("plain", name="plain, again")
    found = compare([plain_again], student, None, loaders(), **options).candidates
    assert found[0].values == found[1].values
    with pytest.raises(ValueError, match="generator of its own"):
        compare([plain_again], student, None, loaders(generator=torch.Generator()), **options)
    by_validation = compare([plain_again], student, None, loaders()[:2], **options)
    assert by_validation.candidates[0].values == by_validation.candidates[1].values
    assert by_validation.note.startswith("There are no test data: the validation data")
    with pytest.raises(TypeError, match=r"data to judge by: .*\(train, val\)"):
        compare([plain_again], student, None, loaders()[0], **options)
    with pytest.raises(ValueError, match="match='compute' needs"):
        compare([plain_again], student, None, loaders(), match="compute", **options)


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_teacher()

    def forward(self, inputs):
        time.sleep(0.02)
        return self.net(inputs)


def test_compute_matched_methods_have_epochs_by_their_measured_time(tmp_path):
    settings = {"entries": ["kd"], "teacher": Slow(), "epochs": 4, "seeds": 1, "match": "compute"}
    comparison = run(tmp_path, **settings)
    ratio = json.loads((tmp_path / "step-times.json").read_text())["kd"]
    epochs = json.loads((tmp_path / "results.json").read_text())["epochs"]
    assert epochs == {"plain": 4, "kd": max(1, round(4 / ratio))}
    assert epochs["kd"] < 4
    assert f"kd {epochs['kd']}" in comparison.note
    run(tmp_path, **settings)  # another measurement would refuse the runs that are there, or train others


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["kd", Entry("fitnets", {"temprature": 2})], "fitnets has no option 'temprature'.*temperature"),
        (["kd", "fitnet"], "unknown method 'fitnet'.*fitnets"),
        (["kd", Entry("ban", {"generations": 0})], "generations must be at least 1"),  # known once it begins
        (
            ["kd", Entry("ban", {"generations": 3})],
            "ban, generations=3 takes 3 epochs, and plain 2, .* no fair comparison",
        ),
        (["kd", Entry("ls", teacher=make_teacher())], "ls has no teacher"),
        (["kd", Entry("kd")], "two entries have the same name, 'kd'"),
        ([], "nothing to compare"),
    ],
)
def test_entries_that_cannot_be_trained_fail_before_any_training(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, entries)
    assert not list(tmp_path.iterdir())


def test_a_student_must_be_made_anew_and_of_the_seed():
    net, draws = student(), iter(range(100))

    def of_its_own():
        torch.manual_seed(next(draws))
        return student()

    with pytest.raises(ValueError, match="same network twice"):
        run(student=lambda: net)
    with pytest.raises(ValueError, match="other weights at each call"):
        run(student=of_its_own)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 3}, "another epochs: 2, and not 3"),
        ({"clip": 2.0}, "another clip"),
        ({"optimizer": lambda parameters: torch.optim.SGD(parameters, 0.01)}, "another optimizer"),
        ({"schedule": lambda optimizer, updates: torch.optim.lr_scheduler.StepLR(optimizer, 3)}, "another schedule"),
        ({"student": partial(network, "mlp-17")}, "another student"),
    ],
)
def test_runs_of_another_comparison_are_not_taken_for_this_one(unbroken, changed, message):
    with pytest.raises(ValueError, match=message):
        run(unbroken[0], **changed)


def test_a_finished_run_of_another_teacher_is_not_taken_for_this_ones(unbroken):
    with pytest.raises(ValueError, match=r"fitnets.seed-0 has another teacher"):
        run(unbroken[0], teacher=make_teacher(1))


def with_a_pixel_changed():
    images = DATA.train.images.clone()
    images[-1, 0, 4, 4] ^= 1
    train = copy.copy(DATA.train)
    train.images = images
    return replace(DATA, train=train)


def loss_counts():
    return replace(DATA.task, score=limbeck.Score("loss", "", best="lowest"))


@pytest.mark.parametrize(
    ("entry", "changed", "message"),
    [
        ("kd", {"data": with_a_pixel_changed()}, "another data content train"),
        ("kd", {"task": loss_counts()}, "another task"),
        ("kd", {"teacher": limbeck.Frozen(make_teacher(), classes=[1, 0, *range(2, 10)])}, "another teacher"),
        (Entry("kd", teacher=make_teacher(1), name="kd"), {}, "another teacher"),
        (Entry("kd", {"temperature": 2.0}, name="kd"), {}, "another options temperature"),
        (Entry("logits", name="kd"), {}, "another method: kd, and not logits"),
    ],
)
def test_a_run_depends_on_all_that_makes_it_what_it_is(one_run, entry, changed, message, monkeypatch):
    monkeypatch.setattr("limbeck.verbs.runs.fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=message):
        run_one(one_run, entry, **changed)


def test_the_weights_of_assistants_are_inputs_too(tmp_path):
    first, second = (Entry("takd", {"assistants": make_teacher(seed)}, name="takd") for seed in (1, 2))
    run(tmp_path, [first], seeds=1)
    with pytest.raises(ValueError, match=r"takd.seed-0 has another options assistants"):
        run(tmp_path, [second], seeds=1)


# what is damaged -----------------------------------------------------------------------------------------------------


def run_one(folder, entry="kd", data=DATA, teacher=None, task=None):
    settings = {"task": task, "epochs": 1, "seeds": 1, "progress": False, "accelerator": "cpu", "run_dir": folder}
    return compare([entry], student, teacher or make_teacher(), data, **settings)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, run_one(folder)


@pytest.fixture
def one_run(small, tmp_path):
    """A copy of a comparison of one run each."""
    return shutil.copytree(small[0], tmp_path / "one")


def one_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: b"\x89PNG\r\n\x1a\n" + content,
    "a list": lambda content: b"[]",
    "one bit": one_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["result.json", "config.yaml", "metrics.csv", "student.safetensors"])
def test_damage_is_named_and_only_that_run_is_made_again(one_run, small, name, damage):
    path = one_run / "kd/seed-0" / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*(remove|take another)"):
        run_one(one_run)
    weights = (one_run / "plain/seed-0/student.safetensors").stat().st_mtime_ns
    shutil.rmtree(path.parent)
    assert [one.values for one in run_one(one_run).candidates] == [one.values for one in small[1].candidates]
    assert (one_run / "plain/seed-0/student.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["results.json", "examples.npz", "kd/seed-0/config.yaml"])
def test_no_page_is_drawn_of_damaged_files(one_run, name, damage, capsys):
    path = one_run / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert main(["report", str(one_run), "--to", str(one_run / "other.html")]) == 2
    assert path.name in capsys.readouterr().err
    assert not (one_run / "other.html").exists()


def test_the_result_of_another_seed_is_no_result(unbroken, tmp_path):
    folder = shutil.copytree(unbroken[0], tmp_path / "a")
    shutil.copy(folder / "fitnets/seed-1/result.json", folder / "fitnets/seed-0/result.json")
    with pytest.raises(ValueError, match=r"seed-0.*is damaged: it is not what this run wrote"):
        run(folder)


def test_a_file_of_another_program_is_no_comparison(tmp_path):
    (tmp_path / "results.json").write_text('{"rows": [{"name": "a"}]}')
    with pytest.raises(ValueError, match=r"results\.json is no comparison of limbeck's.*the same `limbeck compare`"):
        redraw([tmp_path])


def test_what_a_kill_left_unwritten_is_written_when_the_call_goes_on(one_run, small, monkeypatch):
    """After the scores: the page, or the page and what it needs."""
    runs = [one_run / name / "seed-0" for name in ("plain", "kd")]
    missing = ("report.html", "examples.npz", "metrics.csv")
    for run_dir, names in zip(runs, (missing[:1], missing), strict=True):
        for name in names:
            (run_dir / name).unlink()
    monkeypatch.setattr(Learner, "training_step", lambda *args: pytest.fail("it trains"))
    assert [one.values for one in run_one(one_run).candidates] == [one.values for one in small[1].candidates]
    assert all((run_dir / name).exists() for run_dir in runs for name in missing)
    for path in runs:
        (path / "report.html").unlink()
        shutil.rmtree(path / "checkpoints")  # without them there is still a page
    run_one(one_run)
    assert all((run_dir / "report.html").stat().st_size > 1000 for run_dir in runs)


# what makes it worth nothing -----------------------------------------------------------------------------------------


def first_of_all(folder):
    """The first sentences of the page and of the table."""
    page = re.search("<p>(.*?)</p>", (folder / "report.html").read_text(), re.DOTALL)
    return html.unescape(page[1]), (folder / "table.md").read_text().splitlines()[0]


def test_a_teacher_at_chance_is_said_first(small):
    folder, comparison = small
    said = "The teacher is no better than chance: accuracy"
    assert all(text.startswith(said) for text in (findings(comparison)[0], *first_of_all(folder)))
    assert "What kd learned from it is no knowledge" in findings(comparison)[0]
    assert redraw([folder], folder / "again.html").read_text().count("What kd learned from it is no knowledge") == 1


@pytest.mark.parametrize(
    ("teacher", "entries", "said"),
    [
        (make_teacher(), [Entry("kd", control=True), "ls"], []),
        (make_teacher(), [Entry("kd", control=True), "logits"], ["What logits learned"]),
        (None, [Entry("kd", teacher=make_teacher(1))], ["The teacher of kd "]),
        (None, [Entry("kd", teacher=make_teacher(1), control=True)], []),
    ],
)
def test_controls_are_meant_to_learn_nothing(teacher, entries, said):
    found = compare(entries, student, teacher, DATA, epochs=8, seeds=1, progress=False, accelerator="cpu")
    taught = [doubt for doubt in found.doubts if "eacher" in doubt]
    assert len(taught) == len(said)
    assert all(words in doubt for words, doubt in zip(said, taught, strict=True))


def blank():
    net = student()
    nn.init.zeros_([*net.parameters()][-2])
    return net


def test_students_at_chance_are_named(tmp_path):
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, 1e-9), "student": blank}
    found = run(tmp_path, [Entry("kd", control=True)], seeds=1, **still)
    told = (
        r"After the training these cannot be told from guessing, which has 10.00 %, on \d+ test samples: plain .*, kd"
    )
    assert re.match(told, found.doubts[0])
    assert first_of_all(tmp_path)[1] == found.doubts[0]


def test_a_teacher_without_an_answer_to_the_test_data_costs_no_table(monkeypatch):
    with pytest.warns(UserWarning, match="Linear could not be measured on the test data: .*shapes"):
        assert measured(nn.Linear(3, 3), DATA.test, DATA.task, torch.device("cpu")) is None
    monkeypatch.setattr("limbeck.verbs.runs.measured", lambda *_: None)
    found = run_one(None)
    assert [len(candidate.values) for candidate in found.candidates] == [0, 1, 1]
    assert "| teacher |" in markdown_table(found.candidates)


class Counting(nn.Module):
    """A student of whose state not all is tensors."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = student(), 0

    def forward(self, inputs):
        self.seen += 1
        return self.net(inputs)

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_a_student_with_state_of_its_own_has_a_table_and_pictures(tmp_path):
    found = run(tmp_path, ["kd"], student=Counting, seeds=1, epochs=1)
    assert [len(candidate.values) for candidate in found.candidates] == [1, 1, 1]
    assert (tmp_path / "examples.npz").exists()


def test_a_method_with_more_stages_than_epochs_is_no_fair_comparison():
    with pytest.raises(ValueError, match="fitnets takes 2 epochs, and plain 1, which is no fair comparison"):
        run(entries=["fitnets"], epochs=1, seeds=1)


def test_a_grid_has_every_combination():
    entries = grid("kd", temperature=[1, 4, 20], alpha=[0.5, 0.9])
    assert [entry.options for entry in entries] == [
        {"temperature": temperature, "alpha": alpha} for temperature in (1, 4, 20) for alpha in (0.5, 0.9)
    ]
    assert len({entry.folder for entry in entries}) == 6
    long = [Entry("at", {"layers": [("layer1", "layer1")] * 20, "power": power}) for power in (1, 2)]
    assert len({entry.folder for entry in long}) == 2
    assert all(len(entry.folder) <= 80 for entry in long)


# seeds where they are needed -------------------------------------------------------------------------------------------


def scripted(monkeypatch, **gains):
    """Let no run be trained: each reaches what is said here, over a baseline that varies; return what was asked for."""
    asked, noise = [], np.random.default_rng(0).normal(0, 0.003, (30, 20))

    def outcome(runs, entry, seed, epochs, tell):
        asked.append((entry.name, seed))
        own = noise[1 + sorted(gains).index(entry.name), seed] if entry.name in gains else 0.0
        return Outcome(0.8 + noise[0, seed] + gains.get(entry.name, 0.0) + own, 1, 1.0)

    monkeypatch.setattr(Runs, "outcome", outcome)
    return asked


def seeds_of(asked, name):
    return [seed for entry, seed in asked if entry == name]


def test_seeds_are_added_to_the_undecided_alone_until_all_are_told_or_have_the_most(monkeypatch):
    asked = scripted(monkeypatch, kd=0.1, ls=0.0, logits=-0.012)
    found = run(entries=["kd", "ls", "logits"], seeds=3, decide=True, most=8)
    assert seeds_of(asked, "ls") == seeds_of(asked, "plain") == list(range(8))
    assert len(seeds_of(asked, "kd")) < len(seeds_of(asked, "logits")) < 8
    assert [len(one.values) for one in found.candidates[1:]] == [
        len(seeds_of(asked, n)) for n in ("plain", "kd", "ls", "logits")
    ]
    kd, ls, logits = judgements(found.candidates)[2:]
    assert [one.verdict for one in (kd, ls, logits)] == ["helps", "cannot tell", "hurts"]
    assert kd.pair.n == found.candidates[2].paired.n == len(seeds_of(asked, "kd"))
    assert f"helps ({kd.pair.n} seeds)" in rows(found.candidates)[2]
    assert found.title.endswith(f"{kd.pair.n} to 8 seeds")


def test_no_difference_larger_than_the_smallest_that_matters_is_a_verdict(monkeypatch):
    asked = scripted(monkeypatch, kd=0.1, ls=0.0)
    found = run(entries=["kd", "ls"], seeds=3, decide=True, most=12, smallest=1.0)
    kd, ls = judgements(found.candidates)[2:]
    assert (kd.verdict, ls.verdict) == ("helps", "no difference")
    assert len(seeds_of(asked, "ls")) < 12
    assert verdict_in_words(ls, ACCURACY) == "no difference larger than 1.00 points"
    fixed = run(entries=["kd", "ls"], seeds=12, smallest=1.0)
    assert [one.verdict for one in judgements(fixed.candidates)[2:]] == ["helps", "no difference"]
    assert [one.verdict for one in judgements(run(entries=["kd", "ls"], seeds=12).candidates)[2:]] == [
        "helps",
        "cannot tell",
    ]


def test_what_a_row_is_compared_with_has_its_seeds(monkeypatch):
    asked = scripted(monkeypatch, kd=0.1, again=0.1)
    entries = ["kd", Entry("kd", {"alpha": 0.5}, name="again", baseline="kd")]
    found = run(entries=entries, seeds=3, decide=True, most=6)
    assert judgements(found.candidates)[2].verdict == "helps"
    assert judgements(found.candidates)[2].pair.n < 6
    assert seeds_of(asked, "kd") == seeds_of(asked, "again") == list(range(6))
    assert found.candidates[3].paired.n == 6


def test_a_comparison_that_decides_goes_on_with_its_plan_alone(tmp_path):
    def decided(**changed):
        return run(
            tmp_path, **{"entries": ["ls", "logits"], "epochs": 1, "seeds": 2, "decide": True, "most": 4} | changed
        )

    first = decided()
    assert max(len(one.values) for one in first.candidates) > 2
    before = tables(tmp_path)
    assert judgements(read_comparison(tmp_path)[0].candidates) == judgements(first.candidates)
    (tmp_path / "table.md").unlink()
    again = decided()
    assert [one.values for one in again.candidates] == [one.values for one in first.candidates]
    assert tables(tmp_path) == before
    for changed, said in ({"most": 5}, "most=4"), ({"smallest": 0.5}, "smallest=None"), ({"entries": ["ls"]}, "rows="):
        with pytest.raises(ValueError, match=f"planned with {said}.*wrong more often"):
            decided(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": 1, "decide": True}, "at least 2 seeds"),
        ({"seeds": 5, "decide": True, "most": 5}, "more at the last, got seeds=5, most=5"),
        ({"most": 3}, r"most=3 limits the seeds that decide=True \(--decide\) adds, .*seeds=2"),
        ({"smallest": 0.0}, "smallest must be"),
        ({"smallest": -1.0}, "smallest must be"),
    ],
)
def test_plans_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        run(**changed)


def test_the_command_decides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scripted(monkeypatch, kd=0.1, ls=0.0)
    words = "compare kd ls --student mlp-8 --teacher mlp-16@random --epochs 1 --decide --most 5 --smallest 2"
    monkeypatch.setattr(Runs, "keep_examples", lambda *_: None)
    assert main([*words.split(), "--run-dir", "here"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "kd: helps" in out
    assert "ls: no difference larger than 2.00 points" in out
    assert json.loads(Path("here/plan.json").read_text())["most"] == 5


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_limits_spend_the_level_equally_over_the_looks(level, sides):
    """Against a simulation, in which nothing is computed from one look to the next."""
    first, most, tables_ = 3, 8, 400_000
    values = np.random.default_rng(5).standard_normal((tables_, most))
    found = limits(level, first, most, sides=sides)
    assert found[0] == pytest.approx(level / 6, rel=1e-4)
    assert sorted(found) == list(found)
    open_ = np.ones(tables_, bool)
    for n, limit in enumerate(found, first):
        t = values[:, :n].mean(1) / values[:, :n].std(1, ddof=1) * math.sqrt(n)
        p = sides * stats.t.sf(np.abs(t) if sides == 2 else t, n - 1)
        told = open_ & (p < limit)
        share = level / 6
        assert told.mean() == pytest.approx(share, abs=4 * math.sqrt(share / tables_))
        open_ &= ~told


def test_one_look_has_the_whole_level_and_a_smaller_level_smaller_limits():
    assert limits(0.05, 4, 4) == pytest.approx((0.05,))
    for fewer, more in zip(limits(0.05 / 3, 2, 6), limits(0.05 / 2, 2, 6), strict=True):
        assert fewer < more  # what lets Holm's correction hold at looks


def test_a_decision_by_hand():
    """One row, looks after 2 and 3 seeds: the first is not told, the second by its limit."""
    treated, base, plan = [0.9, 0.93, 0.92], [0.8, 0.8, 0.8], Plan(2, 3)
    early = decide([treated[:2]], [base], plan=plan)[0]
    p = stats.ttest_1samp([0.1, 0.13], 0).pvalue
    assert early.p == pytest.approx(0.05 * p / limits(0.05, 2, 3)[0])
    assert early.verdict == "cannot tell"
    late = decide([treated], [base], plan=plan)[0]
    assert late.p == pytest.approx(0.05 * stats.ttest_1samp([0.1, 0.13, 0.12], 0).pvalue / limits(0.05, 2, 3)[1])
    assert (late.verdict, late.pair.n, late.more) == ("helps", 3, 0)
    with pytest.raises(ValueError, match="the first look is after 2 seeds, row 0 has 1"):
        decide([[0.9]], [[0.8]], plan=plan)
    with pytest.raises(ValueError, match="a plan with most="):
        decide([treated], [base], plan=Plan(3))


def test_two_one_sided_tests_by_hand():
    values, zero = [0.001, -0.002, 0.003, 0.0], [0.0] * 4
    judged = judge([paired(values, zero)], plan=Plan(4, smallest=0.005))[0]
    above, below = (
        stats.ttest_1samp(values, at, alternative=side).pvalue for at, side in ((-0.005, "greater"), (0.005, "less"))
    )
    assert judged.p_smaller == pytest.approx(max(above, below))
    assert judged.verdict == "no difference"
    of_two = judge([paired(values, zero)] * 2, plan=Plan(4, smallest=0.005))
    assert of_two[0].p_smaller == pytest.approx(2 * max(above, below))
    assert judge([paired([0.006, 0.0061, 0.0059, 0.006], zero)], plan=Plan(4, smallest=0.005))[0].verdict == "helps"
    alike = judge([paired([0.001] * 3, [0.0] * 3)], plan=Plan(3, smallest=0.005))[0]
    assert alike.verdict == "cannot tell"  # no spread, nothing shown


@pytest.mark.parametrize("rows_", [1, 5])
def test_tables_that_decide_are_wrong_as_seldom_as_fixed_ones(rows_):
    rng, wrong, simulations = np.random.default_rng(2), 0, 600
    for _ in range(simulations):
        values = rng.normal(0, 1, (rows_ + 1, 12))
        judged = decide(values[1:].tolist(), [values[0].tolist()] * rows_)
        wrong += any(one.verdict != "cannot tell" for one in judged)
    print(f"{rows_} rows without effect, 3 to 12 seeds: {wrong / simulations:.1%} of tables claim one")
    assert wrong / simulations <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)


def test_a_difference_as_large_as_the_smallest_is_seldom_called_none():
    rng, wrong, simulations = np.random.default_rng(3), 0, 600
    for _ in range(simulations):
        values = rng.normal([[0.0], [1.0], [1.0]], 0.2, (3, 12))  # exactly the smallest that matters
        judged = decide(values[1:].tolist(), [values[0].tolist()] * 2, plan=Plan(3, 12, smallest=1.0))
        wrong += any(one.verdict == "no difference" for one in judged)
    assert wrong / simulations <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)


# verdicts ------------------------------------------------------------------------------------------------------------

SIMULATIONS = 2000


def simulate(effects, seeds, rng, *, images=None, noise=0.004):
    """Judge one comparison whose truth is known: ``effects`` beside a baseline, all sharing what the seed gives."""
    shared = rng.normal(0.85, 0.01, seeds)
    truths = [shared + effect + rng.normal(0, noise, seeds) for effect in (0.0, *effects)]
    found = truths if images is None else [rng.binomial(images, truth.clip(0, 1)) / images for truth in truths]
    baseline, *treated = [np.float32(values).tolist() for values in found]
    return judge([paired(values, baseline) for values in treated])


def rates(effects, seeds, seed=0, **options):
    """How often each verdict falls on the last of ``effects``, and how often any row claims what is not so."""
    rng = np.random.default_rng(seed)
    verdicts, wrong = {"helps": 0, "hurts": 0, "cannot tell": 0}, 0
    for _ in range(SIMULATIONS):
        judged = simulate(effects, seeds, rng, **options)
        verdicts[judged[-1].verdict] += 1
        true = ["helps" if effect > 0 else "hurts" if effect < 0 else None for effect in effects]
        wrong += any(one.verdict not in ("cannot tell", truth) for one, truth in zip(judged, true, strict=True))
    return {name: count / SIMULATIONS for name, count in verdicts.items()}, wrong / SIMULATIONS


BOUND = 0.05 + 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)  # three standard errors of what is simulated


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("methods", [1, 5])
@pytest.mark.parametrize("images", [None, 300])
def test_no_more_than_one_table_in_twenty_claims_what_is_not_so(seeds, methods, images, record_property):
    _, wrong = rates([0.0] * methods, seeds, images=images)
    record_property("false claims", wrong)
    print(f"{methods} methods without effect, {seeds} seeds, {images or 'exact'}: {wrong:.1%} of tables claim one")
    assert wrong <= BOUND


def test_claims_are_right_about_some_while_others_do_nothing(record_property):
    verdicts, wrong = rates([0.0, 0.0, -0.02, 0.02], 5)
    record_property("false claims", wrong)
    print(f"two of four with effect, 5 seeds: {wrong:.1%} of tables claim what is not so")
    assert wrong <= BOUND
    assert verdicts["helps"] > 0.8


def test_power_grows_with_the_effect_and_is_that_of_the_t_test():
    powers = []
    for effect in (0.0, 0.003, 0.006, 0.012, 0.024):
        verdicts, _ = rates([effect], 5)
        size = effect / (0.004 * math.sqrt(2)) * math.sqrt(5)
        critical = stats.t.ppf(0.975, 4)
        assert verdicts["helps"] == pytest.approx(stats.nct.sf(critical, 4, size), abs=0.035)
        assert verdicts["hurts"] <= 0.035  # 2.5 % at no effect at all
        powers.append(verdicts["helps"])
        print(f"effect {100 * effect:.1f} points, sd of differences 0.57, 5 seeds: helps {verdicts['helps']:.1%}")
    assert powers == sorted(powers)
    assert powers[-1] > 0.99


@pytest.mark.parametrize(("size", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_seeds_needed_are_the_textbooks(size, seeds):
    """Cohen's d_z at 5 % and 80 %, as G*Power has it."""
    spread = [-1.0, 0.0, 1.0]
    pair = paired([0.01 * (size + one) for one in spread], [0.0] * 3)
    assert pair.sd == pytest.approx(0.01)
    assert seeds_needed(pair) == seeds
    assert verdict_in_words(judge([pair])[0], ACCURACY) == f"cannot tell with 3 seeds; {seeds - 3} more might"


def test_as_many_seeds_as_needed_tell_as_often_as_promised():
    verdicts, _ = rates([0.004 * math.sqrt(2)], 10)  # d_z = 1
    assert verdicts["helps"] == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("methods", [1, 4])
def test_looking_again_after_adding_the_seeds_asked_for_is_wrong_about_twice_as_often(methods):
    """Not a virtue but what the legend says."""
    rng, wrong, simulations = np.random.default_rng(1), 0, 300
    for _ in range(simulations):
        values = rng.normal(0.85, 0.01, 20) + rng.normal(0, 0.004, (1 + methods, 20))
        judged = judge([paired(row[:3], values[0, :3]) for row in values[1:]])
        if all(one.verdict == "cannot tell" for one in judged):
            n = min(20, 3 + min(one.more or 17 for one in judged))
            judged = judge([paired(row[:n], values[0, :n]) for row in values[1:]])
        wrong += any(one.verdict != "cannot tell" for one in judged)
    print(f"{methods} methods without effect, a second look at up to 20 seeds: {wrong / simulations:.1%} claim one")
    assert 0.06 < wrong / simulations < 0.14


def test_holm_by_hand():
    # 0.005·4, then 0.01·3, then 0.03·2, then 0.04·1 which must not fall below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_row_that_tells_alone_need_not_among_many():
    treated, baseline = [0.90, 0.92, 0.937], [0.88, 0.89, 0.897]
    pair = paired(treated, baseline)
    assert pair.p == pytest.approx(stats.ttest_rel(treated, baseline).pvalue)
    assert 0.025 < pair.p < 0.05
    assert judge([pair])[0].verdict == "helps"
    assert judge([paired(baseline, treated)])[0].verdict == "hurts"
    of_two = judge([pair] * 2)[0]
    assert of_two.verdict == "cannot tell"
    assert pair.low > 0
    assert of_two.more == seeds_needed(pair, 0.025) - 3 > 0


def test_seeds_are_planned_for_as_many_comparisons_as_there_are():
    pair = paired([0.90, 0.92, 0.927, 0.91], [0.88, 0.91, 0.917, 0.93])
    alone, of_two, of_ten = (judge([pair] * comparisons)[0].more for comparisons in (1, 2, 10))
    assert (alone, of_two, of_ten) == tuple(seeds_needed(pair, 0.05 / comparisons) - 4 for comparisons in (1, 2, 10))
    assert 0 < alone < of_two < of_ten


def test_one_seed_and_differences_that_are_all_alike_tell_nothing():
    alone = judge([paired([0.9], [0.5])])[0]
    assert verdict_in_words(alone, ACCURACY) == "cannot tell with 1 seed"
    images = 360
    alike = np.float32([[100 / images, 331 / images], [99 / images, 330 / images]]).tolist()
    assert alike[0][0] - alike[1][0] != alike[0][1] - alike[1][1]  # in their last bits
    judged = judge([paired(*alike)])[0]
    assert verdict_in_words(judged, ACCURACY) == "cannot tell with 2 seeds"
    assert judged.more is None


def test_tables_say_the_same_in_every_format():
    price = Cost(1000, 2000, 4000, 800, 0.1)
    plain, mine = (0.80, 0.81, 0.805, 0.7898), (0.82, 0.831, 0.824, 0.8146)
    candidates = (
        Candidate("teacher", "teacher", price, (0.95,)),
        Candidate("plain", "baseline", price, plain),
        Candidate("kd_50% | a", "distilled", price, mine, paired(mine, plain)),
    )
    of = stats.ttest_rel(mine, plain)
    interval = of.confidence_interval()
    low, high = 100 * interval.low, 100 * interval.high
    costs = ("1.00 k", "2.00 k", "0.10 ms")
    reached = f"82.24 ± {100 * np.std(mine, ddof=1):.2f}"
    cells = ("kd_50% | a", "helps", f"+2.12 [+{low:.2f}, +{high:.2f}]", reached)
    assert of.pvalue < 0.001
    assert rows(candidates)[2] == (*cells, "<0.001", *costs)
    unsure = Candidate("at", "distilled", price, mine, paired((0.81, 0.80, 0.815, 0.80), plain))
    of_two = judge([candidates[2].paired, unsure.paired])[1]
    assert rows((*candidates, unsure))[3][1] == f"cannot tell (+{of_two.more} seeds)"
    assert rows(candidates)[0] == ("teacher", "–", "–", "95.00", "–", *costs)
    assert r"| kd_50% \| a | helps | +2.12 [" in markdown_table(candidates)
    assert r"kd\_50\% | a & helps & +2.12 [" in latex_table(candidates)
    row = list(csv.DictReader(csv_table(candidates).splitlines()))[2]
    assert float(row["p_holm"]) == pytest.approx(of.pvalue)
    assert float(row["low"]) == pytest.approx(interval.low)
    assert row["verdict"] == "helps"
    printed = str(Comparison("four seeds", "", candidates))
    assert printed.startswith("four seeds\n\n“kd_50% | a” helps: +2.12 points")
    assert printed.endswith(markdown_table(candidates).partition("\n\n")[0])
    said = findings(Comparison("", "", candidates))
    assert said[0].startswith("kd_50% | a: helps. +2.12 points against the plain student over 4 seeds")


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_the_command_reads_a_grid_and_says_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "compare kd:temperature=1,4 ls --student mlp-8 --teacher mlp-16@random --samples 200 --epochs 1 --seeds 2"
    assert main([*words.split(), "--run-dir", "runs/c"]) == 0
    said = capsys.readouterr().out
    assert "kd, temperature=4: cannot tell with 2 seeds" in said
    records = json.loads((tmp_path / "runs/c/results.json").read_text())["rows"]
    assert [row["name"] for row in records] == ["teacher", "plain", "kd, temperature=1", "kd, temperature=4", "ls"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [("kd:temprature=1", "did you mean temperature"), ("kdd", "unknown method 'kdd'"), ("kd:4", "METHOD:OPTION=VALUE")],
)
def test_the_command_refuses_what_it_does_not_know(tmp_path, monkeypatch, capsys, entry, said):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", entry, "--student", "mlp-8", "--teacher", "mlp-16@random", "--samples", "200"]) == 2
    assert said in capsys.readouterr().err
