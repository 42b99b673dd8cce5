"""Tables between the marks of docs/performance.md, where each bench writes its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck.core import files

PAGE = Path(__file__).parents[1] / "docs/performance.md"


def write_between(name: str, lines: Sequence[str]) -> None:
    """Put lines between the marks of a name, ``<!-- name: written by ... -->`` and ``<!-- name: end -->``.

    Raises:
        ValueError: The page has no such marks.
    """
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.find(f"<!-- {name}: written by "), text.find(f"<!-- {name}: end -->")
    if not 0 <= begin < end:
        raise ValueError(f"{PAGE} has no marks of {name!r}, between which its table goes")
    head = text[: text.index("\n", begin)]
    files.write(PAGE, "\n\n".join([head, "\n".join(lines), text[end:]]))
