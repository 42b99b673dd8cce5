"""A world of texts, as a later issue would build it: `tinybert` equals a loop by hand, language models have a mask."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from language_tasks import causal_lm, masked_lm
from tinybert_method import tinybert
from torch import Tensor, nn
from torch.nn import functional as F
from world_runs import Loader, checked, difference, kept, moved, play, trained

import limbeck
from limbeck import Distill, M, S, T, classification, on
from limbeck.data.items import Items
from limbeck.losses import soft_target

transformers = pytest.importorskip("transformers")

WORDS, HEADS = 20, 2


def config(width: int, layers: int) -> Any:
    return transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=24,
        num_labels=2,
    )


def bert(seed: int, width: int, layers: int) -> nn.Module:
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(config(width, layers))


def texts(seed: int, count: int = 4) -> dict[str, Tensor]:
    """Words of two kinds, as many as there are; the label is the kind of which there are more."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (count,), generator=random)
    words = torch.randint(1, WORDS, (count, int(lengths.max())), generator=random)
    seen = (torch.arange(words.shape[1]) < lengths[:, None]).long()
    labels = (((words < 10).long() * seen).sum(1) * 2 > lengths).long()
    return {
        "input_ids": words * seen,
        "attention_mask": seen,
        "labels": labels,
        "ids": torch.arange(count) + count * seed,
    }


def batched(samples: list[tuple[dict[str, Tensor], Tensor]], ids: Tensor) -> dict[str, Tensor]:
    """Pad texts to the longest of the batch: what a tokenizer's collator does."""
    columns = {
        name: nn.utils.rnn.pad_sequence([inputs[name] for inputs, _ in samples], batch_first=True)
        for name in ("input_ids", "attention_mask")
    }
    return {**columns, "labels": torch.stack([label for _, label in samples]), "ids": ids}


