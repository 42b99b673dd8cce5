"""What several families of the zoo share."""

from collections.abc import Sequence

from torch import nn


def convolutions(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Return 3x3 convolutions of these widths, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in widths:
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers)


def reset_he(net: nn.Module) -> None:
    """Start every layer of ``net`` afresh: convolutions from He's normal, fan-out mode, the rest by torch's defaults.

    The standard deviation is ``sqrt(2 / (out_channels * k * k))``, for grouped convolutions too: the formula of
    the authors' Torch code and of all its ports. Biases of convolutions become zero.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
