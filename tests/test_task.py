"""How batches are fed, what labels teach, what is measured."""

from collections import UserDict, namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from limbeck import Frozen, Score, Task, classification, kd, optimizers, play
from limbeck.core.task import answer_at, ids_of, inputs_of, logits, target_of, traces_of
from limbeck.losses import cross_entropy

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


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (2, 4, 5, 3)])
def test_nothing_labelled_is_zero_with_zero_gradient(shape):
    z = torch.randn(shape, requires_grad=True)
    loss = cross_entropy(z, torch.full(shape[:-1], -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_dense_targets_have_their_classes_last():
    z, y = torch.randn(2, 4, 5, 3), torch.randint(3, (2, 4, 5))
    y[0] = -100
    torch.testing.assert_close(cross_entropy(z, y), F.cross_entropy(z[1:].movedim(-1, 1), y[1:]))


def test_soft_labels():
    z, p = torch.randn(4, 5, 3), torch.randn(4, 5, 3).softmax(-1)
    torch.testing.assert_close(cross_entropy(z, p), -(p * z.log_softmax(-1)).sum(-1).mean())


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


@dataclass
class Reply:
    scores: Tensor
    aux: Tensor


@pytest.mark.parametrize(
    ("output", "code", "option"),
    [
        ((Z, Z[0]), "out[0]", "0"),
        ([Z], "out[0]", "0"),
        ({"a": Z, "b": Z}, "out['a']", "a"),
        ({"aux": Z, "scores": Z}, "out['scores']", "scores"),
        (Reply(Z, Z), "out.scores", "scores"),
        ({"heads": {"b": Z, "scores": Z}}, "out['heads']['scores']", "heads:scores"),
        ([None, (Reply(Z, Z),)], "out[1][0].scores", "1:0:scores"),
    ],
)
def test_ambiguous_outputs_are_refused_and_told_how_to_be_read(output, code, option):
    with pytest.raises(TypeError, match="expected the network to return one tensor, got a ") as error:
        logits(output)
    assert f"limbeck.Task(output=lambda out: {code}) as task=, or --output {option}" in str(error.value)
    assert f"{code} of shape (2, 3)" in str(error.value)
    assert answer_at(option)(output) is Z  # the advice holds
    assert eval(f"lambda out: {code}")(output) is Z


@pytest.mark.parametrize("output", [{}, None, "a", {"a": [1, 2]}])
def test_outputs_without_a_tensor_have_no_such_advice(output):
    with pytest.raises(TypeError, match="in which there is no tensor: let its forward return the answer"):
        logits(output)


class Answering(nn.Module):
    """It gives what it is told to."""

    def __init__(self, given: object) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: Tensor) -> object:
        return self.given


@pytest.mark.parametrize(
    ("given", "output", "said"),
    [
        ({"scores": Z}, lambda out: out.scores, r"gave a dict with \['scores'\] \(AttributeError"),
        ({"scores": Z}, lambda out: out["score"], r"gave a dict with \['scores'\] \(KeyError: 'score'"),
        (Reply(Z, Z), lambda out: out["scores"], r"gave a Reply with \['scores', 'aux'\] \(TypeError"),
        ((Z,), lambda out: out[1], "gave a tuple of 1 .IndexError"),
    ],
)
def test_an_output_that_does_not_fit_a_network_says_what_that_gave(given, output, said):
    with pytest.raises(TypeError, match=f"output= does not find the answer of Answering, which {said}.*limbeck.Frozen"):
        replace(classification, output=output).feed(Answering(given), Z)


@pytest.mark.parametrize("batch", ["digits", Z, DataLoader([0]), None, 3])
def test_what_is_no_batch_is_told_what_one_is(batch):
    with pytest.raises(
        TypeError, match=r"expected a batch, \(inputs, targets\) or a dict of columns, got .*DataLoader"
    ):
        inputs_of(batch)


def test_words_beside_inputs_are_none():
    batch = {"image": Z, "path": ["a.png", "b.png"], "split": "train", "label": Z}
    assert list(inputs_of(batch)) == ["image"]
    assert list(inputs_of({"text": ["a", "b"], "label": Z})) == ["text"]  # where they are all there is


def test_arrays_are_no_tensors():
    with pytest.raises(
        TypeError, match=r"Linear is given numpy\.ndarray, and networks take tensors: .*torch\.as_tensor"
    ):
        classification.feed(nn.Linear(3, 2), Z.numpy())


def test_answers_lie_deeper_too():
    assert answer_at("heads:1")({"heads": [None, Z]}) is Z
    assert answer_at("0:scores")((Reply(Z, Z),)) is Z
    with pytest.raises(ValueError, match=r"the output has no entry 'heads:2': it is a dict with .'heads'."):
        answer_at("heads:2")({"heads": [None, Z]})
    with pytest.raises(TypeError, match="the output's entry 'heads' is a list of 2, not a tensor"):
        answer_at("heads")({"heads": [None, Z]})


def test_batches():
    x, y = torch.ones(2), torch.zeros(2)
    assert inputs_of((x, y)) is x
    assert target_of([x, y, torch.arange(2)]) is y
    named = {"a": x, "b": x, "labels": y, "ids": torch.arange(2)}
    assert inputs_of(named) == {"a": x, "b": x}
    assert target_of(named) is y
    for name in ("label", "targets", "target"):
        assert target_of({"a": x, name: y}) is y
    trace = {"teacher": {"": x}}
    assert traces_of((x, y, torch.arange(2), trace)) is traces_of({**named, "traces": trace}) is trace
    assert inputs_of({**named, "traces": trace}) == {"a": x, "b": x}
    assert traces_of((x, y)) == traces_of(named) == {}


@pytest.mark.parametrize("batch", [(torch.ones(2),), {"pixels": torch.ones(2)}])
def test_a_batch_without_targets_says_so(batch):
    with pytest.raises(ValueError, match=r"found no targets in the batch, a (tuple of 1|dict with .'pixels'.)"):
        target_of(batch)


@pytest.mark.parametrize("batch", [(Z, Z), {"pixels": Z, "labels": Z}])
def test_a_batch_without_ids_says_so(batch):
    with pytest.raises(ValueError, match=r"found no sample ids in the batch, .* limbeck\.Task\(ids=lambda batch"):
        ids_of(batch)


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
    trace = task.look(Two(), task.inputs(batch))
    (loss,) = task.hard({"student": trace, "target": task.target(batch)}).values()
    assert loss.value.item() == 4.0


def test_the_hard_term_is_called_hard():
    assert task_names(classification) == ["hard"]


def task_names(task):
    return task.hard.names


def test_metrics_leave_the_unlabelled_out():
    z, y = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 0, -100])
    metrics = classification.metrics(z)
    metrics.update(z, y)
    assert metrics.compute()["accuracy"].item() == pytest.approx(2 / 3)
    assert metrics.compute()["loss"].item() == pytest.approx(F.cross_entropy(z[:3], y[:3]).item())


