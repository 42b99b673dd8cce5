"""What tasks show of trained networks: what is chosen and measured, that it is kept, and that every kind has its page."""

import copy
import json
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multilabel_average_precision

import limbeck
from limbeck import Frozen
from limbeck.core.exhibits import Bars, Gallery, Matrix, Note, Scatter, Table
from limbeck.core.trace import record
from limbeck.data.loader import Loader
from limbeck.data.repeatable import splits
from limbeck.engine.observe import Observed, observe
from limbeck.report.comparison import redraw_comparison
from limbeck.report.examples import FILE, read_exhibits, write_exhibits
from limbeck.report.page import render
from limbeck.report.palette import BASELINE, TEACHER
from limbeck.report.run import run_report
from limbeck.report.sections import exhibit_sections
from limbeck.tasks.classification import choose
from limbeck.tasks.multilabel import telling
from limbeck.tasks.regression import furthest
from pages import read

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")

SIDE, CLASSES = 12, 3
PIXELS = torch.randint(256, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % CLASSES
LOADER = Loader(PIXELS, TARGETS, batch_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
INPUTS = LOADER.normalise(PIXELS)
LABELS = torch.stack([TARGETS == 0, TARGETS != 1, torch.arange(40) < 20], 1).float()
VALUES = torch.stack([TARGETS.float(), PIXELS.float().mean((1, 2, 3)) / 100], 1)
LOOKS = {"teacher": TEACHER, "plain": BASELINE}


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


def batches(inputs, targets, size=16):
    return DataLoader(TensorDataset(inputs, targets), batch_size=size)


def kinds(shown):
    return [type(each).__name__ for each in shown]


# classification ------------------------------------------------------------------------------------------------------


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
    before = copy.deepcopy(teacher.state_dict())
    soft, *maps = observe(teacher, {"plain": student}, LOADER, limbeck.classification, classes=("a", "b", "c"))
    assert kinds(maps) == ["Gallery"] * 3
    assert soft.networks == ("teacher", "plain")
    pixels = PIXELS.permute(0, 2, 3, 1).numpy()
    rows = [next(row for row in range(40) if (pixels[row] == image).all()) for image in soft.images]
    assert (TARGETS[rows].numpy() == soft.truths.argmax(1)).all()
    assert any("a: the teacher is right" in caption for caption in soft.captions)
    place = round((len(rows) - 1) / 2)  # of three that are spread, the second
    assert maps[1].figure == soft.captions[place]
    assert (maps[1].rows[0][0] == soft.images[place]).all()
    paths = [labels[1] for labels in maps[1].labels]
    with torch.no_grad(), record(teacher, paths) as trace:
        logits = teacher(INPUTS[rows])
    assert soft.values[0] == pytest.approx(logits.numpy(), abs=1e-5)
    for path, pictures in zip(paths, maps[1].rows, strict=True):
        squares = trace[path][place].square().mean(0)
        at = np.unravel_index(int(squares.argmax()), tuple(squares.shape))
        brightest = pictures[1].sum(2, dtype=np.int64)
        assert brightest[at] == brightest.max()
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    again, *_ = observe(teacher, {"plain": student}, LOADER, limbeck.classification, classes=("a", "b", "c"))
    assert (again.values == soft.values).all()
    assert again.captions == soft.captions


def test_large_images_and_those_of_foreign_loaders_are_made_small_and_bright():
    inputs = torch.randn(8, 1, 200, 100) / 10
    inputs[:, :, :50] += 1
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, CLASSES))
    targets = net(inputs).argmax(1)
    soft, *_ = observe(net, {"plain": net}, batches(inputs, targets, 3), limbeck.classification)
    assert {image.shape for image in soft.images} == {(96, 48, 1)}
    assert all(int(image.max()) - int(image.min()) > 100 for image in soft.images)
    assert soft.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("teacher", "student", "loader", "note"),
    [
        (flat(), flat(1), LOADER, "No attention maps: the networks have no paired layers"),
        (Conv(4, 0, classes=5), Conv(4, 1), LOADER, "not answer with the same classes: teacher (5,), plain (3,)"),
        (Conv(4, 0), Conv(4, 1), [(torch.randn(2, 3, 8, 8), torch.full((2,), -100))], "of 0 held-out samples"),
    ],
)
def test_what_cannot_be_shown_is_said_in_words(teacher, student, loader, note):
    shown = observe(teacher, {"plain": student}, loader, limbeck.classification)
    notes = [each for each in shown if isinstance(each, Note)]
    assert note in notes[0].words
    assert notes[0].title in {section.title for section in exhibit_sections(shown, LOOKS)}


