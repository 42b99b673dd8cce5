"""Knowledge projection.

Zhang, Ning, He, "Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks", arXiv 1710.09505.
No official code; we know the abstract and what surveys tell: the weights, the projection's layers and the pruning are ours.

The projection acts on the teacher's features, where a hint's regressor acts on the student's. The student's upper half
learns from what comes out of it.

What is ours. Routes share one student, train in the same steps, and their losses are averaged. The paper judges a route on
held-out data; a method sees none, so each batch is judged before the update that learns from it, with the statistics of
that batch. Injected passes leave the student's buffers alone: its batch norms know its own features only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.distributed import gather
from limbeck.core.frozen import bare, frozen
from limbeck.core.layers import Pair, paired, shape_at
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.objective import Loss
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Batch, Task
from limbeck.methods.fitnets import hint_distance
from limbeck.methods.plain import plain
from limbeck.nets.injection import injected, projection
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zhang2017knowledge",
    title="Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks",
    authors="Zhang, Zhi and Ning, Guanghan and He, Zhihai",
    venue="arXiv",
    year=2017,
    arxiv="1710.09505",
    matches="projected features, which feed the student",
    teacher="frozen network",
)

KEEP = 0.99  # of a route's loss from batch to batch: it is judged by about the last hundred


class Projection(Method):
    """A student whose layers learn from, and are replaced by, projected features of a teacher.

    The worst half of the routes is pruned when the training has gone through each of log2 R + 1 equal rounds but the last,
    until one is left. The state holds which are left and how they did.

    Args:
        distill: The student, and what it learns by itself.
        teacher: The network whose features are projected. What it says is not used, and so not measured: its classes may be
            others.
        routes: Pairs of the student's and the teacher's layer.
        projections: From the teacher's layer to the student's, for each route.
        projection: λ, the weight of the student's distance to the projected features.
        injected: Weight of the task's loss where they take the place of the student's own.
    """

    joint: Tensor

    def __init__(
        self,
        distill: Distill,
        teacher: nn.Module,
        routes: Sequence[Pair],
        projections: Sequence[nn.Module],
        projection: float = 1.0,
        injected: float = 1.0,
    ) -> None:
        super().__init__()
        self.distill = distill
        # in a list, where `fit` does not look for teachers to measure: nobody asks what this one says
        self.projected = nn.ModuleList([frozen(teacher)])
        self.routes, self.projections = list(routes), nn.ModuleList(projections)
        self.projection, self.injected, self.task = projection, injected, distill.task
        self.names = _names(self.routes)
        self.left = list(range(len(self.routes)))
        self.register_buffer("joint", torch.zeros(len(self.routes)))

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student with the projections."""
        return {"student": [self.distill.student, self.distill.objective, self.projections]}

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Prune if it is time, then let the student learn by itself and along each route that is left."""
        self._prune(progress)
        inputs, target = self.task.inputs(batch), self.task.target(batch)
        routes = [(index, *self.routes[index]) for index in self.left]
        of_student = self.task.look(self.distill.student, inputs, {s for _, s, _ in routes})
        of_teacher = self.task.look(self.projected[0], inputs, {t for _, _, t in routes})

        losses = self.distill.objective({"student": of_student, "target": target, "progress": progress})
        joint: dict[int, Tensor] = {}
        for index, s, t in routes:
            own = self._along(index, of_student[s], of_teacher[t], batch, target)
            joint[index] = torch.stack([loss.weighted.detach() for loss in own.values()]).sum()
            for name, loss in own.items():
                losses[f"{name}.{self.names[index]}"] = Loss(loss.value, loss.weight / len(routes))
        self._judge(joint)
        yield Turn("student", losses)

    def get_extra_state(self) -> Tensor:
        """Return the routes that are left."""
        return torch.tensor(self.left)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with these."""
        self.left = state.tolist()

    def _along(self, index: int, shown: Tensor, taught: Tensor, batch: Batch, target: Tensor) -> dict[str, Loss]:
        """The joint loss of a route: what the student's upper half makes of the projection, and how near the lower is."""
        projected = self.projections[index](taught)
        if not self.injected:
            return {"projection": Loss(hint_distance(shown, projected), self.projection)}
        outputs = self._fed(batch, self.routes[index][0], projected)
        losses = {"injected": Loss(self.task.loss(outputs, target), self.injected)}
        if self.projection:
            # the labels alone shape the projection: the distance would shrink it to nothing
            losses["projection"] = Loss(hint_distance(shown, projected.detach()), self.projection)
        return losses

    def _fed(self, batch: Batch, path: str, features: Tensor) -> Any:
        """What the student says if ``features`` stand in for a layer's; its buffers stay as they are."""
        student = self.distill.student
        buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}

        def run(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(student, buffers, args, kwargs)

        # a compiled student was compiled without this hook, and would not look for it
        with torch.compiler.set_stance("force_eager"), injected(bare(student), path, features):
            return self.task.feed(run, self.task.inputs(batch))

    @torch.no_grad()
    def _judge(self, joint: dict[int, Tensor]) -> None:
        if self.training:
            latest = [joint.get(index, self.joint[index]) for index in range(len(self.routes))]
            over_all = gather(torch.stack(latest)[None].to(self.joint.dtype)).mean(0)
            self.joint = KEEP * self.joint + (1 - KEEP) * over_all

    def _prune(self, progress: float) -> None:
        rounds = _rounds(len(self.routes))
        keep = math.ceil(len(self.routes) / 2 ** min(int(progress * rounds), rounds - 1))
        if len(self.left) > keep:
            joint = self.joint.tolist()
            self.left = sorted(sorted(self.left, key=lambda index: joint[index])[:keep])


@ranged
def kpn(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] | None = None,
    projection: float = 1.0,
    injected: float = 1.0,
    hard: float = 1.0,
    projection_share: float = 0.3,
    example: Tensor,
    task: Task = classification,
) -> Iterator[Stage]:
    """Feed the student's upper half with projected features of the teacher, which its lower half learns to give.

    Stage 1, with u = P_j(t_j) for each of R routes:
    hard · CE(y, z_s) + 1/R Σ_j (injected · CE(y, upper_j(u)) + projection · mean (s_j − u)²), u constant in the last term.
    The worst half of the routes is pruned in equal steps until one is left. Stage 2: CE(y, z_s), without the teacher.

    The teacher's classes may be others: it is for few labels and a teacher of more. Each route costs a pass of the student.
    A loop of your own has to pass ``progress`` to `limbeck.play`, or no route is pruned.

    Args:
        student: The network to train.
        teacher: The network to learn from; only its features count.
        layers: The routes: pairs of the student's layer to feed and the teacher's to project; by default the ends of the
            stages, paired by `limbeck.pairs`. The teacher's map may have another size.
        projection: λ, a mean over elements, at least 0; 1 is ours, the paper's is not published.
        injected: Weight of the labels along the routes, at least 0; 1 is ours. 0 injects nothing: the projection then
            follows the student as the student follows it, and both may shrink.
        hard: Weight of the labels for the student by itself, at least 0; 1 is ours, and with 0 its halves first meet in
            stage 2.
        projection_share: Stage 1's part of the epochs, in (0, 1); 0.3 is ours.
        example: A batch of inputs, (N, ...), from which the projections get their shapes.
        task: How batches are fed and measured.
    """
    refuse_all_zero(projection=projection, injected=injected)
    routes = paired(student, teacher, layers, example, task)
    if len(set(routes)) < len(routes):
        raise ValueError(f"layers names a route twice: {routes}")
    projections = [_projection(student, teacher, s, t, example, task) for s, t in routes]
    alone = Distill(student, None, hard * task.hard, task)
    along = Projection(alone, teacher, routes, projections, projection, injected)
    yield Stage(along, projection_share, name="projection")
    yield Stage(plain(student, task=task), 1 - projection_share, name="alone")


def _projection(student: nn.Module, teacher: nn.Module, s: str, t: str, example: Tensor, task: Task) -> nn.Module:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        shown = task.look(frozen(student), example, [s])[s]
    return projection(shape_at(teacher, t, example, task), tuple(shown.shape), rectified=bool((shown >= 0).all()))


def _rounds(routes: int) -> int:
    return 1 + math.ceil(math.log2(routes))


def _names(routes: Sequence[Pair]) -> list[str]:
    fed = [s for s, _ in routes]
    return [s if fed.count(s) == 1 else f"{s}.{t}" for s, t in routes]
