"""Comparisons, searches and pages by any score: whichever way it goes, whoever made it, and against any baseline."""

import csv
import json
import math
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score

import limbeck
from limbeck import methods
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.paper import Paper
from limbeck.engine.fit import fit
from limbeck.measure import accounts, judge, paired
from limbeck.methods._papers import paper_of
from limbeck.nets.exits import EarlyExit
from limbeck.report.accounts import markdown_table as accounts_table
from limbeck.report.comparison import findings, pictured
from limbeck.report.redraw import redraw
from limbeck.report.table import Candidate, csv_table, header, legend, markdown_table, rows
from limbeck.report.tuning import console_table, tuning_findings
from limbeck.verbs import tune as tuning
from limbeck.verbs.compare import Entry, compare
from limbeck.verbs.runs import Outcome, Runs
from limbeck.verbs.tune import Range, tune

RMSE, MAE = (limbeck.Score(name, unit="", best="lowest") for name in ("RMSE", "MAE"))
HOW = {"progress": False, "accelerator": "cpu"}


def values(seed, count=128):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=draw)
    targets = inputs.sin().sum(1, keepdim=True) + 0.3 * torch.randn(count, 1, generator=draw)
    return [(inputs[start : start + 32], targets[start : start + 32]) for start in range(0, count, 32)]


def classes(seed, count=128):
    return [
        (inputs, (targets[:, 0] > 0).long() + (targets[:, 0] > 1).long()) for inputs, targets in values(seed, count)
    ]


VALUES, CLASSES = ([make(seed) for seed in range(3)] for make in (values, classes))
VALUES, CLASSES = tuple(VALUES), tuple(CLASSES)


def network(outputs=1, width=4):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs))


def make_teacher(outputs=1):
    torch.manual_seed(9)
    return network(outputs, 8)


@pytest.fixture(scope="module")
def regressed(tmp_path_factory):
    """A comparison judged by an error."""
    folder, teacher = tmp_path_factory.mktemp("regressed"), make_teacher()
    fit(limbeck.plain(teacher, task=limbeck.regression), VALUES, epochs=8, **HOW)
    found = compare(
        ["logits", "bounded"],
        network,
        teacher,
        VALUES,
        task=limbeck.regression,
        epochs=2,
        seeds=3,
        run_dir=folder,
        **HOW,
    )
    return folder, teacher, found


# a score of which less is better -------------------------------------------------------------------------------------


def test_less_of_an_error_helps():
    before, after = (1.0, 1.1, 0.9), (0.5, 0.61, 0.4)
    pair = paired(after, before)
    assert [judge([pair], best)[0].verdict for best in ("highest", "lowest")] == ["hurts", "helps"]
    assert judge([paired(before, after)], "lowest")[0].verdict == "hurts"


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_whether_differences_are_equal_does_not_depend_on_the_unit(scale):
    before, after = (scale * torch.tensor([[0.1, 0.2, 0.3], [0.15, 0.26, 0.33]])).tolist()
    assert math.isfinite(paired(after, before).low)
    assert math.isnan(paired([scale * 0.2] * 3, [scale * 0.1] * 3).low)


def test_a_comparison_by_an_error(regressed):
    folder, teacher, found = regressed
    assert {candidate.score for candidate in found.candidates} == {limbeck.regression.score}
    result = json.loads((folder / "logits/seed-1/result.json").read_text())
    assert (result["task"], result["score"]) == ("regression", asdict(RMSE))
    assert found.candidates[2].values[1] == result["networks"]["student"]["test"]["RMSE"]
    assert found.candidates[0].values == (limbeck.evaluate(teacher, VALUES[2], limbeck.regression)["RMSE"],)
    table = (folder / "table.md").read_text()
    first, _, table = table.partition("\n\n")
    assert first.startswith("Nothing is shown: 3 seeds cannot tell") or "against the plain student" in first
    assert table.startswith("| network | verdict | vs plain student | RMSE | p | parameters | MACs | latency |")
    assert "Test RMSE, mean ± standard deviation over seeds, less is better." in table
    assert not {"percent", "points", "accuracy"} & set(table.replace(",", " ").split())
    assert json.loads((folder / "results.json").read_text())["score"] == asdict(RMSE)
    page = (folder / "report.html").read_text()
    assert "RMSE by seed" in page
    assert "RMSE on the validation data" in page
    assert "ccuracy" not in page
    assert "RMSE against the plain student over 3 seeds" in " ".join(findings(found))


