"""One cell of a sweep: a head on a layer set, scored by cross-validation, and kept for later sweeps.

A cell is kept under the SHA-256 of everything it depends on, so a later sweep computes only what is new. A damaged file
is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.files import written_whole
from featcache.core.plain import plain
from featcache.core.progress import Silent
from featcache.metrics import classification
from featcache.training.train import cross_validated

if TYPE_CHECKING:
    from featcache.heads import Head
    from featcache.training.dataset import FeatureDataset

_KNOWN_BY_VERSION = ("featcache", "sklearn")


@dataclass(frozen=True, slots=True)
class Cell:
    """One head on one layer set.

    Attributes:
        head: its name.
        layers: names of the layers, in network order.
        d: size of a vector; None if not known.
        accuracy: of the out-of-fold predictions on the training part.
        low, high: its 95 % interval; None if not known.
        log_loss: mean -ln of the out-of-fold probability of the true class; None without probabilities.
        log_loss_low, log_loss_high: likewise.
        chosen: hyper-parameters that the head chose on the whole training part.
        curve: ``[C, held-out log-loss or None]`` pairs of a head that compared several C.
        seconds: of its computation.
        reused: whether it comes from an earlier sweep.
        problem: why there is no score.
    """

    head: str
    layers: list[str]
    d: int | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    log_loss: float | None = None
    log_loss_low: float | None = None
    log_loss_high: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    curve: list[list[float | None]] = field(default_factory=list)
    seconds: float | None = None
    reused: bool = False
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def compute(dataset: FeatureDataset, head: Head, folds: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> Cell:
    """Score a head by out-of-fold predictions for all rows.

    Args:
        dataset: the training part alone.
        head: from `featcache.heads.resolve_head`.
        folds: pairs of row numbers: to train on, to predict.
        seed: of the bootstrap.
    """
    began = time.monotonic()
    bundle, found, _ = cross_validated(dataset, np.arange(len(dataset.y)), head, folds, Silent())
    scores = classification.score(
        dataset.y, found.probabilities, found.labels, bundle.classes, units=dataset.groups, seed=seed
    )
    loss = scores.log_loss
    return Cell(
        head=head.name,
        layers=list(dataset.layers),
        d=sum(dataset.widths),
        accuracy=scores.accuracy.value,
        low=plain(scores.accuracy.low),
        high=plain(scores.accuracy.high),
        log_loss=None if loss is None else loss.value,
        log_loss_low=None if loss is None else plain(loss.low),
        log_loss_high=None if loss is None else plain(loss.high),
        chosen=plain(bundle.chosen),
        curve=bundle.report.get("loss_over_C", []),
        seconds=time.monotonic() - began,
    )


def digest_of_items(dataset: FeatureDataset, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 over each item's content, label, group and fold, in hexadecimal.

    Groups count, because heads draw inner folds by them and intervals depend on them.
    """
    # The row of the group's first item, whatever number the group has.
    _, firsts, places = np.unique(dataset.groups, return_index=True, return_inverse=True)
    first = firsts[places].tolist()
    fold = np.zeros(len(dataset.y), dtype=np.int64)
    for number, (_, test) in enumerate(folds):
        fold[test] = number
    digest = hashlib.sha256()
    for item, *key in zip(dataset.items, dataset.y.tolist(), first, fold.tolist(), strict=True):
        digest.update(item.sha256 + json.dumps(key).encode())
    return digest.hexdigest()


def key_of(head: Head, layers: Mapping[str, Sequence[str]], made_of: Mapping[str, Any], seed: int) -> str | None:
    """The name under which a cell is kept; None if the version of the head's code is not known.

    Args:
        head: from `featcache.heads.resolve_head`.
        layers: for each layer the dtypes in which it is stored.
        made_of: everything else: the recipe's fingerprint, the digest of the images, the number of folds.
        seed: of folds, head and bootstrap.
    """
    estimator = head.make()
    parameters = estimator.get_params()
    parts = [estimator, *(value for value in parameters.values() if hasattr(value, "get_params"))]
    if any(type(part).__module__.partition(".")[0] not in _KNOWN_BY_VERSION for part in parts):
        return None
    key = {
        "head": head.name,
        "class": f"{type(estimator).__module__}.{type(estimator).__qualname__}",
        "parameters": {name: _parameter_text(value) for name, value in parameters.items()},
        "layers": {name: sorted(dtypes) for name, dtypes in layers.items()},
        "seed": seed,
        "versions": {name: version(name) for name in ("featcache", "numpy", "scikit-learn")},
        **made_of,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class KnownCells:
    """The cells of earlier sweeps of a store.

    Args:
        folder: where they are kept; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str | None, head: str, layers: Sequence[str]) -> Cell | None:
        """The cell of that key, marked as reused, or None."""
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            data = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            found = Cell(**data["cell"])
            if (data["key"], found.head, found.layers) == (key, head, list(layers)) and _is_sound(found):
                return replace(found, reused=True)
        return None

    def keep(self, key: str | None, cell: Cell) -> None:
        """Keep a computed cell.

        Raises:
            OSError: it cannot be written.
        """
        if key is not None:
            text = json.dumps({"key": key, "cell": cell.to_dict()}, indent=1)
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._folder / f"{key}.json") as aside:
                aside.write_bytes(text.encode())


def _is_sound(cell: Cell) -> bool:
    numbers = [cell.accuracy, cell.seconds, *(C for C, _ in cell.curve)]
    open_ones = [cell.low, cell.high, cell.log_loss, cell.log_loss_low, cell.log_loss_high]
    numbers += [value for value in (*open_ones, *(loss for _, loss in cell.curve)) if value is not None]
    return (
        isinstance(cell.d, int)
        and all(isinstance(number, float) and math.isfinite(number) for number in numbers)
        and all(isinstance(value, (int, float, bool)) or str(value).isprintable() for value in cell.chosen.values())
        and all(name.isprintable() for name in cell.chosen)
        and cell.problem is None
    )


def _parameter_text(value: Any) -> str:
    """A parameter as text; NumPy's own text of an array is shortened."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return repr(value)
