from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from method_toys import (
    CLASSES,
    assert_finite,
    assert_full_precision,
    assert_same,
    batches,
    convnet,
    gradient,
    images,
    normal,
    sgd,
    state,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import embedding_cosine, embedding_squared

EXAMPLE = images()[0]
TOKENS, LENGTH = 20, 5


class Bag(nn.Module):
    """Classifies the mean of its tokens' embeddings; token 0 pads."""

    def __init__(self, dimensions: int, classes: int = CLASSES, tokens: int = TOKENS, padding: int | None = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, dimensions, padding_idx=padding)
        self.fc = nn.Linear(dimensions, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        counted = (tokens != 0)[..., None]
        return self.fc((self.embed(tokens) * counted).sum(1) / counted.sum(1).clamp(min=1))


class Named(nn.Module):
    """The same, as those call it that name their inputs."""

    def __init__(self, bag: Bag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.bag(tokens * attention_mask)


def bag(seed: int, dimensions: int = 3, **options: int | None) -> Bag:
    torch.manual_seed(seed)
    return Bag(dimensions, **options).double()


def texts(seed: int = 0, n: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, TOKENS, (n, LENGTH), generator=draw)
    padded = torch.arange(LENGTH) >= torch.randint(1, LENGTH + 1, (n, 1), generator=draw)
    return tokens.masked_fill(padded, 0), torch.randint(CLASSES, (n,), generator=draw)


# the losses


def test_formulas() -> None:
    s, t = normal(3, 4, 5, seed=1), normal(3, 4, 5, seed=2)
    cosine = squared = lengths = 0.0
    for n in range(3):
        for token in range(4):
            a, b = s[n, token], t[n, token]
            cosine += 1 - (a @ b / (a.norm() * b.norm())).item()
            squared += (a / a.norm() - b / b.norm()).square().sum().item()
            lengths += (a - b).square().sum().item()
    assert embedding_cosine(s, t).item() == pytest.approx(cosine / 12, rel=1e-12)
    assert embedding_squared(s, t).item() == pytest.approx(squared / 12, rel=1e-12)
    assert embedding_squared(s, t, normalise=False).item() == pytest.approx(lengths / 12, rel=1e-12)


def test_by_hand() -> None:
    s, t = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [0.0, -1.0]])
    assert embedding_cosine(s, t).item() == pytest.approx((1 - 24 / 25 + 2) / 2)
    assert embedding_squared(s, t, normalise=False).item() == (2 + 9) / 2


def test_of_directions_the_squared_error_is_twice_the_cosine() -> None:
    s, t = normal(7, 5, seed=1, scale=30), normal(7, 5, seed=2)
    torch.testing.assert_close(embedding_squared(s, t), 2 * embedding_cosine(s, t))
    torch.testing.assert_close(embedding_cosine(7 * s, t), embedding_cosine(s, t))
    assert embedding_cosine(3 * t, t).item() == pytest.approx(0, abs=1e-12)
    assert embedding_squared(3 * t, t, normalise=False) > 1


@pytest.mark.parametrize("loss", [embedding_cosine, embedding_squared])
def test_what_is_masked_does_not_count(loss) -> None:
    s, t = normal(3, 4, 5, seed=1), normal(3, 4, 5, seed=2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    torch.testing.assert_close(loss(s, t, mask), loss(s[mask.bool()], t[mask.bool()]))  # the mean over tokens
    torch.testing.assert_close(loss(s, t, mask > 0), loss(s, t, mask))
    assert not gradient(loss, s, t, mask)[mask == 0].any()
    nothing = torch.zeros(3, 4)
    assert loss(s, t, nothing).item() == 0
    assert not gradient(loss, s, t, nothing).any()
    torch.testing.assert_close(loss(s[:, 0], t[:, 0], torch.tensor([1, 0, 0])), loss(s[:1, 0], t[:1, 0]))


def test_numerics() -> None:
    t = normal(4, 5, seed=2)
    for loss in (embedding_cosine, embedding_squared):
        assert_finite(loss, normal(4, 5, seed=1, scale=1e4), 1e4 * t)
        assert_finite(loss, torch.zeros(4, 5), t)
        assert_finite(loss, t, torch.zeros(4, 5))
        assert_finite(loss, t, t)
        assert_finite(loss, t[[0, 0]], t[[1, 1]])
        assert_finite(loss, t[:1], t[1:2])
        assert_full_precision(loss, normal(4, 5, seed=1, scale=300), t)
    assert embedding_cosine(t[:0], t[:0]).item() == 0
    assert not gradient(embedding_cosine, torch.zeros(4, 5).double(), t).any()


def test_invalid_embeddings() -> None:
    with pytest.raises(ValueError, match=r"embeddings: student and teacher .* got \(3, 5\) and \(3, 4\)"):
        embedding_cosine(normal(3, 5), normal(3, 4))
    with pytest.raises(ValueError, match=r"the mask and the positions: .* got \(3, 4\) and \(3,\)"):
        embedding_squared(normal(3, 4, 5), normal(3, 4, 5), torch.ones(3))


# embedding


@pytest.mark.parametrize("normalise", [True, False])
def test_playing_it_is_the_loop(normalise: bool) -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6).eval()
    method = limbeck.embedding(student, teacher, cosine=2.0, squared=0.1, normalise=normalise, example=EXAMPLE).double()
    own = {id(step): step for term in method.objective.terms for step in term.adapters}
    (shared,) = own.values()  # both terms have one W
    assert shared.bias is None
    w = nn.Parameter(shared.weight.detach().clone())
    assert w.shape == (12, 8)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.parameters(), w])
    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        e_s, e_t = loop[:4](x), teacher[:4](x).detach()
        mapped = e_s @ w.T
        cosine = (1 - F.cosine_similarity(mapped, e_t)).mean()
        apart = F.normalize(mapped) - F.normalize(e_t) if normalise else mapped - e_t
        (F.cross_entropy(loop.fc(e_s), y) + 2 * cosine + 0.1 * apart.square().sum(1).mean()).backward()
        optimizer.step()
        assert logs["student/cosine"] == pytest.approx(cosine.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shared.weight, w)


