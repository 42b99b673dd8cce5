from __future__ import annotations

import copy
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from limbeck.core.task import UNLABELLED, Batch, beside, identified, inputs_of
from limbeck.core.trace import Trace

if TYPE_CHECKING:
    from typing_extensions import Self

Look = tuple[int, int, int]
"""What an augmentation is drawn by: seed, view, lap."""
Piece = tuple[Look, Tensor]
"""How samples look, and the ids of those that a batch has of them."""
Answers = Callable[[Tensor, Tensor], Mapping[str, Trace]]
"""What teachers said of samples, by role: of their ids and the numbers of their views, int64 (N,) each."""


@dataclass(frozen=True)
class Views:
    """A fixed number of ways in which each sample looks, one after the other: view v is as view v mod count.

    Args:
        count: How many there are, at least 1.
        seed: They are drawn by it, whatever the order's seed.
    """

    count: int
    seed: int = 0


def seed_of(*key: int | str) -> int:
    """Return a seed that depends on ``key`` alone, on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on ``key`` alone, whatever was drawn before it."""
    return torch.Generator().manual_seed(seed_of(*key))


def digest(*values: Any) -> str:
    """Return what tells tensors and plain values, whatever they lie in, from others: the same in every process."""
    found = hashlib.blake2b(digest_size=8)
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if isinstance(leaf, (bytes, str, int, float)):  # the name of another object may change from day to day
            found.update(leaf if isinstance(leaf, bytes) else repr(leaf).encode())
    return found.hexdigest()


def classes_in(targets: Tensor) -> Tensor | None:
    """Return targets that are one class a sample, int64 (N,); None of several labels, values, masks.

    Raises:
        TypeError: One whole number a sample, and not as int64: torch's cross-entropy would refuse them, and less clearly.
    """
    if targets.ndim > 1 or targets.is_floating_point():
        return None
    if targets.dtype != torch.int64:
        raise TypeError(
            f"expected targets as int64 (N,), a class a sample, got {targets.dtype} {tuple(targets.shape)}: pass "
            "targets.long(); several labels are (N, K), values floating-point"
        )
    return targets


def known(targets: Tensor) -> Tensor:
    """Return which samples have a label, bool (N,).

    A class does from 0 on; several labels, or a mask, if one of them is not -100; values if one of them is not NaN.
    """
    if targets.ndim == 1 and not targets.is_floating_point():
        return targets >= 0
    rows = targets.reshape(len(targets), -1)
    if not rows.is_floating_point() or torch.isin(rows, rows.new_tensor([0, 1, UNLABELLED])).all():
        return (rows != UNLABELLED).any(1)
    return ~rows.isnan().all(1)  # where -100 is a value as any


