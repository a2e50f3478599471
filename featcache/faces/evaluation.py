"""`evaluate`: how well the vectors of a store tell pairs of one person from pairs of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.bundle import Bundle
from featcache.errors import UsageError
from featcache.evaluation.figures import check_png
from featcache.evaluation.pair_metrics import OperatingPoint, Roc, cllr, cosine_scores, minimal_cllr, roc
from featcache.evaluation.roc_figure import draw_roc
from featcache.faces.aligned import MIRRORED, preferred_layer
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS
from featcache.faces.pair_drawing import draw_pairs
from featcache.faces.pairs import Pairs, read_pairs
from featcache.faces.protocol import VerificationReport, verify_on_folds
from featcache.faces.stored_detections import detections
from featcache.store import FeatureStore
from featcache.store.items import Item
from featcache.store.rows import ItemRows

FOLDS, EACH = 10, 300


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What the head's own threshold does on these pairs.

    Attributes:
        far_target: what it was set for.
        point: the rates that it has here, with intervals.
        cllr, minimal_cllr: of the head's likelihood ratios, and the least that is possible with its scores, in bits;
            over the pairs that could be scored.
    """

    far_target: float
    point: OperatingPoint
    cllr: float
    minimal_cllr: float


@dataclass(frozen=True, slots=True)
class PairsReport:
    """Verification on pairs.

    Attributes:
        layer: whose vectors were compared, or the head's layers.
        verification: by the ten folds, see `featcache.faces.protocol.VerificationReport`.
        others: the same for the other layers that the store has of these faces, by name.
        found: of the images in the pairs, in how many the face was found in the ``first_pass``, in the
            ``second_pass``, and how many are the ``centre_box`` of a picture without one; ``without_vector`` could not
            be scored. Of whole pictures only the last is counted.
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
                "far": _plain(at.point.far),
                "tar": _plain(at.point.tar),
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
    error, see `featcache.evaluation.pair_metrics`.

    Args:
        store: a store or its path.
        pairs: a list in LFW's format (`featcache.faces.pairs`). Without one, pairs are drawn in folds that share no
            person: ten of 300 of each kind, or fewer where there are not enough people or images; with a head, of
            people that it was not trained on.
        head: a head that `featcache.faces.train` made on other people; without one, cosines of the stored vectors.
        layer: without a head, whose vectors are compared; by default ``mirrored`` where it is stored, else
            ``pooled``. The store's other layers of these faces are scored too.
        source: which source, where the store has several.
        space: which space, where the store has several; with a head the one that it needs.
        seed: of the draw.
        figure: a PNG to draw the ROC curve into, with the head's operating point, or the one at the equal error rate.

    Raises:
        UsageError: the head was trained on people of these pairs; or there are too few people to draw pairs.
        SourceError: the list of pairs cannot be read or does not fit the images.
        UnknownNameError: no such layer.
    """
    if figure is not None:
        check_png(figure)
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    bundle = head if head is None or isinstance(head, Bundle) else Bundle.load(head)
    if bundle is not None:
        _ = bundle.matching
        needed = None if bundle.recipe is None else bundle.recipe.fingerprint
        if space is None and needed in {one.fingerprint for one in opened.spaces}:
            space = needed
    chosen = opened.space(space)
    if bundle is not None:
        bundle.require(chosen.recipe)
    names = [layer or preferred_layer(chosen.layers)] if bundle is None else [use.name for use in bundle.layers]
    rows = ItemRows.of(opened, names, source=source, space=chosen.fingerprint)
    items = opened.items(source=source)
    known = set() if bundle is None else set(bundle.classes)
    drawn, protocol = _pairs(pairs, items, {item.uri for item in rows.items}, known, seed)
    images = np.unique(drawn.images)
    if bundle is not None:
        _refuse_known_people(bundle, {label for i in images if (label := items[i].label) is not None})

    def scored(layer_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) and which pairs failed (n,)."""
        own = ItemRows.of(opened, layer_names, source=source, space=chosen.fingerprint)
        place = {item.uri: i for i, item in enumerate(own.items)}
        row_of = np.array([place.get(item.uri, -1) for item in items])
        known = images[row_of[images] >= 0]
        vectors = own.read(row_of[known])
        if bundle is not None:
            vectors = bundle.matching.embed(bundle.scaled(vectors))
        compact = np.full(len(items), -1)
        compact[known] = np.arange(len(known))
        ends = compact[drawn.images]
        failed = (ends < 0).any(axis=1)
        scores = np.zeros(len(ends))
        scores[~failed] = cosine_scores(vectors, ends[~failed])
        return scores, failed

    scores, failed = scored(names)
    curve = roc(scores, drawn.same, failed)
    others = {}
    if bundle is None:
        for other in chosen.layers:
            if other != names[0] and other in ("pooled", MIRRORED):
                theirs, their_failed = scored([other])
                others[other] = verify_on_folds(theirs, drawn.same, drawn.fold, their_failed)
    calibration = None if bundle is None else bundle.matching.calibration
    at = None
    if calibration is not None:
        llr = calibration.llr(scores[~failed])
        at = AtThreshold(
            calibration.far,
            curve.at_threshold(calibration.threshold),
            cllr(llr, drawn.same[~failed]),
            minimal_cllr(scores[~failed], drawn.same[~failed]),
        )
    report = PairsReport(
        "+".join(names),
        verify_on_folds(scores, drawn.same, drawn.fold, failed),
        others,
        _found(opened, chosen.recipe.detection, source, items, images, rows),
        at,
        protocol,
        curve,
    )
    if figure is not None:
        draw_roc(curve, figure, curve.at_far(curve.eer()) if at is None else at.point)
    return report


def _pairs(
    pairs: str | Path | None, items: Sequence[Item], usable: set[str], known: set[str], seed: int
) -> tuple[Pairs, str]:
    """The pairs as places in *items*, and where they come from; of *known* people none are drawn."""
    if pairs is not None:
        return read_pairs(pairs, [item.uri for item in items]), f"the pairs of {pairs}"
    labels = [item.label if item.uri in usable and item.label not in known else None for item in items]
    contents = [item.sha256 for item in items]
    each, folds = EACH, FOLDS
    people = len(set(labels) - {None})
    if people < 2 * folds:
        folds = people // 2
        if folds < 2:
            raise UsageError(
                f"Pairs are drawn in folds of two people or more, of which there must be two; there are {people} "
                f"people with vectors{' whom the head does not know' if known else ''}. Add people, or give a list."
            )
    while True:
        try:
            drawn = draw_pairs(labels, folds=folds, each=each, seed=seed, sha256=contents)
        except UsageError:
            if each == 1:
                raise
            each = each * 2 // 3 or 1
            continue
        words = f"{folds} folds of {each} + {each} pairs that share no person, drawn with seed {seed}"
        return drawn, words


def _refuse_known_people(bundle: Bundle, people: set[str]) -> None:
    known = sorted(name for name in people if name in set(bundle.classes))
    if known:
        raise UsageError(
            f"The head was trained on {len(known)} of the {len(people)} people in these pairs (first: {known[0]!r}), "
            "so its score would be too good. Train on others (a split, another source), or score without --head."
        )


def _found(
    store: FeatureStore,
    detection: str | None,
    source: str | None,
    items: Sequence[Item],
    images: np.ndarray,
    rows: ItemRows,
) -> dict[str, int]:
    """How the faces of the images in the pairs were found."""
    usable = {item.uri for item in rows.items}
    counts = {"first_pass": 0, "second_pass": 0, "centre_box": 0, "without_vector": 0}
    faces = {} if detection is None else detections(store, source, detection=detection)
    names = {FIRST_PASS: "first_pass", SECOND_PASS: "second_pass", CENTRE_BOX: "centre_box"}
    for i in images:
        if items[i].uri not in usable:
            counts["without_vector"] += 1
        elif items[i].sha256 in faces:
            counts[names[faces[items[i].sha256].found]] += 1
    return counts


def _plain(interval: Any) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
