"""Contrastive representation distillation.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699; official code
HobbitLong/RepDistiller. The queue: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation
Learning", CVPR 2020, arXiv 1911.05722.

Where we differ from the authors' code: negatives are drawn with replacement, where theirs for CIFAR has none; similarities
come from products with the whole bank, or with one sample's rows of it at a time, so that no (N, K, D) tensor exists;
scores stay in logarithms, without 1e-7 inside them; the banks start on the unit sphere. The authors have no queue.

The gradient is made in the forward pass (`limbeck.core.numerics.settled`), which frees the scores before the backward pass
and lets the banks be written in place; it takes a third of the memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from limbeck.core.distributed import gather, place
from limbeck.core.layers import embeddings, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, settled, unit_rows
from limbeck.core.objective import IDS, S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.nets.draws import Draws
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="tian2020contrastive",
    title="Contrastive Representation Distillation",
    authors="Tian, Yonglong and Krishnan, Dilip and Isola, Phillip",
    venue="ICLR",
    year=2020,
    arxiv="1910.10699",
    matches="embeddings, against those of other samples",
    teacher="frozen network",
)

AT_ONCE = 2**24
"""How many similarities to a whole bank there are at a time: 64 MB of them."""


class Estimation(nn.Module):
    """Noise-contrastive estimation: tell a sample's own score, the first of its row, from those of K others.

    With s = ⟨v, u⟩ / τ and P = exp(s) / Z, where Z = n · mean exp(s) of the first batch it sees in training:
    −log P/(P + K/n) of the sample itself, −log (K/n)/(P + K/n) of the others; sum over 1 + K, mean over samples. The
    number n of all samples cancels.

    Args:
        negatives: K.
    """

    log_mean: Tensor

    def __init__(self, negatives: int) -> None:
        super().__init__()
        self.negatives = float(negatives)
        self.register_buffer("log_mean", torch.zeros(()))
        self.known = False

    def forward(self, scores: Tensor) -> Tensor:
        """Return the loss of scores s, (N, 1 + K)."""
        log_mean = self.log_mean if self.known else self._log_mean(scores)
        if self.training:
            self.log_mean, self.known = log_mean.to(self.log_mean.dtype), True
        ratios = scores - log_mean - math.log(self.negatives)  # log of P over K/n
        loss: Tensor = (F.softplus(-ratios[:, 0]) + F.softplus(ratios[:, 1:]).sum(1)).mean()
        return loss

    def get_extra_state(self) -> Tensor:
        """Return whether Z is known: on the CPU, as the next call depends on it."""
        return torch.tensor(self.known)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.known = bool(state)

    def _log_mean(self, scores: Tensor) -> Tensor:
        """Return the logarithm of the mean of exp(s) over the global batch."""
        sums = gather(scores.detach().flatten().logsumexp(0, keepdim=True))
        return sums.logsumexp(0) - math.log(scores.numel() * len(sums))


class Contrast(nn.Module):
    """Tell a sample's embedding by the other network from those of ``negatives`` others, remembered in two banks.

    `Estimation` for both networks. Its state holds what it remembers and draws: a run that goes on is the run that never
    stopped, and two processes are as one.

    Args:
        memory: n, how many samples the banks hold.
        dimensions: Of the embeddings.
        negatives: K, drawn for each sample, with replacement.
        temperature: τ.
        keep: The share of the old embedding in the bank's new one.
        classes: The class of each sample, (n): negatives are of others. Negative is "no class", which differs from all. By
            default every sample is a class of its own.
    """

    bank_s: Tensor
    bank_t: Tensor
    order: Tensor
    first: Tensor
    own: Tensor

    def __init__(
        self,
        memory: int,
        dimensions: int,
        negatives: int,
        temperature: float,
        keep: float,
        classes: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(memory, dimensions, negatives, temperature)
        if not 0 <= keep < 1:
            raise ValueError(f"keep must lie in [0, 1), got {keep}")
        self.memory, self.negatives, self.temperature, self.keep = memory, negatives, temperature, keep
        self.register_buffer("bank_s", unit_rows(torch.randn(memory, dimensions)))
        self.register_buffer("bank_t", unit_rows(torch.randn(memory, dimensions)))
        self.of_student, self.of_teacher = Estimation(negatives), Estimation(negatives)
        self.draws = Draws(int(torch.randint(2**31, ())))
        order, first, own = _circle(_classes(classes, memory))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("own", own, persistent=False)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
        """Return the loss of embeddings (N, D) of the samples ``ids``, (N), and remember them."""
        _check_embeddings(student, teacher, self.bank_s.shape[1])
        self._check_ids(ids, student)
        return self.compare(unit_rows(student), unit_rows(teacher), torch.cat([ids[:, None], self._others(ids)], 1))

    def compare(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of unit embeddings (N, D) against ``chosen``, (N, 1 + K): the sample, then its negatives."""
        loss = settled(lambda anchors: self.of_student(self._scores(anchors, self.bank_t, chosen)), student)
        loss = loss + settled(lambda anchors: self.of_teacher(self._scores(anchors, self.bank_s, chosen)), teacher)
        if self.training:
            ids = gather(chosen[:, 0].contiguous())
            self._remember(self.bank_s, ids, student)
            self._remember(self.bank_t, ids, teacher)
        return loss

    def _others(self, ids: Tensor) -> Tensor:
        """Draw K samples of other classes for each, (N, K): steps round a circle of all, from the end of its own class."""
        steps: Tensor = self.draws(
            lambda samples, generator: torch.randint(
                2**62, (samples, self.negatives), generator=generator, device=ids.device
            ),
            len(ids),
            ids.device,
        )
        own = self.own[ids].unsqueeze(1)
        return self.order[(self.first[ids].unsqueeze(1) + own + steps % (self.memory - own)) % self.memory]

    def _scores(self, anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        similarities: Tensor = _Similarities.apply(anchors, bank.to(anchors.dtype), chosen)
        return similarities / self.temperature

    def _remember(self, bank: Tensor, ids: Tensor, embedded: Tensor) -> None:
        new = gather(embedded.detach()).to(bank.dtype)
        bank.index_copy_(0, ids, unit_rows(self.keep * bank[ids] + (1 - self.keep) * new))

    def _check_ids(self, ids: Tensor, samples: Tensor) -> None:
        if ids.is_floating_point() or ids.ndim != 1 or len(ids) != len(samples):
            raise ValueError(
                f"crd: expected ids (N) of integers, one for each of the {len(samples)} samples, got {ids.dtype} of shape "
                f"{tuple(ids.shape)}"
            )
        if self.draws.calls and ids.device.type != "cpu":
            return  # looking would wait for the device
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.memory:
            raise ValueError(
                f"crd: memory={self.memory} holds the ids 0 to {self.memory - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}: set memory to the number of training samples"
            )


class _Similarities(torch.autograd.Function):
    """Of anchors v, (N, D), and chosen rows u of a bank, (n, D): ⟨v_i, u_c⟩ at the places c of ``chosen``, (N, 1 + K).

    It takes the cheaper of two ways, which both keep neither rows nor other similarities.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(bank, chosen)
        if _whole_bank_is_cheaper(bank, chosen):
            parts = zip(_parts(anchors, bank), _parts(chosen, bank), strict=True)
            return torch.cat([(some @ bank.T).gather(1, places) for some, places in parts])
        return torch.stack([bank.index_select(0, c) @ v for v, c in zip(anchors, chosen, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        bank, chosen = ctx.saved_tensors
        if _whole_bank_is_cheaper(bank, chosen):
            parts = zip(_parts(upstream, bank), _parts(chosen, bank), strict=True)
            return torch.cat([_spread(some, places, len(bank)) @ bank for some, places in parts]), None, None
        return F.embedding_bag(chosen, bank, per_sample_weights=upstream, mode="sum"), None, None


class Queue(nn.Module):
    """Tell a sample's embedding by the other network from the last ones of earlier samples, which two queues remember.

    `Estimation` for both networks. It needs no ids, as the banks do, and its size does not depend on the data. A sample's
    own embedding is that of this batch, as a constant. Its state holds what it remembers, and two processes are as one.

    Args:
        length: K, how many embeddings the queues hold; all of them are negatives.
        dimensions: Of the embeddings.
        temperature: τ.
    """

    queue_s: Tensor
    queue_t: Tensor
    runs_as_written = True
    """Its gradient is made in the forward pass, and where the oldest embeddings are is another in each call."""

    def __init__(self, length: int, dimensions: int, temperature: float) -> None:
        super().__init__()
        _check(length, dimensions, length, temperature)
        self.temperature = temperature
        self.register_buffer("queue_s", unit_rows(torch.randn(length, dimensions)))
        self.register_buffer("queue_t", unit_rows(torch.randn(length, dimensions)))
        self.of_student, self.of_teacher = Estimation(length), Estimation(length)
        self.oldest = 0

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of embeddings (N, D) of the same samples, and remember them in place of the oldest."""
        _check_embeddings(student, teacher, self.queue_s.shape[1])
        student, teacher = unit_rows(student), unit_rows(teacher)
        loss = settled(lambda anchors: self.of_student(self._scores(anchors, teacher, self.queue_t)), student)
        loss = loss + settled(lambda anchors: self.of_teacher(self._scores(anchors, student, self.queue_s)), teacher)
        if self.training:
            self._remember(_in_order(student), _in_order(teacher))
        return loss

    def get_extra_state(self) -> Tensor:
        """Return where the oldest embeddings are: on the CPU, as the next call depends on it."""
        return torch.tensor(self.oldest)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.oldest = int(state)

    def _scores(self, anchors: Tensor, own: Tensor, others: Tensor) -> Tensor:
        positives = (anchors * own.detach()).sum(1, keepdim=True)
        return torch.cat([positives, anchors @ others.to(anchors.dtype).T], 1) / self.temperature

    def _remember(self, student: Tensor, teacher: Tensor) -> None:
        length = len(self.queue_s)
        student, teacher = student[-length:], teacher[-length:]  # of a batch longer than the queue, its end
        places = (self.oldest + torch.arange(len(student), device=student.device)) % length
        self.queue_s.index_copy_(0, places, student.to(self.queue_s.dtype))
        self.queue_t.index_copy_(0, places, teacher.to(self.queue_t.dtype))
        self.oldest = (self.oldest + len(student)) % length


@ranged
def crd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    memory: int | None = None,
    queue: int | None = None,
    classes: Tensor | None = None,
    layer: str | tuple[str, str] | None = None,
    contrast: float = 0.8,
    negatives: int = 16384,
    temperature: float = 0.07,
    keep: float = 0.5,
    dimensions: int = 128,
    example: Tensor,
    task: Task = classification,
) -> Distill:
    """Let the student's embedding of a sample be told from others' by the teacher's, and the reverse.

    L = CE(y, z_s) + contrast · (L_s + L_t), see `limbeck.methods.crd.Estimation`. Both embeddings pass a trained linear
    map, which stays behind.

    The others are remembered, in banks that hold an embedding of every training sample, whose batches are ``(inputs,
    targets, ids)``, a sample with the same id in every epoch; or where the data are too many, in a queue of the latest.
    One of ``memory`` and ``queue`` says which; where neither is given, `limbeck.distill`, `limbeck.compare` and the command
    line take ``memory``, and ``classes``, from a `limbeck.data.Data`.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        memory: n, the number of training samples, at least 1; their ids are 0 to n − 1. Two banks of n · dimensions numbers
            are kept.
        queue: K, the length of the queues in place of banks, at least 1; two of K · dimensions numbers are kept, and no ids
            are needed. 65536 is MoCo's for ImageNet; 16384 is as many negatives as the banks give. Those of the sample's
            own class are among them, one of a hundred at 100 classes.
        classes: The class of each training sample, (n), at the place of its id: negatives are drawn from the other
            classes, as in the authors' recipe ("exact"). -100 is "no label", a class of its own. By default all other
            samples are negatives, as in the paper's equations.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        contrast: Weight of both losses, each a sum over 1 + K and a mean over samples, above 0; 0.8 as in the authors'
            code, for CIFAR-100 (Knowledge-Distillation-Zoo has 0.2 for CIFAR-10, at τ = 0.1).
        negatives: K of the banks, drawn for each sample in each batch, at least 1; 16384 as in the authors' code for CIFAR.
        temperature: τ, in (0, 1000]; 0.07 as in the authors' code, and in MoCo's.
        keep: The share of the old embedding in the bank's new one, in [0, 1); 0.5, the authors' momentum.
        dimensions: Of the linear maps, at least 1; 128 as in the authors' code.
        example: A batch of inputs, (N, ...), from which the maps get their shapes.
        task: How batches are fed and measured.
    """
    remembered = _memory(memory, queue, classes, dimensions, negatives, temperature, keep)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    map_s, map_t = (
        nn.Linear(math.prod(shape_at(net, path, example, task)[1:]), dimensions)
        for net, path in ((student, at_s), (teacher, at_t))
    )
    places = [S[at_s].via(_flat, map_s), T[at_t].via(_flat, map_t)]
    if queue is None:
        places.append(IDS)
    return Distill(student, teacher, task.hard + contrast * on(remembered, *places, name="contrast"), task)


