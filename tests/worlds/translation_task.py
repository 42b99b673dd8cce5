"""Image translation from pairs: what a generator makes of an image, beside what it should be."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from limbeck.core.exhibits import Exhibit, Gallery, Shown
from limbeck.core.finding import Examined, Finding
from limbeck.core.task import Score, Task
from limbeck.tasks.meters import MeanLoss


def absolute(answer: Tensor) -> MetricCollection:
    """``L1`` to the truth."""
    return MetricCollection({"L1": MeanLoss(F.l1_loss)})


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare the size of what is made with that of the truth."""
    target = setup.task.target(setup.batch)
    for name, net in {**setup.networks, **setup.teachers}.items():
        if (made := setup.answer(net).shape[1:]) != target.shape[1:]:
            yield Finding(
                f"{name} images", "failed", f"the {name} makes images {tuple(made)} for {tuple(target.shape[1:])}"
            )


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show a few images, what they should become, and what each network makes of them."""
    inputs, targets = shown.samples
    columns = {"image": inputs, "true": targets, **shown.answers}
    pictures = [shown.pictures(images[:4]) or () for images in columns.values()]
    yield Gallery("Translations", tuple(columns), tuple(zip(*pictures, strict=True)))


def as_it_is(image: Tensor) -> Tensor:
    """A generator's image."""
    return image


translation = Task(
    name="translation",
    output=as_it_is,
    loss=F.l1_loss,
    outcomes=None,
    metrics=absolute,
    score=Score("L1", unit="", best="lowest"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