def test_soft_labels_of_rows_of_a_table_have_no_pictures():
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    teacher = nn.Linear(4, 3)
    shown = observe(teacher, {"plain": nn.Linear(4, 3)}, batches(rows, teacher(rows).argmax(1)), limbeck.classification)
    assert kinds(shown) == ["Bars"]
    assert shown[0].images == ()
    assert "T = 20" in exhibit_sections(shown, LOOKS)[0].plots[0].svg


def test_confusions_are_counted_and_unlabelled_samples_are_not():
    net = Conv(4, 1)
    targets = torch.where(torch.arange(40) < 10, -100, TARGETS)
    loader = Loader(PIXELS, targets, batch_size=16, mean=(0.5,) * 3, std=(0.2,) * 3)
    (table,) = observe(None, {"student": net}, loader, limbeck.classification, count=True)
    answers = net((PIXELS.float() / 255 - 0.5) / 0.2).argmax(1)
    naive = np.zeros((CLASSES, CLASSES), int)
    for target, answer in zip(targets[10:], answers[10:], strict=True):
        naive[target, answer] += 1
    assert (table.counts == naive).all()
    assert (table.unit, table.network) == ("images", "student")
    assert (
        observe(None, {"student": net}, loader, limbeck.classification) == []
    )  # a comparison's runs count for themselves
    dense = [(torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8).long())]
    assert observe(None, {"student": nn.Conv2d(3, 4, 1)}, dense, limbeck.classification, count=True) == []


def test_a_teacher_keeps_its_own_view():
    net = Conv(8, 0, classes=4)
    teacher = Frozen(net, inputs=lambda images: images.flip(1), classes=[2, 0, 3])
    soft, *maps = observe(teacher, {"plain": Conv(4, 1)}, batches(INPUTS, TARGETS), limbeck.classification)
    assert kinds(maps) == ["Gallery"] * len(maps)
    assert maps
    with torch.no_grad():
        answers = net.eval()(INPUTS.flip(1))[:, [2, 0, 3]].numpy()
    assert all(np.isclose(answers, row, atol=1e-5).all(1).any() for row in soft.values[0])


# several labels ------------------------------------------------------------------------------------------------------


def test_samples_are_chosen_where_the_teacher_knows_better_and_much_is_true():
    targets = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]])
    right = 10.0 * (2 * targets - 1).float()
    student = right.clone()
    student[0, 0], student[1, 0], student[2, 1] = -9, -8, -7
    # 0 and 1 are furthest apart, but have the same labels, as 3 and 4 have, of which there are most
    assert telling(targets, right, student) == [0, 2, 3, 5]
    assert telling(targets, None, student)[:2] == [0, 2]
    assert telling(targets[:1], right[:1], student[:1]) == [0]


def test_labels_are_shown_beside_the_truth_and_counted_one_by_one():
    labels = LABELS.clone()
    labels[3, 1] = -100
    student = Conv(4, 1)
    shown = observe(Conv(8, 0), {"student": student}, batches(INPUTS, labels), limbeck.multilabel, count=True)
    assert kinds(shown) == ["Bars", "Gallery", "Gallery", "Gallery", "Table"]
    bars, table = shown[0], shown[-1]
    assert bars.scale == "sigmoid"
    assert len(bars.captions) == len(bars.images) == 4
    assert ", " in bars.captions[0]
    assert {float(value) for value in bars.truths.flatten()} <= {0.0, 1.0}
    with torch.no_grad():
        answers = student.eval()(INPUTS)
    known, true, said = labels != -100, labels == 1, answers > 0
    expected = multilabel_average_precision(answers.sigmoid(), labels.long(), 3, average=None, ignore_index=-100)
    for name, positive, found, missed, alarms, average in table.rows:
        at = int(name)
        assert int(positive) == int(true[:, at].sum())
        assert int(found) == int((true & said)[:, at].sum())
        assert int(missed) == int((true & ~said)[:, at].sum())
        assert int(alarms) == int((known & ~true & said)[:, at].sum())
        assert float(average) == pytest.approx(100 * float(expected[at]), abs=0.06)
    alone = observe(None, {"student": student}, batches(INPUTS, labels), limbeck.multilabel)
    assert kinds(alone) == ["Bars"]
    (note,) = observe(None, {"student": Conv(4, 1, classes=2)}, batches(INPUTS, labels), limbeck.multilabel)
    assert "differ in shape" in note.words


