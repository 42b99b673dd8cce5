"""Methods add up: the labels once, all other terms as they are, in whichever order; and what cannot be added says so."""

import copy
import json
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck import Distill, Frozen, S, Stage, T, Y, add, classification, linear, on
from limbeck.cli import main
from limbeck.cli.words import entries_of
from limbeck.core.method import optimizers, play
from limbeck.engine.assemble import assemble, parameters_of
from limbeck.losses import attention, label_smoothing, soft_target
from limbeck.verbs.compare import Entry, compare
from limbeck.verbs.tune import Range, tune

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")

CLASSES = 4
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCH = X, torch.arange(6) % CLASSES, torch.arange(6)


def net(seed, width=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        body = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def networks():
    return net(0), net(1, width=6)


def kd(student, teacher, **options):
    return limbeck.kd(student, teacher, **options)


def at(student, teacher, **options):
    return limbeck.at(student, teacher, layers=[("0", "0"), ("1", "1")], **options)


def crd(student, teacher):
    torch.manual_seed(5)  # its maps are the same in whatever order the methods are made
    return limbeck.crd(student, teacher, memory=6, negatives=3, example=X)


def jacobian(student, teacher):
    return limbeck.jacobian(student, teacher)


def adversarial(student, teacher):
    torch.manual_seed(5)
    return limbeck.adversarial(student, teacher, example=X)


def weights(student, teacher):
    return limbeck.weights(student, teacher, layers=[("0.0", "0.0")])


def gradients(method, student):
    """What the student is told by a batch."""
    turns = [turn for turn in method.step(BATCH, 0.25) if turn.player == "student"]
    turns[-1].total.backward()
    return [p.grad for p in student.parameters()]


def weighed(method):
    return dict(zip(method.objective.names, method.objective.weights, strict=True))


# what a sum is


@pytest.mark.parametrize("other", [at, crd, jacobian, adversarial, weights])
def test_a_sum_is_the_same_in_either_order(other):
    def built(*makers):
        student, teacher = networks()
        one, two = (make(student, teacher) for make in makers)
        return gradients(one + two, student)

    assert all(map(torch.equal, built(kd, other), built(other, kd)))


def test_a_sum_of_three_is_the_same_in_every_order():
    student, teacher = networks()
    a, b, c = kd(student, teacher), at(student, teacher), limbeck.rkd(student, teacher)
    names = [list((one + two + three).objective.names) for one, two, three in ((a, b, c), (c, a, b), (b, c, a))]
    names += [list((a + (b + c)).objective.names), list(add(c, b, a).objective.names)]
    assert names == [["hard", "angle", "attention.0", "attention.1", "distance", "soft"]] * 5


def test_a_sum_is_the_loss_written_by_hand():
    student, teacher = networks()
    by_sum = gradients(kd(student, teacher, temperature=2.0, alpha=0.7) + at(student, teacher, attention=30.0), student)

    twin, seen = net(0), {}
    teacher.eval()
    with torch.no_grad():
        t1 = teacher[0](X)
        t2 = teacher[1](t1)
        z_t = teacher[2:](t2)
    s1 = twin[0](X)
    s2 = twin[1](s1)
    z_s = twin[2:](s2)
    for name, (s, t) in {"0": (s1, t1), "1": (s2, t2)}.items():
        q_s, q_t = (F.normalize(f.square().mean(1).flatten(1)) for f in (s, t))
        seen[name] = (q_s - q_t).square().mean()
    soft = F.kl_div((z_s / 2).log_softmax(1), (z_t / 2).softmax(1), reduction="batchmean")
    (F.cross_entropy(z_s, BATCH[1]) + 0.7 * 4 * soft + 30 * seen["0"] + 30 * seen["1"]).backward()
    for mine, by_hand in zip(by_sum, (p.grad for p in twin.parameters()), strict=True):
        torch.testing.assert_close(mine, by_hand)


def test_the_labels_weigh_1_and_all_else_what_it_did():
    student, teacher = networks()
    both = kd(student, teacher, alpha=0.7), at(student, teacher)
    others = {"attention.0": 1000.0, "attention.1": 1000.0, "soft": 0.7}
    assert weighed(both[0] + both[1]) == {"hard": 1.0, **others}
    assert weighed(add(*both, hard=0.5)) == {"hard": 0.5, **others}
    assert weighed(add(*both, hard=0)) == {"hard": 0, **others}
    halves = add(*both, hard=linear(1, 0)).objective.weights[0]
    assert [halves(0.0), halves(0.75)] == [1.0, 0.25]
    assert weighed(both[0])["hard"] == pytest.approx(0.3)  # the parts stay as they are


def test_where_nobody_has_the_labels_a_sum_has_none_unless_asked():
    student, teacher = networks()
    both = limbeck.mimic(student, teacher), limbeck.logits(student, teacher)
    assert set(weighed(both[0] + both[1])) - {"hard"} == {"mimic", "regression"}
    assert list(next((both[0] + both[1]).step(BATCH)).losses) == ["mimic", "regression"]
    assert weighed(add(*both, hard=0.5))["hard"] == 0.5


def test_smoothed_labels_stand_for_the_labels():
    student, teacher = networks()
    smoothed = weighed(kd(student, teacher) + limbeck.ls(student))
    assert smoothed == {"smoothed": 1.0, "soft": 0.9}
    assert weighed(limbeck.tfkd_reg(student) + kd(student, teacher)) == {"hard": 0.9, "virtual": 0.1, "soft": 0.9}
    half = Distill(student, None, 0.5 * on(label_smoothing, S, Y, name="smoothed", smoothing=0.1))
    assert weighed((half + kd(student, teacher)) + limbeck.ls(student)) == smoothed


def test_places_of_other_layers_are_other_terms_and_equal_names_get_numbers():
    student, teacher = networks()
    one, two = (limbeck.at(student, teacher, layers=[(layer, layer)]) for layer in "01")
    assert list(weighed(one + two)) == ["hard", "attention.0", "attention.1"]
    squares = [on(loss, S, T, name="mine") for loss in (F.mse_loss, F.l1_loss)]
    a, b = (Distill(student, teacher, objective) for objective in squares)
    assert (a + b).objective.names == (b + a).objective.names == ["hard", "mine.1", "mine.2"]
    assert [term.loss for term in (a + b).objective.terms] == [term.loss for term in (b + a).objective.terms]


def test_two_teachers_by_their_roles():
    student, teacher = networks()
    second = Distill(student, {"second": net(2)}, 0.5 * on(soft_target, S, T.of("second"), name="second"))
    both = second + kd(student, teacher)
    assert list(both.teachers) == ["second", "teacher"]
    assert set(play(both, BATCH, optimizers(both, partial(torch.optim.SGD, lr=0.1)))) >= {"student/second"}


def test_a_teacher_without_parameters_is_the_same_where_it_is_one_view():
    student, silent = net(0), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.AvgPool1d(3))
    view = Frozen(silent)
    assert len((kd(student, view) + limbeck.logits(student, view)).teachers) == 1
    with pytest.raises(ValueError, match=r"other networks as their teacher|different networks as their teacher"):
        kd(student, silent) + limbeck.logits(student, silent)


