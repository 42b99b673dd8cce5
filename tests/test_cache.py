"""What a teacher said is read as it was written or not at all, and trains the very student that the teacher would."""

from __future__ import annotations

import errno
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset, TensorDataset

import limbeck
from limbeck import S, T, data, zoo
from limbeck.cli import main
from limbeck.core.files import Damaged, hold, keep, read
from limbeck.data import Data, Items, Loader, Rows, stacked
from limbeck.data.cache import FACTS, Brought, Cache, Kept, _compared
from limbeck.data.cached import cached, uncached
from limbeck.engine.taught import kept_as, places
from limbeck.methods.at import attention_map

SAMPLES, BATCH, SIDE = 44, 8, 8


def images(seed: int = 0, **options: Any) -> Data:
    """Tiny images that are augmented, of three classes."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (SAMPLES, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    classes = torch.arange(SAMPLES) % 3
    make = {"batch_size": BATCH, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    augment = data.augment.recipe(options.pop("augment", "crop-flip"), SIDE)
    train = Loader(pixels, classes, augment=augment, shuffle=True, **make, **options)
    val, test = Loader(pixels[:16], classes[:16], **make), Loader(pixels[16:32], classes[16:32], **make)
    return Data("tiny", train, val, test, ("a", "b", "c"), (3, SIDE, SIDE))


class Net(nn.Module):
    def __init__(self, width: int, outputs: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, outputs)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.body(x).mean((2, 3)))


def net(width: int, seed: int = 0, outputs: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net(width, outputs)


@pytest.fixture(scope="module")
def teacher() -> Net:
    large = net(6, seed=1)
    with torch.no_grad():  # answers that differ from sample to sample
        large.head.weight.mul_(20)
    return large.eval()


def layers(student: nn.Module, teacher: nn.Module, method: str) -> Any:
    """A method whose layers are named."""
    if method == "at":
        return limbeck.at(student, teacher, layers=[("body", "body")])
    return getattr(limbeck, method)(student, teacher)


def weights(result: limbeck.Result) -> dict[str, Tensor]:
    return dict(result.student.state_dict())


def same(one: limbeck.Result, other: limbeck.Result) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def a_file(cache: Cache, end: str = "npy") -> Path:
    return sorted((cache.folder / "view-0000").glob(f"*.{end}"))[0]


def flipped(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


# what is kept


def test_what_was_written_is_read_by_id_and_view(tmp_path: Path) -> None:
    shown = [torch.randn(10, 2, 3) for _ in range(3)]
    cache = Cache.create(tmp_path, samples=10, views=3, rows=4, places=[Kept("layer", (2, 3), "float32")], made_with={})
    for view, shard in cache.missing():
        cache.write(view, shard, [{"layer": shown[view][list(cache.ids_of(shard))]}])
    ids, views = torch.tensor([9, 0, 4, 9, 3]), torch.tensor([2, 0, 1, 0, 2])
    got = Cache(tmp_path).read(ids, views)["layer"]
    assert torch.equal(got, torch.stack([shown[view][row] for row, view in zip(ids, views, strict=True)]))
    assert cache.bytes == 10 * 3 * 6 * 4
    assert cache.shards == 3
    assert not cache.missing()


def test_float16_is_rounded_and_no_more() -> None:
    values = torch.randn(50, 7) * 10
    again = Kept("", (7,)).again(values)
    assert torch.equal(again, values.half().float())
    with pytest.raises(ValueError, match="float16 cannot hold them, take numbers='float32'"):
        Kept("", (7,)).again(values * 1e5)
    with pytest.raises(ValueError, match="not finite before they are kept"):
        Kept("", (1,)).again(torch.tensor([[torch.nan]]))


def test_the_largest_log_probabilities_are_kept_and_the_rest_is_shared_out() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    kept = Kept("", (5,), "float32", top=2)
    probabilities = F.softmax(logits, -1)[0]
    rest = (1 - probabilities[0] - probabilities[1]) / 3
    expected = torch.stack([probabilities[0], probabilities[1], rest, rest, rest])
    torch.testing.assert_close(kept.again(logits)[0].exp(), expected)
    dense = kept.again(torch.randn(4, 5) * 3).exp()
    torch.testing.assert_close(dense.sum(-1), torch.ones(4))
    assert kept.bytes == 2 * (4 + 2) + 4


def test_a_certain_teacher_leaves_no_mass_and_no_infinity() -> None:
    again = Kept("", (4,), top=1).again(torch.tensor([[500.0, 0.0, 0.0, 0.0]]))
    assert again.isfinite().all()
    assert again.softmax(-1)[0, 0] == 1


@pytest.mark.parametrize("top", [0, 3, 7])
def test_top_is_some_of_the_classes(top: int) -> None:
    with pytest.raises(ValueError, match="top must be fewer classes than there are"):
        Kept("", (3,), top=top)


def test_files_of_places_have_different_names(tmp_path: Path) -> None:
    cache = Cache.create(
        tmp_path, samples=2, places=[Kept("a/b", (1,)), Kept("a:b", (1,)), Kept("A-b", (1,))], made_with={}
    )
    assert len({one.file.lower() for one in cache.places.values()}) == 3
    with pytest.raises(ValueError, match="kept twice"):
        Cache.create(tmp_path / "b", samples=2, places=[Kept("", (1,)), Kept("", (2,))], made_with={})


def test_what_lies_beyond_is_refused(tmp_path: Path) -> None:
    cache = Cache.create(tmp_path, samples=4, places=[Kept("", (1,))], made_with={})
    cache.write(0, 0, [{"": torch.zeros(4, 1)}])
    for ids, views in ((torch.tensor([4]), torch.tensor([0])), (torch.tensor([0]), torch.tensor([1]))):
        with pytest.raises(IndexError, match="has the ids 0 to 3 in 1 views"):
            cache.read(ids, views)
    with pytest.raises(ValueError, match="has shape"):
        cache.write(0, 0, [{"": torch.zeros(4, 2)}])
    with pytest.raises(ValueError, match="shard 0 has 4 samples"):
        cache.write(0, 0, [{"": torch.zeros(3, 1)}])
    with pytest.raises(ValueError, match="holds a cache with another samples"):
        Cache.create(tmp_path, samples=5, places=[Kept("", (1,))], made_with={})


# faults


@pytest.fixture
def written(tmp_path: Path) -> Cache:
    cache = Cache.create(tmp_path, samples=10, rows=5, places=[Kept("", (3,), top=2)], made_with={})
    for view, shard in cache.missing():
        cache.write(view, shard, [{"": torch.randn(5, 3)}])
    return Cache(tmp_path)


@pytest.mark.parametrize("end", ["answer.npy", "answer.top.npy", "json"])
def test_a_flipped_byte_is_never_read(written: Cache, end: str) -> None:
    path = a_file(written, end)
    for at in (0, path.stat().st_size // 2, -3):
        before = path.read_bytes()
        flipped(path, at)
        with pytest.raises(Damaged, match=path.name.replace(".", r"\.")):
            Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))
        path.write_bytes(before)
    assert Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))[""].shape == (1, 3)


def test_a_file_that_is_lost_or_cut_is_named(written: Cache) -> None:
    path = a_file(written, "answer.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(Damaged, match="it is not what its checksum was made of"):
        Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))
    path.unlink()
    assert Cache(written.folder).missing() == [(0, 0)]
    with pytest.raises(FileNotFoundError, match="limbeck cache build"):
        Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))
    assert Cache(written.folder).read(torch.tensor([7]), torch.tensor([0]))[""].shape == (1, 3)  # the other shard


def test_an_array_of_another_shape_is_refused_whatever_its_checksum(written: Cache) -> None:
    path = a_file(written, "answer.npy")
    np.save(path, np.zeros((5, 2), np.float16))
    seal = a_file(written, "json")
    from limbeck.core.files import sha256_of

    keep(seal, {"files": {**read(seal, "")["files"], path.name: sha256_of(path)}})
    with pytest.raises(Damaged, match=r"is float16 \(5, 2\)"):
        Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))


def test_facts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="limbeck cache build"):
        Cache(tmp_path)
    keep(tmp_path / FACTS, {"samples": 3})
    with pytest.raises(Damaged, match="does not say what a cache holds"):
        Cache(tmp_path)


def test_a_checksum_is_compared_once_in_a_process(written: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    written.read(torch.tensor([0]), torch.tensor([0]))
    monkeypatch.setattr("limbeck.data.cache.sha256_of", lambda path: pytest.fail("compared again"))
    Cache(written.folder).read(torch.tensor([0]), torch.tensor([0]))
    assert any(str(written.folder.resolve()) in known[0] for known in _compared)


def test_a_full_disk_costs_nothing_that_is_finished(
    tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = limbeck.build_cache(tmp_path / "whole", teacher, images(), views=2)
    saved, left = np.save, iter(range(1))

    def full(*args: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(*args, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        limbeck.build_cache(tmp_path / "half", teacher, images(), views=2)
    half = Cache(tmp_path / "half")
    assert half.missing() == [(1, 0)]
    assert not [*half.folder.rglob(".*npy")]
    with pytest.raises(ValueError, match="not finished, 1 of 2 shards are missing"):
        limbeck.cached(images(), half)
    monkeypatch.setattr(np, "save", saved)
    before = a_file(half).stat().st_mtime_ns
    limbeck.build_cache(half.folder, teacher, images(), views=2)
    assert a_file(half).stat().st_mtime_ns == before  # it went on
    ids, views = torch.arange(SAMPLES).repeat(2), torch.arange(2).repeat_interleave(SAMPLES)
    assert torch.equal(Cache(half.folder).read(ids, views)[""], whole.read(ids, views)[""])


def test_too_little_room_is_said_before(tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"needs 0\.0 GB more"):
        limbeck.build_cache(tmp_path, teacher, images(), views=1)


def _builds(folder: str) -> None:
    torch.set_num_threads(1)
    limbeck.build_cache(folder, net(6, seed=1).eval(), images(), views=4, progress=False)


def test_two_builders_at_once_make_one_cache(tmp_path: Path, processes: ForkServerContext) -> None:
    both = [processes.Process(target=_builds, args=(str(tmp_path),)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    cache = Cache(tmp_path)
    assert not cache.missing()
    assert len([*cache.check()]) == 4
    loader = images().train.cycling(4)
    with torch.no_grad():
        expected = net(6, seed=1).eval()(next(loader.seen(3, [torch.arange(20, 30)]))[0])
    got = cache.read(torch.arange(20, 30), torch.full((10,), 3))[""]
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)


def test_a_shard_that_another_builder_is_at_is_left_to_it(tmp_path: Path, teacher: Net) -> None:
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=2)
    gone = cache.folder / "view-0001"
    [path.unlink() for path in gone.glob("*.json")]
    with hold(cache.lock(1, 0)) as mine:
        assert mine
        from limbeck.engine import asking

        waited: list[float] = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking.time, "sleep", wait)
            with pytest.raises(KeyboardInterrupt):
                limbeck.build_cache(tmp_path, teacher, images(), views=2)
        assert waited
        assert cache.missing() == [(1, 0)]


# what it trains


METHODS = ("kd", "dkd", "dist", "logits", "at")


@pytest.mark.parametrize("method", METHODS)
def test_the_student_is_the_one_that_the_teacher_itself_would_train(tmp_path: Path, teacher: Net, method: str) -> None:
    limbeck.build_cache(
        tmp_path, teacher, images(), views=2, numbers="float32", methods=[layers(net(2), teacher, method)]
    )
    asked, results = net(6, seed=1).eval(), []
    asked.load_state_dict(teacher.state_dict())
    for given in (images(), images()):
        given = Data(**{**vars(given), "train": given.train.cycling(2)})
        served = given if not results else cached(given, tmp_path)
        results.append(limbeck.fit(layers(net(2), asked, method), served, epochs=3))
    assert same(*results)
    assert results[0].history[-1]["train/student/loss"] == results[1].history[-1]["train/student/loss"]


def test_the_teacher_is_not_run(tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    runs: list[int] = []
    real = Net.forward

    def counted(self: Net, x: Tensor) -> Tensor:
        if self.head.in_features == 6:
            runs.append(len(x))
        return real(self, x)

    monkeypatch.setattr(Net, "forward", counted)
    limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), tmp_path), epochs=4)
    assert sum(runs) <= 2 * 8 + 2 * 16  # the look at a few samples, and held-out data; of 4 epochs nothing


def test_the_device_needs_no_room_for_the_teacher(tmp_path: Path, teacher: Net) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    method, seen = limbeck.kd(net(2), teacher), []

    class Looks(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(type(pl_module.method.teachers["teacher"].net))

    limbeck.fit(method, cached(images().train, tmp_path), epochs=1, callbacks=[Looks()])
    limbeck.fit(method, images().train, epochs=1, callbacks=[Looks()])
    assert seen == [limbeck.Elsewhere, Net]


def test_float16_differs_by_its_rounding(tmp_path: Path, teacher: Net) -> None:
    students = []
    for numbers in ("float16", "float32"):
        limbeck.build_cache(tmp_path / numbers, teacher, images(), views=2, numbers=numbers)
        students.append(limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), tmp_path / numbers), epochs=2))
    assert not same(*students)
    torch.testing.assert_close(weights(students[0]), weights(students[1]), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "logits", "adversarial"])
def test_logits_are_not_learned_from_log_probabilities(tmp_path: Path, teacher: Net, method: str) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=1, top=2)
    options = {"num_classes": 3} if method == "adversarial" else {}
    made = getattr(limbeck, method)(net(2), teacher, **options)
    if method in ("logits", "adversarial"):
        with pytest.raises(ValueError, match="takes the teacher's logits as they are"):
            limbeck.fit(made, cached(images(), tmp_path), epochs=1)
    else:
        assert limbeck.fit(made, cached(images(), tmp_path), epochs=1).finished


def test_the_likeliest_of_several_labels_are_not_kept(tmp_path: Path) -> None:
    given = limbeck.data.load("digits-attributes", samples=100)
    with pytest.raises(ValueError, match="in multilabel none is"):
        limbeck.build_cache(tmp_path, zoo.network("mlp-16", 5, given.shape), given, top=2)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"rows": 0}, "rows must be a whole number, at least 1, got 0"),
        ({"views": 1.5}, "views must be a whole number"),
        ({"places": [{"place": "", "shape": [3], "note": 1}]}, "note"),
    ],
)
def test_facts_that_cannot_be_are_told(tmp_path: Path, facts: Any, said: str) -> None:
    whole = {"samples": 3, "views": 1, "rows": 3, "places": [{"place": "", "shape": [3]}], "made_with": {}}
    (tmp_path / FACTS).write_text(json.dumps({**whole, **facts}))
    with pytest.raises(Damaged, match=said):
        Cache(tmp_path)


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path, teacher: Net) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a cache"):
        limbeck.build_cache(tmp_path, teacher, images(), views=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_comparison_refuses_before_it_trains(tmp_path: Path, teacher: Net) -> None:
    cache = limbeck.build_cache(tmp_path / "cache", teacher, images(), views=1)
    entries = ["kd", limbeck.Entry("at", {"layers": [["body", "body"]]})]
    with pytest.raises(ValueError, match=r"at, layers=.*: the cache in"):
        limbeck.compare(
            entries,
            lambda: net(2, seed=int(torch.initial_seed())),
            teacher,
            cached(images(), cache),
            epochs=1,
            run_dir=tmp_path / "runs",
        )
    assert not (tmp_path / "runs").exists()


def test_a_role_that_nobody_plays_is_told(tmp_path: Path, teacher: Net) -> None:
    cache = Cache.create(tmp_path, samples=SAMPLES, places=[Kept("", (3,))], made_with={}, role="tutor")
    cache.write(0, 0, [{"": torch.randn(SAMPLES, 3)}])
    with pytest.raises(ValueError, match="is of a tutor, and the method has teacher"):
        limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), cache), epochs=1)


def test_methods_that_read_nothing_are_not_built_for(tmp_path: Path, teacher: Net) -> None:
    with pytest.raises(ValueError, match="reads nothing of a teacher that could be kept"):
        limbeck.build_cache(tmp_path, teacher, images(), methods=[limbeck.jacobian(net(2), teacher)])


def test_the_command_line_learns_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = limbeck.data.load("digits", samples=100)
    cache = Cache.create(tmp_path / "c", samples=100, places=[Kept("", (10,))], made_with={"teacher": "a service"})
    cache.write(0, 0, [{"": F.one_hot(given.train.targets, 10) * 4.0}])
    options = ["--data", "digits", "--samples", "100", "--teacher", "elsewhere"]
    assert main(["cache", "verify", str(tmp_path / "c"), *options]) == 0
    assert "no teacher here that could be asked again" in capsys.readouterr().out
    train = ["--student", "mlp-8", *options, "--cache", str(tmp_path / "c"), "--epochs", "1"]
    assert main(["distill", "kd", *train, "--run-dir", str(tmp_path / "run")]) == 0
    assert main(["compare", "kd", *train, "--seeds", "1", "--run-dir", str(tmp_path / "runs")]) == 0
    assert main(["cache", "build", str(tmp_path / "d"), *options]) == 2
    assert "there is nobody to ask" in capsys.readouterr().err
    assert main(["cache", "build", str(tmp_path / "d"), *options[:4], "--teacher", "mlp-8@random"]) == 2
    assert "drawn by each command anew" in capsys.readouterr().err


def test_a_check_says_what_is_read_or_why_not(tmp_path: Path, teacher: Net) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)

    def found(method: limbeck.Method) -> limbeck.Finding:
        return next(one for one in limbeck.check(method, cached(images(), tmp_path)).findings if one.name == "cache")

    assert found(limbeck.kd(net(2), teacher)).status == "ok"
    assert "the method reads 'body'" in found(layers(net(2), teacher, "at")).message
    assert found(limbeck.kd(net(2), net(6, seed=5))).status == "failed"
    assert "is run" in found(limbeck.jacobian(net(2), teacher)).message


def test_views_come_again_and_only_the_order_is_the_seeds() -> None:
    loader = images().train.cycling(3, seed=5)
    first, again, second = (next(loader.seen(number, [torch.arange(9)]))[0] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    other = loader.with_seed(9)
    assert torch.equal(first, next(other.seen(0, [torch.arange(9)]))[0])
    assert not torch.equal(next(iter(loader))[2], next(iter(other))[2])


def test_a_view_of_a_cycle_is_that_of_the_epoch_of_its_number() -> None:
    free, cycled = images(seed=3).train.with_seed(0), images(seed=3).train.cycling(2)
    epochs = [[(x.clone(), ids) for x, _, ids in free] for _ in range(2)]
    for _ in range(2):
        for epoch in epochs:
            for (x, ids), (mine, _, own) in zip(epoch, cycled, strict=True):
                looks = {int(row): image for image, row in zip(mine, own, strict=True)}
                assert all(
                    torch.equal(image, looks[int(row)]) for image, row in zip(x, ids, strict=True) if int(row) in looks
                )
    with pytest.raises(ValueError, match="at least one view"):
        free.cycling(0)
    with pytest.raises(ValueError, match="a view has a number where views cycle"):
        free.seen(0, [torch.arange(2)])


def test_few_labels_take_as_many_steps_and_every_lap_has_its_own_view(tmp_path: Path, teacher: Net) -> None:
    given = images()
    given.train.targets[9:] = -100
    given.train.labels = given.train.targets
    cache = limbeck.build_cache(tmp_path, teacher, given, views=2)
    few = cached(given, cache).labelled()
    for batch in few.train:
        _, _, ids, traces = batch
        assert ids.max() < 9
        assert len(traces["teacher"][""]) == len(ids)
    assert len(few.train) == len(given.train)
    assert limbeck.fit(limbeck.kd(net(2), teacher), few, epochs=2).finished


def test_processes_read_their_own_shares(tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=2)
    monkeypatch.setattr("limbeck.data.epochs.share", lambda: (1, 2))
    for _, _, ids, traces in cached(images(), cache).train:
        assert len(ids) == BATCH // 2
        assert torch.equal(traces["teacher"][""], cache.read(ids, torch.zeros_like(ids))[""])


def test_a_run_goes_on_and_knows_its_cache(tmp_path: Path, teacher: Net) -> None:
    for numbers in ("float16", "float32"):
        limbeck.build_cache(tmp_path / numbers, teacher, images(), views=2, numbers=numbers)
    run = {"epochs": 2, "run_dir": tmp_path / "run"}
    limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), tmp_path / "float16"), **run)
    limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), tmp_path / "float16"), **run, resume=True)
    with pytest.raises(ValueError, match="another cache"):
        limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), tmp_path / "float32"), **run, resume=True)


# what does not fit


def test_another_teacher_is_refused(tmp_path: Path, teacher: Net) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    with pytest.raises(ValueError, match="another teacher: its weights"):
        limbeck.fit(limbeck.kd(net(2), net(6, seed=5)), cached(images(), tmp_path), epochs=1)
    with pytest.raises(ValueError, match="holds a cache with another made_with teacher weights"):
        limbeck.build_cache(tmp_path, net(6, seed=5), images(), views=2)
    with pytest.raises(ValueError, match="of another teacher"):
        limbeck.verify_cache(tmp_path, net(6, seed=5), images())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: images(seed=4), "data images"),
        (lambda: images(augment="crop"), "data augment"),
        (lambda: Data(**{**vars(images()), "train": images().train.cycling(3)}), "views=2 and view_seed=0"),
        (lambda: Data(**{**vars(images()), "train": images().train.cycling(2, 1)}), "view_seed=1"),
    ],
)
def test_other_data_are_refused(tmp_path: Path, teacher: Net, other: Callable[[], Data], said: str) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    with pytest.raises(ValueError, match=said):
        cached(other(), tmp_path)


def test_another_version_is_refused(tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(ValueError, match=r"another limbeck: 0\.1\.0, and not 9\.9"):
        cached(images(), tmp_path)


def test_what_is_not_kept_is_refused_before_a_step(tmp_path: Path, teacher: Net) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    with pytest.raises(ValueError, match=r"holds the answer of the teacher, and the method reads 'body'"):
        limbeck.fit(layers(net(2), teacher, "at"), cached(images(), tmp_path), epochs=1)


def test_data_that_only_look_the_same_are_found_by_asking(tmp_path: Path, teacher: Net) -> None:
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=2)
    path = a_file(cache, "answer.npy")
    values = np.load(path)
    cache.write(0, 0, [{"": torch.from_numpy(values).float().flip(0)}])
    with pytest.raises(ValueError, match=r"is not what .* holds: it is"):
        limbeck.fit(limbeck.kd(net(2), teacher), cached(images(), Cache(tmp_path)), epochs=1)
    (found,) = limbeck.verify_cache(tmp_path, teacher, images())
    assert not found.ok
    assert found.cosine < 0.9


def test_a_map_that_is_mirrored_in_place_of_asking_is_found(tmp_path: Path, teacher: Net) -> None:
    """As some caches do for flipped images."""
    method = layers(net(2), teacher, "at")
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=2, methods=[method], layers=["body"])
    assert all(one.ok for one in limbeck.verify_cache(tmp_path, teacher, images(), methods=[method]))
    shown = cache.read(torch.arange(SAMPLES), torch.ones(SAMPLES, dtype=torch.int64))
    cache.write(1, 0, [{place: value.flip(-1) for place, value in shown.items()}])
    assert not any(one.ok for one in limbeck.verify_cache(tmp_path, teacher, images(), methods=[method]))


@pytest.mark.parametrize("mode", ["train", "batch_stats"])
def test_a_teacher_in_another_mode_cannot_be_kept(tmp_path: Path, teacher: Net, mode: Any) -> None:
    with pytest.raises(ValueError, match=f"the mode '{mode}'"):
        limbeck.build_cache(tmp_path, limbeck.Frozen(teacher, mode), images())


class Moody(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_answers_that_depend_on_the_batch_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depends on what else is in the batch, or on chance"):
        limbeck.build_cache(tmp_path, Moody(4), images())


def test_methods_that_differentiate_their_teacher_ask_it(
    tmp_path: Path, teacher: Net, caplog: pytest.LogCaptureFixture
) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    with caplog.at_level(logging.INFO, "limbeck"):
        assert limbeck.fit(limbeck.jacobian(net(2), teacher), cached(images(), tmp_path), epochs=1).finished
    assert "asks its teacher itself" in caplog.text
    assert not places(limbeck.jacobian(net(2), teacher))


def test_a_stage_with_another_teacher_asks_that(tmp_path: Path, teacher: Net, caplog: pytest.LogCaptureFixture) -> None:
    limbeck.build_cache(tmp_path, teacher, images(), views=2)
    stages = limbeck.takd(net(2), teacher, assistants=[net(4)])
    with caplog.at_level(logging.INFO, "limbeck"):
        assert limbeck.fit(stages, cached(images(), tmp_path), epochs=2).finished
    assert "is another than that of" in caplog.text


def test_stages_of_one_teacher_read_what_each_needs(tmp_path: Path, teacher: Net) -> None:
    def stages(of: Net) -> Any:
        return limbeck.fitnets(net(2), of, hint="body", guided="body", example=torch.zeros(2, 3, SIDE, SIDE))

    cache = limbeck.build_cache(tmp_path, teacher, images(), views=2, methods=[stages(teacher)], numbers="float32")
    assert {"", "body"} <= set(cache.places)
    torch.manual_seed(7)
    one = limbeck.fit(stages(teacher), cached(images(), tmp_path), epochs=3)
    given = Data(**{**vars(images()), "train": images().train.cycling(2)})
    torch.manual_seed(7)
    assert same(one, limbeck.fit(stages(teacher), given, epochs=3))


def test_layers_are_kept_after_what_leaves_less_of_them(tmp_path: Path, teacher: Net) -> None:
    at = layers(net(2), teacher, "at")
    assert list(limbeck.build_cache(tmp_path / "a", teacher, images(), methods=[at]).places) == [
        "body > at.attention_map"
    ]
    both = limbeck.build_cache(tmp_path / "b", teacher, images(), methods=[at], layers=["body"])
    assert list(both.places) == ["body"]  # the whole of it serves at too
    (place,) = places(at)
    assert kept_as(place, both) == "body"
    trace = {"body > at.attention_map": torch.ones(2, 3, 3)}
    assert torch.equal(T["body"].via(attention_map).read({"teacher": trace}), torch.ones(2, 3, 3))
    with pytest.raises(KeyError):
        T["body"].read({"teacher": trace})
    with pytest.raises(ValueError, match="no layer 'nobody'"):
        limbeck.build_cache(tmp_path / "c", teacher, images(), layers=["nobody"])
    assert list(limbeck.build_cache(tmp_path / "d", teacher, images(), layers=["body"]).places) == ["", "body"]


def test_functions_of_one_name_are_not_taken_for_each_other(tmp_path: Path, teacher: Net) -> None:
    """Lambdas and what a function makes are called alike, so that the whole layer is kept."""
    means = limbeck.on(F.mse_loss, S["body"].via(lambda x: x.mean(1)), T["body"].via(lambda x: x.mean(1)))
    tops = limbeck.on(F.mse_loss, S["body"].via(lambda x: x.amax(1)), T["body"].via(lambda x: x.amax(1)), name="top")
    method = limbeck.Distill(net(2), teacher, means + tops)
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=1, methods=[method])
    assert list(cache.places) == ["body"]
    assert T["body"].via(F.relu, nn.ReLU(), F.relu).plain_steps == 1
    assert T["body"].via(attention_map).after(1) == "body > at.attention_map"


def test_the_largest_of_other_samples_are_found(tmp_path: Path) -> None:
    """Log-probabilities of many classes are all alike by their cosine."""
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(40, 1000, generator=draw) * 4

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(table)

        def forward(self, x: Tensor) -> Tensor:
            return self.rows[x[:, 0].long()]

    x, y, ids = torch.arange(40.0)[:, None], table.argmax(1), torch.arange(40)
    right = DataLoader(TensorDataset(x, y, ids), 10)
    cache = limbeck.build_cache(tmp_path, Table(), right, top=10)
    assert all(one.ok for one in limbeck.verify_cache(tmp_path, Table(), right))
    (kept,) = cache.places.values()
    cache.write_arrays(0, 0, kept.arrays(table.flip(0)))
    assert not any(one.ok for one in limbeck.verify_cache(tmp_path, Table(), right))
    student = nn.Linear(1, 1000)
    with pytest.raises(ValueError, match=r"is not what .* holds"):
        limbeck.fit(limbeck.kd(student, Table()), cached(right, tmp_path), epochs=1)


def test_numbers_too_small_for_float16_are_refused(tmp_path: Path, teacher: Net) -> None:
    small = net(6, seed=1).eval()
    with torch.no_grad():
        small.head.weight.mul_(1e-7)
        small.head.bias.zero_()
    with pytest.raises(ValueError, match=r"float16 leaves too little .* take numbers='float32'"):
        limbeck.build_cache(tmp_path, small, images(), views=1)
    assert limbeck.build_cache(tmp_path, small, images(), views=1, numbers="float32").views == 1


def test_what_is_known_of_a_teacher_is_of_its_stage(tmp_path: Path) -> None:
    """A later stage's teacher is another, and is measured."""
    given = limbeck.data.load("digits", samples=400)
    torch.manual_seed(0)
    large, assistant, small = (zoo.network(name, 10, given.shape) for name in ("mlp-32", "mlp-16", "mlp-8"))
    limbeck.fit(limbeck.plain(large), given, epochs=4)
    cache = limbeck.build_cache(tmp_path / "cache", large, given, views=1)
    run = tmp_path / "run"
    limbeck.fit(limbeck.takd(small, large, assistants=[assistant]), cached(given, cache), epochs=2, run_dir=run)
    told = read(run / "result.json", "")["teachers"]["teacher"]
    assert told["test"]["accuracy"] < limbeck.evaluate(large, given.test)["accuracy"] / 2  # of one epoch


