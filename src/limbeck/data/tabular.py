"""Tables: rows of numbers and categories, from CSV and UCI files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.frozen import frozen
from limbeck.core.task import logits
from limbeck.data.epochs import generator
from limbeck.data.rows import Rows
from limbeck.data.split import groups, hold_out
from limbeck.nets.tabular import Encode, Rescale

MISSING = ("", "?", "na", "n/a", "nan", "-nan", "null", "none")
"""What stands in a cell that holds nothing."""


@dataclass(frozen=True)
class Column:
    """A column: its name and, unless it holds numbers, its categories, whose places are the numbers in the rows."""

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows float32 (N, D), and their targets: classes int64 (N,), or values float32 (N, 1)."""

    rows: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> Table:
        """Return some of the rows."""
        return Table(self.rows[rows], self.targets[rows])


@dataclass(frozen=True)
class Tabular:
    """A table, split.

    Args:
        name: What it was loaded by.
        train: With labels.
        unlabelled: Rows (N, D) whose labels were put away.
        val: With labels too, for choosing.
        test: For the final number alone.
        columns: In the order of the rows.
        classes: Names, in the order of the targets; none of a regression.
        note: What the reader of a result should know.

    Raises:
        ValueError: No row to learn from has more than one class.
    """

    name: str
    train: Table
    unlabelled: Tensor
    val: Table
    test: Table
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.classes:
            return
        there = set(self.train.targets.tolist())
        missing = [name for place, name in enumerate(self.classes) if place not in there]
        if len(there) < 2:
            raise ValueError(
                f"{self.name}: the {len(self.train)} labelled rows to learn from are all of one class: keep more labels, "
                "labels= (--labels), or hold out less, val_share=, test_share="
            )
        if missing:
            warnings.warn(
                f"{self.name}: no row to learn from is of {', '.join(map(repr, missing[:5]))}, "
                f"{len(missing)} of {len(self.classes)} classes, so that no model can answer them; more labels "
                "(--labels), or another --split-seed, may hold some",
                stacklevel=3,
            )

    @property
    def categorical(self) -> tuple[int, ...]:
        """The columns that hold categories."""
        return tuple(index for index, column in enumerate(self.columns) if column.categories)

    @property
    def outputs(self) -> int:
        """How many outputs a network needs: one a class, or one for the value."""
        return len(self.classes) or 1

    def encoder(self) -> Encode:
        """Return a network's first layer, which standardises numbers by train's mean and deviation."""
        std, mean = torch.std_mean(torch.cat([self.train.rows, self.unlabelled]).double(), 0, correction=0)
        return Encode([len(column.categories) for column in self.columns], mean, std)

    def rescale(self) -> Rescale | None:
        """Return a network's last layer, which gives values train's mean and deviation; None where there are classes."""
        if self.classes:
            return None
        std, mean = torch.std_mean(self.train.targets.double(), 0, correction=0)
        return Rescale(mean, std)


def answered(
    rows: Tensor, teacher: nn.Module, *, batch_size: int, shuffle: bool = True, seed: int = 0, chunk: int = 10_000
) -> Rows:
    """Ask a teacher once for all rows; return a loader whose targets are its answers, for ``limbeck.mimic(student, None)``.

    Args:
        rows: (N, D).
        teacher: Any network, or a `limbeck.SklearnTeacher`; it is asked in eval mode.
        batch_size: Rows in a batch of the loader.
        shuffle: Permute every view.
        seed: Of the order.
        chunk: How many rows the teacher is asked for at once; 10,000 is ours.
    """
    view = frozen(teacher)
    with torch.no_grad():
        answers = torch.cat([logits(view(part)) for part in torch.split(rows, chunk)])
    return Rows(rows, answers, batch_size=batch_size, shuffle=shuffle, seed=seed)


# reading -------------------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """A table as it stands in files: its cells as text by column, how many of its rows are for tests, its target."""

    cells: dict[str, list[str]]
    tests: int | None
    target: str
    categorical: tuple[str, ...]
    note: str = ""


def names() -> list[str]:
    """Return the names that ``load`` knows beside files."""
    return list(_SETS)


