"""The command line, made from the signatures and docstrings of what it calls."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning import seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers as lightning_loggers
from rich.console import Console
from rich.table import Table
from torch import nn

from limbeck import data as datasets
from limbeck import methods, zoo
from limbeck.checkup import check
from limbeck.checkup import console_table as checkup_table
from limbeck.comparison import Entry, compare, grid
from limbeck.demo import demo
from limbeck.engine.assemble import GIVEN, assemble, find
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import Precision, Result, Trainable, fit
from limbeck.engine.learner import Schedule
from limbeck.layers import Layer, layers, pairs
from limbeck.measure.cost import cost
from limbeck.method import Make
from limbeck.paper import Paper
from limbeck.report.comparison import findings
from limbeck.report.table import console_table, milliseconds, percent, quantity

STOPPED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended."""
MENDABLE = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError, MisconfigurationException)
"""What is raised for input that cannot work: its message is all that the user needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, or 130 after Ctrl-C."""
    parser, leaves = _parser()
    # --run-dir is --run_dir: signatures have underscores, command lines dashes
    words = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    config = parser.parse_args(words)
    command = config.subcommand
    leaf = config[command]
    if command in ("distill", "check", "list"):
        command, leaf = f"{command} {leaf.subcommand}", leaf[leaf.subcommand]
    warnings.showwarning = _warn
    try:
        return leaves[command](leaf, config)
    except KeyboardInterrupt:
        return STOPPED
    except MENDABLE as error:
        if os.environ.get("LIMBECK_TRACEBACK"):
            raise
        _complain(str(error).strip() or type(error).__name__)
        return 2


class Parser(ArgumentParser):
    """Says in one line what is wrong and what was meant, without the usage of fifty options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [*parser._option_string_actions, *(name for each in parser._actions for name in each.choices or ())]
        wrong = re.search(r"unrecognized arguments: ([^\s=]+)|invalid choice: '(.*?)'", message)
        close = difflib.get_close_matches(wrong[1] or wrong[2], known, n=3, cutoff=0.7) if wrong else []
        if message.startswith("the following arguments are required"):
            message = re.sub(r"(\w+\.)+", "", message)  # distill.kd.teacher is the teacher to the user
        meant = f": did you mean {' or '.join(map(_dashed, close))}?" if close else ""
        _complain(f"{message}{meant}\n`{parser.prog.replace(' [options]', '')} --help` shows what there is")
        self.exit(2)


# what each command is told, one function for each group of options ---------------------------------------------------


def load_data(
    data: str = "digits",
    root: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    labels: int | None = None,
    samples: int | None = None,
    val_share: float = 0.1,
    augment: Literal["default", "none", "crop", "crop-flip", "cutout"] = "default",
    split_seed: int = 0,
    workers: int = 2,
    seed: int = 0,
) -> datasets.Data:
    """Load the data.

    Args:
        data: A name of `limbeck list data`.
        root: The folder that holds its files; the digits need none.
        download: Fetch missing files into the root.
        batch_size: Samples in a batch, over all devices; 64 as in RepDistiller.
        labels: Keep this many training labels; the other images stay, without.
        samples: Use only this many training samples.
        val_share: Share of train held out for validation, where the set has no validation split.
        augment: Of training images; by default what suits the set.
        split_seed: Of the choice of validation samples, samples and labels.
        workers: Processes that decode images too large for memory.
        seed: Of everything random: weights, order of batches, augmentation.
    """
    return datasets.load(
        data,
        root,
        download=download,
        batch_size=batch_size,
        labels=labels,
        samples=samples,
        val_share=val_share,
        augment=augment,
        seed=seed,
        split_seed=split_seed,
        workers=workers,
    )


def training(
    epochs: int = 30,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["step", "cosine", "constant"] = "step",
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    accumulate: int = 1,
    clip: float | None = None,
    run_dir: str | None = None,
    resume: bool = False,
    logger: list[str] | str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Say how to train.

    Args:
        epochs: Of all stages together; 30 is ours.
        optimizer: Of every player.
        lr: Learning rate; 0.05 as in RepDistiller, for SGD on CIFAR.
        momentum: Of SGD, with Nesterov's correction; 0.9 as in RepDistiller.
        weight_decay: 5e-4 as in RepDistiller.
        schedule: Of the learning rate: a tenth after 5/8, 6/8 and 7/8 of the updates, as in RepDistiller; half a
            cosine; or constant.
        precision: Lightning's name.
        accelerator: Lightning's name.
        devices: How many.
        strategy: Lightning's name.
        accumulate: Batches whose gradients are averaged before an update.
        clip: The largest norm of a player's gradient.
        run_dir: The run's folder; by default one in runs/ that says what was run, and when.
        resume: Go on with the run in run_dir.
        logger: Another logger by Lightning's name, or several: [TensorBoardLogger,WandbLogger,MLFlowLogger].
        progress: Show progress bars; by default in a terminal.
    """
    return {
        "epochs": epochs,
        "optimizer": _optimizer(optimizer, lr, momentum, weight_decay),
        "schedule": _schedule(schedule),
        "precision": precision,
        "accelerator": accelerator,
        "devices": devices,
        "strategy": strategy,
        "accumulate": accumulate,
        "clip": clip,
        "resume": resume,
        "progress": progress,
        "loggers": [_logger(name, run_dir) for name in _several(logger)],
    }


