"""TinyBERT: embeddings, hidden states and attention, then the prediction.

Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of
EMNLP 2020, arXiv 1909.10351; official code huawei-noah/Pretrained-Language-Model. Here all terms are of one stage, and
attention is compared before the softmax, by queries and keys, so that any attention kernel will do.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from limbeck import Distill, S, Source, T, Task, X, classification, on
from limbeck.core.layers import by_depth, shape_at, stages
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.trace import submodules
from limbeck.losses import soft_cross_entropy


@full_precision
def hidden_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of hidden states (N, L, D), mean over entries and over the tokens that are no padding, mask (N, L)."""
    same_shape("hidden states", student, teacher)
    return ((student - teacher).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)


@full_precision
def attention_scores(
    s_query: Tensor, s_key: Tensor, t_query: Tensor, t_key: Tensor, mask: Tensor, heads: int
) -> Tensor:
    """Squared error of q kᵀ / √d of (N, L, D), mean over heads and over pairs of tokens that are no padding."""
    mine, theirs = _scores(s_query, s_key, heads), _scores(t_query, t_key, heads)
    both = (mask[:, :, None] * mask[:, None, :])[:, None]
    return ((mine - theirs).square() * both).sum() / (heads * both.sum()).clamp(min=1)


def tinybert(
    student: nn.Module,
    teacher: nn.Module,
    *,
    embedding: float = 1.0,
    hidden: float = 1.0,
    attention: float = 1.0,
    soft: float = 1.0,
    example: Any,
    task: Task = classification,
) -> Distill:
    """Match embeddings, and hidden states and attention of layers at the same depth, then the outputs."""
    pad, heads = X["attention_mask"], teacher.config.num_attention_heads
    s, t = (_find(net, "", "embeddings") for net in (student, teacher))
    widths = [shape_at(net, path, example, task)[-1] for net, path in ((student, s), (teacher, t))]
    wide = nn.Linear(*widths)
    objective = soft * on(soft_cross_entropy, *task.softened(S, T), name="soft", temperature=1.0)
    objective += embedding * on(hidden_states, S[s].via(wide), T[t], mask=pad, name="embedding")
    for mine, theirs in by_depth(stages(student, example, task), stages(teacher, example, task)):
        s, t = mine.path, theirs.path
        looks = [*_queries_keys(student, s, S), *_queries_keys(teacher, t, T)]
        objective += hidden * on(hidden_states, S[s].via(wide), T[t], mask=pad, name=f"hidden.{s}")
        objective += attention * on(attention_scores, *looks, mask=pad, heads=heads, name=f"attention.{s}")
    return Distill(student, teacher, objective, task)


def _queries_keys(net: nn.Module, block: str, role: Source) -> list[Source]:
    return [role[_find(net, block, *names)] for names in (("query", "q_lin", "q_proj"), ("key", "k_lin", "k_proj"))]


def _find(net: nn.Module, block: str, *names: str) -> str:
    return next(path for path in submodules(net) if path.startswith(block) and path.rpartition(".")[2] in names)


def _scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    q, k = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
