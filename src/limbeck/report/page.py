"""A page is one HTML file that needs nothing else: no script, no network, light or dark as its reader likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from limbeck.report.palette import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Table:
    """Cells as plain text; the first column names the row, the others are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """An SVG element and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page, in the order of its fields.

    Args:
        title: Its heading.
        sentences: Paragraphs, plain text.
        table: Results.
        plots: Figures, side by side where there is room.
        facts: Short values by name.
        listing: Text kept as it is, folded away.
    """

    title: str
    sentences: Sequence[str] = ()
    table: Table | None = None
    plots: Sequence[Plot] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    listing: str = ""


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
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
