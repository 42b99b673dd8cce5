from __future__ import annotations

import collections
import copy
import itertools
import math
import sys
from collections.abc import Callable

import pytest
import torch
from method_toys import (
    Largest,
    assert_finite,
    assert_full_precision,
    batches,
    convnet,
    gradient,
    images,
    mlp,
    normal,
    sgd,
    state,
)
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck.losses import rkd_angle, rkd_distance
from limbeck.measure.cost import _Alive
from limbeck.methods.rkd import Angles
from limbeck.nets import draws

BOTH = pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def relations(e: Tensor) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int, int], float]]:
    """Distances over their mean, and cosines, pair by pair and triple by triple; degenerate ones 0."""
    points = range(len(e))
    distance = {(i, j): (e[i] - e[j]).norm().item() for i in points for j in points}
    mean = sum(distance.values()) / (len(e) * (len(e) - 1))
    cosine = {}
    for i in points:
        for j in points:
            for k in points:
                lengths = distance[i, j] * distance[i, k]
                cosine[i, j, k] = ((e[j] - e[i]) @ (e[k] - e[i])).item() / lengths if lengths else 0.0
    return {pair: value / mean for pair, value in distance.items()}, cosine


def with_duplicates(e: Tensor) -> Tensor:
    return e[[0, 1, 0, 2, 3, 3]]


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_formulas(duplicates: bool, scale: float) -> None:
    e_s, e_t = normal(6, 3, seed=1), normal(6, 7, seed=2)
    e_s[0] *= scale  # an outlier takes the Huber loss to its linear part
    if duplicates:
        e_s = with_duplicates(e_s)
    (psi_s, cos_s), (psi_t, cos_t) = relations(e_s), relations(e_t)
    distance = sum(huber(psi_s[at], psi_t[at]) for at in psi_s) / 6**2
    angle = sum(huber(cos_s[at], cos_t[at]) for at in cos_s) / 6**3
    # the distance between duplicates is 1e-6, not 0: the clamp under the root
    assert rkd_distance(e_s, e_t).item() == pytest.approx(distance, rel=1e-5 if duplicates else 1e-12)
    assert rkd_angle(e_s, e_t).item() == pytest.approx(angle, rel=1e-12)


def test_by_hand() -> None:
    # distances 3, 4, 5 have the mean 4, and 1, 1, √2 the mean (2 + √2)/3
    e_s = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    e_t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    mean = (2 + math.sqrt(2)) / 3
    distance = 2 * (huber(3 / 4, 1 / mean) + huber(1, 1 / mean) + huber(5 / 4, math.sqrt(2) / mean)) / 9
    assert rkd_distance(e_s, e_t).item() == pytest.approx(distance)
    # right angles at 0 in both; at the others cos = 3/5 and 4/5 against 1/√2, each for two triples
    angle = 2 * (huber(3 / 5, math.sqrt(0.5)) + huber(4 / 5, math.sqrt(0.5))) / 27
    assert rkd_angle(e_s, e_t).item() == pytest.approx(angle)


@BOTH
def test_invariances(loss: Callable[..., Tensor]) -> None:
    e_s, e_t = normal(6, 4, seed=1), normal(6, 5, seed=2)
    value = loss(e_s, e_t)
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    for moved in (e_s @ rotation, e_s + normal(1, 4, seed=4), 1000 * e_s, 0.001 * e_s, -e_s):
        torch.testing.assert_close(loss(moved, e_t), value)
        torch.testing.assert_close(loss(e_t, moved), loss(e_t, e_s))
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(loss(e_s[order], e_t[order]), value)
    assert abs(loss(e_s[order], e_t) - value) > 1e-4  # it matters which sample is where


@BOTH
def test_it_is_zero_for_a_similar_figure(loss: Callable[..., Tensor]) -> None:
    e_t = normal(6, 4, seed=1)
    wide = torch.linalg.qr(normal(9, 9, seed=3)).Q[:4]  # into more dimensions
    e_s = 5 * e_t @ wide + normal(1, 9, seed=4)
    assert loss(e_s, e_t).item() == pytest.approx(0, abs=1e-20)
    assert gradient(loss, e_s, e_t).abs().max() < 1e-10


