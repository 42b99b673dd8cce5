"""Time and peak memory of a whole step of a method: beside torchdistill's, and beside a loop written by hand.

    pip install --no-deps torchdistill==1.1.5
    python bench/steps.py                       # prints the table
    python bench/steps.py --rounds 9 --write    # and writes it into docs/performance.md
    python bench/steps.py --only review         # one method alone

A step is forward, backward and update of resnet8x4, taught by resnet32x4, on one batch. Each that a row compares has copies
of the same networks and adapters. All run in one process, and in turn: A B ... B A. A ratio is that of two samples of one
round, of this thread's CPU time; a cell is the median over the rounds with the quartiles. "Ours again" is our step a second
time: what the machine alone does to a ratio. Memory is the most that the allocator held above the start of a step, when
gradients and momentum have been there before.

"By hand" is the loop of one who reads the paper and knows torch; that of torchdistill is its own ``DistillationBox``, whose
negatives of CRD are drawn before. "With the cache" is ours where the batch brings along what the teacher says, held in
memory as float16. Before anything is timed, the student's gradients of the first step must agree to 1e-3 of their length,
but for `crd`, which draws.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import torch
from losses import CLASSES, keep_freed_memory, line, peak, ratios, sgd, spread, times
from marks import write_between
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import losses
from limbeck.nets.connectors import regressor

SHAPE = (3, 32, 32)
LAYERS = ("layer1", "layer2", "layer3")
SAMPLES, NEGATIVES = 50_000, 16_384

Shown = Mapping[str, Tensor]
"""What a network showed, by path; its logits under ``""``."""
Loss = Callable[[Shown, Shown, Tensor], Tensor]
"""Of what the student and the teacher showed, and of the labels."""
Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Two networks and what they are fed."""

    student: nn.Module
    teacher: nn.Module
    inputs: Tensor
    labels: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Peer:
    """What torchdistill's box is made of.

    Args:
        terms: Its losses, each with its weight.
        student: The network, in a wrapper of torchdistill's where that trains adapters.
        teacher: Likewise.
        outputs: The student's modules whose outputs the losses read.
        taught: The teacher's.
        inputs: The student's modules whose inputs they read.
        extra: What a batch has beside inputs and labels.
    """

    terms: Sequence[tuple[nn.Module, float]]
    student: nn.Module
    teacher: nn.Module
    outputs: Sequence[str] = ()
    taught: Sequence[str] = ()
    inputs: Sequence[str] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method, and what it is compared with.

    Args:
        name: Its name.
        method: Ours.
        hand: Its loss, as one writes it.
        adapters: What that trains beside the student.
        peer: Returns torchdistill's, if it has one.
        drawn: Its gradient depends on draws.
    """

    name: str
    method: limbeck.Distill
    hand: Loss
    adapters: nn.Module = field(default_factory=nn.Module)
    peer: Callable[[], Peer] | None = None
    drawn: bool = False


# what is compared ----------------------------------------------------------------------------------------------------


def twins(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """Return copies of both networks, as every contender has its own hooks and weights."""
    return copy.deepcopy(setting.student), copy.deepcopy(setting.teacher)


def adapters_of(method: limbeck.Distill) -> nn.Module:
    """Return a copy of what a method trains beside the student, for the others to start from."""
    return copy.deepcopy(method.objective)


def with_labels(loss: Loss) -> Loss:
    return lambda s, t, y: F.cross_entropy(s[""], y) + loss(s, t, y)


def kd(setting: Setting) -> Row:
    alpha, temperature = 0.9, 4.0

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        log_q, p = F.log_softmax(s[""] / temperature, 1), F.softmax(t[""] / temperature, 1)
        soft = F.kl_div(log_q, p, reduction="batchmean")
        return (1 - alpha) * F.cross_entropy(s[""], y) + alpha * temperature**2 * soft

    def peer() -> Peer:
        from torchdistill.losses.mid_level import KDLoss

        return Peer([(KDLoss(".", "output", ".", "output", temperature, 1 - alpha), 1.0)], *twins(setting))

    return Row("kd", limbeck.kd(*twins(setting), temperature=temperature, alpha=alpha), hand, peer=peer)


def at(setting: Setting) -> Row:
    weight = 1000.0

    def attention(maps: Tensor) -> Tensor:
        return F.normalize(maps.pow(2).mean(1).flatten(1))

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        return sum((weight * (attention(s[at]) - attention(t[at])).pow(2).mean() for at in LAYERS), torch.zeros(()))

    def peer() -> Peer:
        from torchdistill.losses.mid_level import ATLoss

        pairs = {at: {who: {"io": "output", "path": at} for who in ("student", "teacher")} for at in LAYERS}
        return Peer([labels(), (ATLoss(pairs), weight)], *twins(setting), LAYERS, LAYERS)

    method = limbeck.at(*twins(setting), attention=weight, example=setting.inputs)
    return Row("at", method, with_labels(hand), peer=peer)


def hint(setting: Setting) -> Row:
    """FitNets' hint beside the labels, as RepDistiller trains it in one stage."""
    place, weight = "layer2", 100.0
    student, teacher = twins(setting)
    with limbeck.record(student, [place]) as guided, limbeck.record(teacher, [place]) as hinted, torch.no_grad():
        student.eval()(setting.inputs), teacher.eval()(setting.inputs)
    adapter = regressor(guided[place].shape, hinted[place].shape)
    source = limbeck.S[place].via(copy.deepcopy(adapter))
    objective = limbeck.classification.hard + weight * limbeck.on(losses.hint, source, limbeck.T[place])

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        return weight * F.mse_loss(adapter(s[place]), t[place])

    def peer() -> Peer:
        from torchdistill.losses.mid_level import SimpleLossWrapper
        from torchdistill.models.wrapper import AuxiliaryModelWrapper

        class Regressed(AuxiliaryModelWrapper):
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.model, self.regressor = model, copy.deepcopy(adapter)

            def forward(self, x: Tensor) -> Tensor:
                return self.model(x)

            def secondary_forward(self, shown: Mapping[str, Mapping[str, Tensor]]) -> None:
                self.regressor(shown[f"model.{place}"]["output"])

        ours = {"is_from_teacher": False, "module_path": "regressor", "io": "output"}
        theirs = {"is_from_teacher": True, "module_path": place, "io": "output"}
        squares = SimpleLossWrapper(nn.MSELoss(), input=ours, target=theirs)
        student, teacher = twins(setting)
        return Peer(
            [labels(), (squares, weight)], Regressed(student), teacher, [f"model.{place}", "regressor"], [place]
        )

    return Row("hint", limbeck.Distill(student, teacher, objective), with_labels(hand), adapter, peer)


