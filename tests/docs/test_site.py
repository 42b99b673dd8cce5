"""The documentation site, built as `make docs` builds it: complete, linked, and at rest without a network."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from latex2mathml.converter import convert
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.utils.meta import get_data
from safetensors.torch import save_file

import limbeck
from limbeck import Method, methods
from limbeck.cli import build as command_line
from limbeck.cli.parser import underscored

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "docs/methods"
MATH = re.compile(r"\$\$(.+?)\$\$|(?<!`)\$([^$\n]+)\$", re.DOTALL)


def made_by_hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = made_by_hooks()


class Page(HTMLParser):
    """What a page links to, what it fetches by itself, and the places in it that others may link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.anchors |= {has[key] for key in ("id", "name") if has.get(key)}
        if tag == "a" and "href" in has:
            self.links.append(has["href"])
        elif tag == "link" and has.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(has["href"])
        self.fetched += [has[key] for key in ("src", "srcset", "data", "action") if has.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # strict: a warning is an error
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_method_has_a_page_with_its_equation_and_where_it_fails(site):
    for name in methods.__all__:
        assert (CARDS / f"{name}.md").exists(), f"docs/methods/{name}.md is missing: the equation, and where it fails"
        text = (site / f"methods/{name}.html").read_text()
        assert 'class="equation"' in text, f"docs/methods/{name}.md: where is the equation?"
        for heading in ("run-it", "where-it-fails", "cite-it"):
            assert f'id="{heading}"' in text, (name, heading)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_every_equation_can_be_read(page):
    for block, inline in MATH.findall(page.read_text()):
        assert "\\" not in convert(block or inline), f"LaTeX that the drawing does not know: {block or inline}"


def test_links_lead_somewhere(site, pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", (path.name, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path.name, link)


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert [(path.name, url) for path, page in pages.items() for url in page.fetched if urlsplit(url).netloc] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_every_page_can_be_searched(site, pages):
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] or "index.html" for entry in index["docs"]}
    assert {str(path.relative_to(site)) for path in pages} <= found


def test_options_stand_with_their_defaults(site):
    text = (site / "methods/kd.html").read_text()
    assert re.search(r"<td><code>temperature</code></td>\s*<td><code>4.0</code></td>\s*<td>T softens both", text)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the networks that the examples name."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("resnet8", "resnet20"):
        (folder / f"runs/{name}").mkdir(parents=True)
        save_file(limbeck.zoo.network(name, 10, (1, 8, 8)).state_dict(), folder / f"runs/{name}/student.safetensors")
    return folder


@pytest.fixture(scope="module")
def parser():
    return command_line()[0]


@pytest.mark.parametrize("name", methods.__all__)
def test_a_methods_example_builds_it(name, workshop, parser, monkeypatch):
    """`test_cli.py` trains each; here the page's own words are read, and its Python is run up to the training."""
    monkeypatch.chdir(workshop)
    card, head = get_data((CARDS / f"{name}.md").read_text())
    page = HOOKS.method_page(name, card, head)
    for words in re.findall(r"^```sh\nlimbeck (.*?)```", page, re.MULTILINE | re.DOTALL):
        parser.parse_args([underscored(word) for word in words.replace("\\\n", " ").split()])
    (python,) = re.findall(r"^```python\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(python.partition("result = ")[0], f"{name}.md", "exec"), names)
    method = names["method"]
    assert isinstance(method if isinstance(method, Method) else next(iter(method)).method, Method)


def test_the_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = HOOKS.snippet("ls", {}).strip("`").removeprefix("python")
    names = {}
    exec(python.replace('"digits"', '"digits", samples=64').replace("epochs=30", "epochs=1"), names)
    assert 0 <= names["result"].metrics["test/student/accuracy"] <= 1


def test_costs_stand_where_they_were_measured(tmp_path, monkeypatch):
    table = tmp_path / "performance.csv"
    monkeypatch.setattr(HOOKS, "COSTS", table)
    assert HOOKS.costs("at") == ""
    table.write_text("method,setting,time,memory\nat,resnet8 of 64 images,1.10,1.02\n")
    assert "| resnet8 of 64 images | 1.10 | 1.02 |" in HOOKS.costs("at")
    assert HOOKS.costs("sp") == ""


def test_prose_keeps_formulas_as_they_are_and_links_methods():
    assert HOOKS.prose("p_t^T of `at`, a*b*c") == "p&#95;t^T of [`at`](at.md), a&#42;b&#42;c"


def test_an_equation_keeps_its_latex_for_who_cannot_see_it():
    drawn = HOOKS.equation(r"p_s \le 1", block=False)
    assert 'aria-label="p_s \\le 1"' in drawn
    assert "currentColor" in drawn
