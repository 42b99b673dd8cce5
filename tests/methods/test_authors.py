"""The authors' step of methods in which we once differed, written anew from their papers and code, beside ours."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from method_toys import CLASSES, convnet, images, normal
from scipy import stats
from steps import assert_five_steps, nesterov, started_as
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import zoo
from limbeck.methods.crd import Contrast

EXAMPLE = images()[0]


def taught(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(False)


def halved(seed: int, width: int) -> nn.Module:
    """A teacher whose maps are half as large as the student's."""
    net = convnet(seed, width)
    return taught(nn.Sequential(OrderedDict(shrink=nn.AvgPool2d(2), **dict(net.named_children()))))


def normed(channels: int, outputs: int, kernel: int = 1) -> nn.Module:
    convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


@pytest.mark.parametrize("width", [8, 4])
def test_review(width: int) -> None:
    def batch(seed: int) -> tuple[Tensor, Tensor]:
        x, y = images(seed)
        return x[..., :width], y

    student, teacher, theirs = convnet(0), halved(1, 6), convnet(0)
    pairs = [("one", "one"), ("two", "two")]
    method = limbeck.review(student, teacher, layers=pairs, context=0.7, warmup=0, example=batch(0)[0]).double()
    fusions = method.objective.terms[1].loss.fusions
    mine = [nn.ModuleList([normed(c, 8), normed(8, t, 3)]) for c, t in ((4, 6), (8, 12))]
    mine[0].append(nn.Conv2d(16, 2, 1))
    mine = [started_as(own, fusion) for own, fusion in zip(mine, fusions, strict=True)]

    def abf(fusion: nn.Module, x: Tensor, y: Tensor | None, out: torch.Size) -> tuple[Tensor, Tensor]:
        x = fusion[0](x)
        if y is not None:
            y = F.interpolate(y, x.shape[2:], mode="nearest")
            z = torch.cat([x, y], 1)
            z = torch.sigmoid(fusion[2](z))
            x = x * z[:, :1] + y * z[:, 1:]
        x = F.interpolate(x, out, mode="nearest")
        return fusion[1](x), x

    def hcl(s: Tensor, t: Tensor) -> Tensor:
        loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
        for level in (4, 2, 1):
            if level < s.shape[2]:
                weight /= 2
                total += weight
                loss = loss + weight * F.mse_loss(*(F.adaptive_avg_pool2d(f, level) for f in (s, t)))
        return loss / total

    def loss(x: Tensor, y: Tensor) -> Tensor:
        one = theirs.one(x)
        two = theirs.two(one)
        hint = teacher.one(teacher.shrink(x))
        deep = teacher.two(hint)
        told, rest = abf(mine[1], two, None, deep.shape[2:])
        shallow, _ = abf(mine[0], one, rest, hint.shape[2:])
        return F.cross_entropy(theirs.fc(two.mean((2, 3))), y) + 0.7 * (hcl(shallow, hint) + hcl(told, deep))

    assert_five_steps(method, loss, [(student, theirs), *zip(fusions, mine, strict=True)], batch)


def test_ab() -> None:
    student, teacher, theirs = convnet(0), taught(convnet(1, width=6)), convnet(0)
    first, _ = limbeck.ab(student, teacher, example=EXAMPLE)
    first.method.double()
    connectors = [term.adapters[0] for term in first.method.objective.terms]
    mine = [started_as(normed(c, t), own) for (c, t), own in zip(((4, 6), (8, 12)), connectors, strict=True)]

    def boundary(s: Tensor, t: Tensor) -> Tensor:
        below = (s + 1) ** 2 * ((s > -1) & (t <= 0))
        above = (s - 1) ** 2 * ((s <= 1) & (t > 0))
        return (below + above).sum()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        s_1 = theirs.one[1](theirs.one[0](x))
        s_2 = theirs.two[1](theirs.two[0](s_1.relu()))
        t_1 = teacher.one[1](teacher.one[0](x))
        t_2 = teacher.two[1](teacher.two[0](t_1.relu()))
        shallow, deep = boundary(mine[0](s_1), t_1) / len(x) / 2, boundary(mine[1](s_2), t_2) / len(x)
        return (shallow + deep) / 1000 * 3

    bodies = [(student.one, theirs.one), (student.two, theirs.two)]
    assert_five_steps(first, loss, [*bodies, *zip(connectors, mine, strict=True)], images)


