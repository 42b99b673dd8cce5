"""Model compression on tables: what a small network learns from labels, from a teacher's answers, and from MUNGE's rows.

    python bench/mimic_tabular.py --root ../shared/data/tabular --seeds 5 --out runs/mimic
    python bench/mimic_tabular.py --root ../shared/data/tabular --out runs/mimic --times
    python bench/mimic_tabular.py --out runs/mimic --table

A seed draws the validation rows, the 4,000 rows to learn from that keep their labels, the teacher, MUNGE's rows, and the
weights that all students of the seed begin with. The validation rows, a tenth of those outside the test, have labels too.
Each student is trained until its validation RMSE has not fallen for a while, and its state with the least is measured on
the test rows, so that none is blamed for having been trained too long. A line of the table is
a JSON file, and one that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.files import write
from limbeck.data import Rows, tabular
from limbeck.data.epochs import generator
from limbeck.data.split import groups, hold_out
from limbeck.data.tabular import Tabular, answered
from limbeck.measure import Judgement, judge, paired
from limbeck.verbs.mimic import Training, Transfer, measured, student_of, teacher_of, transfer

TEACHERS = ("random-forest", "gradient-boosting")
STUDENTS = ("mlp-32", "mlp-128")
LABELS, BATCH, LR, LOOK, PATIENCE = 4000, 256, 3e-3, 100, 1500


class Lesson(NamedTuple):
    """Which rows the teacher answers: as `limbeck.verbs.mimic.transfer` has them, and of so many the first."""

    kind: Transfer
    times: tuple[int, ...] = (1,)
    swap: float = 0.5
    control: bool = False

    def name(self, times: int) -> str:
        """Return what a student learns from, in words."""
        if self.kind == "munge":
            return f"MUNGE x {times}" + (f", p = {self.swap}" if self.swap != 0.5 else "")
        return {"train": SOFT, "random": f"uniform x {times}", "unlabelled": UNLABELLED}[self.kind]


HARD, SOFT, UNLABELLED = "4,000 hard labels", "4,000 soft labels", "soft labels and unlabelled rows"
LESSONS = (
    Lesson("train"),
    Lesson("munge", (1, 5, 25)),
    Lesson("munge", (25,), swap=0.2),
    Lesson("random", (25,), control=True),
    Lesson("unlabelled", control=True),
)
LEARNT_FROM = ("-", HARD, *(lesson.name(times) for lesson in LESSONS for times in lesson.times))
CLAIMS = (
    (SOFT, HARD),
    ("MUNGE x 25", SOFT),
    ("MUNGE x 25", HARD),
    ("MUNGE x 5", "MUNGE x 1"),
    ("MUNGE x 25", "MUNGE x 5"),
    ("MUNGE x 25", "uniform x 25"),
    ("MUNGE x 25, p = 0.2", "MUNGE x 25"),
    ("MUNGE x 25, p = 0.2", SOFT),
    ("MUNGE x 25, p = 0.2", "-"),
)
"""What may have the lower RMSE, and than what; the teacher is "-"."""


class Trained(NamedTuple):
    """A model, after how many updates, and the validation RMSE that it was chosen by."""

    model: nn.Module
    updates: int
    val_rmse: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the tables")
    parser.add_argument("--data", nargs="+", default=["adult", "covtype"])
    parser.add_argument("--teachers", nargs="*", default=TEACHERS, choices=TEACHERS)
    parser.add_argument("--learn-from", nargs="*", default=LEARNT_FROM[1:], choices=LEARNT_FROM[1:], metavar="WHAT")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=6000, help="at most")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--times", action="store_true", help="print CPU times alone, which a busy machine does not change"
    )
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown")
    options = parser.parse_args()
    if options.table:
        lines = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
        print_table(lines)
        print_claims(lines)
        return
    if options.times:
        for name in options.data:
            print_times(with_labels(tabular.load(name, options.root)), options.teachers)
        return
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.data:
            table = with_labels(tabular.load(name, options.root, split_seed=seed), seed)
            run(table, options.teachers, options.learn_from, seed, options.updates, options.out)


def run(table: Tabular, teachers: Sequence[str], wanted: Collection[str], seed: int, updates: int, out: Path) -> None:
    """Make all lines of one table and seed."""

    def keep(teacher: str, model: str, rows: str, make: Callable[[], Trained]) -> None:
        path = out / f"{table.name}-{teacher}-{model}-{slug(rows)}-{seed}.json"
        if path.exists():
            return
        began = time.process_time()
        made = make()
        line = {"data": table.name, "teacher": teacher, "model": model, "rows": rows, "seed": seed}
        line |= {"updates": made.updates, "val_rmse": made.val_rmse}
        line["cpu_seconds"] = round(time.process_time() - began, 2)
        write(path, json.dumps(line | asdict(measured(made.model, table, seconds=0.02))))
        print(path.name, flush=True)

    def learn(teacher: str, make: Callable[[nn.Module], limbeck.Method], rows: str, loader: Rows) -> None:
        for student in STUDENTS:
            keep(teacher, student, rows, lambda: trained(table, student, make, loader, updates, seed))  # noqa: B023

    encode = table.encoder()  # it learns nothing, so it encodes once what a student sees again and again
    if HARD in wanted:
        learn("-", limbeck.plain, HARD, loader_of(encode(table.train.rows), table.train.targets, None, seed))
    # the passes of MUNGE follow one another, so that the first of 25 are what fewer would have made
    lessons = [lesson for lesson in LESSONS if any(lesson.name(times) in wanted for times in lesson.times)]
    drawn = [transfer(table, each.kind, max(each.times), swap=each.swap, seed=seed) for each in lessons]
    encoded = [encode(rows) for rows in drawn]
    for name in teachers:
        teacher = teacher_of(name, table, Training(seed=seed))
        keep(name, "teacher", "-", lambda: Trained(teacher, 0, rmse(teacher, table.val.rows, table.val.targets)))  # noqa: B023
        for lesson, rows, inputs in zip(lessons, drawn, encoded, strict=True):
            if lesson.control and name != TEACHERS[0]:
                continue
            answers = answered(rows, teacher, batch_size=BATCH).answers
            for times in (times for times in lesson.times if lesson.name(times) in wanted):
                count = len(rows) * times // max(lesson.times)
                unlabelled = torch.full((count,), -100)
                learn(name, mimicking, lesson.name(times), loader_of(inputs[:count], unlabelled, answers[:count], seed))


def with_labels(table: Tabular, seed: int = 0) -> Tabular:
    """Put away all of train's labels but 4,000; those of the validation rows stay beside them."""
    kept = groups(table.train.targets)
    rest, known = hold_out(kept, LABELS / len(kept), generator("labels", seed), "labels")
    return replace(table, train=table.train.take(known), unlabelled=table.train.rows[rest])


