"""The pages: a run's and a comparison's."""

import json

import pytest

from limbeck.measure import Cost, paired
from limbeck.report.comparison import Comparison, comparison_report, findings
from limbeck.report.run import run_report
from limbeck.report.table import Candidate, markdown_table, points, quantity, rows
from pages import read

COST = Cost(
    parameters=1234567,
    macs=40_000_000,
    bytes=5_000_000,
    activation_bytes=65_536,
    latency_ms=0.4321,
)
HOSTILE = "<script>alert('x')</script> [red] $a$ & co"

STAGED = """stage,epoch,step,seconds,train/student/hint,train/student/hint.weighted,train/student/loss,lr/student,\
val/student/accuracy,val/student/loss,train/student/hard,train/student/hard.weighted,train/student/soft,train/student/soft.weighted
hint,1,10,0.5,4.0,4.0,4.0,0.1,0.1,2.3,,,,
hint,2,20,0.5,3.0,3.0,3.0,0.1,0.1,2.3,,,,
knowledge,1,30,0.5,,,2.0,0.1,0.5,1.5,1.0,0.1,2.0,1.9
knowledge,2,40,0.5,,,1.5,0.1,0.7,1.0,0.8,0.1,1.5,1.4
"""
RESULT = {
    "method": "fitnets",
    "data": "digits",
    "seed": 0,
    "finished": True,
    "seconds": 2.0,
    "networks": {
        "student": {
            "parameters": 1210,
            "macs": 1180,
            "bytes": 4840,
            "latency_ms": 0.03,
            "val": {"accuracy": 0.7, "loss": 1.0},
            "test": {"accuracy": 0.6852, "loss": 0.9},
        }
    },
    "teacher": {"accuracy": 0.9097, "loss": 0.3},
    "versions": {"torch": "2.15.0"},
}


def folder(tmp_path, metrics=STAGED, result=RESULT):
    if metrics is not None:
        (tmp_path / "metrics.csv").write_text(metrics)
    if result is not None:
        (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.yaml").write_text("epochs: 4\n")
    return tmp_path


def candidates(name="kd", gains=(0.02, 0.03, 0.04)):
    plain = (0.80, 0.82, 0.84)
    better = tuple(value + gain for value, gain in zip(plain, gains, strict=True))
    return (
        Candidate("teacher", "teacher", COST, (0.95,)),
        Candidate("student, plain", "baseline", COST, plain),
        Candidate(name, "distilled", COST, better, paired(better, plain)),
    )


def test_a_runs_page_says_what_came_out(tmp_path):
    page = run_report(folder(tmp_path))
    assert page == tmp_path / "report.html"
    text, words = read(page)
    assert "68.52 %" in words
    assert "90.97 %" in words
    assert "1.21 k" in words
    assert "epochs: 4" in words
    assert text.count("<svg") == 3  # accuracy, losses, and shares in the one stage with several terms
    assert "shares of the loss: student, stage knowledge" in text
    assert "shares of the loss: student, stage hint" not in text


def test_a_run_that_is_not_finished_has_a_page(tmp_path):
    unfinished = {**RESULT, "finished": False, "networks": {}, "teacher": None}
    _, words = read(run_report(folder(tmp_path, "\n".join(STAGED.splitlines()[:2]), unfinished)))
    assert "not finished: 1 epochs are done" in words


@pytest.mark.parametrize("metrics", [None, "", STAGED.splitlines()[0] + "\n"], ids=["none", "empty", "header"])
def test_a_run_without_rows_has_a_page(tmp_path, metrics):
    text, _ = read(run_report(folder(tmp_path, metrics, None)))
    assert "<svg" not in text


def test_what_the_user_named_is_text_and_never_markup(tmp_path):
    hostile = {**RESULT, "data": HOSTILE, "networks": {HOSTILE: RESULT["networks"]["student"]}}
    _, words = read(run_report(folder(tmp_path, STAGED.replace("knowledge", "k<b>"), hostile)))
    assert HOSTILE in words
    page = comparison_report([Comparison(HOSTILE, HOSTILE, candidates(HOSTILE))], tmp_path / "c.html")
    assert HOSTILE in read(page)[1]


def test_a_page_is_the_same_each_time_and_leaves_no_draft(tmp_path):
    first = run_report(folder(tmp_path)).read_bytes()
    assert run_report(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "report.html",
        "result.json",
    ]


def test_a_comparisons_page_says_who_was_helped(tmp_path):
    page = comparison_report([Comparison("100 labels", "few", candidates())], tmp_path / "c.html", facts={"Seeds": "3"})
    _, words = read(page)
    assert "kd: helps. +3.00 points" in words
    assert "82.00 ± 2.00" in words
    assert "100 labels" in words


def test_findings_do_not_hide_harm():
    assert "kd: hurts." in findings(Comparison("", "", candidates(gains=(-0.02, -0.03, -0.04))))[0]
    assert findings(Comparison("", "", candidates(gains=(-0.02, 0.03, 0.01))))[0].startswith(
        "kd: cannot tell with 3 seeds"
    )


def test_numbers():
    assert [quantity(n) for n in (999, 999_950, 1_234_567, 4.09e9)] == ["999", "1.00 M", "1.23 M", "4.09 G"]
    assert points(-0.0035) == "−0.35"


def test_a_single_seed_has_no_interval_and_tells_nothing():
    cells = rows([Candidate("kd", "distilled", COST, (0.9,), paired([0.9], [0.8]))])[0]
    assert "90.00" in cells
    assert any(cell.startswith("+10.00") and "[" not in cell for cell in cells)
    assert any("cannot tell" in cell for cell in cells)


def test_markdown_table_keeps_its_columns():
    table = [line for line in markdown_table(candidates("a|b")).splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert "1.23 M" in table[-1]
    assert "a\\|b" in table[-1]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
