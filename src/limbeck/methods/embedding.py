"""Distillation of embeddings: of a sample or its tokens through a linear map, and of the table that holds them.

Mou, Jia, Xu, Li, Zhang, Jin, "Distilling Word Embeddings: An Encoding Approach", CIKM 2016, arXiv 1506.04488. No official
code.

`embedding_table` is the paper's: a small table encodes a large one, and the encoder learns the task. `embedding` is what
the field otherwise calls embedding distillation, as in TinyBERT's embedding layer (arXiv 1909.10351); no one paper has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import like, whole
from limbeck.core.frozen import bare
from limbeck.core.layers import embeddings, shape_at
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.numerics import full_precision, lengths, same_shape, unit_rows
from limbeck.core.objective import S, Source, T, Weight, X, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import Batch, Task
from limbeck.core.trace import describe, locate, submodules
from limbeck.methods.kd import masked_mean
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="mou2016distilling",
    title="Distilling Word Embeddings: An Encoding Approach",
    authors="Mou, Lili and Jia, Ran and Xu, Yan and Li, Ge and Zhang, Lu and Jin, Zhi",
    venue="CIKM",
    year=2016,
    arxiv="1506.04488",
    matches="embeddings of samples or tokens",
    teacher="frozen network",
)
PAPER_OF = {"embedding_table": {"matches": "a table of embeddings, encoded"}}
"""What is otherwise than in `PAPER`, of the paper's own method."""


