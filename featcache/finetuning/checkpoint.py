"""The checkpoint of a training: one safetensors file, from which it resumes as if nothing had happened.

The file holds the weights after the last epoch, those of the best one where that is another, the state of AdamW, and
as JSON the epochs so far and the settings of the training. Random numbers need no place in it: those of an epoch come
from the seed and the epoch alone. It is written aside, flushed and renamed, so that there is always a whole file or
none, and carries a SHA-256 of all that is in it. Nothing in it is code.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featcache.core.errors import TrainingError, UsageError
from featcache.core.failpoints import reach
from featcache.core.files import written_whole
from featcache.core.recipe import weights_digest
from featcache.finetuning.history import Epoch, best_of

_FORMAT = 4
_KEY = "featcache_checkpoint"
_DIGESTS = {"task.recipe": "the vectors", "task.items": "the images or their labels"}
_NAMES = {
    "task.init": "--init", "task.from_layer": "--from", "task.network": "the network", "task.views": "the views",
    "task.classes": "the classes", "steps": "the number of steps of an epoch", "config.epochs": "--epochs",
    "config.lr": "--lr", "config.batch_size": "--batch-size", "config.seed": "--seed", "config.hidden": "--hidden",
    "config.dropout": "--dropout", "config.precision": "--precision",
}  # fmt: skip
"""Settings in words, where they are not their own name."""


@dataclass(frozen=True, slots=True)
class State:
    """A training after an epoch.

    Attributes:
        epochs: those that are done, one or more.
        weights: state of the network after the last of them, by name.
        best: the same after the best one.
        moments: AdamW's state of each parameter that has one: parameter → ``exp_avg``, ``exp_avg_sq``, ``step``.
        losses: (epochs, n) float64 of each validation item.
    """

    epochs: tuple[Epoch, ...]
    weights: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    losses: Tensor


def write(path: Path, settings: Mapping[str, Any], state: State) -> None:
    """Write a checkpoint in the place of the one before.

    Args:
        path: the file.
        settings: what the training is, as plain values; `read` compares them.
        state: where the training is.

    Raises:
        TrainingError: the file cannot be written; one that was there is still whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {f"weights/{name}": tensor for name, tensor in state.weights.items()}
    kept["losses"] = state.losses
    if best_of(state.epochs) is not state.epochs[-1]:
        kept |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for parameter, moments in state.moments.items():
        kept |= {f"moments/{key}/{parameter}": tensor for key, tensor in moments.items()}
    # Clones, since parameters that share their memory are refused otherwise.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in kept.items()}
    data = {"format": _FORMAT, "settings": settings, "epochs": [asdict(epoch) for epoch in state.epochs]}
    text = json.dumps(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            save_file(tensors, aside, metadata={_KEY: text, "sha256": _digest(text, tensors)})
            reach("checkpoint: file written")
        reach("checkpoint: renamed")
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"The checkpoint {path} cannot be written: {error}. Make room there or give another file, and start the "
            "training again."
        ) from error


def read(path: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> State | None:
    """Where a training was when it was cut off; None where there is no checkpoint.

    Args:
        path: the file.
        settings: what the training is now, as plain values.
        weights: state of the network now, whose names, shapes and dtypes must be those of the checkpoint.

    Raises:
        UsageError: the checkpoint is that of another training, or *path* is a folder.
        TrainingError: it is damaged, or no checkpoint.
    """
    if not path.exists():
        return None
    data, tensors = _loaded(path)
    _check_same(path, data["settings"], settings)
    epochs = tuple(Epoch(**epoch) for epoch in data["epochs"])
    last = _of("weights/", tensors)
    if _forms(last) != _forms(weights):
        raise UsageError(f"The checkpoint {path} is that of another network: its tensors are others. {_anew(path)}")
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _of("moments/", tensors).items():
        key, _, parameter = name.partition("/")
        moments.setdefault(parameter, {})[key] = tensor
    return State(epochs, last, _of("best/", tensors) or last, moments, tensors["losses"])


def check(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another training before any work is done, by the settings that are known by then.

    Raises:
        UsageError, TrainingError: as `read`.
    """
    if not path.exists():
        return
    there = _loaded(path)[0]["settings"]
    _check_same(path, {name: _part(there.get(name), known) for name, known in settings.items()}, settings)


def _part(there: Any, known: Any) -> Any:
    """What a checkpoint has of the known settings."""
    both = isinstance(there, dict) and isinstance(known, dict)
    return {name: there[name] for name in known if name in there} if both else there


def _anew(path: Path) -> str:
    return f"Remove {path} to start over, or give another file."


def _loaded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON of a checkpoint, and its tensors."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{path} is a folder and cannot be the file of a checkpoint: give another path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata[_KEY]
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata["sha256"] != _digest(text, tensors):
            raise ValueError("its content is not what was written")
        data: dict[str, Any] = json.loads(text)
        version = data["format"]
        if version == _FORMAT:
            _ = [Epoch(**epoch) for epoch in data["epochs"]], dict(data["settings"]), tensors["losses"]
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged or no checkpoint of a training: {error}. {_anew(path)}") from error
    if version != _FORMAT:
        raise UsageError(f"The checkpoint {path} was written by another version of featcache. {_anew(path)}")
    return data, tensors


def _check_same(path: Path, there: Any, settings: Mapping[str, Any]) -> None:
    differing = _differences(there, json.loads(json.dumps(settings)))
    if differing:
        raise UsageError(f"The checkpoint {path} is that of another training: {'; '.join(differing)}. {_anew(path)}")


def remove(path: Path) -> None:
    """Remove the checkpoint of a training that is done, with what a killed process left beside it."""
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    data = {name: tensor.reshape(-1).view(torch.uint8).numpy().data for name, tensor in tensors.items()}
    parts = [(name, tuple(tensor.shape), str(tensor.dtype), data[name]) for name, tensor in tensors.items()]
    return weights_digest([*parts, ("json", (), "text", memoryview(text.encode()))])


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """The plain values in which two trainings differ, each in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            words
            for key in keys
            for words in _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    if there == here:
        return []
    if name in _DIGESTS:
        return [f"{_DIGESTS[name]} are others"]
    return [f"{_NAMES.get(name, name)} was {_short(there)} and is now {_short(here)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
