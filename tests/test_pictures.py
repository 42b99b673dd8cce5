"""The pictures of a report: how exhibits are drawn, and that a page is drawn of files alone."""

import itertools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.cli import main
from limbeck.core.exhibits import Bars, Gallery, Matrix, Scatter
from limbeck.report import pictures, sections
from limbeck.report.comparison import pictured
from limbeck.report.examples import FILE
from limbeck.report.figures import width_of
from limbeck.report.history import over_seeds
from limbeck.report.palette import BASELINE, CSS, DARK, INK, LIGHT, TEACHER, looks
from limbeck.report.pictures import (
    FEWER,
    MORE,
    MOST_CELLS,
    STRONGEST,
    bars,
    busiest,
    gallery,
    scatter,
    sigmoid,
    softmax,
)
from limbeck.report.redraw import redraw
from limbeck.report.table import Candidate
from pages import read

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")

# how it is drawn -----------------------------------------------------------------------------------------------------


def test_soft_labels_are_softmax_of_logits_over_temperature():
    logits = np.random.default_rng(0).normal(0, 30, (2, 5, 7)).astype(np.float32)
    for temperature in (1, 4, 20):
        mine = softmax(logits / temperature)
        assert mine == pytest.approx(F.softmax(torch.from_numpy(logits) / temperature, -1).numpy(), abs=1e-6)


def picture(draw, channels=1):
    return draw.integers(0, 256, (8, 6, channels), dtype=np.uint8)


def soft(classes=3, long=False):
    draw = np.random.default_rng(0)
    names = tuple(f"a class with a long name, {index}" if long else str(index) for index in range(classes))
    return Bars(
        "soft labels",
        ("teacher", "plain", "kd"),
        names,
        draw.normal(0, 3, (3, 4, classes)).astype(np.float32),
        np.eye(classes, dtype=np.float32)[np.arange(4) % classes],
        tuple(picture(draw) for _ in range(4)),
        tuple(f"{index}: the teacher is right and unsure" for index in range(4)),
        "softmax",
    )


def looked():
    draw = np.random.default_rng(0)
    rows = [(picture(draw), *(picture(draw, 3) for _ in range(3))), (None, *(picture(draw, 3) for _ in range(3)))]
    labels = tuple(("", f"stage{index}", *2 * (f"block{index}",)) for index in (1, 2))
    return Gallery("maps", ("", "teacher", "plain", "kd"), tuple(rows), labels=labels, figure="a sample")


def many(scale, labels=20, truths=True):
    draw = np.random.default_rng(1)
    true = draw.integers(0, 2, (2, labels)).astype(np.float32) if truths else None
    values = draw.normal(0, 2, (2, 2, labels)).astype(np.float32)
    return Bars("many", ("teacher", "kd"), tuple(f"l{index}" for index in range(labels)), values, true, scale=scale)


LOOKS = looks({"teacher": "teacher", "plain": "baseline", "kd": "distilled"})


@pytest.mark.parametrize(("classes", "long"), [(3, False), (40, True)])
def test_pictures_name_who_and_what_they_show(classes, long):
    for svg in (bars(soft(classes, long), LOOKS, "soft labels"), gallery(looked(), "attention maps")):
        assert svg.count("<image") == (4 if "T = 20" in svg else 1 + 3 * 2)
        assert all(f">{name}<" in svg for name in ("teacher", "plain", "kd"))
        assert 'role="img" aria-label="' in svg
        assert not re.search(r"#1c1f24|font-family: (?!inherit)", svg)
    assert "var(--series-1" in bars(soft(classes, long), LOOKS, "soft labels")
    assert ">block2<" in gallery(looked(), "maps")


def test_probabilities_are_drawn_of_the_true_and_the_likeliest_labels():
    shown = many("sigmoid")
    svg = bars(shown, LOOKS, "labels")
    assert ">probability<" in svg
    assert ">to 100 %<" in svg
    kept = set(re.findall(r">(l\d+)<", svg))
    true = {f"l{index}" for index in range(20) if shown.truths[0, index] == 1}
    assert true <= kept
    assert set(re.findall(r"font-weight: 700[^<]*>(l\d+)<", svg)) >= true
    likeliest = int(np.argmax(shown.values[:, 1].max(0)))
    assert f">l{likeliest}<" in svg
    assert sigmoid(np.array([0.0, -800.0, 800.0])) == pytest.approx([0.5, 0, 1])


