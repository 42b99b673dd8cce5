"""Small networks, batches and questions that the tests of the methods share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CLASSES = 5


def mlp(seed: int, width: int = 8, inputs: int = 6, norm: bool = True) -> nn.Module:
    """A perceptron with batch norm, in float64, so that equalities can be bitwise."""
    torch.manual_seed(seed)
    hidden = [nn.Linear(inputs, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES)).double()


def convnet(seed: int, width: int = 4) -> nn.Module:
    """Feature maps of 8x8 (``one``) and 4x4 (``two``), then a linear layer; in float64."""
    torch.manual_seed(seed)

    def block(channels: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    layers = OrderedDict(
        one=block(3, width, 1),
        two=block(width, 2 * width, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(2 * width, CLASSES),
    )
    return nn.Sequential(layers).double()


def vectors(seed: int = 0, n: int = 12) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=random, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (n,), generator=random)


def images(seed: int = 0, n: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 3, 8, 8, generator=random, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (n,), generator=random)


def batches(count: int, make: Callable[[int], Any] = vectors) -> Iterator[Any]:
    return map(make, range(count))


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: Callable[..., Tensor], at: Tensor, *others: Any, **options: Any) -> Tensor:
    """∂loss/∂at."""
    at = at.detach().requires_grad_()
    return torch.autograd.grad(loss(at, *others, **options), at)[0]


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different, f"{different} differ"


def assert_finite(loss: Callable[..., Tensor], student: Tensor, *others: Any) -> None:
    """The loss and its gradient are finite, in every precision that can hold the student's values."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        cast = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in (student, *others)]
        assert loss(*cast).isfinite(), f"the loss is {loss(*cast)} in {dtype}"
        assert gradient(loss, *cast).isfinite().all(), f"the gradient is not finite in {dtype}"


def assert_full_precision(loss: Callable[..., Tensor], *inputs: Any) -> None:
    """Half-precision inputs, and autocast, change nothing but the inputs' own rounding."""
    floating = [x if isinstance(x, Tensor) and x.is_floating_point() else None for x in inputs]

    def cast(dtype: torch.dtype) -> list[Any]:
        return [x if f is None else f.to(dtype) for x, f in zip(inputs, floating, strict=True)]

    for half in (torch.float16, torch.bfloat16):
        rounded = [x.float() if isinstance(x, Tensor) and x.dtype == half else x for x in cast(half)]
        value = loss(*cast(half))
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(*rounded))
    outside = loss(*cast(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*cast(torch.float32)), outside)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives, backward too."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result
