"""Thirty-six set-ups in which nothing is wrong: `check` must find nothing in them.

They were written before the checks that they judge, and none is changed to please one.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import limbeck
from limbeck import S, T, on
from limbeck.data import Data
from limbeck.data.rows import Rows

SetUp = tuple[Any, Any]
"""A method, or its stages, and the data."""


# what several of them use --------------------------------------------------------------------------------------------


@cache
def digits(**options: Any) -> Data:
    return limbeck.data.load("digits", **options)


@cache
def tensors(split: str) -> tuple[Tensor, Tensor]:
    """The digits as a user's own tensors, (N, 1, 8, 8) and (N,)."""
    batches = list(getattr(digits(), split).plain())
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


def loaders(batch_size: int = 64) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, val = TensorDataset(*tensors("train")), TensorDataset(*tensors("val"))
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(val, batch_size)


def mlp(width: int = 32, inputs: int = 64, outputs: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def conv(width: int = 8, channels: int = 1, outputs: int = 10, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        norm(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, outputs),
    )


def trained(net: nn.Module, data: Any, epochs: int = 5, task: limbeck.Task = limbeck.classification) -> nn.Module:
    adam = None if task is limbeck.classification else lambda own: torch.optim.Adam(own, lr=1e-2)
    limbeck.fit(limbeck.plain(net, task=task), data, epochs=epochs, optimizer=adam, clip=1.0, progress=False)
    return net.eval()


@cache
def _teacher(kind: str) -> nn.Module:
    torch.manual_seed(11)
    if kind == "mlp":
        return trained(limbeck.zoo.network("mlp-256-256", 10, (1, 8, 8)), digits(), epochs=10)
    if kind == "conv":
        return trained(conv(24), digits(), epochs=8)
    return trained(limbeck.zoo.network(kind, 10, (1, 8, 8)), digits(), epochs=3)


def teacher(kind: str = "mlp") -> nn.Module:
    """A teacher that knows the digits, of its own weights each time."""
    return copy.deepcopy(_teacher(kind))


# outputs -------------------------------------------------------------------------------------------------------------


def kd_of_perceptrons() -> SetUp:
    return limbeck.kd(mlp(), teacher()), digits()


def a_plain_network_without_a_teacher() -> SetUp:
    return limbeck.plain(mlp(64)), digits()


def smoothed_labels() -> SetUp:
    return limbeck.ls(conv()), digits()


def few_labels() -> SetUp:
    return limbeck.kd(mlp(), teacher()), digits(labels=60, batch_size=64)


def an_ensemble_teaches() -> SetUp:
    return limbeck.kd(mlp(), limbeck.Ensemble([teacher(), teacher("conv")], temperature=4.0)), digits()


def a_forest_teaches() -> SetUp:
    from sklearn.ensemble import RandomForestClassifier

    inputs, targets = tensors("train")
    forest = RandomForestClassifier(40, random_state=0).fit(inputs.flatten(1).numpy(), targets.numpy())
    return limbeck.kd(mlp(), nn.Sequential(nn.Flatten(), limbeck.SklearnTeacher(forest))), digits()


def an_averaged_teacher() -> SetUp:
    """An exponential moving average of the weights, as mean teachers are."""
    net = teacher("conv")
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(net)
    return limbeck.kd(conv(), average), digits()


def a_teacher_of_larger_images() -> SetUp:
    torch.manual_seed(1)
    larger = nn.Sequential(nn.Upsample(scale_factor=2), conv(16))
    net = trained(larger, digits(), epochs=6)[1]
    return limbeck.kd(conv(), limbeck.Frozen(net, inputs=nn.Upsample(scale_factor=2))), digits()


def a_teacher_that_knows_more_classes() -> SetUp:
    """It was trained for twelve, of which ours are those from the third on."""
    torch.manual_seed(2)
    shifted = [(inputs, targets + 2) for inputs, targets in loaders()[0]]
    more = trained(mlp(128, outputs=12), shifted, epochs=10)
    return limbeck.kd(mlp(), limbeck.Frozen(more, classes=list(range(2, 12)))), digits()


def mutual_learning() -> SetUp:
    return limbeck.dml(mlp(), conv()), digits()


# features and relations ----------------------------------------------------------------------------------------------


def attention_between_resnets() -> SetUp:
    student = limbeck.zoo.network("resnet8", 10, (1, 8, 8))
    return limbeck.at(student, teacher("resnet14"), example=digits().example()), digits()


def kd_and_attention() -> SetUp:
    student, frozen = conv(), limbeck.Frozen(teacher("conv"))
    return limbeck.kd(student, frozen) + limbeck.at(student, frozen, layers=[("2", "2"), ("5", "5")]), digits()


def relations_of_embeddings() -> SetUp:
    return limbeck.rkd(mlp(), teacher(), example=digits().example()), digits()


def contrast_with_a_memory() -> SetUp:
    data = digits()
    labels = data.train.labels
    method = limbeck.crd(
        conv(), teacher("conv"), memory=len(labels), classes=labels, negatives=256, example=data.example()
    )
    return method, data


def hints_in_two_stages() -> SetUp:
    return limbeck.fitnets(conv(), teacher("conv"), hint="5", guided="5", example=digits().example()), digits()


def a_loss_of_the_users_own() -> SetUp:
    """A mean squared error between unit vectors, through a linear adapter."""
    adapter = nn.Linear(32, 256)
    objective = limbeck.classification.hard + 0.5 * on(
        lambda s, t: F.mse_loss(F.normalize(s), F.normalize(t)), S["2"].via(adapter), T["hidden.2"], name="unit"
    )
    return limbeck.Distill(mlp(), _named(teacher()), objective), digits()


def _named(net: nn.Module) -> nn.Module:
    """A teacher whose penultimate layer has a name that is known here."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    hidden = nn.Sequential(nn.Flatten(), nn.Sequential(layers[0], nn.ReLU()), nn.Sequential(layers[1], nn.ReLU()))
    return _Two(hidden, layers[2])


class _Two(nn.Module):
    def __init__(self, hidden: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.hidden, self.head = hidden, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


# networks ------------------------------------------------------------------------------------------------------------


def dropout_and_layer_norm() -> SetUp:
    student = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 10)
    )
    taught = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    return limbeck.kd(student, trained(taught, digits(), epochs=10)), digits()


def group_norm() -> SetUp:
    return limbeck.kd(conv(norm=lambda width: nn.GroupNorm(4, width)), teacher("conv")), digits()


class Transformer(nn.Module):
    """Rows as tokens, with a class token before them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 9, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.squeeze(1))
        tokens = torch.cat([self.token.expand(len(rows), -1, -1), rows], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


def a_transformer_with_a_class_token() -> SetUp:
    return limbeck.kd(Transformer(), teacher()), digits()


def a_frozen_backbone() -> SetUp:
    """Its batch norm stays in eval mode, as it was trained; only the head learns."""
    student = teacher("conv")
    student[:-1].requires_grad_(False).eval()
    student[-1] = nn.Linear(48, 10)
    return limbeck.kd(student, teacher()), digits()


def fine_tuning() -> SetUp:
    """All of a network that was trained for half of the classes."""
    torch.manual_seed(3)
    inputs, targets = tensors("train")
    half = DataLoader(TensorDataset(inputs[targets < 5], targets[targets < 5]), 64, shuffle=True)
    student = trained(conv(outputs=5), half, epochs=3)
    student[-1] = nn.Linear(16, 10)
    return limbeck.kd(student, teacher("conv")), digits()


def a_compiled_student() -> SetUp:
    return limbeck.kd(torch.compile(mlp()), teacher()), digits()


def bfloat16() -> SetUp:
    inputs, targets = tensors("train")
    held, right = tensors("val")
    low = (
        DataLoader(TensorDataset(inputs.bfloat16(), targets), 64, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(held.bfloat16(), right), 64),
    )
    return limbeck.kd(mlp().bfloat16(), teacher().bfloat16()), low


class Thrifty(nn.Module):
    """A network that keeps no activations of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, 16, 3, padding=1), conv(16, channels=16)[:6]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=False).mean((2, 3)))


def checkpointing() -> SetUp:
    return limbeck.at(Thrifty(), teacher("conv"), layers=[("block.5", "5")]), digits()


# data ----------------------------------------------------------------------------------------------------------------


class Shifted(Dataset[Any]):
    """Images moved by up to a pixel, otherwise each time."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        down, right = torch.randint(-1, 2, (2,)).tolist()
        return self.inputs[index].roll((down, right), (1, 2)), self.targets[index]


def augmentation_of_the_users_own() -> SetUp:
    train = DataLoader(Shifted(*tensors("train")), 64, shuffle=True, drop_last=True)
    return limbeck.kd(conv(), teacher("conv")), (train, loaders()[1])


def mixed_up(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    share, other = torch.distributions.Beta(0.4, 0.4).sample().clamp(0.5), torch.randperm(len(rows))
    soft = F.one_hot(targets, 10).float()
    return share * inputs + (1 - share) * inputs[other], share * soft + (1 - share) * soft[other]


def mixup() -> SetUp:
    train = DataLoader(TensorDataset(*tensors("train")), 64, shuffle=True, drop_last=True, collate_fn=mixed_up)
    return limbeck.kd(conv(), teacher("conv")), (train, loaders()[1])


def a_rare_class() -> SetUp:
    """Of one class there are two samples."""
    inputs, targets = tensors("train")
    rare = (targets == 9).nonzero().flatten()[2:]
    kept = torch.ones(len(targets), dtype=torch.bool).index_fill(0, rare, False)
    train = DataLoader(TensorDataset(inputs[kept], targets[kept]), 64, shuffle=True, drop_last=True)
    return limbeck.kd(mlp(), teacher()), (train, loaders()[1])


def oversampling() -> SetUp:
    """Samples of rare classes are served several times an epoch, on purpose."""
    inputs, targets = tensors("train")
    weights = torch.where(targets < 3, 5.0, 1.0)
    sampler = WeightedRandomSampler(weights.tolist(), len(targets), replacement=True)
    twice = TensorDataset(torch.cat([inputs, inputs[targets < 2]]), torch.cat([targets, targets[targets < 2]]))
    return limbeck.kd(mlp(), teacher()), (DataLoader(twice, 64, sampler=sampler, drop_last=True), loaders()[1])


def a_tiny_validation_set() -> SetUp:
    held, right = tensors("val")
    return limbeck.kd(mlp(), teacher()), (loaders()[0], DataLoader(TensorDataset(held[:12], right[:12]), 12))


def colour_images_in_folders() -> SetUp:
    """Three classes of small pictures, each in its folder: red, green and blue squares on noise."""
    from PIL import Image

    draw = torch.Generator().manual_seed(4)
    root = Path(tempfile.mkdtemp())
    for split, count in (("train", 40), ("val", 12)):
        for channel, colour in enumerate(("blue", "green", "red")):
            (root / split / colour).mkdir(parents=True)
            for index in range(count):
                picture = torch.randint(60, 200, (16, 16, 3), generator=draw, dtype=torch.uint8)
                top, left = torch.randint(10, (2,), generator=draw).tolist()
                picture[top : top + 6, left : left + 6, 2 - channel] = 250
                Image.fromarray(picture.numpy()).save(root / split / colour / f"{index}.png")
    data = limbeck.data.load("imagefolder", root, batch_size=20, augment="none")
    torch.manual_seed(4)
    return limbeck.kd(conv(channels=3, outputs=3), trained(conv(16, channels=3, outputs=3), data, epochs=12)), data


def rows(inputs: Tensor, targets: Tensor, name: str, task: limbeck.Task, **about: Any) -> Data:
    cut = [int(share * len(inputs)) for share in (0.6, 0.8)]
    parts = [slice(cut[0]), slice(*cut), slice(cut[1], None)]
    made = [Rows(inputs[part], targets[part], batch_size=50, shuffle=part is parts[0]) for part in parts]
    return Data(name, *made, shape=tuple(inputs.shape[1:]), task=task, **about)


def several_labels() -> SetUp:
    torch.manual_seed(5)
    x = torch.randn(600, 12)
    tags = (x @ torch.randn(12, 5) + 0.5 * torch.randn(600, 5) > 0.7).float()
    data = rows(x, tags, "tags", limbeck.multilabel, classes=tuple("abcde"))
    taught = trained(mlp(64, 12, 5), data, epochs=10, task=limbeck.multilabel)
    return limbeck.kd(mlp(16, 12, 5), taught, task=limbeck.multilabel), data


def values_bounded_by_the_teacher() -> SetUp:
    torch.manual_seed(6)
    x = torch.randn(600, 8)
    y = torch.tanh(x @ torch.randn(8, 2)) + 0.1 * torch.randn(600, 2)
    data = rows(x, y, "curves", limbeck.regression, outputs=2)
    taught = trained(mlp(64, 8, 2), data, epochs=10, task=limbeck.regression)
    return limbeck.bounded(mlp(16, 8, 2), taught, task=limbeck.regression), data


def values_of_a_table() -> SetUp:
    data = limbeck.data.load("diabetes", batch_size=32)
    torch.manual_seed(7)
    taught = trained(mlp(32, 10, 1), data, epochs=15, task=data.task)
    return limbeck.logits(mlp(8, 10, 1), taught, task=data.task), data


def segmentation() -> SetUp:
    """Bright and dark squares on a grey ground, a class for every pixel."""
    draw = torch.Generator().manual_seed(8)
    images, masks = 0.3 * torch.randn(90, 1, 12, 16, generator=draw), torch.zeros(90, 12, 16, dtype=torch.int64)
    for index in range(90):
        for kind, tone in ((1, 2.0), (2, -2.0)):
            top, left = torch.randint(7, (2,), generator=draw).tolist()
            images[index, 0, top : top + 5, left : left + 5] += tone
            masks[index, top : top + 5, left : left + 5] = kind

    def net(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    task = limbeck.segmentation()
    ours = tuple(
        DataLoader(TensorDataset(images[part], masks[part]), 15, shuffle=part.start is None, drop_last=True)
        for part in (slice(60), slice(60, 90))
    )
    torch.manual_seed(8)
    taught = trained(net(16), ours, epochs=10, task=task)
    method = limbeck.cwd(net(6), taught, layers=[("2", "2")], example=images[:4], task=task)
    return method, ours


@dataclass
class Answer:
    scores: Tensor
    hidden: Tensor


class Answering(nn.Module):
    """A network that returns an object of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Answer:
        hidden = self.body(image.flatten(1)).relu()
        return Answer(self.head(hidden), hidden)


def a_task_of_the_users_own() -> SetUp:
    """Batches are dicts, and answers objects."""
    task = replace(
        limbeck.classification,
        inputs=lambda batch: {"image": batch["pixels"]},
        target=lambda batch: batch["digit"],
        output=lambda out: out.scores,
    )
    ours = tuple(
        DataLoader(
            [{"pixels": x, "digit": y} for x, y in zip(*tensors(split), strict=True)], 64, shuffle=split == "train"
        )
        for split in ("train", "val")
    )
    torch.manual_seed(9)
    return limbeck.kd(Answering(16), trained(Answering(128), ours, epochs=8, task=task), task=task), ours


class Reading(nn.Module):
    """Tokens, padded with 0, with a mask beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, width, padding_idx=0), nn.Linear(width, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        shown = self.embed(tokens) * mask.unsqueeze(-1)
        return self.head(shown.sum(1) / mask.sum(1, keepdim=True))


def sentences_of_tokens() -> SetUp:
    """Texts in which words of one of three topics are more frequent."""
    draw = torch.Generator().manual_seed(10)
    topic = torch.randint(3, (400,), generator=draw)
    word = torch.randint(1, 10, (400, 12), generator=draw) + 9 * topic.unsqueeze(1)
    ids = torch.where(torch.rand(400, 12, generator=draw) < 0.5, word, torch.randint(1, 30, (400, 12), generator=draw))
    length = torch.randint(5, 13, (400, 1), generator=draw)
    mask = (torch.arange(12) < length).float()
    texts = [{"tokens": i, "mask": m, "label": y} for i, m, y in zip((ids * mask).long(), mask, topic, strict=True)]
    ours = DataLoader(texts[:300], 50, shuffle=True), DataLoader(texts[300:], 50)
    torch.manual_seed(10)
    return limbeck.kd(Reading(8), trained(Reading(32), ours, epochs=15)), ours


SOUND: tuple[Callable[[], SetUp], ...] = (
    kd_of_perceptrons,
    a_plain_network_without_a_teacher,
    smoothed_labels,
    few_labels,
    an_ensemble_teaches,
    a_forest_teaches,
    an_averaged_teacher,
    a_teacher_of_larger_images,
    a_teacher_that_knows_more_classes,
    mutual_learning,
    attention_between_resnets,
    kd_and_attention,
    relations_of_embeddings,
    contrast_with_a_memory,
    hints_in_two_stages,
    a_loss_of_the_users_own,
    dropout_and_layer_norm,
    group_norm,
    a_transformer_with_a_class_token,
    a_frozen_backbone,
    fine_tuning,
    a_compiled_student,
    bfloat16,
    checkpointing,
    augmentation_of_the_users_own,
    mixup,
    a_rare_class,
    oversampling,
    a_tiny_validation_set,
    colour_images_in_folders,
    several_labels,
    values_bounded_by_the_teacher,
    values_of_a_table,
    segmentation,
    a_task_of_the_users_own,
    sentences_of_tokens,
)


def made(build: Callable[[], SetUp]) -> SetUp:
    """Build a set-up, the same each time."""
    torch.manual_seed(0)
    return build()