def load(
    data: str,
    root: str | Path | None = None,
    *,
    target: str | None = None,
    categorical: Collection[str] = (),
    drop: Collection[str] = (),
    regression: bool = False,
    labels: int | None = None,
    val_share: float = 0.1,
    test_share: float = 0.25,
    split_seed: int = 0,
) -> Tabular:
    """Load a table.

    ``adult`` (UCI's ``adult.data`` and ``adult.test``; a missing "?" is a category) and ``covtype`` (``train.csv`` and
    ``test.csv`` of Kaggle's 15,120 rows; the 4 columns of the wilderness area are read as one of categories, and so are the
    40 of the soil) have their own test rows. Of a CSV file with a header a share is taken.

    Args:
        data: ``adult``, ``covtype``, or a file that ends in .csv.
        root: The folder that holds the files, or those of a name in a folder of that name.
        target: The column to predict; the file's last one by default.
        categorical: Columns that hold categories, as text or as numbers without an order; an empty cell is one too.
        drop: Columns to leave out: a row's number, say.
        regression: Predict a number.
        labels: Keep this many labels in all, every class in proportion; the rows to train on and to validate by are taken
            from them, and the other rows stay without. Test rows keep theirs.
        val_share: Of the labelled rows, held out for validation.
        test_share: Of a file, held out for the test.
        split_seed: Of what is held out, and of the labels kept.

    Raises:
        FileNotFoundError: No such file; with where it was looked for.
        ValueError: No such name or column, text where numbers belong, missing numbers, too few rows, or fewer labels than
            classes.
    """
    read = _read(data, root, target)
    if read.target in drop:
        raise ValueError(
            f"{data}: {read.target!r} is the target and cannot be left out: name another, target= (--target)"
        )
    given = {*categorical, *drop}
    if unknown := [name for name in given if name not in read.cells]:
        raise ValueError(f"{data} has no column {unknown[0]!r}: it has {', '.join(read.cells)}")
    kept = {name: cells for name, cells in read.cells.items() if name not in (*drop, read.target)}
    if not kept:
        raise ValueError(f"{data}: no column is left to predict {read.target!r} from")
    columns, rows = _columns(data, kept, {*categorical, *read.categorical})
    classes, targets = _targets(data, read, regression)
    table = Table(rows, targets)
    split = _Splitter(data, split_seed)
    if read.tests is None:
        train, test = split(table, test_share, "test_share", "test")
    else:
        train, test = table.take(torch.arange(len(table) - read.tests)), table.take(torch.arange(-read.tests, 0))
    unlabelled = train.rows[:0]
    if labels is not None and labels != len(train):
        least = max(2, len(classes))  # one to learn from and one to choose by, and one of each class
        if not least <= labels <= len(train):
            raise ValueError(
                f"labels: expected between {least} and the {len(train)} rows outside the test, got {labels}"
            )
        rest, train = split(train, labels / len(train), "labels", "labels")
        unlabelled = rest.rows
    train, val = split(train, val_share, "val_share", "val")
    return Tabular(data, train, unlabelled, val, test, columns, classes, read.note)


@dataclass(frozen=True)
class _Splitter:
    data: str
    seed: int

    def __call__(self, table: Table, share: float, name: str, purpose: str) -> tuple[Table, Table]:
        """Return what is kept and what is held out: of every class in proportion."""
        if not 0 < share < 1:
            raise ValueError(f"{name}: expected a share between 0 and 1, got {share}")
        if len(table) < 2:
            raise ValueError(f"{self.data}: expected at least 2 rows to hold some out ({name}), got {len(table)}")
        kept, held = hold_out(groups(table.targets), share, generator(purpose, self.seed), name)
        return table.take(kept), table.take(held)


def _read(data: str, root: str | Path | None, target: str | None) -> _Read:
    if data in _SETS:
        read = _SETS[data](_folder(data, root))
        if target not in (None, read.target):
            raise ValueError(f"{data}: its target is {read.target!r}, got target={target!r}")
        return read
    if not data.endswith(".csv"):
        raise ValueError(f"expected a table out of {', '.join(_SETS)}, or a file that ends in .csv, got {data!r}")
    path = Path(root or ".") / data
    cells = _cells(path)
    if all(_number(name) is not None for name in cells):
        raise ValueError(
            f"{data} begins with a row of numbers, {', '.join(cells)[:60]}: put the columns' names above it, as the "
            "first row is read as names"
        )
    if len(cells) == 1:
        raise ValueError(_single(path, next(iter(cells))))
    target = next(reversed(cells)) if target is None else target
    if target not in cells:
        raise ValueError(f"{data} has no column {target!r}: it has {', '.join(cells)}")
    return _Read(cells, None, target, ())