def crd(setting: Setting) -> Row:
    weight, dimensions, temperature, place = 0.8, 128, 0.07, "pool"
    method = limbeck.crd(
        *twins(setting),
        memory=SAMPLES,
        negatives=NEGATIVES,
        contrast=weight,
        dimensions=dimensions,
        temperature=temperature,
        example=setting.inputs,
    )
    maps = nn.ModuleList(copy.deepcopy(part) for part in method.objective.modules() if isinstance(part, nn.Linear))
    banks = [F.normalize(torch.randn(SAMPLES, dimensions)) for _ in range(2)]
    means: dict[int, Tensor] = {}

    def negatives() -> Tensor:
        others = torch.randint(SAMPLES, (len(setting.ids), NEGATIVES))
        return torch.cat([setting.ids[:, None], others], 1)

    def side(anchors: Tensor, which: int, chosen: Tensor) -> Tensor:
        scores = torch.exp(torch.einsum("nkd,nd->nk", banks[which][chosen], anchors) / temperature)
        p = scores / (means.setdefault(which, scores.mean().detach()) * SAMPLES)
        noise = NEGATIVES / SAMPLES
        return -((p[:, 0] / (p[:, 0] + noise)).log() + (noise / (p[:, 1:] + noise)).log().sum(1)).mean()

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        units = [F.normalize(own(shown[place].flatten(1))) for own, shown in zip(maps, (s, t), strict=True)]
        chosen = negatives()
        loss = side(units[0], 1, chosen) + side(units[1], 0, chosen)
        for bank, unit in zip(banks, units, strict=True):
            bank[setting.ids] = F.normalize(0.5 * bank[setting.ids] + 0.5 * unit.detach())
        return weight * loss

    def peer() -> Peer:
        from torchdistill.losses.mid_level import CRDLoss
        from torchdistill.models.wrapper import Linear4CRD

        student, teacher = twins(setting)
        teacher.requires_grad_(False)
        sides = [
            Linear4CRD(
                f"model.{place}",
                {"in_features": own.in_features, "out_features": dimensions},
                "cpu",
                None,
                False,
                **net,
            )
            for own, net in zip(maps, ({"student_model": student}, {"teacher_model": teacher}), strict=True)
        ]
        loss = CRDLoss("normalizer", "empty", "normalizer", dimensions, SAMPLES, NEGATIVES, SAMPLES, temperature)
        outputs = [f"model.{place}", "normalizer"]
        extra = {"pos_idx": setting.ids, "contrast_idx": negatives()}
        return Peer([labels(), (loss, weight)], *sides, outputs, outputs, ["empty"], extra)

    return Row("crd", method, with_labels(hand), maps, peer, drawn=True)


