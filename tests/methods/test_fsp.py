from __future__ import annotations

import pytest
import torch
from method_toys import (
    Largest,
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
from limbeck import zoo
from limbeck.core.method import assign, parameters
from limbeck.core.stage import Stage
from limbeck.losses import fsp
from limbeck.methods.fsp import flow_matrix

EXAMPLE = images()[0]
ONE, BOTH = ("one.0", "one"), ("one", "two")


def optimizers_of(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    return assign(parameters(stage.method, stage.trains), sgd)


def naive_flow(first: Tensor, last: Tensor) -> list[list[float]]:
    """One sample's matrix: the mean over positions of the product of each channel with each."""
    places = [(h, w) for h in range(first.shape[1]) for w in range(first.shape[2])]
    return [[sum(a[h, w].item() * b[h, w].item() for h, w in places) / len(places) for b in last] for a in first]


def test_formula() -> None:
    s, t = (
        (normal(3, 4, 2, 5, seed=1), normal(3, 6, 2, 5, seed=2)),
        (normal(3, 4, 2, 5, seed=3), normal(3, 6, 2, 5, seed=4)),
    )
    total = 0.0
    for n in range(3):
        flow_s, flow_t = naive_flow(s[0][n], s[1][n]), naive_flow(t[0][n], t[1][n])
        total += sum((flow_s[i][j] - flow_t[i][j]) ** 2 for i in range(4) for j in range(6))
    assert fsp(s, t).item() == pytest.approx(total / 3, rel=1e-12)


def test_by_hand() -> None:
    first = torch.tensor([[[[1.0, 2.0]]]])
    last = torch.tensor([[[[3.0, 4.0]], [[0.0, -1.0]]]])
    torch.testing.assert_close(flow_matrix(first, last), torch.tensor([[[5.5, -1.0]]]))  # (3 + 8)/2, −2/2
    other = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]])  # (1.5, 0)
    assert fsp((first, last), other).item() == 4**2 + 1


def test_it_is_invariant_to_a_joint_permutation_of_positions() -> None:
    first, last, t = normal(3, 4, 2, 3, seed=1), normal(3, 6, 2, 3, seed=2), (normal(3, 4, 5, 5), normal(3, 6, 5, 5))
    order = [5, 2, 0, 1, 4, 3]

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[..., order].view_as(x)

    value = fsp((first, last), t)
    torch.testing.assert_close(fsp((permuted(first), permuted(last)), t), value)
    assert abs(fsp((permuted(first), last), t) - value) > 1e-4


def test_it_is_zero_for_the_same_flow() -> None:
    first, last = normal(3, 4, 2, 3, seed=1), normal(3, 6, 2, 3, seed=2)
    assert fsp((first, last), (first, last)).item() == 0
    twice = tuple(x.repeat(1, 1, 2, 2) for x in (first, last))  # the mean over positions knows no size
    assert fsp((first, last), twice).item() == pytest.approx(0, abs=1e-25)
    assert fsp((2 * first, last / 2), (first, last)).item() == pytest.approx(0, abs=1e-25)


def test_the_larger_map_is_pooled_by_the_maximum() -> None:
    first, last = normal(3, 4, 4, 6, seed=1), normal(3, 6, 2, 3, seed=2)
    torch.testing.assert_close(flow_matrix(first, last), flow_matrix(F.max_pool2d(first, 2), last))
    torch.testing.assert_close(flow_matrix(last, first), flow_matrix(last, F.max_pool2d(first, 2)))


def test_gradient_is_that_of_differences() -> None:
    t = normal(2, 3, 2, 2, seed=3), normal(2, 4, 2, 2, seed=4)
    s = normal(2, 3, 4, 4, seed=1).requires_grad_(), normal(2, 4, 2, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda first, last: fsp((first, last), t), s)


