"""The contract: one table, one row a method, and every rule of the design run for every row.

To add a method, add its line to `ROWS`. It says just how to build the method from a student, a teacher and an example.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.nn import functional as F

import limbeck
from limbeck import Distill, Frozen, Method, Objective, S, Stage, Turn, classification, on, regression
from limbeck.core.method import assign, descend, parameters, play
from limbeck.engine.fit import refuse_parts_of_relations

Built = Method | Iterable[Stage]
Batch = tuple[Tensor, Tensor, Tensor]


def as_wide_as_the_student(teacher: nn.Module) -> nn.Module:
    """Another teacher in its place, for methods that need equal channels."""
    return sequential(1) if isinstance(teacher, nn.Sequential) else net(1)


class Levels(nn.Module):
    """A network that looks up the levels of its pixels in a table: images as tokens."""

    def __init__(self, net: nn.Module, dimensions: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)  # the teacher's table is the same in every session
            self.embed, self.net = nn.Embedding(16, dimensions), net

    def forward(self, x: Tensor) -> Tensor:
        levels = (4 * x[:, 0].clamp(-1.9, 1.9) + 8).long()
        return self.net(self.embed(levels).permute(0, 3, 1, 2))


ROWS: dict[str, Callable[[nn.Module, nn.Module, Tensor], Built]] = {
    "plain": lambda student, teacher, example: limbeck.plain(student),
    "ls": lambda student, teacher, example: limbeck.ls(student),
    "kd": lambda student, teacher, example: limbeck.kd(student, teacher),
    "logits": lambda student, teacher, example: limbeck.logits(student, teacher, hard=0.5),
    "mimic": lambda student, teacher, example: limbeck.mimic(student, teacher),
    "kd, padded": lambda student, teacher, example: limbeck.kd(student, teacher, task=PADDED),
    "bounded": lambda student, teacher, example: limbeck.bounded(
        student, teacher, bounded=0.2, margin=9.0, task=VALUES
    ),
    "dkd": lambda student, teacher, example: limbeck.dkd(student, teacher),
    "dist": lambda student, teacher, example: limbeck.dist(student, teacher),
    "fitnets": lambda student, teacher, example: limbeck.fitnets(student, teacher, example=example),
    "at": lambda student, teacher, example: limbeck.at(student, teacher, example=example),
    "nst": lambda student, teacher, example: limbeck.nst(student, teacher, example=example),
    "cwd": lambda student, teacher, example: limbeck.cwd(student, teacher, example=example),
    "fsp": lambda student, teacher, example: limbeck.fsp(student, as_wide_as_the_student(teacher), example=example),
    "ab": lambda student, teacher, example: limbeck.ab(student, teacher, example=example),
    "gradient": lambda student, teacher, example: limbeck.gradient(
        student, teacher, feature=9.0, symmetry=0.5, example=example
    ),
    "jacobian": lambda student, teacher, example: limbeck.jacobian(
        student, teacher, projection=0.01, attention=0.1, example=example
    ),
    "review": lambda student, teacher, example: limbeck.review(student, teacher, example=example),
    "mgd": lambda student, teacher, example: limbeck.mgd(student, teacher, example=example),
    "rkd": lambda student, teacher, example: limbeck.rkd(student, teacher),
    "cc": lambda student, teacher, example: limbeck.cc(student, teacher, example=example),
    "crd": lambda student, teacher, example: limbeck.crd(
        student, teacher, memory=64, classes=torch.arange(64) % CLASSES, negatives=8, example=example
    ),
    "crd, queue": lambda student, teacher, example: limbeck.crd(student, teacher, queue=12, example=example),
    "pkt": lambda student, teacher, example: limbeck.pkt(student, teacher),
    "sp": lambda student, teacher, example: limbeck.sp(student, teacher, example=example),
    "dml": lambda student, teacher, example: limbeck.dml(student, copy.deepcopy(teacher)),
    "dml, at once": lambda student, teacher, example: limbeck.dml(
        student, [copy.deepcopy(teacher), weak(student)], alternate=False, ensemble=True
    ),
    "adversarial": lambda student, teacher, example: limbeck.adversarial(student, teacher, example=example),
    "one": lambda student, teacher, example: limbeck.one(student, example=example),
    "byot": lambda student, teacher, example: limbeck.byot(student, example=example),
    "rekd": lambda student, teacher, example: limbeck.rekd(student, weak(student)),
    "dekd": lambda student, teacher, example: limbeck.dekd(student, teacher, schooling=0.25),
    "takd": lambda student, teacher, example: limbeck.takd(student, teacher, copy.deepcopy(teacher)),
    "tfkd_reg": lambda student, teacher, example: limbeck.tfkd_reg(student),
    "tfkd_self": lambda student, teacher, example: limbeck.tfkd_self(student),
    "ban": lambda student, teacher, example: limbeck.ban(student, teacher, generations=2),
    "ban, cwtm and dkpp": lambda student, teacher, example: limbeck.ban(
        student, teacher, generations=1, soft=0.0, cwtm=1.0, dkpp=1.0
    ),
    "vid": lambda student, teacher, example: limbeck.vid(student, teacher, example=example),
    "ft": lambda student, teacher, example: limbeck.ft(student, teacher, paraphraser_share=0.25, example=example),
    "ofd": lambda student, teacher, example: limbeck.ofd(student, teacher, example=example),
    "weights": lambda student, teacher, example: limbeck.weights(student, teacher, example=example),
    "weights_outputs": lambda student, teacher, example: limbeck.weights_outputs(student, teacher, example=example),
    "embedding": lambda student, teacher, example: limbeck.embedding(student, teacher, squared=0.5, example=example),
    "embedding_table": lambda student, teacher, example: limbeck.embedding_table(Levels(student), Levels(teacher, 5)),
    "kpn": lambda student, teacher, example: limbeck.kpn(student, teacher, projection_share=0.5, example=example),
    "kd + crd": lambda student, teacher, example: (
        limbeck.kd(student, teacher)
        + limbeck.crd(student, teacher, memory=64, classes=torch.arange(64) % CLASSES, negatives=8, example=example)
    ),
    "vid + fitnets": lambda student, teacher, example: (
        limbeck.vid(student, teacher, example=example) + limbeck.fitnets(student, teacher, example=example)
    ),
}

# teachers are differentiated by their inputs, so their outputs are in the graph
BY_THEIR_INPUTS = {"gradient", "jacobian"}
# teachers are not run at all
BY_THEIR_WEIGHTS = {"weights"}

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")  # its teachers are untrained
every_row = pytest.mark.parametrize("name", ROWS)
CLASSES, SIZE, BATCH = 4, 8, 8


def values(batch: Batch) -> Tensor:
    """The classes of a batch as values: 1 for the class, 0 for the others, NaN where there is none."""
    rows = F.one_hot(batch[1].clamp(min=0), CLASSES).float()
    return rows.where(batch[1][:, None] >= 0, torch.nan)


VALUES = replace(regression, target=values)
PADDED = replace(classification, mask=lambda batch: batch[2] % 8 < 5)
"""Of each batch of eight the last three samples do not count: of two processes the second has one of them more."""


class Net(nn.Module):
    """A tiny convolutional network of two stages, with the in-place ReLUs that torchvision's have."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], dropout: float) -> None:
        super().__init__()
        self.layer1 = stage(3, width, 1, norm)
        self.layer2 = stage(width, 2 * width, 2, norm)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.layer2(self.layer1(x)).mean((2, 3))))


