"""The search of options: repeatable, resumable, blind to the test data, and modest about its findings."""

import copy
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path

import pytest
import torch
from scipy import stats

import limbeck
from conftest import undrawn
from limbeck.cli import main
from limbeck.cli.case import Case
from limbeck.cli.tune import _with_pairs
from limbeck.cli.words import entries_of, search_of
from limbeck.core.files import Damaged, keep, read
from limbeck.data import Data
from limbeck.engine import fit as engine
from limbeck.engine.learner import Learner
from limbeck.measure import paired
from limbeck.measure.cost import cost
from limbeck.report.comparison import Comparison
from limbeck.report.redraw import redraw
from limbeck.report.table import Candidate
from limbeck.report.tuning import Trial, Tuning, console_table, tuning_findings
from limbeck.verbs import tune as tuning
from limbeck.verbs.journal import Journal
from limbeck.verbs.runs import Outcome, Runs
from limbeck.verbs.tune import Range, tune
from test_side_by_side import until

DATA = limbeck.data.load("digits", labels=100, batch_size=128)
EPOCHS, BATCHES = 2, len(DATA.train)
SEARCH = {"temperature": Range(1, 20, log=True), "alpha": Range(0.1, 1.0)}

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")


def network(name):
    return limbeck.zoo.network(name, DATA.num_classes, DATA.shape)


student = partial(network, "mlp-16")


def make_teacher():
    torch.manual_seed(0)
    return network("mlp-32")


