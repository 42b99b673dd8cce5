"""Let a task see what trained networks make of held-out data, for the exhibits of a report."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from limbeck.core.batches import part, samples, tensors
from limbeck.core.exhibits import Exhibit, Gallery, Note
from limbeck.core.files import read
from limbeck.core.frozen import bare, frozen
from limbeck.core.layers import Pair, pairs
from limbeck.core.method import Method
from limbeck.core.task import Batch, Task
from limbeck.core.trace import record
from limbeck.core.wrapped import shipped
from limbeck.data import Data
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs
from limbeck.engine.learner import teachers_of
from limbeck.engine.run import EXTRA
from limbeck.methods.at import attention_map
from limbeck.report.run import read_result

POOL, ROOM = 256, 2**29
"""Samples, spread over the held-out data, among which a task looks for what is telling, and bytes that they may take."""
CHUNK = 64
"""Samples that a network is fed at once."""
GRID = 28
"""Most pixels a side that are kept of an attention map."""
LAYERS, LOOKS = 4, 3
"""Most pairs of layers whose attention is shown, the deepest, and most samples."""
LOOKED = "Where they look"
ATTENTION = (
    "Where a layer is most active: the mean of its squared channels (Zagoruyko & Komodakis 2017), each map up to its own "
    "maximum. A row is a pair of layers."
)


def exhibits_of(method: Method, loader: Iterable[Any], classes: Sequence[str] = ()) -> list[Exhibit]:
    """Return what a trained method's task shows of the network to ship and, if there is one, of its teacher.

    Among several processes all must ask, as each has its share of the held-out data.

    Args:
        method: The method; of several stages the last.
        loader: Held-out batches.
        classes: The names of the outputs.
    """
    name, student = next(iter(method.networks().items()))
    _, teacher = next(teachers_of(method), ("", None))
    return observe(teacher, {name: student}, loader, method.task, classes=classes, device=_device(student), count=True)


def exhibits_of_runs(
    runs: Mapping[str, Path],
    make: Callable[[], nn.Module],
    teacher: nn.Module | None,
    data: Any,
    task: Task,
    device: torch.device | str,
) -> list[Exhibit]:
    """Return what a task shows of a teacher and the students of several runs, on the same held-out samples.

    Args:
        runs: Finished runs by the names of their students.
        make: Makes the student.
        teacher: Their teacher, if there is one.
        data: A `limbeck.data.Data`, or loaders ``(train, val, test)``.
        task: Their task.
        device: Where the networks run.
    """
    students = {name: shipped(make()) for name in runs}  # whose names the files have
    for name, folder in runs.items():
        first = next(iter(read_result(folder)["networks"]))
        state, facts = read(folder / f"{first}.safetensors", f"remove the folder {folder}, and the run is made again")
        students[name].load_state_dict({**state, **json.loads(facts.get(EXTRA, "{}"))})
    test, classes = (data.test, data.classes) if isinstance(data, Data) else (data[2], ())
    return observe(teacher, students, test, task, classes=classes, device=device)


@torch.no_grad()
def observe(
    teacher: nn.Module | None,
    students: Mapping[str, nn.Module],
    loader: Iterable[Any],
    task: Task,
    *,
    classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
    count: bool = False,
) -> list[Exhibit]:
    """Return what a task shows of a teacher and its students.

    Where the task's ``exhibit`` fails there is a warning, and what it yielded before: a picture is not worth the networks.

    Args:
        teacher: The teacher, if there is one; a `limbeck.Frozen` keeps its own view.
        students: Of one architecture, by name.
        loader: Held-out batches.
        task: How they are fed, and what is shown.
        classes: The names of the outputs.
        device: Where the networks run; they stay where they are.
        count: Whether the students' answers to all the data may be counted.
    """
    views = {name: _view(net, device) for name, net in students.items()}
    taught = {} if teacher is None else {"teacher": _view(teacher, device)}
    seen = Observed(task, {**taught, **views}, loader, device, tuple(classes), views if count else {})
    shown: list[Exhibit] = []
    try:
        for exhibit in task.exhibit(seen):
            if not isinstance(exhibit, Exhibit):
                raise TypeError(f"expected exhibits (limbeck.core.exhibits), got {type(exhibit).__name__}")
            shown.append(exhibit)
    except Exception as error:  # noqa: BLE001  # of a task of the user's own, anything
        warnings.warn(
            f"the task {task.name!r} cannot show its examples, and the page goes without: {type(error).__name__}: {error}",
            stacklevel=2,
        )
    return shown


@dataclass(frozen=True)
class Observed:
    """Trained networks and held-out data: a `limbeck.core.exhibits.Shown`.

    Args:
        task: The task.
        networks: Frozen, by name, the teacher first.
        loader: Held-out batches.
        device: Where the networks are.
        classes: The names of the outputs.
        counted: Networks whose answers to all the data may be counted.
    """

    task: Task
    networks: Mapping[str, nn.Module]
    loader: Iterable[Any]
    device: torch.device | str = "cpu"
    classes: tuple[str, ...] = ()
    counted: Mapping[str, nn.Module] = field(default_factory=dict)

    @cached_property
    def samples(self) -> tuple[Any, Any]:
        """Inputs and targets of up to 256 samples: spread over data whose order is known, else the first that stack."""
        if isinstance(self.loader, Epochs):
            one = sum(tensor.nbytes for tensor in tensors(self.loader.few(1)))
            batches = [self.loader.few(max(1, min(POOL, ROOM // max(1, one))))]
        else:
            batches = list(_enough(self.loader, self.task))
        columns = [(self.task.inputs(batch), self.task.target(batch)) for batch in move_data_to_device(batches, "cpu")]
        widths = [[*_widths(inputs), *_widths(targets)] for inputs, targets in columns]
        alike = [each for each, width in zip(columns, widths, strict=True) if width == widths[0]]
        inputs, targets = (part(_joined([each[at] for each in alike]), slice(POOL)) for at in (0, 1))
        return inputs, targets

    @cached_property
    def answers(self) -> Mapping[str, Any]:
        """What each network answers to ``samples``."""
        return self.asked(self.samples[0])

    def asked(self, inputs: Any) -> Mapping[str, Any]:
        """Return what each network answers to some inputs."""
        chunks = [part(inputs, slice(at, at + CHUNK)) for at in range(0, samples(inputs), CHUNK)]
        return {
            name: _joined([tree_map(_kept, self.task.feed(net, self._moved(chunk))) for chunk in chunks])
            for name, net in self.networks.items()
        }

    def batches(self) -> Iterator[Batch]:
        """Yield all held-out batches where the networks are; among several processes, this one's share."""
        for batch in self.loader:
            yield self._moved(batch)

    def pictures(self, inputs: Any, side: int = 96) -> tuple[NDArray[np.uint8], ...] | None:
        """Return inputs as they would look on a screen; None where they are no images."""
        images = _images(inputs)
        return None if images is None else tuple(_pixels(image[None], self.loader, side) for image in images)

    def attention(self, rows: Sequence[int], captions: Sequence[str]) -> Iterator[Exhibit]:
        """Yield where the paired layers of the networks look, a figure a sample."""
        inputs, _ = self.samples
        spread = sorted({round(place) for place in np.linspace(0, len(rows) - 1, min(LOOKS, len(rows)))})
        chosen = part(inputs, [rows[place] for place in spread])
        pictures = self.pictures(chosen)
        if pictures is None or "teacher" not in self.networks or len(self.networks) < 2:
            return
        try:
            layers, maps = _attention(list(self.networks.values()), self._moved(chosen), self.task)
            why = "the networks have no paired layers with feature maps (N, C, H, W)."
        except ValueError as error:  # of TorchScript, say, which shows no layers
            layers, why = (), str(error)
        if not layers:
            yield Note(LOOKED, f"No attention maps: {why}")
            return
        students = len(self.networks) - 1
        for index, place in enumerate(spread):
            yield Gallery(
                LOOKED,
                ("", *self.networks),
                tuple((None if row else pictures[index], *each[:, index]) for row, each in enumerate(maps)),
                labels=tuple(("", of_teacher, *students * (of_student,)) for of_teacher, of_student in layers),
                figure=captions[place],
                words=ATTENTION,
            )

    def _moved(self, column: Any) -> Any:
        return move_data_to_device(column, self.device)


