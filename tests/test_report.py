"""The pages: a run's and a comparison's."""

import json
import re
import warnings

import pytest

import limbeck
from limbeck.cli import main
from limbeck.core.digits import digits
from limbeck.core.heard import Warned, heard_before, listening
from limbeck.measure import Cost, Plan, paired
from limbeck.report.comparison import (
    Comparison,
    comparison_report,
    findings,
    opening,
    redraw_comparison,
    remarks,
    write_comparison,
)
from limbeck.report.figures import Line, curves
from limbeck.report.page import Plot, Section, render
from limbeck.report.run import console_table, run_report
from limbeck.report.table import Candidate, header, markdown_table, milliseconds, points, quantity, rows
from limbeck.report.verdict import verdict_of_all
from limbeck.report.warned import keeping_warnings, read_warned, write_warned
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
    assert "The parts of the student's loss, each before it is multiplied by its weight" in words
    assert text.count("<svg") == 3  # accuracy, losses, and shares in the one stage with several terms
    assert "shares of the loss: student, stage knowledge" in text
    assert "shares of the loss: student, stage hint" not in text


def test_a_run_that_is_not_finished_has_a_page(tmp_path):
    unfinished = {**RESULT, "finished": False, "networks": {}, "teacher": None}
    _, words = read(run_report(folder(tmp_path, "\n".join(STAGED.splitlines()[:2]), unfinished)))
    assert "not finished: 1 epoch is done" in words


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
    assert words.index("kd helps: +3.00 points against the plain student.") < words.index("100 labels")
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
    assert table[-1].startswith("| a\\|b | helps | +3.00 [")
    assert "a\\|b" in table[-1]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


# the first sentence --------------------------------------------------------------------------------------------------

PLAIN = (0.800, 0.804, 0.808)
LIKE = {"helps": (0.05, 0.051, 0.049), "hurts": (-0.03, -0.031, -0.029), "cannot tell": (0.02, -0.03, 0.01)}
LIKE["no difference"] = (0.0001, -0.0001, 0.0)
LITTLE = (0.0021, 0.0021, 0.0022)


def row(name, like, role="distilled", more=0.0, against=(), plan=Plan()):
    base = against[1] if against else PLAIN
    gains = LIKE[like] if isinstance(like, str) else like
    values = tuple(value + gain + more for value, gain in zip(base, gains, strict=True))
    return Candidate(name, role, COST, values, paired(values, base), against=against[0] if against else "", plan=plan)


def sentence(*made, plan=Plan()):
    plain = Candidate("plain", "baseline", COST, PLAIN, plan=plan)
    return verdict_of_all([Candidate("teacher", "teacher", COST, (0.9,), plan=plan), plain, *made])


SMALL = Plan(3, smallest=0.005)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([row("kd", "helps")], "kd helps: +5.00 points against the plain student."),
        ([row("kd", "hurts")], "kd hurts: −3.00 points against the plain student."),
        ([row("kd", "cannot tell")], "Nothing is shown: 3 seeds cannot tell whether kd helps."),
        (
            [row("kd", "no difference", plan=SMALL)],
            "kd makes no difference to the plain student that is larger than 0.50 points.",
        ),
        (
            [row("kd", LITTLE, plan=SMALL)],
            "kd helps, though by less than 0.50 points: +0.21 points against the plain student.",
        ),
        (
            [row("at", "helps", more=-0.02), row("kd", "helps")],
            "kd and at help: +5.00 and +3.00 points against the plain student.",
        ),
        (
            [row("kd", "helps"), row("ls", "helps", "control", 0.01), row("at", "hurts"), row("sp", "cannot tell")],
            "kd and the control ls help: +5.00 and +6.00 points against the plain student; at hurts: −3.00 points; "
            "3 seeds cannot tell whether sp helps.",
        ),
        (
            [row("kd", "helps"), row("rival", "helps", against=("alone", PLAIN)), row("at", "hurts")],
            "kd helps: +5.00 points against the plain student; rival helps: +5.00 points against alone; at hurts: "
            "−3.00 points against the plain student.",
        ),
        (
            [row("kd, temperature=4", "helps"), row("kd", "helps", more=-0.01), row("at", "helps", more=0.01)],
            "at, “kd, temperature=4” and kd help: +6.00 to +4.00 points against the plain student.",
        ),
        (
            [row("kd", "cannot tell"), row("ls", "cannot tell", "control"), row("u, v", "cannot tell", "control")],
            "Nothing is shown: 3 seeds cannot tell whether kd and the controls ls and “u, v” help.",
        ),
    ],
)
def test_the_first_sentence_tells_all_rows(made, said):
    assert sentence(*made, plan=made[0].plan) == said