def run(run_dir, method="kd", search=SEARCH, data=DATA, **changed):
    settings = {"epochs": EPOCHS, "trials": 3, "final_seeds": 2, "progress": False, "accelerator": "cpu"} | changed
    teacher = settings.pop("teacher", None) if method == "ls" else make_teacher()
    return tune(method, student, teacher, data, search, run_dir=run_dir, **settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return folder, run(folder)


@pytest.fixture
def search_alone(monkeypatch):
    """Let `tune` return the trials, without the comparison after them."""
    monkeypatch.setattr(
        tuning, "_conclude", lambda search, study, *_: [search.trial(trial) for trial in tuning.finished(study)]
    )
    return run


@pytest.fixture
def no_training(search_alone, monkeypatch):
    """Let scores be known: best at temperature 5 and alpha 0.6, ``epochs`` steps below which it is by a half."""

    def outcome(self, entry, seed, epochs, tell):
        options = {"temperature": 4.0, "alpha": 0.9, **entry.options}
        best = 1 - abs(math.log(options["temperature"] / 5)) / 5 - abs(options["alpha"] - 0.6) / 5
        for epoch in range(1, epochs + 1):
            tell({"val/student/accuracy": best * (1 - 0.5**epoch)}, epoch * self.batches)
        return Outcome(best * (1 - 0.5**epochs), epochs * self.batches, 1.0)

    monkeypatch.setattr(Runs, "outcome", outcome)
    return search_alone


# what a search is ----------------------------------------------------------------------------------------------------


def test_the_best_of_the_trials_stands_beside_the_defaults_and_the_plain_student(found):
    folder, result = found
    assert dict(result.trials[0].options) == {"temperature": 4.0, "alpha": 0.9}  # the defaults come first
    assert all(
        1 <= trial.options["temperature"] <= 20 and 0.1 <= trial.options["alpha"] <= 1 for trial in result.trials
    )
    assert result.best.score == max(trial.score for trial in result.trials)
    names = [candidate.name for candidate in result.comparison.candidates]
    assert names[:3] == ["teacher", "plain", "kd, defaults"]
    written = json.loads((folder / "tuning.json").read_text())
    assert written["options"] == result.options
    assert [trial["score"] for trial in written["trials"]] == [trial.score for trial in result.trials]
    page = (folder / "report.html").read_text()
    words = unescape(re.sub(r"<[^>]+>", "", page)).replace("\xa0", " ")
    assert all(sentence.split(",")[0] in words for sentence in tuning_findings(result))


def test_a_score_is_the_validation_accuracy_after_the_last_epoch(found):
    trial = found[1].trials[1]
    torch.manual_seed(10_000)
    data = DATA.with_seed(10_000)
    method = limbeck.kd(student(), make_teacher(), **trial.options)
    fitted = limbeck.fit(method, data, epochs=EPOCHS, seed=10_000, accelerator="cpu", progress=False)
    assert trial.score == fitted.metrics["val/student/accuracy"]


def test_the_seeds_after_the_search_are_fresh(found):
    seeds = [{path.name for path in (found[0] / place).glob("*/seed-*")} for place in ("trials", "comparison")]
    assert seeds == [{"seed-10000"}, {"seed-0", "seed-1"}]


class Touched(Exception):
    pass


def forbidden(loader):
    """The same loader, that must not be iterated."""

    def touch(self, *args):
        raise Touched

    guarded = copy.copy(loader)
    guarded.__class__ = type("Forbidden", (type(loader),), {"_serve": touch})
    return guarded


@pytest.mark.parametrize("kind", ["data", "loaders"])
def test_the_search_does_not_touch_the_test_data(kind, tmp_path, search_alone, monkeypatch):
    data: Data | tuple = replace(DATA, test=forbidden(DATA.test))
    if kind == "loaders":
        data = (data.train, data.val, data.test)
    assert len(search_alone(tmp_path, data=data, trials=2)) == 2
    monkeypatch.undo()
    with pytest.raises(ValueError, match="accuracy was not measured: Touched"):  # the comparison does
        run(tmp_path, data=data, trials=2)


def killed(folder, batch):
    """The other process."""
    left, original = [batch], Learner.on_train_batch_end

    def kill(self, *args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, *args)

    Learner.on_train_batch_end, engine.run_report = kill, undrawn
    run(folder)


def test_killed_in_a_trial_and_called_again_it_comes_to_the_same(found, tmp_path, search_alone, processes):
    batch = EPOCHS * BATCHES + BATCHES + 3  # in the second epoch of the second trial
    process = processes.Process(target=killed, args=(tmp_path, batch))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert tuple(search_alone(tmp_path)) == found[1].trials
    logs = [path.read_text().count("stage train:") for path in tmp_path.glob("trials/*/*/train.log")]
    assert sorted(logs) == [1, 1, 2]  # it went on with the trial that was under way


def test_a_search_goes_on_as_if_it_had_not_been_stopped(tmp_path, no_training, monkeypatch):
    whole = no_training(tmp_path / "a", trials=14)
    assert {trial.state for trial in whole} == {"complete", "stopped"}
    told, report = [], Runs.outcome

    def stop(self, entry, seed, epochs, tell):
        def count(metrics, step):
            tell(metrics, step)
            told.append(step)
            if len(told) in (4, 9, 14):
                raise KeyboardInterrupt

        return report(self, entry, seed, epochs, count)

    monkeypatch.setattr(Runs, "outcome", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            no_training(tmp_path / "b", trials=14)
    assert no_training(tmp_path / "b", trials=14) == whole
    assert len(told) > 14


def test_the_search_is_repeatable_and_another_seed_searches_elsewhere(tmp_path, no_training):
    one, same, other = (
        no_training(tmp_path / name, trials=15, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same
    assert [trial.options for trial in one[1:]] != [trial.options for trial in other[1:]]
    assert len({str(trial.options) for trial in one}) == 15


def test_the_search_finds_what_is_best(tmp_path, no_training):
    trials = no_training(tmp_path, trials=40)
    best = max((trial for trial in trials if trial.score), key=lambda trial: trial.score)
    assert 3.5 < best.options["temperature"] < 7
    assert 0.4 < best.options["alpha"] < 0.8


def test_a_few_choices_are_all_tried_once(tmp_path, no_training):
    choices = {"temperature": [1.0, 4.0, 9.0], "alpha": [0.5, 0.9]}
    trials = no_training(tmp_path, search=choices, trials=20)
    tried = [tuple(trial.options.values()) for trial in trials]
    assert tried[0] == (4.0, 0.9)
    assert sorted(tried) == [(t, a) for t in (1.0, 4.0, 9.0) for a in (0.5, 0.9)]
    assert len(no_training(tmp_path, search=choices, trials=30)) == 6


def test_several_seeds_a_trial_and_options_that_all_share(tmp_path, search_alone):
    trials = search_alone(tmp_path, "ls", {"smoothing": [0.1, 0.3]}, trials=2, seeds=2, epochs=1)
    assert [len(trial.values) for trial in trials] == [2, 2]
    assert all(trial.values[0] != trial.values[1] for trial in trials)
    shared = search_alone(
        tmp_path / "b", search={"temperature": [1.0, 4.0]}, options={"alpha": 0.5}, trials=2, epochs=1
    )
    assert [dict(trial.options) for trial in shared] == [{"alpha": 0.5, "temperature": t} for t in (4.0, 1.0)]


def test_a_bad_trial_is_stopped_early(tmp_path, search_alone, monkeypatch):
    monkeypatch.setattr(tuning, "UNPRUNED_TRIALS", 1)
    good, bad = search_alone(tmp_path, "ls", {"smoothing": [0.1, 0.999]}, trials=2, epochs=4)
    assert good.state == "complete"
    assert (bad.state, bad.score, bad.values, bad.epochs) == ("stopped", None, (), 2)  # after a third: 1.3 epochs
    assert not list(tmp_path.glob("trials/ls-smoothing=0.999/*/result.json"))


def test_methods_of_stages_are_not_stopped_early(tmp_path, no_training):
    search = {"temperature": Range(1, 20, log=True)}
    assert "stopped" in {trial.state for trial in no_training(tmp_path / "a", search=search, trials=12)}
    trials = no_training(tmp_path / "b", "fitnets", search, trials=12, options={"reduction": "mean"})
    assert {trial.state for trial in trials} == {"complete"}


def test_a_training_that_diverges_is_a_trial_that_failed(tmp_path, no_training, monkeypatch):
    outcome = Runs.outcome

    def diverge(self, entry, seed, epochs, tell):
        if entry.options["alpha"] > limit:
            raise FloatingPointError("the term 'soft' is nan")
        return outcome(self, entry, seed, epochs, tell)

    monkeypatch.setattr(Runs, "outcome", diverge)
    limit = 0.7
    trials = no_training(tmp_path, trials=8)
    assert {trial.options["alpha"] > limit for trial in trials if trial.state == "diverged"} == {True}
    assert {trial.options["alpha"] <= limit for trial in trials if trial.state != "diverged"} == {True}
    monkeypatch.undo()
    monkeypatch.setattr(Runs, "outcome", diverge)
    limit = 0.0
    with pytest.raises(FloatingPointError, match="all 3 trials diverged: lower the learning rate"):
        run(tmp_path / "b")


def test_a_second_look_at_the_test_data_is_told(found, tmp_path, no_training, monkeypatch):
    no_training(tmp_path, trials=3)
    monkeypatch.setattr(tuning, "_conclude", CONCLUDE)
    monkeypatch.setattr(tuning, "compare", lambda *args, **options: found[1].comparison)
    monkeypatch.setattr(tuning, "_validated", lambda *_: 0.5)
    assert run(tmp_path, trials=3).looks == (3,)
    assert run(tmp_path, trials=3).looks == (3,)
    again = run(tmp_path, trials=20)
    assert again.looks == (3, 20)
    assert "looked at after 3 and 20 trials" in tuning_findings(again)[-1]
    assert set(again.importance) == set(SEARCH)
    assert sum(again.importance.values()) == pytest.approx(1)
    assert "Which option matters" in (tmp_path / "report.html").read_text()


CONCLUDE = tuning._conclude

# several processes ---------------------------------------------------------------------------------------------------


def test_a_round_is_suggested_and_stopped_by_those_before_it_alone(tmp_path, no_training):
    whole = no_training(tmp_path / "a", trials=18, at_once=4, epochs=4)
    assert {trial.state for trial in whole} == {"complete", "stopped"}
    no_training(tmp_path / "b", trials=3, at_once=4, epochs=4)
    no_training(tmp_path / "b", trials=14, at_once=4, epochs=4)
    assert no_training(tmp_path / "b", trials=18, at_once=4, epochs=4) == whole
    alone = no_training(tmp_path / "c", trials=18, epochs=4)
    options = [[trial.options for trial in trials] for trials in (whole, alone)]
    assert options[0][:10] == options[1][:10]  # at random
    assert options[0] != options[1]


def test_a_few_choices_are_all_tried_once_at_once(tmp_path, no_training):
    choices = {"temperature": [1.0, 4.0, 9.0], "alpha": [0.5, 0.9]}
    one, four = (no_training(tmp_path / str(n), search=choices, trials=20, at_once=n) for n in (1, 4))
    assert [trial.options for trial in one] == [trial.options for trial in four]


TOGETHER = {"trials": 3, "at_once": 2, "final_seeds": 1}


def helper(folder, killed):
    """Another process of the search: killed in the second epoch of its first trial, once others are at one, or not."""
    left, original = [BATCHES + 3], Learner.on_train_batch_end

    def kill(self, *args):
        left[0] -= 1
        if killed and left[0] == 0:
            until(lambda: len(list(folder.glob("trials/*/*/train.log"))) > 1)
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, *args)

    Learner.on_train_batch_end, engine.run_report = kill, undrawn
    (folder / "helper.json").write_text(json.dumps(told(run(folder, **TOGETHER))))


def told(result):
    """What a search came to."""
    trials = [[dict(trial.options), trial.state, list(trial.values)] for trial in result.trials]
    return [trials, [list(candidate.values) for candidate in result.comparison.candidates], list(result.looks)]


def test_three_processes_of_which_one_is_killed_come_to_what_one_comes_to(
    tmp_path, search_alone, monkeypatch, processes
):
    alone, folder = search_alone(tmp_path / "alone", **TOGETHER), tmp_path / "together"
    monkeypatch.undo()
    dies, stays = (processes.Process(target=helper, args=(folder, killed), daemon=True) for killed in (True, False))
    dies.start()
    until(lambda: any(folder.glob("trials/*/*/train.log")) or not dies.is_alive())
    stays.start()
    found = run(folder, **TOGETHER)
    for process in (dies, stays):
        process.join(60)
    assert (dies.exitcode, stays.exitcode) == (-signal.SIGKILL, 0)
    assert list(found.trials) == alone
    assert json.loads((folder / "helper.json").read_text()) == told(found)
    logs = {
        place: [log.read_text() for log in folder.glob(f"{place}/*/*/train.log")] for place in ("trials", "comparison")
    }
    begun = {place: sorted(text.count("stage train:") for text in texts) for place, texts in logs.items()}
    assert begun == {"trials": [1, 1, 2], "comparison": [1] * len(begun["comparison"])}  # one was gone on with
    assert (folder / "report.html").exists()
    Journal(folder / "study.journal")  # every line is what was written


def test_a_trial_that_was_being_asked_for_when_its_process_was_killed_is_asked_for_again(tmp_path, no_training):
    whole = no_training(tmp_path / "a", trials=4)
    folder = shutil.copytree(tmp_path / "a", tmp_path / "b")
    lines = (folder / "study.journal").read_bytes().splitlines(keepends=True)
    asked = [index for index, line in enumerate(lines) if json.loads(line)["op_code"] == SET_TRIAL_PARAM]
    (folder / "study.journal").write_bytes(b"".join(lines[: asked[4] + 1]))  # the third trial has one of two parameters
    assert no_training(folder, trials=4) == whole


SET_TRIAL_PARAM = 5

# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "search", "changed", "message"),
    [
        ("kd", {"temprature": Range(1, 2)}, {}, "kd has no option 'temprature'.*temperature"),
        ("kdd", SEARCH, {}, "unknown method 'kdd'"),
        ("plain", SEARCH, {}, "plain has no options to search"),
        ("kd", {}, {}, "nothing to search: name options of kd, which has temperature, alpha"),
        ("kd", {"alpha": [0.5]}, {}, "alpha needs at least two choices"),
        ("kd", {"alpha": [0.5, 0.5]}, {}, "all different"),
        ("kd", {"alpha": Range(0.5, 2)}, {}, "alpha must be in"),
        ("kd", {"alpha": [0.5, 2.0]}, {}, "alpha must be in"),
        ("rkd", {"layer": Range(1, 2)}, {}, "layer of rkd is no number: list its choices"),
        ("nst", {"kernel": Range(1, 2)}, {}, "kernel of nst is no number"),
        ("ban", {"generations": Range(1.5, 3)}, {}, "generations of ban is a whole number"),
        ("kd", SEARCH, {"options": {"alpha": 0.5}}, "alpha is fixed, at 0.5, and searched"),
        ("kd", SEARCH, {"trials": 0}, "trials must be at least 1"),
        ("kd", SEARCH, {"at_once": 0}, "at_once must be at least 1"),
        (
            "kd",
            SEARCH,
            {"data": limbeck.data.load("digits", val_share=0.05)},
            "100 validation samples.*got 72.*val_share",
        ),
        ("kd", SEARCH, {"data": (DATA.train, None, DATA.test)}, "scored on validation data"),
    ],
)
def test_what_cannot_be_searched_fails_before_any_training(method, search, changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Runs, "outcome", lambda *args: pytest.fail("it trains"))
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path, method, search, **changed)


@pytest.mark.parametrize("bounds", [(5, 1), (1, 1), (0, math.inf), (math.nan, 1)])
def test_a_range_is_not_empty(bounds):
    with pytest.raises(ValueError, match="low < high"):
        Range(*bounds)


def test_orders_of_magnitude_begin_above_zero():
    with pytest.raises(ValueError, match="log scale needs low > 0"):
        Range(0, 1, log=True)


def test_choices_are_a_list(tmp_path):
    with pytest.raises(TypeError, match="temperature needs a Range or a list of choices, got '1:20'"):
        run(tmp_path, search={"temperature": "1:20"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"search": {"temperature": Range(1, 20)}}, "another search"),
        ({"epochs": 3}, "another epochs"),
        ({"clip": 1.0}, "another clip"),
        ({"seed": 1}, "another seed"),
        ({"seeds": 2}, "another seeds"),
        ({"at_once": 2}, "another at_once"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(found, changed, message):
    with pytest.raises(ValueError, match=message):
        run(found[0], **changed)


def test_a_journal_that_a_crash_cut_short_is_mended(tmp_path, no_training):
    whole = no_training(tmp_path, trials=2)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":5,"work')
    journal.with_name("study.journal.lock").touch()  # Optuna's lock outlives a process that is killed
    assert no_training(tmp_path, trials=4)[:2] == whole


def one_bit(content):
    at = content.index(b'"values":[') + len('"values":[0.')
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]  # another digit


def without_a_line(content):
    lines = content.splitlines(keepends=True)
    return b"".join(line for line in lines if line != lines[len(lines) // 2])


DAMAGES = {
    "one bit": one_bit,
    "a line less": without_a_line,
    "two lines changed about": lambda content: b"".join([*content.splitlines(keepends=True)[::-1]]),
    "a line of its own": lambda content: content + content.splitlines(keepends=True)[-1],
    "a line without its checksum": lambda content: content[: content.rindex(b',"sha256"')] + b"}\n",
    "foreign": lambda content: b"\x89PNG\r\n" + content,
    "a list": lambda content: b"[]\n" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_journal_that_is_not_what_was_written_is_named_and_its_trials_are_kept(
    found, tmp_path, search_alone, monkeypatch, damage
):
    folder = shutil.copytree(found[0], tmp_path / "a")
    journal = folder / "study.journal"
    journal.write_bytes(DAMAGES[damage](journal.read_bytes()))
    monkeypatch.setattr(Learner, "training_step", lambda *args: pytest.fail("it trains"))
    with pytest.raises(Damaged, match=r"line \d+ of .*study.journal is damaged.*remove it"):
        search_alone(folder)
    journal.unlink()
    assert tuple(search_alone(folder)) == found[1].trials  # read of their runs


def test_scores_of_the_journal_are_those_of_the_runs(found, tmp_path, search_alone):
    folder = shutil.copytree(found[0], tmp_path / "a")
    path = next(folder.glob("trials/*/*/result.json"))
    result = read(path, "")
    next(iter(result["networks"].values()))["val"]["accuracy"] += 0.01
    keep(path, result)
    with pytest.raises(ValueError, match=r"study.journal says that trial \d reached 0.*one of the two was changed"):
        search_alone(folder)


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "metrics.csv"])
def test_a_damaged_trial_is_named(found, tmp_path, search_alone, name):
    folder = shutil.copytree(found[0], tmp_path / "a")
    path = next(folder.glob(f"trials/*/*/{name}"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Damaged, match=f"{name}.*remove"):
        search_alone(folder)


def test_a_page_that_a_kill_left_undrawn_is_drawn_when_the_search_goes_on(found, tmp_path, search_alone, monkeypatch):
    folder = shutil.copytree(found[0], tmp_path / "a")
    pages = [path.with_name("report.html") for path in folder.glob("trials/*/*/result.json")]
    pages[0].unlink()
    monkeypatch.setattr(Learner, "training_step", lambda *args: pytest.fail("it trains"))
    search_alone(folder)
    assert len(pages) == 3
    assert all(page.exists() for page in pages)


def test_the_page_of_a_search_is_drawn_of_its_files(found, tmp_path):
    folder = shutil.copytree(found[0], tmp_path / "a", ignore=shutil.ignore_patterns("*.ckpt", "*.safetensors"))
    assert redraw([folder], tmp_path / "b.html").read_bytes() == (found[0] / "report.html").read_bytes()
    content = (folder / "tuning.json").read_bytes()
    for damaged in (content[:-60], b"", b"[]", b'{"method": "kd"}', content.replace(b"kd", b"at", 1)):
        (folder / "tuning.json").write_bytes(damaged)
        with pytest.raises(Damaged, match=r"tuning.json.*the same `limbeck tune`"):
            redraw([folder])
    with pytest.raises(ValueError, match="holds a search, which has a page of its own"):
        redraw([folder, folder / "comparison/plain/seed-0"])


def test_another_teacher_makes_another_search(found):
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="another teacher"):
        tune(
            "kd", student, network("mlp-32"), DATA, SEARCH, epochs=EPOCHS, trials=3, run_dir=found[0], accelerator="cpu"
        )


# what is said --------------------------------------------------------------------------------------------------------


def a_tuning(groups, fresh=((0.8, 0.8),), **changed):
    """A search with these scores, one group a trial."""
    price = cost(student(), DATA.example())
    trials = tuple(Trial({"alpha": index / 10}, "complete", tuple(group), EPOCHS) for index, group in enumerate(groups))
    plain, tuned = (0.80, 0.81, 0.79), (0.84, 0.85, 0.835)
    candidates = (
        Candidate("plain", "baseline", price, plain),
        Candidate("kd, defaults", "distilled", price, plain, paired(plain, plain)),
        Candidate("kd, alpha=0.2", "distilled", price, tuned, paired(tuned, plain)),
    )
    settings = {"importance": {}, "samples": 400, "looks": (len(trials),)} | changed
    by_name = dict(zip(("kd, alpha=0.2", "kd, defaults"), fresh, strict=False))
    return Tuning("kd", ("alpha",), trials, comparison=Comparison("", "", candidates), fresh=by_name, **settings)


def test_scores_that_seeds_move_more_than_options_are_called_so():
    groups = [(0.80, 0.90, 0.85), (0.81, 0.91, 0.87), (0.79, 0.89, 0.83)]
    said = tuning_findings(a_tuning(groups, fresh=()))
    assert said[3].startswith("Which options are best is not shown: their scores vary by 1.33 points")
    assert "differ in their seed alone by 5.02" in said[3]  # the root of the mean variance: 0.0025, 0.00253, 0.00253
    assert a_tuning(groups, fresh=()).chance() == pytest.approx(stats.f_oneway(*groups).pvalue)


def test_scores_that_options_move_more_than_seeds_are_not_doubted():
    groups = [(0.80, 0.81), (0.90, 0.91), (0.70, 0.71)]
    tuned = a_tuning(groups, fresh=())
    assert tuned.chance() == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert not any("not shown" in sentence for sentence in tuning_findings(tuned))


def test_one_seed_a_trial_is_held_against_the_fresh_seeds():
    groups, fresh = [(0.85,), (0.86,), (0.84,)], ((0.80, 0.90), (0.79, 0.88))
    tuned = a_tuning(groups, fresh)
    ratio = 0.01**2 / ((0.1**2 / 2 + 0.09**2 / 2) / 2)
    assert tuned.chance() == pytest.approx(stats.f.sf(ratio, 2, 2))
    said = tuning_findings(tuned)
    assert "not shown" in said[3]
    assert said[4].startswith("With fresh seeds the best options reach 85.00 % on the validation data and not 86.00 %")
    assert "not shown" in tuning_findings(a_tuning(groups, fresh=((0.8,),)))[3]  # nothing tells how seeds vary


def test_the_tuned_options_are_held_against_the_defaults():
    said = tuning_findings(a_tuning([(0.8,), (0.81,)]))
    assert any(
        sentence.startswith("Tuning: helps. +4.17 points on the test data against the defaults") for sentence in said
    )


def test_the_table_shows_every_trial_and_how_it_ended():
    from rich.console import Console

    trials = (
        Trial({"alpha": 0.9, "temperature": 4.0}, "complete", (0.8, 0.82), 4),
        Trial({"alpha": 0.1, "temperature": 2.0}, "stopped", (0.8,), 3),
        Trial({"alpha": 0.2, "temperature": 1.0}, "diverged", (), 1),
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(console_table(replace(a_tuning([(0.8,)]), trials=trials, searched=("alpha", "temperature"))))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()[:1].isdigit()]
    assert lines == [
        ["1", "0.9", "4.0", "81.00", "best"],
        ["2", "0.1", "2.0", "–", "stopped", "after", "3", "epochs"],
        ["3", "0.2", "1.0", "–", "diverged", "in", "1", "epoch"],
    ]


@pytest.mark.parametrize(
    ("drawn", "values", "value"),
    [
        (5.886342, Range(1, 20, log=True), 5.89),
        (0.00012345, Range(1e-5, 1, log=True), 0.000123),
        (1234.56, Range(1, 10_000, log=True), 1230.0),
        (0.51234, Range(0.1, 1), 0.512),
        (0.99912345, Range(0.999, 0.9999), 0.999123),
        (19.9999, Range(1, 19.99999, log=True), 19.99999),
        (3, Range(1, 5), 3),
        ("[1, 2]", [[1, 2], [3, 4]], [1, 2]),
    ],
)
def test_a_value_has_the_digits_that_matter(drawn, values, value):
    assert tuning._value(drawn, values) == value


# the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("temperature=1:20:log", Range(1, 20, log=True)),
        ("alpha=0.1:1.0", Range(0.1, 1.0)),
        ("weight=1e-4:1e2:log", Range(1e-4, 1e2, log=True)),
        ("layer=layer1,layer2,layer3", ["layer1", "layer2", "layer3"]),
        ("layer=fc:in,layer3", ["fc:in", "layer3"]),
        ("layers=[[a,b]],[[c,d],[e,f]]", [[["a", "b"]], [["c", "d"], ["e", "f"]]]),
        ("power=1,2", [1, 2]),
    ],
)
def test_a_search_in_words(word, values):
    assert search_of([word]) == {word.partition("=")[0]: values}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["temperature"], "temperature: expected OPTION=LOW:HIGH"),
        (["temperature=4"], "expected OPTION=LOW:HIGH"),
        (["temperature=5:1"], "temperature=5:1: a range needs low < high"),
        (["temperature=0:1:log"], "log scale needs low > 0"),
        (["layer=fc:in"], "expected OPTION=LOW:HIGH"),
        (["alpha=0:1", "alpha=0.1:1"], "alpha is searched already"),
    ],
)
def test_a_search_that_makes_no_sense(words, said):
    with pytest.raises(ValueError, match=said):
        search_of(words)


