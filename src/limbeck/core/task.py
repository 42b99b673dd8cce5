"""A task: how a batch is fed to a network, what the labels alone would teach, and how the result is judged and shown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from limbeck.core.digits import digits
from limbeck.core.exhibits import Exhibit, Shown
from limbeck.core.finding import Examined, Finding
from limbeck.core.frozen import Frozen, bare
from limbeck.core.objective import Objective, S, Source, Y, on
from limbeck.core.trace import Trace, describe, entry, record, tensors_in

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

Batch = Any
"""``(inputs, targets)``, ``(inputs, targets, ids)``, ``(inputs, targets, ids, traces)``, or a dict of named columns."""

UNLABELLED = -100
"""The target of a sample, pixel or token without a label: torch's own `ignore_index`."""

TARGETS = ("labels", "label", "targets", "target")
"""What the column of the targets may be called in a batch that is a dict."""
BESIDE = ("ids", "view_numbers", "traces")
"""Columns of a batch that is a dict which are no inputs of a network."""


@dataclass(frozen=True)
class Score:
    """The one metric by which trainings are judged.

    Args:
        name: Which of the task's metrics.
        unit: ``"%"``: a share of 1, shown in percent and compared in points; else what it is measured in, ``""`` for none.
        best: Whether more or less of it is better.
    """

    name: str
    unit: str = "%"
    best: Literal["highest", "lowest"] = "highest"

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def label(self) -> str:
        """The name with its unit, for an axis: ``"accuracy, %"``."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def points(self) -> str:
        """What differences are counted in."""
        return "points" if self.unit == "%" else self.unit

    def gain(self, value: float, other: float) -> float:
        """Return by how much ``value`` is better than ``other``: positive is better, whichever way the score goes."""
        return value - other if self.best == "highest" else other - value

    def number(self, value: float) -> str:
        """Return a value without its unit, as a table has it: 0.912 of ``"%"`` is 91.20."""
        return f"{100 * value:.2f}" if self.unit == "%" else digits(value, 4, zeros=True)

    def show(self, value: float) -> str:
        """Return a value with its unit: "91.20 %"."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def difference(self, difference: float) -> str:
        """Return a signed difference: "+1.20", "−0.35"; a zero has no sign."""
        text = f"{100 * abs(difference):.2f}" if self.unit == "%" else digits(abs(difference), zeros=True)
        if not text.strip("0."):
            return text
        return f"{'−' if difference < 0 else '+'}{text}"


def logits(output: Any) -> Tensor:
    """Return the logits in what a network gave: the tensor itself, ``.logits``, ``["out"]``, or a dict's only tensor.

    Raises:
        TypeError: There is no saying which tensor is meant.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        for key in ("logits", "out"):
            if key in tensors:
                return tensors[key]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
    if isinstance(named := getattr(output, "logits", None), Tensor):  # GoogLeNetOutputs, a dataclass
        return named
    said, found = f"expected the network to return one tensor, got {describe(output)}", tensors_in(output)
    if not found:
        raise TypeError(f"{said}, in which there is no tensor: let its forward return the answer, (N, K) of classes")
    code = next((code for code in found if _keys(code)[-1] in ("scores", "score", "preds")), next(iter(found)))
    shapes = ", ".join(f"out{code} of shape {tuple(value.shape)}" for code, value in found.items())
    raise TypeError(
        f"{said}: {shapes}. Say which is the answer, limbeck.Task(output=lambda out: out{code}) as task=, or --output "
        f"{':'.join(_keys(code))}"
    )


def _keys(code: str) -> list[str]:
    """Return the keys in the code that reads an entry: of ``['heads'][0]`` they are ``heads`` and ``0``."""
    return [name or key or at for name, key, at in re.findall(r"\.(\w+)|\['(.*?)'\]|\[(\d+)\]", code)]


def answer_at(key: str) -> Callable[[Any], Tensor]:
    """Return what finds the answer in a network's output: at ``"scores"``, ``"0"``, or deeper, ``"heads:scores"``."""

    def find(output: Any) -> Tensor:
        value = output
        for step in key.split(":"):
            try:
                value = entry(value, step)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(f"the output has no entry {key!r}: it is {describe(output)}") from error
        if not isinstance(value, Tensor):
            raise TypeError(f"the output's entry {key!r} is {describe(value)}, not a tensor")
        return value

    return find


