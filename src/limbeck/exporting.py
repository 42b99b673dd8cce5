"""A network as files that ship: each is loaded again, and must answer on real data as the network does."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain, dropwhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from limbeck.data import Data
from limbeck.engine.evaluate import Measurement, batches
from limbeck.engine.run import packed
from limbeck.files import write
from limbeck.frozen import Frozen, bare
from limbeck.measure.cost import latency_ms
from limbeck.nets.ensemble import Ensemble
from limbeck.nets.exits import AllExits, EarlyExit
from limbeck.report.table import milliseconds, percent, quantity
from limbeck.task import Task
from limbeck.tasks.classification import classification
from limbeck.trace import describe

if TYPE_CHECKING:
    from rich.table import Table

Format = Literal["safetensors", "torch_export", "onnx", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[Format, str] = {
    "safetensors": "student.safetensors",
    "torch_export": "student.pt2",
    "onnx": "student.onnx",
    "int8": "student.int8.onnx",
}
EXTRA = ("onnx", "onnxruntime", "onnxscript")
BATCH = ({0: Dim("batch")},)
TORCH = str(Path(torch.__file__).parent)
SECONDS = 0.2
"""For how long a latency is measured; its median counts."""

Answer = Callable[[Tensor], Tensor]
"""What an artefact is once it has been loaded: from inputs to logits."""


@dataclass(frozen=True)
class Artefact:
    """A file that ships, as it was measured after it had been loaded again.

    Args:
        format: What it is.
        file: Its name in the folder.
        accuracy: On the test data, in [0, 1].
        bytes: Size of the file.
        latency_ms: Median time of one sample on one thread, in milliseconds.
        difference: Largest absolute difference of an output to the network's, over the test data.
    """

    format: Format
    file: str
    accuracy: float
    bytes: int
    latency_ms: float
    difference: float


@dataclass(frozen=True)
class Exported:
    """What `export` left.

    Args:
        folder: Where the files are.
        about: What the files say of themselves: ``network``, ``limbeck`` (the version), ``input_shape``, and where known
            ``data``, ``classes``, ``mean`` and ``std``.
        samples: Test samples.
        tolerance: Largest difference that was allowed.
        accuracy: Of the network itself.
        latency_ms: Of the network itself, run by PyTorch.
        artefacts: The files that are there.
        failures: Why others are not, by format.
    """

    folder: Path
    about: Mapping[str, Any]
    samples: int
    tolerance: float
    accuracy: float
    latency_ms: float
    artefacts: tuple[Artefact, ...]
    failures: Mapping[Format, str]

    def json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps({**asdict(self), "folder": str(self.folder)}, indent=2, ensure_ascii=False)


class ExportError(RuntimeError):
    """Artefacts that cannot be made, or that differ from the network; ``exported`` has those that were written."""

    def __init__(self, exported: Exported) -> None:
        formats: dict[str, list[str]] = {}
        for format, reason in exported.failures.items():
            formats.setdefault(reason, []).append(format)
        super().__init__("\n".join(f"{', '.join(names)}: {reason}" for reason, names in formats.items()))
        self.exported = exported


@torch.no_grad()
def export(
    net: nn.Module,
    data: Data | Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[Format] = FORMATS,
    tolerance: float = 1e-4,
    name: str = "",
    task: Task = classification,
    progress: bool | None = None,
) -> Exported:
    """Write a network as files that ship, and prove that they answer as it does.

    ``safetensors`` is the plain ``state_dict``, for the plain network. ``torch_export`` is a program for
    ``torch.export.load``, ``onnx`` a graph for every ONNX runtime: both are the network in eval mode, from ``input``
    (N, ...), normalised as the data are, to ``logits``, for any N. ``int8`` is that graph with 8-bit weights.

    Of a network with exits (`limbeck.EarlyExit`) the graphs have no branches: every exit runs for every sample, which saves
    no compute. ``logits`` is what the first exit says that is sure, by the network's thresholds, as the network itself
    answers; a second output, ``exits`` (N, M, K), is what all of them say. Compute is saved by the network in PyTorch.

    Every file is loaded again, ONNX by onnxruntime, and run over the whole test data beside the network; where an output
    differs by more than ``tolerance``, there is no file. ``int8`` differs by design: its accuracy is to be looked at. The
    network runs on the CPU, in eval mode; the one given is left as it is. ``export.json`` tells what is told here.

    int8 is onnxruntime's dynamic quantisation: weights once, activations at every run, with a scale for the whole batch,
    so that a sample's answer depends a little on its batch. Weights are unsigned: convolutions with signed ones are missing
    in older versions of onnxruntime (its issues 6430 and 15888), and took resnet8 11 ms instead of 0.5 ms in 1.31. Grouped
    convolutions stay as they are: a tensor has one scale, which the channels of depthwise ones do not bear (Krishnamoorthi
    2018, arXiv 1806.08342), and they hold few of the weights. Files get smaller; convolutions need not get
    faster, and onnxruntime's authors advise static quantisation for them (issue 12854).

    Args:
        net: The network.
        data: A `limbeck.data.Data`, whose test split is used, or a loader of batches ``(inputs, targets)``, one tensor
            of inputs each.
        folder: Where the files go.
        formats: Which: out of ``"safetensors"``, ``"torch_export"``, ``"onnx"``, ``"int8"``.
        tolerance: Largest absolute difference of an output that is allowed; 1e-4 is ours, some ten times what float32
            leaves of logits about 10 in another order of summation.
        name: What the files call the network; by default its class.
        task: Where the logits are in what the network returns, and how it is measured.
        progress: Show a progress bar; by default where standard error is a terminal.

    Raises:
        ValueError: An unknown format, a negative tolerance, or no test data.
        TypeError: Inputs that are no tensor, or outputs in which no logits are found.
        RuntimeError: ``limbeck[export]`` is not installed.
        ExportError: Some formats failed: a graph that cannot be traced, with the line of the network where, or one that
            differs. The others are written.

    Example:
        >>> import tempfile, limbeck
        >>> data = limbeck.data.load("digits")
        >>> net = limbeck.zoo.network("mlp-32", data.num_classes, data.shape)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = limbeck.export(net, data, folder, formats=["safetensors"])
        >>> [(one.file, one.difference) for one in exported.artefacts]
        [('student.safetensors', 0.0)]
    """
    wanted = _checked(formats, tolerance)
    loader = data.test if isinstance(data, Data) else data
    plain = Frozen(bare(getattr(net, "_orig_mod", net))).net.cpu()  # _orig_mod is what torch.compile wraps
    served = batches(loader, plain)
    if (first := next(served, None)) is None:
        raise ValueError("data gave no batch, and there is nothing to compare on")
    example = _example(first, task)
    task.feed(plain, example)  # raises where no logits are found, before anything is made
    about = _about(name or type(plain).__name__, data, example)
    with TemporaryDirectory() as scratch, _bar(progress) as bar:
        drafts = _Drafts(plain, task, example, about, Path(scratch))
        line = bar.add_task("", total=None)
        for format in wanted:
            bar.update(line, description=format)
            drafts.make(format)
        bar.update(line, description="comparing", total=_length(loader))
        own = _Score(task)
        scores = {format: _Score(task) for format in drafts.answers}
        for batch in chain([first], served):
            _compare(drafts, batch, own, scores)
            bar.advance(line)
        for format, score in scores.items():
            with drafts.noting(format):
                if format == "int8":
                    drafts.need_onnx()
                score.judge(sys.float_info.max if format == "int8" else tolerance)
        exported = Exported(
            folder=Path(folder),
            about=about,
            samples=own.measurement.samples,
            tolerance=tolerance,
            accuracy=own.accuracy,
            latency_ms=_latency_ms(partial(task.feed, plain), example),
            artefacts=tuple(
                _artefact(drafts, format, scores[format]) for format in drafts.answers if format in formats
            ),
            failures={format: _reason(error) for format, error in drafts.failures.items() if format in formats},
        )
        _deliver(exported, drafts)
    if exported.failures:
        raise ExportError(exported) from next(iter(drafts.failures.values()))
    return exported


class _Drafts:
    """The files while they are made, and what they answer once they have been loaded again."""

    def __init__(self, net: nn.Module, task: Task, example: Tensor, about: Mapping[str, Any], folder: Path) -> None:
        self.net, self.task, self.example, self.folder = net, task, example, folder
        # these formats know text alone
        self.about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
        self.answers: dict[Format, Answer] = {}
        self.failures: dict[Format, Exception] = {}

    def path(self, format: Format) -> Path:
        """Return where a file is."""
        return self.folder / FILES[format]

    @contextmanager
    def noting(self, format: Format) -> Iterator[None]:
        """Put what goes wrong with a format aside, until the others are written."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # tracing runs the user's own code; `export` raises in the end
            self.failures[format] = error
            self.answers.pop(format, None)

    def make(self, format: Format) -> None:
        """Write a file and load it again."""
        write_draft: Mapping[Format, Callable[[Path], object]] = {
            "safetensors": self._safetensors,
            "torch_export": self._torch_export,
            "onnx": self._onnx,
            "int8": self._int8,
        }
        with self.noting(format), _quiet():
            write_draft[format](self.path(format))
            self.answers[format] = self.load(format)

    def load(self, format: Format, threads: int = 0) -> Answer:
        """Load a file as its receiver would; ``threads`` are onnxruntime's, 0 for all there are."""
        if format in ("onnx", "int8"):
            return _session(self.path(format), threads)
        if format == "torch_export":
            program = torch.export.load(self.path(format)).module()
            return program if not isinstance(self.net, EarlyExit) else lambda inputs: program(inputs)[0]
        from safetensors.torch import load_file

        net = copy.deepcopy(self.net)
        net.load_state_dict(load_file(self.path(format)))
        return partial(self.task.feed, net)

    def need_onnx(self) -> None:
        """Raise what is wrong with the graph that int8 is made of."""
        if "onnx" in self.failures:
            raise self.failures["onnx"]

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as torch.export follows it, for any number of samples."""
        graph = self._graph()
        with redirect_stderr(io.StringIO()):  # where torch prints half a graph before it raises
            return torch.export.export(graph, (self.example,), dynamic_shapes=BATCH, strict=False)

    def _graph(self) -> nn.Module:
        """Return what is exported: the network, of which the logits alone are seen, or every exit."""
        if isinstance(self.net, EarlyExit):
            return AllExits(self.net)
        raw = self.net(self.example)
        if (
            isinstance(self.net, Ensemble) or self.task.output(raw) is not raw
        ):  # an ensemble takes what its members take
            return _Logits(self.net, self.task)
        return self.net

    def _safetensors(self, path: Path) -> None:
        path.write_bytes(packed(self.net, self.about))

    def _torch_export(self, path: Path) -> None:
        torch.export.save(self.program, path, extra_files={"limbeck.json": json.dumps(self.about)})

    def _onnx(self, path: Path) -> None:
        try:
            graph = torch.onnx.export(
                self.program,
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=["logits", "exits"] if isinstance(self.net, EarlyExit) else ["logits"],
                dynamic_shapes=BATCH,  # once more, for the name of the axis
            )
        except torch.onnx.OnnxExporterError as error:
            raise RuntimeError(_untranslated(self.program, error)) from error
        if graph is None:
            raise RuntimeError("torch.onnx.export returned no graph")
        graph.model.metadata_props.update(self.about)
        graph.save(path, external_data=False)

    def _int8(self, path: Path) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        self.need_onnx()
        model = onnx.load(self.path("onnx"))
        # torch lists the shapes of weights there, onnxruntime transposes some and trips over them (its issue 25890)
        del model.graph.value_info[:]
        grouped = [
            node.name
            for node in model.graph.node
            if node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)
        ]
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8, nodes_to_exclude=grouped)


class _Logits(nn.Module):
    """A network of which the logits alone are seen."""

    def __init__(self, net: nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.task = net, task

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.feed(self.net, inputs)


class _Score:
    """How good answers are, and how far from those of the network."""

    def __init__(self, task: Task) -> None:
        self.measurement, self.difference, self.largest = Measurement(task), 0.0, 0.0

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return self.measurement.compute()["accuracy"]

    def add(self, output: Tensor, expected: Tensor, target: Tensor) -> None:
        """Count a batch."""
        if output.shape != expected.shape:
            raise ValueError(f"gives outputs of shape {tuple(output.shape)}, the network {tuple(expected.shape)}")
        self.measurement.add(output, target)
        self.difference = _larger(self.difference, output - expected)
        self.largest = _larger(self.largest, expected)

    def judge(self, tolerance: float) -> None:
        """Raise where the answers are too far off."""
        if not self.difference <= tolerance:
            raise ValueError(
                f"differs from the network by up to {self.difference:.3g}, more than the tolerance of {tolerance:.3g}, on "
                f"{self.measurement.samples:,} test samples (its outputs reach {self.largest:.3g}): does it draw random "
                "numbers in eval mode? --tolerance (tolerance=...) allows more"
            )


def _larger(before: float, values: Tensor) -> float:
    """Return the largest magnitude so far; a NaN stays one, which Python's max would lose."""
    return float(torch.cat([values.abs().flatten(), torch.tensor([before])]).max())


