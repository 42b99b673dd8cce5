"""Where a training runs: on which devices, by whose rules, and where those who teach lie meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from limbeck.core.compiled import differentiates_twice
from limbeck.core.copied import copied
from limbeck.core.distributed import place
from limbeck.core.frozen import Frozen
from limbeck.core.method import Method, called
from limbeck.core.stage import Stage
from limbeck.engine.precision import Teachers, TeacherType
from limbeck.engine.sharded import FullySharded, gathered, part, shard, unite
from limbeck.nets.elsewhere import Elsewhere
from limbeck.nets.norm import GlobalBatchNorm

FSDP2 = "fsdp2"
LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What Lightning tells processes of their place, in the environment."""


@dataclass(frozen=True)
class Devices:
    """Where a training runs.

    Args:
        devices: How many in each machine.
        nodes: How many machines.
        strategy: ``"auto"``, ``"ddp"``, ``"fsdp2"``, or another of Lightning's names.
        sync_batchnorm: Whether batch norm takes its statistics over all processes.
        channels_last: Whether the networks' weights are laid out so.
        teachers: Where their weights lie.
        teacher_dtype: In which numbers they compute.
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    channels_last: bool = False
    teachers: Teachers = "whole"
    teacher_dtype: TeacherType = "own"

    def __post_init__(self) -> None:
        if self.teachers not in ("whole", "sharded", "offloaded"):
            raise ValueError(f"teachers must be 'whole', 'sharded' or 'offloaded', got {self.teachers!r}")
        if self.shares_weights and self.channels_last:
            raise ValueError("channels_last=True: FSDP2 shares out weights in torch's own order alone: leave it out")
        if self.shares_weights and not hasattr(FSDPModule, "set_reshard_after_forward"):
            raise ValueError(f"strategy='fsdp2' needs torch 2.8 or later, this is {torch.__version__}: take 'ddp'")
        if self.teacher_dtype not in ("own", "bfloat16", "float16"):
            raise ValueError(f"teacher_dtype must be 'own', 'bfloat16' or 'float16', got {self.teacher_dtype!r}")

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.devices * self.nodes

    @property
    def shares_weights(self) -> bool:
        """Whether the weights that train are shared out."""
        return self.strategy == FSDP2

    def engine(self) -> str | Strategy:
        """Return who brings processes together, in Lightning's terms."""
        if self.shares_weights:
            return FullySharded()
        several = self.processes > 1 and self.strategy in ("auto", "ddp")
        # a turn is one player's, and the parameters of the others have no gradient
        return "ddp_find_unused_parameters_true" if several else self.strategy

    @contextmanager
    def holding(self, stage: Stage) -> Iterator[Stage]:
        """Let a stage train as it is to lie on these devices, and have it as it was afterwards, with what it learned.

        What is shared out is a twin, which `bring_back` makes an end of.

        Args:
            stage: The stage.

        Yields:
            What is to be trained.
        """
        with ExitStack() as stack:
            if self.processes == 1 and not distributed.is_initialized():
                stack.callback(_leave, {name: os.environ.get(name) for name in LAUNCHED})
            stack.enter_context(replaced(stage.method, self._stand_in))
            own = stage
            if self.shares_weights:
                memo: dict[int, Any] = {id(own): own for own in stage.method.modules() if isinstance(own, Frozen)}
                own = copied(stage, memo)
            if self.sync_batchnorm and self.processes > 1:
                stack.enter_context(replaced(own.method, _synchronised))
            if self.channels_last:
                stack.enter_context(laid_out(own.method))
            yield own

    def arrange(self, method: Method, device: torch.device) -> None:
        """Share out what is to be, once processes have found each other.

        Args:
            method: What is trained.
            device: This process's.
        """
        if self.sync_batchnorm and self.processes > 1 and device.type == "cpu":
            raise ValueError(
                "sync_batchnorm=True: torch synchronises batch norm among GPUs alone. On the CPU leave it out, or take "
                "networks with group norm"
            )
        if self.shares_weights:
            mesh = _mesh(device)
            for own in called(method):
                shard(own, mesh, together=differentiates_twice(method))
        for teacher in _stand_ins(method):
            shard(teacher.net, _mesh(device), teaches=True, offloaded=self.teachers == "offloaded")

    def after_update(self, method: Method) -> None:
        """Let weights go that were kept together."""
        if self.shares_weights and differentiates_twice(method):
            part(method)

    def before_validation(self, method: Method) -> None:
        """Let networks be measured as they ship: by the first process's buffers, and by parts that no player calls."""
        alike(method)
        self._unite(method, stay=True)

    def after_validation(self, method: Method) -> None:
        """Let go what was brought together."""
        self._unite(method, stay=False)

    def _unite(self, method: Method, *, stay: bool) -> None:
        """Let networks run that are made of parts of what players call."""
        roots = {id(own) for own in called(method)}
        if self.shares_weights and any(id(net) not in roots for net in method.networks().values()):
            for own in called(method):
                unite(own, stay=stay)

    def lay_teachers_out(self, method: Method) -> None:
        """Lay their weights out as those of the networks, once they are where they stay; by themselves they go back."""
        for teacher in (one for one in method.modules() if isinstance(one, Frozen)):
            if self.channels_last and not teacher.stays:
                _lay_out(teacher.net, torch.channels_last)

    def bring_back(self, trained: Stage, stage: Stage) -> None:
        """Give a stage what its twin has learned; every process must ask."""
        if trained is not stage:
            alike(trained.method)
            stage.method.load_state_dict(gathered(trained.method.state_dict()))

    def seen(self, teacher: Frozen) -> Frozen:
        """Return a teacher in the numbers in which it computes."""
        return teacher if self.teacher_dtype == "own" else teacher.to(getattr(torch, self.teacher_dtype))

    def _stand_in(self, module: nn.Module) -> nn.Module | None:
        """Return what takes a teacher's place while it lies elsewhere, or computes in other numbers."""
        if not isinstance(module, Frozen) or isinstance(module.net, Elsewhere):
            return None
        if not any(True for _ in module.net.parameters()):
            return None
        moves = self.teachers == "offloaded" or (self.teachers == "sharded" and self.processes > 1)
        other = self.seen(module.again())
        return other.alone() if moves else other if self.teacher_dtype != "own" else None


