from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from method_toys import assert_same, batches, mlp, sgd, state
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import soft_target


def says(net: nn.Module, x: Tensor) -> Tensor:
    """What a network says to its peers: no gradient, no trace in its batch norm."""
    before = state(net)
    with torch.no_grad():
        z = net(x)
    net.load_state_dict(before)
    return z


def loop(nets: list[nn.Module], data: Iterator[tuple[Tensor, Tensor]], alternate: bool) -> None:
    """One network after the other, each from the others' latest predictions as in the paper, or from their first."""
    optimizers = [sgd(list(net.parameters())) for net in nets]
    for x, y in data:
        own = [net(x) for net in nets]  # before anyone moved
        for i, optimizer in enumerate(optimizers):
            latest = [says(nets[j], x) if alternate and j < i else z.detach() for j, z in enumerate(own)]
            peers = [z for j, z in enumerate(latest) if j != i]
            hard = F.cross_entropy(own[i], y)
            loss = hard + torch.stack([soft_target(own[i], peer, temperature=1.0) for peer in peers]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("alternate", [True, False])
@pytest.mark.parametrize("n", [2, 3])
def test_it_is_the_papers_algorithm_bit_for_bit(n: int, alternate: bool) -> None:
    nets, by_hand = ([mlp(seed, width=6 + seed) for seed in range(n)] for _ in range(2))
    method = limbeck.dml(nets[0], nets[1:], alternate=alternate)
    optimizers = limbeck.optimizers(method, sgd)
    for batch in batches(5):
        limbeck.play(method, batch, optimizers)
    loop(by_hand, batches(5), alternate)
    for net, expected in zip(nets, by_hand, strict=True):
        assert_same(state(net), state(expected))


def test_formula_of_three() -> None:
    nets = [mlp(seed, norm=False) for seed in range(3)]
    method, (x, y) = limbeck.dml(nets[0], nets[1:], mimic=0.5), next(batches(1))
    p = [net(x).softmax(-1).tolist() for net in nets]
    first = next(iter(method.step((x, y))))  # the first network's turn, before anyone moved

    divergence = 0.0
    for peer in (1, 2):
        for n in range(len(x)):
            divergence += sum(a * math.log(a / b) for a, b in zip(p[peer][n], p[0][n], strict=True)) / len(x)
    hard = sum(-math.log(p[0][n][y[n]]) for n in range(len(x))) / len(x)
    assert first.terms["mimic"].value.item() == pytest.approx(divergence / 2, rel=1e-9)
    assert first.total.item() == pytest.approx(hard + 0.5 * divergence / 2, rel=1e-9)


def test_the_others_with_one_voice() -> None:
    nets = [mlp(seed, norm=False) for seed in range(3)]
    (x, y), p = next(batches(1)), [net(next(batches(1))[0]).softmax(-1) for net in nets]
    first = next(iter(limbeck.dml(nets[0], nets[1:], ensemble=True).step((x, y))))
    voice = (p[1] + p[2]) / 2
    expected = (voice * (voice / p[0]).log()).sum(-1).mean()
    assert first.terms["mimic"].value.item() == pytest.approx(expected.item(), rel=1e-9)
    apart = next(iter(limbeck.dml(nets[0], nets[1:]).step((x, y))))
    assert first.terms["mimic"].value < apart.terms["mimic"].value  # KL is convex
    of_two = [limbeck.dml(*nets[:2], ensemble=ensemble).step((x, y)) for ensemble in (True, False)]
    values = [[turn.total.item() for turn in turns] for turns in of_two]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("labels", [0, 4])
def test_samples_without_a_label_teach_too(labels: int) -> None:
    nets, (x, y) = [mlp(seed, norm=False) for seed in range(2)], next(batches(1))
    y[labels:] = -100
    turn = next(iter(limbeck.dml(*nets).step((x, y))))
    z, peer = nets[0](x), nets[1](x)
    hard = F.cross_entropy(z[:labels], y[:labels]) if labels else torch.tensor(0.0).double()
    torch.testing.assert_close(turn.terms["hard"].value, hard)
    torch.testing.assert_close(turn.terms["mimic"].value, soft_target(z, peer.detach(), temperature=1.0))
    assert turn.terms["mimic"].value > soft_target(z[:labels], peer[:labels], temperature=1.0) * labels / len(x)


def test_by_hand() -> None:
    class Says(nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([logits]))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    even, sure = Says(0.0, 0.0), Says(math.log(3), 0.0)  # (1/2, 1/2) and (3/4, 1/4)
    method = limbeck.dml(even, sure)
    optimizers = limbeck.optimizers(method, lambda params: torch.optim.SGD(params, 0.0))
    logs = limbeck.play(method, (torch.zeros(2, 1), torch.tensor([0, 0])), optimizers)
    assert logs["student/hard"] == pytest.approx(math.log(2))
    assert logs["student/mimic"] == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))  # KL(sure ‖ even)
    assert logs["peer1/hard"] == pytest.approx(math.log(4 / 3))
    assert logs["peer1/mimic"] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))  # KL(even ‖ sure)