def test_pages_say_the_score_of_a_run(regressed):
    page = redraw([regressed[0] / "logits/seed-0"]).read_text()
    assert "The student reaches RMSE " in page
    assert "Its teacher has RMSE " in page
    assert ">RMSE, test<" in page
    assert "ccuracy" not in page


def test_the_best_by_an_error_are_those_of_the_least():
    given = {"plain": (2.0, 2.1), "a": (3.0, 3.1), "b": (1.0, 1.2), "c": (1.5, 1.7)}
    candidates = [
        Candidate(name, "distilled" if name != "plain" else "baseline", None, reached, pair, RMSE)
        for name, reached in given.items()
        for pair in [paired(reached, given["plain"]) if name != "plain" else None]
    ]
    assert pictured(candidates) == ["plain", "b", "c"]
    assert pictured([replace(each, score=limbeck.Score("R2", unit="")) for each in candidates]) == ["plain", "a", "c"]


def test_a_unit_is_said():
    score = limbeck.Score("error", unit="px", best="lowest")
    price = SimpleNamespace(parameters=1, macs=1, latency_ms=1.0)
    plain = Candidate("plain", "baseline", price, (12.5, 13.5), score=score)
    less = Candidate("kd", "distilled", price, (2.5, 3.4), paired((2.5, 3.4), plain.values), score)
    assert header([plain])[3] == "error, px"
    assert rows([plain, less])[1][2:4] == ("−10.1 [−10.7, −9.41]", "2.950 ± 0.6364")
    assert legend([plain]).startswith("Test error in px, mean")


def test_another_task_in_the_same_folder_is_refused(regressed):
    folder, teacher, _ = regressed
    other = replace(limbeck.regression, score=MAE)
    with pytest.raises(ValueError, match=r"another task: regression, judged by the lowest RMSE, and not .* lowest MAE"):
        compare(["logits", "bounded"], network, teacher, VALUES, task=other, epochs=2, seeds=3, run_dir=folder, **HOW)


def test_a_score_that_is_no_number_has_no_row(monkeypatch):
    def outcome(self, folder, entry, *_):
        return Outcome(math.nan if entry.method == "logits" else 1.0 + len(entry.method) / 10, 1, 1.0)

    monkeypatch.setattr(Runs, "_outcome", outcome)
    found = compare(
        ["logits", "bounded"], network, make_teacher(), VALUES, task=limbeck.regression, epochs=1, seeds=1, **HOW
    )
    assert [candidate.name for candidate in found.candidates] == ["teacher", "plain", "bounded"]
    assert "logits diverged with seed 0 and has no row: its RMSE on the test data is nan." in found.note


def test_a_teacher_is_measured_in_its_own_view():
    class Shouts(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, wide):
            return {"said": self.net(wide[:, 1:]), "more": wide}

    teacher = make_teacher()
    view = limbeck.Frozen(Shouts(teacher), inputs=lambda x: F.pad(x, (1, 0)), output=lambda out: out["said"])
    own = partial(compare, ["logits"], network, data=VALUES, task=limbeck.regression, epochs=1, seeds=1, **HOW)
    plain, viewed = (own(teacher=each).candidates[0] for each in (teacher, view))
    assert viewed.values == plain.values
    assert viewed.cost.macs == plain.cost.macs


# searches ------------------------------------------------------------------------------------------------------------


def test_a_search_by_an_error(tmp_path):
    teacher = make_teacher()
    found = tune(
        "bounded", network, teacher, VALUES, {"margin": [0.0, 1.0]}, task=limbeck.regression, epochs=2, trials=2,
        final_seeds=2, run_dir=tmp_path, **HOW,
    )  # fmt: skip
    scores = [trial.score for trial in found.trials]
    assert found.best.score == min(scores)
    written = json.loads((tmp_path / "tuning.json").read_text())
    assert (written["score"], written["judged_by"]) == (min(scores), asdict(RMSE))
    assert f"RMSE {min(scores):#.4g} on 128 validation samples" in tuning_findings(found)[2]
    assert str(console_table(found).columns[2].header) == "RMSE"
    page = (tmp_path / "report.html").read_text()
    assert "A score is the RMSE on 128 validation samples" in page
    assert "standard error" not in page


@pytest.fixture
def known_scores(monkeypatch):
    """Let scores be known: the larger alpha, the larger the score after each epoch; at 0.9 a training diverges."""

    def outcome(self, entry, seed, epochs, tell):
        alpha = entry.options["alpha"]
        for epoch in range(1, epochs + 1):
            tell({f"val/student/{self.score.name}": alpha}, epoch * self.batches)
        if alpha == 0.9:
            raise FloatingPointError("'student/soft' is nan")
        return Outcome(alpha, 1, 1.0)

    monkeypatch.setattr(Runs, "outcome", outcome)
    monkeypatch.setattr(
        tuning, "_conclude", lambda search, study, *_: (study, [search.trial(one) for one in tuning.finished(study)])
    )


