"""The colours of a page, for light and for dark: text reads at 4.5 to 1 on its ground, lines at 3 to 1 or more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from limbeck.report.table import Role

LIGHT: Mapping[str, str] = {
    "ground": "#ffffff",
    "ink": "#1c1f24",
    "soft": "#58606b",
    "rule": "#d3d7dd",
    "panel": "#f6f7f9",
    "series-0": "#2563b0",
    "series-1": "#c2570c",
    "series-2": "#1a7f53",
    "series-3": "#8b46b5",
    "series-4": "#b3261e",
    "series-5": "#6b7280",
    "series-6": "#0b7285",
    "series-7": "#a3316f",
}
DARK: Mapping[str, str] = {
    "ground": "#14171b",
    "ink": "#e4e7eb",
    "soft": "#a2abb6",
    "rule": "#3a4149",
    "panel": "#1d2126",
    "series-0": "#7ab3f5",
    "series-1": "#f2a35e",
    "series-2": "#6fcf97",
    "series-3": "#cda2ee",
    "series-4": "#f28b82",
    "series-5": "#a2abb6",
    "series-6": "#66cfe0",
    "series-7": "#f09cc8",
}

GROUND, INK, SOFT, RULE = LIGHT["ground"], LIGHT["ink"], LIGHT["soft"], LIGHT["rule"]
SERIES = tuple(colour for name, colour in LIGHT.items() if name.startswith("series"))
Style = Literal["-", "--", "-.", ":"]
STYLES: tuple[Style, ...] = ("-", "--", "-.", ":")  # so that colour is not all that tells the lines apart
MARKERS = ("o", "D", "s", "^", "v", "P", "X")

CSS = {colour: f"var(--{name}, {colour})" for name, colour in LIGHT.items()} | {INK: "currentColor"}
"""What each colour of a figure becomes in the page."""


@dataclass(frozen=True)
class Look:
    """How a network is drawn, the same in all figures of a page: colour, line and marker; a control's marker is hollow."""

    colour: str
    line: Style = "-"
    marker: str = "o"
    filled: bool = True


TEACHER, BASELINE = Look(SERIES[5], marker="s"), Look(SERIES[0])
_OTHERS = (SERIES[1], SERIES[2], SERIES[3], SERIES[4], SERIES[6], SERIES[7])


def looks(roles: Mapping[str, Role]) -> dict[str, Look]:
    """Return a look for each network: the teacher is grey and the plain student blue on every page.

    Args:
        roles: Of each network by its name, in the order they are shown.
    """
    others = [name for name, role in roles.items() if role not in ("teacher", "baseline")]
    given = {name: another(index, filled=roles[name] != "control") for index, name in enumerate(others)}
    fixed = {"teacher": TEACHER, "baseline": BASELINE}
    return {name: given[name] if name in given else fixed[role] for name, role in roles.items()}


def another(index: int, *, filled: bool = True) -> Look:
    """Return the look of the network with this index among those that are neither teacher nor plain student."""
    return Look(
        _OTHERS[index % len(_OTHERS)], STYLES[(index + 1) % len(STYLES)], MARKERS[(index + 1) % len(MARKERS)], filled
    )


def series(index: int) -> Look:
    """Return the look of one of several lines that are no networks, as the terms of a loss."""
    return Look(SERIES[index % len(SERIES)], STYLES[index % len(STYLES)])