def slug(words: str) -> str:
    return re.sub(r"[^\w.-]+", "_", words)


def loader_of(rows: Tensor, targets: Tensor, answers: Tensor | None, seed: int) -> Rows:
    return Rows(rows, targets if answers is None else answers, batch_size=BATCH, shuffle=True, seed=seed)


def mimicking(student: nn.Module) -> limbeck.Method:
    return limbeck.mimic(student, None)


def trained(
    table: Tabular, name: str, make: Callable[[nn.Module], limbeck.Method], loader: Rows, updates: int, seed: int
) -> Trained:
    """Train a student on encoded rows; return it, with its encoder, as it was when its validation RMSE was least."""
    torch.manual_seed(seed)
    student = student_of(name, table)
    net, rows = student.net, student.encode(table.val.rows)
    method = make(net)
    optimizers = limbeck.optimizers(method, lambda parameters: torch.optim.Adam(parameters, LR, fused=True))
    best, found, kept = float("inf"), 0, copy.deepcopy(net.state_dict())
    for update, batch in zip(range(1, updates + 1), endless(loader.with_seed(seed)), strict=False):
        limbeck.play(method, batch, optimizers)
        if update % LOOK == 0 and (now := rmse(net, rows, table.val.targets)) < best:
            best, found, kept = now, update, copy.deepcopy(net.state_dict())
        if update - found >= PATIENCE:
            break
    net.load_state_dict(kept)
    return Trained(student, found, best)