def doubts(
    expect: float | None = None,
    epochs: int | None = None,
    share: dict[str, float] | None = None,
    json: bool = False,
) -> None:
    """Say what to expect.

    Args:
        expect: The accuracy that the teacher is known to have, in [0, 1].
        epochs: Of the training, for the estimate of its time.
        share: The share of the gradient that terms shall have, as {attention: 0.3}; weights are suggested.
        json: Print JSON.
    """


def contest(seeds: int = 3, match: Literal["epochs", "compute"] = "epochs") -> None:
    """Say what is fair.

    Args:
        seeds: How many, from 0 on, the same for all methods.
        match: What is equal: the epochs, or about the time of a run.
    """


def student_of(student: str) -> str:
    """Name the student.

    Args:
        student: A network of `limbeck list networks`, as resnet8x4 or timm:mobilenetv3_small_100.
    """
    return student


def network_of(network: str) -> str:
    """Name the network.

    Args:
        network: A network of `limbeck list networks`; its weights as NAME@FILE.
    """
    return network


def teacher_of(teacher: str) -> str:
    """Name the teacher.

    Args:
        teacher: A network with its weights, as resnet56@teacher.safetensors; NAME@random is an untrained one, a control.
    """
    return teacher


def possible_teacher_of(teacher: str | None = None) -> str | None:
    """Name the teacher, if there is one.

    Args:
        teacher: A network with its weights, as resnet56@teacher.safetensors; trained first if not given.
    """
    return teacher


def peers_of(peers: list[str] | str) -> list[str] | str:
    """Name the peers.

    Args:
        peers: The other network, as resnet20, or several, as [resnet20,resnet8]; each has an initialisation of its own.
    """
    return peers


# the commands --------------------------------------------------------------------------------------------------------


def _train(leaf: Namespace, config: Namespace) -> int:
    """Train a network on the labels: a teacher, say."""
    data = _call(load_data, leaf)
    seed_everything(leaf.seed, verbose=False)
    net = _network(leaf.network, data)
    return _fit("plain", leaf.network, methods.plain(net), data, leaf, config)


def _distill(method: str, leaf: Namespace, config: Namespace) -> int:
    """Train a student by a method."""
    data = _call(load_data, leaf)
    return _fit(method, leaf.student, _assembled(method, leaf, data), data, leaf, config)


def _check(method: str, leaf: Namespace, config: Namespace) -> int:
    """Look for mistakes in a set-up before it is trained; exit code 1 where there are any."""
    data = _call(load_data, leaf)
    checkup = check(_assembled(method, leaf, data), data, expect=leaf.expect, epochs=leaf.epochs, shares=leaf.share)
    if leaf.json:
        print(checkup.json())
    else:
        Console().print(checkup_table(checkup))
    return 0 if checkup.ok else 1


