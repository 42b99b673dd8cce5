"""Writes the documentation as plain Markdown, which any engine builds, and the table of methods of README.md.

The pages of docs/ may ask for more than they say. A line ``{{ methods }}`` or ``{{ losses }}`` is a table,
``{{ FILE.md }}`` a file of the repository, ``{{ FILE.md: Heading }}`` what stands there under a heading, and
``::: limbeck.NAME`` what its docstring says. LaTeX stands between dollars, and a card in docs/methods/ becomes the page
of its method. Of all that nothing is left in what is written here.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from generator import ROOT, SOURCE, cards
from generator.equations import draw
from generator.places import DESCRIBED
from generator.reference import describe

from limbeck import methods

ASSETS = {".png", ".svg", ".css", ".js", ".csv"}
ASKED = re.compile(r"^\{\{ (.+?) \}\}$", re.MULTILINE)
TABLES = {"methods": cards.method_tables, "losses": cards.loss_table}
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root, and the pages that have their text."""

MARKED = re.compile(r"(<!-- methods[^>]*-->\n).*?(<!-- /methods -->)", re.DOTALL)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Write the documentation as plain Markdown, or README's table of methods."
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("folder", type=Path, nargs="?", help="gets docs/, the pages, and mkdocs.yml, which builds them")
    asked.add_argument("--readme", action="store_true", help="write the table of methods of README.md")
    arguments = parser.parse_args()
    if arguments.readme:
        readme = ROOT / "README.md"
        readme.write_text(with_table(readme.read_text()))
    else:
        write(arguments.folder)


def write(folder: Path) -> None:
    """Write all pages into ``docs/`` of a folder, and ``mkdocs.yml`` beside it.

    Raises:
        ValueError: The folder has a ``docs/`` that was not written here.
    """
    pages, settings = folder / "docs", folder / "mkdocs.yml"
    if pages.exists() and not settings.exists():
        raise ValueError(f"{pages} was not written by docs/generate.py, which would replace it: give another folder")
    shutil.rmtree(pages, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(
        yaml.safe_dump(with_methods(yaml.safe_load((SOURCE / "mkdocs.yml").read_text())), sort_keys=False)
    )
    for source in sorted(SOURCE.rglob("*")):
        target = pages / source.relative_to(SOURCE)
        if source.suffix == ".md" or source.suffix in ASSETS:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                target.write_text(page(source.relative_to(SOURCE).as_posix(), source.read_text()))
            else:
                shutil.copy(source, target)


def page(name: str, text: str) -> str:
    """Return a page as plain Markdown.

    Args:
        name: Its path in docs/.
        text: What stands there.
    """
    folder, _, file = name.rpartition("/")
    method = file.removesuffix(".md")
    if folder == "methods" and method in methods.__all__:
        text = cards.method_page(method) + "\n"
    text = ASKED.sub(lambda found: answer(found[1], name), text)
    return relative(draw(DESCRIBED.sub(lambda found: describe(found[1]), text)), folder)


def answer(asked: str, page: str) -> str:
    """Return what a page asks for: a table, a file of the repository, or what stands there under a heading."""
    if asked in TABLES:
        return TABLES[asked]()
    file, _, heading = asked.partition(": ")
    if not (ROOT / file).is_file():
        raise ValueError(f"docs/{page} asks for {asked!r}: expected a file or one of {', '.join(TABLES)}")
    text = (ROOT / file).read_text()
    if heading:
        _, *under = re.split(rf"^##? {re.escape(heading)}\n", text, flags=re.MULTILINE)
        if not under:
            raise ValueError(f"docs/{page} asks for {asked!r}, but {file} has no heading {heading!r}")
        text = under[0].partition("\n## ")[0]
    return re.sub(r"\]\(([^)#]+)", lambda link: f"]({from_root(link[1])}", text).strip()


def from_root(target: str) -> str:
    """Return where a link in a file of the repository's root leads to in the documentation."""
    inside = ELSEWHERE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else "")
    return f"/{inside}" if inside else target


def relative(text: str, folder: str) -> str:
    """Return a page of this folder with links relative to it that were written as from the root of the documentation."""
    return re.sub(r"\]\(/([^)#]*)", lambda link: f"]({posixpath.relpath(link[1], folder or '.')}", text)


def with_methods(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with all methods in their navigation."""
    (listed,) = [entry["Methods"] for entry in settings["nav"] if "Methods" in entry]
    listed += [{group: [{name: f"methods/{name}.md"} for name in names]} for group, names in cards.groups().items()]
    return settings


def with_table(readme: str) -> str:
    """Return README.md with the table of methods as it ought to be.

    Raises:
        ValueError: It does not say where.
    """
    if not MARKED.search(readme):
        raise ValueError("README.md does not say where the table of methods goes: <!-- methods -->, <!-- /methods -->")
    return MARKED.sub(lambda found: f"{found[1]}\n{cards.method_table()}\n\n{found[2]}", readme)


if __name__ == "__main__":
    main()