def test_the_first_sentence_of_many_rows_stays_readable():
    undecided = [row(f"m{index}", "cannot tell") for index in range(21)]
    few = sentence(row("kd", "helps"), *undecided)
    assert few.endswith("; 3 seeds cannot tell whether the 21 others help.")
    assert sentence(*undecided) == "Nothing is shown: 3 seeds cannot tell whether any of the 21 helps."
    helping = [row(f"h{index}", "helps", more=-index / 1000) for index in range(27)]
    said = sentence(*helping)
    assert said == "h0, h1, h2, h3, h4, h5, h6 and 20 others help: +5.00 to +2.40 points against the plain student."


def test_a_single_seed_and_nothing_compared():
    plain = Candidate("plain", "baseline", COST, (0.8,))
    alone = Candidate("kd", "distilled", COST, (0.9,), paired([0.9], [0.8]))
    assert verdict_of_all([plain, alone]) == "Nothing is shown: a single seed cannot tell whether kd helps."
    assert verdict_of_all([plain]) == ""


def test_the_verdict_comes_before_what_is_to_be_known_of_the_data(tmp_path):
    note = "The validation split serves as test."
    doubted = Comparison("t", note, candidates(), ("The teacher guesses.",))
    assert opening(doubted) == ["The teacher guesses.", "kd helps: +3.00 points against the plain student."]
    assert remarks(doubted)[-1] == note
    write_comparison(doubted, tmp_path, details={})
    text, words = read(tmp_path / "report.html")
    paragraphs = re.findall("<p>(.*?)</p>", text)
    assert paragraphs[:2] == opening(doubted)
    assert words.index(note) > words.index("82.00 ± 2.00")
    assert (tmp_path / "table.md").read_text().startswith("The teacher guesses.\n\nkd helps: +3.00 points")
    two = comparison_report([doubted, Comparison("u", "", candidates(gains=(0.1, -0.1, 0)))], tmp_path / "two.html")
    said = re.findall("<p>(.*?)</p>", two.read_text())
    assert said[1] == "t: kd helps: +3.00 points against the plain student."
    assert said[2] == "u: Nothing is shown: 3 seeds cannot tell whether kd helps."


def test_the_columns_that_matter_come_first():
    made = candidates()
    assert header(made)[:5] == ("network", "verdict", "vs plain student", "accuracy", "p")
    cells = rows(made)[-1]
    assert cells[:2] == ("kd", "helps")
    assert cells[3] == "85.00 ± 3.00"
    assert cells[5:] == ("1.23 M", "40.0 M", "0.43 ms")


# warnings ------------------------------------------------------------------------------------------------------------

DOUBT = Warned("ChanceWarning", "the teacher is no better than chance: accuracy 25.00 %")


def test_a_run_says_what_was_warned_of_and_what_makes_it_worth_nothing_first(tmp_path):
    write_warned([Warned("NoEffectWarning", f"a term trains nothing {HOSTILE}"), DOUBT, DOUBT], folder(tmp_path))
    text, words = read(run_report(tmp_path))
    assert re.findall("<p>(.*?)</p>", text)[0] == "The teacher is no better than chance: accuracy 25.00\xa0%."
    assert words.count("no better than chance") == 1
    assert f"What was warned of A term trains nothing {HOSTILE}." in words
    assert words.index("What was warned of") < words.index("What came out")


