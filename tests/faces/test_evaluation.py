"""`faces.evaluate` against the protocol in plain loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from featcache import faces
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, SourceError, UnknownNameError, UsageError
from featcache.faces.evaluation import verify_on_folds
from featcache.faces.pairs_file import write_pairs
from featcache.faces.sample_pairs import draw_pairs
from featcache.metrics.verification import cosine_scores, roc
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords

from .identities import RECIPE, uri, write_people


def write_list(path: Path, vectors: dict[str, np.ndarray], people: int = 40) -> list[tuple[str, str, bool, int]]:
    """A list of pairs in ten folds, and the same as tuples."""
    uris = sorted(vectors)
    labels = [name.split("/")[0] for name in uris]
    pairs = draw_pairs(labels, folds=10, each=12, seed=3)
    write_pairs(path, pairs, uris, labels)
    return [
        (uris[a], uris[b], bool(same), int(fold))
        for (a, b), same, fold in zip(pairs.images, pairs.same, pairs.fold, strict=True)
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def accuracy_on_folds(pairs: list[tuple[str, str, bool, int]], scores: list[float], failed: set[int]) -> list[float]:
    """The shares decided rightly, where the threshold is the best of all that other folds' scores allow."""
    shares = []
    for fold in range(10):
        others = [i for i, pair in enumerate(pairs) if pair[3] != fold and i not in failed]
        values = sorted({scores[i] for i in others})
        cuts = [values[0] - 1, *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 1]
        right = [sum((scores[i] >= cut) == pairs[i][2] for i in others) for cut in cuts]
        best = [cut for cut, n in zip(cuts, right, strict=True) if n == max(right)]
        own = [i for i, pair in enumerate(pairs) if pair[3] == fold]
        shares.append(np.mean([i not in failed and (scores[i] >= best[len(best) // 2]) == pairs[i][2] for i in own]))
    return shares


def test_a_list_of_pairs_is_scored_from_the_vectors(tmp_path):
    gone = (uri(0, 0), uri(7, 2))
    vectors = write_people(tmp_path / "s.fcache", spread=0.9, without_vectors=gone)
    pairs = write_list(tmp_path / "pairs.txt", vectors)
    report = faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt")
    scores = [cosine(vectors[a][0], vectors[b][0]) for a, b, _, _ in pairs]
    failed = {i for i, (a, b, _, _) in enumerate(pairs) if a in gone or b in gone}
    found = report.verification
    assert failed
    assert (found.pairs, found.failed) == (240, len(failed))
    assert found.fold_accuracies == pytest.approx(accuracy_on_folds(pairs, scores, failed))
    assert found.standard_error == pytest.approx(np.std(found.fold_accuracies, ddof=1) / np.sqrt(10))
    assert 0.6 < found.accuracy < 1
    counted = {name for pair in pairs for name in pair[:2]}
    assert report.found["without_vector"] == len(counted & set(gone))


def test_the_area_under_the_curve_is_scikit_learns(tmp_path):
    vectors = write_people(tmp_path / "s.fcache", spread=1.2)
    pairs = write_list(tmp_path / "pairs.txt", vectors)
    report = faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt")
    scores = [cosine(vectors[a][0], vectors[b][0]) for a, b, _, _ in pairs]
    assert report.verification.auc == pytest.approx(roc_auc_score([pair[2] for pair in pairs], scores), abs=1e-6)


def test_pairs_are_drawn_where_none_are_given(tmp_path):
    write_people(tmp_path / "s.fcache", people=12, images=4)
    report = faces.evaluate(tmp_path / "s.fcache")
    again, other = (faces.evaluate(tmp_path / "s.fcache", seed=seed) for seed in (0, 1))
    # 12 people make 6 folds of two, which have 12 pairs of one person each.
    assert "6 folds of 12 + 12 pairs" in report.protocol
    assert report.verification.pairs == 6 * 2 * 12
    assert again == report
    assert other != report


def test_mirrored_comes_before_pooled_and_both_are_reported(tmp_path):
    write_people(tmp_path / "s.fcache", layers=("pooled", "mirrored", "blocks.1:mean"))
    report = faces.evaluate(tmp_path / "s.fcache")
    assert report.layer == "mirrored"
    assert set(report.others) == {"pooled"}
    pooled = faces.evaluate(tmp_path / "s.fcache", layer="pooled")
    assert pooled.verification == report.others["pooled"]
    with pytest.raises(UnknownNameError, match=r"blocks\.1:mean"):
        faces.evaluate(tmp_path / "s.fcache", layer="blocks.2:mean")


def test_labels_only_of_a_file_replace_those_of_the_store(tmp_path):
    names = list(write_people(tmp_path / "s.fcache"))
    rows = [f"{name},person {name[:3]}" for name in names if name < "p20"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    store = FeatureStore.open(tmp_path / "s.fcache")
    report = faces.evaluate(store, labels_only=tmp_path / "labels.csv")
    # Two people of six images in each fold, in place of four.
    assert "10 folds of 30 + 30 pairs" in report.protocol
    assert "10 folds of 60 + 60 pairs" in faces.evaluate(store).protocol
    head = faces.train(store, far=0.1, labels_only=tmp_path / "labels.csv", progress=False)
    assert {name[:8] for name in head.classes} == {"person p"}
    assert len(head.classes) < 20


def test_pairs_are_drawn_from_one_split(tmp_path):
    write_people(tmp_path / "s.fcache", split=lambda person: "train" if person < "p30" else "test")
    report = faces.evaluate(tmp_path / "s.fcache", split="test")
    assert "5 folds of 30 + 30 pairs" in report.protocol
    head = faces.train(tmp_path / "s.fcache", far=0.1, progress=False)
    assert faces.evaluate(tmp_path / "s.fcache", head=head, split="test").protocol == report.protocol


def test_a_head_is_scored_on_people_it_does_not_know(tmp_path):
    vectors = write_people(tmp_path / "s.fcache", people=60, images=5, spread=1.0)
    write_list(tmp_path / "pairs.txt", vectors)
    head = faces.train(tmp_path / "s.fcache", far=0.05, seed=3, progress=False)
    with pytest.raises(UsageError, match="trained on"):
        faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt", head=head)
    report = faces.evaluate(tmp_path / "s.fcache", head=head)
    assert report.calibrated is not None
    assert report.calibrated.far_target == 0.05
    # Of the twelve people that were held out six folds of two can be made, with 2 × 10 pairs of one person each.
    assert 60 - len(head.classes) == 12
    assert report.verification.pairs == 6 * 2 * 20
    uris = sorted(vectors)
    labels = [name.split("/")[0] for name in uris]
    drawn = draw_pairs([None if one in head.classes else one for one in labels], folds=6, each=20)
    scores = np.array([cosine(vectors[uris[a]][0], vectors[uris[b]][0]) for a, b in drawn.images])
    accepted = scores >= head.matching.calibration.threshold
    point = report.calibrated.point
    assert point.far.value == pytest.approx(accepted[~drawn.same].mean())
    assert point.tar.value == pytest.approx(accepted[drawn.same].mean())
    llr = np.log(2) * np.array([report.calibrated.cllr, report.calibrated.minimal_cllr])
    a, b = head.matching.calibration.slope, head.matching.calibration.offset
    signed = np.where(drawn.same, -1, 1) * (a * scores + b)
    assert llr[0] == pytest.approx(np.mean([np.log1p(np.exp(signed[k])).mean() for k in (drawn.same, ~drawn.same)]))
    assert llr[1] <= llr[0]
    values = report.to_dict()["calibrated"]
    assert values["far"] == {"value": point.far.value, "low": point.far.low, "high": point.far.high}


@pytest.mark.parametrize("renamed", [lambda name: f"Mr {name}", lambda name: None], ids=["renamed", "nameless"])
def test_images_that_the_head_was_trained_on_are_known_under_any_name(tmp_path, renamed):
    store = tmp_path / "s.fcache"
    vectors = write_people(store, people=60, images=5)
    write_people(store, people=60, images=5, source="again", rename=renamed)
    head = faces.train(store, far=0.05, source="people", progress=False)
    known, other = min(head.classes), sorted({f"p{i:02}" for i in range(60)} - set(head.classes))
    mixed = [f"{known}/{known}_0001.jpg", *(f"{one}/{one}_{k:04}.jpg" for one in other[:5] for k in (1, 2))]
    same = [f"x\t{a}\t{b}" for a, b in zip(mixed[1::2], mixed[2::2], strict=True)]
    lines = [same[0], f"x\t{mixed[0]}\ty\t{mixed[1]}", same[1], f"x\t{mixed[1]}\ty\t{mixed[3]}"]
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t1", *lines]) + "\n")
    with pytest.raises(UsageError, match=rf"trained on 1 of the 5 images .*{known}_0001"):
        faces.evaluate(store, tmp_path / "pairs.txt", head=head, source="again")
    lines[1] = f"x\t{mixed[1]}\ty\t{mixed[5]}"
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t1", *lines]) + "\n")
    assert faces.evaluate(store, tmp_path / "pairs.txt", head=head, source="again").verification.pairs == 4
    if renamed("x") is None:
        return
    report = faces.evaluate(store, head=head, source="again")
    assert report.verification == faces.evaluate(store, head=head, source="people").verification
    assert vectors


def test_other_images_of_people_whom_the_head_knows_by_an_image_are_left_out(tmp_path):
    store = tmp_path / "s.fcache"
    write_people(store, people=60, images=5)
    head = faces.train(store, far=0.05, seed=3, progress=False)
    # Under a new name everybody has three images more, and those of before.
    write_people(store, people=60, images=8, source="more", rename=lambda name: f"Mr {name}")
    report = faces.evaluate(store, head=head, source="more")
    assert report.verification.pairs == 6 * 2 * 2 * (8 * 7 // 2)


def test_pairs_are_drawn_from_whoever_has_images_enough(tmp_path):
    write_people(tmp_path / "a.fcache", counts=[5] * 8 + [1] * 30)
    assert "8 folds of 10 + 10 pairs" in faces.evaluate(tmp_path / "a.fcache").protocol
    write_people(tmp_path / "b.fcache", counts=[1] * 30 + [2])
    with pytest.raises(UsageError, match="31 people whose images can be paired, 1 of them with two"):
        faces.evaluate(tmp_path / "b.fcache")
    # Two of the twenty have the same images, so neither is used.
    store = tmp_path / "c.fcache"
    write_people(store, people=20, images=5)
    copies = {uri(0, i): uri(1, i) for i in range(5)}
    with StoreWriter(store) as writer:
        keys = {item.uri: item.sha256 for item in FeatureStore.open(store).items()}
        records = [Record(n, keys[copies.get(n, n)], n[:3], None, None, 1, 2, 3, 4, 5) for n in keys]
        SourceRecords(writer.catalogue, "people", "/nowhere/people").save(records)
    assert "9 folds" in faces.evaluate(store).protocol


def test_a_layer_beside_a_head_is_refused(tmp_path):
    write_people(tmp_path / "s.fcache", people=60)
    head = faces.train(tmp_path / "s.fcache", far=0.05, progress=False)
    with pytest.raises(UsageError, match="'nonsense' cannot be named as well"):
        faces.evaluate(tmp_path / "s.fcache", head=head, layer="nonsense")


def test_the_layer_is_one_that_the_source_has(tmp_path):
    store = tmp_path / "s.fcache"
    write_people(store, people=20, layers=("pooled", "mirrored"))
    write_people(store, people=20, source="two", salt="other")
    report = faces.evaluate(store, source="two")
    assert (report.layer, report.others) == ("pooled", {})
    assert faces.train(store, source="two", far=0.05, progress=False).layers[0].name == "pooled"
    assert faces.evaluate(store, source="people").layer == "mirrored"
    with StoreWriter(store) as writer:
        SourceRecords(writer.catalogue, "three", "/nowhere/three").save(
            [Record("a.jpg", b"3" * 32, "a", None, None, 1, 2, 3, 4, 5)]
        )
    with pytest.raises(MissingVectorsError, match=r"'three'.*`featcache faces extract`"):
        faces.evaluate(store, source="three")


def test_a_head_that_names_labels_is_refused(tmp_path):
    import featcache as fc

    write_people(tmp_path / "s.fcache", people=6)
    head = fc.train(tmp_path / "s.fcache", "centroid", progress=False)
    with pytest.raises(UsageError, match="faces train"):
        faces.evaluate(tmp_path / "s.fcache", head=head)


def test_a_head_for_other_vectors_is_refused(tmp_path):
    write_people(tmp_path / "s.fcache", people=30)
    head = faces.train(tmp_path / "s.fcache", far=0.05, progress=False)
    other = replace(head, recipe=replace(RECIPE, backbone="test:other"))
    with pytest.raises(RecipeMismatchError, match=r"test:other.*test:net"):
        faces.evaluate(tmp_path / "s.fcache", head=other)


def test_the_curve_is_drawn(tmp_path):
    write_people(tmp_path / "s.fcache")
    faces.evaluate(tmp_path / "s.fcache", figure=tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 2
    with pytest.raises(UsageError, match=r"roc\.png"):
        faces.evaluate(tmp_path / "s.fcache", figure=tmp_path / "roc.jpg")


def test_what_cannot_be_evaluated(tmp_path):
    write_people(tmp_path / "s.fcache", people=3)
    with pytest.raises(UsageError, match=r"two folds or more.*there are 3 people"):
        faces.evaluate(tmp_path / "s.fcache")
    (tmp_path / "pairs.txt").write_text("1\t1\nnobody\t1\t2\np00\t1\tp01\t1\n")
    with pytest.raises(SourceError, match="line 2"):
        faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt")


def problem(n: int = 200, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    return rng.normal(size=n).round(1) + 1.5 * same, same, np.arange(n) % folds


def test_each_fold_is_decided_by_the_best_threshold_of_the_others() -> None:
    scores, same, fold = problem()
    report = verify_on_folds(scores, same, fold)
    for k in range(5):
        inside, others = fold == k, fold != k
        right = [np.mean((scores[others] >= t) == same[others]) for t in [*scores[others], np.inf]]
        threshold = report.thresholds[k]
        assert np.mean((scores[others] >= threshold) == same[others]) == pytest.approx(max(right))
        assert report.fold_accuracies[k] == pytest.approx(np.mean((scores[inside] >= threshold) == same[inside]))
    assert report.accuracy == pytest.approx(np.mean(report.fold_accuracies))
    assert report.standard_error == pytest.approx(np.std(report.fold_accuracies, ddof=1) / math.sqrt(5))
    curve = roc(scores, same)
    assert (report.auc, report.eer) == (curve.auc(), curve.eer())
    assert list(report.tar_at_far) == [0.1]


def test_what_a_fold_holds_does_not_choose_its_threshold() -> None:
    scores, same, fold = problem()
    turned = np.where(fold == 2, -scores, scores)
    a, b = verify_on_folds(scores, same, fold), verify_on_folds(turned, same, fold)
    assert a.thresholds[2] == b.thresholds[2]
    assert b.fold_accuracies[2] < a.fold_accuracies[2]


def test_failed_pairs_are_errors_of_their_fold_and_choose_no_threshold() -> None:
    scores, same, fold = problem()
    failed = np.zeros(len(same), dtype=bool)
    failed[[0, 5, 7]] = True
    scores[failed] = np.nan
    report = verify_on_folds(scores, same, fold, failed)
    clean = verify_on_folds(scores[~failed], same[~failed], fold[~failed])
    assert (report.pairs, report.failed) == (200, 3)
    assert report.thresholds == clean.thresholds
    # Folds of 40 pairs: 0 and 5 lie in the first, 7 in the third.
    assert report.fold_accuracies[0] == pytest.approx(clean.fold_accuracies[0] * 38 / 40)
    assert report.fold_accuracies[2] == pytest.approx(clean.fold_accuracies[2] * 39 / 40)
    assert report.fold_accuracies[1] == clean.fold_accuracies[1]
    # Even scores that would be right do not make a failed pair right.
    scores[failed] = np.where(same[failed], 100, -100)
    assert verify_on_folds(scores, same, fold, failed) == report


def test_a_report_is_plain_json() -> None:
    scores, same, fold = problem(n=800)
    # Equal scores of all pairs of two: nothing at all can be accepted at a FAR of 0.1.
    for values in (scores, np.where(same, 0.0, 1.0)):
        fields = verify_on_folds(values, same, fold).to_dict()
        assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert {"pairs", "failed", "accuracy", "standard_error", "auc", "eer", "tar_at_far"} <= set(fields)
    assert [point["threshold"] for point in fields["tar_at_far"]] == [None, None]
    assert [point["far"] for point in fields["tar_at_far"]] == [0.1, 0.01]


def test_folds_that_do_not_fit_are_refused() -> None:
    scores, same, fold = problem()
    with pytest.raises(UsageError, match="two folds or more"):
        verify_on_folds(scores, same, fold * 0)
    with pytest.raises(UsageError, match="two folds or more"):
        verify_on_folds(scores, same, fold[1:])
    with pytest.raises(UsageError, match="None of the 160 pairs shows one person"):
        verify_on_folds(scores, same & (fold == 1), fold)
    with pytest.raises(UsageError, match="which of 200 pairs failed"):
        verify_on_folds(scores, same, fold, np.zeros(3, dtype=bool))


def test_vectors_of_people_that_differ_are_told_apart_on_drawn_folds() -> None:
    """From vectors to a report: identities are Gaussian directions, and other people's images are chance."""
    rng = np.random.default_rng(0)
    labels = [f"p{i}" for i in range(100) for _ in range(8)]
    centres = np.repeat(rng.normal(size=(100, 32)), 8, axis=0)
    pairs = draw_pairs(labels, folds=10, each=100)
    for noise, least, most in ((0.3, 0.99, 1.0), (1.0, 0.85, 0.97), (1e3, 0.46, 0.54)):
        vectors = (centres + noise * rng.normal(size=centres.shape)).astype(np.float32)
        report = verify_on_folds(cosine_scores(vectors, pairs.images), pairs.same, pairs.fold)
        assert least <= report.accuracy <= most
        assert abs(1 - report.eer - report.accuracy) < 0.03
