"""What is said of methods: a page for each, and tables of all.

A method's page is made of its docstrings, its `PAPER` and its signature. Its card, docs/methods/NAME.md, holds what these
cannot: the paper's equation in LaTeX and, under "## Where it fails", what is known of that. A card's head says in which
``group`` the method stands and what is its own in the examples: ``options`` without a default, and ``networks``. What a
step costs is read from docs/performance.csv, where it was measured.
"""

from __future__ import annotations

import csv
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import griffe
import yaml

from generator import SOURCE
from generator.places import home, parts
from generator.reference import describe, read
from generator.writing import fence, plain, prose, sections, table
from limbeck import losses, methods
from limbeck.core.paper import Paper
from limbeck.engine.assemble import GIVEN
from limbeck.methods._papers import paper_of

GROUPS = (
    "Outputs",
    "Features",
    "Weights and embeddings",
    "Gradients",
    "Relations",
    "Other teachers",
    "Baselines and controls",
)
COSTS = SOURCE / "performance.csv"
"""Columns method, setting, time, memory: of a step, relative to `kd`'s in the same setting."""

WIDTH = 78  # of code that a page shows whole at 1,280 pixels
NETWORKS = {
    "student": "resnet8",
    "teacher": "resnet20@runs/resnet20/student.safetensors",
    "assistants": "resnet14",
    "peers": "resnet8",
}
COLUMNS = ("name", "paper", "what is matched", "who teaches")


@dataclass(frozen=True)
class Card:
    """What is written by hand of a method.

    Args:
        group: One of `GROUPS`.
        parts: The text under each heading; under none, "", the equation.
        options: Values, in the examples, of options without a default.
        networks: Of the examples, where the usual ones do not do.
    """

    group: str
    parts: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)


def card_of(name: str) -> Card:
    """Read a method's card."""
    path = SOURCE / f"methods/{name}.md"
    if not path.exists():
        raise FileNotFoundError(f"docs/methods/{name}.md is missing: write the equation, and where {name} fails")
    headed = re.match(r"---\n(.*?)\n---\n(.*)", path.read_text(), re.DOTALL)
    head = yaml.safe_load(headed[1]) if headed else {}
    if head.get("group") not in GROUPS:
        raise ValueError(
            f"docs/methods/{name}.md: expected its group between two lines --- at its head, as group: {GROUPS[0]}; "
            f"got {head.get('group')!r}. The groups are {', '.join(GROUPS)}"
        )
    equation, *rest = re.split(r"^## (.+)\n", headed[2], flags=re.MULTILINE)
    return Card(parts={"": equation, **dict(zip(rest[::2], rest[1::2], strict=True))}, **head)


def groups() -> dict[str, list[str]]:
    """Return the methods of each group, the oldest first."""
    listed = sorted(methods.__all__, key=lambda name: (paper_of(name).year, name))
    of = {name: card_of(name).group for name in listed}
    return {group: [name for name in listed if of[name] == group] for group in GROUPS}


# a method's page -----------------------------------------------------------------------------------------------------


def method_page(name: str) -> str:
    """Return the page of a method."""
    card, paper = card_of(name), paper_of(name)
    title, *paragraphs = text_of_file(name)
    about, _, formula = text_of(name).partition("\n\n")
    return sections(
        f"# `{name}` {heading(title)}\n\n{prose(about)}",
        reference(paragraphs[0], paper) if paragraphs else "",
        card.parts[""],
        sections("In limbeck, with the names of its options:", prose(formula)),
        sections("## Run it", card.parts.get("Run it") or f"{command(name, card)}\n\n{snippet(name, card)}"),
        sections("## Options", options_table(name)),
        sections("## What it costs", costs(name)),
        sections("## Where it fails", card.parts.get("Where it fails", "")),
        sections("## What to know", *map(prose, paragraphs[1:])),
        sections("## Its parts", described_parts(name)),
        sections("## Cite it", fence("bibtex", paper.bibtex())),
    )


def heading(title: str) -> str:
    """Return a title, and of a long one what stands before its colon."""
    return plain(title.rstrip(".") if len(title) <= 60 else title.partition(":")[0])


def text_of_file(name: str) -> list[str]:
    """Return the paragraphs of the docstring of a method's file: its title, the reference, and more."""
    text = inspect.getdoc(sys.modules[getattr(methods, name).__module__]) or ""
    title, *paragraphs = text.split("\n\n")
    return [" ".join(title.split()), *paragraphs]


def text_of(name: str) -> str:
    """Return what a method's docstring says before its sections."""
    return next((section.value for section in told(name) if section.kind.value == "text"), "")


