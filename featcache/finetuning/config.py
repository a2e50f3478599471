"""How a network is trained: the settings, and the stages of a network, whose learning rates differ.

Among the stages the rate falls from the output to the input by a constant factor, since early layers hold what is
general and need to move least (Clark et al., "ELECTRA", ICLR 2020, and Bao et al., "BEiT", ICLR 2022, both in their
details of fine-tuning). timm's ``param_groups_layer_decay`` does the same for networks with a ``group_matcher``, which
neither torchvision's networks nor a tail traced by torch.fx have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from featcache.core.arguments import check_fields
from featcache.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The settings of a training. What is not given (None) is that of `init`, see `featcache.finetune`.

    Attributes:
        epochs: the most passes over the training items; the cosine reaches 0 after the last.
        lr: the highest learning rate, that of the last stage at the end of the warm-up.
        weight_decay: AdamW's; biases and the parameters of normalizations have none.
        warmup_fraction: share of all steps in which the learning rate rises.
        layer_decay: the learning rate of a stage is so many times that of the next one; 1 is one rate for all.
        patience: epochs without a lower validation loss after which the training ends.
        batch_size: items per step.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al., CVPR 2016,
            section 7).
        dropout: share of the values in front of the output, and behind each new hidden layer, that a step omits.
        hidden: widths of the new hidden layers; for ``init="new"`` only.
        precision: ``float32``, or ``bfloat16`` for products in bfloat16 with weights in float32.
        seed: of the order of the items, of augmentation, of new weights and of dropout.

    Example:
        >>> TrainingConfig(epochs=5, lr=1e-3).epochs
        5
    """

    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup_fraction: float | None = None
    layer_decay: float | None = None
    patience: int | None = None
    batch_size: int | None = None
    label_smoothing: float | None = None
    dropout: float | None = None
    hidden: tuple[int, ...] | None = None
    precision: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check all settings that are given; one message names every wrong one.

        Raises:
            UsageError: a setting is out of its range.
        """
        check_fields(self)
        given = {name: value for name, value in asdict(self).items() if value is not None}
        wrong = [
            f"{name} is {given[name]!r} and must be {wanted}"
            for name, wanted, fits in (
                ("epochs", "at least 1", lambda value: value >= 1),
                ("lr", "above 0", lambda value: 0 < value < math.inf),
                ("weight_decay", "0 or more", lambda value: 0 <= value < math.inf),
                ("warmup_fraction", "from 0 to below 1", lambda value: 0 <= value < 1),
                ("layer_decay", "above 0 and at most 1", lambda value: 0 < value <= 1),
                ("patience", "at least 1", lambda value: value >= 1),
                ("batch_size", "at least 1", lambda value: value >= 1),
                ("label_smoothing", "from 0 to below 1", lambda value: 0 <= value < 1),
                ("dropout", "from 0 to below 1", lambda value: 0 <= value < 1),
                ("hidden", "one width from 1 on per layer", lambda value: len(value) and min(value) >= 1),
                ("precision", "float32 or bfloat16", lambda value: value in ("float32", "bfloat16")),
                ("seed", "0 or more", lambda value: value >= 0),
            )
            if name in given and not fits(given[name])
        ]
        if wrong:
            raise UsageError(f"Invalid training settings: {'; '.join(wrong)}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self) | {"hidden": None if self.hidden is None else list(self.hidden)}


@dataclass(frozen=True, slots=True)
class Schedule(TrainingConfig):
    """Settings of which each has a value, as a training takes them."""

    epochs: int = 20
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    layer_decay: float = 0.7
    patience: int = 5
    batch_size: int = 32
    label_smoothing: float = 0.0
    dropout: float = 0.0
    hidden: tuple[int, ...] = (512,)
    precision: str = "float32"
    seed: int = 0

    def over(self, given: TrainingConfig | None) -> Schedule:
        """These settings with those that are given in their place."""
        return replace(self, **{name: value for name, value in asdict(given or self).items() if value is not None})

    def share_of_stage(self, stage: int, stages: int) -> float:
        """The learning rate of a stage as a share of that of the last one.

        Args:
            stage: which stage, from 0 at the input.
            stages: how many there are.

        Raises:
            UsageError: there is no such stage.
        """
        if not 0 <= stage < stages:
            raise UsageError(f"stage is a number from 0 to below stages, not {stage} of {stages}.")
        return self.layer_decay ** (stages - 1 - stage)


PRETRAINED = Schedule(epochs=12, lr=3e-4, patience=6, label_smoothing=0.1)
"""Of layers that begin with their pretrained weights."""
NEW = Schedule(epochs=60, lr=1e-3, layer_decay=1.0, patience=12, label_smoothing=0.1, dropout=0.2)
"""Of new layers on frozen ones."""
SCRATCH = Schedule(epochs=60, lr=2e-3, layer_decay=1.0, patience=12, label_smoothing=0.1, dropout=0.2)
"""Of a whole network with random weights."""

_LISTS = (nn.Sequential, nn.ModuleList)


def network_stages(module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Names and parameters of a network's parts and of the blocks that they are lists of, in the order of their making.

    A part whose parameters are all of one axis (a normalization) goes with the part before it; parameters of the
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
