"""What one process sends to the others in a step of each kind of method: by arithmetic, and as measured.

    python bench/communication.py                  # prints the table; three minutes on two cores, Linux alone
    python bench/communication.py --write          # and writes it into docs/devices.md
    python bench/communication.py --only rkd sp    # some methods alone

Each method is trained by `limbeck.fit` with 1, 2 and 4 processes on this machine (gloo), which share batches of 64 images.
It exits with 1 where arithmetic and measurement differ by more than 2 %.

There are two measurements. *Given* is what a process hands to collectives: a dispatch mode sees each of them with its
tensors, those too that DDP's reducer calls from C++. A collective that this bench does not know stops it, so that none is
left out. *Sent* is what the process then writes to its sockets: /proc/self/io counts it for each process alone, whatever
else runs on the machine. The arithmetic of *sent* is gloo's: of n bytes that it is given, a process sends 2 (P − 1)/P · n
to sum them over all, (P − 1) · n to gather them, and (P − 1)/P · n to share them out, in 4, 2 and 1 (P − 1) messages, each
with three headers of 48 bytes; a sum of which each keeps a part, as FSDP's, is made as a whole. Both are those of an
update, means over all processes, after the first two batches. The seconds are those of batches in which nothing is counted.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from marks import write_between
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import limbeck
from limbeck.nets.norm import GlobalBatchNorm

PAGE = Path(__file__).parents[1] / "docs/devices.md"
WORLDS = (1, 2, 4)
BATCH, CLASSES, SHAPE = 64, 10, (3, 32, 32)
STUDENT, TEACHER, BLOCKS = "resnet8", "resnet20", 3  # of the student
MEMORY, NEGATIVES, DIMENSIONS = 4096, 1024, 128
FLOAT, INTEGER, LONG = 4, 4, 8  # bytes
HEADERS = 3 * 48  # bytes that gloo spends on a message
TO_SUM, TO_GATHER, TO_SCATTER = 4, 2, 1  # its messages
COUNTS = 2 * LONG  # labels and labelled samples of an update, in float64
COUNTED, TIMED = (2, 3), (4, 5)  # batches
TOLERANCE = 0.02


# the arithmetic ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process hands to collectives, by what becomes of them.

    Args:
        reduced: Summed over all processes, each of which has the sum.
        gathered: Rows of its own, which all processes have afterwards.
        scattered: Rows for all processes, each of which has the sum of its own.
        cut: Summed over all processes, each of which keeps a part of the sum.
        messages: In which they go to one other process.
    """

    reduced: float = 0
    gathered: float = 0
    scattered: float = 0
    cut: float = 0
    messages: int = 0

    @property
    def given(self) -> float:
        """All of it."""
        return self.reduced + self.gathered + self.scattered + self.cut

    def sent(self, world: int) -> float:
        """Return the bytes that leave a process, of so many."""
        share = (world - 1) / world
        bodies = 2 * share * (self.reduced + self.cut) + (world - 1) * self.gathered + share * self.scattered
        return bodies + (world - 1) * self.messages * HEADERS

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.reduced + other.reduced,
            self.gathered + other.gathered,
            self.scattered + other.scattered,
            self.cut + other.cut,
            self.messages + other.messages,
        )


NOTHING = Traffic()


@dataclass(frozen=True)
class Facts:
    """What the formulas are made of.

    Args:
        world: Processes, P.
        trained: Numbers in the parameters of all players, adapters among them, N.
        tensors: How many tensors these are.
        norms: `GlobalBatchNorm` layers, each of which asks for the global batch's statistics.
        normed: Channels of all of them.
        apart: Numbers of the student's parameters outside its blocks, which FSDP brings together once in a step.
    """

    world: int
    trained: int
    tensors: int
    norms: int
    normed: int
    apart: int


Formula = Callable[[Facts], Traffic]


def gradients(turns: int = 1, counts: int = COUNTS) -> Formula:
    """DDP's, in each turn: all gradients, and for each tensor a mark whether it was used; and the labels' counts."""
    messages = TO_SUM * (2 * turns + (counts > 0))
    return lambda facts: Traffic(turns * (FLOAT * facts.trained + INTEGER * facts.tensors) + counts, messages=messages)


def shared_out(facts: Facts) -> Traffic:
    """FSDP's: shares of weights before each block, and once more on the way back; all gradients; the labels' counts."""
    twice = 2 * facts.trained - facts.apart
    gathers, sums = 2 * BLOCKS + 1, BLOCKS + 1
    return Traffic(
        reduced=COUNTS,
        gathered=FLOAT * twice / facts.world,
        cut=FLOAT * facts.trained,
        messages=gathers * TO_GATHER + (sums + 1) * TO_SUM,
    )