def test_a_comparison_says_what_its_runs_were_warned_of_each_once_with_its_place(tmp_path):
    made = candidates()
    names = {"student, plain": "plain", "kd": "kd"}
    for name, seed, *messages in (
        ("plain", 0, "all"), ("plain", 1, "all"), ("plain", 2, "all", "one"),
        ("kd", 0, "all", "kds"), ("kd", 1, "all", "kds"), ("kd", 2, "all", "kds"),
    ):  # fmt: skip
        run = tmp_path / name / f"seed-{seed}"
        run.mkdir(parents=True)
        write_warned([Warned("UserWarning", message) for message in messages], run)
    write_warned([Warned("UserWarning", "its own")], tmp_path)
    write_comparison(Comparison("t", "", made), tmp_path, details={"folders": names})
    for run in tmp_path.glob("*/seed-*"):
        (run / "report.html").touch()
    text, _ = read(redraw_comparison(tmp_path))
    section = text.partition("What was warned of")[2].partition("</section>")[0]
    assert re.findall("<p>(.*?)</p>", section) == [
        "Its own.",
        "All.",
        "One. (“student, plain”, seed 2)",
        "Kds. (kd)",
    ]


def test_who_listens_last_hears_alone_and_what_was_heard_before_is_kept(tmp_path, recwarn):
    with listening():
        warnings.warn("of the data", limbeck.ChanceWarning, stacklevel=1)
        for name in ("a", "b"):
            with keeping_warnings(tmp_path / name):
                warnings.warn(f"of {name}", UserWarning, stacklevel=1)
                warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
    assert heard_before() == []
    for name in ("a", "b"):
        assert [one.message for one in read_warned(tmp_path / name)] == ["of the data", f"of {name}"]
    assert read_warned(tmp_path / "a")[0].kind == "ChanceWarning"
    assert {str(one.message) for one in recwarn.list} == {"of the data", "of a", "of b", "for programmers"}  # as ever
    before = warnings.showwarning
    with keeping_warnings(tmp_path / "c"):
        pass
    assert warnings.showwarning is before
    assert not (tmp_path / "c").exists()


# files, networks, numbers --------------------------------------------------------------------------------------------


def test_files_are_links_that_lead_to_them_wherever_the_page_is(tmp_path):
    run = tmp_path / "a run #1"
    run.mkdir()
    for name in ("student.safetensors", "train.log", "inputs.json", "unknown.txt"):
        (folder(run) / name).touch()
    (run / "checkpoints").mkdir()
    for page in (run_report(run), run_report(run, tmp_path / "page.html")):
        text, words = read(page)  # every link leads somewhere
        for name in ("student.safetensors", "metrics.csv", "config.yaml", "train.log", "inputs.json", "checkpoints/"):
            assert f">{name}</a>" in text
        assert "weights of the student, 0 B" in words
    assert 'href="a%20run%20%231/metrics.csv"' in text


def test_a_network_that_learns_from_labels_alone_is_nobodys_student(tmp_path):
    plain = {**RESULT, "method": "plain", "teacher": None}
    text, words = read(run_report(folder(tmp_path, result=plain)))
    assert "The network reaches 68.52 % on the test data." in words
    assert "student" not in words.partition("Files")[0]
    assert "losses of network" in text
    assert "One run shows no gain" not in words
    names = [*console_table(plain).columns[0].cells]
    assert [name.plain for name in names] == ["network"]


