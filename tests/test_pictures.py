"""The pictures of a report: what is chosen and measured of the networks, and that a page is drawn of files alone."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck.cli import main
from limbeck.data.loader import Loader
from limbeck.engine.observe import choose, confusion, observe
from limbeck.report import sections
from limbeck.report.comparison import pictured
from limbeck.report.examples import FILE, Examples, read_examples
from limbeck.report.history import over_seeds
from limbeck.report.palette import BASELINE, CSS, DARK, INK, LIGHT, TEACHER, looks
from limbeck.report.pictures import FEWER, MORE, MOST_CELLS, STRONGEST, attention, busiest, soft_labels, softmax
from limbeck.report.redraw import redraw
from limbeck.report.table import Candidate
from limbeck.trace import record
from pages import read

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")

SIDE, CLASSES = 12, 3
PIXELS = torch.randint(256, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % CLASSES
LOADER = Loader(PIXELS, TARGETS, batch_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Conv(nn.Sequential):
    def __init__(self, channels, seed, classes=CLASSES):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, classes),
        )


def flat(seed=0, classes=CLASSES):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, classes))


def some(networks=("teacher", "plain", "kd"), count=4, classes=CLASSES, long=False):
    draw = np.random.default_rng(0)
    names = tuple(f"a class with a long name, {index}" if long else str(index) for index in range(classes))
    return Examples(
        networks,
        names,
        draw.integers(0, 256, (count, 8, 6, 1), dtype=np.uint8),
        np.arange(count) % classes,
        tuple(f"{index}: the teacher is right and unsure" for index in range(count)),
        draw.normal(0, 3, (len(networks), count, classes)).astype(np.float32),
        (("stage1", "block1"), ("stage2", "block2")),
        tuple(draw.integers(0, 256, (len(networks), count, side, side), dtype=np.uint8) for side in (8, 4)),
    )


# what is looked at ---------------------------------------------------------------------------------------------------


def test_examples_are_chosen_for_what_they_show():
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    teacher = torch.tensor(
        [[9.0, 0, 0], [0, 1, 0.9], [0, 0, 3], [1, 0.5, 0], [5, 4, 0], [0, 0.1, 0.2], [2.0, 0, 0]]
    )  # right but in row 4; surest in row 0; margins grow: 5, 1, 3, 6, 2, 0
    student = torch.tensor([[1.0, 0, 0], [0, 1, 0], [5, 0, 1], [0, 2, 0], [9, 0, 0], [0, 0, 1], [0, 0, 3.0]])
    # wrong in 2 (sure), 3 and 6; of these 6 has the surer answer but a class that was shown, as 3 has
    assert choose(teacher, student, targets) == {0: "sure", 5: "unsure", 1: "unsure", 2: "mistaken", 6: "mistaken"}
    assert choose(-teacher, student, torch.full((7,), 1)) != {}
    assert choose(torch.eye(3), torch.eye(3), torch.tensor([1, 2, 0])) == {}


def test_images_are_those_of_the_data_and_maps_those_of_the_layers():
    teacher, student = Conv(8, 0), Conv(4, 1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen = observe(teacher, {"plain": student}, LOADER, classes=("a", "b", "c"))
    assert seen.networks == ("teacher", "plain")
    assert seen.notes == ()
    pixels = PIXELS.permute(0, 2, 3, 1).numpy()
    rows = [next(row for row in range(40) if (pixels[row] == image).all()) for image in seen.images]
    assert (TARGETS[rows].numpy() == seen.targets).all()
    inputs = LOADER.normalise(PIXELS[rows])
    with torch.no_grad(), record(teacher, [t for t, _ in seen.layers]) as trace:
        logits = teacher(inputs)
    assert seen.logits[0] == pytest.approx(logits.numpy(), abs=1e-5)
    for (path, _), maps in zip(seen.layers, seen.maps, strict=True):
        squares = trace[path].square().mean(1)
        shares = 255 * squares / squares.amax((1, 2), keepdim=True)
        assert np.abs(maps[0].astype(float) - shares.numpy()).max() <= 0.51
    assert any("a: the teacher is right" in reason for reason in seen.reasons)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    again = observe(teacher, {"plain": student}, LOADER, classes=("a", "b", "c"))
    assert (again.logits == seen.logits).all()
    assert again.reasons == seen.reasons


def test_large_images_and_those_of_foreign_loaders_are_made_small_and_bright():
    inputs = torch.randn(8, 1, 200, 100)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, CLASSES))
    targets = net(inputs).argmax(1)
    seen = observe(net, {"plain": net}, DataLoader(TensorDataset(inputs, targets), batch_size=3))
    assert seen.images.shape[1:] == (96, 48, 1)
    assert seen.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("teacher", "student", "loader", "note"),
    [
        (flat(), flat(1), LOADER, "No attention maps: the networks have no paired layers"),
        (Conv(4, 0, classes=5), Conv(4, 1), LOADER, "not answer with the same classes: teacher (5,), plain (3,)"),
        (nn.Linear(4, 3), nn.Linear(4, 3), [(torch.randn(6, 4), torch.zeros(6).long())], "the inputs are no images"),
        (Conv(4, 0), Conv(4, 1), [(torch.randn(2, 3, 8, 8), torch.full((2,), -100))], "the inputs are no images"),
    ],
)
def test_what_cannot_be_shown_is_said_in_words(teacher, student, loader, note):
    seen = observe(teacher, {"plain": student}, loader)
    assert note in seen.notes[0]
    titles = {
        section.title
        for section in sections.example_sections(seen, looks({"plain": "baseline"}) | {"teacher": TEACHER})
    }
    assert "What the teacher knows beyond the label" in titles


def test_confusions_are_counted_and_unlabelled_samples_are_not():
    net = Conv(4, 1)
    targets = torch.where(torch.arange(40) < 10, -100, TARGETS)
    table = confusion(net, Loader(PIXELS, targets, batch_size=16, mean=(0.5,) * 3, std=(0.2,) * 3))
    answers = net((PIXELS.float() / 255 - 0.5) / 0.2).argmax(1)
    naive = np.zeros((CLASSES, CLASSES), int)
    for target, answer in zip(targets[10:], answers[10:], strict=True):
        naive[target, answer] += 1
    assert (table == naive).all()
    dense = [(torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8).long())]
    assert confusion(nn.Conv2d(3, 4, 1), dense) is None


def test_examples_are_one_small_file_and_the_same_each_time(tmp_path):
    examples = some()
    examples.save(tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    found = read_examples(tmp_path / FILE)
    for name in ("networks", "classes", "reasons", "layers", "notes"):
        assert getattr(found, name) == getattr(examples, name)
    assert all((one == other).all() for one, other in zip(found.maps, examples.maps, strict=True))
    assert (found.logits == examples.logits).all()
    assert found.confusion is None
    found.save(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == content
    assert read_examples(tmp_path / "none.npz") is None


# how it is drawn -----------------------------------------------------------------------------------------------------


def test_soft_labels_are_softmax_of_logits_over_temperature():
    logits = np.random.default_rng(0).normal(0, 30, (2, 5, 7)).astype(np.float32)
    for temperature in (1, 4, 20):
        mine = softmax(logits / temperature)
        assert mine == pytest.approx(F.softmax(torch.from_numpy(logits) / temperature, -1).numpy(), abs=1e-6)


@pytest.mark.parametrize(("classes", "long"), [(3, False), (40, True)])
def test_pictures_name_who_and_what_they_show(classes, long):
    examples = some(classes=classes, long=long)
    drawn = looks({"teacher": "teacher", "plain": "baseline", "kd": "distilled"})
    for svg in (soft_labels(examples, drawn, "soft labels"), attention(examples, 1, "attention maps")):
        assert svg.count("<image") == (4 if "T = 20" in svg else 1 + 3 * 2)
        assert all(f">{name}<" in svg for name in ("teacher", "plain", "kd"))
        assert 'role="img" aria-label="' in svg
        assert not re.search(r"#1c1f24|font-family: (?!inherit)", svg)
    assert "var(--series-1" in soft_labels(examples, drawn, "soft labels")
    assert ">block2<" in attention(examples, 0, "maps")


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
    alone = sections.confusion_section(plain.astype(np.int64), ("cat", "dog", "emu"))
    assert alone.sentences[0] == "cat is taken for dog in 6 of 16 held-out images."
    assert "Nothing" in sections.confusion_section(np.eye(3, dtype=np.int64), ("a", "b", "c")).sentences[0]


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
        "digits: 1 epochs, 2 seeds",
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
    shutil.copytree(compared, moved, ignore=shutil.ignore_patterns("*.safetensors", "*.ckpt", "report.html"))
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
    del results["folders"]
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
    assert page.read_bytes() == (compared / "report.html").read_bytes()
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
