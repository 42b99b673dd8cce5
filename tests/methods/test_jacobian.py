from __future__ import annotations

import copy

import pytest
import torch
from method_toys import CLASSES, batches, convnet, images, mlp, normal, sgd, state, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import jacobian, jacobian_attention, jacobian_projection, logit_regression
from limbeck.methods.jacobian import Projection
from limbeck.nets import draws


def smooth(seed: int) -> nn.Module:
    """A network whose derivatives are continuous, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def affine(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, CLASSES).double()


def of_label(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return jacobian(student(x), teacher(x), x, y)


def projected(student: nn.Module, teacher: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return jacobian_projection(student(x), teacher(x), x)


def whole(net: nn.Module, x: Tensor, step: float = 1e-5) -> Tensor:
    """∂z/∂x by differences, sample by sample and entry by entry: (N, K, D)."""
    columns = [[(net(n + step * e) - net(n - step * e)) / (2 * step) for e in torch.eye(6).double()] for n in x]
    return torch.stack([torch.stack(sample, 1) for sample in columns]).detach()


def test_formula() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    difference = whole(student, x) - whole(teacher, x)
    total = sum(entry**2 for n, label in enumerate(y.tolist()) for entry in difference[n, label].tolist())
    assert of_label(student, teacher, x, y).item() == pytest.approx(total / 4, rel=1e-7)


def test_by_hand() -> None:
    # z = (w x₁ x₂, x₁): the row of class 0 is w (x₂, x₁), that of class 1 is (1, 0)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).requires_grad_(), torch.tensor([0, 1])
    z_s, z_t = (torch.stack([w * x[:, 0] * x[:, 1], x[:, 0]], 1) for w in (3.0, 1.0))
    # samples: ‖(3 − 1) (2, 1)‖² = 20, and 0
    assert jacobian(z_s, z_t, x, y).item() == pytest.approx((20 + 0) / 2)
    # whatever the signs, 20 and ‖2 (4, 3)‖² = 100, for only one class differs
    assert jacobian_projection(z_s, z_t, x).item() == pytest.approx((20 + 100) / 2)


def test_the_projection_is_the_whole_jacobian_on_average() -> None:
    student, teacher, (x, _) = smooth(0), smooth(1), vectors(n=4)
    expected = (whole(student, x) - whole(teacher, x)).square().sum() / 4
    torch.manual_seed(0)
    found = projected(student, teacher, x.repeat(20_000, 1))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_noise_and_jacobians_are_one_for_affine_networks() -> None:
    """The paper's proposition, with nothing left out: noisy regression, 100 000 draws, within 1 %."""
    student, teacher, (x, _), σ = affine(0), affine(1), vectors(n=1), 1.0
    noise = σ * normal(100_000, 6)
    with torch.no_grad():
        noisy = logit_regression(student(x + noise), teacher(x + noise))
        clean = logit_regression(student(x), teacher(x))
    rows = sum(of_label(student, teacher, x, torch.tensor([k])) for k in range(CLASSES))
    torch.testing.assert_close(noisy, clean + σ**2 / 2 * rows, rtol=0.01, atol=0)
    torch.manual_seed(0)
    drawn = projected(student, teacher, x.repeat(100_000, 1))
    torch.testing.assert_close(noisy, clean + σ**2 / 2 * drawn, rtol=0.01, atol=0)
    assert noisy > 1.3 * clean


def test_the_loss_teaches_the_weights_as_differences_say() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    names = {name for name, _ in student.named_parameters()}

    def losses(weights: dict[str, Tensor]) -> Tensor:
        given = x.detach().requires_grad_()
        z_s, z_t = torch.func.functional_call(student, weights, given), teacher(given)
        torch.manual_seed(0)
        return jacobian(z_s, z_t, given, y) + jacobian_projection(z_s, z_t, given)

    weights = {name: p.detach().clone().requires_grad_() for name, p in student.named_parameters()}
    slopes = dict(
        zip(weights, torch.autograd.grad(losses(weights), list(weights.values()), allow_unused=True), strict=True)
    )
    assert slopes["2.bias"] is None or not slopes["2.bias"].any()
    for name in names - {"2.bias"}:
        for index in range(min(5, weights[name].numel())):
            moved = torch.zeros_like(weights[name]).flatten()
            moved[index] = 1e-5
            moved = moved.view_as(weights[name])
            up, down = (losses(weights | {name: weights[name] + sign * moved}).item() for sign in (1, -1))
            assert slopes[name].flatten()[index].item() == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)


def test_networks_of_relus_learn_too_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, (x, y) = mlp(0).train(), mlp(1).eval(), vectors()
    (of_label(student, teacher, x, y) + projected(student, teacher, x)).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in student.named_parameters() if "weight" in name)
    assert all(p.grad is None for p in teacher.parameters())


