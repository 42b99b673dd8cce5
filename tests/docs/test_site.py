"""The documentation, written as plain Markdown and built by `make docs`: complete, linked, at rest without a network."""

import html
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from latex2mathml.converter import convert
from safetensors.torch import save_file

import limbeck
from limbeck import Method, methods
from limbeck.cli import build as command_line
from limbeck.cli.parser import underscored

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402
from generator import cards, equations, places, reference, writing  # noqa: E402

MATH = re.compile(r"\$\$(.+?)\$\$|(?<!`)\$([^$\n]+)\$", re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    generate.write(folder)
    return folder


@pytest.fixture(scope="module")
def markdown(written):
    """The text of each page that is plain Markdown, by its path in docs/."""
    pages = written / "docs"
    return {path.relative_to(pages).as_posix(): path.read_text() for path in sorted(pages.rglob("*.md"))}


@pytest.fixture(scope="module")
def site(written):
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(written / "mkdocs.yml"), strict=True))  # strict: a warning is an error
    return written / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


# plain Markdown ------------------------------------------------------------------------------------------------------


def test_no_page_asks_for_what_only_our_generator_knows(markdown):
    assert len(markdown) == len(list((ROOT / "docs").rglob("*.md")))
    for name, text in markdown.items():
        told = re.sub(r"`[^`\n]+`", "", FENCED.sub("", text))
        assert not re.search(r"^:::|\{ ?[.#:]\w|\$\$", told, re.MULTILINE), name
        assert "{{" not in text, name  # in code neither: engines with templates would trip
        assert not generate.ASKED.search(text), name
        assert not places.DESCRIBED.search(text), name


