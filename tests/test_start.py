"""What the program imports before it works: nothing that takes seconds where it only tells."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import limbeck
from limbeck import methods
from limbeck.methods._papers import paper_of, papers

TRAINING = {"lightning", "pytorch_lightning", "torchmetrics", "torchvision", "transformers", "optuna", "timm"}
PICTURES = {"matplotlib", "matplotlib.pyplot", "PIL", "scipy", "sklearn", "pandas", "pyarrow"}
HEAVY = TRAINING | PICTURES
TELLING = """
import json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
import {ready}

ready = len(sys.modules)
for line in json.load(sys.stdin):
    there, here = os.pipe()
    if not os.fork():
        with redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as complained:
            from limbeck.cli import main
            try:
                code = main(line.split())
            except SystemExit as end:
                code = end.code or 0
        with os.fdopen(here, "w") as answer:
            json.dump([code, said.getvalue(), complained.getvalue(), sorted(sys.modules), ready], answer)
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as answer:
        print(answer.read())
    os.wait()
"""


@dataclass(frozen=True)
class Told:
    """What a command said, which modules were there at its end, and how many before limbeck was imported."""

    code: int
    said: str
    complained: str
    modules: set[str]
    ready: int


def tell(lines: list[str], ready: str) -> dict[str, Told]:
    """Give each command to a fork of one process that has imported ``ready``, which takes longer than what they do."""
    words = [sys.executable, "-c", TELLING.format(ready=ready)]
    done = subprocess.run(words, input=json.dumps(lines), capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return {
        line: Told(code, said, complained, set(modules), before)
        for line, (code, said, complained, modules, before) in zip(lines, answers, strict=True)
    }


def imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


PARSER = "jsonargparse, rich, yaml"
WITHOUT_TORCH = ["--help", "-h", "--version", "list --help", "list methods", "cite --help", "cite kd+at"]
WITH_TORCH = [
    "distill kd --help",
    "distill kd+at --help",
    "distill --help",
    "check crd --help",
    "list data",
    "list networks",
    "list tasks",
    "tune --help",
    "table --help",
    "initialize --help",
    "report --help",
    "compare --help",
    "train --help",
    "eval --help",
    "export --help",
    "layers --help",
]
REFUSED = [
    "train --network mlp-8 --epochs 0",
    "distill kd+at --student mlp-8 --teacher mlp-8@random --kd.temperature -1",
    "compare kd --student mlp-8 --teacher mlp-8@nowhere.safetensors",
    "eval --network nonet@random",
    "train --network mlp-8 --data imagefolder --root nowhere",
    f"train --network mlp-8 --run-dir {Path(__file__).as_posix()}",
]


@pytest.fixture(scope="module")
def without_torch() -> dict[str, Told]:
    return tell(WITHOUT_TORCH, PARSER)


@pytest.fixture(scope="module")
def with_torch() -> dict[str, Told]:
    return tell([*WITH_TORCH, *REFUSED], f"torch, rich.table, {PARSER}")


@pytest.mark.parametrize("line", WITHOUT_TORCH)
def test_what_only_tells_needs_no_torch(line, without_torch):
    told = without_torch[line]
    assert (told.code, told.complained) == (0, "")
    assert told.said
    assert not told.modules & {"torch", "numpy", *HEAVY}
    assert len(told.modules) < told.ready + 100


@pytest.mark.parametrize("line", WITH_TORCH)
def test_help_needs_at_most_torch(line, with_torch):
    told = with_torch[line]
    assert (told.code, told.complained) == (0, "")
    assert told.said
    assert not told.modules & HEAVY
    assert len(told.modules) < told.ready + 250


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_said_before_anything_heavy_is_loaded(line, with_torch):
    told = with_torch[line]
    assert told.code == 2
    assert "limbeck: error: " in told.complained
    assert not told.modules & {"lightning", "pytorch_lightning", "transformers", "timm"}


def test_help_of_a_method_reads_that_one_alone():
    modules = tell(["distill kd --help"], "torch")["distill kd --help"].modules
    assert "limbeck.methods.kd" in modules
    assert not modules & {"limbeck.methods.rkd", "limbeck.zoo", "limbeck.data", "limbeck.engine.fit", "rich.table"}


def test_the_package_is_its_names_until_one_is_asked_for():
    assert "torch" not in imported("import limbeck; dir(limbeck); limbeck.__all__")
    modules = imported("from limbeck import S, T, on, kd")
    assert "torch" in modules
    assert not modules & {"limbeck.methods.rkd", "jsonargparse", "rich", *HEAVY}


def test_every_public_name_is_found_and_known():
    assert set(limbeck.__all__) == set(dir(limbeck))
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    with pytest.raises(AttributeError, match="module 'limbeck' has no attribute 'kdd'"):
        _ = limbeck.kdd  # type: ignore[attr-defined]
    asked = [sys.executable, "-c", "import limbeck; limbeck.distil"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stderr
    assert "Did you mean: 'distill'?" in said


def test_every_method_is_a_public_name():
    assert set(methods.__all__) <= set(limbeck.__all__)
    assert all(getattr(limbeck, name) is getattr(methods, name) for name in methods.__all__)


def test_a_method_is_its_function_although_its_file_bears_its_name():
    names = "import limbeck.methods.kd, limbeck.losses; from limbeck import kd, methods"
    code = f"{names}; print(callable(methods.kd), kd is methods.kd)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_papers_that_are_read_as_text_are_those_of_the_methods():
    files = {name: sys.modules[getattr(methods, name).__module__] for name in methods.__all__}
    theirs = {name: replace(of.PAPER, **getattr(of, "PAPER_OF", {}).get(name, {})) for name, of in files.items()}
    assert papers() == theirs
    with pytest.raises(ValueError, match="unknown method 'kdd': did you mean kd"):
        paper_of("kdd")


def test_what_takes_a_moment_is_told_on_a_terminal_alone(monkeypatch, capsys):
    from limbeck.cli.terminal import waiting

    with waiting("loading torch"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with waiting("loading torch"):
        pass
    assert "limbeck: loading torch" in capsys.readouterr().err
