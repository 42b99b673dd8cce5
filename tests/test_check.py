"""`limbeck check` finds each of the mistakes that ruin a distillation, nothing where there is none, and leaves no trace."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck import Distill, Frozen, Loss, Method, S, Stage, T, Turn, Y, classification, on
from limbeck.cli import main
from limbeck.cli.check import shares_of
from limbeck.core.finding import learned_nothing
from limbeck.data import Data
from limbeck.losses import soft_target
from limbeck.verbs.check import Checkup, Finding, TermCheck, check, console_table, vet, vet_teacher


@pytest.fixture(scope="module")
def data() -> Data:
    return limbeck.data.load("digits", batch_size=128)


@pytest.fixture(scope="module")
def trained(data: Data) -> nn.Module:
    """The demo's teacher, after a few of its epochs."""
    net = network(data, "mlp-256-256", seed=0)
    limbeck.fit(limbeck.plain(net), data, epochs=15, clip=1.0, progress=False)
    return net


@pytest.fixture
def teacher(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


@pytest.fixture
def student(data: Data) -> nn.Module:
    return network(data, "mlp-32", seed=1)


def network(data: Data, name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return limbeck.zoo.network(name, data.num_classes, data.shape)


def flagged(checkup: Checkup) -> dict[str, str]:
    return {one.name: one.status for one in checkup.findings if one.status != "ok"}


def message(checkup: Checkup, name: str) -> str:
    return " ".join(one.message for one in checkup.findings if one.name == name)


def values(checkup: Checkup, name: str) -> dict[str, float]:
    return next(one.values for one in checkup.findings if one.name == name)


def loaders(data: Data, change: Callable[[Tensor], Tensor] = lambda x: x, **options) -> tuple[DataLoader, DataLoader]:
    """The digits as a user's own loaders."""
    sets = []
    for split in (data.train, data.val):
        inputs, targets, _ = zip(*split.plain(), strict=True)
        sets.append(TensorDataset(change(torch.cat(inputs)), torch.cat(targets)))
    return DataLoader(sets[0], 128, **options), DataLoader(sets[1], 128)


class Dropping(nn.Module):
    """A network with the classic mistake: a dropout that eval mode does not switch off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5))


class Counting(nn.Module):
    """A network whose answers depend on how often it was asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.net(x)


class Reordered(nn.Module):
    """A network that gives its classes in another order."""

    def __init__(self, net: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.net, self.order = net, order

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, self.order]


class Skipping(nn.Module):
    """A student with a layer that its forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.skipped = nn.Linear(64, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


# nothing is flagged where nothing is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, 100])
def test_nothing_is_flagged_on_the_demos_set_up(student, teacher, labels):
    data = limbeck.data.load("digits", batch_size=128, labels=labels)
    checkup = check(limbeck.kd(student, teacher), data, expect=0.9, epochs=40)
    assert flagged(checkup) == {}
    assert checkup.ok
    assert [term.name for term in checkup.terms] == ["hard", "soft"]
    named = {one.name for one in checkup.findings}
    assert named >= {"inputs", "labels", "teacher accuracy", "identity soft", "overfit", "time", "memory"}


def test_few_labels_leave_the_first_batch_without_one(student, teacher):
    data = limbeck.data.load("digits", batch_size=16, labels=10)
    _, targets, _ = next(iter(data.with_seed(0).train))
    assert bool((targets == -100).all())
    assert flagged(check(limbeck.kd(student, teacher), data)) == {}


@pytest.mark.parametrize("method", ["fitnets", "ls", "plain", "rkd", "dml", "ban", "adversarial"])
def test_the_other_methods_can_be_checked(student, teacher, method):
    data = limbeck.data.load("digits", batch_size=32)
    peers = network(data, "mlp-32", 2)
    built = {
        "fitnets": lambda: limbeck.fitnets(student, teacher, example=data.example()),
        "ls": lambda: limbeck.ls(student),
        "plain": lambda: limbeck.plain(student),
        "rkd": lambda: limbeck.rkd(student, teacher),
        "dml": lambda: limbeck.dml(student, peers),
        "ban": lambda: limbeck.ban(student, teacher),
        "adversarial": lambda: limbeck.adversarial(student, teacher, num_classes=10),
    }[method]()
    checkup = check(built, data)
    assert flagged(checkup) == {}
    assert checkup.terms


def test_an_untrained_teacher_is_at_chance_but_not_permuted(student, data):
    """Every assignment fits noise a little: only one that halves the errors on other samples is a permutation."""
    for seed in range(3):
        checkup = check(limbeck.kd(student, network(data, "mlp-256-256", seed)), data)
        assert "teacher classes" not in flagged(checkup)
        assert "teacher inputs" not in flagged(checkup)
        if values(checkup, "teacher accuracy")["accuracy"] < 0.1:
            assert flagged(checkup)["teacher accuracy"] == "warning"


# each mistake is caught ----------------------------------------------------------------------------------------------


def test_a_teacher_in_train_mode(student, teacher, data):
    drops = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    checkup = check(limbeck.kd(student, Frozen(drops, mode="train")), data)
    assert flagged(checkup)["teacher mode"] == "failed"
    assert flagged(checkup)["teacher determinism"] == "failed"
    assert "teacher mode" not in flagged(check(limbeck.kd(student, Frozen(drops)), data))
    assert flagged(check(limbeck.kd(student, Frozen(teacher, mode="batch_stats")), data)) == {"teacher mode": "warning"}


def test_a_teacher_of_the_users_own_method_that_is_not_frozen(student, data):
    class Own(Method):
        def __init__(self, teacher: nn.Module) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def players(self) -> dict[str, list[nn.Module]]:
            return {"student": [self.student]}

        def step(self, batch, progress: float) -> Iterator[Turn]:
            inputs = batch[0]
            with torch.no_grad():
                target = self.teacher(inputs)
            yield Turn("student", {"soft": Loss(soft_target(self.student(inputs), target))})

    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).eval()  # not for long: a fit calls train()
    checkup = check(Own(net), data)
    assert flagged(checkup)["modes"] == "failed"
    assert "teacher.1" in message(checkup, "modes")
    assert "modes" not in flagged(check(Own(Frozen(net)), data))


def test_a_teacher_that_answers_differently_each_time(student, teacher, data):
    checkup = check(limbeck.kd(student, Dropping(teacher)), data)
    assert flagged(checkup)["teacher determinism"] == "failed"
    assert values(checkup, "teacher determinism")["largest relative difference"] > 0.01


def test_a_teacher_that_a_method_holds_itself(student, teacher, data):
    checkup = check(limbeck.gradient(student, Reordered(teacher, [1, 0, *range(2, 10)])), data)
    assert flagged(checkup) == {"teacher classes": "failed"}


def test_a_teacher_whose_buffers_change(student, teacher, data):
    """A frozen one writes to copies; one that counts in an attribute is found."""
    checkup = check(limbeck.kd(student, Counting(teacher)), data)
    assert flagged(checkup) == {}

    class Aging(Counting):
        age = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.age += 1.0
            return self.net(x) * self.age

    assert flagged(check(limbeck.kd(student, Aging(teacher)), data))["teacher determinism"] == "failed"


@pytest.mark.parametrize("order", [[*range(1, 10), 0], [1, 0, 3, 2, *range(4, 10)]])
def test_a_teacher_with_permuted_classes(student, teacher, data, order):
    checkup = check(limbeck.kd(student, Reordered(teacher, order)), data)
    found = values(checkup, "teacher classes")
    assert flagged(checkup)["teacher classes"] == "failed"
    assert "permuted" in message(checkup, "teacher classes")
    assert found["classes moved"] == sum(index != was for index, was in enumerate(order))
    assert found["accuracy, permuted"] > 0.85
    assert f"output 0 is {order[0]}" in message(checkup, "teacher classes")


def test_classes_that_were_not_seen_stay_where_they_are(student, teacher, data):
    _, val = loaders(data)
    inputs, targets = val.dataset.tensors
    seen = DataLoader(TensorDataset(inputs[targets > 4], targets[targets > 4]), 128)
    checkup = check(limbeck.kd(student, Reordered(teacher, [*range(8), 9, 8])), (data.train, seen))
    assert values(checkup, "teacher classes")["classes moved"] == 2


def test_no_permutation_is_read_out_of_noise():
    """With a sample of each class, some order fits any teacher: but not the samples that it was not fitted to."""
    torch.manual_seed(0)
    noise = [(torch.randn(80, 6), torch.arange(80) % 40)]
    checkup = check(limbeck.kd(nn.Linear(6, 40), nn.Linear(6, 40)), (noise, noise))
    assert "teacher classes" not in flagged(checkup)
    assert values(checkup, "teacher classes")["accuracy, permuted"] < 0.2


def test_a_teacher_that_misses_what_is_expected_of_it(student, teacher, data):
    reached = values(check(limbeck.kd(student, teacher), data), "teacher accuracy")["accuracy"]
    assert reached == pytest.approx(limbeck.evaluate(teacher, data.val)["accuracy"])
    assert flagged(check(limbeck.kd(student, Reordered(teacher, [*range(8), 9, 8])), data, expect=0.97)) == {
        "teacher accuracy": "failed",
        "teacher classes": "failed",
    }
    with pytest.raises(ValueError, match=r"\[0, 1\], got 92"):
        check(limbeck.kd(student, teacher), data, expect=92)


def test_inputs_that_are_not_normalised(student, teacher, data):
    checkup = check(limbeck.kd(student, teacher), loaders(data, lambda x: 60 * x + 130))
    assert flagged(checkup)["inputs"] == "warning"
    assert flagged(checkup)["teacher inputs"] == "warning"
    assert "standardised" in message(checkup, "teacher inputs")


def test_inputs_normalised_for_a_teacher_that_knew_them_in_another_scale(student, teacher, data):
    """The other way round: the data is normalised, and the teacher was trained on pixels."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - 80) / 100)

    checkup = check(limbeck.kd(student, Pixels()), data)
    assert flagged(checkup)["teacher inputs"] == "warning"
    assert "scaled to [0, 255]" in message(checkup, "teacher inputs")
    assert "inputs" not in flagged(checkup)


def test_a_term_without_a_gradient(student, teacher, data):
    objective = classification.hard + on(soft_target, S.via(torch.Tensor.detach), T, name="soft")
    checkup = check(Distill(student, teacher, objective), data)
    assert flagged(checkup) == {"gradients": "failed"}
    assert "'student/soft' gives its player no gradient" in message(checkup, "gradients")


@pytest.mark.parametrize("rounded", [torch.round, torch.sign])
def test_a_term_whose_gradient_is_zero(student, teacher, data, rounded):
    objective = classification.hard + on(soft_target, S.via(rounded), T, name="soft")
    checkup = check(Distill(student, teacher, objective), data)
    assert flagged(checkup)["gradients"] == "warning"  # a student that starts as its teacher has such a term too
    assert "the gradient of the term 'student/soft' is 0" in message(checkup, "gradients")


def test_a_term_whose_layers_do_not_train_in_this_stage(student, teacher, data):
    """The hint is to teach the first layer, and only the last one trains."""
    last = [module for module in student.modules() if isinstance(module, nn.Linear)][-1]
    first = next(name for name, module in student.named_modules() if isinstance(module, nn.Linear))
    method = Distill(student, teacher, classification.hard + on(lambda s: s.square().mean(), S[first], name="norm"))
    assert flagged(check([Stage(method, trains=[last])], data)) == {"gradients": "failed"}
    assert flagged(check([Stage(method)], data)) == {}


def test_a_term_with_nearly_all_of_the_gradient(student, teacher, data):
    balanced = check(limbeck.kd(student, teacher), data)
    hard, soft = (term.gradient / term.weight for term in balanced.terms)
    weight = 999 * hard / soft
    objective = classification.hard + weight * on(soft_target, S, T, name="soft", temperature=4.0)
    checkup = check(Distill(student, teacher, objective), data)
    assert flagged(checkup) == {"balance": "warning"}
    assert values(checkup, "balance")["share"] == pytest.approx(0.999, abs=1e-4)
    assert "'student/soft' has 99.90%" in message(checkup, "balance")


def test_terms_that_pull_against_each_other(student, data):
    away = -0.5 * on(F.cross_entropy, S, Y, name="away")
    checkup = check(Distill(student, None, classification.hard + away), data)
    assert flagged(checkup) == {"conflict": "warning"}
    assert checkup.terms[0].cosines["away"] == pytest.approx(-1, abs=1e-5)


def test_a_critics_terms_may_pull_against_each_other(student, data):
    class Game(Method):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.critic = student, nn.Linear(10, 1)

        def players(self) -> dict[str, list[nn.Module]]:
            return {"student": [self.student], "critic": [self.critic]}

        def step(self, batch, progress: float) -> Iterator[Turn]:
            output = self.student(batch[0])
            yield Turn("student", {"hard": Loss(F.cross_entropy(output, batch[1]))})
            judged = self.critic(output.detach())
            yield Turn("critic", {"up": Loss(-judged.mean()), "down": Loss(judged.mean(), 0.5)})

    checkup = check(Game(), data)
    assert flagged(checkup) == {}
    assert [(term.player, term.name) for term in checkup.terms][1:] == [("critic", "up"), ("critic", "down")]
    assert checkup.terms[1].share == pytest.approx(2 / 3)
    assert checkup.terms[1].cosines["down"] == pytest.approx(-1)


def test_a_layer_that_is_never_called(teacher, data):
    objective = classification.hard + on(lambda s, t: (s - t).square().mean(), S["skipped"], T, name="pair")
    checkup = check(Distill(Skipping(), teacher, objective), data)
    assert flagged(checkup) == {"batch": "failed"}
    assert "ran without calling ['skipped']" in message(checkup, "batch")
    assert checkup.terms == ()


@pytest.mark.parametrize("wrong", [10, -1])
def test_labels_out_of_range(student, teacher, data, wrong):
    train, val = loaders(data)
    inputs, targets = train.dataset.tensors
    targets = targets.clone()
    targets[1200] = wrong  # not in the first batch
    ours = (DataLoader(TensorDataset(inputs, targets), 128), val)
    checkup = check(limbeck.kd(student, teacher), ours)
    assert flagged(checkup) == {"labels": "failed"}
    assert f"{min(wrong, 0)} and {max(wrong, 9)}" in message(checkup, "labels")
    targets[1200] = -100
    assert flagged(check(limbeck.kd(student, teacher), ours)) == {}


def test_a_student_of_other_classes(teacher, data):
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    assert flagged(check(limbeck.plain(few), data)) == {"student outputs": "failed"}
    many = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    assert flagged(check(limbeck.plain(many), data)) == {"student outputs": "warning"}
    checkup = check(limbeck.kd(many, teacher), data)
    assert flagged(checkup) == {"student outputs": "warning", "batch": "failed"}
    assert "12 classes and the teacher 10" in message(checkup, "batch")


def test_a_teacher_of_other_classes_is_not_measured(student):
    data = limbeck.data.load("digits", batch_size=32)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 100))
    checkup = check(limbeck.rkd(student, other), data)
    assert flagged(checkup) == {}  # rkd compares embeddings
    assert "the teacher has answers of shape (N, 100)" in message(checkup, "teacher accuracy")


