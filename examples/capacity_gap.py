"""The capacity gap: one student, teachers of growing size, with an assistant and without (TAKD, arXiv 1902.03393).

    python examples/capacity_gap.py --data cifar10 --root data --epochs 60 --run-dir runs/gap

Every student has the same epochs in all: with an assistant half of them train the assistant. All are compared with
the plain student over the same seeds; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning import seed_everything
from rich.console import Console
from torch import nn

import limbeck
from limbeck import Entry
from limbeck.report.comparison import findings
from limbeck.report.table import console_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the teachers, then compare their students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="plane2")
    parser.add_argument("--assistant", default="plane4")
    parser.add_argument("--teachers", nargs="+", default=["plane4", "plane6", "plane8", "plane10"])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root", type=Path, help="folder of the data")
    parser.add_argument("--samples", type=int, help="of the training data; all by default")
    parser.add_argument(
        "--epochs", type=int, default=60, help="of each teacher, and of each student with its assistant"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    data = limbeck.data.load(options.data, options.root, samples=options.samples, batch_size=64)
    network = partial(limbeck.zoo.network, num_classes=data.num_classes, shape=data.shape)
    console, entries = Console(), []
    for name in options.teachers:
        seed_everything(0, verbose=False)
        teacher: nn.Module = network(name)
        folder = options.run_dir / "teachers" / name.replace(":", "-")
        schooled = limbeck.fit(limbeck.plain(teacher), data, epochs=options.epochs, run_dir=folder, resume=True)
        if not schooled.finished:
            raise SystemExit(f"stopped in {folder}: the same command goes on")
        console.print(f"teacher {name}: {100 * schooled.metrics['test/student/accuracy']:.2f} %", highlight=False)
        entries.append(Entry("kd", name=f"{name} teaches", teacher=teacher))
        if name != options.assistant:
            through = {"assistants": partial(network, options.assistant)}
            entries.append(Entry("takd", through, name=f"{name} through {options.assistant}", teacher=teacher))
    comparison = limbeck.compare(
        entries,
        partial(network, options.student),
        None,
        data,
        epochs=options.epochs,
        seeds=options.seeds,
        run_dir=options.run_dir / "students",
    )
    console.print(console_table(comparison.candidates, comparison.title))
    for sentence in findings(comparison):
        console.print(f"  {sentence}", markup=False, highlight=False)
    console.print(str(options.run_dir / "students" / "report.html"))


if __name__ == "__main__":
    main()
