"""What it costs to load image files: limbeck's loader beside torchvision's reference loader and timm's.

    pip install --no-deps timm
    python bench/loading.py PHOTOS            # a folder of photographs, such as JPEGImages/ of VOC or CamVid
    python bench/loading.py PHOTOS --write    # and puts the table into docs/performance.md

Each of the images that are loaded is four of the photographs side by side, 500x375, as a JPEG of quality 85: what it
takes to decode one hangs on its detail, which noise and smooth surfaces do not have. All loaders serve a random resized
crop of 224x224, mirrored in half of the cases and normalised, in batches of 32.

The loaders serve a view each in turn, A B ... B A, after one that is not counted. A ratio is that of two views of a round,
of the CPU time of this process and of its workers; a cell is the median over the rounds with the quartiles. "Again" is
torchvision's loader once more: what the machine alone does to a ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import timm.data
import torch
from marks import write_between
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from limbeck.data import FileLoader
from limbeck.data.files import MEAN, STD
from limbeck.data.source import Encoded

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 32
CLASSES = 4
BASE = "torchvision's reference, 2 workers"

Loaders = dict[str, Iterable[Any]]
Spent = tuple[float, float]
"""Seconds an image: on the wall, and of CPU, the workers' too."""


def make(photos: Path, root: Path, count: int) -> list[tuple[str, int]]:
    """Write images that are four photographs each; return their paths with their classes."""
    names = sorted(path for path in photos.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    draw = random.Random(0)
    made = []
    for number in range(count):
        image = Image.new("RGB", (WIDTH, HEIGHT))
        for corner, name in enumerate(draw.sample(names, 4)):
            with Image.open(name) as photo:
                quarter = photo.convert("RGB").resize((WIDTH // 2, HEIGHT // 2 + 1), Image.Resampling.LANCZOS)
            image.paste(quarter, (corner % 2 * (WIDTH // 2), corner // 2 * (HEIGHT // 2)))
        path = root / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=85)
        made.append((str(path), number % CLASSES))
    return made


def torchvisions(root: Path, *, kept: bool = False) -> Iterable[Any]:
    """As torchvision's references/classification train, whose workers are started anew for each epoch."""
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(str(root), transforms.Compose(steps))
    return DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=kept)


def timms(root: Path) -> Iterable[Any]:
    """As timm's train.py makes it, without what alters colours; it keeps its workers and normalises whole batches."""
    found: Iterable[Any] = timm.data.create_loader(
        timm.data.create_dataset("", str(root)),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=2,
        device=torch.device("cpu"),
    )
    return found


def limbecks(made: list[tuple[str, int]], workers: int) -> Iterable[Any]:
    files = Encoded([path for path, _ in made], "photographs")
    targets = torch.tensor([target for _, target in made])
    return FileLoader(files, targets, batch_size=BATCH, augment="crop-flip", size=SIZE, workers=workers, shuffle=True)


def cpu() -> float:
    """Return the CPU seconds of this process and of its workers, those that still run too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [Path(f"/proc/{worker.pid}/schedstat").read_text() for worker in multiprocessing.active_children()]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(int(line.split()[0]) for line in living) / 1e9


def view(loader: Iterable[Any]) -> Spent:
    """Serve a view and return what an image took."""
    began, spent, images = time.perf_counter(), cpu(), 0
    for batch in loader:
        images += len(batch[0])
        assert batch[0].shape[1:] == (3, SIZE, SIZE)
        assert batch[0].dtype == torch.float32
    return (time.perf_counter() - began) / images, (cpu() - spent) / images


def measure(loaders: Loaders, rounds: int) -> dict[str, list[Spent]]:
    """Return what an image took in each view, by loader."""
    found: dict[str, list[Spent]] = {name: [] for name in loaders}
    for loader in loaders.values():
        view(loader)
    for number in range(rounds):
        for name in list(loaders)[:: -1 if number % 2 else 1]:  # nobody is always the first
            found[name].append(view(loaders[name]))
    return found


def table(found: dict[str, list[Spent]]) -> list[str]:
    """Return the lines of a table."""
    lines = [
        "| loader | CPU, µs an image | CPU / torchvision's | images/s / torchvision's |",
        "| --- | --- | --- | --- |",
    ]
    for name, views in found.items():
        costs = f"{median(cost for _, cost in views) * 1e6:.0f}"
        pairs = list(zip(views, found[BASE], strict=True))
        less = "1" if name == BASE else spread([own / base for (_, own), (_, base) in pairs])
        quicker = "1" if name == BASE else spread([base / own for (own, _), (base, _) in pairs])
        lines.append(f"| {name} | {costs} | {less} | {quicker} |")
    return lines


def spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=12 * BATCH)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    said = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = make(said.photos, root, said.images)
        size = sum(os.path.getsize(path) for path, _ in made) / len(made) / 1024
        print(
            f"torch {torch.__version__}, {len(made)} images of {size:.0f} KiB, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        loaders: dict[str, Callable[[], Iterable[Any]]] = {
            BASE: lambda: torchvisions(root),
            "again": lambda: torchvisions(root),
            "torchvision's, workers kept": lambda: torchvisions(root, kept=True),
            "timm's, 2 workers": lambda: timms(root),
            "limbeck's, 2 workers": lambda: limbecks(made, 2),
            "limbeck's, in this process": lambda: limbecks(made, 0),
        }
        lines = table(measure({name: start() for name, start in loaders.items()}, said.rounds))
    print("\n".join(lines))
    if said.write:
        write_between("loading", lines)


if __name__ == "__main__":
    main()
