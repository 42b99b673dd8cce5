from __future__ import annotations

import copy

import pytest
import torch
from method_toys import CLASSES, assert_same, batches, convnet, images, mlp, normal, sgd, state, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage
from limbeck.methods.kpn import Projection
from limbeck.nets.injection import injected, projection

EXAMPLE = images()[0]
BOTH = [("one", "one"), ("two", "two")]


def stages(student: nn.Module, teacher: nn.Module, **options: object) -> tuple[Projection, Stage]:
    torch.manual_seed(3)
    first, second = limbeck.kpn(student, teacher, **{"example": EXAMPLE} | options)
    assert isinstance(first.method, Projection)
    return first.method.double(), second


def lower(net: nn.Module, x: Tensor) -> Tensor:
    return net.one(x)


def upper(net: nn.Module, features: Tensor) -> Tensor:
    return net.fc(net.flat(net.pool(net.two(features))))


def conv_of(method: Projection, route: int = 0) -> nn.Sequential:
    return copy.deepcopy(method.projections[route])


# what stands in for a layer


def test_features_stand_in_for_a_layer_and_nothing_is_left() -> None:
    net, x = convnet(0).eval(), images()[0]
    features = normal(6, 4, 8, 8, seed=5)
    expected, own = upper(net, features), net(x)
    with injected(net, "one", features):
        torch.testing.assert_close(net(x), expected)
    with injected(net, "two:in", features):
        torch.testing.assert_close(net(x), expected)
    assert torch.equal(net(x), own)
    with pytest.raises(ZeroDivisionError), injected(net, "one", features):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_named_inputs_are_replaced_too() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bilinear = nn.Bilinear(3, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.bilinear(input1=x, input2=x[:, :2])

    net, x, instead = Outer(), torch.randn(4, 3), torch.randn(4, 3)
    with injected(net, "bilinear:in", instead):
        torch.testing.assert_close(net(x), net.bilinear.forward(instead, x[:, :2]))


def test_what_follows_may_change_the_features_in_place() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    features = torch.tensor([[-1.0, 2.0, -3.0]])
    with injected(net, "0", features):
        net(torch.zeros(1, 3))
    assert features.tolist() == [[-1, 2, -3]]


def test_the_layers_below_get_no_gradient_and_the_features_do() -> None:
    net, x = convnet(0), images()[0]
    features = normal(6, 4, 8, 8).requires_grad_()
    with injected(net, "one", features):
        net(x).sum().backward()
    assert all(p.grad is None for p in net.one.parameters())
    assert features.grad.any()


def test_features_that_do_not_fit() -> None:
    net, x = convnet(0), images()[0]
    with (
        pytest.raises(ValueError, match=r"'one' has shape \(6, 4, 8, 8\), the injected features \(6, 3, 8, 8\)"),
        injected(net, "one", normal(6, 3, 8, 8)),
    ):
        net(x)
    with pytest.raises(ValueError, match="output or first input, not into 'one:0'"), injected(net, "one:0", x):
        pass


@pytest.mark.parametrize(
    ("teacher", "student", "kinds"),
    [
        ((2, 6, 8, 8), (2, 4, 8, 8), ["Conv2d", "GlobalBatchNorm"]),
        ((2, 6, 8, 8), (2, 4, 3, 4), ["AdaptiveAvgPool2d", "Conv2d", "GlobalBatchNorm"]),
        ((2, 6, 2, 4), (2, 4, 8, 8), ["ConvTranspose2d", "GlobalBatchNorm"]),
        ((2, 6, 8, 2), (2, 4, 4, 4), ["AdaptiveAvgPool2d", "ConvTranspose2d", "GlobalBatchNorm"]),
        ((2, 6), (2, 4), ["Linear"]),
        ((2, 7, 6), (2, 7, 4), ["Linear"]),
    ],
)
def test_projections_lead_from_shape_to_shape(teacher: tuple, student: tuple, kinds: list[str]) -> None:
    net = projection(teacher, student)
    assert [type(step).__name__ for step in net] == kinds
    assert net(torch.randn(teacher)).shape == student
    rectified = projection(teacher, student, rectified=True)(torch.randn(teacher))
    assert rectified.shape == student
    assert (rectified >= 0).all()


@pytest.mark.parametrize(
    ("teacher", "student"), [((2, 6, 3, 3), (2, 4, 8, 8)), ((2, 6), (2, 4, 8, 8)), ((2, 7, 6), (2, 5, 4)), ((2,), (2,))]
)
def test_shapes_that_nothing_projects(teacher: tuple, student: tuple) -> None:
    with pytest.raises(ValueError, match=r"no projection leads from the teacher's shape \(2.* to the student's \(2"):
        projection(teacher, student)


# stage 1


def test_playing_one_route_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    method, _ = stages(
        student, teacher, layers=[("one", "one")], projection=0.7, injected=0.3, hard=0.5, projection_share=0.4
    )
    project = conv_of(method)
    assert isinstance(project[-1], nn.ReLU)  # as the student's layer ends
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), *project.parameters()])
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        shown = lower(loop, x)
        own = F.cross_entropy(upper(loop, shown), y)
        before = state(loop)
        u = project(lower(teacher, x).detach())
        along = F.cross_entropy(upper(loop, u), y)
        for name, buffer in loop.named_buffers():
            buffer.data = before[name]  # its statistics are those of its own features
        near = F.mse_loss(shown, u.detach())
        (0.5 * own + 0.3 * along + 0.7 * near).backward()
        optimizer.step()
        assert logs["student/injected.one"] == pytest.approx(along.item(), rel=1e-6)
        assert logs["student/projection.one.weighted"] == pytest.approx(0.7 * near.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state(method.projections[0]), state(project), rtol=1e-9, atol=1e-12)


