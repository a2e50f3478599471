"""`evaluate`: how well the vectors of a store tell pairs of one person from pairs of two."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.layers import POOLED
from featcache.core.errors import UsageError
from featcache.core.html import HtmlTable
from featcache.faces.alignment import MIRRORED, preferred_layer, rows_having
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS, detections
from featcache.faces.pairs_file import Pairs
from featcache.faces.sample_pairs import drawn_pairs, pairs_of_list, people_of
from featcache.metrics.plots import check_png, draw_roc
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
from featcache.store.spaces import Item, Space
from featcache.training.bundle import Bundle


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """How well pairs are told apart, each fold with a threshold that was chosen without it.

    Attributes:
        pairs: all of them.
        failed: pairs that could not be scored.
        accuracy: mean over the folds of the share of their pairs that are decided rightly; failed ones are errors.
        standard_error: of that mean: the standard deviation between the folds by the root of their number.
        fold_accuracies: one for each fold, in the order of their numbers.
        thresholds: chosen for each fold on the others.
        auc, eer: over all pairs, see `featcache.metrics.verification.Roc`.
        tar_at_far: over all pairs, by FAR, where there are pairs enough for it.
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
        """All fields as plain values that JSON has; a threshold that nothing reaches is None."""
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
    """What the head's own threshold does on these pairs.

    Attributes:
        far_target: what it was set for.
        point: the rates that it has here, with intervals over people (`featcache.metrics.verification`).
        cllr, minimal_cllr: of the head's likelihood ratios, and the least that is possible with its scores, in bits;
            over the pairs that could be scored.
    """

    far_target: float
    point: OperatingPoint
    cllr: float
    minimal_cllr: float


