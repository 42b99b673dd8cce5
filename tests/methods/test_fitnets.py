from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from method_toys import (
    CLASSES,
    assert_finite,
    assert_full_precision,
    assert_same,
    batches,
    convnet,
    images,
    normal,
    sgd,
    state,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage
from limbeck.losses import hint

EXAMPLE = images()[0]


def optimizers_of(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    return assign(parameters(stage.method, stage.trains), sgd)


def still(own: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(own, 0.0)


def both_stages(student: nn.Module, teacher: nn.Module, **options: object) -> tuple[Stage, Stage]:
    first, second = limbeck.fitnets(student, teacher, **{"example": EXAMPLE, "hint": "one", "guided": "one"} | options)
    return first, second


def test_formulas_of_the_hint() -> None:
    h_s, h_t = normal(3, 2, 2, 4, seed=1), normal(3, 2, 2, 4, seed=2)
    squares = [(a - b).item() ** 2 for a, b in zip(h_s.flatten(), h_t.flatten(), strict=True)]
    assert hint(h_s, h_t).item() == pytest.approx(sum(squares) / 48, rel=1e-12)
    assert hint(h_s, h_t, reduction="paper").item() == pytest.approx(0.5 * sum(squares) / 3, rel=1e-12)


def test_by_hand() -> None:
    h_s, h_t = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, -1.0]])
    assert hint(h_s, h_t).item() == (4 + 9 + 1) / 4
    assert hint(h_s, h_t, reduction="paper").item() == (4 / 2 + (9 + 1) / 2) / 2


def test_numerics_of_the_hint() -> None:
    assert_finite(hint, normal(3, 2, 4, 4, seed=1, scale=1e4), normal(3, 2, 4, 4, seed=2, scale=1e4))
    assert_finite(hint, torch.zeros(3, 2), torch.zeros(3, 2))
    assert_full_precision(hint, normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2))


def test_invalid_hints() -> None:
    with pytest.raises(ValueError, match=r"hint and regressed guided layer: .* got \(3, 2\) and \(1, 2\)"):
        hint(normal(3, 2), normal(1, 2))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'paper', got 'sum'"):
        hint(normal(3, 2), normal(3, 2), reduction="sum")


@pytest.mark.parametrize("reduction", ["paper", "mean"])
def test_stage_1_is_the_loop_on_the_hint(reduction: str) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    stage, _ = both_stages(student, teacher, reduction=reduction)
    stage.method.double()
    (regressor,) = stage.method.objective.terms[0].adapters
    conv = nn.Conv2d(4, 6, 1).double()
    conv.load_state_dict(regressor[0].state_dict())
    assert isinstance(regressor[1], nn.ReLU)  # as the hint ends

    optimizers, optimizer = optimizers_of(stage), sgd([*loop.one.parameters(), *conv.parameters()])
    for x, _ in batches(3, images):
        limbeck.play(stage.method, (x, None), optimizers)  # no labels
        optimizer.zero_grad()
        error = (conv(loop.one(x)).relu() - teacher.one(x).detach()).square()
        (error.mean() if reduction == "mean" else 0.5 * error.sum() / len(x)).backward()
        optimizer.step()
    assert_same(state(student.one), state(loop.one))
    assert_same(state(regressor[0]), state(conv))


def test_stage_1_trains_nothing_above_the_guided_layer() -> None:
    student = convnet(0)
    before = state(student)
    stage, _ = both_stages(student, convnet(1))
    optimizers = optimizers_of(stage)
    for batch in batches(2, images):
        limbeck.play(stage.method.double(), batch, optimizers)
    trained = {
        name for name, _ in student.named_parameters() if not torch.equal(student.get_parameter(name), before[name])
    }
    assert trained == {name for name, _ in student.named_parameters() if name.startswith("one.")}


def test_stage_1_trains_what_the_guided_layer_is_inside_of() -> None:
    first, _ = both_stages(student := convnet(0), convnet(1), guided="two.0", hint="two.0")
    trained = {id(p) for p in parameters(first.method, first.trains)["student"]}
    expected = {*student.one.parameters(), *student.two[0].parameters(), *first.method.objective.parameters()}
    assert trained == {id(p) for p in expected}


