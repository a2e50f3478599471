"""The parts of a whole network whose learning rates differ, from the input to the output."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def network_stages(module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Names and parameters of a network's parts and of the blocks that they are lists of, in the order of their making.

    A part whose parameters are all of one axis (a normalisation) goes with the part before it; parameters of the
    network itself, such as the embedding of positions, go with the first part. Each parameter is in exactly one.

    Args:
        module: the network.
    """
    stages: list[tuple[str, list[nn.Parameter]]] = []
    seen: set[nn.Parameter] = set()
    for name, part in _parts(module):
        new = [parameter for parameter in part.parameters() if parameter not in seen]
        seen.update(new)
        if stages and not any(parameter.ndim > 1 for parameter in new):
            stages[-1][1].extend(new)
        elif new:
            stages.append((name, new))
    rest = [parameter for parameter in module.parameters() if parameter not in seen]
    if rest and stages:
        stages[0][1].extend(rest)
    elif rest:
        stages.append(("network", rest))
    return stages


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts, with the blocks of those that are lists of them or hold such a list, as encoders do."""
    for name, part in module.named_children():
        inner = f"{path}{name}"
        if isinstance(part, _LISTS):
            yield from ((f"{inner}.{number}", block) for number, block in part.named_children())
        elif not path and any(isinstance(held, _LISTS) for held in part.children()):
            yield from _parts(part, f"{inner}.")
        else:
            yield inner, part
