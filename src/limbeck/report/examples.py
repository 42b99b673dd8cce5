"""The exhibits of a run or a comparison as one file, of which a page is drawn without any network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.core.exhibits import Bars, Exhibit, Gallery, Matrix, Note, Scatter, Table
from limbeck.core.files import Damaged, read, write

FILE = "examples.npz"
"""Its name in the folder of a run or a comparison."""
REMEDY = "remove it, and the page goes without, or let the run go on (--resume), which writes it again"
KINDS: Mapping[str, type[Exhibit]] = {kind.__name__: kind for kind in (Gallery, Matrix, Bars, Scatter, Table, Note)}


def write_exhibits(exhibits: Sequence[Exhibit], path: Path) -> None:
    """Write exhibits as one file: their words as JSON, and in it the places of their arrays."""
    arrays: list[NDArray[Any]] = []
    words = [
        {"kind": type(each).__name__, **{of.name: _packed(getattr(each, of.name), arrays) for of in fields(each)}}
        for each in exhibits
    ]
    content = io.BytesIO()
    named: dict[str, Any] = {f"array-{index}": array for index, array in enumerate(arrays)}
    np.savez_compressed(content, exhibits=np.array(json.dumps(words)), **named)
    write(path, content.getvalue())


def read_exhibits(path: Path) -> list[Exhibit]:
    """Read what `write_exhibits` wrote; nothing where there is no such file, or one of an older limbeck's.

    Raises:
        Damaged: It is not whole, or holds something else.
    """
    if not path.exists():
        return []
    arrays = read(path, REMEDY)
    if "exhibits" not in arrays:
        return []
    try:
        exhibits = [_unpacked(each, arrays) for each in json.loads(str(arrays["exhibits"]))]
        return [KINDS[each.pop("kind")](**each) for each in exhibits]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(
            f"{path} holds no exhibits that this version knows ({type(error).__name__}: {error}); {REMEDY}"
        ) from error


def _packed(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return a value as JSON can hold it, with each array's place instead of the array."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    return [_packed(each, arrays) for each in value] if isinstance(value, (tuple, list)) else value


def _unpacked(value: Any, file: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(each, file) for each in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return file[f"array-{value['array']}"]
    return {name: _unpacked(each, file) for name, each in value.items()}