def told(name: str) -> list[griffe.DocstringSection]:
    """Return the sections of a method's docstring."""
    return read(inspect.getdoc(getattr(methods, name)) or "")


def reference(text: str, paper: Paper) -> str:
    """Return the reference, linked."""
    return prose(text).replace(f"arXiv {paper.arxiv}", f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})")


def command(name: str, card: Card) -> str:
    """Return the command that trains by a method."""
    student, *others = [f"--{role} {network}" for role, network in networks_of(name, card).items()]
    options = [f"--{option.replace('_', '-')} {value}" for option, value in card.options.items()]
    return fence("sh", " \\\n    ".join([f"limbeck distill {name} {student}", *others, *options]))


def snippet(name: str, card: Card) -> str:
    """Return the same in Python."""
    networks = networks_of(name, card)
    arguments = [*networks, *(f"{option}={value!r}" for option, value in card.options.items())]
    if "example" in inspect.signature(getattr(methods, name)).parameters:
        arguments.append("example=data.example()")
    shape = ["data.num_classes", "data.shape"]
    lines = [
        "import limbeck\n",
        'data = limbeck.data.load("digits")',
        *(call(role, "limbeck.zoo.network", [f'"{named}"', *shape]) for role, named in networks.items()),
        call("method", f"limbeck.{name}", arguments),
        "result = limbeck.fit(method, data, epochs=30)",
    ]
    return fence("python", "\n".join(lines))


def call(target: str, function: str, arguments: Sequence[str]) -> str:
    """Return an assignment of what a function returns, on one line if it fits a page."""
    line = f"{target} = {function}({', '.join(arguments)})"
    return line if len(line) <= WIDTH else f"{target} = {function}(\n    {', '.join(arguments)}\n)"


def networks_of(name: str, card: Card) -> dict[str, str]:
    """Return the networks that a method takes in the examples."""
    parameters = inspect.signature(getattr(methods, name)).parameters
    return {role: network for role, network in {**NETWORKS, **card.networks}.items() if role in parameters}


def options_table(name: str) -> str:
    """Return a table of a method's options; empty if it has none."""
    described = [one for section in told(name) if section.kind.value == "parameters" for one in section.value]
    words = {one.name: one.description for one in described}
    rows = []
    for option, parameter in inspect.signature(getattr(methods, name)).parameters.items():
        if option not in (*GIVEN, *NETWORKS):
            default = "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            rows.append((f"`{option}`", default, prose(words[option])))
    return table(("option", "default", "what it is, and where the default is from"), rows)


def costs(name: str) -> str:
    """Return what a step was measured to cost relative to `kd`; empty if it was not measured."""
    with COSTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == name]
    cells = [(row["setting"], row["time"], row["memory"]) for row in rows]
    return table(("a step, relative to that of `kd`", "time", "memory"), cells)


def described_parts(name: str) -> str:
    """Return the losses and modules of a method's file, or which page has them."""
    if home(name) != name:
        return f"They stand with [`{home(name)}`](/methods/{home(name)}.md), in the same file."
    return "\n\n".join(map(describe, parts(name)))


# tables --------------------------------------------------------------------------------------------------------------


def method_tables() -> str:
    """Return a table of the methods of each group, each linked to its page."""
    return "\n\n".join(
        f"## {group}\n\n{table(COLUMNS, [row(name, f'[`{name}`](/methods/{name}.md)') for name in names])}"
        for group, names in groups().items()
    )


def method_table() -> str:
    """Return one table of all methods."""
    return table(COLUMNS, [row(name, f"`{name}`") for names in groups().values() for name in names])


def row(name: str, shown: str) -> tuple[str, ...]:
    """Return a method's row, beginning with its name as it is to be shown."""
    paper = paper_of(name)
    where = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.venue
    return shown, f"*{plain(paper.title)}*, {cited(paper)}, {where}", prose(paper.matches), prose(paper.teacher)


def cited(paper: Paper) -> str:
    """Return authors and year as a text cites them: Zagoruyko & Komodakis 2017."""
    surnames = [author.partition(",")[0] for author in paper.authors.split(" and ")]
    short = " & ".join(surnames) if len(surnames) <= 2 else f"{surnames[0]} et al."
    return f"{short} {paper.year}"


def loss_table() -> str:
    """Return a table of all losses, each linked to where it is described."""
    known = {name: inspect.getdoc(loss) or "" for name, loss in vars(losses).items() if not name.startswith("_")}
    about = {name: prose(text.split("\n\n")[0]) for name, text in known.items()}
    return table(("loss", "what it is"), [(prose(f"`limbeck.losses.{name}`"), text) for name, text in about.items()])
