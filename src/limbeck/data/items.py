"""Batches of any samples: images with boxes or masks, pairs of images, texts."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from limbeck.core.task import Batch
from limbeck.core.trace import describe
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs, Look, Piece, generator, seed_of

if TYPE_CHECKING:
    from typing_extensions import Self

Sample = tuple[Any, Any]
"""Inputs and target."""
Transform = Callable[[Any, Any], Sample]
Collate = Callable[[list[Sample], Tensor], Batch]


class Samples(Protocol):
    """A data set: torch's, torchvision's, datasets', or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def stacked(samples: list[Sample], ids: Tensor) -> Batch:
    """Make a batch of samples of one size: (inputs, targets, ids), as tensors, or dicts of tensors."""
    inputs, targets = default_collate(samples)
    return inputs, targets, ids


def ragged(samples: list[Sample], ids: Tensor) -> Batch:
    """Make a batch of samples of any size: (inputs, targets, ids), lists with a sample an entry, as detectors take them."""
    inputs, targets = zip(*samples, strict=True)
    return list(inputs), list(targets), ids


@final
class Items(Epochs):
    """Batches of the samples of any data set, which worker processes read and augment.

    What a sample draws from torch's generator, as it is read and as it is changed, depends on (seed, view, lap, id) alone,
    whatever it draws: torchvision's v2 transforms change boxes and masks (``tv_tensors``) along with their image, and
    the tokens that are to be guessed are a transform too. What draws from elsewhere, Python's ``random`` or NumPy, does
    not repeat.

    The order of batches, distribution over processes, ``set_epoch``, ``state_dict``: see ``Epochs``.

    Args:
        samples: the data set: ``samples[i]`` is (inputs, target), whatever these are.
        batch_size: samples in a batch, over all processes.
        transform: of a sample that is augmented, ``(inputs, target) -> (inputs, target)``: give it to training data only.
        plain: of a sample that is not augmented, likewise: of data without ``transform``, and of ``plain()``.
        collate: makes a batch of samples and their ids: `stacked`, `ragged`, or your own, which may return a dict with a
            column ``"ids"``.
        labels: class of every sample, int64 (N,), where it has one; -100 marks a sample without a label.
        normalise: of a batch's inputs, where they are pixels, uint8 (B, C, H, W); pages then show them as they were.
        workers: processes that read and augment; 0 does so in this one. They stay from view to view, with the data set as
            it was when they began: one that changes as the training goes on needs 0.
        shuffle: permute every view; marks a loader for training.
        seed: of order and augmentation.

    Raises:
        TypeError: A sample, or what a transform makes of it, is no pair.

    Example:
        >>> pictures = [(torch.rand(3, 4 + i, 5), {"boxes": torch.zeros(i, 4)}) for i in range(6)]
        >>> inputs, targets, ids = next(iter(Items(pictures, batch_size=4, collate=ragged)))
        >>> [tuple(image.shape) for image in inputs], ids
        ([(3, 4, 5), (3, 5, 5), (3, 6, 5), (3, 7, 5)], tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        transform: Transform | None = None,
        plain: Transform | None = None,
        collate: Collate = stacked,
        labels: Tensor | None = None,
        normalise: Normalise | None = None,
        workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(len(samples), labels, batch_size=batch_size, shuffle=shuffle, seed=seed)
        self.samples = samples
        self.collate = collate
        self.normalise = normalise
        self.workers = workers
        self.device = torch.device("cpu")
        self._transforms = (plain, plain if transform is None else transform)
        self._crews = [Crew(Drawn(samples, change), collate, workers) for change in self._transforms]

    def to(self, device: torch.device | str) -> Self:
        """Serve batches on ``device`` from now on; returns the loader itself."""
        self.device = torch.device(device)
        self.normalise = self.normalise and self.normalise.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        for batch in self._crews[self.augmented].batches(plan, self.device):
            yield batch if self.normalise is None else (self.normalise(batch[0]), *batch[1:])


@dataclass(frozen=True)
class Drawn(Dataset[tuple[Sample, int]]):
    """Samples with their ids, changed as a look says."""

    samples: Samples
    change: Transform | None

    def __getitem__(self, key: tuple[Look, int]) -> tuple[Sample, int]:
        look, row = key
        # torchvision draws from the global generator of the CPU, which is put back: it is the user's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("augment", *look, row))
            sample = _pair(self.samples[row], "expected a sample to be")
            changed = sample if self.change is None else self.change(*sample)
        return _pair(changed, "expected a transform to return"), row


class Crew:
    """Processes that make batches, and stay for who comes next: to start them takes longer than to make a few.

    Who serves a view has a team of them alone, so that views may be served at once, in any turn, or be left off halfway.

    Args:
        samples: what they read.
        collate: makes a batch.
        workers: processes in a team; 0 makes batches in this one.
    """

    def __init__(self, samples: Drawn, collate: Collate, workers: int) -> None:
        self.samples = samples
        self.collate = collate
        self.workers = workers
        self._idle: defaultdict[tuple[int, bool], list[_Team]] = defaultdict(list)

    def batches(self, plan: Iterable[list[Piece]], device: torch.device) -> Iterator[Batch]:
        """Yield the batches that ``plan`` lists, on ``device``."""
        from lightning.fabric.utilities import move_data_to_device

        _CREWS.add(self)
        plan = iter(plan)
        first = list(itertools.islice(plan, 2))
        workers = self.workers if len(first) > 1 else 0  # a batch is one process's work, which may be this one
        pinned = device.type == "cuda"
        idle = self._idle[os.getpid(), pinned]  # a process that was forked from this one has none of its teams
        team = idle.pop() if workers and idle else _Team(self.samples, self.collate, workers, pinned)
        try:
            for batch in team.batches(itertools.chain(first, plan)):
                yield move_data_to_device(batch, device)
        except GeneratorExit:  # left off, after the last batch too: what is still under way is dropped when they go on
            pass
        if workers:
            idle.append(team)

    def dismiss(self) -> None:
        """Let all who are idle go, but for those of the process that this one was forked from."""
        for key in [key for key in self._idle if key[0] == os.getpid()]:
            del self._idle[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_idle": defaultdict(list)}  # a copy has workers of its own


_CREWS: WeakSet[Crew] = WeakSet()


@atexit.register
def _dismiss() -> None:
    """End all workers while torch can do so: Python's own exit sends SIGTERM once, which `fit` has them take for a wish."""
    for crew in _CREWS:
        crew.dismiss()


