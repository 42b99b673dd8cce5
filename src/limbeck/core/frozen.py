"""A network that only teaches."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from limbeck.core.copied import copied
from limbeck.core.distributed import is_shared_out
from limbeck.core.sound import FLOATS, no_network
from limbeck.core.trace import submodules
from limbeck.core.wrapped import unwrapped, without_splits, without_wrappers

Mode = Literal["eval", "batch_stats", "train"]


class Frozen(nn.Module):
    """A network that teaches and never trains.

    It is a live view of the network's parameters *and* buffers: they are the network's own storage, seen without gradients,
    in a module tree of its own, and whatever becomes of them the view shows, weights that are loaded as well as tensors or
    layers that are replaced. All else is as it was when the view was made: attributes and hooks, and the given network
    keeps its mode, its hooks and its gradients. The view changes nothing of it: where a network writes to its buffers, it
    writes to copies. `.to()` moves the view alone, which has copies then; they too are made anew when the network
    changes. A deep copy of a view, as of a method, is free of the network: a snapshot.

    Since no parameter needs a gradient, its outputs enter the autograd graph only where its *inputs* need one (Jacobian
    matching). It lies outside `parameters()` and `state_dict()`, so that no optimizer, checkpoint or DDP bucket ever meets
    it.

    A teacher may have another floating-point type than the student, float16 say: what floats among its inputs is cast to
    the teacher's type (of several, that of its first parameter), and its answers and layers are cast to that of the inputs;
    where no input floats, as of tokens, to torch's default type if that is wider.

    Args:
        net: The network. Of a ``DataParallel`` one the view is of what is inside, on one device. Of a view it is another
            view of the same network, in which what is not said here is as in the first.
        mode: ``"eval"``: as it would be deployed. ``"batch_stats"``: batch norm uses the batch's own statistics (what AB
            and OFD did, by accident or not). ``"train"``: that and dropout. Buffers never change in any mode.
        inputs: Makes what the network is fed of what the student is fed: another size or normalisation, other tokens.
        output: Finds the answer in what the network returns; by default as the student's is found.
        classes: Which of the network's outputs each output of the student is, ``{student's: teacher's}`` or a list of the
            teacher's; the others are left out, so that a softmax is one over the common classes. `matched` finds them
            by name. None: all, in the same order.

    Raises:
        TypeError: No network, or one that cannot be copied; the message names the attribute.
        ValueError: An unknown mode, or another than ``"eval"`` of a TorchScript network; lazy layers without
            weights; weights that are shared out (FSDP2).

    Example:
        >>> larger = Frozen(nn.Flatten(), inputs=nn.Upsample(scale_factor=2), classes={0: 3, 1: 0})
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "eval",
        *,
        inputs: Callable[[Any], Any] | None = None,
        output: Callable[[Any], Any] | None = None,
        classes: Mapping[int, int] | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("eval", "batch_stats", "train"):
            raise ValueError(f"mode must be 'eval', 'batch_stats' or 'train', got {mode!r}")
        if not isinstance(net, nn.Module):
            raise TypeError(no_network("net", net))
        if mode != "eval" and isinstance(net, ScriptModule):
            raise ValueError(
                f"a TorchScript network teaches in eval mode alone, got {mode!r}: give the network that it was made of"
            )
        self.mode = mode
        known = net if isinstance(net, Frozen) else None
        origin = without_splits(net)
        # functions keep modules from being registered; a view may be of another tree by then
        self._origin: Callable[[], nn.Module | None] = (lambda: origin) if known is None else (lambda: known.net)
        self._marks: _Marks | None = None
        self._place: tuple[torch.device | None, torch.dtype | None] = (None, None)
        self.stays = False
        self._seen = (inputs, output)
        self.classes = None if classes is None else _positions(classes)
        if known is not None:
            self._seen = (inputs or known._seen[0], output or known._seen[1])
            self.classes = known.classes if classes is None else self.classes
        self._take(origin if known is None else known.net)
        self.train()

    @property
    def net(self) -> nn.Module:
        """The network as it is now, to look into; train the original instead."""
        if self._marks is not None and not torch.compiler.is_compiling():
            origin = self._origin()
            if origin is not None and not self._marks.hold(origin):
                self._take(origin)
        return self._hidden[0]

    @property
    def output(self) -> Callable[[Any], Any] | None:
        """Finds the answer in what the network returns, where it is not found as the student's."""
        return self._seen[1]

    def inputs(self, inputs: Any) -> Any:
        """Return what the network is fed of what the student is fed."""
        return inputs if self._seen[0] is None else self._seen[0](inputs)

    def translate(self, answer: Any) -> Any:
        """Return an answer, (N, ..., K), in the student's classes."""
        if self.classes is None:
            return answer
        if max(self.classes) >= answer.shape[-1]:
            raise ValueError(f"classes names the teacher's output {max(self.classes)}, but it has {answer.shape[-1]}")
        return answer[..., self.classes]

    def says_as(self, other: Frozen) -> bool:
        """Whether ``other`` is a view of the same parameters and buffers, fed and read alike."""
        views = [(one.mode, one._seen, one.classes, _tensors_at(one.net)) for one in (self, other)]
        return self is other or (views[0] == views[1] and bool(views[0][-1]))

    def again(self, mode: Mode | None = None) -> Frozen:
        """Return another view of the same weights, fed and read alike, which moves alone."""
        return Frozen(self, mode or self.mode)

    def alone(self) -> Frozen:
        """Return a view of the same weights that neither follows the network nor moves, for those who lay it out anew.

        FSDP2 shares it out among processes, or offloads it, in place: ``fully_shard(teacher.alone().net)``.
        """
        view = self.again()
        view._origin, view._marks, view.stays = _gone, None, True
        return view

    def train(self, mode: bool = True) -> Frozen:
        """Assert the teacher's own mode again, whatever is asked for."""
        self.training = False
        self._assert_mode(self.net)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        net = self.net
        given, wanted = self._types((args, kwargs))
        if given != wanted:
            args, kwargs = _cast((args, kwargs), given)
        if self._writes:
            copies = {name: net.get_buffer(name).clone() for name in self._writes}
            output = torch.func.functional_call(net, copies, args, kwargs)
        else:
            output = net(*args, **kwargs)
        return output if given == wanted else _cast(output, wanted)

    def shown(self, trace: dict[str, Any], inputs: Any) -> dict[str, Any]:
        """Return what was recorded of the network in the floating-point type of what the student is fed, integers too."""
        given, wanted = self._types(inputs)
        whole = given == wanted and not any(isinstance(one, Tensor) and one.is_quantized for one in trace.values())
        return trace if whole else _cast(trace, wanted)

    def _types(self, inputs: Any) -> tuple[torch.dtype, torch.dtype]:
        """Return the network's floating-point type, and that of what it is fed; twice the same where it has none."""
        default = torch.get_default_dtype()
        fed = next((leaf.dtype for leaf in tree_leaves(inputs) if getattr(leaf, "dtype", None) in FLOATS), None)
        own = self._type or fed or default
        return own, fed or torch.promote_types(own, default)

    def _take(self, origin: nn.Module) -> None:
        """Make the view of the network as it is now."""
        view = _view(origin)
        device, dtype = self._place
        if self._place != (None, None):
            view._apply(lambda t: t.to(device or t.device, dtype if t.is_floating_point() else None))  # type: ignore[no-untyped-call]
        self._hidden = (view,)  # a tuple keeps a module from being registered
        self._marks = _Marks(origin, view)
        self._assert_mode(view)
        _, self._type = _kind(view)
        self._writes = _written(view)

    def _assert_mode(self, view: nn.Module) -> None:
        view.train(self.mode == "train")
        if self.mode == "batch_stats":
            for module in view.modules():
                if isinstance(module, _BatchNorm):
                    module.train()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        if self.stays:
            return self
        view, origin = self.net, self._origin()
        former, other = _kind(view)
        view._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device, self._type = _kind(view)
        self._place = (
            device if device != former else self._place[0],
            self._type if self._type != other else self._place[1],
        )
        if origin is not None and self._marks is not None:
            if _share(view, origin):  # back where the network is
                self._place = (None, None)
            self._marks = _Marks(origin, view)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network behind: a copy is a snapshot."""
        return {**self.__dict__, "_hidden": (self.net,), "_origin": _gone, "_marks": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        """Copy the view as any network, with the functions that refer to it."""
        twin = memo[id(self)] = Frozen.__new__(Frozen)
        state = self.__getstate__()
        (view,) = state.pop("_hidden")
        twin.__dict__.update(copy.deepcopy(state, memo), _hidden=(copied(view, memo),))
        return twin


def frozen(net: nn.Module, mode: Mode = "eval") -> Frozen:
    """Return ``net`` as a teacher; one that is frozen already stays as it is."""
    return net if isinstance(net, Frozen) else Frozen(net, mode)


def matched(student: Sequence[str], teacher: Sequence[str], same: Mapping[str, str] | None = None) -> dict[int, int]:
    """Return which output of a teacher is which of the student's, for `Frozen`'s ``classes``, by the names of the classes.

    Args:
        student: The names of the student's classes, in the order of its outputs: ``data.classes``.
        teacher: Those of the teacher's.
        same: The teacher's name for a class of the student's, where they differ: ``{"automobile": "car"}``.

    Raises:
        ValueError: A class of the student's that the teacher does not know, with the closest that it does.

    Example:
        >>> matched(["cat", "car"], ["automobile", "bird", "cat"], {"car": "automobile"})
        {0: 2, 1: 0}
    """
    places, same = {name: place for place, name in enumerate(teacher)}, same or {}
    for name in student:
        if same.get(name, name) not in places:
            close = difflib.get_close_matches(name, places, n=3) or list(places)[:6]
            raise ValueError(
                f"the teacher has no class {same.get(name, name)!r}; it has {close}: say which is meant, {{{name!r}: ...}}"
            )
    return {place: places[same.get(name, name)] for place, name in enumerate(student)}


def _positions(classes: Mapping[int, int] | Sequence[int]) -> list[int]:
    if isinstance(classes, Mapping):
        if sorted(classes) != list(range(len(classes))):
            raise ValueError(
                f"classes must name a teacher's output for each output of the student, 0 to {len(classes) - 1}, got "
                f"{sorted(classes)}"
            )
        classes = [classes[place] for place in range(len(classes))]
    if not classes or min(classes) < 0:
        raise ValueError(f"classes must be outputs of the teacher, from 0 on, got {list(classes)}")
    return list(classes)


def bare(net: nn.Module) -> nn.Module:
    """Return the user's network, whether frozen or not: the one whose layers have the user's names."""
    return net.net if isinstance(net, Frozen) else net


def _view(net: nn.Module) -> nn.Module:
    """Copy the module tree but not parameters and buffers: these are shared, without gradients."""
    if lazy := [name for name, value in _tensors(net).items() if is_lazy(value)]:
        raise ValueError(
            f"{type(net).__name__} has lazy layers without weights ({lazy[0]}): run one batch through it first, net(inputs)"
        )
    if any(is_shared_out(p) for p in net.parameters()):
        raise ValueError(
            f"the weights of {type(net).__name__} are shared out (FSDP2), and torch copies no such network, as limbeck "
            "does to look at a teacher: freeze it before, teacher = limbeck.Frozen(net).alone(), then "
            "fully_shard(teacher.net)"
        )
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in net.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in net.buffers()}
    view = without_wrappers(copied(net, shared), compiled=False)
    for p in view.parameters():
        p.requires_grad_(False)
    _share(view, net)
    return view


def _share(view: nn.Module, net: nn.Module) -> bool:
    """Let what has come to lie where the network's own does be the network's own; return whether all has.

    TorchScript copies all of itself, and its buffers stay copies, since nobody can tell whether it writes to them.
    """
    own, whole = _tensors(net), True
    for path, module in [("", unwrapped(view)), *submodules(view).items()]:
        held: list[Mapping[str, Tensor | None]] = (
            [module._parameters] if isinstance(module, ScriptModule) else [module._parameters, module._buffers]
        )
        for name, mine in [(name, mine) for each in held for name, mine in each.items()]:
            its = own.get(f"{path}.{name}")
            if mine is None or its is None:
                continue
            if (mine.device, mine.dtype) != (its.device, its.dtype):
                whole = False
            elif mine.data_ptr() != its.data_ptr():
                mine.data = its.data
    return whole


class _Marks:
    """By what it is seen whether a network is still what a view was made of.

    Args:
        net: The network.
        view: The view of it.
    """

    def __init__(self, net: nn.Module, view: nn.Module) -> None:
        mine, its = _tensors(view), _tensors(net)
        self.net = net
        self.places = [(value, value.data_ptr()) for value in its.values()]
        # what the view shares it sees
        self.versions = [
            (value, value._version)
            for name, value in its.items()
            if (name not in mine or mine[name].data_ptr() != value.data_ptr()) and not value.is_inference()
        ]
        self.held = [(held, [*held.values()]) for module in net.modules() for held in _held(module) if held]
        # the weights of a quantised layer are no tensors
        self.packed = [
            (vars(module), name, value)
            for module in net.modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.ScriptObject)
        ]

    def hold(self, net: nn.Module) -> bool:
        """Whether all is as it was."""
        return (
            self.net is net
            and all(len(held) == len(values) and all(map(is_, held.values(), values)) for held, values in self.held)
            and all(value.data_ptr() == place for value, place in self.places)
            and all(value._version == version for value, version in self.versions)
            and all(held.get(name) is value for held, name, value in self.packed)
        )


def _held(module: nn.Module) -> Sequence[dict[str, Any]]:
    """Return what a module holds by name; in TorchScript nothing can be replaced but the tensors' values."""
    return () if isinstance(module, ScriptModule) else (module._modules, module._parameters, module._buffers)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by all their names, without those of wrappers."""
    return {
        f"{path}.{name}": value
        for path, module in [("", unwrapped(net)), *submodules(net).items()]
        for own in (module._parameters, module._buffers)
        for name, value in own.items()
        if value is not None
    }


def _tensors_at(net: nn.Module) -> list[tuple[str, int, torch.Size]]:
    """Where the parameters and buffers of a network lie."""
    return sorted((name, value.data_ptr(), value.shape) for name, value in _tensors(net).items())


def _written(view: nn.Module) -> list[str]:
    """Return the buffers that a network might write to as it runs, in the mode in which it is."""
    return [
        f"{path}.{name}" if path else name
        for path, module in view.named_modules()
        if module._buffers and not isinstance(module, ScriptModule) and (module.training or not _of_torch(module))
        for name in module._buffers
    ]


def _of_torch(module: nn.Module) -> bool:
    """Whether torch's own code runs, which writes to no buffer in eval mode."""
    return "forward" not in vars(module) and type(module).forward.__module__.startswith("torch.nn.")


