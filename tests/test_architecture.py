"""The house (docs/house.md): which room may import what, and what every public name owes its reader."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import limbeck
from contract import ROWS
from limbeck import losses, methods
from limbeck.core.options import ranges_of, refuse_outside
from limbeck.core.paper import Paper

HOUSE = Path(limbeck.__file__).parent
ROOMS = ["core", "tasks", "nets", "methods", "zoo", "data", "measure", "report", "engine", "verbs", "cli"]
"""In their order: a room imports only rooms before it."""
FACES = {"__init__.py", "__init__.pyi", "losses.py"}
"""What stands beside the rooms: `limbeck` and `limbeck.losses`, names alone."""
CORE = [
    "quiet",
    "digits",
    "heard",
    "extras",
    "digits",
    "heard",
    "copied",
    "wrapped",
    "sound",
    "options",
    "files",
    "distributed",
    "trace",
    "objective",
    "numerics",
    "paper",
    "frozen",
    "exhibits",
    "finding",
    "batches",
    "task",
    "method",
    "stage",
    "layers",
    "compiled",
]
"""The core's files, in their order: each imports only files before it."""
METHODS = sorted(path for path in (HOUSE / "methods").glob("*.py") if not path.stem.startswith("_"))
TASKS = sorted(path for path in (HOUSE / "tasks").glob("*.py"))
METERS = HOUSE / "tasks" / "meters.py"  # builds on torchmetrics, and is imported when something is measured
LIGHT = [path for room in ("core", "tasks", "nets", "methods") for path in sorted((HOUSE / room).rglob("*.py"))]
LIGHT = [path for path in [*LIGHT, HOUSE / "losses.py"] if path != METERS]
PUBLIC = {
    f"{face.__name__}.{name}": thing
    for face in (limbeck, losses)
    for name in dir(face)
    if not name.startswith("_")
    and callable(thing := getattr(face, name))
    and getattr(thing, "__module__", "").startswith("limbeck")
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


def name_of(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def rooms_of(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever it does so."""
    return {name.split(".")[1] for name in imports(path, anywhere=True) if name.startswith("limbeck.")}


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_what_a_loop_of_ones_own_needs_imports_torch_and_nothing_else(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "limbeck", "lazy_loader"}


def test_the_house_has_these_rooms_and_no_other():
    seen = {path.name for path in HOUSE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert seen == {*ROOMS, *FACES}


@pytest.mark.parametrize("path", sorted(path for room in ROOMS for path in (HOUSE / room).rglob("*.py")), ids=name_of)
def test_a_room_is_built_on_those_before_it(path):
    """One file looks ahead: a task's defaults are those of classification, which is built on the file."""
    room = name_of(path).split("/")[0]
    ahead = {"tasks"} if path == HOUSE / "core" / "task.py" else set()
    assert rooms_of(path) <= {*ROOMS[: ROOMS.index(room) + 1], *ahead}


def test_verbs_bear_the_names_of_functions_and_commands():
    """What a user asks for is found by the name that he knows."""
    shared = {"runs", "doubts", "journal"}  # by compare and tune
    named = {path.stem for path in (HOUSE / "verbs").iterdir() if not path.name.startswith("__")} - shared
    # the demo has no function, and a cache has two: build_cache and verify_cache
    assert {name for name in named if not hasattr(limbeck, name)} == {"cache", "demo"}
    commands = {path.stem for path in (HOUSE / "cli").glob("*.py")}
    assert named <= commands


def test_the_core_is_a_ladder():
    """Each of its files imports only files before it."""
    assert {path.stem for path in (HOUSE / "core").glob("*.py")} == {*CORE, "__init__"}
    for index, name in enumerate(CORE):
        names = imports(HOUSE / "core" / f"{name}.py", anywhere=True)
        assert {one.split(".")[2] for one in names if one.startswith("limbeck.core.")} <= {*CORE[:index]}, name


def test_a_task_looks_up_classification_alone_and_late():
    """Its defaults are those of a file that is built on it."""
    path = HOUSE / "core" / "task.py"
    assert not any(name.startswith("limbeck.tasks") for name in imports(path))
    late = {name for name in imports(path, anywhere=True) if name.startswith("limbeck.tasks")}
    assert late == {"limbeck.tasks.classification.classification"}


def test_no_task_is_built_on_another():
    """The meters alone know some: regression's targets may be narrower than answers, and segmentation's answers coarser."""
    files = [path for path in TASKS if path.stem != "__init__"]
    built = {(path.stem, name.split(".")[2]) for path in files for name in imports(path) if "limbeck.tasks." in name}
    assert built == {("meters", "regression"), ("meters", "segmentation")}


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


def fail(sentences: list[str]) -> None:
    """Say what lacks, and nothing else."""
    if sentences:
        pytest.fail("; ".join(sentences), pytrace=False)


def assembled_in(path: Path) -> list[str]:
    """The methods that a file assembles."""
    module = importlib.import_module(f"limbeck.methods.{path.stem}")
    return [name for name in methods.__all__ if getattr(methods, name).__module__ == module.__name__]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_has_its_names_its_row_and_its_tests(path):
    """What `CONTRIBUTING.md` asks for, of each method; `tests/docs` sees to its card and to the README's table."""
    tests, rows = Path(__file__).parent / "methods" / f"test_{path.stem}.py", {row.partition(",")[0] for row in ROWS}
    named, tested = assembled_in(path), tests.read_text() if tests.exists() else ""
    fail(
        [f"{path.stem} has no line in src/limbeck/methods/__init__.pyi"] * (not named)
        + [f"{name} has no line in src/limbeck/__init__.pyi" for name in named if name not in dir(limbeck)]
        + [f"{name} has no row in tests/contract.py ROWS" for name in named if name not in rows]
        + [f"{path.stem} has no tests/methods/{tests.name}"] * (not tests.exists())
        + [
            f"{name} is in no test of tests/methods/{tests.name}"
            for name in named
            if tested and not names(tested, name)
        ]
    )


def names(text: str, method: str) -> bool:
    """Whether a file of tests speaks of a method, as `limbeck.NAME` or `NAME(`."""
    return re.search(rf"\b(limbeck\.{method}\b|{method}\()", text) is not None


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_methods_file_assembles_the_method_of_its_name(path):
    """One method, or where a paper has several, each with the file's name before its own; Tf-KD's controls have names."""
    assembled = assembled_in(path)
    controls = {"rekd", "dekd"} if path.stem == "tfkd" else set()
    assert all(name == path.stem or name.startswith(f"{path.stem}_") for name in {*assembled} - controls)


@pytest.mark.parametrize("name", methods.__all__)
def test_a_methods_options_are_keywords_with_documented_defaults(name):
    method = getattr(methods, name)
    signature = inspect.signature(method)
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[0] == "student"
    assert positional[1:] in ([], ["teacher"], ["peers"], ["teacher", "assistants"])
    for option in signature.parameters:
        assert re.search(rf"^ +{option}: ", inspect.getdoc(method), re.MULTILINE), option


def numbers(parameter: inspect.Parameter) -> bool:
    """Whether an option is a number, or some."""
    return re.search(r"\b(int|float)\b", str(parameter.annotation)) is not None


@pytest.mark.parametrize("name", methods.__all__)
def test_a_methods_numbers_have_ranges_that_hold(name):
    """Each docstring says what a number may be, before the semicolon, and the function refuses the rest by that name."""
    method, ranges = getattr(methods, name), ranges_of(getattr(methods, name))
    options = {key: one for key, one in inspect.signature(method).parameters.items() if numbers(one)}
    assert set(options) - set(ranges) <= {"memory"}  # which layers or samples, in lists
    for key, allowed in ranges.items():
        default = options[key].default
        refuse_outside(key, default, allowed)
        below: Any = (float if "float" in str(options[key].annotation) else int)(allowed.low - 1)
        several = "tuple" in str(options[key].annotation)
        with pytest.raises(ValueError, match=rf"^{key} must be {re.escape(allowed.words)}, got"):
            method(nn.Linear(2, 2), **{key: (below, below) if several else below})


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_pure_losses_are_exported(path):
    """A public function of tensors that gives one tensor and compares a student is a loss."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.args.args:
            first = node.args.args[0]
            if first.arg.startswith("student") and "Tensor" in ast.unparse(first.annotation):
                loss = getattr(importlib.import_module(f"limbeck.methods.{path.stem}"), node.name)
                fail([f"{node.name} has no line in src/limbeck/losses.py"] * (loss not in vars(losses).values()))


@pytest.mark.parametrize("name", [name for name in dir(losses) if not name.startswith("_")])
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OF_CLASSES = {
    "cli/evaluate.py": "the option of exits",
    "cli/evaluation.py": "classification's own measures: exits, each class",
    "cli/options.py": "a network is looked for by making it, of any number of classes",
    "cli/parser.py": "adversarial's option",
    "core/finding.py": "what is said of a teacher",
    "core/sound.py": "how a network is made, for who gave its name",
    "core/task.py": "the default score",
    "data/sets.py": "num_classes, the older name of outputs",
    "engine/named.py": "how a network is made, for who gave its name",
    "measure/early_exit.py": "exits of a classifier",
    "methods/adversarial.py": "a critic that names classes",
    "nets/critic.py": "the same",
    "nets/estimator.py": "classes of a model of scikit-learn",
    "report/comparison.py": "folders of older versions",
    "report/mimic.py": "the page of `limbeck mimic`",
    "report/run.py": "exits of a classifier",
    "report/table.py": "folders of older versions",
    "verbs/tune.py": "folders of older versions",
}
"""Where code may speak of accuracy or of a number of classes, and why; tasks/, zoo/ and verbs/mimic.py may."""


def spoken(path: Path) -> set[str]:
    """The names and texts of a file's code, without its docstrings."""
    tree = ast.parse(path.read_text())
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    prose = {
        id(line.value)
        for body in bodies
        for line in body
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    }
    code = [node for node in ast.walk(tree) if id(node) not in prose]
    words = [getattr(node, field, None) for node in code for field in ("id", "attr", "arg", "name", "value")]
    return {word for word in words if isinstance(word, str)}


def test_nothing_above_the_tasks_says_accuracy_or_counts_classes():
    """A task says what is measured and what a network answers: elsewhere only what is classification's own does."""
    speaks = {
        name_of(path)
        for path in HOUSE.rglob("*.py")
        if path.relative_to(HOUSE).parts[0] not in ("tasks", "zoo")
        and name_of(path) != "verbs/mimic.py"
        and any(re.search("accuracy|accuracies|num_classes", word) for word in spoken(path))
    }
    assert speaks == set(OF_CLASSES)