@pytest.mark.parametrize("best", ["highest", "lowest"])
def test_what_diverges_is_no_score_and_is_not_tried_again(tmp_path, known_scores, best):
    task = replace(limbeck.classification, score=limbeck.Score("loss", unit="", best=best))
    choices = {"alpha": [0.1, 0.5, 0.9]}
    search = partial(
        tune, "kd", partial(network, 3), make_teacher(3), CLASSES, choices, task=task, epochs=1, run_dir=tmp_path, **HOW
    )
    study, trials = search(trials=3)
    ended = {trial.options["alpha"]: (trial.state, trial.score) for trial in trials}
    assert ended == {0.1: ("complete", 0.1), 0.5: ("complete", 0.5), 0.9: ("diverged", None)}
    assert study.best_value == (0.5 if best == "highest" else 0.1)
    assert search(trials=3)[1] == trials


@pytest.mark.parametrize(("best", "stopped"), [("highest", [0.1, 0.2]), ("lowest", [0.8, 0.7])])
def test_the_worse_half_is_stopped_early_whichever_way_the_score_goes(
    tmp_path, known_scores, monkeypatch, best, stopped
):
    monkeypatch.setattr(tuning, "UNPRUNED_TRIALS", 2)
    task = replace(limbeck.classification, score=limbeck.Score("loss", unit="", best=best))
    order = [0.5, 0.6, *stopped]
    monkeypatch.setattr(tuning._Search, "_plan", lambda *_: ([{"alpha": str(alpha)} for alpha in order], True))
    student, teacher = partial(network, 3), make_teacher(3)
    _, trials = tune("kd", student, teacher, CLASSES, {"alpha": order}, task=task, epochs=3, run_dir=tmp_path, **HOW)
    assert [trial.options["alpha"] for trial in trials] == order
    assert [trial.state for trial in trials] == ["complete", "complete", "stopped", "stopped"]


def test_a_hundred_samples_are_asked_for_where_scores_are_shares(tmp_path):
    few = tuple(split[:2] for split in CLASSES)
    given = ("kd", partial(network, 3), make_teacher(3), few, {"alpha": [0.1, 0.9]})
    with pytest.raises(ValueError, match=r"at least 100 validation samples .*, got 64"):
        tune(*given, epochs=1, run_dir=tmp_path)
    by_loss = replace(limbeck.classification, score=limbeck.Score("loss", unit="nats", best="lowest"))
    found = tune(*given, task=by_loss, epochs=1, trials=2, final_seeds=1, run_dir=tmp_path, **HOW)
    assert found.samples == 64


# a metric of one's own -----------------------------------------------------------------------------------------------


def f1(answer):
    from limbeck.tasks.classification import top_1

    return MetricCollection({**top_1(answer), "f1": MulticlassF1Score(answer.shape[-1], average="macro")})


BY_F1 = replace(limbeck.classification, metrics=f1, score=limbeck.Score("f1"))


def test_a_metric_of_ones_own_judges_everywhere(tmp_path):
    teacher = make_teacher(3)
    found = compare(
        ["kd"], partial(network, 3), teacher, CLASSES, task=BY_F1, epochs=2, seeds=2, run_dir=tmp_path / "c", **HOW
    )
    result = json.loads((tmp_path / "c/kd/seed-0/result.json").read_text())["networks"]["student"]["test"]
    assert set(result) == {"accuracy", "f1", "loss"}
    assert found.candidates[2].values[0] == result["f1"] != result["accuracy"]
    assert "| f1 |" in (tmp_path / "c/table.md").read_text()
    assert "val/student/f1" in (tmp_path / "c/kd/seed-0/metrics.csv").read_text()
    for folder in ("c", "c/kd/seed-0"):
        text = redraw([tmp_path / folder]).read_text()
        assert 'aria-label="validation f1' in text
        shown = (
            text.partition("What was run")[0].partition("<footer")[0].replace("accuracy, test", "")
        )  # the other metric's column
        assert "accuracy" not in shown
    searched = tune(
        "kd", partial(network, 3), teacher, CLASSES, {"alpha": [0.1, 0.9]}, task=BY_F1, epochs=1, trials=2, final_seeds=1,
        run_dir=tmp_path / "t", **HOW,
    )  # fmt: skip
    trained = json.loads(next((tmp_path / "t/trials").glob("*/*/result.json")).read_text())
    assert trained["networks"]["student"]["val"]["f1"] in [trial.score for trial in searched.trials]


