from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import ELSEWHERE, answers, load_data, several, teacher_of, views
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import STOPPED, plain, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from limbeck.cli.case import Case
    from limbeck.core.method import Method
    from limbeck.core.stage import Stage
    from limbeck.data.cache import Cache
    from limbeck.verbs.cache import Estimate


def add(commands: Commands) -> None:
    """Add ``limbeck cache build``, ``info`` and ``verify``."""
    description = f"{COMMANDS['cache']} Trainings read it with --cache FOLDER."
    commands.add_family("cache", COMMANDS["cache"], description, title="words", metavar="WORD")
    asked = teacher_of, views, readers, load_data, answers
    told = "Ask the teacher, and write what it says into a folder; the same command goes on where one was stopped."
    _with_folder(commands.add("cache build", _build, told, *asked, kept))
    _with_folder(commands.add("cache info", _info, "Say what a cache holds, and what it was made with."))
    told = (
        "Compare a cache with its checksums, and ask the teacher again of some samples; exit code 1 if it is another."
    )
    _with_folder(commands.add("cache verify", _verify, told, *asked, looked))


def readers(methods: list[str] | str | None = None, student: str | None = None) -> None:
    """Say for whom.

    Args:
        methods: What is kept is what these read, as [kd,at,crd], each as `limbeck compare` writes it; by default the answer
            alone, which serves all that compares answers, as kd, dkd, dist and logits.
        student: The network that is to learn: methods pair its layers with the teacher's.
    """


def kept(
    layers: list[str] | str | None = None,
    numbers: Literal["float16", "float32"] = "float16",
    top: int | None = None,
    accelerator: str = "auto",
    progress: bool | None = None,
) -> None:
    """Say what is kept.

    Args:
        layers: Layers of the teacher to keep besides, whole, as [layer3,fc:in].
        numbers: The type on disk; float32 keeps the very numbers that the teacher gave.
        top: Of the answer keep this many of the largest log-probabilities alone.
        accelerator: Lightning's name.
        progress: Show a progress bar; by default in a terminal.
    """


def looked(ask: int = 256, accelerator: str = "auto") -> None:
    """Say how much is looked at.

    Args:
        ask: Samples of which the teacher is asked again, at least 1.
        accelerator: Lightning's name.
    """


def _with_folder(parser: Any) -> None:
    parser.add_argument("folder", type=str, help="the folder of the cache")


