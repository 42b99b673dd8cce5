"""A step of `limbeck.compiled` beside the same step without: time, and how far the losses are apart.

    python bench/compiled.py --write

Both methods are copies of one, begin with the same weights and play the same batches, in float32 and without dropout. The
first step compiles, with all caches of torch's off; it is timed as a whole. Then both take their steps in turn, so that a
busy machine slows both alike. A round is a few steps of each; a ratio is that of two rounds side by side, and a cell shows
the median over the rounds and, in brackets, the quartiles. Below 1 the compiled step is the faster.

It takes about seven minutes on two busy cores, nearly all of it to compile. It ends with exit code 1 where losses are
further apart than 5e-3, or where a graph broke.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # before torch is imported: what it compiled before is no matter

import torch
from marks import write_between
from torch import Tensor, nn

import limbeck
from limbeck.core.method import assign, parameters
from limbeck.engine.devices import laid_out

PAGE = Path(__file__).parents[1] / "docs/devices.md"
COMPARED = 5
"""Steps whose losses are compared."""
ROUND = 3
"""Steps of each in a round."""
APART = 5e-3
"""Rounding grows from step to step, about tenfold in each for attention maps."""
HEAD = [
    "| method | networks | channels last | compiled / eager | eager, ms | first step, s | losses apart | graphs | breaks |",
    "|---|---|---|---|---|---|---|---|---|",
]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A method and its batches."""

    method: str
    networks: str
    make: Callable[[], limbeck.Stage]
    batch: Callable[[], Batch]
    channels_last: bool = False


class Classifier(nn.Module):
    """A small BERT that classifies, of random weights: nothing is fetched."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=1000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=4 * width,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.net = BertForSequenceClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (N, 2)."""
        logits: Tensor = self.net(tokens).logits
        return logits


def cases() -> Iterator[Case]:
    yield Case("embedding", "BERT of 4 layers × 64 → 2 × 32, 32 tokens", bert, tokens)
    for last in (False, True):
        yield Case("at", "resnet20 → resnet8, 32×32", partial(zoo, "at", "resnet8", "resnet20"), small, last)
    yield Case("kd", "resnet32x4 → resnet8x4, 32×32", partial(zoo, "kd", "resnet8x4", "resnet32x4"), small)
    yield Case("vid", "torchvision's resnet18, twice, 64×64", vid, large)


def zoo(method: str, student: str, teacher: str) -> limbeck.Stage:
    nets = [limbeck.zoo.network(name, 100, (3, 32, 32)) for name in (student, teacher)]
    return limbeck.Stage(limbeck.at(*nets, example=small()[0]) if method == "at" else limbeck.kd(*nets))


def vid() -> limbeck.Stage:
    from torchvision.models import resnet18

    return limbeck.Stage(limbeck.vid(*(resnet18(num_classes=10) for _ in range(2)), example=large()[0]))


def bert() -> limbeck.Stage:
    layers = ("net.bert.encoder.layer.1", "net.bert.encoder.layer.3")
    return limbeck.Stage(limbeck.embedding(Classifier(2, 32), Classifier(4, 64), layer=layers, example=tokens()[0]))


def small() -> Batch:
    return torch.randn(16, 3, 32, 32), torch.randint(100, (16,))


def large() -> Batch:
    return torch.randn(8, 3, 64, 64), torch.randint(10, (8,))


def tokens() -> Batch:
    return torch.randint(1000, (16, 32)), torch.randint(2, (16,))


def stepping(stage: limbeck.Stage) -> Callable[[Batch], dict[str, float]]:
    """Return what plays a batch of a stage."""
    stage.method.train(stage.trains is None)
    for module in stage.trains or ():
        module.train()
    optimizers = assign(parameters(stage.method, stage.trains), lambda own: torch.optim.SGD(own, 1e-3, momentum=0.9))
    return lambda batch: limbeck.play(stage.method, batch, optimizers)


def seconds(step: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return (time.perf_counter() - start) / len(batches)


def apart(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference of two losses, relative to the larger."""
    return max(abs(one[name] - other[name]) / max(abs(other[name]), 1e-8) for name in other)


def measure(case: Case, rounds: int) -> tuple[str, bool]:
    """Return a row of the table, and whether losses are alike and all was compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager = case.make()
    fast = copy.deepcopy(eager)
    batches = [case.batch() for _ in range(COMPARED)]
    with ExitStack() as stack:
        for stage in (eager, fast) if case.channels_last else ():
            stack.enter_context(laid_out(stage.method))
        limbeck.compiled(fast.method)
        steps = {"compiled": stepping(fast), "eager": stepping(eager)}
        begun = time.perf_counter()
        logs = [[steps["compiled"](batches[0])]]
        first = time.perf_counter() - begun
        logs.append([steps["eager"](batches[0])])
        for own, step in zip(logs, steps.values(), strict=True):
            own += [step(batch) for batch in batches[1:]]
        spent = []
        for index in range(rounds):
            order = sorted(steps, reverse=bool(index % 2))  # nobody is always the first
            spent.append({name: seconds(steps[name], batches[:ROUND]) for name in order})
    difference = max(map(apart, *logs))
    low, middle, high = quantiles([each["compiled"] / each["eager"] for each in spent], n=4)
    breaks = sum(counters["graph_break"].values())
    cells = [
        case.method,
        case.networks,
        "yes" if case.channels_last else "no",
        f"{middle:.2f} [{low:.2f}, {high:.2f}]",
        f"{1e3 * median(each['eager'] for each in spent):.0f}",
        f"{first:.0f}",
        f"{difference:.0e}",
        str(counters["frames"]["ok"]),
        str(breaks),
    ]
    return f"| {' | '.join(cells)} |", difference < APART and not breaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help=f"of {ROUND} steps each")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    lines, good = [*HEAD], True
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds of {ROUND} steps")
    print("\n".join(HEAD), flush=True)
    for case in cases():
        row, alike = measure(case, options.rounds)
        good &= alike
        lines.append(row)
        print(row, flush=True)
    if options.write:
        write_between("compiled", lines, PAGE)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
