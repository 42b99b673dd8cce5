"""Equations as drawings: the same in every browser, on paper and for every engine."""

from __future__ import annotations

import html
import re

import ziamath

CODE = r"^ *```.*?^ *```$|`[^`\n]+`"
MATH = re.compile(
    rf"{CODE}|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$]|[^\s$][^$\n]*[^\s$])\$", re.DOTALL | re.MULTILINE
)
EM = 20
ziamath.config.svg2 = False  # a page's equations must not share names of shapes


def draw(markdown: str) -> str:
    """Draw the equations of a page, which stand in LaTeX between dollars; code stays as it is."""
    return MATH.sub(_drawn, markdown)


def _drawn(found: re.Match[str]) -> str:
    if found["block"]:
        return equation(found["block"], block=True)
    return equation(found["inline"], block=False) if found["inline"] else found[0]


def equation(latex: str, *, block: bool) -> str:
    """Return an equation as SVG, in the colour and size of the text around it.

    It stands in Markdown, whose signs its label must not have: all but letters and digits of the LaTeX are entities there.
    """
    drawn = ziamath.Latex(" ".join(latex.split()), size=EM, color="currentColor", inline=not block).svg()
    box = re.search(r'viewBox="([^"]+)"', drawn)[1]
    _, top, width, height = map(float, box.split())
    style = f"width:{width / EM:.3f}em;vertical-align:{-(top + height) / EM:.3f}em"
    label = re.sub(r"[^\w ]|_", lambda sign: f"&#{ord(sign[0])};", " ".join(html.unescape(latex).split()))
    shapes = " ".join(drawn.partition(">")[2].split())
    svg = f'<svg class="math" role="img" aria-label="{label}" viewBox="{box}" style="{style}">{shapes}'
    return f'<div class="equation">{svg}</div>' if block else svg