def test_maps_are_averaged_over_positions() -> None:
    x, _ = images()
    teacher = convnet(1, width=6).eval()
    of_maps = limbeck.embedding(convnet(0), teacher, layer=("two", "two"), example=x).double()
    of_vectors = limbeck.embedding(convnet(0), teacher, layer=("flat", "flat"), example=x).double()
    of_vectors.load_state_dict(of_maps.state_dict())
    losses = [next(method.step(images())).terms["cosine"].value for method in (of_maps, of_vectors)]
    torch.testing.assert_close(*losses)


def test_token_tables_are_factored_and_padding_does_not_count() -> None:
    student, teacher, (ids, y) = bag(0), bag(1, 7), texts()
    method = limbeck.embedding(student, teacher, layer="embed", mask="", example=ids).double()
    w = method.objective.terms[1].adapters[0].weight
    real = ids[ids != 0]
    expected = (1 - F.cosine_similarity(student.embed.weight[real] @ w.T, teacher.embed.weight[real])).mean()
    torch.testing.assert_close(next(method.step((ids, y))).terms["cosine"].value, expected)
    unmasked = limbeck.embedding(student, teacher, layer="embed", example=ids).double()
    unmasked.load_state_dict(method.state_dict())
    assert not torch.equal(next(unmasked.step((ids, y))).terms["cosine"].value, expected)


def test_the_mask_is_a_named_input() -> None:
    ids, y = texts()
    inputs = {"tokens": ids.clamp(min=1), "attention_mask": (ids != 0).long()}
    named = limbeck.embedding(
        Named(bag(0)), Named(bag(1, 7)), layer="bag.embed", mask="attention_mask", example=inputs
    ).double()
    plain = limbeck.embedding(bag(0), bag(1, 7), layer="embed", mask="", example=ids).double()
    plain.objective.load_state_dict(named.objective.state_dict())
    assert torch.equal(
        next(named.step({**inputs, "labels": y})).terms["cosine"].value,
        next(plain.step((ids, y))).terms["cosine"].value,
    )