def _compare(drafts: _Drafts, batch: Any, own: _Score, scores: Mapping[Format, _Score]) -> None:
    """Let the network and all that was made of it answer one batch."""
    task = drafts.task
    inputs, target = task.inputs(batch), task.target(batch)
    expected = task.feed(drafts.net, inputs)
    own.add(expected, expected, target)
    for format, answer in list(drafts.answers.items()):
        with drafts.noting(format):
            scores[format].add(answer(inputs), expected, target)


def _artefact(drafts: _Drafts, format: Format, score: _Score) -> Artefact:
    return Artefact(
        format=format,
        file=FILES[format],
        accuracy=score.accuracy,
        bytes=drafts.path(format).stat().st_size,
        latency_ms=_latency_ms(drafts.load(format, threads=1), drafts.example),
        difference=score.difference,
    )


def _deliver(exported: Exported, drafts: _Drafts) -> None:
    """Put the files that are good into the folder, and take away older ones of the formats that are not."""
    for artefact in exported.artefacts:
        write(exported.folder / artefact.file, partial(shutil.copyfile, drafts.path(artefact.format)))
    for format in exported.failures:
        if format != "safetensors":  # which may be the very weights that the network was made with
            (exported.folder / FILES[format]).unlink(missing_ok=True)
    write(exported.folder / "export.json", exported.json() + "\n")


