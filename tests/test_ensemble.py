"""Several networks as one teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.engine.run import Run
from limbeck.losses import soft_target

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(5, 6, generator=GENERATOR, dtype=torch.double)


def members() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(6, 4).double() for _ in range(3)]


def normalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_arithmetic_mean_is_that_of_softened_probabilities(temperature: float) -> None:
    a, b, _ = nets = members()
    ensemble = limbeck.Ensemble(nets, weights=[3, 1, 0], temperature=temperature)
    expected = (3 * (a(X) / temperature).softmax(-1) + (b(X) / temperature).softmax(-1)) / 4
    torch.testing.assert_close((ensemble(X) / temperature).softmax(-1), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_geometric_mean_suits_every_temperature(temperature: float) -> None:
    nets = members()
    softened = torch.stack([(net(X) / temperature).softmax(-1) for net in nets])
    said = limbeck.Ensemble(nets, mean="geometric")(X)
    torch.testing.assert_close((said / temperature).softmax(-1), normalised(softened.prod(0) ** (1 / 3)))


def test_to_learn_from_the_mean_is_to_learn_from_each() -> None:
    """Σ_m w_m KL(p_m ‖ p_s) and KL(Σ_m w_m p_m ‖ p_s) differ by a constant."""
    nets, temperature = members(), 3.0
    ensemble = limbeck.Ensemble(nets, weights=[1, 2, 3], temperature=temperature)
    student = torch.randn(5, 4, generator=GENERATOR, dtype=torch.double, requires_grad=True)
    mean = soft_target(student, ensemble(X), temperature=temperature)
    terms = [soft_target(student, net(X), temperature=temperature) for net in nets]
    each = (terms[0] + 2 * terms[1] + 3 * terms[2]) / 6
    torch.testing.assert_close(torch.autograd.grad(mean, student), torch.autograd.grad(each, student))
    assert each > mean


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_sure_members_stay_finite(temperature: float) -> None:
    nets = members()
    for net in nets:
        net.weight.data *= 1e4
    said = limbeck.Ensemble(nets, temperature=temperature).float()(X.float())
    assert said.isfinite().all()


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_the_mean_is_computed_in_full_precision(mean: str) -> None:
    halves = [net.bfloat16() for net in members()]
    ensemble = limbeck.Ensemble(halves, mean=mean)
    said = [net(X.bfloat16()).float() for net in halves]
    assert torch.equal(ensemble(X.bfloat16()), ensemble._averaged(said))


def test_members_of_other_classes() -> None:
    ensemble = limbeck.Ensemble([*members(), nn.Linear(6, 5).double()])
    with pytest.raises(ValueError, match=r"logits of the same classes, got shapes .*\(5, 4\), \(5, 5\)"):
        ensemble(X)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "at least one network"),
        (2, {"weights": [1]}, "expected 2 weights ≥ 0, not all 0"),
        (2, {"weights": [1, -1]}, "expected 2 weights ≥ 0"),
        (2, {"weights": [0, 0]}, "not all 0"),
        (2, {"mean": "harmonic"}, "'arithmetic' or 'geometric', got 'harmonic'"),
        (2, {"temperature": 0.0}, "temperature must be positive and finite, got 0"),
        (2, {"weights": [1, float("nan")]}, "expected 2 weights ≥ 0"),
    ],
)
def test_what_is_no_ensemble(count: int, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.Ensemble(members()[:count], **options)


class Read(nn.Module):
    """A member that answers with what ``read`` makes of its logits."""

    def __init__(self, read: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.read = members()[0], read

    def forward(self, x: Tensor) -> object:
        return self.read(self.net(x))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            [nn.Linear(6, 4)],
            r"member 1, Linear, has weights of torch.float32 on cpu, the first of torch.float64 .* Convert",
        ),
        ([nn.Linear(6, 4).half()], r"member 1, Linear, has weights of torch.float16"),
        ([Read(lambda z: z.argmax(-1))], r"member 1, Read, gives torch.int64 of shape \(5,\): expected logits"),
        ([Read(lambda z: z[:, 0])], r"member 1, Read, gives torch.float64 of shape \(5,\)"),
        ([Read(lambda z: {"logits": z.sigmoid() > 0.5})], r"member 1, Read, gives torch.bool of shape \(5, 4\)"),
        ([Read(lambda z: z[:, :1])], r"of the same classes, got shapes .*\(5, 1\)"),
    ],
)
def test_members_that_do_not_go_together(others: list[nn.Module], message: str) -> None:
    ensemble = limbeck.Ensemble([members()[0], *others])
    with pytest.raises(ValueError, match=message):
        ensemble(X)


def test_probabilities_need_classes() -> None:
    one = [Read(lambda z: z[:, :1]), Read(lambda z: z[:, 1:2])]
    with pytest.raises(ValueError, match="the members give one number each: take mean='geometric'"):
        limbeck.Ensemble(one)(X)
    assert limbeck.Ensemble(one, mean="geometric")(X).shape == (5, 1)
    maps = [Read(lambda z: z[:, :3, None, None].expand(-1, -1, 2, 4)) for _ in range(2)]
    with pytest.raises(
        ValueError, match=r"answers of shape \(5, 3, 2, 4\), and an arithmetic mean needs the classes last"
    ):
        limbeck.Ensemble(maps)(X)
    said = limbeck.Ensemble(maps, output=limbeck.segmentation().output)(X)
    assert said.shape == (5, 2, 4, 3)


def test_members_of_other_modes_and_kinds() -> None:
    frozen = limbeck.Frozen(members()[0], mode="batch_stats")
    with pytest.raises(ValueError, match=r"member 1 is frozen with mode='batch_stats'.*freeze the ensemble"):
        limbeck.Ensemble([members()[1], frozen])
    with pytest.raises(TypeError, match="member 1 of an ensemble must be a network, got function"):
        limbeck.Ensemble([members()[1], lambda x: x])
    assert limbeck.Ensemble(net for net in members())(X).shape == (5, 4)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_ensemble_of_networks_that_are_alike_is_a_network_by_its_name(mean: str, tmp_path: Path) -> None:
    nets = [limbeck.zoo.network("mlp-8", 4, (6,)) for _ in range(2)]
    ensemble = limbeck.Ensemble(nets, weights=[1, 3], mean=mean, temperature=2.0)
    other = limbeck.Ensemble([nets[0], limbeck.zoo.network("mlp-7", 4, (6,))])
    Run(tmp_path).write_networks({"ensemble": ensemble, "other": other})
    again = limbeck.zoo.network(f"mlp-8@{tmp_path / 'ensemble.safetensors'}", 4, (6,))
    assert torch.equal(again(X.float()), ensemble(X.float()))
    with pytest.raises(ValueError, match="do not fit the network: missing"):
        limbeck.zoo.network(f"mlp-8@{tmp_path / 'other.safetensors'}", 4, (6,))


class Named(nn.Module):
    """Answers with a dict."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.net(x), "shape": x}


