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
from featcache.errors import RecipeMismatchError, SourceError, UnknownNameError, UsageError
from featcache.faces.pair_drawing import draw_pairs
from featcache.faces.pairs import write_pairs

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
    assert "6 folds" in report.protocol
    assert report.verification.pairs % 12 == 0
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
    vectors = write_people(tmp_path / "s.fcache", people=60, images=5)
    pairs = write_list(tmp_path / "pairs.txt", vectors)
    head = faces.train(tmp_path / "s.fcache", far=0.05, progress=False)
    with pytest.raises(UsageError, match="trained on"):
        faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt", head=head)
    report = faces.evaluate(tmp_path / "s.fcache", head=head)
    assert pairs
    assert report.calibrated is not None
    assert report.calibrated.far_target == 0.05
    assert report.calibrated.minimal_cllr <= report.calibrated.cllr
    assert report.to_dict()["calibrated"]["far"]["value"] == report.calibrated.point.far.value
    # Of the twelve people that were held out no more pairs of two can be drawn than there are.
    assert 60 - len(head.classes) == 12
    assert report.verification.pairs <= 2 * 12 * 10


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
    with pytest.raises(UsageError, match="3 people"):
        faces.evaluate(tmp_path / "s.fcache")
    (tmp_path / "pairs.txt").write_text("1\t1\nnobody\t1\t2\np00\t1\tp01\t1\n")
    with pytest.raises(SourceError, match="line 2"):
        faces.evaluate(tmp_path / "s.fcache", tmp_path / "pairs.txt")