@full_precision
def embedding_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 − cos(s, t), mean over samples, or over all tokens of the batch. An embedding of zeros has no direction: 1.

    Args:
        student: Embeddings through the linear map, (N, D) or (N, L, D).
        teacher: The teacher's, of the same shape.
        mask: What counts, (N) or (N, L): 0 where a sequence is padded. An empty mask gives 0.
    """
    same_shape("embeddings", student, teacher)
    products = torch.linalg.vecdot(student, teacher).unsqueeze(-1)
    cosines = products / lengths(student) / lengths(teacher)  # not by their product: 0 · ∞ of rows of zeros is NaN
    return _mean(1 - cosines.squeeze(-1), mask)


@full_precision
def embedding_squared(student: Tensor, teacher: Tensor, mask: Tensor | None = None, normalise: bool = True) -> Tensor:
    """‖s − t‖², sum over dimensions, mean over samples, or over all tokens of the batch.

    Of directions it is twice `embedding_cosine`; otherwise it matches lengths too. TinyBERT's mean over elements is 1/D of
    it.

    Args:
        student: Embeddings through the linear map, (N, D) or (N, L, D).
        teacher: The teacher's, of the same shape.
        mask: What counts, (N) or (N, L): 0 where a sequence is padded. An empty mask gives 0.
        normalise: Divide each embedding by its length first.
    """
    same_shape("embeddings", student, teacher)
    if normalise:
        student, teacher = unit_rows(student), unit_rows(teacher)
    return _mean(F.mse_loss(student, teacher, reduction="none").sum(-1), mask)


class Encoding(Method):
    """A student whose table of embeddings is an encoding of a larger one.

    While it trains, each token's embedding is encoded anew. After each update the student's own table holds what the
    encoder makes of the large one: at any time the student can be measured and shipped as it is.

    Args:
        distill: The student, and what it learns.
        table: The path of its `torch.nn.Embedding`.
        large: The large table, (V, D).
        encoder: Makes (..., d) of (..., D).
    """

    large: Tensor

    def __init__(self, distill: Distill, table: str, large: Tensor, encoder: nn.Module) -> None:
        super().__init__()
        self.distill, self.path, self.encoder = distill, table, encoder
        self.task = distill.task
        self.register_buffer("large", large, persistent=False)  # the teacher's, and in nobody's checkpoint

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student with the encoder."""
        return {"student": [self.distill.student, self.distill.objective, self.encoder]}

    def adding(self, other: Distill, hard: Weight | None = None) -> Encoding:
        """Return it with the terms of another method."""
        return Encoding(self.distill.adding(other, hard), self.path, self.large, self.encoder)

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Let the encoder learn the task with the rest of the student, then write its table."""
        with self._encoding():
            scene = self.distill.scene(batch, progress)
        yield Turn("student", self.distill.objective(scene))
        self.write_table()

    @torch.no_grad()
    def write_table(self) -> None:
        """Encode the large table into the student's own; what it has for padding stays."""
        table = _table(self.distill.student, self.path)
        encoded = self._encoded(self.large)
        if table.padding_idx is not None:
            encoded[table.padding_idx] = whole(table.weight)[table.padding_idx]
        table.weight.copy_(like(table.weight, encoded))

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Let the student's table give out encodings while the block runs."""
        table = _table(self.distill.student, self.path)

        def encode(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            encoded = self._encoded(F.embedding(args[0], self.large)).to(output.dtype)
            if table.padding_idx is None:
                return encoded
            return torch.where((args[0] == table.padding_idx)[..., None], output.detach(), encoded)

        handle = table.register_forward_hook(encode)
        try:
            yield
        finally:
            handle.remove()

    @full_precision
    def _encoded(self, vectors: Tensor) -> Tensor:
        """Encode without autocast: the table is written once and read ever after."""
        own = next((p.dtype for p in self.encoder.parameters()), vectors.dtype)
        encoded: Tensor = self.encoder(vectors.to(own))
        return encoded


@ranged
def embedding(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: str | tuple[str, str] | None = None,
    cosine: float = 1.0,
    squared: float = 0.0,
    normalise: bool = True,
    mask: str | None = None,
    example: Any,
    task: Task = classification,
) -> Distill:
    """Let a linear map of the student's embedding be the teacher's.

    L = CE(y, z_s) + cosine · mean (1 − cos(W e_s, e_t)) + squared · mean ‖W e_s − e_t‖². W has no bias, trains with the
    student and stays behind. Maps (N, C, H, W) are averaged over their positions first.

    Token embeddings are layers as any other: with ``layer=("embed", "bert.embeddings")`` the student's table becomes a
    factor of the teacher's, each token weighed by how often it comes.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layer: Where the embeddings are: one path for both networks, or (student's, teacher's); ``""`` is the output. By
            default the input of each network's last linear layer.
        cosine: Weight of the angle, at least 0; 1 is ours.
        squared: Weight of the squared error, a sum over dimensions, at least 0; 0 is ours. With ``normalise=False``, 1/D is
            TinyBERT's.
        normalise: Compare the directions of embeddings; False has the squared error match their lengths too.
        mask: The name of the input that is 0 at padded tokens: ``"attention_mask"``. ``""`` is the input itself, where
            token 0 pads. All tokens count by default.
        example: A batch of inputs, from which W gets its shape.
        task: How batches are fed and measured.
    """
    refuse_all_zero(cosine=cosine, squared=squared)
    at_s, at_t = embeddings(student, teacher, layer, example, task)
    shapes = shape_at(student, at_s, example, task), shape_at(teacher, at_t, example, task)
    d_s, d_t = (_dimensions(*one) for one in zip(("student", "teacher"), (at_s, at_t), shapes, strict=True))
    _check_positions(at_s, at_t, *shapes)
    places = S[at_s].via(_vectors, nn.Linear(d_s, d_t, bias=False)), T[at_t].via(_vectors), *_mask(mask, example)
    angle = cosine * on(embedding_cosine, *places, name="cosine")
    error = squared * on(embedding_squared, *places, name="squared", normalise=normalise)
    return Distill(student, teacher, task.hard + angle + error, task)


def embedding_table(
    student: nn.Module,
    teacher: nn.Module,
    *,
    table: str | tuple[str, str] | None = None,
    task: Task = classification,
) -> Encoding:
    """Let the student's table of embeddings be an encoding of the teacher's, which learns the task.

    e = tanh(W x + b), for each token's row x of the teacher's table; L = CE(y, z_s) trains W, b and all of the student but
    its table, which is written anew after each update. Tokens that the labels never show get an embedding as well, from
    those that are close to them. It takes nothing but the table: the teacher may be an ``nn.Embedding.from_pretrained``.

    Args:
        student: The network to train, with an `torch.nn.Embedding` of d dimensions.
        teacher: A network with one of D dimensions, for the same tokens in the same order.
        table: Where the tables are: one path for both networks, or (student's, teacher's); ``""`` is the network itself.
            By default each network's first.
        task: How batches are fed and measured.
    """
    at_s, at_t = (table, table) if isinstance(table, str) or table is None else table
    at_s, at_t = _first_table(student) if at_s is None else at_s, _first_table(teacher) if at_t is None else at_t
    small, large = _table(student, at_s), _table(teacher, at_t)
    _check_tables(student, at_s, small, large)
    # tanh is ours: the paper asks for some non-linearity, and this one bounds the table whatever the scale of the large one
    encoder = nn.Sequential(nn.Linear(large.embedding_dim, small.embedding_dim), nn.Tanh())
    return Encoding(Distill(student, None, task.hard, task), at_s, large.weight.detach(), encoder)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.sum() / max(1, values.numel()) if mask is None else masked_mean(values, mask)


def _vectors(embedded: Tensor) -> Tensor:
    return embedded.mean((2, 3)) if embedded.ndim == 4 else embedded


def _dimensions(who: str, path: str, shape: tuple[int, ...]) -> int:
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"expected embeddings (N, D), (N, L, D) or maps, but the {who}'s {path!r} has shape {shape}")
    return shape[1] if len(shape) == 4 else shape[-1]


