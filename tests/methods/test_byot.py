from __future__ import annotations

import copy
import math

import pytest
import torch
from method_toys import CLASSES, convnet, images, mlp, normal, state, vectors
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.engine.run import Run
from limbeck.nets.exits import AllExits, EarlyExit, Exit


def terms(method: limbeck.Method, batch):
    return next(iter(method.step(batch, 0.5))).terms


def test_the_equation() -> None:
    student, (x, y) = convnet(0), images(0)
    method = limbeck.byot(student, alpha=0.4, feature=0.2, temperature=2.0, example=x).double().train()
    twin = copy.deepcopy(method)
    found = terms(method, (x, y))
    network = twin.student
    assert isinstance(network, EarlyExit)
    h = network.sections[0](x)
    z_1 = network.exits[0](h)
    deep = network.sections[1].flat(network.sections[1].pool(network.sections[1].two(h)))
    z = network.sections[1].fc(deep)
    f_1 = copy.deepcopy(method.student).exits[0].bottleneck(h)
    (adapter,) = [module for module in twin.objective.modules() if isinstance(module, nn.Linear)]
    p = (z / 2).softmax(1)
    expected = {
        "hard": (F.cross_entropy(z, y), 1.0),
        "hard.1": (F.cross_entropy(z_1, y), 0.6),
        "soft.1": (4 * (p * (p.log() - (z_1 / 2).log_softmax(1))).sum(1).mean(), 0.4),
        "feature.1": ((adapter(f_1) - deep).square().mean(), 0.2),
    }
    assert found.keys() == expected.keys()
    for name, (value, weight) in expected.items():
        torch.testing.assert_close(found[name].value, value, rtol=1e-5, atol=1e-6)
        assert found[name].weight == pytest.approx(weight)


def test_the_deepest_is_a_constant_to_the_exits() -> None:
    method = limbeck.byot(convnet(0), example=images(0)[0]).double()
    found = terms(method, images(1))
    (found["soft.1"].value + found["feature.1"].value).backward()
    assert all(p.grad is None for p in method.student.sections[1].parameters())
    assert all(p.grad is not None for p in method.student.exits[0].parameters())


def test_deep_supervision_is_the_control() -> None:
    method = limbeck.byot(convnet(0), alpha=0.0, feature=0.0, example=images(0)[0]).double()
    assert {name: loss.weight for name, loss in terms(method, images(1)).items()} == {"hard": 1.0, "hard.1": 1.0}


def test_what_is_shipped() -> None:
    student, (x, _) = convnet(0), images(0)
    method = limbeck.byot(student, example=x).double().eval()
    networks = method.networks()
    assert list(networks) == ["student", "exit-1", "ensemble", "early-exit"]
    assert networks["student"] is student
    student.eval()
    early = networks["early-exit"]
    assert isinstance(early, EarlyExit)
    assert torch.equal(early(x), student(x))  # a threshold of 1: the last exit
    early.set_thresholds([0.0])
    assert torch.equal(early(x), networks["exit-1"](x))  # of 0: the first


def test_each_sample_leaves_where_it_is_sure() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(32, 6)
    inner = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
    sections: list[nn.Module] = [*inner, nn.Linear(6, 3)]
    exits = [nn.Linear(6, 3), nn.Linear(6, 3)]
    for leave in exits:
        nn.init.normal_(leave.weight)
    net = EarlyExit(sections, exits, [0.8, 0.7]).eval()
    said, taken = net.answer(x)
    assert set(taken.tolist()) == {0, 1, 2}
    for row, sample in enumerate(x):
        h, number = sections[0](sample), 0
        logits = exits[0](h)
        if logits.softmax(-1).max() <= 0.8:
            h, number = sections[1](h), 1
            logits = exits[1](h)
            if logits.softmax(-1).max() <= 0.7:
                logits, number = sections[2](h), 2
        torch.testing.assert_close(said[row], logits)
        assert taken[row] == number


def test_without_branches_the_first_sure_exit_answers_and_not_the_deepest() -> None:
    sections = [nn.Identity(), nn.Identity(), nn.Linear(2, 2, bias=False)]
    exits = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    for scale, layer in zip((1.0, 2.0, 3.0), (*exits, sections[2]), strict=True):
        nn.init.eye_(layer.weight).data.mul_(scale)  # exit i says i times its input
    net = EarlyExit(sections, exits, [0.9, 0.8]).eval()
    # surer than 0.9 means a difference of more than 2.197 (first exit), than 0.8 one of 1.386 (second, which says twice)
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 2.5]])
    logits, every = AllExits(net)(x)
    assert logits[:, 0].tolist() == [3.0, 2.0, 1.5, 0.0]  # of the first, the second and the last exit
    assert logits[3, 1] == 2.5
    assert torch.equal(logits, net(x))
    assert torch.equal(every, torch.stack([x, 2 * x, 3 * x], 1))