def test_accounts_are_judged_by_the_score():
    data = limbeck.data.load("digits", samples=60)
    nets = {"mlp-8": limbeck.zoo.network("mlp-8", 10, data.shape)}
    (by_f1,), (own,) = accounts(nets, data, BY_F1, seconds=0.001), accounts(nets, data, seconds=0.001)
    assert by_f1.value == limbeck.evaluate(nets["mlp-8"], data.test, BY_F1)["f1"]
    assert own.value == limbeck.evaluate(nets["mlp-8"], data.test)["accuracy"]
    assert "| f1 |" in accounts_table([by_f1])
    assert "Test f1 in percent." in accounts_table([by_f1])


# early exits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "data", "outputs", "measured"),
    [(limbeck.Task(), CLASSES, 3, True), (BY_F1, CLASSES, 3, True), (limbeck.regression, VALUES, 1, False)],
)
def test_exits_are_measured_where_a_sample_has_one_class(tmp_path, task, data, outputs, measured):
    net = EarlyExit([nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, outputs)], [nn.Linear(4, outputs)])
    fit(limbeck.plain(net, task=task), data, epochs=1, run_dir=tmp_path, **HOW)
    assert ("exits" in json.loads((tmp_path / "result.json").read_text())) is measured


# baselines -----------------------------------------------------------------------------------------------------------

PAPER = Paper("a", "b", "c", "d", 2020, "features", "frozen network")


class Rival(Method):
    """A student that plays against a critic, and may have a teacher beside."""

    def __init__(self, distill, critic):
        super().__init__()
        self.distill, self.critic, self.task = distill, critic, distill.task

    def players(self):
        return {**self.distill.players(), "critic": [self.critic]}

    def step(self, batch, progress=0.0):
        scene = self.distill.scene(batch, progress)
        said = scene["student"][""]
        yield Turn("critic", {"told": F.softplus(self.critic(said.detach())).mean()})
        yield Turn("student", {**self.distill.objective(scene), "fooled": F.softplus(-self.critic(said)).mean()})


def rival(student, teacher=None, *, example, weight=1.0, task=limbeck.classification):
    objective = task.hard
    if teacher is not None:
        objective = objective + weight * limbeck.on(F.mse_loss, limbeck.S, limbeck.T, name="match")
    outputs = task.feed(student, example).shape[-1]
    return Rival(Distill(student, teacher, objective, task), nn.Linear(outputs, 1))


@pytest.fixture
def with_rival(monkeypatch):
    monkeypatch.setattr(methods, "rival", rival, raising=False)
    monkeypatch.setattr(methods, "__all__", [*methods.__all__, "rival"])
    monkeypatch.setattr("limbeck.verbs.runs.paper_of", lambda name: PAPER if name == "rival" else paper_of(name))


def against(entries, folder=None, **changed):
    settings = {"epochs": 1, "seeds": 2, "task": limbeck.regression, "run_dir": folder, **HOW} | changed
    return compare(entries, network, make_teacher(), VALUES, **settings)


def test_the_baseline_of_a_method_with_players_of_its_own_is_the_method_without_its_teacher(with_rival, tmp_path):
    found = against(["logits", "rival"], tmp_path)
    assert [(one.name, one.role, one.against) for one in found.candidates] == [
        ("teacher", "teacher", ""),
        ("plain", "baseline", ""),
        ("rival, no teacher", "control", ""),
        ("logits", "distilled", ""),
        ("rival", "distilled", "rival, no teacher"),
    ]
    by_name = {one.name: one for one in found.candidates}
    assert by_name["rival"].paired == paired(by_name["rival"].values, by_name["rival, no teacher"].values)
    assert by_name["rival, no teacher"].paired == paired(by_name["rival, no teacher"].values, by_name["plain"].values)
    assert by_name["rival"].values != by_name["rival, no teacher"].values
    table = (tmp_path / "table.md").read_text()
    assert "| vs baseline |" in table
    assert table.count(" against ") == 1
    assert "Difference to the plain student, or to whom a row names, over the same seeds" in table
    with (tmp_path / "table.csv").open() as file:
        assert [row["against"] for row in csv.DictReader(file)] == ["", "", "", "", "rival, no teacher"]
    assert any("against rival, no teacher over 2 seeds" in said for said in findings(found))
    page = (tmp_path / "report.html").read_text()
    assert "mean difference to its baseline" in page
    redraw([tmp_path])
    assert (tmp_path / "report.html").read_text() == page
    settings = (tmp_path / "rival-no-teacher/seed-0/config.yaml").read_text()
    assert "teacher: null" in settings


