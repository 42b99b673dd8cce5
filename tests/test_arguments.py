"""Wrong types of arguments meet words at every door: what was expected, what came, and what to write instead."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck import methods
from limbeck.core.options import ranged

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
LOADER = DataLoader(TensorDataset(X, Y), 8)
DATA = (LOADER, LOADER)
BRIEF: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "progress": False}


def net(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def kd() -> limbeck.Distill:
    return limbeck.kd(net(), net())


def fit(**options: Any) -> limbeck.Result:
    return limbeck.fit(kd(), **{"data": DATA, **BRIEF, **options})


def fit_without_adapters() -> limbeck.Result:
    student = net()
    adapted = limbeck.on(F.mse_loss, limbeck.S.via(nn.Linear(3, 3)), limbeck.T, name="adapted")
    method = limbeck.Distill(student, net(), adapted)
    return limbeck.fit(method, DATA, **BRIEF, optimizer=lambda own: torch.optim.SGD(student.parameters(), 0.01))


def distill(student: Any, teacher: Any, data: Any = DATA, *words: Any, **options: Any) -> limbeck.Result:
    return limbeck.distill(student, teacher, data, *words, **{"check": False, **BRIEF, **options})


Wrong = Callable[[], Any]
WORDS: dict[str, tuple[Wrong, str]] = {
    "a name for a method's student": (
        lambda: limbeck.kd("resnet8", net()),
        r"student must be a network \(torch.nn.Module\), got the string 'resnet8': make it, limbeck.zoo.network\('resnet8'",
    ),
    "a name for a method's teacher": (lambda: limbeck.at(net(), "resnet8", example=X), "teacher must be a network"),
    "a name where there is no teacher": (lambda: limbeck.plain("resnet8"), "student must be a network"),
    "a name among peers": (lambda: limbeck.dml(net(), [net(), "a"]), r"peers\[1\] must be a network"),
    "a name for a teacher's view": (lambda: limbeck.Frozen("resnet8"), "net must be a network"),
    "several teachers": (
        lambda: limbeck.kd(net(), [net(), net()]),
        "teacher must be one network, got 2: limbeck.Ensemble makes one of several",
    ),
    "several teachers of an objective": (
        lambda: limbeck.Distill(net(), [net(), net()], limbeck.classification.hard),
        "teacher must be one network, got 2: limbeck.Ensemble",
    ),
    "several teachers by the one call": (lambda: distill(net(), [net(), net()]), "kd has one teacher, got 2"),
    "a class": (lambda: limbeck.kd(nn.Identity, net()), r"got the class Identity: call it, Identity\(\.\.\.\)"),
    "weights": (lambda: limbeck.kd(net().state_dict(), net()), "got its weights alone, a OrderedDict"),
    "a model of scikit-learn": (
        lambda: limbeck.kd(net(), type("Forest", (), {"predict": 0})()),
        "got Forest: limbeck.SklearnTeacher makes a teacher",
    ),
    "the loss for the objective": (lambda: limbeck.Distill(net(), None, F.mse_loss), r"made by limbeck\.on\(loss"),
    "data first": (
        lambda: distill(DATA, net(), net()),
        r"student must be a network .*got tuple. The order is limbeck.distill\(student, teacher, data, method, \.\.\.\)",
    ),
    "data second": (
        lambda: distill(net(), DATA, net()),
        r"teacher\[0\] must be a network .*got DataLoader. The order is",
    ),
    "data before the method": (lambda: limbeck.fit(DATA, kd(), **BRIEF), "got Distill: the order is limbeck.fit"),
    "networks as data": (lambda: distill(net(), net(), net()), r"got Sequential: the order is .*limbeck\.distill"),
    "a network for a method": (
        lambda: limbeck.fit(net(), DATA, **BRIEF),
        r"got the network Sequential: limbeck\.plain",
    ),
    "a name for a method": (
        lambda: limbeck.fit("kd", DATA, **BRIEF),
        r"limbeck\.distill\(student, teacher, data, 'kd'\)",
    ),
    "networks for stages": (lambda: limbeck.fit([net()], DATA, **BRIEF), "expected a method, got the network"),
    "nothing for a method": (lambda: limbeck.fit(None, DATA, **BRIEF), "expected a method, got None"),
    "a function for a name": (lambda: distill(net(), net(), DATA, limbeck.kd), "method must be a string, got function"),
    "arrays": (
        lambda: fit(data=(X.numpy(), Y.numpy())),
        r"got ndarray: wrap .*TensorDataset\(torch\.as_tensor\(inputs",
    ),
    "tensors": (lambda: fit(data=(X, Y)), r"got Tensor: wrap inputs and targets together"),
    "a name for data": (
        lambda: fit(data="digits"),
        r"got str: load data by their name, limbeck\.data\.load\('digits'\)",
    ),
    "an optimizer that is made": (
        lambda: fit(optimizer=torch.optim.AdamW(net().parameters())),
        r"must be a function, optimizer=lambda parameters: torch\.optim\.AdamW\(parameters, lr=1e-3\), got AdamW",
    ),
    "an optimizer's name": (lambda: fit(optimizer="adam"), "optimizer=lambda parameters: .*got the string 'adam'"),
    "an optimizer of one player": (lambda: fit(optimizer={"student": "adam"}), "optimizer=lambda parameters: .*'adam'"),
    "an optimizer of nothing": (lambda: fit(optimizer=lambda: None), "called with 1 argument, optimizer=lambda"),
    "no optimizer": (lambda: fit(optimizer=lambda parameters: None), "by a function that returns it, .*got None"),
    "an optimizer of another network": (
        lambda: fit(optimizer=lambda parameters: torch.optim.SGD(net().parameters(), 0.1)),
        r"of 'student' leaves out \d of its \d parameters .*optimizer=lambda parameters: torch\.optim\.SGD\(parameters",
    ),
    "an optimizer without adapters": (
        fit_without_adapters,
        r"of 'student' leaves out 2 of its 6 parameters \(objective\..*requires_grad_",
    ),
    "a schedule of another optimizer": (
        lambda: fit(schedule=lambda _, n: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), 0.1), n)),
        "the schedule steps another optimizer",
    ),
    "a method for a student": (
        lambda: limbeck.distill("kd", "mlp-8", net(), "digits"),
        r"'kd' is a method, and stands in the place of the student: .*student, teacher, data, 'kd'\)",
    ),
    "a sum for a teacher": (
        lambda: limbeck.distill(net(), "kd+at", DATA),
        r"'kd\+at' is a method, and stands in the place of the teacher",
    ),
    "a method for data": (lambda: limbeck.distill(net(), net(), "at"), "'at' is a method, .* place of the data"),
    "an optimizer in a loop": (lambda: limbeck.optimizers(kd(), "adam"), "must be a function, optimizer=lambda"),
    "one optimizer for players": (
        lambda: limbeck.play(kd(), (X, Y), torch.optim.SGD(net().parameters())),
        r"expected an optimizer for each player, got SGD: optimizers = limbeck\.optimizers\(method, lambda",
    ),
    "a network in a loop": (lambda: limbeck.play(net(), (X, Y), {}), r"got the network Sequential: limbeck\.plain"),
    "a method for an optimizer": (
        lambda: limbeck.optimizers(torch.optim.SGD, kd()),
        "expected a method, got the class SGD",
    ),
    "a schedule of the optimizer alone": (
        lambda: fit(schedule=lambda optimizer: None),
        "the schedule is called with 2 arguments, schedule=lambda optimizer, updates: .*too many positional",
    ),
    "a schedule's name": (
        lambda: fit(schedule="cosine"),
        "schedule=lambda optimizer, updates: .*got the string 'cosine'",
    ),
    "no schedule": (lambda: fit(schedule=lambda optimizer, updates: 3), "by a function that returns it, .*got 3"),
    "no logger": (lambda: fit(loggers=[object()]), r"loggers\[0\] must be a Logger of lightning, got object"),
    "loggers that are no list": (lambda: fit(loggers=True), "loggers must be a list, each of it a Logger"),
    "epochs in words": (lambda: fit(epochs="3"), "epochs must be a whole number, got the string '3'"),
    "half an epoch": (lambda: fit(epochs=1.5), "epochs must be a whole number, got 1.5"),
    "epochs that are true": (lambda: fit(epochs=True), "epochs must be a whole number, got True"),
    "a seed": (lambda: fit(seed=1.5), "seed must be a whole number"),
    "batches of an update": (lambda: fit(accumulate=2.5), "accumulate must be a whole number"),
    "devices": (lambda: fit(devices="two"), "devices must be a whole number"),
    "a norm": (lambda: fit(clip="1"), "clip must be a number, got the string '1'"),
    "a folder": (lambda: fit(run_dir=3), "run_dir must be a string or a path, got 3"),
    "whether to go on": (lambda: fit(resume="yes"), "resume must be True or False, got the string 'yes'"),
    "a precision": (lambda: fit(precision="half"), "precision must be '32-true' or .*, got 'half'"),
    "settings": (lambda: fit(settings=[1]), "settings must be a dict, got list"),
    "a task's name": (lambda: distill(net(), net(), task="multilabel"), r"must be a limbeck\.Task, got the string"),
    "a method's task": (lambda: limbeck.kd(net(), net(), task="multilabel"), r"task must be a limbeck\.Task"),
    "a method's number": (lambda: limbeck.kd(net(), net(), temperature="4"), "temperature must be a number, got the"),
    "a network to measure": (lambda: limbeck.evaluate("resnet8", LOADER), "net must be a network .*zoo.network"),
    "a network to measure, second": (lambda: limbeck.evaluate(LOADER, net()), "net must be a network"),
    "data to measure on": (lambda: limbeck.evaluate(net(), "digits"), "expected a batch, .*got a str"),
    "several loaders to measure on": (lambda: limbeck.evaluate(net(), DATA), "expected a batch, .*got a DataLoader"),
    "arrays to measure on": (
        lambda: limbeck.evaluate(net(), [(X.numpy(), Y.numpy())]),
        r"given numpy\.ndarray, and net",
    ),
    "a search": (
        lambda: limbeck.tune("kd", net, net(), DATA, ["alpha"], epochs=1, run_dir="a"),
        "search must be a dict, got list",
    ),
    "a student for all trials": (
        lambda: limbeck.tune("kd", net(), net(), DATA, {"alpha": [0.5, 1.0]}, epochs=1, run_dir="a"),
        r"student must be a function that makes one, .*got the network Sequential",
    ),
    "a name to look into": (lambda: limbeck.layers("resnet8", X), "net must be a network"),
    "the weight of a method": (lambda: 0.5 * kd(), r"a method has no weight: .*0\.5 \* method\.objective"),
    "the difference of methods": (lambda: kd() - kd(), "methods are added, and none is taken away"),
}


@pytest.mark.parametrize(("wrong", "message"), WORDS.values(), ids=WORDS)
def test_wrong_arguments_meet_words(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()
    assert not any(tmp_path.iterdir())  # and nothing was begun


@pytest.mark.parametrize("name", methods.__all__)
def test_every_method_says_so_of_a_name_and_of_words_for_a_number(name):
    function = getattr(methods, name)
    parameters = inspect.signature(function, eval_str=True).parameters
    given = {key: net() for key in ("teacher", "peers", "assistants") if key in parameters}
    with pytest.raises(TypeError, match="must be a network"):
        function("resnet8", **given)
    for key, parameter in parameters.items():
        if parameter.annotation is float:
            with pytest.raises(TypeError, match=f"{key} must be a number, got the string 'a lot'"):
                function(net(), **given, **{key: "a lot"})


# what an annotation says


class Own:
    pass


@ranged
def held(
    net: nn.Module | None = None,
    *others: int,
    count: int = 1,
    share: float = 0.5,
    kind: Literal["a", "b"] | None = None,
    names: Sequence[str] = (),
    pair: tuple[str, str] | None = None,
    table: Mapping[str, int] | None = None,
    where: str | Path = "",
    make: Callable[[], int] | None = None,
    own: Own | None = None,
    free: Any = None,
    **more: int,
) -> str:
    """Do nothing."""
    return "done"


@pytest.mark.parametrize(
    "options",
    [
        {"net": nn.Identity(), "count": np.int64(3), "share": np.float32(0.5)},
        {"share": 1, "kind": "b", "names": ["x"], "pair": ["a", "b"], "table": {"a": 1}, "where": Path()},
        {"share": torch.tensor(0.5), "make": 3, "own": Own(), "free": 3, "more": "words"},
        {"share": lambda progress: progress, "names": ("a", "b")},
        {"kind": None, "pair": None, "own": None},
    ],
)
def test_what_fits_passes(options):
    assert held(**options) == "done"
    assert held(None, "not looked at") == "done"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": True}, "count must be a whole number, got True"),
        ({"share": False}, "share must be a number, got False"),
        ({"share": nn.Identity()}, "share must be a number, got Identity"),
        ({"kind": "c"}, "kind must be 'a' or 'b', got 'c'"),
        ({"kind": ["a"]}, r"kind must be 'a' or 'b', got \['a'\]"),
        ({"names": "ab"}, "names must be a list, each of it a string, got the string 'ab'"),
        ({"names": ["a", 3]}, r"names\[1\] must be a string, got 3"),
        ({"pair": "ab"}, "pair must be a tuple, got the string 'ab'"),
        ({"table": []}, "table must be a dict, got list"),
        ({"where": 3}, "where must be a string or a Path of pathlib, got 3"),
        ({"own": Own}, r"own must be a Own of .*, got the class Own: call it, Own\(\.\.\.\)"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        held(**options)


def test_arguments_by_their_place_are_looked_at_too():
    with pytest.raises(TypeError, match=r"net must be a network .*got int. The order is limbeck.held\(net, \.\.\.\)"):
        held(3)


# names, which the one call takes as the command line does


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_one_call_takes_names(tmp_path):
    teacher = limbeck.fit(
        limbeck.plain(limbeck.zoo.network("mlp-16", 10, (1, 8, 8))),
        limbeck.data.load("digits"),
        **BRIEF,
        run_dir=tmp_path,
    )
    short = {"seed": 3, "task": None}
    named = distill("mlp-8", f"mlp-16@{tmp_path}", "digits", **short).student

    torch.manual_seed(3)
    student, data = limbeck.zoo.network("mlp-8", 10, (1, 8, 8)), limbeck.data.load("digits", seed=3)
    assert same(state(named), state(distill(student, teacher.student, data, **short).student))


def test_peers_by_name_are_fresh():
    networks = distill("mlp-8", ["mlp-8", "mlp-4"], "digits", "dml").networks
    assert [sum(p.numel() for p in one.parameters()) for one in networks.values()] == [610, 610, 310]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill("mlp-8", "mlp-16", "digits"), r"the teacher mlp-16 has no weights: .*mlp-16@random"),
        (lambda: distill("mpl-8", "mlp-16@random", "digits"), "unknown network 'mpl-8'; perhaps"),
        (lambda: distill("mlp-8", "mlp-16@random", "digit"), "digits"),
        (
            lambda: distill("mlp-8", net(), DATA),
            r"loaders do not tell: make it, limbeck\.zoo\.network\('mlp-8', num_classes, \(8,\)\)",
        ),
        (
            lambda: distill(net(), net(), colour=3),
            r"kd has no option 'colour': there are temperature, alpha; of fit, .*seed",
        ),
        (lambda: distill(net(), net(), optimiser=3), r"kd has no option 'optimiser': did you mean optimizer\?"),
    ],
)
def test_names_that_do_not_suit_say_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_data_for_other_tasks_are_told_so(tmp_path):
    values = limbeck.data.load("diabetes")
    teacher = limbeck.zoo.network("mlp-4", values.outputs, values.shape)
    limbeck.fit(limbeck.plain(teacher, task=values.task), values, **BRIEF, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"was trained for regression, .*task=limbeck\.regression"):
        distill("mlp-4", f"mlp-4@{tmp_path}", "digits")


# crd, and batches


@pytest.mark.parametrize(
    ("batches", "method", "message"),
    [
        (LOADER, "crd", r"no ids of them: write queue=24, .*and write memory=24"),
        (LOADER, "kd+crd", r"write crd\.queue=24, .*and write crd\.memory=24"),
        (DataLoader(TensorDataset(X, Y, torch.arange(24)), 7), "crd", "by its id: write memory=24$"),
        ([(X[:5], Y[:5]), (X[5:], Y[5:])], "crd", "write queue=24"),
    ],
)
def test_what_remembers_samples_is_told_how_many_there_are(batches, method, message):
    with pytest.raises(ValueError, match=message) as error:
        distill(net(), net(), batches, method)
    option, number = re.search(r"write (\S+)=(\d+)", str(error.value)).groups()
    few = {"kd+crd": "crd."}.get(method, "") + "negatives"
    assert distill(net(), net(), batches, method, **{option: int(number), few: 2}).finished  # the advice holds


def test_a_dict_without_a_task_says_where_its_inputs_may_be():
    rows = [{"image": x, "label": y, "path": "a.png"} for x, y in zip(X, Y, strict=True)]
    with pytest.raises(
        TypeError, match=r"a dict with \['image'\] .*limbeck\.Task\(inputs=lambda batch: batch\['image'\]\)"
    ):
        distill(net(), net(), DataLoader(rows, 8))
    task = limbeck.Task(inputs=lambda batch: batch["image"])
    assert distill(net(), net(), DataLoader(rows, 8), task=task).finished  # the advice holds


# doubts


class Huge(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if self.training else 1e9)


def test_a_loss_out_of_all_proportion_is_told_of(tmp_path):
    with pytest.warns(
        limbeck.ChanceWarning, match=r"the network's loss on held-out samples is .*, where guessing has 1\.1"
    ):
        limbeck.fit(limbeck.plain(Huge(8, 3)), DATA, **BRIEF, run_dir=tmp_path)
    assert "out of all proportion" in (tmp_path / "result.json").read_text()