# What goes in --------------------------------------------------------------------------------------------------------


def _checked(formats: Sequence[Format], tolerance: float) -> list[Format]:
    """Return what is to be made, in order; int8 is made of onnx."""
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats must be out of {', '.join(FORMATS)}, got {', '.join(map(str, sorted(unknown)))}")
    if not formats:
        raise ValueError(f"formats must name one at least, out of {', '.join(FORMATS)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    missing = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if missing and {"onnx", "int8"} & set(formats):
        raise RuntimeError(
            f"onnx and int8 need {', '.join(missing)}: pip install 'limbeck[export]', or leave them out: "
            "--formats safetensors,torch_export (formats=...)"
        )
    return [format for format in FORMATS if format in formats or (format == "onnx" and "int8" in formats)]


def _example(batch: Any, task: Task) -> Tensor:
    """Return two inputs: of a single one torch.export would keep the number."""
    inputs = task.inputs(batch)
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"expected batches whose inputs are one tensor (N, ...), got {describe(inputs)}; a network of several inputs "
            "is beyond this export: call torch.export.export yourself"
        )
    return torch.cat([inputs[:1], inputs[-1:]])


def _about(name: str, data: object, example: Tensor) -> dict[str, Any]:
    """Return what a file says of itself."""
    known = {"network": name, "limbeck": importlib.metadata.version("limbeck"), "input_shape": list(example.shape[1:])}
    if isinstance(data, Data):
        known |= {"data": data.name, "classes": data.classes, "mean": data.mean, "std": data.std}
    return {key: value for key, value in known.items() if value}


