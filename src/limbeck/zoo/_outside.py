"""Networks from elsewhere: torchvision, timm, and the user's own functions."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

Shape = tuple[int, ...]
Build = Callable[[Shape], nn.Module]


def from_torchvision(model: str, num_classes: int, pretrained: bool) -> Build:
    """Return what makes torchvision's ``model`` for a shape."""
    models = _import("torchvision.models", f"torchvision:{model}", "train")
    _known(model, models.list_models(), "torchvision")
    if pretrained:
        weights = models.get_model_weights(model).DEFAULT
        _same_classes(f"torchvision:{model}@pretrained", len(weights.meta.get("categories", ())), num_classes)

    options: dict[str, Any] = {"weights": "DEFAULT"} if pretrained else {"num_classes": num_classes}
    if not pretrained and "weights_backbone" in parameters(models.get_model_builder(model)):
        options["weights_backbone"] = None  # detectors and segmenters would download it unasked

    def build(_: Shape) -> nn.Module:
        net: nn.Module = models.get_model(model, **options)
        return net

    return build


def from_timm(model: str, num_classes: int, pretrained: bool) -> Build:
    """Return what makes timm's ``model`` for a shape."""
    timm = _import("timm", f"timm:{model}", "timm")
    known = timm.is_model(model) or ":" in model  # timm:hf-hub:owner/name is looked up by timm itself
    if not known:
        _known(model, timm.list_models(), "timm")
    card = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if pretrained and card is not None:
        _same_classes(f"timm:{model}@pretrained", card.num_classes, num_classes)

    def build(shape: Shape) -> nn.Module:
        options: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}
        if card is not None and card.fixed_input_size and tuple(card.input_size[1:]) != shape[1:]:
            options["img_size"] = shape[1:]
        net: nn.Module = timm.create_model(model, pretrained=pretrained, **options)
        return net

    return build


def from_factory(name: str, num_classes: int | None, shape: Shape | None) -> nn.Module:
    """Call the user's ``package.module:factory``; see `limbeck.zoo.network` for what it is given."""
    path, _, attribute = name.partition(":")
    factory = find(name, path, attribute)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"{name}: expected a function or class that makes a network, got {_article(factory)}")
    offered = {"num_classes": num_classes, "in_channels": shape and shape[0]}
    taken = parameters(factory)
    net = factory(**{key: stated(name, key, value) for key, value in offered.items() if key in taken})
    if not isinstance(net, nn.Module):
        raise TypeError(f"{name}: expected it to return a torch.nn.Module, got {_article(net)}")
    return net


def stated(name: str, key: str, value: Any) -> Any:
    """Return what a network must be told of the data, or say how the user can tell it."""
    if value is None:
        how = (
            "say how many outputs it needs: --num-outputs N"
            if key == "num_classes"
            else "its inputs are no single tensor"
        )
        raise ValueError(
            f"{name} is made by {key}, which the data do not tell: {how}, or name a function of your own that takes no "
            f"argument {key}, as mynet:small"
        )
    return value


def find(name: str, path: str, attribute: str) -> object:
    """Return what the user calls ``path:attribute``; the working directory is searched too."""
    if not all(part.isidentifier() for part in [*path.split("."), attribute]):
        raise ValueError(f"{name}: expected package.module:factory, as models.small:make_net")
    try:
        with _importable_cwd():
            module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # an import that fails inside the user's module is the user's to see, unchanged
        if not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{name}: no module {path!r} (looked in {os.getcwd()} and sys.path)") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ValueError(f"{name}: {path} has no {attribute!r}{_perhaps(attribute, dir(module))}") from error


@contextmanager
def _importable_cwd() -> Iterator[None]:
    """Let modules in the working directory be imported, as ``python script.py`` would."""
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def parameters(factory: Callable[..., object]) -> set[str]:
    """Return the names that a factory takes arguments by."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some builtins have no signature
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}


def _import(module: str, name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RuntimeError(f"{name} needs {package}: pip install 'limbeck[{extra}]'") from error


def _known(model: str, models: Iterable[str], source: str) -> None:
    models = list(models)
    if model not in models:
        raise ValueError(f"{source} has no model {model!r}{_perhaps(model, models)}")


def _same_classes(name: str, classes: int, num_classes: int) -> None:
    if classes != num_classes:
        bare = name.removesuffix("@pretrained")
        raise ValueError(
            f"{name} has {classes or 'no'} classes, the data has {num_classes}; "
            f"train a fresh head first, or take {bare} untrained or {bare}@FILE"
        )


def _perhaps(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=3)
    return f"; perhaps {' or '.join(close)}" if close else ""


def _article(value: object) -> str:
    if isinstance(value, nn.Module):
        return f"a module that is already made ({type(value).__name__})"
    return f"{type(value).__name__} {value!r:.60}"