# stages


def fitnets(student, teacher):
    return limbeck.fitnets(student, teacher, hint="0", guided="0", example=X)


@pytest.mark.parametrize("staged_first", [True, False])
def test_what_is_added_to_stages_joins_the_last(staged_first):
    student, teacher = networks()
    stages, more = fitnets(student, teacher), kd(student, teacher)
    hint, knowledge = stages + more if staged_first else more + stages
    assert weighed(hint.method) == {"hint": 1.0}
    assert list(weighed(knowledge.method)) == ["hard", "soft.1", "soft.2"]
    assert knowledge.method.objective.weights[0] == 1.0
    assert (hint.share, knowledge.share) == (0.5, 0.5)


def test_adapters_of_a_stage_that_trains_some_modules_are_trained_too():
    student, teacher = networks()

    def alone():
        yield Stage(Distill(student, teacher, classification.hard), trains=[student[4]])

    (stage,) = alone() + crd(student, teacher)
    trained = {id(p) for module in stage.trains for p in module.parameters()}
    assert trained >= {id(p) for p in stage.method.objective.parameters()}
    assert id(student[0][0].weight) not in trained


def test_stages_whose_shares_are_not_full_have_no_last():
    student, teacher = networks()

    def half():
        yield Stage(at(student, teacher), 0.5)

    with pytest.raises(ValueError, match=r"come to 0\.500, so that none is the last"):
        list(half() + kd(student, teacher))


# the engine


