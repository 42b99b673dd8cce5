"""The table of views.md, from the runs of views.sh."""

import json
import statistics
import sys
from pathlib import Path

from limbeck.measure import judge, paired

SEEDS = 3


def reached(folder: Path) -> list[float]:
    files = [folder / f"seed-{seed}" / "result.json" for seed in range(SEEDS)]
    return [json.loads(file.read_text())["networks"]["student"]["test"]["accuracy"] for file in files]


def main() -> None:
    out = Path(sys.argv[1])
    anew = reached(out / "anew")
    others = {views: reached(out / views) for views in ("16", "4", "1")}
    pairs = [paired(own, anew) for own in others.values()]
    rows = [("drawn anew in each epoch", anew, "", "")]
    for (views, own), pair, found in zip(others.items(), pairs, judge(pairs), strict=True):
        between = f"{100 * pair.difference:+.2f} [{100 * pair.low:+.2f}, {100 * pair.high:+.2f}]"
        rows.append((views, own, between, f"{found.p:.3f}"))
    print("| views | accuracy, % | against anew, points | p, corrected |\n|---|---|---|---|")
    for name, own, between, p in rows:
        print(f"| {name} | {100 * statistics.mean(own):.2f} ± {100 * statistics.stdev(own):.2f} | {between} | {p} |")


if __name__ == "__main__":
    main()
