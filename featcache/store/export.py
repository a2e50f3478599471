"""One plain file for other programs: HDF5 or NumPy, and reading such files back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import FeatcacheError, SourceError
from featcache.core.files import written_whole
from featcache.core.labels import given_label
from featcache.core.recipe import Recipe
from featcache.store.catalogue import foreign_errors

if TYPE_CHECKING:
    from featcache.store.spaces import Item


@dataclass(frozen=True, slots=True)
class PlainFile:
    """Features from one plain file.

    Attributes:
        X: (n, d) float32.
        y: (n,) labels as text, or objects with None for items without one.
        uris: n texts; the row numbers where the file has none.
        sha256s: n SHA-256s of the images' bytes; None where the file has none.
        groups, splits: n texts or None, where an item has none or the file has none.
        recipe: what made the features, where the file says so.
        layers: names of the layers, likewise.
    """

    X: np.ndarray
    y: np.ndarray
    uris: list[str]
    sha256s: list[bytes] | None
    groups: list[str | None]
    splits: list[str | None]
    recipe: Recipe | None
    layers: list[str]


def write(
    path: Path, X: np.ndarray, items: Sequence[Item], classes: Sequence[str], recipe: Recipe, layers: Sequence[str]
) -> None:
    """Write ``features`` (n, d) float32, ``labels`` (n,) int64 (-1: none), ``uris``, ``classes``.

    ``sha256`` (n, 32) uint8, ``groups`` and ``splits`` (text, empty for none) go with them, so that what
    is trained on the file still knows what belongs together and what it has seen.

    Args:
        path: ``*.npz``, or HDF5 by any other name.

    Raises:
        StoreError: the file cannot be written.
    """
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([-1 if item.label is None else number[item.label] for item in items], dtype=np.int64)
    uris = [item.uri for item in items]
    groups, parts = [item.group or "" for item in items], [item.split or "" for item in items]
    sha256 = np.frombuffer(b"".join(item.sha256 for item in items), dtype=np.uint8).reshape(-1, 32)
    with foreign_errors(str(path)), written_whole(path) as partial:
        if path.suffix.lower() == ".npz":
            with partial.open("wb") as file:
                np.savez(
                    file,
                    features=X,
                    labels=labels,
                    uris=np.array(uris, dtype=str),
                    sha256=sha256,
                    groups=np.array(groups, dtype=str),
                    splits=np.array(parts, dtype=str),
                    classes=np.array(classes, dtype=str),
                    recipe=np.array(recipe.to_json()),
                    layers=np.array(list(layers), dtype=str),
                )
        else:
            import h5py

            with h5py.File(partial, "w") as file:
                file["features"] = X
                file["labels"] = labels
                text = h5py.string_dtype()
                file["sha256"] = sha256
                for name, texts in (("uris", uris), ("groups", groups), ("splits", parts)):
                    file.create_dataset(name, data=texts, dtype=text)
                file.create_dataset("classes", data=classes, dtype=text, shape=(len(classes),))
                file.attrs["recipe"] = recipe.to_json()
                file.attrs["fingerprint"] = recipe.fingerprint
                file.attrs["layers"] = json.dumps(list(layers))


def read(path: Path) -> PlainFile:
    """Read a file with ``features`` and ``labels``, whoever wrote it.

    Args:
        path: HDF5 (.h5, .hdf5) or NumPy (.npz) with ``features`` (n, d) numbers, ``labels`` (n,)
            integers (-1 for none) or text (NaN or empty for none), and where present ``classes``, ``uris``, ``sha256``,
            ``groups``, ``splits``, ``recipe``, ``layers``.

    Raises:
        SourceError: the file is not of this form; the message says what is missing or does not fit.
    """
    if not path.is_file():
        raise SourceError(f"There is no file {path}.")
    try:
        return _plain(path, _npz(path) if path.suffix.lower() == ".npz" else _hdf5(path))
    except (OSError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile) as error:
        if isinstance(error, FeatcacheError):
            raise
        raise SourceError(f"{path} cannot be read as a file of features: {error}.") from error


def _plain(path: Path, arrays: dict[str, np.ndarray]) -> PlainFile:
    """The file's arrays, checked against each other."""
    for name in ("features", "labels"):
        if name not in arrays:
            raise SourceError(f"{path} has no array called {name!r}; it needs `features` (n, d) and `labels` (n,).")
    X = np.asarray(arrays["features"])
    labels = np.asarray(arrays["labels"])
    if X.ndim != 2 or X.dtype.kind not in "fiu" or labels.shape != (len(X),):
        raise SourceError(
            f"{path}: `features` should be numbers of shape (n, d) and `labels` of shape (n,); "
            f"found {X.dtype} {X.shape} and {labels.dtype} {labels.shape}."
        )
    classes = [_text(c) for c in arrays.get("classes", np.array([], dtype=str))]
    if classes and labels.dtype.kind == "f":  # whole numbers, and NaN for none, as pandas has them
        missing = np.isnan(labels)
        if not np.equal(np.mod(labels[~missing], 1), 0).all():
            raise SourceError(f"{path}: a label is no whole number, but there are `classes` that labels number.")
        labels = np.where(missing, -1, labels).astype(np.int64)
    if labels.dtype.kind in "iu":
        if labels.size and classes and int(labels.max()) >= len(classes):
            raise SourceError(f"{path}: a label is {int(labels.max())}, but there are {len(classes)} classes.")
        named = [None if v < 0 else given_label(classes[v]) if classes else str(v) for v in labels.tolist()]
    else:
        named = [given_label(v) for v in labels]
    uris = [_text(u) for u in arrays.get("uris", np.arange(len(X)))]
    sha256 = np.asarray(arrays["sha256"]) if "sha256" in arrays else None
    if sha256 is not None and (sha256.shape != (len(X), 32) or sha256.dtype != np.uint8):
        raise SourceError(f"{path}: `sha256` should be uint8 of shape (n, 32); found {sha256.dtype} {sha256.shape}.")
    groups, parts = ([_text(v) or None for v in arrays.get(name, [""] * len(X))] for name in ("groups", "splits"))
    for name, values in (("uris", uris), ("groups", groups), ("splits", parts)):
        if len(values) != len(X):
            raise SourceError(f"{path}: `{name}` has {len(values)} entries for {len(X)} rows of `features`.")
    recipe = Recipe.from_json(_text(arrays["recipe"].item())) if "recipe" in arrays else None
    layers = [_text(v) for v in arrays.get("layers", np.array([], dtype=str))]
    y = np.array(named, dtype=object if None in named else str)
    hashes = None if sha256 is None else [row.tobytes() for row in sha256]
    return PlainFile(np.ascontiguousarray(X, dtype=np.float32), y, uris, hashes, groups, parts, recipe, layers)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        for name in ("features", "labels", "uris", "classes", "sha256", "groups", "splits"):
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue
            dataset = file[name]
            if dataset.is_virtual or dataset.external:
                raise ValueError(f"{name!r} leads to other files")
            arrays[name] = dataset[()]
        if "recipe" in file.attrs:
            arrays["recipe"] = np.array(str(file.attrs["recipe"]))
        if "layers" in file.attrs:
            arrays["layers"] = np.array(json.loads(str(file.attrs["layers"])), dtype=str)
    return arrays


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
