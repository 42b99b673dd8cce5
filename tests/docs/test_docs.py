"""Every snippet and every command that README, CONTRIBUTING and docs show."""

import importlib.util
import io
import itertools
import json
import re
import shlex
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

import limbeck

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def snippets(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(snippets(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


OURS = [words[1:] for words in commands(ROOT / "README.md") if words[0] == "limbeck"]


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_the_readmes_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for text in snippets(ROOT / "README.md", "python"):
        exec(compile(text, "README.md", "exec"), names)
    assert 0.5 < names["result"].metrics["test/student/accuracy"] <= 1
    assert names["loss"].item() >= 0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder that the pages share, with the photographs and the network that they speak of."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "mynet.py").write_text(snippets(ROOT / "docs/getting-started.md", "python")[0])
    (folder / "acme.py").write_text(snippets(ROOT / "docs/tasks.md", "python")[1])
    draw = torch.Generator().manual_seed(0)
    for split, kind, number in itertools.product(("train", "val"), ("cat", "dog"), range(6)):
        path = folder / "photos" / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (32, 32, 3), generator=draw, dtype=torch.uint8).numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def told(workshop):
    """What the README's commands print, one after the other, in the workshop."""
    from limbeck.cli import main

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore", limbeck.ChanceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.chdir(workshop)
        patch.syspath_prepend(str(workshop))
        for words in OURS:
            assert main(shortened(words) if "imagefolder" in words else words) == 0, words
    return said.getvalue()


def test_the_readmes_commands_run_one_after_the_other(told, workshop):
    assert len(OURS) >= 3
    assert "mlp-32" in told
    for file in ("runs/kd/student.safetensors", "runs/verdict/report.html", "shipped/student.onnx"):
        assert (workshop / file).exists()


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", ["getting-started", "recipes", "guide", "tasks"])  # `test_export.py` has export
def test_a_page_of_the_site_runs_from_top_to_bottom(page, told, workshop, monkeypatch):
    """With few images and one epoch where it says nothing of epochs; what asks for downloads or devices is only read."""
    from limbeck.cli import build, main
    from limbeck.cli.parser import underscored

    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(str(workshop))
    for command, *words in commands(ROOT / f"docs/{page}.md"):
        if command != "limbeck" or words in (["demo"], *OURS):  # `test_demo.py` has that one
            continue
        if any(word.startswith(("cifar", "mnist")) for word in words):
            build(words)[0].parse_args([underscored(word) for word in words])
        else:
            assert main(shortened(words)) == 0, words
    readme, names = (ROOT / "README.md").read_text(), {}
    for text in snippets(ROOT / f"docs/{page}.md", "python"):
        if text not in readme:  # whose snippets have run
            exec(compile(text, f"{page}.md", "exec"), names)


def shortened(words: list[str]) -> list[str]:
    trains = {"train", "distill", "compare"} & set(words)
    few = ["--epochs", "1", *([] if "imagefolder" in words else ["--samples", "200"])]
    once = ["--seeds", "1"] if "compare" in words else []
    return [*words, *(few if trains and "--epochs" not in words else []), *once]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, words
        if words[0].endswith("python"):
            script = ROOT / words[1]
            assert script.exists(), words
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            assert all(f'"{option}"' in script.read_text() for option in options), words
    for target in LINK.findall(page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_one_command_goes_from_nothing_to_the_table(tmp_path, capsys):
    words = f"--teacher mlp-16 --students mlp-4 --data digits --samples 100 --epochs 1 --run-dir {tmp_path}"
    example("compress").main(words.split())
    header, _, *rows = (tmp_path / "table.md").read_text().partition("\n\n")[0].splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| mlp-16", "| mlp-4, plain", "| mlp-4, kd"]
    assert "compression" in header
    assert "compression" in capsys.readouterr().out
    assert (tmp_path / "mlp-4-kd/student.safetensors").exists()


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_the_capacity_gap_is_looked_at_with_an_assistant_and_without(tmp_path, capsys):
    words = "--student mlp-4 --assistant mlp-8 --teachers mlp-8 mlp-16 --data digits --samples 100 --epochs 2 --seeds 1"
    example("capacity_gap").main([*words.split(), "--run-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    for words in ("teacher mlp-16: ", "mlp-8 teaches", "mlp-16 teaches", "mlp-16 through mlp-8"):
        assert words in shown
    table = json.loads((tmp_path / "students/results.json").read_text())
    assert "mlp-8 through mlp-8" not in json.dumps(table)


def test_the_words_of_the_command_line_are_in_the_readme():
    from limbeck.cli import build

    _, commands = build()
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    assert all(re.search(rf"\b{words.split()[0]}\b", text) for words in commands)
