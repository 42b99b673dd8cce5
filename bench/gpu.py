"""All that only a GPU can tell, in under eight minutes: equality with the CPU, precisions, memory, time, waits.

    PYTHONPATH=src python bench/gpu.py --out gpu --table                 # all parts, then gpu/table.md
    PYTHONPATH=src python bench/gpu.py --out gpu --parts losses epochs   # two of them
    PYTHONPATH=src python bench/gpu.py --out gpu --parts --write         # none: the table alone, into docs/performance.md
    PYTHONPATH=src python bench/gpu.py --out /tmp/gpu --device cpu --small --table   # a rehearsal, in a minute

It needs this folder of the project, torch, what `limbeck[train]` names but jsonargparse, and pytest, which the contract
imports; and no network. Each part has a limit of seconds: when that is over it begins no further row, and says which it
left out. It writes OUT/PART.json when it ends. A part whose file is there, from the same device, sizes and torch, without
a failure, is not made again; delete the file for that. An error ends its row alone; then the exit code is 1.

On a machine that is lent for minutes, one command is enough. Take the folder along, and bring it back to go on elsewhere:

    PYTHONUNBUFFERED=1 PYTHONPATH=src python3 bench/gpu.py --out runs/gpu --table; tar -czf gpu.tgz runs/gpu

torchdistill, if it is there, stands beside our losses; its column is
empty otherwise, and the file says so. Numbers are 32-bit ones without TF32, unless a row names others. Times are of the
wall, with the device awaited at both ends; on a CPU they are of this thread. Sizes of tests, `--small`, measure nothing.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import math
import os
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("bench", "tests", "src"))

import losses as bench
import torch
from lightning.pytorch.callbacks import Callback
from marks import write_between
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

import contract
import limbeck
from limbeck import losses
from limbeck.core import files
from limbeck.data import Loader, augment
from limbeck.nets.draws import Draws

TOTAL = 440.0
"""Seconds after which no part begins a row."""
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SHAPE, CLASSES = (3, 32, 32), 100
TEMPERATURE = 4.0

Facts = dict[str, Any]
"""What a row says, by the headings of its table. ``holds`` is False where it is not what was expected."""
Cases = Generator[tuple[str, Callable[[], Facts]], None, None]
Batch = tuple[Tensor, Tensor, Tensor]
Step = Callable[[], Any]


class NothingToMeasureError(Exception):
    """Why a part has no rows here."""


@dataclass(frozen=True)
class Setting:
    """Where it is measured, and whether at the sizes of tests."""

    device: torch.device
    small: bool

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def accelerator(self) -> str:
        """Lightning's name of it."""
        return "gpu" if self.cuda else "cpu"

    def told(self) -> Facts:
        """Return what a file of other numbers would differ by."""
        name = torch.cuda.get_device_name(self.device) if self.cuda else "CPU"
        return {"device": name, "small": self.small, "torch": torch.__version__}


@dataclass(frozen=True)
class Part:
    """What is measured together.

    Args:
        seconds: Its limit.
        cases: Yields each row's name and what measures it.
        about: What its table shows.
    """

    seconds: float
    cases: Callable[[Setting], Cases]
    about: str


# how it is measured --------------------------------------------------------------------------------------------------


def awaited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Return seconds: of the wall when the device is done, or of this thread, which others do not slow down."""
    awaited(device)
    return time.perf_counter() if device.type == "cuda" else time.thread_time()


def seconds_of(step: Step, device: torch.device, repeats: int = 1) -> float:
    begun = clock(device)
    for _ in range(repeats):
        step()
    return (clock(device) - begun) / repeats


def in_turn(steps: Mapping[str, Step], setting: Setting) -> dict[str, list[float]]:
    """Return the seconds of each by round, all in one order and back by turns."""
    for step in steps.values():
        step()
    rounds, least = (2, 0.0) if setting.small else (9, 0.01)
    repeats = {
        name: min(50, 1 + int(least / max(1e-7, seconds_of(step, setting.device)))) for name, step in steps.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in [*steps][:: -1 if turn % 2 else 1]:
            spent[name].append(seconds_of(steps[name], setting.device, repeats[name]))
    return spent


def peak(step: Step, device: torch.device, leaves: Sequence[Tensor] = ()) -> float:
    """Return the most megabytes that the allocator held above the start."""
    if device.type != "cuda":
        return bench.peak(step, leaves) / 1e6
    for one in leaves:
        one.grad = None
    awaited(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    awaited(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def ratio(own: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the median and the quartiles of one over the other, round by round."""
    each = bench.ratios(own, base)
    low, _, high = quantiles(each, n=4)
    return [median(each), low, high]