def nst(setting: Setting) -> Row:
    """By hand it is RepDistiller's formula, with products of matrices where theirs has tensors of five axes."""
    weight = 50.0

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT).pow(2).mean()

    def mmd(a: Tensor, b: Tensor) -> Tensor:
        f, g = (F.normalize(maps.flatten(2), dim=2) for maps in (a, b))
        return kernel(g, g) + kernel(f, f) - 2 * kernel(f, g)

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        return sum((weight * mmd(s[at], t[at]) for at in LAYERS), torch.zeros(()))

    method = limbeck.nst(*twins(setting), selectivity=weight, example=setting.inputs)
    return Row("nst", method, with_labels(hand))


def review(setting: Setting) -> Row:
    weight = 5.0
    method = limbeck.review(*twins(setting), context=weight, warmup=0.0, example=setting.inputs)
    (ours,) = (part for part in method.objective.modules() if hasattr(part, "fusions"))
    fusions = copy.deepcopy(ours.fusions)

    def context(s: Tensor, t: Tensor) -> Tensor:
        loss, total = F.mse_loss(s, t), 1.0
        for weight, level in ((0.5, 4), (0.25, 2), (0.125, 1)):
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, level), F.adaptive_avg_pool2d(t, level))
            total += weight
        return loss / total

    def hand(s: Shown, t: Shown, y: Tensor) -> Tensor:
        loss, below = torch.zeros(()), None
        for fusion, at in zip(reversed(fusions), reversed(LAYERS), strict=True):
            maps = fusion.enter(s[at])
            if below is not None:
                below = F.interpolate(below, maps.shape[2:])
                z = fusion.attend(torch.cat([maps, below], 1)).sigmoid()
                maps = maps * z[:, :1] + below * z[:, 1:]
            loss, below = loss + weight * context(fusion.leave(maps), t[at]), maps
        return loss

    def peer() -> Peer:
        from torchdistill.losses.mid_level import HierarchicalContextLoss
        from torchdistill.models.wrapper import Student4KnowledgeReview

        student, teacher = twins(setting)
        parts = [
            {
                "path": f"student_model.{at}",
                "io": "output",
                "kwargs": {
                    "in_channels": fusion.enter[0].in_channels,
                    "mid_channels": fusion.enter[0].out_channels,
                    "out_channels": fusion.leave[0].out_channels,
                },
            }
            for fusion, at in zip(fusions, LAYERS, strict=True)
        ]
        wrapped = Student4KnowledgeReview(student, parts, "cpu", None, False, sizes=[8, 16, 32])
        for theirs, own in zip(reversed(wrapped.abf_modules), fusions, strict=True):
            for parameter, start in zip(theirs.parameters(), own.parameters(), strict=True):
                parameter.data.copy_(start)
        paths = [f"abf_modules.{at}" for at in range(len(LAYERS))]
        terms = [
            (HierarchicalContextLoss(path, "output", at, "output"), weight)
            for path, at in zip(paths, reversed(LAYERS), strict=True)
        ]
        outputs = [*(part["path"] for part in parts), *paths]
        return Peer([labels(), *terms], wrapped, teacher, outputs, LAYERS)

    return Row("review", method, with_labels(hand), fusions, peer)


