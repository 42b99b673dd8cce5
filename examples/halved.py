"""The zoo's CIFAR ResNets with a stem of stride 2: a quarter of the work, for comparisons on a CPU.

Networks of your own are named on the command line as these are:
``PYTHONPATH=examples limbeck train --network halved:resnet20``.
"""

from limbeck import zoo
from limbeck.zoo.resnet import ResNet


def resnet8(num_classes: int = 10) -> ResNet:
    """The student: 8 layers."""
    return _halved("resnet8", num_classes)


def resnet14(num_classes: int = 10) -> ResNet:
    """An assistant: 14 layers."""
    return _halved("resnet14", num_classes)


def resnet20(num_classes: int = 10) -> ResNet:
    """The teacher: 20 layers."""
    return _halved("resnet20", num_classes)


def _halved(name: str, num_classes: int) -> ResNet:
    net = zoo.network(name, num_classes, (3, 32, 32))
    assert isinstance(net, ResNet)
    net.conv1.stride = (2, 2)
    return net