def test_it_is_zero_for_equal_networks() -> None:
    student, teacher, (x, y) = smooth(0), smooth(0), vectors(n=4)
    loss = of_label(student, teacher, x, y) + projected(student, teacher, x)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in student.parameters() if p.grad is not None)


def test_biases_and_the_size_of_the_batch_do_not_matter() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    before = of_label(student, teacher, x, y)
    torch.testing.assert_close(of_label(student, teacher, x.repeat(2, 1), y.repeat(2)), before)
    with torch.no_grad():
        student[2].bias.add_(5)
    torch.testing.assert_close(of_label(student, teacher, x, y), before)


def test_samples_without_label_do_not_count() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    half = of_label(student, teacher, x, torch.where(torch.arange(4) < 2, y, -100))
    torch.testing.assert_close(half, of_label(student, teacher, x[:2], y[:2]))
    assert of_label(student, teacher, x, torch.full_like(y, -100)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1000.0])
def test_numerics(dtype: torch.dtype, scale: float) -> None:
    """Logits up to ±1000, all of them zero, a batch of one, duplicates and inputs at 1e4."""
    w_s, w_t = (normal(6, CLASSES, seed=seed).to(dtype) for seed in (1, 2))
    for x in (normal(4, 6), normal(1, 6), torch.ones(4, 6), 1e4 * normal(4, 6)):
        x = x.to(dtype)
        x = (x / x.abs().max().clamp(min=1)).requires_grad_() if scale > 1 else x.requires_grad_()
        w = (scale * w_s).requires_grad_()
        loss = jacobian(x @ w, x @ w_t, x, torch.arange(len(x)) % CLASSES) + jacobian_projection(x @ w, x @ w_t, x)
        assert loss.isfinite()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.autograd.grad(loss, w)[0].isfinite().all()


def test_autocast_changes_nothing() -> None:
    student, teacher, (x, y) = smooth(0).float(), smooth(1).float(), vectors()
    method = limbeck.jacobian(student, teacher)
    expected = next(iter(method.step((x.float(), y)))).terms["label"].value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(next(iter(method.step((x.float(), y)))).terms["label"].value, expected)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.jacobian(student, teacher, logits=0.5, label=2.0)
    assert method.objective.names == ["hard", "logits", "label", "projection"]
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        x.requires_grad_()
        z, z_t = loop(x), teacher(x)
        own = torch.autograd.grad(z.gather(1, y[:, None]).sum(), x, create_graph=True)[0]
        other = torch.autograd.grad(z_t.gather(1, y[:, None]).sum(), x)[0]
        label = (own - other).square().sum() / len(x)
        optimizer.zero_grad()
        (F.cross_entropy(z, y) + 0.5 * (z - z_t.detach()).square().sum() / (2 * len(x)) + 2.0 * label).backward()
        optimizer.step()
        assert logs["student/label"] == pytest.approx(label.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-8, atol=1e-10)
    assert all(p.grad is None for p in teacher.parameters())


def test_jacobians_turn_towards_the_teachers() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=32)
    method = limbeck.jacobian(student, teacher, logits=0.0, label=0.0, projection=1.0)
    optimizers = limbeck.optimizers(method, sgd)

    def distance() -> Tensor:
        return (whole(student, x) - whole(teacher, x)).square().sum()

    before = distance()
    for _ in range(100):
        limbeck.play(method, (x, y), optimizers)
    assert distance() < before / 2


def test_invalid() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors()
    with pytest.raises(ValueError, match=r"the student's outputs do not depend on .* inputs.requires_grad_\(\) before"):
        jacobian(student(x), teacher(x), x, y)
    x.requires_grad_()
    with torch.no_grad():
        z_t = teacher(x)
    with pytest.raises(ValueError, match=r"the teacher's outputs do not depend .* not under no_grad"):
        jacobian_projection(student(x), z_t, x)
    with pytest.raises(ValueError, match=r"logits: student and teacher must have the same shape, got \(12, 5\) and"):
        jacobian(student(x), teacher(x)[:, :3], x, y)
    with pytest.raises(
        ValueError, match=r"targets class indices, \(N\), got \(12, 5\) and \(12, 5\); jacobian_projection"
    ):
        jacobian(student(x), teacher(x), x, F.one_hot(y, CLASSES))
    method = limbeck.jacobian(convnet(0), convnet(1))
    with pytest.raises(TypeError, match="need inputs that are one tensor of floating-point numbers"):
        next(iter(method.step((torch.zeros(2, 3, dtype=torch.long), y))))


def test_attention_by_hand() -> None:
    # x = (x₁, x₂) at two positions of one channel; the teacher's map is (x₁², 4x₂²), so it attends to the second
    x = torch.tensor([[3.0, 2.0]]).requires_grad_()
    t = torch.stack([x[:, 0], 2 * x[:, 1]], 1).view(1, 1, 1, 2)
    # A_s there is (x₁ + x₂)², whose direction is (1, 1)/√2; the teacher's is (0, 1)
    s = torch.stack([x[:, 0], x[:, 0] + x[:, 1]], 1).view(1, 1, 1, 2)
    assert jacobian_attention(s, t, x).item() == pytest.approx(2 - 2 / 2**0.5)
    assert jacobian_attention(5 * s, t, x).item() == pytest.approx(2 - 2 / 2**0.5)


