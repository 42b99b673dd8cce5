"""A network cut at layers into consecutive sections."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from limbeck.core.trace import locate


def sections(net: nn.Module, after: Sequence[str]) -> list[nn.Module]:
    """Cut a network after each of some layers: ``sections(net, ["layer1", "layer2"])`` are three modules which, one after
    the other, are the network.

    They share its parameters, buffers and submodules, so that training one trains the other, and names in their
    ``state_dict`` are the network's own. The forward pass is traced by `torch.fx` down to the layers named and no
    further: only the modules that hold them must be traceable. A compiled network is cut as it was before.

    Args:
        net: The network; it is not changed.
        after: Paths of layers, in the order in which the network calls them; ``fc:in`` cuts before ``fc``.

    Returns:
        One module more than there are layers; the last gives what the network gives.

    Raises:
        ValueError: A layer that does not exist, is called twice, never or in another order; one that does not lie on the
            only path from the inputs to the outputs (a skip connection passes it); a forward pass that cannot be
            traced, with the line. Then make the sections by hand: a list of your own modules does as well.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> first, second = sections(net, ["1"])
        >>> x = torch.randn(5, 4)
        >>> torch.equal(second(first(x)), net(x))
        True
    """
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    if not after:
        raise ValueError("expected a layer at least to cut after, got none")
    for path in after:
        _, entry = locate(net, path)
        if entry not in ([], ["in"]) or not path:
            raise ValueError(
                f"{path!r} cannot be cut after: name a layer, or its input as 'fc:in', and no entry of either"
            )
        if inner := [other for other in after if other.startswith(f"{path}.")]:
            raise ValueError(f"{inner[0]!r} lies within {path!r}: cut after one of them")
    graph = _trace(net, after)
    cuts = _cuts(net, graph, after)
    nodes = [node for node in graph.nodes if node.op != "output"]
    starts, ends = [0, *(nodes.index(cut) + 1 for cut in cuts)], [*(nodes.index(cut) + 1 for cut in cuts), len(nodes)]
    (given,) = (node for node in nodes if node.op == "placeholder")
    entries, exits = [given, *cuts], [*cuts, _answer(graph)]
    return [
        _section(net, nodes[start:end], entry, leaves)
        for start, end, entry, leaves in zip(starts, ends, entries, exits, strict=True)
    ]


class _Tracer(fx.Tracer):
    """Looks into the modules that hold a layer to cut after, and into no other."""

    def __init__(self, after: Sequence[str]) -> None:
        super().__init__()
        self._after = after

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(f"0.{layer}".startswith(f"{module_qualified_name}.") for layer in self._after)


def _trace(net: nn.Module, after: Sequence[str]) -> fx.Graph:
    """Return the graph of the forward pass, in which the layers are single nodes."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        learning, answering = (_Tracer(after).trace(nn.Sequential(net.train(mode))) for mode in (True, False))
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot be cut: its forward pass is not traceable at {_line(error)}: {error}. "
            "Make the sections by hand, as modules of your own that are called one after the other"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if str(learning) != str(answering):
        raise ValueError(
            f"{type(net).__name__} cannot be cut: its forward pass asks for self.training, and a section does the same "
            "in both modes. Use modules that know their mode, as nn.Dropout, and switch auxiliary outputs off"
        )
    for node in answering.nodes:
        if node.op in ("call_module", "get_attr"):  # a network's parts have its own names in its sections
            node.target = node.target.removeprefix("0.")
    return answering


def _line(error: Exception) -> str:
    """Return the last line that is not torch's own, as file:line: text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if "torch/fx/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
    ]
    return f"{own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else "its call"


def _cuts(net: nn.Module, graph: fx.Graph, after: Sequence[str]) -> list[fx.Node]:
    cuts = []
    for path in after:
        layer, _, entry = path.partition(":")
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
        if len(calls) != 1:
            raise ValueError(
                f"{type(net).__name__} calls {layer!r} {len(calls)} times: it can be cut at what it calls once"
            )
        cuts.append(calls[0].all_input_nodes[0] if entry else calls[0])
    order = list(graph.nodes)
    if cuts != sorted(cuts, key=order.index) or len(set(cuts)) < len(cuts):
        right = [str(node.target) for node in order if node in cuts]
        raise ValueError(f"layers must be named in the order of the forward pass, {right}, got {list(after)}")
    for cut in cuts:
        before = {*order[: order.index(cut)]}
        passing = [
            (node, user) for node in before if node.op != "get_attr" for user in node.users if user not in before
        ]
        if past := [(node, user) for node, user in passing if user is not cut]:
            made, user = past[0]
            raise ValueError(
                f"{type(net).__name__} cannot be cut after {_named(cut)!r}: {_named(user)} takes {_named(made)}, made "
                "before it, so that it does not lie on the only path. Cut where such a block ends"
            )
    return cuts


def _named(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _answer(graph: fx.Graph) -> Any:
    (output,) = (node for node in graph.nodes if node.op == "output")
    return output.args[0]


def _section(net: nn.Module, nodes: Sequence[fx.Node], entry: fx.Node, leaves: Any) -> nn.Module:
    """Make a module of some nodes: ``entry`` is what it is given, ``leaves`` what it gives."""
    graph = fx.Graph()
    copies = {entry: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter that was read before the cut: the section reads it itself
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(fx.node.map_arg(leaves, copied))
    return fx.GraphModule(net, graph, f"{type(net).__name__}Section")