def labels() -> tuple[nn.Module, float]:
    """Return torchdistill's term of the labels."""
    from torchdistill.losses.mid_level import SimpleLossWrapper

    logits = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    return SimpleLossWrapper(nn.CrossEntropyLoss(), input=logits, target={"uses_label": True}), 1.0


ROWS = (kd, at, hint, crd, nst, review)


# steps ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A step, and where the student's gradients are seen after the first."""

    step: Step
    student: nn.Module
    optimizer: torch.optim.Optimizer

    def gradient(self) -> Tensor:
        """Return all gradients of the first step as one vector: they are what the momentum starts from."""
        buffers = (self.optimizer.state[p]["momentum_buffer"] for p in self.student.parameters())
        return torch.cat([buffer.flatten() for buffer in buffers])


def ours(row: Row, setting: Setting, *, cached: bool = False) -> Contender:
    method = copy.deepcopy(row.method).train()
    made = limbeck.optimizers(method, sgd)
    batch = (setting.inputs, setting.labels, setting.ids)
    kept = said(method, batch) if cached else {}

    def step() -> None:
        brought = ({"teacher": {place: value.float() for place, value in kept.items()}},) if cached else ()
        limbeck.play(method, (*batch, *brought), made)

    return Contender(step, method.student, made["student"])