def adapters(facts: Facts) -> Traffic:
    """Mean and variance of each channel, and the gradients of both."""
    return Traffic(reduced=4 * FLOAT * facts.normed, messages=4 * facts.norms * TO_SUM)


def relations(student: int, teacher: int, times: int = 1) -> Formula:
    """Rows of both networks, of so many numbers; their gradients are known everywhere."""
    row = FLOAT * (student + teacher)
    return lambda facts: Traffic(gathered=times * BATCH / facts.world * row, messages=times * 2 * TO_GATHER)


def remembered(ids: bool) -> Formula:
    """Both embeddings of each sample, and where it stands in the banks."""
    row, tensors = 2 * FLOAT * DIMENSIONS + ids * LONG, 2 + ids
    return lambda facts: Traffic(gathered=BATCH / facts.world * row, messages=tensors * TO_GATHER)


def summed(*formulas: Formula) -> Formula:
    return lambda facts: sum((formula(facts) for formula in formulas), NOTHING)


# the methods ---------------------------------------------------------------------------------------------------------

Build = Callable[[nn.Module, nn.Module, Tensor], Any]
"""Of student, teacher and example."""


@dataclass(frozen=True)
class Kind:
    """A method that stands for others.

    Args:
        build: Makes it.
        words: Its formula, for the table.
        formula: What a process gives in an update, where there is another process.
        options: For `limbeck.fit`.
        stage: Which of its stages is looked at.
        unlabelled: Of every three samples one has no label.
    """

    build: Build
    words: str
    formula: Formula
    options: Mapping[str, Any] = field(default_factory=dict)
    stage: int = 0
    unlabelled: bool = False


def drawn(name: str) -> nn.Module:
    return limbeck.zoo.network(name, CLASSES, SHAPE)


WIDTH, MAP = 64, 64 * 8 * 8  # of both networks: the input of the last layer, and the deepest map

KINDS: dict[str, Kind] = {
    "kd": Kind(lambda s, t, x: limbeck.kd(s, t), "g + c", gradients()),
    "kd, fsdp2": Kind(lambda s, t, x: limbeck.kd(s, t), "f + c", shared_out, options={"strategy": "fsdp2"}),
    "kd, labels missing": Kind(lambda s, t, x: limbeck.kd(s, t), "g + c", gradients(), unlabelled=True),
    "kd, accumulate=2": Kind(
        lambda s, t, x: limbeck.kd(s, t), "g + c, an update", gradients(), options={"accumulate": 2}
    ),
    "fitnets, the hint": Kind(
        lambda s, t, x: limbeck.fitnets(s, t, example=x),
        "g",
        gradients(counts=0),  # it reads no labels
    ),
    "review": Kind(lambda s, t, x: limbeck.review(s, t, example=x), "g + c + a", summed(gradients(), adapters)),
    "rkd": Kind(
        lambda s, t, x: limbeck.rkd(s, t),
        "g + c + 2 · r(64, 64)",
        summed(gradients(), relations(WIDTH, WIDTH, times=2)),
    ),
    "rkd, fsdp2": Kind(
        lambda s, t, x: limbeck.rkd(s, t),
        "f + c + 2 · r(64, 64)",
        summed(shared_out, relations(WIDTH, WIDTH, times=2)),
        options={"strategy": "fsdp2"},
    ),
    "pkt": Kind(lambda s, t, x: limbeck.pkt(s, t), "g + c + r(64, 64)", summed(gradients(), relations(WIDTH, WIDTH))),
    "cc": Kind(
        lambda s, t, x: limbeck.cc(s, t, dimensions=DIMENSIONS, example=x),
        "g + c + r(128, 64)",
        summed(gradients(), relations(DIMENSIONS, WIDTH)),
    ),
    "sp": Kind(
        lambda s, t, x: limbeck.sp(s, t, example=x),
        "g + c + r(64·8·8, 64·8·8)",
        summed(gradients(), relations(MAP, MAP)),
    ),
    "dist": Kind(
        lambda s, t, x: limbeck.dist(s, t),
        "g + c + r(10, 10)",
        summed(gradients(), relations(CLASSES, CLASSES)),
    ),
    "crd, memory": Kind(
        lambda s, t, x: limbeck.crd(s, t, memory=MEMORY, negatives=NEGATIVES, dimensions=DIMENSIONS, example=x),
        "g + c + B/P · (2 · 4 · 128 + 8)",
        summed(gradients(), remembered(ids=True)),
    ),
    "crd, queue": Kind(
        lambda s, t, x: limbeck.crd(s, t, queue=NEGATIVES, dimensions=DIMENSIONS, example=x),
        "g + c + B/P · 2 · 4 · 128",
        summed(gradients(), remembered(ids=False)),
    ),
    "one": Kind(lambda s, t, x: limbeck.one(s, example=x), "g + c + a", summed(gradients(), adapters)),
    "dml": Kind(lambda s, t, x: limbeck.dml(s, drawn(STUDENT)), "2g + c", gradients(2)),
    "adversarial": Kind(lambda s, t, x: limbeck.adversarial(s, t, example=x), "2g + c", gradients(2)),
}