def test_numerics() -> None:
    def loss(first: Tensor, last: Tensor, first_t: Tensor, last_t: Tensor) -> Tensor:
        return fsp((first, last), (first_t, last_t))

    s, t = (
        (normal(3, 4, 4, 4, seed=1), normal(3, 6, 4, 4, seed=2)),
        (normal(3, 4, 4, 4, seed=3), normal(3, 6, 4, 4, seed=4)),
    )
    assert_finite(loss, *(30 * x for x in (*s, *t)))
    for dtype in (torch.float32, torch.bfloat16):  # a gradient of 1e4³ is more than float16 can hold
        wide = [(1e4 * x).to(dtype) for x in (*s, *t)]
        assert loss(*wide).isfinite()
        assert gradient(loss, *wide).isfinite().all()
    assert_finite(loss, *(torch.zeros_like(x) for x in s), *t)
    assert_finite(loss, *t, *t)
    assert_finite(loss, *(x[[0, 0, 0]] for x in (*s, *t)))
    assert_finite(loss, *(x[:1] for x in (*s, *t)))
    assert_full_precision(loss, *(300 * x for x in s), *t)


def test_no_tensor_has_a_map_for_every_pair_of_channels() -> None:
    first, last = normal(2, 32, 8, 8, seed=1).requires_grad_(), normal(2, 48, 8, 8, seed=2).requires_grad_()
    with Largest() as largest:
        fsp((first, last), (last.detach()[:, :32], last.detach())).backward()
    assert largest.elements == last.numel()


def test_invalid_flows() -> None:
    s = normal(3, 4, 2, 2), normal(3, 6, 2, 2)
    with pytest.raises(ValueError, match=r"a flow is between feature maps \(N, C, H, W\), got shape \(3, 4\)"):
        fsp((normal(3, 4), s[1]), s)
    with pytest.raises(ValueError, match=r"flow matrices.* got \(3, 4, 6\) and \(3, 6, 6\)"):
        fsp(s, (s[1], s[1]))
    with pytest.raises(ValueError, match=r"flow matrices.* got \(3, 4, 6\) and \(1, 4, 6\)"):
        fsp(s, tuple(x[:1] for x in s))
    with pytest.raises(ValueError, match="both layers must show the same samples, got 3 and 1"):
        fsp((s[0], s[1][:1]), s)


