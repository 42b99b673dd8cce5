"""One command in several processes at once, which share its work among themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from limbeck.cli.console import STOPPED, complain
from limbeck.engine.interrupt import interruptible

Process = subprocess.Popen[bytes]

LOOK_EVERY = 0.1
"""Seconds between two looks at the processes."""


def side_by_side(first: Mapping[str, Any], others: Mapping[str, Any], jobs: int) -> int:
    """Run a command in several processes, of which the first tells the user how it goes and what comes out.

    GPUs are dealt out in turn, and the cores shared out equally. Ctrl-C reaches each of them, once. Where one fails, the
    others stop as if by Ctrl-C.

    Args:
        first: The command, as ``--config`` takes it.
        others: The same for those who do not tell.
        jobs: How many, with the first.

    Returns:
        The exit code.
    """
    with TemporaryDirectory() as folder, interruptible() as wants_stop:
        places = [Path(folder) / str(index) for index in range(jobs)]
        processes = [_start(first, places[0], _environment(0, jobs), quiet=False)]
        for index in range(1, jobs):
            processes.append(_start(others, places[index], _environment(index, jobs), quiet=True))
        failed = _wait(processes, wants_stop)
        if failed is None:
            return processes[0].returncode
        said = (places[failed] / "stderr").read_text(encoding="utf-8", errors="replace")
        complain(f"process {failed + 1} of {jobs} {_end(processes[failed].returncode)}\n{said}".strip())
        return 2


def _start(command: Mapping[str, Any], folder: Path, environment: Mapping[str, str], *, quiet: bool) -> Process:
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(dict(command)), encoding="utf-8")
    with (folder / "stderr").open("wb") as words:
        return subprocess.Popen(
            [sys.executable, "-m", "limbeck.cli", "--config", str(config), command["subcommand"]],
            env=environment,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=words if quiet else None,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
        )


def _environment(index: int, jobs: int) -> dict[str, str]:
    """Give a process its share of the cores, unless the user has said how many threads, and a GPU if there are any."""
    there = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    gpus = [gpu for gpu in there.split(",") if gpu]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ, **own}


def _wait(processes: Sequence[Process], wants_stop: Callable[[], bool]) -> int | None:
    """Wait for all; pass on Ctrl-C; return which one failed first, if any did."""
    failed: list[int] = []
    told = False
    try:
        while any(process.poll() is None for process in processes):
            failed = failed or _failed(processes)
            if not told and (failed or wants_stop()):
                _tell(processes)
                told = True
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:  # the second one: they stop at once
        _tell(processes)
        for process in processes:
            process.wait()
        raise
    return next(iter(failed or _failed(processes)), None)


def _tell(processes: Sequence[Process]) -> None:
    """Ask all to stop."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def _failed(processes: Sequence[Process]) -> list[int]:
    fine = (None, 0, STOPPED, -signal.SIGINT)
    return [index for index, process in enumerate(processes) if process.poll() not in fine]


def _end(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
