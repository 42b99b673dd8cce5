"""torchvision's ResNets for images of 32 pixels: a stem that keeps the resolution, where theirs leaves 8 of 32.

``python examples/compress.py --teacher whole:resnet34 --students whole:resnet18 ...``, sixteen times the work and worth it.
"""

from torch import nn
from torchvision import models


def resnet18(num_classes: int = 10) -> models.ResNet:
    """18 layers."""
    return _whole(models.resnet18(num_classes=num_classes))


def resnet34(num_classes: int = 10) -> models.ResNet:
    """34 layers."""
    return _whole(models.resnet34(num_classes=num_classes))


def _whole(net: models.ResNet) -> models.ResNet:
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net