def test_stage_1_is_the_loop_on_flows_and_stage_2_the_task() -> None:
    student, loop, teacher = convnet(0), convnet(0), convnet(1).eval()
    first, second = limbeck.fsp(student, teacher, sections=[(ONE, ONE), (BOTH, BOTH)], flow=3.0, flow_share=0.4)
    assert (first.name, first.share, second.name, second.share) == ("flow", 0.4, "task", 0.6)

    def look(net: nn.Module, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        conv, one = net.one[0](x), net.one(x)
        return (conv, one), (one, net.two(one))

    optimizers, optimizer = optimizers_of(first), sgd(list(loop.parameters()))
    teacher.requires_grad_(False)
    for x, _ in batches(3, images):
        logs = limbeck.play(first.method, (x, None), optimizers)  # no labels
        optimizer.zero_grad()
        conv = loop.one[0](x)
        one = loop.one[2](loop.one[1](conv))
        flows = (conv, one), (one, loop.two(one))
        terms = [fsp(s, t) for s, t in zip(flows, look(teacher, x), strict=True)]
        (3 * terms[0] + 3 * terms[1]).backward()
        optimizer.step()
        assert logs["student/flow.two"] == pytest.approx(terms[1].item(), rel=1e-6)
    assert_same(state(student), state(loop))
    torch.testing.assert_close(student.fc.weight, convnet(0).fc.weight)  # no flow comes from there

    optimizers, optimizer = optimizers_of(second), sgd(list(loop.parameters()))
    for x, y in batches(3, images):
        logs = limbeck.play(second.method, (x, y), optimizers)
        optimizer.zero_grad()
        F.cross_entropy(loop(x), y).backward()
        optimizer.step()
        assert "student/flow.two" not in logs
    assert_same(state(student), state(loop))


def sections_of(*networks: nn.Module, example: Tensor = EXAMPLE) -> list[list[str]]:
    stage = next(iter(limbeck.fsp(*networks, example=example)))
    assert stage.method.objective.weights == [1.0] * len(stage.method.objective.terms)
    return [[source.path for source in term.sources] for term in stage.method.objective.terms]


def test_sections_are_found_by_an_example() -> None:
    assert sections_of(convnet(0), convnet(1)) == [["one.0:in", "one"] * 2, ["two.0:in", "two"] * 2]
    x = torch.randn(2, 3, 32, 32)
    blocks = [[f"layer{i}.0", f"layer{i}"] * 2 for i in (1, 2, 3)]
    assert sections_of(zoo.network("resnet14", 10), zoo.network("resnet20", 10), example=x) == blocks


@pytest.mark.parametrize("names", [("resnet8", "resnet14"), ("resnet14", "resnet8"), ("wrn-10-1", "wrn-16-1")])
def test_a_stage_of_one_block_begins_at_its_input(names: tuple[str, str]) -> None:
    x = torch.randn(2, 3, 32, 32)
    networks = [zoo.network(name, 10).eval() for name in names]
    ends = ["layer1", "layer2", "layer3" if "resnet8" in names else "relu"]
    sections = sections_of(*networks, example=x)
    assert sections == [[f"layer{i}.0:in", end] * 2 for i, end in enumerate(ends, 1)]
    for first, last, *_ in sections:
        for net in networks:
            shown = limbeck.classification.look(net, x, [first, last])
            flow = flow_matrix(shown[first], shown[last])
            # a matrix that is symmetric is that of a layer and itself
            assert flow.shape[1] != flow.shape[2] or not torch.allclose(flow, flow.mT, rtol=0.1)


def test_the_first_block_of_a_row_that_ends_in_an_activation() -> None:
    networks = zoo.network("wrn-16-1", 10), zoo.network("wrn-22-1", 10)
    assert sections_of(*networks, example=torch.randn(2, 3, 32, 32))[-1] == ["layer3.0", "relu"] * 2


def test_a_section_that_ends_where_it_begins_is_refused() -> None:
    net, longer, x = zoo.network("resnet8", 10), zoo.network("resnet14", 10), torch.randn(2, 3, 32, 32)
    block, whole, norm = ("layer1.0", "layer1"), ("layer1:in", "layer1"), ("bn1", "bn1")
    with pytest.raises(
        ValueError, match=r"the student's section \('layer1.0', 'layer1'\) begins with the very features"
    ):
        list(limbeck.fsp(net, longer, sections=[(block, block)], example=x))
    with pytest.raises(ValueError, match=r"the teacher's .* an earlier layer, such as the input, \('bn1:in', 'bn1'\)"):
        list(limbeck.fsp(net, longer, sections=[(whole, norm)], example=x))


def test_sections_of_a_network_without_containers() -> None:
    def flat() -> nn.Module:
        shallow = [nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()]
        deep = [nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()]  # a stage of one convolution
        return nn.Sequential(*shallow, *deep, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()

    assert sections_of(flat(), flat()) == [["0", "3", "0", "3"], ["4:in", "5", "4:in", "5"]]


def test_invalid_options() -> None:
    with pytest.raises(ValueError, match=r"flow_share must be in \(0, 1\), got 1"):
        list(limbeck.fsp(convnet(0), convnet(1), sections=[(ONE, ONE)], flow_share=1))
    with pytest.raises(ValueError, match="layers are paired by running an example"):
        list(limbeck.fsp(convnet(0), convnet(1)))
    with pytest.raises(ValueError, match=r"have \[3, 4\] channels and the teacher's .* \[3, 6\]: .* deeper, not wider"):
        list(limbeck.fsp(convnet(0), convnet(1, width=6), example=EXAMPLE))
    with pytest.raises(ValueError, match="has no layer 'ones'; the closest are"):
        list(limbeck.fsp(convnet(0), convnet(1), sections=[(ONE, ("one.0", "ones"))]))
    with pytest.raises(ValueError, match="the teacher's 'fc' has shape"):
        list(limbeck.fsp(convnet(0), convnet(1), sections=[(ONE, ("one.0", "fc"))], example=EXAMPLE))
    with pytest.raises(ValueError, match=r"a section is \(first layer, last layer\), got 'one'"):
        list(limbeck.fsp(convnet(0), convnet(1), sections=[("one", "two")]))