def test_connectors_of_ab_start_as_the_authors() -> None:
    torch.manual_seed(0)
    student, teacher = convnet(0, width=64).float(), convnet(1, width=40).float()
    first, _ = limbeck.ab(student, teacher, example=EXAMPLE.float())
    for term, outputs in zip(first.method.objective.terms, (40, 80), strict=True):
        convolution, norm = term.adapters[0]
        assert convolution.bias is None
        assert convolution.weight.mean().item() == pytest.approx(0, abs=0.02)
        assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / outputs), rel=0.05)  # N(0, 2/C_t)
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_byot() -> None:
    """The paper's equation with the authors' adapters; T² and the mean of the squares are ours."""
    student, theirs = (zoo.network("resnet8", CLASSES).double() for _ in range(2))
    theirs.load_state_dict(student.state_dict())
    method = limbeck.byot(student, alpha=0.4, feature=0.5, example=EXAMPLE).double()
    exits, adapters = method.student.exits, [a for term in method.objective.terms for a in term.adapters]
    mine = copy.deepcopy(exits)
    maps = [started_as(nn.Linear(64, 64), own) for own in adapters if isinstance(own, nn.Linear)]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        one = theirs.layer1(theirs.relu(theirs.bn1(theirs.conv1(x))))
        two = theirs.layer2(one)
        deep = theirs.layer3(two).mean((2, 3))
        features = [
            deep,
            mine[1].bottleneck(two),
            mine[0].bottleneck(one),
        ]  # from the deepest up, as the authors have it
        outputs = [theirs.fc(deep), mine[1].fc(features[1]), mine[0].fc(features[2])]
        total = F.cross_entropy(outputs[0], y)
        for index in (1, 2):
            soft = -(F.softmax(outputs[0].detach() / 3, 1) * F.log_softmax(outputs[index] / 3, 1)).sum(1).mean()
            total = total + 0.6 * F.cross_entropy(outputs[index], y) + 0.4 * 9 * soft
            squares = (maps[2 - index](features[index]) - deep.detach()).square()
            total = total + 0.5 * squares.sum() / (len(x) * 64)
        return total

    learned = [term.adapters[0] for term in method.objective.terms if "feature" in term.name]
    assert_five_steps(method, loss, [(student, theirs), (exits, mine), *zip(learned, maps, strict=True)], images)