def _kind(net: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Return where the first tensor of a network's that floats is, and its type."""
    floating = (value for value in chain(net.parameters(), net.buffers()) if value.dtype in FLOATS)
    return next(((value.device, value.dtype) for value in floating), (None, None))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast what floats in a value, wherever it lies."""
    return tree_map(lambda leaf: _cast_leaf(leaf, dtype), value)


def _cast_leaf(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, Tensor):
        plain = leaf.dequantize() if leaf.is_quantized else leaf
        return plain.to(dtype) if plain.dtype in FLOATS else leaf
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return dataclasses.replace(
            leaf, **{f.name: _cast(getattr(leaf, f.name), dtype) for f in dataclasses.fields(leaf)}
        )
    return leaf


def _gone() -> None:
    """Stand for a network that a copied view is free of."""


def together(some: Mapping[str, Frozen], others: Mapping[str, Frozen]) -> dict[str, Frozen]:
    """Return the teachers of two methods by role.

    Raises:
        ValueError: They have different networks in one role.
    """
    for role in sorted(some.keys() & others.keys()):
        if not some[role].says_as(others[role]):
            raise ValueError(
                f"the methods have different networks as their {role}, or see one in different ways (mode, inputs, output, "
                "classes): give both the same, teacher = limbeck.Frozen(net)"
            )
    return {role: {**others, **some}[role] for role in sorted(some.keys() | others.keys())}


def as_teachers(teachers: nn.Module | Mapping[str, nn.Module] | None) -> dict[str, Frozen]:
    """Return teachers by role; a single one plays ``"teacher"``.

    Raises:
        TypeError: What is no network, by its role.
    """
    if teachers is None:
        return {}
    if not isinstance(teachers, Mapping):
        teachers = {"teacher": teachers}
    for role, net in teachers.items():
        if not isinstance(net, nn.Module):
            raise TypeError(no_network(role, net))
    return {role: frozen(net) for role, net in teachers.items()}