def beyond(own: Mapping[str, float], base: Mapping[str, float], relative: float, absolute: float) -> float:
    """Return the largest difference over what is tolerated of it: above 1 is too much, and infinite what is not finite."""
    if own.keys() != base.keys():
        raise ValueError(f"expected the terms {sorted(base)}, got {sorted(own)}")
    each = [abs(own[name] - base[name]) / (absolute + relative * abs(base[name])) for name in base]
    return max((one if math.isfinite(one) else math.inf for one in each), default=0.0)


def moved(batch: Batch, device: torch.device) -> Batch:
    inputs, targets, ids = (own.to(device) for own in batch)
    return inputs, targets, ids


def chosen(names: Iterable[str], few: Sequence[str], setting: Setting) -> list[str]:
    return [name for name in names if not setting.small or name in few]


# the contract's rows -------------------------------------------------------------------------------------------------

FEW_ROWS = ("kd", "jacobian", "dml", "tfkd_self")
STEPS = 3


def rows(setting: Setting) -> Cases:
    """Each row of the contract, played on both devices."""
    for name in chosen(contract.ROWS, FEW_ROWS, setting):
        yield name, partial(row_on_both, name, setting.device)


def row_on_both(name: str, device: torch.device) -> Facts:
    there, drawn = played(name, device)
    here, _ = played(name, torch.device("cpu"))
    first = max(beyond(own[0], base[0], 1e-4, 1e-6) for own, base in zip(there, here, strict=True))
    last = max(beyond(own[-1], base[-1], 1e-3, 1e-5) for own, base in zip(there, here, strict=True))
    equal = first <= 1 and last <= 1
    return {
        "first step": first,
        f"step {STEPS}": last,
        "equal": equal,
        "draws": drawn,
        "holds": equal or (drawn and math.isfinite(first) and math.isfinite(last)),
    }


def played(name: str, device: torch.device) -> tuple[list[list[dict[str, float]]], bool]:
    """Return the logs of each stage's steps, and whether a method drew."""
    told, drawn = [], False
    for part in contract.stages_of(contract.build(name, *contract.networks())):
        part.method.to(device)
        for net in part.method.networks().values():  # it may be no submodule
            net.to(device)
        optimizers = contract.prepare(part)
        told.append(
            [
                limbeck.play(part.method, moved(batch, device), optimizers, index / STEPS)
                for index, batch in enumerate(contract.batches(STEPS))
            ]
        )
        drawn |= draws(part.method)
        for net in (part.method, *part.method.networks().values()):  # as `fit` leaves them to the next stage
            net.cpu()
    return told, drawn


def draws(method: limbeck.Method) -> bool:
    """Whether a method that has been played drew numbers, which on a GPU are others than on a CPU."""
    return any(isinstance(part, Draws) and part.calls > 0 for part in method.modules())


HALVES = ("bf16-mixed", "16-mixed")


def precisions(setting: Setting) -> Cases:
    """Each row of the contract, trained by `fit` in each precision."""
    for name in chosen(contract.ROWS, ("plain", "crd"), setting):
        yield name, partial(in_each_precision, name, setting)


def in_each_precision(name: str, setting: Setting) -> Facts:
    (here, _), (there, drawn) = (fitted(name, where, "32-true") for where in ("cpu", setting.accelerator))
    beside_cpu = beyond(there, here, 0.1, 0.02)
    halves = {which: beyond(fitted(name, setting.accelerator, which)[0], there, 0.1, 0.02) for which in HALVES}
    near = beside_cpu <= 1 or (drawn and math.isfinite(beside_cpu))
    return {
        "32-true / the CPU's": beside_cpu,
        **{f"{which} / 32-true": value for which, value in halves.items()},
        "draws": drawn,
        "holds": near and all(value <= 1 for value in halves.values()),
    }


def fitted(name: str, accelerator: str, precision: str) -> tuple[dict[str, float], bool]:
    """Return the losses of a row's first epoch in each stage, and whether a method drew."""
    drawn = []

    def noting(built: contract.Built) -> Iterator[limbeck.Stage]:
        for part in contract.stages_of(built):
            yield part
            drawn.append(draws(part.method))

    built = noting(contract.build(name, *contract.networks()))
    result = contract.fit(built, contract.Served(STEPS), epochs=2, accelerator=accelerator, precision=precision)
    told = {
        f"{row['stage']}/{key}": float(value)
        for row in result.history
        if row["epoch"] == 1
        for key, value in row.items()
        if key.startswith("train/")
    }
    return told, any(drawn)


