"""How often verdicts are wrong, and how soon they are told: the tables in docs/verdicts.md.

python bench/verdicts.py [--tables 4000] [--write]       simulated comparisons; two minutes on one core
python bench/verdicts.py --null POOL.csv [--write]       comparisons of plain students with plain students, on the digits

The pool of the second is trained where it is not there yet, 600 students by `limbeck.fit`, and kept row by row.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

import limbeck
from limbeck.measure import Plan, decide, judge, paired
from limbeck.measure.evidence import LEVEL
from limbeck.measure.looks import limits

Array = NDArray[np.float64]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "verdicts.md"
ROWS = (2, 5, 10, 30)
NOISES = ("equal", "unequal", "one wild", "heavy tails")
FIXED, DECIDING = (3, 5, 12), Plan(3, 12)
SMALLEST = 3.0
"""The smallest difference that matters, in standard deviations of the plain student."""
POOL, FIRST, DRAWS = 600, 200, 3000


def main() -> None:
    """Print a table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=4000, help="simulated comparisons of each case")
    parser.add_argument("--null", type=Path, help="the accuracies of the pool, a CSV file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/verdicts.md")
    said = parser.parse_args()
    name, lines = ("null", real(said.null)) if said.null else ("simulated", simulated(said.tables))
    text = "\n".join(show(lines))
    if said.write:
        page = PAGE.read_text(encoding="utf-8")
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        PAGE.write_text(re.sub(marks, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page, flags=re.S), encoding="utf-8")


def show(lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """Print the lines of a table as they come, and pass them on."""
    for number, cells in enumerate(lines):
        line = "| " + " | ".join(cells) + " |"
        rule = "|" + "|".join(["---", "---", *["---:"] * (len(cells) - 2)]) + "|"
        for each in (line, rule) if number == 0 else (line,):
            print(each, flush=True)
            yield each


# simulated -----------------------------------------------------------------------------------------------------------


def simulated(tables: int) -> Iterator[tuple[str, ...]]:
    """Yield a line for each number of rows, noise and procedure; effects are those of one row among others without."""
    yield (
        *("rows", "noise", "seeds", "false verdicts", "effect 5: told", "effect 3: told"),
        *("no difference, but 3", "difference 0: told, not > 3"),
    )
    _agrees_with_the_library()
    for rows in ROWS:
        for noise in NOISES:
            for seeds in (*FIXED, None):
                rng = np.random.default_rng(0)
                draw = partial(differences, rng, tables, rows, seeds or DECIDING.most or 0, noise)
                yield rows_of(rows, noise, seeds, draw)


def rows_of(rows: int, noise: str, seeds: int | None, draw: Callable[[], Array]) -> tuple[str, ...]:
    """Return the cells of a line."""
    rule = decided if seeds is None else fixed
    null = rule(draw(), 0.0)[0]
    cells = [f"{rows}", noise, "3 to 12" if seeds is None else f"{seeds}", percent(null.any(1).mean())]
    for effect in (5.0, 3.0):
        values = draw()
        values[:, :, -1] += effect
        told, when = rule(values, 0.0)
        cells.append(spoken(told[:, -1], when[:, -1], seeds))
    at_the_edge, none = draw() + SMALLEST, draw()
    cells.append(percent(rule(at_the_edge, SMALLEST)[0].any(1).mean()))
    told, when = rule(none, SMALLEST)
    cells.append(spoken(told, when, seeds))
    return tuple(cells)


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f} %"


def spoken(told: NDArray[np.bool_], when: Array, seeds: int | None) -> str:
    """Say how many were told, and after how many seeds on average, those counted that never were."""
    share = f"{100 * told.mean():.0f} %"
    return f"{share}, {when.mean():.1f} seeds" if seeds is None else share


def differences(rng: np.random.Generator, tables: int, rows: int, seeds: int, noise: str) -> Array:
    """Return differences to the plain student, (tables, seeds, rows), whose own noise, sd 1, is in all of them."""
    sd: Array | float = 1.0
    if noise == "unequal":
        sd = rng.choice([0.4, 1.0, 1.0, 3.0], size=(tables, 1, rows))
    if noise == "one wild":
        sd = np.ones((tables, 1, rows))
        sd[:, :, 0] = 6.0
    shape = (tables, seeds, rows + 1)
    drawn = rng.standard_t(3, shape) / np.sqrt(3) if noise == "heavy tails" else rng.standard_normal(shape)
    return drawn[:, :, :rows] * sd - drawn[:, :, rows:]


def p_values(values: Array, smallest: float) -> Array:
    """Return the p-values of the t-tests over seeds: two-sided, or of two one-sided tests that |true| < smallest."""
    n = values.shape[1]
    mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(n)
    if smallest:
        return np.asarray(special.stdtr(n - 1, (np.abs(mean) - smallest) / error))
    return np.asarray(2 * special.stdtr(n - 1, -np.abs(mean) / error))


