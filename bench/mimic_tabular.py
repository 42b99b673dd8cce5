"""Model compression on tables: what a small network learns from labels, from a teacher's answers, and from MUNGE's rows.

    python bench/mimic_tabular.py --root ../shared/data/tabular --data adult covtype --out runs/mimic
    python bench/mimic_tabular.py --out runs/mimic --table

The teacher and the plain student have 4,000 labels. All students of a seed begin with the same weights and are updated
equally often; of each the state with the least validation RMSE is measured on the test rows, so that none is blamed for
having been trained too long. A line of the table is a JSON file, and one that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev

import torch
from torch import nn

import limbeck
from limbeck.compression import Training, measured, student_of, teacher_of, transfer
from limbeck.data import tabular
from limbeck.data.tabular import Rows, Tabular, answered
from limbeck.files import write

TEACHERS = ("random-forest", "gradient-boosting")
STUDENTS = ("mlp-32", "mlp-128")
TRANSFERS = {
    "4,000 soft labels": ("train", 1),
    "MUNGE x 1": ("munge", 1),
    "MUNGE x 5": ("munge", 5),
    "MUNGE x 25": ("munge", 25),
    "uniform x 25, a control": ("random", 25),
    "soft labels and unlabelled rows": ("unlabelled", 1),
}
HARD = "4,000 hard labels"
LABELS, BATCH, LR, LOOK = 4000, 256, 3e-3, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the tables")
    parser.add_argument("--data", nargs="+", default=["adult", "covtype"])
    parser.add_argument("--teachers", nargs="*", default=TEACHERS, choices=TEACHERS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--times", action="store_true", help="print CPU times alone, which a busy machine does not change"
    )
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown")
    options = parser.parse_args()
    if options.table:
        print_table(options.out)
        return
    tables = {name: tabular.load(name, options.root, labels=LABELS) for name in options.data}
    if options.times:
        for table in tables.values():
            print_times(table, options.teachers)
        return
    for seed in range(options.seeds):
        for table in tables.values():
            run(table, options.teachers, seed, options.updates, options.out)


def run(table: Tabular, teachers: Sequence[str], seed: int, updates: int, out: Path) -> None:
    """Make all lines of one table and seed."""

    def keep(teacher: str, model: str, rows: str, make: Callable[[], nn.Module]) -> None:
        path = out / f"{table.name}-{teacher}-{model}-{rows.replace(' ', '_')}-{seed}.json"
        if path.exists():
            return
        line = {"data": table.name, "teacher": teacher, "model": model, "rows": rows, "seed": seed}
        write(path, json.dumps(line | asdict(measured(make(), table, seconds=0.2))))
        print(path.name, flush=True)

    for student in STUDENTS:
        loader = Rows(table.train, batch_size=BATCH, shuffle=True, seed=seed)
        keep("-", student, HARD, lambda s=student, data=loader: trained(table, s, limbeck.plain, data, updates, seed))
    for name in teachers:
        teacher = teacher_of(name, table, Training(seed=seed))
        keep(name, "teacher", "-", lambda known=teacher: known)
        for rows, (kind, times) in TRANSFERS.items():
            loader = answered(transfer(table, kind, times, seed=seed), teacher, batch_size=BATCH, seed=seed)
            for student in STUDENTS:
                make = lambda s=student, data=loader: trained(table, s, mimicking, data, updates, seed)  # noqa: E731
                keep(name, student, rows, make)


def mimicking(student: nn.Module) -> limbeck.Method:
    return limbeck.mimic(student, None)


def trained(
    table: Tabular, name: str, make: Callable[[nn.Module], limbeck.Method], loader: Rows, updates: int, seed: int
) -> nn.Module:
    """Return the student as it was when its validation RMSE was least."""
    torch.manual_seed(seed)
    student = student_of(name, table)
    method = make(student)
    optimizers = limbeck.optimizers(method, lambda parameters: torch.optim.Adam(parameters, LR))
    best, kept = float("inf"), copy.deepcopy(student.state_dict())
    for update, batch in zip(range(1, updates + 1), endless(loader), strict=False):
        limbeck.play(method, batch, optimizers)
        if update % LOOK == 0 and (now := validation(student, table)) < best:
            best, kept = now, copy.deepcopy(student.state_dict())
    student.load_state_dict(kept)
    return student


def endless(loader: Rows) -> Iterator[object]:
    while True:
        yield from loader


@torch.no_grad()
def validation(student: nn.Module, table: Tabular) -> float:
    """Return the RMSE of the probabilities."""
    p = student.eval()(table.val.rows).softmax(-1)
    student.train()
    truth = nn.functional.one_hot(table.val.targets, table.outputs)
    return float((p - truth).square().mean().sqrt())


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


def print_table(out: Path) -> None:
    lines = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    kinds = ["-", HARD, *TRANSFERS]
    order = sorted(
        {(line["data"], line["teacher"], line["model"], line["rows"]) for line in lines},
        key=lambda key: (key[0], key[1], key[2] != "teacher", key[2] != "mlp-32", kinds.index(key[3])),
    )
    print(
        "| data | teacher | model | learns from | RMSE | accuracy, % | size, 1/ | 1 row, 1/ | 1,000 rows, 1/ | seeds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for data, teacher, model, rows in order:
        here = [line for line in lines if (line["data"], line["teacher"]) == (data, teacher)]
        own = [line for line in here if (line["model"], line["rows"]) == (model, rows)]
        teachers = [line for line in here if line["model"] == "teacher"]
        cells = [spread([each["rmse"] for each in own], 4), spread([100 * each["accuracy"] for each in own], 2)]
        for key in ("bytes", "row_ms", "many_ms"):
            ratio = mean(each[key] for each in teachers) / mean(each[key] for each in own) if teachers else 0
            cells.append(f"{ratio:.3g}" if teachers and model != "teacher" else "–")
        print("| " + " | ".join([data, teacher, model, rows, *cells, str(len(own))]) + " |")


def spread(values: list[float], digits: int) -> str:
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{sd}"


if __name__ == "__main__":
    main()