@contextmanager
def replaced(method: Method, by: Callable[[nn.Module], nn.Module | None]) -> Iterator[None]:
    """Put other modules in the place of some of a method's, and have those back afterwards.

    Args:
        method: The method, with the networks that it trains.
        by: Returns what stands for a module, each time the same; None leaves it.
    """
    made: dict[int, nn.Module | None] = {}
    former: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
    for tree in (method, *method.networks().values()):
        for parent in [*tree.modules()]:
            for name, child in [*parent._modules.items()]:
                if child is None:
                    continue
                if id(child) not in made:
                    made[id(child)] = by(child)
                if (other := made[id(child)]) is not None:
                    former.append((parent._modules, name, child))
                    parent._modules[name] = other
    try:
        yield
    finally:
        for held, name, child in former:
            held[name] = child


@contextmanager
def laid_out(method: Method) -> Iterator[None]:
    """Lay the weights of convolutions out with channels last while the block runs."""
    trees = (method, *method.networks().values())
    for tree in trees:
        _lay_out(tree, torch.channels_last)
    try:
        yield
    finally:
        for tree in trees:
            _lay_out(tree, torch.contiguous_format)


def _lay_out(net: nn.Module, order: torch.memory_format) -> None:
    for p in net.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=order)


@torch.no_grad()
def alike(method: Method) -> None:
    """Give all processes the buffers of the first, which are those that ship: of batch norm each has its own."""
    if place()[1] == 1:
        return
    for net in method.networks().values():
        for buffer in net.buffers():
            first = buffer.contiguous()
            distributed.broadcast(first, 0)
            buffer.copy_(first)


def _synchronised(module: nn.Module) -> nn.Module | None:
    """Return batch norm over all processes, of the same weights and buffers."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(
        module, nn.SyncBatchNorm | GlobalBatchNorm
    ):
        return None
    if type(module).forward is not nn.modules.batchnorm._BatchNorm.forward:
        raise ValueError(
            f"sync_batchnorm=True: torch would leave out what {type(module).__name__} adds to batch norm: leave it out, or "
            "convert the network before (of timm's, timm.layers.convert_sync_batchnorm)"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    # the very same, or statistics that are taken on a GPU would stay behind: there a module has other buffers
    converted._parameters, converted._buffers = module._parameters, module._buffers
    return converted


def _stand_ins(method: Method) -> list[Frozen]:
    return [own for own in method.modules() if isinstance(own, Frozen) and own.stays]


def _mesh(device: torch.device) -> DeviceMesh:
    """Return all processes, of which there may be but this one."""
    if not distributed.is_initialized():
        backend = distributed.get_default_backend_for_device(device)
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return init_device_mesh(device.type, (place()[1],))


def _leave(before: Mapping[str, str | None]) -> None:
    """End the group that a single process was in, and take back what Lightning says of it to processes that follow.

    Args:
        before: The environment as it was; a later training would wait for processes that it takes to be started.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