def test_a_cache_of_another_service_is_another(tmp_path: Path) -> None:
    facts = {"samples": 4, "places": [Kept("", (2,))]}
    Cache.create(tmp_path, **facts, made_with={"teacher": "service A", "torch": "2"})
    Cache.create(tmp_path, **facts, made_with={"teacher": "service A", "torch": "3"})
    with pytest.raises(ValueError, match="another made_with teacher: service A, and not service B"):
        Cache.create(tmp_path, **facts, made_with={"teacher": "service B"})


def test_what_a_killed_builder_left_is_swept_away(tmp_path: Path, teacher: Net) -> None:
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=1)
    a_file(cache, "json").unlink()
    (tmp_path / "view-0000" / ".00000.answer.0123.npy").write_bytes(b"half")
    limbeck.build_cache(tmp_path, teacher, images(), views=1)
    assert not [*tmp_path.rglob(".00000*npy")]


def test_a_copy_of_a_cache_maps_its_own(written: Cache) -> None:
    written.read(torch.tensor([0]), torch.tensor([0]))
    again = pickle.loads(pickle.dumps(written))
    assert len(pickle.dumps(written)) < 2000
    assert torch.equal(
        again.read(torch.tensor([0]), torch.tensor([0]))[""], written.read(*(torch.tensor([0]),) * 2)[""]
    )


