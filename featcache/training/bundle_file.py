"""The file of a bundle: safetensors with one key of metadata, ``featcache``, that holds JSON.

The JSON begins with ``sha256``, the digest of the whole file with its own 64 digits as zeros, so no bit of a head can
change unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import BundleError, StoreFormatError, UsageError
from featcache.core.files import written_whole
from featcache.core.outputs import HEAD_FORMAT
from featcache.core.recipe import Recipe
from featcache.heads import serialize
from featcache.training import partial_model
from featcache.training.layer_use import LayerUse
from featcache.training.partial_model import PartialModel

_WITHOUT_DIGEST = 1
_NO_DIGEST = b"0" * 64
_DIGEST = b'{\\"sha256\\": \\"'  # how the JSON begins, as text inside of the header's JSON
_NETWORK = "network."
# Vectors are divided by the scales in float32, where smaller ones are 0 and larger ones infinite.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def write(target: Path, fields: Mapping[str, Any]) -> None:
    """Write a bundle aside, then rename it into place, so that there is a whole file or none.

    Args:
        target: the file.
        fields: of the `featcache.training.bundle.Bundle` by name; its ``predictor`` is not None.

    Raises:
        BundleError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    data, tensors = _packed(fields)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
        with written_whole(target) as aside:
            save_file(rows, aside, metadata={"featcache": json.dumps({"sha256": _NO_DIGEST.decode(), **data})})
            seal(aside)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"The head cannot be written to {target}: {error}.") from error


def read(path: Path) -> dict[str, Any]:
    """The fields of the bundle in a file, by name.

    Raises:
        UsageError: there is no file at *path*.
        BundleError: it is not a bundle, or its parts do not fit together.
        StoreFormatError: it was written by a newer featcache.
    """
    data, tensors, sealed = _contents(path)
    if data.get("format") not in (_WITHOUT_DIGEST, HEAD_FORMAT):
        raise StoreFormatError(
            f"{path} has bundle format {data.get('format')!r}; this featcache reads formats up to {HEAD_FORMAT}. "
            "Upgrade featcache to read it."
        )
    if not sealed and data["format"] != _WITHOUT_DIGEST:
        raise BundleError(
            f"{path} is damaged: its bytes are not those that were written. Train the head again, or take a copy of it."
        )
    try:
        fields = _unpacked(data, tensors)
    except BundleError as error:
        raise BundleError(f"{path} is damaged: its tensors do not fit its description.") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{path} is not a readable bundle: {error!r}.") from error
    return fields


def _packed(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors of a bundle."""
    predictor, recipe, weights = fields["predictor"], fields["recipe"], fields["weights"]
    if isinstance(predictor, PartialModel):
        kind, (tensors, values) = partial_model.KIND, partial_model.pack(predictor)
    else:
        kind, tensors, values = serialize.pack(predictor)
    tensors["trained_on"] = np.asarray(fields["trained_on"], dtype=np.uint8).reshape(-1, 32)
    if weights is not None:
        tensors |= {_NETWORK + name: np.asarray(tensor) for name, tensor in weights.items()}
    return {
        "format": HEAD_FORMAT,
        "kind": kind,
        "head": fields["head"],
        "classes": list(fields["classes"]),
        **values,
        "layers": [{"name": use.name, "shape": list(use.shape), "scale": use.scale} for use in fields["layers"]],
        "recipe": None if recipe is None else recipe.to_json(),
        "network": None if weights is None else len(weights),
        **{name: fields[name] for name in ("fitted_on", "chosen", "report", "created")},
        "versions": {name: version(name) for name in ("featcache", "numpy", "scikit-learn")},
    }, tensors


def _unpacked(data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields that were packed; raises what any part of them raises where it does not fit."""
    uses = tuple(
        LayerUse(str(use["name"]), tuple(int(n) for n in use["shape"]), float(use["scale"])) for use in data["layers"]
    )
    classes = tuple(str(name) for name in data["classes"])
    recipe = None if data["recipe"] is None else Recipe.from_json(data["recipe"])
    trained_on, kind = tensors["trained_on"], data["kind"]
    predictor: serialize.Predictor | PartialModel
    if kind == partial_model.KIND and len(uses) == 1:
        predictor = partial_model.unpack(tensors, data, classes, uses[0].shape, recipe)
    else:
        predictor = serialize.unpack(kind, tensors, data, classes, sum(use.width for use in uses))
    # Older files have no such entry, and no network.
    weights, count = None, data.get("network")
    if count is not None:
        weights = {n.removeprefix(_NETWORK): v for n, v in tensors.items() if n.startswith(_NETWORK)}
    fields = {
        "head": str(data["head"]),
        "classes": classes,
        "layers": uses,
        "recipe": recipe,
        "predictor": predictor,
        "trained_on": trained_on,
        "fitted_on": int(data["fitted_on"]),
        "chosen": dict(data["chosen"]),
        "report": dict(data["report"]),
        "weights": weights,
        "created": str(data["created"]),
    }
    fits = (
        len(set(classes)) == len(classes) >= 2
        and trained_on.dtype == np.uint8
        and trained_on.ndim == 2
        and trained_on.shape[1] == 32
        and all(_SMALLEST <= use.scale <= _LARGEST and min(use.shape, default=0) > 0 for use in uses)
        and (weights is None or (recipe is not None and type(count) is int and len(weights) == count > 0))
        and (weights is None or kind != partial_model.KIND)
    )
    if not fits:
        raise BundleError("The tensors do not fit their description.")
    return fields


def seal(path: Path) -> None:
    """Put the digest of a file that was just written into its header."""
    data = path.read_bytes()
    at = data.index(_DIGEST + _NO_DIGEST) + len(_DIGEST)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(hashlib.sha256(data).hexdigest().encode())


def _is_sealed(data: bytes, digest: str) -> bool:
    """Whether a file's bytes are those that its *digest* was made of."""
    at = data.find(_DIGEST + digest.encode()) + len(_DIGEST)
    whole = hashlib.sha256(memoryview(data)[:at])
    whole.update(_NO_DIGEST)
    whole.update(memoryview(data)[at + len(_NO_DIGEST) :])
    return whole.hexdigest() == digest


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], bool]:
    """The JSON and the tensors, not checked yet, and whether the file has a digest that fits.

    Raises:
        UsageError: there is no file at *path*.
        BundleError: it is not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        if path.exists():
            raise UsageError(
                f"{path} is a folder, not a head. A head is a file that `featcache train` wrote with -o; on the "
                "command line it comes first."
            )
        raise UsageError(f"There is no head at {path}. `featcache train STORE -o {path}` makes one.")
    try:
        contents = path.read_bytes()
        header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
        data = dict(json.loads(header["__metadata__"]["featcache"]))
        digest = data.get("sha256")
        # The tensors are read from the bytes that were hashed.
        return data, load(contents), isinstance(digest, str) and _is_sealed(contents, digest)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise BundleError(f"{path} is not a featcache head: {error}.") from error
