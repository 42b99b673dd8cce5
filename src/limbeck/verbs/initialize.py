"""Begin a student with its teacher's weights: `initialize`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.core.copied import copied
from limbeck.core.extras import needing
from limbeck.core.frozen import bare
from limbeck.core.task import Task
from limbeck.tasks.classification import classification

if TYPE_CHECKING:
    from rich.table import Table

Channels = Literal["largest", "first"]
How = Literal["whole", "sliced", "left"]
Shape = tuple[int, ...]
Blocks = Mapping[str, Sequence[int]]

ROWS = (nn.Sequential, nn.ModuleList)
"""Containers whose children are numbered, so that some of them can be left out."""


@dataclass(frozen=True)
class Inherited:
    """What became of one of the student's parameters or buffers.

    Args:
        path: Its name in the student's ``state_dict``.
        how: ``"whole"``, ``"sliced"`` to some of its channels, or ``"left"`` as it was.
        shape: The student's.
        source: Its name in the teacher's ``state_dict``; empty where it has none.
        source_shape: The teacher's.
        reason: Why it was left.
    """

    path: str
    how: How
    shape: Shape
    source: str = ""
    source_shape: Shape = ()
    reason: str = ""


@dataclass(frozen=True)
class Inheritance:
    """What a student got from its teacher; ``rich.print`` shows it as a table.

    Args:
        entries: One for each parameter and buffer of the student, in their order.
        unused: The teacher's parameters and buffers that nothing was taken from.
        difference: How far the student's answers to the example are from those of the teacher with the same blocks and
            channels, the largest difference over the largest answer; None without an example, or where shapes differ.
        differs: Where the two begin to differ, in words; empty where they do not, or what was left explains it.
    """

    entries: tuple[Inherited, ...]
    unused: tuple[str, ...] = ()
    difference: float | None = None
    differs: str = ""

    def of(self, how: How) -> list[Inherited]:
        """Return the entries that were copied whole, sliced, or left."""
        return [entry for entry in self.entries if entry.how == how]

    @property
    def share(self) -> float:
        """Of the student's numbers, those that are the teacher's, in [0, 1]."""
        sizes = {how: sum(math.prod(entry.shape) for entry in self.of(how)) for how in get_args(How)}
        return 1 - sizes["left"] / max(1, sum(sizes.values()))

    def __str__(self) -> str:
        """Return the counts, in a sentence."""
        counts = {how: len(self.of(how)) for how in get_args(How)}
        said = (
            f"{counts['whole']} copied whole, {counts['sliced']} sliced, {counts['left']} left as they were: "
            f"{100 * self.share:.1f} % of the student is the teacher's; {len(self.unused)} of the teacher's are not used"
        )
        return (
            f"{said}. But the student does not compute what the teacher does: {self.differs}" if self.differs else said
        )

    def __rich__(self) -> Table:
        """Return the table that ``rich.print`` shows: a line for each layer, with the shape of its weight."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, caption=escape(str(self)), caption_justify="left")
        for heading in ("student", "shape", "", "teacher", "shape", ""):
            table.add_column(heading, no_wrap=heading != "", overflow="fold")
        for layer, entries in groupby(self.entries, key=lambda entry: entry.path.rpartition(".")[0]):
            first, *others = entries
            worst = max((first, *others), key=lambda entry: get_args(How).index(entry.how))
            shapes = ["x".join(map(str, shape)) for shape in (first.shape, first.source_shape)]
            cells = layer, shapes[0], worst.how, first.source.rpartition(".")[0], shapes[1], worst.reason
            table.add_row(*map(escape, cells), style="yellow" if worst.how == "left" else None)
        table.caption_style = "bold red" if self.differs else "table.caption"
        return table


