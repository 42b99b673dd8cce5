"""Weights from a file into a network, or an error that says what does not fit."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.nets.remade import MADE, remade

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


def load_weights(net: nn.Module, file: str, name: str) -> None:
    """Put the weights in ``file`` into ``net``.

    A file of torch may hold the weights themselves or a dictionary with them under ``state_dict`` or ``model``. The
    prefixes ``module.`` and ``_orig_mod.`` are taken off when every key has them.

    Args:
        net: Takes the weights, in place; untouched if they do not fit.
        file: Path of a ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt`` file.
        name: What the user called the network, for errors.

    Raises:
        ValueError: The file is missing, cannot be read or does not fit; the text lists what is wrong.
    """
    state = _without_prefixes(_read(file, name), net.state_dict())
    problem = _mismatch(state, net.state_dict())
    if problem:
        raise ValueError(f"{name}: the weights in {file} do not fit the network: {problem}")
    net.load_state_dict(state, strict=False)


def prepared(net: nn.Module, file: str, name: str, shape: tuple[int, ...] | None) -> nn.Module:
    """Return the network whose weights are in ``file``: ``net``, or what the file says is made of it.

    Args:
        net: The network.
        file: As for `load_weights`.
        name: What the user called the network, for errors.
        shape: Of one sample; None where it is no tensor.

    Raises:
        ValueError: The network does not have the layers that the file names.
    """
    facts = _facts(file)
    if shape is None:
        if MADE & facts.keys():
            raise ValueError(f"{name}: {file} is of a network made of another one, for inputs that are one tensor")
        return net
    try:
        return remade(net, facts, torch.zeros(2, *shape))
    except ValueError as error:
        raise ValueError(f"{name}: {file} is of a network made of another one: {error}") from error


def task_of(file: str) -> str | None:
    """Return the name of the task that the weights in a file are for; None where it says nothing, as of classification."""
    return _facts(file).get("task")


def _facts(file: str) -> dict[str, str]:
    """Return what a safetensors file says of itself; what cannot be read `load_weights` complains of."""
    path = Path(file).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            found: dict[str, str] = opened.metadata() or {}
    except SafetensorError:
        return {}
    return found


def _read(file: str, name: str) -> dict[str, Tensor]:
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{name}: expected after '@' a file ending in {', '.join(SUFFIXES)}, or 'random' or 'pretrained', got {file!r}"
        )
    if not path.is_file():
        raise ValueError(f"{name}: no such file of weights: {path.absolute()}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, name)
    return _read_torch(path, name)


def _read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(f"{name}: reading {path} needs safetensors: pip install 'limbeck[train]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{name}: {path} is not a readable safetensors file: {error}") from error


def _read_torch(path: Path, name: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{name}: {path} cannot be read as plain weights ({_first_line(error)}); write it with "
            "torch.save(net.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    stranger = _no_tensor(content)
    if stranger:
        raise ValueError(
            f"{name}: expected a dictionary of tensors in {path}, or one with them under 'state_dict' or 'model', "
            f"got {stranger}"
        )
    return dict(content)


def _no_tensor(content: object) -> str:
    """Say what in ``content`` keeps it from being a dictionary of tensors; empty if it is one."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    return f"other things under {_some(others)}" if others else ""


def _without_prefixes(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        common = bool(state) and all(key.startswith(prefix) for key in state)
        if common and not all(key.startswith(prefix) for key in expected):
            # again: a compiled network may lie inside DistributedDataParallel, or the other way round
            return _without_prefixes({key.removeprefix(prefix): value for key, value in state.items()}, expected)
    return state


def _mismatch(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Say what keeps ``state`` from fitting; empty if nothing does."""
    # torch itself fills in the step counters of batch norm, which old files lack
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    parts = []
    if misshapen and not missing and not unexpected:
        parts += _classes(misshapen, state, expected)
    if missing:
        parts.append(f"missing in the file ({len(missing)}): {_some(missing)}")
    if unexpected:
        parts.append(f"not in the network ({len(unexpected)}): {_some(unexpected)}")
    if misshapen:
        shapes = [f"{key} (file {tuple(state[key].shape)}, network {tuple(expected[key].shape)})" for key in misshapen]
        parts.append(f"other shape ({len(shapes)}): {_some(shapes)}")
    return "; ".join(parts)


def _classes(misshapen: list[str], state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Name both class counts if only the last layer's number of outputs differs."""
    last = list(expected)[-1].rpartition(".")[0]
    only_outputs = all(
        key.rpartition(".")[0] == last
        and state[key].ndim == expected[key].ndim >= 1
        and state[key].shape[1:] == expected[key].shape[1:]
        for key in misshapen
    )
    if not only_outputs:
        return []
    key = misshapen[0]
    return [f"the file was trained for {len(state[key])} classes, the data has {len(expected[key])}"]


def _some(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