def test_losses_that_draw_or_read_layers_take_the_largest(tmp_path: Path, teacher: Net) -> None:
    """They are told from losses of logits by a copy, on the student's own layers, with the same draws."""
    limbeck.build_cache(tmp_path, teacher, images(), views=1, top=2)

    def noisy(student: Tensor, teacher: Tensor) -> Tensor:
        return (teacher.softmax(-1) * torch.rand_like(teacher)).sum() * 0 + F.kl_div(
            student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean"
        )

    def across(features: Tensor, teacher: Tensor) -> Tensor:
        return (features.mean() * teacher.softmax(-1)).sum()

    objective = limbeck.on(noisy, S, T) + limbeck.on(across, S["body"], T)
    assert limbeck.fit(limbeck.Distill(net(2), teacher, objective), cached(images(), tmp_path), epochs=1).finished


# loaders of one's own


def rows(count: int = 20) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 6, generator=draw), torch.arange(count) % 3, torch.arange(count))


def linear(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def test_a_loader_with_ids_is_cached(tmp_path: Path) -> None:
    loader = DataLoader(rows(), 6, shuffle=True, drop_last=True)
    cache = limbeck.build_cache(tmp_path, linear(8), loader, numbers="float32")
    assert cache.samples == 20
    assert cache.views == 1
    results = [
        limbeck.fit(limbeck.kd(linear(2), linear(8)), (given, DataLoader(rows(), 6)), epochs=2)
        for given in (loader, cached(loader, cache))
    ]
    # a product of matrices rounds a row otherwise at another place of the batch
    torch.testing.assert_close(weights(results[0]), weights(results[1]), atol=1e-6, rtol=1e-6)
    (found,) = limbeck.verify_cache(tmp_path, linear(8), loader)
    assert found.ok
    assert found.cosine > 0.9999
    assert found.difference < 1e-5
    own = [batch[3]["teacher"][""] for batch in cached(loader, cache)]
    assert [len(one) for one in own] == [6, 6, 6]


def test_a_loader_without_ids_is_refused(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*rows().tensors[:2]), 6)
    with pytest.raises(ValueError, match=r"these batches have none: serve \(inputs, targets, ids\)"):
        limbeck.build_cache(tmp_path, linear(8), loader)


