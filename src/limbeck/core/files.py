"""Files that are either whole or not there, and locks that end with whoever holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file beside its place and move it there, so that no reader ever finds half of one.

    Args:
        path: Where it belongs; its folder is made.
        content: Text, bytes, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if callable(content):
            content(beside)
        elif isinstance(content, bytes):
            beside.write_bytes(content)
        else:
            beside.write_text(content, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


@contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that one process at a time can hold; yields whether this one does.

    The operating system takes it back when the process ends, however it ends. The file is empty, and stays.

    Args:
        path: The lock; its folder is made.
        wait: Wait for it, rather than do without where another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
