"""`sweep`: score every head on every set of layers, choose the best, and score it on images that took no part."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import FeatcacheError, MissingVectorsError
from featcache.core.files import written_whole
from featcache.core.plain import plain
from featcache.core.progress import Progress, choose
from featcache.heads import Head, resolve_head
from featcache.metrics import splits
from featcache.store import FeatureStore
from featcache.training.all_blocks import with_all_blocks
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import check_classes, divide
from featcache.training.label_notes import note_incomplete, note_labels
from featcache.training.selection import Selection, SelectionOptions
from featcache.training.spaces import choose_space
from featcache.training.sweep_cells import Cell, KnownCells, compute, digest_of_items, key_of
from featcache.training.sweep_report import SweepReport, called, draw, markdown, ranked
from featcache.training.train import fit_and_score

if TYPE_CHECKING:
    from featcache.backbones import Backbone


@dataclass(frozen=True, slots=True)
class LayerSet:
    """Layers whose vectors are concatenated.

    Attributes:
        names: in network order.
        dtypes: the dtypes in which each layer is stored.
        problem: why the set cannot be scored.
    """

    names: list[str]
    dtypes: dict[str, Sequence[str]]
    problem: str | None = None


def layer_sets(store: FeatureStore, layers: str | Sequence[str] | None, space: str | None) -> list[list[str]]:
    """The layer sets to score, each once.

    Args:
        store: the store.
        layers: each text is one set; by default every layer alone and all together, without whole activation maps.
        space: the space.

    Raises:
        UnknownNameError: no such layer is stored.
    """
    if layers is None:
        stored = list(store.space(space).layers)
        alone = [name for name in stored if not name.endswith(":none")] or stored
        found = [[name] for name in alone] + [alone]
    else:
        found = [store.layer_names(one, space) for one in ([layers] if isinstance(layers, str) else layers)]
    return [list(names) for names in dict.fromkeys(map(tuple, found))]


def comparable(
    store: FeatureStore, sets: Sequence[Sequence[str]], select: Selection
) -> tuple[list[LayerSet], FeatureDataset]:
    """The layer sets, and the images to compare them on: those of the set with vectors of most images.

    Args:
        store: the store.
        sets: from `layer_sets`.
        select: source, space and labels.

    Raises:
        MissingVectorsError: no labeled image has vectors of any set.
    """
    columns = store.space(select.space).layers
    most: FeatureDataset | None = None
    contents: list[str | MissingVectorsError] = []
    for names in sets:
        try:
            dataset = FeatureDataset.from_store(store, list(names), select)
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
                f"not all of the {len(most.items):,} labeled items have these vectors. Run `featcache extract` with "
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
_NOTHING = "no two classes have two independent images, so there is nothing to choose by"
QUICK = ("softmax", "ridge", "centroid", "knn")
"""The heads that are swept by default."""


@checked
def sweep(
    store: str | Path | FeatureStore,
    heads: Sequence[Any] | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> SweepReport:
    """Score every head on every layer set, choose the best, and score it on images that took no part.

    Each pair is scored by out-of-fold predictions of 5 folds (fewer if a class has fewer independent images) on the
    training part: the split ``train``, or what is not in the hold-out that all heads of the source share. The lowest
    log-loss wins; a head without probabilities wins if its accuracy is higher than that of the lowest log-loss. The
    winner is fitted on the training part and scored on the rest. Classes of one independent image take no part in the
    choice; where no two classes have more, the first head and layer set are taken. All on view 0, so that layers stored
    in different views can be compared. Of several spaces that *space* leaves open, those with ``pooled`` are compared
    first, by ridge, and the best is swept.

    Results are kept in the store's folder ``runs``, each pair under a hash of everything it depends on. A second sweep,
    or one that was stopped, computes only what is new; an estimator of another package than scikit-learn is computed
    each time. A pair that fails is reported, and the others go on.

    Args:
        store: a store or its path.
        heads: names, import paths or scikit-learn classifiers. By default softmax, ridge, centroid and knn.
        layers: layer sets: each text is one (``pooled``, ``pooled+blocks.5:mean``, a glob), and its layers are
            concatenated; ``all-blocks`` as for `featcache.train`. By default every stored layer alone and all
            together, without whole activation maps.
        seed: of the hold-out, the folds, the heads and the bootstrap.
        backbone: as for `featcache.train`.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object to report to.
        **selection: ``source``, ``space`` and ``labels`` of `Selection`; and ``split``, the training part
            (``train`` by default, if the source has splits).

    Returns:
        A `SweepReport`; its ``bundle`` is the winner.

    Raises:
        UnknownNameError: no such head or layer.
        UsageError: fewer than two classes.
        MissingVectorsError: no labeled image has vectors.
        FeatcacheError: no pair could be scored.

    Example:
        >>> report = fc.sweep("pets.fcache", ["ridge", "knn"])
        >>> [cell.head for cell in report.cells]
        ['ridge', 'knn']
    """
    began = time.monotonic()
    opened = FeatureStore.open(store)
    named = list(QUICK) if heads is None else [heads] if isinstance(heads, str) else list(heads)
    chosen = [resolve_head(head, seed=seed) for head in named]
    runs = opened.path / RUNS
    with choose(progress) as bar:
        select, spaces = choose_space(opened, Selection(**selection), seed, bar)
        opened, layers = with_all_blocks(opened, layers, select, bar, backbone)
        sets, dataset = comparable(opened, layer_sets(opened, layers, select.space), select.all_splits())
        note_incomplete(opened, dataset, bar)
        check_classes(dataset)
        note_labels(dataset, bar)
        sides = divide(dataset, select.split, seed, opened, bar)
        compared, left_out = _comparable_rows(dataset, sides.train_rows)
        if left_out and len(compared):
            bar.note(f"Classes of one independent image take no part in the choice: {', '.join(map(repr, left_out))}.")
        cells, makers = _Sweep(
            read=lambda names: FeatureDataset.from_store(opened, names, select.all_splits()),
            dataset=dataset,
            train_rows=compared,
            fingerprint=opened.space(select.space).fingerprint,
            known=KnownCells(runs / "cells"),
            seed=seed,
            progress=bar,
        ).over(sets, chosen)
        order = ranked(cells)
        winner = order[0]
        if winner.accuracy is None and len(compared):
            raise FeatcacheError(f"No head could be scored. The first one, {winner.head}: {winner.problem}")
        maker = next(head for head, cell in zip(makers, cells, strict=True) if cell is winner)
        won = FeatureDataset.from_store(opened, winner.layers, select.all_splits()).in_memory()
        fitting = time.monotonic()
        bundle = fit_and_score(replace(sides, dataset=won), maker, seed, bar).reported(fitting)
        bar.finish()
        report = SweepReport(
            store=str(opened.path),
            cells=order,
            winner={"head": winner.head, "layers": winner.layers, "chosen": bundle.chosen},
            spaces=[space.to_dict() for space in spaces],
            score=plain({**bundle.report["score"], "log_loss": bundle.report["log_loss"]["value"]}),
            near_duplicates=plain(bundle.report["near_duplicates"]),
            folds=_usable_folds(dataset, compared),
            n=len(compared),
            left_out=left_out,
            computed=sum(not cell.reused and cell.problem is None for cell in cells),
            reused=sum(cell.reused for cell in cells),
            seconds=time.monotonic() - began,
            bundle=bundle,
        )
        try:
            _write(report, runs, winner)
        except OSError as error:
            report.paths = dict.fromkeys(report.paths)
            bar.note(f"The report could not be written to {runs}: {error.strerror or error}.")
    return report


@dataclass
class _Sweep:
    """The cells of one sweep.

    Attributes:
        read: from names of layers to labeled vectors.
        dataset: the images that all cells are compared on.
        train_rows: rows of the training part.
        fingerprint: of the recipe.
        known: cells of earlier sweeps.
        seed: of folds, heads and bootstrap.
        progress: gets every cell.
    """

    read: Callable[[list[str]], FeatureDataset]
    dataset: FeatureDataset
    train_rows: np.ndarray
    fingerprint: str
    known: KnownCells
    seed: int
    progress: Progress

    def over(self, sets: Sequence[LayerSet], heads: Sequence[Head]) -> tuple[list[Cell], list[Head]]:
        """All cells, and the head of each."""
        y, groups = self.dataset.y[self.train_rows], self.dataset.groups[self.train_rows]
        folds = _usable_folds(self.dataset, self.train_rows)
        if not folds:
            first = next(one for one in sets if one.problem is None)
            return [Cell(head.name, first.names, problem=_NOTHING) for head in heads], list(heads)
        drawn = splits.folds(y, groups, folds, self.seed)
        items = digest_of_items(self.dataset.subset(self.train_rows), drawn)
        made_of = {"recipe": self.fingerprint, "items": items, "folds": folds}
        cells, makers = [], []
        self.progress.start("sweep", len(sets) * len(heads), "cells")
        for layer_set in sets:
            held: FeatureDataset | None = None
            for head in heads:
                key = key_of(head, layer_set.dtypes, made_of, self.seed)
                cell = self.known.get(key, head.name, layer_set.names)
                if layer_set.problem is not None:
                    cell = Cell(head.name, layer_set.names, problem=layer_set.problem)
                if cell is None:
                    try:
                        held = held or self.read(layer_set.names).subset(self.train_rows).in_memory()
                        cell = compute(held, head, drawn, self.seed)
                        self._keep(key, cell)
                    except Exception as error:  # an estimator may raise anything, and the other cells go on
                        cell = Cell(head.name, layer_set.names, problem=_words(error))
                cells.append(cell)
                makers.append(head)
                self.progress.advance()
        self.progress.finish()
        return cells, makers

    def _keep(self, key: str | None, cell: Cell) -> None:
        try:
            self.known.keep(key, cell)
        except OSError as error:
            self.progress.note(f"{cell.head} on {called(cell.layers)} could not be kept: {error.strerror or error}.")


def _comparable_rows(dataset: FeatureDataset, train_rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The training rows that heads can be compared on, and the classes that have too few independent images for it.

    No row is left where fewer than two classes are.
    """
    y, groups = dataset.y[train_rows], dataset.groups[train_rows]
    few = [name for name in np.unique(y) if len(np.unique(groups[y == name])) < 2]
    kept = train_rows[~np.isin(y, few)]
    return (kept if len(np.unique(dataset.y[kept])) > 1 else kept[:0]), [str(name) for name in few]


def _usable_folds(dataset: FeatureDataset, rows: np.ndarray) -> int:
    return splits.usable_k(dataset.y[rows], dataset.groups[rows], FOLDS) if len(rows) else 0


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
    stem = name = datetime.now(UTC).strftime("sweep-%Y%m%dT%H%M%SZ")
    number = 1
    while (folder / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    return name
