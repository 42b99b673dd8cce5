"""Look at a few test images with the trained networks, for the pictures of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from limbeck.data import Data
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs
from limbeck.engine.learner import teachers_of
from limbeck.frozen import Frozen, bare, frozen
from limbeck.layers import Pair, pairs
from limbeck.method import Method
from limbeck.methods.at import attention_map
from limbeck.report.examples import Examples
from limbeck.report.run import read_result
from limbeck.task import UNLABELLED, Task
from limbeck.tasks.classification import classification, cross_entropy
from limbeck.trace import record

POOL = 256
"""Images, spread over the test data, among which the examples are looked for."""
UNSURE, MISTAKEN = 2, 2
"""Examples on which the teacher hesitates, and on which the student errs."""
SIDE, GRID = 96, 28
"""Most pixels a side that are kept of an image and of an attention map."""
LAYERS = 4
"""Most pairs of layers whose attention is shown: the deepest."""
MOST_CLASSES = 1000
"""Beyond these a table of confusions is too large to keep, and to look at."""


def examples_of(method: Method, loader: Iterable[Any], classes: Sequence[str] = ()) -> Examples | None:
    """Return what a trained method's networks make of test images: the one to ship and, if there is one, its teacher.

    Among several processes all must ask, as each has its share of the test data.

    Args:
        method: The method; of several stages the last.
        loader: Test batches.
        classes: Names, in the order of the outputs; by default their numbers.

    Returns:
        The examples, or None where the task is no classification.
    """
    name, student = next(iter(method.networks().items()))
    table = confusion(student, loader, method.task)
    if table is None:
        return None
    names = tuple(classes) if len(classes) == len(table) else tuple(map(str, range(len(table))))
    _, teacher = next(teachers_of(method), ("", None))
    if teacher is None:
        return replace(_nothing((name,), names), confusion=table)
    device = next(student.parameters(), torch.empty(0)).device
    return replace(
        observe(teacher, {name: student}, loader, method.task, classes=names, device=device), confusion=table
    )


def examples_of_runs(
    runs: Mapping[str, Path],
    make: Callable[[], nn.Module],
    teacher: nn.Module,
    data: Any,
    device: torch.device | str,
) -> Examples:
    """Return what a teacher and the students of several runs make of the same test images.

    Args:
        runs: Finished runs by the names of their students.
        make: Makes the student.
        teacher: Their teacher.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)``.
        device: Where the networks run.
    """
    students = {name: make() for name in runs}
    for name, folder in runs.items():
        shipped = next(iter(read_result(folder)["networks"]))
        students[name].load_state_dict(load_file(folder / f"{shipped}.safetensors"))
    test, classes = (data.test, data.classes) if isinstance(data, Data) else (data[2], ())
    return observe(teacher, students, test, classes=classes, device=device)


@torch.no_grad()
def observe(
    teacher: nn.Module,
    students: Mapping[str, nn.Module],
    loader: Iterable[Any],
    task: Task = classification,
    *,
    classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Examples:
    """Let a teacher and its students answer to a few telling images, and see where their layers look.

    The examples are the same each time: of 256 images spread over the data, and of those that the teacher gets right, the
    one that it is surest of, two that it is least sure of, and two that the first student gets wrong, surest of itself.

    Args:
        teacher: The teacher.
        students: Of one architecture, by name; the first is the one whose errors are shown.
        loader: Test batches.
        task: How they are fed.
        classes: Names, in the order of the outputs; by default their numbers.
        device: Where the networks run; they stay where they are.

    Returns:
        The examples; with a note, and without images, where there are none to be seen.
    """
    names, nets = ("teacher", *students), [Frozen(bare(net)).to(device) for net in (teacher, *students.values())]
    pool = _pool(loader, task)
    if pool is None:
        why = "No examples: the inputs are no images (N, C, H, W) of one size, grey or RGB, with a class each."
        return _nothing(names, classes, why)
    inputs, targets = pool
    logits = [_answers(net, inputs, task, device) for net in nets]
    if len({each.shape[1:] for each in logits}) > 1 or logits[0].ndim != 2:
        shapes = ", ".join(f"{name} {tuple(each.shape[1:])}" for name, each in zip(names, logits, strict=True))
        return _nothing(names, classes, f"No examples: the networks do not answer with the same classes: {shapes}.")
    chosen = choose(logits[0], logits[1], targets)
    if not chosen:
        return _nothing(names, classes, f"No examples: of {len(targets)} held-out images the teacher gets none right.")
    classes = tuple(classes) or tuple(map(str, range(logits[0].shape[1])))
    rows = torch.tensor(list(chosen))
    takes = logits[1].argmax(1)
    layers, maps = _attention(nets, inputs[rows].to(device), task)
    return Examples(
        names,
        classes,
        _pixels(inputs[rows], loader),
        targets[rows].numpy(),
        tuple(_words(why, classes[targets[row]], names[1], classes[takes[row]]) for row, why in chosen.items()),
        torch.stack(logits)[:, rows].numpy(),
        layers,
        maps,
        notes=()
        if maps
        else ("No attention maps: the networks have no paired layers with feature maps (N, C, H, W).",),
    )


@torch.no_grad()
def confusion(net: nn.Module, loader: Iterable[Any], task: Task = classification) -> NDArray[np.int64] | None:
    """Count how many samples of each class (row) a network takes for each other one (column), over all processes.

    None where the task is no classification of whole inputs, or has more than 1000 classes.
    """
    if task.loss is not cross_entropy:
        return None
    view, table = frozen(net), None
    for inputs, target in _classified(loader, task, next(net.parameters(), torch.empty(0)).device):
        output = task.feed(view, inputs)
        if table is None:
            if output.ndim != 2 or output.shape[1] > MOST_CLASSES:
                return None
            table = MulticlassConfusionMatrix(output.shape[1], ignore_index=UNLABELLED).to(output.device)
        table.update(output, target)
    return None if table is None else table.compute().cpu().numpy().astype(np.int64)


def choose(teacher: Tensor, student: Tensor, targets: Tensor) -> dict[int, str]:
    """Choose telling samples among those that the teacher gets right, of different classes as far as there are.

    Args:
        teacher: Logits, (N, K).
        student: Logits, (N, K).
        targets: Classes, (N).

    Returns:
        Rows with why they were chosen, in the order they are shown: "sure" (the teacher), "unsure" (the teacher) and
        "mistaken" (the student).
    """
    right = teacher.argmax(1) == targets
    best = teacher.softmax(1).topk(min(2, teacher.shape[1])).values
    margin = best[:, 0] - best[:, -1]
    mistaken = right & (student.argmax(1) != targets)
    certainty = student.softmax(1).amax(1)
    chosen: dict[int, str] = {}
    for why, count, where, order in (
        ("sure", 1, right, -margin),
        ("mistaken", MISTAKEN, mistaken, -certainty),
        ("unsure", UNSURE, right, margin),
    ):
        rows = [row for row in order.argsort(stable=True).tolist() if where[row] and row not in chosen]
        seen = {int(targets[row]) for row in chosen}
        rows.sort(key=lambda row: int(targets[row]) in seen)  # a class that was not shown yet, if there is one
        chosen |= dict.fromkeys(rows[:count], why)
    return dict(sorted(chosen.items(), key=lambda item: ("sure", "unsure", "mistaken").index(item[1])))


def _words(why: str, target: str, student: str, answer: str) -> str:
    if why == "mistaken":
        return f"{target}: the teacher is right, {student} says {answer}"
    return f"{target}: the teacher is right and {why}"


def _nothing(names: Sequence[str], classes: Sequence[str], *notes: str) -> Examples:
    nothing = np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int64), (), np.zeros((len(names), 0, 0), np.float32)
    return Examples(tuple(names), tuple(classes), *nothing, notes=notes)


def _pool(loader: Iterable[Any], task: Task) -> tuple[Tensor, Tensor] | None:
    """Return images with their classes, spread over the data where it can be told to; None where there are none."""
    if isinstance(loader, Epochs):
        spread = torch.linspace(0, len(loader.ids) - 1, min(POOL, len(loader.ids)), dtype=torch.float64).long()
        loader, ids = loader.plain(), loader.ids
        loader.ids = ids[spread]
    images: list[Tensor] = []
    classes: list[Tensor] = []
    for inputs, target in _classified(loader, task, torch.device("cpu")):
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            return None
        labelled = target != UNLABELLED
        images.append(inputs[labelled])
        classes.append(target[labelled])
        if sum(map(len, images)) >= POOL:
            break
    if len({each.shape[1:] for each in images}) != 1 or not sum(map(len, images)):
        return None
    return torch.cat(images)[:POOL], torch.cat(classes)[:POOL]


def _classified(loader: Iterable[Any], task: Task, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """Yield inputs and classes as long as a sample has one class."""
    for batch in loader:
        moved = move_data_to_device(batch, device)
        target = task.target(moved)
        if target.ndim != 1:
            return
        yield task.inputs(moved), target


def _answers(net: nn.Module, inputs: Tensor, task: Task, device: torch.device | str) -> Tensor:
    return torch.cat([task.feed(net, chunk.to(device)).float().cpu() for chunk in torch.split(inputs, 64)])


def _pixels(inputs: Tensor, loader: Iterable[Any]) -> NDArray[np.uint8]:
    """Undo the normalisation where it is known, and stretch the values to their own range where it is not."""
    normalise = getattr(loader, "normalise", None)
    if isinstance(normalise, Normalise):
        pixels = (inputs - normalise.shift.cpu()) / normalise.scale.cpu() / 255
    else:
        low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
        pixels = (inputs - low) / (high - low).clamp_min(1e-6)
    longest = max(pixels.shape[2:])
    if longest > SIDE:
        pixels = F.interpolate(pixels, scale_factor=SIDE / longest, mode="area")
    return (255 * pixels.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()


def _attention(
    nets: Sequence[nn.Module], inputs: Tensor, task: Task
) -> tuple[tuple[Pair, ...], tuple[NDArray[np.uint8], ...]]:
    """Return the pairs (teacher's layer, student's) that have feature maps, and each one's maps, (networks, N, h, w)."""
    teacher, *students = nets
    found = [(t, s) for s, t in pairs(students[0], teacher, inputs, task)]
    shown = [_features(teacher, [t for t, _ in found], inputs, task)]
    shown += [_features(net, [s for _, s in found], inputs, task) for net in students]
    kept: dict[Pair, NDArray[np.uint8]] = {}
    for t, s in found:
        features = [shown[0][t], *(each[s] for each in shown[1:])]
        if all(each.ndim == 4 and max(each.shape[2:]) > 1 for each in features):
            kept[t, s] = _maps(features)
    return tuple(kept)[-LAYERS:], tuple(kept.values())[-LAYERS:]


def _features(net: nn.Module, paths: Sequence[str], inputs: Tensor, task: Task) -> dict[str, Tensor]:
    with torch.compiler.set_stance("force_eager"), record(bare(net), paths) as trace:
        task.feed(net, inputs)
    return trace


def _maps(features: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Return where each network's layer looks, on the coarsest of their grids, as shares of each map's maximum."""
    height, width = (min(GRID, *(each.shape[axis] for each in features)) for axis in (2, 3))
    maps = torch.stack([F.adaptive_avg_pool2d(attention_map(each), (height, width)) for each in features])
    shares = maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)
    return (255 * shares).round().byte().cpu().numpy()
