"""Precision of losses, in one place."""

import pytest
import torch
from torch import nn

from limbeck.core.numerics import full_precision, same_shape, settled, sloped, unit_rows
from limbeck.losses import cross_entropy


@full_precision
def product(a, b, pair=(), scale=1.0):
    """Both see autocast, which would multiply in bfloat16."""
    for more in pair:
        a = a @ more
    return scale * (a @ b)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_is_widened(half):
    a, b = torch.randn(4, 4).to(half), torch.randn(4, 4).to(half)
    assert torch.equal(product(a, b), a.float() @ b.float())
    assert product(a, b=b, pair=[b]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_stay(dtype):
    assert product(torch.ones(2, 2, dtype=dtype), torch.ones(2, 2, dtype=dtype)).dtype == dtype


def test_autocast_is_off_inside():
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16  # the test would see it
        for inside in (product(a, b), product(a=a, b=b), product(a, b, pair=(a,)), product(a=a, b=b, pair=[a])):
            assert inside.dtype == torch.float32


@pytest.mark.parametrize("call", [lambda x: product(x, x), lambda x: product(a=x, b=x), lambda x: first(pair=[(x,)])])
def test_autocast_is_asked_about_the_device_of_the_tensors(call, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: asked.append(device))
    call(torch.ones(2, 2, device="meta"))
    assert asked == []  # nothing is, anywhere
    with torch.autocast("cpu", dtype=torch.bfloat16):
        asked.clear()  # itself asks
        call(torch.ones(2, 2, device="meta"))
    assert asked == ["meta"]


@full_precision
def first(pair):
    return pair[0][0]


def test_devices_without_autocast():
    assert product(torch.ones(2, 2, device="meta"), torch.ones(2, 2, device="meta")).shape == (2, 2)


def test_gradients_come_back_in_the_argument_precision():
    a = torch.randn(3, 3, dtype=torch.bfloat16, requires_grad=True)
    product(a, torch.eye(3)).sum().backward()
    assert a.grad.dtype == torch.bfloat16
    assert torch.equal(a.grad, torch.ones_like(a))


def test_name_and_docstring_survive():
    assert product.__name__ == "product"
    assert product.__doc__.startswith("Both see")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_hard_loss_is_computed_in_single_precision(half):
    z, y = torch.randn(6, 4).to(half), torch.randint(4, (6,))
    assert torch.equal(cross_entropy(z, y), nn.functional.cross_entropy(z.float(), y))


def test_same_shape():
    same_shape("maps", torch.ones(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"maps: .* got \(2, 3\) and \(2, 1\)"):
        same_shape("maps", torch.ones(2, 3), torch.ones(2, 1))


def test_rows_get_length_one_and_rows_of_zeros_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-2e4, 0.0]], requires_grad=True)
    unit = unit_rows(rows)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))
    torch.testing.assert_close(unit_rows(rows, epsilon=1.0)[0], torch.tensor([0.5, 4 / 6]))
    (unit @ torch.tensor([1.0, 1.0])).sum().backward()
    assert rows.grad.isfinite().all()
    assert not rows.grad[1].any()


def test_a_settled_loss_has_autograds_gradient_whatever_happens_to_what_it_came_from():
    x, bank = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)

    def loss(anchors):
        return (anchors @ bank.T).exp().sum()

    value, (slope,) = loss(x), torch.autograd.grad(loss(x), x)
    now = settled(loss, x)
    bank.zero_()
    assert torch.equal(now, value)
    three = torch.tensor(3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(three * now, x, create_graph=True)
    torch.testing.assert_close(gradient, 3 * slope)
    with torch.no_grad():
        assert settled(loss, x) == 20
    assert not settled(loss, x.detach()).requires_grad
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


def test_a_slope_by_hand_is_the_gradient_and_never_half_of_a_second_derivative():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def cubes(x):
        y = 2 * x
        return sloped(y, (y**3).sum().detach(), 3 * y.detach() ** 2)

    assert torch.autograd.gradcheck(cubes, (x,))
    (gradient,) = torch.autograd.grad(cubes(x) + (x**2).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, 24 * x**2 + 2 * x)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*create_graph"):
        torch.autograd.grad(gradient.sum(), x)