def test_an_entry_names_its_baseline(with_rival):
    alone = Entry("rival", {"teacher": None}, name="alone")
    found = against(
        [alone, "rival", Entry("logits", baseline="alone"), Entry("rival", {"weight": 2.0}, baseline="plain")]
    )
    assert [(one.name, one.against) for one in found.candidates[2:]] == [
        ("alone", ""),
        ("rival", "alone"),
        ("logits", "alone"),
        ("rival, weight=2.0", ""),
    ]
    assert Entry("rival", {"teacher": None}).name == "rival, teacher=None"


def test_where_all_are_against_plain_nothing_is_said_of_baselines(regressed):
    candidates = regressed[2].candidates
    assert "against" not in markdown_table(candidates)
    assert "against" not in csv_table(candidates)
    assert header(candidates)[2] == "vs plain student"


@pytest.mark.parametrize("name", ["alone", "logits"])
def test_a_baseline_must_be_another_entry(name):
    with pytest.raises(
        ValueError, match=rf"logits is to be compared with '{name}', .* there are \['plain', 'logits'\]"
    ):
        against([Entry("logits", baseline=name)])


def test_a_method_that_cannot_do_without_a_teacher_says_so():
    with pytest.raises(ValueError, match="logits needs a teacher"):
        against([Entry("logits", {"teacher": None})])


def test_a_baseline_that_diverges_ends_the_comparison(with_rival, monkeypatch):
    def outcome(self, entry, *_):
        if entry.untaught:
            raise FloatingPointError("'critic/told' is nan")
        return Outcome(1.0, 1, 1.0)

    monkeypatch.setattr(Runs, "outcome", outcome)
    with pytest.raises(FloatingPointError, match="critic/told"):
        against(["rival", "logits"])


def test_nobody_teaches_a_method_without_its_teacher(with_rival):
    assert Entry("rival", {"teacher": None}).labels_alone
    assert not Entry("rival").labels_alone
    assert not Entry("ban", {"teacher": None}).labels_alone  # the former generation does


# files ---------------------------------------------------------------------------------------------------------------


def test_files_of_before_other_scores_are_read_by_accuracy(tmp_path):
    compare(["kd"], partial(network, 3), make_teacher(3), CLASSES, epochs=1, seeds=2, run_dir=tmp_path, **HOW)
    pages = [(folder, redraw([folder]).read_text()) for folder in (tmp_path, tmp_path / "kd/seed-0")]
    assert all("accuracy" in page for _, page in pages)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    del results["score"], results["sha256"], results["limbeck_format"]
    for row in results["rows"]:
        del row["against"]
        row["accuracies"] = row.pop("values")
    path.write_text(json.dumps(results))
    result = json.loads((tmp_path / "kd/seed-0/result.json").read_text())
    del result["score"], result["task"], result["files"], result["sha256"], result["limbeck_format"]
    (tmp_path / "kd/seed-0/result.json").write_text(json.dumps(result))
    for folder, page in pages:
        redraw([folder])
        assert (folder / "report.html").read_text().partition(">Files<")[0] == page.partition(">Files<")[0]


def test_runs_by_different_scores_have_a_table_each(regressed, tmp_path):
    fit(limbeck.plain(network(3)), CLASSES, epochs=1, run_dir=tmp_path / "a", **HOW)
    page = redraw([regressed[0] / "logits/seed-0", tmp_path / "a"], tmp_path / "runs.html").read_text()
    assert "What came out, by RMSE" in page
    assert "What came out, by accuracy" in page
    assert ">RMSE, test<" in page
    assert ">accuracy, test<" in page
    alike = redraw([regressed[0] / "logits/seed-0", regressed[0] / "plain/seed-0"], tmp_path / "runs.html").read_text()
    assert ">What came out<" in alike
    assert "ccuracy" not in alike


def test_a_search_over_a_range_of_an_own_task_is_one_over_a_range(tmp_path, known_scores):
    task = replace(limbeck.classification, score=limbeck.Score("loss", unit="", best="lowest"))
    student, teacher = partial(network, 3), make_teacher(3)
    search = {"alpha": Range(0.1, 0.8)}
    study, trials = tune(
        "kd", student, teacher, CLASSES, search, task=task, epochs=1, trials=12, run_dir=tmp_path, **HOW
    )
    assert study.best_value == min(trial.score for trial in trials if trial.score) < 0.3
