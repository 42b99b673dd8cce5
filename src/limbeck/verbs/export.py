"""A network as files that ship: each is loaded again, and must answer on real data as the network does."""

from __future__ import annotations

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
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from inspect import Parameter, Signature
from itertools import chain, dropwhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from limbeck.core.batches import part, tensors
from limbeck.core.copied import copied
from limbeck.core.digits import digits
from limbeck.core.extras import install
from limbeck.core.files import hold, write
from limbeck.core.frozen import Frozen, bare
from limbeck.core.sound import FLOATS, flaw, no_network, quantised
from limbeck.core.task import Score, Task, answer_at
from limbeck.core.trace import describe, tensors_in
from limbeck.core.wrapped import shipped
from limbeck.data import Data
from limbeck.data.pipeline import normalisation
from limbeck.engine.run import packed
from limbeck.measure.cost import latency_ms
from limbeck.measure.evaluate import Measurement, batches
from limbeck.nets.ensemble import Ensemble
from limbeck.nets.exits import AllExits, EarlyExit
from limbeck.report.notebook import Told
from limbeck.report.table import milliseconds, size
from limbeck.tasks.classification import classification

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
BATCH = Dim("batch")
TORCH = str(Path(torch.__file__).parent)
SECONDS = 0.2
"""For how long a latency is measured; its median counts."""
DRAFTS = ".export-"
"""How the folders begin in which files are made, beside those that are there already."""
SAFETENSORS = "its weights ship, formats=['safetensors'] (--formats safetensors)"
"""What is left where there can be no graph."""

Answer = Callable[[Any], Any]
"""What an artefact is once it has been loaded: from inputs to the answer."""


@dataclass(frozen=True)
class Artefact:
    """A file that ships, as it was measured after it had been loaded again.

    Args:
        format: What it is.
        file: Its name in the folder.
        value: The task's score on the test data.
        bytes: Size of the file.
        latency_ms: Median time of one sample on one thread, in milliseconds.
        difference: Largest absolute difference of an answer to the network's, over the test data.
    """

    format: Format
    file: str
    value: float
    bytes: int
    latency_ms: float
    difference: float


