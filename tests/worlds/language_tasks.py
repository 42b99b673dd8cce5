"""Language models, masked and causal. A class for each text is `limbeck.classification`, as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.text import Perplexity

from limbeck import classification
from limbeck.core.exhibits import Exhibit, Shown
from limbeck.core.task import UNLABELLED, Batch, Score, logits, target_of
from limbeck.losses import cross_entropy
from limbeck.tasks.meters import MeanLoss


def perplexity(answer: Tensor) -> MetricCollection:
    """``perplexity`` of the labelled positions, and mean loss."""
    return MetricCollection({"perplexity": Perplexity(UNLABELLED), "loss": MeanLoss(cross_entropy)})


def labelled(batch: Batch) -> Tensor:
    """Which tokens have a label: those that were masked."""
    return target_of(batch) != UNLABELLED


def all_but_the_last(output: Any) -> Tensor:
    """What is said at every position to which there is a next token."""
    return logits(output)[:, :-1]


def next_tokens(batch: Batch) -> Tensor:
    """The label of a position is the token that follows."""
    return target_of(batch)[:, 1:]


def followed(batch: Batch) -> Tensor:
    """Which positions are followed by a token that counts."""
    return next_tokens(batch) != UNLABELLED


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show nothing: tokens have no words without their tokenizer."""
    yield from ()


masked_lm = replace(
    classification,
    name="masked language modelling",
    mask=labelled,
    metrics=perplexity,
    score=Score("perplexity", unit="", best="lowest"),
    guess=lambda answer: answer.shape[-1],
    exhibit=exhibit,
)
causal_lm = replace(
    masked_lm, name="causal language modelling", output=all_but_the_last, target=next_tokens, mask=followed
)