def test_a_teacher_stands_beside_its_student(tmp_path):
    of_teacher = {**RESULT, "teachers": {"teacher": {"parameters": 5000, "val": {"accuracy": 0.9097}}}}
    for result, cost in ((RESULT, "–"), (of_teacher, "5.00 k")):
        table = console_table(result)
        assert [cell.plain for cell in table.columns[0].cells] == ["student", "teacher"]
        assert [next(reversed([*column.cells])).plain for column in table.columns][:4] == [
            "teacher",
            "–",
            "90.97 %",
            cost,
        ]
    assert "One run shows no gain" in read(run_report(folder(tmp_path)))[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [(2100.4, "2,100"), (0.0312, "0.0312"), (-1e-5, "−0.00001"), (0, "0"), (2.6e33, "2.6 × 10³³"), (7e-9, "7 × 10⁻⁹"),
     (999_999, "1,000,000"), (99.96, "100"), (float("nan"), "nan"), (-float("inf"), "−inf")],
)  # fmt: skip
def test_numbers_have_no_exponents(value, said):
    assert digits(value) == said
    assert digits(0.5, zeros=True) == "0.500"


def test_a_teacher_of_many_parameters_is_said_in_words():
    _, *others = candidates()
    large = Candidate("teacher", "teacher", Cost(2_592_590_700, 4 * 10**12, 1, 1, 1.0), (0.95,))
    assert (
        "with 2,100 times the student's parameters and 100,000 times its MACs"
        in findings(Comparison("", "", (large, *others)))[-1]
    )
    assert quantity(2.6e33) == "2.6 × 10³³"


def test_a_teacher_as_large_as_its_student_is_said_in_words():
    assert "with about as many parameters and MACs as the student" in findings(Comparison("", "", candidates()))[-1]


def test_prose_has_code_and_numbers_that_stay_whole():
    told = "ask `limbeck check <b>`: accuracy 23.96 % and 95 % of `a`"
    drawn = render("`title`", [told], [Section("a", remarks=[told], plots=[Plot("<svg></svg>", "1,234 % of <i>")])])
    assert (
        drawn.count("ask <code>limbeck check &lt;b&gt;</code>: accuracy 23.96\xa0% and 95\xa0% of <code>a</code>") == 2
    )
    assert "<figcaption>1,234\xa0% of &lt;i&gt;</figcaption>" in drawn
    assert "<h1>`title`</h1>" in drawn


@pytest.mark.parametrize("largest", [1e-9, 3e-5, 0.25, 7, 1234, 120_400, 2.6e6, 2.6e12, 2.6e33])
def test_axes_have_no_exponents_and_ticks_that_differ(largest):
    svg = curves([Line("loss", (1.0, 2.0, 3.0), (0.98 * largest, largest, 0.991 * largest))], "x")
    ticks = re.findall(r">([^<>\n]+)</text>", svg)
    assert not any(re.search(r"\de[+\d-]", tick) for tick in ticks)
    assert len(set(ticks)) == len(ticks)


# what is trained -----------------------------------------------------------------------------------------------------


def test_what_a_training_warns_of_stands_on_its_page_and_the_terminal_has_the_pages_numbers(tmp_path, capsys, reports):
    words = ["--data", "digits", "--samples", "200", "--progress", "false", "--accelerator", "cpu", "--epochs", "1"]
    net, run = "mlp-4", tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        given = [net, "--teacher", f"{net}@random", "--lr", "0.000001", "--run-dir", str(run)]
        assert main(["distill", "kd", "--student", *given, *words]) == 0
    answer = capsys.readouterr()
    result = json.loads((run / "result.json").read_text())
    messages = [one["message"] for one in result["warnings"]]
    assert any(message.startswith("the teacher is no better than chance") for message in messages)
    assert all(message in answer.err for message in messages)
    text, on_page = read(run / "report.html")
    assert "no better than chance" in re.findall("<p>(.*?)</p>", text)[0]
    assert all(part.strip() in on_page for message in messages for part in message[1:].split("`"))
    for cost in (result["networks"]["student"], result["teachers"]["teacher"]):
        assert milliseconds(cost["latency_ms"]) in answer.out
        assert milliseconds(cost["latency_ms"]) in on_page
    assert answer.out.count("teacher") == 1
