"""`evaluate`: verification on pairs, from the vectors of a store.

Accuracy follows the protocol of Labeled Faces in the Wild (Huang et al. 2007): pairs come in folds, and the threshold
of each fold is chosen on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from featcache.backbones.layers import POOLED
from featcache.core.arguments import checked
from featcache.core.errors import UsageError
from featcache.core.html import HtmlTable
from featcache.core.outputs import FIGURE, check_output
from featcache.faces.alignment import MIRRORED, preferred_layer, rows_having
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS, StoredDetections
from featcache.faces.sample_pairs import drawn_pairs, pairs_of_list, people_of
from featcache.metrics.plots import draw_roc
from featcache.metrics.verification import (
    OperatingPoint,
    Roc,
    best_threshold,
    cllr,
    cosine_scores,
    minimal_cllr,
    point_by_people,
    roc,
)
from featcache.store import FeatureStore
from featcache.store.rows import ItemRows
from featcache.training.bundle import Bundle
from featcache.training.selection import LabelSource, Selection, SelectionOptions

if TYPE_CHECKING:
    from featcache.faces.pairs_file import Pairs
    from featcache.store.spaces import Item, Space


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """Verification on folds of pairs, each decided by a threshold that was chosen on the others.

    Attributes:
        pairs: number of pairs.
        failed: pairs that could not be scored.
        accuracy: mean of the folds' accuracies; failed pairs are errors.
        standard_error: of that mean: the standard deviation between folds over the root of their number.
        fold_accuracies: per fold, in the order of their numbers.
        thresholds: per fold, chosen on the others.
        auc, eer: over all pairs, see `featcache.metrics.verification.Roc`.
        tar_at_far: over all pairs, by FAR, for those with enough pairs.
    """

    pairs: int
    failed: int
    accuracy: float
    standard_error: float
    fold_accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]
    auc: float
    eer: float
    tar_at_far: dict[float, OperatingPoint]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; an infinite threshold is None."""
        points = [
            {
                "far": far,
                "tar": point.tar.value,
                "low": point.tar.low,
                "high": point.tar.high,
                "threshold": point.threshold if math.isfinite(point.threshold) else None,
            }
            for far, point in self.tar_at_far.items()
        ]
        return {
            "pairs": self.pairs,
            "failed": self.failed,
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "fold_accuracies": list(self.fold_accuracies),
            "thresholds": list(self.thresholds),
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": points,
        }


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """The head's own threshold on these pairs.

    Attributes:
        far_target: the false accept rate that it was set for.
        point: the rates on these pairs, with intervals over people (`featcache.metrics.verification`).
        cllr, minimal_cllr: of the head's likelihood ratios, and the minimum with its scores, in bits; over the pairs
            that could be scored.
    """

    far_target: float
    point: OperatingPoint
    cllr: float
    minimal_cllr: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, the two rates in place of the point."""
        return {
            "far_target": self.far_target,
            "far": self.point.far.to_dict(),
            "tar": self.point.tar.to_dict(),
            "cllr": self.cllr,
            "minimal_cllr": self.minimal_cllr,
        }


@dataclass(frozen=True, slots=True)
class PairsReport(HtmlTable):
    """Verification on pairs.

    Attributes:
        layer: the layer that was compared, or the head's layers.
        verification: on the folds; its intervals assume that pairs are independent.
        others: without a head, the same for the other one of ``mirrored`` and ``pooled`` by name, if the source has it.
        found: number of images in the pairs whose face was found in the ``first_pass`` or the ``second_pass``, or that
            have only the ``centre_box``; images ``without_vector`` could not be scored. For whole images only the last
            is counted.
        calibrated: the threshold of a calibrated head on these pairs; else None.
        protocol: where the pairs come from.
        curve: the ROC curve.
        marked: gives the point of it to mark in a figure: the head's threshold, or the one at the equal error rate.
    """

    layer: str
    verification: VerificationReport
    others: dict[str, VerificationReport]
    found: dict[str, int]
    calibrated: AtThreshold | None
    protocol: str
    curve: Roc = field(repr=False, compare=False)
    marked: Callable[[], OperatingPoint] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All fields but those of the curve as plain values; those of the verification are at the top level."""
        return {
            **self.verification.to_dict(),
            "layer": self.layer,
            "found": self.found,
            "protocol": self.protocol,
            "others": {name: report.to_dict() for name, report in self.others.items()},
            "calibrated": None if self.calibrated is None else self.calibrated.to_dict(),
        }

    @checked
    def draw(self, path: str | Path, *, force: bool = False) -> None:
        """Write the ROC curve as a PNG, as `featcache.metrics.plots.draw_roc`."""
        draw_roc(self.curve, path, self.marked(), force=force)


