"""Several networks as one teacher."""

from __future__ import annotations

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
        (2, {"temperature": 0.0}, "temperature must be positive, got 0"),
    ],
)
def test_what_is_no_ensemble(count: int, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limbeck.Ensemble(members()[:count], **options)


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