def test_each_half_learns_its_own_part() -> None:
    """Without labels of its own, the student's lower half follows the projection, and the upper learns from it alone."""
    student = convnet(0)
    method, _ = stages(student, convnet(1, width=6), layers=[("one", "one")], hard=0.0)
    terms = next(method.step(images())).terms
    assert list(terms) == ["injected.one", "projection.one"]
    project = [*method.projections.parameters()]
    above = [*student.two.parameters(), *student.fc.parameters()]

    def reached(name: str, own: list[nn.Parameter]) -> list[bool]:
        grads = torch.autograd.grad(terms[name].value, own, retain_graph=True, allow_unused=True)
        return [bool(grad is not None and grad.any()) for grad in grads]

    below = [*student.one.parameters()]
    for half, injects, follows in ((above, True, False), (project, True, False), (below, False, True)):
        assert set(reached("injected.one", half)) == {injects}
        assert set(reached("projection.one", half)) == {follows}


def test_the_losses_of_routes_are_averaged() -> None:
    student, teacher = convnet(0), convnet(1, width=6)
    method, _ = stages(student, teacher, layers=BOTH, projection=0.7)
    terms = next(method.step(images())).terms
    assert [terms[f"{name}.{path}"].weight for path, _ in BOTH for name in ("injected", "projection")] == [
        0.5,
        0.35,
    ] * 2


def test_nothing_is_injected_where_it_weighs_nothing() -> None:
    student = convnet(0)
    method, _ = stages(student, convnet(1), layers=[("one", "one")], injected=0.0)
    terms = next(method.step(images())).terms
    assert list(terms) == ["hard", "projection.one"]
    grads = torch.autograd.grad(terms["projection.one"].value, list(method.projections.parameters()))
    assert all(grad.any() for grad in grads)  # nothing else would shape it
    only, _ = stages(student, convnet(1), layers=[("one", "one")], projection=0.0)
    assert list(next(only.step(images())).terms) == ["hard", "injected.one"]


def test_two_routes_into_one_layer_have_names_of_their_own() -> None:
    method, _ = stages(convnet(0), convnet(1), layers=[("one", "one"), ("one", "two")])
    assert list(next(method.step(images())).terms) == [
        *["hard", "injected.one.one", "projection.one.one", "injected.one.two", "projection.one.two"]
    ]


