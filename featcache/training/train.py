"""`train`: stored vectors into a scored head.

The head that is returned is the one that was scored, unless ``refit_all`` or ``cv`` says otherwise. Images that share
content or a group are never on both sides of a split or a fold, see `featcache.training.holdout`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError
from featcache.core.labels import SEPARATOR
from featcache.core.progress import Progress, choose
from featcache.heads import Head, resolve_head
from featcache.heads.duration import told_if_long
from featcache.metrics import multilabel as multilabel_splits
from featcache.metrics import splits
from featcache.metrics.calibration import expected_calibration_error
from featcache.store import FeatureStore
from featcache.training import leakage, multilabel
from featcache.training.all_blocks import POOLED, stored_blocks, with_all_blocks
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers, fit
from featcache.training.holdout import (
    LEARNED_FROM,
    Sides,
    check_classes,
    divide,
    learned_from,
)
from featcache.training.label_notes import note_incomplete, note_labels
from featcache.training.own_splits import split_rows, without_splits
from featcache.training.report import describe_views, report_fields, score_fields, uncalibrated
from featcache.training.selection import Selection, SelectionOptions

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.training.bundle import Bundle


@checked
def train(
    store: str | Path | FeatureStore,
    head: Any = None,
    *,
    task: str = "classify",
    layers: str | Sequence[str] | None = None,
    cv: int | None = None,
    seed: int = 0,
    refit_all: bool = False,
    class_weight: str | Mapping[str, float] | None = None,
    group_near_duplicates: bool = False,
    views: str | Sequence[str] = "all",
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> Bundle:
    """Train a head on stored vectors and score it on images that it has not seen.

    With stored views (``extract(…, views=K)``) the head is fitted on all views of its images and scored on view 0
    alone. All views of an image are on one side of every split and fold.

    The head is scored, in this order: with ``cv``, on every image, by the fold that did not see it; on the source's own
    split ``test``, else ``val``; without splits, on the store's hold-out, about one image in five, which is the same
    for all heads (`featcache.metrics.holdout`). Where nothing can be scored, such as one image per class, the head is
    fitted all the same; its score is None and the protocol says why.

    Args:
        store: a store or its path, or an HDF5 or NumPy file with ``features`` and ``labels``.
        head: a name in `featcache.heads.HEADS`; an import path such as
            ``"sklearn.linear_model:LogisticRegression(C=0.1)"``; or a scikit-learn classifier, of which a clone is
            fitted. By default ``stack`` on several layers (`featcache.heads.stack`), else ``softmax``.
        task: ``classify``, or ``multilabel``: several labels per image, separated by ``|``, each with a probability of
            its own. A lone ``|`` stands for none of the labels; images without a label are left out. The heads for
            it are in `featcache.heads.MULTILABEL_HEADS`.
        layers: names of stored layers; by default ``pooled`` and the blocks that are stored with ``mean_std`` of as
            many images (for ``multilabel``, ``pooled`` alone). Several are concatenated, each divided by a number
            (`featcache.training.layer_scales`); where none were named, a head other than ``stack`` reads the last one
            alone if that is better. ``all-blocks`` is every block of the network and ``pooled``, on view 0; blocks
            that are not stored are extracted first.
        cv: score by this many outer folds; the returned head is fitted on all images.
        seed: of the folds and the head; and of the hold-out, if the store has none yet.
        refit_all: after scoring, fit again on all images and return that head.
        class_weight: ``"balanced"`` to weigh all classes the same, or a weight per label; for the heads
            `featcache.heads.WEIGHING` and estimators with that parameter.
        group_near_duplicates: keep near-duplicates (`featcache.metrics.near_duplicates`) on one side of the source's
            own split and of every fold. Without this, those across are counted in the report. Those of images in the
            store's hold-out are not learned from in either case, unless *cv* or *refit_all* is given.
        views: ``all`` stored views of the layers, ``first`` for view 0 alone, or names of views to use in addition to
            view 0.
        backbone: for ``all-blocks``: needed only where the vectors were made by a module given in Python, or with a
            file of weights that this machine has not seen.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object to report to.
        **selection: ``source``, ``space``, ``labels`` and ``labels_only`` of `Selection`; and ``split``, the split to
            train on (``train`` by default, if the source has splits).

    Returns:
        A `Bundle`. Its ``report`` has the score with interval and protocol; the number of images left out, labeled
        ones ``without_vectors`` and those ``without_labels``; and the classes ``unscored``, of which no image was
        scored.

    Raises:
        UsageError: fewer than two classes, no such split, a group on both sides of a split, too few images of a class
            for the folds, a head that takes no class weights, or too little memory for the head.
        MissingVectorsError: no labeled image has vectors, or only those of one class, or some lack a layer or a view.
        RecipeMismatchError: the backbone does not have the recipe of the vectors.

    Example:
        >>> bundle = fc.train("pets.fcache", "ridge")
        >>> bundle.report["score"]["accuracy"]
        1.0
        >>> bundle.save("new.fch")
    """
    began = time.monotonic()
    if task not in ("classify", "multilabel"):
        raise UnknownNameError.among("task", task, ("classify", "multilabel"))
    if isinstance(views, str) and views not in ("all", "first"):
        raise UnknownNameError.among("choice of views", views, ("all", "first"))
    resolved = resolve_head("softmax" if head is None else head, seed=seed, task=task, class_weight=class_weight)
    select = Selection(**selection)
    with choose(progress) as bar:
        chosen = views == "all" if isinstance(views, str) else list(views)
        if layers is None and task == "multilabel":
            layers = POOLED
        dataset, opened = _dataset(store, layers, select, chosen, backbone, bar)
        dataset.tell_labels(bar)
        if head is None and len(dataset.layers) > 1 and task == "classify":
            resolved = resolve_head("stack", seed=seed, class_weight=class_weight)
        if task == "multilabel":
            dataset = multilabel.several_labels(dataset)
        elif any(SEPARATOR in label for label in set(dataset.y.tolist())):
            bar.note(multilabel.HINT)
        note_incomplete(opened, dataset, bar)
        check_classes(dataset)
        note_labels(dataset, bar)
        if isinstance(class_weight, Mapping):
            _check_class_weight(dataset, class_weight)
        resolved.start_import()  # in the background, while near-duplicates are searched
        if cv is not None:
            near = None
            if group_near_duplicates:
                near = leakage.grouped(dataset, None, seed, bar)
                dataset = dataset.linked(near.pairs)
            test = np.arange(len(dataset.y)) if select.split is None else split_rows(dataset, select.split)
            draw = splits.folds if dataset.labels is None else multilabel_splits.folds
            folds = draw(dataset.y[test], dataset.groups[test], cv, seed)
            leaked = leakage.guard(dataset, [test[fold] for _, fold in folds], found=near, seed=seed, progress=bar)
            _note_if_long(resolved, dataset, test, 1 + cv, bar)
            bundle, predictions, fitting = cross_validated(dataset, test, resolved, folds, bar)
            protocol = f"{cv}-fold cross-validation; the head saved is fitted on all {len(test)} items"
            protocol += learned_from(dataset, test, opened, seed, leaked.found)
            scored = Scored(Sides(dataset, test, test, protocol, leaked), bundle, predictions, seed, fitting)
        else:
            sides = divide(dataset, select.split, seed, opened, bar, grouped=group_near_duplicates)
            dataset = sides.dataset
            _note_if_long(resolved, dataset, sides.train_rows, 1 + int(refit_all), bar)
            scored = fit_and_score(sides, resolved, seed, bar)
            if refit_all:
                scored = _refitted(scored, resolved, opened, bar)
        bar.finish()
    return scored.reported(began, grouped=group_near_duplicates)


def _note_if_long(head: Head, dataset: FeatureDataset, rows: np.ndarray, fits: int, progress: Progress) -> None:
    classes, vectors = len(dataset.labels or np.unique(dataset.y[rows])), len(rows) * len(dataset.views)
    if (text := told_if_long(head.make(), head.name, vectors, sum(dataset.widths), classes, fits)) is not None:
        progress.note(text)


class Predictions(NamedTuple):
    """A head's predictions for m rows.

    Attributes:
        probabilities: (m, k), or None.
        labels: (m,); (m, k) bool with several labels per image.
        raw_confidence: (m,) largest probability before temperature scaling; NaN without temperature.
    """

    probabilities: np.ndarray | None
    labels: np.ndarray
    raw_confidence: np.ndarray


@dataclass(frozen=True, slots=True)
class Scored:
    """A head with its predictions.

    Attributes:
        sides: what it was scored on, and how.
        bundle: the head.
        predictions: for ``sides.test_rows``, by the head that was scored.
        seed: of the bootstrap.
        fit_seconds: what the fits took.
    """

    sides: Sides
    bundle: Bundle
    predictions: Predictions
    seed: int
    fit_seconds: float

    def reported(self, began: float, *, grouped: bool = False) -> Bundle:
        """The head with its report.

        Args:
            began: when the training began, by the monotonic clock.
            grouped: whether near-duplicates were to be kept together.
        """
        bundle, dataset, rows, leaked = self.bundle, self.sides.dataset, self.sides.test_rows, self.sides.leaked
        probabilities, predicted, raw_confidence = self.predictions
        scores = score_fields(dataset, rows, probabilities, predicted, bundle.classes, self.seed)
        protocol = self.sides.protocol
        if len(dataset.views) > 1:
            protocol += f"; trained on {describe_views(dataset.views)} of each image, scored on view 0"
        if bundle.report["calibration"] is not None and probabilities is not None:
            right = predicted == dataset.y[rows]
            for name, p in (("ece_before", raw_confidence), ("ece_after", probabilities)):
                bundle.report["calibration"][name] = expected_calibration_error(p, right) if len(rows) else None
        bundle.report |= report_fields(bundle, dataset, rows, scores, protocol)
        bundle.report |= {
            "layers": [use.name for use in bundle.layers],
            "near_duplicates": {**leaked.report(dataset), "grouped": grouped and leaked.found.note is None},
            "fit_seconds": self.fit_seconds,
            "seconds": time.monotonic() - began,
        }
        return bundle


def fit_and_score(sides: Sides, head: Head, seed: int, progress: Progress) -> Scored:
    """Fit a head on one side, and let it predict the other.

    Args:
        sides: from `featcache.training.holdout.divide`.
        head: from `featcache.heads.resolve_head`.
        seed: of the bootstrap.
        progress: gets the fit.
    """
    began = time.monotonic()
    bundle = fit(sides.dataset, sides.train_rows, head, progress=progress)
    fitting = time.monotonic() - began
    probabilities, predicted = answers(bundle, sides.dataset, sides.test_rows)
    predictions = Predictions(probabilities, predicted, uncalibrated(bundle, probabilities))
    return Scored(sides, bundle, predictions, seed, fitting)


def _refitted(scored: Scored, head: Head, store: FeatureStore | None, progress: Progress) -> Scored:
    """The same with a head that was fitted again, on all images."""
    sides, dataset = scored.sides, scored.sides.dataset
    rows = np.union1d(np.union1d(sides.train_rows, sides.test_rows), np.flatnonzero(without_splits(dataset)))
    bundle = fit(dataset, rows, head, progress=progress)
    protocol = sides.protocol.partition(LEARNED_FROM)[0]
    protocol += f"; the head saved was fitted again on all {len(rows)} items"
    protocol += learned_from(dataset, rows, store, scored.seed, sides.leaked.found)
    return replace(scored, sides=replace(sides, protocol=protocol), bundle=bundle)


def cross_validated(
    dataset: FeatureDataset,
    rows: np.ndarray,
    head: Head,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    progress: Progress,
) -> tuple[Bundle, Predictions, float]:
    """A head fitted on some rows, with out-of-fold predictions for them.

    Args:
        dataset: labeled vectors.
        rows: (m,) row numbers.
        head: from `featcache.heads.resolve_head`.
        folds: pairs of positions in *rows*: to train on, to predict.
        progress: gets every fit.

    Returns:
        The head as a bundle, the predictions, and the seconds for all fits.

    Raises:
        UsageError: all items of a class are in one fold.
    """
    several = dataset.labels is not None
    classes = list(dataset.labels or sorted(set(dataset.y[rows].tolist())))
    place = {name: i for i, name in enumerate(classes)}
    probabilities: np.ndarray | None = np.zeros((len(rows), len(classes)))
    predicted = np.empty((len(rows), *dataset.y.shape[1:]), dtype=dataset.y.dtype)
    raw_confidence = np.full(len(rows), np.nan)
    progress.start("cross-validate", len(folds) + 1, "fits")
    began = time.monotonic()
    for train_rows, test in folds:
        unseen = [] if several else sorted(set(classes) - set(dataset.y[rows[train_rows]].tolist()))
        if unseen:
            raise UsageError(
                f"All items of class {unseen[0]!r} belong to groups that fall into one fold, so that fold's head "
                "cannot learn the class. Use fewer folds or finer groups."
            )
        bundle = fit(dataset, rows[train_rows], head)
        p, predicted[test] = answers(bundle, dataset, rows[test])
        raw_confidence[test] = uncalibrated(bundle, p)
        if p is None or probabilities is None:
            probabilities = None
        else:
            columns = np.array([place[name] for name in bundle.classes])
            probabilities[test[:, None], columns[None, :]] = p
        progress.advance()
    bundle = fit(dataset, rows, head)
    progress.advance()
    return bundle, Predictions(probabilities, predicted, raw_confidence), time.monotonic() - began


def _dataset(
    store: str | Path | FeatureStore,
    layers: str | Sequence[str] | None,
    select: Selection,
    views: bool | Sequence[str],
    backbone: Backbone | None,
    progress: Progress,
) -> tuple[FeatureDataset, FeatureStore | None]:
    """The labeled vectors of a store, or of a plain file, and the store."""
    if isinstance(store, (str, Path)) and Path(store).is_file():
        options = {name: getattr(select, name) for name in ("source", "space", "labels", "labels_only")}
        if ignored := [
            name for name, value in {"layers": layers, "backbone": backbone, **options}.items() if value is not None
        ]:
            raise UsageError(f"{store} is a file of features and has no {' or '.join(ignored)} to choose. Omit that.")
        return FeatureDataset.from_file(Path(store)), None
    opened = FeatureStore.open(store)
    if layers is None and (stored := stored_blocks(opened, select)):
        try:
            dataset = FeatureDataset.from_store(opened, stored, select.all_splits(), views=views)
            return replace(dataset, layers_named=False).in_memory(), opened
        except MissingVectorsError as error:
            progress.note(
                f"Only the layer {POOLED} is used, as not all images have the blocks that are stored. {error}"
            )
    opened, named = with_all_blocks(opened, layers, select, progress, backbone)
    if named is not layers and views is True:
        views = False  # pooled may be stored in more views than the blocks
    return FeatureDataset.from_store(opened, named, select.all_splits(), views=views).in_memory(), opened


def _check_class_weight(dataset: FeatureDataset, class_weight: Mapping[str, float]) -> None:
    names = sorted(set(dataset.y.tolist()))
    unknown = sorted(map(str, class_weight.keys() - set(names)))
    if unknown:
        raise UnknownNameError.among("class in class_weight", unknown[0], names)