@BOTH
def test_gradient_is_that_of_the_naive_formula(loss: Callable[..., Tensor]) -> None:
    others = [(i, j) for i in range(5) for j in range(5) if i != j]

    def naive(e_s: Tensor, e_t: Tensor) -> Tensor:
        if loss is rkd_distance:
            distances = (torch.stack([torch.dist(e[i], e[j]) for i, j in others]) for e in (e_s, e_t))
            return F.smooth_l1_loss(*(d / d.mean() for d in distances), reduction="sum") / 25
        sides = (F.normalize(e[None] - e[:, None], dim=2) for e in (e_s, e_t))
        return F.smooth_l1_loss(*(side @ side.transpose(1, 2) for side in sides))

    e_s, e_t = normal(5, 3, seed=1), normal(5, 4, seed=2)
    torch.testing.assert_close(gradient(loss, e_s, e_t), gradient(naive, e_s, e_t))


@BOTH
def test_features_are_flattened(loss: Callable[..., Tensor]) -> None:
    e_s, e_t = normal(5, 3, 2, 2, seed=1), normal(5, 4, seed=2)
    torch.testing.assert_close(loss(e_s, e_t), loss(e_s.flatten(1), e_t))


@BOTH
def test_the_teacher_gets_no_gradient(loss: Callable[..., Tensor]) -> None:
    e_s, e_t = normal(5, 3, seed=1).requires_grad_(), normal(5, 4, seed=2).requires_grad_()
    loss(e_s, e_t).backward()
    assert e_s.grad is not None
    assert e_t.grad is None


@BOTH
def test_numerics(loss: Callable[..., Tensor]) -> None:
    e_t = normal(6, 5, seed=2)
    assert_finite(loss, normal(6, 4, seed=1, scale=1e4), e_t)
    assert_finite(loss, with_duplicates(normal(4, 4, seed=1)), e_t)
    assert_finite(loss, with_duplicates(normal(4, 4, seed=1, scale=1e4)), with_duplicates(e_t))
    assert_finite(loss, torch.zeros(6, 4), e_t)
    assert_finite(loss, e_t, torch.zeros(6, 4))
    assert_full_precision(loss, normal(6, 4, seed=1), e_t)


@BOTH
def test_samples_that_coincide_get_no_gradient(loss: Callable[..., Tensor]) -> None:
    assert not gradient(loss, torch.ones(6, 4).double(), normal(6, 5)).any()
    # where the authors' angles have gradients of 1e9; of many twins, some are apart by rounding
    for twins in (with_duplicates(normal(4, 4)), with_duplicates(normal(4, 4, scale=1e4)), normal(32, 17).repeat(2, 1)):
        assert gradient(loss, twins, normal(len(twins), 5, seed=1)).abs().max() < 1


@BOTH
def test_a_common_offset_costs_no_precision(loss: Callable[..., Tensor]) -> None:
    e_s, e_t = (8 * normal(6, 4, seed=1)).round() / 8, normal(6, 5, seed=2)
    far = e_s.float() + 2**20  # exact: 8 · 2²⁰ < 2²⁴
    torch.testing.assert_close(loss(far, e_t.float()).double(), loss(e_s, e_t), rtol=1e-6, atol=0)


@BOTH
def test_neighbours_are_told_apart_in_float32(loss: Callable[..., Tensor]) -> None:
    e_s, e_t = normal(6, 4, seed=1).float(), normal(6, 5, seed=2).float()
    e_s[1] = e_s[0] + 1e-3 * e_s[2]
    there, expected = gradient(loss, e_s, e_t), gradient(loss, e_s.double(), e_t.double())
    torch.testing.assert_close(there.double(), expected, rtol=1e-5, atol=1e-7)


@BOTH
def test_no_tensor_has_a_side_for_every_pair(loss: Callable[..., Tensor]) -> None:
    n, dimensions = 24, 4096
    with Largest() as largest:
        gradient(loss, normal(n, dimensions, seed=1), normal(n, dimensions, seed=2))
    assert largest.elements == n * dimensions  # the embeddings themselves; n³ is less


@BOTH
def test_invalid(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="must embed the same samples, got 5 and 4"):
        loss(normal(5, 3), normal(4, 3))
    with pytest.raises(ValueError, match=r"at least 2 samples in the batch, got 1: .* drop_last=True"):
        loss(normal(1, 3), normal(1, 3))


