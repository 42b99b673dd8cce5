"""A class for every pixel: mean intersection over union, cross-entropy of the labelled pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.batches import part, tensors
from limbeck.core.distributed import of_update
from limbeck.core.exhibits import Bars, Exhibit, Gallery, Matrix, Note, Shown, Table
from limbeck.core.finding import Examined, Finding, Status, best_order, fits_better, in_order
from limbeck.core.numerics import full_precision
from limbeck.core.task import UNLABELLED, Batch, Score, Task, logits, target_of
from limbeck.core.trace import describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torchmetrics import MetricCollection

CHUNK = 8  # images whose answers are held at once
SIDE = 128  # pixels of a picture shown
MOST_CLASSES, A_CHART, A_ROW = 32, 16, 5  # told of one by one, drawn in one chart, and named in one row of colours
SEEN, BY_CLASS, CONFUSED = "What each pixel is", "Intersection over union by class", "What it confuses"
UNITS = (1, "pixels"), (1000, "thousands of pixels"), (10**6, "millions of pixels")
NO_LABEL = (235, 235, 235)


def classes_last(output: Any) -> Tensor:
    """Return the logits (N, H, W, K) in what a network gave: its tensor (N, K, H, W), ``["out"]``, or ``.logits``."""
    return logits(output).movedim(1, -1)


def resized(answer: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits (N, h, w, K) at another size, (N, H, W, K), bilinearly; at their own as they are.

    For a teacher whose answers are finer or coarser than the student's, as SegFormer's are:
    ``limbeck.Frozen(teacher, output=lambda out: resized(task.output(out), (24, 32)))``.

    Args:
        answer: Logits.
        size: Height and width.
    """
    if answer.shape[1:3] == tuple(size):
        return answer
    return F.interpolate(answer.movedim(-1, 1), tuple(size), mode="bilinear").movedim(1, -1)


def at_labels(answer: Tensor, targets: Tensor) -> Tensor:
    """Return logits (N, h, w, K) at the size of the labels, (N, H, W, K).

    Raises:
        ValueError: They are no logits of these pixels.
    """
    if (wrong := _unlike(answer, targets)) is not None:
        raise ValueError(wrong)
    return resized(answer, targets.shape[1:])