class Tokens(nn.Module):
    """A class token and a position embedding, two blocks, of which the first is called once more, and a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.embed = nn.Linear(6, width)
        self.first = nn.ParameterDict({"token": torch.randn(1, 1, width), "unused": torch.randn(1)})
        self.position, self.scale = nn.Parameter(torch.randn(1, 4, width)), nn.Parameter(torch.ones(width))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first["token"].expand(len(x), 1, -1), self.embed(x)], 1) + self.position
        x = self.blocks[1](self.blocks[0](x))
        return self.fc(self.blocks[0](x * self.scale).mean(1))


def test_stage_1_trains_what_no_layer_before_the_guided_one_owns() -> None:
    student, x = Tokens(4).double(), normal(5, 3, 6)
    teacher = Tokens(5).double().eval()
    first, _ = both_stages(student, teacher, guided="blocks.1", hint="blocks.1", example=x)
    before = state(student)
    own = parameters(first.method, first.trains)["student"]
    assert len(own) == len({id(p) for p in own})
    limbeck.play(first.method.double(), (x, None), optimizers_of(first))
    moved = {name for name, value in student.named_parameters() if not torch.equal(value, before[name])}
    kept = {"scale", "first.unused", "fc.weight", "fc.bias"}  # these come later, or nowhere
    assert moved == before.keys() - kept
    assert {id(student.get_parameter(name)) for name in moved} == {id(p) for p in own} - {
        id(p) for p in first.method.objective.parameters()
    }


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)])
def test_stage_2_is_the_loop_with_a_decaying_soft_term(progress: float, weight: float) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    _, stage = both_stages(student, teacher)
    optimizers, optimizer = optimizers_of(stage), sgd(list(loop.parameters()))
    for x, y in batches(3, images):
        limbeck.play(stage.method, (x, y), optimizers, progress)
        optimizer.zero_grad()
        z_s, p_t = loop(x), F.softmax(teacher(x).detach() / 3, -1)
        soft = -(p_t * F.log_softmax(z_s / 3, -1)).sum(-1).mean()  # T = 3, and no T²
        (F.cross_entropy(z_s, y) + weight * soft).backward()
        optimizer.step()
    torch.testing.assert_close(state(student), state(loop), rtol=1e-12, atol=1e-12)


def test_stage_2_follows_its_options() -> None:
    teacher, (x, y) = convnet(1).eval(), images()
    student = convnet(0)
    _, stage = both_stages(student, teacher, temperature=2.0, soft=(6.0, 0.0))
    soft = next(iter(stage.method.step((x, y), 0.5))).terms["soft"]
    naive = -(F.softmax(teacher(x) / 2, -1) * F.log_softmax(student(x) / 2, -1)).sum(-1).mean()
    assert soft.weighted.item() == pytest.approx(3 * naive.item(), rel=1e-9)
    assert "soft" not in next(iter(stage.method.step((x, y), 1.0))).terms


def test_the_epochs_are_shared() -> None:
    first, second = both_stages(convnet(0), convnet(1), hint_share=0.25)
    assert (first.name, first.share, second.name, second.share) == ("hint", 0.25, "knowledge", 0.75)
    assert second.trains is None


def test_the_regressor_stays_behind() -> None:
    student = convnet(0)
    first, second = both_stages(student, convnet(1, width=6))
    assert first.method.networks() == second.method.networks() == {"student": student}
    assert state(student).keys() == state(convnet(0)).keys()


def test_the_regressor_takes_one_grid_to_the_other() -> None:
    first, _ = both_stages(convnet(0), convnet(1, width=6), guided="one", hint="two")
    (regressor,) = first.method.objective.terms[0].adapters
    assert regressor[0].weight.shape == (12, 4, 5, 5)  # 8 - 4 + 1
    assert regressor[0].weight.abs().max() <= 0.05
    assert limbeck.play(first.method.double(), images(), optimizers_of(first))["student/hint"] > 0


def test_an_unrectified_hint_has_a_linear_regressor() -> None:
    student, teacher, (x, _) = convnet(0), convnet(1, width=6), images()
    first, _ = both_stages(student, teacher, guided="one.0", hint="one.0")
    logs = limbeck.play(first.method.double(), (x, None), assign(parameters(first.method), still))
    weight, bias = first.method.objective.parameters()
    regressed = torch.einsum("oc,nchw->nohw", weight.flatten(1), student.one[0](x)) + bias[:, None, None]
    target = teacher.one[0](x)
    assert (regressed < 0).any()  # as the hint is
    assert logs["student/hint"] == pytest.approx((regressed - target).square().mean().item(), rel=1e-6)


def test_the_middle_pair_is_found() -> None:
    def deep(width: int) -> nn.Module:
        sizes = [6, width, width, width, CLASSES]
        blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        return nn.Sequential(*blocks).double()

    first = next(limbeck.fitnets(deep(7), deep(9), example=normal(4, 6)))
    (term,) = first.method.objective.terms
    assert [source.path for source in term.sources] == ["2.0:in", "2.0:in"]  # of 1.0:in, 2.0:in, 3.0:in


def test_the_example_changes_nobody() -> None:
    student, teacher = convnet(0).train(), convnet(1).train()
    before = state(student), state(teacher)
    both_stages(student, teacher)
    assert student.training
    assert teacher.training
    assert_same(state(student), before[0])
    assert_same(state(teacher), before[1])


def test_a_task_that_reads_its_batch_its_own_way() -> None:
    def inputs(batch: dict[str, Tensor]) -> Tensor:
        return batch["pixels"]

    task = limbeck.Task(inputs=inputs, target=lambda batch: batch["answers"])
    first, _ = both_stages(convnet(0), convnet(1), task=task)
    x, y = images()
    logs = limbeck.play(first.method.double(), {"pixels": x, "answers": y}, optimizers_of(first))
    assert logs["student/hint"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guided": "two", "hint": "one"}, "at least as large as the hint's"),
        ({"guided": "fc", "hint": "one"}, "layers of the same kind"),
        ({"guided": "ones"}, "has no layer 'ones'; the closest are"),
        ({"hint_share": 1.0}, r"hint_share must be in \(0, 1\), got 1.0"),
        ({"hint_share": 0.0}, r"hint_share must be in \(0, 1\), got 0.0"),
        ({"temperature": 0.0}, r"temperature must be in \(0, 1000\], got 0.0"),
    ],
)
def test_what_is_invalid_fails_before_anything_trains(options: dict[str, object], message: str) -> None:
    options = {"example": EXAMPLE, "hint": "one", "guided": "one"} | options
    with pytest.raises(ValueError, match=message):
        next(limbeck.fitnets(convnet(0), convnet(1), **options))
