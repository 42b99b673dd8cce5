"""What a notebook shows of a result: the first sentence and the table, and no markup that a name brings."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from torch import nn

import limbeck
from limbeck.engine.fit import Result
from limbeck.measure import Cost, paired
from limbeck.report.comparison import Comparison
from limbeck.report.notebook import Told
from limbeck.report.run import run_told
from limbeck.report.table import Candidate
from limbeck.report.tuning import Trial, Tuning
from limbeck.verbs.check.findings import Checkup, Finding
from limbeck.verbs.check.table import checkup_told
from limbeck.verbs.export import Artefact, Exported

HOSTILE = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
COST = Cost(parameters=1000, macs=2000, bytes=4000, activation_bytes=100, latency_ms=0.1)
PLAIN = (0.80, 0.82, 0.84)


def comparison() -> Comparison:
    kd = (0.90, 0.921, 0.94)
    return Comparison(
        HOSTILE,
        f"a note {HOSTILE}",
        (
            Candidate("plain", "baseline", COST, PLAIN),
            Candidate("kd, defaults", "distilled", COST, PLAIN, paired(PLAIN, PLAIN)),
            Candidate(HOSTILE, "distilled", COST, kd, paired(kd, PLAIN)),
        ),
    )


def tuning() -> Tuning:
    trials = (Trial({"layer": HOSTILE}, "complete", (0.9,), 2), Trial({"layer": "a"}, "complete", (0.8,), 2))
    return Tuning("kd", ("layer",), trials, {}, 100, comparison(), {}, (2,))


def checkup() -> Checkup:
    return Checkup((Finding("data", "ok", "fine"), Finding("teacher", "failed", HOSTILE)))


def exported() -> Exported:
    score = limbeck.classification.score
    about = {"network": HOSTILE, "limbeck": "0"}
    files = (Artefact("onnx", "student.onnx", 0.9, 4000, 0.2, 7e-9),)
    return Exported(Path("shipped"), about, 100, 1e-4, score, 0.9, 0.1, files, {"int8": HOSTILE})


def result(folder: Path | None = None) -> Result:
    metrics = {f"test/{HOSTILE}/accuracy": 0.9, f"val/{HOSTILE}/accuracy": 0.8}
    return Result({HOSTILE: nn.Linear(1, 1)}, metrics, [{"stage": "train"}], 1.0, run_dir=folder)


def html(thing: object) -> str:
    """Return what a notebook asks for."""
    return str(getattr(thing, "_repr_html_")())  # noqa: B009  # typed by no protocol


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (comparison, f"“{ESCAPED}” helps: +10.03 points against the plain student;"),
        (tuning, "Tuning: helps. +10.03 points on the test data against the defaults"),
        (checkup, "Something is wrong: 1 ok, 1 failed."),
        (exported, "7 × 10⁻⁹"),
        (result, f"The {ESCAPED} reaches 90.00 % on the test data."),
    ],
    ids=["Comparison", "Tuning", "Checkup", "Exported", "Result"],
)
def test_a_notebook_shows_the_first_sentence_and_a_table_and_no_markup_of_a_name(make, said):
    shown = html(make())
    assert said.replace("“&lt;", "&lt;").replace("&gt;”", "&gt;") in shown
    assert ESCAPED in shown
    assert "<script" not in shown
    assert shown.count("<table") == 1
    opened = re.findall(r"<(\w+)", shown)
    assert all(shown.count(f"</{tag}>") == opened.count(tag) for tag in set(opened))
    assert not re.search(r"color:\s*(#|black|white)|url\(|https?:", shown)  # the notebook's own colours, dark or light


@pytest.mark.parametrize("make", [comparison, tuning, checkup, exported, result])
def test_print_shows_the_same_words_and_cells_and_no_object(make):
    shown, printed = unescape(re.sub(r"<[^>]*>", " ", html(make()))), str(make())
    assert sorted(re.findall(r"\w+", shown)) == sorted(re.findall(r"\w+", printed))
    assert "\n| " in printed
    assert "Linear(" not in printed


def test_what_is_wrong_is_the_first_row_of_a_checkup():
    shown = checkup_told(checkup()).html()
    assert shown.index("failed</td>") < shown.index("ok</td>")
    assert "Nothing is wrong: 1 ok." in checkup_told(Checkup((Finding("data", "ok", "fine"),))).html()


def test_a_training_says_where_its_page_is_and_what_is_not_finished(tmp_path):
    done = {"finished": True, "networks": {"student": {"val": {"accuracy": 0.5}}}}
    shown = run_told(done, 2, tmp_path).html()
    assert str(tmp_path / "report.html") in shown
    assert "The network reaches 50.00 % on the validation data." in shown
    assert "2 epochs are done" in run_told({**done, "finished": False}, 2).html()


def test_a_piece_without_a_table():
    assert Told("t", ["a & b"]).html() == (
        '<div><p style="margin:.3em 0"><b>t</b></p><p style="margin:.3em 0;max-width:50em">a &amp; b</p></div>'
    )