@checked
def evaluate(
    store: str | Path | FeatureStore,
    pairs: str | Path | None = None,
    *,
    head: str | Path | Bundle | None = None,
    layer: str | None = None,
    seed: int = 0,
    figure: str | Path | None = None,
    **selection: Unpack[SelectionOptions],
) -> PairsReport:
    """Score pairs of images from stored vectors, without running the network.

    The threshold of each fold is chosen on the other folds. A pair with an image that has no vector counts as an
    error, see `featcache.metrics.verification`.

    Args:
        store: a store or its path.
        pairs: a list in LFW's format (`featcache.faces.pairs_file`). Without one, pairs are drawn in folds that share
            no person: ten folds of 300 pairs of each kind, or as many as there are people and images for. With a head,
            people on whom it was trained, by name or by the SHA-256 of an image, are left out.
        head: a head trained by `featcache.faces.train` on other people, or its path; without one, the cosines of the
            stored vectors are scored.
        layer: without a head, the layer to compare; by default ``mirrored`` or ``pooled``, whichever more images of
            the source have (``mirrored`` if both are equal), and the other one is scored as well.
        seed: of the drawn pairs.
        figure: a PNG file for the ROC curve, with the head's operating point, or the one at the equal error rate.
        **selection: ``source``, ``space`` (by default the one that the head needs), ``split`` and ``labels`` of
            `featcache.training.dataset.Selection`.

    Raises:
        UsageError: the head was trained on people or images of these pairs, there are too few people to draw pairs,
            or there are both a head and a layer.
        SourceError: the list of pairs cannot be read, or does not match the images or their labels.
        UnknownNameError: no such layer.

    Example:
        >>> report = fc.faces.evaluate("many.fcache")
        >>> report.verification.eer < 0.05
        True
    """
    if figure is not None:
        check_output(figure, FIGURE)
    if head is not None and layer is not None:
        raise UsageError(
            f"A head says which layers are compared, so the layer {layer!r} cannot be named as well. Omit one of them."
        )
    opened, select = FeatureStore.open(store), Selection(**selection)
    bundle = head if head is None or isinstance(head, Bundle) else Bundle.load(head)
    if bundle is None:
        space = opened.space(select.space)
        names = [layer or preferred_layer(opened, select.source, space.fingerprint)]
    else:
        calibration = bundle.matching.calibration
        space = _space_of(opened, bundle, select.space)
        names = [use.name for use in bundle.layers]
    rows = ItemRows.of(opened, names, split=select.split, source=select.source, space=space.fingerprint)
    items = _items(opened, select)
    usable = {item.sha256 for item in rows.items}
    if pairs is None:
        drawn, protocol = drawn_pairs(items, usable, bundle, seed)
    else:
        drawn, protocol = pairs_of_list(pairs, items, bundle)
    scores, failed = _scores(rows, items, drawn, bundle)
    others = {}
    for other in _others(opened, space, names, items) if bundle is None else ():
        theirs = ItemRows.of(opened, [other], split=select.split, source=select.source, space=space.fingerprint)
        other_scores, other_failed = _scores(theirs, items, drawn, None)
        others[other] = verify_on_folds(other_scores, drawn.same, drawn.fold, other_failed)
    people = people_of(drawn, items)
    curve = roc(scores, drawn.same, failed)
    at = None
    if bundle is not None and calibration is not None:
        llr = calibration.llr(scores[~failed])
        at = AtThreshold(
            calibration.far,
            point_by_people(scores, drawn.same, people, calibration.threshold, failed),
            cllr(llr, drawn.same[~failed]),
            minimal_cllr(scores[~failed], drawn.same[~failed]),
        )

    def marked() -> OperatingPoint:
        if at is not None:
            return at.point
        return point_by_people(scores, drawn.same, people, curve.at_far(curve.eer()).threshold, failed)

    report = PairsReport(
        "+".join(names),
        verify_on_folds(scores, drawn.same, drawn.fold, failed),
        others,
        _found(opened, space.recipe.detection, [items[i] for i in np.unique(drawn.images)], usable),
        at,
        protocol,
        curve,
        marked,
    )
    if figure is not None:
        report.draw(figure)
    return report