ACCURACY, PERPLEXITY = Score("accuracy"), Score("perplexity", unit="", best="lowest")


def test_a_share_is_shown_in_percent_and_compared_in_points():
    assert (ACCURACY.number(0.912), ACCURACY.show(0.912), ACCURACY.label) == ("91.20", "91.20 %", "accuracy, %")
    assert (ACCURACY.scale, ACCURACY.points) == (100.0, "points")
    shown = [ACCURACY.difference(value) for value in (0.012, -0.0035, 0.0, -0.00001)]
    assert shown == ["+1.20", "−0.35", "0.00", "0.00"]


def test_other_units_are_shown_as_they_are():
    assert (PERPLEXITY.number(12.345), PERPLEXITY.show(12.345), PERPLEXITY.label) == ("12.35", "12.35", "perplexity")
    assert (PERPLEXITY.scale, PERPLEXITY.points) == (1.0, "")
    pixels = Score("error", unit="px", best="lowest")
    assert (pixels.show(1.5), pixels.label, pixels.points) == ("1.500 px", "error, px", "px")
    assert [pixels.difference(value) for value in (1.5, -0.25, 0.0)] == ["+1.50", "−0.250", "0.00"]


def test_a_gain_is_positive_whichever_way_the_score_goes():
    assert ACCURACY.gain(0.75, 0.5) == 0.25
    assert PERPLEXITY.gain(5.0, 8.0) == 3.0
    assert PERPLEXITY.gain(8.0, 5.0) == -3.0


class Pair(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("of its own")


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (
            Pair(),
            {"image": Z, "path": Z},
            r"Pair takes \['left', 'right'\], and is given a dict with .'image', 'path'.",
        ),
        (Pair(), {"image": Z}, r"limbeck\.Task\(inputs=lambda batch: .'left': batch\['image'\], \.\.\..\)"),
        (
            Pair(),
            Z,
            r"Pair takes .*, and is given a tensor of shape \(2, 3\) .*Task\(inputs=lambda batch: batch\[0\]\)",
        ),
        (
            nn.Linear(3, 2),
            {"image": Z, "path": Z},
            r"Linear takes \['input'\].*Task\(inputs=lambda batch: batch\['image'\]\)",
        ),
        (Frozen(nn.Linear(3, 2)), {"image": Z}, r"Linear takes \['input'\]"),
    ],
)
def test_a_network_that_does_not_take_what_it_is_given(net, inputs, message):
    with pytest.raises(TypeError, match=message):
        classification.feed(net, inputs)


def test_errors_from_inside_a_network_stay_as_they_are():
    with pytest.raises(TypeError, match=r"^of its own$"):
        classification.feed(Broken(), Z)


def test_what_softens_is_the_tasks():
    from limbeck import S, T, multilabel, regression

    assert classification.softened(S) == (S.via(classification.outcomes),)
    assert classification.exclusive(S, T) == (S, T)
    z = torch.randn(4, 3)
    torch.testing.assert_close(multilabel.outcomes(z).softmax(-1)[..., 0], z.sigmoid())
    with pytest.raises(ValueError, match="this method needs one class a sample, and in multilabel there is none"):
        multilabel.exclusive(S)
    with pytest.raises(ValueError, match="there are no probabilities to soften in regression"):
        regression.softened(S)


class Beside(nn.Module):
    """Shows where it looked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_a_teacher_is_asked_in_sight_of_what_the_student_showed():
    student, teacher = Beside(), Frozen(Beside())
    task = Task(ask=lambda net, inputs, beside: net.head(beside["stem"] + inputs.sum()), shows=("stem",))
    shown = task.look(student, Z, ["stem"])
    assert torch.equal(shown[""], student(Z))  # without anything beside, as it is
    trace = task.look(teacher, Z, ["head:in"], shown)
    assert torch.equal(trace["head:in"], shown["stem"] + Z.sum())
    assert torch.equal(trace[""], teacher.net.head(trace["head:in"]))
    assert torch.equal(task.look(teacher, Z, beside=shown)[""], trace[""])  # where nothing is recorded too