def stepped(p: Array, told: NDArray[np.bool_], limit: Callable[[int], float]) -> NDArray[np.bool_]:
    """Return what Holm tells of what was not told, where ``limit(left)`` is the largest p-value that tells."""
    rows = p.shape[1]
    allowed = np.array([np.inf] + [limit(left) for left in range(1, rows + 1)])
    waiting = np.where(told, np.inf, p)
    order = np.argsort(waiting, axis=1)
    ranked = np.take_along_axis(waiting, order, 1)
    left = (rows - told.sum(1, keepdims=True)) - np.arange(rows)
    passed = np.minimum.accumulate((ranked < allowed[np.maximum(left, 0)]) & np.isfinite(ranked), axis=1)
    found = np.empty_like(told)
    np.put_along_axis(found, order, passed, 1)
    return found


def fixed(values: Array, smallest: float) -> tuple[NDArray[np.bool_], Array]:
    """Return what is told, and after how many seeds, where their number is fixed."""
    told = stepped(p_values(values, smallest), np.zeros(values[:, 0].shape, bool), lambda left: LEVEL / left)
    return told, np.full(told.shape, float(values.shape[1]))


def decided(values: Array, smallest: float) -> tuple[NDArray[np.bool_], Array]:
    """Return the same where seeds are added to rows that are not told; one kind of verdict at a time."""
    first, most = DECIDING.seeds, DECIDING.most or 0
    told, when = np.zeros(values[:, 0].shape, bool), np.full(values[:, 0].shape, float(most))
    for n in range(first, most + 1):

        def limit(left: int, n: int = n) -> float:
            return limits(LEVEL / left, first, most, sides=1 if smallest else 2)[n - first]

        new = stepped(p_values(values[:, :n], smallest), told, limit)
        when[new], told = n, told | new
    return told, when


def _agrees_with_the_library() -> None:
    """See that what is simulated here, many tables at once, is what `limbeck.measure` says of each."""
    rng = np.random.default_rng(9)
    for effect in (0.0, 3.0):
        values = differences(rng, 60, 4, 12, "unequal") + effect * (np.arange(4) == 3)
        (told, when), (at_once, _) = decided(values, 0.0), fixed(values[:, :5], 0.0)
        for of, its_told, its_when, its_once in zip(values, told, when, at_once, strict=True):
            zeros = [[0.0] * 12] * 4
            judged = decide(of.T.tolist(), zeros, plan=DECIDING)
            assert [one.verdict != "cannot tell" for one in judged] == its_told.tolist()
            assert [one.pair.n for one in judged] == its_when.tolist()
            five = judge([paired(row[:5].tolist(), [0.0] * 5) for row in of.T])
            assert [one.verdict != "cannot tell" for one in five] == its_once.tolist()


# real ----------------------------------------------------------------------------------------------------------------


def real(pool: Path) -> Iterator[tuple[str, ...]]:
    """Yield a line for each procedure: tables whose rows are plain students too, of other seeds, drawn from the pool."""
    accuracies = np.array(trained(pool))
    yield ("rows", "seeds", f"false of the first {FIRST} tables", f"of {DRAWS:,} tables", "mean seeds of a row")
    for rows in (1, 5, 10):
        rng = np.random.default_rng(rows)
        for seeds in (*FIXED, None):
            size = (rows + 1, seeds or DECIDING.most or 0)
            found = [judged(rng.choice(accuracies, size=size, replace=False), seeds) for _ in range(DRAWS)]
            wrong, used = np.array([told for told, _ in found]), float(np.mean([mean for _, mean in found]))
            kind = "3 to 12" if seeds is None else f"{seeds}"
            yield (f"{rows}", kind, f"{wrong[:FIRST].sum()}", percent(wrong.mean()), f"{used:.1f}")


def judged(drawn: Array, seeds: int | None) -> tuple[bool, float]:
    """Return whether a table claims anything of its rows beside the first, and how many seeds they took."""
    base, *rows = drawn.tolist()
    if seeds is None:
        found = decide(rows, [base] * len(rows), plan=DECIDING)
    else:
        found = judge([paired(row, base) for row in rows])
    return any(one.verdict != "cannot tell" for one in found), float(np.mean([one.pair.n for one in found]))


def trained(pool: Path) -> list[float]:
    """Return the test accuracies of plain students of the digits by seed, training those that are not in the file."""
    known = [*csv.reader(pool.open(newline=""))] if pool.exists() else []
    data = limbeck.data.load("digits", labels=100)
    with pool.open("a", newline="", buffering=1) as file:
        for seed in range(len(known), POOL):
            torch.manual_seed(seed)
            student = limbeck.zoo.network("mlp-32", data.num_classes, data.shape)
            served = data.labelled().with_seed(seed)
            found = limbeck.fit(limbeck.plain(student), served, epochs=10, seed=seed, progress=False)
            known.append([str(seed), repr(found.metrics["test/student/accuracy"])])
            csv.writer(file).writerow(known[-1])
    return [float(accuracy) for _, accuracy in known[:POOL]]


if __name__ == "__main__":
    main()
