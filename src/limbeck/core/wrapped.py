"""Networks in wrappers: what is inside is what the user made, and what ships."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from limbeck.core.copied import copied

COMPUTING = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
"""Hooks that compute a weight before each call."""


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the plain network in what `torch.compile`, ``DataParallel`` or ``DistributedDataParallel`` made of it."""
    while (inside := wrapped_in(net)) is not None:
        net = getattr(net, inside)
    return net


def wrapped_in(net: nn.Module) -> str | None:
    """Return the attribute under which a wrapper has what it wraps; None where a network is no wrapper."""
    if isinstance(net, DataParallel | DistributedDataParallel):
        return "module"
    return "_orig_mod" if isinstance(getattr(net, "_orig_mod", None), nn.Module) else None


def without_splits(net: nn.Module) -> nn.Module:
    """Return the network in a wrapper that would run it on several devices."""
    while isinstance(net, DataParallel | DistributedDataParallel):
        net = net.module
    return net


def shipped(net: nn.Module) -> nn.Module:
    """Return the network as its author wrote it: this is what ships, and whose names a file has.

    Wrappers are taken off, inside of it too, and weights that are computed become weights: of a pruned layer
    (`torch.nn.utils.prune`) the masked ones, and those of weight and spectral norm, old or new, and of any other
    `torch.nn.utils.parametrize`. The network itself is left as it is, and returned where it is plain already.
    """
    net = unwrapped(net)
    if not any(wrapped_in(module) or _computes(module) for module in net.modules()):
        return net
    twin = copied(net)
    modes = [(module, module.training) for module in twin.modules()]
    twin.eval()  # in which spectral norm does not go on
    without_wrappers(twin)
    for module in [*twin.modules()]:
        _settle(module)
    for module, training in modes:
        module.training = training
    return twin


def without_wrappers(net: nn.Module, *, compiled: bool = True) -> nn.Module:
    """Take off the wrappers inside a network, in place.

    Args:
        net: No wrapper itself.
        compiled: Those of `torch.compile` too.
    """
    for module in [*net.modules()]:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in module._modules.items():
            while child is not None and (inside := wrapped_in(child)) and (compiled or inside == "module"):
                child = getattr(child, inside)
            module._modules[name] = child
    return net


def _computes(module: nn.Module) -> bool:
    """Whether a weight of a module is computed of others."""
    return parametrize.is_parametrized(module) or any(isinstance(hook, COMPUTING) for hook in _hooks(module))


def _settle(module: nn.Module) -> None:
    """Make weights of what is computed, in place."""
    if parametrize.is_parametrized(module):
        _unparametrize(module)
    for hook in _hooks(module):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            for key, loading in [*module._load_state_dict_pre_hooks.items()]:  # which torch 2.14 leaves behind
                if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]


def _unparametrize(module: nn.Module) -> None:
    """Do what torch's remove_parametrizations does, which would take the weights from the network that was copied too."""
    weights = {str(name): getattr(module, str(name)).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight.clone(), requires_grad=weight.is_floating_point()))


def _hooks(module: nn.Module) -> list[object]:
    return [] if isinstance(module, torch.jit.ScriptModule) else [*module._forward_pre_hooks.values()]
