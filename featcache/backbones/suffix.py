"""The trainable copy of what follows a cut, and its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import attrgetter

from torch import Tensor, fx, nn

from featcache.backbones.tracing import Trace


def follow_up(traced: Trace, source: fx.Node, nodes: frozenset[fx.Node], *, copies: bool = False) -> fx.GraphModule:
    """A module of some nodes of a graph, with weights of its own.

    Args:
        traced: the network's graph.
        source: whose value is the module's input.
        nodes: those between it and the network's end.
        copies: take a copy of the input first.

    Returns:
        In eval mode, all its parameters trainable. Parts and weights have the names that they have in the network.
    """
    graph = fx.Graph()
    start = graph.placeholder("x")
    made = {source: graph.call_method("clone", (start,)) if copies else start}
    for node in traced.graph.nodes:
        if node in traced.batch_sizes and not nodes.isdisjoint(node.users):
            made[node] = graph.call_method("size", (start, 0))
        elif node in nodes:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(fx.node.map_arg(traced.output.args[0], made.__getitem__))
    graph.lint()
    # The trace shares its weights with the frozen network, the copy does not.
    suffix = copy.deepcopy(fx.GraphModule(traced.root, graph))
    saved = traced.root.state_dict().keys()
    for node in suffix.graph.nodes:
        value = attrgetter(str(node.target))(suffix) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and node.target not in saved:
            # A constant of the code, which every cut makes again, is no weight.
            owner, _, name = str(node.target).rpartition(".")
            suffix.get_submodule(owner).register_buffer(name, value, persistent=False)
    for parameter in suffix.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return suffix.eval()


def suffix_stages(suffix: fx.GraphModule) -> tuple[tuple[str, nn.Module], ...]:
    """The parts that have parameters, in the order in which they are run; every parameter is in exactly one.

    A part whose parameters are all of one axis (of a normalisation, or a bias) goes with the part before it.

    Args:
        suffix: from `follow_up`.
    """
    stages: list[tuple[str, list[nn.Module]]] = []
    seen: set[nn.Parameter] = set()
    for node in suffix.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        name = str(node.target)
        part = attrgetter(name)(suffix)
        # A constant or a buffer is neither.
        own = list(part.parameters()) if isinstance(part, nn.Module) else [part] * isinstance(part, nn.Parameter)
        new = [parameter for parameter in own if parameter not in seen]
        if not new:
            continue
        seen.update(new)
        whole = part if isinstance(part, nn.Module) and len(new) == len(own) else nn.ParameterList(new)
        if begins_stage(new) or not stages:
            stages.append((name, [whole]))
        else:
            stages[-1][1].append(whole)
    return tuple((name, parts[0] if len(parts) == 1 else nn.ModuleList(parts)) for name, parts in stages)


def begins_stage(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether any parameter has several axes, as weights of convolutions, linear layers and attention do."""
    return any(parameter.ndim > 1 for parameter in parameters)