def test_deeper_sections_see_only_who_is_left() -> None:
    seen = []
    last = nn.Linear(4, 3)
    last.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    torch.manual_seed(1)
    net = EarlyExit([nn.Identity(), last], [nn.Linear(4, 3)], [0.5]).eval()
    _, taken = net.answer(torch.randn(20, 4))
    assert seen == [int((taken == 1).sum())]
    assert 0 < seen[0] < 20
    net.set_thresholds([0.0])
    net(torch.randn(5, 4))
    assert len(seen) == 1  # everybody left before it


def test_saturated_probabilities_do_not_pass_a_threshold_of_one() -> None:
    sure = nn.Linear(1, 2, bias=False)
    nn.init.constant_(sure.weight[:1].data, 1e4)
    net = EarlyExit([nn.Identity(), nn.Linear(1, 2)], [sure]).eval()
    assert net.answer(torch.ones(3, 1))[1].tolist() == [1, 1, 1]


def test_thresholds_are_kept_with_the_weights() -> None:
    x = images(0)[0]
    networks = [limbeck.byot(convnet(seed), example=x).double().eval().networks()["early-exit"] for seed in (0, 1)]
    networks[0].set_thresholds([0.3])
    networks[1].load_state_dict(load(save({k: v.clone() for k, v in networks[0].state_dict().items()})))
    assert torch.equal(networks[0](x), networks[1](x))


@pytest.mark.parametrize("file", ["early-exit.safetensors", "early-exit.pt"])
def test_the_network_with_exits_is_made_again_by_its_name(file, tmp_path) -> None:
    name, shape = "mlp-8-6-7", (1, 4, 4)
    early = limbeck.byot(limbeck.zoo.network(name, CLASSES, shape), example=torch.zeros(1, *shape)).student.eval()
    early.set_thresholds([0.3, 0.28])
    x = torch.randn(40, *shape)
    if file.endswith("safetensors"):  # as a run writes it
        Run(tmp_path).write_networks({"early-exit": early})
        again = limbeck.zoo.network(f"{name}@{tmp_path / file}", CLASSES, shape)
    else:  # as any module is saved
        torch.save(early.state_dict(), tmp_path / file)
        again = limbeck.with_exits(limbeck.zoo.network(name, CLASSES, shape), x, early.after)
        again.load_state_dict(torch.load(tmp_path / file))
        torch.save(early, tmp_path / "whole.pt")
        assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(x), early(x))
    assert isinstance(again, EarlyExit)
    assert again.after == ("layers.fc2:in", "layers.fc3:in")
    assert torch.equal(again.eval()(x), early(x))
    logits, every = AllExits(again)(x)  # the same without a branch
    torch.testing.assert_close(logits, early(x))
    torch.testing.assert_close(every, torch.stack(early.all_exits(x), 1))


def test_an_exit_is_a_network_by_its_name(tmp_path) -> None:
    name, shape = "mlp-8-6-7", (1, 4, 4)
    method = limbeck.byot(limbeck.zoo.network(name, CLASSES, shape), example=torch.zeros(1, *shape)).eval()
    Run(tmp_path).write_networks(networks := method.networks())
    x = torch.randn(5, *shape)
    for number, said in enumerate(method.student.all_exits(x)[:-1], 1):
        again = limbeck.zoo.network(f"{name}@{tmp_path / f'exit-{number}.safetensors'}", CLASSES, shape)
        assert torch.equal(again.eval()(x), said)
        assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in networks["early-exit"].parameters())
    together = limbeck.zoo.network(f"{name}@{tmp_path / 'ensemble.safetensors'}", CLASSES, shape).eval()(x)
    torch.testing.assert_close(together, sum(method.student.all_exits(x)) / 3)
    assert torch.equal(together, networks["ensemble"](x))


def test_exits_of_another_network_do_not_fit(tmp_path) -> None:
    early = limbeck.with_exits(limbeck.zoo.network("mlp-8-6-7", CLASSES, (4,)), torch.zeros(1, 4))
    Run(tmp_path).write_networks({"early": early})
    with pytest.raises(ValueError, match=r"early.safetensors is of a network made of another .* no layer 'layers.fc3'"):
        limbeck.zoo.network(f"mlp-8@{tmp_path / 'early.safetensors'}", CLASSES, (4,))


def test_an_exit_may_begin_in_place() -> None:
    torch.manual_seed(0)
    exits = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, CLASSES))]
    net = EarlyExit([nn.Linear(6, 4), nn.Linear(4, CLASSES)], exits, [1.0]).eval()
    x = torch.randn(8, 6)
    torch.testing.assert_close(net(x), net.all_exits(x)[-1])


def test_the_network_up_to_an_exit_that_is_none() -> None:
    net = EarlyExit([nn.Identity(), nn.Linear(2, CLASSES)], [nn.Linear(2, CLASSES)])
    for wrong in (0, -1, 2):
        with pytest.raises(ValueError, match=f"exit must lie between 1 and 1, got {wrong}"):
            net.up_to(wrong)