def initialize(
    student: nn.Module,
    teacher: nn.Module,
    *,
    example: Any | None = None,
    channels: Channels = "largest",
    blocks: Blocks | None = None,
    task: Task = classification,
) -> Inheritance:
    """Begin a student with the weights of a teacher of the same kind, which is deeper, wider or both.

    Depth: of a row of blocks (an ``nn.Sequential`` or ``nn.ModuleList`` that is longer in the teacher) the student's block
    b takes the teacher's block round(b (L_t − 1) / (L_s − 1)), so the first and the last are among them. Width: channels
    that belong together, through batch norm, residual sums and depthwise convolutions, are found by torch-pruning's
    dependency graph (Fang et al., "DepGraph", CVPR 2023, arXiv 2301.12900) and scored by Σ |w| over all weights of
    convolutions and linear layers into and out of them; the student gets the best. Outputs are never sliced.

    A student that is the teacher with these channels pruned gives the outputs of that network. It is a beginning, not a
    solution: its batch norm has statistics of the wide network, so let it see some batches before it is judged,
    ``torch.optim.swa_utils.update_bn(data.train, student)``; about 100 of them.

    Paths must be the same in both networks, as in two of a family. What does not fit is left as it was and listed. What
    networks do without parameters, as a residual sum that only one of them has, no list of parameters shows: with an
    ``example`` both are asked, and if the answers differ and nothing was left, the report says where that begins, and
    there is a warning.

    Args:
        student: The network to train; its weights change in place.
        teacher: The network to take from; it is left as it was.
        example: A batch of inputs, (N, ...), where the teacher is, to trace it by and to compare the two on; needed where
            widths differ.
        channels: ``"largest"`` keeps those with the largest weights, as GAN Compression does; ``"first"`` the first ones,
            for networks trained to share their weights that way (slimmable, once-for-all, NetAug).
        blocks: Which of the teacher's blocks to take where the rule above should not decide, by the row's path and in the
            student's order: ``{"layer1": [0, 4]}``.
        task: How inputs are fed.

    Returns:
        What was copied, whole or sliced, and from where, and what was left.

    Raises:
        ValueError: Nothing fits; rows of layers of which it cannot be known which belong together; a teacher that cannot
            be traced, or does not run with the student's blocks or widths.
        ModuleNotFoundError: Widths differ and torch-pruning is not installed.

    Example:
        >>> import limbeck
        >>> teacher, student = (limbeck.zoo.network(name, 10, (3, 32, 32)) for name in ("resnet20", "resnet8"))
        >>> report = limbeck.initialize(student, teacher)
        >>> report.share, report.entries[0].source
        (1.0, 'conv1.weight')
    """
    if channels not in get_args(Channels):
        raise ValueError(f"channels must be 'largest' or 'first', got {channels!r}")
    teacher = bare(teacher)
    net, origins = _shortened(student, teacher, blocks or {})
    theirs, ours = _tensors(net), _tensors(student)
    if any(theirs[path].shape != tensor.shape for path, tensor in ours.items() if path in theirs):
        _narrow(net, student, example, channels, task)
    report = _report(student, net, teacher, origins)
    if not any(len(entry.shape) > 1 for entry in report.entries if entry.how != "left"):
        raise ValueError(
            f"no weight of the teacher {type(teacher).__name__} fits the student {type(student).__name__}: the same layers "
            f"must have the same paths in both. The student has {_some(student.state_dict())}, the teacher "
            f"{_some(teacher.state_dict())}"
        )
    theirs = _tensors(net)  # as narrow as they are now
    for entry in report.entries:
        if entry.how != "left":
            ours[entry.path].copy_(theirs[entry.path])
    if example is None:
        return report
    report = replace(report, **_compared(student, net, example, task, bool(report.of("left"))))
    if report.differs:
        warnings.warn(f"initialize: {report.differs}", stacklevel=2)
    return report


# Depth ---------------------------------------------------------------------------------------------------------------