def stage(inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU(inplace=True))


def net(seed: int, width: int = 4, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, dropout: float = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width, norm, dropout)


def sequential(seed: int, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = [*stage(3, width, 1, nn.BatchNorm2d), *stage(width, 2 * width, 2, nn.BatchNorm2d)]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES))


def weak(student: nn.Module) -> nn.Module:
    """A teacher no larger than the student, and the same whatever the student's weights are."""
    teacher = copy.deepcopy(student)
    for p in teacher.parameters():
        nn.init.constant_(p, 0.1)
    return teacher


def networks(seed: int = 0, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A student, and a teacher that is wider and whose batch norm has seen something."""
    teacher = net(1, width=6, **options)
    for buffer in teacher.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1)
    return net(seed, **options), teacher


def batches(count: int, seed: int = 0) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, 3, SIZE, SIZE, generator=draw),
            torch.randint(CLASSES, (BATCH,), generator=draw),
            torch.arange(BATCH) + index * BATCH,
        )
        for index in range(count)
    ]


EXAMPLE = batches(1)[0][0]


def build(name: str, student: nn.Module, teacher: nn.Module, seed: int = 0) -> Built:
    torch.manual_seed(seed)  # of the adapters
    return ROWS[name](student, teacher, EXAMPLE)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.01, momentum=0.9)


def stages_of(built: Built) -> Iterator[Stage]:
    yield from [Stage(built)] if isinstance(built, Method) else built


def prepare(part: Stage) -> dict[str, torch.optim.Optimizer]:
    """Do what a stage asks for in a loop of one's own: its modes and its optimizers."""
    part.method.train(part.trains is None)
    for module in part.trains or ():
        module.train()
    return assign(parameters(part.method, part.trains), part.optimizer or sgd)


def train(built: Built, data: list[Batch]) -> list[dict[str, float]]:
    """Play every batch in every stage."""
    logs = []
    for part in stages_of(built):
        optimizers = prepare(part)
        logs += [play(part.method, batch, optimizers, index / len(data)) for index, batch in enumerate(data)]
    return logs


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def hooks(*nets: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for n in nets for m in n.modules()
    )


def teachers(method: Method) -> list[Frozen]:
    return [part for part in method.modules() if isinstance(part, Frozen)]


def own_parameters(method: Method, *users: nn.Module) -> dict[int, nn.Parameter]:
    """What the method brings along: adapters, critics."""
    theirs = {id(p) for user in users for p in [*user.parameters()]}
    shipped = {id(p) for network in method.networks().values() for p in network.parameters()}
    owned = (p for modules in method.players().values() for module in modules for p in module.parameters())
    return {id(p): p for p in owned if id(p) not in theirs | shipped}


# 1. any module, no edits


@every_row
def test_nothing_is_left_on_the_networks(name):
    student, teacher = networks()
    for part in stages_of(build(name, student, teacher)):
        optimizers = prepare(part)
        play(part.method, batches(1)[0], optimizers)
        assert hooks(student, teacher, part.method, *(frozen.net for frozen in teachers(part.method))) == 0
    twin = copy.deepcopy(student)
    assert identical(tensors(twin), tensors(student))
    before = tensors(student)
    twin.eval()(EXAMPLE).sum().backward()
    sgd(list(twin.parameters())).step()
    assert identical(tensors(student), before)


@every_row
def test_a_copied_method_is_independent_and_plays_alike(name):
    for part in stages_of(build(name, *networks())):
        twin = copy.deepcopy(part)
        before, batch = tensors(part.method), batches(1)[0]
        logs = play(twin.method, batch, prepare(twin))
        assert identical(tensors(part.method), before)
        assert play(part.method, batch, prepare(part)) == logs
        assert identical(tensors(part.method), tensors(twin.method))


@every_row
def test_sequential_networks(name):
    student = sequential(0)
    before = tensors(student)
    train(build(name, student, sequential(1, width=6)), batches(2))
    assert not identical(tensors(student), before)


@every_row
def test_a_student_compiled_before_its_first_call_trains_alike(name):
    """It runs compiled where no layer of it is recorded, and else as it was written: compiled code looks for no hooks."""
    torch._dynamo.reset()
    student, teacher = networks()
    twin = copy.deepcopy(student)
    expected = train(build(name, student, teacher), batches(2))
    compiled = torch.compile(twin, backend="eager")
    for got, wanted in zip(train(build(name, compiled, teacher), batches(2)), expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    for key, value in tensors(student).items():
        torch.testing.assert_close(twin.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()


# 2. adapters


@every_row
def test_adapters_are_trained_and_stay_behind(name):
    student, teacher = networks()
    keys = list(student.state_dict())
    for part in stages_of(build(name, student, teacher)):
        optimizers = prepare(part)
        adapters = own_parameters(part.method, student, teacher)
        before = {key: p.detach().clone() for key, p in adapters.items()}
        for batch in batches(2):
            play(part.method, batch, optimizers)
        assert all(not torch.equal(p, before[key]) for key, p in adapters.items())
        checkpoint = {value.data_ptr() for value in part.method.state_dict(keep_vars=True).values()}
        assert all(p.data_ptr() in checkpoint for p in adapters.values())
        assert list(student.state_dict()) == keys


# 4. numerics


@every_row
def test_large_inputs_stay_finite(name):
    student, teacher = networks()
    for part in stages_of(build(name, student, teacher)):
        inputs, targets, ids = batches(1)[0]
        play(part.method, (1e4 * inputs, targets, ids), prepare(part))  # raises where a loss is not finite
        grads = [p.grad for own in parameters(part.method, part.trains).values() for p in own if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)


@every_row
def test_a_batch_of_duplicates_has_finite_gradients(name):
    student, teacher = networks()
    for part in stages_of(build(name, student, teacher)):
        targets = torch.zeros(BATCH, dtype=torch.long)
        play(part.method, (torch.zeros(BATCH, 3, SIZE, SIZE), targets, torch.arange(BATCH)), prepare(part))
        assert all(p.isfinite().all() for p in part.method.parameters())


@every_row
def test_bfloat16_autocast_computes_losses_in_float32_close_to_float32(name):
    for part in stages_of(build(name, *networks())):
        twin, batch = copy.deepcopy(part), batches(1)[0]
        exact = play(twin.method, batch, prepare(twin))
        rounded = {}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for turn in descend(part.method, batch, prepare(part), 0.0, set()):
                assert {loss.value.dtype for loss in turn.terms.values()} == {torch.float32}
                rounded |= {f"{turn.player}/{term}": loss.value.item() for term, loss in turn.terms.items()}
        assert rounded == pytest.approx({key: exact[key] for key in rounded}, rel=0.1, abs=0.02)


# 5. the teacher


@every_row
def test_the_teacher_never_changes_and_always_is_in_eval_mode(name):
    student, teacher = networks()
    before, shown = tensors(teacher), []
    for part in stages_of(build(name, student, teacher)):
        for frozen in teachers(part.method):
            frozen.register_forward_hook(lambda module, _, output: shown.append((module, output)))
        optimizers, seen = prepare(part), [tensors(frozen.net) for frozen in teachers(part.method)]
        part.method.train()
        for batch in batches(2):
            play(part.method, batch, optimizers)
        assert all(identical(tensors(f.net), was) for f, was in zip(teachers(part.method), seen, strict=True))
        assert not any(m.training for frozen in teachers(part.method) for m in frozen.net.modules())
        assert len(shown) == (0 if name in BY_THEIR_WEIGHTS else 2) * len(teachers(part.method))
        assert name in BY_THEIR_INPUTS or not any(output.requires_grad for _, output in shown)
        shown.clear()
    assert identical(tensors(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())


@every_row
def test_the_teacher_is_in_nobodys_state(name):
    student, teacher = networks()
    storage = {value.data_ptr() for value in teacher.state_dict().values()}
    for part in stages_of(build(name, student, teacher)):
        views = {v.data_ptr() for frozen in teachers(part.method) for v in frozen.net.state_dict().values()}
        kept = [*part.method.state_dict().values(), *part.method.parameters(), *student.state_dict().values()]
        assert (storage | views).isdisjoint(value.data_ptr() for value in kept)


# 6. logs


@every_row
def test_every_term_is_logged_raw_and_weighted(name):
    for part in stages_of(build(name, *networks())):
        twin, batch = copy.deepcopy(part), batches(1)[0]
        logs = play(part.method, batch, prepare(part))
        turns: list[Turn] = list(descend(twin.method, batch, prepare(twin), 0.0, set()))
        for turn in turns:
            for term, loss in turn.terms.items():
                assert logs[f"{turn.player}/{term}"] == loss.value.item()
                assert logs[f"{turn.player}/{term}.weighted"] == pytest.approx(loss.weight * loss.value.item())
        assert len(logs) == sum(2 * len(turn.terms) for turn in turns) + len(turns)
        objectives = [part for part in part.method.modules() if isinstance(part, Objective)]
        configured = {
            name for one in objectives for name, (weight, _) in zip(one.names, one.entries, strict=True) if weight != 0
        }
        assert configured <= {term for turn in turns for term in turn.terms}


# 7. exact updates


@every_row
def test_playing_again_gives_the_same_weights(name):
    def once() -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        student, teacher = networks()
        return train(build(name, student, teacher), batches(3)), tensors(student)

    (logs, weights), (again, weights_again) = once(), once()
    assert logs == again
    assert identical(weights, weights_again)


# 10. nothing but what trains is changed


@every_row
def test_what_the_user_passes_in_keeps_its_state(name):
    student, teacher = networks()
    teacher.train()
    teacher.layer1.eval()
    teacher.fc.weight.grad = torch.ones_like(teacher.fc.weight)
    teacher.fc.bias.requires_grad_(False)
    teacher.fc.register_forward_hook(lambda *_: None)

    def state() -> tuple[Any, ...]:
        return (
            [m.training for m in teacher.modules()],
            [p.requires_grad for p in teacher.parameters()],
            hooks(teacher),
            teacher.fc.weight.grad.sum().item(),
            sum(p.grad is not None for p in teacher.parameters()),
        )

    before, weights, example = state(), tensors(teacher), EXAMPLE.clone()
    train(build(name, student, teacher), batches(2))
    assert state() == before
    assert identical(tensors(teacher), weights)
    assert torch.equal(EXAMPLE, example)


@every_row
def test_building_draws_nothing_but_first_weights(name):
    student, teacher = networks()
    student.train()
    student.fc.eval()
    modes, weights = [m.training for m in student.modules()], tensors(student)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    part = next(stages_of(ROWS[name](student, teacher, EXAMPLE)))
    theirs = {id(p) for user in (student, teacher) for p in user.parameters()}
    trained = [p for modules in part.method.players().values() for module in modules for p in module.parameters()]
    fresh = any(id(p) not in theirs for p in trained) or not identical(tensors(student), weights)
    assert torch.equal(torch.get_rng_state(), before) or fresh
    assert [m.training for m in student.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    if not name.startswith("ban"):  # every generation starts anew
        assert identical(tensors(student), weights)


# the accelerator, without one: fake tensors know their device and have no values, so that a tensor that was left on the CPU
# is an error, and so is a step that waits to see a value


# what they cannot do: derivatives inside a loss, for which autograd asks the driver, and a generator on the device
NEEDS_A_DRIVER = {"gradient", "jacobian", "crd", "crd, queue", "kd + crd", "ban, cwtm and dkpp"}


def send_to_fake_gpu(methods: list[Method], mode: FakeTensorMode) -> None:
    """Put in place of each parameter and buffer one on a GPU that is not there; what was shared still is."""
    sent: dict[int, tuple[Tensor, Tensor]] = {}  # by its id, which stays its own as long as it is kept

    def send(value: Tensor) -> Tensor:
        if id(value) not in sent and not isinstance(value, FakeTensor):
            with mode:
                fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            leaf = nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake
            sent[id(value)] = leaf, value
        return sent[id(value)][0] if id(value) in sent else value

    users = [*methods, *(network for method in methods for network in method.networks().values())]
    frozen = [part.net for user in users for part in user.modules() if isinstance(part, Frozen)]
    for net in [*users, *frozen]:
        for module in net.modules():
            for own in (module._parameters, module._buffers):
                own.update({key: send(value) for key, value in own.items() if value is not None})


@pytest.mark.parametrize("name", [name for name in ROWS if name not in NEEDS_A_DRIVER])
def test_a_step_stays_on_its_device_and_never_waits_for_it(name):
    parts, mode = list(stages_of(build(name, *networks()))), FakeTensorMode()
    send_to_fake_gpu([part.method for part in parts], mode)
    for part in parts:
        part.method.train()
        with mode:
            batch = tuple(torch.empty_like(value, device="cuda") for value in batches(1)[0])
            turn = next(iter(part.method.step(batch, 0.0)))
            assert {loss.value.device.type for loss in turn.terms.values()} == {"cuda"}


def test_what_stays_behind_or_waits_is_found():
    def halves(student: Tensor) -> Tensor:
        return (student * torch.tensor([0.5] * CLASSES)).sum()  # a constant of the CPU's

    def waits(student: Tensor) -> Tensor:
        return student.sum() if student.sum() > 0 else -student.sum()

    for loss, error, message in (
        (halves, RuntimeError, "same device|found two different devices"),
        (waits, DataDependentOutputException, "_local_scalar_dense"),
    ):
        method, mode = Distill(net(0), None, on(loss, S)), FakeTensorMode()
        send_to_fake_gpu([method], mode)
        with mode, pytest.raises(error, match=message):
            next(iter(method.step((torch.empty(BATCH, 3, SIZE, SIZE, device="cuda"), torch.empty(0)), 0.0)))


# the engine

EPOCHS, PER_EPOCH = 4, 5


class Served:
    """A loader that is always the same, and in which something happens before one of its batches."""

    def __init__(self, count: int = PER_EPOCH, at: int = 0, happens: Callable[[], None] = lambda: None) -> None:
        self.data, self.served, self.at, self.happens = batches(count), 0, at, happens

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.data:
            self.served += 1
            if self.served == self.at:
                self.happens()
            yield batch


class PowerCutError(Exception):
    """Nothing was saved."""


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def power_cut() -> None:
    raise PowerCutError


def fit(built: Built, train: Any, **options: Any) -> limbeck.Result:
    settings = {"epochs": EPOCHS, "optimizer": sgd, "accelerator": "cpu", "progress": False, **options}
    return limbeck.fit(built, (train, batches(1, seed=9)), **settings)


def share_of_epochs(built: Built) -> Iterator[tuple[Stage, int]]:
    """Each stage with its epochs: the share, rounded."""
    done, share = 0, 0.0
    for part in stages_of(built):
        share += part.share
        upto = round(EPOCHS * share)
        yield part, upto - done
        done = upto


fitted: dict[str, dict[str, Tensor]] = {}


def fitted_weights(name: str) -> dict[str, Tensor]:
    """The student after an undisturbed `fit`, which two rules compare with."""
    if name not in fitted:
        student, teacher = networks(dropout=0.2)
        before = tensors(teacher)
        assert fit(build(name, student, teacher), Served()).finished
        assert identical(tensors(teacher), before)
        assert hooks(student, teacher) == 0
        fitted[name] = tensors(student)
    return fitted[name]


@every_row
def test_fit_is_play(name):
    student, teacher = networks(dropout=0.2)
    built = build(name, student, teacher)
    torch.manual_seed(0)  # as fit does
    for part, epochs in share_of_epochs(built):
        optimizers, total = prepare(part), epochs * PER_EPOCH
        for step in range(total):
            play(part.method, batches(PER_EPOCH)[step % PER_EPOCH], optimizers, step / total)
    assert identical(tensors(student), fitted_weights(name))


@every_row
def test_resume_is_exact_in_the_middle_of_every_stage(name, tmp_path):
    """Each session starts from other weights: Ctrl-C in epoch 2; a power cut, then Ctrl-C in epoch 3, maybe stage 2."""
    sessions = [(7, ctrl_c, 1), (9, power_cut, None), (4, ctrl_c, 2), (0, ctrl_c, EPOCHS)]
    for session, (at, happens, epochs) in enumerate(sessions):
        student, teacher = networks(seed=10 * session, dropout=0.2)
        built = build(name, student, teacher, seed=session)
        if session == 0:
            student.load_state_dict(networks()[0].state_dict())
        loader = Served(at=at, happens=happens)
        if epochs is None:
            with pytest.raises(PowerCutError):
                fit(built, loader, run_dir=tmp_path / "run", resume=True)
        else:
            result = fit(built, loader, run_dir=tmp_path / "run", resume=session > 0)
            assert len(result.history) == epochs
            assert result.finished == (epochs == EPOCHS)
    assert identical(tensors(student), fitted_weights(name))


class Interrupting(nn.Dropout):
    """A dropout that sends Ctrl-C in one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__(0.3)
        self.calls, self.at = 0, at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            ctrl_c()
        return super().forward(x)


def test_resume_is_exact_with_shuffling_augmentation_dropout_and_a_schedule(tmp_path):
    def session(interrupt_at: int, run: str, **options: Any) -> tuple[bool, dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(256, (45, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
        noise = {"augment": [limbeck.data.augment.PadCrop(1), limbeck.data.augment.Flip()], "shuffle": True}
        pixels = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
        loader = limbeck.data.Loader(images, torch.arange(45) % CLASSES, batch_size=BATCH, **pixels, **noise)
        student, teacher = networks()
        student.layer2.append(Interrupting(interrupt_at))
        result = limbeck.fit(
            limbeck.kd(student, teacher),
            (loader, batches(1)),
            epochs=3,
            optimizer=torch.optim.Adam,
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
            accelerator="cpu",
            progress=False,
            accumulate=2,
            clip=1.0,
            run_dir=tmp_path / run,
            **options,
        )
        return result.finished, tensors(student)

    finished, whole = session(0, "whole")
    assert finished
    assert not session(9, "parts")[0]
    assert not session(3, "parts", resume=True)[0]
    finished, parts = session(0, "parts", resume=True)
    assert finished
    assert identical(parts, whole)


class Sparse(Served):
    """A loader whose samples mostly have no label: one in the first half of a batch, three in the second, or none."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        labelled = torch.tensor([False, True, False, False, True, True, False, True])
        self.data = [
            (x, y.where(labelled if index < count - 1 else torch.tensor(False), limbeck.core.task.UNLABELLED), ids)
            for index, (x, y, ids) in enumerate(self.data)
        ]


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


STRATEGIES = ("ddp", "fsdp2")
"""Each process has all weights, or a share of them."""


def weights_after(name: str, **where: Any) -> dict[str, Tensor]:
    student, teacher = networks(norm=group_norm)  # the statistics of batch norm are each process's own
    fit(build(name, student, teacher), Sparse(), epochs=2, **where)
    return tensors(student)


def work(rank: int, port: int, results: Queue) -> None:
    """Train every row as one of two processes, which Lightning finds started as by torchrun."""
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "contract"}
    os.environ |= {key: str(value) for key, value in {**world, **place}.items()}
    torch.set_num_threads(1)
    for name, strategy in product(ROWS, STRATEGIES):
        weights = weights_after(name, devices=2, strategy=strategy)
        results.put(((name, strategy), {key: value.numpy() for key, value in weights.items()}))


Outcome = dict[tuple[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def of_two_processes(together) -> Outcome:
    """The student of each row and strategy, as each of the two has it."""
    outcome: Outcome = {case: [] for case in product(ROWS, STRATEGIES)}
    for case, weights in together(work, 2 * len(outcome)):
        outcome[case].append(weights)
    return outcome


@pytest.fixture(scope="module")
def of_one_process() -> Callable[[str], dict[str, Tensor]]:
    """The student of a row, which both strategies are compared with."""
    return cache(weights_after)


def assert_alike(several: list[dict[str, Any]], alone: dict[str, Tensor]) -> None:
    assert len(several) == 2
    for weights in several:
        for key, value in alone.items():
            torch.testing.assert_close(torch.from_numpy(weights[key]), value, rtol=1e-5, atol=ROUNDING)


# 1e-7 for most. A correlation of nearly equal probabilities makes a hundred of each, dist's: to begin with weights that
# differ by 1e-7 of themselves moves a single process's by 1e-5 too
ROUNDING = 2e-5


@every_row
def test_two_processes_equal_one_with_missing_labels(name, of_two_processes, of_one_process):
    assert_alike(of_two_processes[name, "ddp"], of_one_process(name))


@every_row
def test_two_processes_that_share_weights_equal_one_with_missing_labels(name, of_two_processes, of_one_process):
    assert_alike(of_two_processes[name, "fsdp2"], of_one_process(name))


RELATIONS = {
    "dist": "intra",
    "rkd": "distance",
    "sp": "similarity.layer2",
    "cc": "correlation",
    "pkt": "probability",
    "ban, cwtm and dkpp": "cwtm",
}
"""Rows that compare the samples of a batch with each other, and the first term that does."""


@pytest.mark.parametrize("name", RELATIONS)
def test_accumulation_is_refused_where_samples_are_compared(name):
    with pytest.raises(ValueError, match=f"accumulate=2: the term '{RELATIONS[name]}' compares the samples"):
        fit(build(name, *networks()), Served(), accumulate=2)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in RELATIONS])
def test_accumulation_is_refused_nowhere_else(name):
    for part in stages_of(build(name, *networks())):
        refuse_parts_of_relations(part.method, accumulate=2)


COMPARES_SAMPLES = {
    **dict.fromkeys(RELATIONS, "relations"),
    "crd": "draws negatives from memories that every batch changes",
    "crd, queue": "the same",
    "kd + crd": "the same",
    "adversarial": "the critic has moved when the second batch is played",
    "dml": "the first peer has moved when the second is to",
    "mgd": "draws a mask for each batch",
    "jacobian": "draws signs for each batch",
    **dict.fromkeys(
        ["ab", "ofd", "review", "byot", "one", "kpn", "vid + fitnets"], "connectors normalise by the batch"
    ),
}
"""Methods whose loss of a batch is no mean over its samples, and why."""


@pytest.mark.filterwarnings("ignore::limbeck.NoEffectWarning")  # what is 1e-16 by rounding in one is 0 in the other
@pytest.mark.parametrize("name", [name for name in ROWS if name not in COMPARES_SAMPLES])
def test_accumulation_equals_the_large_batch_with_missing_labels(name):
    """Four batches of two samples, of which one has no label and one has two, train as one of eight."""

    def weights(data: list[Batch], accumulate: int) -> dict[str, Tensor]:
        student, teacher = networks(norm=group_norm)
        limbeck.fit(
            build(name, student, teacher),
            (data, batches(1, seed=9)),
            epochs=2,
            accumulate=accumulate,
            optimizer=sgd,
            accelerator="cpu",
            progress=False,
        )
        return tensors(student)

    large = Sparse().data[:1]
    small = [tuple(column[at : at + 2] for column in large[0]) for at in range(0, BATCH, 2)]
    whole = weights(large, 1)
    for key, value in weights(small, 4).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-6)


def test_a_term_without_gradient_warns():
    follow = classification.hard + on(lambda z: z.detach().mean(), S, name="nothing")
    with pytest.warns(limbeck.NoEffectWarning, match="nothing"):
        fit(limbeck.Distill(net(0), None, follow), Served(), epochs=1)


def test_a_term_that_never_runs_is_refused():
    follow = classification.hard + (lambda progress: 0.0) * on(torch.mean, S, name="nothing")
    with pytest.raises(ValueError, match="nothing"):
        fit(limbeck.Distill(net(0), None, follow), Served(), epochs=1)