def test_what_follows_an_exit_may_begin_in_place() -> None:
    student = nn.Sequential(convnet(0)[0][0], nn.ReLU(inplace=True), *convnet(0)[1:])
    method = limbeck.byot(student, exits=["0"], example=images(0)[0]).double()
    twin = copy.deepcopy(student).train()
    found = terms(method, images(1))
    sum(loss.weighted for loss in found.values()).backward()
    assert torch.equal(found["hard"].value, F.cross_entropy(twin(images(1)[0]), images(1)[1]))
    early = method.student.sections[0](images(1)[0])
    assert early.min() < 0  # the exit sees what comes before the ReLU
    torch.testing.assert_close(found["hard.1"].value, F.cross_entropy(method.student.exits[0](early), images(1)[1]))


def test_exits_must_lie_on_the_only_path() -> None:
    student = limbeck.zoo.network("resnet8", CLASSES)
    with pytest.raises(ValueError, match=r"cannot be cut after 'layer1.0.conv1': .* it does not lie on the only path"):
        limbeck.byot(student, exits=["layer1.0.conv1", "layer2"], example=torch.zeros(1, 3, 32, 32))


def test_training_changes_the_student_itself() -> None:
    student = mlp(0)
    method = limbeck.byot(student, exits=["2"], example=vectors(0)[0]).double()
    before = state(student)
    limbeck.play(method, vectors(1), limbeck.optimizers(method, lambda p: torch.optim.SGD(p, 0.1)))
    assert all(not torch.equal(before[name], value) for name, value in student.named_parameters())


@pytest.mark.parametrize(
    ("shape", "deepest"),
    [((2, 4, 16, 16), (2, 8, 4, 4)), ((2, 4, 5, 5), (2, 8, 2, 2)), ((2, 7, 4), (2, 7, 4)), ((2, 4), (2, 9))],
)
def test_exits_fit_what_they_are_given(shape, deepest) -> None:
    leave = Exit(shape, deepest, width=8, classes=3).double().eval()
    x = normal(*shape)
    parts = list(leave.bottleneck)
    h = x
    if len(shape) == 4:  # halved until it is as small as the deepest, then once without stride
        strides = [2] * round(math.log2(math.ceil(shape[2] / deepest[2]))) + [1]
        for stride, (deep, point, norm, _) in zip(strides, zip(*[iter(parts[:-1])] * 4, strict=True), strict=True):
            by_channel = F.conv2d(h, deep.weight, stride=stride, padding=1, groups=h.shape[1])
            mixed = torch.einsum("oc,nchw->nohw", point.weight.flatten(1), by_channel)
            h = (mixed / math.sqrt(1 + norm.eps)).relu()  # a new batch norm in eval mode
        assert h.shape[2:] == deepest[2:]
        h = h.mean((2, 3))
    else:
        linear = parts[1]
        mean = x.mean(1) if len(shape) == 3 else x
        h = (mean @ linear.weight.T + linear.bias).relu()
    torch.testing.assert_close(leave.bottleneck(x), h)
    torch.testing.assert_close(leave(x), h @ leave.fc.weight.T + leave.fc.bias)
    assert leave(x).shape == (2, 3)


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (mlp(0), {"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1\.5"),
        (mlp(0), {"temperature": -1.0}, r"temperature must be in \(0, 1000\], got -1\.0"),
        (mlp(0), {"temperature": math.nan}, r"temperature must be in \(0, 1000\], got nan"),
        (mlp(0), {"feature": -1.0}, r"feature must be at least 0, got -1\.0"),
        (mlp(0), {"exits": ["3"]}, r"'3' does not come before the classifier, '3'"),
        (mlp(0), {"exits": ["nope"]}, "no layer 'nope'"),
        (mlp(0), {"exits": ["2", "0"]}, "in the order of the forward pass"),
        (convnet(0)[:4], {}, "ends in no nn.Linear"),
        (mlp(0), {}, r"Sequential has 1 stages .* name the layers, exits=\['layer1'\]"),
        (
            nn.Sequential(nn.Linear(6, CLASSES)).double(),
            {"exits": ["0"]},
            "Sequential has 0 stages .* take a deeper network",
        ),
    ],
)
def test_bad_input(student: nn.Module, options, message: str) -> None:
    example = images(0)[0] if isinstance(student[0], nn.Sequential) else vectors(0)[0]
    with pytest.raises(ValueError, match=message):
        limbeck.byot(student, example=example, **options)


def test_a_network_that_has_exits() -> None:
    net = EarlyExit([nn.Identity(), nn.Linear(6, CLASSES)], [nn.Linear(6, CLASSES)])
    with pytest.raises(TypeError, match="has exits already: give the plain one"):
        limbeck.byot(net, example=torch.randn(2, 6))


def test_thresholds_that_are_none() -> None:
    net = EarlyExit([nn.Identity(), nn.Linear(2, CLASSES)], [nn.Linear(2, CLASSES)])
    for wrong in ([0.5, 0.5], [1.5], [-0.1], 0.5):
        with pytest.raises(ValueError, match=r"expected 1 thresholds in \[0, 1\]"):
            net.set_thresholds(wrong)
    with pytest.raises(ValueError, match="an exit for each section but the last"):
        EarlyExit([nn.Identity()], [nn.Linear(2, CLASSES)])