def _folder(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"{name} needs root, the folder that holds its files or a folder {name} with them")
    inner = Path(root) / name
    return inner if inner.is_dir() else Path(root)


# adult.data has no header; as adult.names lists them
_ADULT = "age workclass fnlwgt education education-num marital-status occupation relationship race sex".split()  # noqa: SIM905
_ADULT += ["capital-gain", "capital-loss", "hours-per-week", "native-country", "income"]


def _adult(folder: Path) -> _Read:
    numbers = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week", "income")
    parts = [_cells(folder / file, _ADULT) for file in ("adult.data", "adult.test")]
    cells = {name: parts[0][name] + parts[1][name] for name in _ADULT}
    cells["income"] = [cell.removesuffix(".") for cell in cells["income"]]  # the test file's end with a full stop
    categorical = tuple(name for name in _ADULT if name not in numbers)
    return _Read(cells, len(parts[1]["income"]), "income", categorical, "a missing category is one of its own, '?'")


def _covtype(folder: Path) -> _Read:
    parts = [_cells(folder / file) for file in ("train.csv", "test.csv")]
    if lacking := [name for name in (*parts[0], "Cover_Type") if not all(name in part for part in parts)]:
        raise ValueError(
            f"{folder}: expected train.csv and test.csv with the same columns, Cover_Type among them; {lacking[0]!r} is "
            "not in both. Kaggle's own test.csv has no labels: hold rows of train.csv out as test.csv"
        )
    cells = {name: parts[0][name] + parts[1][name] for name in parts[0] if name != "Id"}
    groups = {group: [name for name in cells if name.startswith(group)] for group in ("Wilderness_Area", "Soil_Type")}
    for group, members in groups.items():
        found = list(zip(*(cells.pop(name) for name in members), strict=True))
        if any(row.count("1") != 1 for row in found):
            raise ValueError(f"{folder}: expected a single 1 in the columns {group}... of each row")
        cells[group] = [members[row.index("1")].removeprefix(group) for row in found]
    cells["Cover_Type"] = cells.pop("Cover_Type")  # the last one again
    note = "15,120 of the 581,012 rows, equally many of each class"
    return _Read(cells, len(parts[1]["Cover_Type"]), "Cover_Type", tuple(groups), note)


_SETS: dict[str, Callable[[Path], _Read]] = {"adult": _adult, "covtype": _covtype}


