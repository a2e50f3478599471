"""How data flows through a network: its graph, and which module takes and gives what on the way.

The graph is that of `torch.fx` (J. Reed, Z. DeVito, H. He, A. Ussery and J. Ansel, "torch.fx: Practical Program
Capture and Transformation for Deep Learning in Python", MLSys 2022). Only modules that have to be looked into are
opened. All others are one node each, so it does not matter what Python code does inside of them.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from featcache.core.errors import UsageError

MODE = "_training_mode"
"""Path of the module that tells functions whether the network trains; no network has one of this name."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        path: of the module.
        position: nodes of the graph before it.
        inputs: the nodes among its arguments.
        output: the node that it gave, None where that is no single value.
    """

    path: str
    position: int
    inputs: tuple[fx.Node, ...]
    output: fx.Node | None


class Trace:
    """The graph of one pass.

    Args:
        root: a copy of the network that shares its tensors; the graph's nodes name its parts.
        graph: of a pass in eval mode. What differs in training is asked of the module `MODE`.
        calls: of all modules that were run, opened or not, in the order of their beginning.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, calls: Iterable[Call]) -> None:
        self.root, self.graph = root, graph
        self.calls: dict[str, list[Call]] = {}
        self.modules_of: dict[fx.Node, list[str]] = {}
        """For a node the modules that gave it, the outermost first."""
        for call in sorted(calls, key=lambda call: (call.position, call.path.count("."))):
            self.calls.setdefault(call.path, []).append(call)
            if call.output is not None:
                self.modules_of.setdefault(call.output, []).append(call.path)
        for paths in self.modules_of.values():
            paths.sort(key=lambda path: path.count("."))
        self.batch_sizes = {node for node in graph.nodes if _is_batch_size(node, self.image)}
        """Nodes that only tell how many images there are, which every activation tells as well."""

    @property
    def image(self) -> fx.Node:
        """The node of the network's input."""
        first: fx.Node = next(iter(self.graph.nodes))
        return first

    @property
    def output(self) -> fx.Node:
        """The node that stands for the end; its arguments are what the network gives."""
        last: fx.Node = next(iter(reversed(self.graph.nodes)))
        return last

    def downstream(self, start: fx.Node) -> set[fx.Node]:
        """All nodes that depend on one, and itself."""
        found = {start}
        for node in self.graph.nodes:
            if not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def upstream(self, stop: fx.Node) -> set[fx.Node]:
        """All nodes that the end depends on, but for *stop*, `batch_sizes`, and what only these depend on."""
        found: set[fx.Node] = set()
        todo = [self.output]
        while todo:
            new = set(todo.pop().all_input_nodes) - found - {stop} - self.batch_sizes
            found |= new
            todo.extend(new)
        return found

    def has_weights(self, node: fx.Node) -> bool:
        """Whether a node is, or is a call of a module with, parameters."""
        if node.op == "call_module":
            return next(self.root.get_submodule(str(node.target)).parameters(), None) is not None
        return node.op == "get_attr" and isinstance(operator.attrgetter(str(node.target))(self.root), nn.Parameter)


def _is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Whether it is ``x.shape[0]``, ``x.size(0)`` or ``x.size()[0]`` of the images x."""
    if node.target == "size":
        return node.args == (image, 0)
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    whole = node.args[0]
    return (whole.target, whole.args) in ((getattr, (image, "shape")), ("size", (image,)))


def trace(module: nn.Module, needed: set[str], wished: set[str]) -> Trace:
    """Follow one pass through a network. Not while other threads run networks: torch.fx replaces what they call.

    Args:
        module: the network, (n, 3, h, w) to (n, d). Nothing in it is changed.
        needed: paths of the modules that have to be looked into, besides the network itself.
        wished: paths of those that are looked into where their code allows it.

    Raises:
        UsageError: torch.fx cannot follow the code of the network or of a module that is needed, or that code
            computes something else in training than functions that are told so.
    """
    root = _sharing_copy(module)
    closed: set[str] = set()
    while True:
        tracer = _Tracer(needed | wished - closed)
        try:
            graph = tracer.trace(root.eval())
            # Another copy, since each trace adds its own constants to what it traces.
            training = _Tracer(tracer.opened).trace(_sharing_copy(module).train())
        except Exception as error:  # torch.fx runs the network's own code
            stuck = tracer.stuck
            if stuck in wished - needed:
                closed.add(stuck)
                continue
            where = f"the code of {stuck!r}" if stuck else "the network's own code"
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UsageError(f"torch.fx cannot follow {where}: {reason.rstrip('.')}.") from error
        break
    _reconcile(root, graph, training)
    return Trace(root, graph, tracer.called)


class _Tracer(fx.Tracer):
    """Opens certain modules, and writes down all calls."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.opened = opened
        self.called: list[Call] = []
        self.stuck = ""
        """The innermost opened module whose code could not be followed."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # The image alone is an input; other arguments keep the values that they have by default.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path, position = self.path_of_module(m), len(self.graph.nodes)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever the network's own code raises; it goes on its way
            self.stuck = self.stuck or path
            raise
        inputs = tuple(dict.fromkeys(_proxied((args, kwargs))))
        self.called.append(Call(path, position, inputs, output.node if isinstance(output, fx.Proxy) else None))
        return output


def _proxied(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Proxy):
        yield value.node
    elif isinstance(value, dict):
        yield from _proxied(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _proxied(part)


def _sharing_copy(module: nn.Module) -> nn.Module:
    """A copy of the modules with the very same tensors: to trace means to change modes and to add constants."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # modules may hold what they like
        raise UsageError(f"The network cannot be copied: {error}.") from error


class Mode(nn.Module):
    """Tells whether it is in training mode."""

    def forward(self) -> bool:
        """Take nothing, give ``training``."""
        return self.training


def _reconcile(root: nn.Module, graph: fx.Graph, training: fx.Graph) -> None:
    """Let functions such as dropout, which are told whether the network trains, ask at every pass.

    ``F.dropout(x, 0.5, self.training)`` leaves the value of the moment in a graph. An argument that is False in eval
    mode and True in training mode is replaced by the output of a `Mode`.
    """
    nodes, others = list(graph.nodes), list(training.nodes)
    same = {other: node for node, other in zip(nodes, others, strict=False)}
    mode: list[fx.Node] = []

    def asked() -> fx.Node:
        if not mode:
            root.add_module(MODE, Mode())
            with graph.inserting_after(nodes[0]):
                mode.append(graph.call_module(MODE))
        return mode[0]

    def merged(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if same.get(b) is a:
                return a
        elif a is False and b is True:
            return asked()
        elif type(a) is type(b):
            if isinstance(a, (tuple, list)) and len(a) == len(b):
                return type(a)(merged(x, y) for x, y in zip(a, b, strict=True))
            if isinstance(a, dict) and a.keys() == b.keys():
                return {key: merged(a[key], b[key]) for key in a}
            if isinstance(a, slice):
                return slice(*(merged(getattr(a, n), getattr(b, n)) for n in ("start", "stop", "step")))
            if a == b:
                return a
        raise UsageError(
            "In training mode the network's own code computes something else, and not by functions that are told so, "
            "such as F.dropout(x, p, self.training)."
        )

    merged([n.op for n in nodes], [n.op for n in others])
    merged([str(n.target) for n in nodes], [str(n.target) for n in others])
    for node, other in zip(nodes, others, strict=True):
        node.args, node.kwargs = merged(node.args, other.args), merged(node.kwargs, other.kwargs)
