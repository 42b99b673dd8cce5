"""Each method on several labels a sample and on values: it trains, or says before in words what to take instead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import limbeck
from limbeck import Method, Stage, Task, methods, multilabel, regression
from limbeck.core.method import assign, parameters, play
from limbeck.engine.assemble import assemble

OUTPUTS, BATCH = 5, 8
SOFTEN = {"ab", "ban", "byot", "dekd", "dml", "fitnets", "kd", "one", "rekd", "takd", "tfkd_self"}
ONE_CLASS = {"adversarial", "dist", "dkd", "gradient", "jacobian", "ls", "tfkd_reg"}
VALUES = {"bounded"}
EITHER = {
    "at",
    "cc",
    "crd",
    "cwd",
    "embedding",
    "embedding_table",
    "fsp",
    "ft",
    "kpn",
    "logits",
    "mgd",
    "mimic",
    "nst",
    "ofd",
    "pkt",
    "plain",
    "review",
    "rkd",
    "sp",
    "vid",
    "weights",
    "weights_outputs",
}


def net(width: int, seed: int = 0) -> nn.Module:
    """Maps of 8x8 and 4x4, widths that are not the number of outputs, and a table in front."""
    torch.manual_seed(seed)

    def block(channels: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    return nn.Sequential(
        OrderedDict(
            one=block(3, width, 1),
            two=block(width, 2 * width, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(2 * width, OUTPUTS),
        )
    )


class Levels(nn.Module):
    """Looks levels of pixels up in a table."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(16, dimensions), nn.Linear(dimensions, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.embed((4 * x[:, 0].clamp(-1.9, 1.9) + 8).long()).mean((1, 2)))


def built(name: str, task: Task) -> Method | Any:
    """The method by its name, with the teacher and the options that it needs."""
    networks: dict[str, Callable[[], Any]] = {
        "dml": lambda: [net(6, 1)],
        "fsp": lambda: net(4, 1),
        "rekd": lambda: net(3, 1),
        "embedding_table": lambda: Levels(7),
        **dict.fromkeys(("plain", "ls", "one", "byot", "tfkd_reg", "tfkd_self"), lambda: None),
    }
    options: dict[str, dict[str, Any]] = {"takd": {"assistants": net(5, 2)}, "crd": {"queue": 16}}
    student = Levels(3) if name == "embedding_table" else net(4)
    teacher = networks.get(name, lambda: net(6, 1))()
    return assemble(name, student, teacher, batch(task)[0], options.get(name, {}), task=task)


def batch(task: Task, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    inputs, values = torch.randn(BATCH, 3, 8, 8, generator=draw), torch.randn(BATCH, OUTPUTS, generator=draw)
    return inputs, (values > 0).float() if task is multilabel else values, torch.arange(BATCH)


class Softmaxes(TorchDispatchMode):
    """Counts those over all outputs of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.over_outputs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "softmax" in str(func) and "backward" not in str(func):
            self.over_outputs += args[0].shape == (BATCH, OUTPUTS)
        return func(*args, **(kwargs or {}))


def trained(name: str, task: Task) -> tuple[bool, Softmaxes]:
    """Play two batches of each stage; whether the student moved."""
    method, moved = built(name, task), False
    with Softmaxes() as softmaxes:
        for stage in [Stage(method)] if isinstance(method, Method) else method:
            before = {key: p.detach().clone() for key, p in stage.method.named_parameters()}
            optimizers = assign(parameters(stage.method, stage.trains), lambda own: torch.optim.SGD(own, 0.01))
            for seed in range(2):
                play(stage.method, batch(task, seed), optimizers)  # raises where a term is not finite
            moved = any(not torch.equal(p, before[key]) for key, p in stage.method.named_parameters())
    return moved, softmaxes


def test_a_softmax_over_all_outputs_is_seen() -> None:
    with Softmaxes() as softmaxes:
        torch.zeros(BATCH, OUTPUTS).softmax(-1)
        torch.zeros(BATCH, OUTPUTS).log_softmax(-1)
        torch.zeros(BATCH, OUTPUTS, 2).softmax(-1)
    assert softmaxes.over_outputs == 2


def test_the_table_has_every_method_once() -> None:
    assert sorted([*SOFTEN, *ONE_CLASS, *VALUES, *EITHER]) == sorted(methods.__all__)


@pytest.mark.parametrize("name", sorted(EITHER))
@pytest.mark.parametrize("task", [multilabel, regression], ids=lambda task: task.name)
def test_it_works_with_labels_and_values(name: str, task: Task) -> None:
    moved, softmaxes = trained(name, task)
    assert moved
    assert not softmaxes.over_outputs


@pytest.mark.parametrize("name", sorted(SOFTEN))
def test_it_softens_labels_one_by_one_and_refuses_values(name: str) -> None:
    moved, softmaxes = trained(name, multilabel)
    assert moved
    assert not softmaxes.over_outputs
    with pytest.raises(ValueError, match=r"no probabilities to soften in regression: .*\(logits, bounded\)"):
        made(name, regression)


@pytest.mark.parametrize("name", sorted(ONE_CLASS))
@pytest.mark.parametrize("task", [multilabel, regression], ids=lambda task: task.name)
def test_it_needs_one_class(name: str, task: Task) -> None:
    with pytest.raises(ValueError, match=f"needs one class a sample, and in {task.name} there is none: kd works with"):
        made(name, task)


def test_bounded_needs_values() -> None:
    assert trained("bounded", regression)[0]
    with pytest.raises(ValueError, match="in multilabel answers are scores: kd softens them"):
        made("bounded", multilabel)


def made(name: str, task: Task) -> None:
    """Make the method: if it has stages, as far as the first, which is not trained."""
    method = built(name, task)
    if not isinstance(method, Method):
        next(iter(method))


@pytest.mark.parametrize("options", [{"cwtm": 1.0}, {"dkpp": 1.0}])
def test_bans_controls_need_one_class(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs one class a sample, and in multilabel"):
        next(limbeck.ban(net(4), soft=0.0, task=multilabel, **options))


def test_bans_generations_vote_by_their_logits_where_no_class_excludes_another() -> None:
    x = batch(multilabel)[0]
    for task in (multilabel, limbeck.classification):
        *_, last = limbeck.ban(net(4), net(4, 1), generations=2, task=task)
        networks = last.method.eval().networks()
        z = torch.stack([networks["generation-1"](x), networks["student"](x)])
        voted = z.mean(0) if task is multilabel else z.softmax(-1).mean(0).log()
        torch.testing.assert_close(networks["ensemble"](x).log_softmax(-1), voted.log_softmax(-1))
        if task is multilabel:
            torch.testing.assert_close(networks["ensemble"](x), voted)


def test_byots_exits_are_sure_of_one_class_alone() -> None:
    with_one = limbeck.byot(net(4), example=batch(multilabel)[0]).networks()
    with_several = limbeck.byot(net(4), example=batch(multilabel)[0], task=multilabel).networks()
    assert [*with_one] == [*with_several, "early-exit"]


def test_the_other_jacobians_need_no_label() -> None:
    """As the docstring of ``label`` says."""
    for task in (multilabel, regression):
        method = limbeck.jacobian(net(4), net(6, 1), label=0, projection=0.01, task=task)
        logs = play(method, batch(task), limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))
        assert logs["student/projection"] > 0