class Noisy(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> Any:
        x, y, i = rows()[at]
        return x + torch.randn(6), y, i


class Numbered(Dataset):
    """Augments by the id and the number of the view alone, which goes on from epoch to epoch."""

    view = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> Any:
        x, y, i = rows()[at]
        noise = torch.randn(6, generator=torch.Generator().manual_seed(100 * at + self.view))
        return x + noise, y, i, torch.tensor(self.view)


class Turning:
    """A loader that shows the next of three views in each epoch."""

    def __init__(self) -> None:
        self.samples, self.epoch = Numbered(), 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        self.samples.view, self.epoch = self.epoch % 3, self.epoch + 1
        return iter(DataLoader(self.samples, 5))


def test_a_loader_that_augments_says_how_or_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shows a sample otherwise each time.*limbeck.data.Items"):
        limbeck.build_cache(tmp_path / "noisy", linear(8), DataLoader(Noisy(), 5))
    with pytest.raises(ValueError, match="say how many there are, views="):
        limbeck.build_cache(tmp_path / "turning", linear(8), Turning())
    cache = limbeck.build_cache(tmp_path / "turning", linear(8), Turning(), views=3)
    assert not cache.missing()
    seen = set()
    for skipped in range(3):
        loader = cached(Turning(), cache)
        loader.loader.epoch = skipped
        for x, _, _, traces in loader:
            seen.add(float(x[0, 0]))
            with torch.no_grad():
                torch.testing.assert_close(traces["teacher"][""], linear(8)(x), atol=2e-3, rtol=1e-3)
    assert len(seen) == 3 * 4
    with pytest.raises(ValueError, match="does not say which a batch shows"):
        limbeck.build_cache(tmp_path / "rows", linear(8), DataLoader(rows(), 5), views=2)


def test_a_loader_says_which_view_if_there_are_several(tmp_path: Path) -> None:
    cache = Cache.create(tmp_path, samples=20, views=2, places=[Kept("", (3,))], made_with={"teacher": "a service"})
    for view in range(2):
        cache.write(view, 0, [{"": torch.randn(20, 3)}])
    with pytest.raises(ValueError, match="has 2 views of each sample, and the loader does not say which"):
        cached(DataLoader(rows(), 5), tmp_path)


@pytest.mark.parametrize("kind", ["batches", "own"])
def test_an_order_that_is_drawn_is_no_augmentation(tmp_path: Path, kind: str) -> None:
    if kind == "batches":
        loader: Any = DataLoader(rows(), batch_sampler=BatchSampler(RandomSampler(rows()), 5, drop_last=False))
    else:
        loader = _Shuffling()
    assert limbeck.build_cache(tmp_path, linear(8), loader).samples == 20


class _Shuffling:
    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(20).split(5)
        return iter([tuple(column[own] for column in rows().tensors) for own in order])


def test_ids_that_are_no_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="serves the ids 10 to 14, and there are 10: let it serve 0 to 9"):
        limbeck.build_cache(tmp_path, linear(8), DataLoader(Subset(rows(), range(10, 20)), 5))