def test_values_have_one_scale_that_is_named_and_hold_negative_ones():
    shown = Bars(
        "v", ("teacher",), ("a", "b"), np.array([[[-2.0, 6.0]]], np.float32), np.array([[1, np.nan]], np.float32)
    )
    assert ">−2 to 6<" in bars(shown, LOOKS, "values")
    assert ">0 to 1<" in bars(replace(shown, values=np.zeros((1, 1, 2), np.float32), truths=None), LOOKS, "nothing")


def test_predictions_are_drawn_over_the_truth_a_panel_each():
    truths = np.array([1.0, 2, 3], np.float32)
    values = np.stack([truths, truths + 0.5, truths * np.nan]).astype(np.float32)
    svg = scatter(Scatter("s", ("teacher", "kd", "broken"), truths, values, label="age, years"), LOOKS, "predictions")
    assert svg.index(">teacher<") < svg.index(">off by 0<") < svg.index(">kd<") < svg.index(">off by 0.5<")
    assert ">true age, years<" in svg
    alone = scatter(Scatter("s", ("plain",), truths, truths[None]), LOOKS, "one")
    assert alone.count("off by") == 1


def test_captions_stand_beside_few_columns_and_above_many():
    draw = np.random.default_rng(0)
    few = Gallery("g", ("input",), ((picture(draw),), (picture(draw, 3),)), ("true 3; teacher 4", "x" * 30))
    assert {">true 3<", ">teacher 4<"} <= set(re.findall(">[^<>]+<", gallery(few, "few")))
    wide = Gallery("g", tuple("abcde"), ((picture(draw), None, None, None, picture(draw)),), ("one; two",))
    svg = gallery(wide, "wide")
    assert ">one; two<" in svg
    assert svg.count("<image") == 2