def _shortened(student: nn.Module, teacher: nn.Module, blocks: Blocks) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of the teacher with the student's blocks, and where each of its modules was in the teacher."""
    net = copied(teacher).requires_grad_()
    for path in blocks:
        if not all(isinstance(_at(root, path), ROWS) for root in (student, net)):
            raise ValueError(
                f"blocks: {path!r} is no nn.Sequential or nn.ModuleList of both networks; there are {_some(_rows(net))}"
            )
    return net, dict(_cut(student, net, "", "", blocks))


def _cut(student: nn.Module, net: nn.Module, path: str, origin: str, blocks: Blocks) -> Iterator[tuple[str, str]]:
    """Leave out of ``net`` the blocks that the student lacks; yield the path of each module left, and its former one."""
    yield path, origin
    former = {name: name for name in net._modules}
    if isinstance(student, ROWS) and isinstance(net, ROWS) and (path in blocks or len(student) < len(net)):
        chosen = _chosen(student, net, path, blocks)
        row = [(name, child) for name, child in net.named_children()]
        former = {ours: row[index][0] for ours, index in zip(student._modules, chosen, strict=True)}
        # a block that is taken twice must be two
        kept = [
            copied(row[index][1]) if index in chosen[:place] else row[index][1] for place, index in enumerate(chosen)
        ]
        net._modules.clear()
        for ours, child in zip(former, kept, strict=True):
            net.add_module(ours, child)
    for name, child in net.named_children():
        if (twin := student._modules.get(name)) is not None:
            yield from _cut(twin, child, _join(path, name), _join(origin, former[name]), blocks)
        else:
            yield from (
                (_join(path, name, inner), _join(origin, former[name], inner)) for inner, _ in child.named_modules()
            )


def _chosen(student: nn.Module, net: nn.Module, path: str, blocks: Blocks) -> list[int]:
    """Return which of a row of the teacher's blocks the student's are."""
    ours, theirs = (list(row.children()) for row in (student, net))
    if path in blocks:
        chosen = list(blocks[path])
        if len(chosen) != len(ours) or not all(0 <= index < len(theirs) for index in chosen):
            raise ValueError(
                f"blocks: {path!r} has {len(ours)} blocks in the student and {len(theirs)} in the teacher, so expected "
                f"{len(ours)} numbers from 0 to {len(theirs) - 1}, got {chosen}"
            )
        return chosen
    chosen = [round(index * (len(theirs) - 1) / max(1, len(ours) - 1)) for index in range(len(ours))]
    if [type(child) for child in ours] != [type(theirs[index]) for index in chosen]:
        kinds = [" ".join(type(child).__name__ for child in row) for row in (ours, theirs)]
        raise ValueError(
            f"{path or type(net).__name__!r} has {len(ours)} layers in the student ({kinds[0]}) and {len(theirs)} in the "
            f"teacher ({kinds[1]}), no blocks of one kind: say which belong together, "
            f"blocks={{{path!r}: [{len(ours)} numbers]}}"
        )
    return chosen


# Width ---------------------------------------------------------------------------------------------------------------


def _narrow(net: nn.Module, student: nn.Module, example: Any | None, channels: Channels, task: Task) -> None:
    """Prune channels of ``net`` until it is as wide as the student, wherever that is narrower."""
    if example is None:
        raise ValueError(
            "the networks differ in width: pass example=inputs (a batch of inputs), by which the teacher is traced to find "
            "the channels that belong together"
        )
    with needing("init", "slicing channels"):
        import torch_pruning

    net.eval()
    try:
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(
                net, example, forward_fn=lambda traced, inputs: task.feed(traced, inputs), verbose=False
            )
        score = torch_pruning.importance.GroupMagnitudeImportance(
            p=1, group_reduction="sum", normalizer=None, target_types=[nn.modules.conv._ConvNd, nn.Linear]
        )
        # all are chosen before the first is pruned: a channel's weights to channels that go count too
        plan = [
            (group[0], drop)
            for group in graph.get_all_groups()
            if (drop := _dropped(graph, group, student, score, channels))
        ]
        for (root, _), drop in plan:
            graph.get_pruning_group(root.target.module, root.handler, drop).prune()
        with torch.no_grad():
            task.feed(net, example)
    except Exception as error:  # of any kind: torch-pruning has none of its own
        raise ValueError(
            f"torch-pruning cannot make the teacher {type(net).__name__} as narrow as the student "
            f"({type(error).__name__}: {error}). Shuffled channels and attention are beyond it; a student of the same "
            "width, with fewer blocks, needs no slicing"
        ) from error


