"""What layers a network has, and which of the student's belongs to which of the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from limbeck.core.frozen import bare, frozen
from limbeck.core.task import Task
from limbeck.core.trace import locate, submodules

Shape = tuple[int, ...]
Pair = tuple[str, str]
"""A student's layer and the teacher's that it learns from."""

FED = Task()
"""Networks are fed as classification feeds them, unless another task is given; nothing else of it is asked here."""


@dataclass(frozen=True)
class Layer:
    """One submodule as it ran: its path, class, shapes for the example, and parameters with those inside it."""

    path: str
    kind: str
    shape: Shape
    input_shape: Shape
    parameters: int


def layers(net: nn.Module, example: Any, task: Task = FED) -> list[Layer]:
    """Return the submodules in the order in which they finish, with the shapes they have for ``example``.

    The network runs once, in eval mode and without gradients, and is left as it was. A submodule that does not return
    a tensor, or that is not called, is left out; of one that is called several times, the last call counts.

    Args:
        net: Any network.
        example: A batch of inputs, (N, ...), or a dict of them.
        task: How inputs are fed.

    Raises:
        ValueError: A TorchScript network, whose layers cannot be seen.
    """
    view = frozen(net).again("eval")  # whatever the mode in which a teacher teaches
    _refuse_script(view.net)
    found: dict[str, Layer] = {}
    handles = [
        module.register_forward_hook(_note(path, found))
        for path, module in submodules(view.net).items()
        if not isinstance(module, ScriptModule)  # which takes no hooks
    ]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            task.feed(view, example)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def stages(net: nn.Module, example: Any, task: Task = FED) -> list[Layer]:
    """Return the layers worth matching, from shallow to deep.

    Of a network with token sequences, its blocks; of one with feature maps, the last layer at each resolution; of a
    multi-layer perceptron, its hidden layers, as the input of the linear layer that follows.
    """
    table = layers(net, example, task)
    # tokens first: their networks have a map too, that of the patches
    return _token_blocks(net, table) or _map_stages(table) or _hidden(table)


def pairs(student: nn.Module, teacher: nn.Module, example: Any, task: Task = FED) -> list[Pair]:
    """Pair the stages of two networks.

    Feature maps of equal resolution belong together; where none are equal, and for tokens and hidden layers, stages pair
    by their depth, from the deepest up.

    Args:
        student: The student.
        teacher: The teacher.
        example: A batch of inputs, (N, ...).
        task: How inputs are fed.

    Returns:
        Pairs (student's path, teacher's path), from shallow to deep.
    """
    of_student, of_teacher = stages(student, example, task), stages(teacher, example, task)
    equal = _by_resolution(of_student, of_teacher)
    return [(s.path, t.path) for s, t in equal or by_depth(of_student, of_teacher)]


def paired(
    student: nn.Module,
    teacher: nn.Module,
    named: Sequence[Pair] | None,
    example: Any | None,
    task: Task = FED,
    *,
    maps: bool = False,
) -> list[Pair]:
    """Return the pairs a method was given, checked, or else those that `pairs` finds.

    Args:
        student: The student.
        teacher: The teacher.
        named: The pairs that the user named.
        example: A batch of inputs, needed where none were named; where it is given, shapes are checked too.
        task: How inputs are fed.
        maps: The method needs feature maps (N, C, H, W).

    Raises:
        ValueError: A layer does not exist or is no feature map, or there is nothing to pair by.
    """
    if named is None:
        if example is None:
            raise ValueError(
                "layers are paired by running an example: pass example=inputs (a batch of inputs), "
                "or name the pairs, layers=[('student.layer', 'teacher.layer')]"
            )
        named = pairs(student, teacher, example, task)
    checked = [(str(s), str(t)) for s, t in named]
    for s, t in checked:
        locate(bare(student), s)
        locate(bare(teacher), t)
    if maps and example is not None:
        _check_maps("student", student, [s for s, _ in checked], example, task)
        _check_maps("teacher", teacher, [t for _, t in checked], example, task)
    if not checked:
        raise ValueError("found no layers to pair: name them, layers=[('student.layer', 'teacher.layer')]")
    return checked


def classifier(net: nn.Module, example: Any, task: Task = FED) -> Layer | None:
    """Return the linear layer that makes a network's output: the last that runs, if what it gives is as wide."""
    linear = [layer for layer in layers(net, example, task) if layer.kind == "Linear"]
    if not linear or linear[-1].shape[-1] not in shape_at(net, "", example, task)[1:]:
        return None
    return linear[-1]


def embedding(net: nn.Module, example: Any | None = None, task: Task = FED) -> str:
    """Return the path of a network's embedding: the input of its last linear layer.

    With an example it is the last that runs, if it makes the output, otherwise the last that is registered.

    Raises:
        ValueError: The network does not end in a linear layer.
    """
    if example is not None:
        found = classifier(net, example, task)
        last = found and found.path
    else:
        _refuse_script(bare(net))
        linear = [path for path, module in submodules(bare(net)).items() if isinstance(module, nn.Linear)]
        last = linear[-1] if linear else None
    if last is None:
        raise ValueError(
            f"{type(bare(net)).__name__} has no linear layer whose input could serve as embedding: name a layer, "
            "layer='pool' (`limbeck layers` lists them)"
        )
    return f"{last}:in"