# losses --------------------------------------------------------------------------------------------------------------


class Placed(TorchFunctionMode):
    """What is made under it is made on the CPU and put on a device, so that every device has the same numbers."""

    MAKERS = (
        *(torch.randn, torch.rand, torch.randint, torch.randperm, torch.zeros, torch.ones, torch.full, torch.eye),
        *(torch.empty, torch.tensor, torch.arange),
    )

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make it."""
        made = func(*args, **(kwargs or {}))
        return made.to(self.device) if func in self.MAKERS else made


def families(setting: Setting, batch: int) -> list[Callable[[], Iterator[bench.Row]]]:
    """Return all losses of bench/losses.py."""
    if setting.small:
        return [partial(bench.of_logits, 8), partial(bench.of_memory, 8, samples=64, negatives=16, dimensions=8)]
    of_batches = (bench.of_logits, bench.of_embeddings, bench.of_maps, bench.of_gradients, bench.of_memory)
    return [*(partial(family, batch) for family in of_batches), bench.of_weights]


FEW_LOSSES = ("soft_target", "dist", "Contrast (crd)")


def made_of(family: Callable[[], Iterator[bench.Row]], setting: Setting, device: torch.device) -> list[bench.Row]:
    torch.manual_seed(0)
    with Placed(device):
        return [row for row in family() if not setting.small or row.loss in FEW_LOSSES]


def equality(setting: Setting) -> Cases:
    """Each loss with the same numbers on both devices."""
    for family in families(setting, 64):
        there, here = (made_of(family, setting, device) for device in (setting.device, torch.device("cpu")))
        for own, base in zip(there, here, strict=True):
            yield own.loss, partial(loss_on_both, own, base)


OF_NETWORKS = ("gradient", "feature_gradient", "jacobian")
"""Losses of networks, whose weights a GPU draws otherwise: there the formula is what they are compared with."""


def loss_on_both(own: bench.Row, base: bench.Row) -> Facts:
    of_network = own.loss.startswith(OF_NETWORKS)
    rival, leaves = (own.formula, own.leaves) if of_network else (base.ours, base.leaves)
    value, slopes = bench.value_and_gradients(own.ours, own.leaves)
    wanted, others = bench.value_and_gradients(rival, leaves)
    of_value = beyond({"value": value.item()}, {"value": wanted.item()}, 1e-3, 1e-6)
    lengths = [(float((a.cpu() - b.cpu()).norm()), float(b.norm())) for a, b in zip(slopes, others, strict=True)]
    of_slope = max(beyond({"apart": apart}, {"apart": 0.0}, 0.0, 1e-3 * length + 1e-9) for apart, length in lengths)
    return {
        "inputs": own.inputs,
        "beside": "the formula" if of_network else "the CPU",
        "value": of_value,
        "gradient": of_slope,
        "holds": max(of_value, of_slope) <= 1,
    }


def of_losses(setting: Setting) -> Cases:
    """Each loss in batches of 256, beside torchdistill and the formula."""
    for family in families(setting, 256):
        for row in made_of(family, setting, setting.device):
            yield row.loss, partial(loss_cost, row, setting)


def loss_cost(row: bench.Row, setting: Setting) -> Facts:
    runs = {"ours": row.ours, "ours again": row.ours, "the formula": row.formula}
    steps = {name: bench.backward(loss, row.leaves) for name, loss in runs.items()}
    facts: Facts = {"inputs": row.inputs, "torchdistill": None}
    if row.peer is not None:
        try:
            (step := bench.backward(row.peer, row.leaves))()
        except Exception as error:  # noqa: BLE001  # what another library cannot do on this device is a fact of the row
            facts["torchdistill"] = in_short(error)
        else:
            steps["torchdistill"] = step
            facts["torchdistill"] = "another quantity" if row.other else "the same"
    spent = in_turn(steps, setting)
    facts["ours, ms"] = 1e3 * median(spent["ours"])
    for name in ("torchdistill", "the formula", "ours again"):
        facts[f"ours / {name}"] = ratio(spent["ours"], spent[name]) if name in steps else None
    for name in ("ours", "torchdistill", "the formula"):
        facts[f"{name}, MB"] = peak(steps[name], setting.device, row.leaves) if name in steps else None
    return facts


def vocabulary(setting: Setting) -> Cases:
    """Losses of tokens, beside the divergence written by hand."""
    tokens, sizes = (16, [64]) if setting.small else (2048, [32_768, 131_072])
    names = chosen(("soft_target", "dkd", "dist", "logit_regression"), ("dist",), setting)
    for classes in sizes:
        for numbers in (torch.float32, torch.bfloat16):
            for name in names:
                told = f"`{name}`, {tokens:,} x {classes:,}, {str(numbers).removeprefix('torch.')}"
                yield told, partial(of_tokens, name, tokens, classes, numbers, setting)


def of_tokens(name: str, tokens: int, classes: int, numbers: torch.dtype, setting: Setting) -> Facts:
    made = partial(torch.randn, tokens, classes, device=setting.device, dtype=numbers)
    student, teacher = made().requires_grad_(), made()
    targets = torch.randint(classes, (tokens,), device=setting.device)
    own: Mapping[str, Callable[[], Tensor]] = {
        "soft_target": lambda: losses.soft_target(student, teacher, TEMPERATURE),
        "dkd": lambda: losses.dkd(student, teacher, targets),  # type: ignore[attr-defined]
        "dist": lambda: losses.dist(student, teacher),  # type: ignore[attr-defined]
        "logit_regression": lambda: losses.logit_regression(student, teacher),
    }

    def by_hand() -> Tensor:
        return divergence(student.float(), teacher.float())  # as all losses here compute

    steps = {"ours": bench.backward(own[name], [student]), "by hand": bench.backward(by_hand, [student])}
    memory = {key: peak(step, setting.device, [student]) for key, step in steps.items()}
    spent = in_turn(steps, setting)
    return {
        "ms": 1e3 * median(spent["ours"]),
        "/ F.kl_div by hand": ratio(spent["ours"], spent["by hand"]),
        "MB": memory["ours"],
        "F.kl_div by hand, MB": memory["by hand"],
        "the logits, MB": student.nbytes / 1e6,
    }


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return T² KL as one writes it."""
    log_q, p = F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)
    return TEMPERATURE**2 * F.kl_div(log_q, p, reduction="batchmean")