def test_a_term_that_is_not_least_where_the_student_is_the_teacher(student, teacher, data):
    """The classic: one side softened, the other not."""

    def lopsided(student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(student, -1), F.softmax(teacher / 4, -1), reduction="batchmean")

    checkup = check(Distill(student, teacher, on(lopsided, S, T)), data)
    assert flagged(checkup)["identity lopsided"] == "warning"
    entropy = check(Distill(student, teacher, on(limbeck.losses.soft_cross_entropy, S, T, temperature=1.0)), data)
    assert values(entropy, "identity soft_cross_entropy")["value, student = teacher"] > 0
    assert "at its minimum" in message(entropy, "identity soft_cross_entropy")
    adapted = on(limbeck.losses.logit_regression, S.via(nn.Linear(10, 10)), T, name="adapted")
    assert "not checked" in message(check(Distill(student, teacher, adapted), data), "identity adapted")


def test_a_batch_that_cannot_be_overfitted(student, data):
    """The labels do not reach the loss."""
    constant = on(lambda s, y: (s - s.mean(1, keepdim=True).detach()).square().mean() + 5, S, Y, name="odd")
    assert flagged(check(Distill(student, None, constant), data)) == {"overfit": "warning"}


def test_a_term_that_is_not_finite(student, data):
    broken = on(lambda s, y: (s - s).sqrt().sum(), S, Y, name="root")
    checkup = check(Distill(student, None, classification.hard + broken), data)
    assert flagged(checkup)["gradients"] == "failed"
    assert "'student/root' is 0.0, its gradient nan" in message(checkup, "gradients")
    json.loads(checkup.json(), parse_constant=pytest.fail)


