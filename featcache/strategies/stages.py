"""The parts of a whole network whose learning rates differ, from the input to the output."""

from __future__ import annotations

from torch import nn


def stages_of(module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Names and parameters of a network's parts and of the blocks that they are lists of, in the order of their making.

    A part whose parameters are all of one axis (a normalisation) goes with the part before it; parameters of the
    network itself, such as the embedding of positions, go with the first part. Each parameter is in exactly one.

    Args:
        module: the network.
    """
    parts: list[tuple[str, nn.Module]] = []
    for name, part in module.named_children():
        if isinstance(part, (nn.Sequential, nn.ModuleList)):
            parts += [(f"{name}.{inner}", block) for inner, block in part.named_children()]
        else:
            parts.append((name, part))
    stages: list[tuple[str, list[nn.Parameter]]] = []
    seen: set[nn.Parameter] = set()
    for name, part in parts:
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