def _check_positions(at_s: str, at_t: str, of_student: tuple[int, ...], of_teacher: tuple[int, ...]) -> None:
    tokens_s, tokens_t = (shape[1:-1] if len(shape) == 3 else () for shape in (of_student, of_teacher))
    if tokens_s != tokens_t:
        raise ValueError(
            f"embeddings are compared one by one: the student's {at_s!r} has shape {of_student}, the teacher's {at_t!r} "
            f"{of_teacher}: name layers with as many tokens (`limbeck layers STUDENT TEACHER` shows all shapes)"
        )


def _mask(name: str | None, example: Any) -> list[Source]:
    """Where the mask is read, if there is one."""
    if name is None:
        return []
    known = sorted(example) if isinstance(example, Mapping) else [""]
    if name not in known:
        raise ValueError(f"mask={name!r} is no part of the input, {describe(example)}: expected one of {known}")
    return [X[name]]


def _first_table(net: nn.Module) -> str:
    if isinstance(bare(net), nn.Embedding):
        return ""
    for path, module in submodules(bare(net)).items():
        if isinstance(module, nn.Embedding):
            return path
    raise ValueError(f"{type(bare(net)).__name__} has no nn.Embedding, so that there is no table to compress")


def _table(net: nn.Module, path: str) -> nn.Embedding:
    module, entry = locate(bare(net), path)
    if entry or not isinstance(module, nn.Embedding):
        raise ValueError(f"{path!r} is a {type(module).__name__}, expected the path of an nn.Embedding")
    return module


def _check_tables(student: nn.Module, path: str, small: nn.Embedding, large: nn.Embedding) -> None:
    if small.num_embeddings != large.num_embeddings:
        raise ValueError(
            f"the student's table has {small.num_embeddings} tokens, the teacher's {large.num_embeddings}: both need the "
            "same tokens in the same order"
        )
    if small.max_norm is not None:
        raise ValueError(
            f"the student's {path!r} has max_norm={small.max_norm}, which would cut encodings: leave it out"
        )
    names = [name for name, p in bare(student).named_parameters(remove_duplicate=False) if p is small.weight]
    if len(names) > 1:
        raise ValueError(f"the student's {names} are one parameter: an encoded table cannot be an output layer too")