def _memory(
    memory: int | None,
    queue: int | None,
    classes: Tensor | None,
    dimensions: int,
    negatives: int,
    temperature: float,
    keep: float,
) -> Contrast | Queue:
    if (memory is None) == (queue is None):
        raise ValueError(
            "crd remembers samples in banks or in a queue, one of them: memory=number of training samples, for data with "
            f"ids, or queue=16384; got memory={memory} and queue={queue}"
        )
    if memory is not None:
        return Contrast(memory, dimensions, negatives, temperature, keep, classes)
    if classes is not None:
        raise ValueError("classes are for the banks, which know samples by their ids; a queue does not: leave them out")
    assert queue is not None
    return Queue(queue, dimensions, temperature)


def _flat(samples: Tensor) -> Tensor:
    return samples.flatten(1)


def _classes(given: Tensor | None, memory: int) -> Tensor:
    """Return the class of each sample; those without are each of one of their own."""
    alone = torch.arange(memory)
    if given is None:
        return alone
    if given.is_floating_point() or tuple(given.shape) != (memory,):
        raise ValueError(
            f"classes must be integers of shape ({memory},), one for each sample in the memory, got {given.dtype} of "
            f"shape {tuple(given.shape)}"
        )
    given = given.to(alone)
    classes = torch.where(given < 0, given.max().clamp(min=0) + 1 + alone, given)
    if (classes == classes[0]).all():
        raise ValueError(f"all classes are {int(classes[0])}, so no sample could be a negative: leave classes out")
    return classes