# values --------------------------------------------------------------------------------------------------------------


def test_predictions_are_shown_over_the_truth_and_the_worst_as_images():
    teacher, student = Conv(8, 0, classes=2), Conv(4, 1, classes=2)
    values = VALUES.clone()
    values[5, 0] = torch.nan
    shown = observe(teacher, {"plain": student}, batches(INPUTS, values), limbeck.regression, classes=("age", "size"))
    assert kinds(shown) == ["Scatter", "Scatter", "Gallery", "Gallery", "Gallery", "Gallery"]
    first = shown[0]
    assert first.label == "age"
    assert first.truths == pytest.approx(np.delete(values[:, 0].numpy(), 5))
    with torch.no_grad():
        answers = student.eval()(INPUTS)
    assert first.values[1] == pytest.approx(np.delete(answers[:, 0].numpy(), 5), abs=1e-5)
    row = furthest(answers, values)[0]
    truth = ", ".join(f"{value:.3g}" for value in values[row].tolist())
    assert shown[2].captions[0].startswith(f"true {truth}; teacher ".replace("-", "−"))
    assert "; plain " in shown[2].captions[0]


def test_the_furthest_are_found_by_each_outputs_own_deviation():
    truths = torch.tensor([[0.0, 0.0], [1, 1000], [2, 2000], [3, torch.nan], [torch.nan, torch.nan]])
    answer = truths.nan_to_num() + torch.tensor([[0.0, 10], [2, 0], [0, 0], [0, 99], [9, 9]])
    assert furthest(answer, truths)[0] == 1
    assert 4 not in furthest(answer, truths)


def test_values_of_a_table_have_no_pictures():
    rows = torch.randn(20, 4)
    shown = observe(None, {"student": nn.Linear(4, 1)}, batches(rows, rows.sum(1)), limbeck.regression)
    assert kinds(shown) == ["Scatter"]
    assert shown[0].values.shape == (1, 20)
    wide = observe(None, {"student": nn.Linear(4, 9)}, batches(rows, torch.randn(20, 9)), limbeck.regression)
    assert kinds(wide) == ["Scatter"] * 4
    assert "first 4 of 9" in wide[0].words


# two processes -------------------------------------------------------------------------------------------------------


