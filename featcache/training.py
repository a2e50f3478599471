"""Stored vectors into a scored head.

The head that is returned is the one that was scored, unless ``refit_all`` or ``cv`` says otherwise.
Items that share their content or their group never stand on both sides of a split or a fold. The
hold-out is drawn once and kept in the catalogue, so all heads of a source are scored on the same items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache import multilabel
from featcache.bundle import Bundle
from featcache.errors import MissingVectorsError, StoreError, UnknownNameError, UsageError
from featcache.evaluation import metrics, multilabel_splits, splits
from featcache.evaluation import multilabel as multilabel_metrics
from featcache.fitting import answers, fit
from featcache.heads import make_head
from featcache.labelled_vectors import LabelledVectors
from featcache.progress import Progress, choose
from featcache.store import FeatureStore, holdout

HOLDOUT = 0.2


def train(
    store: str | Path,
    head: Any = "logreg",
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
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train a head on stored vectors and score it on items it has not seen.

    Scored is, in this order of preference: with ``cv`` every item by the fold that did not see it; the
    source's own split ``test`` (or else ``val``); where the source has no split, a hold-out of a fifth.

    Args:
        store: a store, or an HDF5 or NumPy file with ``features`` and ``labels``.
        head: a name in `featcache.heads.HEADS`, or any scikit-learn classifier (a clone is fitted).
        task: ``classify``, or ``multilabel``: an item can have several labels, separated by ``|``, and each
            gets a probability of its own; heads for it are those in `featcache.heads.MULTILABEL_HEADS`.
        layers: which stored layers; several are concatenated, each divided by its root mean square on
            the items the head is fitted on. ``pooled`` by default.
        cv: score by this many outer folds; the head that is returned is then fitted on all items.
        split: train on this split; ``train`` by default where the source has splits.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        source: which source, where the store has several.
        space: which space, where the store has several.
        seed: of the hold-out, the folds and the heads.
        refit_all: after scoring, fit once more on all items and return that head.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Returns:
        A `Bundle`; its ``report`` has the score with its interval and protocol, and how many labelled images
        were left out as they have no vectors.

    Raises:
        UsageError: fewer than two classes, no such split, a group on both sides of a split, or too few
            items of a class for the folds.
        MissingVectorsError: no labelled item has vectors, or only those of one class.
    """
    began = time.monotonic()
    if task not in ("classify", "multilabel"):
        raise UnknownNameError.among("task", task, ("classify", "multilabel"))
    make_head(head, seed, task)  # a misspelt name should not wait for the vectors to be read
    path = Path(store)
    with choose(progress) as shown:
        if path.is_file():
            examples = LabelledVectors.from_file(path)
        else:
            examples = LabelledVectors.from_store(
                FeatureStore.open(path), layers, labels=labels, source=source, space=space
            )
        if task == "multilabel":
            examples = multilabel.several_labels(examples)
        elif any(multilabel.SEPARATOR in label for label in set(examples.y.tolist())):
            shown.note(multilabel.HINT)
        _check_classes(examples)
        fitting = 0.0
        if cv is not None:
            test = np.arange(len(examples.y)) if split is None else _of_split(examples, split)
            bundle, probabilities, predicted, fitting = _cross_validated(examples, test, head, cv, seed, shown)
            protocol = f"{cv}-fold cross-validation; the head saved is fitted on all {len(test)} items"
        else:
            learn, test, protocol = _parts(examples, split, seed, None if path.is_file() else path, shown)
            test, protocol = _never_learned(examples, learn, test, protocol)
            shown.start(f"train {head if isinstance(head, str) else type(head).__name__}", None, "items")
            fit_began = time.monotonic()
            bundle = fit(examples, learn, head, seed)
            fitting = time.monotonic() - fit_began
            probabilities, predicted = answers(bundle, examples, test)
        if task == "multilabel":
            assert probabilities is not None
            found = multilabel_metrics.score(examples.y[test], probabilities, units=examples.units[test], seed=seed)
            score, others = multilabel.reported(found)
        else:
            scores = metrics.score(
                examples.y[test], probabilities, predicted, bundle.classes, units=examples.units[test], seed=seed
            )
            score = _interval(scores.accuracy, "accuracy")
            others = {
                "balanced_accuracy": _interval(scores.balanced_accuracy),
                "macro_f1": _interval(scores.macro_f1),
                "log_loss": _interval(scores.log_loss),
            }
        if refit_all and cv is None:
            bundle = fit(examples, np.union1d(learn, test), head, seed)
            protocol += "; the head saved was fitted once more on all items"
        shown.finish()
    bundle.report.update(
        {
            "head": bundle.head,
            "task": task,
            "classes": list(bundle.classes),
            "n": bundle.fitted_on,
            "without_vectors": examples.without_vectors,
            "score": {**score, "n": len(test), "protocol": protocol},
            **others,
            "chosen": bundle.chosen,
            "predicts": "vectors" if bundle.recipe is None else "images",
            "fit_seconds": fitting,
            "seconds": time.monotonic() - began,
        }
    )
    return bundle