def test_resume_is_exact_where_adapters_wait_for_the_last_stage(tmp_path):
    def session(seed, epochs, run, **options):
        student, teacher = net(seed), net(1, width=6)
        torch.manual_seed(seed)  # of the maps of crd, which wait for the last stage
        method = limbeck.crd(student, teacher, memory=6, negatives=3, example=X) + fitnets(student, teacher)
        counted = Counted([BATCH] * 3, stop_after=epochs)
        result = limbeck.fit(
            method, (counted, [BATCH]), epochs=4, accelerator="cpu", progress=False, run_dir=tmp_path / run, **options
        )
        return result.finished, student.state_dict()

    finished, whole = session(0, None, "whole")
    assert finished
    assert not session(0, 4, "parts")[0]  # in the first stage
    finished, parts = session(3, None, "parts", resume=True)
    assert finished
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


class Counted:
    """A loader during which Ctrl-C is pressed."""

    def __init__(self, data, stop_after):
        self.data, self.stop_after, self.served = data, stop_after, 0

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            self.served += 1
            if self.served == self.stop_after:
                signal.raise_signal(signal.SIGINT)
            yield batch


def test_a_check_looks_at_all_terms_and_leaves_the_networks_alone():
    student, teacher = networks()
    before = copy.deepcopy(student.state_dict())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*BATCH), batch_size=3)
    method = kd(student, teacher) + crd(student, teacher)
    checkup = limbeck.check(method, (loader, loader), shares={"contrast": 0.3})
    assert {term.name: term.weight for term in checkup.terms} == {"hard": 1.0, "contrast": 0.8, "soft": 0.9}
    limbeck.check(limbeck.ls(student) + limbeck.ban(student), (loader, loader))  # ban starts it anew before it yields
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


# by name

DATA = limbeck.data.load("digits", labels=100, batch_size=128)
TRAINING = {"epochs": 1, "accelerator": "cpu", "progress": False}


def mlp(width):
    return limbeck.zoo.network(f"mlp-{width}", DATA.num_classes, DATA.shape)


def trained(method, run_dir=None, **options):
    torch.manual_seed(0)
    teacher, student = mlp(32), mlp(16)
    limbeck.distill(student, teacher, DATA, method, run_dir=run_dir, **TRAINING, **options)
    return student.state_dict()


def test_a_sum_by_name_trains_as_the_sum_and_in_either_order(tmp_path):
    options = {"kd.temperature": 2.0, "rkd.distance": 5.0, "hard": 0.5}
    by_name = trained("kd+rkd", tmp_path / "run", **options)
    swapped = trained("rkd+kd", **options)
    torch.manual_seed(0)
    teacher, student = mlp(32), mlp(16)
    method = add(limbeck.kd(student, teacher, temperature=2.0), limbeck.rkd(student, teacher, distance=5.0), hard=0.5)
    limbeck.fit(method, DATA, **TRAINING)
    for key, value in student.state_dict().items():
        assert torch.equal(by_name[key], value)
        assert torch.equal(swapped[key], value)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == "kd+rkd"


def test_adapters_are_the_same_in_whichever_order_methods_are_named():
    student, teacher = networks()
    made = []
    for name in ("vid+crd", "crd+vid"):
        torch.manual_seed(0)
        options = {"crd.memory": 6, "crd.negatives": 3, "vid.layers": [("0", "0")]}
        made.append(assemble(name, student, teacher, X, options).state_dict())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[1][key], value) for key, value in made[0].items())


def test_options_are_those_of_each_by_its_name():
    assert list(parameters_of("tfkd_reg+kd")) == [
        *("student", "task", "teacher", "hard", "tfkd_reg.temperature", "tfkd_reg.correct", "tfkd_reg.alpha"),
        *("tfkd_reg.mode", "kd.temperature", "kd.alpha"),
    ]
    assert list(parameters_of("kd")) == ["student", "teacher", "temperature", "alpha", "task"]
    assert parameters_of("ban+ls")["teacher"].default is None
    assert parameters_of("ban+kd")["teacher"].default is parameters_of("kd")["teacher"].default


def test_what_knows_the_data_is_told_in_a_sum():
    student, teacher = networks()
    method = assemble("kd+crd", student, teacher, X, {"crd.negatives": 2}, labels=torch.arange(9) % 3)
    assert dict(method.named_buffers())["objective.terms.1.loss.bank_s"].shape[0] == 9


