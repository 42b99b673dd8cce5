"""Networks by name.

Reference networks of the distillation literature that torchvision and timm lack, each family in its own file, and one
function that makes them, torchvision's, timm's or the user's own from a name.
"""

import difflib
import os
import re
from collections.abc import Callable
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from limbeck.core.extras import needing
from limbeck.zoo._files import Weights, weights_in
from limbeck.zoo._inputs import Inputs, inputs_of
from limbeck.zoo._outside import Build, Shape, from_factory, from_timm, from_torchvision, stated
from limbeck.zoo._weights import load_weights, prepared, task_of, tell
from limbeck.zoo.fitnet import FitNet, FitNetTeacher
from limbeck.zoo.mlp import MLP
from limbeck.zoo.mobilenet import MobileNetV2
from limbeck.zoo.plane import Plane
from limbeck.zoo.resnet import ResNet
from limbeck.zoo.shufflenet import ShuffleNetV1, ShuffleNetV2
from limbeck.zoo.vgg import VGG
from limbeck.zoo.wrn import WideResNet

__all__ = ["describe", "names", "network", "refuse_file", "split_name", "trained_for", "trained_on"]


class _Entry(NamedTuple):
    about: str
    make: Callable[..., nn.Module]  # called with num_classes, in_channels and, if sized, size
    sized: bool = False


_X4 = (32, 64, 128, 256)

_ZOO = {
    "resnet8": _Entry("CIFAR ResNet, 8 layers, 0.08 M parameters (He et al. 2016)", partial(ResNet, 8)),
    "resnet14": _Entry("CIFAR ResNet, 14 layers, 0.18 M (He et al. 2016)", partial(ResNet, 14)),
    "resnet20": _Entry("CIFAR ResNet, 20 layers, 0.28 M (He et al. 2016)", partial(ResNet, 20)),
    "resnet26": _Entry("CIFAR ResNet, 26 layers, 0.38 M (He et al. 2016)", partial(ResNet, 26)),
    "resnet32": _Entry("CIFAR ResNet, 32 layers, 0.47 M (He et al. 2016)", partial(ResNet, 32)),
    "resnet44": _Entry("CIFAR ResNet, 44 layers, 0.67 M (He et al. 2016)", partial(ResNet, 44)),
    "resnet56": _Entry("CIFAR ResNet, 56 layers, 0.86 M (He et al. 2016)", partial(ResNet, 56)),
    "resnet110": _Entry("CIFAR ResNet, 110 layers, 1.74 M (He et al. 2016)", partial(ResNet, 110)),
    "resnet8x4": _Entry("resnet8, up to four times as wide, 1.23 M (Tian et al. 2020)", partial(ResNet, 8, _X4)),
    "resnet32x4": _Entry("resnet32, up to four times as wide, 7.43 M (Tian et al. 2020)", partial(ResNet, 32, _X4)),
    "vgg8": _Entry("VGG with batch norm, 8 layers, 3.97 M (Tian et al. 2020)", partial(VGG, 8)),
    "vgg11": _Entry("VGG with batch norm, 11 layers, 9.28 M (Simonyan & Zisserman 2015)", partial(VGG, 11)),
    "vgg13": _Entry("VGG with batch norm, 13 layers, 9.46 M (Simonyan & Zisserman 2015)", partial(VGG, 13)),
    "vgg16": _Entry("VGG with batch norm, 16 layers, 14.77 M (Simonyan & Zisserman 2015)", partial(VGG, 16)),
    "vgg19": _Entry("VGG with batch norm, 19 layers, 20.09 M (Simonyan & Zisserman 2015)", partial(VGG, 19)),
    "mobilenetv2": _Entry("MobileNetV2 of half width for CIFAR, 0.81 M (Sandler et al. 2018)", MobileNetV2),
    "shufflenetv1": _Entry("ShuffleNet V1, three groups, for CIFAR, 0.95 M (Zhang et al. 2018)", ShuffleNetV1),
    "shufflenetv2": _Entry("ShuffleNet V2, size 1x, for CIFAR, 1.36 M (Ma et al. 2018)", ShuffleNetV2),
    "plane2": _Entry("plain CNN, 2 convolutions (Mirzadeh et al. 2020)", partial(Plane, 2), True),
    "plane4": _Entry("plain CNN, 4 convolutions (Mirzadeh et al. 2020)", partial(Plane, 4), True),
    "plane6": _Entry("plain CNN, 6 convolutions (Mirzadeh et al. 2020)", partial(Plane, 6), True),
    "plane8": _Entry("plain CNN, 8 convolutions (Mirzadeh et al. 2020)", partial(Plane, 8), True),
    "plane10": _Entry("plain CNN, 10 convolutions (Mirzadeh et al. 2020)", partial(Plane, 10), True),
    "plane2-cifar100": _Entry("plane2 as wide as the authors' for CIFAR-100", partial(Plane, 2, True), True),
    "plane4-cifar100": _Entry("plane4 as wide as the authors' for CIFAR-100", partial(Plane, 4, True), True),
    "plane6-cifar100": _Entry("plane6 as wide as the authors' for CIFAR-100", partial(Plane, 6, True), True),
    "plane8-cifar100": _Entry("plane8 as wide as the authors' for CIFAR-100", partial(Plane, 8, True), True),
    "plane10-cifar100": _Entry("plane10 as wide as the authors' for CIFAR-100", partial(Plane, 10, True), True),
    "fitnet1": _Entry("thin deep maxout net, 11 layers, 0.25 M (Romero et al. 2015)", partial(FitNet, 1)),
    "fitnet2": _Entry("thin deep maxout net, 11 layers, 0.86 M (Romero et al. 2015)", partial(FitNet, 2)),
    "fitnet3": _Entry("thin deep maxout net, 13 layers, 1.5 M (Romero et al. 2015)", partial(FitNet, 3)),
    "fitnet4": _Entry("thin deep maxout net, 19 layers, 2.5 M (Romero et al. 2015)", partial(FitNet, 4)),
    "fitnet-teacher": _Entry("wide maxout net, 5 layers, 9 M (Goodfellow et al. 2013)", FitNetTeacher, True),
}

