"""What several families of the zoo share."""

import torch
from torch import Tensor, nn


def reset_layers(net: nn.Module) -> None:
    """Give every convolution, linear layer and batch norm of ``net`` a fresh default initialisation."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()


@torch.no_grad()
def kaiming_fan_out(net: nn.Module) -> None:
    """Draw every convolution of ``net`` from He's normal, fan-out mode; biases become zero.

    The standard deviation is ``sqrt(2 / (out_channels * k * k))``, for grouped convolutions too: the formula of
    the authors' Torch code and of all its ports.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of ``x`` ``(N, C, H, W)`` out over ``groups`` hands, as ShuffleNet does."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
