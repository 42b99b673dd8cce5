from __future__ import annotations

from typing import Any

import pytest
import torch
from method_toys import (
    CLASSES,
    batches,
    convnet,
    images,
    mlp,
    normal,
    sgd,
    state,
    vectors,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import attention, feature_gradient, gradient_attention, gradient_symmetry


def smooth(seed: int, inputs: int = 6) -> nn.Module:
    """A network whose derivatives are continuous, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def by_differences(net: nn.Module, x: Tensor, y: Tensor, step: float = 1e-5) -> Tensor:
    """∂CE/∂x, sample by sample and entry by entry."""
    slopes = torch.zeros_like(x)
    for n in range(len(x)):
        for place in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[1:])).reshape(-1, x.ndim - 1):
            moved = torch.zeros_like(x[n])
            moved[tuple(place)] = step
            up, down = (F.cross_entropy(net((x[n] + sign * moved)[None]), y[n : n + 1]) for sign in (1, -1))
            slopes[(n, *place)] = (up - down).item() / (2 * step)
    return slopes


def loss_of(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return gradient_attention(student(x), teacher(x), x, y)


def test_formula() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    j_s, j_t = by_differences(student, x, y), by_differences(teacher, x, y)
    total = sum((a - b) ** 2 for a, b in zip(j_s.flatten().tolist(), j_t.flatten().tolist(), strict=True))
    assert loss_of(student, teacher, x, y).item() == pytest.approx(total / 4, rel=1e-7)


def test_by_hand() -> None:
    # z = (w x, 0): ∂CE/∂x = w (p − 1[y = 0]) with p = 1/2 at x = 0
    x, y = torch.zeros(2, 1).requires_grad_(), torch.tensor([0, 1])
    z_s, z_t = (torch.cat([w * x, 0 * x], 1) for w in (3.0, 1.0))
    # samples: −1.5 against −0.5, and 1.5 against 0.5
    assert gradient_attention(z_s, z_t, x, y).item() == pytest.approx((1 + 1) / 2)
    # mirrored along two entries (u, v): z = (2u, 0), so J = (2, 0)(p − 1) and its mirror image (0, 2)(p − 1)
    x = torch.zeros(1, 1, 1, 2).requires_grad_()
    flipped = x.flip(-1)
    z, z_flipped = (torch.stack([2 * v[:, 0, 0, 0], 0 * v[:, 0, 0, 1]], 1) for v in (x, flipped))
    assert gradient_symmetry(z, x, z_flipped, flipped, torch.tensor([0])).item() == pytest.approx(1 + 1)


def test_the_penalty_teaches_the_weights_as_differences_say() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    loss_of(student, teacher, x, y).backward()
    for p in student.parameters():
        assert p.grad is not None
        with torch.no_grad():
            for index in range(min(5, p.numel())):
                before = p.flatten()[index].item()
                values = []
                for step in (1e-5, -1e-5):
                    p.view(-1)[index] = before + step
                    with torch.enable_grad():
                        values.append(loss_of(student, teacher, x, y).item())
                p.view(-1)[index] = before
                slope = (values[0] - values[1]) / 2e-5
                assert p.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


def test_networks_of_relus_learn_too() -> None:
    student, teacher, (x, y) = mlp(0).train(), mlp(1).eval(), vectors()
    loss_of(student, teacher, x, y).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in student.named_parameters() if "weight" in name)


def test_it_does_not_shrink_with_the_batch() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    twice = loss_of(student, teacher, x.repeat(2, 1), y.repeat(2))
    torch.testing.assert_close(twice, loss_of(student, teacher, x, y))


def test_it_is_zero_for_equal_networks_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, (x, y) = smooth(0), smooth(0), vectors(n=4)
    loss = loss_of(student, teacher, x, y)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(not p.grad.any() for p in student.parameters() if p.grad is not None)


def test_samples_without_label_have_no_gradient() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=4)
    half = loss_of(student, teacher, x, torch.where(torch.arange(4) < 2, y, -100))
    torch.testing.assert_close(2 * half, loss_of(student, teacher, x[:2], y[:2]))


def test_features_are_compared_by_attention_to_their_gradients() -> None:
    student, teacher, (x, y) = convnet(0).eval(), convnet(1, width=6).eval(), images()
    x.requires_grad_()
    f_s, f_t = student.one(x), teacher.one(x)
    z_s, z_t = ([net.two, net.pool, net.flat, net.fc] for net in (student, teacher))
    z_s, z_t = nn.Sequential(*z_s)(f_s), nn.Sequential(*z_t)(f_t)
    j_s, j_t = (
        torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), f, retain_graph=True)[0]
        for z, f in ((z_s, f_s), (z_t, f_t))
    )
    loss = feature_gradient(z_s, z_t, f_s, f_t, y, power=1)
    torch.testing.assert_close(loss, attention(j_s, j_t, power=1))
    loss.backward()
    assert student.fc.weight.grad.any()
    assert teacher.fc.weight.grad is None


def test_a_symmetric_network_has_symmetric_gradients() -> None:
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)).double(), images()

    def symmetry() -> Tensor:
        given = x.detach().requires_grad_()
        flipped = given.flip(-1)
        return gradient_symmetry(net(given), given, net(flipped), flipped, y)

    assert symmetry() > 1e-3
    with torch.no_grad():
        w = net[1].weight.view(CLASSES, 3, 8, 8)
        w.copy_(w + w.flip(-1))
    assert symmetry().item() == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1000.0])
def test_numerics(dtype: torch.dtype, scale: float) -> None:
    """Logits up to ±1000, all of them zero, a batch of one, duplicates and inputs at 1e4."""
    w_s, w_t = (normal(6, CLASSES, seed=seed).to(dtype) for seed in (1, 2))
    for x in (normal(4, 6), normal(1, 6), torch.ones(4, 6), 1e4 * normal(4, 6)):
        x = x.to(dtype)
        x = (x / x.abs().max().clamp(min=1)).requires_grad_() if scale > 1 else x.requires_grad_()
        w = (scale * w_s).requires_grad_()
        y = torch.arange(len(x)) % CLASSES
        flipped = x.flip(-1)
        loss = gradient_attention(x @ w, x @ w_t, x, y) + gradient_symmetry(x @ w, x, flipped @ w, flipped, y)
        assert loss.isfinite()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        slope = torch.autograd.grad(loss, w)[0]
        # on its way back it is the product of two weights, 1000², more than a network in float16 can hold
        assert slope.isfinite().all() or (dtype, scale) == (torch.float16, 1000)


def test_autocast_changes_nothing() -> None:
    student, teacher, (x, y) = smooth(0).float(), smooth(1).float(), vectors()
    method = limbeck.gradient(student, teacher)
    expected = next(iter(method.step((x.float(), y)))).terms["attention"].value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(next(iter(method.step((x.float(), y)))).terms["attention"].value, expected)


def test_playing_it_is_the_loop() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    weights: dict[str, Any] = {"attention": 2.0, "feature": 30.0, "symmetry": 0.5}
    method = limbeck.gradient(student, teacher, layers=[("one", "one")], **weights)
    assert method.objective.names == ["hard", "attention", "feature.one", "symmetry"]
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()

    def look(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        one = net.one(x)
        return one, net.fc(net.flat(net.pool(net.two(one))))

    def slope(z: Tensor, y: Tensor, at: Tensor) -> Tensor:
        return torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), at, create_graph=True)[0]

    for x, y in batches(3, images):
        given = x.clone()
        logs = limbeck.play(method, (x, y), optimizers)
        assert torch.equal(x, given)
        assert not x.requires_grad
        assert x.grad is None
        x = given.requires_grad_()
        flipped = x.flip(-1)
        one_t, z_t = look(teacher, x)
        one, z = look(loop, x)
        _, z_flipped = look(loop, flipped)
        terms = {
            "attention": (slope(z, y, x) - slope(z_t, y, x).detach()).square().sum() / len(x),
            "feature": attention(slope(z, y, one), slope(z_t, y, one_t).detach()),
            "symmetry": (slope(z, y, x) - slope(z_flipped, y, flipped).flip(-1)).square().sum() / len(x),
        }
        optimizer.zero_grad()
        (F.cross_entropy(z, y) + sum(weights[name] * term for name, term in terms.items())).backward()
        optimizer.step()
        for name, term in terms.items():
            key = "feature.one" if name == "feature" else name
            assert logs[f"student/{key}"] == pytest.approx(term.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-8, atol=1e-10)
    assert all(p.grad is None for p in teacher.parameters())


def test_gradients_turn_towards_the_teachers() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors(n=32)
    method = limbeck.gradient(student, teacher, attention=20.0)
    optimizers = limbeck.optimizers(method, sgd)

    def cosine() -> float:
        given = x.detach().requires_grad_()
        j_s, j_t = (
            torch.autograd.grad(F.cross_entropy(net(given), y, reduction="sum"), given)[0] for net in (student, teacher)
        )
        return F.cosine_similarity(j_s, j_t).mean().item()

    before = cosine()
    for _ in range(100):
        limbeck.play(method, (x, y), optimizers)
    assert cosine() > before + 0.2


def test_terms_of_weight_zero_cost_nothing() -> None:
    student, teacher = convnet(0), convnet(1)
    calls = {"student": 0, "teacher": 0}
    for name, net in (("student", student), ("teacher", teacher)):
        net.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    method = limbeck.gradient(student, teacher, attention=0.0, symmetry=1.0)
    limbeck.play(method, images(), limbeck.optimizers(method, sgd))
    assert calls == {"student": 2, "teacher": 0}


def test_invalid() -> None:
    student, teacher, (x, y) = smooth(0), smooth(1), vectors()
    with pytest.raises(ValueError, match=r"the student's outputs do not depend on .* inputs.requires_grad_\(\) before"):
        gradient_attention(student(x), teacher(x), x, y)
    x.requires_grad_()
    with torch.no_grad():
        z_t = teacher(x)
    with pytest.raises(ValueError, match=r"the teacher's outputs do not depend .* not under no_grad"):
        gradient_attention(student(x), z_t, x, y)
    with pytest.raises(ValueError, match="the very tensor that the outputs were computed from"):
        gradient_symmetry(student(x), x, student(x.flip(-1)), x.flip(-1), y)
    with pytest.raises(ValueError, match="layers are for the gradients at features, but feature is 0"):
        limbeck.gradient(convnet(0), convnet(1), layers=[("one", "one")])
    with pytest.raises(ValueError, match="layers are paired by running an example"):
        limbeck.gradient(convnet(0), convnet(1), feature=1.0)
    method = limbeck.gradient(convnet(0), convnet(1))
    with pytest.raises(TypeError, match="need inputs that are one tensor of floating-point numbers"):
        next(iter(method.step((torch.zeros(2, 3, dtype=torch.long), y))))