def test_a_turn_reaches_nobody_else() -> None:
    nets = [mlp(seed) for seed in range(3)]
    method = limbeck.dml(nets[0], nets[1:])
    for i, turn in enumerate(method.step(next(batches(1)))):
        for net in nets:
            net.zero_grad()
        turn.total.backward()
        assert [any(p.grad is not None for p in net.parameters()) for net in nets] == [j == i for j in range(3)]


def test_batch_norm_sees_each_batch_once() -> None:
    nets = [mlp(0), mlp(1)]
    method = limbeck.dml(*nets)
    optimizers = limbeck.optimizers(method, sgd)
    for batch in batches(4):
        limbeck.play(method, batch, optimizers)
    assert [net[1].num_batches_tracked.item() for net in nets] == [4, 4]


def test_twins_have_nothing_to_teach_at_first() -> None:
    method = limbeck.dml(mlp(0), mlp(0))
    first = next(iter(method.step(next(batches(1)))))
    assert first.terms["mimic"].value.item() == pytest.approx(0, abs=1e-14)


def test_without_mimicry_all_train_alone() -> None:
    nets, alone = [mlp(0), mlp(1)], mlp(1)
    with pytest.raises(ValueError, match=r"mimic must be above 0, got 0\.0"):
        limbeck.dml(*nets, mimic=0.0)
    mutual, plain = limbeck.dml(*nets, mimic=1e-300), limbeck.plain(alone)  # too little to count
    optimizers, optimizer = limbeck.optimizers(mutual, sgd), limbeck.optimizers(plain, sgd)
    for batch in batches(3):
        limbeck.play(mutual, batch, optimizers)
        limbeck.play(plain, batch, optimizer)
    assert_same(state(nets[1]), state(alone))


def test_every_peer_can_be_shipped() -> None:
    student, one, two = mlp(0), mlp(1), mlp(2)
    assert limbeck.dml(student, [one, two]).networks() == {"student": student, "peer1": one, "peer2": two}


def test_numerics() -> None:
    nets = [mlp(0, norm=False), mlp(1, norm=False)]
    for net in nets:
        net[-1].weight.data *= 1e4
    method = limbeck.dml(*nets)
    logs = limbeck.play(method, next(batches(1)), limbeck.optimizers(method, sgd))
    assert max(logs.values()) > 1e3  # or this would test nothing; play() itself refuses what is not finite
    assert all(p.isfinite().all() for net in nets for p in net.parameters())


def test_invalid() -> None:
    student, peer = mlp(0), mlp(1)
    with pytest.raises(ValueError, match="the players 'student' and 'peer1' share parameters"):
        limbeck.dml(student, student)
    with pytest.raises(ValueError, match=r"the players 'peer1' and 'peer2' share parameters.*a fresh initialisation"):
        limbeck.dml(student, [peer, peer])
    with pytest.raises(ValueError, match=r"needs at least 2 networks, got \['student'\]"):
        limbeck.dml(student, [])
    peer[-1].weight = student[-1].weight  # one parameter is enough
    with pytest.raises(ValueError, match="the players 'student' and 'peer1' share parameters"):
        limbeck.dml(student, peer)