def _compare(leaf: Namespace, config: Namespace) -> int:
    """Train a student by several methods, and by none, over paired seeds; say what that shows."""
    data = _call(load_data, leaf)
    entries = [entry for words in leaf.methods for entry in _entries(words)]
    teacher = None if leaf.teacher is None else _network(_weighted(leaf.teacher, "teacher"), data)
    run_dir = leaf.run_dir or _fresh_folder("compare", leaf.student, leaf.data)
    settings = {name: value for name, value in _call(training, leaf).items() if name not in ("resume", "loggers")}
    console = Console(highlight=False, soft_wrap=True)
    try:
        comparison = compare(
            entries,
            lambda: _network(leaf.student, data),
            teacher,
            data,
            seeds=leaf.seeds,
            match=leaf.match,
            run_dir=run_dir,
            **settings,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --run-dir {_plain(run_dir)} goes on")
        return STOPPED
    console.print(console_table(comparison.candidates, comparison.title))
    for sentence in findings(comparison):
        console.print(f"  {_plain(sentence)}")
    console.print(_plain(str(Path(run_dir) / "report.html")))
    return 0


def _fit(name: str, network: str, method: Any, data: datasets.Data, leaf: Namespace, config: Namespace) -> int:
    if leaf.resume and leaf.run_dir is None:
        raise ValueError("--resume needs the folder of the run to go on with: --run-dir runs/NAME")
    run_dir = leaf.run_dir or _fresh_folder(name, network, leaf.data)
    result = fit(
        method, data, run_dir=run_dir, seed=leaf.seed, name=name, settings=_settings(config), **_call(training, leaf)
    )
    _tell(result, data, run_dir)
    return 0 if result.finished else STOPPED


def _eval(leaf: Namespace, config: Namespace) -> int:
    """Measure a network on the test data."""
    data = _call(load_data, leaf)
    net = _network(_weighted(leaf.network, "network"), data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics = evaluate(net.to(device), data.to(device).test)
    _show(f"{data.name}, {len(data.test.ids):,} test images", {leaf.network: (net.cpu(), metrics)}, data)
    return 0


def _layers(leaf: Namespace, config: Namespace) -> int:
    """Show a network's layers, or which of the student's belongs to which of the teacher's."""
    shape = tuple(leaf.shape)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    names = [leaf.student] if leaf.teacher is None else [leaf.student, leaf.teacher]
    nets = [zoo.network(name, leaf.num_classes, shape) for name in names]
    console = Console()
    for who, name, net in zip(("student", "teacher"), names, nets, strict=False):
        console.print(_layer_table(f"{who}: {name}", layers(net, example)))
    if leaf.teacher is not None:
        table = Table("student's layer", "teacher's layer", title="pairs that methods use by default")
        for pair in pairs(nets[0], nets[1], example):
            table.add_row(*map(_plain, pair))
        console.print(table)
    return 0


def _list_methods(leaf: Namespace, config: Namespace) -> int:
    """List the methods: name, paper, year, what is matched, who teaches."""
    papers = {name: paper_of(name) for name in methods.__all__}
    lines = [(name, of.title, str(of.year), of.matches, of.teacher) for name, of in papers.items()]
    return _print_lines(("method", "paper", "year", "matches", "who teaches"), lines)


def _list_networks(leaf: Namespace, config: Namespace) -> int:
    """List the networks that have a name."""
    return _print_lines(("network", "what it is"), zoo.describe())


def _list_data(leaf: Namespace, config: Namespace) -> int:
    """List the data sets that have a name."""
    return _print_lines(("data", "what it is"), datasets.describe())


def _cite(leaf: Namespace, config: Namespace) -> int:
    """Print a method's BibTeX entry."""
    print(paper_of(leaf.method).bibtex())
    return 0


def _demo(leaf: Namespace, config: Namespace) -> int:
    """Watch a small network learn from a large one, on real digits, in a minute and a half."""
    _call(demo, leaf)
    return 0


# their parts ---------------------------------------------------------------------------------------------------------


def _network(name: str, data: datasets.Data) -> nn.Module:
    return zoo.network(name, data.num_classes, data.shape)


def _assembled(method: str, leaf: Namespace, data: datasets.Data) -> Trainable:
    seed_everything(leaf.seed, verbose=False)
    own = {name: leaf[name] for name in _options(method)}
    return assemble(method, _network(leaf.student, data), _teachers(leaf, data), data.example(), own)


def _entries(words: str) -> list[Entry]:
    """Read ``kd:temperature=1,4,20:alpha=0.5``: a method with the values of its options, every combination of them."""
    method, *options = words.split(":")
    values: dict[str, list[Any]] = {}
    for option in options:
        name, equals, listed = option.partition("=")
        if not equals:
            raise ValueError(f"{words}: expected METHOD:OPTION=VALUE,VALUE:..., got {option!r}")
        values[name.replace("-", "_")] = [yaml.safe_load(value) for value in listed.split(",")]
    return grid(method, **values)


def paper_of(method: str) -> Paper:
    """Return a method's reference."""
    return sys.modules[find(method).__module__].PAPER  # type: ignore[no-any-return]


def _complain(message: str) -> None:
    """Print an error in words."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]limbeck: error:[/red] {_plain(message)}")


def _warn(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
    """Show a warning as a sentence, without the line of ours that it came from."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[yellow]limbeck: warning:[/yellow] {_plain(str(message))}")


Command = Callable[[Namespace, Namespace], int]


def _parser() -> tuple[Parser, dict[str, Command]]:
    """Return the parser and, by the words of a command, what it does."""
    parser = Parser(prog="limbeck", description="Train a small network to carry what a large one knows.")
    parser.add_argument("--config", action="config", help="a config.yaml of a run, to run the same again")
    commands = parser.add_subcommands()
    leaves: dict[str, Command] = {}

    def leaf(parent: Any, path: str, does: Command, about: str, *groups: Callable[..., Any]) -> Parser:
        child = Parser(description=about)
        for group in groups:
            child.add_function_arguments(group, None, as_group=True, skip=_skipped(group), fail_untyped=False)
        for action in child._actions:
            if action.default is False:  # --resume alone says it
                action.nargs, action.const = "?", True
        leaves[path] = does
        parent.add_subcommand(path.split()[-1], child, help=about)
        return child

    leaf(commands, "demo", _demo, _first_line(_demo), demo)
    leaf(commands, "train", _train, _first_line(_train), network_of, load_data, training)
    for word, do, last in (("distill", _distill, training), ("check", _check, doubts)):
        by_method = Parser(description=f"{_first_line(do)} `limbeck {word} METHOD --help` has its options.")
        commands.add_subcommand(word, by_method, help=_first_line(do))
        by_method_commands = by_method.add_subcommands(metavar="METHOD")
        for name in methods.__all__:
            function = find(name)
            groups: list[Callable[..., Any]] = [student_of, *_teacher_group(function), function, load_data, last]
            leaf(by_method_commands, f"{word} {name}", partial(do, name), _first_line(function), *groups)
    compared = leaf(
        commands,
        "compare",
        _compare,
        _first_line(_compare),
        student_of,
        possible_teacher_of,
        load_data,
        contest,
        training,
    )
    compared.add_argument("methods", type=str, nargs="+", help="each METHOD or METHOD:OPTION=VALUE,VALUE:OPTION=VALUE")
    leaf(commands, "eval", _eval, _first_line(_eval), network_of, load_data)
    shown = leaf(commands, "layers", _layers, _first_line(_layers))
    shown.add_argument("student", type=str, help="a network of `limbeck list networks`")
    shown.add_argument("teacher", type=str | None, nargs="?", help="a second one, to pair their layers")
    shown.add_argument("--shape", type=list[int], default=[3, 32, 32], help="of one input: [C,H,W]")
    shown.add_argument("--num_classes", type=int, default=10, help="of the networks' outputs")
    listing = Parser(description="List what has a name.")
    commands.add_subcommand("list", listing, help="list methods, networks or data sets")
    lists = listing.add_subcommands()
    for what, does in (("methods", _list_methods), ("networks", _list_networks), ("data", _list_data)):
        leaf(lists, f"list {what}", does, _first_line(does))
    cited = leaf(commands, "cite", _cite, _first_line(_cite))
    cited.add_argument("method", type=str, help="a method of `limbeck list methods`")
    return parser, leaves


def _skipped(group: Callable[..., Any]) -> set[str | int]:
    if not group.__module__.startswith("limbeck.methods"):
        return set()
    return {name for name in inspect.signature(group).parameters if name in (*GIVEN, "num_classes")}


def _options(method: str) -> list[str]:
    function = find(method)
    return [name for name in inspect.signature(function).parameters if name not in _skipped(function)]


def _teacher_group(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    parameters = inspect.signature(function).parameters
    if "peers" in parameters:
        return [peers_of]
    if "teacher" not in parameters:
        return []
    required = parameters["teacher"].default is inspect.Parameter.empty
    return [teacher_of] if required else [possible_teacher_of]


def _teachers(leaf: Namespace, data: datasets.Data) -> nn.Module | list[nn.Module] | None:
    if "peers" in leaf:
        return [_network(name, data) for name in _several(leaf.peers)]
    if leaf.get("teacher") is None:
        return None
    return _network(_weighted(leaf.teacher, "teacher"), data)


def _weighted(name: str, role: str) -> str:
    """Insist on weights; a function of the user's own may bring its own."""
    base, weights = zoo.split_name(name)
    own = ":" in base and not base.startswith(("torchvision:", "timm:"))
    if weights is None and not own:
        raise ValueError(
            f"the {role} {name} has no weights: name their file, {name}@FILE "
            f"(train one with `limbeck train --network {name}`), or take {name}@random for an untrained one"
        )
    return name


def _call(function: Callable[..., Any], leaf: Namespace) -> Any:
    return function(**{name: leaf[name] for name in inspect.signature(function).parameters})


def _optimizer(name: str, lr: float, momentum: float, weight_decay: float) -> Make:
    if name == "sgd":
        return lambda parameters: torch.optim.SGD(
            parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return lambda parameters: kind(parameters, lr, weight_decay=weight_decay)


def _schedule(name: str) -> Schedule | None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

    if name == "cosine":
        return lambda optimizer, updates: CosineAnnealingLR(optimizer, updates)
    if name == "step":
        return lambda optimizer, updates: MultiStepLR(optimizer, [updates * eighths // 8 for eighths in (5, 6, 7)])
    return None


def _several(names: list[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _logger(name: str, run_dir: str | None) -> Any:
    known = [each for each in dir(lightning_loggers) if each.endswith("Logger") and each != "Logger"]
    if name not in known:
        raise ValueError(f"unknown logger {name!r}: Lightning has {', '.join(known)}")
    return getattr(lightning_loggers, name)(save_dir=run_dir or "runs")


def _settings(config: Namespace) -> Mapping[str, Any]:
    """The whole command, as `--config` takes it."""
    parser, _ = _parser()
    text = parser.dump(config, skip_validation=True)
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def _fresh_folder(*words: str) -> str:
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", zoo.split_name(word)[0]) for word in words)
    return str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")


def _tell(result: Result, data: datasets.Data, run_dir: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not result.finished:
        console.print(
            f"stopped after {len(result.history)} epochs; the same command with --run-dir {run_dir} --resume goes on"
        )
        return
    measured = {
        name: (net, {key: result.metrics[f"test/{name}/{key}"] for key in ("accuracy", "loss")})
        for name, net in result.networks.items()
    }
    _show(f"{data.name}, {len(data.test.ids):,} test images, after {len(result.history)} epochs", measured, data)
    for file in (*(f"{name}.safetensors" for name in result.networks), "report.html"):
        console.print(_plain(str(Path(run_dir) / file)))


def _show(title: str, measured: Mapping[str, tuple[nn.Module, Mapping[str, float]]], data: datasets.Data) -> None:
    """Print what networks cost, and how good they are."""
    table = Table("network", "params", "MACs", "latency", "accuracy", "loss", title=title)
    example = data.to("cpu").example(1)
    for name, (net, metrics) in measured.items():
        price = cost(net, example)
        cells = quantity(price.parameters), quantity(price.macs), milliseconds(price.latency_ms)
        table.add_row(_plain(name), *cells, f"{percent(metrics['accuracy'])} %", f"{metrics['loss']:.4f}")
    Console().print(table)


def _layer_table(title: str, listed: Sequence[Layer]) -> Table:
    table = Table("layer", "class", "output", "parameters", title=title)
    for layer in listed:
        shape = "(N, " + ", ".join(map(str, layer.shape[1:])) + ")"
        table.add_row(_plain(layer.path), layer.kind, shape, f"{layer.parameters:,}")
    return table


def _print_lines(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> int:
    """Print one line each: as wide as they are into a file, cut off at the edge of a terminal."""
    table = Table(*header, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    for line in lines:
        table.add_row(*map(_plain, line))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


def _dashed(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


if __name__ == "__main__":
    sys.exit(main())