@dataclass(frozen=True, slots=True)
class PairsReport(HtmlTable):
    """Verification on pairs.

    Attributes:
        layer: whose vectors were compared, or the head's layers.
        verification: by the folds, see `VerificationReport`; its intervals are those that
            would hold if pairs were independent.
        others: without a head the same for the other of ``mirrored`` and ``pooled``, where the source has it, by name.
        found: of the images in the pairs, in how many the face was found in the ``first_pass``, in the
            ``second_pass``, and how many are the ``centre_box`` of an image without one; ``without_vector`` could not
            be scored. Of whole images only the last is counted.
        calibrated: with a calibrated head, what its threshold does here; else None.
        protocol: where the pairs come from.
        curve: the ROC curve.
    """

    layer: str
    verification: VerificationReport
    others: dict[str, VerificationReport]
    found: dict[str, int]
    calibrated: AtThreshold | None
    protocol: str
    curve: Roc = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the curve as plain values; those of the verification stand at the top."""
        at = self.calibrated
        return {
            **self.verification.to_dict(),
            "layer": self.layer,
            "found": self.found,
            "protocol": self.protocol,
            "others": {name: report.to_dict() for name, report in self.others.items()},
            "calibrated": None
            if at is None
            else {
                "far_target": at.far_target,
                "far": at.point.far.to_dict(),
                "tar": at.point.tar.to_dict(),
                "cllr": at.cllr,
                "minimal_cllr": at.minimal_cllr,
            },
        }


def evaluate(
    store: str | Path | FeatureStore,
    pairs: str | Path | None = None,
    *,
    head: str | Path | Bundle | None = None,
    layer: str | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    figure: str | Path | None = None,
) -> PairsReport:
    """Score pairs from stored vectors; the network does not run.

    The threshold of each fold is chosen on the other folds. A pair with an image that has no vector counts as an
    error, see `featcache.metrics.verification`.

    Args:
        store: a store or its path.
        pairs: a list in LFW's format (`featcache.faces.pairs_file`). Without one, pairs are drawn in folds that share
            no person: ten of 300 of each kind, or as many as there are people and images for; with a head, of people
            that it was not trained on, by name or by the SHA-256 of an image.
        head: a head that `featcache.faces.train` made on other people; without one, cosines of the stored vectors.
        layer: without a head, whose vectors are compared; by default ``mirrored`` or ``pooled``, whichever more
            images of the source have (of both, ``mirrored``), and the other of these two is scored as well.
        source: which source, where the store has several.
        space: which space, where the store has several; with a head the one that it needs.
        seed: of the draw.
        figure: a PNG to draw the ROC curve into, with the head's operating point, or the one at the equal error rate.

    Raises:
        UsageError: the head was trained on people or images of these pairs, there are too few people to draw pairs,
            or a layer was named although there is a head.
        SourceError: the list of pairs cannot be read, or does not fit the images or their labels.
        UnknownNameError: no such layer.
    """
    if figure is not None:
        check_png(figure)
    if head is not None and layer is not None:
        raise UsageError(
            f"The head says which layers are compared, so the layer {layer!r} cannot be named beside it. "
            "Leave one of the two away."
        )
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    bundle = head if head is None or isinstance(head, Bundle) else Bundle.load(head)
    predictor = None if bundle is None else bundle.matching
    if bundle is not None:
        needed = None if bundle.recipe is None else bundle.recipe.fingerprint
        if space is None and needed in {one.fingerprint for one in opened.spaces}:
            space = needed
    chosen = opened.space(space)
    if bundle is None:
        names = [layer or preferred_layer(opened, source, chosen.fingerprint)]
    else:
        bundle.require(chosen.recipe)
        names = [use.name for use in bundle.layers]
    rows = ItemRows.of(opened, names, source=source, space=chosen.fingerprint)
    items = opened.items(source=source)
    usable = {item.uri for item in rows.items}
    if pairs is None:
        drawn, protocol = drawn_pairs(items, usable, bundle, seed)
    else:
        drawn, protocol = pairs_of_list(pairs, items, bundle)
    scores, failed = _scores(rows, items, drawn, bundle)
    others = {}
    for other in _others(opened, chosen, names, source) if bundle is None else ():
        theirs = ItemRows.of(opened, [other], source=source, space=chosen.fingerprint)
        other_scores, other_failed = _scores(theirs, items, drawn, None)
        others[other] = verify_on_folds(other_scores, drawn.same, drawn.fold, other_failed)
    people = people_of(drawn, items)
    calibration = None if predictor is None else predictor.calibration
    at = None
    if calibration is not None:
        llr = calibration.llr(scores[~failed])
        at = AtThreshold(
            calibration.far,
            point_by_people(scores, drawn.same, people, calibration.threshold, failed),
            cllr(llr, drawn.same[~failed]),
            minimal_cllr(scores[~failed], drawn.same[~failed]),
        )
    curve = roc(scores, drawn.same, failed)
    report = PairsReport(
        "+".join(names),
        verify_on_folds(scores, drawn.same, drawn.fold, failed),
        others,
        _found(opened, chosen.recipe.detection, source, [items[i] for i in np.unique(drawn.images)], usable),
        at,
        protocol,
        curve,
    )
    if figure is not None:
        equal = curve.at_far(curve.eer()).threshold
        draw_roc(curve, figure, point_by_people(scores, drawn.same, people, equal, failed) if at is None else at.point)
    return report


def verify_on_folds(
    scores: np.ndarray, same: np.ndarray, fold: np.ndarray, failed: np.ndarray | None = None
) -> VerificationReport:
    """Decide the pairs of each fold by the threshold that is best on all others.

    Args:
        scores: (n,) larger = more alike; those of failed pairs are not looked at.
        same: (n,) bool, whether the pair shows one person.
        fold: (n,) whole numbers; folds should share no person.
        failed: (n,) bool, whether the pair could not be scored; none by default.

    Raises:
        UsageError: there are fewer than two folds, a score that counts is not finite, or outside a fold no pair of
            one of the kinds could be scored.
    """
    scores, same, fold = np.asarray(scores, dtype=np.float64), np.asarray(same), np.asarray(fold)
    failed = np.zeros(len(scores), dtype=np.bool_) if failed is None else np.asarray(failed)
    curve = roc(scores, same, failed)
    names = np.unique(fold)
    if fold.shape != scores.shape or len(names) < 2:
        raise UsageError(
            f"The threshold of each fold is chosen on the others, so there must be two folds or more; {len(fold)} fold "
            f"numbers for {len(scores)} pairs name {len(names)}."
        )
    thresholds, accuracies = [], []
    for name in names:
        inside = fold == name
        others = ~inside & ~failed
        thresholds.append(best_threshold(scores[others], same[others]))
        right = ((scores >= thresholds[-1]) == same) & ~failed
        accuracies.append(float(right[inside].mean()))
    return VerificationReport(
        pairs=len(scores),
        failed=int(failed.sum()),
        accuracy=float(np.mean(accuracies)),
        standard_error=float(np.std(accuracies, ddof=1) / math.sqrt(len(names))),
        fold_accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
        auc=curve.auc(),
        eer=curve.eer(),
        tar_at_far=curve.tar_at_far(),
    )


def _scores(
    rows: ItemRows, items: Sequence[Item], pairs: Pairs, bundle: Bundle | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) of pairs of *items*, and which of them failed (n,), from the vectors of those that have some."""
    place = {item.uri: i for i, item in enumerate(rows.items)}
    images, ends = np.unique(pairs.images, return_inverse=True)
    row = np.array([place.get(items[i].uri, -1) for i in images])
    # Vectors are read once for each image that has one; `at` is where among these it stands.
    at = np.where(row >= 0, np.cumsum(row >= 0) - 1, -1)[ends.reshape(-1, 2)]
    vectors = rows.read(row[row >= 0])
    if bundle is not None:
        vectors = bundle.matching.embed(bundle.scaled(vectors))
    failed = np.asarray((at < 0).any(axis=1))
    scores = np.zeros(len(at))
    scores[~failed] = cosine_scores(vectors, at[~failed])
    return scores, failed


def _others(store: FeatureStore, space: Space, names: Sequence[str], source: str | None) -> list[str]:
    """Of ``pooled`` and ``mirrored`` the one that is not compared, where the source has it."""
    contents = [item.sha256 for item in store.items(source=source)]
    return [
        other
        for other in space.layers
        if other not in names and other in (POOLED, MIRRORED) and rows_having(store, other, contents, space.fingerprint)
    ]


def _found(
    store: FeatureStore, detection: str | None, source: str | None, images: Sequence[Item], usable: Collection[str]
) -> dict[str, int]:
    """How the faces of the images in the pairs were found; *usable* are the URIs of those that have vectors."""
    counts = {"first_pass": 0, "second_pass": 0, "centre_box": 0, "without_vector": 0}
    faces = {} if detection is None else detections(store, source, detection=detection)
    names = {FIRST_PASS: "first_pass", SECOND_PASS: "second_pass", CENTRE_BOX: "centre_box"}
    for item in images:
        if item.uri not in usable:
            counts["without_vector"] += 1
        elif item.sha256 in faces:
            counts[names[faces[item.sha256].found]] += 1
    return counts
