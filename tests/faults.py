"""Silent faults of distillation code that users of limbeck can still make: each trains, and what it trains is wrong.

Each has the public report that it was taken from, and the finding by which `check` names it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck import Distill, Frozen, Loss, Method, S, T, Turn, on
from sound import SetUp, conv, digits, loaders, mlp, rows, teacher, tensors, trained

GITHUB = "https://github.com/"


class Fault(NamedTuple):
    """A fault.

    Args:
        what: In words, for the table.
        source: Where it was reported: a repository and its issue or pull request; else in words, or ``"ours"``.
        build: Makes a set-up that has it.
        title: Of the finding that names it.
        words: A few of its message.
    """

    what: str
    source: str
    build: Callable[[], SetUp]
    title: str
    words: str

    @property
    def link(self) -> str:
        """The report, for the table."""
        repository, _, number = self.source.partition("#")
        owner = repository.partition("/")[0]
        return f"[{owner} #{number}]({GITHUB}{repository}/issues/{number})" if number else self.source


def taught(loss: Callable[[Tensor, Tensor], Tensor]) -> SetUp:
    """A loss of the user's own between the answers, beside the labels."""
    return Distill(mlp(), teacher(), limbeck.classification.hard + on(loss, S, T, name="soft")), digits()


class Own(Method):
    """A method as users write them, with a teacher and an adapter beside the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.teacher, self.adapter = student, teacher, adapter or nn.Identity()

    def players(self) -> dict[str, list[nn.Module]]:
        return {"student": [self.student]}

    def step(self, batch: Any, progress: float) -> Iterator[Turn]:
        answer = self.student(batch[0])
        with torch.no_grad():
            target = self.teacher(batch[0])
        losses = {"hard": F.cross_entropy(answer, batch[1]), "soft": F.mse_loss(self.adapter(answer), target)}
        yield Turn("student", {name: Loss(value) for name, value in losses.items()})


# the loss ------------------------------------------------------------------------------------------------------------


def probabilities_for_log_probabilities() -> SetUp:
    return taught(lambda s, t: F.kl_div((s / 4).softmax(-1), (t / 4).softmax(-1), reduction="batchmean") * 16)


def a_mean_over_classes() -> SetUp:
    return taught(lambda s, t: nn.KLDivLoss()((s / 4).log_softmax(1), (t / 4).softmax(1)) * 16)


def a_softmax_over_the_batch() -> SetUp:
    return taught(lambda s, t: F.kl_div((s / 4).log_softmax(0), (t / 4).softmax(0), reduction="sum") / s.shape[1] * 16)


def temperature_on_one_side() -> SetUp:
    return taught(lambda s, t: F.kl_div(s.log_softmax(1), (t / 4).softmax(1), reduction="batchmean") * 16)


def the_teacher_compared_with_itself() -> SetUp:
    soft = on(limbeck.losses.soft_target, T, T, name="soft", temperature=4.0)
    return Distill(mlp(), teacher(), limbeck.classification.hard + soft), digits()


def student_features_without_a_gradient() -> SetUp:
    soft = on(limbeck.losses.soft_target, S.via(torch.Tensor.detach), T, name="soft")
    return Distill(mlp(), teacher(), limbeck.classification.hard + soft), digits()


def an_adapter_that_nobody_trains() -> SetUp:
    return Own(mlp(), Frozen(teacher()), nn.Linear(10, 10)), digits()


def features_under_reentrant_checkpointing() -> SetUp:
    class Thrifty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(1, 16, 3, padding=1), conv(16, channels=16)[:6]
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, self.stem(x), use_reentrant=True).mean((2, 3)))

    return limbeck.at(Thrifty(), teacher("conv"), layers=[("block.5", "5")]), digits()


# the networks --------------------------------------------------------------------------------------------------------


class Listed(nn.Module):
    """A student whose layers stand in a plain list; only the last is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(64, 32), nn.Linear(32, 32)]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def layers_in_a_plain_list() -> SetUp:
    return limbeck.kd(Listed(), teacher()), digits()


def a_student_that_ends_in_a_softmax() -> SetUp:
    return limbeck.kd(nn.Sequential(mlp(), nn.Softmax(-1)), teacher()), digits()


def a_student_whose_last_layer_is_dead() -> SetUp:
    """A rectifier after the last layer, and biases that never let it answer."""
    student = nn.Sequential(mlp(), nn.ReLU())
    nn.init.constant_(student[0][-1].bias, -20.0)
    return limbeck.kd(student, teacher()), digits()


def a_frozen_backbone_whose_statistics_move() -> SetUp:
    student = teacher("conv").train()
    student[:-1].requires_grad_(False)
    student[-1] = nn.Linear(48, 10)
    return limbeck.kd(student, teacher()), digits()


# the teacher ---------------------------------------------------------------------------------------------------------


def a_teacher_in_train_mode() -> SetUp:
    return Own(conv(), teacher("conv")), digits()


