"""Stored vectors of people into a head that compares two images.

The projection is learned from some people. What its scores mean is learned from the same people, dealt into folds:
each fold is compared by a projection that was fitted to the others. Shrinkage, noise and steps were chosen by the
same folds, and the scales of layers come from all, so the scores are those of new people but for these few numbers.
The report is of people who took part in none of this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.faces.alignment import preferred_layer
from featcache.faces.calibration import PAIRS, Evidence, calibrate, evidence
from featcache.faces.detection import CENTRE_BOX, detections
from featcache.faces.identity_split import sides
from featcache.heads.matching import MatchingPredictor
from featcache.heads.streaming import check_memory
from featcache.metrics.verification import cllr, cosine_scores, minimal_cllr, pairs_within, point_by_people, roc
from featcache.store import FeatureStore
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset, Selection
from featcache.training.fit import layer_uses
from featcache.training.layer_use import LayerUse, scale_layers

PROJECTIONS = ("siamese", "lda", "none")


def train(
    store: str | Path | FeatureStore,
    *,
    projection: str = "none",
    far: float = 1e-2,
    layers: str | Sequence[str] | None = None,
    source: str | None = None,
    space: str | None = None,
    split: str | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train a head for matching on stored vectors, and score it on people it has not seen.

    A label is who is on the image. Images in which no face was found, and copies of others, take no part. Scored are
    the people of the source's split ``test`` (or else ``val``); where the source has no split, a fifth of the people.

    Args:
        store: a store or its path.
        projection: ``none`` to calibrate the cosines of the vectors as they are, right for a network that was made to
            match; ``siamese`` (`featcache.heads.siamese`) for others; ``lda``, where that starts from.
        far: the false accept rate that the threshold is for, between 0 and 1.
        layers: which stored layers; several are concatenated, each divided by its root mean square on the images
            learned from, taken about the mean where there is a projection. By default ``mirrored`` or
            ``pooled``, whichever more images of the source have (of both, ``mirrored``).
        source: which source, where the store has several.
        space: which space; by default the only one that holds no detections.
        split: learn from this split; ``train`` by default where the source has splits.
        seed: of the hold-out, the folds and the training.
        progress: as for `featcache.extract`.

    Returns:
        A `Bundle`, which is the one that was scored; `Bundle.matching` compares. Its ``report`` has ``score``: ``eer``,
        ``auc``, ``cllr`` and ``minimal_cllr`` in bits, ``tar`` and ``far`` at the threshold with their intervals over
        people (`featcache.metrics.verification`), ``eer_without`` of the cosines of the same layers without the
        projection, ``people``, ``pairs`` and ``protocol``. Its ``calibrated_on`` tells what the threshold was set on
        (`featcache.faces.calibration.Evidence`), and its ``warning`` says if these people are too few for such a rate.

    Raises:
        UnknownNameError: no such projection, split, source, space or layer.
        UsageError: a person stands on both sides of the source's split, there are too few people, or too few pairs
            for the false accept rate.
        MissingVectorsError: no labelled image has vectors.
    """
    began = time.monotonic()
    if projection not in PROJECTIONS:
        raise UnknownNameError.among("projection", projection, PROJECTIONS)
    if not 0 < far < 1:
        raise UsageError(f"A false accept rate lies between 0 and 1, as 0.01 does; {far} does not.")
    opened = FeatureStore.open(store)
    chosen_space = opened.space(space)
    if layers is None:
        layers = preferred_layer(opened, source, chosen_space.fingerprint)
    dataset = FeatureDataset.from_store(opened, layers, Selection(source=source, space=chosen_space.fingerprint))
    parts = sides(dataset, _has_face(opened, dataset), split, seed)
    train_rows = parts.train_rows
    with choose(progress) as shown:
        shown.start(f"train {projection}", None, "images")
        uses = layer_uses(dataset, train_rows, about_mean=projection != "none")
        predictor, chosen, how, based_on = _fitted(dataset, train_rows, uses, projection, far, seed)
        if based_on.warning:
            shown.note(based_on.warning)
        shown.finish()
    report = {
        "head": projection,
        "task": "match",
        "n": len(train_rows),
        "people": len(predictor.classes),
        "left_out": parts.left_out,
        "without_vectors": dataset.without_vectors,
        "chosen": chosen,
        **how,
        "calibrated_on": asdict(based_on),
        "warning": based_on.warning,
        "threshold": 1 - predictor.calibration.threshold if predictor.calibration is not None else None,
        "score": {**_scored(predictor, dataset, parts.score, uses, seed), "protocol": parts.protocol},
        "seconds": time.monotonic() - began,
    }
    return Bundle(
        head=projection,
        classes=predictor.classes,
        layers=uses,
        recipe=dataset.recipe,
        predictor=predictor,
        trained_on=dataset.contents(train_rows),
        fitted_on=len(train_rows),
        chosen=chosen,
        report=report,
    )