def _dropped(graph: Any, group: Any, student: nn.Module, score: Any, channels: Channels) -> list[int]:
    """Return the channels of a group, by their place in its first layer, that the student has no room for."""
    count = len(group[0].idxs)
    width = _width(graph, group, student)
    parts = max(_parts(dep.target.module) for dep, _ in group)
    if width >= count or count % parts or width % parts:
        return []
    of_part = count // parts  # grouped convolutions and norms keep the same places of every part
    if channels == "first":
        places = torch.arange(width // parts)
    else:
        places = score(group).view(parts, of_part).sum(0).topk(width // parts).indices.cpu()
    kept = (places + of_part * torch.arange(parts)[:, None]).flatten()
    return sorted(set(range(count)) - set(kept.tolist()))


def _width(graph: Any, group: Any, student: nn.Module) -> int:
    """Return how many channels the student has where a group's are; as many as there are if it must stay whole."""
    count, used = len(group[0].idxs), False
    widths: list[int] = []
    for dep, idxs in group:
        module, name = dep.target.module, graph._module2name.get(dep.target.module)
        if name and not graph.is_out_channel_pruning_fn(dep.handler):
            used = True  # by a layer that takes them in
        twin, layer = _at(student, name) if name else None, graph.get_pruner_of_module(module)
        whole = graph.is_out_channel_pruning_fn(dep.handler) and len(idxs) == layer.get_out_channels(module)
        if type(twin) is type(module) and whole:  # a part would be that of a concatenation
            widths.append(int(layer.get_out_channels(twin)))
    # the largest: of layers tied in the teacher alone, one fits; what no layer takes in is the network's output
    return max(widths, default=count) if used else count


def _parts(module: Any) -> int:
    """Return into how many parts a layer divides its channels, each treated alone."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups != module.out_channels:
        return module.groups
    return 1


# What fits -----------------------------------------------------------------------------------------------------------


def _report(student: nn.Module, net: nn.Module, teacher: nn.Module, origins: Mapping[str, str]) -> Inheritance:
    """Say what of ``net``, the teacher as it was cut, fits the student."""
    theirs, whole = _tensors(net), _tensors(teacher)
    entries: list[Inherited] = []
    for path, ours in _tensors(student).items():
        place, _, name = path.rpartition(".")
        source = _join(origins[place], name) if path in theirs else ""
        if not source:
            entries.append(Inherited(path, "left", tuple(ours.shape), reason="the teacher has none"))
        elif theirs[path].shape != ours.shape:
            shape = tuple(whole[source].shape)
            entries.append(Inherited(path, "left", tuple(ours.shape), source, shape, _reason(ours, theirs[path])))
        else:
            how: How = "whole" if whole[source].shape == ours.shape else "sliced"
            entries.append(Inherited(path, how, tuple(ours.shape), source, tuple(whole[source].shape)))
    used = {entry.source for entry in entries if entry.how != "left"}
    return Inheritance(tuple(entries), tuple(path for path in whole if path not in used))


# What differs without parameters --------------------------------------------------------------------------------------

CLOSE = 1e-4
"""Of the largest answer: sums of another order differ by less."""


def _compared(student: nn.Module, net: nn.Module, example: Any, task: Task, left: bool) -> dict[str, Any]:
    """Return how far the student's answers are from those of ``net``, and where the two begin to differ."""
    place = next((tensor.device for tensor in net.state_dict().values() if isinstance(tensor, Tensor)), None)
    twin = copied(bare(student)).eval().to(place)
    (own, inner), (its, theirs) = (_looked_at(one.eval(), example, task) for one in (twin, net))
    if not (isinstance(own, Tensor) and isinstance(its, Tensor) and own.shape == its.shape):
        return {"difference": None}
    difference = _apart(own, its)
    if left or difference <= CLOSE:
        return {"difference": difference}
    path = next((path for path, shown in inner.items() if path in theirs and _apart(shown, theirs[path]) > CLOSE), "")
    where = _what_differs(path, twin.get_submodule(path), net.get_submodule(path))
    said = (
        f"its answers differ by up to {difference:.2g} times the largest from those of the teacher with these blocks and "
        f"channels, although all weights are the teacher's. {where}"
    )
    return {"difference": difference, "differs": said}


def _looked_at(net: nn.Module, example: Any, task: Task) -> tuple[Any, dict[str, Tensor]]:
    """Return a network's answer, and what each of its layers shows, in the order in which they end."""
    shown: dict[str, Tensor] = {}

    def note(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            shown.setdefault(path, output.detach().clone())  # a layer behind it may write into it

    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: note(path, output))
        for path, module in net.named_modules()
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return task.feed(net, example), shown
    finally:
        for hook in hooks:
            hook.remove()


def _apart(own: Tensor, its: Tensor) -> float:
    """Return the largest difference over the largest value; infinite where shapes differ."""
    if own.shape != its.shape:
        return math.inf
    own, its = own.double(), its.double()
    return float((own - its).abs().max() / its.abs().max().clamp(min=1e-12)) if its.numel() else 0.0


def _what_differs(path: str, ours: nn.Module, theirs: nn.Module) -> str:
    """Say what is probably other in the first layer whose output is, in the student and in the teacher."""
    name = f"{path!r} ({type(ours).__name__})" if path else type(ours).__name__
    own, its = (dict(module.named_children()) for module in (ours, theirs))
    for has, lacks, who, other in ((its, own, "teacher", "student"), (own, its, "student", "teacher")):
        if only := [child for child in has if child not in lacks]:
            return (
                f"It begins at {name}: the {who}'s has {only[0]!r}, a {type(has[only[0]]).__name__}, and the {other}'s has "
                "not, so that a sum may add channels that do not belong together. Take a width with which both have it, or "
                "neither"
            )
    if own:
        return (
            f"It begins at {name}, whose layers are the same: what it does between them is not, as a residual sum that "
            "only one of the two has, since it depends on the widths. Take widths with which both have it"
        )
    if type(ours) is not type(theirs) or repr(ours) != repr(theirs):
        return f"It begins at {name}, which is {ours!r} in the student and {theirs!r} in the teacher"
    return f"It begins at {name}, which is fed otherwise: look at what the module around it does before"


def _reason(ours: Tensor, theirs: Tensor) -> str:
    if ours.ndim != theirs.ndim:
        return "another kind of layer"
    wider = [axis for axis, (mine, other) in enumerate(zip(ours.shape, theirs.shape, strict=True)) if mine > other]
    if wider:
        return f"the student is wider: {' x '.join(map(str, theirs.shape))} could be had"
    return f"outputs, or tied to others: {' x '.join(map(str, theirs.shape))} could be had"


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers; extra state of its own is not ours to cut."""
    return {path: value for path, value in net.state_dict().items() if isinstance(value, Tensor)}


def _at(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, if there is one."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _rows(net: nn.Module) -> list[str]:
    return [path for path, module in net.named_modules() if isinstance(module, ROWS)]


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _some(paths: Any) -> str:
    first = list(paths)[:4]
    return ", ".join(map(repr, first)) + (", ..." if len(list(paths)) > 4 else "")