def _view(net: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a network as it would be deployed, on a device, fed and read in its own way; it stays where it is."""
    return frozen(net).again("eval").to(device)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters(), torch.empty(0)).device


def _enough(loader: Iterable[Any], task: Task) -> Iterator[Batch]:
    """Yield batches until there are enough samples."""
    seen = 0
    for batch in loader:
        yield batch
        seen += samples(task.target(batch))
        if seen >= POOL:
            return


def _widths(column: Any) -> list[tuple[int, ...]]:
    """Return the shapes of a column's samples, where they must agree to be stacked."""
    if isinstance(column, Mapping):
        return [width for own in column.values() for width in _widths(own)]
    return [tuple(column.shape[1:])] if isinstance(column, Tensor) else []


def _joined(columns: Sequence[Any]) -> Any:
    """Return the samples of several columns as one."""
    first = columns[0]
    if isinstance(first, Mapping):
        return {name: _joined([each[name] for each in columns]) for name in first}
    if isinstance(first, Tensor):
        return torch.cat(list(columns)) if first.ndim else first
    if isinstance(first, (list, tuple)):
        return [entry for each in columns for entry in each]
    return first


def _kept(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.float().cpu() if leaf.is_floating_point() else leaf.cpu()


def _images(inputs: Any) -> list[Tensor] | None:
    """Return the images (C, H, W), grey or RGB, in inputs: a tensor, a list, or one of a dict's."""
    columns = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    for column in columns:
        if isinstance(column, (Tensor, list, tuple)) and len(column) and all(map(_is_image, column)):
            return list(column)
    return None


def _is_image(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] not in (1, 3):
        return False
    return value.is_floating_point() or value.dtype == torch.uint8


def _pixels(inputs: Tensor, loader: Iterable[Any], side: int) -> NDArray[np.uint8]:
    """Undo the normalisation of an image (1, C, H, W) where it is known, and stretch the values to their own range else."""
    normalise, inputs = getattr(loader, "normalise", None), inputs.float()
    if isinstance(normalise, Normalise):
        pixels = (inputs - normalise.shift.cpu()) / normalise.scale.cpu() / 255
    else:
        low, high = inputs.min(), inputs.max()
        pixels = (inputs - low) / (high - low).clamp_min(1e-6)
    longest = max(pixels.shape[2:])
    if longest > side:
        pixels = F.interpolate(pixels, scale_factor=side / longest, mode="area")
    shown: NDArray[np.uint8] = (255 * pixels[0].clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return shown


def _attention(
    nets: Sequence[nn.Module], inputs: Any, task: Task
) -> tuple[tuple[Pair, ...], tuple[NDArray[np.uint8], ...]]:
    """Return the pairs (teacher's layer, student's) that have feature maps, and each one's maps, (networks, N, h, w, 3)."""
    teacher, *students = nets
    found = [(t, s) for s, t in pairs(students[0], teacher, inputs, task)]
    shown = [_features(teacher, [t for t, _ in found], inputs, task)]
    shown += [_features(net, [s for _, s in found], inputs, task) for net in students]
    kept: dict[Pair, NDArray[np.uint8]] = {}
    for t, s in found:
        features = [shown[0][t], *(each[s] for each in shown[1:])]
        if all(each.ndim == 4 and max(each.shape[2:]) > 1 for each in features):
            kept[t, s] = _maps(features)
    return tuple(kept)[-LAYERS:], tuple(kept.values())[-LAYERS:]


def _features(net: nn.Module, paths: Sequence[str], inputs: Any, task: Task) -> dict[str, Tensor]:
    with torch.compiler.set_stance("force_eager"), record(bare(net), paths) as trace:
        task.feed(net, inputs)
    return trace


def _maps(features: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Return where each network's layer looks, on the coarsest of their grids: shares of each map's maximum, as colours."""
    from matplotlib import colormaps

    height, width = (min(GRID, *(each.shape[axis] for each in features)) for axis in (2, 3))
    maps = torch.stack([F.adaptive_avg_pool2d(attention_map(each), (height, width)) for each in features])
    shares = maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)
    coloured: NDArray[np.uint8] = colormaps["inferno"]((255 * shares).round().byte().cpu().numpy(), bytes=True)[..., :3]
    return coloured