# the measurement -----------------------------------------------------------------------------------------------------

Handed = Callable[[Sequence[Any]], Traffic]


def size(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tree_leaves(tensors) if isinstance(one, Tensor))


HANDED: dict[str, Handed] = {
    "allreduce_": lambda args: Traffic(reduced=size(args[0])),
    "allgather_": lambda args: Traffic(gathered=size(args[1])),
    "_allgather_base_": lambda args: Traffic(gathered=size(args[1])),
    "scatter_": lambda args: Traffic(scattered=size(args[1])),  # of the others it has no input
    "_reduce_scatter_base_": lambda args: Traffic(cut=size(args[1])),
}
"""What a process hands to each collective of torch.ops.c10d."""


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is handed to collectives while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = NOTHING

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.split("::")[1]
            if name not in HANDED:
                raise NotImplementedError(f"{func} is a collective that bench/communication.py cannot count")
            self.traffic = self.traffic + HANDED[name](args)
        return func(*args, **(kwargs or {}))


def written() -> int:
    """Return the bytes that this process has written so far, to sockets and all else."""
    said = Path("/proc/self/io").read_text()
    return int(dict(line.split(": ") for line in said.splitlines())["wchar"])


class Look(Callback):
    """Counts and times the batches of each stage."""

    def __init__(self) -> None:
        self.stages: list[Measured] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Look:
        """Stay the same in every stage, of which each gets a copy."""
        return self

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin a stage."""
        self.mode, self.wrote = Collectives(), 0
        self.seconds: list[float] = []
        self.facts = facts_of(pl_module.method, trainer.world_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count from here on, if it is a batch to count."""
        if batch_idx in COUNTED:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        self.start = written(), time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what the batch took."""
        now = written(), time.perf_counter()
        if batch_idx in COUNTED:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.wrote += now[0] - self.start[0]
        if batch_idx in TIMED:
            self.seconds.append(now[1] - self.start[1])

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the stage."""
        self.stages.append(Measured(self.facts, self.mode.traffic, self.wrote, median(self.seconds)))


@dataclass(frozen=True)
class Measured:
    """What one process, or the mean of all, did in the batches that are counted.

    Args:
        facts: What the formulas are made of.
        traffic: Handed to collectives.
        sent: Written to sockets.
        seconds: Of a batch, the median.
    """

    facts: Facts
    traffic: Traffic
    sent: float
    seconds: float


def facts_of(method: nn.Module, world: int) -> Facts:
    trained = [p for p in method.parameters() if p.requires_grad]
    norms = [part for part in method.modules() if isinstance(part, GlobalBatchNorm)]
    apart = sum(p.numel() for name, p in method.named_parameters() if p.requires_grad and "layer" not in name)
    channels = sum(norm.num_features for norm in norms)
    return Facts(world, sum(p.numel() for p in trained), len(trained), len(norms), channels, apart)


def data(unlabelled: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.arange(BATCH * (1 + max(TIMED)))
    images = torch.randn(len(ids), *SHAPE, generator=draw)
    labels = torch.randint(CLASSES, (len(ids),), generator=draw)
    if unlabelled:
        labels = torch.where(ids % 3 == 0, -100, labels)
    return [(images[at], labels[at], ids[at]) for at in ids.reshape(-1, BATCH)]


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.001)


def trained(kind: Kind, world: int) -> Measured:
    """Train a method in this process, one of so many, and return what was measured of an update."""
    torch.manual_seed(0)
    served, look = data(kind.unlabelled), Look()
    method = kind.build(drawn(STUDENT), drawn(TEACHER), served[0][0][:8])
    limbeck.fit(
        method,
        served,
        epochs=2 if kind.stage or not isinstance(method, limbeck.Method) else 1,
        optimizer=sgd,
        devices=world,
        accelerator="cpu",
        progress=False,
        callbacks=[look],
        **kind.options,
    )
    own = look.stages[kind.stage]
    updates = len(COUNTED) / kind.options.get("accumulate", 1)
    return Measured(own.facts, share(own.traffic, updates), own.sent / updates, own.seconds)


