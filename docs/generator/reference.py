"""Descriptions of functions and classes, made of their source: signature and docstring."""

from __future__ import annotations

import re
from functools import cache

import griffe

from generator import ROOT
from generator.writing import fence, plain, prose, sections, table

WIDTH = 76
STARS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
LISTED = {"raises": "Raises", "warns": "Warns"}
TOLD = {"returns": "Returns", "yields": "Yields"}


def describe(path: str) -> str:
    """Return the description of a name of limbeck, and of what a class has, each with a place to link to."""
    thing = _found(path)
    name = path.rpartition(".")[2]
    of_class = [_entry(one, f"{path}.{member}", f"{name}.{member}", 4) for member, one in _members(thing).items()]
    return "\n\n".join([_entry(thing, path, path, 3), *of_class])


def _entry(thing: griffe.Object, path: str, title: str, level: int) -> str:
    heading = f'{"#" * level} <a id="{path}"></a>{plain(title)}'
    return sections(heading, fence("python", _signature(thing, path.rpartition(".")[2])), *_docstring(thing))


@cache
def _library() -> griffe.ModulesCollection:
    loader = griffe.GriffeLoader(search_paths=[ROOT / "src"])
    loader.load("limbeck")
    loader.resolve_aliases(external=False)
    return loader.modules_collection


def _found(path: str) -> griffe.Object:
    thing = _library()[path]
    while (
        thing.is_alias or thing.is_module
    ):  # a file is meant as what it has of its own name, as Python's imports have it
        thing = thing.final_target if thing.is_alias else thing.members[thing.name]
    return thing


def _members(thing: griffe.Object) -> dict[str, griffe.Object]:
    """Return what a class has of its own that its source describes."""
    return {name: one for name, one in thing.members.items() if thing.is_class and name[0] != "_" and one.docstring}


# signatures ----------------------------------------------------------------------------------------------------------


def _signature(thing: griffe.Object, name: str) -> str:
    if thing.is_attribute:
        typed = name + (f": {thing.annotation}" if thing.annotation else "")
        line = f"{typed} = {thing.value}" if thing.value else typed
        return line if len(line) <= WIDTH else f"{typed} = {str(thing.value).partition('(')[0]}(...)"
    kind = next((f"@{kind}\n" for kind in ("classmethod", "staticmethod") if kind in thing.labels), "")
    after = f" -> {thing.returns}" if thing.is_function and thing.returns else ""
    taken = _parameters(thing)
    line = f"{name}({', '.join(taken)}){after}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in taken) + f"){after}"
    return kind + line


def _parameters(thing: griffe.Class | griffe.Function) -> list[str]:
    kinds = griffe.ParameterKind
    taken, before = [], None
    for number, one in enumerate(thing.parameters):
        if number == 0 and one.name in ("self", "cls"):
            continue
        if before is kinds.positional_only and one.kind is not before:
            taken.append("/")
        if one.kind is kinds.keyword_only and before not in (kinds.keyword_only, kinds.var_positional):
            taken.append("*")
        annotation = f": {one.annotation}" if one.annotation else ""
        equals = " = " if annotation else "="
        default = "" if one.default is None or one.kind in STARS else f"{equals}{one.default}"
        taken.append(STARS.get(one.kind, "") + one.name + annotation + default)
        before = one.kind
    return taken


# docstrings ----------------------------------------------------------------------------------------------------------


def read(text: str) -> list[griffe.DocstringSection]:
    """Return the sections of a docstring: ``Example:`` has doctests, as griffe knows them of ``Examples:``."""
    docstring = griffe.Docstring(re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE))
    options = {"warnings": False, "returns_named_value": False, "returns_multiple_items": False}
    return docstring.parse("google", **options)


def _docstring(thing: griffe.Object) -> list[str]:
    """Return what is said of a thing; where that is nothing, what is said of the file of its name, as of a task's."""
    of_file = thing.parent.docstring if thing.parent and thing.parent.name == thing.name else None
    said = thing.docstring or of_file
    return [_section(section) for section in read(said.value)] if said else []


def _section(section: griffe.DocstringSection) -> str:
    kind, value = section.kind.value, section.value
    if kind == "text":
        return prose(value)
    if kind == "parameters":
        return table(["argument", "what it is"], [(f"`{one.name}`", prose(one.description)) for one in value])
    if kind in TOLD:
        (one,) = value
        told = f"{one.annotation}: {one.description}" if one.annotation else one.description  # a colon is no type here
        return f"**{TOLD[kind]}:** {prose(told)}"
    if kind in LISTED:
        return table([LISTED[kind].lower(), "when"], [(f"`{one.annotation}`", prose(one.description)) for one in value])
    if kind == "examples":
        return "\n\n".join(prose(text) if part.value == "text" else fence("pycon", text) for part, text in value)
    raise ValueError(f"a docstring has a section that the reference does not know, {kind}: {value!r}")