# numbers -------------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_first_batch(student, data):
    """Against autograd itself, for a student without anything random."""
    method = Distill(student, None, 2.0 * classification.hard + on(lambda s: s.square().mean(), S, name="size"))
    train, _ = loaders(data)
    checkup = check(method, train)
    inputs, targets = next(iter(train))
    for term, loss in zip(
        checkup.terms, (2 * F.cross_entropy(student(inputs), targets), student(inputs).square().mean()), strict=True
    ):
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert term.gradient == pytest.approx(float(norm), rel=1e-4)
        assert term.value * term.weight == pytest.approx(loss.item(), rel=1e-5)
    assert sum(term.share for term in checkup.terms) == pytest.approx(1)


@pytest.mark.parametrize("shares", [{"hard": 0.3}, {"map": 0.6}, {"map": 0.25, "hard": 0.5}])
def test_suggested_weights_give_the_shares_asked_for(student, data, shares):
    def method(weights: list[float]) -> Distill:
        terms = [
            classification.hard,
            on(lambda s: s.square().mean(), S, name="map.a"),
            on(lambda s: s.abs().mean(), S, name="map.b"),
            on(lambda s: s.std(), S, name="rest"),
        ]
        return Distill(student, None, sum(w * term for w, term in zip(weights, terms, strict=True)))

    suggested = [term.suggested for term in check(method([1, 2, 3, 4]), data, shares=shares).terms]
    after = {term.name: term for term in check(method(suggested), data).terms}
    for name, share in shares.items():
        reached = sum(term.share for key, term in after.items() if key.split(".")[0] == name)
        assert reached == pytest.approx(share, rel=1e-4)
    assert after["map.b"].weight / after["map.a"].weight == pytest.approx(1.5)
    assert after["rest"].weight == 4