def test_a_collate_that_changes_the_order_is_followed(tmp_path: Path) -> None:
    """As texts are sorted by their length."""

    def backwards(samples: list[Any], ids: Tensor) -> Any:
        inputs, targets, ids = stacked(samples, ids)
        return inputs.flip(0), targets.flip(0), ids.flip(0)

    samples = [(x, int(y)) for x, y, _ in rows(22)]
    mine = Items(samples, batch_size=5, transform=lambda x, y: (x + torch.randn(6), y), collate=backwards)
    cache = limbeck.build_cache(tmp_path, linear(8), mine, views=2)
    for x, _, _, traces in cached(mine, cache):
        with torch.no_grad():
            torch.testing.assert_close(traces["teacher"][""], linear(8)(x), atol=2e-3, rtol=1e-3)
    assert all(one.ok for one in limbeck.verify_cache(tmp_path, linear(8), mine))


def test_batches_of_many_entries_are_refused(tmp_path: Path) -> None:
    longer = [(*batch, 0, 0) for batch in DataLoader(rows(), 5)]
    cache = limbeck.build_cache(tmp_path, linear(8), longer)
    with pytest.raises(ValueError, match="a batch of 5 entries has no place"):
        next(iter(cached(longer, cache)))


def test_a_loader_that_leaves_samples_out_for_good_is_refused(tmp_path: Path) -> None:
    batches = [tuple(one[:6] for one in rows().tensors), tuple(one[9:15] for one in rows().tensors)]
    with pytest.raises(ValueError, match="never served 3 of 15 samples"):
        limbeck.build_cache(tmp_path, linear(8), _Listed(batches))