def test_the_students_buffers_see_its_own_features_only() -> None:
    student, alone, batch = convnet(0), convnet(0), images()
    method, _ = stages(student, convnet(1), layers=BOTH)
    next(method.step(batch))
    alone(batch[0])
    assert_same(dict(student.named_buffers()), dict(alone.named_buffers()))


def test_routes_of_perceptrons() -> None:
    student, teacher, (x, y) = mlp(0), mlp(1, width=16), vectors()
    method, _ = stages(student, teacher, example=x)
    assert method.routes == [("3:in", "3:in")]
    project = conv_of(method)
    u = project(teacher.eval()[:3](x))
    expected = F.cross_entropy(student[3](u), y)
    torch.testing.assert_close(next(method.step((x, y))).terms["injected.3:in"].value, expected)


# pruning


def judged(method: Projection, *losses: float) -> Projection:
    method.joint = torch.tensor(losses, dtype=method.joint.dtype)
    return method


FIVE = [("one", "one"), ("one", "two"), ("two", "one"), ("two", "two"), ("two:in", "one")]


def test_the_worst_half_is_pruned_until_one_is_left() -> None:
    method, _ = stages(convnet(0), convnet(1, width=6), layers=FIVE)
    judged(method, 0.5, 0.1, 0.4, 0.2, 0.3).eval()
    for progress, left in [(0.0, 5), (0.24, 5), (0.25, 3), (0.5, 2), (0.74, 2), (0.75, 1), (1.0, 1)]:
        terms = next(method.step(images(), progress)).terms
        assert len(terms) == 1 + 2 * left
    assert method.left == [1]
    assert "injected.one.two" in terms


def test_a_route_is_judged_by_its_joint_loss_before_it_learns() -> None:
    method, _ = stages(convnet(0), convnet(1, width=6), layers=BOTH, projection=0.7)
    expected = torch.zeros(2, dtype=torch.float64)
    optimizers = limbeck.optimizers(method, sgd)
    for batch in batches(3, images):
        logs = limbeck.play(method, batch, optimizers)
        now = [logs[f"student/injected.{s}"] + 0.7 * logs[f"student/projection.{s}"] for s, _ in BOTH]
        expected = 0.99 * expected + 0.01 * torch.tensor(now)
    torch.testing.assert_close(method.joint, expected, rtol=1e-5, atol=0)


def test_routes_that_are_left_are_part_of_the_state() -> None:
    method, _ = stages(convnet(0), convnet(1), layers=FIVE)
    judged(method, 0.5, 0.1, 0.4, 0.2, 0.3)
    next(method.step(images(), 0.5))
    other, _ = stages(convnet(0), convnet(1), layers=FIVE)
    other.load_state_dict(method.state_dict())
    assert other.left == method.left == [1, 3]
    torch.testing.assert_close(other.joint, method.joint)


def played(method: Projection, steps: int, progress: float = 1.0) -> None:
    optimizers = limbeck.optimizers(method, lambda own: torch.optim.Adam(own, 0.01))
    for step in range(steps):
        limbeck.play(method, images(step % 4, n=24), optimizers, progress * step / steps)