@pytest.mark.parametrize(
    ("shares", "match"),
    [({"sofd": 0.3}, "no term 'sofd'"), ({"soft": 1.2}, r"\(0, 1\)"), ({"soft": 0.5, "hard": 0.6}, "add up to 1")],
)
def test_shares_that_make_no_sense(student, teacher, data, shares, match):
    with pytest.raises(ValueError, match=match):
        check(limbeck.kd(student, teacher), data, shares=shares)


def test_the_estimates_grow_with_what_they_estimate(student, teacher, data):
    one = check(limbeck.kd(student, teacher), data, epochs=1)
    many = check(limbeck.kd(student, teacher), data, epochs=1000)
    assert values(many, "time")["seconds"] > 100 * values(one, "time")["seconds"]
    wide = check(limbeck.kd(network(data, "mlp-512-512", 0), teacher), data)
    train, val = loaders(data)
    watched = check(limbeck.plain(student), (train, [next(iter(val))] * 1_000_000))
    assert values(watched, "time")["seconds an epoch"] > 10 * len(train) * values(watched, "time")["seconds a step"]
    # weights, gradients and Adam's two moments: 4 numbers for each parameter, and then the activations
    parameters = 64 * 512 + 512 * 512 + 512 * 10 - (64 * 32 + 32 * 10)
    assert values(wide, "memory")["bytes"] - values(one, "memory")["bytes"] > 4 * 4 * parameters


# no trace ------------------------------------------------------------------------------------------------------------


def everything(*nets: nn.Module) -> list[object]:
    tensors = [
        (name, tensor.clone()) for net in nets for name, tensor in (*net.named_parameters(), *net.named_buffers())
    ]
    return [
        tensors,
        [module.training for net in nets for module in net.modules()],
        [p.requires_grad for net in nets for p in net.parameters()],
        [p.grad for net in nets for p in net.parameters()],
        [len(module._forward_hooks) for net in nets for module in net.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    ]


def equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


@pytest.mark.parametrize("staged", [False, True])
def test_networks_and_random_numbers_are_left_as_they_were(data, staged):
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 10))

    student, teacher = make(0), make(1)
    student[1].eval()
    teacher[3].train()
    method = limbeck.ban(student, teacher) if staged else limbeck.kd(student, teacher)
    before = everything(student, teacher)
    mode = [module.training for module in method.modules()] if isinstance(method, Method) else []
    checkup = check(method, data)
    assert checkup.terms
    assert equal(everything(student, teacher), before)
    assert mode == ([module.training for module in method.modules()] if isinstance(method, Method) else [])