def a_teacher_that_gives_probabilities() -> SetUp:
    return limbeck.kd(mlp(), nn.Sequential(teacher(), nn.Softmax(-1))), digits()


def a_teacher_whose_weights_were_not_loaded() -> SetUp:
    return limbeck.kd(mlp(), limbeck.zoo.network("mlp-256-256", 10, (1, 8, 8))), digits()


def a_teacher_of_other_class_order() -> SetUp:
    """Its classes were sorted as text: 0, 1, 10, 2 and so on."""
    net = teacher()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    order = [0, 9, 1, 2, 3, 4, 5, 6, 7, 8]
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    return limbeck.kd(mlp(), net), digits()


def a_teacher_of_other_normalisation() -> SetUp:
    """It learned from pixels between 0 and 255, and the student's are standardised."""
    data = digits()
    mean, std = float(data.mean[0]), float(data.std[0])

    class OfPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x / 255 - mean) / std)

    return limbeck.kd(mlp(), OfPixels()), data


def dropout_that_eval_mode_leaves_on() -> SetUp:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.dropout(x, 0.3))

    return limbeck.kd(mlp(), Dropping()), digits()


def a_teacher_with_broken_weights() -> SetUp:
    net = teacher()
    next(net.parameters()).data[0, 0] = math.nan
    return limbeck.kd(mlp(), net), digits()


def a_teacher_that_is_the_student() -> SetUp:
    net = mlp()
    return limbeck.kd(net, net), digits()


def kept_answers_in_another_order() -> SetUp:
    """The teacher was asked once, by a loader that shuffles, and its answers are brought along by position."""
    inputs, targets = tensors("train")
    with torch.no_grad():
        kept = teacher()(inputs)[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))]

    def together(samples: list[tuple[Tensor, ...]]) -> tuple[Any, ...]:
        x, y, ids, answer = map(torch.stack, zip(*samples, strict=True))
        traces: Mapping[str, Any] = {"teacher": {"": answer}}
        return x, y, ids, traces

    served = TensorDataset(inputs, targets, torch.arange(len(inputs)), kept)
    train = DataLoader(served, 64, shuffle=True, drop_last=True, collate_fn=together)
    return limbeck.kd(mlp(), teacher()), (train, loaders()[1])


# the data ------------------------------------------------------------------------------------------------------------


def validation_samples_in_training() -> SetUp:
    inputs, targets = tensors("train")
    held, right = tensors("val")
    leaking = TensorDataset(torch.cat([inputs, held[::2]]), torch.cat([targets, right[::2]]))
    return limbeck.kd(mlp(), teacher()), (DataLoader(leaking, 64, shuffle=True, drop_last=True), loaders()[1])


def labels_that_begin_at_1() -> SetUp:
    """The networks were given one class more, so that nothing breaks."""
    ours = tuple(
        DataLoader(TensorDataset(x, y + 1), 64, shuffle=split == "train")
        for split in ("train", "val")
        for x, y in [tensors(split)]
    )
    return limbeck.kd(mlp(outputs=11), trained(mlp(64, outputs=11), ours, epochs=3)), ours


def several_labels_as_one_class() -> SetUp:
    torch.manual_seed(5)
    x = torch.randn(600, 12)
    tags = (x @ torch.randn(12, 5) > 0.7).float()
    data = rows(x, tags, "tags", limbeck.multilabel, classes=tuple("abcde"))
    ours = tuple(DataLoader(TensorDataset(x[part], tags[part]), 50) for part in (slice(400), slice(400, 600)))
    return limbeck.kd(mlp(16, 12, 5), trained(mlp(64, 12, 5), data, 5, limbeck.multilabel)), ours


def pixels_divided_twice() -> SetUp:
    ours = tuple(
        DataLoader(TensorDataset((x * digits().std[0] + digits().mean[0]) / 255, y), 64, shuffle=split == "train")
        for split in ("train", "val")
        for x, y in [tensors(split)]
    )
    return limbeck.kd(mlp(), teacher()), ours


