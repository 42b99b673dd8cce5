"""A page is one HTML file that needs nothing else: no script, no network, light or dark as its reader likes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from limbeck.report.palette import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


LONG = 48
"""Letters from which a cell is a text, which is broken into lines."""


@dataclass(frozen=True)
class Table:
    """Cells as plain text; the first column names the row. Where a page is narrow, a row stands as a card of its own."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """An SVG element and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class File:
    """A file beside the page.

    Args:
        name: As the reader knows it.
        href: Where it is, from the page.
        words: What it is, in a few words.
    """

    name: str
    href: str
    words: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page, in the order of its fields.

    Args:
        title: Its heading.
        sentences: Paragraphs, plain text.
        table: Results.
        remarks: What is to be said after the table, plain text.
        plots: Figures, side by side where there is room.
        facts: Short values by name.
        files: Links.
        listing: Text kept as it is, folded away.
    """

    title: str
    sentences: Sequence[str] = ()
    table: Table | None = None
    remarks: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[File] = ()
    listing: str = ""


def linked(path: Path, page: Path, words: str = "", name: str = "") -> File:
    """Return the link to a file, as it lies from the page.

    Args:
        path: The file.
        page: Where the page is.
        words: What the file is.
        name: What the reader calls it; by default its own name.
    """
    way = Path(os.path.relpath(path, page.parent)).as_posix()
    return File(name or path.name, quote(f"./{way}" if ":" in way else way), words)


def render(title: str, sentences: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a page as HTML; every text is escaped, figures alone are taken as they are.

    Args:
        title: Of the page.
        sentences: What it says before its sections, the most important first.
        sections: Its parts.
    """
    light, dark = ("; ".join(f"--{name}: {colour}" for name, colour in palette.items()) for palette in (LIGHT, DARK))
    return _template().render(title=title, sentences=sentences, sections=sections, light=light, dark=dark)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("limbeck.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["looks_of"] = _looks_of
    environment.filters["prose"] = _prose
    return environment.get_template("page.html.j2")


def _prose(text: str) -> Markup:
    """Return a sentence as HTML: what stands between backticks is code, and no line ends before "%"."""
    from markupsafe import Markup, escape

    whole = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(whole))))


def _looks_of(column: str, cell: str) -> str:
    """Return the classes of a cell: verdicts and texts are read from the left, and what is empty stands on no card."""
    kinds = {"verdict": column == "verdict", "words": len(cell) > LONG, "none": cell in ("", "–")}
    return " ".join(kind for kind, holds in kinds.items() if holds)
