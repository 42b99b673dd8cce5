"""What limbeck can do without: each hint installs the extra for limbeck as it is installed here."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import limbeck
from limbeck.core import extras
from limbeck.core.extras import install, needing

SOURCE = Path(limbeck.__file__).parent


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let limbeck be installed from somewhere else."""

    def set_to(**told: object) -> None:
        monkeypatch.setattr(extras, "_origin", lambda: told)

    return set_to


def test_from_the_index_an_extra_has_its_name(origin: Callable[..., None]) -> None:
    origin()
    assert install("export") == "pip install 'limbeck[export]'"


@pytest.mark.parametrize("name", ["a clone", "it's mine", "ünï 50%"])
def test_of_a_clone_the_folder_is_named_whatever_it_is_called(
    origin: Callable[..., None], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    origin(url=folder.as_uri(), dir_info={"editable": True})
    assert shlex.split(install("train")) == ["pip", "install", "-e", f"{folder}[train]"]
    origin(url=folder.as_uri(), dir_info={})
    assert shlex.split(install("train")) == ["pip", "install", f"{folder}[train]"]
    folder.rmdir()
    assert install("train") == "pip install 'limbeck[train]'"


def test_of_a_wheel_and_of_addresses(origin: Callable[..., None], tmp_path: Path) -> None:
    wheel = tmp_path / "limbeck-0.1.0-py3-none-any.whl"
    wheel.touch()
    origin(url=wheel.as_uri(), archive_info={})
    assert shlex.split(install("tune")) == ["pip", "install", f"{wheel}[tune]"]
    origin(url="https://example.org/limbeck.whl", archive_info={})
    assert install("tune") == "pip install 'limbeck[tune] @ https://example.org/limbeck.whl'"
    origin(url="https://example.org/limbeck", vcs_info={"vcs": "git", "commit_id": "1"})
    assert install("tune") == "pip install 'limbeck[tune] @ git+https://example.org/limbeck'"


def test_where_this_limbeck_comes_from_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    read = importlib.metadata.Distribution.read_text

    def of_a_clone(self: importlib.metadata.Distribution, name: str) -> str | None:
        return json.dumps(told) if name == "direct_url.json" else read(self, name)

    monkeypatch.setattr(importlib.metadata.PathDistribution, "read_text", of_a_clone)
    assert install("init") == f"pip install -e '{tmp_path}[init]'"


def test_source_on_the_path_alone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lacks)
    assert install("hf") == "pip install 'limbeck[hf]'"


def test_what_lacks_is_named_with_its_remedy(origin: Callable[..., None]) -> None:
    origin()
    with (
        pytest.raises(ModuleNotFoundError, match=r"the search needs nosuch: pip install 'limbeck\[tune\]'") as caught,
        needing("tune", "the search"),
    ):
        import nosuch.inner  # noqa: F401
    assert caught.value.name == "nosuch"
    with (
        pytest.raises(ModuleNotFoundError, match=r"^No module named 'limbeck\.nosuch'$"),
        needing("tune", "the search"),
    ):
        import limbeck.nosuch  # noqa: F401
    with pytest.raises(ValueError, match="mine"), needing("tune", "the search"):
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("module", "ask", "words"),
    [
        ("sklearn", lambda: limbeck.data.load("digits"), "the data 'digits' needs sklearn"),
        ("torchvision", lambda: limbeck.zoo.network("torchvision:resnet18"), "torchvision:resnet18 needs torchvision"),
        ("timm", lambda: limbeck.zoo.network("timm:resnet10t"), "timm:resnet10t needs timm"),
    ],
)
def test_doors_say_what_they_lack(
    monkeypatch: pytest.MonkeyPatch, module: str, ask: Callable[[], object], words: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{words}: pip install .*\[(train|timm)\]'"):
        ask()


def test_every_hint_names_an_extra_that_there_is() -> None:
    there = importlib.metadata.metadata("limbeck").get_all("Provides-Extra") or []
    named = {
        (path.name, extra)
        for path in SOURCE.rglob("*.py")
        for extra in re.findall(r"(?:needing\(|install\(|_import\(.*, )['\"](\w+)['\"]", path.read_text())
    }
    assert {"sets.py", "_outside.py", "initialize.py", "export.py"} <= {file for file, _ in named}
    assert {extra for _, extra in named} <= set(there)
    by_hand = [path for path in SOURCE.rglob("*.py") if "pip install 'limbeck[" in path.read_text()]
    assert by_hand == []
