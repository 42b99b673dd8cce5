"""Contrastive representation distillation.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699; official code
HobbitLong/RepDistiller.

Where we differ from the authors' code: negatives are any other samples, as in the paper's equations and in their mode
without labels, where their recipe takes those of other classes; similarities come from one product with the whole bank, so
that no (N, K, D) tensor exists; scores stay in logarithms, without 1e-7 inside them; the banks start on the unit sphere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.distributed import gather, place
from limbeck.layers import embeddings, shape_at
from limbeck.method import Distill
from limbeck.numerics import full_precision, unit_rows
from limbeck.objective import IDS, S, T, on
from limbeck.paper import Paper
from limbeck.task import Task, classification

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


class Contrast(nn.Module):
    """Tell a sample's embedding by the other network from those of ``negatives`` others, remembered in two banks.

    P = exp(⟨v, u⟩ / τ) / Z with Z from the first batch; −log P/(P + K/n) of the sample itself, −log (K/n)/(P + K/n) of the
    negatives; sum over 1 + K, mean over samples, for both networks. What it remembers and draws is in its state: a run
    that goes on is the run that never stopped, and two processes are as one.

    Args:
        memory: n, how many samples the banks hold.
        dimensions: Of the embeddings.
        negatives: K, drawn for each sample, with replacement.
        temperature: τ.
        keep: The share of the old embedding in the bank's new one.
    """

    bank_s: Tensor
    bank_t: Tensor
    log_z: Tensor

    def __init__(self, memory: int, dimensions: int, negatives: int, temperature: float, keep: float) -> None:
        super().__init__()
        _check(memory, dimensions, negatives, temperature, keep)
        self.memory, self.negatives, self.temperature, self.keep = memory, negatives, temperature, keep
        self.noise = negatives / memory
        self.register_buffer("bank_s", unit_rows(torch.randn(memory, dimensions)))
        self.register_buffer("bank_t", unit_rows(torch.randn(memory, dimensions)))
        self.register_buffer("log_z", torch.zeros(2))
        self.seed, self.calls = int(torch.randint(2**31, ())), 0

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
        """Return the loss of embeddings (N, D) of the samples ``ids``, (N), and remember them."""
        if student.shape != teacher.shape or student.shape[1:] != self.bank_s.shape[1:] or len(ids) != len(student):
            raise ValueError(
                f"expected embeddings (N, {self.bank_s.shape[1]}) and ids (N) of the same samples, "
                f"got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(ids.shape)}"
            )
        self._check_ids(ids)
        return self.compare(unit_rows(student), unit_rows(teacher), torch.cat([ids[:, None], self._others(ids)], 1))

    def compare(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of unit embeddings (N, D) against ``chosen``, (N, 1 + K): the sample, then its negatives."""
        scores_s, scores_t = self._scores(student, self.bank_t, chosen), self._scores(teacher, self.bank_s, chosen)
        log_z = self.log_z if self.calls else torch.stack([self._log_sum(scores_s), self._log_sum(scores_t)])
        log_noise = math.log(self.noise)
        loss = student.new_zeros(())
        for scores, z in ((scores_s, log_z[0]), (scores_t, log_z[1])):
            ratios = scores - z - log_noise
            loss = loss + (F.softplus(-ratios[:, 0]) + F.softplus(ratios[:, 1:]).sum(1)).mean()
        if self.training:
            ids = gather(chosen[:, 0].contiguous())
            self.bank_s = self._remembered(self.bank_s, ids, student)
            self.bank_t = self._remembered(self.bank_t, ids, teacher)
            self.log_z, self.calls = log_z.to(self.log_z.dtype), self.calls + 1
        return loss

    def get_extra_state(self) -> Tensor:
        """Return the seed and the number of calls: on the CPU, as the next negatives depend on them."""
        return torch.tensor([self.seed, self.calls])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.seed, self.calls = state.tolist()

    def _others(self, ids: Tensor) -> Tensor:
        """Draw K other samples for each, (N, K): an id and what is added to it, round the circle of n."""
        rank, world = place()
        draw = torch.Generator(ids.device).manual_seed(self.seed * 2**31 + self.calls)
        size = (len(ids) * world, self.negatives)
        # of the global batch, of which each process has every world-th sample
        steps = torch.randint(1, self.memory, size, generator=draw, device=ids.device)[rank::world]
        return (ids[:, None] + steps) % self.memory

    def _scores(self, anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        similarities: Tensor = anchors @ bank.to(anchors.dtype).T
        return similarities.gather(1, chosen) / self.temperature

    def _log_sum(self, scores: Tensor) -> Tensor:
        """Return log Z: n times the mean of what the global batch scored."""
        sums = gather(scores.detach().flatten().logsumexp(0, keepdim=True))
        return sums.logsumexp(0) - math.log(scores.numel() * len(sums)) + math.log(self.memory)

    def _remembered(self, bank: Tensor, ids: Tensor, embedded: Tensor) -> Tensor:
        # a new bank: the backward pass still needs the old one
        new = gather(embedded.detach()).to(bank.dtype)
        return bank.index_copy(0, ids, unit_rows(self.keep * bank[ids] + (1 - self.keep) * new))

    def _check_ids(self, ids: Tensor) -> None:
        if self.calls and ids.device.type != "cpu":
            return  # looking would wait for the device
        if ids.is_floating_point() or ids.ndim != 1:
            raise ValueError(f"crd: expected ids (N) of integers, got {ids.dtype} of shape {tuple(ids.shape)}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.memory:
            raise ValueError(
                f"crd: memory={self.memory} holds the ids 0 to {self.memory - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}: set memory to the number of training samples"
            )


def crd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    memory: int,
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

    L = CE(y, z_s) + contrast · (L_s + L_t), see `limbeck.methods.crd.Contrast`. Both embeddings pass a trained linear map,
    which stays behind. Batches are ``(inputs, targets, ids)``: a sample has the same id in every epoch.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        memory: n, the number of training samples; their ids are 0 to n − 1. Two banks of n · dimensions numbers are kept.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        contrast: Weight of both losses, each a sum over 1 + K and a mean over samples; 0.8 as in the authors' code.
        negatives: K, drawn for each sample in each batch; 16384 as in the authors' code for CIFAR.
        temperature: τ; 0.07 as in the authors' code.
        keep: The share of the old embedding in the bank's new one; 0.5, the authors' momentum.
        dimensions: Of the linear maps; 128 as in the authors' code.
        example: A batch of inputs, (N, ...), from which the maps get their shapes.
        task: How batches are fed and measured.
    """
    remembered = Contrast(memory, dimensions, negatives, temperature, keep)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    map_s, map_t = (
        nn.Linear(math.prod(shape_at(net, path, example, task)[1:]), dimensions)
        for net, path in ((student, at_s), (teacher, at_t))
    )
    places = S[at_s].via(_flat, map_s), T[at_t].via(_flat, map_t), IDS
    return Distill(student, teacher, task.hard + contrast * on(remembered, *places, name="contrast"), task)


def _flat(samples: Tensor) -> Tensor:
    return samples.flatten(1)


def _check(memory: int, dimensions: int, negatives: int, temperature: float, keep: float) -> None:
    if memory < 2:
        raise ValueError(f"memory must hold at least 2 samples, or there are no others; got {memory}")
    if dimensions < 1 or negatives < 1:
        raise ValueError(f"dimensions and negatives must be at least 1, got {dimensions} and {negatives}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= keep < 1:
        raise ValueError(f"keep must lie in [0, 1), got {keep}")
