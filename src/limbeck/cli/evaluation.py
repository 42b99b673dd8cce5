"""What `limbeck eval` measures of networks, and how it shows that."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from limbeck.cli.as_trained import as_trained
from limbeck.cli.case import Case, Loader, case_of, samples_in, shape_of
from limbeck.cli.networks import short_names, taught_by, trained
from limbeck.cli.options import several
from limbeck.core.batches import tensors
from limbeck.core.files import write
from limbeck.core.frozen import Frozen, bare, frozen
from limbeck.core.layers import Pair, pairs
from limbeck.core.task import Score, Task
from limbeck.engine.run import packed
from limbeck.measure import (
    Outputs,
    agreement,
    batch_latency_ms,
    calibrate,
    calibration,
    confusion,
    cost,
    divergence,
    exit_profile,
    gradient_cosine,
    outputs,
    per_class,
    robustness,
    side_by_side,
)
from limbeck.measure.cost import BATCH
from limbeck.measure.evaluate import batches, evaluate
from limbeck.nets.exits import EarlyExit
from limbeck.report.table import milliseconds, percent, points, quantity, size
from limbeck.zoo._files import first_line as first_words

SECONDS = 0.2
"""For each time that is taken: torch's own default, since nothing waits for it here."""
POINTS = 11
"""Of accuracy over compute that a table shows."""
NARROW = 76
"""Characters that any terminal has in a line."""
MOST = 20
"""Classes that a table shows; of more, those that changed most, or else are worst."""

LEFT_OUT = (
    "left out, since it needs one class a sample as the target of answers (N, K): calibration, exits, the classes one by "
    "one, and how alike network and teacher are"
)

Record = dict[str, Any]


def evaluated(leaf: Namespace) -> int:
    """Measure the networks, and print what was found."""
    deviations = _deviations(leaf.noise)
    case = case_of(as_trained(leaf, [leaf.network, *several(leaf.teacher)]))
    torch.manual_seed(leaf.seed)  # of NAME@random
    names = {role: leaf[role] for role in ("network", "teacher") if leaf[role] is not None}
    nets = {"network": trained(leaf.network, "network", case)}
    if leaf.teacher is not None:
        nets["teacher"] = taught_by(leaf.teacher, case)
    for role, net in nets.items():
        _refuse_not_finite(names[role], net)
    chosen = _calibrated(leaf, nets["network"], case)
    with _sizes_told(case):
        record = _record(names, nets, case, deviations, leaf.seed)
    if chosen:
        record["calibrated"] = chosen
    if leaf.json:
        print(json.dumps(pytree.tree_map(_finite, record), ensure_ascii=False))
    else:
        for table in _tables(record):
            Console(emoji=False).print(table)
    return 0


def show_metric(score: Score, name: str, value: float) -> str:
    """Return a metric as a table has it: the score in its unit."""
    return score.show(value) if name == score.name else f"{value:.4f}"


def _deviations(noise: list[float] | str | None) -> list[float]:
    words = noise.split(",") if isinstance(noise, str) else noise or []
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"noise: expected standard deviations, as 0.1,0.5, got {noise!r}") from error


def _calibrated(leaf: Namespace, net: nn.Module, case: Case) -> Record | None:
    """Set the thresholds of a network with exits, if that was asked for; say where that leaves it on validation data."""
    if leaf.macs is None and leaf.accuracy is None:
        if leaf.to is not None:
            raise ValueError("--to keeps the weights with other thresholds: say which, by --macs or --accuracy")
        return None
    if not isinstance(net, EarlyExit):
        raise TypeError(
            f"{leaf.network} has no exits, whose thresholds --macs and --accuracy set: `limbeck distill byot` trains "
            "them, and leaves NAME@RUN/early-exit.safetensors"
        )
    budget = None if leaf.macs is None else count_of(leaf.macs)
    if torch.cuda.is_available():
        net.cuda()
    val = case.validation
    chosen = calibrate(net, val, macs=budget, accuracy=leaf.accuracy, task=case.task)
    net.cpu()
    if leaf.to is not None:
        write(Path(leaf.to), packed(net))
    return {**asdict(chosen), "samples": samples_in(val, case.task), "to": leaf.to}


