"""How batches are fed, what labels teach, what is measured."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import Frozen, Task, classification, kd, optimizers, play
from limbeck.losses import cross_entropy
from limbeck.task import inputs_of, logits, target_of

Z = torch.randn(2, 3)
Outputs = namedtuple("Outputs", ["logits", "aux"])


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


def test_cross_entropy_is_the_mean_over_the_labelled():
    z, y = torch.randn(5, 3), torch.tensor([0, -100, 2, -100, 1])
    labelled = y != -100
    torch.testing.assert_close(cross_entropy(z, y), F.cross_entropy(z[labelled], y[labelled]))
    by_hand = -(z.log_softmax(-1)[[0, 2, 4], [0, 2, 1]].sum() / 3)
    torch.testing.assert_close(cross_entropy(z, y), by_hand)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_nothing_labelled_is_zero_with_zero_gradient(shape):
    z = torch.randn(shape, requires_grad=True)
    loss = cross_entropy(z, torch.full((shape[0], *shape[2:]), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_dense_targets():
    z, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    y[0] = -100
    torch.testing.assert_close(cross_entropy(z, y), F.cross_entropy(z[1:], y[1:]))


@pytest.mark.parametrize(
    "output",
    [
        Z,
        {"logits": Z, "loss": torch.ones(())},
        {"out": Z, "aux": torch.ones(2)},
        {"scores": Z, "note": "no tensor"},
        UserDict(logits=Z, more=Z + 1),
        Outputs(Z, None),
        Answer(Z, Z + 1),
    ],
    ids=["tensor", "hugging face", "segmentation", "only tensor", "mapping", "namedtuple", "dataclass"],
)
def test_where_logits_are_found(output):
    assert logits(output) is Z


@pytest.mark.parametrize("output", [(Z, Z), [Z], {"a": Z, "b": Z}, {}, None])
def test_ambiguous_outputs_are_refused(output):
    with pytest.raises(TypeError, match="expected the network to return logits, got a "):
        logits(output)


def test_batches():
    x, y = torch.ones(2), torch.zeros(2)
    assert inputs_of((x, y)) is x
    assert target_of([x, y, torch.arange(2)]) is y
    named = {"a": x, "b": x, "labels": y, "ids": torch.arange(2)}
    assert inputs_of(named) == {"a": x, "b": x}
    assert target_of(named) is y
    assert target_of({"a": x, "label": y}) is y


@pytest.mark.parametrize("batch", [(torch.ones(2),), {"pixels": torch.ones(2)}])
def test_a_batch_without_targets_says_so(batch):
    with pytest.raises(ValueError, match=r"found no targets in the batch, a (tuple of 1|dict with .'pixels'.)"):
        target_of(batch)


class Named(nn.Module):
    """Takes named inputs and returns a dict, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, ids_in: Tensor, mask: Tensor) -> dict[str, Tensor]:
        h = (self.embed(ids_in) * mask[..., None]).sum(1)
        return {"logits": self.head(h), "hidden": h}


def test_dict_batches_play():
    torch.manual_seed(0)
    student, teacher = Named(), Named()
    batch = {"ids_in": torch.randint(10, (4, 5)), "mask": torch.ones(4, 5), "labels": torch.tensor([0, 1, 2, -100])}
    method = kd(student, teacher)
    before = student.head.weight.detach().clone()
    logs = play(method, batch, optimizers(method, lambda params: torch.optim.SGD(params, 0.1)))
    assert logs["student/hard"] > 0
    assert not torch.equal(before, student.head.weight)


def test_look_shows_output_and_layers():
    net = Named()
    batch = {"ids_in": torch.randint(10, (4, 5)), "mask": torch.ones(4, 5)}
    trace = classification.look(net, batch, ["embed", "head:in", ":hidden"])
    assert set(trace) == {"embed", "head:in", ":hidden", ""}
    assert torch.equal(trace[""], net(**batch)["logits"])
    assert torch.equal(trace[":hidden"], trace["head:in"])
    frozen = classification.look(Frozen(net), batch, ["head:in"])
    assert torch.equal(frozen["head:in"], trace["head:in"])
    assert not frozen["head:in"].requires_grad
    assert set(classification.look(net, batch)) == {""}


def test_own_task():
    task = Task(
        loss=lambda out, y: F.mse_loss(out, y),
        output=lambda out: out[1],
        inputs=lambda batch: batch["image"],
        target=lambda batch: batch["answer"],
    )

    class Two(nn.Module):
        def forward(self, x):
            return x, 2 * x

    batch = {"image": torch.ones(2), "answer": torch.zeros(2)}
    trace = task.look(Two(), batch)
    (loss,) = task.hard({"student": trace, "target": task.target(batch)}).values()
    assert loss.value.item() == 4.0


def test_the_hard_term_is_called_hard():
    assert task_names(classification) == ["hard"]


def task_names(task):
    return task.hard.names


def test_metrics_leave_the_unlabelled_out():
    metrics = classification.metrics(3)
    z = torch.eye(3)[[0, 1, 2, 0]]
    metrics.update(z, torch.tensor([0, 1, 0, -100]))
    assert metrics.compute()["accuracy"].item() == pytest.approx(2 / 3)
