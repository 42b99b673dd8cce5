"""Numbers as people write them: no exponents."""

from __future__ import annotations

import math

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALLEST, LARGEST = 1e-6, 1e15
"""Beyond these a number is a power of ten: nobody counts so many zeros."""


def digits(value: float, count: int = 3, *, zeros: bool = False) -> str:
    """Return a number in so many digits: 2,100; 0.0312; 2.6 × 10³³. A minus is a minus sign.

    Args:
        value: The number.
        count: How many digits count, at least 1; whole numbers keep all they have before the point.
        zeros: Whether zeros at the end count, too: 0.500 and not 0.5.
    """
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    rounded = float(f"{value:.{count - 1}e}")
    if rounded == 0:
        return f"{0:.{count - 1}f}" if zeros else "0"
    power = math.floor(math.log10(abs(rounded)))
    if not SMALLEST <= abs(rounded) < LARGEST:
        leading = f"{rounded:.{count - 1}e}".partition("e")[0]
        shown = leading if zeros or "." not in leading else leading.rstrip("0").rstrip(".")
        return f"{shown} × 10{str(power).translate(SUPERSCRIPTS)}".replace("-", "−")
    text = f"{rounded:,.{max(0, count - 1 - power)}f}"
    if not zeros and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")