_PATTERNS = {
    "wrn-D-K": "wide ResNet of depth D = 6n + 4, K times as wide, as wrn-16-2 (Zagoruyko & Komodakis 2016)",
    "mlp-H1-H2-...": "multilayer perceptron with these hidden widths, as mlp-1200-1200 (Hinton et al. 2015)",
    "torchvision:NAME": "any classifier of torchvision, as torchvision:resnet18",
    "timm:NAME": "any classifier of timm, as timm:mobilenetv3_small_100",
    "PACKAGE.MODULE:FACTORY": "your own function or class that returns a network",
}

_LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}
_LARGEST = 224  # pixels a side, the size at which torchvision's and timm's networks all work
# what torch and model code raise for a shape that they cannot take
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError)


def network(
    name: str,
    num_classes: int | None = 10,
    shape: tuple[int, ...] | None = (3, 32, 32),
    *,
    new_head: bool | None = None,
) -> nn.Module:
    """Make a network from its name.

    ===========================  ==================================================================================
    ``resnet8x4``, ``vgg8``      one of limbeck's own: `names` lists them
    ``wrn-16-2``                 wide ResNet, any depth 6n + 4 and any width
    ``mlp-800-800``              multilayer perceptron with these hidden widths
    ``torchvision:resnet18``     ``torchvision.models.get_model``
    ``timm:levit_128s``          ``timm.create_model``, for the data's channels and, where it is fixed, image size
    ``package.module:factory``   a function or class of yours; the working directory is searched too. It is given
                                 ``num_classes=`` and ``in_channels=`` only if its signature names them
    ===========================  ==================================================================================

    After the name come its weights, or the network is fresh:

    ===========================  ==================================================================================
    ``@FILE``                    a file of safetensors or of `torch.save`, whatever its suffix: a dictionary of tensors, or
                                 a checkpoint with one in it under any key, with any prefix before all names. Of several
                                 that fit the trained one is taken before its averages
    ``@FILE:KEY``                what is under this key of it, as ``state_dict_ema``, or after this prefix
    ``@RUN``                     the student of a run's folder, or its first network; of a run that is not finished as it
                                 was last kept. ``@RUN:NETWORK`` is another one of it
    ``@pretrained``              torchvision's or timm's own
    ``@random``                  none: an untrained network is meant, for a control
    ===========================  ==================================================================================

    Nothing that is pickled in a file is run. The file of a network made of another, as methods leave them, makes it again:
    a `limbeck.EarlyExit` or the network up to one of its exits (`limbeck.byot`), branches (`limbeck.one`), an ensemble
    (`limbeck.ban`). Except for factories, the network is run once on two blank samples, so that a shape that it cannot
    take is an error here.

    Args:
        name: As above.
        num_classes: Number of outputs that the data ask for: of classes, labels or values. None where it is not known, for
            functions of yours that do not ask for it.
        shape: Of one sample, ``(C, H, W)`` for images; ``mlp`` takes any. None where a sample is no single tensor, for
            functions of yours.
        new_head: Whether the last layer begins anew where the weights are for another number of outputs, drawn by torch's
            generator as in a fresh network; all else must fit. By default it does of ``@pretrained``, and is an error of
            files. What was begun anew is said in a warning. False: never, as of a teacher.

    Returns:
        The network, in training mode, on torch's default device.

    Raises:
        ValueError: An unknown name, a shape that the network cannot take, weights that do not fit or are not finite, a file
            that is damaged or holds no weights, or a factory that fails.
        TypeError: An argument of another type; the factory is none, or returns something else than a module.

    Example:
        >>> net = network("mlp-32", num_classes=10, shape=(1, 8, 8))
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _refuse_types(name, num_classes, shape)
    base, weights = split_name(name)
    refuse_file(base)
    source, colon, model = base.partition(":")
    library = _LIBRARIES.get(source) if colon else None
    pretrained = weights == "pretrained"
    if pretrained and library is None:
        raise ValueError(f"{name}: only torchvision's and timm's networks come pretrained; give a file, {base}@FILE")
    found = None if weights in (None, "random", "pretrained") else _found(base, weights)
    if colon and library is None:
        net = from_factory(base, num_classes, shape)
    else:
        outputs, size = stated(base, "num_classes", num_classes), stated(base, "shape", shape)
        build = (
            _from_zoo(base, outputs) if library is None else library(model, outputs, pretrained, new_head is not False)
        )
        net = _build_checked(base, build, size)
    if found is None:
        return net
    net = prepared(net, found, base, shape)
    load_weights(net, found, base, num_classes, new_head)
    if found.news:
        tell(found.news)
    return net


def _refuse_types(name: Any, num_classes: Any, shape: Any) -> None:
    """Find arguments of another type, which would be found deep in torch."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a network's name, as 'resnet8', got {type(name).__name__} {name!r:.60}")
    if num_classes is not None and not _is_whole(num_classes):
        raise TypeError(f"num_classes must be a whole number, as 10, got {num_classes!r:.60}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if shape is not None and not (isinstance(shape, (tuple, list)) and all(map(_is_whole, shape))):
        raise TypeError(f"shape must be that of one sample, as (3, 32, 32), got {shape!r:.60}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def refuse_file(base: str) -> None:
    """Refuse the path of weights where a network's name belongs: weights alone do not say what they are the weights of.

    Raises:
        ValueError: There is such a file, or folder.
    """
    path = Path(os.path.expanduser(base))
    if (path.suffix or path.name != base) and path.exists():
        what = "folder" if path.is_dir() else "file"
        raise ValueError(f"{base} is a {what}: write NAME@{base}, with the network's name before it, as resnet8@{base}")


def _found(name: str, weights: str) -> Weights:
    """Read the weights of a network, before it is made."""
    try:
        with needing("train", name):
            return weights_in(weights)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{name}: {error}") from error


def split_name(name: str) -> tuple[str, str | None]:
    """Split ``resnet8@FILE`` into the network's name and what follows the first ``@``, if anything does.

    Example:
        >>> split_name("resnet56@teacher.safetensors")
        ('resnet56', 'teacher.safetensors')
        >>> split_name("resnet8")
        ('resnet8', None)
    """
    base, at, weights = name.partition("@")
    if at and not weights:
        raise ValueError(f"{name}: expected after '@' a file, 'random' or 'pretrained', got nothing")
    return base, weights if at else None


def trained_for(name: str) -> str | None:
    """Return the name of the task that the file in ``NAME@FILE`` says its weights are for.

    None where there is no file, or it says nothing: weights for classification, and those of elsewhere.
    """
    _, weights = split_name(name)
    return None if weights is None else task_of(weights)


def trained_on(name: str) -> Inputs:
    """Return how the inputs were prepared that the weights in ``NAME@FILE`` or ``NAME@RUN`` were trained on.

    The folder of a run says it, and so does a file that `limbeck.export` wrote; it is empty where nothing does.

    Raises:
        ValueError: What the folder of the run says is damaged.
    """
    _, weights = split_name(name)
    if weights in (None, "random", "pretrained"):
        return Inputs()
    with needing("train", name):
        return inputs_of(weights)


def names() -> list[str]:
    """Return every fixed name and every pattern that `network` knows."""
    return [name for name, _ in describe()]


def describe() -> list[tuple[str, str]]:
    """Return every name and pattern with one line about it; parameters are those at 100 classes (FitNets: 10)."""
    return [(name, entry.about) for name, entry in _ZOO.items()] + list(_PATTERNS.items())


def _from_zoo(name: str, num_classes: int) -> Build:
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if wide:
        make = partial(WideResNet, int(wide[1]), int(wide[2]))
        return lambda shape: make(num_classes=num_classes, in_channels=_image(shape)[0])
    if re.fullmatch(r"mlp(-\d+)+", name):
        hidden = [int(width) for width in name.split("-")[1:]]
        return lambda shape: MLP(hidden, num_classes, in_features=torch.Size(shape).numel())
    if name not in _ZOO:
        raise ValueError(_unknown(name))
    entry = _ZOO[name]

    def build(shape: Shape) -> nn.Module:
        channels, height, width = _image(shape)
        if entry.sized:
            return entry.make(num_classes=num_classes, in_channels=channels, size=(height, width))
        return entry.make(num_classes=num_classes, in_channels=channels)

    return build


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"expected images of shape (C, H, W), got {tuple(shape)}; an mlp-64-64 takes any shape")
    return shape[0], shape[1], shape[2]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, [*_ZOO, "wrn-16-2", "wrn-40-2", "mlp-800-800"], n=3, cutoff=0.5)
    perhaps = f"perhaps {', '.join(close)}? " if close else ""
    forms = ", ".join(_PATTERNS)
    return f"unknown network {name!r}; {perhaps}Accepted: a name that limbeck.zoo.names() lists, {forms}"