def test_terms_follow_their_weights() -> None:
    assert limbeck.embedding(convnet(0), convnet(1), example=EXAMPLE).objective.weights == [1.0, 1.0, 0.0]
    method = limbeck.embedding(convnet(0), convnet(1), cosine=0.0, squared=1.0, example=EXAMPLE).double()
    assert list(next(method.step(images())).terms) == ["hard", "squared"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cosine": 0.0}, "cosine and squared are all 0: give one of them another weight"),
        ({"layer": ("fc", "fcs")}, "has no layer 'fcs'; the closest are"),
        (
            {"mask": "attention_mask"},
            r"mask='attention_mask' is no part of the input, a tensor .*: expected one of \[''\]",
        ),
    ],
)
def test_invalid_options_fail_when_the_method_is_assembled(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.embedding(convnet(0), convnet(1), example=EXAMPLE, **options)


def test_sequences_of_other_lengths_and_no_embeddings() -> None:
    one, other = nn.Sequential(nn.Unflatten(1, (4, 6)), nn.Linear(6, 2)), nn.Sequential(nn.Unflatten(1, (3, 8)))
    with pytest.raises(ValueError, match=r"the student's '1' has shape \(2, 4, 2\), the teacher's '0' \(2, 3, 8\)"):
        limbeck.embedding(one, other, layer=("1", "0"), example=torch.randn(2, 24))
    flat = nn.Sequential(nn.Flatten(0))
    with pytest.raises(ValueError, match=r"the teacher's '0' has shape \(48,\)"):
        limbeck.embedding(one, flat, layer=("1", "0"), example=torch.randn(2, 24))
    ids = torch.ones(2, 3, dtype=torch.long)
    example = {"tokens": ids, "attention_mask": ids}
    with pytest.raises(ValueError, match=r"mask='' is no part .* a dict with \['tokens', 'attention_mask'\]"):
        limbeck.embedding(Named(bag(0)), Named(bag(1)), layer="bag.embed", mask="", example=example)


# embedding_table


@pytest.mark.parametrize("padding", [0, None])
def test_playing_the_table_is_the_loop(padding: int | None) -> None:
    student, teacher, loop = bag(0, padding=padding), bag(1, 7, padding=padding), bag(0, padding=padding)
    with torch.no_grad():
        student.embed.weight[0] = loop.embed.weight[0] = 0.5
    method = limbeck.embedding_table(student, teacher).double()
    encoder, large = copy.deepcopy(method.encoder), teacher.embed.weight.detach().clone()
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd([*loop.fc.parameters(), *encoder.parameters()])
    for ids, y in batches(3, texts):
        logs = limbeck.play(method, (ids, y), optimizers)
        optimizer.zero_grad()
        table = torch.tanh(large @ encoder[0].weight.T + encoder[0].bias)
        if padding is not None:
            table = torch.cat([loop.embed.weight[:1].detach(), table[1:]])
        counted = (ids != 0)[..., None]
        loss = F.cross_entropy(loop.fc((table[ids] * counted).sum(1) / counted.sum(1)), y)
        loss.backward()
        optimizer.step()
        assert logs["student/hard"] == pytest.approx(loss.item(), rel=1e-6)
        after = torch.tanh(large @ encoder[0].weight.T + encoder[0].bias)
        first = 0 if padding is None else 1
        torch.testing.assert_close(student.embed.weight[first:], after[first:])  # written after each update
        if padding is not None:
            assert (student.embed.weight[0] == 0.5).all()
    torch.testing.assert_close(state(student.fc), state(loop.fc))
    assert_same(state(teacher), state(bag(1, 7, padding=padding)))


def test_the_student_alone_says_what_it_said_with_the_encoder() -> None:
    student, ids = bag(0), texts()[0]
    method = limbeck.embedding_table(student, bag(1, 7)).double()
    limbeck.play(method, texts(), limbeck.optimizers(method, sgd))
    with method._encoding():
        encoded = student(ids)
    torch.testing.assert_close(student(ids), encoded)
    assert method.networks() == {"student": student}
    assert state(student).keys() == state(bag(0)).keys()
    assert not student.embed._forward_hooks


def test_a_table_alone_can_teach() -> None:
    vectors = normal(TOKENS, 9)
    method = limbeck.embedding_table(bag(0), nn.Embedding.from_pretrained(vectors))
    assert torch.equal(method.large, vectors)
    assert not [name for name in method.state_dict() if "large" in name]  # the teacher's is in nobody's checkpoint


def test_tables_are_found_or_named() -> None:
    teacher = nn.ModuleDict({"words": nn.Embedding(TOKENS, 9), "positions": nn.Embedding(LENGTH, 9)})
    assert limbeck.embedding_table(bag(0), teacher).large is not None
    with pytest.raises(ValueError, match="the student's table has 20 tokens, the teacher's 5"):
        limbeck.embedding_table(bag(0), teacher, table=("embed", "positions"))


def test_a_compiled_student_learns_the_same_table() -> None:
    torch._dynamo.reset()
    tables = []
    for compiled in (False, True):
        student = bag(0)
        torch.manual_seed(3)
        method = limbeck.embedding_table(torch.compile(student, backend="eager") if compiled else student, bag(1, 7))
        optimizers = limbeck.optimizers(method.double(), sgd)
        for batch in batches(3, texts):
            limbeck.play(method, batch, optimizers)
        tables.append(student.embed.weight.detach())
    torch.testing.assert_close(*tables)
    torch._dynamo.reset()


def test_autocast_does_not_round_the_table() -> None:
    tables = []
    for enabled in (False, True):
        student = bag(0).float()
        torch.manual_seed(3)
        method = limbeck.embedding_table(student, bag(1, 7).float())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            method.write_table()
        tables.append(student.embed.weight.detach())
    assert torch.equal(*tables)


def tied() -> nn.Module:
    net = bag(0)
    net.fc = nn.Linear(3, TOKENS, bias=False).double()
    net.fc.weight = net.embed.weight
    return net


def cut() -> nn.Module:
    net = bag(0)
    net.embed.max_norm = 1.0
    return net


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (lambda: convnet(0), {}, "Sequential has no nn.Embedding"),
        (lambda: bag(0), {"table": "fc"}, "'fc' is a Linear, expected the path of an nn.Embedding"),
        (lambda: bag(0), {"table": ("embed:in", "embed")}, "expected the path of an nn.Embedding"),
        (tied, {}, r"\['embed.weight', 'fc.weight'\] are one parameter"),
        (cut, {}, "'embed' has max_norm=1.0"),
    ],
)
def test_tables_that_cannot_be_encoded(student, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.embedding_table(student(), bag(1, 7), **options)


# what they are for


def topics(seed: int, n: int, directions: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Texts of ten words, most of their topic's; only the first ``known`` words of the vocabulary come."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(len(directions), (n,), generator=draw)
    words = torch.arange(1, known) % len(directions)
    own = torch.stack([torch.where(words == topic, 6.0, 1.0) for topic in y.tolist()])
    return 1 + torch.multinomial(own, 10, replacement=True, generator=draw), y


def accuracy(net: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return (net(batch[0]).argmax(1) == batch[1]).double().mean().item()


def trained(method: limbeck.Method, batch: tuple[Tensor, Tensor], steps: int = 80) -> None:
    optimizers = limbeck.optimizers(method, lambda own: torch.optim.Adam(own, 0.02))
    for _ in range(steps):
        limbeck.play(method, batch, optimizers)


def test_an_encoded_table_knows_words_that_no_label_ever_showed() -> None:
    """Mou's claim: 10 dimensions encoded from 100 beat 10 learned from nothing. Half the words of the test are new."""
    plain, encoded = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        directions = torch.randn(4, 100)
        vectors = 0.6 * directions[torch.arange(-1, 799) % 4] + torch.randn(800, 100)
        train, test = topics(seed, 100, directions, 400), topics(seed + 50, 2000, directions, 800)
        alone, student = (Bag(10, classes=4, tokens=800) for _ in range(2))
        student.load_state_dict(alone.state_dict())
        trained(limbeck.plain(alone), train)
        trained(limbeck.embedding_table(student, nn.Embedding.from_pretrained(vectors)), train)
        plain.append(accuracy(alone, test))
        encoded.append(accuracy(student, test))
    assert min(e - p for e, p in zip(encoded, plain, strict=True)) > 0.1, (plain, encoded)


def digits() -> Iterator[tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    yield from ((x[order[:600]], y[order[:600]]), (x[order[600:]], y[order[600:]]))


def recall(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> float:
    """How often the nearest other sample, by the angle of the embeddings, is of the same class."""
    with torch.no_grad():
        directions = F.normalize(net[:-1](batch[0]))
    nearest = (directions @ directions.T).fill_diagonal_(-1).argmax(1)
    return (batch[1][nearest] == batch[1]).double().mean().item()


def test_distilled_embeddings_retrieve_better() -> None:
    """Recall@1 on new images, where 40 images have a label and the others the teacher's embedding alone."""
    train, test = digits()
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    trained(limbeck.plain(teacher), train)
    few = train[0], train[1].masked_fill(torch.arange(600) >= 40, -100)
    gains = []
    for seed in range(2):
        torch.manual_seed(seed)
        alone = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        student = copy.deepcopy(alone)
        trained(limbeck.plain(alone), few)
        lengths_too = {"cosine": 0.0, "squared": 1.0, "normalise": False}
        trained(limbeck.embedding(student, teacher, example=train[0][:8], **lengths_too), few)
        gains.append(recall(student, test) - recall(alone, test))
    assert min(gains) > 0.01, gains