def _circle(classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples ordered by class and, for each, where its class begins there and how many belong to it."""
    order = classes.argsort(stable=True)
    _, index, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    return order, (counts.cumsum(0) - counts)[index], counts[index]


def _whole_bank_is_cheaper(bank: Tensor, chosen: Tensor) -> bool:
    """Whether to multiply with all n rows and take K + 1 of them, rather than to fetch these alone.

    Measured on one core of an AMD EPYC with D = 128, value and gradient: both take the same time at n / K = 12, 18 and 22
    for K = 1024, 4096 and 16384 in batches of 64, and at 10 for K = 4096 in batches of 16, as fewer rows share a reading of
    the bank.
    """
    return len(bank) * (1 + 16 / len(chosen)) < 20 * chosen.shape[1]


def _parts(rows: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
    """Return so many rows at a time that their similarities to the whole bank are at most `AT_ONCE`."""
    return torch.split(rows, max(1, AT_ONCE // len(bank)))


def _spread(values: Tensor, places: Tensor, width: int) -> Tensor:
    """Return the sums of each row's values by their places, (N, width)."""
    return values.new_zeros(len(values), width).scatter_add_(1, places, values)


def _in_order(embedded: Tensor) -> Tensor:
    """Return the embeddings of the global batch, of which each process has every world-th."""
    _, world = place()
    everyone = gather(embedded.detach())
    return everyone.reshape(world, -1, everyone.shape[1]).transpose(0, 1).flatten(0, 1)


def _check_embeddings(student: Tensor, teacher: Tensor, dimensions: int) -> None:
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] != dimensions:
        raise ValueError(
            f"crd: expected embeddings (N, {dimensions}) of the same samples by both networks, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _check(memory: int, dimensions: int, negatives: int, temperature: float) -> None:
    if memory < 2:
        raise ValueError(f"memory must hold at least 2 samples, or there are no others; got {memory}")
    if dimensions < 1 or negatives < 1:
        raise ValueError(f"dimensions and negatives must be at least 1, got {dimensions} and {negatives}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