def test_gradient() -> None:
    student, teacher, theirs = convnet(0), taught(convnet(1, width=6)), convnet(0)
    method = limbeck.gradient(
        student, teacher, attention=0.3, feature=9.0, symmetry=0.2, layers=[("one", "one")], example=EXAMPLE
    )

    def slopes(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.clone().requires_grad_()
        one = net.one(x)
        z = net.fc(net.two(one).mean((2, 3)))
        alone = sum(-z.log_softmax(1)[n, label] for n, label in enumerate(y.tolist()))  # a sum: each sample its own
        return z, *torch.autograd.grad(alone, [x, one], create_graph=True)

    def where(slope: Tensor) -> Tensor:
        squares = (slope**2).mean(1).flatten(1)
        return squares / (squares**2).sum(1, keepdim=True).sqrt()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z, j_s, f_s = slopes(theirs, x, y)
        _, j_t, f_t = (value.detach() for value in slopes(teacher, x, y))
        _, j_flipped, _ = slopes(theirs, x.flip(-1), y)
        attention = ((j_s - j_t) ** 2).sum((1, 2, 3)).mean()
        feature = ((where(f_s) - where(f_t)) ** 2).mean()
        symmetry = ((j_s - j_flipped.flip(-1)) ** 2).sum((1, 2, 3)).mean()
        return F.cross_entropy(z, y) + 0.3 * attention + 9 * feature + 0.2 * symmetry

    assert_five_steps(method, loss, [(student, theirs)], images)


def test_fsp() -> None:
    """With stages of one block, as in resnet8."""
    torch.manual_seed(0)
    student, theirs = (zoo.network("resnet8", CLASSES).double() for _ in range(2))
    teacher = taught(zoo.network("resnet14", CLASSES).double())
    theirs.load_state_dict(student.state_dict())
    first, _ = limbeck.fsp(student, teacher, flow=0.1, example=EXAMPLE)

    def matrices(net: nn.Module, x: Tensor) -> list[Tensor]:
        ends = [net.relu(net.bn1(net.conv1(x)))]
        for layer in (net.layer1, net.layer2, net.layer3):
            ends.append(layer(ends[-1]))
        flows = []
        for begin, end in pairwise(ends):
            side = begin.shape[2] // end.shape[2]
            begin = F.max_pool2d(begin, side) if side > 1 else begin
            flows.append(torch.einsum("nahw,nbhw->nab", begin, end) / end[0, 0].numel())
        return flows

    def loss(x: Tensor, y: Tensor) -> Tensor:
        errors = [((t - s) ** 2).sum() / len(x) for s, t in zip(matrices(theirs, x), matrices(teacher, x), strict=True)]
        return 0.1 * sum(errors)

    body = ["conv1", "bn1", "layer1", "layer2", "layer3"]
    pairs = [(student.get_submodule(part), theirs.get_submodule(part)) for part in body]
    assert_five_steps(first, loss, pairs, images)


class Tokens(nn.Module):
    """A transformer's embedding, with a class token and positions of its own, and two blocks."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.fc = nn.Linear(6, width), nn.Linear(width, CLASSES)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 4, width))
        self.one, self.two = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2))

    def start(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(self.start(x)))[:, 0])


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_fitnets(reduction: str) -> None:
    def tokens(seed: int) -> tuple[Tensor, Tensor]:
        return normal(6, 3, 6, seed=seed), torch.arange(6) % CLASSES

    student, teacher, theirs = Tokens(0, 4).double(), taught(Tokens(1, 5).double()), Tokens(0, 4).double()
    places = {"guided": "one", "hint": "one"}
    first = next(limbeck.fitnets(student, teacher, **places, reduction=reduction, example=tokens(0)[0]))
    first.method.double()
    regressor = first.method.objective.terms[0].adapters[0]
    mine = started_as(nn.Linear(4, 5), regressor)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        error = (mine(theirs.one(theirs.start(x))) - teacher.one(teacher.start(x))) ** 2
        return error.mean() if reduction == "mean" else error.sum() / 2 / len(x)

    def lower(net: Tokens) -> nn.Module:
        return nn.ModuleList([net.embed, net.one, nn.ParameterList([net.token, net.position])])

    assert_five_steps(first, loss, [(lower(student), lower(theirs)), (regressor, mine)], tokens)


def test_adversarial() -> None:
    """Each player has an optimizer; the critic moves first."""
    student, teacher, theirs = convnet(0), taught(convnet(1, width=6)), convnet(0)
    method = limbeck.adversarial(student, teacher, absolute=0.7, adversarial=0.3, example=EXAMPLE).double()
    mine = started_as(critic_of(CLASSES), method.critic)
    optimizers, of_critic, of_student = (
        limbeck.optimizers(method, nesterov),
        *map(nesterov, (mine.parameters(), theirs.parameters())),
    )
    for step in range(5):
        x, y = images(step)
        limbeck.play(method, (x, y), optimizers)
        z_s, z_t = theirs(x), teacher(x)
        of_critic.zero_grad()
        (d_s, k_s), (d_t, k_t) = judged(mine, z_s.detach()), judged(mine, z_t)
        real, fake = -torch.log(torch.sigmoid(d_t)).mean(), -torch.log(1 - torch.sigmoid(d_s)).mean()
        (real + fake + F.cross_entropy(k_s, y) + F.cross_entropy(k_t, y)).backward()
        of_critic.step()
        of_student.zero_grad()
        fooled, named = judged(mine, z_s)
        game = -torch.log(torch.sigmoid(fooled)).mean() + F.cross_entropy(named, y)
        (F.cross_entropy(z_s, y) + 0.7 * (z_s - z_t).abs().mean() + 0.3 * game).backward()
        of_student.step()
    for ours, other in ((student, theirs), (method.critic, mine)):
        for p, q in zip(ours.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def critic_of(classes: int) -> nn.Module:
    return nn.ModuleList([nn.Linear(classes, 64), nn.Linear(64, 64), nn.Linear(64, 1), nn.Linear(64, classes)])


def judged(critic: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    for layer in critic[:2]:
        z = F.leaky_relu(layer(z), 0.2)
    return critic[2](z)[:, 0], critic[3](z)


def test_crd(monkeypatch: pytest.MonkeyPatch) -> None:
    n, k, tau, keep = 20, 7, 0.2, 0.3
    student, teacher, theirs = convnet(0), taught(convnet(1, width=6)), convnet(0)
    options = {"memory": n, "negatives": k, "temperature": tau, "keep": keep, "dimensions": 3}
    method = limbeck.crd(student, teacher, contrast=0.6, **options, example=EXAMPLE).double()
    contrast = method.objective.terms[1].loss
    embed = [step for step in method.objective.terms[1].adapters if isinstance(step, nn.Linear)]
    mine = [started_as(nn.Linear(width, 3), own) for width, own in zip((8, 12), embed, strict=True)]
    banks, z = [contrast.bank_s.clone(), contrast.bank_t.clone()], {}
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randperm(n, generator=draw)[:6] for _ in range(5)]
    others = {tuple(ids.tolist()): torch.randint(n, (6, k), generator=draw) for ids in rows}
    monkeypatch.setattr(Contrast, "_others", lambda self, ids: others[tuple(ids.tolist())])
    step = iter(rows)

    def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        batch.ids = next(step)
        return *images(seed), batch.ids

    def nce(own: Tensor, bank: Tensor, who: str) -> Tensor:
        chosen = torch.cat([batch.ids[:, None], others[tuple(batch.ids.tolist())]], 1)
        scores = torch.exp(torch.einsum("nkd,nd->nk", bank[chosen], own) / tau)
        z.setdefault(who, scores.detach().mean() * n)
        p, noise = scores / z[who], k / n
        return -(torch.log(p[:, 0] / (p[:, 0] + noise)).sum() + torch.log(noise / (p[:, 1:] + noise)).sum()) / len(own)

    def embedded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = theirs.two(theirs.one(x)).mean((2, 3))
        v_s, v_t = mine[0](pooled), mine[1](teacher.two(teacher.one(x)).mean((2, 3)))
        return pooled, v_s / v_s.norm(dim=1, keepdim=True), v_t / v_t.norm(dim=1, keepdim=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        pooled, v_s, v_t = embedded(x)
        loss.seen = v_s.detach(), v_t.detach()  # the banks take what was compared
        return F.cross_entropy(theirs.fc(pooled), y) + 0.6 * (nce(v_s, banks[1], "s") + nce(v_t, banks[0], "t"))

    def remember(x: Tensor, y: Tensor) -> None:
        for bank, new in zip(banks, loss.seen, strict=True):
            moved = keep * bank[batch.ids] + (1 - keep) * new
            bank[batch.ids] = moved / moved.norm(dim=1, keepdim=True)

    assert_five_steps(method, loss, [(student, theirs), *zip(embed, mine, strict=True)], batch, remember)
    for bank, ours in zip(banks, (contrast.bank_s, contrast.bank_t), strict=True):
        torch.testing.assert_close(ours, bank, rtol=1e-11, atol=1e-12)


def test_ofd() -> None:
    student, teacher, theirs = convnet(0), convnet(1, width=6), convnet(0)
    for norm in (teacher.one[1], teacher.two[1]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    taught(teacher)
    method = limbeck.ofd(student, teacher, distance=0.02, example=EXAMPLE).double()
    connectors = [term.adapters[0] for term in method.objective.terms[1:]]
    mine = [started_as(normed(c, t), own) for (c, t), own in zip(((4, 6), (8, 12)), connectors, strict=True)]

    def margin(norm: nn.Module) -> Tensor:
        margins = []
        for spread, mean in zip(norm.weight.abs().tolist(), norm.bias.tolist(), strict=True):
            below = stats.norm.cdf(-mean / spread)
            bent = mean - spread * stats.norm.pdf(mean / spread) / below if below > 0.001 else -3 * spread
            margins.append(bent)
        return torch.tensor(margins, dtype=torch.float64).view(-1, 1, 1)

    def partial(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
        t = torch.max(t, m)
        return ((s - t) ** 2 * ((s > t) | (t > 0))).sum()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        s_1, t_1 = theirs.one[:2](x), teacher.one[:2](x)
        s_2, t_2 = theirs.two[:2](s_1.relu()), teacher.two[:2](t_1.relu())
        shallow = partial(mine[0](s_1), t_1, margin(teacher.one[1]))
        deep = partial(mine[1](s_2), t_2, margin(teacher.two[1]))
        hard = F.cross_entropy(theirs.fc(s_2.relu().mean((2, 3))), y)
        return hard + 0.02 * (shallow / 2 + deep) / len(x)

    assert_five_steps(method, loss, [(student, theirs), *zip(connectors, mine, strict=True)], images)


def test_ft() -> None:
    """On maps of two sizes, which RepDistiller pools to the smaller."""
    student, teacher, theirs = convnet(0), halved(1, 6), convnet(0)
    first, second = limbeck.ft(student, teacher, layer=("two", "two"), factor=30.0, example=EXAMPLE)
    paraphraser = copy.deepcopy(first.method.double().objective.terms[0].adapters[0])
    second.method.double()
    own = second.method.objective.terms[1].adapters[0]
    mine = started_as(
        nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)]),
        own,
    )

    def direction(factor: Tensor) -> Tensor:
        return factor.flatten(1) / factor.flatten(1).norm(dim=1, keepdim=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        two = theirs.two(theirs.one(x))
        factor = two
        for convolution in mine:
            factor = F.leaky_relu(convolution(factor), 0.1)
        target = paraphraser.encoder(teacher.two(teacher.one(teacher.shrink(x)))).detach()
        distance = (direction(F.avg_pool2d(factor, 2)) - direction(target)).abs().mean()
        return F.cross_entropy(theirs.fc(two.mean((2, 3))), y) + 30 * distance

    assert_five_steps(second, loss, [(student, theirs), (own, mine)], images)