def count_of(words: str) -> float:
    """Read a count as `quantity` writes it: 2.5M, 2.5 M, 2500000."""
    number, scale = re.fullmatch(r"\s*(.*?) ?([kMGT]?)\s*", words).groups()  # type: ignore[union-attr]  # anything matches
    try:
        count = float(number) * 1000.0 ** " kMGT".index(scale or " ")
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise ValueError(f"macs: expected a number above 0, as 2.5M or 2500000, got {words!r}")
    return count


# what is measured ----------------------------------------------------------------------------------------------------


def _record(
    names: Mapping[str, str], nets: Mapping[str, nn.Module], case: Case, deviations: Sequence[float], seed: int
) -> Record:
    """Measure each network by its role, the first one beside the second if there is one; costs are those on the CPU."""
    example, task = case.example, case.task
    costs = {role: cost(net, example, task, seconds=SECONDS) for role, net in nets.items()}
    times = {role: batch_latency_ms(net, example, task, seconds=SECONDS) for role, net in nets.items()}
    layers = pairs(nets["network"], nets["teacher"], example, task) if "teacher" in nets else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    test = case.to(device).held_out
    for net in nets.values():
        net.to(device)
    record: Record = {
        "data": case.name,
        "title": case.title,
        "samples": samples_in(test, task),
        "classes": list(case.classes),
        "task": task.name,
        "score": asdict(task.score),
    }
    one_class = _tells_classes(nets["network"], test, task)
    if not one_class:
        record["left_out"] = LEFT_OUT
    for role, net in nets.items():
        _watch(names[role], net, task)
    found, beside = _answers(nets, test, layers, task) if one_class else ({}, {})
    record |= beside
    if one_class and not case.classes:
        record["classes"] = [str(place) for place in range(found["network"].logits.shape[1])]
    for role, net in nets.items():
        noisy = robustness(net, test, deviations, seed=seed, task=task) if deviations else {}
        metrics = found[role].metrics(task) if one_class else evaluate(net, test, task)
        record["metrics"] = [task.score.name, *(name for name in metrics if name != task.score.name)]
        record[role] = {
            "name": names[role],
            **asdict(costs[role]),
            "batch_latency_ms": times[role],
            "throughput": 1000 * BATCH / times[role],
            **metrics,
            **(_of_classes(found[role]) if one_class else {}),
            "noise": {f"{deviation:g}": metrics[task.score.name] for deviation, metrics in noisy.items()},
        }
        if isinstance(net, EarlyExit) and one_class:
            profile = exit_profile(net, test, task)
            exits = {"after": net.after, "thresholds": net.thresholds.tolist(), **asdict(profile)}
            record[role] |= {"macs": profile.macs, "exits": exits}
    return record


def _refuse_not_finite(name: str, net: nn.Module) -> None:
    """Find weights that no measure means anything of; those of files were looked at when they were read."""
    for path, parameter in bare(net).named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise ValueError(
                f"{name}: its layer {path} has values that are nan or infinite: there is nothing to measure. Take weights "
                "from before its training diverged"
            )


def _watch(name: str, net: nn.Module, task: Task) -> None:
    """Let a network refuse answers that no score means anything of; minus infinity is the logit of a class left out."""
    read = (net.output if isinstance(net, Frozen) else None) or task.output

    def refuse(_: nn.Module, inputs: Any, output: Any) -> None:
        for answer in tensors(read(output)):
            if answer.is_floating_point() and bool((answer.isnan() | answer.isposinf()).any()):
                raise ValueError(
                    f"{name} answers with values that are nan or infinite, of which no score can be taken: its training "
                    "diverged, or the inputs are not what it was trained on, as pixels that are not normalised"
                )

    net.register_forward_hook(refuse)


