from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.data.source import Encoded, Part, Source, assemble, folder, in_memory, missing

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
SPLITS = {"train": re.compile("train"), "val": re.compile("val|dev"), "test": re.compile("test")}


def files(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files in ``root`` and two levels below by split; a file's name or its folder's begins with it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for level in ("*", "*/*", "*/*/*") for path in root.glob(f"{level}.parquet")):
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
    if "train" not in found or len(found) < 2:
        wanted = ["train-*.parquet", "test-*.parquet or validation-*.parquet"]
        raise missing("parquet", wanted, [home, home / "data"], downloads=False)
    tables = {split: [_table(path) for path in paths] for split, paths in found.items()}
    parts = {split: _part(home, tables[split], found[split]) for split in found}
    classes = _classes(tables["train"][0]) or _numbered(parts["train"])
    return assemble("parquet", in_memory(parts), classes)


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
    for table, path in zip(tables, paths, strict=True):
        images += [_image(home, row, path) for row in table.column(0).to_pylist()]
        targets += _integers(table, path)
    return Part(Encoded(images, ", ".join(map(str, paths))), torch.tensor(targets, dtype=torch.int64))


def _image(home: Path, row: Any, path: Path) -> bytes | str:
    """The bytes of an image, or else its path."""
    image = row if isinstance(row, bytes) else row and (row.get("bytes") or row.get("path"))
    if not image:
        raise ValueError(f"{path}: expected an image in every row as struct{{bytes, path}}, got {row!r}")
    return image if isinstance(image, bytes) else str(home / image)


def _integers(table: pa.Table, path: Path) -> list[int]:
    import pyarrow as pa

    column = table.column(1)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(
            f"{path}: expected an integer in every row of {table.column_names[1]}, got {column.type} with "
            f"{column.null_count} rows empty"
        )
    return list(column.to_pylist())


def _classes(table: pa.Table) -> tuple[str, ...]:
    """Class names in the metadata that ``datasets`` writes; none without it."""
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(table.column_names[1], {})
    return tuple(feature.get("names", ()))


def _numbered(part: Part) -> tuple[str, ...]:
    return tuple(map(str, range(int(part.targets.max()) + 1 if len(part) else 0)))
