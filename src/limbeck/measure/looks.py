"""How small a p-value must be when one looks after every seed, so that all looks together are wrong as seldom as one."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BINS = 200
"""In how many parts the distribution of what may be seen is kept; with 1,200 a limit differs by less than 1 %."""


@cache
def limits(level: float, first: int, most: int, *, sides: int = 2) -> tuple[float, ...]:
    """Return the largest p-value that tells at each look, after ``first``, ``first + 1``, ... ``most`` seeds.

    The level is spent equally over the looks: where there is no difference, P(told at this look and at none before) is
    ``level`` / number of looks at each of them (Lan & DeMets, "Discrete sequential boundaries for clinical trials",
    Biometrika 70, 1983). The limits are exact for the paired t-test, and no approximation by normal statistics: what the
    test sees of n differences x is y = Σx / √Σx² alone, and another difference, in units of the root mean square of those
    before, is drawn of Student's t with n degrees of freedom whatever y is. So the looks are a Markov chain,

        y' = (y + u) / √(1 + u²),    u √n ~ t_n,    t = y √(n − 1) / √(n − y²),

    whose distribution among those who are not told yet is followed here from look to look.

    Args:
        level: Of all looks together, in (0, 1).
        first: Differences at the first look, at least 2.
        most: Differences at the last one.
        sides: 2 for the test of no difference; 1 for a test in one direction, as those of equivalence.

    Example:
        >>> [round(limit, 4) for limit in limits(0.05, 3, 5)]
        [0.0167, 0.0214, 0.0252]
    """
    import numpy as np

    share, found = level / (most - first + 1), []
    places, weights = np.zeros(1), np.ones(1)  # before the first difference everything is open
    for n in range(first, most + 1):
        limit = _limit(places, weights, n, first, share, sides)
        found.append(limit)
        tails = _place(np.geomspace(limit / sides, 0.5, BINS // 2 + 1), n)  # finest where the next look may tell
        edges = np.concatenate((-math.sqrt(n) * np.ones(2 - sides), -tails, tails[-2::-1]))
        weights = np.diff(_below(edges, places, weights, n, first))
        places = (edges[1:] + edges[:-1]) / 2
    return tuple(found)


def _limit(places: Array, weights: Array, n: int, first: int, share: float, sides: int) -> float:
    """Return the p-value whose place is passed, for the first time, with the probability ``share``."""
    from scipy import optimize

    def too_many(exponent: float) -> float:
        edge = _place(math.exp(exponent) / sides, n)
        above = weights.sum() - _below(edge, places, weights, n, first)
        return float(sides * above - share)

    return math.exp(optimize.brentq(too_many, math.log(share) - 1, math.log(0.9), xtol=1e-6))


def _place(tail: Array | float, n: int) -> Array:
    """Return the y of n differences that is passed with this probability where there is no difference."""
    import numpy as np
    from scipy import special

    t = -special.stdtrit(n - 1, tail)
    return np.asarray(t * np.sqrt(n / (n - 1 + t * t)))


def _below(edges: Array | float, places: Array, weights: Array, n: int, first: int) -> Array:
    """Return P(y ≤ edge after n differences, not told before) for each edge."""
    import numpy as np
    from scipy import special

    edges = np.asarray(edges)
    if n == first:
        return np.asarray(special.stdtr(n - 1, edges * math.sqrt(n - 1) / np.sqrt(np.maximum(n - edges**2, 1e-12))))
    # with u = tan φ, y' ≤ e is sin(φ + arctan y) ≤ e / √(1 + y²)
    reach = np.arcsin(np.clip(edges[..., None] / np.sqrt(1 + places**2), -1, 1))
    turned, quarter = np.arctan(places), math.pi / 2

    def chance(angle: Array) -> Array:
        within = np.clip(angle, -quarter, quarter)
        return np.asarray(special.stdtr(n - 1, math.sqrt(n - 1) * np.tan(within)))

    between = chance(math.pi - reach - turned) - chance(reach - turned)
    return np.asarray((1 - between) @ weights)
