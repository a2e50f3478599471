"""`sweep`: every head on every layer set, the choice among them, and an honest score of the chosen one.

The layer sets of a sweep, and whether their scores can be compared.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import FeatcacheError, MissingVectorsError
from featcache.core.files import written_whole
from featcache.core.progress import Progress, choose
from featcache.heads import head_name, make_head
from featcache.metrics import splits
from featcache.store import FeatureStore
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import check_classes, train_test_split
from featcache.training.sweep_cells import Cell, KnownCells, compute, digest_of_items, key_of, plain
from featcache.training.sweep_report import SweepReport, called, draw, markdown, ranked
from featcache.training.train import train


@dataclass(frozen=True, slots=True)
class LayerSet:
    """Some layers that are used together.

    Attributes:
        names: in network order.
        dtypes: for each layer those in which it is stored.
        problem: why it cannot take part.
    """

    names: list[str]
    dtypes: dict[str, Sequence[str]]
    problem: str | None = None


def layer_sets(store: FeatureStore, layers: str | Sequence[str] | None, space: str | None) -> list[list[str]]:
    """The layer sets that are meant, each once.

    Args:
        store: the store.
        layers: each text is one set; by default every layer alone and all together, without whole maps.
        space: which space.

    Raises:
        UnknownNameError: no stored layer is called so.
    """
    if layers is None:
        stored = list(store.space(space).layers)
        alone = [name for name in stored if not name.endswith(":none")] or stored
        found = [[name] for name in alone] + [alone]
    else:
        found = [store.layer_names(one, space) for one in ([layers] if isinstance(layers, str) else layers)]
    return [list(names) for names in dict.fromkeys(map(tuple, found))]


def comparable(
    store: FeatureStore, sets: Sequence[Sequence[str]], space: str | None, **which: Any
) -> tuple[list[LayerSet], FeatureDataset]:
    """The layer sets, and the items that they are compared on: those of the set that has vectors of most.

    Args:
        store: the store.
        sets: of `layer_sets`.
        space: which space.
        which: ``labels`` and ``source``, as for `FeatureDataset.from_store`.

    Raises:
        MissingVectorsError: no set has vectors of any labelled item.
    """
    columns = store.space(space).layers
    most: FeatureDataset | None = None
    contents: list[str | MissingVectorsError] = []
    for names in sets:
        try:
            dataset = FeatureDataset.from_store(store, list(names), space=space, **which)
        except MissingVectorsError as error:
            contents.append(error)
            continue
        contents.append(_content(dataset))
        if most is None or len(dataset.items) > len(most.items):
            most = dataset
    if most is None:
        raise next(error for error in contents if isinstance(error, MissingVectorsError))
    found = []
    for names, content in zip(sets, contents, strict=True):
        problem = None
        if isinstance(content, MissingVectorsError):
            problem = str(content)
        elif content != _content(most):
            problem = (
                f"not all of the {len(most.items):,} labelled items have these vectors. Run `featcache extract` with "
                "these --layers to compute the rest."
            )
        found.append(LayerSet(list(names), {name: columns[name].dtypes for name in names}, problem))
    return found, most


def _content(dataset: FeatureDataset) -> str:
    digest = hashlib.sha256()
    for item in dataset.items:
        digest.update(item.sha256)
    return digest.hexdigest()


RUNS = "runs"
FOLDS = 5
QUICK = ("softmax", "ridge", "centroid", "knn")
"""The heads that are swept by default."""
_HELD_BYTES = 2 << 30
"""Vectors of one layer set that are kept in memory for all heads; of more, each head reads its own."""


def sweep(
    store: str | Path,
    heads: Sequence[Any] | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    split: str | None = None,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> SweepReport:
    """Score every head on every layer set, choose the best, and score it on items that took no part.

    Each pair is scored by out-of-fold predictions of 5 folds (fewer where a class has fewer independent
    items) on the training part: the split ``train``, or what is not in the hold-out that all heads of the
    source share. The least log-loss wins; a head without probabilities wins if its accuracy is higher than
    that of the least log-loss. The winner is fitted on the training part and scored on the rest. All of this is done
    on view 0, so that layers are compared which have been stored in different views.

    What was computed is kept in the store's folder ``runs``, each pair under all that made it. So a second
    sweep, or one that was stopped, computes only what is new; a scikit-learn estimator of another package
    is computed each time. A pair that fails is told in the report, and the others go on.

    Args:
        store: a store.
        heads: names, or scikit-learn classifiers. By default softmax, ridge, centroid and knn.
        layers: layer sets: each text is one (``pooled``, ``pooled+blocks.5:mean``, a glob), and its layers are
            used together. By default every stored layer alone and all of them together, without whole maps.
        split: the training part, where the source has splits; ``train`` by default.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        source: which source, where the store has several.
        space: which space, where the store has several.
        seed: of the hold-out, the folds, the heads and the bootstrap.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Returns:
        A `SweepReport`; its ``bundle`` is the winner.

    Raises:
        UnknownNameError: no such head or layer.
        UsageError: fewer than two classes, or a class with too few items to be cross-validated.
        MissingVectorsError: no labelled item has vectors.
        FeatcacheError: no pair could be scored.
    """
    began = time.monotonic()
    path, opened = Path(store), FeatureStore.open(store)
    chosen = list(QUICK) if heads is None else [heads] if isinstance(heads, str) else list(heads)
    for head in chosen:
        make_head(head, seed)  # a misspelt name should not wait for the others
    sets, dataset = comparable(opened, layer_sets(opened, layers, space), space, labels=labels, source=source)
    with choose(progress) as shown:
        check_classes(dataset)
        train_rows, _, _ = train_test_split(dataset, split, seed, path, shown)
        cells, makers = _Sweep(
            read=lambda names: FeatureDataset.from_store(opened, names, labels=labels, source=source, space=space),
            dataset=dataset,
            train_rows=train_rows,
            fingerprint=opened.space(space).fingerprint,
            known=KnownCells(path / RUNS / "cells"),
            seed=seed,
            shown=shown,
        ).over(sets, chosen)
        order = ranked(cells)
        winner = order[0]
        if winner.accuracy is None:
            raise FeatcacheError(f"No head could be scored. The first one, {winner.head}: {winner.problem}")
        maker = next(head for head, cell in zip(makers, cells, strict=True) if cell is winner)
        bundle = train(
            path,
            maker,
            layers=winner.layers,
            split=split,
            labels=labels,
            source=source,
            space=space,
            seed=seed,
            views="first",
            progress=shown,
        )
        report = SweepReport(
            store=str(store),
            cells=order,
            winner={"head": winner.head, "layers": winner.layers, "chosen": bundle.chosen},
            score=plain({**bundle.report["score"], "log_loss": bundle.report["log_loss"]["value"]}),
            near_duplicates=plain(bundle.report["near_duplicates"]),
            folds=_usable_folds(dataset, train_rows),
            n=len(train_rows),
            computed=sum(not cell.reused and cell.problem is None for cell in cells),
            reused=sum(cell.reused for cell in cells),
            seconds=time.monotonic() - began,
            bundle=bundle,
        )
        try:
            _write(report, path / RUNS, winner)
        except OSError as error:
            report.paths = dict.fromkeys(report.paths)
            shown.note(f"The report could not be written to {path / RUNS}: {error.strerror or error}.")
    return report


@dataclass
class _Sweep:
    """The cells of one sweep.

    Attributes:
        read: from names of layers to the labelled vectors.
        dataset: the items that all cells are compared on.
        train_rows: rows of the training part.
        fingerprint: of the recipe.
        known: cells of earlier sweeps.
        seed: of folds, heads and bootstrap.
        shown: progress.
    """

    read: Callable[[list[str]], FeatureDataset]
    dataset: FeatureDataset
    train_rows: np.ndarray
    fingerprint: str
    known: KnownCells
    seed: int
    shown: Progress

    def over(self, sets: Sequence[LayerSet], heads: Sequence[Any]) -> tuple[list[Cell], list[Any]]:
        """All cells, and the head of each."""
        y, units = self.dataset.y[self.train_rows], self.dataset.units[self.train_rows]
        folds = _usable_folds(self.dataset, self.train_rows)
        drawn = splits.folds(y, units, folds or FOLDS, self.seed)  # which says what is wrong where there are none
        items = digest_of_items(_part(self.dataset, self.train_rows), drawn)
        made_of = {"recipe": self.fingerprint, "items": items, "folds": folds}
        cells, makers = [], []
        self.shown.start("sweep", len(sets) * len(heads), "cells")
        for layer_set in sets:
            held: FeatureDataset | None = None
            for head in heads:
                key = key_of(head, layer_set.dtypes, made_of, self.seed)
                cell = self.known.get(key, head_name(head), layer_set.names)
                if layer_set.problem is not None:
                    cell = Cell(head_name(head), layer_set.names, problem=layer_set.problem)
                if cell is None:
                    try:
                        held = held or _in_memory(_part(self.read(layer_set.names), self.train_rows))
                        cell = compute(held, head, drawn, self.seed)
                        self._keep(key, cell)
                    except Exception as error:  # an estimator may raise anything, and the other cells go on
                        cell = Cell(head_name(head), layer_set.names, problem=_words(error))
                cells.append(cell)
                makers.append(head)
                self.shown.advance()
        self.shown.finish()
        return cells, makers

    def _keep(self, key: str | None, cell: Cell) -> None:
        try:
            self.known.keep(key, cell)
        except OSError as error:
            self.shown.note(f"{cell.head} on {called(cell.layers)} could not be kept: {error.strerror or error}.")


def _usable_folds(dataset: FeatureDataset, train_rows: np.ndarray) -> int:
    return splits.usable_k(dataset.y[train_rows], dataset.units[train_rows], FOLDS)


def _part(dataset: FeatureDataset, rows: np.ndarray) -> FeatureDataset:
    """Some of the labelled vectors."""
    return replace(
        dataset,
        items=[dataset.items[row] for row in rows],
        y=dataset.y[rows],
        units=dataset.units[rows],
        read=lambda at: dataset.read(rows[at]),
    )


def _in_memory(dataset: FeatureDataset) -> FeatureDataset:
    """The same, read once for all heads where they are not too large for that."""
    count = len(dataset.items)
    if 4 * count * sum(dataset.widths) > _HELD_BYTES:
        return dataset
    X = dataset.read(np.arange(count))
    return replace(dataset, read=lambda at: X[at])


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FeatcacheError) else f"{type(error).__name__}: {text}"


def _write(report: SweepReport, folder: Path, winner: Cell) -> None:
    stem = _free_stem(folder)
    figure = draw(report.cells, winner)
    written = {"json": f"{stem}.json", "markdown": f"{stem}.md", "figure": f"{stem}.png" if figure else None}
    if figure is not None:
        _write_file(folder / f"{stem}.png", figure)
    report.paths = {kind: None if name is None else str(folder / name) for kind, name in written.items()}
    _write_file(folder / f"{stem}.md", markdown(report).encode())
    _write_file(folder / f"{stem}.json", (json.dumps(plain(report.to_dict()), indent=1) + "\n").encode())


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_bytes(data)


def _free_stem(folder: Path) -> str:
    """``sweep-`` and the time in UTC, and a number where another sweep ended in the same second."""
    stem = name = datetime.now(timezone.utc).strftime("sweep-%Y%m%dT%H%M%SZ")
    number = 1
    while (folder / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    return name
