"""Markdown without a dialect: what any engine shows alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

from generator.places import places

CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
RULED = re.compile(r"=+( +=+)+\n")


def sections(first: str, *rest: str) -> str:
    """Join paragraphs; nothing, if nothing follows the first."""
    there = [text.strip() for text in rest if text and text.strip()]
    return "\n\n".join([first.strip(), *there]) if there else ""


def fence(language: str, code: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{code}\n```"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; nothing, if it has no rows."""
    lines = [[" ".join(cell.replace("|", "&#124;").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]) if rows else ""


def prose(text: str) -> str:
    """Return a docstring's text: its formulas as they are, its code as code, linked to where that is described.

    A table that a terminal can show stays as it is.
    """
    return "\n\n".join(_paragraph(one) for one in re.split(r"\n\s*\n", text) if one)


def plain(text: str) -> str:
    """Return text in which no sign means anything to Markdown."""
    return re.sub(r"[\\*_<>\[\]]", lambda sign: f"&#{ord(sign[0])};", text)


def _paragraph(text: str) -> str:
    if RULED.match(text):
        return fence("text", text)
    pieces = CODE.split(text)
    codes = [double or single for double, single in zip(pieces[1::3], pieces[2::3], strict=True)]
    return plain(pieces[0]) + "".join(
        _linked(code) + plain(after) for code, after in zip(codes, pieces[3::3], strict=True)
    )


def _linked(code: str) -> str:
    code = " ".join(code.split())
    return f"[`{code}`]({places()[code]})" if code in places() else f"`{code}`"
