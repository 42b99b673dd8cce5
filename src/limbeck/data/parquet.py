from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.data.source import Encoded, Part, Source, assemble, folder, missing, visible

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
SPLITS = {"train": re.compile("train"), "val": re.compile("val|dev"), "test": re.compile("test")}


def files(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files in ``root`` and two levels below by split; a file's name or its folder's begins with it."""
    found: dict[str, list[Path]] = {}
    levels = ("*", "*/*", "*/*/*")
    for path in sorted(path for level in levels for path in root.glob(f"{level}.parquet") if visible(path, root)):
        for split, pattern in SPLITS.items():
            if pattern.match(path.name) or pattern.match(path.parent.name):
                found.setdefault(split, []).append(path)
                break
    return found


def read(root: str | Path | None, download: bool) -> Source:
    """Read a folder of parquet files in the image schema of Hugging Face ``datasets``.

    A row has an ``image``, struct{bytes, path}, and a ``label``. Splits are told by the files' names, ``train-*``,
    ``validation-*`` and ``test-*``; class names are those of the ``ClassLabel`` in the metadata. The encoded images are
    kept in memory.
    """
    home = folder("parquet", root)
    found = files(home)
    if set(found) == {"train"}:
        raise FileNotFoundError(
            f"parquet: {home} has files of train, as {found['train'][0].name}, and none whose name begins with val or "
            f"test: write a share of the rows, say a tenth, to {home / 'validation-0.parquet'}"
        )
    if "train" not in found or len(found) < 2:
        wanted = ["train-*.parquet", "test-*.parquet or validation-*.parquet"]
        raise missing("parquet", wanted, [home, home / "data"], downloads=False)
    tables = {split: [_table(path) for path in paths] for split, paths in found.items()}
    parts = {split: _part(home, tables[split], found[split]) for split in found}
    classes = _classes(tables["train"][0], found["train"][0]) or _numbered(parts["train"], home)
    return assemble("parquet", parts, classes)


def _table(path: Path) -> pa.Table:
    """The columns of images and labels, in this order."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns = parquet.read_schema(path).names
        image, label = (next((name for name in names if name in columns), None) for names in (IMAGES, LABELS))
        if image and label:
            return parquet.read_table(path, columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a parquet file, got {error}") from error
    raise ValueError(
        f"{path}: expected columns {' or '.join(IMAGES)} and {' or '.join(LABELS)}, got {', '.join(columns)}"
    )


def _part(home: Path, tables: Sequence[pa.Table], paths: Sequence[Path]) -> Part:
    images: list[bytes | str] = []
    targets: list[int] = []
    shards = []
    for table, path in zip(tables, paths, strict=True):
        shards.append((len(images), str(path)))
        images += [_image(home, row, path, index) for index, row in enumerate(table.column(0).to_pylist())]
        targets += _integers(table, path)
    return Part(Encoded(images, str(home), shards=shards), torch.tensor(targets, dtype=torch.int64))


def _image(home: Path, row: Any, shard: Path, index: int) -> bytes | str:
    """The bytes of an image, or else its path."""
    image = (row.get("bytes") or row.get("path")) if isinstance(row, dict) else row
    if not isinstance(image, (bytes, str)) or not image:
        got = row if row is None or isinstance(row, (dict, bytes, str)) else type(row).__name__
        raise ValueError(
            f"{shard}, image {index}: expected an image in every row as struct{{bytes, path}}, got {got!r}"
        )
    return image if isinstance(image, bytes) else str(home / image)


def _integers(table: pa.Table, path: Path) -> list[int]:
    """The labels, of which each must be a number that could be a class's."""
    import pyarrow as pa

    column, name = table.column(1), table.column_names[1]
    if not pa.types.is_integer(column.type):
        raise ValueError(
            f"{path}: expected an integer in every row of {name}, got {column.type}: number the classes first, with "
            f"class_encode_column({name!r}) in datasets"
        )
    labels = list(column.to_pylist())
    wrong = next((row for row, label in enumerate(labels) if label is None or not -(2**31) <= label < 2**31), None)
    if wrong is not None:
        got = "none" if labels[wrong] is None else labels[wrong]
        raise ValueError(
            f"{path}: expected an integer in every row of {name}, the number of its class, got {got} in row {wrong}, and "
            f"{column.null_count} rows empty: correct these rows or leave them out"
        )
    return labels


def _classes(table: pa.Table, path: Path) -> tuple[str, ...]:
    """Class names in the metadata that ``datasets`` writes; none without it."""
    try:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata.get("info", {}).get("features", {}).get(table.column_names[1], {})
        return tuple(map(str, feature.get("names") or ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected datasets' description of the columns, in JSON, got {error}") from error


def _numbered(part: Part, home: Path) -> tuple[str, ...]:
    """Numbers as the names of classes: 0 up to the highest label, if that can be a class's number."""
    highest = int(part.targets.max()) if len(part) else -1
    if highest >= max(len(part), 2):
        raise ValueError(
            f"{home}: expected labels that count the classes, 0, 1, 2 and so on, got {highest} as the highest of "
            f"{len(part)} training samples, in sample {int(part.targets.argmax())}: number the classes again"
        )
    return tuple(map(str, range(highest + 1)))