def test_loaders_are_left_as_they_were(student, teacher, data):
    generator = torch.Generator().manual_seed(3)
    train, val = loaders(data, shuffle=True, generator=generator)
    state = generator.get_state()
    next(iter(data.train))
    place = data.train.state_dict()
    check(limbeck.kd(student, teacher), (train, val))
    check(limbeck.kd(student, teacher), data)
    assert torch.equal(generator.get_state(), state)
    assert data.train.state_dict() == place


def test_a_checked_method_trains_as_one_that_was_not(teacher, data):
    weights = []
    for checked in (False, True):
        student = network(data, "mlp-32", seed=1)
        method = limbeck.kd(student, teacher)
        if checked:
            check(method, data)
        limbeck.fit(method, data, epochs=1, progress=False)
        weights.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert torch.equal(*weights)


def test_a_generator_that_was_checked_cannot_be_trained_without_its_first_stage(student, teacher, data):
    stages = limbeck.fitnets(student, teacher, example=data.example())
    checkup = check(stages, data)
    assert "only the first stage 'hint'" in message(checkup, "stages")
    assert [term.name for term in checkup.terms] == ["hint"]
    with pytest.raises(ValueError, match="nothing to train"):
        limbeck.fit(stages, data, epochs=2, progress=False)


# before every distill ------------------------------------------------------------------------------------------------


def distilled(student: nn.Module, teacher: nn.Module | list[nn.Module] | None, data: object, **options) -> list[Tensor]:
    torch.manual_seed(5)  # of the adapters
    settings = {"epochs": 2, "progress": False, "accelerator": "cpu", **options}
    net = copy.deepcopy(student)
    limbeck.distill(net, teacher, data, **settings)
    return [tensor.clone() for tensor in net.state_dict().values()]


def test_distill_refuses_what_would_train_in_vain(student, teacher, data):
    wrong = Frozen(Reordered(teacher, [1, 0, *range(2, 10)]), mode="train")
    before = copy.deepcopy(student)
    with pytest.raises(ValueError, match="classes are permuted") as caught:
        limbeck.distill(student, wrong, data, epochs=1, progress=False)
    told = str(caught.value).splitlines()
    assert len(told) == 3  # both mistakes, and how to go on
    assert "classes are permuted" in told[0]
    assert "the teacher is in train mode" in told[1]
    assert "`limbeck check` shows more; check=False (--check false) trains nevertheless" in told[2]
    assert equal(list(student.parameters()), list(before.parameters()))
    assert limbeck.distill(student, wrong, data, epochs=1, progress=False, check=False).finished


@pytest.mark.parametrize(
    ("method", "own"), [("kd", True), ("kd", False), ("fitnets", False), ("dml", True), ("ban", False)]
)
def test_the_check_changes_nothing_of_the_training(student, teacher, data, method, own):
    """Adapters are drawn before the training, stages begin with draws of their own, and loaders have generators."""
    taught_by = [network(data, "mlp-32", 2)] if method == "dml" else teacher
    weights = []
    for checked in (True, False):
        ours = loaders(data, shuffle=True, generator=torch.Generator().manual_seed(3)) if own else data
        teaching = copy.deepcopy(taught_by)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="after the training")  # which is short
            weights.append(distilled(student, teaching, ours, method=method, check=checked))
    assert equal(*weights)


def test_an_untrained_teacher_is_warned_of_once_and_goes_on(student, data):
    """A control: `fit` measures it on the validation data; without these the check does."""
    untrained = copy.deepcopy(network(data, "mlp-256-256", 0))
    with torch.no_grad():
        for p in untrained.parameters():
            p.zero_()
    for given in (data, (data.train, None)):
        with pytest.warns(UserWarning, match="no better than chance") as seen:
            distilled(student, untrained, given, epochs=1)
        told = [str(one.message) for one in seen if "chance" in str(one.message)]
        assert len([one for one in told if one.startswith("the teacher")]) == 1
        assert len(told) == 1 or told[1].startswith("after the training the student")  # who learned from it


def test_more_outputs_than_classes_are_a_warning(data):
    many = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    with pytest.warns(UserWarning, match="the student has 12 classes, but the data has 10") as seen:
        distilled(many, None, data, method="plain", epochs=1)
    assert len(seen) == 1


def test_a_run_that_goes_on_is_not_checked_again(student, teacher, data, tmp_path):
    wrong = Reordered(teacher, [1, 0, *range(2, 10)])
    with pytest.raises(ValueError, match="permuted"):  # nothing is there to go on with
        distilled(student, wrong, data, run_dir=tmp_path, resume=True)
    first = distilled(student, wrong, data, run_dir=tmp_path, check=False)
    assert equal(distilled(student, wrong, data, run_dir=tmp_path, resume=True), first)


@pytest.mark.filterwarnings("error")
def test_what_is_in_words_already_is_raised_once(teacher, data):
    objective = classification.hard + on(lambda s, t: (s - t).square().mean(), S["skipped"], T, name="pair")
    with pytest.raises(RuntimeError, match=r"without calling \['skipped'\]"):
        vet(Distill(Skipping(), teacher, objective), data)