def inputs_of(batch: Batch) -> Any:
    """Return a batch's inputs: its first entry, or of a dict all but targets, ``ids``, ``traces`` and words, as of paths.

    Raises:
        TypeError: What is no batch.
    """
    if isinstance(batch, Mapping):
        columns = {key: value for key, value in batch.items() if key not in (*TARGETS, *BESIDE)}
        return {key: value for key, value in columns.items() if not _is_words(value)} or columns
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(
            f"expected a batch, (inputs, targets) or a dict of columns, got {describe(batch)}. Data are loaders of "
            "batches: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=64); a batch "
            "of another kind needs task=limbeck.Task(inputs=lambda batch: ..., target=lambda batch: ...)"
        )
    return batch[0]


def _is_words(column: Any) -> bool:
    """Whether a column has strings alone, as one of paths, which stands beside what a network takes."""
    return isinstance(column, str) or (
        isinstance(column, (list, tuple)) and bool(column) and all(isinstance(one, str) for one in column)
    )


def target_of(batch: Batch) -> Any:
    """Return a batch's targets: its second entry, or ``labels`` (``label``, ``targets``, ``target``) of a dict."""
    if isinstance(batch, Mapping):
        found = [batch[key] for key in TARGETS if key in batch]
    else:
        found = list(batch[1:2])
    if not found:
        code = f"['{next(iter(batch), 'answers')}']" if isinstance(batch, Mapping) else "[1]"
        raise ValueError(
            f"found no targets in the batch, {describe(batch)}. Say where they are, as task=: "
            f"limbeck.Task(target=lambda batch: batch{code})"
        )
    return found[0]


def ids_of(batch: Batch) -> Tensor:
    """Return the ids of a batch's samples: its third entry, or ``ids`` of a dict."""
    found = [batch["ids"]] if isinstance(batch, Mapping) and "ids" in batch else []
    if not isinstance(batch, Mapping):
        found = list(batch[2:3])
    if not found:
        raise ValueError(
            f"found no sample ids in the batch, {describe(batch)}; methods that remember samples, such as crd, need them. "
            "Serve (inputs, targets, ids) as limbeck.data does, an id the sample's index in the data set, "
            "or say where they are: limbeck.Task(ids=lambda batch: batch['index'])"
        )
    return found[0]  # type: ignore[no-any-return]


def traces_of(batch: Batch) -> Mapping[str, Trace]:
    """Return what a batch brings along of what teachers said of it, by role: its fourth entry, or ``traces`` of a dict."""
    if isinstance(batch, Mapping):
        brought: Mapping[str, Trace] = batch.get("traces", {})
        return brought
    return batch[3] if len(batch) > 3 and isinstance(batch[3], Mapping) else {}


def views_of(batch: Batch) -> Tensor | None:
    """Return which view of each sample a batch shows: its fourth entry, a tensor, or ``view_numbers`` of a dict; else None.

    A loader of one's own serves them where it augments by (id, number) alone, so that what teachers say can be kept.
    """
    if isinstance(batch, Mapping):
        return batch.get("view_numbers")
    return batch[3] if len(batch) > 3 and isinstance(batch[3], Tensor) else None


def numbers_of(batch: Batch, ids: Tensor) -> Tensor:
    """Return which view of each sample a batch shows, as `views_of`; 0 where it does not say."""
    numbers = views_of(batch)
    return torch.zeros_like(ids) if numbers is None else numbers


def identified(batch: Batch, asked: Tensor) -> Tensor:
    """Return the ids of a batch's samples in its own order, or those that were asked for where it has none."""
    known = "ids" in batch if isinstance(batch, Mapping) else len(batch) > 2
    return ids_of(batch).cpu() if known else asked