def collisions(figure):
    """Which texts of a figure lie on each other or outside it, as matplotlib's own font has them, which is a wide one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for axes in figure.axes
        for text in axes.texts
        if text.get_text()
    ]
    outside = [name for name, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    pairs = itertools.combinations(boxes, 2)
    return outside + [
        (one, other) for (one, box), (other, its) in pairs if box.shrunk(0.9, 0.9).overlaps(its.shrunk(0.9, 0.9))
    ]


@pytest.mark.parametrize("classes", [2, 8, 100])
@pytest.mark.parametrize("long", [False, True])
def test_no_words_of_a_picture_collide(classes, long, monkeypatch):
    monkeypatch.setattr(pictures, "svg", lambda figure, label: figure)
    names = [f"WIDE retriever of {index:07d}" if long else str(index) for index in range(classes)]
    assert not long or len(names[0]) == 25
    draw = np.random.default_rng(0)
    table = draw.poisson(3, (classes, classes)).astype(float)
    figure = pictures.table_of_confusions(table, names, "c", changes=False)
    assert collisions(figure) == []
    cells = min(classes, MOST_CELLS)
    assert len({text.get_text() for text in figure.axes[0].texts if "…" in text.get_text()}) in (0, cells)
    networks = ("teacher", "plain", "kd, temperature=4, alpha=0.9, layers=auto" if long else "kd")
    shown = replace(
        soft(classes),
        networks=networks,
        labels=tuple(names),
        captions=tuple(f"{names[index % classes]}: the teacher is right and unsure" for index in range(4)),
    )
    assert collisions(bars(shown, LOOKS, "soft labels")) == []
    assert collisions(gallery(replace(looked(), columns=("", *networks)), "maps")) == []


def test_long_names_are_cut_where_they_can_be_told_apart():
    names = [f"golden retriever of kind {index}" for index in range(3)]
    assert len(set(pictures.told_apart(names, 60))) == 3
    assert all(width_of(name, 7) <= 60 for name in pictures.told_apart(names, 60))
    assert pictures.told_apart(["cat", "dog"], 60) == ["cat", "dog"]


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(recwarn):
    assert ">猫<" in bars(replace(soft(3), labels=("猫", "犬", "鳥")), LOOKS, "soft labels")
    assert not recwarn.list


def test_a_network_looks_the_same_in_every_figure():
    drawn = looks({"teacher": "teacher", "plain": "baseline", "kd": "distilled", "at": "distilled", "ls": "control"})
    assert (drawn["teacher"], drawn["plain"]) == (TEACHER, BASELINE)
    assert len({look.colour for look in drawn.values()}) == 5
    assert len({look.marker for look in drawn.values()}) >= 4
    assert not drawn["ls"].filled
    many = looks({str(index): "distilled" for index in range(12)})
    assert len({(look.colour, look.line, look.marker) for look in many.values()}) == 12


def test_largest_changes_are_told_in_words():
    plain = np.array([[10.0, 6, 0], [1, 12, 3], [0, 4, 12]])
    better = np.array([[14.5, 1.5, 0], [1, 15, 0], [2, 4, 10]])
    section = sections.changes_section(plain, {"kd": better}, ("cat", "dog", "emu"), 2)
    assert section.sentences[1:] == [
        "kd takes cat for dog more rarely: 1.5 times instead of 6.0, of 16.",
        "kd takes dog for emu more rarely: 0.0 times instead of 3.0, of 16.",
        "kd takes emu for cat more often: 2.0 times instead of 0.0, of 16.",
    ]
    assert section.plots[0].caption == "kd minus plain, mean over 2 seeds"
    assert ">−4.5<" in section.plots[0].svg
    assert ">+2.0<" in section.plots[0].svg
    assert sections.changes_section(plain, {"kd": plain}, ("cat", "dog", "emu"), 2) is None
    alone = sections.confusion_section(Matrix("m", ("cat", "dog", "emu"), plain.astype(np.int64), "images"))
    assert alone.sentences[0] == "cat is taken for dog in 6 of 16 held-out images."
    right = sections.confusion_section(Matrix("m", ("a", "b", "c"), np.eye(3, dtype=np.int64), "pixels"))
    assert right.sentences == ["Nothing: all held-out pixels are given their class."]


def test_of_many_classes_the_busiest_are_drawn():
    table = np.diag(np.full(50, 100.0))
    table[7, 31] = table[40, 2] = 3
    kept = busiest(table)
    assert len(kept) == MOST_CELLS
    assert {7, 31, 40, 2} <= set(kept)
    assert kept == sorted(kept)


def test_a_band_is_one_standard_deviation_over_the_seeds():
    runs = [[{"a": "1"}, {"a": "2"}], [{"a": "3"}, {"a": "4"}, {"a": "9"}]]  # the first is not finished
    line = over_seeds(runs, "a", "kd", BASELINE, scale=10)
    assert (line.x, line.y) == ((1.0, 2.0), (20.0, 30.0))
    assert line.spread == pytest.approx((10 * 2**0.5,) * 2)
    assert over_seeds([[{"a": "", "b": "5"}, {"a": "2", "b": ""}]], "a", "kd", BASELINE).x == (2.0,)


def luminance(colour):
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.2's ratio, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def over(colour, ground, alpha):
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(alpha * a + (1 - alpha) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(palette):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("ground", "panel"):
        assert contrast(palette["ink"], palette[ground]) >= 4.5
        assert contrast(palette["soft"], palette[ground]) >= 4.5
    assert all(contrast(colour, palette["ground"]) >= 3 for name, colour in palette.items() if "series" in name)
    names = {colour: name for name, colour in LIGHT.items()}
    for cell in (MORE, FEWER):  # the number in the strongest cell of a table of confusions
        assert contrast(palette["ink"], over(palette[names[cell]], palette["ground"], STRONGEST)) >= 4.5
    assert LIGHT.keys() == DARK.keys()
    assert CSS[INK] == "currentColor"


# pages ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison that was made: two seeds of a network with feature maps, one epoch of a hundred digits."""
    folder = tmp_path_factory.mktemp("compared") / "c"
    data = limbeck.data.load("digits", samples=100, batch_size=64)

    def student():
        return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))

    torch.manual_seed(5)  # none of the students'
    limbeck.compare(
        ["kd", "at"], student, student(), data, epochs=1, seeds=2, run_dir=folder, progress=False, accelerator="cpu"
    )
    return folder


