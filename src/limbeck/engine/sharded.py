"""Weights that are shared out among processes (FSDP2), and whole again in every file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from limbeck.core.distributed import is_shared_out, like, whole
from limbeck.core.objective import Objective


class FullySharded(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, with the checkpoints of every other strategy: whole tensors by plain names."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Let all processes share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning is to hand over what it has read of optimizers."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state, in the process that writes it."""
        assert self.lightning_module is not None
        state: dict[str, Any] = gathered(self.lightning_module.state_dict(), self.is_global_zero)
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Share a whole state out."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: spread(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of an optimizer, in the process that writes it."""
        state: dict[str, Any] = gathered(ParallelStrategy.optimizer_state(self, optimizer), self.is_global_zero)
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Share the whole states of optimizers out."""
        states = [
            spread_optimizer(state, optimizer)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write as any strategy does."""
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read as any strategy does."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)


def shard(
    net: nn.Module, mesh: DeviceMesh, *, teaches: bool = False, offloaded: bool = False, together: bool = False
) -> None:
    """Share a network's weights out, in place: each block of it is brought together when it runs.

    Args:
        net: The network; its inside is what stays plain tensors to whoever runs it.
        mesh: The devices.
        teaches: Its last layers are let go too, since no backward pass follows.
        offloaded: The shares lie in the host's memory.
        together: Its weights stay together from the forward pass to `part`, for a loss that differentiates it: torch would
            let them go after the first of two backward passes.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offloaded else OffloadPolicy()
    for block in (*([] if isinstance(net, Objective) else blocks(net)), net):
        if not isinstance(block, FSDPModule) and any(True for _ in block.parameters()):
            unit = fully_shard(
                block, mesh=mesh, reshard_after_forward=teaches or block is not net, offload_policy=offload
            )
            if together:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.set_reshard_after_backward(False, recurse=False)


def unite(net: nn.Module, *, stay: bool) -> None:
    """Bring all of a network together, so that parts of it can be run by other ways than its own forward.

    Args:
        net: A network that is shared out.
        stay: Whether blocks stay together when they have run; False lets go of all.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):
            if module is not net:  # whose own layers stay together as it is
                module.set_reshard_after_forward(not stay, recurse=False)
            if stay:
                module.unshard()
            else:
                module.reshard()


def part(net: nn.Module) -> None:
    """Let go what was brought together, once it has been updated."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Yield what is shared out one by one: the members of lists and sequences, or a sequence of single layers.

    A member stays with its network where it shares a parameter with what lies outside, as tied embeddings do.
    """
    everywhere = _uses(net)
    for member in _members(net):
        own = _uses(member)
        if own and all(everywhere[key] == count for key, count in own.items()):
            yield member


def _members(net: nn.Module) -> Iterator[nn.Module]:
    for child in net.children():
        made_of_modules = any(True for member in child.children() for _ in member.children())
        if isinstance(child, nn.Sequential) and not made_of_modules:  # a block itself: a convolution and its norm, say
            yield child
        elif isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from child.children()
        else:
            yield from _members(child)


def _uses(net: nn.Module) -> Counter[int]:
    """Count how often each parameter lies in a network."""
    return Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)


def gathered(state: Any, here: bool = True) -> Any:
    """Return a state with whole tensors in place of shares, on the CPU; every process must ask.

    Args:
        state: Of modules or optimizers.
        here: Whether this process keeps them.
    """

    def together(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_shared_out(value):
            return value
        full = whole(value)
        return full.cpu() if here else None

    return tree_map(together, state)


def spread(value: Any, beside: Any) -> Any:
    """Return this process's part of a whole tensor, shared out as another is; any other value as it is."""
    fits = isinstance(beside, Tensor) and isinstance(value, Tensor) and value.shape == beside.shape
    return like(beside, value) if fits else value


def spread_optimizer(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimizer as its own shares."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {
        place: {name: spread(value, own[place]) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    return {**state, "state": shares}
