"""Does matching Jacobians make a student robust to noise at its inputs?

Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv 1803.00443: to match Jacobians with the
weight σ²/2 is to regress the teacher at inputs with Gaussian noise of that σ. So students are trained with the term,
without it, and with the noise drawn instead, and measured on test images with more and less noise.

    python bench/jacobian_noise.py --root ../shared/data/mnist --out runs/jacobian

A run that is stopped goes on by the same command. σ counts in standard deviations of MNIST's pixels, 0.3081 of their range.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import limbeck
from limbeck import Entry
from limbeck.data import Data, Loader
from limbeck.measure import judge, paired, summary

TEACHER, STUDENT = "mlp-512-512", "mlp-64"
TEACHER_SAMPLES, STUDENT_SAMPLES = 10_000, 1_000
SIGMA = 1.0  # of the noise in training; the weight of the term follows from it
LEVELS = (0.0, 0.5, 1.0, 2.0)  # of the noise at test

Student = Callable[[], nn.Module]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on normalised images, drawn anew for every sample of a view."""

    sd: float
    shape: tuple[int, int, int]
    on_pixels: ClassVar[bool] = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the noise of ``count`` samples."""
        return self.sd * torch.randn(count, *self.shape, generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Add it."""
        return images + parameters


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)  # SGD at the library's default rate diverges on squared logits


def noisy(data: Data) -> Data:
    """Return the data with noise on the training images."""
    train = data.train.with_seed(data.train.seed)
    assert isinstance(train, Loader)
    train.augment = (Noise(SIGMA, data.shape),)
    return replace(data, name="noisy mnist", train=train)


def entries(untrained: nn.Module) -> list[str | Entry]:
    weight = SIGMA**2 / 2
    return [
        Entry("jacobian", {"label": 0.0}, "regression alone"),
        Entry("jacobian", {"label": weight}, "labels' rows"),
        Entry("jacobian", {"label": 0.0, "projection": weight}, "projection"),
        Entry("jacobian", {"label": 0.0, "projection": weight}, "projection, untrained teacher", untrained, True),
    ]


def trained_teacher(args: argparse.Namespace) -> nn.Module:
    """Train the teacher on other images than most of the students', or load it."""
    file = args.out / "teacher.safetensors"
    data = limbeck.data.load("mnist", args.root, samples=TEACHER_SAMPLES, augment="none", seed=0)
    torch.manual_seed(0)
    teacher = limbeck.zoo.network(TEACHER, data.num_classes, data.shape)
    if file.exists():
        teacher.load_state_dict(load_file(file))
        return teacher
    limbeck.fit(limbeck.plain(teacher), data, epochs=args.epochs_teacher, optimizer=adam)
    save_file(teacher.state_dict(), file)
    return teacher


@torch.no_grad()
def accuracies(student: nn.Module, data: Data, seed: int) -> Iterator[float]:
    """Yield the test accuracy at every level; the same noise for all students of a seed."""
    student.eval()
    for level in LEVELS:
        draw, right = torch.Generator().manual_seed(seed), 0
        for inputs, targets, _ in data.test:
            noise = torch.randn(inputs.shape, generator=draw)
            right += int((student(inputs + level * noise).argmax(1) == targets).sum())
        yield right / len(data.test.ids)


def measured(folder: Path, build: Student, data: Data, seeds: int) -> list[tuple[float, ...]]:
    """Return each seed's accuracies of the students in a comparison's folder."""
    found = []
    for seed in range(seeds):
        student = build()
        student.load_state_dict(load_file(folder / f"seed-{seed}" / "student.safetensors"))
        found.append(tuple(accuracies(student, data, seed)))
    return found


def table(rows: dict[str, Sequence[tuple[float, ...]]], baseline: str) -> None:
    """Print mean and standard deviation at each level, and the paired difference at one of them."""
    print(
        "| trained by | "
        + " | ".join(f"σ = {level:g}" for level in LEVELS)
        + f" | at σ = {LEVELS[2]:g}, to {baseline} |"
    )
    print("|---|" + "---:|" * (len(LEVELS) + 1))
    others = [name for name in rows if name != baseline]
    pairs = [paired([a[2] for a in rows[name]], [b[2] for b in rows[baseline]]) for name in others]
    judged = dict(zip(others, judge(pairs), strict=True))
    for name, seeds in rows.items():
        cells = [summary([seed[column] for seed in seeds]) for column in range(len(LEVELS))]
        difference = "–"
        if name in judged:
            pair = judged[name].pair
            difference = (
                f"{100 * pair.difference:+.2f} [{100 * pair.low:+.2f}, {100 * pair.high:+.2f}] {judged[name].verdict}"
            )
        print(
            f"| {name} | " + " | ".join(f"{100 * c.mean:.2f} ± {100 * c.sd:.2f}" for c in cells) + f" | {difference} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the folder with MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/jacobian"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--epochs-teacher", type=int, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    started = time.perf_counter()

    teacher = trained_teacher(args)
    data = limbeck.data.load("mnist", args.root, samples=STUDENT_SAMPLES, batch_size=64, augment="none")
    torch.manual_seed(1)
    untrained = limbeck.zoo.network(TEACHER, data.num_classes, data.shape)

    def build() -> nn.Module:
        return limbeck.zoo.network(STUDENT, data.num_classes, data.shape)

    training: dict[str, Any] = {"epochs": args.epochs, "seeds": args.seeds, "accelerator": "cpu", "optimizer": adam}
    limbeck.compare(entries(untrained), build, teacher, data, run_dir=args.out / "clean", **training)
    drawn = [Entry("jacobian", {"label": 0.0}, "regression alone")]
    limbeck.compare(drawn, build, teacher, noisy(data), run_dir=args.out / "noisy", **training)

    folders = {entry.name: f"clean/{entry.folder}" for entry in entries(untrained) if isinstance(entry, Entry)}
    folders = {"plain": "clean/plain", **folders, "plain, noisy images": "noisy/plain"}
    folders["regression alone, noisy images"] = f"noisy/{drawn[0].folder}"
    teacher_cells = " | ".join(f"{100 * a:.2f}" for a in accuracies(teacher, data, 0))
    rows: dict[str, Sequence[tuple[float, ...]]] = {
        name: measured(args.out / folder, build, data, args.seeds) for name, folder in folders.items()
    }
    print(f"\nteacher: {teacher_cells}\n")
    table(rows, "regression alone")
    print(f"\n{time.perf_counter() - started:.0f} s, {args.seeds} seeds, torch {torch.__version__}")


if __name__ == "__main__":
    main()
