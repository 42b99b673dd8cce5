from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from limbeck.report.comparison import RESULTS, redraw_comparison
from limbeck.report.run import run_report, runs_report
from limbeck.report.tuning import FOUND, redraw_tuning

OF_A_RUN = ("result.json", "metrics.csv", "config.yaml")


def redraw(folders: Sequence[str | Path], to: str | Path | None = None) -> Path:
    """Draw the page of a run, of a comparison, of a search, or of several runs, of nothing but the files in their folders.

    Args:
        folders: A run's, a comparison's, a search's, or those of several runs.
        to: The file to write; by default ``report.html`` in the folder, and for several runs in the current one.

    Returns:
        The page.

    Raises:
        ValueError: A folder that holds none of these, or damaged ones; a comparison or a search beside others.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("expected the folder of a run or of a comparison, got none")
    kinds = [_kind(path) for path in paths]
    if len(paths) == 1:
        draw = {"comparison": redraw_comparison, "search": redraw_tuning, "run": run_report}
        return draw[kinds[0]](paths[0], to)
    for path, kind in zip(paths, kinds, strict=True):
        if kind != "run":
            raise ValueError(f"{path} holds a {kind}, which has a page of its own: name it alone, or name runs")
    return runs_report(_names(paths), to or "report.html")


def _kind(path: Path) -> str:
    if (path / RESULTS).exists():
        return "comparison"
    if (path / FOUND).exists():
        return "search"
    if any((path / name).exists() for name in OF_A_RUN):
        return "run"
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else None
    holds = "does not exist" if found is None else f"holds {', '.join(found[:6]) or 'nothing'}"
    raise ValueError(f"expected the folder of a run (result.json) or of a comparison ({RESULTS}), but {path} {holds}")


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name folders by what tells them apart: kd/seed-0 and at/seed-0 of one comparison."""
    whole = [path.resolve() for path in paths]
    if twice := [path for path in whole if whole.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice")
    shared = os.path.commonpath([path.parent for path in whole])
    return {path.relative_to(shared).as_posix(): path for path in whole}