def test_compare_by_name():
    entries = ["kd+rkd", Entry("kd+ls", {"ls.smoothing": 0.2})]
    comparison = compare(entries, partial(mlp, 16), mlp(32), DATA, seeds=1, **TRAINING)
    assert [one.name for one in comparison.candidates] == ["teacher", "plain", "kd+rkd", "kd+ls, ls.smoothing=0.2"]
    assert [one.role for one in comparison.candidates[2:]] == ["distilled"] * 2
    assert Entry("kd+rkd").folder != Entry("kd").folder
    assert Entry("plain+ls").labels_alone
    assert not Entry("kd+ls").labels_alone


def test_tune_by_name(tmp_path):
    search = {"rkd.distance": Range(1, 50, log=True), "hard": Range(0.1, 2)}
    settings = {"trials": 2, "final_seeds": 1, "options": {"kd.alpha": 0.5}, "run_dir": tmp_path / "tuned"}
    tuning = tune("kd+rkd", partial(mlp, 16), mlp(32), DATA, search, **settings, **TRAINING)
    assert set(tuning.options) == {"kd.alpha", "rkd.distance", "hard"}
    with pytest.raises(ValueError, match=r"kd\+rkd has no option 'distance': did you mean rkd\.distance"):
        tune("kd+rkd", partial(mlp, 16), mlp(32), DATA, {"distance": Range(1, 5)}, **settings, **TRAINING)


def test_words_of_the_command_line():
    read = [(entry.method, entry.options) for entry in entries_of("kd:temperature=2:hard=0.5+nst:layers=[[a:0,b]]")]
    assert read == [("kd+nst", {"kd.temperature": 2, "hard": 0.5, "nst.layers": [["a:0", "b"]]})]
    assert [entry.options for entry in entries_of("kd+at:attention=1e+3,5")] == [
        {"at.attention": 1000.0},
        {"at.attention": 5},
    ]
    assert entries_of("kd+at:teacher=mlp-8@random")[0].options == {"teacher": "mlp-8@random"}
    assert entries_of("kd:temperature=1e+1")[0].options == {"temperature": 10.0}


def run(capsys, line):
    code = main(line.split())
    told = capsys.readouterr()
    return code, told.out + told.err


GIVEN = "--student mlp-8-8 --teacher mlp-16@random --labels 100 --accelerator cpu"


def test_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run(
        capsys,
        f"distill rkd+kd {GIVEN} --kd.temperature 2 --rkd.distance 5 --hard 0.5 --epochs 1 --run-dir a --check false",
    )
    assert code == 0
    weights = (tmp_path / "a/student.safetensors").read_bytes()
    (tmp_path / "a").rename(tmp_path / "b")
    assert run(capsys, "--config b/config.yaml")[0] == 0  # the file alone says it
    assert (tmp_path / "a/student.safetensors").read_bytes() == weights
    code, told = run(capsys, f"check kd+rkd {GIVEN.replace('--accelerator cpu', '')} --share distance=0.3 --json")
    assert {term["name"] for term in json.loads(told)["terms"]} == {"hard", "soft", "distance", "angle"}
    assert run(capsys, "cite kd+at")[1].count("@inproceedings") == 2
    assert run(capsys, "cite at+gradient")[1].count("@inproceedings") == 1  # one paper has both


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"distill kd+dml {GIVEN}", "kd+dml: dml has peers"),
        (f"distill kd+takd {GIVEN}", "kd+takd: takd has assistants"),
        (f"distill kd+kd {GIVEN}", "kd+kd: kd is there twice"),
        (f"distill kd+rdk {GIVEN}", "unknown method 'rdk': did you mean rkd"),
        (f"distill kd+ {GIVEN}", "unknown method ''"),
        (f"distill kd+one {GIVEN}", "kd+one: one trains its student as part of a network with branches"),
        (f"distill kd+byot {GIVEN}", "kd+byot: byot trains its student as part of a network with exits"),
        (f"distill kd+ban {GIVEN} --epochs 9", "kd+ban: the stage 'generation-2' has another teacher"),
        (f"distill kd+rkd {GIVEN} --distance 5", "did you mean --rkd.distance"),
        (f"compare kd+rkd:distnace=5 {GIVEN}", "kd+rkd has no option 'distnace': did you mean rkd.distance"),
        (f"compare kd+kd {GIVEN}", "kd is there twice"),
        (f"tune kd+dml --search hard=0.1:1 {GIVEN}", "dml has peers"),
        ("cite kd+foo", "unknown method 'foo'"),
    ],
)
def test_bad_lines(capsys, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    try:
        code, told = run(capsys, line)
    except SystemExit as end:  # of the parser
        code, told = end.code, capsys.readouterr().err
    assert code == 2
    assert message in told


# what cannot be added


def test_a_later_stage_that_does_not_fit_is_found_before_the_first_trains_and_draws_nothing():
    student, teacher = networks()
    before = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"kd\+ab: both methods have the term 'soft'"):
        assemble("kd+ab", student, teacher, X, {"ab.layers": [("0.0", "0.0")]})
    with pytest.raises(ValueError, match=r"kd\+tfkd_self: the stage 'former-self' has another teacher"):
        assemble("kd+tfkd_self", student, teacher, X, {})
    assert all(torch.equal(value, before[0][key]) for key, value in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])


