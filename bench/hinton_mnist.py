"""Hinton's MNIST experiment: soft targets at T = 20, and a digit that the student has never seen.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS Deep Learning Workshop 2014,
arXiv 1503.02531, section 3.

    python bench/hinton_mnist.py --root ../shared/data/mnist --out runs/hinton

Every network trains on 55,000 of the 60,000 training images; the other 5,000 serve every choice. The test set gives the
figures of the table and the rows called "oracle", nothing else. Each part (one network) is written to ``--out`` when it
is done and skipped when it is there, so that a run that was stopped goes on, and two processes may share the work by
``--parts``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import limbeck
from limbeck.zoo.mlp import MLP

TEMPERATURE = 20.0  # the paper's; for students as wide as ours it found all above 8 alike
ALPHA = 0.9  # the paper gives no share, only "considerably lower" for the labels; ours as in limbeck.kd
LONGEST = math.sqrt(15)  # of a hidden unit's incoming weights: arXiv 1207.0580, appendix A, bounds the square by 15
JITTER = 2  # pixels
BATCH = 128
VALID = 5_000
OMITTED = 3

STUDENTS = {
    "plain": "student, hard labels",
    "smoothed": "student, label smoothing 0.1",
    "untrained": "student, distilled from an untrained teacher",
    "kd": "student, distilled",
    "plain-no3": "student without threes, hard labels",
    "kd-no3": "student without threes, distilled",
}
PAPER = {"teacher": 67, "plain": 146, "kd": 74, "kd-no3": 206}


@dataclass
class Digits:
    """All of MNIST in memory: pixels in [0, 1] as rows of 784, with the training rows split in two."""

    images: Tensor
    labels: Tensor
    train: Tensor
    valid: Tensor
    test_images: Tensor
    test_labels: Tensor


def read(root: Path) -> Digits:
    def idx(name: str, header: int) -> Tensor:
        with gzip.open(root / "MNIST" / "raw" / f"{name}-ubyte.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())

    def images(name: str) -> Tensor:
        return idx(f"{name}-images-idx3", 16).view(-1, 784) / 255

    def labels(name: str) -> Tensor:
        return idx(f"{name}-labels-idx1", 8).long()

    rows = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))  # one split for all seeds
    return Digits(images("train"), labels("train"), rows[VALID:], rows[:VALID], images("t10k"), labels("t10k"))


def jittered(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function of rows that gives their images, each moved by up to two pixels either way."""
    side, room = 28, 2 * JITTER + 1
    padded = nn.functional.pad(images.view(-1, side, side), (JITTER,) * 4)

    def view(rows: Tensor) -> Tensor:
        down, right = torch.randint(room, (2, len(rows), 1)) + torch.arange(side)
        return padded[rows[:, None, None], down[:, :, None], right[:, None, :]]

    return view


def bound_weights(net: MLP) -> None:
    """Shorten the incoming weights of every hidden unit to at most `LONGEST`."""
    *hidden, _ = (layer for layer in net.layers if isinstance(layer, nn.Linear))
    for layer in hidden:
        layer.weight.data.renorm_(2, 0, LONGEST)


def train(
    method: limbeck.Method,
    view: Callable[[Tensor], Tensor],
    labels: Tensor,
    rows: Tensor,
    *,
    epochs: int,
    rate: float,
    seed: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """SGD with momentum; the rate rises over the first twentieth and then falls to zero along a cosine."""
    optimizers = limbeck.optimizers(method, lambda params: torch.optim.SGD(params, rate, momentum=0.9))
    (optimizer,) = optimizers.values()
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(rows) / BATCH)
    method.train()
    for epoch in range(epochs):
        losses = 0.0
        for step, batch in enumerate(rows[torch.randperm(len(rows), generator=order)].split(BATCH)):
            progress = (epoch + step / steps) / epochs
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, 20 * progress + 0.01) * (1 + math.cos(math.pi * progress)) / 2
            losses += limbeck.play(method, (view(batch), labels[batch]), optimizers, progress)["student/loss"]
            after()
        print(f"  epoch {epoch + 1}/{epochs}  loss {losses / steps:.4f}", flush=True)


