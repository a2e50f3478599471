"""Splitting a network in two: the frozen part, whose activations are stored, and a trainable copy of the tail.

The first layers of a trained network transfer as they are; the later a layer, the more it has to be trained again
(J. Yosinski, J. Clune, Y. Bengio and H. Lipson, "How transferable are features in deep neural networks?", NIPS 2014).
The frozen part is the network itself, taken at a stored layer. The tail is a `torch.fx` graph with its own copy of the
weights. It is never written to disk as code: the same split of the same network makes it again, with the same names of
weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor, fx, nn

from featcache.backbones.layers import POOLED, Layer, check_module
from featcache.backbones.network import Network, outputs_that_exist
from featcache.backbones.tracing import MODE, Trace, trace
from featcache.core.errors import UsageError
from featcache.core.recipe import StandardTransform

TOLERANCE = 1e-4
"""Largest ‖a - b‖/‖b‖ between the tail's vectors from stored activations and the network's from images."""
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class SplitNetwork:
    """A network split in two.

    Attributes:
        layer: path of the first module that trains.
        cached: the layer whose stored activations the tail takes, such as ``blocks.4:none``; ``P:mean`` if the module P
            returns one vector per image.
        shape: of one image's activations there.
        tail: maps (n, *shape) float32 to what ``pooled`` is, (n, d). A trainable copy, in eval mode, on the network's
            device; training it changes nothing in the network.
        stages: names and modules of the tail's parts that have parameters, in network order; each parameter is in
            exactly one. A part without any parameter of two or more axes, such as a normalization, belongs to the
            stage before it.
    """

    layer: str
    cached: str
    shape: tuple[int, ...]
    tail: nn.Module
    stages: tuple[tuple[str, nn.Module], ...]


def split_network(network: Network, layer: str) -> SplitNetwork:
    """Split a network before a layer.

    Everything that the network computes from there on must follow from the output of one module before it; that
    module's ``:none`` is what is stored. Views and functions without weights in between, such as flatten, identity or
    dropout, belong to the tail. In training mode the tail behaves as its modules do: batch normalization uses batch
    statistics and updates its running ones, dropout and stochastic depth drop. The tail is compared with the network
    on two random images before it is returned.

    Args:
        network: the loaded network.
        layer: path of the first module that trains, as `split_points` lists them or deeper, such as ``layer3.1``.

    Raises:
        UnknownNameError: there is no such module.
        UsageError: a skip connection crosses the split point, the layer's input is not the output of one module, its
            axes are not declared, nothing after it has weights, or torch.fx cannot trace the code around it. The
            message names the nearest split points.

    Example:
        >>> from featcache.backbones import tiny_backbone
        >>> split = split_network(tiny_backbone().network, "body.1")
        >>> split.cached, split.shape, [name for name, _ in split.stages]
        ('body.0:none', (12, 8, 8), ['body.1.0'])
    """
    check_module(layer, network.names)
    parts = layer.split(".")
    traced = None
    try:
        traced = trace(network.module, {".".join(parts[:i]) for i in range(1, len(parts))}, _lists(network))
        point = _split_point(traced, layer)
    except UsageError as why:
        raise UsageError(f"The network cannot be split at {layer!r}: {why} {_nearest(network, traced, layer)}") from why
    cached = Layer(_stored(network, [point.path]).get(point.path, f"{point.path}:none"), 0, ())
    got = network.forward(_noise(network), [cached, Layer(POOLED, 1, ())])
    stored, expected = got[cached.name], got[POOLED]
    x = torch.from_numpy(stored.copy()).to(network.device)
    tail = tail_of(traced, point.source, point.nodes)
    with torch.inference_mode():
        given = tail(x).float().cpu().numpy()
    if not np.array_equal(x.cpu().numpy(), stored, equal_nan=True):
        # It changes its input in place, which belongs to the caller.
        tail = tail_of(traced, point.source, point.nodes, clone_input=True)
    norms = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(given - expected, axis=1) if given.shape == expected.shape else np.full(len(stored), np.inf)
    if not (errors <= TOLERANCE * norms).all():
        raise UsageError(
            f"The network cannot be split at {layer!r}: from the activations of {cached.name} the later layers give "
            f"other vectors than the whole network does from the images (relative error {(errors / norms).max():.1e}). "
            "Its code may change activations in place after a module, or depend on what a graph does not hold."
        )
    return SplitNetwork(layer, cached.name, stored.shape[1:], tail, tail_stages(tail))


def split_points(network: Network) -> list[str]:
    """The layers at which a network can be split, in network order.

    These are the layers that ``featcache layers`` shows and where `split_network` works, except those without weights
    and those that belong to the layer before, such as a normalization. `split_network` also works there, and often
    inside of other layers. If several names mean the same split, such as ``layer1`` and its first block, only the
    shortest is listed.

    Args:
        network: the loaded network, or one without its weights.

    Raises:
        UsageError: torch.fx cannot trace the network's own code.

    Example:
        >>> from featcache.backbones import tiny_backbone
        >>> split_points(tiny_backbone().network)
        ['body', 'body.1']
    """
    return [path for path, _ in _split_points(network, trace(network.module, set(), _lists(network)))]


@dataclass(frozen=True, slots=True)
class _SplitPoint:
    """The module whose output is stored, its node, and the nodes that follow."""

    path: str
    source: fx.Node
    nodes: frozenset[fx.Node]


def _split_point(traced: Trace, layer: str) -> _SplitPoint:
    """Where to split so that *layer* is the first that trains; `UsageError` if that is impossible."""
    calls = traced.calls.get(layer, [])
    if len(calls) != 1:
        how = "more than once" if calls else "not at all, or not as a module,"
        raise UsageError(f"it runs {how} in a pass.")
    moving = traced.downstream(traced.image)
    inputs = [node for node in calls[0].inputs if node in moving]
    if len(inputs) != 1:
        raise UsageError(f"it takes {len(inputs)} values that depend on the image, not one.")
    entry = inputs[0]
    sources = _sources(traced, entry, through=True)
    if len(sources) != 1 or traced.image in sources:
        sources = _sources(traced, entry, through=False)
    source = sources.copy().pop() if len(sources) == 1 else entry
    if source is traced.image:
        raise UsageError("it takes the image itself, so there is nothing before it to store.")
    nodes = traced.upstream(stop=source)
    if traced.image in nodes:
        after = traced.downstream(source)
        skipping = [node for node in nodes & moving - after if any(user in after & nodes for user in node.users)]
        raise UsageError(
            f"a skip connection crosses the split point: {_from(traced, skipping)} is used again after it."
        )
    if len(sources) != 1 or source not in traced.modules_of:
        raise UsageError(f"its input is not the output of one module, but made of {_from(traced, [entry])}.")
    if not any(traced.has_weights(node) for node in nodes):
        raise UsageError("neither it nor anything after it has weights.")
    return _SplitPoint(traced.modules_of[source][0], source, frozenset(nodes))


def _sources(traced: Trace, entry: fx.Node, *, through: bool) -> set[fx.Node]:
    """The module outputs, weights and image that a node is computed from by functions only.

    With *through*, modules that do nothing in eval mode count as functions.
    """
    found, todo = set(), [entry]
    while todo:
        node = todo.pop()
        if node.target == MODE or node in traced.batch_sizes:
            continue
        made = traced.modules_of.get(node, [])
        idle = through and made and isinstance(traced.root.get_submodule(made[-1]), _IDENTITIES)
        if (made and not idle) or not node.all_input_nodes:
            found.add(node)
        else:
            todo.extend(node.all_input_nodes)
    return found


def _from(traced: Trace, nodes: Iterable[fx.Node]) -> str:
    """Where values come from, in words."""
    names = set()
    for source in (source for node in nodes for source in _sources(traced, node, through=False)):
        made = traced.modules_of.get(source)
        other = "the image" if source is traced.image else repr(source.target)
        names.add(f"the output of {made[0]!r}" if made else other)
    return " and ".join(sorted(names))


def _lists(network: Network) -> set[str]:
    """Paths of the modules that are lists of the layers that ``featcache layers`` shows."""
    return {path.rpartition(".")[0] for path in network.blocks()} - {""}


def _split_points(network: Network, traced: Trace) -> list[tuple[str, int]]:
    """The split points in a trace, and how many of its nodes come before each."""
    calls = [(traced.calls[path][0].position, path) for path in network.blocks() if path in traced.calls]
    found: dict[str, tuple[str, int]] = {}
    for position, path in sorted(calls, key=lambda call: (call[0], call[1].count("."))):
        if not begins_stage(network.module.get_submodule(path).parameters()):
            continue
        with suppress(UsageError):
            found.setdefault(_split_point(traced, path).path, (path, position))
    stored = _stored(network, found)
    return [point for path, point in found.items() if path in stored]


def _stored(network: Network, paths: Iterable[str]) -> dict[str, str]:
    """For each module whose activations can be stored the layer that holds all of them."""
    network.module.eval()
    with torch.inference_mode():
        outputs = outputs_that_exist(network.module, set(paths), network.to_input(_noise(network)[:1]))
    stored = {}
    for path in paths:
        output = outputs.get(path)
        if isinstance(output, Tensor) and (order := network.axes.of(network.module.get_submodule(path), output)) != "?":
            stored[path] = f"{path}:mean" if order == "NC" else f"{path}:none"
    return stored


def _nearest(network: Network, traced: Trace | None, layer: str) -> str:
    """Advice: the split points before and after a layer."""
    try:
        traced = traced or trace(network.module, set(), _lists(network))
        known = _split_points(network, traced)
    except UsageError:
        return "Train a head on its vectors, or the whole network."
    if not known:
        return "It has no split point."
    position = 0
    while layer and not position:
        position = calls[0].position if (calls := traced.calls.get(layer)) else 0
        layer = layer.rpartition(".")[0]
    before = [f"{path!r} before it" for path, there in known if there <= position][-1:]
    after = [f"{path!r} after it" for path, there in known if there > position][:1]
    return f"It can be split at {' and at '.join(before + after)}."


def _noise(network: Network) -> np.ndarray:
    """Two inputs made from a seed."""
    rng = np.random.default_rng(0)
    height, width = network.size
    if isinstance(network.pixels.transform, StandardTransform):
        return rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return rng.normal(size=(2, 3, height, width)).astype(np.float32)


def tail_of(traced: Trace, source: fx.Node, nodes: frozenset[fx.Node], *, clone_input: bool = False) -> fx.GraphModule:
    """A module made of some nodes of a graph, with its own copy of the weights.

    Args:
        traced: the network's graph.
        source: whose value is the module's input.
        nodes: those between it and the network's end.
        clone_input: copy the input first, for a graph that changes it in place.

    Returns:
        The module in eval mode, all parameters trainable. Parts and weights keep their names in the network.
    """
    graph = fx.Graph()
    start = graph.placeholder("x")
    made = {source: graph.call_method("clone", (start,)) if clone_input else start}
    for node in traced.graph.nodes:
        if node in traced.batch_sizes and not nodes.isdisjoint(node.users):
            made[node] = graph.call_method("size", (start, 0))
        elif node in nodes:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(fx.node.map_arg(traced.output.args[0], made.__getitem__))
    graph.lint()
    # The trace shares its weights with the frozen network, the copy does not.
    tail = copy.deepcopy(fx.GraphModule(traced.root, graph))
    saved = traced.root.state_dict().keys()
    for node in tail.graph.nodes:
        value = attrgetter(str(node.target))(tail) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and node.target not in saved:
            # A constant of the code, which every split makes again, is no weight.
            owner, _, name = str(node.target).rpartition(".")
            tail.get_submodule(owner).register_buffer(name, value, persistent=False)
    for parameter in tail.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return tail.eval()


def tail_stages(tail: fx.GraphModule) -> tuple[tuple[str, nn.Module], ...]:
    """The parts that have parameters, in the order in which they run; every parameter is in exactly one.

    A part whose parameters all have one axis (a normalization, a bias) joins the part before it.

    Args:
        tail: from `tail_of`.
    """
    stages: list[tuple[str, list[nn.Module]]] = []
    seen: set[nn.Parameter] = set()
    for node in tail.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        name = str(node.target)
        part = attrgetter(name)(tail)
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
    """Whether any parameter has two or more axes, as weights of convolutions, linear layers and attention do."""
    return any(parameter.ndim > 1 for parameter in parameters)