def test_what_another_precision_mends_is_left_to_the_training(student, teacher, data):
    wide = loaders(data, change=Tensor.double)
    with pytest.warns(UserWarning, match="not everything was checked before the training"):
        vet(limbeck.kd(student, teacher), wide)
    with pytest.warns(UserWarning, match="not everything was checked"):
        distilled(student, teacher, wide, epochs=1, precision="64-true")


IMAGES, LABELS = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
MISFED = {
    "the student's shape": (
        100,
        192,
        IMAGES,
        LABELS,
        "the student cannot be fed .*float32 of shape .20, 3, 8, 8.: mat1",
    ),
    "the teacher's shape": (
        192,
        100,
        IMAGES,
        LABELS,
        "the teacher cannot be fed .*Frozen.teacher, inputs=.* .--teacher-in",
    ),
    "bytes": (
        192,
        192,
        (IMAGES * 255).byte(),
        LABELS,
        r"student cannot be fed .*uint8 of .* x.float\(\) / 255 in 0..1",
    ),
    "short labels": (192, 192, IMAGES, LABELS.int(), r"the labels, int32 of shape \(20,\): .*targets.long\(\)"),
    "one-hot labels": (192, 192, IMAGES, F.one_hot(LABELS), r"int64 of shape \(20, 4\): .*targets.float.*argmax\(-1\)"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", MISFED)
def test_what_cannot_be_fed_is_told_once_and_by_its_role(case):
    *widths, inputs, targets, words = MISFED[case]
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(width, 4)) for width in widths)
    loader = DataLoader(TensorDataset(inputs, targets), 20)
    with pytest.raises(ValueError, match=words) as caught:
        limbeck.distill(student, teacher, (loader, loader), epochs=1, progress=False)
    assert str(caught.value).endswith("Nothing was trained")
    assert words.split(" ")[1] in message(check(limbeck.kd(student, teacher), (loader, loader)), "batch")


def test_a_layer_that_refuses_a_shape_is_told_by_its_role():
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm2d(192), nn.Linear(192, 4))
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 20)
    with pytest.raises(ValueError, match=r"the student cannot be fed .*expected 4D input"):
        limbeck.distill(student, None, (loader, loader), "plain", epochs=1, progress=False)


def test_a_teacher_alone_is_vetted_once_for_all(student, teacher, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vet_teacher(teacher, student, data, classification)
        vet_teacher(Frozen(teacher, classes=list(range(10))), student, data, data.task)
    with pytest.raises(ValueError, match="classes are permuted"):
        vet_teacher(Reordered(teacher, [1, 0, *range(2, 10)]), student, data, classification)
    with pytest.raises(ValueError, match="the teacher is in train mode"):
        vet_teacher(Frozen(teacher, mode="train"), student, data, classification)


def test_the_short_form_neither_tries_nor_estimates(student, teacher, data, monkeypatch):
    for slow in ("overfit", "cost", "identity", "scales", "inputs"):
        monkeypatch.setattr(f"limbeck.verbs.check.examine.{slow}", pytest.fail)
    vet(limbeck.kd(student, teacher), data)


# what is shown -------------------------------------------------------------------------------------------------------


def test_names_of_terms_are_shown_whole_in_a_narrow_terminal():
    names = ["attention.layer1", "attention.layer2", "a" * 60]
    terms = tuple(TermCheck("student", name, 0.123, 1000.0, 0.123, 0.3, {}, suggested=123.4) for name in names)
    console = Console(width=80, file=io.StringIO())
    console.print(console_table(Checkup((), terms)))
    shown = console.file.getvalue()
    assert all(f"student/{name} " in shown for name in names[:2])
    assert "…" not in shown


def test_the_table_and_json_say_it_all(student, teacher, data):
    checkup = check(limbeck.kd(student, teacher), data, shares={"hard": 0.5})
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(console_table(checkup))
    text = console.export_text()
    read = json.loads(checkup.json())
    assert read["ok"] is True
    for finding in checkup.findings:
        assert finding.name in text
    assert [term["name"] for term in read["terms"]] == ["hard", "soft"]
    assert f"{checkup.terms[0].suggested:.3g}" in text
    assert read["terms"][0]["suggested"] == checkup.terms[0].suggested


def test_the_table_is_coloured_in_a_terminal():
    found = (Finding("a", "ok", "fine"), Finding("b", "warning", "odd [0, 1]"), Finding("c", "failed", "wrong"))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, file=nowhere, force_terminal=True, color_system="standard")
        console.print(console_table(Checkup(found)))
    text = console.export_text(styles=True)
    assert "\x1b[32mok" in text
    assert "\x1b[33mwarning" in text
    assert "\x1b[1;31mfailed" in text
    assert "odd [0, 1]" in text


def test_what_is_no_method_is_refused(student, data):
    with pytest.raises(TypeError, match=r"limbeck\.plain"):
        check(student, data)
    with pytest.raises(ValueError, match="no stage"):
        check([], data)
    with pytest.raises(ValueError, match="epochs"):
        check(limbeck.plain(student), data, epochs=0)