def endless(loader: Rows) -> Iterator[object]:
    while True:
        yield from loader


@torch.no_grad()
def rmse(net: nn.Module, rows: Tensor, targets: Tensor) -> float:
    """Return that of the probabilities."""
    p = net(rows).softmax(-1)
    return float((p - nn.functional.one_hot(targets, p.shape[1])).square().mean().sqrt())


@torch.no_grad()
def print_times(table: Tabular, teachers: Sequence[str]) -> None:
    """Print the CPU milliseconds that each model takes for one row and for 1,000."""
    models = {name: teacher_of(name, table, Training()) for name in teachers}
    models |= {name: student_of(name, table).eval() for name in STUDENTS}
    many = table.test.rows[torch.arange(1000) % len(table.test)]
    for name, model in models.items():
        cells = (f"{1000 * median(cpu_seconds(model, rows) for _ in range(11)):.3f}" for rows in (many[:1], many))
        print(f"| {table.name} | {name} | {' | '.join(cells)} |", flush=True)


def cpu_seconds(model: nn.Module, rows: torch.Tensor, repeats: int = 3) -> float:
    began = time.process_time()
    for _ in range(repeats):
        model(rows)
    return (time.process_time() - began) / repeats


def print_table(lines: Sequence[Mapping[str, Any]]) -> None:
    order = sorted(
        {(line["data"], line["teacher"], line["model"], line["rows"]) for line in lines},
        key=lambda key: (key[0], key[1], key[2] != "teacher", key[2] != "mlp-32", LEARNT_FROM.index(key[3])),
    )
    print("| data | teacher | model | learns from | RMSE | accuracy, % | size, 1/ | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for data, teacher, model, rows in order:
        here = [line for line in lines if (line["data"], line["teacher"]) == (data, teacher)]
        own = [line for line in here if (line["model"], line["rows"]) == (model, rows)]
        teachers = [line for line in here if line["model"] == "teacher"]
        cells = [spread([each["rmse"] for each in own], 4), spread([100 * each["accuracy"] for each in own], 2)]
        ratio = mean(each["bytes"] for each in teachers) / mean(each["bytes"] for each in own) if teachers else 0
        cells.append(f"{ratio:,.0f}" if teachers and model != "teacher" else "–")
        print("| " + " | ".join([data, teacher, model, rows, *cells, str(len(own))]) + " |")


def print_claims(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print for each claim of the paper what it comes to in each line, judged together."""
    found = {
        (line["data"], line["teacher"], line["model"], line["rows"], line["seed"]): -line["rmse"] for line in lines
    }
    for better, than in CLAIMS:
        pairs = {}
        for data, teacher, model in sorted({key[:3] for key in found if key[1] != "-" and key[2] != "teacher"}):
            base = {HARD: ("-", model), "-": (teacher, "teacher")}.get(than, (teacher, model))
            seeds = sorted(
                seed
                for *key, seed in found
                if key == [data, teacher, model, better] and (data, *base, than, seed) in found
            )
            if len(seeds) > 1:
                treated, other = (
                    [found[(*key, seed)] for seed in seeds]
                    for key in ((data, teacher, model, better), (data, *base, than))
                )
                pairs[data, teacher, model] = paired(treated, other)
        print(f"\n{better} against {than}\n\n| data | teacher | student | RMSE × 1,000 | p | verdict | seeds |")
        print("|---|---|---|---|---|---|---|")
        for key, judgement in zip(pairs, judge(list(pairs.values())), strict=True):
            print("| " + " | ".join([*key, *evidence(judgement), str(judgement.pair.n)]) + " |")


def evidence(judgement: Judgement) -> tuple[str, str, str]:
    """Return by how much RMSE changes with its interval, p, and the verdict: of a fall that it helps."""
    pair = judgement.pair
    difference, low, high = (
        f"{-1000 * value:+.2f}".replace("-", "−") for value in (pair.difference, pair.high, pair.low)
    )
    return f"{difference} [{low}, {high}]", f"{judgement.p:.3f}", judgement.verdict


def spread(values: list[float], digits: int) -> str:
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{sd}"


if __name__ == "__main__":
    main()