def classes_on_another_axis() -> SetUp:
    """Logits (N, K, H, W) to a task whose classes come last: a softmax would run over the width."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 6, 8, generator=draw), torch.randint(4, (60, 6, 8), generator=draw)
    ours = tuple(DataLoader(TensorDataset(x[part], y[part]), 10) for part in (slice(40), slice(40, 60)))
    net = nn.Sequential(nn.Conv2d(1, 4, 1))
    return limbeck.kd(net, copy.deepcopy(net)), ours


FAULTS = (
    Fault(
        "The student's probabilities go into `kl_div`, which wants log-probabilities",
        "microsoft/ProDA#20",
        probabilities_for_log_probabilities,
        "identity soft",
        "pulls the student away",
    ),
    Fault(
        "`KLDivLoss()` takes the mean over classes too: 1/K of the divergence",
        "yuanli2333/Teacher-free-Knowledge-Distillation#5",
        a_mean_over_classes,
        "reduction soft",
        "batchmean",
    ),
    Fault(
        "The softmax runs over the batch, not over the classes",
        "zysymu/AdaMatch-pytorch#1",
        a_softmax_over_the_batch,
        "axis soft",
        "axis 0",
    ),
    Fault(
        "The temperature softens the teacher alone",
        "ours",
        temperature_on_one_side,
        "identity soft",
        "temperature",
    ),
    Fault(
        "The teacher is compared with itself, so nothing is distilled",
        "labmlai/annotated_deep_learning_paper_implementations#66",
        the_teacher_compared_with_itself,
        "gradients",
        "'student/soft' gives its player no gradient",
    ),
    Fault(
        "The student's features are detached",
        "Tencent/YOLO-Master#240",
        student_features_without_a_gradient,
        "gradients",
        "'student/soft' gives its player no gradient",
    ),
    Fault(
        "The projector between student and teacher stays as it was drawn",
        "roymiles/Simple-Recipe-Distillation#1",
        an_adapter_that_nobody_trains,
        "untrained",
        "adapter.weight",
    ),
    Fault(
        "Layers inside `checkpoint(use_reentrant=True)` are compared: the term has no gradient",
        "pytorch/pytorch#65537",
        features_under_reentrant_checkpointing,
        "gradients",
        "use_reentrant=False",
    ),
    Fault(
        "Layers stand in a plain Python list: they neither train nor are saved",
        "pytorch/pytorch#666",
        layers_in_a_plain_list,
        "unregistered",
        "nn.ModuleList",
    ),
    Fault(
        "The student ends in a softmax, and the loss takes another",
        "bowang-lab/Transformer-GCN-QA#32",
        a_student_that_ends_in_a_softmax,
        "student answers",
        "probabilities",
    ),
    Fault(
        "A rectifier after the last layer: the student answers the same to all",
        "WeiTang114/MVCNN-TensorFlow#14",
        a_student_whose_last_layer_is_dead,
        "student answers",
        "the same to all",
    ),
    Fault(
        "The backbone is frozen, and its batch-norm statistics go on moving",
        "pytorch/pytorch#86590",
        a_frozen_backbone_whose_statistics_move,
        "frozen",
        "eval()",
    ),
    Fault(
        "The teacher is in train mode",
        "vrvlive/knowlege-distillation#2",
        a_teacher_in_train_mode,
        "modes",
        "train mode",
    ),
    Fault(
        "The teacher gives probabilities, and they are softened as logits",
        "Lightning-Universe/lightning-bolts#654",
        a_teacher_that_gives_probabilities,
        "teacher answers",
        "probabilities",
    ),
    Fault(
        "The teacher's weights were never loaded",
        "NVIDIA-NeMo/Megatron-Bridge#1422",
        a_teacher_whose_weights_were_not_loaded,
        "teacher accuracy",
        "no better than chance",
    ),
    Fault(
        "The teacher's classes are in another order",
        "keras-team/keras#10083",
        a_teacher_of_other_class_order,
        "teacher classes",
        "permuted",
    ),
    Fault(
        "The teacher was trained on inputs of another scale",
        "lightly-ai/lightly-train#901",
        a_teacher_of_other_normalisation,
        "teacher inputs",
        "[0, 255]",
    ),
    Fault(
        "`F.dropout` in the teacher, which eval mode leaves on",
        "pytorch/pytorch#26338",
        dropout_that_eval_mode_leaves_on,
        "teacher determinism",
        "random",
    ),
    Fault(
        "The teacher's weights are not finite",
        "CASIA-LMC-Lab/TDKD#1",
        a_teacher_with_broken_weights,
        "teacher weights",
        "NaN or infinite",
    ),
    Fault(
        "Teacher and student are one network",
        "the code of SforAiDl/KD_Lib (BANN)",
        a_teacher_that_is_the_student,
        "players",
        "shares parameters with its teacher",
    ),
    Fault(
        "Kept answers of the teacher are served in another order than the samples",
        "haitongli/knowledge-distillation-pytorch#4",
        kept_answers_in_another_order,
        "teacher kept answers",
        "another order",
    ),
    Fault(
        "Validation samples are among the training samples",
        "stefyste/RIAWELC#2",
        validation_samples_in_training,
        "validation",
        "training samples",
    ),
    Fault(
        "Labels begin at 1, and the networks have one class too many",
        "pyg-team/pytorch_geometric#441",
        labels_that_begin_at_1,
        "labels",
        "begin at 1",
    ),
    Fault(
        "Several labels a sample, taken for one class",
        "sseung0703/KD_methods_with_TF#9",
        several_labels_as_one_class,
        "labels",
        "multilabel",
    ),
    Fault(
        "Pixels are divided by 255 twice",
        "4uiiurz1/pytorch-nested-unet#62",
        pixels_divided_twice,
        "inputs",
        "normalise them",
    ),
    Fault(
        "The softmax of a map's answers runs over its width",
        "hfslyc/AdvSemiSeg#73",
        classes_on_another_axis,
        "student outputs",
        "axis 1",
    ),
)