def work(rank: int, world: int, port: int, names: Sequence[str], results: Queue[Any]) -> None:
    """Train each method as one of several processes, which Lightning finds started as by torchrun."""
    if world > 1:
        place = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "communication"}
        os.environ |= {key: str(value) for key, value in {**place, **meeting}.items()}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in names:
        results.put((name, trained(KINDS[name], world)))


def measured(world: int, names: Sequence[str]) -> dict[str, Measured]:
    """Return what is measured of each method in so many processes, the mean over them."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    ranks = [context.Process(target=work, args=(rank, world, port, names, results)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    told: dict[str, list[Measured]] = {name: [] for name in names}
    while sum(map(len, told.values())) < world * len(names):
        try:
            name, own = results.get(timeout=1)
        except Empty:
            if any(rank.exitcode for rank in ranks):
                for rank in ranks:
                    rank.kill()  # they wait for each other
                raise RuntimeError(f"one of {world} processes ended early: its error stands above") from None
        else:
            told[name].append(own)
    for rank in ranks:
        rank.join(60)
    return {name: mean(own) for name, own in told.items()}


def mean(of: Sequence[Measured]) -> Measured:
    traffic = share(sum((own.traffic for own in of), NOTHING), len(of))
    sent, seconds = (sum(values) / len(of) for values in zip(*((own.sent, own.seconds) for own in of), strict=True))
    return Measured(of[0].facts, traffic, sent, seconds)


def share(traffic: Traffic, parts: float) -> Traffic:
    return Traffic(traffic.reduced / parts, traffic.gathered / parts, traffic.scattered / parts, traffic.cut / parts)


# the table -----------------------------------------------------------------------------------------------------------

SHARED = WORLDS[1:]
HEADER = (
    "method",
    "given, by arithmetic",
    *(f"{what}, {world} processes" for world in SHARED for what in ("given", "counted", "sent", "counted")),
    f"ms a batch with {', '.join(map(str, WORLDS))}",
)


def expected(name: str, facts: Facts) -> Traffic:
    """Return what the formula says; alone a process sends nothing."""
    return KINDS[name].formula(facts) if facts.world > 1 else NOTHING


def apart(expected: float, counted: float) -> float:
    """Return by how much a count differs from the arithmetic, as a share of it."""
    return abs(counted - expected) / expected if expected else math.inf if counted else 0.0


def disagreements(of: Mapping[int, Mapping[str, Measured]]) -> Iterator[str]:
    """Yield what differs by more than `TOLERANCE`."""
    for world, methods in of.items():
        for name, own in methods.items():
            of_formula = expected(name, own.facts)
            pairs = {"given": (of_formula.given, own.traffic.given)}
            if world > 1:  # alone there is no socket, and a log may be written
                pairs["sent"] = of_formula.sent(world), own.sent
            for what, (formula, counted) in pairs.items():
                if apart(formula, counted) > TOLERANCE:
                    yield f"{name}, {world} processes: {what} {formula:,.0f} bytes by arithmetic, {counted:,.0f} as counted"


def cells(name: str, of: Mapping[int, Mapping[str, Measured]]) -> Iterator[str]:
    method, *variant = name.split(", ")
    yield ", ".join([f"`{method}`", *variant])
    yield KINDS[name].words
    for world in SHARED:
        own = of[world][name]
        formula = expected(name, own.facts)
        for bytes_ in (formula.given, own.traffic.given, formula.sent(world), own.sent):
            yield f"{bytes_:,.0f}"
    yield ", ".join(f"{1e3 * of[world][name].seconds:.0f}" for world in WORLDS)


def rows(of: Mapping[int, Mapping[str, Measured]]) -> Iterator[str]:
    names = next(iter(of.values()))
    for line in (HEADER, ["---"] * len(HEADER), *(cells(name, of) for name in names)):
        yield f"| {' | '.join(line)} |"


def write(lines: Sequence[str]) -> None:
    """Put the table between its marks."""
    write_between("communication", lines, PAGE)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="METHOD")
    parser.add_argument("--write", action="store_true", help="put the table into docs/devices.md")
    options = parser.parse_args(words)
    if options.write and len(options.only) < len(KINDS):
        parser.error("--write is of the whole table: leave --only out")
    of = {world: measured(world, options.only) for world in WORLDS}
    lines = list(rows(of))
    print("\n".join(lines))
    wrong = list(disagreements(of))
    for line in wrong:
        print(line, file=sys.stderr)
    if options.write and not wrong:
        write(lines)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