@torch.no_grad()
def answers(net: nn.Module, images: Tensor) -> Tensor:
    """The network's logits, without dropout."""
    net.eval()
    return torch.cat([net(part) for part in images.split(2_000)])


def build(part: str, input_dropout: float = 0.0) -> MLP:
    return MLP((1200, 1200), dropout=0.5, input_dropout=input_dropout) if part == "teacher" else MLP((800, 800))


def learn(part: str, seed: int, digits: Digits, args: argparse.Namespace) -> MLP:
    """Train the network of one part."""
    torch.manual_seed(seed)
    # the students of one seed start from the same weights and see the same batches
    net = build(part, args.input_dropout)
    if part == "teacher":
        train(
            limbeck.plain(net), jittered(digits.images), digits.labels, digits.train,
            epochs=args.epochs_teacher, rate=args.rate_teacher, seed=seed, after=lambda: bound_weights(net),
        )  # fmt: skip
        return net

    rows = digits.train
    if part.endswith("no3"):
        rows = rows[digits.labels[rows] != OMITTED]
    # nothing is augmented here, so the teacher's answers are looked up, not computed again every epoch: the
    # batches are row numbers, and student and teacher each start from a table
    student = nn.Sequential(nn.Embedding.from_pretrained(digits.images), net)
    if part.startswith("plain"):
        method = limbeck.plain(student)
    elif part == "smoothed":
        method = limbeck.ls(student, smoothing=0.1)
    else:
        teacher = build("teacher") if part == "untrained" else load(args.out / "teacher-0", "teacher")
        told = nn.Embedding.from_pretrained(answers(teacher, digits.images))
        method = limbeck.kd(student, told, temperature=TEMPERATURE, alpha=ALPHA)
    train(method, lambda rows: rows, digits.labels, rows, epochs=args.epochs_student, rate=args.rate_student, seed=seed)
    return net


def load(path: Path, part: str) -> MLP:
    net = build(part)
    net.load_state_dict(load_file(path.with_suffix(".safetensors")))
    return net


def run(part: str, seed: int, digits: Digits, args: argparse.Namespace) -> None:
    """Train one part and write it down, or see that it is there already."""
    path = args.out / f"{part}-{seed}"
    record = path.with_suffix(".json")
    who = "teacher" if part == "teacher" else "student"
    wanted = {"epochs": getattr(args, f"epochs_{who}"), "rate": getattr(args, f"rate_{who}")}
    if part == "teacher":
        wanted["input_dropout"] = args.input_dropout
    if record.exists():
        found = json.loads(record.read_text())
        if any(found.get(name) != value for name, value in wanted.items()):
            raise SystemExit(f"{record} was made with {found}, not {wanted}: give another --out")
        return
    print(f"{part}, seed {seed}: {wanted}", flush=True)
    start = time.perf_counter()
    net = learn(part, seed, digits, args)
    spent = {"part": part, "seed": seed, **wanted, "seconds": round(time.perf_counter() - start, 1)}
    spent["valid_errors"], _ = errors(answers(net, digits.images[digits.valid]), digits.labels[digits.valid])
    print(f"  {spent}", flush=True)

    # the record comes last: where it is, the weights are whole
    scratch = path.with_suffix(".part")
    save_file(net.state_dict(), scratch)
    os.replace(scratch, path.with_suffix(".safetensors"))
    scratch.write_text(json.dumps(spent) + "\n")
    os.replace(scratch, record)


def headroom(logits: Tensor) -> Tensor:
    """How far each sample's omitted class lies below its best other class: a shift beyond it makes it the answer."""
    others = logits.clone()
    others[:, OMITTED] = -math.inf
    return others.amax(1) - logits[:, OMITTED]


def shift_by_frequency(logits: Tensor) -> float:
    """The shift at which a tenth of the samples is called the omitted class; it asks for no label."""
    room = headroom(logits).sort().values
    tenth = len(room) // 10
    return room[tenth - 1 : tenth + 1].mean().item()


