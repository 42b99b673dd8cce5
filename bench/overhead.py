"""What `limbeck.play` and `limbeck.fit` cost beside a loop written by hand, for one step of Hinton's distillation.

    python bench/overhead.py --threads 1

`fit` runs once, and each time that it is done with a batch the hand-written loop and `play` take that very batch: the
three alternate step by step, so that a busy machine slows all of them alike, and what `fit` spends before its first batch
and after its last one stays out. All train a copy of one student, and the weights are compared after the warm-up.

A round is ten steps, the period at which `fit` looks at its losses. A ratio is that of two rounds side by side; a cell
shows the median over the rounds and, in brackets, the quartiles. A second hand-written loop shows what the machine's
noise alone does to such a ratio. Of the tiny networks there is also what a step takes in the quietest tenth of each loop's
rounds: other work on the machine makes all loops slower, and the difference between two of them too.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck

ROUND = 10
WARMUP = 10
TEMPERATURE, ALPHA = 4.0, 0.9

Batch = tuple[Tensor, Tensor]
Step = Callable[[Batch], object]
Spent = tuple[float, float]
"""Seconds on the wall, and of the process's CPU."""


@dataclass(frozen=True)
class Case:
    """A pair of networks and what they are fed."""

    teacher: str
    student: str
    classes: int
    shape: tuple[int, ...]
    batch: int = 64

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student}, {self.classes} classes"


NETWORKS = [
    Case("resnet20", "resnet8", 10, (3, 32, 32)),
    Case("resnet20", "resnet8", 100, (3, 32, 32)),
    Case("resnet56", "resnet8", 100, (3, 32, 32)),
]
TINY = Case("mlp-64", "mlp-32", 10, (1, 8, 8))


class Alternating:
    """Batches for `fit`; when it is done with one, every rival plays it, and all are timed."""

    def __init__(self, batches: list[Batch], rivals: dict[str, Step], after_warmup: Callable[[], None]) -> None:
        self.batches, self.rivals, self.after_warmup = batches, rivals, after_warmup
        self.spent: dict[str, list[Spent]] = {name: [] for name in (*rivals, "fit")}

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.batches):
            start = clock()
            yield batch  # who only looks at the first batch never comes back
            self._note("fit", start)
            for name, step in sorted(self.rivals.items(), reverse=bool(index % 2)):  # nobody is always the first
                start = clock()
                step(batch)
                self._note(name, start)
            if index == WARMUP - 1:
                self.after_warmup()

    def _note(self, name: str, start: Spent) -> None:
        wall, cpu = clock()
        self.spent[name].append((wall - start[0], cpu - start[1]))


def clock() -> Spent:
    return time.perf_counter(), time.process_time()


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def by_hand(student: nn.Module, teacher: nn.Module) -> Step:
    """The loop that everybody writes."""
    student.train()
    teacher.eval()
    optimizer = sgd(list(student.parameters()))

    def step(batch: Batch) -> None:
        inputs, targets = batch
        with torch.no_grad():
            teacher_probabilities = F.softmax(teacher(inputs) / TEMPERATURE, dim=1)
        logits = student(inputs)
        soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), teacher_probabilities, reduction="batchmean")
        loss = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def by_play(student: nn.Module, teacher: nn.Module) -> Step:
    method = method_of(student, teacher).train()
    optimizers = limbeck.optimizers(method, sgd)
    return lambda batch: limbeck.play(method, batch, optimizers)


def method_of(student: nn.Module, teacher: nn.Module) -> limbeck.Method:
    return limbeck.kd(student, teacher, temperature=TEMPERATURE, alpha=ALPHA)


def measure(case: Case, rounds: int) -> dict[str, list[Spent]]:
    """Return the seconds of every step after the warm-up, by who took it."""
    torch.manual_seed(0)
    teacher = limbeck.zoo.network(case.teacher, case.classes, case.shape)
    student = limbeck.zoo.network(case.student, case.classes, case.shape)
    students = {name: copy.deepcopy(student) for name in ("hand", "again", "play", "fit")}
    batches = [
        (torch.randn(case.batch, *case.shape), torch.randint(case.classes, (case.batch,)))
        for _ in range(WARMUP + ROUND * rounds + 1)  # fit does not come back from the last one
    ]
    rivals = {
        "hand": by_hand(students["hand"], teacher),
        "again": by_hand(students["again"], teacher),
        "play": by_play(students["play"], teacher),
    }
    loader = Alternating(batches, rivals, lambda: check_same(students))
    method = method_of(students["fit"], teacher)
    limbeck.fit(method, loader, epochs=1, optimizer=sgd, accelerator="cpu", progress=False)
    return {name: spent[WARMUP : WARMUP + ROUND * rounds] for name, spent in loader.spent.items()}