def share() -> tuple[int, int]:
    """Return this process's rank and the number of processes, (0, 1) without ``torch.distributed``."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Epochs(ABC):
    """Batches of one view after another, in an order that depends on nothing but (seed, view).

    A *view* is one epoch: each ``iter()`` serves the next one. A view is a stream of positions, cut into batches. The
    stream is one lap over ``ids`` (a permutation seeded by (seed, view, lap) where ``shuffle``), or as many laps as
    ``batches`` asks for (see ``labelled``). An iterator takes its place when its first batch is
    asked for, so iterators that are made and never used (Lightning makes some) skip nothing. What samples look like in
    a view is drawn by (seed, view, lap), or comes again where views cycle (see ``cycling``).

    ``batch_size`` is the global batch. Where ``torch.distributed`` is initialised, rank r of w takes the positions
    r::w of every batch, so that w processes see what one would. Then

    * a training loader (``shuffle``) serves complete batches: what is left over has its chance in another view. Fewer
      samples than a batch make one batch, less what is left of it after division by w;
    * an evaluation loader drops nothing: shares may differ by one sample, and a last batch smaller than w joins the
      one before it.

    Args:
        samples: how many there are.
        labels: class of every sample, int64 (N,), where it has one; -100 marks a sample without a label. For choices in
            proportion to the classes, and for methods that remember samples by class.
        batch_size: samples in a batch, over all processes.
        shuffle: permute every lap. Also marks the loader as one for training (see above).
        seed: of the order and, in the subclasses, of the augmentation.
    """

    targets: Tensor | None = None
    """What is served as targets, (N, ...), where all of it is in memory."""
    answers: Answers | None
    """What teachers said of its samples, which batches then bring along, as `limbeck.Task.traces` reads it."""

    def __init__(
        self, samples: int, labels: Tensor | None = None, *, batch_size: int, shuffle: bool, seed: int
    ) -> None:
        if samples == 0:
            raise ValueError("expected at least one sample, got an empty data set")
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != (samples,)):
            raise TypeError(
                f"expected labels as int64 ({samples},), a class for each sample, got {labels.dtype} {tuple(labels.shape)}"
            )
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        self.labels = labels
        self.ids = torch.arange(samples)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.batches: int | None = None
        self.augmented = True
        self.views: Views | None = None
        self.answers = None
        self._view: int
        self._batch: int
        self._fresh: bool
        self._turn: object
        self._move(0, 0)

    @abstractmethod
    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        """Yield the batches that ``plan`` lists, augmented where ``augmented`` says so."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Serve batches on ``device`` from now on; returns the loader itself, as ``nn.Module.to`` does."""

    def __iter__(self) -> Iterator[Batch]:
        """Serve one view, from where the loader stands; see ``set_epoch`` and ``load_state_dict``."""
        if not self._fresh or self._batch >= len(self):
            self._move(self._view + 1, 0)
        view, first = self._view, self._batch
        self._fresh = False
        self._turn = turn = object()  # an abandoned iterator that goes on later must not move the loader
        plan, served = itertools.tee(self._plan(view, first))
        for done, (batch, pieces) in enumerate(zip(self._serve(plan), served, strict=True), start=first + 1):
            if self._turn is turn:
                self._batch = done
            yield batch if self.answers is None else self._taught(batch, pieces, self.answers)

    def __len__(self) -> int:
        """Batches in a view; the same for every process."""
        if self.batches is not None:
            return self.batches
        full, rest = divmod(len(self.ids), self.batch_size)
        if self.shuffle:
            return max(1, full)
        return max(1, full + (rest >= share()[1]))

    @property
    def view(self) -> int:
        """The view being served, or to be served next where none is."""
        return self._view

    def set_epoch(self, view: int) -> None:
        """Let the next ``iter()`` serve ``view``; a place loaded in the middle of that very view is kept."""
        if not (self._fresh and view == self._view):
            self._move(view, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the view and how many of its batches were handed out (by this process: the count is the same in all)."""
        return {"view": self._view, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next ``iter()`` go on after the batches that ``state`` counts."""
        if not {"view", "batch"} <= state.keys():
            raise ValueError(f"expected a state with 'view' and 'batch', got {sorted(state)}")
        self._move(int(state["view"]), int(state["batch"]))

    def with_seed(self, seed: int) -> Self:
        """Return a loader of the same samples (memory is shared) at view 0 of another seed; views that cycle stay."""
        other = self._copy()
        other.seed = seed
        return other

    def labelled(self) -> Self:
        """Return a loader of the labelled samples alone, with as many batches a view as this one has.

        What is labelled is told by the targets in memory, or else by ``labels``; without either, all samples are.

        Raises:
            ValueError: No sample is labelled.
        """
        targets = self.labels if self.targets is None else self.targets
        labelled = torch.ones(len(self.ids), dtype=torch.bool) if targets is None else known(targets).cpu()[self.ids]
        if bool(labelled.all()):
            return self._copy()
        if not bool(labelled.any()):
            raise ValueError("expected at least one labelled sample, got none")
        other = self._copy()
        other.ids, other.batches = self.ids[labelled], len(self)
        return other

    def plain(self) -> Self:
        """Return a loader of the same samples once, in order and without augmentation."""
        other = self._copy()
        other.augmented, other.shuffle, other.batches, other.answers = False, False, None, None
        return other

    def cycling(self, count: int, seed: int = 0) -> Self:
        """Return a loader of the same samples in which each looks as one of ``count`` views, drawn by ``seed``.

        Only their order then depends on the loader's own seed.

        Raises:
            ValueError: No view.
        """
        if count < 1:
            raise ValueError(f"expected at least one view of each sample, got {count}")
        other = self._copy()
        other.views = Views(count, seed)
        return other

    def seen(self, number: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield batches of these ids as they look in one of the views that cycle.

        Raises:
            ValueError: They do not, so that a view has no number.
        """
        if self.views is None:
            raise ValueError("a view has a number where views cycle: loader.cycling(count).seen(number, batches)")
        look = (self.views.seed, number, 0)
        return self._serve([(look, ids)] for ids in batches)

    def fingerprint(self) -> str:
        """Return what tells these samples from others: their ids and targets, or a few of them where targets are read."""
        targets = self.labels if self.targets is None else self.targets
        return digest(self.ids, self.few() if targets is None else targets)

    def example(self, count: int = 8) -> Any:
        """Return the inputs of samples spread over the set, (count, C, H, W), not augmented; the same in every process."""
        return inputs_of(self.few(count))

    def few(self, count: int = 8) -> Batch:
        """Return a batch of samples spread over the set, not augmented; the same in every process."""
        return next(self.plain()._serve([[((self.seed, 0, 0), self.spread(count))]]))

    def spread(self, count: int) -> Tensor:
        """Return the ids of so many samples, or all if there are fewer, spread over the set."""
        return self.ids[torch.linspace(0, len(self.ids) - 1, min(count, len(self.ids)), dtype=torch.float64).long()]

    def _move(self, view: int, batch: int) -> None:
        self._view, self._batch = view, batch
        self._fresh = True  # no batch was taken from here yet
        self._turn = object()

    def _copy(self) -> Self:
        other = copy.copy(self)
        other._move(0, 0)
        return other

    def _span(self, index: int, world: int) -> tuple[int, int]:
        """Start and stop of a batch in the view's stream of positions, over all processes."""
        start, count = index * self.batch_size, len(self.ids)
        stop = start + self.batch_size
        if self.batches is not None:
            return start, stop
        if self.shuffle:
            stop = min(stop, count)
            return start, stop - (stop - start) % world
        return start, count if index == len(self) - 1 else stop

    def _plan(self, view: int, first: int) -> Iterator[list[Piece]]:
        """Yield, batch by batch from ``first`` on, this process's ids, grouped by how they look."""
        rank, world = share()
        count = len(self.ids)
        if (self.shuffle and self.batch_size % world) or min(count, self.batch_size) < world:
            raise ValueError(
                f"expected a batch_size divisible by the number of processes ({world}) and a sample for each, got "
                f"batch_size {self.batch_size} and {count} samples"
            )
        orders: dict[int, Tensor] = {}
        for index in range(first, len(self)):
            start, stop = self._span(index, world)
            laps = range(start // count, (stop - 1) // count + 1)
            orders = {lap: orders[lap] if lap in orders else self._order(view, lap) for lap in laps}
            at = torch.arange(start + rank, stop, world)
            pieces = [(self._look(view, lap), orders[lap][at[at // count == lap] % count]) for lap in laps]
            yield [piece for piece in pieces if len(piece[1])]

    def _look(self, view: int, lap: int) -> Look:
        if self.views is None:
            return self.seed, view, lap
        laps = 1 if self.batches is None else -(-self.batches * self.batch_size // len(self.ids))
        return self.views.seed, (view * laps + lap) % self.views.count, 0

    def _taught(self, batch: Batch, pieces: list[Piece], answers: Answers) -> Batch:
        """Let a batch bring along what teachers said of its samples, in whatever order it has them."""
        ids = torch.cat([ids for _, ids in pieces])
        numbers = torch.cat([torch.full_like(own, number) for (_, number, _), own in pieces])
        if not torch.equal(own := identified(batch, ids), ids):
            seen = dict(zip(ids.tolist(), numbers.tolist(), strict=True))
            if len(seen) < len(ids):
                raise ValueError(
                    "a batch has a sample twice, in two views, and its samples in another order than was asked for: let "
                    "collate keep the order, or take smaller batches"
                )
            ids, numbers = own, torch.tensor([seen[row] for row in own.tolist()])
        return beside(batch, ids, answers(ids, numbers))

    def _order(self, view: int, lap: int) -> Tensor:
        if not self.shuffle:
            return self.ids
        return self.ids[torch.randperm(len(self.ids), generator=generator("order", self.seed, view, lap))]
