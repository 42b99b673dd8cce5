"""Weights from a file into a network, or an error that says what does not fit."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from limbeck.core.wrapped import unwrapped
from limbeck.nets.remade import MADE, remade
from limbeck.zoo._files import Candidate, Unread, Weights, facts_in, some

EXTRA = "extra state"
"""What our own files call the state of layers that is no tensor, JSON by name."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)")
"""Names of what is averaged over a training, beside what was trained."""


class Head(NamedTuple):
    """The last layers of a network, where these alone differ from a file's, in their number of outputs."""

    keys: list[str]
    was: int | None  # outputs in the file; None where it has none
    now: int

    @property
    def layers(self) -> str:
        """Their names."""
        return some(dict.fromkeys(key.rpartition(".")[0] or key for key in self.keys))


class Fit(NamedTuple):
    """How a dictionary of tensors, without a prefix of its names, fits a network."""

    key: str  # where it is in the file, with the prefix
    state: dict[str, Tensor]
    others: Mapping[str, Any]  # what is no tensor
    outside: list[str]  # names without the prefix
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    unlike: list[str]  # of another kind: integers, say

    @property
    def problems(self) -> int:
        """How many names do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen) + len(self.unlike)


def load_weights(net: nn.Module, weights: Weights, name: str, outputs: int | None, new_head: bool | None) -> None:
    """Put a file's weights into a network.

    Of several dictionaries of tensors in the file the one that fits is taken, without a prefix that all its names have.
    Where several fit and differ, one is taken before averages of it, and a warning says so; others are refused.

    Args:
        net: Takes the weights, in place; untouched if they do not fit.
        weights: Of the file.
        name: What the user called the network, for errors.
        outputs: How many the data ask for.
        new_head: Leave the last layers as they are where their number of outputs differs. None: no, but it could be asked
            for.

    Raises:
        ValueError: They do not fit, several do, or some are not finite; the text lists what is wrong.
    """
    plain = unwrapped(net)
    fits = sorted(_fits(plain, weights), key=lambda fit: fit.problems)
    if not fits:
        raise ValueError(f"{name}: {weights.file} has nothing under {weights.key!r}: it has {some(_keys(weights), 8)}")
    expected = _expected(plain)
    good = [fit for fit in fits if not fit.problems]
    heads = [(fit, head) for fit in fits if new_head and not good and (head := _head(fit, expected, outputs))]
    if not good and not heads:
        hint = "" if new_head else _hint(_head(fits[0], expected, outputs), f"{name}@{weights.file}", new_head)
        where = f", under {fits[0].key!r}," if fits[0].key else ""
        raise ValueError(
            f"{name}: the weights in {weights.file}{where} do not fit the network: {_mismatch(fits[0], expected)}{hint}"
        )
    fit = _one_of(good or [fit for fit, _ in heads], weights, name)
    head = next((head for each, head in heads if each is fit), None)
    taken = {key: value for key, value in fit.state.items() if head is None or key not in head.keys}
    _refuse_not_finite(taken, plain, weights, name)
    _refuse_untied(taken, plain, weights, name)
    plain.load_state_dict({**_extra(fit, plain, weights, name), **taken}, strict=False)
    if fit.outside:
        tell(f"{name}: of {weights.file} what is under {fit.key!r} is taken, and {_parts(fit.outside)} left out")
    if head is not None:
        tell(fresh(name, head.layers, head.was, head.now))


def fresh(name: str, layers: str, was: int | None, now: int) -> str:
    """Say in one line that a last layer begins anew."""
    before = f"in place of {was}" if was else "where the file has none"
    return f"{name}: the last layer, {layers}, is fresh and has learned nothing yet: {now} outputs {before}"


def tell(news: str) -> None:
    """Tell the user what weights are taken, once."""
    warnings.warn(news, stacklevel=4)


def prepared(net: nn.Module, weights: Weights, name: str, shape: tuple[int, ...] | None) -> nn.Module:
    """Return the network whose weights a file has: ``net``, or what the file says is made of it.

    Args:
        net: The network.
        weights: Of the file.
        name: What the user called the network, for errors.
        shape: Of one sample; None where it is no tensor.

    Raises:
        ValueError: The network does not have the layers that the file names.
    """
    facts, file = weights.facts, weights.file
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
    return facts_in(file).get("task")


# what fits -----------------------------------------------------------------------------------------------------------


def _fits(net: nn.Module, weights: Weights) -> Iterator[Fit]:
    """Try each dictionary of tensors that the user may mean, without each prefix that leaves names of the network."""
    expected, twins = _expected(net), _twins(net)
    for candidate in weights.candidates:
        for prefix in _prefixes(candidate.tensors, expected):
            fit = _fit(candidate, prefix, expected, twins)
            if weights.key is None or f".{weights.key}." in f".{fit.key}.":
                yield fit


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return what may stand before the network's own names, what leaves most of them first; nothing may."""
    found = Counter({"": 0})
    for name in tensors:
        parts = name.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in expected:
                found[".".join([*parts[:index], ""])] += 1
    return [prefix for prefix, _ in found.most_common() if not _is_one_of_several(prefix, found)]