def test_attention_formula() -> None:
    """Each sample's Jacobian on its own, on grids of two sizes and numbers of channels."""
    student, teacher, (x, _) = convnet(0).eval(), convnet(1, width=6).eval(), images(n=4)
    x.requires_grad_()
    s, t = student.one(x), teacher.two(teacher.one(x))
    total = 0.0
    for n in range(4):
        a_s = F.adaptive_avg_pool2d(s[n].square().mean(0)[None], (4, 4)).flatten()
        a_t = t[n].square().mean(0).flatten()
        place = int(a_t.argmax())
        j_s, j_t = (torch.autograd.grad(a[place], x, retain_graph=True)[0].flatten() for a in (a_s, a_t))
        total += float((j_s / j_s.norm() - j_t / j_t.norm()).square().sum())
    assert jacobian_attention(s, t, x).item() == pytest.approx(total / 4, rel=1e-9)


def test_attention_of_equal_networks_is_zero_and_dead_maps_have_no_gradient() -> None:
    student, (x, _) = convnet(0).eval(), images(n=3)
    x.requires_grad_()
    features = student.one(x)
    assert jacobian_attention(features, student.one(x), x).item() == pytest.approx(0, abs=1e-15)
    dead = features * torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = jacobian_attention(dead, student.one(x), x)
    assert loss.item() == pytest.approx(1)  # no direction, beside one of length 1
    loss.backward()
    assert all(p.grad.isfinite().all() for p in student.one.parameters() if p.grad is not None)


def test_attention_needs_no_common_classes() -> None:
    torch.manual_seed(0)
    student, teacher = convnet(0), convnet(1, width=6)
    student.fc = nn.Linear(8, 3).double()
    method = limbeck.jacobian(student, teacher, logits=0, label=0, attention=1.0, example=images()[0])
    assert method.objective.names == ["hard", "logits", "projection", "attention.two"]
    x, y = images()
    before = limbeck.play(method, (x, y % 3), optimizers := limbeck.optimizers(method, sgd))["student/attention.two"]
    for _ in range(20):
        logs = limbeck.play(method, (x, y % 3), optimizers)
    assert logs["student/attention.two"] < before
    named = limbeck.jacobian(convnet(0), teacher, attention=1.0, layers=[("one", "one"), ("two", "two")])
    assert named.objective.names[-2:] == ["attention.one", "attention.two"]


def test_two_processes_project_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, (x, _) = smooth(0), smooth(1), vectors(n=6)
    torch.manual_seed(3)
    projection = Projection()
    twins = copy.deepcopy(projection), copy.deepcopy(projection)
    x.requires_grad_()
    whole = projection(student(x), teacher(x), x)
    parts = []
    for rank, twin in enumerate(twins):
        monkeypatch.setattr(draws, "place", lambda rank=rank: (rank, 2))
        own = x.detach()[rank::2].requires_grad_()
        parts.append(twin(student(own), teacher(own), own))
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_projections_differ_from_step_to_step_and_go_on_exactly() -> None:
    student, teacher, (x, _) = smooth(0), smooth(1), vectors(n=6)
    torch.manual_seed(3)
    projection, other = Projection(), Projection()
    x.requires_grad_()

    def project(loss: Projection) -> float:
        return loss(student(x), teacher(x), x).item()

    first = project(projection)
    assert project(projection) != first
    other.load_state_dict(projection.state_dict())
    assert project(other) == project(projection)


def test_invalid_attention() -> None:
    x = images(n=2)[0].requires_grad_()
    with pytest.raises(ValueError, match=r"needs features \(N, C, H, W\), got shape \(2, 192\)"):
        jacobian_attention(x.flatten(1), x * 2, x)
    with pytest.raises(ValueError, match="must look at the same samples, got 1 and 2"):
        jacobian_attention(x[:1], x * 2, x)
    with pytest.raises(ValueError, match="the teacher's outputs do not depend"):
        jacobian_attention(x * 2, x.detach() * 2, x)
    with pytest.raises(ValueError, match="attention is 0: give it a weight"):
        limbeck.jacobian(convnet(0), convnet(1), layers=[("one", "one")])
    with pytest.raises(ValueError, match="pass example=inputs"):
        limbeck.jacobian(convnet(0), convnet(1), attention=1.0)
    z = (x * 2).flatten(1)
    with pytest.raises(ValueError, match=r"a sign for each logit, \(2, 192\), got \(2,\)"):
        jacobian_projection(z, z, x, torch.ones(2))
