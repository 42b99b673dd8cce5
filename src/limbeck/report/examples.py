"""What networks make of the same images: the numbers behind a page's pictures, which are drawn without any network."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.files import write

FILE = "examples.npz"
"""Their name in the folder of a run or a comparison."""


@dataclass(frozen=True)
class Examples:
    """What networks make of a few images, and what one of them confuses.

    Args:
        networks: Their names, the teacher first; none where nobody teaches.
        classes: Their names, in the order of the outputs.
        images: uint8 (n, H, W, 1 or 3), as they would look on a screen.
        targets: int64 (n,).
        reasons: Why each was chosen, in words.
        logits: float32 (networks, n, K).
        layers: For each pair of layers the teacher's and the student's path.
        maps: For each pair, where the networks look, uint8 (networks, n, h, w), 255 where they look most.
        confusion: How many test images of a class (row) the first student takes for another (column), int64 (K, K).
        notes: What is not here, and why.
    """

    networks: tuple[str, ...]
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    reasons: tuple[str, ...]
    logits: NDArray[np.float32]
    layers: tuple[tuple[str, str], ...] = ()
    maps: tuple[NDArray[np.uint8], ...] = ()
    confusion: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write them as one file."""
        words = {name: getattr(self, name) for name in ("networks", "classes", "reasons", "layers", "notes")}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("images", "targets", "logits")}
        arrays |= {f"map-{index}": each for index, each in enumerate(self.maps)}
        if self.confusion is not None:
            arrays["confusion"] = self.confusion
        content = io.BytesIO()
        np.savez_compressed(content, words=np.array(json.dumps(words)), **arrays)
        write(path, content.getvalue())


def read_examples(path: Path) -> Examples | None:
    """Read what `Examples.save` wrote; None where there is no such file."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        words = json.loads(str(file["words"]))
        return Examples(
            tuple(words["networks"]),
            tuple(words["classes"]),
            file["images"],
            file["targets"],
            tuple(words["reasons"]),
            file["logits"],
            tuple((teacher, student) for teacher, student in words["layers"]),
            tuple(file[f"map-{index}"] for index in range(len(words["layers"]))),
            file.get("confusion"),
            tuple(words["notes"]),
        )
