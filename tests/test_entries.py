"""Networks among an entry's options: made anew by every run, of its seed, and named by words."""

import json
import signal
from functools import partial

import pytest
import torch

import limbeck
from limbeck.cli import main
from limbeck.cli.case import Case
from limbeck.cli.networks import with_networks
from limbeck.cli.words import entries_of, search_of
from limbeck.engine.assemble import parameters_of
from limbeck.engine.learner import Learner
from limbeck.verbs.compare import Entry, compare
from limbeck.verbs.runs import Outcome, Runs
from limbeck.verbs.tune import tune

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")  # few samples, few epochs

DATA = limbeck.data.load("digits", samples=200, labels=100, batch_size=100)
CASE = Case("digits", DATA, DATA.task, DATA.outputs, DATA.example())
COHORT = ["takd:assistants=mlp-24:alpha=0.5", "dml:peers=[mlp-8,mlp-12]", "kd:teacher=mlp-32@random"]


def network(name):
    return limbeck.zoo.network(name, DATA.num_classes, DATA.shape)


student = partial(network, "mlp-16")


def make_teacher():
    torch.manual_seed(0)
    return network("mlp-32")


def of_words(*words):
    return [with_networks(entry, CASE, seed=0) for each in words for entry in entries_of(each)]


def interrupt_after(batches):
    """A `Learner.on_train_batch_end` that sends Ctrl-C after so many batches of all runs together."""
    left, original = [batches], Learner.on_train_batch_end

    def count(self, *args):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        original(self, *args)

    return count


def test_networks_of_an_entry_are_made_anew_of_each_seed_and_the_same_when_it_goes_on(tmp_path, monkeypatch):
    how = {"optimizer": None, "schedule": None, "precision": "32-true", "accelerator": "cpu", "devices": 1}
    how |= {"strategy": "auto", "accumulate": 1, "clip": None}

    def outcomes(seed):
        """As a process of its own would have them."""
        runs, entries = Runs(student, make_teacher(), DATA, tmp_path, how), of_words(*COHORT)
        return [runs.outcome(entry, seed, 2, lambda *_: None).value for entry in entries]

    def by_hand(seed):
        teacher = make_teacher()
        makes = [
            lambda net: limbeck.takd(net, teacher, network("mlp-24"), alpha=0.5),
            lambda net: limbeck.dml(net, [network("mlp-8"), network("mlp-12")]),
            lambda net: limbeck.kd(net, teacher),
        ]
        for make in makes:
            torch.manual_seed(seed)
            built = make(student())
            result = limbeck.fit(built, DATA.with_seed(seed), epochs=2, seed=seed, accelerator="cpu", progress=False)
            yield result.metrics["test/student/accuracy"]

    with monkeypatch.context() as patch:  # in the student's stage of takd
        patch.setattr(Learner, "on_train_batch_end", interrupt_after(len(DATA.train) + 1))
        with pytest.raises(KeyboardInterrupt, match=r"takd, assistants=mlp-24, alpha=0\.5, seed 1"):
            outcomes(1)
    found = outcomes(1)
    assert found == list(by_hand(1))
    runs, (takd, dml, kd) = Runs(student, make_teacher(), DATA, tmp_path, how), of_words(*COHORT)
    one, other = (runs.settings(takd, seed, 2) for seed in range(2))
    assert one["options"]["assistants"] != other["options"]["assistants"]
    assert len({*runs.settings(dml, 0, 2)["teacher"], *runs.settings(dml, 1, 2)["teacher"]}) == 4
    assert runs.settings(kd, 0, 2)["teacher"] == runs.settings(kd, 1, 2)["teacher"]
    monkeypatch.setattr(Learner, "training_step", lambda *args: pytest.fail("it trains"))
    assert outcomes(1) == found


