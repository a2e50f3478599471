"""The file of a bundle: safetensors, with one key of metadata, ``featcache``, that holds JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import BundleError, StoreFormatError, UsageError
from featcache.core.files import written_whole
from featcache.core.recipe import Recipe
from featcache.heads import serialise
from featcache.training import suffix
from featcache.training.dataset import LayerUse
from featcache.training.suffix import PartialModel

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

BUNDLE_FORMAT = 1
_NETWORK = "network."
# Vectors are divided by the scales in float32, where smaller ones are 0 and larger ones infinite.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def described(bundle: Bundle) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors of a bundle whose head has a form."""
    predictor = bundle.predictor
    assert predictor is not None
    if isinstance(predictor, PartialModel):
        kind, (tensors, values) = suffix.SUFFIX, suffix.pack(predictor)
    else:
        kind, tensors, values = serialise.pack(predictor)
    tensors["trained_on"] = np.asarray(bundle.trained_on, dtype=np.uint8).reshape(-1, 32)
    if bundle.weights is not None:
        tensors |= {_NETWORK + name: np.asarray(tensor) for name, tensor in bundle.weights.items()}
    return {
        "format": BUNDLE_FORMAT,
        "kind": kind,
        "head": bundle.head,
        "classes": list(bundle.classes),
        **values,
        "layers": [{"name": use.name, "shape": list(use.shape), "scale": use.scale} for use in bundle.layers],
        "recipe": None if bundle.recipe is None else bundle.recipe.to_json(),
        "network": None if bundle.weights is None else len(bundle.weights),
        "fitted_on": bundle.fitted_on,
        "chosen": bundle.chosen,
        "report": bundle.report,
        "created": bundle.created,
        "versions": {name: version(name) for name in ("featcache", "numpy", "scikit-learn")},
    }, tensors


def fields(data: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, where: Path) -> dict[str, Any]:
    """The fields of a bundle.

    Args:
        data, tensors: as `read` gives them.
        where: the file, for the error.

    Raises:
        BundleError: they do not fit together.
        StoreFormatError: they were written by a newer featcache.
    """
    if data.get("format") != BUNDLE_FORMAT:
        raise StoreFormatError(
            f"{where} has bundle format {data.get('format')!r}; this featcache reads format {BUNDLE_FORMAT}. "
            "Upgrade featcache to read it."
        )
    try:
        uses = tuple(
            LayerUse(str(use["name"]), tuple(int(n) for n in use["shape"]), float(use["scale"]))
            for use in data["layers"]
        )
        classes = tuple(str(name) for name in data["classes"])
        recipe = None if data["recipe"] is None else Recipe.from_json(data["recipe"])
        trained_on, kind = tensors["trained_on"], data["kind"]
        predictor: serialise.Predictor | PartialModel
        if kind == suffix.SUFFIX and len(uses) == 1:
            predictor = suffix.unpack(tensors, data, classes, uses[0].shape, recipe)
        else:
            predictor = serialise.unpack(kind, tensors, data, classes, sum(use.width for use in uses))
        # Files of before have no such entry, and no network.
        weights, count = None, data.get("network")
        if count is not None:
            weights = {n.removeprefix(_NETWORK): v for n, v in tensors.items() if n.startswith(_NETWORK)}
        found = {
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
    except BundleError as error:
        raise BundleError(f"{where} is damaged: its tensors do not fit its description.") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{where} is no bundle that can be read: {error!r}.") from error
    fits = (
        len(set(classes)) == len(classes) >= 2
        and trained_on.dtype == np.uint8
        and trained_on.ndim == 2
        and trained_on.shape[1] == 32
        and all(_SMALLEST <= use.scale <= _LARGEST and min(use.shape, default=0) > 0 for use in uses)
        and (weights is None or (recipe is not None and type(count) is int and len(weights) == count > 0))
        and (weights is None or kind != suffix.SUFFIX)
    )
    if not fits:
        raise BundleError(f"{where} is damaged: its tensors do not fit its description.")
    return found


def write(target: Path, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the file aside, then rename it into place, so that there is a whole file or none.

    Raises:
        BundleError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
        with written_whole(target) as aside:
            save_file(rows, aside, metadata={"featcache": json.dumps(data)})
    except (OSError, SafetensorError) as error:
        raise BundleError(f"The head cannot be written to {target}: {error}.") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors, of which nothing is checked yet.

    Raises:
        UsageError: there is no file at *path*.
        BundleError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        if path.exists():
            raise UsageError(
                f"{path} is a folder, not a featcache head. A head is a file that `featcache train` wrote with -o; on "
                "the command line it comes first."
            )
        raise UsageError(f"There is no head at {path}. `featcache train STORE -o {path}` makes one.")
    try:
        with safe_open(path, framework="numpy") as file:
            data = json.loads((file.metadata() or {})["featcache"])
            return dict(data), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise BundleError(f"{path} is not a featcache head: {error}.") from error