def _space_of(store: FeatureStore, bundle: Bundle, name: str | None) -> Space:
    """The space that was named, or else the one that the head needs."""
    needed = None if bundle.recipe is None else bundle.recipe.fingerprint
    if name is None and needed in {space.fingerprint for space in store.spaces}:
        name = needed
    space = store.space(name)
    bundle.require(space.recipe)
    return space


def _items(store: FeatureStore, select: Selection) -> list[Item]:
    """The images of the source and split, with the labels to use."""
    return LabelSource.of(store, select).applied(store.items(select.split, select.source))


def verify_on_folds(
    scores: np.ndarray, same: np.ndarray, fold: np.ndarray, failed: np.ndarray | None = None
) -> VerificationReport:
    """Decide the pairs of each fold by the threshold that is best on all others.

    Args:
        scores: (n,) higher is more similar; those of failed pairs are not used.
        same: (n,) bool, whether both images show the same person.
        fold: (n,) fold numbers; folds should share no person.
        failed: (n,) bool, whether the pair could not be scored; none by default.

    Raises:
        UsageError: there are fewer than two folds, a score is not finite, or outside of a fold no pair of one kind
            could be scored.
    """
    scores, same, fold = np.asarray(scores, dtype=np.float64), np.asarray(same), np.asarray(fold)
    failed = np.zeros(len(scores), dtype=np.bool_) if failed is None else np.asarray(failed)
    curve = roc(scores, same, failed)
    folds = np.unique(fold)
    if fold.shape != scores.shape or len(folds) < 2:
        raise UsageError(
            "The threshold of each fold is chosen on the others, so two folds or more are needed; there are "
            f"{len(fold)} fold numbers for {len(scores)} pairs, {len(folds)} of them distinct."
        )
    thresholds, accuracies = [], []
    for one in folds:
        inside = fold == one
        others = ~inside & ~failed
        thresholds.append(best_threshold(scores[others], same[others]))
        correct = ((scores >= thresholds[-1]) == same) & ~failed
        accuracies.append(float(correct[inside].mean()))
    return VerificationReport(
        pairs=len(scores),
        failed=int(failed.sum()),
        accuracy=float(np.mean(accuracies)),
        standard_error=float(np.std(accuracies, ddof=1) / math.sqrt(len(folds))),
        fold_accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
        auc=curve.auc(),
        eer=curve.eer(),
        tar_at_far=curve.tar_at_far(),
    )


def _scores(
    rows: ItemRows, items: Sequence[Item], pairs: Pairs, bundle: Bundle | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) of pairs of *items*, and which of the pairs failed (n,) because an image has no vector."""
    row_of = {item.sha256: row for row, item in enumerate(rows.items)}
    images, inverse = np.unique(pairs.images, return_inverse=True)
    row = np.array([row_of.get(items[i].sha256, -1) for i in images])
    # Each image's vector is read once; `at` is its index among the vectors read.
    at = np.where(row >= 0, np.cumsum(row >= 0) - 1, -1)[inverse.reshape(-1, 2)]
    vectors = rows.read(row[row >= 0])
    if bundle is not None:
        vectors = bundle.matching.embed(bundle.scaled(vectors))
    failed = np.asarray((at < 0).any(axis=1))
    scores = np.zeros(len(at))
    scores[~failed] = cosine_scores(vectors, at[~failed])
    return scores, failed


def _others(store: FeatureStore, space: Space, names: Sequence[str], items: Sequence[Item]) -> list[str]:
    """The one of ``pooled`` and ``mirrored`` that is not compared, if these images have it."""
    contents = [item.sha256 for item in items]
    return [
        other
        for other in space.layers
        if other not in names and other in (POOLED, MIRRORED) and rows_having(store, other, contents, space.fingerprint)
    ]


def _found(
    store: FeatureStore, detection: str | None, images: Sequence[Item], usable: Collection[bytes]
) -> dict[str, int]:
    """How the faces of the images in the pairs were found; *usable* are the SHA-256s of those that have vectors."""
    counts = {"first_pass": 0, "second_pass": 0, "centre_box": 0, "without_vector": 0}
    faces = {} if detection is None else StoredDetections(store, detection).of([item.sha256 for item in images])
    names = {FIRST_PASS: "first_pass", SECOND_PASS: "second_pass", CENTRE_BOX: "centre_box"}
    for item in images:
        if item.sha256 not in usable:
            counts["without_vector"] += 1
        elif item.sha256 in faces:
            counts[names[faces[item.sha256].found]] += 1
    return counts