def test_the_command_prints_and_says_by_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["check", "kd", "--student", "mlp-8", "--teacher", "mlp-16@random", "--samples", "200"]
    assert main(words) == 0  # a teacher at chance may be a control: a warning
    assert "chance" in capsys.readouterr().out
    assert main([*words, "--expect", "0.9", "--share", "soft=0.3", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    hard, soft = told["terms"]
    assert (hard["name"], soft["name"]) == ("hard", "soft")
    assert soft["suggested"] * soft["gradient"] / soft["weight"] == pytest.approx(0.3 / 0.7 * hard["gradient"])


def test_shares_are_written_as_terms_with_numbers():
    assert shares_of("attention=0.3,soft=0.2") == {"attention": 0.3, "soft": 0.2}
    for words in ("soft", "soft=much", "soft:0.3"):
        with pytest.raises(ValueError, match=f"expected TERM=SHARE,TERM=SHARE, as attention=0.3, got '{words}'"):
            shares_of(words)


def test_the_distill_command_checks_first(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)  # main() sets its own; put back after the test
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    last = list(state)[-2:]
    save_file(state | {name: state[name].roll(1, 0) for name in last}, "rolled.safetensors")
    words = (
        "distill kd --student mlp-8 --teacher mlp-256-256@rolled.safetensors --epochs 1 --progress false --run-dir a"
    )
    assert main(words.split()) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the teacher's classes are permuted: with its output 0 is 9" in told
    assert "--check false" in told
    assert not (tmp_path / "a").exists()
    assert main([*words.split(), "--check", "false"]) == 0


# answers that are not what the task takes them for --------------------------------------------------------------------


def test_answers_that_are_probabilities(student, teacher, data):
    """Softened as logits they are nearly uniform; where features are compared nobody reads them, so it is a warning."""
    sure = nn.Sequential(copy.deepcopy(teacher), nn.Softmax(-1))
    checkup = check(limbeck.kd(student, sure), data)
    assert flagged(checkup)["teacher answers"] == "warning"
    assert "add up to 1" in message(checkup, "teacher answers")
    undone = Frozen(sure, output=lambda p: p.clamp(min=1e-7).log())  # as the message says
    assert "teacher answers" not in flagged(check(limbeck.kd(student, undone), data))
    ends = nn.Sequential(copy.deepcopy(student), nn.Softmax(-1))
    assert flagged(check(limbeck.kd(ends, teacher), data))["student answers"] == "warning"


def test_classes_on_another_axis(data):
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(1, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.score(x)

    draw = torch.Generator().manual_seed(0)
    ours = [(torch.randn(6, 1, 5, 7, generator=draw), torch.randint(4, (6, 5, 7), generator=draw))]
    checkup = check(limbeck.plain(Pixels()), (ours, ours))
    assert flagged(checkup)["student outputs"] == "failed"
    assert "the classes on axis 1" in message(checkup, "student outputs")
    last = replace(limbeck.classification, output=lambda out: limbeck.core.task.logits(out).movedim(1, -1))
    assert "student outputs" not in flagged(check(limbeck.plain(Pixels(), task=last), (ours, ours)))


# numbers, answers and samples -----------------------------------------------------------------------------------------


def test_numbers_that_are_none(student, teacher, data):
    """A buffer counts as well as a weight, and the student as well as its teacher; nothing else is said then."""
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), teacher)
    normed[1].running_var[3] = float("nan")
    checkup = check(limbeck.kd(student, normed), data)
    assert flagged(checkup) == {"teacher weights": "failed"}
    assert "1.running_var" in message(checkup, "teacher weights")
    with torch.no_grad():
        next(student.parameters())[0, 0] = float("inf")
    assert flagged(check(limbeck.plain(student), data)) == {"student weights": "failed"}


def test_inputs_that_are_no_numbers(student, teacher, data):
    train, val = loaders(data)
    train.dataset.tensors[0][5, 0, 2, 2] = float("nan")
    checkup = check(limbeck.kd(student, teacher), (train, val))
    assert flagged(checkup) == {"inputs": "failed"}
    assert "1 numbers" in message(checkup, "inputs")


def test_answers_that_are_the_same_to_all(student, teacher, data):
    """A teacher without weights; but a student whose last layer begins at 0 answers otherwise after an update."""
    for p in teacher.parameters():
        nn.init.zeros_(p)
    assert flagged(check(limbeck.kd(student, teacher), data))["teacher answers"] == "warning"
    fresh = [module for module in student.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(fresh.weight)
    nn.init.zeros_(fresh.bias)
    assert "student answers" not in flagged(check(limbeck.plain(student), data))


def test_samples_of_several_splits(student, data):
    train, val = loaders(data)
    inputs, targets = train.dataset.tensors
    half = DataLoader(TensorDataset(inputs[:200], targets[:200]), 50)
    found = check(limbeck.plain(student), (train, val, half))
    assert flagged(found) == {"test": "warning"}
    assert values(found, "test")["shared"] == 200


def test_rows_that_are_alike_by_themselves_are_no_leak():
    """Of a table of few values most rows are there several times, in any split."""
    torch.manual_seed(0)
    x = torch.randint(3, (600, 4)).float() - 1
    y = (x.sum(1) > 0).long()
    ours = tuple(DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(400), slice(400, 600)))
    checkup = check(limbeck.plain(nn.Linear(4, 2)), ours)
    assert values(checkup, "validation")["shared"] > 100
    assert "validation" not in flagged(checkup)


def test_a_last_batch_of_one_sample(data):
    train, val = loaders(data)
    few = TensorDataset(*(tensor[:51] for tensor in train.dataset.tensors))
    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    found = check(limbeck.plain(normed), (DataLoader(few, 25), val))
    assert flagged(found)["last batch"] == "failed"
    assert "drop_last=True" in message(found, "last batch")
    listed = list(DataLoader(few, 10))
    with pytest.raises(ValueError, match="drop_last=True"):
        limbeck.distill(normed, None, (listed, val), "plain", epochs=1, progress=False)
    assert "last batch" not in flagged(check(limbeck.plain(normed), (DataLoader(few, 25, drop_last=True), val)))
    alone = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert "last batch" not in flagged(check(limbeck.plain(alone), (DataLoader(few, 25), val)))


def test_a_loss_that_is_not_finite_without_labels(student, teacher):
    few = limbeck.data.load("digits", labels=10, batch_size=10)
    smoothed = limbeck.Task(loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    checkup = check(limbeck.kd(student, teacher, task=smoothed), few)
    assert flagged(checkup)["labels"] == "failed"
    assert "a mean over nothing" in message(checkup, "labels")
    assert "labels" not in flagged(check(limbeck.kd(student, teacher), few))


def test_a_student_that_knew_another_scale(teacher, data):
    """One that was trained before, and whose inputs were pixels then."""
    fresh = network(data, "mlp-32", 3)
    assert "student inputs" not in flagged(check(limbeck.plain(fresh), loaders(data, lambda x: 60 * x + 130)))
    found = check(limbeck.plain(teacher), loaders(data, lambda x: 60 * x + 130))
    assert flagged(found)["student inputs"] == "warning"
    assert "standardised" in message(found, "student inputs")


# what losses depend on ------------------------------------------------------------------------------------------------


def test_layers_that_nobody_registered(student, teacher, data):
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.head = {"body": nn.Linear(64, 32)}, nn.Linear(32, 10)
            self.scale = torch.ones(32, requires_grad=True)  # no parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.parts["body"](x.flatten(1)).relu() * self.scale)

    checkup = check(limbeck.kd(Held(), teacher), data)
    assert flagged(checkup)["unregistered"] == "failed"
    assert values(checkup, "unregistered")["tensors"] == 3
    assert "(32, 64)" in message(checkup, "unregistered")
    adapter = nn.Linear(10, 10)
    inside = on(lambda s, t: F.mse_loss(adapter(s), t), S, T, name="pair")
    assert flagged(check(Distill(student, teacher, classification.hard + inside), data))["unregistered"] == "failed"
    placed = on(F.mse_loss, S.via(adapter), T, name="pair")
    assert flagged(check(Distill(student, teacher, classification.hard + placed), data)) == {}


def test_reentrant_checkpointing_is_no_fault_by_itself(teacher, data):
    class Thrifty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 10))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.second, self.first(x.flatten(1)), use_reentrant=True)

    checkup = check(limbeck.kd(Thrifty(), teacher), data)
    assert flagged(checkup) == {}
    assert all(term.gradient > 0 for term in checkup.terms)