def check_same(students: dict[str, nn.Module]) -> None:
    """Refuse to compare loops that do different things."""
    weights = {name: nn.utils.parameters_to_vector(net.parameters()) for name, net in students.items()}
    for name, own in weights.items():
        torch.testing.assert_close(own, weights["hand"], rtol=0, atol=1e-4, msg=f"{name} trained another student")


def by_round(steps: list[Spent], which: int) -> list[float]:
    """The seconds of a step, mean over each round."""
    seconds = [step[which] for step in steps]
    return [sum(seconds[at : at + ROUND]) / ROUND for at in range(0, len(seconds), ROUND)]


def spread(values: list[float], digits: int) -> str:
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


UNITS = {"ms": 1e3, "µs": 1e6}
WHO = {"play": "`play`", "fit": "`fit`", "again": "by hand, again"}


def table(cases: list[Case], rounds: int, unit: str, compare: Callable[[float, float], float], digits: int) -> None:
    """Print what ``compare`` makes of each loop's seconds and those by hand, which are in ``unit``."""
    print(f"\n| networks | clock | by hand, {unit} | " + " | ".join(WHO.values()) + " |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        spent = measure(case, rounds)
        for which, clock_name in enumerate(("wall", "CPU")):
            hand = by_round(spent["hand"], which)
            cells = [spread(list(map(compare, by_round(spent[name], which), hand)), digits) for name in WHO]
            base = f"{median(hand) * UNITS[unit]:.0f}"
            print(f"| {case} | {clock_name} | {base} | " + " | ".join(cells) + " |", flush=True)
        if unit == "µs":
            lows = {name: quantiles(by_round(steps, 1), n=10)[0] for name, steps in spent.items()}
            cells = [f"{compare(lows[name], lows['hand']):.{digits}f}" for name in WHO]
            print(f"| {case} | CPU, quiet | {lows['hand'] * UNITS[unit]:.0f} | " + " | ".join(cells) + " |", flush=True)


def fixed_costs(case: Case, epochs: int = 20) -> None:
    """Print what `fit` spends beside its steps, without validation and without a folder to write to."""
    torch.manual_seed(0)
    teacher = limbeck.zoo.network(case.teacher, case.classes, case.shape)
    student = limbeck.zoo.network(case.student, case.classes, case.shape)
    batch = torch.randn(case.batch, *case.shape), torch.randint(case.classes, (case.batch,))

    def seconds(epochs: int) -> float:
        start = time.process_time()
        limbeck.fit(
            method_of(student, teacher), [batch], epochs=epochs, optimizer=sgd, accelerator="cpu", progress=False
        )
        return time.process_time() - start

    seconds(1)  # imports
    pairs = [(seconds(1), seconds(1 + epochs)) for _ in range(5)]
    once = spread([1e3 * one for one, _ in pairs], 0)
    epoch = spread([1e3 * (many - one) / epochs for one, many in pairs], 1)
    print(f"\n`fit` of one batch of {case}: {once} ms of CPU; each further epoch of one batch: {epoch} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=10, help="of ten steps; the tiny networks take twenty times as many"
    )
    parser.add_argument("--only", choices=["networks", "tiny"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="lightning")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds of {ROUND} steps")
    if options.only != "networks":
        print("\nA tiny MLP: µs that a step takes more than by hand")
        table([TINY], 20 * options.rounds, "µs", lambda own, hand: UNITS["µs"] * (own - hand), 0)
        fixed_costs(TINY)
    if options.only != "tiny":
        print("\nResidual networks: a step relative to the one by hand")
        table(NETWORKS, options.rounds, "ms", lambda own, hand: own / hand, 3)


if __name__ == "__main__":
    main()
