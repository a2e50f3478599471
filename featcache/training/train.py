"""Stored vectors into a scored head.

The head that is returned is the one that was scored, unless ``refit_all`` or ``cv`` says otherwise.
Items that share their content or their group never stand on both sides of a split or a fold, see
`featcache.training.holdout`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.heads import check_head, prepare, with_class_weight
from featcache.metrics import multilabel as multilabel_splits
from featcache.metrics import splits
from featcache.metrics.calibration import expected_calibration_error
from featcache.store import FeatureStore
from featcache.training import leakage, multilabel
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers, fit
from featcache.training.holdout import check_classes, of_split, train_test_split
from featcache.training.report import described, scored, uncalibrated, views_told


def train(
    store: str | Path,
    head: Any = "softmax",
    *,
    task: str = "classify",
    layers: str | Sequence[str] | None = None,
    cv: int | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    refit_all: bool = False,
    class_weight: str | Mapping[str, float] | None = None,
    group_near_duplicates: bool = False,
    views: str | Sequence[str] = "all",
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train a head on stored vectors and score it on items it has not seen.

    Where views are stored (``extract(…, views=K)``), the head learns from all views of its items. It is scored on
    view 0 alone, and all views of an image are on one side of every split and fold.

    Scored is, in this order of preference: with ``cv`` every item by the fold that did not see it; the
    source's own split ``test`` (or else ``val``); where the source has no split, a hold-out of a fifth.

    Args:
        store: a store, or an HDF5 or NumPy file with ``features`` and ``labels``.
        head: a name in `featcache.heads.HEADS`, or any scikit-learn classifier (a clone is fitted).
        task: ``classify``, or ``multilabel``: an item can have several labels, separated by ``|``, and each
            gets a probability of its own. A lone ``|`` says that an item has none of the labels, where an item
            without a label is left out. Heads for it are those in `featcache.heads.MULTILABEL_HEADS`.
        layers: which stored layers; several are concatenated, each divided by its root mean square on
            the items the head is fitted on. ``pooled`` by default.
        cv: score by this many outer folds; the head that is returned is then fitted on all items.
        split: train on this split; ``train`` by default where the source has splits.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        source: which source, where the store has several.
        space: which space, where the store has several.
        seed: of the hold-out, the folds and the heads.
        refit_all: after scoring, fit once more on all items and return that head.
        class_weight: ``"balanced"`` to let every class weigh the same, or a weight for each label; only
            for the heads `featcache.heads.WEIGHING` and estimators that have such a parameter.
        group_near_duplicates: keep near-duplicates (`featcache.metrics.near_duplicates`) on one side
            of every split and fold. If the hold-out of earlier heads tears some apart, this head gets one of its
            own, which the protocol says. Otherwise those that stand on both sides are counted in the report.
        views: ``all`` that are stored of the layers, ``first`` for view 0 alone, or the names of those to learn from
            beside view 0.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Returns:
        A `Bundle`; its ``report`` has the score with its interval and protocol, and how many images were left
        out: ``without_vectors``, labelled ones, and ``without_labels``, those with vectors alone. ``unscored``
        lists the classes that no scored item has.

    Raises:
        UsageError: fewer than two classes, no such split, a group on both sides of a split, too few
            items of a class for the folds, a head that cannot weigh classes, or one that needs more memory than
            there is.
        MissingVectorsError: no labelled item has vectors, or only those of one class, or some lack a layer or view.
    """
    began = time.monotonic()
    if task not in ("classify", "multilabel"):
        raise UnknownNameError.among("task", task, ("classify", "multilabel"))
    if isinstance(views, str) and views not in ("all", "first"):
        raise UnknownNameError.among("choice of views", views, ("all", "first"))
    learned = views == "all" if isinstance(views, str) else list(views)
    if class_weight is not None:
        head = with_class_weight(head, class_weight, seed, task)
    check_head(head, task)  # a misspelt name should not wait for the vectors to be read
    path = Path(store)
    with choose(progress) as shown:
        if path.is_file():
            dataset = FeatureDataset.from_file(path)
        else:
            dataset = FeatureDataset.from_store(
                FeatureStore.open(path), layers, labels=labels, source=source, space=space, views=learned
            )
        if task == "multilabel":
            dataset = multilabel.several_labels(dataset)
        elif any(multilabel.SEPARATOR in label for label in set(dataset.y.tolist())):
            shown.note(multilabel.HINT)
        check_classes(dataset)
        if isinstance(class_weight, Mapping):
            _check_weighed(dataset, class_weight)
        near = None
        if group_near_duplicates:
            near = leakage.search(dataset, np.arange(len(dataset.y)), seed=seed, progress=shown)
            dataset = dataset.linked(near.pairs)
            if near.note is not None:
                shown.note(f"Near-duplicates could not be grouped: {near.note}.")
        if cv is not None:
            test = np.arange(len(dataset.y)) if split is None else of_split(dataset, split)
            draw = splits.folds if dataset.labels is None else multilabel_splits.folds
            folds = draw(dataset.y[test], dataset.units[test], cv, seed)
            sides = [test[scored] for _, scored in folds]
            protocol = f"{cv}-fold cross-validation; the head saved is fitted on all {len(test)} items"
        else:
            train_rows, test, protocol = train_test_split(dataset, split, seed, None if path.is_file() else path, shown)
            sides = [train_rows, test]
        # Before the fit: meanwhile the head's module is imported.
        prepare(head, task)
        guard = leakage.guard(
            dataset, sides, scored=None if cv is not None else test, found=near, seed=seed, progress=shown
        )
        if cv is not None:
            bundle, probabilities, predicted, sure, fitting = cross_validated(dataset, test, head, folds, seed, shown)
        else:
            fit_began = time.monotonic()
            bundle = fit(dataset, train_rows, head, seed, progress=shown)
            fitting = time.monotonic() - fit_began
            probabilities, predicted = answers(bundle, dataset, test)
            sure = uncalibrated(bundle, probabilities)
        scores = scored(dataset, test, probabilities, predicted, bundle.classes, seed)
        if refit_all and cv is None:
            bundle = fit(dataset, np.union1d(train_rows, test), head, seed, progress=shown)
            protocol += "; the head saved was fitted once more on all items"
        shown.finish()
    if len(dataset.views) > 1:
        protocol += f"; learned from {views_told(dataset.views)} of each image, scored on view 0"
    if bundle.report["calibration"] is not None and probabilities is not None:
        right = predicted == dataset.y[test]
        for name, p in (("ece_before", sure), ("ece_after", probabilities)):
            bundle.report["calibration"][name] = expected_calibration_error(p, right)
    bundle.report |= described(bundle, dataset, test, scores, protocol)
    bundle.report |= {
        "near_duplicates": {**guard.report(dataset), "grouped": near is not None and near.note is None},
        "fit_seconds": fitting,
        "seconds": time.monotonic() - began,
    }
    return bundle