class _Listed:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_items_draw_by_the_view_so_that_theirs_can_be_kept(tmp_path: Path) -> None:
    samples = [(x, int(y)) for x, y, _ in rows()]
    mine = Items(samples, batch_size=5, transform=lambda x, y: (x + torch.randn(6), y), shuffle=True)
    cache = limbeck.build_cache(tmp_path, linear(8), (mine, Rows(*rows().tensors[:2], batch_size=5)))
    assert cache.views == 8
    for x, _, ids, traces in cached(mine, cache):
        with torch.no_grad():
            torch.testing.assert_close(traces["teacher"][""], linear(8)(x), atol=2e-3, rtol=1e-3)
        assert len(ids) == 5
    assert uncached(cached(mine, cache)).answers is None


def test_dicts_bring_their_traces_along(tmp_path: Path) -> None:
    batches = [{"input": x, "label": y, "ids": i} for x, y, i in DataLoader(rows(), 5)]
    cache = limbeck.build_cache(tmp_path, _Named(), batches)
    (first, *_) = cached(batches, cache)
    assert set(first) == {"input", "label", "ids", "traces"}
    assert limbeck.fit(limbeck.kd(_Named(2), _Named()), (cached(batches, cache), batches), epochs=1).finished


class _Named(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = linear(width)

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)