def test_playing_it_is_the_loop_on_the_embeddings() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1, width=6)
    method = limbeck.rkd(student, teacher, distance=2.0, angle=3.0)
    optimizers, optimizer = limbeck.optimizers(method, sgd), sgd(list(loop.parameters()))
    teacher.eval()

    def embed(net: nn.Module, x: Tensor) -> Tensor:
        return net.flat(net.pool(net.two(net.one(x))))

    for x, y in batches(3, images):
        logs = limbeck.play(method, (x, y), optimizers)
        optimizer.zero_grad()
        e_s, e_t = embed(loop, x), embed(teacher, x).detach()
        distance, angle = rkd_distance(e_s, e_t), rkd_angle(e_s, e_t)
        (F.cross_entropy(loop.fc(e_s), y) + 2 * distance + 3 * angle).backward()
        optimizer.step()
        assert logs["student/distance"] == pytest.approx(distance.item(), rel=1e-6)
        assert logs["student/angle"] == pytest.approx(angle.item(), rel=1e-6)
    torch.testing.assert_close(state(student), state(loop), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "places"), [("", ("", "")), (("0", "3"), ("0", "3")), (None, ("3:in", "3:in"))])
def test_where_the_embeddings_are(layer: str | tuple[str, str] | None, places: tuple[str, str]) -> None:
    student, teacher = mlp(0).eval(), mlp(1).eval()
    method = limbeck.rkd(student, teacher, layer=layer)
    x, y = next(batches(1))
    trace = {}
    for name, net, place in (("s", student, places[0]), ("t", teacher, places[1])):
        hidden = {"": net(x), "0": net[0](x), "3": net(x), "3:in": net[:3](x)}
        trace[name] = hidden[place].detach()
    logs = limbeck.play(method, (x, y), limbeck.optimizers(method, sgd))
    assert logs["student/distance"] == pytest.approx(rkd_distance(trace["s"], trace["t"]).item(), rel=1e-6)
    assert logs["student/angle"] == pytest.approx(rkd_angle(trace["s"], trace["t"]).item(), rel=1e-6)


def test_a_network_without_embedding() -> None:
    with pytest.raises(ValueError, match="Sequential has no linear layer whose input could serve as embedding"):
        limbeck.rkd(nn.Sequential(nn.Conv2d(3, 4, 1)), mlp(0))


@pytest.mark.parametrize("twins", ["student's", "teacher's"])
@pytest.mark.parametrize("at_once", [1, 2 * 6**2, 2**17])
def test_angles_a_few_at_a_time_are_those_of_all_at_once(
    twins: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["limbeck.methods.rkd"], "AT_ONCE", at_once)
    e_s, e_t = normal(6, 3, seed=1), normal(6, 4, seed=2)
    e_s[0] *= 6  # the Huber loss's linear part
    if twins == "student's":
        e_s = with_duplicates(e_s)
    else:
        e_t = with_duplicates(e_t)
    cosines = relations(e_s)[1], relations(e_t)[1]
    assert rkd_angle(e_s, e_t).item() == pytest.approx(
        sum(map(huber, *(c.values() for c in cosines))) / 6**3, rel=1e-12
    )
    if twins == "teacher's":
        assert torch.autograd.gradcheck(rkd_angle, (e_s.requires_grad_(), e_t))


def test_angles_are_not_differentiated_twice() -> None:
    e_s, e_t = normal(4, 3, seed=1).requires_grad_(), normal(4, 2, seed=2)
    (slope,) = torch.autograd.grad(rkd_angle(e_s, e_t), e_s, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        slope.sum().backward()


def test_angles_at_some_samples_are_theirs_alone() -> None:
    e_s, e_t, some = normal(6, 3, seed=1), normal(6, 4, seed=2), torch.tensor([4, 0, 4])
    (_, cos_s), (_, cos_t) = relations(e_s), relations(e_t)
    others = [(i, j, k) for i in some.tolist() for j in range(6) for k in range(6)]
    expected = sum(huber(cos_s[at], cos_t[at]) for at in others) / len(others)
    assert rkd_angle(e_s, e_t, some).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda e: rkd_angle(e, e_t, some), (e_s.requires_grad_(),))
    for wrong in (torch.tensor([], dtype=torch.long), torch.tensor(1)):
        with pytest.raises(ValueError, match="vertices must be places of samples"):
            rkd_angle(e_s, e_t, wrong)