# trainings -----------------------------------------------------------------------------------------------------------


def pair(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """Return a student and its teacher."""
    torch.manual_seed(0)
    names = ("resnet8", "resnet8") if setting.small else ("resnet8x4", "resnet32x4")
    student, teacher = (limbeck.zoo.network(name, CLASSES, SHAPE) for name in names)
    return student, teacher.eval()


def images(count: int, batch: int, device: torch.device) -> Loader:
    """Return random images of CIFAR's shape that lie on a device, augmented there, in two views."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *SHAPE), generator=draw, dtype=torch.uint8)
    classes = torch.randint(CLASSES, (count,), generator=draw)
    drawn: list[augment.Augment] = [augment.PadCrop(4), augment.Flip()]
    loader = Loader(pixels, classes, batch_size=batch, mean=MEAN, std=STD, augment=drawn, shuffle=True)
    return loader.cycling(2).to(device)


class Epochs(Callback):
    """The seconds of each epoch, from the first batch to the last."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, list[float]()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self.begun = clock(self.device)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self.spent.append(clock(self.device) - self.begun)


def trained(method: limbeck.Method, data: Any, setting: Setting, epochs: int, own: Callback) -> limbeck.Result:
    return limbeck.fit(
        method, data, epochs=epochs, accelerator=setting.accelerator, callbacks=[own], progress=False, optimizer=sgd
    )


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def epochs(setting: Setting) -> Cases:
    """Epochs of `fit` on images that lie on the device, each beside the plain student's."""
    batch, steps = (8, 2) if setting.small else (128, 60)
    data = images(batch * steps, batch, setting.device)
    _, teacher = pair(setting)
    with tempfile.TemporaryDirectory() as folder:
        plain = partial(epochs_of, "plain", data, teacher, setting)
        plain()  # what only the first training of a process costs
        yield "plain again", partial(beside_plain, plain, plain)
        yield "kd", partial(beside_plain, partial(epochs_of, "kd", data, teacher, setting), plain)
        yield "kd, cached", partial(beside_plain, partial(cached_epochs, Path(folder), data, teacher, setting), plain)
        yield "at", partial(beside_plain, partial(epochs_of, "at", data, teacher, setting), plain)


def cached_epochs(folder: Path, data: Loader, teacher: nn.Module, setting: Setting) -> tuple[list[float], float]:
    if not (folder / "cache.json").exists():
        limbeck.build_cache(folder, teacher, data, accelerator=setting.accelerator, progress=False)
    return epochs_of("kd", limbeck.cached(data, folder), teacher, setting)


def epochs_of(name: str, data: Loader, teacher: nn.Module, setting: Setting) -> tuple[list[float], float]:
    """Return the seconds of the epochs after the first, and the last one's loss."""
    student, _ = pair(setting)
    made: Mapping[str, Callable[[], limbeck.Method]] = {
        "plain": lambda: limbeck.plain(student),
        "kd": lambda: limbeck.kd(student, teacher),
        "at": lambda: limbeck.at(student, teacher, example=data.example()),
    }
    own = Epochs(setting.device)
    result = trained(made[name](), data, setting, 2 if setting.small else 3, own)
    return own.spent[1:], float(result.history[-1]["train/student/loss"])


def beside_plain(own: Callable[[], tuple[list[float], float]], plain: Callable[[], tuple[list[float], float]]) -> Facts:
    first, base, again, second = own(), plain(), plain(), own()
    spent = [*first[0], *second[0]]
    return {"an epoch, s": median(spent), "/ plain": ratio(spent, [*base[0], *again[0]]), "last loss": second[1]}


def compiled(setting: Setting) -> Cases:
    """A step with and without `torch.compile`."""
    for name in ("kd",) if setting.small else ("kd", "rkd", "at"):
        yield name, partial(compiled_beside_eager, name, setting)


def compiled_beside_eager(name: str, setting: Setting) -> Facts:
    eager, batch = method_of(name, setting).to(setting.device), batches(setting, 1)[0]
    fast = copy.deepcopy(eager)
    limbeck.compiled(fast)
    steps = {"compiled": stepping(fast, batch), "eager": stepping(eager, batch)}
    with torch.compiler.set_stance("force_eager") if setting.small else nullcontext():
        begun = time.perf_counter()
        logs = {"compiled": [steps["compiled"]()], "eager": [steps["eager"]()]}
        awaited(setting.device)
        waited = time.perf_counter() - begun
        for name_of, step in steps.items():
            logs[name_of] += [step() for _ in range(STEPS - 1)]
        spent = in_turn(steps, setting)
    torch.compiler.reset()
    apart = max(beyond(own, base, 1e-3, 1e-5) for own, base in zip(*logs.values(), strict=True))
    return {
        "compiler": "off, as sizes are those of tests" if setting.small else "on",
        "eager, ms": 1e3 * median(spent["eager"]),
        "compiled, ms": 1e3 * median(spent["compiled"]),
        "compiled / eager": ratio(spent["compiled"], spent["eager"]),
        "the first step, s": waited,
        "losses": apart,
        "holds": apart <= 1,
    }


# waits ---------------------------------------------------------------------------------------------------------------

WAITS = {
    "cuda": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH"),
    "cpu": ("aten::item", "aten::_local_scalar_dense"),
}
"""By what the profiler calls it that the host asks for a value; a CPU's own values are asked for by number."""
FIRST = 10
"""Steps that are left out: in the first ones it is asked whether each term has a gradient."""


class Seen:
    """What the profiler sees of some steps."""

    def __init__(self, setting: Setting) -> None:
        more = [ProfilerActivity.CUDA] if setting.cuda else []
        self.kind, self.steps = setting.device.type, 4 if setting.small else 20
        self.profile = profile(activities=[ProfilerActivity.CPU, *more])

    def start(self) -> None:
        """Begin to look."""
        with bench.silent():
            self.profile.start()

    def stop(self) -> None:
        """End."""
        with bench.silent():
            self.profile.stop()

    def counts(self) -> Facts:
        """Return how often the host waited, a step."""
        events = [(event.key, event.count) for event in self.profile.key_averages()]
        return {
            name: sum(count for key, count in events if key.startswith(name)) / self.steps for name in WAITS[self.kind]
        }


class Window(Callback):
    """Looks at some of the steps of `fit`."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin before the first of them, and end after the last."""
        if batch_idx == FIRST:
            self.seen.start()
        if batch_idx == FIRST + self.seen.steps:
            self.seen.stop()


def syncs(setting: Setting) -> Cases:
    """How often the host waits for the device, a step: by hand with nothing read, `play`, and `fit`."""
    names = ("kd", "crd") if setting.small else ("kd", "dkd", "at", "rkd", "crd", "dml", "adversarial")
    yield "kd by hand", partial(waits_by_hand, setting)
    for name in names:
        yield f"{name}, play", partial(waits_of_play, name, setting)
        yield f"{name}, fit, batches that lie there", partial(waits_of_fit, name, setting, False)
    yield f"{names[0]}, fit, limbeck's loader", partial(waits_of_fit, names[0], setting, True)


def waits_by_hand(setting: Setting) -> Facts:
    student, teacher = (net.to(setting.device) for net in pair(setting))
    optimizer, batch = sgd(list(student.parameters())), batches(setting, 1)[0]

    def step() -> None:
        with torch.no_grad():
            answer = teacher(batch[0])
        loss = divergence(student.train()(batch[0]), answer)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return watched(step, setting)


def waits_of_play(name: str, setting: Setting) -> Facts:
    return watched(stepping(method_of(name, setting).to(setting.device), batches(setting, 1)[0]), setting)


def watched(step: Step, setting: Setting) -> Facts:
    for _ in range(3):
        step()
    awaited(setting.device)
    seen = Seen(setting)
    seen.start()
    for _ in range(seen.steps):
        step()
    seen.stop()
    return seen.counts()


def waits_of_fit(name: str, setting: Setting, loader: bool) -> Facts:
    seen = Seen(setting)
    count = FIRST + seen.steps + 1
    size = len(batches(setting, 1)[0][0])
    data = images(count * size, size, setting.device) if loader else batches(setting, count)
    trained(method_of(name, setting), data, setting, 1, Window(seen))
    return seen.counts()


def stepping(method: limbeck.Method, batch: Batch) -> Step:
    optimizers = limbeck.optimizers(method.train(), sgd)
    return lambda: limbeck.play(method, batch, optimizers)


def method_of(name: str, setting: Setting) -> limbeck.Method:
    student, teacher = pair(setting)
    example = batches(setting, 1)[0][0].cpu()
    made: Mapping[str, Callable[[], limbeck.Method]] = {
        "at": lambda: limbeck.at(student, teacher, example=example),
        "rkd": lambda: limbeck.rkd(student, teacher),
        "crd": lambda: limbeck.crd(student, teacher, memory=8192, negatives=64, example=example),
        "dml": lambda: limbeck.dml(student, copy.deepcopy(student)),
        "adversarial": lambda: limbeck.adversarial(student, teacher, example=example),
    }
    return made[name]() if name in made else getattr(limbeck, name)(student, teacher)


def batches(setting: Setting, count: int) -> list[Batch]:
    """Return batches that lie on the device."""
    size, draw = 8 if setting.small else 64, torch.Generator().manual_seed(0)
    return [
        moved(
            (
                torch.randn(size, *SHAPE, generator=draw),
                torch.randint(CLASSES, (size,), generator=draw),
                torch.arange(size) + index * size,
            ),
            setting.device,
        )
        for index in range(count)
    ]


# two processes -------------------------------------------------------------------------------------------------------

PATIENCE = {"gpu": 60.0, "cpu": 600.0}
"""Seconds until two processes that say nothing are ended, by accelerator; a busy CPU needs minutes to start them."""


def nccl(setting: Setting) -> Cases:
    """Each row of the contract on two devices (NCCL), or in two processes of a CPU (gloo), beside one."""
    if setting.cuda and torch.cuda.device_count() < 2:
        raise NothingToMeasureError("NCCL needs two GPUs, and there is one")
    names = chosen(contract.ROWS, ("kd", "rkd"), setting)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        started = start_processes(  # type: ignore[no-untyped-call]
            one_of_two,
            (port, names, setting.accelerator, folder),
            nprocs=2,
            join=False,
            start_method="spawn" if setting.cuda else "forkserver",  # a fork has no use of CUDA
        )
        try:
            for name in names:
                yield name, partial(two_beside_one, name, setting, started, Path(folder))
        finally:
            for process in started.processes:
                process.kill()


def one_of_two(rank: int, port: int, names: Sequence[str], accelerator: str, folder: str) -> None:
    """Train rows as one of two processes, which Lightning finds started as by torchrun."""
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "gpu"}
    os.environ |= {key: str(value) for key, value in {**world, **place}.items()}
    prepare()
    for name in names:
        files.keep(of_rank(Path(folder), name, rank), weights_after(name, accelerator, 2))