def embeddings(
    student: nn.Module,
    teacher: nn.Module,
    layer: str | Pair | None,
    example: Any | None = None,
    task: Task = FED,
) -> Pair:
    """Return where both networks have their embeddings: ``layer``, one path or a pair, else what `embedding` finds."""
    if layer is None:
        return embedding(student, example, task), embedding(teacher, example, task)
    return (layer, layer) if isinstance(layer, str) else layer


def shape_at(net: nn.Module, path: str, example: Any, task: Task = FED) -> Shape:
    """Return the shape of what ``path`` shows for an example."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        trace = task.look(frozen(net).again("eval"), example, [path] if path else [])
    return tuple(trace[path].shape)


def _refuse_script(net: nn.Module) -> None:
    if isinstance(net, ScriptModule):
        raise ValueError(  # noqa: TRY004  # as of a network without layers to pair
            "a TorchScript network shows none of its layers: give the network that it was made of, or take a method that "
            "compares outputs (kd, dkd, dist, logits)"
        )


def _note(path: str, found: dict[str, Layer]) -> Any:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            first = next((value for value in inputs if isinstance(value, Tensor)), None)
            size = sum(p.numel() for p in module.parameters())
            found.pop(path, None)  # the last call decides the order
            found[path] = Layer(
                path, type(module).__name__, tuple(output.shape), () if first is None else tuple(first.shape), size
            )

    return note


def _map_stages(table: list[Layer]) -> list[Layer]:
    """The last layer to finish at each resolution: the outermost module there, since the inner ones finish first."""
    maps = _maps(table)
    leaving = _leaving(maps)
    ends: dict[Shape, Layer] = {}
    for layer in sorted(maps, key=lambda layer: layer.path not in leaving):  # those only where there are no others
        ends[layer.shape[2:]] = layer
    stages = sorted(ends.values(), key=maps.index)
    return [layer for layer in stages if layer.shape[2:] != (1, 1)] or stages


def _maps(table: list[Layer]) -> list[Layer]:
    """The layers with feature maps (N, C, H, W), as wide for their height as the images: (N, H, W, C) is not."""
    image = next((layer.input_shape for layer in table if len(layer.input_shape) == 4), ())
    return [
        layer
        for layer in table
        if len(layer.shape) == len(image) == 4
        and abs(layer.shape[2] * image[3] - layer.shape[3] * image[2]) <= max(image[2:])
    ]


def _leaving(maps: list[Layer]) -> set[str]:
    """The paths that still have the resolution which the block around them leaves, as in a stage's first bottleneck."""
    paths: set[str] = set()
    for block in maps:
        before, after = block.input_shape[2:], block.shape[2:]
        if before != after:
            inside = [layer for layer in maps if layer.path.startswith(f"{block.path}.")]
            if {layer.shape[2:] for layer in inside} <= {before, after, (1, 1)}:  # 1x1: squeeze and excitation
                paths |= {layer.path for layer in inside if layer.shape[2:] == before}
    return paths


def _token_blocks(net: nn.Module, table: list[Layer]) -> list[Layer]:
    """The longest row of one class in a container whose outputs are (N, L, D); the outermost of equally long ones."""
    modules = {"": bare(net), **submodules(bare(net))}
    rows: dict[tuple[str, str], list[Layer]] = {}
    for layer in table:
        parent = layer.path.rpartition(".")[0]
        if len(layer.shape) == 3 and isinstance(modules[parent], (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            rows.setdefault((parent, layer.kind), []).append(layer)
    longest = max(rows.values(), key=lambda row: (len(row), -row[0].path.count(".")), default=[])
    return longest if len(longest) > 1 else []


def _hidden(table: list[Layer]) -> list[Layer]:
    linear = [layer for layer in table if layer.kind == "Linear" and len(layer.input_shape) == 2]
    return [
        Layer(f"{layer.path}:in", "input", layer.input_shape, layer.input_shape, layer.parameters)
        for layer in linear[1:]
    ]


def _by_resolution(student: list[Layer], teacher: list[Layer]) -> list[tuple[Layer, Layer]]:
    if not all(len(layer.shape) == 4 for layer in (*student, *teacher)):
        return []
    deepest = {layer.shape[2:]: layer for layer in teacher}
    return [(layer, deepest[layer.shape[2:]]) for layer in student if layer.shape[2:] in deepest]


def by_depth(student: list[Layer], teacher: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Pair the i-th of n with the one at the same relative depth; the deepest always meet."""
    few, many = (student, teacher) if len(student) <= len(teacher) else (teacher, student)
    partners = [many[round((index + 1) * len(many) / len(few)) - 1] for index in range(len(few))]
    return list(zip(few, partners, strict=True) if few is student else zip(partners, few, strict=True))


def _check_maps(who: str, net: nn.Module, paths: Sequence[str], example: Any, task: Task) -> None:
    for path in paths:
        shape = shape_at(net, path, example, task)
        if len(shape) != 4:
            raise ValueError(
                f"this method compares feature maps (N, C, H, W), but the {who}'s {path!r} has shape {shape}: "
                "name a convolutional layer, or use a method for outputs and embeddings (kd, rkd)"
            )


def table_of(student: nn.Module, teacher: nn.Module, example: Any, task: Task = FED) -> Mapping[str, Any]:
    """Return what `limbeck layers` prints: both networks' layers and the pairs between them."""
    return {
        "student": layers(student, example, task),
        "teacher": layers(teacher, example, task),
        "pairs": pairs(student, teacher, example, task),
    }