def test_a_loop_of_ones_own_reads_it(tmp_path: Path) -> None:
    loader = DataLoader(rows(), 5)
    cache = limbeck.build_cache(tmp_path, linear(8), loader)
    method = limbeck.kd(linear(2), limbeck.Elsewhere())  # it cannot be asked
    optimizers = limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.1))
    for batch in cached(loader, cache):
        assert limbeck.play(method, batch, optimizers)["student/soft"] >= 0


# from elsewhere


def test_a_cache_from_elsewhere_teaches_without_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written as the documented format says, with NumPy and JSON alone."""
    loader = DataLoader(rows(), 5)
    truth = F.one_hot(rows().tensors[1], 3) * 2.0
    answers = (truth + torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) / 4).log_softmax(-1).numpy()
    top = np.argsort(-answers, 1)[:, :2].astype(np.int16)
    best = np.take_along_axis(answers, top, 1)
    rest = np.log1p(-np.exp(best).sum(1, keepdims=True))
    shard = tmp_path / "view-0000"
    shard.mkdir()
    np.save(shard / "00000.answer.npy", np.concatenate([best, rest], 1).astype(np.float16))
    np.save(shard / "00000.answer.top.npy", top)
    import hashlib

    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shard.iterdir()}
    (shard / "00000.json").write_text(json.dumps({"files": sums}))
    place = {"place": "", "file": "answer", "numbers": "float16", "shape": [3], "top": 2}
    facts = {"samples": 20, "views": 1, "rows": 20, "places": [place], "made_with": {"teacher": "a service"}}
    (tmp_path / FACTS).write_text(json.dumps(facts))

    torch.testing.assert_close(
        Cache(tmp_path).read(torch.arange(20), torch.zeros(20, dtype=torch.int64))[""],
        torch.from_numpy(answers),
        atol=2e-3,
        rtol=2e-3,
    )
    assert limbeck.verify_cache(tmp_path, None, loader) == []
    with pytest.raises(TypeError, match=r"the order is limbeck.cached\(data, folder\)"):
        cached(tmp_path, loader)
    given = (cached(loader, tmp_path), DataLoader(rows(), 5), DataLoader(rows(), 5))
    result = limbeck.distill(linear(2), limbeck.Elsewhere(), given, "kd", epochs=2)
    assert result.finished
    assert not result.missing
    with pytest.raises(RuntimeError, match="the teacher is elsewhere and cannot be asked"):
        limbeck.fit(limbeck.kd(linear(2), limbeck.Elsewhere()), loader, epochs=1)
    shown = limbeck.compare(["kd"], lambda: linear(2), limbeck.Elsewhere(), given, epochs=1, seeds=1)
    assert [one.name for one in shown.candidates] == ["plain", "kd"]


# the verbs


def test_a_comparison_shares_one_cache(tmp_path: Path, teacher: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = limbeck.build_cache(
        tmp_path / "cache",
        teacher,
        images(),
        views=2,
        methods=[limbeck.kd(net(2), teacher), layers(net(2), teacher, "at")],
    )
    reads: list[set[str]] = []
    real = Cache.read
    monkeypatch.setattr(
        Cache,
        "read",
        lambda self, ids, views, places=None: reads.append(set(places or ())) or real(self, ids, views, places),
    )
    entries = [
        "kd",
        limbeck.Entry("at", {"layers": [["body", "body"]]}),
        limbeck.Entry("kd", {}, "stranger", teacher=net(6, seed=9), control=True),
    ]
    shown = limbeck.compare(
        entries,
        lambda: net(2, seed=int(torch.initial_seed())),
        teacher,
        cached(images(), cache),
        epochs=2,
        seeds=2,
        check=False,
        run_dir=tmp_path / "runs",
    )
    assert [one.name for one in shown.candidates][1:3] == ["plain", "kd"]
    assert {frozenset(one) for one in reads} == {frozenset({""}), frozenset({"body > at.attention_map"})}


def test_the_command_line_builds_tells_verifies_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", "digits", "--samples", "200"]
    assert main(["train", "--network", "mlp-16", *common, "--epochs", "1", "--run-dir", str(tmp_path / "t")]) == 0
    who = ["--teacher", f"mlp-16@{tmp_path / 't'}", *common]
    cache = str(tmp_path / "cache")
    assert main(["cache", "build", cache, *who, "--views", "2", "--top", "4"]) == 0
    told = capsys.readouterr().out
    assert "200 samples in 2 views, answer 18 B: 7.20 kB on disk" in told
    assert "finished" in told
    assert main(["cache", "info", cache]) == 0
    assert "4 largest, float16" in capsys.readouterr().out
    assert main(["cache", "verify", cache, *who, "--ask", "50"]) == 0
    assert "50 samples asked again" in capsys.readouterr().out
    train = ["distill", "kd", "--student", "mlp-8", *who, "--epochs", "1", "--cache", cache]
    assert main([*train, "--run-dir", str(tmp_path / "s")]) == 0
    assert read(tmp_path / "s" / "inputs.json", "")["run"]["cache"]["places"][0]["top"] == 4
    assert main([*train, "--augment", "none", "--run-dir", str(tmp_path / "o")]) == 2
    assert "another data augment" in capsys.readouterr().err
    assert main(["cache", "build", cache, *who, "--views", "2", "--methods", "at"]) == 2
    assert "say which network it is, --student" in capsys.readouterr().err


def test_brought_is_told_by_what_it_reads(tmp_path: Path, teacher: Net) -> None:
    cache = limbeck.build_cache(tmp_path, teacher, images(), views=1)
    brought = Brought(cache, frozenset({""}))
    assert set(brought(torch.arange(3), torch.zeros(3, dtype=torch.int64))["teacher"]) == {""}