def said(method: limbeck.Distill, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return what the method reads of the teacher, as a cache keeps it: after the steps that nobody trains."""
    shown = copy.deepcopy(method).scene(batch)["teacher"]
    places = [source for source in method.objective.sources() if source.role == "teacher"]
    kept = {}
    for place in places:
        value = shown[place.path]
        for step in place.steps[: place.plain_steps]:
            value = step(value)
        kept[place.after(place.plain_steps)] = value.half()
    return kept


def by_hand(row: Row, setting: Setting) -> Contender:
    student, teacher = twins(setting)
    teacher.eval()
    shown_s, shown_t = watched(student), watched(teacher)
    optimizer = sgd([*student.parameters(), *row.adapters.parameters()])

    def step() -> None:
        with torch.no_grad():
            shown_t[""] = teacher(setting.inputs)
        shown_s[""] = student(setting.inputs)
        loss = row.hand(shown_s, shown_t, setting.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown_s.clear()
        shown_t.clear()

    return Contender(step, student, optimizer)


def watched(net: nn.Module) -> dict[str, Tensor]:
    """Let a network fill the mapping that is returned."""
    shown: dict[str, Tensor] = {}
    for path in (*LAYERS, "pool"):

        def keep(module: nn.Module, args: object, output: Tensor, path: str = path) -> None:
            shown[path] = output

        net.get_submodule(path).register_forward_hook(keep)
    return shown


def torchdistill(peer: Peer, setting: Setting) -> Contender:
    from torchdistill.core.distillation import DistillationBox

    terms = {str(at): {"criterion": loss, "weight": weight} for at, (loss, weight) in enumerate(peer.terms)}
    fed = "forward_batch_supp_dict" if peer.extra else "forward_batch_only"
    plain = isinstance(peer.teacher, type(setting.teacher))
    config = {
        "num_epochs": 1,
        "teacher": {
            "forward_proc": fed,
            "forward_hook": {"output": [*peer.taught]},
            **({"requires_grad": False} if plain else {}),
        },
        "student": {"forward_proc": fed, "forward_hook": {"output": [*peer.outputs], "input": [*peer.inputs]}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-4, "momentum": 0.9}},
    }
    box = DistillationBox(peer.teacher, peer.student, {}, config, torch.device("cpu"), None, False, 1)
    box.teacher_model.eval()
    box.student_model.train()

    def step() -> None:
        box.post_forward_process(box.forward_process(setting.inputs, setting.labels, peer.extra))

    (student,) = (part for part in peer.student.modules() if isinstance(part, type(setting.student)))
    return Contender(step, student, box.optimizer)


# how it is measured --------------------------------------------------------------------------------------------------

HEADER = (
    "step",
    "ours, ms",
    "ours / torchdistill",
    "ours / by hand",
    "ours / ours again",
    "with the cache / ours",
    "ours, MB",
    "torchdistill, MB",
    "by hand, MB",
    "with the cache, MB",
)


def measured(row: Row, setting: Setting, rounds: int) -> tuple[str, ...]:
    """Return the cells of a row."""
    made = {"ours": ours(row, setting), "again": ours(row, setting), "cache": ours(row, setting, cached=True)}
    made["hand"] = by_hand(row, setting)
    if row.peer is not None and has_torchdistill():
        made["peer"] = torchdistill(row.peer(), setting)
    for contender in made.values():
        contender.step()
    check(row, {name: made[name].gradient() for name in made})
    steps = {name: contender.step for name, contender in made.items()}
    megabytes = {name: f"{peak(step) / 1e6:.0f}" for name, step in steps.items()}
    spent = times(steps, 0.0, rounds)
    beside = {name: spread(ratios(spent["ours"], spent[name])) for name in steps}
    return (
        f"`{row.name}`",
        f"{1e3 * median(spent['ours']):.0f}",
        beside.get("peer", "–"),
        beside["hand"],
        beside["again"],
        spread(ratios(spent["cache"], spent["ours"])),
        megabytes["ours"],
        megabytes.get("peer", "–"),
        megabytes["hand"],
        megabytes["cache"],
    )


def has_torchdistill() -> bool:
    try:
        import torchdistill  # noqa: F401
    except ImportError:
        return False
    return True


def check(row: Row, gradients: Mapping[str, Tensor]) -> None:
    """Raise an AssertionError unless all contenders teach the same."""
    length = gradients["ours"].norm()
    for name, gradient in gradients.items():
        distance = (gradient - gradients["ours"]).norm()
        if not row.drawn and not distance <= 1e-3 * length:
            raise AssertionError(f"{row.name}: {name} differs by {distance:.1e} of a gradient of length {length:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a row, at least 2")
    parser.add_argument("--only", choices=[make.__name__ for make in ROWS], help="one method alone")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    lines = [line(HEADER), line(["---"] * len(HEADER))]
    print(*lines, sep="\n")
    for make in ROWS:
        if options.only in (None, make.__name__):
            torch.manual_seed(0)
            network = partial(limbeck.zoo.network, num_classes=CLASSES, shape=SHAPE)
            setting = Setting(
                network("resnet8x4"),
                network("resnet32x4"),
                torch.randn(options.batch, *SHAPE),
                torch.randint(CLASSES, (options.batch,)),
                torch.arange(options.batch),
            )
            lines.append(line(measured(make(setting), setting, max(2, options.rounds))))
            print(lines[-1], flush=True)
    if options.write:
        write_between("steps", lines)


if __name__ == "__main__":
    main()
