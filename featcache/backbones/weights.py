"""Weights: read without running code, checked against the network, and digested."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbones.recipe_cache import SeenFile
from featcache.core.errors import WeightsError
from featcache.core.recipe import weights_digest
from featcache.images.entry import FileStat

RACY_NS = 2_000_000_000


def digest_of(module: nn.Module, beside: Mapping[str, Tensor] | None = None) -> str:
    """Digest of all tensors of a module's state, and of those *beside* it, 64 hexadecimal digits."""

    def tensors() -> Iterator[tuple[str, tuple[int, ...], str, memoryview]]:
        for name, tensor in (module.state_dict() | dict(beside or {})).items():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            yield name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), memoryview(flat)

    return weights_digest(tensors())


def buffers_beside(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a module's state does not hold, by name: those that are not persistent."""
    state = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in state}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file.

    Of a checkpoint the ``state_dict`` or ``model`` is read; a ``module.`` prefix (of a parallel wrapper) is removed.

    Raises:
        WeightsError: there is no such file, it cannot be read without running code, or it holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"There is no file of weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file both readers may raise anything
        text = str(error).splitlines()[0] if str(error) else repr(error)
        if path.suffix == ".safetensors":
            raise WeightsError(f"{path} cannot be read as safetensors: {text}.") from error
        raise WeightsError(
            f"{path} cannot be read as weights: {text}. Files that hold more than tensors are not opened, since that "
            "could run code; save the state dict alone."
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise WeightsError(f"{path} does not hold a state dict (names to tensors).")
    tensors = {str(name): tensor for name, tensor in found.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def seen_file(path: Path) -> SeenFile | None:
    """A file's state, to be taken before it is read; None if there is no such file.

    It is settled unless the file changed less than two seconds ago and may change again within the resolution of its
    timestamps.
    """
    try:
        state = FileStat.of(os.stat(path))
    except OSError:
        return None
    return SeenFile(state, settled=time.time_ns() - max(state.mtime_ns, state.ctime_ns) > RACY_NS)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str, classifier: str | None = None) -> None:
    """Load tensors into a module; names and shapes must match exactly.

    Args:
        module: the network.
        tensors: by name.
        where: the file's name, for the error message.
        classifier: path of the classifier, which is not used and so may be missing or of another size.

    Raises:
        WeightsError: names or shapes differ; the first are listed.
    """
    state = module.state_dict()
    outside = {name: t for name, t in tensors.items() if classifier is None or not name.startswith(classifier + ".")}
    wanted = {name: t for name, t in state.items() if classifier is None or not name.startswith(classifier + ".")}
    missing = [name for name in wanted if name not in outside]
    unexpected = [name for name in outside if name not in wanted]
    shaped = [
        f"{name} {tuple(outside[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in outside and outside[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {word} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
        for names, word in ((missing, "missing"), (unexpected, "unexpected"), (shaped, "of another shape"))
        if names
    ]
    if problems:
        raise WeightsError(f"The weights in {where} do not fit this network: {'; '.join(problems)}.")
    given = {
        name: t for name, t in tensors.items() if name in outside or (name in state and t.shape == state[name].shape)
    }
    module.load_state_dict(given, strict=False)