def _build(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Ask the teacher as `limbeck.build_cache` does."""
    from rich.console import Console

    from limbeck.cli.case import case_of
    from limbeck.cli.networks import taught_by
    from limbeck.verbs.cache import build_cache

    _refuse_who_is_not_the_same_twice(several(leaf.teacher))
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    case = case_of(leaf)
    teacher = taught_by(leaf.teacher, case)
    try:
        cache = build_cache(
            leaf.folder,
            teacher,
            case.data,
            methods=_methods(leaf, case, teacher),
            layers=several(leaf.layers),
            views=leaf.views,
            view_seed=leaf.view_seed,
            numbers=leaf.numbers,
            top=leaf.top,
            task=case.task,
            accelerator=leaf.accelerator,
            progress=leaf.progress,
            tell=lambda estimate: _tell(console, estimate),
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return STOPPED
    _show(console, cache)
    return 0


def _refuse_who_is_not_the_same_twice(names: list[str]) -> None:
    """Refuse a teacher who is not here, or is another each time that the name is said."""
    for name in names:
        if name == ELSEWHERE:
            raise ValueError(
                "--teacher elsewhere: there is nobody to ask. Write what that teacher says as docs/cache.md describes it"
            )
        if name.endswith("@random"):
            raise ValueError(
                f"--teacher {name}: its weights are drawn by each command anew, so that no other would find it in the "
                "cache. Save them first, as a file: NAME@FILE"
            )


def _info(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Show what `limbeck.Cache` says of itself."""
    from rich.console import Console

    from limbeck.data.cache import Cache

    _show(Console(emoji=False, highlight=False, soft_wrap=True), Cache(leaf.folder))
    return 0


def _verify(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Look again as `limbeck.verify_cache` does."""
    from rich.console import Console
    from rich.table import Table

    from limbeck.cli.case import case_of
    from limbeck.cli.networks import taught_by
    from limbeck.core.digits import digits
    from limbeck.verbs.cache import verify_cache

    console = Console(emoji=False, highlight=False, soft_wrap=True)
    case = case_of(leaf)
    teacher = None if leaf.teacher == ELSEWHERE else taught_by(leaf.teacher, case)
    methods = () if teacher is None else _methods(leaf, case, teacher)
    with waiting("asking the teacher again"):
        found = verify_cache(
            leaf.folder,
            teacher,
            case.data,
            methods=methods,
            samples=leaf.ask,
            task=case.task,
            accelerator=leaf.accelerator,
        )
    if not found:
        console.print("every file is what was written; there is no teacher here that could be asked again")
        return 0
    table = Table(title=f"{plain(leaf.folder)}, {found[0].samples:,} samples asked again")
    for head in ("place", "numbers", "smallest cosine", "largest difference", ""):
        table.add_column(head)
    for one in found:
        words = "as kept" if one.ok else "another"
        if one.ok and one.top is not None:
            words = f"what the {one.top} largest leave"
        table.add_row(one.place or "answer", one.numbers, f"{one.cosine:.6f}", digits(one.difference), words)
    console.print(table)
    return 0 if all(one.ok for one in found) else 1


def _methods(leaf: Namespace, case: Case, teacher: Any) -> list[Method | Iterable[Stage]]:
    """Make the methods that are to read, each with its options."""
    from limbeck.cli.networks import network
    from limbeck.cli.words import entries_of
    from limbeck.engine.assemble import assemble
    from limbeck.engine.fit import labels_of

    words = [word for listed in several(leaf.methods) for word in ([listed] if ":" in listed else listed.split(","))]
    if words and leaf.student is None:
        raise ValueError("--methods pair the student's layers with the teacher's: say which network it is, --student")
    return [
        assemble(
            entry.method,
            network(leaf.student, case),
            teacher,
            case.example,
            entry.options,
            labels_of(case.data),
            task=case.task,
        )
        for word in words
        for entry in entries_of(word)
    ]


def _tell(console: Console, estimate: Estimate) -> None:
    """Say what it will take."""
    from limbeck.report.table import duration, size

    each = ", ".join(f"{name or 'answer'} {count:,} B" for name, count in estimate.places.items())
    console.print(
        f"{estimate.samples:,} samples in {estimate.views} {'view' if estimate.views == 1 else 'views'}, {each}: "
        f"{size(estimate.bytes)} on disk, about {duration(estimate.seconds)} here in one process"
    )


def _show(console: Console, cache: Cache) -> None:
    """Show what a cache holds."""
    from rich.table import Table

    from limbeck.report.table import size

    missing, shards = len(cache.missing()), cache.views * cache.shards
    state = "finished" if not missing else f"{missing} of {shards} shards are missing"
    table = Table(title=f"{plain(str(cache.folder))}: {cache.samples:,} samples, views: {cache.views}; {state}")
    for head in ("place", "shape", "numbers", "on disk"):
        table.add_column(head)
    for place, one in cache.places.items():
        numbers = one.numbers if one.top is None else f"{one.top} largest, {one.numbers}"
        there = size(one.bytes * cache.samples * cache.views)
        table.add_row(place or "answer", "x".join(map(str, one.shape)), numbers, there)
    console.print(table)
    teacher = cache.made_with.get("teacher")
    who = f"{teacher['network']} of weights {teacher['weights']}" if isinstance(teacher, dict) else teacher
    console.print(
        plain(f"the {cache.role}: {who}; view_seed {cache.view_seed}; limbeck {cache.made_with.get('limbeck')}")
    )