def test_what_a_loss_of_ones_own_runs_over(student, teacher, data):
    def found(loss: Callable[[Tensor, Tensor], Tensor], weight: float = 1.0) -> dict[str, str]:
        objective = classification.hard + weight * on(loss, S, T, name="soft")
        flags = flagged(check(Distill(student, teacher, objective), data))
        return {name: status for name, status in flags.items() if name.split()[0] in ("axis", "reduction")}

    def mean(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True)

    assert found(mean) == {"reduction soft": "warning"}
    assert found(mean, 10.0) == {}  # the weight makes up for it
    assert found(lambda s, t: F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")) == {}
    assert found(lambda s, t: F.cross_entropy(s.T, t.T.softmax(1))) == {"axis soft": "warning"}
    assert found(F.mse_loss) == {}
    assert found(lambda s, t: F.mse_loss(s.softmax(-1), t.softmax(-1))) == {}
    assert found(lambda s, t: F.mse_loss(torch.cdist(s, s), torch.cdist(t, t))) == {}  # relations see no shift either
    assert found(lambda s, t: -torch.corrcoef(torch.cat([s.T, t.T]))[:10, 10:].diagonal().mean()) == {}


# after the training ---------------------------------------------------------------------------------------------------


def test_a_network_that_learned_nothing():
    accuracy, error = classification.score, limbeck.regression.score
    assert learned_nothing("student", accuracy, 0.5, 0.1, 400) is None
    assert learned_nothing("student", accuracy, 0.11, None, 400) is None
    found = learned_nothing("student", accuracy, 0.09, 0.1, 400)
    assert found is not None
    assert "after the training the student is no better than chance: accuracy 9.00 %" in found.message
    assert learned_nothing("student", error, 2.0, 1.5, 400) is not None  # less is better
    assert learned_nothing("student", error, 1.0, 1.5, 400) is None


def test_the_train_command_checks_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)
    (tmp_path / "listed.py").write_text(LISTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = "train --network listed:Listed --samples 200 --epochs 1 --progress false --accelerator cpu --run-dir a"
    words = line.split()
    assert main(words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "belong to no network" in told
    assert "--check false" in told
    assert not (tmp_path / "a").exists()
    assert main([*words, "--check", "false"]) == 0


LISTED = """
from torch import nn

class Listed(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layers, self.head = [nn.Linear(64, 16)], nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.layers[0](x.flatten(1)).relu())
"""