@dataclass(frozen=True)
class Exported:
    """What `export` left.

    Args:
        folder: Where the files are.
        about: What the files say of themselves: ``network``, ``limbeck`` (the version), ``input_shape`` (of inputs by name,
            a shape each), where known ``data``, ``classes``, ``mean`` and ``std``, and ``note``: what is not known, or left
            out, in words.
        samples: Test samples.
        tolerance: Largest difference that was allowed.
        score: What is measured; ``export.json`` has values under its name.
        value: The score of the network itself.
        latency_ms: Of the network itself, run by PyTorch.
        artefacts: The files that are there.
        failures: Why others are not, by format.
        notes: What the files do not have, and how to have it, a sentence each.
    """

    folder: Path
    about: Mapping[str, Any]
    samples: int
    tolerance: float
    score: Score
    value: float
    latency_ms: float
    artefacts: tuple[Artefact, ...]
    failures: Mapping[Format, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return what `print` shows: each file beside the network that it was made of."""
        return self._told().text()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: likewise."""
        return self._told().html()

    def _told(self) -> Told:
        failed = [f"{format}: {reason}" for format, reason in self.failures.items()]
        return Told(_title(self), [*failed, *self.notes], _header(self), _rows(self), f"Files: {self.folder}")

    def json(self) -> str:
        """Return all of it as JSON, where values have the score's name."""
        told = asdict(self) | {"folder": str(self.folder)}
        told["artefacts"] = [self._said(one) for one in told["artefacts"]]
        del told["score"]
        return json.dumps(self._said(told), indent=2, ensure_ascii=False)

    def _said(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {self.score.name if key == "value" else key: value for key, value in told.items()}


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
    task: Task | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    also: Sequence[str] = (),
    notes: Sequence[str] = (),
    progress: bool | None = None,
) -> Exported:
    """Write a network as files that ship, and prove that they answer as it does.

    ``safetensors`` is the plain ``state_dict``, for the plain network: without wrappers (`torch.compile`,
    ``DataParallel``), and with the weights that pruning, weight norm and the like compute. ``torch_export`` is a program
    for ``torch.export.load``, ``onnx`` a graph for every ONNX runtime: both are the network in eval mode, from ``input``
    (N, ...), normalised as the data are, to ``logits``, for any N. ``int8`` is that graph with 8-bit weights.

    Graphs give the task's answer, one tensor; where it is no distribution, as in regression, it is called ``output``
    instead of ``logits``. What else the network returns is left out, with a note, unless ``also`` names it: it then is an
    output by its name. Where a network is fed a dict, a graph's inputs have the names of its entries: ``input_ids`` and
    ``attention_mask``, say, (N, L), for any L too. Only tensors enter graphs and leave them: a detector, whose images and
    boxes are lists, ships as safetensors.

    The files say of themselves what is known of the data: the names of the classes, and mean and standard deviation by
    which inputs are normalised. Loaders do not know them, and ``mean``, ``std`` and ``classes`` say them; where nobody
    does, the files and the result say that in words.

    Of a network with exits (`limbeck.EarlyExit`) the graphs have no branches: every exit runs for every sample, which saves
    no compute. ``logits`` is what the first exit says that is sure, by the network's thresholds, as the network itself
    answers; a second output, ``exits`` (N, M, K), is what all of them say. Compute is saved by the network in PyTorch.

    Every file is loaded again, ONNX by onnxruntime, and run over the whole test data beside the network; where an answer
    differs by more than ``tolerance``, there is no file. ``int8`` differs by design: its score is to be looked at. The
    network runs on the CPU, in eval mode; the one given is left as it is. ``export.json`` tells what is told here.

    int8 is onnxruntime's dynamic quantisation: weights once, activations at every run, with a scale for the whole batch,
    so that a sample's answer depends a little on its batch. Weights are unsigned: convolutions with signed ones are missing
    in older versions of onnxruntime (its issues 6430 and 15888), and took resnet8 11 ms instead of 0.5 ms in 1.31. Grouped
    convolutions stay as they are: a tensor has one scale, which the channels of depthwise ones do not bear (Krishnamoorthi
    2018, arXiv 1806.08342), and they hold few of the weights. Files get smaller; convolutions need not get
    faster, and onnxruntime's authors advise static quantisation for them (issue 12854).

    Args:
        net: The network. Of a teacher with a view of its own (`limbeck.Frozen`) the graphs take what the view feeds it, and
            give the answer as the view reads it.
        data: What `limbeck.fit` accepts, of which the test data, or else the last loader, are used; or a loader alone.
        folder: Where the files go.
        formats: Which: out of ``"safetensors"``, ``"torch_export"``, ``"onnx"``, ``"int8"``.
        tolerance: Largest absolute difference of an answer that is allowed; 1e-4 is ours, some ten times what float32
            leaves of logits about 10 in another order of summation.
        name: What the files call the network; by default its class.
        task: What of a batch the network is fed, where the answer is in what it returns, and what is measured; by default
            the data's own, and classification for a loader.
        mean: Of every channel of pixels scaled to [0, 1], or of every column, by which the inputs are normalised, where the
            data do not say it.
        std: Likewise.
        classes: The names of the classes, in the order of the outputs, where the data do not say them.
        also: What else of that which the network returns becomes an output of the graphs: keys, fields or places, as
            ``"embedding"``, ``"1"`` or ``"heads:rotation"``. It is compared too.
        notes: What else the files and the result are to say in words, a sentence each: where the weights come from, say.
        progress: Show a progress bar; by default where standard error is a terminal.

    Raises:
        ValueError: An unknown format, a negative tolerance, or no test data; a network without weights or with broken ones,
            a quantised one, or one of another floating-point type than the data; mean, std or classes that do not fit, or
            that the data say otherwise; no output where ``also`` says.
        TypeError: What is no network; inputs that the network does not take, or outputs in which no answer is found.
        ModuleNotFoundError: ``limbeck[export]`` is not installed.
        ExportError: Some formats failed: a graph that cannot be traced, with the line of the network where, or one that
            differs. The others are written.

    Example:
        >>> import tempfile, limbeck
        >>> data = limbeck.data.load("digits")
        >>> net = limbeck.zoo.network("mlp-32", data.outputs, data.shape)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = limbeck.export(net, data, folder, formats=["safetensors"])
        >>> [(one.file, one.difference) for one in exported.artefacts]
        [('student.safetensors', 0.0)]
    """
    if not isinstance(net, nn.Module):
        raise TypeError(no_network("net", net))
    if isinstance(notes, str):
        raise TypeError(f"notes must be a list of sentences, got the string {notes!r}")
    wanted = _checked(formats, tolerance)
    loader = _held_out(data)
    task = task or (data.task if isinstance(data, Data) else classification)
    plain, task = _plain(net, task)
    served = batches(loader, plain)
    folder = Path(folder)
    if (first := next(served, None)) is None:
        raise ValueError("data gave no batch, and there is nothing to compare on")
    example = part(task.inputs(first), [0, -1])  # two: of a single one torch.export would keep the number
    answer = _answered(plain, task, example)  # raises where no answer is found, before anything is made
    shown = _Shown(task, _checked_names(also, example, task))
    left_out = shown.left_out(plain, example)
    about = {
        **_about(name or type(plain).__name__, data, example, task),
        **_said_of_inputs(data, example, mean, std),
        **_said_of_classes(data, answer, task, classes),
    }
    notes = (*notes, *_notes(about, example, answer, task, left_out))
    if notes:
        about["note"] = " ".join(notes)
    with _scratch(folder) as scratch, _bar(progress) as bar:
        drafts = _Drafts(plain, shown, example, about, scratch)
        line = bar.add_task("", total=None)
        for format in wanted:
            bar.update(line, description=format)
            drafts.make(format)
        bar.update(line, description="comparing", total=_length(loader))
        own = _Comparison(shown)
        compared = {format: _Comparison(shown) for format in drafts.answers}
        for batch in chain([first], served):
            _compare(drafts, batch, own, compared)
            bar.advance(line)
        for format, comparison in compared.items():
            with drafts.noting(format):
                if format == "int8":
                    drafts.need_onnx()
                comparison.judge(sys.float_info.max if format == "int8" else tolerance)
        exported = Exported(
            folder=folder,
            about=about,
            samples=own.measurement.samples,
            tolerance=tolerance,
            score=task.score,
            value=own.value,
            latency_ms=_latency_ms(partial(task.feed, plain), example),
            artefacts=tuple(
                _artefact(drafts, format, compared[format]) for format in drafts.answers if format in formats
            ),
            failures={format: _reason(error) for format, error in drafts.failures.items() if format in formats},
            notes=notes,
        )
        _deliver(exported, drafts)
    if exported.failures:
        raise ExportError(exported) from next(iter(drafts.failures.values()))
    return exported


class _Shown:
    """What a graph gives of all that a network returns: the task's answer, and beside it what the user names.

    Args:
        task: Says where the answer is.
        also: The others.
    """

    def __init__(self, task: Task, also: Sequence[str]) -> None:
        self.answers, self.also = task, tuple(also)
        finds = [answer_at(key) for key in also]
        self.task = (
            replace(task, output=lambda raw: (task.output(raw), *(find(raw) for find in finds))) if also else task
        )

    @property
    def names(self) -> list[str]:
        """The graph's outputs."""
        return [_answer_name(self.answers), *self.also]

    def answer(self, given: Any) -> Any:
        """Return the answer alone, of what a graph gave."""
        return given[0] if self.also else given

    def left_out(self, net: nn.Module, example: Any) -> list[str]:
        """Return the keys of the tensors that a network returns and the graph does not give.

        Raises:
            ValueError: It returns nothing where the user says.
        """
        raw = _call(net, example)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors(self.task.output(raw))}
        return [
            code.strip("[].'")
            for code, tensor in tensors_in(raw).items()
            if tensor.untyped_storage().data_ptr() not in given
        ]


