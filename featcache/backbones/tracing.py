"""The data flow of a network: its `torch.fx` graph, and the inputs and output of every module in it.

See J. Reed, Z. DeVito, H. He, A. Ussery and J. Ansel, "torch.fx: Practical Program Capture and Transformation for Deep
Learning in Python", MLSys 2022. Only the modules that must be traced are opened; every other module is one node, so its
Python code does not matter.
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
"""Path of the module that tells functions whether the network is in training mode."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        path: of the module.
        position: nodes of the graph before it.
        inputs: the nodes among its arguments.
        output: its node, None if it does not return a single value.
    """

    path: str
    position: int
    inputs: tuple[fx.Node, ...]
    output: fx.Node | None


class Trace:
    """The graph of one pass.

    Args:
        root: a copy of the network that shares its tensors; the graph's nodes refer to its parts.
        graph: of a pass in eval mode. What differs in training mode depends on the module `MODE`.
        calls: of all modules that ran, opened or not, in order of their start.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, calls: Iterable[Call]) -> None:
        self.root, self.graph = root, graph
        self.calls: dict[str, list[Call]] = {}
        self.modules_of: dict[fx.Node, list[str]] = {}
        """By node the modules whose output it is, the outermost first."""
        for call in sorted(calls, key=lambda call: (call.position, call.path.count("."))):
            self.calls.setdefault(call.path, []).append(call)
            if call.output is not None:
                self.modules_of.setdefault(call.output, []).append(call.path)
        for paths in self.modules_of.values():
            paths.sort(key=lambda path: path.count("."))
        self.batch_sizes = {node for node in graph.nodes if _is_batch_size(node, self.image)}
        """Nodes that are the batch size, which every activation has as well."""

    @property
    def image(self) -> fx.Node:
        """The node of the network's input."""
        first: fx.Node = next(iter(self.graph.nodes))
        return first

    @property
    def output(self) -> fx.Node:
        """The output node; its arguments are what the network returns."""
        last: fx.Node = next(iter(reversed(self.graph.nodes)))
        return last

    def downstream(self, start: fx.Node) -> set[fx.Node]:
        """All nodes that depend on *start*, and itself."""
        found = {start}
        for node in self.graph.nodes:
            if not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def upstream(self, stop: fx.Node) -> set[fx.Node]:
        """All nodes that the output depends on, without *stop*, `batch_sizes`, and what only these depend on."""
        found: set[fx.Node] = set()
        todo = [self.output]
        while todo:
            new = set(todo.pop().all_input_nodes) - found - {stop} - self.batch_sizes
            found |= new
            todo.extend(new)
        return found

    def has_weights(self, node: fx.Node) -> bool:
        """Whether a node is a parameter or the call of a module that has parameters."""
        if node.op == "call_module":
            return next(self.root.get_submodule(str(node.target)).parameters(), None) is not None
        return node.op == "get_attr" and isinstance(operator.attrgetter(str(node.target))(self.root), nn.Parameter)


def _is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node is ``x.shape[0]``, ``x.size(0)`` or ``x.size()[0]`` of the images x."""
    if node.target == "size":
        return node.args == (image, 0)
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    whole = node.args[0]
    return (whole.target, whole.args) in ((getattr, (image, "shape")), ("size", (image,)))


def trace(module: nn.Module, needed: set[str], wished: set[str]) -> Trace:
    """Trace one pass through a network. No other thread may run networks meanwhile: torch.fx patches what they call.

    Args:
        module: the network, (n, 3, h, w) to (n, d). It is not changed.
        needed: paths of the modules that must be opened, besides the network itself.
        wished: paths of the modules that are opened if torch.fx can trace their code.

    Raises:
        UsageError: torch.fx cannot trace the code of the network or of a needed module, or that code computes
            something else in training mode other than by functions that take the mode as an argument.
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
            raise UsageError(f"torch.fx cannot trace {where}: {reason.rstrip('.')}.") from error
        break
    _reconcile(root, graph, training)
    return Trace(root, graph, tracer.called)


class _Tracer(fx.Tracer):
    """Opens some modules and records all calls."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.opened = opened
        self.called: list[Call] = []
        self.stuck = ""
        """The innermost opened module whose code could not be traced."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Only the image is an input; other arguments keep their defaults.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path, position = self.path_of_module(m), len(self.graph.nodes)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:  # the network's own code may raise anything; it is raised again
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
    """A copy of the modules that shares the tensors, since tracing changes modes and adds constants."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # modules may hold what they like
        raise UsageError(f"The network cannot be copied: {error}.") from error


class Mode(nn.Module):
    """Returns whether it is in training mode."""

    def forward(self) -> bool:
        """Return ``training``."""
        return self.training


def _reconcile(root: nn.Module, graph: fx.Graph, training: fx.Graph) -> None:
    """Let functions such as dropout, which take the training mode as an argument, read it at every pass.

    ``F.dropout(x, 0.5, self.training)`` leaves the value at tracing time in the graph. An argument that is False in
    eval mode and True in training mode is replaced by the output of a `Mode`.
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
            "In training mode the network's own code computes something else, other than by functions that take the "
            "mode as an argument, such as F.dropout(x, p, self.training)."
        )

    merged([n.op for n in nodes], [n.op for n in others])
    merged([str(n.target) for n in nodes], [str(n.target) for n in others])
    for node, other in zip(nodes, others, strict=True):
        node.args, node.kwargs = merged(node.args, other.args), merged(node.kwargs, other.kwargs)
