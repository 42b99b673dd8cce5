"""Samples that are in several splits."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.core.batches import part, samples, tensors
from limbeck.core.finding import Finding
from limbeck.data import Epochs
from limbeck.data.repeatable import Repeatable
from limbeck.verbs.check.setup import Setup

FEW, SHARE, TIMES = 2, 0.01, 3
"""Shared samples from which there is a finding: so many, of so many held out, and so much more often than training samples
are there twice, as the rows of a table of few values are by themselves."""


def leaks(setup: Setup) -> Iterator[Finding]:
    """Find held-out samples whose inputs are those of a training sample, to the last bit."""
    train, val, test, _ = setup.loaders
    held = {name: loader for name, loader in (("validation", val), ("test", test)) if loader is not None}
    if not held:
        return
    known = Counter(_prints(setup, train))
    twice = sum(count for count in known.values() if count > 1) / max(1, known.total())
    for name, loader in held.items():
        seen = _prints(setup, loader, setup.samples)
        shared = sum(print_ in known for print_ in seen)
        share = shared / max(1, len(seen))
        values = {"shared": float(shared), "looked at": float(len(seen)), "training samples": float(known.total())}
        if shared >= FEW and share > SHARE and share > TIMES * twice:
            yield Finding(
                name,
                "warning",
                f"{shared} of {len(seen)} {name} samples are among the {known.total()} training samples looked at: what is "
                "measured on them is not how well unknown samples are answered. Leave them out of one of the two",
                values,
            )
        else:
            yield Finding(name, "ok", f"{shared} of {len(seen)} {name} samples are training samples too", values)


def _prints(setup: Setup, loader: Epochs | Repeatable, most: int | None = None) -> list[bytes]:
    """Return what tells inputs from others, of as many samples as there is time for; what says nothing is left out."""
    loader = loader.plain() if isinstance(loader, Epochs) else loader
    prints: list[bytes] = []
    end = time.perf_counter() + setup.seconds
    for batch in loader:
        prints += _of_samples(setup.task.inputs(batch))
        if time.perf_counter() > end or (most is not None and len(prints) >= most):
            break
    return prints


def _of_samples(inputs: Any) -> list[bytes]:
    """Return what tells each sample from others; a black image says nothing, and may well be there twice."""
    columns = [column.detach().cpu().contiguous() for column in tensors(inputs)]
    try:
        many = samples(inputs)
    except ValueError:  # inputs without samples
        return []
    if any(column.ndim and len(column) != many for column in columns) or not isinstance(inputs, (Tensor, Mapping)):
        each = [tensors(part(inputs, [at])) for at in range(many)]  # ragged: a tensor of its own a sample
        return [_print([column.cpu().numpy().tobytes() for column in own]) for own in each if any(map(_tells, own))]
    rows = [column.flatten(1) for column in columns if column.ndim > 1]
    if not rows:
        return []
    telling = torch.stack([(row != row[:, :1]).any(1) for row in rows]).any(0).tolist()
    bytes_of = [row.view(torch.uint8).numpy() for row in rows]
    return [_print([row[at].tobytes() for row in bytes_of]) for at, tells in enumerate(telling) if tells]


def _tells(column: Tensor) -> bool:
    """Whether a sample's tensor is not one value all over."""
    return column.numel() > 1 and bool((column != column.flatten()[0]).any())


def _print(parts: list[bytes]) -> bytes:
    found = hashlib.blake2b(digest_size=8)
    for one in parts:
        found.update(one)
    return found.digest()
