"""A teacher and its students from nothing: each is trained, the students also without the teacher; one table compares them.

    python examples/compress.py --teacher vgg19 --students vgg11 --data cifar10 --root data --epochs 60 --run-dir runs/vgg

The same command goes on where it was stopped. ``limbeck table`` makes the table of networks that are trained already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning import seed_everything
from rich.console import Console
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import limbeck
from limbeck.core.files import write
from limbeck.measure import accounts
from limbeck.report.accounts import console_table, legend, markdown_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the teacher, then each student alone and by the method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vgg19")
    parser.add_argument("--students", nargs="+", default=["vgg11"])
    parser.add_argument("--method", default="kd")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root", type=Path, help="folder of the data")
    parser.add_argument("--samples", type=int, help="of the training data; all by default")
    parser.add_argument("--epochs", type=int, default=60, help="of each network")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    data = limbeck.data.load(options.data, options.root, samples=options.samples, batch_size=64, seed=options.seed)

    def train(name: str, method: str = "plain", teacher: nn.Module | None = None) -> nn.Module:
        """Train a network of the seed, or read what was trained."""
        seed_everything(options.seed, verbose=False)
        net = limbeck.zoo.network(name, data.num_classes, data.shape)
        folder = options.run_dir / f"{name.replace(':', '-')}-{method}"
        result = limbeck.distill(
            net,
            teacher,
            data,
            method,
            epochs=options.epochs,
            optimizer=lambda parameters: SGD(parameters, options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedule=CosineAnnealingLR,
            seed=options.seed,
            run_dir=folder,
            resume=True,
        )
        if not result.finished:
            raise SystemExit(f"stopped in {folder}: the same command goes on")
        return net

    nets = {options.teacher: (teacher := train(options.teacher))}
    for student in options.students:
        nets[f"{student}, plain"] = train(student)
        nets[f"{student}, {options.method}"] = train(student, options.method, teacher)
    found = accounts(nets, data)
    write(options.run_dir / "table.md", markdown_table(found))
    console = Console()
    console.print(
        console_table(found, f"{data.name}, {len(data.test.ids):,} test images; epochs each: {options.epochs}")
    )
    console.print(legend(found), highlight=False)


if __name__ == "__main__":
    main()