class _Team:
    """A loader of torch's whose workers are given one plan after the other."""

    def __init__(self, samples: Drawn, collate: Collate, workers: int, pinned: bool) -> None:
        self._keys = _Keys()
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_Collated(collate),
            pin_memory=pinned,
            worker_init_fn=_deaf,
            generator=generator("workers"),  # its own, so that the user's stays untouched
        )

    def batches(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        """Begin with a plan; whatever was left of the one before is dropped."""
        self._keys.plan = plan
        return iter(self._loader)


class _Keys:
    """What workers are asked for: of each sample how it looks, and its id."""

    plan: Iterable[list[Piece]] = ()

    def __iter__(self) -> Iterator[list[tuple[Look, int]]]:
        return ([(look, row) for look, ids in pieces for row in ids.tolist()] for pieces in self.plan)


def _deaf(worker: int) -> None:
    """Leave Ctrl-C, which reaches all processes, to the main one, which may finish a batch first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Collated:
    """Makes a batch of samples with their ids."""

    collate: Collate

    def __call__(self, samples: list[tuple[Sample, int]]) -> Batch:
        return self.collate([sample for sample, _ in samples], torch.tensor([row for _, row in samples]))


def _pair(sample: Any, expected: str) -> Sample:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise TypeError(
            f"{expected} (inputs, target), got {describe(sample)}. Inputs of several parts are a dict, "
            "({'image': ..., 'depth': ...}, target)"
        )
    return sample[0], sample[1]