def test_members_are_read_as_the_user_says() -> None:
    nets = members()
    ensemble = limbeck.Ensemble([Named(net) for net in nets], mean="geometric", output=lambda out: out["scores"])
    torch.testing.assert_close(ensemble(X), limbeck.Ensemble(nets, mean="geometric")(X))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_members_may_have_views_of_their_own(mean: str) -> None:
    """Fed twice the student's inputs, read elsewhere, with more classes in another order."""
    a, b, _ = members()
    more = nn.Linear(6, 9).double()
    view = limbeck.Frozen(
        Named(more), inputs=lambda x: 2 * x, output=lambda out: out["scores"], classes={0: 8, 1: 2, 2: 5, 3: 0}
    )
    ensemble = limbeck.Ensemble([a, view, b], mean=mean)
    like_it = nn.Linear(6, 4).double()
    with torch.no_grad():
        like_it.weight.copy_(2 * more.weight[[8, 2, 5, 0]])
        like_it.bias.copy_(more.bias[[8, 2, 5, 0]])
    expected = limbeck.Ensemble([a, like_it, b], mean=mean)(X)
    torch.testing.assert_close(ensemble(X), expected)
    teacher = limbeck.Frozen(ensemble)
    torch.testing.assert_close(limbeck.classification.feed(teacher, X), expected)
    trace = limbeck.classification.look(teacher, X, ["members.1.net"])  # its layers keep their names
    torch.testing.assert_close(trace["members.1.net"], more(2 * X))


def test_the_mean_of_labels_and_values_is_that_of_the_answers() -> None:
    """Σ_m w_m z_m: of values the mean, of several labels the normalised geometric mean of each one's two probabilities."""
    nets = members()
    said = limbeck.Ensemble(nets, mean="geometric")(X)
    torch.testing.assert_close(said, torch.stack([net(X) for net in nets]).mean(0))
    yes, no = (torch.stack([(sign * net(X)).sigmoid() for net in nets]).prod(0) ** (1 / 3) for sign in (1, -1))
    torch.testing.assert_close(said.sigmoid(), yes / (yes + no))
