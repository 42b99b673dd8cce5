"""The demo, in miniature."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck import zoo
from limbeck.cli import main
from limbeck.core.files import sha256_of
from limbeck.report.comparison import opening
from limbeck.verbs.demo import STUDENT, TEACHER, demo
from pages import read


def test_the_demo_compares_trains_and_reports(tmp_path, capsys):
    with_labels, without = demo(seeds=2, epochs=2, run_dir=str(tmp_path / "demo"))
    shown = capsys.readouterr().out
    for comparison in (with_labels, without):
        roles = [candidate.role for candidate in comparison.candidates]
        assert roles[:2] == ["teacher", "baseline"]
        assert "distilled" in roles
        assert all(len(candidate.values) == 2 for candidate in comparison.candidates[1:])
        assert comparison.title in shown
    assert "control" in [candidate.role for candidate in with_labels.candidates]

    page, words = read(tmp_path / "demo" / "report.html")  # its links lead to the comparisons and the weights
    assert all(candidate.name in page for candidate in with_labels.candidates)
    said = [f"{comparison.title}: {opening(comparison)[-1]}" for comparison in (with_labels, without)]
    assert all(words.index(sentence) < words.index("vs plain student") for sentence in said)
    assert all(sentence in shown for sentence in said)
    assert ">few-labels/report.html<" in page
    for name, file in ((STUDENT, "student"), (TEACHER, "teacher")):
        net = zoo.network(name, 10, (1, 8, 8))
        net.load_state_dict(load_file(tmp_path / "demo" / f"{file}.safetensors"))
        assert torch.isfinite(net(torch.rand(3, 1, 8, 8))).all()


def undrawn(comparisons, to, **_: object) -> Path:
    """A page in place of one that takes longer to draw than the networks train; the test above looks at one."""
    Path(to).touch()
    return Path(to)


def test_a_demo_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    for module in ("verbs.demo", "report.comparison"):
        monkeypatch.setattr(f"limbeck.{module}.comparison_report", undrawn)
    calls: list[str] = []

    def stopping(*given: object, **options: object) -> limbeck.Result:
        calls.append(options["run_dir"].name)
        return replace(limbeck.fit(*given, **options), finished=len(calls) > 1)

    folder = tmp_path / "new" / "demo"
    words = ["demo", "--seeds", "1", "--epochs", "2", "--run-dir", str(folder)]
    monkeypatch.setattr("limbeck.verbs.demo.fit", stopping)
    assert main(words) == 130
    assert calls == ["teacher"]
    assert "stopped; the same command goes on" in capsys.readouterr().out
    assert not (folder / "student.safetensors").exists()
    assert main(words) == 0
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("stage-0.ckpt")}
    weights = sha256_of(folder / "student.safetensors")
    (folder / "report.html").unlink()
    assert main(words) == 0  # nothing is trained again
    assert kept == {path: path.stat().st_mtime_ns for path in folder.rglob("stage-0.ckpt")}
    assert sha256_of(folder / "student.safetensors") == weights
    assert (folder / "report.html").exists()
    assert main([*words, "--epochs", "3"]) == 2
    assert "another epochs: 2, and not 3" in capsys.readouterr().err


def test_folders_that_are_none(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--run-dir", str(tmp_path / "file" / "demo")]) == 2
    assert "which cannot be written to (" in capsys.readouterr().err
    assert main(["demo", "--run-dir", str(tmp_path / "file")]) == 2
    assert "run_dir: expected a folder, got the file" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("epochs: 1")
    with pytest.raises(ValueError, match="holds a run that is no demo, whose files this one would replace"):
        demo(run_dir=str(tmp_path))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        demo(epochs=0, run_dir=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