def test_the_mean_over_all_draws_of_anchors_is_the_whole_loss() -> None:
    e_s, e_t = with_duplicates(normal(4, 3, seed=1)).requires_grad_(), normal(6, 4, seed=2)
    whole = rkd_angle(e_s, e_t)
    draws = torch.stack([rkd_angle(e_s, e_t, torch.tensor(some)) for some in itertools.combinations(range(6), 2)])
    assert draws.std() > 0.01 * whole
    torch.testing.assert_close(draws.mean(), whole)
    of_draws, of_whole = (torch.autograd.grad(loss, e_s)[0] for loss in (draws.mean(), whole))
    torch.testing.assert_close(of_draws, of_whole)


def test_anchors_are_drawn_anew_each_as_likely_and_go_on_from_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []

    def note(student: Tensor, teacher: Tensor, vertices: Tensor) -> Tensor:
        drawn.append(tuple(sorted(vertices.tolist())))
        return student.sum()

    monkeypatch.setattr(sys.modules["limbeck.methods.rkd"], "rkd_angle", note)
    angles, other, e = Angles(2), Angles(2), normal(4, 3)
    for _ in range(600):
        angles(e, e)
    counts = collections.Counter(drawn)
    assert counts.keys() == set(itertools.combinations(range(4), 2))
    assert all(abs(count - 100) < 40 for count in counts.values())  # 4 sd
    other.load_state_dict(angles.state_dict())
    drawn.clear()
    for one in (angles, other):
        for _ in range(5):
            one(e, e)
    assert drawn[:5] == drawn[5:]
    assert len(set(drawn)) > 1
    Angles(9)(e, e)
    assert drawn[-1] == (0, 1, 2, 3)


def test_two_processes_draw_the_anchors_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module, e = sys.modules["limbeck.methods.rkd"], torch.arange(6.0)[:, None]
    chosen: list[list[float]] = []
    monkeypatch.setattr(module, "rkd_angle", lambda s, t, at: chosen.append(sorted(s[at, 0].tolist())))
    one = Angles(3)
    parts = [copy.deepcopy(one), copy.deepcopy(one)]
    one(e, e)
    monkeypatch.setattr(module, "place", lambda: (0, 2))
    lots: list[Tensor] = []
    monkeypatch.setattr(module, "gather", lambda own: lots.append(own) or own)
    ranked = torch.cat([e[0::2], e[1::2]])  # gathered in the order of the ranks, which have every second sample
    for rank, part in enumerate(parts):
        monkeypatch.setattr(draws, "place", lambda rank=rank: (rank, 2))
        part(ranked, ranked)
    assert [len(own) for own in lots] == [3, 3]
    monkeypatch.setattr(module, "gather", lambda own: torch.cat(lots))
    monkeypatch.setattr(draws, "place", lambda: (0, 2))
    parts[0].draws.calls = 0
    parts[0](ranked, ranked)
    assert chosen[-1] == chosen[0]


def test_a_method_with_anchors_draws_them_and_remembers() -> None:
    student, teacher = mlp(0), mlp(1).eval()
    before = torch.get_rng_state()
    method = limbeck.rkd(student, teacher, anchors=3)
    assert torch.equal(torch.get_rng_state(), before)
    (angles,) = (m for m in method.modules() if isinstance(m, Angles))
    limbeck.play(method, next(batches(1)), limbeck.optimizers(method, sgd))
    assert angles.draws.calls == 1
    assert any(key.endswith("draws._extra_state") for key in method.state_dict())
    with pytest.raises(ValueError, match="anchors must be at least 1, got 0"):
        limbeck.rkd(student, teacher, anchors=0)


@pytest.mark.parametrize("samples", [64, 160])
def test_no_tensor_of_all_triples_in_large_batches(samples: int) -> None:
    e_s, e_t = normal(samples, 8, seed=1).requires_grad_(), normal(samples, 8, seed=2)
    alive = _Alive()
    with alive:
        rkd_angle(e_s, e_t).backward()
    assert alive.peak < 8 * max(8 * 2**18, 8 * samples**2)