def _answer_name(task: Task) -> str:
    return "output" if task.outcomes is None else "logits"


class _Drafts:
    """The files while they are made, and what they answer once they have been loaded again."""

    def __init__(self, net: nn.Module, shown: _Shown, example: Any, about: Mapping[str, Any], folder: Path) -> None:
        self.net, self.shown, self.task, self.example, self.folder = net, shown, shown.task, example, folder
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
            return _session(self.path(format), threads, len(self.shown.names))
        if format == "torch_export":
            program = torch.export.load(self.path(format)).module()
            exits = isinstance(self.net, EarlyExit)
            return lambda inputs: _call(program, inputs)[0] if exits else _call(program, inputs)
        from safetensors.torch import load_file

        net = copied(self.net)
        net.load_state_dict(load_file(self.path(format)))
        return partial(self.task.feed, net)

    def need_onnx(self) -> None:
        """Raise what is wrong with the graph that int8 is made of."""
        if "onnx" in self.failures:
            raise self.failures["onnx"]

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as torch.export follows it, for any number of samples."""
        graph, (args, kwargs) = self._graph(), _arguments(self.example)
        with redirect_stderr(io.StringIO()):  # where torch prints half a graph before it raises
            return torch.export.export(graph, args, kwargs, dynamic_shapes=_axes(self.example), strict=False)

    def _graph(self) -> nn.Module:
        """Return what is exported: the network, of which the answer alone is seen, or every exit."""
        _check_inputs(self.example)
        if any(isinstance(part, torch.jit.ScriptModule) for part in self.net.modules()):
            raise TypeError(
                "a TorchScript network cannot be followed: export the network that it was made of, or write it by "
                f"torch.jit.save; {SAFETENSORS}"
            )
        if isinstance(self.net, EarlyExit):
            return AllExits(self.net)
        raw = _call(self.net, self.example)
        given = self.task.output(raw)
        if not isinstance(answer := self.shown.answer(given), Tensor):
            raise TypeError(f"a graph gives one tensor, and the answer is {describe(answer)}: {SAFETENSORS}")
        if isinstance(self.example, Mapping):
            return _AnswerByName(self.net, self.task, list(self.example))
        if isinstance(self.net, Ensemble) or given is not raw:  # an ensemble takes what its members take
            return _Answer(self.net, self.task)
        return self.net

    def _safetensors(self, path: Path) -> None:
        path.write_bytes(packed(self.net, self.about))

    def _torch_export(self, path: Path) -> None:
        torch.export.save(self.program, path, extra_files={"limbeck.json": json.dumps(self.about)})

    def _onnx(self, path: Path) -> None:
        outputs = self.shown.names
        try:
            graph = torch.onnx.export(
                self.program,
                dynamo=True,
                verbose=False,
                input_names=list(_named(self.example)),
                output_names=[*outputs, "exits"] if isinstance(self.net, EarlyExit) else outputs,
                dynamic_shapes=_axes(self.example),  # once more, for the name of the axis
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


class _Answer(nn.Module):
    """A network of which the answer alone is seen."""

    def __init__(self, net: nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.task = net, task

    def forward(self, inputs: Any) -> Any:
        return self.task.feed(self.net, inputs)


class _AnswerByName(nn.Module):
    """The same of a network that is fed a dict: it takes the entries by their names."""

    def __init__(self, net: nn.Module, task: Task, names: Sequence[str]) -> None:
        super().__init__()
        self.net = net

        def forward(**inputs: Tensor) -> Any:
            return task.feed(net, inputs)

        # torch.export reads the names here; programs whose inputs are **inputs do not run (torch 2.14)
        forward.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in names])  # type: ignore[attr-defined]
        self.forward = forward


class _Comparison:
    """How good answers are, and how far from those of the network, with what is given beside them."""

    def __init__(self, shown: _Shown) -> None:
        self.shown, self.measurement, self.difference, self.largest = shown, Measurement(shown.answers), 0.0, 0.0

    @property
    def value(self) -> float:
        """The task's score."""
        return self.measurement.compute()[self.shown.answers.score.name]

    def add(self, answers: Any, expected: Any, target: Any) -> None:
        """Count a batch."""
        given, wanted = tensors(answers), tensors(expected)
        shapes, right = ([tuple(tensor.shape) for tensor in side] for side in (given, wanted))
        if shapes != right:
            raise ValueError(f"gives outputs of shape {_some(shapes)}, the network {_some(right)}")
        self.measurement.add(self.shown.answer(answers), target)
        for mine, its in zip(given, wanted, strict=True):
            self.difference = _larger(self.difference, mine - its)
            self.largest = _larger(self.largest, its)

    def judge(self, tolerance: float) -> None:
        """Raise where the answers are too far off."""
        if not self.difference <= tolerance:
            raise ValueError(
                f"differs from the network by up to {self.difference:.3g}, more than the tolerance of {tolerance:.3g}, on "
                f"{self.measurement.samples:,} test samples (its outputs reach {self.largest:.3g}): does it draw random "
                "numbers in eval mode? --tolerance (tolerance=...) allows more"
            )