class Blind(nn.Module):
    """A teacher of two layers, of which one shows which class it is and the other nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.knows, self.blind = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        classes = torch.stack([images(seed, n=24)[1] for seed in range(4)])
        here = torch.stack([images(seed, n=24)[0][:, 0, 0, 0] for seed in range(4)])
        y = (
            classes[(here - x[:, 0, 0, 0]).abs().sum(1).argmin()]
            if len(x) == 24
            else torch.zeros(len(x), dtype=torch.long)
        )
        known = F.one_hot(y, CLASSES).to(x.dtype)[..., None, None].expand(-1, -1, 8, 8)
        return (self.knows(known) + self.blind(torch.zeros_like(known))).mean((2, 3))


@pytest.mark.parametrize("routes", [[("one", "blind"), ("one", "knows")], [("one", "knows"), ("one", "blind")]])
def test_the_route_that_teaches_survives(routes: list[tuple[str, str]]) -> None:
    method, _ = stages(convnet(0), Blind(), layers=routes)
    played(method, 40)
    assert [routes[index] for index in method.left] == [("one", "knows")]


def test_the_labels_keep_the_projection_from_collapsing() -> None:
    """Where nothing is injected the projection may shrink to what is easily followed; where the labels need it, not."""
    spread = {}
    for weight in (1.0, 0.0):
        student, teacher = convnet(0), convnet(1, width=6).eval()
        method, _ = stages(student, teacher, layers=[("one", "one")], injected=weight, projection=100.0, hard=0.0)
        optimizers = limbeck.optimizers(method, lambda own: torch.optim.Adam(own, 0.02))
        for step in range(80):
            limbeck.play(method, images(step % 4, n=24), optimizers)
        spread[weight] = method.projections[0](teacher.one(images(0, n=24)[0])).var(0).mean().item()
    assert spread[1.0] > 0.1
    assert spread[0.0] < 0.5 * spread[1.0], spread


# the stages


def test_stage_2_is_the_student_alone() -> None:
    student, teacher = convnet(0), convnet(1)
    first, second = limbeck.kpn(student, teacher, example=EXAMPLE, projection_share=0.4)
    assert (first.name, first.share, second.name, second.share) == ("projection", 0.4, "alone", 0.6)
    assert first.method.networks() == second.method.networks() == {"student": student}
    assert first.method.names == ["one", "two"]
    assert second.method.objective.names == ["hard"]
    assert len(second.method.teachers) == 0
    assert state(student).keys() == state(convnet(0)).keys()


def test_the_teachers_classes_may_be_others() -> None:
    """Its features alone count, so that nobody asks what it says; and fit does not measure it."""
    data = limbeck.data.load("digits", samples=100)
    teacher = limbeck.zoo.network("mlp-16", 3, (1, 8, 8))
    student = limbeck.zoo.network("mlp-8", 10, (1, 8, 8))
    result = limbeck.fit(
        limbeck.kpn(student, teacher, example=data.example()), data, epochs=2, accelerator="cpu", progress=False
    )
    assert result.finished
    assert [row["stage"] for row in result.history] == ["projection", "alone"]


def test_a_compiled_student_is_fed_too() -> None:
    torch._dynamo.reset()
    logs = []
    for compiled in (False, True):
        student = convnet(0)
        method, _ = stages(torch.compile(student, backend="eager") if compiled else student, convnet(1), layers=BOTH)
        optimizers = limbeck.optimizers(method, sgd)
        logs.append([limbeck.play(method, batch, optimizers) for batch in batches(3, images)])
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    torch._dynamo.reset()


def test_the_example_changes_nobody() -> None:
    student, teacher = convnet(0).train(), convnet(1).train()
    before = state(student), state(teacher)
    next(limbeck.kpn(student, teacher, example=EXAMPLE))
    assert student.training
    assert teacher.training
    assert_same(state(student), before[0])
    assert_same(state(teacher), before[1])


def test_optimizers_meet_the_projections() -> None:
    method, _ = stages(convnet(0), convnet(1), layers=BOTH)
    own = {id(p) for p in parameters(method)["student"]}
    assert {id(p) for p in method.projections.parameters()} <= own
    assert list(assign(parameters(method), sgd)) == ["student"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection_share": 1.0}, r"projection_share must be in \(0, 1\), got 1\.0"),
        ({"projection_share": 0.0}, r"projection_share must be in \(0, 1\), got 0\.0"),
        ({"projection": 0.0, "injected": 0.0}, "projection and injected are all 0: give one of them another weight"),
        ({"layers": [("one", "one"), ("one", "one")]}, "names a route twice"),
        ({"layers": [("ones", "one")]}, "has no layer 'ones'; the closest are"),
        ({"layers": [("fc", "one")]}, "no projection leads from"),
    ],
)
def test_what_is_invalid_fails_before_anything_trains(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(limbeck.kpn(convnet(0), convnet(1), **{"example": EXAMPLE} | options))