def _is_one_of_several(prefix: str, found: Mapping[str, int]) -> bool:
    """Whether a prefix ends in a number, and a network's names stand under another number too: an ensemble's members."""
    stem, _, number = prefix.removesuffix(".").rpartition(".")
    if not number.isdigit():
        return False
    others = (one.removesuffix(".").rpartition(".") for one in found if one and one != prefix)
    return any(of == stem and last.isdigit() for of, _, last in others)


def _fit(candidate: Candidate, prefix: str, expected: Mapping[str, Tensor], twins: Mapping[str, list[str]]) -> Fit:
    state = {key.removeprefix(prefix): value for key, value in candidate.tensors.items() if key.startswith(prefix)}
    others = {key.removeprefix(prefix): value for key, value in candidate.others.items() if key.startswith(prefix)}
    there = [key for key in state if key in expected]
    return Fit(
        ".".join(part for part in (candidate.key, prefix.removesuffix(".")) if part),
        state,
        others,
        outside=[key for key in candidate.tensors if not key.startswith(prefix)],
        missing=[key for key in expected if not _is_there(key, state, twins)],
        unexpected=[key for key in state if key not in expected],
        misshapen=[key for key in there if not is_lazy(expected[key]) and state[key].shape != expected[key].shape],
        unlike=[key for key in there if _kind(state[key], expected[key])],
    )


def _expected(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if isinstance(value, Tensor)}


