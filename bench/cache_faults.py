"""Break a teacher cache in every way that a disk and a power cut have, and see that nothing wrong is ever read.

    python bench/cache_faults.py [--kills 20] [--flips 60] [--seed 0]

A case is right where what is read is what an undisturbed build would give, or where reading raises an error in words.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

import limbeck
from limbeck.core.files import Damaged
from limbeck.data.cache import Cache

VIEWS, WIDTH = 6, 256
Case = Callable[[Path, random.Random], bool]


def teacher() -> torch.nn.Module:
    torch.manual_seed(0)
    return limbeck.zoo.network(f"mlp-{WIDTH}", 10, (1, 8, 8)).eval()


def data() -> limbeck.data.Data:
    return limbeck.data.load("digits", batch_size=32)


def build(folder: str, largest: int | None = None, user: int | None = None) -> None:
    """Build in a process of its own: of files of a size at most, or as another user."""
    torch.set_num_threads(1)
    limbeck.verbs.cache.ROWS = 64  # many shards
    limbeck.verbs.cache.SHARDS = 10**9
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    who, what = teacher(), data()
    if user is not None:
        os.setuid(user)
    limbeck.build_cache(folder, who, what, views=VIEWS, layers=["layers.relu1"], progress=False)


def read_all(folder: Path) -> dict[str, torch.Tensor] | None:
    """Return all that a cache holds; None where it says that it cannot be read."""
    try:
        cache = Cache(folder)
        ids = torch.arange(cache.samples).repeat(cache.views)
        return cache.read(ids, torch.arange(cache.views).repeat_interleave(cache.samples))
    except (Damaged, FileNotFoundError):
        return None


class Break:
    """The cases, on copies of one whole cache."""

    def __init__(self, processes: BaseContext, whole: Path) -> None:
        self.processes, self.whole = processes, whole
        read = read_all(whole)
        assert read is not None
        self.read = read

    def is_right(self, folder: Path, finished: bool = False) -> bool:
        """Whether a cache is read as the whole one, or, unless it is finished, not at all."""
        found = read_all(folder)
        if found is None:
            return not finished
        return all(torch.equal(found[place], value) for place, value in self.read.items())

    def builder(self, folder: Path, **limits: int) -> multiprocessing.Process:
        """Start to build."""
        process = self.processes.Process(target=build, args=(str(folder),), kwargs=limits)  # type: ignore[attr-defined]
        process.start()
        return process

    def killed(self, folder: Path, draw: random.Random) -> bool:
        """Kill it at a moment between its first file and its last; then let the same call go on."""
        one = self.builder(folder)
        while one.is_alive() and not [*folder.glob("view-*/*")]:
            time.sleep(0.005)
        time.sleep(draw.random() * self.seconds)
        one.kill()
        one.join()
        there = {path: path.stat().st_mtime_ns for path in folder.glob("view-*/*.json")}
        right = self.is_right(folder)
        again = self.builder(folder)
        again.join()
        kept = all(path.stat().st_mtime_ns == when for path, when in there.items())
        return right and kept and again.exitcode == 0 and self.is_right(folder, finished=True)

    def time_it(self, folder: Path) -> None:
        """Find out how long a build writes."""
        one = self.builder(folder)
        while one.is_alive() and not [*folder.glob("view-*/*")]:
            time.sleep(0.005)
        begun = time.perf_counter()
        one.join()
        self.seconds = time.perf_counter() - begun

    def flipped(self, folder: Path, draw: random.Random) -> bool:
        """Flip a bit of any file."""
        shutil.copytree(self.whole, folder, dirs_exist_ok=True)
        path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))
        return self.is_right(folder)

    def cut(self, folder: Path, draw: random.Random) -> bool:
        """Cut any file short, or lose it."""
        shutil.copytree(self.whole, folder, dirs_exist_ok=True)
        path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
        length = draw.randrange(path.stat().st_size)
        path.write_bytes(path.read_bytes()[:length])
        if draw.random() < 0.5:
            path.unlink()
        return self.is_right(folder)

    def full(self, folder: Path, draw: random.Random) -> bool:
        """Let no file be larger than a part of a shard; then let the same call go on, with room."""
        one = self.builder(folder, largest=draw.choice([300, 1500, 4000, 20000]))
        one.join()
        right = one.exitcode != 0 and self.is_right(folder)
        again = self.builder(folder)
        again.join()
        return right and again.exitcode == 0 and self.is_right(folder, finished=True)

    def both(self, folder: Path, draw: random.Random) -> bool:
        """Build twice at once, and kill one of the two now and then."""
        pair = [self.builder(folder) for _ in range(2)]
        if draw.random() < 0.5:
            time.sleep(2 + draw.random() * self.seconds)
            pair[0].kill()
        for one in pair:
            one.join()
        return pair[1].exitcode == 0 and self.is_right(folder, finished=True)

    def closed(self, folder: Path, draw: random.Random) -> bool:
        """Read what may not be written to; and let a builder of another user fail where a shard is missing."""
        shutil.copytree(self.whole, folder, dirs_exist_ok=True)
        draw.choice(sorted(folder.glob("view-*/*.json"))).unlink()
        os.chmod(folder.parent, 0o755)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        one = self.builder(folder, user=65534)
        one.join()
        left = Cache(folder).missing()
        return one.exitcode == 1 and len(left) == 1 and self.is_right(folder)


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--kills", type=int, default=20)
    said.add_argument("--flips", type=int, default=60)
    said.add_argument("--seed", type=int, default=0)
    own = said.parse_args()
    draw, found = random.Random(own.seed), Counter[str]()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["limbeck.verbs.cache", "limbeck.verbs.compare"])
    with tempfile.TemporaryDirectory() as home:
        whole = Path(home) / "whole"
        one = processes.Process(target=build, args=(str(whole),))
        one.start()
        one.join()
        breaks = Break(processes, whole)
        breaks.time_it(Path(home) / "timed")
        cases: dict[str, tuple[Case, int]] = {
            "killed": (breaks.killed, own.kills),
            "flipped": (breaks.flipped, own.flips),
            "cut or lost": (breaks.cut, own.flips),
            "full disk": (breaks.full, own.kills // 4),
            "two builders": (breaks.both, own.kills // 4),
            "closed folder": (breaks.closed, own.kills // 4),
        }
        for name, (case, count) in cases.items():
            for turn in range(count):
                folder = Path(home) / f"{name.replace(' ', '-')}-{turn}"
                folder.mkdir()
                found[f"{name}, {'right' if case(folder, draw) else 'WRONG'}"] += 1
                shutil.rmtree(folder)
            print({kind: count for kind, count in found.items() if kind.startswith(name)}, flush=True)
    wrong = sum(count for kind, count in found.items() if "WRONG" in kind)
    print(f"{sum(found.values()) - wrong} right, {wrong} wrong")


if __name__ == "__main__":
    main()
