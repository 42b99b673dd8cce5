"""The house of design section 2: which file may import what, and what every public name owes its reader."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import limbeck
from limbeck import losses, methods
from limbeck.paper import Paper

HOUSE = Path(limbeck.__file__).parent
CORE = [
    "trace",
    "objective",
    "numerics",
    "distributed",
    "paper",
    "frozen",
    "task",
    "method",
    "stage",
    "layers",
    "inherit",
]
METHODS = sorted(path for path in (HOUSE / "methods").glob("*.py") if path.stem != "__init__")
LIGHT = [HOUSE / f"{name}.py" for name in [*CORE, "losses"]] + METHODS + sorted((HOUSE / "nets").glob("*.py"))
OUTER = ("engine", "data", "cli", "compare", "check", "export", "measure", "report", "bench")
PUBLIC = {
    f"{face.__name__}.{name}": thing
    for face in (limbeck, losses)
    for name, thing in vars(face).items()
    if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "").startswith("limbeck")
}


def imports(path: Path, *, anywhere: bool = False) -> set[str]:
    """What a file imports as it is loaded: not under TYPE_CHECKING and, unless ``anywhere``, not inside functions."""

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
            elif anywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(ast.iter_child_nodes(node))

    return set(walk(ast.parse(path.read_text()).body))


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path, anywhere=True) if name.startswith("limbeck.")}


def name_of(path: Path) -> str:
    return str(path.relative_to(HOUSE))


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_core_and_methods_import_torch_and_nothing_else(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "limbeck"}


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_core_and_methods_never_import_what_is_built_on_them(path):
    assert ours(path).isdisjoint(OUTER)


@pytest.mark.parametrize("path", [HOUSE / f"{name}.py" for name in CORE], ids=name_of)
def test_the_core_knows_no_method(path):
    assert ours(path).isdisjoint({"methods", "losses", "nets", "zoo"})


def test_the_core_is_a_ladder():
    """Each file of the core imports only files before it."""
    order = {name: set(CORE[:index]) for index, name in enumerate(CORE)}
    for name, before in order.items():
        assert ours(HOUSE / f"{name}.py") <= before, name


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_methods_file_has_a_docstring_with_its_source_and_a_paper(path):
    module = importlib.import_module(f"limbeck.methods.{path.stem}")
    assert isinstance(module.PAPER, Paper)
    assert module.__doc__
    if module.PAPER.arxiv:
        assert module.PAPER.arxiv in module.__doc__
        assert re.fullmatch(r"\d{4}\.\d{4,5}", module.PAPER.arxiv)
    elif module.PAPER.teacher != "nobody":
        assert module.PAPER.venue in module.__doc__


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_methods_file_assembles_the_method_of_its_name(path):
    """One method, or where a paper has several, each with the file's name before its own; Tf-KD's controls have names."""
    module = f"limbeck.methods.{path.stem}"
    assembled = [name for name in methods.__all__ if getattr(limbeck, name).__module__ == module]
    assert assembled
    controls = {"rekd", "dekd"} if path.stem == "tfkd" else set()
    assert all(name == path.stem or name.startswith(f"{path.stem}_") for name in {*assembled} - controls)


@pytest.mark.parametrize("name", methods.__all__)
def test_a_methods_options_are_keywords_with_documented_defaults(name):
    method = getattr(limbeck, name)
    signature = inspect.signature(method)
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[0] == "student"
    assert positional[1:] in ([], ["teacher"], ["peers"], ["teacher", "assistants"])
    for option in signature.parameters:
        assert re.search(rf"^ +{option}: ", inspect.getdoc(method), re.MULTILINE), option


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_pure_losses_are_exported(path):
    """A public function of tensors that gives one tensor and compares a student is a loss."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.args.args:
            first = node.args.args[0]
            if first.arg.startswith("student") and "Tensor" in ast.unparse(first.annotation):
                loss = getattr(importlib.import_module(f"limbeck.methods.{path.stem}"), node.name)
                assert loss in vars(losses).values(), f"limbeck.losses lacks {node.name}"


@pytest.mark.parametrize("name", [name for name in vars(losses) if not name.startswith("_")])
def test_losses_take_the_student_first_the_teacher_second_then_targets(name):
    loss = getattr(losses, name)
    parameters = list(inspect.signature(loss).parameters)
    assert parameters[0].startswith("student")
    assert parameters[1].startswith(("teacher", "targets", "inputs"))
    assert inspect.isfunction(loss)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings_and_types(name):
    thing = PUBLIC[name]
    assert thing.__doc__
    assert thing.__doc__.strip()
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
        assert not untyped
        assert signature.return_annotation is not inspect.Signature.empty
    if inspect.isclass(thing):
        for key, value in vars(thing).items():
            if isinstance(value, (types.FunctionType, property)) and not key.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{key} has no docstring"


def test_import_is_light():
    heavy = [
        "lightning",
        "torchvision",
        "sklearn",
        "torchmetrics",
        "matplotlib",
        "pyarrow",
        "timm",
        "jsonargparse",
        "optuna",
        "rich",
    ]
    code = f"import sys, limbeck; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