def test_a_method_in_words_may_name_layers_with_colons():
    assert dict(entries_of("rkd:layer=fc:in:angle=1e-2")[0].options) == {"layer": "fc:in", "angle": 0.01}
    assert [entry.options["temperature"] for entry in entries_of("kd:temperature=1,4")] == [1, 4]


def test_layers_that_pair_by_themselves_are_choices():
    nets = [limbeck.zoo.network("mlp-16-16", 10, DATA.shape), limbeck.zoo.network("mlp-32-32", 10, DATA.shape)]
    found = [list(pair) for pair in limbeck.pairs(*nets, DATA.example())]
    assert len(found) == 2
    case = Case("digits", DATA, DATA.task, DATA.outputs, DATA.example())
    words = list(_with_pairs(["layers=pairs", "layer=pairs", "alpha=0:1"], *nets, case))
    assert search_of(words) == {"layers": [[found[0]], [found[1]], found], "layer": found, "alpha": Range(0, 1)}
    with pytest.raises(ValueError, match="layers=pairs needs a teacher"):
        list(_with_pairs(["layers=pairs"], nets[0], None, case))


def test_the_command_searches_and_says_how_to_train_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = (
        "tune kd:alpha=0.5 --student mlp-8 --teacher mlp-16@random --samples 200 --epochs 1 --trials 2 --final-seeds 1"
    )
    assert main([*words.split(), "--search", "temperature=1,4", "--run-dir", "runs/t"]) == 0
    said = capsys.readouterr().out
    best = json.loads(Path("runs/t/tuning.json").read_text())["options"]
    command = next(line for line in said.splitlines() if line.startswith("limbeck distill"))
    assert f"--alpha 0.5 --temperature {best['temperature']}" in command
    assert main([*shlex.split(command)[1:], "--run-dir", "runs/best"]) == 0


def test_the_command_searches_in_two_processes_as_in_one(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    words = "tune kd --student mlp-8 --teacher mlp-16@random --samples 200 --epochs 1 --trials 3 --final-seeds 1"
    words = [*words.split(), "--search", "temperature=1:9", "--run-dir"]
    assert main([*words, "two", "--jobs", "2"]) == 0
    assert "limbeck distill kd" in capfd.readouterr().out
    assert main([*words, "one", "--at-once", "2"]) == 0
    one, two = (json.loads(Path(name, "tuning.json").read_text())["trials"] for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("kd --search alpha=0:1 --jobs 0", "at least 1 job, each with one device"),
        ("kd --search temprature=1:2", "did you mean temperature"),
        ("kd:alpha=0.1,0.5 --search temperature=1:2", "goes to --search"),
        ("kd --search temperature=1:2 --devices 2", "a search trains on one device"),
        ("kd --search temperature=2:1", "low < high"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--student mlp-8 --teacher mlp-16@random --samples 200 --epochs 1"
    assert main(["tune", *words.split(), *options.split()]) == 2
    assert said in capsys.readouterr().err
