"""`faces.evaluate`: pairs from stored vectors, against the same computed from the vectors one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from featcache import faces
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, SourceError, UnknownNameError, UsageError
from featcache.faces.pairs import write_pairs
from featcache.faces.sample_pairs import draw_pairs
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords

from .identities import RECIPE, uri, write_people

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_head_is_scored_on_people_it_does_not_know(tmp_path):
    vectors = write_people(tmp_path / "s.fcache", people=60, images=5, spread=1.0)
    write_list(tmp_path / "pairs.txt", vectors)
    head = faces.train(tmp_path / "s.fcache", far=0.05, progress=False)
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
def test_pictures_that_the_head_was_trained_on_are_known_under_any_name(tmp_path, renamed):
    store = tmp_path / "s.fcache"
    vectors = write_people(store, people=60, images=5)
    write_people(store, people=60, images=5, source="again", rename=renamed)
    head = faces.train(store, far=0.05, source="people", progress=False)
    known, other = sorted(head.classes)[0], sorted(set(f"p{i:02}" for i in range(60)) - set(head.classes))
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


def test_other_pictures_of_people_whom_the_head_knows_by_a_picture_take_no_part(tmp_path):
    store = tmp_path / "s.fcache"
    write_people(store, people=60, images=5)
    head = faces.train(store, far=0.05, progress=False)
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
    # Two of the twenty are said to be on the same images, so neither takes part.
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
    with pytest.raises(UsageError, match="'nonsense' cannot be named beside"):
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
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors()) > 2
    with pytest.raises(UsageError, match=r"roc\.png"):
        faces.evaluate(tmp_path / "s.fcache", figure=tmp_path / "roc.jpg")


def test_what_cannot_be_evaluated(tmp_path):
    write_people(tmp_path / "s.fcache", people=3)
    with pytest.raises(UsageError, match=r"two folds or more.*there are 3 people"):
        faces.evaluate(tmp_path / "s.fcache")
    (tmp_path / "pairs.txt").write_text("1\t1\nnobody\t1\t2\np00\t1\tp01\t1\n")
    with pytest.raises(SourceError, match="line 2"):
        faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt")