def _length(loader: object) -> int | None:
    return len(loader) if isinstance(loader, Sized) else None


@contextmanager
def _bar(progress: bool | None) -> Iterator[Progress]:
    shown = sys.stderr.isatty() if progress is None else progress
    # the file itself, since tracing sends sys.stderr elsewhere for a while
    with Progress(console=Console(file=sys.stderr), transient=True, disable=not shown) as bar:
        yield bar


# What others say, and how --------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch and onnxruntime from logging what no user of ours can mend; what fails still raises."""
    handlers, level = logging.root.handlers[:], logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # onnxruntime's logging.warning() sets one up for the whole program


def _session(path: Path, threads: int) -> Answer:
    """Load an ONNX file into onnxruntime, on the CPU."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])


def _latency_ms(answer: Answer, example: Tensor) -> float:
    return latency_ms(partial(answer, example[:1]), example.device, SECONDS)


def _reason(error: Exception) -> str:
    """Return the first line of an error, and the line of the network that it came from, if it came from one."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "specialized it to be a constant" in str(error):
        return (
            "works for one number of samples only: somewhere the network's forward fixes it, as a Python loop or a "
            "comparison with x.shape[0] does"
        )
    frames = dropwhile(lambda frame: not frame.filename.startswith(TORCH), traceback.extract_tb(error.__traceback__))
    return first + _place([(frame.filename, frame.lineno, frame.line) for frame in frames])


