from __future__ import annotations

import pytest
import torch
from method_toys import (
    assert_finite,
    assert_full_precision,
    batches,
    convnet,
    gradient,
    images,
    normal,
    sgd,
    state,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import zoo
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage
from limbeck.losses import activation_boundary
from limbeck.nets.connectors import normalised

EXAMPLE = images()[0]


def optimizers_of(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    return assign(parameters(stage.method, stage.trains), sgd)


def both_stages(student: nn.Module, teacher: nn.Module, **options: object) -> tuple[Stage, Stage]:
    first, second = limbeck.ab(student, teacher, **{"example": EXAMPLE} | options)
    return first, second


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_formula(margin: float) -> None:
    s, t = normal(3, 5, 2, 4, seed=1), normal(3, 5, 2, 4, seed=2)
    t[0, 0] = 0  # not active
    total = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        if b > 0 and a < margin:
            total += (margin - a) ** 2
        if b <= 0 and a > -margin:
            total += (a + margin) ** 2
    assert activation_boundary(s, t, margin).item() == pytest.approx(total / 3, rel=1e-12)


def test_by_hand() -> None:
    # active: (1 − 0.25)² and, beyond the margin, 0; not active: (1 + 0.5)², 0 and, at 0, (1 + 0)²
    s = torch.tensor([[0.25, 2.0, 0.5], [-1.0, 0.0, 3.0]])
    t = torch.tensor([[9.0, 0.1, -0.1], [-5.0, 0.0, 1.0]])
    assert activation_boundary(s, t).item() == (0.75**2 + 1.5**2 + 1) / 2


def test_it_is_zero_just_where_the_margin_is_met() -> None:
    t = normal(3, 5, 4, 4)
    met = torch.where(t > 0, 1.0, -1.0).double()
    assert activation_boundary(met, t).item() == 0
    assert activation_boundary(7 * met, t).item() == 0
    assert not gradient(activation_boundary, met, t).any()
    assert activation_boundary(0.99 * met, t).item() > 0


def test_the_teachers_strength_does_not_matter() -> None:
    s, t = normal(3, 5, 4, 4, seed=1), normal(3, 5, 4, 4, seed=2)
    value = activation_boundary(s, t)
    assert torch.equal(activation_boundary(s, 100 * t), value)
    assert torch.equal(activation_boundary(s, t.relu()), value)  # so it may be read after a ReLU
    assert torch.equal(activation_boundary(-s, -t), value)


def test_gradient_is_that_of_differences() -> None:
    s, t = normal(2, 4, 3, 3, seed=1), normal(2, 4, 3, 3, seed=2)
    assert torch.autograd.gradcheck(lambda x: activation_boundary(x, t, 0.7), s.requires_grad_())


def test_numerics() -> None:
    s, t = normal(3, 5, 4, 4, seed=1), normal(3, 5, 4, 4, seed=2)
    assert_finite(activation_boundary, 1e4 * s, 1e4 * t)
    assert_finite(activation_boundary, torch.zeros(3, 5, 4, 4), t)
    assert_finite(activation_boundary, s, torch.zeros(3, 5, 4, 4))
    assert_finite(activation_boundary, t, t)
    assert_finite(activation_boundary, s[[0, 0, 0]], t[[0, 0, 0]])
    assert_finite(activation_boundary, s[:1], t[:1])
    assert_full_precision(activation_boundary, 300 * s, t)


def test_invalid_responses() -> None:
    with pytest.raises(ValueError, match=r"responses: .* got \(3, 5\) and \(3, 1\)"):
        activation_boundary(normal(3, 5), normal(3, 1))
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        activation_boundary(normal(3, 5), normal(3, 5), 0)


def test_stage_1_is_the_loop_on_responses_before_their_activation() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    first, second = both_stages(student, teacher, boundary=0.04, margin=0.5, init_share=0.25)
    assert (first.name, first.share, second.name, second.share) == ("boundaries", 0.25, "knowledge", 0.75)
    assert first.method.objective.names == ["boundary.one", "boundary.two"]
    assert first.method.objective.weights == [0.02, 0.04]
    first.method.double()
    connectors = [normalised(4, 6).double(), normalised(8, 12).double()]
    for own, term in zip(connectors, first.method.objective.terms, strict=True):
        own.load_state_dict(term.adapters[0].state_dict())

    optimizers = optimizers_of(first)
    optimizer = sgd([p for net in (loop, *connectors) for p in net.parameters()])
    for x, _ in batches(3, images):
        logs = limbeck.play(first.method, (x, None), optimizers)  # no labels
        optimizer.zero_grad()
        s_one = loop.one[:2](x)
        s_two = loop.two[:2](s_one.relu())
        t_one = teacher.one[:2](x).detach()
        t_two = teacher.two[:2](t_one.relu()).detach()
        terms = [
            activation_boundary(connectors[0](s_one), t_one, 0.5),
            activation_boundary(connectors[1](s_two), t_two, 0.5),
        ]
        (0.02 * terms[0] + 0.04 * terms[1]).backward()
        optimizer.step()
        assert logs["student/boundary.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)
    assert torch.equal(student.fc.weight, convnet(0).fc.weight)  # no boundary lies there


@pytest.mark.parametrize(("soft", "hard"), [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_stage_2_is_the_loop_on_soft_targets(soft: float, hard: float) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    _, second = both_stages(student, teacher, temperature=2.0, soft=soft, hard=hard)
    optimizers, optimizer = optimizers_of(second), sgd(list(loop.parameters()))
    for x, y in batches(3, images):
        logs = limbeck.play(second.method, (x, y), optimizers)
        optimizer.zero_grad()
        z_s, p_t = loop(x), F.softmax(teacher(x).detach() / 2, -1)
        divergence = F.kl_div(F.log_softmax(z_s / 2, -1), p_t, reduction="batchmean")  # no T²
        (soft * divergence + hard * F.cross_entropy(z_s, y)).backward()
        optimizer.step()
        assert {name.split("/")[1] for name in logs} >= {term for term, on in (("soft", soft), ("hard", hard)) if on}
    torch.testing.assert_close(state(student), state(loop), rtol=1e-10, atol=1e-12)


def places_of(stage: Stage) -> list[tuple[str, str, int]]:
    """Student's place, teacher's place, number of adapters."""
    return [(*(source.path for source in term.sources), len(term.adapters)) for term in stage.method.objective.terms]


def test_places_are_before_the_last_activation() -> None:
    first, second = both_stages(convnet(0), convnet(1))
    assert places_of(first) == [("one.2:in", "one.2:in", 0), ("two.2:in", "two.2:in", 0)]  # as wide: no connector
    assert second.method.objective.names == ["hard", "soft"]
    assert first.method.objective.weights == [0.0015, 0.003]
    named, _ = both_stages(convnet(0), convnet(1), layers=[("two.1", "two"), ("two.2:in", "two.0")])
    assert places_of(named) == [("two.1", "two.2:in", 0), ("two.2:in", "two.0", 0)]


def test_places_in_residual_networks() -> None:
    x = torch.randn(2, 3, 32, 32)
    after, before = zoo.network("resnet8", 10), zoo.network("wrn-16-1", 10)  # activations end blocks, or begin them
    first, _ = limbeck.ab(after, before, example=x)
    assert [place for place, *_ in places_of(first)] == [f"layer{i}.0.relu2:in" for i in (1, 2, 3)]
    first, _ = limbeck.ab(before, after, example=x)
    assert [place for place, *_ in places_of(first)][:2] == ["layer1", "layer2"]
    shared = zoo.network("torchvision:resnet18", 10)  # one ReLU, called twice in each block
    first, _ = limbeck.ab(shared, shared, example=torch.randn(2, 3, 64, 64), layers=[("layer2", "layer2")])
    assert places_of(first) == [("layer2.1.relu:in", "layer2.1.relu:in", 0)]


def test_connectors_stay_behind() -> None:
    student = convnet(0)
    first, second = both_stages(student, convnet(1, width=6))
    assert [count for *_, count in places_of(first)] == [1, 1]
    assert first.method.networks() == second.method.networks() == {"student": student}
    assert state(student).keys() == state(convnet(0)).keys()
    assert not list(second.method.objective.parameters())


def test_responses_agree_in_sign_after_stage_1() -> None:
    torch.manual_seed(0)
    student, teacher, (x, _) = convnet(0), convnet(1), images(n=32)
    first, _ = both_stages(student, teacher, boundary=0.001)
    optimizers = optimizers_of(first)

    def agreement() -> float:
        student.train()
        with torch.no_grad():
            s, t = student.two[:2](student.one(x)), teacher.eval().two[:2](teacher.one(x))
        return ((s > 0) == (t > 0)).double().mean().item()

    assert agreement() < 0.6
    for _ in range(60):
        limbeck.play(first.method, (x, None), optimizers)
    assert agreement() > 0.75


class Functional(nn.Module):
    """A network whose activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 5)
        self.end = Rectify(self.stage)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.end(x).mean((2, 3)))


class Rectify(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x))


def test_invalid_options() -> None:
    with pytest.raises(ValueError, match=r"init_share must be in \(0, 1\), got 0"):
        both_stages(convnet(0), convnet(1), init_share=0)
    with pytest.raises(ValueError, match="margin must be above 0, got -1"):
        both_stages(convnet(0), convnet(1), margin=-1)
    with pytest.raises(ValueError, match=r"temperature must be in \(0, 1000\], got 0"):
        both_stages(convnet(0), convnet(1), temperature=0)
    with pytest.raises(ValueError, match="stage 2 has nothing to learn from: give soft or hard a weight"):
        both_stages(convnet(0), convnet(1), soft=0)
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        both_stages(convnet(0), convnet(1), layers=[("ones", "one")])
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        both_stages(convnet(0), convnet(1), layers=[("one", "fc")])
    with pytest.raises(ValueError, match=r"'one' has maps of \(8, 8\) and the teacher's 'two' of \(4, 4\)"):
        both_stages(convnet(0), convnet(1), layers=[("one", "two")])


def test_a_student_read_after_its_activation_is_refused() -> None:
    rectified = Functional().double()
    with pytest.raises(ValueError, match="the student's 'end' is never negative, so that it has no boundary to learn"):
        both_stages(rectified, convnet(1), layers=[("end", "one")])
    first, _ = both_stages(convnet(1), rectified, layers=[("one", "end")])  # its signs show there too
    assert places_of(first) == [("one.2:in", "end", 0)]