def test_no_built_page_shows_what_it_asked_for(site):
    for path in site.rglob("*.html"):
        page = re.sub(r"<script\b.*?</script>", "", path.read_text(), flags=re.DOTALL)
        told = re.sub(r"<(pre|code)\b.*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r":::|\{ ?[.#]\w+ ?\}", told), path.name
        assert "{{" not in page, path.name


def test_every_documented_name_has_its_place(markdown):
    assert len(places.places()) > 150
    for name, place in places.places().items():
        page, _, anchor = place.removeprefix("/").partition("#")
        assert page in markdown, name
        assert not anchor or f'<a id="{anchor}"></a>' in markdown[page], f"{name} is not described on {page}"


def test_every_column_of_a_table_has_a_heading(markdown):
    for name, text in markdown.items():
        for header in re.findall(r"^\|(.+)\|\n\|[ :|-]+\|$", text, re.MULTILINE):
            assert all(cell.strip() for cell in header.split("|")), f"{name}: | {header} |"


def test_headings_go_down_by_one_level(markdown):
    for name, text in markdown.items():
        levels = [len(signs) for signs in re.findall(r"^(#+) ", FENCED.sub("", text), re.MULTILINE)]
        assert levels[0] == 1, name
        assert [(one, next_) for one, next_ in itertools.pairwise(levels) if next_ > one + 1] == [], name


def test_no_folder_is_replaced_that_was_not_written_here(tmp_path):
    (tmp_path / "docs").mkdir()
    with pytest.raises(ValueError, match="was not written by"):
        generate.write(tmp_path)


def test_what_a_page_asks_for_must_exist():
    with pytest.raises(ValueError, match=r"index\.md asks for 'nobody': expected a file"):
        generate.answer("nobody", "index.md")
    with pytest.raises(ValueError, match=r"README\.md has no heading 'Nothing'"):
        generate.answer("README.md: Nothing", "index.md")


def test_links_of_other_files_lead_into_the_documentation():
    assert generate.from_root("docs/results.md") == "/results.md"
    assert generate.from_root("CONTRIBUTING.md") == "/contributing.md"
    assert generate.from_root("https://limbeck.org") == "https://limbeck.org"
    assert (
        generate.relative("[a](/methods/at.md#x) [b](/index.md)", "api") == "[a](../methods/at.md#x) [b](../index.md)"
    )


# methods -------------------------------------------------------------------------------------------------------------


def test_every_method_has_a_page_with_its_equation_and_where_it_fails(markdown):
    for name in methods.__all__:
        text = markdown[f"methods/{name}.md"]
        assert '<div class="equation"><svg' in text, f"docs/methods/{name}.md: where is the equation?"
        for heading in ("Run it", "Where it fails", "Cite it"):
            assert f"\n## {heading}\n" in text, (name, heading)


def test_a_method_without_a_card_is_told_which(monkeypatch):
    monkeypatch.setattr(methods, "__all__", [*methods.__all__, "newest"])
    monkeypatch.setattr(
        cards, "paper_of", lambda name: limbeck.methods.kd and cards.Paper("", "", "", "", 2030, "", "")
    )
    with pytest.raises(FileNotFoundError, match=r"docs/methods/newest\.md is missing"):
        cards.groups()


@pytest.mark.parametrize("head", ["", "---\ngroup: Outptus\n---\n"])
def test_a_card_says_its_group(head, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/kd.md").write_text(f"{head}\n$$\nz\n$$\n")
    monkeypatch.setattr(cards, "SOURCE", tmp_path)
    with pytest.raises(ValueError, match=r"methods/kd\.md: expected its group .* Outputs, Features"):
        cards.card_of("kd")


def test_the_navigation_has_every_method_once(written):
    text = (written / "mkdocs.yml").read_text()
    listed = re.findall(r"methods/(\w+)\.md", text)
    assert sorted(listed) == sorted([*methods.__all__, "index"])
    assert yaml.safe_load(text)["nav"]


def test_the_readmes_table_is_that_of_the_methods():
    readme = (ROOT / "README.md").read_text()
    if generate.with_table(readme) != readme:
        pytest.fail("README's table of methods is stale: run `make readme`", pytrace=False)


def test_the_table_goes_where_the_readme_says():
    before, after = "# limbeck\n\n<!-- methods -->\n", "<!-- /methods -->\n\n## More\n"
    told = generate.with_table(f"{before}\n| old |\n\n{after}")
    assert told == f"{before}\n{cards.method_table()}\n\n{after}"
    assert generate.with_table(told) == told
    with pytest.raises(ValueError, match="where the table of methods goes"):
        generate.with_table("# limbeck\n")


def test_each_method_says_who_teaches_it_in_words_of_its_own(markdown):
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(\w+\.md\) \|(.*) \|$", markdown["methods/index.md"], re.MULTILINE))
    assert rows.keys() == set(methods.__all__)
    assert "via Attention Transfer*, Zagoruyko & Komodakis 2017, [1612.03928]" in rows["at"]
    teachers = {name: rows[name].rpartition("| ")[2] for name in ("dekd", "rekd", "tfkd_reg", "tfkd_self")}
    assert teachers == {
        "dekd": "a badly trained network",
        "rekd": "a weaker network",
        "tfkd_reg": "a virtual network",
        "tfkd_self": "the former self",
    }
    assert rows["weights"] != rows["weights_outputs"]
    assert rows["embedding"] != rows["embedding_table"]


def test_what_is_otherwise_is_of_methods_of_the_file():
    for name in methods.__all__:
        file = sys.modules[getattr(methods, name).__module__]
        for other, fields in getattr(file, "PAPER_OF", {}).items():
            assert getattr(methods, other).__module__ == file.__name__, (name, other)
            assert fields.keys() <= {"matches", "teacher"}, (name, other)


def test_the_command_line_lists_what_the_tables_say(capsys):
    from limbeck.cli import main

    assert main(["list", "methods"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in methods.__all__:
        paper = cards.paper_of(name)
        for words in (paper.title, str(paper.year), paper.matches, paper.teacher):
            assert words in listed[name], (name, words)


def test_options_stand_with_their_defaults(markdown):
    assert "\n| `temperature` | `4.0` | T softens both" in markdown["methods/kd.md"]


def test_what_is_to_be_run_fits_a_page(markdown):
    for name in methods.__all__:
        run = markdown[f"methods/{name}.md"].partition("## Run it\n")[2].partition("\n## ")[0]
        lines = [line for _, code in FENCED.findall(run) for line in code.splitlines()]
        assert lines
        assert [line for line in lines if len(line) > cards.WIDTH] == [], name


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
def test_a_methods_example_builds_it(name, markdown, workshop, parser, monkeypatch):
    """`test_cli.py` trains each; here the page's own words are read, and its Python is run up to the training."""
    monkeypatch.chdir(workshop)
    page = markdown[f"methods/{name}.md"]
    for words in re.findall(r"^```sh\nlimbeck (.*?)```", page, re.MULTILINE | re.DOTALL):
        parser.parse_args([underscored(word) for word in words.replace("\\\n", " ").split()])
    (python,) = re.findall(r"^```python\n(import .*?)```", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(python.partition("result = ")[0], f"{name}.md", "exec"), names)
    method = names["method"]
    assert isinstance(method if isinstance(method, Method) else next(iter(method)).method, Method)


def test_the_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = cards.snippet("ls", cards.card_of("ls")).strip("`").removeprefix("python")
    names = {}
    exec(python.replace('"digits"', '"digits", samples=64').replace("epochs=30", "epochs=1"), names)
    assert 0 <= names["result"].metrics["test/student/accuracy"] <= 1


def test_costs_stand_where_they_were_measured(tmp_path, monkeypatch):
    table = tmp_path / "performance.csv"
    monkeypatch.setattr(cards, "COSTS", table)
    table.write_text("method,setting,time,memory\nat,resnet8 of 64 images,1.10,1.02\n")
    assert "| resnet8 of 64 images | 1.10 | 1.02 |" in cards.costs("at")
    assert cards.costs("sp") == ""


# docstrings and equations --------------------------------------------------------------------------------------------


def test_prose_keeps_formulas_as_they_are_and_links_what_is_documented():
    assert writing.prose("p_t^T of `at`, a*b*c") == "p&#95;t^T of [`at`](/methods/at.md), a&#42;b&#42;c"
    assert writing.prose("``limbeck.Task``") == "[`limbeck.Task`](/api/core.md#limbeck.Task)"
    assert writing.prose("a\n\n===  ====\n`x`  no_t\n===  ====") == "a\n\n```text\n===  ====\n`x`  no_t\n===  ====\n```"


def test_a_description_has_signature_arguments_errors_and_example():
    text = reference.describe("limbeck.with_exits")
    assert text.startswith('### <a id="limbeck.with_exits"></a>limbeck.with&#95;exits\n\n```python\nwith_exits(')
    assert "\n| argument | what it is |\n" in text
    assert "\n| raises | when |\n" in text
    assert "\n```pycon\n>>> " in text


def test_a_class_is_described_with_what_it_has():
    text = reference.describe("limbeck.Score")
    assert "```python\nScore(\n    name: str,\n" in text or "```python\nScore(name: str, " in text
    assert '#### <a id="limbeck.Score.gain"></a>Score.gain' in text
    assert "gain(value: float, other: float) -> float" in text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (
            "def f(a, /, b: int = 1, *, c='x', **d: float) -> str: ...",
            "f(a, /, b: int = 1, *, c='x', **d: float) -> str",
        ),
        ("def f(*a: int, b): ...", "f(*a: int, b)"),
        (
            f"def f({'a' * 40}: int, {'b' * 40}: int) -> int: ...",
            f"f(\n    {'a' * 40}: int,\n    {'b' * 40}: int,\n) -> int",
        ),
        ("class f:\n    def __init__(self, a): ...", "f(a)"),
        ("f: int = 3", "f: int = 3"),
        (f"f = g({'a' * 90})", "f = g(...)"),
    ],
)
def test_signatures_are_as_in_the_source(written, shown, tmp_path):
    import griffe

    (tmp_path / "shown.py").write_text(written)
    module = griffe.load("shown", search_paths=[tmp_path])
    assert reference._signature(module["f"], "f") == shown


def test_a_section_that_the_reference_does_not_know_is_an_error():
    (_, unknown) = reference.read("It is.\n\nSurprise:\n    One.")
    with pytest.raises(ValueError, match="admonition"):
        reference._section(unknown)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_every_equation_can_be_read(page):
    for block, inline in MATH.findall(page.read_text()):
        assert "\\" not in convert(block or inline), f"LaTeX that the drawing does not know: {block or inline}"


def test_an_equation_keeps_its_latex_for_who_cannot_see_it():
    drawn = equations.equation(r"p_s \le |1|", block=False)
    label = re.search(r'aria-label="([^"]*)"', drawn)[1]
    assert html.unescape(label) == r"p_s \le |1|"
    assert not re.search(r"[\\_|*`\[{]", drawn), "a sign that Markdown would read"
    assert "currentColor" in drawn


def test_equations_are_drawn_in_text_and_tables_and_not_in_code():
    text = "| $a$ | b |\n\n`$a$`\n\n```sh\necho $a$b$\n```\n\n$$\nx\n$$\n\nfor 3$ or 4$ more"
    drawn = equations.draw(text)
    assert drawn.count("<svg") == 2
    assert "`$a$`\n\n```sh\necho $a$b$\n```" in drawn
    assert "3$ or 4$" in drawn


# the built site ------------------------------------------------------------------------------------------------------


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


def test_every_page_can_be_searched_also_from_disk(site, pages):
    index = (site / "search/search_index.json").read_text()
    found = {entry["location"].partition("#")[0] or "index.html" for entry in json.loads(index)["docs"]}
    assert {str(path.relative_to(site)) for path in pages} <= found
    assert (site / "search/search_index.js").read_text() == f"var __index = {index}"
    for path, page in pages.items():  # no worker may be started from disk: this stands in for it
        assert any(url.endswith("assets/iframe-worker.js") for url in page.fetched), path.name
