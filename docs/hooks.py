"""What mkdocs leaves to us: a page for each method, equations as drawings, and parts of files that stand elsewhere.

A method's page is made of its docstrings, its `PAPER` and its signature. Its card, docs/methods/NAME.md, holds what these
cannot: the paper's equation in LaTeX and, under "## Where it fails", what is known of that. A card's head tells what is its
own in the examples: ``options`` without a default, and ``networks``. What a step costs is read from docs/performance.csv,
where it was measured.
"""

from __future__ import annotations

import csv
import html
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ziamath
from docstring_parser import parse

from limbeck import losses, methods
from limbeck.core.paper import Paper
from limbeck.engine.assemble import GIVEN, paper_of

ROOT = Path(__file__).parents[1]
COSTS = ROOT / "docs/performance.csv"
"""Columns method, setting, time, memory: of a step, relative to `kd`'s in the same setting."""

EQUATION = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
PART = re.compile(r"^\{\{ ([\w/]+\.md)(?:: (.+?))? \}\}$", re.MULTILINE)
CODE = re.compile(r"``(.+?)``|`([^`]+)`")
EM = 20
ziamath.config.svg2 = False  # a page's equations must not share names of shapes
NETWORKS = {
    "student": "resnet8",
    "teacher": "resnet20@runs/resnet20/student.safetensors",
    "assistants": "resnet14",
    "peers": "resnet8",
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Make a method's page of its card; put tables and parts of other files where they are asked for."""
    folder, _, file = page.file.src_uri.rpartition("/")
    name = file.removesuffix(".md")
    if folder == "methods" and name in methods.__all__:
        return method_page(name, markdown, page.meta)
    markdown = markdown.replace("{{ methods }}", method_table()).replace("{{ losses }}", loss_table())
    return PART.sub(lambda part: part_of(part[1], part[2]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Draw the equations."""
    return EQUATION.sub(lambda found: equation(html.unescape(found[2]), block=found[1] == "div"), content)


def equation(latex: str, *, block: bool) -> str:
    """Return an equation as SVG: the same in every browser and on paper, in the colour and size of the text around it."""
    drawn = ziamath.Latex(" ".join(latex.split()), size=EM, color="currentColor", inline=not block).svg()
    left, top, width, height = map(float, re.search(r'viewBox="([^"]+)"', drawn)[1].split())
    style = f"width:{width / EM:.3f}em;vertical-align:{-(top + height) / EM:.3f}em"
    shapes = drawn.partition(">")[2]
    box = f'viewBox="{left} {top} {width} {height}"'
    svg = f'<svg class="math" role="img" aria-label="{html.escape(latex.strip())}" {box} style="{style}">{shapes}'
    return f'<div class="equation">{svg}</div>' if block else svg


def part_of(file: str, heading: str | None) -> str:
    """Return a file of the repository, or what stands under one of its headings, with links as from docs/."""
    text = (ROOT / file).read_text()
    if heading:
        text = re.split(rf"^##? {re.escape(heading)}\n", text, flags=re.MULTILINE)[1].partition("\n## ")[0]
    return text.replace("](docs/", "](").strip()


# a method's page -----------------------------------------------------------------------------------------------------


def method_page(name: str, card: str, head: Mapping[str, Any]) -> str:
    """Return the page of a method.

    Args:
        name: The method.
        card: Its card: the equation, "## Where it fails", and "## Run it" where the usual example does not do.
        head: Of the card: `options`, values of those without a default, and `networks`, where the usual ones do not do.
    """
    function = getattr(methods, name)
    about = parse(inspect.getdoc(function) or "")
    title, *paragraphs = (inspect.getdoc(sys.modules[function.__module__]) or "").split("\n\n")
    own = card_of(card)
    return sections(
        f"# `{name}` {title.rstrip('.')}\n\n{prose(about.short_description)}\n{{ .lead }}",
        reference(paragraphs[0], paper_of(name)) if paragraphs else "",
        own[""],
        sections("In limbeck, with the names of its options:", prose(about.long_description)),
        sections("## Run it", own.get("Run it") or f"{command(name, head)}\n\n{snippet(name, head)}"),
        sections("## Options", options_table(name)),
        sections("## What it costs", costs(name)),
        sections("## Where it fails", own.get("Where it fails", "")),
        sections("## What to know", *map(prose, paragraphs[1:])),
        sections("## Its parts", parts(name)),
        sections("## Cite it", f"```bibtex\n{paper_of(name).bibtex()}\n```"),
    )


def card_of(text: str) -> dict[str, str]:
    """Return what a card says: the equation under no heading, the rest under its own."""
    equation, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"": equation, **dict(zip(parts[::2], parts[1::2], strict=True))}


def sections(first: str, *rest: str) -> str:
    """Join paragraphs; nothing, if nothing follows the first."""
    there = [text.strip() for text in rest if text and text.strip()]
    return "\n\n".join([first.strip(), *there]) if there else ""


def reference(text: str, paper: Paper) -> str:
    """Return the reference, linked."""
    linked = prose(text)
    if paper.arxiv:
        linked = linked.replace(f"arXiv {paper.arxiv}", f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})")
    return f"{linked}\n{{ .reference }}"


def command(name: str, head: Mapping[str, Any]) -> str:
    """Return the command that trains by a method."""
    student, *others = [f"--{role} {network}" for role, network in networks_of(name, head).items()]
    options = [f"--{option.replace('_', '-')} {value}" for option, value in head.get("options", {}).items()]
    lines = " \\\n    ".join([f"limbeck distill {name} {student}", *others, *options])
    return f"```sh\n{lines}\n```"


def snippet(name: str, head: Mapping[str, Any]) -> str:
    """Return the same in Python."""
    network = "{} = limbeck.zoo.network({!r}, *shape)".format
    networks = networks_of(name, head)
    arguments = [*networks, *(f"{option}={value!r}" for option, value in head.get("options", {}).items())]
    if "example" in inspect.signature(getattr(methods, name)).parameters:
        arguments.append("example=data.example()")
    lines = [
        "import limbeck\n",
        'data = limbeck.data.load("digits")',
        "shape = data.num_classes, data.shape",
        *(network(role, named) for role, named in networks.items()),
        f"method = limbeck.{name}({', '.join(arguments)})",
        "result = limbeck.fit(method, data, epochs=30)",
    ]
    return "```python\n" + "\n".join(lines).replace("'", '"') + "\n```"


def networks_of(name: str, head: Mapping[str, Any]) -> dict[str, str]:
    """Return the networks that a method takes in the examples."""
    parameters = inspect.signature(getattr(methods, name)).parameters
    return {role: network for role, network in (NETWORKS | head.get("networks", {})).items() if role in parameters}


def options_table(name: str) -> str:
    """Return a table of a method's options; empty if it has none."""
    function = getattr(methods, name)
    told = {param.arg_name: param.description or "" for param in parse(inspect.getdoc(function) or "").params}
    rows = []
    for option, parameter in inspect.signature(function).parameters.items():
        if option not in (*GIVEN, *NETWORKS):
            default = "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            rows.append((f"`{option}`", default, prose(told[option])))
    return table("option | default | what it is, and where the default is from", rows)


def costs(name: str) -> str:
    """Return what a step was measured to cost relative to `kd`; empty if it was not measured."""
    if not COSTS.exists():
        return ""
    with COSTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == name]
    cells = [(row["setting"], row["time"], row["memory"]) for row in rows]
    return table("a step, relative to that of `kd` | time | memory", cells)


def parts(name: str) -> str:
    """Return the losses and modules of a method's file, losses by their public names."""
    module = sys.modules[getattr(methods, name).__module__]
    first = next(other for other in methods.__all__ if getattr(methods, other).__module__ == module.__name__)
    if first != name:
        return f"They stand with [`{first}`]({first}.md), in the same file."
    public = {id(loss): f"limbeck.losses.{known}" for known, loss in vars(losses).items() if callable(loss)}
    paths = []
    for own, value in vars(module).items():
        ours = getattr(value, "__module__", None) == module.__name__ and own not in methods.__all__
        if ours and (id(value) in public or (own[0] != "_" and "\nArgs:" in (inspect.getdoc(value) or ""))):
            paths.append(public.get(id(value), f"{module.__name__}.{own}"))
    return "\n\n".join(f"::: {path}" for path in dict.fromkeys(paths))


# tables --------------------------------------------------------------------------------------------------------------


def method_table() -> str:
    """Return a table of all methods."""
    rows = []
    for name in methods.__all__:
        paper = paper_of(name)
        where = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.venue
        rows.append((f"[`{name}`]({name}.md)", f"{paper.year}, {where}", paper.matches, paper.teacher))
    return table("name | paper | what is matched | who teaches", rows)


def loss_table() -> str:
    """Return a table of all losses, each linked to where it is described."""
    known = {name: loss for name, loss in vars(losses).items() if not name.startswith("_")}
    about = {name: parse(inspect.getdoc(loss) or "").short_description for name, loss in known.items()}
    return table("loss | what it is", [(f"[`{name}`][limbeck.losses.{name}]", prose(about[name])) for name in known])


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; nothing, if it has no rows."""
    rule = "|".join(["---"] * (header.count("|") + 1))
    lines = [" | ".join(" ".join(cell.replace("|", "&#124;").split()) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in [header, rule, *lines]) if rows else ""


# docstrings ----------------------------------------------------------------------------------------------------------


def prose(text: str | None) -> str:
    """Return a docstring's text as Markdown: its formulas as they are, its code as code, linked where it has a page."""
    pieces = CODE.split(text or "")
    plain, codes = pieces[::3], [double or single for double, single in zip(pieces[1::3], pieces[2::3], strict=True)]
    marked = [re.sub(r"[\\*_<>\[\]]", lambda sign: f"&#{ord(sign[0])};", piece) for piece in plain]
    return marked[0] + "".join(linked(code) + after for code, after in zip(codes, marked[1:], strict=True))


def linked(code: str) -> str:
    """Return code, linked if it is a method."""
    return f"[`{code}`]({code}.md)" if code in methods.__all__ else f"`{code}`"
