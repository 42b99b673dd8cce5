"""What is published: the wheel has the library and nothing else, the sdist what `make test` needs."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Both, built by hatchling as `python -m build` does, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def kept(folder: Path) -> set[str]:
    """The files of a folder, less what running leaves behind."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_is_the_library_and_nothing_else(wheel):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {f"src/{name}" for name in files} == kept(SOURCE)
    assert {"limbeck/py.typed", "limbeck/__init__.pyi", "limbeck/report/page.html.j2"} <= files
    assert {Path(name).suffix for name in files} == {".py", ".pyi", ".typed", ".j2"}
    (licence,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_has_what_tests_and_documentation_need(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert kept(SOURCE) | kept(ROOT / "tests") | kept(ROOT / "docs") | kept(ROOT / "examples") <= files
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml"} <= files
    tops = {name.partition("/")[0] for name in files if "/" in name}
    assert tops == {"src", "tests", "docs", "examples", "bench"}


def test_what_the_index_shows_is_true(metadata):
    assert metadata["Name"] == "limbeck"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    known = set(metadata.get_all("Classifier"))
    assert "Typing :: Typed" in known
    assert not [one for one in known if one.startswith("License ::")]  # the expression says it
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in known


def test_extras_are_found_by_name_and_none_is_empty(metadata):
    asked = metadata.get_all("Requires-Dist")
    extras = {"train", "timm", "hf", "init", "tune", "export", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    for extra in extras:
        assert any(re.search(rf"extra == ['\"]{extra}['\"]", one) for one in asked)
    needed = {re.split(r"[^\w-]", one)[0] for one in asked if "extra ==" not in one}
    assert needed == {"torch", "lazy-loader"}


def test_install_hints_name_extras_that_exist(metadata):
    """In the documents and in what the library says."""
    extras = set(metadata.get_all("Provides-Extra"))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *SOURCE.rglob("*.py")]
    for page in pages:
        for hint in re.findall(r"(?:limbeck|\.)\[([a-z][a-z, ]*)\]['\"]?", page.read_text()):
            asked = {one.strip() for one in hint.split(",")}
            assert asked <= extras or asked == {"extra"}, f"{page.name}: pip install 'limbeck[{hint}]'"


def test_the_command_and_the_version_are_those_of_the_changelog(wheel, metadata):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "limbeck = limbeck.cli:main" in wheel.read(name).decode()
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert metadata["Version"] == released[0]