def test_a_comparisons_page_shows_how_they_learnt_look_and_err(compared):
    text, words = read(compared / "report.html")
    order = [
        "Did distillation help?",
        "digits: 1 epoch, 2 seeds",
        "How they learnt",
        "What the teacher knows beyond the label",
        "Where they look",
        "What is confused now, and what no longer",
        "What was run",
    ]
    assert [words.index(title) for title in order] == sorted(words.index(title) for title in order)
    for label in ("validation accuracy over epochs", "losses over epochs, by term", "confusions of kd minus plain"):
        assert f'aria-label="{label}"' in text
    assert "attention.0" in words or "attention.1" in words  # a term of at
    assert "mean over 2 seeds" in words
    assert "torch" in words
    assert "method: at" in words  # its configuration
    assert (compared / FILE).stat().st_size < 300_000
    assert len(text) < 2_000_000


def test_a_page_is_drawn_of_files_alone_wherever_they_lie(compared, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(compared, moved, ignore=shutil.ignore_patterns("*.safetensors", "*.ckpt"))
    (moved / "report.html").unlink()
    assert redraw([moved]).read_bytes() == (compared / "report.html").read_bytes()
    run = redraw([moved / "kd" / "seed-0"], tmp_path / "run.html")
    _, words = read(run)
    assert "What it confuses" in words
    assert "Where they look" in words
    plain_run = read(redraw([moved / "plain" / "seed-0"]))[1]
    assert "What it confuses" in plain_run
    assert "Where they look" not in plain_run


def test_a_comparison_without_examples_has_a_page(compared, tmp_path):
    moved = tmp_path / "older"
    shutil.copytree(compared, moved, ignore=shutil.ignore_patterns("*.npz", "metrics.csv"))
    results = json.loads((moved / "results.json").read_text())
    del results["folders"], results["sha256"], results["limbeck_format"]
    (moved / "results.json").write_text(json.dumps(results))
    _, words = read(redraw([moved]))
    assert "What was run" in words
    assert "Where they look" not in words


def test_runs_beside_each_other_show_nothing_and_the_page_says_so(compared, tmp_path):
    page = redraw([compared / "kd" / "seed-0", compared / "at" / "seed-0"], tmp_path / "both.html")
    _, words = read(page)
    assert "Single runs beside each other show nothing" in words
    assert "kd/seed-0" in words
    assert "at/seed-0" in words


def test_folders_that_are_neither_are_refused_in_words(compared, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected the folder of a run \(result.json\).*holds a.txt"):
        redraw([tmp_path])
    with pytest.raises(ValueError, match="does not exist"):
        redraw([tmp_path / "none"])
    with pytest.raises(ValueError, match="a page of its own"):
        redraw([compared, compared / "kd" / "seed-0"])
    with pytest.raises(ValueError, match="named twice"):
        redraw([compared / "kd" / "seed-0"] * 2)


def test_the_command_draws_where_it_is_told(compared, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(compared), "--to", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    read(page)  # its links lead to the files from there
    unlinked = [re.sub(r'href="[^"]*"', "", each.read_text()) for each in (page, compared / "report.html")]
    assert unlinked[0] == unlinked[1]
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_plain_student_and_the_best_two_are_pictured():
    def candidate(name, role, value):
        pair = None if role in ("teacher", "baseline") else limbeck.measure.paired([value], [0.5])
        return Candidate(name, role, None, (value,), pair)

    named = [("teacher", "teacher", 0.9), ("plain", "baseline", 0.5), ("a", "distilled", 0.5), ("ls", "control", 0.8)]
    named += [("b", "distilled", 0.7), ("c", "distilled", 0.6)]
    assert pictured([candidate(*each) for each in named]) == ["plain", "b", "c"]
    assert pictured([candidate(*each) for each in named if each[1] != "distilled"]) == ["plain", "ls"]
