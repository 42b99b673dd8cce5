"""What a training costs whose teacher is read from a cache, beside the plain student's and the one that runs its teacher.

    python bench/cache.py --root DATA [--only epochs|build|compare|growth] [--write]

Epochs are those of `limbeck.fit` on CIFAR-10, from the first batch to the last, in seconds of this process's CPU, one
thread; all variants in turn, there and back, and the plain student twice: that row shows what the machine does to a ratio.
A cell is the median over the rounds with the quartiles.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from marks import write_between

import limbeck
from limbeck.data.cache import Cache, Kept
from limbeck.data.cached import uncached

BATCH = 64
ANSWERS = ("kd", "dkd", "dist", "logits", "at")
CONTEST = ("kd", "dkd", "dist", "logits", "at", "sp", "rkd", "cc")
Row = list[str]


class Clock(Callback):
    """The CPU seconds of each epoch's training batches, the first of a run left out."""

    def __init__(self) -> None:
        self.spent: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self.begun = time.process_time()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self.spent.append(time.process_time() - self.begun)


def net(name: str, data: limbeck.data.Data, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return limbeck.zoo.network(name, data.outputs, data.shape)


@contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp())
    try:
        yield made
    finally:
        shutil.rmtree(made)


def cifar(root: str, samples: int, views: int | None = None) -> limbeck.data.Data:
    data = limbeck.data.load("cifar10", root, batch_size=BATCH, samples=samples, views=views)
    return replace(data, val=data.train.plain(), test=data.train.plain())  # short: they are not what is measured


def ratios(values: list[float], base: list[float]) -> str:
    each = sorted(value / other for value, other in zip(values, base, strict=True))
    low, _, high = quantiles(each, n=4) if len(each) > 1 else (each[0], 0, each[0])
    return f"{median(each):.2f} [{low:.2f}, {high:.2f}]"


def epochs(root: str, teacher: str, student: str, rounds: int, batches: int) -> list[Row]:
    """An epoch with the teacher in a cache, at work, and without one; the same student to the bit."""
    data, master = cifar(root, batches * BATCH, views=2), net(teacher, cifar(root, BATCH), seed=1).eval()
    example = data.example()

    def method(name: str) -> Any:
        own = {"example": example} if name == "at" else {}
        return getattr(limbeck, name)(net(student, data), master, **own)

    def run(name: str, given: limbeck.data.Data) -> tuple[float, torch.nn.Module]:
        clock = Clock()
        made = limbeck.plain(net(student, data)) if name == "plain" else method(name)
        result = limbeck.fit(made, given, epochs=2, callbacks=[clock], progress=False)
        return clock.spent[-1], result.student

    with folder() as where:
        limbeck.build_cache(where / "16", master, data, methods=list(map(method, ("kd", "at"))))
        limbeck.build_cache(where / "32", master, data, methods=list(map(method, ("kd", "at"))), numbers="float32")
        half, whole = (limbeck.cached(data, where / name) for name in ("16", "32"))
        variants: dict[str, Callable[[], float]] = {
            "plain": lambda: run("plain", data)[0],
            "plain again": lambda: run("plain", data)[0],
            **{f"{name}, cached": partial(lambda one: run(one, half)[0], name) for name in ANSWERS},
            "kd, the teacher at work": lambda: run("kd", data)[0],
        }
        spent: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(rounds):
            for name in [*variants][:: -1 if turn % 2 else 1]:
                spent[name].append(variants[name]())
        rows = []
        for name, values in spent.items():
            own = name.partition(",")[0]
            alike = ""
            if name.endswith("cached"):
                (_, one), (_, other) = run(own, data), run(own, whole)
                pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
                alike = "yes" if all(torch.equal(*pair) for pair in pairs) else "no"
            rows.append([name, ratios(values, spent["plain"]), ratios(values, spent["kd, the teacher at work"]), alike])
    return rows


def build(root: str, teacher: str, rounds: int, batches: int) -> list[Row]:
    """A cache's making beside the teacher's forward passes over the same batches."""
    data, master = cifar(root, batches * BATCH, views=1), net(teacher, cifar(root, BATCH), seed=1).eval()
    frozen, ids = limbeck.Frozen(master), torch.split(torch.arange(batches * BATCH), BATCH)

    def asked() -> float:
        begun = time.process_time()
        with torch.no_grad():
            for inputs, *_ in data.train.seen(0, ids):
                frozen(inputs)
        return time.process_time() - begun

    def built() -> float:
        spent: list[float] = []
        with folder() as where:
            from limbeck.engine.asking import Asking

            real = Asking.into
            begun = 0.0

            def timed(self: Any, cache: Cache, tell: Any) -> None:
                nonlocal begun
                begun = time.process_time()
                real(self, cache, tell)
                spent.append(time.process_time() - begun)

            Asking.into = timed  # type: ignore[method-assign]  # what is looked at before is that of any size
            try:
                limbeck.build_cache(where, master, data, progress=False)
            finally:
                Asking.into = real  # type: ignore[method-assign]
        return spent[0]

    times: dict[str, list[float]] = {"forward passes": [], "again": [], "build": []}
    for turn in range(rounds):
        each = {"forward passes": asked, "again": asked, "build": built}
        for name in [*each][:: -1 if turn % 2 else 1]:
            times[name].append(each[name]())
    return [[name, ratios(values, times["forward passes"])] for name, values in times.items()]