def _some(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")


def _larger(before: float, values: Tensor) -> float:
    """Return the largest magnitude so far; a NaN stays one, which Python's max would lose."""
    return float(torch.cat([values.abs().flatten(), torch.tensor([before])]).max())


def _compare(drafts: _Drafts, batch: Any, own: _Comparison, compared: Mapping[Format, _Comparison]) -> None:
    """Let the network and all that was made of it answer one batch."""
    task = drafts.task
    inputs, target = task.inputs(batch), task.target(batch)
    expected = task.feed(drafts.net, inputs)
    own.add(expected, expected, target)
    for format, answer in list(drafts.answers.items()):
        with drafts.noting(format):
            compared[format].add(answer(inputs), expected, target)


def _artefact(drafts: _Drafts, format: Format, comparison: _Comparison) -> Artefact:
    return Artefact(
        format=format,
        file=FILES[format],
        value=comparison.value,
        bytes=drafts.path(format).stat().st_size,
        latency_ms=_latency_ms(drafts.load(format, threads=1), drafts.example),
        difference=comparison.difference,
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
        raise ModuleNotFoundError(
            f"onnx and int8 need {', '.join(missing)}: {install('export')}, or leave them out: "
            "--formats safetensors,torch_export (formats=...)"
        )
    return [format for format in FORMATS if format in formats or (format == "onnx" and "int8" in formats)]


def _plain(net: nn.Module, task: Task) -> tuple[nn.Module, Task]:
    """Return the network itself, on the CPU and in eval mode, and the task that feeds and reads it as its view does."""
    given = bare(net)
    if wrong := flaw(given):
        raise ValueError(f"the network ({type(given).__name__}) {wrong}")
    if (layer := quantised(given)) is not None:
        raise ValueError(
            f"the network is quantised already ({layer}), and its weights are packed for torch's own layers: export the "
            "network that it was made of, int8 is one of the formats"
        )
    plain = copied(shipped(given)).eval().cpu()
    for p in plain.parameters():
        p.requires_grad_(False)
    if not isinstance(net, Frozen):
        return plain, task
    output = net.output or task.output
    return plain, replace(
        task,
        inputs=lambda batch: net.inputs(task.inputs(batch)),
        output=lambda raw: net.translate(output(raw)),
    )


def _answered(net: nn.Module, task: Task, example: Any) -> Any:
    """Return what a network answers, and see that it does at all."""
    try:
        return task.feed(net, example)
    except RuntimeError as error:
        given = {leaf.dtype for leaf in tensors(example) if leaf.dtype in FLOATS}
        if other := {p.dtype for p in net.parameters() if p.dtype in FLOATS} - given:
            raise ValueError(
                f"the network has weights in {', '.join(map(str, other))}, and the data are in "
                f"{', '.join(map(str, given)) or 'whole numbers'}: export(copy.deepcopy(net).float(), ...)"
            ) from error
        raise


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make a folder for drafts where they are to be, and take away those of exports that were killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{DRAFTS}*"):
        with hold(left / "lock") as ended:
            if ended:
                shutil.rmtree(left)
    try:
        with TemporaryDirectory(prefix=DRAFTS, dir=folder) as scratch, hold(Path(scratch) / "lock"):
            yield Path(scratch)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _check_inputs(example: Any) -> None:
    """Refuse what no graph takes."""
    named = _named(example)
    others = [f"{name!r} is {describe(value)}" for name, value in named.items() if not isinstance(value, Tensor)]
    if others:
        raise TypeError(
            f"a graph takes tensors (N, ...), one or a dict of them, and here {', '.join(others)}. Leave out what the "
            f"network does not need, limbeck.Task(inputs=lambda batch: ...); else {SAFETENSORS}"
        )


def _named(inputs: Any) -> Mapping[str, Any]:
    """Return inputs by their names in a graph."""
    return inputs if isinstance(inputs, Mapping) else {"input": inputs}


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how a network is given its inputs, as `limbeck.Task.feed` does."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})


def _call(net: Callable[..., Any], inputs: Any) -> Any:
    args, kwargs = _arguments(inputs)
    return net(*args, **kwargs)


def _axes(example: Any) -> Any:
    """Return which axes of a graph's inputs may have any length: that of samples, and the next of tokens, (N, L)."""
    if not isinstance(example, Mapping):
        return ({0: BATCH},)
    return {
        name: {0: BATCH, 1: Dim.AUTO} if value.ndim == 2 and not value.is_floating_point() else {0: BATCH}
        for name, value in example.items()
    }


def _held_out(data: Data | Iterable[Any]) -> Iterable[Any]:
    """Return the test data in what `limbeck.fit` accepts as data, or the batches themselves."""
    if isinstance(data, (str, Path)):
        raise TypeError(f"data must be a limbeck.data.Data or a loader, got {data!r}: export(net, data, folder)")
    if isinstance(data, Data):
        return data.test
    if isinstance(data, tuple) and not any(isinstance(each, (tuple, list, Mapping, Tensor)) for each in data):
        return next(loader for loader in reversed(data) if loader is not None)  # (train, val, test)
    return data


def _about(name: str, data: object, example: Any, task: Task) -> dict[str, Any]:
    """Return what a file says of itself."""
    shapes = {key: list(value.shape[1:]) for key, value in _named(example).items() if isinstance(value, Tensor)}
    known: dict[str, Any] = {"network": name, "limbeck": importlib.metadata.version("limbeck")}
    known["input_shape"] = shapes if isinstance(example, Mapping) else shapes.get("input")
    if isinstance(data, Data):
        known["data"] = data.name
    if task.name != Task.name:  # as in weights: what nothing is said of is classification
        known["task"] = task.name
    return {key: value for key, value in known.items() if value}


def _said_of_inputs(
    data: object, example: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Return how inputs are normalised, as the data know or the user says."""
    known = (data.mean, data.std) if isinstance(data, Data) else ((), ())
    if mean is None and std is None:
        return {"mean": known[0], "std": known[1]} if known[0] else {}
    if not isinstance(example, Tensor):
        raise TypeError(f"mean and std are those of inputs that are one tensor, and here they are {describe(example)}")
    said = normalisation("limbeck.export", example.shape[1], mean, std, pixels=example.ndim == 4)
    if known[0] and said != known:
        raise ValueError(
            f"the data are normalised by mean={known[0]} and std={known[1]}, got mean={mean} and std={std}: leave them out"
        )
    return dict(zip(("mean", "std"), said or (), strict=True))


def _said_of_classes(data: object, answer: Any, task: Task, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the names of the classes, as the data know or the user says."""
    known = tuple(data.classes) if isinstance(data, Data) else ()
    if classes is None:
        return {"classes": known} if known else {}
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be the names of the classes, ('cat', 'dog'), got {classes!r}")
    outputs = answer.shape[-1] if isinstance(answer, Tensor) and task.outcomes is not None else len(classes)
    if len(classes) != outputs:
        raise ValueError(f"classes must name each of the network's {outputs} outputs, got {len(classes)} names")
    if known and tuple(classes) != known:
        raise ValueError(f"the data have the classes {', '.join(known)}, got {', '.join(classes)}: leave classes out")
    return {"classes": tuple(classes)}


def _checked_names(also: Sequence[str], example: Any, task: Task) -> Sequence[str]:
    """Refuse outputs of a graph that have no name of their own."""
    if isinstance(also, str):
        raise TypeError(f"also must be a list of what else the network returns, ['{also}'], got {also!r}")
    taken = [*_named(example), _answer_name(task)]
    for name in also:
        if name in taken:
            raise ValueError(f"also: {name!r} is the name of an input or output already: {', '.join(taken)}")
        taken.append(name)
    return also


def _notes(about: Mapping[str, Any], example: Any, answer: Any, task: Task, left_out: Sequence[str]) -> Iterator[str]:
    """Say what the files do not have, and how to have it."""
    if "mean" not in about and isinstance(example, Tensor) and example.is_floating_point():
        yield (
            "How inputs are normalised is not known, since the data do not say it: export(mean=..., std=...) tells the "
            "files (--mean, --std)."
        )
    of_tokens = isinstance(example, Mapping) and isinstance(answer, Tensor) and answer.ndim > 2
    if "classes" not in about and isinstance(answer, Tensor) and task.outcomes is not None and not of_tokens:
        yield (
            "The names of the classes are not known, since the data do not say them: export(classes=[...]) tells the files "
            "(--classes)."
        )
    if left_out:
        yield (
            f"The network also returns {', '.join(left_out)}, which the graphs leave out: export(also={list(left_out)}) "
            f"makes it an output (--also {_listed(left_out)})."
        )


def _listed(names: Sequence[str]) -> str:
    """Return names as a command line takes them."""
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"


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


def _session(path: Path, threads: int, outputs: int) -> Answer:
    """Load an ONNX file into onnxruntime, on the CPU; what is returned are its first outputs, as a tuple if several."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()[:outputs]]

    def answer(inputs: Any) -> Any:
        given = session.run(names, {name: value.numpy() for name, value in _named(inputs).items()})
        return tuple(map(torch.from_numpy, given)) if outputs > 1 else torch.from_numpy(given[0])

    return answer


def _latency_ms(answer: Answer, example: Any) -> float:
    return latency_ms(partial(answer, part(example, slice(0, 1))), torch.device("cpu"), SECONDS)


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

    table = Table(title=Text(_title(exported)), title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(_header(exported)):
        table.add_column(heading, justify="right" if index else "left")
    for cells in _rows(exported):
        table.add_row(*map(Text, cells))
    return table


def _title(exported: Exported) -> str:
    data = exported.about.get("data")
    return f"{exported.about['network']}, {exported.samples:,} test samples" + (f" of {data}" if data else "")


def _header(exported: Exported) -> tuple[str, ...]:
    return ("artefact", exported.score.name, "size", "latency", "max difference")


def _rows(exported: Exported) -> list[tuple[str, ...]]:
    score = exported.score
    network = ("the network itself", score.show(exported.value), "–", milliseconds(exported.latency_ms), "–")
    files = [
        (one.file, score.show(one.value), size(one.bytes), milliseconds(one.latency_ms), digits(one.difference, 2))
        for one in exported.artefacts
    ]
    return [network, *files]
