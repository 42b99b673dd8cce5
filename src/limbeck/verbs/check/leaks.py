"""Samples that are in several splits."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.core.batches import tensors
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
        prints += _of_samples(tensors(setup.task.inputs(batch)))
        if time.perf_counter() > end or (most is not None and len(prints) >= most):
            break
    return prints


def _of_samples(columns: list[Tensor]) -> list[bytes]:
    """Return what tells each sample from others; a black image says nothing, and may well be there twice."""
    rows = [column.detach().cpu().contiguous().flatten(1) for column in columns if column.ndim > 1]
    if not rows:
        return []
    telling = torch.stack([(row != row[:, :1]).any(1) for row in rows]).any(0).tolist()
    parts = [row.view(torch.uint8).numpy() for row in rows]
    return [_print([part[at].tobytes() for part in parts]) for at, tells in enumerate(telling) if tells]


def _print(parts: list[bytes]) -> bytes:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.digest()
