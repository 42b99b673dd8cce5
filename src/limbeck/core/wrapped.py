"""Networks in wrappers: what is inside is what the user made, and what ships."""

from __future__ import annotations

from torch import nn


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the plain network in what `torch.compile`, ``DataParallel`` or ``DistributedDataParallel`` made of it."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(net, (DataParallel, DistributedDataParallel)):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            net = inner
        else:
            return net
