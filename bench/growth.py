"""How the cost of a step grows: with samples, classes, batch, layers and the relations of a batch.

    python bench/growth.py                # prints the table
    python bench/growth.py --only crd     # curves whose name contains this
    python bench/growth.py --write        # writes it into docs/performance.md

Each curve is a list of sizes; each size a step forward and backward, measured as in `bench/losses.py`: the median of this
thread's CPU time, and the most bytes that the allocator held above the start. A slope is that of log cost over log size
between the first and the last size, and between the last two: 1 is linear, and 0 does not grow.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import losses as bench  # sets the number of threads before torch starts them
import torch
from marks import write_between
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import rkd_angle, soft_target
from limbeck.methods.crd import Contrast
from limbeck.methods.rkd import Angles

HEADER = ("what", "sizes", "ms", "slope of time", "of the last two", "MB", "slope of memory")

Step = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """Steps of several sizes.

    Args:
        name: What grows, with what.
        sizes: From small to large.
        step: Returns a step of one size.
    """

    name: str
    sizes: Sequence[int]
    step: Callable[[int], Step]


# what grows ----------------------------------------------------------------------------------------------------------


def played(method: limbeck.Method, batch: Sequence[Tensor]) -> Step:
    return partial(limbeck.play, method.train(), batch, limbeck.optimizers(method, bench.sgd))


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))


def of_batch(batch: int) -> Step:
    student, teacher = (limbeck.zoo.network(name, bench.CLASSES, (3, 32, 32)) for name in ("resnet8", "resnet20"))
    return played(limbeck.kd(student, teacher), (torch.randn(batch, 3, 32, 32), torch.randint(bench.CLASSES, (batch,))))


def of_classes(classes: int) -> Step:
    s, t = bench.leaf(64, classes), torch.randn(64, classes)
    return bench.backward(lambda: soft_target(s, t, temperature=4.0), [s])


def of_classes_step(classes: int) -> Step:
    return played(limbeck.kd(mlp(classes), mlp(classes)), (torch.randn(64, 32), torch.randint(classes, (64,))))


def of_layers(count: int) -> Step:
    student, teacher = (limbeck.zoo.network("resnet56", bench.CLASSES, (3, 32, 32)) for _ in range(2))
    blocks = [name for name, module in student.named_modules() if name.startswith("layer") and name.count(".") == 1]
    objective = limbeck.classification.hard
    for at in blocks[:count]:
        objective = objective + limbeck.on(F.mse_loss, limbeck.S[at], limbeck.T[at])
    method = limbeck.Distill(student, teacher, objective)
    return played(method, (torch.randn(8, 3, 32, 32), torch.randint(bench.CLASSES, (8,))))


def of_relations(loss: Callable[[Tensor, Tensor], Tensor], samples: int) -> Step:
    s, t = bench.leaf(samples, bench.DIMENSIONS), torch.randn(samples, bench.DIMENSIONS)
    return bench.backward(lambda: loss(s, t), [s])


def of_bank(negatives: int, samples: int) -> Step:
    contrast, ids = Contrast(samples, 128, negatives, temperature=0.07, keep=0.5), torch.arange(64)
    s, t = bench.leaf(64, 128), bench.leaf(64, 128)
    return bench.backward(lambda: contrast(s, t, ids), [s, t])


CURVES = (
    Curve("`kd` step, resnet20 → resnet8, with the batch", (16, 64, 256), of_batch),
    Curve("`soft_target`, batch 64, with the classes", (10, 100, 1_000, 10_000), of_classes),
    Curve("`kd` step, small MLP, batch 64, with the classes", (10, 100, 1_000, 10_000), of_classes_step),
    Curve("step of a matched layer each, resnet56 twice, batch 8", (1, 3, 6, 12), of_layers),
    Curve("`rkd_angle`, with the batch", (64, 128, 256, 384), partial(of_relations, rkd_angle)),
    Curve("`rkd_angle`, 32 anchors, with the batch", (64, 128, 256, 512), partial(of_relations, Angles(32))),
    Curve("`crd`, 4,096 negatives, batch 64, with the bank", (10_000, 100_000, 1_000_000), partial(of_bank, 4096)),
    Curve("`crd`, 16,384 negatives, batch 64, with the bank", (50_000, 500_000), partial(of_bank, 16_384)),
)


# how it is measured --------------------------------------------------------------------------------------------------


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return that of the line from the first to the last point, both axes logarithmic."""
    return math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0])


def measured(curve: Curve, least: int) -> tuple[str, ...]:
    """Return the cells of a curve; its sizes are measured in turn."""
    torch.manual_seed(0)
    steps = {str(size): curve.step(size) for size in curve.sizes}
    for step in steps.values():
        step()  # momentum and gradients are there afterwards
    seconds = [median(spent) for spent in bench.times(steps, seconds=2.0, least=least).values()]
    megabytes = [bench.peak(step) / 1e6 for step in steps.values()]
    return (
        curve.name,
        ", ".join(f"{size:,}" for size in curve.sizes),
        ", ".join(f"{1e3 * spent:.3g}" for spent in seconds),
        f"{slope(curve.sizes, seconds):.2f}",
        f"{slope(curve.sizes[-2:], seconds[-2:]):.2f}",
        ", ".join(f"{size:.3g}" for size in megabytes),
        f"{slope(curve.sizes, megabytes):.2f}",
    )


def rows(curves: Sequence[Curve], least: int) -> Iterator[str]:
    yield bench.line(HEADER)
    yield bench.line(["---"] * len(HEADER))
    for curve in curves:
        yield bench.line(measured(curve, least))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="curves whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is of the whole table: leave --only out")
    torch.set_num_threads(1)
    bench.keep_freed_memory()
    lines = []
    for row in rows([curve for curve in CURVES if options.only in curve.name], least=3):
        lines.append(row)
        print(row, flush=True)
    if options.write:
        write_between("growth", lines)


if __name__ == "__main__":
    main()