def _parts(
    examples: LabelledVectors, split: str | None, seed: int, store: Path | None, shown: Progress
) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows to learn from, rows to score on, and the protocol in words."""
    named = {item.split for item in examples.items} - {None}
    if named:
        learn = _of_split(examples, split or "train")
        for other in ("test", "val"):
            if other in named and other != (split or "train"):
                test = _of_split(examples, other)
                return learn, test, f"the source's own split {other!r}, {len(test)} items"
        raise UsageError(
            f"The source has the splits {', '.join(sorted(str(n) for n in named))}, but besides {split or 'train'!r}, "
            "which is learned from, no 'test' or 'val' to score on. Give one with `featcache extract --split FILE`, "
            "or score with --cv 5."
        )
    if split is not None:
        raise UnknownNameError(
            f"No split is called {split!r}: the source has none. Leave --split away, or give the source a split "
            "with `featcache extract --split`."
        )
    parts, was_kept = _holdout(examples, seed, store, shown)
    learn, test = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")
    drawn = "the same as for earlier heads" if was_kept else f"seed {seed}"
    return learn, test, f"a hold-out of {len(test)} items (one in five, {drawn})"


def _never_learned(
    examples: LabelledVectors, learn: np.ndarray, test: np.ndarray, protocol: str
) -> tuple[np.ndarray, str]:
    """The rows to score on without those that share content with a learned one, and the protocol in words.

    Raises:
        UsageError: a group stands on both sides, a learned class is the only one, or nothing is left.
    """
    names = sorted(set(examples.y[learn].tolist())) if examples.labels is None else examples.labels
    if len(names) < 2:
        raise UsageError(
            f"All items to learn from are of one class, {names[0]!r}, as the others belong to the part that is scored. "
            "Split the items otherwise, or score with --cv 5."
        )
    shared = np.isin(examples.units[test], examples.units[learn])
    if not shared.any():
        return test, protocol
    groups = {examples.items[row].group for row in test[shared]} - {None}
    if groups:
        raise UsageError(
            f"{len(groups)} groups stand on both sides of the split (first: {min(map(str, groups))!r}), so the score "
            "would be one of items that are half known. Put each group on one side, or score with --cv 5."
        )
    if shared.all():
        raise UsageError("Every item to score on is a copy of one that is learned from. Split the items otherwise.")
    return test[~shared], f"{protocol}, without {int(shared.sum())} copies of learned ones"


def _holdout(examples: LabelledVectors, seed: int, store: Path | None, shown: Progress) -> tuple[np.ndarray, bool]:
    """``train`` or ``test`` for each row, and whether that was decided before; kept in the catalogue."""
    keys = splits.unit_keys(examples.items)
    kept: dict[bytes, str] = {}
    if store is not None:
        kept = holdout.kept(FeatureStore.open(store).catalogue, examples.items[0].source)
    decided = {key: kept[item.sha256] for key, item in zip(keys, examples.items, strict=True) if item.sha256 in kept}
    draw = splits.draw_holdout if examples.labels is None else multilabel_splits.draw_holdout
    parts = draw(examples.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    if examples.labels is None:
        learned = {str(label) for label, key in zip(examples.y, keys, strict=True) if parts[key] == "train"}
        relabelled = {key for label, key in zip(examples.y, keys, strict=True) if str(label) not in learned}
    else:
        relabelled = multilabel_splits.held_out_alone(examples.y, keys, parts)
    if relabelled:
        # Labels were changed after the draw, and a class lies in the hold-out altogether: drawn anew.
        decided = {key: part for key, part in decided.items() if key not in relabelled}
        parts = draw(examples.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    new = {item.sha256: parts[key] for key, item in zip(keys, examples.items, strict=True)}
    if store is not None and any(kept.get(sha256) != part for sha256, part in new.items()):
        try:
            holdout.keep(store, examples.items[0].source, new)
        except StoreError as error:
            shown.note(f"The hold-out could not be kept in the store, so it may differ next time: {error}")
    return np.array([parts[key] for key in keys]), bool(decided)


def _cross_validated(
    examples: LabelledVectors, rows: np.ndarray, head: Any, k: int, seed: int, shown: Progress
) -> tuple[Bundle, np.ndarray | None, np.ndarray, float]:
    """Out-of-fold answers for *rows*, and a head fitted on all of them."""
    several = examples.labels is not None
    classes = list(examples.labels or sorted(set(examples.y[rows].tolist())))
    place = {name: i for i, name in enumerate(classes)}
    probabilities: np.ndarray | None = np.zeros((len(rows), len(classes)))
    predicted = np.empty((len(rows), *examples.y.shape[1:]), dtype=examples.y.dtype)
    draw = multilabel_splits.folds if several else splits.folds
    folds = draw(examples.y[rows], examples.units[rows], k, seed)
    shown.start("cross-validate", k + 1, "fits")
    began = time.monotonic()
    for learn, test in folds:
        unseen = [] if several else sorted(set(classes) - set(examples.y[rows[learn]].tolist()))
        if unseen:
            raise UsageError(
                f"All items of class {unseen[0]!r} belong to groups that fall into one fold, so that fold's head "
                "cannot learn the class. Use fewer folds or finer groups."
            )
        bundle = fit(examples, rows[learn], head, seed)
        p, said = answers(bundle, examples, rows[test])
        predicted[test] = said
        if p is None or probabilities is None:
            probabilities = None
        else:
            columns = np.array([place[name] for name in bundle.classes])
            probabilities[test[:, None], columns[None, :]] = p
        shown.advance()
    bundle = fit(examples, rows, head, seed)
    shown.advance()
    return bundle, probabilities, predicted, time.monotonic() - began


def _of_split(examples: LabelledVectors, split: str) -> np.ndarray:
    rows = np.array([i for i, item in enumerate(examples.items) if item.split == split], dtype=np.int64)
    if not len(rows):
        names = sorted({item.split for item in examples.items if item.split is not None})
        raise UnknownNameError.among("split", split, names)
    return rows


def _check_classes(examples: LabelledVectors) -> None:
    if examples.labels is not None:
        multilabel.check_labels(examples)
        return
    names = sorted(set(examples.y.tolist()))
    if len(names) < 2:
        one = f"All {len(examples.y)} labelled items are of one class, {names[0]!r}; a head needs two or more. "
        if examples.without_vectors:
            raise MissingVectorsError(
                one.replace("labelled items", "labelled items with vectors")
                + f"{examples.without_vectors} more have no vectors: run `featcache extract` to compute them."
            )
        raise UsageError(one + "Put the images into one folder a class, or give --labels FILE.")


def _interval(value: Any, name: str = "value") -> dict[str, Any]:
    if value is None:
        return {name: None, "low": None, "high": None}
    return {name: value.value, "low": value.low, "high": value.high}