def _has_face(store: FeatureStore, dataset: FeatureDataset) -> np.ndarray:
    """(n,) bool, whether a face was found in each image; of images that were not aligned all are taken."""
    if dataset.recipe is None or dataset.recipe.detection is None:
        return np.ones(len(dataset.items), dtype=bool)
    found = detections(store, dataset.items[0].source, detection=dataset.recipe.detection)
    known = (found.get(item.sha256) for item in dataset.items)
    return np.array([one is not None and one.found != CENTRE_BOX for one in known], dtype=bool)


def _fitted(
    dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...], projection: str, far: float, seed: int
) -> tuple[MatchingPredictor, dict[str, Any], dict[str, Any], Evidence]:
    """The calibrated form, what was chosen, how, and what the threshold was set on."""
    people, width = dataset.y[rows], sum(use.width for use in uses)
    if projection == "none":
        names = tuple(np.unique(people).tolist())
        predictor = MatchingPredictor(np.zeros(width, np.float32), None, None, names)
        vectors = predictor.embed(scale_layers(dataset.read(rows), uses))
        return replace(predictor, calibration=calibrate(vectors, people, far, seed=seed)), {}, {}, evidence(people, far)
    from featcache.heads.siamese import SiameseHead

    head = SiameseHead(random_state=seed) if projection == "siamese" else SiameseHead(loss="none", random_state=seed)
    check_memory(head, projection, len(rows), width, len(np.unique(people)), streaming="Take fewer layers.")
    # Whether there are pairs enough need not wait for the training.
    based_on = evidence(people, far, head.deal(people, dataset.groups[rows]))
    head.fit(scale_layers(dataset.read(rows), uses), people, dataset.groups[rows])
    if head.out_of_fold_ is None:
        raise UsageError(
            f"The {len(head.classes_)} people to learn from cannot be dealt into {head.folds} folds that have several "
            "people and several images of somebody each, as groups tie them together. Use finer groups, or add people."
        )
    calibration = calibrate(head.out_of_fold_, people, far, fold=head.fold_, seed=seed)
    how = {"chosen_by": head.chosen_by_, "held_out_eer": head.held_out_eer_}
    return replace(head.predictor(), calibration=calibration), dict(head.chosen_), how, based_on


def _scored(
    predictor: MatchingPredictor, dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...], seed: int
) -> dict[str, Any]:
    """The scores on all pairs of some images, or a sample of them."""
    assert predictor.calibration is not None
    people, stored = dataset.y[rows], dataset.read(rows)
    pairs, same = pairs_within(people, PAIRS, seed)
    X = scale_layers(stored, uses)
    scores = cosine_scores(predictor.embed(X), pairs)
    curve = roc(scores, same)
    point = point_by_people(scores, same, people[pairs], predictor.calibration.threshold, seed=seed)
    return {
        "eer": curve.eer(),
        "auc": curve.auc(),
        "cllr": cllr(predictor.calibration.llr(scores), same),
        "minimal_cllr": minimal_cllr(scores, same),
        "tar": point.tar.to_dict(),
        "far": point.far.to_dict(),
        "far_target": predictor.calibration.far,
        "eer_without": roc(cosine_scores(X, pairs), same).eer(),
        "people": len(np.unique(people)),
        "images": len(rows),
        "pairs": len(pairs),
    }