@contextmanager
def _sizes_told(case: Case) -> Iterator[None]:
    """Say in words that test data have another size than those that the networks were made for, if that stops them."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError) as error:
        shapes = (shape_of(case.task.inputs(batch)) for batch in case.held_out)
        other = next((shape for shape in shapes if shape not in (case.shape, None)), None)
        if case.shape is None or other is None:
            raise
        raise ValueError(
            f"the networks were made for inputs of shape {case.shape}, as the training data have it, and some of the test "
            f"data, {other}, they cannot take ({first_words(error)}): bring all to one size"
        ) from error


@torch.no_grad()
def _tells_classes(net: nn.Module, loader: Loader, task: Task) -> bool:
    """Whether a network answers with the logits of classes, (N, K), of which the targets, (N), are one."""
    batch = next(batches(loader, net))
    answer, target = task.feed(frozen(net), task.inputs(batch)), task.target(batch)
    tensors = isinstance(answer, Tensor) and isinstance(target, Tensor)
    return tensors and answer.ndim == 2 and answer.shape[:1] == target.shape and not target.is_floating_point()


def _answers(
    nets: Mapping[str, nn.Module], test: Loader, layers: Sequence[Pair], task: Task
) -> tuple[dict[str, Outputs], Record]:
    """Return what classifiers answer, and how alike that is."""
    if "teacher" not in nets:
        return {"network": outputs(nets["network"], test, task)}, {}
    student, teacher = nets["network"], nets["teacher"]
    found = side_by_side(student, teacher, test, layers, task)
    beside = {
        "agreement": agreement(found.student.logits, found.teacher.logits),
        "divergence": divergence(found.student.logits, found.teacher.logits),
        "gradient_cosine": gradient_cosine(student, teacher, test, task),
        "cka": [{"network": mine, "teacher": its, "cka": alike} for (mine, its), alike in found.cka.items()],
    }
    return {"network": found.student, "teacher": found.teacher}, beside


def _of_classes(answers: Outputs) -> Record:
    logits, targets = answers.logits, answers.targets
    return {
        "calibration_error": calibration(logits, targets),
        "per_class": per_class(logits, targets).tolist(),
        "confusion": confusion(logits, targets).tolist(),
    }


def _finite(leaf: Any) -> Any:
    """JSON has no nan."""
    return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf


# what is shown -------------------------------------------------------------------------------------------------------

_ROWS: dict[str, Callable[[Record], str]] = {
    "parameters": lambda of: quantity(of["parameters"]),
    "MACs": lambda of: quantity(of["macs"]),
    "weights": lambda of: size(of["bytes"]),
    "activations, at most": lambda of: size(of["activation_bytes"]),
    "latency, 1 sample": lambda of: milliseconds(of["latency_ms"]),
    f"latency, {BATCH} samples": lambda of: milliseconds(of["batch_latency_ms"]),
    "throughput": lambda of: f"{quantity(of['throughput'])}/s",
}


def _tables(record: Record) -> Iterator[Table]:
    networks, score = [record[role] for role in ("network", "teacher") if role in record], Score(**record["score"])
    names = short_names(["+".join(several(of["name"])) for of in networks])
    title = f"{record['title']}; times on one CPU thread"
    table = _table(title, "", *names)
    table.min_width = min(NARROW, len(title))  # which would be broken to the width of two columns
    for label, cell in _ROWS.items():
        table.add_row(label, *map(cell, networks))
    for name in record["metrics"]:
        table.add_row(Text(name), *(show_metric(score, name, of[name]) for of in networks))
    if "left_out" not in record:
        table.add_row("calibration error", *(f"{percent(of['calibration_error'])} %" for of in networks))
    for deviation in networks[0]["noise"]:
        table.add_row(
            Text(f"{score.name}, noise {deviation}"), *(score.show(of["noise"][deviation]) for of in networks)
        )
    table.caption, table.caption_justify = record.get("left_out"), "left"
    yield table
    if "left_out" in record:
        return
    for of in networks:
        if "exits" in of:
            yield _exits(of["exits"], record.get("calibrated") if of is networks[0] else None)
            yield _curve(of["exits"]["curve"])
    if "teacher" in record:
        yield _beside(record)
    yield _classes(record)


def _beside(record: Record) -> Table:
    table = _table("beside the teacher", "", "")
    table.show_header = False
    table.add_row("the same answer", f"{percent(record['agreement'])} %")
    table.add_row("KL(teacher ‖ network)", f"{record['divergence']:.4f} nats")
    table.add_row("cosine of the input gradients", f"{record['gradient_cosine']:.3f}")
    for pair in record["cka"]:
        table.add_row(Text(f"CKA, {pair['network']} and {pair['teacher']}"), f"{pair['cka']:.3f}")
    return table


def _exits(exits: Record, calibrated: Record | None) -> Table:
    """What each exit reaches, and all of them together."""
    title = "exits"
    if calibrated:
        reached = f"{percent(calibrated['accuracy'])} % at {quantity(calibrated['macs'])} MACs"
        title = f"exits, their thresholds set on {calibrated['samples']:,} validation images: {reached} there"
    table = _table(title, "after", "threshold", "leave there", "accuracy of all", "MACs")
    names = [*(exits["after"] or map(str, range(1, len(exits["shares"])))), "the last layer"]
    thresholds = [f"{threshold:.4f}" for threshold in exits["thresholds"]] + [""]
    columns = names, thresholds, exits["shares"], exits["accuracies"], exits["exit_macs"]
    for name, threshold, share, right, macs in zip(*columns, strict=True):
        table.add_row(Text(name), threshold, f"{percent(share)} %", f"{percent(right)} %", quantity(macs))
    table.add_section()
    table.add_row("together", "", "", f"{percent(exits['accuracy'])} %", quantity(exits["macs"]))
    return table


def _curve(curve: Sequence[Record]) -> Table:
    """Accuracy over compute, at points about equally far apart in compute."""
    table = _table("accuracy over compute, all exits with one threshold", "threshold", "MACs", "of all", "accuracy")
    least, most = curve[0]["macs"], curve[-1]["macs"]
    aims = [least + (most - least) * step / (POINTS - 1) for step in range(POINTS)]
    shown = [min(curve, key=lambda point: abs(point["macs"] - aim)) for aim in aims]
    for point in (of for of, after in zip(shown, [*shown[1:], None], strict=True) if of is not after):
        cells = quantity(point["macs"]), f"{percent(point['macs'] / most)} %", f"{percent(point['accuracy'])} %"
        table.add_row(f"{point['threshold']:.4f}", *cells)
    return table


def _classes(record: Record) -> Table:
    """What is recognised of each class, and how that differs from the teacher's; classes without an image have no row."""
    shares = [record[role]["per_class"] for role in ("network", "teacher") if role in record]
    counts = [sum(row) for row in record["network"]["confusion"]]
    found = [
        (name, count, own, own[0] - own[-1])
        for name, count, *own in zip(record["classes"], counts, *shares, strict=False)
        if count
    ]
    title, header = "accuracy of each class", ["class", "images", "network"]
    if len(found) > MOST:
        title = f"accuracy of the {MOST} of {len(found)} classes that " + (
            "differ most" if "teacher" in record else "it knows least"
        )
        found = sorted(found, key=lambda row: -abs(row[3]) if "teacher" in record else row[2][0])[:MOST]
    if "teacher" in record:
        header += ["teacher", "difference"]
    table = _table(title, *header)
    for name, count, own, difference in found:
        last = [points(difference)] if "teacher" in record else []
        table.add_row(Text(name), f"{count:,}", *(percent(share) for share in own), *last)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(Text(first))
    for heading in others:
        table.add_column(Text(heading), justify="right", overflow="fold")
    return table
