"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
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