@full_precision
def pixel_cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the labels, mean over the labelled pixels; 0 where none of the batch is.

    Args:
        student: Logits, (N, h, w, K), the classes last; where they are coarser than the labels they are resized bilinearly.
        targets: The class of each pixel, int64 (N, H, W), where -100 is "no label".
    """
    scores = at_labels(student, targets).movedim(-1, 1)
    loss = F.cross_entropy(scores, targets, ignore_index=UNLABELLED, reduction="sum")
    return of_update(loss / (targets != UNLABELLED).sum().clamp(min=1), "labels")


def overlaps(counts: Tensor) -> Tensor:
    """Return each class's intersection over union, (K); NaN where it is neither in the labels nor in the answers.

    Args:
        counts: How many pixels of a class (row) are taken for another (column), (K, K).
    """
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    return torch.where(union > 0, hits / union, torch.nan)


def by_overlap(answer: Tensor) -> MetricCollection:
    """``mIoU``, ``pixel_accuracy`` and mean loss, of the labelled pixels of all images together.

    ``mIoU`` is the mean over those classes that are in the labels or in the answers, of one table of all pixels.
    """
    from torchmetrics import MetricCollection

    from limbeck.tasks.meters import MeanLoss, MeanOverlap, RightPixels

    classes = answer.shape[-1]
    return MetricCollection(
        {
            "mIoU": MeanOverlap(classes),
            "pixel_accuracy": RightPixels(classes),
            "loss": MeanLoss(pixel_cross_entropy),
        }
    )


def segmentation(ignore: int = 255) -> Task:
    """Return the task of naming the class of every pixel.

    Networks answer with (N, K, H, W), with it as ``"out"`` (torchvision's FCN, DeepLab and LR-ASPP) or as ``.logits``
    (transformers' SegFormer, at a quarter of the size); limbeck's answers are (N, H, W, K). Targets are the class of each
    pixel, int64 (N, H, W). The labels teach, and judge, at labelled pixels alone. A teacher teaches at every pixel: it
    knows more of those without a label than nobody, as of samples without one. torchvision's auxiliary output is not used.

    Args:
        ignore: The class of a pixel without a label, besides -100; 255 as in VOC and in Cityscapes' training classes.
    """
    return _ignoring(ignore)


@cache  # one task for one value, so that it equals itself
def _ignoring(ignore: int) -> Task:
    return Task(
        name="segmentation",
        output=classes_last,
        loss=pixel_cross_entropy,
        target=partial(_target, ignore=ignore),
        metrics=by_overlap,
        score=Score("mIoU"),
        guess=None,
        examine=examine,
        exhibit=exhibit,
    )  # its outcomes are classification's, pixel by pixel


def _target(batch: Batch, ignore: int) -> Any:
    target = target_of(batch)
    return target.masked_fill(target == ignore, UNLABELLED) if isinstance(target, Tensor) else target


def _unlike(answer: Any, targets: Any) -> str | None:
    """Say why an answer is none to these targets."""
    if not isinstance(targets, Tensor) or targets.ndim != 3 or targets.dtype != torch.int64:
        what = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else describe(targets)
        return f"the targets of segmentation are masks, the class of each pixel, int64 (N, H, W); got {what}"
    if not isinstance(answer, Tensor) or answer.ndim != 4 or len(answer) != len(targets):
        return (
            f"the answer to masks {tuple(targets.shape)} is logits (N, H, W, K), of a network that gives (N, K, H, W); got "
            f"{describe(answer)}"
        )
    (height, width), (rows, columns) = targets.shape[1:], answer.shape[1:3]
    if abs(rows * width - columns * height) > max(height, width):  # a pixel more or less, of who strides
        return (
            f"the answers are maps of {rows}x{columns} and the masks {height}x{width}, of another shape: networks give "
            "(N, K, H, W), the classes on axis 1, and a mask is cropped and resized as its image"
        )
    return None


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare masks with images, labels with outputs, and the order of a teacher's classes with the data's."""
    target = setup.task.target(setup.batch)
    answers = {name: setup.answer(net) for name, net in setup.networks.items()}
    found = [
        Finding(f"{name} outputs", "failed", f"the {name}: {wrong}")
        for name, answer in answers.items()
        if (wrong := _unlike(answer, target)) is not None
    ]
    if isinstance(target, Tensor):
        found += _masks(setup.task.inputs(setup.batch), target)
    yield from found
    if found:
        return
    widths = {name: int(answer.shape[-1]) for name, answer in answers.items()}
    known = setup.outputs or min(widths.values())
    found = [_labels(setup, known), *(_outputs(name, width, known) for name, width in widths.items())]
    yield from found
    if any(finding.status == "failed" for finding in found):
        return
    taught = {role: setup.answer(net) for role, net in setup.teachers.items()}
    yield from (_chances(name, answer) for name, answer in (answers | taught).items() if _are_chances(answer))
    for role, teacher in setup.teachers.items():
        if _unlike(taught[role], target) is None and taught[role].shape[-1] == known:
            yield from _order(role, teacher, setup, known)


def _masks(inputs: Any, target: Tensor) -> Iterator[Finding]:
    """Find masks of another size than their images."""
    image = next((each for each in tensors(inputs) if each.ndim == 4), None)
    if image is not None and target.ndim == 3 and image.shape[2:] != target.shape[1:]:
        (height, width), (rows, columns) = image.shape[2:], target.shape[1:]
        message = (
            f"the images are {height}x{width} and the masks {rows}x{columns}: a pixel's class must lie at its place. Crop "
            "and resize masks as their images, and to the nearest class (torchvision.tv_tensors.Mask is)"
        )
        yield Finding("masks", "failed", message)


def _labels(setup: Examined, known: int) -> Finding:
    """Compare the classes in the masks with those that there are."""
    kinds = _kinds(torch.cat([_kinds(targets.cpu()) for targets in setup.targets()]))
    kinds = kinds[kinds != UNLABELLED]
    if not len(kinds):
        return Finding("labels", "warning", "no pixel has a label: all are of the class that is ignored")
    values = {"lowest": float(kinds[0]), "highest": float(kinds[-1]), "classes": float(known)}
    message = f"the pixels' classes lie between {int(kinds[0])} and {int(kinds[-1])}, of {known} classes"
    wrong = kinds[(kinds < 0) | (kinds >= known)].tolist()
    if not wrong:
        return Finding("labels", "ok", message, values)
    listed = ", ".join(map(str, wrong[:6])) + (", …" if len(wrong) > 6 else "")
    advice = (
        f"; if {listed} means that there is no label, task=limbeck.segmentation(ignore={listed}) (--ignore {listed})"
        if len(wrong) == 1
        else ""
    )
    message += (
        f": {listed} {'is' if len(wrong) == 1 else 'are'} outside{advice}. Else make the networks with more outputs"
    )
    return Finding("labels", "failed", message, values)


def _kinds(targets: Tensor) -> Tensor:
    """Return what classes there are, in their order."""
    kinds: Tensor = torch.unique(targets)
    return kinds


def _outputs(name: str, width: int, known: int) -> Finding:
    status: Status = "failed" if width < known else "warning" if width > known else "ok"
    advice = "" if width == known else f": make it with {known} outputs"
    message = f"the {name} has {width} classes, and the data have {known}{advice}"
    return Finding(f"{name} outputs", status, message, {"outputs": float(width), "classes": float(known)})


def _are_chances(answer: Any) -> bool:
    """Whether answers add up to 1, as logits do not."""
    if not isinstance(answer, Tensor) or answer.shape[-1] < 2 or bool((answer < 0).any()):
        return False
    return bool(((answer.float().sum(-1) - 1).abs() < 1e-3).all())


def _chances(name: str, answer: Tensor) -> Finding:
    message = (
        f"the {name} answers with probabilities, which add up to 1 at each pixel, where logits are meant: leave out its "
        "last softmax, or undo it, limbeck.Frozen(teacher, output=lambda p: p.movedim(1, -1).clamp(min=1e-7).log())"
    )
    return Finding(f"{name} answers", "warning", message)


@torch.no_grad()
def _order(role: str, teacher: nn.Module, setup: Examined, classes: int) -> Iterator[Finding]:
    """See whether a teacher knows the classes, and whether another order of them would fit better: one found on half."""
    halves = torch.zeros(2, classes, classes)
    for index, batch in enumerate(setup.held_out()):
        target = setup.task.target(batch)
        answer = setup.task.feed(teacher, setup.task.inputs(batch))
        said = at_labels(answer, target).argmax(-1)
        for half in range(2):  # every other row: of a single batch there are both
            halves[(index + half) % 2] += _counted(said[:, half::2], target[:, half::2], classes).cpu()
    found, judged = halves
    if not bool(judged.any()):
        return
    order = best_order(found.T)
    total = judged.sum()
    as_is, permuted = float(judged.trace() / total), float(judged[order, torch.arange(classes)].sum() / total)
    one = float(judged.sum(1).max() / total)
    moved = (order != torch.arange(classes)).nonzero().flatten().tolist()
    values = {"pixels right": as_is, "pixels right, permuted": permuted, "largest class": one}
    if fits_better(permuted, as_is):
        which = ", ".join(f"{index} is {int(order[index])}" for index in moved[:4])
        message = (
            f"the {role}'s classes are permuted: with its output {which}{', …' if len(moved) > 4 else ''} it names "
            f"{permuted:.1%} of the pixels right, and {as_is:.1%} as it is. {in_order(order)}"
        )
        yield Finding(f"{role} classes", "failed", message, values)
    elif as_is <= one:
        message = (
            f"the {role} names {as_is:.1%} of the pixels right, and who names the largest class everywhere {one:.1%}: load "
            "its weights (NAME@FILE); as a control, an untrained teacher is right"
        )
        yield Finding(f"{role} classes", "warning", message, values)
    else:
        yield Finding(f"{role} classes", "ok", f"no other order of the {role}'s classes fits much better", values)


def _counted(said: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return how many labelled pixels of a class (row) are taken for another (column), int64 (K, K)."""
    right = (target >= 0) & (target < classes)
    cells = target[right].long() * classes + said[right].long()
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show images with the classes of their pixels, true and as each network sees them, and how well it does by class."""
    inputs, targets = shown.samples
    if not isinstance(targets, Tensor) or targets.ndim != 3 or not shown.networks:
        yield Note(SEEN, f"No examples: the targets are {describe(targets)}, and no masks (N, H, W).")
        return
    seen, widths = _seen(shown, inputs, targets)
    student = next(name for name in seen if name != "teacher")
    classes = widths[student]
    alike = {name: masks for name, masks in seen.items() if widths[name] == classes}  # others name other classes
    names = shown.classes if len(shown.classes) == classes else tuple(map(str, range(classes)))
    labelled = (targets != UNLABELLED).flatten(1).any(1).nonzero().flatten()
    if not len(labelled):
        yield Note(SEEN, "No examples: no pixel of the held-out samples has a label.")
        return
    right = {name: _share(masks, targets) for name, masks in alike.items()}
    chosen = telling(right["teacher"][labelled] if "teacher" in right else None, right[student][labelled])
    rows = {int(labelled[row]): why for row, why in chosen.items()}
    yield from _gallery(shown.pictures(part(inputs, [*rows]), SIDE), {"true": targets, **alike}, right, rows, names)
    counts = {name: _counted(masks, targets, classes) for name, masks in alike.items()}
    yield from _by_class(counts, names, len(targets))
    captions = [f"{why}: {student} {100 * float(right[student][row]):.0f} % right" for row, why in rows.items()]
    yield from shown.attention([*rows], captions)
    for name, net in shown.counted.items():
        yield from _confusions(name, net, shown, names)


def _seen(shown: Shown, inputs: Any, targets: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the classes that each network sees, int16 (N, H, W), and how many it knows: answers are too large to keep."""
    seen: dict[str, list[Tensor]] = {}
    widths = {}
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        for name, answer in shown.asked(part(inputs, rows)).items():
            seen.setdefault(name, []).append(at_labels(answer, targets[rows]).argmax(-1).short())
            widths[name] = int(answer.shape[-1])
    return {name: torch.cat(masks) for name, masks in seen.items()}, widths


def telling(teacher: Tensor | None, student: Tensor) -> dict[int, str]:
    """Choose up to three samples, by the share of their pixels that is right, (N): rows, with why each is shown."""
    order = student.argsort(stable=True).tolist()
    chosen = {order[len(order) // 2]: "middling"}
    if teacher is not None and bool((gap := teacher - student).max() > 0):
        chosen.setdefault(int(gap.argmax()), "the teacher is furthest ahead")
    chosen.setdefault(order[0], "hardest")
    return chosen


def _gallery(
    pictures: Sequence[NDArray[np.uint8]] | None,
    masks: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    rows: Mapping[int, str],
    names: tuple[str, ...],
) -> Iterator[Exhibit]:
    """Show the classes of the pixels of some samples, true and as networks see them, and the colours of the classes."""
    colours = _colours(len(names))
    yield Gallery(
        SEEN,
        ("image", *masks),
        tuple(
            (None if pictures is None else pictures[at], *(_painted(mask[row], colours) for mask in masks.values()))
            for at, row in enumerate(rows)
        ),
        tuple(rows.values()),
        tuple(("", "", *(f"{100 * float(share[row]):.0f} % right" for share in right.values())) for row in rows),
        figure="Held-out images",
        words="A colour is a class; light grey has no label. Right: of the labelled pixels of that image.",
    )
    among = _kinds(torch.cat([mask[[*rows]].flatten() for mask in masks.values()]))
    yield from _legend([kind for kind in among.tolist() if kind >= 0], colours, names)


def _share(masks: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right pixels of each sample, (N)."""
    known = targets != UNLABELLED
    return ((masks == targets) & known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def _legend(kinds: list[int], colours: Tensor, names: tuple[str, ...]) -> Iterator[Exhibit]:
    """Name the colours."""
    kinds = kinds[:MOST_CLASSES]
    kinds += [-1] * (-len(kinds) % A_ROW)
    cells = [(None if kind < 0 else _patch(colours[kind]), "" if kind < 0 else names[kind]) for kind in kinds]
    lines = [cells[start : start + A_ROW] for start in range(0, len(cells), A_ROW)]
    yield Gallery(
        SEEN,
        ("",) * A_ROW,
        tuple(tuple(patch for patch, _ in line) for line in lines),
        labels=tuple(tuple(name for _, name in line) for line in lines),
        figure="The colours of the classes",
    )


def _patch(colour: Tensor) -> NDArray[np.uint8]:
    patch: NDArray[np.uint8] = colour.expand(4, 24, 3).contiguous().numpy()
    return patch


def _colours(classes: int) -> Tensor:
    """Return a colour for each class, and one for what has none, uint8 (K + 1, 3): hues far apart, light and dark."""
    shades = [
        colorsys.hsv_to_rgb(0.618034 * index % 1, (0.75, 0.45, 0.95)[index % 3], (0.85, 0.95, 0.55)[index % 3])
        for index in range(classes)
    ]
    return torch.cat([(255 * torch.tensor(shades)).round().byte(), torch.tensor([NO_LABEL], dtype=torch.uint8)])


def _painted(mask: Tensor, colours: Tensor) -> NDArray[np.uint8]:
    """Return the classes of pixels (H, W) as colours (h, w, 3), at most `SIDE` a side."""
    step = -(-max(mask.shape) // SIDE)
    painted: NDArray[np.uint8] = colours[mask[::step, ::step].long().clamp(min=-1)].numpy()
    return painted


def _by_class(counts: Mapping[str, Tensor], names: tuple[str, ...], samples: int) -> Iterator[Exhibit]:
    """Show each class's intersection over union: bars, and the numbers."""
    pixels = next(iter(counts.values())).sum(1)
    shares = pixels / pixels.sum().clamp(min=1)
    values = {name: 100 * overlaps(table) for name, table in counts.items()}
    kept = sorted(shares.argsort(descending=True, stable=True)[:MOST_CLASSES].tolist())
    few = f" Of {len(names)} classes those with most pixels." if len(kept) < len(names) else ""
    words = f"In percent, of {samples} samples, spread over the held-out data, all their pixels together.{few}"
    for start in range(0, len(kept), A_CHART):
        columns = kept[start : start + A_CHART]
        drawn = torch.stack([value[columns].nan_to_num(0.0) for value in values.values()])[:, None]
        yield Bars(BY_CLASS, tuple(values), tuple(names[index] for index in columns), drawn.numpy(), words=words)
    rows = [
        (
            names[index],
            f"{100 * float(shares[index]):.1f} %",
            *("–" if value[index].isnan() else f"{float(value[index]):.1f}" for value in values.values()),
        )
        for index in kept
    ]
    mean = ("mean", "", *(f"{float(value.nanmean()):.1f}" for value in values.values()))
    yield Table(BY_CLASS, ("class", "of the pixels", *values), (*rows, mean))


def _confusions(name: str, net: nn.Module, shown: Shown, names: tuple[str, ...]) -> Iterator[Exhibit]:
    """Count how many pixels of each class a network takes for each other one, over all processes."""
    from limbeck.tasks.meters import Confusions

    table = None
    for batch in shown.batches():
        answer, target = shown.task.feed(net, shown.task.inputs(batch)), shown.task.target(batch)
        table = table or Confusions(len(names)).to(answer.device)
        table.update(answer, target)
    if table is not None:
        counts = table.compute().cpu()
        each, unit = next((each, unit) for each, unit in UNITS if each * 10**6 > counts.sum() or unit is UNITS[-1][1])
        yield Matrix(CONFUSED, names, (counts / each).round().long().numpy(), unit, name)