def beside(batch: Batch, ids: Tensor, traces: Mapping[str, Trace]) -> Batch:
    """Return a batch that brings along what teachers said of it, where `traces_of` finds it, on the device of its ids.

    Raises:
        ValueError: A tuple with more than its four entries has no place for it.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 4:
        raise ValueError(
            f"a batch of {len(batch)} entries has no place for what teachers said: serve (inputs, targets, ids), or a dict "
            "of named columns"
        )
    own = batch.get("ids", ids) if isinstance(batch, Mapping) else batch[2] if len(batch) > 2 else ids
    there = {role: {name: value.to(own.device) for name, value in trace.items()} for role, trace in traces.items()}
    return {**batch, "traces": there} if isinstance(batch, Mapping) else (*batch[:2], own, there)


def no_mask(batch: Batch) -> None:
    """Let all positions count."""


def default_task() -> Task:
    """Return classification, whose file is built on this one."""
    from limbeck.tasks.classification import classification

    return classification


def _of_classification(field: str) -> Callable[..., Any]:
    """Return the default of a field: what classification has there, whose file is built on this one."""

    def default(*args: Any) -> Any:
        return getattr(default_task(), field)(*args)

    default.__name__ = default.__qualname__ = field
    default.__doc__ = f"Do as {field} of limbeck.classification does."
    return default


@dataclass(frozen=True)
class Task:
    """What a network is fed and answers, what the labels teach, and how the result is judged and shown.

    A record of functions: `dataclasses.replace` bends one, ``replace(limbeck.multilabel, output=lambda out: out.tags)``.
    What is not given is as in `limbeck.classification`; a task of another kind gives all but how it is fed.

    Args:
        name: For messages and tables.
        inputs: Finds the inputs in a batch; a dict is passed to the network as keyword arguments.
        output: Finds the answer in what a network returns. Classes come last: (N, K), (N, H, W, K), (N, L, V).
        ask: Asks a teacher in sight of what the student showed, ``(teacher, inputs, student's trace) -> answer``; the
            student then runs first. None: a teacher is asked as the student is.
        shows: Places of the student that ``ask`` reads.
        loss: What the labels teach: ``(answer, target) -> scalar``.
        outcomes: The answer as logits (..., outcomes) of what excludes each other, for methods that soften: classes as they
            are, and of several labels the two outcomes of each, (N, K, 2). None where an answer is no distribution.
        target: Finds the targets in a batch.
        ids: Finds the ids of the samples in a batch, for methods that remember samples.
        mask: Finds which positions of the answer count, as `limbeck.M`; None where all do.
        traces: Finds what a batch brings along of teachers, by role: then they are not run.
        metrics: Makes what is measured, ``.update(answer, target)``, for answers like the one given. `score` is among them.
        score: The metric that judges.
        guess: The score of who guesses, for answers like the one given; None where there is no such thing.
        examine: Yields what is wrong with labels, answers and teachers, before a training.
        exhibit: Yields what a page shows of the trained networks.
    """

    name: str = "classification"
    inputs: Callable[[Batch], Any] = inputs_of
    output: Callable[[Any], Any] = logits
    ask: Callable[[nn.Module, Any, Trace], Any] | None = None
    shows: tuple[str, ...] = ()
    loss: Callable[[Any, Any], Tensor] = _of_classification("loss")
    outcomes: Callable[[Any], Tensor] | None = _of_classification("outcomes")
    target: Callable[[Batch], Any] = target_of
    ids: Callable[[Batch], Tensor] = ids_of
    mask: Callable[[Batch], Tensor | None] = no_mask
    traces: Callable[[Batch], Mapping[str, Trace]] = traces_of
    metrics: Callable[[Any], MetricCollection] = _of_classification("metrics")
    score: Score = Score("accuracy")
    guess: Callable[[Any], float] | None = _of_classification("guess")
    examine: Callable[[Examined], Iterator[Finding]] = _of_classification("examine")
    exhibit: Callable[[Shown], Iterator[Exhibit]] = _of_classification("exhibit")

    def __init_subclass__(cls) -> None:
        raise TypeError(
            f"{cls.__name__} cannot inherit from Task, which is a record of functions: make one of your own, "
            "limbeck.Task(metrics=..., score=...), or bend one, dataclasses.replace(limbeck.multilabel, metrics=...)"
        )

    @property
    def hard(self) -> Objective:
        """What the labels alone teach."""
        return on(self.loss, S, Y, name="hard")

    @property
    def one_class(self) -> bool:
        """Whether of several classes one is right at each position: an answer is one distribution."""
        probe = torch.zeros(1, 2)
        return self.outcomes is not None and self.outcomes(probe).shape == probe.shape

    def known(self, target: Tensor) -> Tensor:
        """Return which positions of targets have a label, as they are shaped: not where they are -100, or NaN of values."""
        return target != UNLABELLED if self.outcomes is not None else ~target.isnan()

    def softened(self, *places: Source) -> tuple[Source, ...]:
        """Return places of answers as logits of their outcomes, for a loss that softens them.

        Raises:
            ValueError: The task's answers are no distributions.
        """
        if self.outcomes is None:
            raise ValueError(
                f"there are no probabilities to soften in {self.name}: match the answers themselves (logits, bounded), or "
                "features and relations (at, rkd, sp, review)"
            )
        return tuple(place.via(self.outcomes) for place in places)

    def exclusive(self, *places: Source) -> tuple[Source, ...]:
        """Return places of answers as logits of classes of which one is right, for a loss that needs one class a position.

        Raises:
            ValueError: A sample of the task has several labels, or values.
        """
        if not self.one_class:
            raise ValueError(
                f"this method needs one class a sample, and in {self.name} there is none: kd works with several labels, "
                "logits and bounded with values, and features and relations (at, rkd, sp, review) with anything"
            )
        return places

    def feed(self, net: Callable[..., Any], inputs: Any) -> Any:
        """Run ``net`` on ``inputs`` and return its answer. A teacher may have a view of its own, see `limbeck.Frozen`."""
        output = self.output
        if isinstance(net, Frozen):
            inputs, output = net.inputs(inputs), net.output or output
        try:
            given = net(**inputs) if isinstance(inputs, Mapping) else net(inputs)
        except TypeError as error:
            _explain(net, inputs, error)
            raise
        try:
            answer = output(given)
        except (AttributeError, LookupError, TypeError) as error:
            if getattr(output, "__module__", None) == __name__:  # which has words of its own
                raise
            raise TypeError(_unfit(net, given, error)) from error
        return net.translate(answer) if isinstance(net, Frozen) else answer

    def look(self, net: nn.Module, inputs: Any, paths: Collection[str] = (), beside: Trace | None = None) -> Trace:
        """Run ``net`` and return its answer, under ``""``, with the layers in ``paths``.

        Args:
            net: The network.
            inputs: What it is fed, as ``inputs`` finds it in a batch.
            paths: See `limbeck.record`.
            beside: What the student showed of the same inputs, where a teacher is asked in sight of it.
        """
        if not paths and (self.ask is None or beside is None):
            return {"": self.feed(net, inputs)}
        with record(bare(net), paths) as trace:
            if self.ask is None or beside is None:
                answer = self.feed(net, inputs)
            else:
                answer = self.ask(bare(net), inputs, beside)
        shown = net.shown(trace, inputs) if isinstance(net, Frozen) else trace
        return {**shown, "": answer}


def _unfit(net: Any, given: Any, error: Exception) -> str:
    """Say that what finds an answer does not find that of this network."""
    return (
        f"output= does not find the answer of {type(bare(net)).__name__}, which gave {describe(given)} "
        f"({type(error).__name__}: {error}). Student and teacher share a task: where the teacher answers otherwise, say so "
        "of it alone, limbeck.Frozen(teacher, output=lambda out: ...)"
    )


def _explain(net: Any, inputs: Any, error: TypeError) -> None:
    """Raise in words what a network cannot be called with; errors from inside of it stay as they are."""
    forward = getattr(bare(net), "forward", net)
    arrays = [one for one in tree_leaves(inputs) if hasattr(one, "__array__") and not isinstance(one, Tensor)]
    if arrays:
        raise TypeError(
            f"{type(bare(net)).__name__} is given {type(arrays[0]).__module__}.{type(arrays[0]).__name__}, and networks "
            "take tensors: let the loader give them, torch.as_tensor(inputs), as torch.utils.data.DataLoader does by itself"
        ) from error
    try:
        args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
        inspect.signature(forward).bind(*args, **kwargs)
    except TypeError as mismatch:
        wanted = [name for name in inspect.signature(forward).parameters if name not in ("args", "kwargs")]
        key = next(iter(inputs), "image") if isinstance(inputs, Mapping) else None
        code = "batch[0]" if key is None else f"batch[{key!r}]"
        if key is not None and len(wanted) > 1:
            code = f"{{{wanted[0]!r}: batch[{key!r}], ...}}"
        raise TypeError(
            f"{type(bare(net)).__name__} takes {wanted}, and is given {describe(inputs)} ({mismatch}). Say what of a batch "
            f"it is fed, as task=: limbeck.Task(inputs=lambda batch: {code})"
        ) from error
    except ValueError:  # no signature to be had
        return
