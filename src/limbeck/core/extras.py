"""What limbeck can do without, and how it is installed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def install(extra: str) -> str:
    """Return the command that installs an extra, for limbeck as it is installed: from a folder, an address or the index.

    Args:
        extra: Its name in ``pyproject.toml``, as ``"export"``.
    """
    from urllib.parse import urlsplit  # here, since they take long, and most never need them
    from urllib.request import url2pathname

    origin = _origin()
    url, wanted = str(origin.get("url", "")), f"limbeck[{extra}]"
    if not url:
        return f"pip install '{wanted}'"
    if "vcs_info" in origin:
        return f"pip install '{wanted} @ {origin['vcs_info']['vcs']}+{url}'"
    if not url.startswith("file:"):
        return f"pip install '{wanted} @ {url}'"
    folder = url2pathname(urlsplit(url).path)
    if not Path(folder).exists():  # a clone that was removed, or a wheel
        return f"pip install '{wanted}'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{folder}[{extra}]')}"


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Say of an import that fails how to install what it lacks.

    Args:
        extra: Which brings it.
        what: Needs it, for the message.

    Raises:
        ModuleNotFoundError: A package is not installed; the text says which, and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "limbeck").partition(".")[0]
        if package == "limbeck":
            raise
        raise ModuleNotFoundError(f"{what} needs {package}: {install(extra)}", name=error.name) from error


def _origin() -> dict[str, Any]:
    """Return what the installer wrote of where limbeck comes from; nothing where that is the index (PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        written = distribution("limbeck").read_text("direct_url.json")
    except PackageNotFoundError:  # it is not installed: its source is on the path
        written = None
    return dict(json.loads(written)) if written else {}
