"""Networks from elsewhere: torchvision, timm, and the user's own functions."""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from limbeck.core.extras import needing
from limbeck.zoo._files import first_line, some
from limbeck.zoo._weights import fresh, tell

Shape = tuple[int, ...]
Build = Callable[[Shape], nn.Module]


def from_torchvision(model: str, num_classes: int, pretrained: bool, new_head: bool) -> Build:
    """Return what makes torchvision's ``model`` for a shape."""
    models = _import("torchvision.models", f"torchvision:{model}", "train")
    _known(model, models.list_models(), "torchvision")
    name = f"torchvision:{model}@pretrained"
    classes = len(models.get_model_weights(model).DEFAULT.meta.get("categories", ())) if pretrained else num_classes
    if not new_head:
        _same_classes(name, classes, num_classes)

    options: dict[str, Any] = {"num_classes": num_classes}
    if "weights_backbone" in parameters(models.get_model_builder(model)):
        options["weights_backbone"] = None  # detectors and segmenters would download it unasked

    def build(_: Shape) -> nn.Module:
        with _fetching(name):
            net: nn.Module = models.get_model(model, **({"weights": "DEFAULT"} if pretrained else options))
        if classes != num_classes:
            _graft(net, models.get_model(model, **options), name, classes, num_classes)
        return net

    return build


def _graft(net: nn.Module, other: nn.Module, name: str, was: int, now: int) -> None:
    """Replace the last layers of a pretrained network by a fresh one's, where they differ in the number of classes alone.

    What else makes it a pretrained one, how it rescales its inputs, say, stays as it is.
    """
    old, new = net.state_dict(), other.state_dict()
    differ = [key for key in old if key not in new or old[key].shape != new[key].shape]
    for key in differ:
        here, there = tuple(old[key].shape), tuple(new[key].shape) if key in new else ()
        if (here[:1], there[:1]) != ((was,), (now,)) or here[1:] != there[1:]:
            raise ValueError(
                f"{name} is for {was} classes, and the data has {now}: its layer {key} is no last layer with one output a "
                f"class that could begin anew; take {name.removesuffix('@pretrained')} untrained, or a function of your own"
            )
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in differ))
    for path in layers:
        net.set_submodule(path, other.get_submodule(path))
    tell(fresh(name, some(layers), was, now))


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Say what could not be fetched."""
    try:
        yield
    except OSError as error:
        base = name.removesuffix("@pretrained")
        raise ConnectionError(
            f"{name}: its weights are not here and could not be fetched ({first_line(error)}): fetch them where there is a "
            f"network, and name their file, {base}@FILE"
        ) from error


def from_timm(model: str, num_classes: int, pretrained: bool, new_head: bool) -> Build:
    """Return what makes timm's ``model`` for a shape."""
    timm = _import("timm", f"timm:{model}", "timm")
    known = timm.is_model(model) or ":" in model  # timm:hf-hub:owner/name is looked up by timm itself
    if not known:
        _known(model, timm.list_models(), "timm")
    card = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    name = f"timm:{model}@pretrained"
    if pretrained and card is not None and not new_head:
        _same_classes(name, card.num_classes, num_classes)

    def build(shape: Shape) -> nn.Module:
        options: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}
        if card is not None and card.fixed_input_size and tuple(card.input_size[1:]) != shape[1:]:
            options["img_size"] = shape[1:]
        with _fetching(name):
            net: nn.Module = timm.create_model(model, pretrained=pretrained, **options)
        if pretrained:
            _tell_head(net, name, num_classes, new_head)
        return net

    return build


def _tell_head(net: Any, name: str, now: int, new_head: bool) -> None:
    """Say that timm began the last layers of a pretrained network anew, if it did."""
    was, layers = net.pretrained_cfg.get("num_classes"), net.pretrained_cfg.get("classifier")
    if was == now:
        return
    if not new_head:  # of a hub's model this is known when it is there
        _same_classes(name, was or 0, now)
    if not layers:
        raise ValueError(f"{name} has no last layer by classes that could begin anew, for {now} of them")
    tell(fresh(name, layers if isinstance(layers, str) else some(layers), was, now))


def from_factory(name: str, num_classes: int | None, shape: Shape | None) -> nn.Module:
    """Call the user's ``package.module:factory``; see `limbeck.zoo.network` for what it is given."""
    path, _, attribute = name.partition(":")
    factory = find(name, path, attribute)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"{name}: expected a function or class that makes a network, got {_article(factory)}")
    offered = {"num_classes": num_classes, "in_channels": shape and shape[0]}
    taken = parameters(factory)
    _refuse_other_needs(name, factory, offered)
    given = {key: stated(name, key, value) for key, value in offered.items() if key in taken}
    with speaking(name, f"{attribute}() "):
        net = factory(**given)
    if isinstance(net, type) and issubclass(net, nn.Module):
        raise TypeError(
            f"{name}: expected it to return a network, got the class {net.__name__}: let it return {net.__name__}(...)"
        )
    if not isinstance(net, nn.Module):
        hint = ": is there a return at its end?" if net is None else ""
        raise TypeError(f"{name}: expected it to return a torch.nn.Module, got {_article(net)}{hint}")
    return net


def _refuse_other_needs(name: str, factory: Callable[..., object], offered: Iterable[str]) -> None:
    """Find arguments that nobody would give."""
    try:
        needs = inspect.signature(factory).parameters.values()
    except ValueError:  # some builtins have no signature
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    unmet = [
        each.name
        for each in needs
        if each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and not (each.name in offered and each.kind in named)
    ]
    if unmet:
        raise ValueError(
            f"{name} needs {', '.join(unmet)}, which nobody gives it: a network's function is given num_classes= and "
            "in_channels= where it names them. Give all else a default, or name a function that fills it in"
        )


@contextmanager
def speaking(name: str, what: str) -> Iterator[None]:
    """Say in words where a function or module of the user's fails, or ends the program.

    Raises:
        ValueError: It did; the text has the error and its place. What is not installed is the user's to see, unchanged.
    """
    try:
        yield
    except ImportError:
        raise
    except SystemExit as error:
        raise ValueError(
            f"{name}: {what}ended the program, sys.exit({'' if error.code is None else repr(error.code)})"
            f"{_place(error)}, in place of returning something; what shall only run as a program goes under "
            'if __name__ == "__main__"'
        ) from error
    except Exception as error:
        said = ": ".join([type(error).__name__, *first_line(error).splitlines()])
        raise ValueError(f"{name}: {what}failed with {said}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Return the line that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


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
        with _importable_cwd(), speaking(name, f"importing {path} "):
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
    with needing(extra, name):
        return importlib.import_module(module)


def _known(model: str, models: Iterable[str], source: str) -> None:
    models = list(models)
    if model not in models:
        raise ValueError(f"{source} has no model {model!r}{_perhaps(model, models)}")


def _same_classes(name: str, classes: int, num_classes: int) -> None:
    if classes != num_classes:
        bare = name.removesuffix("@pretrained")
        raise ValueError(
            f"{name} has {classes or 'no'} classes, the data has {num_classes}: train a fresh last layer first, "
            f"`limbeck train --network {name}`, and take {bare}@RUN; or say how many outputs a teacher has of whom only "
            f"layers are looked at, --teacher-num-outputs {classes}"
        )


def _perhaps(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=3)
    return f"; perhaps {' or '.join(close)}" if close else ""


def _article(value: object) -> str:
    if isinstance(value, nn.Module):
        return f"a module that is already made ({type(value).__name__})"
    return f"{type(value).__name__} {value!r:.60}"