def contest(root: str, teacher: str, student: str, epochs: int, views: int, batches: int) -> list[Row]:
    """A comparison of eight methods, from one cache and with the teacher at work, beside as many plain trainings."""
    data, master = cifar(root, batches * BATCH, views=views), net(teacher, cifar(root, BATCH), seed=1).eval()
    example = data.example()

    def made(name: str) -> Any:
        own = {"example": example} if name in ("at", "sp", "rkd", "cc") else {}
        return getattr(limbeck, name)(net(student, data), master, **own)

    def compared(given: limbeck.data.Data, entries: list[str]) -> float:
        begun = time.process_time()
        limbeck.compare(
            entries,
            lambda: limbeck.zoo.network(student, data.outputs, data.shape),
            master,
            given,
            epochs=epochs,
            seeds=1,
            check=False,
            progress=False,
        )
        return time.process_time() - begun

    def plain() -> float:
        begun = time.process_time()
        for _ in CONTEST:
            limbeck.fit(limbeck.plain(net(student, data)), uncached(data), epochs=epochs, progress=False)
        return time.process_time() - begun

    first = plain()
    with folder() as where:
        begun = time.process_time()
        limbeck.build_cache(where, master, data, methods=list(map(made, CONTEST)))
        asking = time.process_time() - begun
        reading = compared(limbeck.cached(data, where), list(CONTEST))
    working = compared(data, list(CONTEST))
    base = (first + plain()) / 2
    return [
        [f"{len(CONTEST)} plain trainings, twice", f"{first / base:.2f}, {2 - first / base:.2f}"],
        [f"the cache of all {len(CONTEST)} methods, {views} views", f"{asking / base:.2f}"],
        ["the comparison from it (with its plain row)", f"{reading / base:.2f}"],
        ["both", f"{(asking + reading) / base:.2f}"],
        ["the comparison with the teacher at work", f"{working / base:.2f}"],
    ]


def growth() -> list[Row]:
    """How the reading of a batch grows: with samples, views, the width of an answer, the places, and the batch."""
    base = {"samples": 100_000, "views": 4, "width": 100, "places": 1, "batch": 64}
    curves = {
        "samples": (10_000, 100_000, 1_000_000),
        "views": (1, 4, 16),
        "width": (10, 100, 1000, 10_000),
        "places": (1, 2, 4, 8),
        "batch": (64, 256, 1024),
    }
    rows = []
    for what, values in curves.items():
        times = []
        for value in values:
            case = {**base, what: value}
            if case["width"] > 1000:
                case["samples"] = 20_000
            times.append(look_up(**case))
        slopes = np.diff(np.log(times)) / np.diff(np.log(values))
        rows.append(
            [
                what,
                ", ".join(f"{value:,}" for value in values),
                ", ".join(f"{1e6 * one:.0f}" for one in times),
                ", ".join(f"{one:.2f}" for one in slopes),
            ]
        )
    return rows


def look_up(samples: int, views: int, width: int, places: int, batch: int) -> float:
    """The CPU seconds of reading one batch, the pages in memory."""
    kept = [Kept(f"layer{index}", (width,)) for index in range(places)]
    with folder() as where:
        rows = max(8192, samples // 256)
        cache = Cache.create(where, samples=samples, places=kept, views=views, rows=rows, made_with={})
        shown = torch.randn(rows, width)
        for view, shard in cache.missing():
            own = shown[: len(cache.ids_of(shard))]
            cache.write(view, shard, [dict.fromkeys((one.place for one in kept), own)])
        for _ in cache.check():
            pass
        spent = []
        draw = torch.Generator().manual_seed(0)
        for turn in range(60):
            ids = torch.randint(samples, (batch,), generator=draw)
            begun = time.thread_time()
            cache.read(ids, torch.full_like(ids, turn % views))
            spent.append(time.thread_time() - begun)
    return median(spent[20:])


def table(heads: Row, rows: list[Row]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--root", default="", help="folder of CIFAR-10")
    said.add_argument("--only", choices=["epochs", "build", "compare", "growth"])
    said.add_argument("--teacher", default="resnet32x4")
    said.add_argument("--student", default="resnet8")
    said.add_argument("--rounds", type=int, default=5)
    said.add_argument("--batches", type=int, default=12)
    said.add_argument("--epochs", type=int, default=12, help="of the comparison")
    said.add_argument("--views", type=int, default=4, help="of the comparison")
    said.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    own = said.parse_args()
    torch.set_num_threads(1)
    pair = f"{own.student} from {own.teacher}"
    parts: dict[str, tuple[Row, Callable[[], list[Row]]]] = {
        "epochs": (
            [f"an epoch, {pair}", "/ plain", "/ kd with the teacher at work", "float32: the same student to the bit"],
            lambda: epochs(own.root, own.teacher, own.student, own.rounds, own.batches),
        ),
        "build": (
            [f"{own.teacher}, answers", "/ its forward passes"],
            lambda: build(own.root, own.teacher, own.rounds, own.batches),
        ),
        "compare": (
            [f"{pair}, {own.epochs} epochs", "/ 8 plain trainings"],
            lambda: contest(own.root, own.teacher, own.student, own.epochs, own.views, own.batches),
        ),
        "growth": (["reading a batch, by", "values", "µs", "slopes"], growth),
    }
    for name, (heads, measure) in parts.items():
        if own.only in (None, name):
            text = table(heads, measure())
            print(f"{text}\n", flush=True)
            if own.write:
                write_between(f"cache-{name}", text.splitlines())


if __name__ == "__main__":
    main()