def _cells(path: Path, header: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Read a file as text, column by column, without the blanks around it; UCI's files have no header."""
    import pyarrow as pa
    from pyarrow import compute, csv

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        named = list(header) if header else csv.open_csv(path).schema.names
        stripped = [name.strip() for name in named]
        if len(set(stripped)) < len(stripped):
            raise ValueError(f"{path}: expected a name of its own for each column, got {', '.join(stripped)}")
        texts = csv.ConvertOptions(column_types=dict.fromkeys(named, pa.string()), strings_can_be_null=False)
        comments = csv.ParseOptions(invalid_row_handler=_comment if header else None)
        table = csv.read_csv(path, csv.ReadOptions(column_names=header), comments, texts)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(_unread(path, error)) from error
    if not table.num_rows:
        raise ValueError(f"{path}: expected at least one row, got none")
    return {name.strip(): compute.utf8_trim_whitespace(table[name]).to_pylist() for name in named}


def _unread(path: Path, error: Exception) -> str:
    """Say why a file cannot be read, and what to do."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as wrong:
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        return (
            f"{path} is not text in UTF-8 (byte {wrong.start} is {content[wrong.start]:#04x}): write it anew, as with "
            f"iconv -f {guess} -t utf-8, or save it as CSV UTF-8"
        )
    first = content.decode("utf-8").partition("\n")[0]
    if "," not in first and any(mark in first for mark in ";\t|"):
        return _single(path, first.strip())
    return f"{path}: expected rows of values between commas, below a row of names: {error}"


def _single(path: Path, name: str) -> str:
    others = {";": "semicolons", "\t": "tabs", "|": "bars"}
    mark = next((mark for mark in others if mark in name), None)
    advice = "" if mark is None else f" with {others[mark]} in it: write commas instead, and a point in decimal numbers"
    return f"{path}: expected columns between commas, got the single one {name!r:.80}{advice}"


def _comment(row: Any) -> str:
    """Skip what UCI's adult.test begins with: ``|1x3 Cross validator``."""
    return "skip" if (row.text or "").startswith("|") else "error"


def _columns(data: str, cells: dict[str, list[str]], categorical: set[str]) -> tuple[tuple[Column, ...], Tensor]:
    """Return what the columns are, and the rows as numbers."""
    columns, values = [], []
    for name, column in cells.items():
        if name in categorical:
            known, numbers = _numbered(column)
            columns.append(Column(name, known))
            values.append(numbers.float())
        else:
            columns.append(Column(name))
            values.append(_numbers(data, name, column))
    return tuple(columns), torch.stack(values, 1)


def _targets(data: str, read: _Read, regression: bool) -> tuple[tuple[str, ...], Tensor]:
    column = read.cells[read.target]
    _refuse_missing(data, read.target, column, "a row without a target teaches nothing: leave it out")
    if regression:
        text = "A number cannot be predicted from words. Name another column as target, or leave regression=True out"
        values = _numbers(data, read.target, column, text)[:, None]
        if bool((values == values[0]).all()):
            raise ValueError(
                f"{data}: the target {read.target!r} is {column[0]} in all {len(column)} rows: name another column"
            )
        return (), values
    classes, targets = _numbered(column)
    if not 2 <= len(classes) <= len(column) // 2:
        raise ValueError(
            f"{data}: the target {read.target!r} has {len(classes)} classes in {len(column)} rows. Name another column as "
            "target, or say regression=True (--regression) where it is a number to predict"
        )
    return classes, targets


def _numbered(cells: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the categories, sorted, and the number of each cell's."""
    known = sorted(set(cells), key=_by_number)
    places = {category: place for place, category in enumerate(known)}
    return tuple(known), torch.tensor([places[cell] for cell in cells])


def _by_number(text: str) -> tuple[bool, int, str]:
    """10 comes after 9, and words after numbers."""
    return (False, int(text), text) if text.isdecimal() else (True, 0, text)


def _numbers(data: str, name: str, cells: Sequence[str], text: str | None = None) -> Tensor:
    """Read numbers; ``text`` says what to do where there are others than numbers."""
    _refuse_missing(
        data,
        name,
        cells,
        f"leave those rows out, fill them in (sklearn.impute.SimpleImputer), leave the column out, drop=[{name!r}] "
        f"(--drop {name}), or, if it holds categories, say so, categorical=[{name!r}] (--categorical {name}): there a "
        "missing value is one of them",
    )
    numbers = [_number(cell) for cell in cells]
    if wrong := [cell for cell, number in zip(cells, numbers, strict=True) if number is None]:
        text = text or (
            f"Say that it holds categories, categorical=[{name!r}] (--categorical {name}), or leave it out, "
            f"drop=[{name!r}] (--drop {name})"
        )
        raise ValueError(
            f"{data}: column {name!r} holds text, {wrong[0]!r} in {len(wrong)} of {len(cells)} rows. {text}"
        )
    found = torch.tensor(numbers, dtype=torch.float32)
    if infinite := [cell for cell, finite in zip(cells, found.isfinite().tolist(), strict=True) if not finite]:
        raise ValueError(
            f"{data}: column {name!r} has {len(infinite)} values that are infinite in 32 bits, {infinite[0]!r} first: "
            f"leave those rows out, bound them, or leave the column out, drop=[{name!r}] (--drop {name})"
        )
    apart, left = len(set(numbers)), len(set(found.tolist()))
    if 2 * left <= apart:
        warnings.warn(
            f"{data}: column {name!r} has {apart:,} different numbers, of which 32 bits, 7 digits, leave {left:,} apart: "
            "subtract what they have in common, or, if they but number the rows, leave the column out, "
            f"drop=[{name!r}] (--drop {name})",
            stacklevel=2,
        )
    return found


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_000, as nobody else does
    except ValueError:
        return None


def _refuse_missing(data: str, name: str, cells: Sequence[str], advice: str) -> None:
    count = sum(cell.strip().lower() in MISSING for cell in cells)
    if count:
        raise ValueError(f"{data}: column {name!r} has {count} missing values in {len(cells)} rows: {advice}")