def _build_checked(name: str, build: Build, shape: Shape) -> nn.Module:
    try:
        return _built(build, shape)
    except _FAILURES as error:
        raise ValueError(f"{name}: {_why(build, shape, error)}") from error


def _built(build: Build, shape: Shape) -> nn.Module:
    """Build the network and run it once on two blank samples."""
    net = build(shape)
    parameter = next(net.parameters())
    net.eval()
    with torch.no_grad():
        net(torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype))
    return net.train()


def _why(build: Build, shape: Shape, error: Exception) -> str:
    """Find out what about ``shape`` the network cannot take."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if len(shape) != 3:
        return reason
    channels, height, width = shape
    if not _works(build, (channels, _LARGEST, _LARGEST)):
        if channels != 3 and _works(build, (3, _LARGEST, _LARGEST)):
            return f"takes images of 3 channels, the data has {channels}"
        return reason
    small, large = 0, _LARGEST
    while large - small > 1:
        middle = (small + large) // 2
        small, large = (small, middle) if _works(build, (channels, middle, middle)) else (middle, large)
    if large <= min(height, width):  # too small is not what is wrong
        return f"does not take images of {height}x{width}, though it does of {_LARGEST}x{_LARGEST}: {reason}"
    return f"images of {height}x{width} are too small, the smallest that works is {large}x{large}"


def _works(build: Build, shape: Shape) -> bool:
    try:
        _built(build, shape)
    except _FAILURES:
        return False
    return True