def shift_by_errors(logits: Tensor, labels: Tensor) -> float:
    """The shift with the fewest errors."""
    others = logits.clone()
    others[:, OMITTED] = -math.inf
    room, order = headroom(logits).sort()
    # raising the shift past a sample mends it if it is of the omitted class, and breaks it if it was right before
    gain = (labels == OMITTED).long() - (others.argmax(1) == labels).long()
    best = gain[order].cumsum(0)[:-1].argmax()
    return room[best : best + 2].mean().item()


def errors(logits: Tensor, labels: Tensor, shift: float = 0.0) -> tuple[int, int]:
    """Errors with the omitted class's logit raised by ``shift``: all, and those on the omitted class."""
    logits = logits.clone()
    logits[:, OMITTED] += shift
    wrong = logits.argmax(1) != labels
    return wrong.sum().item(), (wrong & (labels == OMITTED)).sum().item()


def spread(values: list[float], digits: int = 1) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}".removesuffix(".0")
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def report(digits: Digits, out: Path) -> None:
    """Print the tables of all the parts that are there."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    found = {part: [r for r in records if r["part"] == part] for part in ("teacher", *STUDENTS)}
    valid_labels = digits.labels[digits.valid]
    shifted: list[str] = []
    print("\n| network | paper | test errors of 10,000 | of them threes | runs | epochs | seconds a run |")
    print("|---|---|---|---|---|---|---|")
    for part, runs in found.items():
        if not runs:
            continue
        nets = [load(out / f"{part}-{r['seed']}", part) for r in runs]
        test = [answers(net, digits.test_images) for net in nets]
        total, threes = zip(*(errors(logits, digits.test_labels) for logits in test), strict=True)
        print(
            f"| {STUDENTS.get(part, part)} | {PAPER.get(part, '')} | {spread(total)} | {spread(threes)} "
            f"| {len(runs)} | {runs[0]['epochs']} | {spread([r['seconds'] for r in runs], 0)} |"
        )
        if not part.endswith("no3"):
            continue
        valid = [answers(net, digits.images[digits.valid]) for net in nets]
        rules = {
            "none": [0.0 for _ in nets],
            "validation: a tenth are threes": [shift_by_frequency(logits) for logits in valid],
            "validation: fewest errors": [shift_by_errors(logits, valid_labels) for logits in valid],
            "oracle: fewest test errors": [shift_by_errors(logits, digits.test_labels) for logits in test],
        }
        for rule, shifts in rules.items():
            pairs = zip(test, shifts, strict=True)
            total, threes = zip(*(errors(logits, digits.test_labels, shift) for logits, shift in pairs), strict=True)
            shifted.append(
                f"| {STUDENTS[part].split(', ')[1]} | {rule} | {spread(shifts, 2)} | {spread(total)} | {spread(threes)} |"
            )
    print(
        "\n| student without threes | shift of the three's logit chosen by | shift | test errors | of the 1,010 threes |"
    )
    print("|---|---|---|---|---|", *shifted, sep="\n")
    print(f"\n{sum(r['seconds'] for r in records) / 60:.0f} minutes of training in {len(records)} parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/mnist"), help="holds MNIST/raw/*.gz")
    parser.add_argument("--out", type=Path, default=Path("runs/hinton"))
    parser.add_argument("--parts", nargs="*", default=["teacher", *STUDENTS], choices=["teacher", *STUDENTS])
    parser.add_argument("--epochs-teacher", type=int, default=70)
    parser.add_argument("--epochs-student", type=int, default=12)
    parser.add_argument("--rate-teacher", type=float, default=0.1)
    parser.add_argument("--rate-student", type=float, default=0.1)
    parser.add_argument("--input-dropout", type=float, default=0.2, help="of the teacher; 0.2 as in arXiv 1207.0580")
    parser.add_argument("--seeds", type=int, default=3, help="of the students; there is one teacher")
    args = parser.parse_args()

    torch.set_flush_denormal(True)  # momentum of idle units decays into denormals, which the CPU adds many times slower
    args.out.mkdir(parents=True, exist_ok=True)
    digits = read(args.root)
    if "teacher" in args.parts:
        run("teacher", 0, digits, args)
    for seed in range(args.seeds):  # all of one seed first: a run cut short has whole rows to compare
        for part in STUDENTS:
            if part in args.parts:
                run(part, seed, digits, args)
    report(digits, args.out)


if __name__ == "__main__":
    main()