def loader(seeds: range, *, shuffle: bool = False) -> Items:
    """The texts, one by one and as long as each is, as a data set has them."""
    samples = []
    for batch in map(texts, seeds):
        for row, seen in enumerate(batch["attention_mask"].bool()):
            inputs = {name: batch[name][row][seen] for name in ("input_ids", "attention_mask")}
            samples.append((inputs, batch["labels"][row]))
    labels = torch.stack([label for _, label in samples])
    return Items(samples, batch_size=4, collate=batched, labels=labels, shuffle=shuffle)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return [texts(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return bert(1, 16, 4).eval()


def made(student: nn.Module, teacher: nn.Module, batches: list[Any]) -> Distill:
    torch.manual_seed(3)
    return tinybert(student, teacher, example=classification.inputs(batches[0]))


def by_hand(student: Any, teacher: Any, wide: nn.Module, batches: list[Any]) -> None:
    """With the hidden states that the models themselves give."""
    torch.manual_seed(7)
    student.train()
    optimizer = adam([*student.parameters(), *wide.parameters()])
    seen: dict[Any, Tensor] = {}
    for who, net in (("s", student), ("t", teacher)):
        for at, layer in enumerate(net.bert.encoder.layer):
            for name in ("query", "key"):
                getattr(layer.attention.self, name).register_forward_hook(
                    lambda m, i, o, place=(who, at, name): seen.update({place: o})
                )

    def looks(who: str, at: int) -> Tensor:
        q, k = (seen[who, at, name].unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("query", "key"))
        return q @ k.mT / math.sqrt(q.shape[-1])

    for batch in batches:
        x = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = batch["attention_mask"].double()
        s = student(**x, output_hidden_states=True)
        with torch.no_grad():
            t = teacher(**x, output_hidden_states=True)

        def error(mine: Tensor, theirs: Tensor, mask: Tensor = mask) -> Tensor:
            return ((wide(mine) - theirs).square().mean(-1) * mask).sum() / mask.sum()

        both = (mask[:, :, None] * mask[:, None])[:, None]
        loss = -(t.logits.softmax(-1) * s.logits.log_softmax(-1)).sum() / len(mask)
        loss = loss + error(s.hidden_states[0], t.hidden_states[0])
        for i, j in ((0, 1), (1, 3)):
            loss = loss + error(s.hidden_states[i + 1], t.hidden_states[j + 1])
            loss = loss + ((looks("s", i) - looks("t", j)).square() * both).sum() / (HEADS * both.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_three_steps_are_those_of_a_loop_by_hand(batches: list[Any], teacher: nn.Module) -> None:
    student, teacher = bert(0, 8, 2).double(), copy.deepcopy(teacher).double()
    other, start, before = copy.deepcopy(student), kept(student), kept(teacher)
    method = made(student, teacher, batches).double()
    wide = copy.deepcopy(next(term.adapters[0] for term in method.objective.terms if len(term.adapters)))
    logs = play(method, batches, adam)
    assert method.objective.names[2:4] == ["hidden.bert.encoder.layer.0", "attention.bert.encoder.layer.0"]
    assert all(logs[-1][f"student/{name}"] > 0 for name in method.objective.names)
    by_hand(other, teacher, wide, batches)
    assert moved(student, start) > 1e-3
    assert difference((student, other)) < 1e-14
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_trains_and_is_judged_and_shown(
    batches: list[Any], teacher: nn.Module, tmp_path: Path, reports: None
) -> None:
    student, test = bert(0, 8, 2), [texts(8), texts(9)]
    data = loader(range(3), shuffle=True), loader(range(7, 8)), loader(range(8, 10))
    metrics = trained(made(student, teacher, batches), data, tmp_path / "run", optimizer=adam)
    right = [student.eval()(**classification.inputs(batch)).logits.argmax(-1) == batch["labels"] for batch in test]
    assert metrics["test/student/accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))


def test_a_check_finds_nothing_wrong(batches: list[Any], teacher: nn.Module) -> None:
    checked(made(bert(0, 8, 2), teacher, batches), (Loader(batches), Loader([texts(7)])))


def values(method: Distill, batch: Any) -> dict[str, float]:
    method.eval()
    with torch.no_grad():
        return {name: float(loss.value) for name, loss in method.objective(method.scene(batch)).items()}


def padded(batch: dict[str, Tensor], columns: int = 5) -> dict[str, Tensor]:
    """The same texts with more padding behind them."""
    fill = {"labels": -100}
    return {
        name: F.pad(column, (0, columns), value=fill.get(name, 0)) if column.ndim == 2 else column
        for name, column in batch.items()
    }


def test_padding_changes_no_term(batches: list[Any], teacher: nn.Module) -> None:
    method = made(bert(0, 8, 2), teacher, batches).double()
    short, long = (values(method, batch) for batch in (batches[0], padded(batches[0])))
    assert max(abs(short[name] - long[name]) for name in short) < 1e-12
    unmasked = on(soft_target, S["bert.embeddings"], T["bert.embeddings"])  # as a term without a mask is
    method = Distill(bert(0, 16, 2), teacher, unmasked).double()
    short, long = (values(method, batch) for batch in (batches[0], padded(batches[0])))
    assert abs(short["soft_target"] - long["soft_target"]) > 1e-6


def tokens(seed: int, masked: bool) -> dict[str, Tensor]:
    batch = texts(seed)
    words, seen = batch["input_ids"], batch["attention_mask"]
    drawn = torch.rand(words.shape, generator=torch.Generator().manual_seed(seed)) < (0.5 if masked else 1.0)
    return {"input_ids": words, "attention_mask": seen, "labels": words.where(seen.bool() & drawn, -100)}


def models(kind: str) -> tuple[nn.Module, nn.Module]:
    nets = []
    for seed, width in ((0, 8), (1, 16)):
        torch.manual_seed(seed)
        if kind == "masked":
            nets.append(transformers.BertForMaskedLM(config(width, 2)))
        else:
            nets.append(
                transformers.LlamaForCausalLM(
                    transformers.LlamaConfig(
                        vocab_size=WORDS,
                        hidden_size=width,
                        num_hidden_layers=2,
                        num_attention_heads=HEADS,
                        intermediate_size=2 * width,
                        max_position_embeddings=24,
                    )
                )
            )
    return nets[0], nets[1]


@pytest.mark.parametrize(("kind", "task"), [("masked", masked_lm), ("causal", causal_lm)])
def test_kd_distils_tokens_as_it_is(kind: str, task: limbeck.Task) -> None:
    student, teacher = (net.double().eval() for net in models(kind))
    batch = tokens(0, kind == "masked")
    found = values(limbeck.kd(student, teacher, temperature=2.0, alpha=0.5, task=task), batch)
    x = classification.inputs(batch)
    total, count, ahead = 0.0, 0, 0 if kind == "masked" else 1
    z_s, z_t = ((net(**x).logits / 2).detach() for net in (student, teacher))
    for n, labels in enumerate(batch["labels"].tolist()):
        for place in range(len(labels) - ahead):
            if labels[place + ahead] != -100:
                p_t, p_s = z_t[n, place].softmax(0), z_s[n, place].softmax(0)
                total, count = total + 4 * float((p_t * (p_t / p_s).log()).sum()), count + 1
    assert found["soft"] == pytest.approx(total / count, rel=1e-12)
    assert found["hard"] == pytest.approx(student(**x, labels=batch["labels"]).loss.item(), rel=1e-6)  # the model's own
    longer = values(limbeck.kd(student, teacher, temperature=2.0, alpha=0.5, task=task), padded(batch))
    assert longer == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(("kind", "task"), [("masked", masked_lm), ("causal", causal_lm)])
def test_language_models_train_and_are_judged(kind: str, task: limbeck.Task, tmp_path: Path, reports: None) -> None:
    train, val, test = ([tokens(seed, kind == "masked") for seed in seeds] for seeds in ((0, 1, 2), (3,), (4, 5)))
    student, teacher = models(kind)
    method = limbeck.kd(student, teacher, task=task)
    checked(method, (Loader(train), Loader(val)))
    metrics = trained(method, (Loader(train), Loader(val), Loader(test)), tmp_path / "run", optimizer=adam)
    assert metrics["test/student/perplexity"] == pytest.approx(math.exp(metrics["test/student/loss"]), rel=1e-5)


def test_a_mask_may_be_given_to_any_loss() -> None:
    student, teacher = models("masked")
    batch = tokens(0, True)
    soft = on(soft_target, S, T, temperature=1.0, mask=M)
    found = values(Distill(student, teacher, soft, masked_lm), batch)["soft_target"]
    rows = batch["labels"] != -100
    with torch.no_grad():
        z_s, z_t = (net.eval()(**classification.inputs(batch)).logits[rows] for net in (student, teacher))
    assert found == pytest.approx(soft_target(z_s, z_t, 1.0).item(), rel=1e-5)


def test_nothing_masked_is_zero() -> None:
    student, teacher = models("masked")
    batch = tokens(0, True)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    found = values(limbeck.kd(student, teacher, task=masked_lm), nothing)
    assert found == {"hard": 0.0, "soft": 0.0}