def _twins(net: nn.Module) -> dict[str, list[str]]:
    """Return by each parameter's name all its names: tied weights have several, and files may have one of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: several for several in names.values() for name in several if len(several) > 1}


def _is_there(key: str, state: Mapping[str, Tensor], twins: Mapping[str, list[str]]) -> bool:
    # torch itself fills in the step counters of batch norm, which old files lack
    return key in state or key.endswith("num_batches_tracked") or any(twin in state for twin in twins.get(key, ()))


def _kind(value: Tensor, expected: Tensor) -> str:
    """Say what a tensor is that cannot stand for another one; empty if it can, in whatever precision."""
    if value.is_meta:
        return "has no values"
    if value.is_quantized or value.layout != torch.strided:
        return "quantised or sparse"
    if value.is_complex() and not expected.dtype.is_complex:
        return "complex"
    if expected.dtype.is_floating_point and not value.is_floating_point():
        return f"{value.dtype}".removeprefix("torch.")
    return ""


def _one_of(fits: list[Fit], weights: Weights, name: str) -> Fit:
    """Return the one that is meant: the only one that fits, or the one beside its averages."""
    different: list[Fit] = []
    for fit in fits:
        if not any(_same(fit.state, other.state) for other in different):
            different.append(fit)
    trained = [fit for fit in different if not AVERAGED.search(fit.key)]
    if len(different) == 1:
        return different[0]
    words = [f"{weights.file}:{fit.key}" for fit in different]
    if len(trained) != 1:
        raise ValueError(
            f"{name}: {weights.file} has {len(different)} weights that fit: say which, {' or '.join(words)}"
        )
    others = [f"{weights.file}:{fit.key}" for fit in different if fit is not trained[0]]
    tell(f"{name}: what is under {trained[0].key!r} is taken; averages of it are there too, as {' or '.join(others)}")
    return trained[0]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)


def _head(fit: Fit, expected: Mapping[str, Tensor], outputs: int | None) -> Head | None:
    """Return the last layers, if nothing else differs and they differ in nothing but their number of outputs."""
    if fit.unexpected or fit.unlike or (fit.missing and fit.misshapen):
        return None
    keys = fit.misshapen or fit.missing
    if len(keys) == len(expected) or any(is_lazy(expected[key]) for key in keys):
        return None
    shapes = [(tuple(fit.state[key].shape) if key in fit.state else None, tuple(expected[key].shape)) for key in keys]
    if any(not ours or (theirs is not None and (not theirs or theirs[1:] != ours[1:])) for theirs, ours in shapes):
        return None
    counts = {(theirs[0] if theirs else None, ours[0]) for theirs, ours in shapes}
    if len(counts) != 1:
        return None
    ((was, now),) = counts
    last = list(expected)[-1].rpartition(".")[0]
    if fit.missing and keys != [key for key in expected if key.rpartition(".")[0] == last]:
        return None  # what lacks is the head only where it is the last layer, and whole
    return Head(keys, was, now) if outputs in (None, now) else None


def _refuse_not_finite(state: Mapping[str, Tensor], net: nn.Module, weights: Weights, name: str) -> None:
    """Find weights that no answer can come of; buffers may be infinite, as masks are."""
    parameters = {key for key, _ in net.named_parameters(remove_duplicate=False)}
    for key, value in state.items():
        if value.is_floating_point() and (wrong := _not_finite(value, key in parameters)):
            raise ValueError(
                f"{name}: the weights in {weights.file} are not finite: {key} has {wrong:,} of {value.numel():,} values "
                "that are nan or infinite. Its training diverged, or it was written in too low a precision: take an "
                "earlier checkpoint, or train it again with a lower learning rate"
            )


def _refuse_untied(state: Mapping[str, Tensor], net: nn.Module, weights: Weights, name: str) -> None:
    """Find weights that are one in the network and two in the file."""
    for key, several in _twins(net).items():
        if other := next(
            (one for one in several if {one, key} <= state.keys() and not _alike(state[one], state[key])), None
        ):
            raise ValueError(
                f"{name}: {key} and {other} are one tensor in the network, and two that differ in {weights.file}: it is "
                "of a network that does not tie them"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _extra(fit: Fit, net: nn.Module, weights: Weights, name: str) -> dict[str, Any]:
    """Return the state of layers that is no tensor, where the network asks for it."""
    there = {**json.loads(weights.facts.get(EXTRA, "{}")), **fit.others}
    extra = {
        key: there[key] for key, value in net.state_dict().items() if key in there and not isinstance(value, Tensor)
    }
    if pickled := [key for key, value in extra.items() if isinstance(value, Unread)]:
        raise ValueError(
            f"{name}: {weights.file} has the extra state {pickled[0]} pickled, as {type(extra[pickled[0]]).__name__}, "
            "which could run any code and is not opened: let get_extra_state() return a tensor, or numbers and words"
        )
    return extra


def _not_finite(value: Tensor, infinite_too: bool) -> int:
    wide = value if value.dtype in (torch.float32, torch.float64) else value.float()
    wrong = ~wide.isfinite() if infinite_too else wide.isnan()
    return int(wrong.sum())


# what is said --------------------------------------------------------------------------------------------------------


def _mismatch(fit: Fit, expected: Mapping[str, Tensor]) -> str:
    """Say what keeps weights from fitting."""
    parts = []
    head = _head(fit, expected, None)
    if head is not None and head.was:
        parts.append(f"the file was trained for {head.was} classes, the data has {head.now}")
    if fit.missing:
        listed = [f"{key}{_instead(key, fit)}" for key in fit.missing]
        parts.append(f"missing in the file ({len(listed)}): {some(listed)}")
    if fit.unexpected:
        parts.append(f"not in the network ({len(fit.unexpected)}): {some(fit.unexpected)}")
    if fit.misshapen:
        shapes = [
            f"{key} (file {tuple(fit.state[key].shape)}, network {tuple(expected[key].shape)})" for key in fit.misshapen
        ]
        parts.append(f"other shape ({len(shapes)}): {some(shapes)}")
    if fit.unlike:
        kinds = [
            f"{key} (file {_kind(fit.state[key], expected[key])}, network {expected[key].dtype})" for key in fit.unlike
        ]
        parts.append(f"other kind of number ({len(kinds)}): {some(kinds)}".replace("torch.", ""))
    return "; ".join(parts)


def _instead(key: str, fit: Fit) -> str:
    """Say what the file has in place of a name."""
    if key in fit.others:
        return f" (there it is no tensor, but {type(fit.others[key]).__name__})"
    close = difflib.get_close_matches(key, fit.unexpected or fit.outside, n=1)
    return f" (closest there: {close[0]})" if close else ""


def _hint(head: Head | None, words: str, new_head: bool | None) -> str:
    if head is None:
        return ""
    fits = f". All but the last layer, {head.layers}, fits: "
    if new_head is None:
        return fits + "a network that is to be trained may begin with a fresh one, --new-head (new_head=True)"
    return fits + (
        "a teacher, or a network that is measured or shipped, never has a fresh one; train it first, "
        f"`limbeck train --network {words} --new-head`"
    )


def _parts(names: Iterable[str]) -> str:
    """Say what names begin with, where that is shorter."""
    return some(dict.fromkeys(name.partition(".")[0] for name in names))


def _keys(weights: Weights) -> list[str]:
    """Name what the user may ask for."""
    return list(
        dict.fromkeys(
            ".".join(part for part in (candidate.key, name.partition(".")[0]) if part)
            for candidate in weights.candidates
            for name in candidate.tensors
        )
    )