def _untranslated(program: ExportedProgram, error: BaseException) -> str:
    """Say which operation ONNX lacks, and the line of the network that it came from."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    first, _, _ = str(causes[-1]).strip().splitlines()[0].partition(". Failure message")
    named = re.search(r"node %(\w+)", " ".join(map(str, causes)))
    nodes = program.run_decompositions().graph.nodes if named else ()
    stack = next((node.stack_trace for node in nodes if named and node.name.endswith(named[1])), None)
    return first + _place(re.findall(r'File "(.*?)", line (\d+), in .*\n +(.*)', stack or ""))


def _place(frames: Iterable[tuple[str, int | str | None, str | None]]) -> str:
    """Return the last of some lines of code that is not torch's own, as the end of a sentence."""
    own = [frame for frame in frames if not frame[0].startswith((TORCH, __file__, "<"))]
    if not own:
        return ""
    file, line, code = own[-1]
    return f" ({file}, line {line}: {code})"


# What is shown -------------------------------------------------------------------------------------------------------


def console_table(exported: Exported) -> Table:
    """Return the artefacts beside the network that they were made of, for `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    data = exported.about.get("data")
    title = f"{exported.about['network']}, {exported.samples:,} test samples" + (f" of {data}" if data else "")
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("artefact", "accuracy", "size", "latency", "max difference"):
        table.add_column(heading, justify="right" if heading != "artefact" else "left")
    table.add_row("the network itself", f"{percent(exported.accuracy)} %", "–", milliseconds(exported.latency_ms), "–")
    for one in exported.artefacts:
        size, latency = f"{quantity(one.bytes)}B", milliseconds(one.latency_ms)
        table.add_row(Text(one.file), f"{percent(one.accuracy)} %", size, latency, f"{one.difference:.1e}")
    return table
