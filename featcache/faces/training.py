"""`train`: a head that compares two images, from stored vectors of people.

The projection is fitted on some of the people. Its scores are calibrated on the same people in folds: each fold is
compared by a projection that was fitted on the others. Shrinkage, noise and steps were chosen on the same folds, and
the scales of layers come from all of them, so these are the scores of new people but for these few numbers. The report
is about people who took no part in any of this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.faces.alignment import preferred_layer
from featcache.faces.calibration import PAIRS, Evidence, calibrate, evidence
from featcache.faces.detection import CENTRE_BOX, detections
from featcache.faces.identity_split import split_identities
from featcache.heads.matching import MatchingPredictor
from featcache.heads.streaming import check_memory
from featcache.metrics.verification import cllr, cosine_scores, minimal_cllr, pairs_within, point_by_people, roc
from featcache.store import FeatureStore
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset
from featcache.training.label_notes import left_out
from featcache.training.layer_scales import layer_uses
from featcache.training.layer_use import LayerUse, scale_layers
from featcache.training.selection import Selection, SelectionOptions

PROJECTIONS = ("siamese", "lda", "none")


@checked
def train(
    store: str | Path | FeatureStore,
    *,
    projection: str = "none",
    far: float = 1e-2,
    layers: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> Bundle:
    """Train a head for verification on stored vectors, and test it on people it has not seen.

    A label is who is on the image. Images without a detected face, and copies of other images, are left out. The head
    is tested on the people of the source's split ``test`` (else ``val``); if the source has no split, on about a fifth
    of the people, by a hash of their names and the same for all such heads of the store.

    Args:
        store: a store or its path.
        projection: ``none`` calibrates the cosines of the vectors as they are, right for a network trained for
            verification; ``siamese`` (`featcache.heads.siamese`) is for other networks; ``lda`` is its initialization.
        far: the false accept rate to set the threshold for, between 0 and 1.
        layers: names of stored layers; several are concatenated, each divided by its root mean square over the
            training images, about the mean if there is a projection. By default ``mirrored`` or ``pooled``, whichever
            more images of the source have (``mirrored`` if both are equal).
        seed: of the folds and the training; and of the hold-out, if the store has none yet.
        progress: as for `featcache.extract`.
        **selection: ``source``, ``space`` and ``labels`` of `featcache.training.dataset.Selection`; and ``split``, the
            split to train on (``train`` by default, if the source has splits).

    Returns:
        A `Bundle`; `Bundle.matching` compares. Its ``report`` has the ``score`` on the test people: ``eer``, ``auc``,
        ``cllr`` and ``minimal_cllr`` in bits, ``tar`` and ``far`` at the threshold with their intervals over people
        (`featcache.metrics.verification`), ``eer_without`` the projection, ``people``, ``pairs`` and ``protocol``. Its
        ``calibrated_on`` says what the threshold is based on (`featcache.faces.calibration.Evidence`), and its
        ``warning`` whether that is too little for the rate.

    Raises:
        UnknownNameError: no such projection, split, source, space or layer.
        UsageError: a person is on both sides of the source's split, or there are too few people, or too few pairs for
            the false accept rate.
        MissingVectorsError: no labeled image has vectors.

    Example:
        >>> head = fc.faces.train("many.fcache")
        >>> head.report["score"]["eer"] < 0.05
        True
        >>> head.save("people.fch")
    """
    began = time.monotonic()
    if projection not in PROJECTIONS:
        raise UnknownNameError.among("projection", projection, PROJECTIONS)
    if not 0 < far < 1:
        raise UsageError(f"A false accept rate is between 0 and 1, such as 0.01, not {far}.")
    opened, select = FeatureStore.open(store), Selection(**selection)
    select = replace(select, space=opened.space(select.space).fingerprint)
    if layers is None:
        layers = preferred_layer(opened, select.source, select.space)
    dataset = FeatureDataset.from_store(opened, layers, select.all_splits())
    with choose(progress) as bar:
        people = split_identities(dataset, _has_face(opened, dataset), select.split, seed, opened, bar)
        train_rows = people.train_rows
        work = "calibrate the distances"
        bar.start(work if projection == "none" else f"train {projection}, {work}", None, "images")
        uses = layer_uses(dataset, train_rows, centred=projection != "none")
        predictor, chosen, how, based_on = _fitted(dataset, train_rows, uses, projection, far, seed)
        if based_on.warning:
            bar.note(based_on.warning)
        bar.finish()
    protocol = "; ".join(filter(None, (people.protocol, left_out(dataset))))
    report = {
        "head": projection,
        "task": "match",
        "n": len(train_rows),
        "people": len(predictor.classes),
        "left_out": people.left_out,
        "without_vectors": dataset.without_vectors,
        "chosen": chosen,
        **how,
        "calibrated_on": asdict(based_on),
        "warning": based_on.warning,
        "threshold": 1 - predictor.calibration.threshold if predictor.calibration is not None else None,
        "score": {**_scored(predictor, dataset, people.test_rows, uses, seed), "protocol": protocol},
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
    """(n,) bool, whether a face was found in each image; True for all if the images were not aligned."""
    if dataset.recipe is None or dataset.recipe.detection is None:
        return np.ones(len(dataset.items), dtype=bool)
    found = detections(store, sorted({item.source for item in dataset.items}), detection=dataset.recipe.detection)
    faces = (found.get(item.sha256) for item in dataset.items)
    return np.array([face is not None and face.found != CENTRE_BOX for face in faces], dtype=bool)


def _fitted(
    dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...], projection: str, far: float, seed: int
) -> tuple[MatchingPredictor, dict[str, Any], dict[str, Any], Evidence]:
    """The calibrated predictor, what was chosen, how, and what the threshold is based on."""
    people, width = dataset.y[rows], sum(use.width for use in uses)
    if projection == "none":
        names = tuple(np.unique(people).tolist())
        predictor = MatchingPredictor(np.zeros(width, np.float32), None, None, names)
        vectors = predictor.embed(scale_layers(dataset.read(rows), uses))
        return replace(predictor, calibration=calibrate(vectors, people, far, seed=seed)), {}, {}, evidence(people, far)
    from featcache.heads.siamese import SiameseHead

    head = SiameseHead(random_state=seed) if projection == "siamese" else SiameseHead(loss="none", random_state=seed)
    check_memory(head, projection, len(rows), width, len(np.unique(people)), streaming="Take fewer layers.")
    # Raises before the training if there are too few pairs.
    based_on = evidence(people, far, head.deal(people, dataset.groups[rows]))
    head.fit(scale_layers(dataset.read(rows), uses), people, dataset.groups[rows])
    if head.out_of_fold_ is None:
        raise UsageError(
            f"The {len(head.classes_)} people to train on cannot be divided into {head.folds} folds that each have "
            "several people, one of them with several images, because groups tie them together. Use finer groups, or "
            "add people."
        )
    calibration = calibrate(head.out_of_fold_, people, far, fold=head.fold_, seed=seed)
    how = {"chosen_by": head.chosen_by_, "held_out_eer": head.held_out_eer_}
    return replace(head.predictor(), calibration=calibration), dict(head.chosen_), how, based_on


def _scored(
    predictor: MatchingPredictor, dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...], seed: int
) -> dict[str, Any]:
    """The scores on all pairs of these images, or a sample of them."""
    assert predictor.calibration is not None
    people, X = dataset.y[rows], scale_layers(dataset.read(rows), uses)
    pairs, same = pairs_within(people, PAIRS, seed)
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