def test_words_name_networks():
    entries = entries_of("takd:assistants=halved:resnet14,[timm:levit_128s,resnet8@a=b/c.pt]:alpha=0.5")
    assert [dict(entry.options) for entry in entries] == [
        {"assistants": assistants, "alpha": 0.5}
        for assistants in ("halved:resnet14", ["timm:levit_128s", "resnet8@a=b/c.pt"])
    ]
    one, other = of_words("kd:teacher=mlp-32@random:temperature=1,4")
    assert one.control
    assert [entry.name for entry in (one, other)] == [f"kd, teacher=mlp-32@random, temperature={t}" for t in (1, 4)]
    assert all(map(torch.equal, one.teacher.state_dict().values(), other.teacher.state_dict().values()))
    (entry,) = of_words("dml:peers=[mlp-8,mlp-12]")
    assert entry.name == "dml, peers=[mlp-8, mlp-12]"
    assert json.loads(json.dumps(dict(entry.options))) == {"peers": ["mlp-8", "mlp-12"]}
    assert Entry("takd", {"assistants": [partial(network, "mlp-8"), student(), make_teacher]}).name == (
        "takd, assistants=[partial, MLP, make_teacher]"
    )


def test_several_teachers_are_an_ensemble():
    (entry,) = of_words("kd:teacher=[mlp-8@random,mlp-32@random]")
    assert entry.control
    assert isinstance(entry.teacher, limbeck.Ensemble)
    assert entry.name == "kd, teacher=[mlp-8@random, mlp-32@random]"


def test_networks_that_are_not_made_anew_are_refused(tmp_path):
    net, draws = student(), iter(range(100))

    def of_its_own():
        torch.manual_seed(next(draws))
        return student()

    for entry, error, message in (
        (
            Entry("takd", {"assistants": [lambda: net]}),
            ValueError,
            "what makes assistants gives the same network twice",
        ),
        (Entry("dml", {"peers": of_its_own}), ValueError, "what makes peers makes other weights at each call"),
        (Entry("takd", {"assistants": "resnet8"}), TypeError, "assistants must be networks.*got 'resnet8'"),
        (Entry("takd"), ValueError, "takd needs assistants, which has no default"),
        (Entry("kd", {"peers": student}), ValueError, "kd has no option 'peers'"),
    ):
        with pytest.raises(error, match=message):
            compare([entry], student, make_teacher(), DATA, epochs=2, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    peers = Entry("dml", {"peers": net}, name="copies"), Entry("dml", teacher=net)
    compare(peers, student, None, DATA, epochs=1, seeds=1, accelerator="cpu", progress=False)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compare takd:assistants=mlp-x", "unknown network 'mlp-x'"),
        ("compare takd", "takd needs assistants"),
        ("compare kd:teacher=mlp-16", "the teacher mlp-16 has no weights"),
        ("compare kd:teacher=[mlp-8@random,16]", "expected teacher=NAME@FILE or teacher=NAME@random, or several"),
        ("compare kd:teacher=[mlp-8@random,mlp-16]", "the teacher mlp-16 has no weights"),
        ("compare ls:teacher=mlp-16@random", "ls has no teacher"),
        ("tune kd:teacher=mlp-16@random --search alpha=0:1", "all trials have the same teacher, --teacher"),
        ("tune takd --search assistants=mlp-8,mlp-12", "assistants are networks, without a default"),
    ],
)
def test_the_command_refuses_networks_that_make_no_sense(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = f"{words} --student mlp-8 --teacher mlp-16@random --samples 200 --epochs 2"
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_all_trials_of_a_search_have_the_same_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "limbeck.verbs.tune._conclude", lambda search, study, *_: [search.trial(t) for t in study.trials]
    )
    monkeypatch.setattr(Runs, "outcome", lambda *_: Outcome(0.5, 1, 1.0))
    (entry,) = of_words("takd:assistants=[mlp-24]")
    search = {"alpha": [0.5, 0.9]}
    given = student, make_teacher(), DATA, search
    trials = tune("takd", *given, epochs=2, trials=2, options=entry.options, run_dir=tmp_path, progress=False)
    assert [dict(trial.options) for trial in trials] == [{"assistants": ["mlp-24"], "alpha": a} for a in (0.9, 0.5)]


def test_a_number_is_a_name_where_a_name_belongs():
    assert entries_of("at:layers=[[2,relu]]")[0].options == {"layers": [["2", "relu"]]}
    (both,) = entries_of("kd:temperature=4+fitnets:hint=2.10:hint-share=0.5")
    assert both.options == {"kd.temperature": 4, "fitnets.hint": "2.10", "fitnets.hint_share": 0.5}
    assert search_of(["layers=[[1,2]],[[1,relu]]"], parameters_of("at")) == {"layers": [[["1", "2"]], [["1", "relu"]]]}
    assert search_of(["temperature=1,4e0"], parameters_of("kd")) == {"temperature": [1, 4.0]}