def share(rank, port, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    classes = observe(Conv(8, 0), {"student": Conv(4, 1)}, LOADER, limbeck.classification, count=True)
    labels = splits((batches(INPUTS, LABELS),) * 3, 0).test  # as `fit` shares a loader of the user's own out
    table = observe(None, {"student": Conv(4, 1)}, labels, limbeck.multilabel, count=True)[-1]
    results.put((rank, classes[-1].counts, classes[0].captions, table.rows))
    distributed.barrier()
    distributed.destroy_process_group()


def test_all_processes_count_together_and_choose_the_same(processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = processes.Queue()
    ranks = [processes.Process(target=share, args=(rank, port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = [results.get(timeout=60)[1:] for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    classes = observe(Conv(8, 0), {"student": Conv(4, 1)}, LOADER, limbeck.classification, count=True)
    table = observe(None, {"student": Conv(4, 1)}, batches(INPUTS, LABELS), limbeck.multilabel, count=True)[-1]
    for counts, captions, rows in found:
        assert (counts == classes[-1].counts).all()
        assert captions == classes[0].captions
        assert rows == table.rows


# any task ------------------------------------------------------------------------------------------------------------


def test_samples_are_those_that_stack_whatever_a_batch_is():
    def loader():
        yield {"image": torch.zeros(3, 1, 4, 4), "label": torch.arange(3), "path": ["a", "b", "c"]}
        yield {"image": torch.zeros(2, 1, 5, 4), "label": torch.arange(2), "path": ["d", "e"]}
        yield {"image": torch.zeros(1, 1, 4, 4), "label": torch.arange(1), "path": ["f"]}

    inputs, targets = Observed(limbeck.classification, {}, list(loader())).samples
    assert set(inputs) == {"image"}  # words feed no network
    assert tuple(inputs["image"].shape) == (4, 1, 4, 4)
    assert targets.tolist() == [0, 1, 2, 0]
    ragged = [([torch.rand(3, 4, 6), torch.rand(3, 8, 2)], [{"boxes": torch.rand(2, 4)}, {"boxes": torch.rand(0, 4)}])]
    seen = Observed(limbeck.classification, {}, 3 * ragged)
    assert len(seen.samples[1]) == 6
    assert [picture.shape for picture in seen.pictures(seen.samples[0])[:2]] == [(4, 6, 3), (8, 2, 3)]
    large = seen.pictures(torch.rand(2, 3, 300, 150), side=200)
    assert large[0].shape == (200, 100, 3)
    assert seen.pictures(torch.zeros(2, 5)) is None
    assert seen.pictures({"tokens": torch.zeros(2, 5).long()}) is None


def broken(shown):
    yield Note("What was seen", "Something.")
    raise RuntimeError("no such picture")


def foreign(shown):
    yield "words"


def wrong(shown):
    yield Matrix("m", ("a", "b"), np.zeros((3, 3), np.int64))


@pytest.mark.parametrize(
    ("exhibit", "message", "left"),
    [
        (broken, "RuntimeError: no such picture", ["Note"]),
        (foreign, "TypeError: expected exhibits", []),
        (wrong, r"ValueError: counts: expected a NumPy array, int64 \(2, 2\)", []),
    ],
)
def test_a_task_that_cannot_show_costs_no_training(exhibit, message, left, tmp_path):
    mine = replace(limbeck.classification, name="mine", exhibit=exhibit)
    data = batches(INPUTS, TARGETS)
    with pytest.warns(UserWarning, match=f"the task 'mine' cannot show its examples.*{message}"):
        limbeck.fit(
            limbeck.plain(flat(), task=mine),
            (data, data, data),
            epochs=1,
            run_dir=tmp_path,
            progress=False,
            accelerator="cpu",
        )
    assert json.loads((tmp_path / "result.json").read_text())["finished"]
    assert kinds(read_exhibits(tmp_path / FILE)) == left
    _, words = read(run_report(tmp_path))
    assert ("What was seen" in words) == bool(left)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gallery("g", ("a", "b"), ((None,),)), r"rows: expected 2 cells"),
        (lambda: Gallery("g", ("a",), ()), "rows: expected at least one row"),
        (lambda: Gallery("g", ("a",), ((np.zeros((4, 4), np.uint8),),)), "rows: expected a NumPy array, uint8"),
        (lambda: Gallery("g", ("a",), ((np.zeros((4, 4, 2), np.uint8),),)), "H, W, 1 or 3"),
        (lambda: Gallery("g", ("a",), ((None,),), captions=("x", "y")), "captions: expected 1"),
        (lambda: Bars("b", ("t",), ("a",), np.zeros((1, 2, 1), np.float32), scale="log"), "scale: expected 'softmax'"),
        (lambda: Bars("b", ("t",), ("a",), torch.zeros(1, 2, 1)), "expected texts and NumPy arrays, got Tensor"),
        (lambda: Bars("b", ("t",), ("a",), np.zeros((1, 2, 1))), "values: .*float32.*got ndarray float64"),
        (lambda: Bars("b", (), ("a",), np.zeros((0, 2, 1), np.float32)), "a network, a sample and a label at least"),
        (lambda: Scatter("s", ("t",), np.zeros(3, np.float32), np.zeros((1, 2), np.float32)), r"values: .*\(1, 3\)"),
        (lambda: Table("t", ("a", "b"), (("x",),)), "rows: expected 2 cells"),
        (lambda: Matrix("m", ("a", 3), np.zeros((2, 2), np.int64)), "labels: expected texts"),
    ],
)
def test_exhibits_that_cannot_be_drawn_are_refused_in_words(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def some():
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    truths = np.array([[0, 1, np.nan]], np.float32)
    values = draw.normal(0, 2, (2, 1, 3)).astype(np.float32)
    names = ("teacher", "another <one>")
    return [
        Gallery("Pictures", ("input", "truth"), ((picture, None),), ("a row",), (("x", "y"),), words="Of a gallery."),
        Matrix("Confusions", ("a", "b"), np.array([[3, 1], [0, 2]]), "pixels", "student", "Of a matrix."),
        Bars("Bars", names, ("a", "b", "c"), values, truths, (picture,), ("why",), "sigmoid", "Of bars."),
        Bars("Bars", names[:1], ("a", "b", "c"), values[:1]),
        Scatter("Values", names, truths[0], values[:, 0], "age", "Of a scatter."),
        Scatter("Values", names, truths[0], values[:, 0], "size", "Of a scatter."),
        Table("Texts", ("text", "truth", "teacher"), (("a good <film>", "good", "bad"),), "Of a table."),
        Table("Texts", ("text", "truth"), (("another table", "good"),)),
        Note("Nothing", "Of a note."),
    ]


def test_exhibits_are_one_small_file_and_the_same_each_time(tmp_path):
    write_exhibits(some(), tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    found = read_exhibits(tmp_path / FILE)
    assert kinds(found) == kinds(some())
    assert (found[0].rows[0][0] == some()[0].rows[0][0]).all()
    assert found[0].rows[0][1] is None
    assert found[0].labels == (("x", "y"),)
    assert (found[2].values == some()[2].values).all()
    assert found[3].truths is None
    assert found[4].networks == ("teacher", "another <one>")
    write_exhibits(found, tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == content
    assert read_exhibits(tmp_path / "none.npz") == []


def test_a_page_shows_every_kind_and_needs_nothing_but_itself(tmp_path):
    sections = exhibit_sections(some(), LOOKS)
    assert [section.title for section in sections] == [
        *("Pictures", "Confusions", "Bars", "Values", "Texts", "Texts", "Nothing")
    ]
    assert len(sections[3].plots) == 2
    assert sections[3].sentences[0] == "Of a scatter."
    assert len(sections[3].sentences) == 2
    (tmp_path / "page.html").write_text(render("All", [], sections), encoding="utf-8")
    _, words = read(tmp_path / "page.html")
    for what in ("a gallery", "a matrix", "bars", "a scatter", "a table", "a note"):
        assert f"Of {what}." in words
    assert "a good <film>" in words
    assert "a is taken for b in 1 of 4 held-out pixels." in words


def test_files_of_an_older_limbeck_leave_a_page_without_examples(tmp_path):
    data = batches(INPUTS, TARGETS)
    limbeck.fit(limbeck.plain(flat()), (data, data), epochs=1, run_dir=tmp_path, progress=False, accelerator="cpu")
    assert "What it confuses" in read(run_report(tmp_path))[1]
    words = json.dumps({"networks": ["student"], "classes": ["a"], "reasons": [], "layers": [], "notes": []})
    np.savez_compressed(tmp_path / FILE, words=np.array(words), images=np.zeros((0, 1, 1, 1), np.uint8))
    assert read_exhibits(tmp_path / FILE) == []
    assert "What it confuses" not in read(run_report(tmp_path))[1]


@pytest.mark.parametrize(
    ("task", "targets", "method", "titles"),
    [
        (limbeck.multilabel, LABELS, "kd", {"Which labels they find likely": 1, "What it finds, label by label": 0}),
        (limbeck.regression, VALUES, "logits", {"What they predict": 1, "Where it is furthest off": 1}),
    ],
    ids=["multilabel", "regression"],
)
def test_pages_of_a_comparison_and_of_its_runs_show_the_task(task, targets, method, titles, tmp_path):
    data = batches(INPUTS, targets)
    outputs = targets.shape[1]
    limbeck.compare(
        [method],
        lambda: Conv(2, torch.initial_seed(), outputs),
        Conv(4, 100, outputs),
        (data, data, data),
        task=task,
        epochs=1,
        seeds=2,
        run_dir=tmp_path,
        progress=False,
        accelerator="cpu",
    )
    _, compared = read(redraw_comparison(tmp_path))
    _, run = read(run_report(tmp_path / method / "seed-0"))
    for title, both in titles.items():
        assert (title in compared) == bool(both)
        assert title in run
    assert "Where they look" in compared
    assert "What is confused now" not in compared