def other_student(s, t):
    return kd(s, t) + at(net(3), t)


def other_teacher(s, t):
    return kd(s, t) + at(s, net(3, width=6))


def other_view(s, t):
    return kd(s, t) + at(s, Frozen(t, "batch_stats"))


def other_classes(s, t):
    return kd(s, Frozen(t, classes=[0, 1, 2, 3])) + at(s, t)


def other_task(s, t):
    return kd(s, t) + limbeck.rkd(s, t, task=limbeck.multilabel)


def bent_task(s, t):
    return kd(s, t) + limbeck.rkd(s, t, task=replace(classification, guess=None))


def two_stagings(s, t):
    return add(fitnets(s, t), fitnets(s, t))


def two_ways_of_labels(s, t):
    return limbeck.ls(s) + limbeck.tfkd_reg(s)


def two_smoothings(s, t):
    return limbeck.ls(s) + limbeck.ls(s, smoothing=0.2)


def changing_labels(s, t):
    hard = linear(0.9, 0) * classification.hard + linear(0, 1) * on(label_smoothing, S, Y, name="smoothed")
    return Distill(s, None, hard) + kd(s, t)


def stage_of_another_student(s, t):
    return list(kd(s, t) + limbeck.dekd(s, t))


@pytest.mark.parametrize(
    ("sum_of", "message"),
    [
        (lambda s, t: kd(s, t) + kd(s, t), "both methods have the term 'soft'"),
        (lambda s, t: kd(s, t) + kd(s, t, temperature=1.0), "both methods have the term 'soft'"),
        (lambda s, t: crd(s, t) + crd(s, t), "both methods have the term 'contrast'"),
        (lambda s, t: kd(s, t) + limbeck.dml(s, net(2)), r"dml\.Mutual trains student, peer1 in a way of its own"),
        (lambda s, t: limbeck.one(s, layer="0", example=X) + kd(s, t), "one trains its student as part of"),
        (lambda s, t: adversarial(s, t) + jacobian(s, t), "each play a batch in a way of their own"),
        (lambda s, t: adversarial(s, t) + adversarial(s, t), "each play a batch in a way of their own"),
        (lambda s, t: list(kd(s, t) + limbeck.ban(s)), "'generation-0' has another teacher"),
        (lambda s, t: add(kd(s, t)), "a sum is of two methods or more, got 1"),
        (other_student, "train different students"),
        (stage_of_another_student, "train different students"),
        (other_teacher, r"different networks as their teacher, .*teacher = limbeck\.Frozen\(net\)"),
        (other_view, r"see one in different ways \(mode"),
        (other_classes, "see one in different ways"),
        (other_task, "different tasks, multilabel and classification|different tasks, classification and multilabel"),
        (bent_task, "with another guess"),
        (two_stagings, "both methods have stages"),
        (two_ways_of_labels, "hard and virtual in one method and by smoothed in the other|by smoothed in one"),
        (two_smoothings, "the labels teach by smoothed"),
        (changing_labels, r"\['hard', 'smoothed'\], whose weights change"),
    ],
)
def test_what_cannot_be_added_says_so(sum_of, message):
    with pytest.raises(ValueError, match=message):
        sum_of(*networks())


def test_what_is_no_method_cannot_be_added():
    student, teacher = networks()
    for other in (student, 3, on(attention, S, T), "at"):
        with pytest.raises(TypeError, match="unsupported operand"):
            kd(student, teacher) + other
    with pytest.raises(TypeError, match="expected methods, or the stages of one, got Sequential"):
        add(kd(student, teacher), student)
