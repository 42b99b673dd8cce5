"""Tables between the marks of a page of docs, where each bench writes its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck.core import files

PAGE = Path(__file__).parents[1] / "docs/performance.md"


def write_between(name: str, lines: Sequence[str], page: Path | None = None) -> None:
    """Put lines between the marks of a name, ``<!-- name: written by ... -->`` and ``<!-- name: end -->``.

    Args:
        name: The name.
        lines: What goes there.
        page: Where; docs/performance.md by default.

    Raises:
        ValueError: The page has no such marks.
    """
    page = page or PAGE
    text = page.read_text(encoding="utf-8")
    begin, end = text.find(f"<!-- {name}: written by "), text.find(f"<!-- {name}: end -->")
    if not 0 <= begin < end:
        raise ValueError(f"{page} has no marks of {name!r}, between which its table goes")
    head = text[: text.index("\n", begin)]
    files.write(page, "\n\n".join([head, "\n".join(lines), text[end:]]))