def cross_validated(
    dataset: FeatureDataset,
    rows: np.ndarray,
    head: Any,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    seed: int,
    shown: Progress,
) -> tuple[Bundle, np.ndarray | None, np.ndarray, np.ndarray, float]:
    """A head fitted on some rows, and out-of-fold answers for them.

    Args:
        dataset: labelled vectors.
        rows: (m,) row numbers.
        head: a name or a scikit-learn classifier.
        folds: pairs of places in *rows*, to learn from and to answer for.
        seed: of our own heads.
        shown: is told of every fit.

    Returns:
        The head as a bundle; probabilities (m, k), or None where there are none; labels (m,); how sure the heads
        would be without their temperatures (m,), NaN where they have none; and the seconds that all took.

    Raises:
        UsageError: a class stands in one fold alone.
    """
    several = dataset.labels is not None
    classes = list(dataset.labels or sorted(set(dataset.y[rows].tolist())))
    place = {name: i for i, name in enumerate(classes)}
    probabilities: np.ndarray | None = np.zeros((len(rows), len(classes)))
    predicted = np.empty((len(rows), *dataset.y.shape[1:]), dtype=dataset.y.dtype)
    sure = np.full(len(rows), np.nan)
    shown.start("cross-validate", len(folds) + 1, "fits")
    began = time.monotonic()
    for train_rows, test in folds:
        unseen = [] if several else sorted(set(classes) - set(dataset.y[rows[train_rows]].tolist()))
        if unseen:
            raise UsageError(
                f"All items of class {unseen[0]!r} belong to groups that fall into one fold, so that fold's head "
                "cannot learn the class. Use fewer folds or finer groups."
            )
        bundle = fit(dataset, rows[train_rows], head, seed)
        p, said = answers(bundle, dataset, rows[test])
        predicted[test] = said
        sure[test] = uncalibrated(bundle, p)
        if p is None or probabilities is None:
            probabilities = None
        else:
            columns = np.array([place[name] for name in bundle.classes])
            probabilities[test[:, None], columns[None, :]] = p
        shown.advance()
    bundle = fit(dataset, rows, head, seed)
    shown.advance()
    return bundle, probabilities, predicted, sure, time.monotonic() - began


def _check_weighed(dataset: FeatureDataset, class_weight: Mapping[str, float]) -> None:
    names = sorted(set(dataset.y.tolist()))
    unknown = sorted(map(str, class_weight.keys() - set(names)))
    if unknown:
        raise UnknownNameError.among("class in class_weight", unknown[0], names)
