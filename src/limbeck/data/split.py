from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.epochs import classes_in


def groups(targets: Tensor) -> Tensor:
    """Return what samples are chosen by, int64 (N,): their classes; of several labels or values, a single group."""
    return targets if classes_in(targets) is not None else torch.zeros(len(targets), dtype=torch.int64)


def hold_out(
    targets: Tensor, share: float, generator: torch.Generator, name: str = "val_share"
) -> tuple[Tensor, Tensor]:
    """Split off a share of the samples with every class in proportion.

    Args:
        targets: classes, int64 (N,).
        share: share of the samples to hold out, in (0, 1).
        generator: decides which.
        name: what the share is called.

    Returns:
        Rows kept and rows held out, both in ascending order. At least one row is held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"expected {name} between 0 and 1, got {share}")
    total = max(1, round(len(targets) * share))
    if total >= len(targets):
        raise ValueError(f"cannot hold out {total} of {len(targets)} samples: lower {name} ({share})")
    counts = torch.bincount(targets)
    exact = counts.double() * total / len(targets)
    quota = exact.long()
    # The largest remainders get the samples that rounding down left over; stable, so equal ones go to the first class.
    rest = torch.argsort(exact - quota, descending=True, stable=True)[: total - int(quota.sum())]
    quota[rest] += 1
    return _pick(targets, quota, generator)


def balanced(targets: Tensor, total: int, generator: torch.Generator, name: str) -> tuple[Tensor, Tensor]:
    """Choose ``total`` samples, equally many of every class as far as the classes reach.

    For one state of the generator a larger choice contains a smaller one wherever every class has enough samples.

    Args:
        targets: classes, int64 (N,).
        total: how many to choose.
        generator: decides which.
        name: what the caller's user calls ``total``, for the error.

    Returns:
        Rows left and rows chosen, both in ascending order.
    """
    if not 1 <= total <= len(targets):
        raise ValueError(f"expected {name} between 1 and the {len(targets)} training samples, got {total}")
    counts = torch.bincount(targets)
    if total < (classes := int((counts > 0).sum())):
        raise ValueError(f"expected {name} of at least {classes}, one of each class, got {total}")
    quota = torch.zeros_like(counts)
    while (missing := total - int(quota.sum())) > 0:
        open_classes = torch.nonzero(quota < counts).flatten()
        each = max(1, missing // len(open_classes))
        open_classes = open_classes[:missing]
        quota[open_classes] = torch.minimum(quota[open_classes] + each, counts[open_classes])
    return _pick(targets, quota, generator)


def _pick(targets: Tensor, quota: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows left and rows picked, ``quota[c]`` of every class c."""
    order = torch.randperm(len(targets), generator=generator)
    picked = torch.zeros(len(targets), dtype=torch.bool)
    for label, count in enumerate(quota.tolist()):
        picked[order[targets[order] == label][:count]] = True
    return torch.nonzero(~picked).flatten(), torch.nonzero(picked).flatten()