def of_rank(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-{rank}.safetensors"


def weights_after(name: str, accelerator: str, devices: int) -> dict[str, Tensor]:
    student, teacher = contract.networks(norm=contract.group_norm)
    built = contract.build(name, student, teacher)
    contract.fit(built, contract.Sparse(), epochs=2, devices=devices, accelerator=accelerator)
    weights: dict[str, Tensor] = contract.tensors(student)
    return weights


def two_beside_one(name: str, setting: Setting, started: Any, folder: Path) -> Facts:
    alone = weights_after(name, setting.accelerator, 1)
    paths, begun, ended = [of_rank(folder, name, rank) for rank in range(2)], time.monotonic(), False
    while not all(path.exists() for path in paths):
        if ended or time.monotonic() - begun > PATIENCE[setting.accelerator]:
            raise TimeoutError(f"two processes {'ended' if ended else 'wait'} without {name!r}")
        ended = started.join(timeout=0.1)  # raises what broke one of them
    each = [files.read(path, "make the part again")[0] for path in paths]
    tolerance = (1e-4, 1e-4) if setting.cuda else (1e-5, 1e-5)
    apart = max(
        float(((own[key] - value).abs() / (tolerance[0] + tolerance[1] * value.abs())).max())
        for own in each
        for key, value in alone.items()
    )
    return {"weights": apart, "holds": apart <= 1}


# parts ---------------------------------------------------------------------------------------------------------------

TOLERATED = "Numbers are the largest difference over what is tolerated of it: up to 1 is equal."

PARTS = {
    "rows": Part(
        55,
        rows,
        f"Rows of the contract, played for {STEPS} steps in 32-bit beside the CPU (1e-4 in the first step, 1e-3 in the "
        f"last). {TOLERATED} A method that draws on the device draws other numbers than on the CPU: it has to be finite.",
    ),
    "precisions": Part(
        65,
        precisions,
        "Rows of the contract, trained by `fit`: the losses of an epoch in 32-bit beside the CPU's, and in half precisions "
        f"beside those in 32-bit (0.1). {TOLERATED}",
    ),
    "equality": Part(20, equality, f"Each loss of the same numbers, value and gradient (1e-3). {TOLERATED}"),
    "losses": Part(
        60,
        of_losses,
        "Each loss, forward and backward, in batches of 256. Ratios are medians over rounds with the quartiles, memory the "
        "most that the allocator held above the start.",
    ),
    "epochs": Part(
        50,
        epochs,
        "Epochs of `fit`, images of CIFAR's shape on the device, batches of 128, resnet8x4 from resnet32x4, beside the "
        "plain student's. The cache lies on the disk.",
    ),
    "compiled": Part(
        70,
        compiled,
        f"A step with `limbeck.compiled` beside the same step without, and the losses of {STEPS} steps (1e-3). {TOLERATED}",
    ),
    "syncs": Part(
        25,
        syncs,
        "How often the host waits for the device, a step, as torch's profiler counts. What a loop by hand that reads "
        "nothing has is the profiler's own.",
    ),
    "vocabulary": Part(20, vocabulary, "Losses of tokens over large vocabularies, forward and backward."),
    "nccl": Part(
        40, nccl, f"Rows of the contract on two devices beside one: the weights after six updates. {TOLERATED}"
    ),
}


def made(part: Part, setting: Setting, seconds: float) -> Facts:
    """Measure a part's rows until the time is up."""
    begun = time.monotonic()
    found: Facts = {"rows": [], "failed": {}, "left_out": [], "skipped": ""}
    with closing(part.cases(setting)) as cases:
        try:
            for name, measure in cases:
                if time.monotonic() - begun >= seconds or (found["failed"] and lost(setting.device)):
                    found["left_out"].append(name)
                else:
                    row_into(found, name, measure)
        except NothingToMeasureError as reason:
            found["skipped"] = str(reason)
        except Exception as error:  # noqa: BLE001  # between two rows
            found["failed"]["what comes next"] = in_short(error)
    return {**found, "seconds": round(time.monotonic() - begun, 1), "limit": seconds}


def row_into(found: Facts, name: str, measure: Callable[[], Facts]) -> None:
    begun = time.monotonic()
    try:
        facts = measure()
    except Exception as error:  # noqa: BLE001  # whatever breaks one row, the others are measured
        found["failed"][name] = in_short(error)
        traceback.print_exc()
        return
    found["rows"].append({"row": name, **facts, "took, s": round(time.monotonic() - begun, 2)})
    if facts.get("holds") is False:
        found["failed"][name] = "it is not what was expected: see its row"
    print(f"  {name}: {', '.join(f'{key} {shown(value)}' for key, value in facts.items())}", flush=True)


def lost(device: torch.device) -> bool:
    """Whether an error has left the device unusable for this process, as one inside a kernel does."""
    try:
        awaited(device)
    except RuntimeError:
        return True
    return False


def in_short(error: Exception) -> str:
    """Return what a traceback ends with; a message's further lines, which CUDA's are full of, are on the terminal."""
    return "".join(traceback.format_exception_only(error)).splitlines()[0][:500]


# the files and the table ---------------------------------------------------------------------------------------------


def kept(path: Path) -> Facts | None:
    """Return a part's file, if there is one that can be read."""
    try:
        found: Facts = files.read(path, "it is made again")
    except (FileNotFoundError, files.Damaged):
        return None
    return found


def done(found: Facts | None, name: str, setting: Setting) -> bool:
    """Whether a part need not be made again: it is of this setting, nothing failed, and it had all of its time."""
    if found is None or found["failed"] or (found["left_out"] and found["limit"] < PARTS[name].seconds):
        return False
    told = setting.told()
    return {key: found[key] for key in told} == told


def measured(names: Sequence[str], setting: Setting, out: Path) -> bool:
    """Measure parts that are not there yet; return whether all went well."""
    begun, well = time.monotonic(), True
    for name in names:
        path, left = out / f"{name}.json", TOTAL - (time.monotonic() - begun)
        if done(kept(path), name, setting):
            print(f"{name}: {path} is there", flush=True)
            continue
        if left <= 0:
            print(f"{name}: the time is up; the same call goes on from here", flush=True)
            break
        print(f"{name}:", flush=True)
        found = made(PARTS[name], setting, min(PARTS[name].seconds, left))
        about = {"date": date.today().isoformat(), "torchdistill": version("torchdistill")}
        files.keep(path, {"part": name, **setting.told(), **about, **found})
        well &= not found["failed"]
        print(
            f"  {found['skipped'] and found['skipped'] + ': '}{len(found['rows'])} rows, {len(found['left_out'])} left out",
            flush=True,
        )
        if found["failed"] and lost(setting.device):
            print(f"the device is lost to this process: call again, with --parts of those after {name}", flush=True)
            break
    return well


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def shown(value: Any) -> str:
    """Return a value as a cell shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        middle, low, high = value
        return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return "–" if value is None else str(value)


def table(out: Path) -> list[str]:
    """Return the section of all parts that are there."""
    found = [one for name in PARTS if (one := kept(out / f"{name}.json")) is not None]
    if not found:
        raise ValueError(f"there is no part in {out}, of which a table could be made: run without --parts")
    lines = []
    for one in found:
        lines += [f"### `{one['part']}`", "", PARTS[one["part"]].about, "", told_of(one), ""]
        if one["skipped"]:
            lines += [f"Not measured: {one['skipped']}.", ""]
        if one["rows"]:
            lines += [*cells(one["rows"]), ""]
        lines += [f"- **failed**: {name}: {why}" for name, why in one["failed"].items()]
        lines += [f"- left out, as the time was up: {', '.join(one['left_out'])}"] if one["left_out"] else []
        lines += [""] if one["failed"] or one["left_out"] else []
    missing = [f"`{name}`" for name in PARTS if name not in {one["part"] for one in found}]
    return [*lines, f"Not measured yet: {', '.join(missing)}."] if missing else lines[:-1]


def told_of(found: Facts) -> str:
    sizes = ", at the sizes of tests, which measure nothing" if found["small"] else ""
    peer = f"torchdistill {found['torchdistill']}" if found["torchdistill"] else "without torchdistill"
    command = f"`python bench/gpu.py --parts {found['part']}`"
    return f"{found['device']}{sizes}; torch {found['torch']}, {peer}; {found['date']}, {found['seconds']:.0f} s; {command}"


def cells(rows: Sequence[Facts]) -> list[str]:
    heads = [*dict.fromkeys(key for row in rows for key in row if key not in ("holds", "took, s"))]
    lines = [bench.line(heads), bench.line(["---"] * len(heads))]
    return lines + [bench.line([shown(row.get(head)) for head in heads]) for row in rows]


def prepare() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=limbeck.ChanceWarning)
    warnings.filterwarnings("ignore", category=limbeck.NoEffectWarning)


def main(words: Sequence[str] | None = None) -> int:
    """Return 0, or 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=[*PARTS], default=[*PARTS], help="which; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the parts' files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="the sizes of tests")
    parser.add_argument("--table", action="store_true", help="write OUT/table.md of what is there")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    own = parser.parse_args(words)
    if own.device == "cuda" and own.parts and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --device cpu --small rehearses")
    prepare()
    setting = Setting(torch.device(own.device), own.small)
    well = measured(own.parts, setting, own.out)
    if own.table:
        files.write(own.out / "table.md", "\n".join(table(own.out)) + "\n")
    if own.write:
        if rehearsed := [one.stem for one in own.out.glob("*.json") if (kept(one) or {}).get("device") == "CPU"]:
            parser.error(f"the page is of a GPU, and {', '.join(sorted(rehearsed))} in {own.out} of a CPU")
        write_between("gpu", table(own.out))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
