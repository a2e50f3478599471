"""faces.train on stores of simulated people: who is learned from, who is scored on, and what the threshold is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from featcache import faces
from featcache.core.errors import UnknownNameError, UsageError
from featcache.faces.detection import CENTRE_BOX, COLUMNS, FACE, FIRST_PASS, Detector
from featcache.heads import streaming
from featcache.heads.siamese import SiameseHead
from featcache.metrics.intervals import wilson
from featcache.metrics.verification import pairs_within, roc
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords
from featcache.training.bundle import Bundle
from featcache.training.evaluate import evaluate
from featcache.training.train import train
from tests.store.making import recipe

WIDTH = 16
MIXING = np.random.default_rng(3).normal(size=(WIDTH, WIDTH))


def people(count: int, each: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Vectors of people who differ in six directions, and their names."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(count), each)
    Z = rng.normal(size=(len(numbers), WIDTH))
    Z[:, :6] = 0.5 * Z[:, :6] + rng.normal(size=(count, 6))[numbers]
    return (Z @ MIXING + 2).astype(np.float32), [f"person {seed}-{n}" for n in numbers]


def filled(
    path: Path,
    X: np.ndarray,
    labels: Sequence[str],
    *,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    contents: Sequence[int] | None = None,
    found: Sequence[int] | None = None,
) -> Path:
    """A store of these vectors; with *found*, of aligned faces and how each was found."""
    contents = range(len(X)) if contents is None else contents
    keys = [hashlib.sha256(b"%d" % c).digest() for c in contents]
    distinct = list(dict(zip(keys, range(len(keys)), strict=True)).values())
    detected = recipe(Detector.name)
    aligned = recipe("test:faces")
    if found is not None:
        aligned = replace(aligned, detection=detected.fingerprint)
    with StoreWriter(path) as writer:
        space = writer.space(aligned)
        half = X.shape[1] // 2
        for position, name in enumerate(("body:mean", "pooled")):
            space.declare(name, "0", position, "float32")
        parts = {("body:mean", "0"): 50 * X[distinct, :half], ("pooled", "0"): X[distinct, half:]}
        space.append([keys[i] for i in distinct], parts)
        space.seal()
        if found is not None:
            rows = np.zeros((len(distinct), len(COLUMNS)), np.float32)
            rows[:, 0] = np.array(found)[distinct]
            space = writer.space(detected)
            space.declare(FACE, "0", 0, "float32")
            space.append([keys[i] for i in distinct], {(FACE, "0"): rows})
            space.seal()
        splits = [None] * len(X) if splits is None else splits
        groups = [None] * len(X) if groups is None else groups
        SourceRecords(writer.catalogue, "people", "/nowhere").save(
            [
                Record(f"{i:05}.jpg", key, label, split, group, 1, 2, 3, 4, 5)
                for i, (key, label, split, group) in enumerate(zip(keys, labels, splits, groups, strict=True))
            ]
        )
    return path


BOTH = ["body:mean", "pooled"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    X, names = people(60, 6)
    return filled(tmp_path_factory.mktemp("people") / "s.fcache", X, names)


@pytest.fixture(scope="module")
def trained(store: Path) -> Bundle:
    return faces.train(store, projection="lda", far=0.02, layers=BOTH)


def below(name: str, seed: int = 0) -> bool:
    """The rule as the format's page has it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:identity:{name}".encode()).digest()[:8], "big") / 2**64 < 0.2


def vectors(bundle: Bundle, X: np.ndarray) -> np.ndarray:
    half = X.shape[1] // 2
    return bundle.scaled(np.hstack([50 * X[:, :half], X[:, half:]]))


def test_the_report_is_of_people_that_were_not_learned_from(store: Path, trained: Bundle) -> None:
    items = FeatureStore.open(store).items()
    seen = {item.label for item in items if trained.overlap([item.sha256])}
    assert set(trained.classes) == seen
    assert {item.label for item in items} - seen == {f"person 0-{n}" for n in range(60) if below(f"person 0-{n}")}
    score = trained.report["score"]
    assert score["people"] == 60 - len(seen) == 12
    assert score["pairs"] == 72 * 71 // 2
    rest = [i for i, item in enumerate(items) if item.label not in seen]
    X, _, _ = FeatureStore.open(store).arrays(layers=BOTH)
    y = np.array([items[i].label for i in rest])
    pairs, same = pairs_within(y, 10_000)
    Z = trained.scaled(X[rest])
    scores = trained.matching.scores(Z[pairs[:, 0]], Z[pairs[:, 1]])
    assert score["eer"] == pytest.approx(roc(scores, same).eer(), abs=2e-3)
    assert score["eer"] < score["eer_without"] - 0.05
    assert score["minimal_cllr"] <= score["cllr"] < 1


def test_the_layers_weigh_alike(trained: Bundle, store: Path) -> None:
    X, _, _ = FeatureStore.open(store).arrays(layers=BOTH)
    items = FeatureStore.open(store).items()
    learned = trained.scaled(X[[bool(trained.overlap([item.sha256])) for item in items]]).astype(np.float64)
    for part in (learned[:, :8], learned[:, 8:]):
        assert np.square(part - part.mean(0)).mean() == pytest.approx(1, rel=1e-3)


def test_a_saved_head_gives_the_same_scores(trained: Bundle, tmp_path: Path) -> None:
    trained.save(tmp_path / "a.fch")
    back = Bundle.load(tmp_path / "a.fch")
    X, _ = people(10, 2, 7)
    a, b = vectors(trained, X[::2]), vectors(trained, X[1::2])
    assert back.matching.scores(a, b).tobytes() == trained.matching.scores(a, b).tobytes()
    assert back.matching.calibration == trained.matching.calibration
    assert back.classes == trained.classes
    assert back.report["score"] == trained.report["score"]


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["siamese", "lda", "none"])
def test_the_false_accept_rate_on_new_people_is_the_target(projection: str, tmp_path: Path) -> None:
    realised = []
    for seed in range(1 if projection == "siamese" else 3):
        X, names = people(80, 5, 10 + seed)
        path = filled(tmp_path / f"{seed}.fcache", X, names)
        bundle = faces.train(path, projection=projection, far=0.05, layers=BOTH, seed=seed)
        Z, others = people(150, 3, 100 + seed)
        pairs, same = pairs_within(np.array(others), 200_000)
        embedded = bundle.matching.embed(vectors(bundle, Z))
        scores = np.einsum("np,np->n", *(embedded[side] for side in pairs[~same].T))
        assert bundle.matching.calibration is not None
        realised.append(bundle.matching.calibration.decide(scores).mean())
    assert 0.03 < np.mean(realised) < 0.075


def test_one_seed_gives_one_head(store: Path, trained: Bundle) -> None:
    again = faces.train(store, projection="lda", far=0.02, layers=BOTH)
    assert again.matching.projection is not None
    assert trained.matching.projection is not None
    assert again.matching.projection.tobytes() == trained.matching.projection.tobytes()
    assert again.matching.calibration == trained.matching.calibration
    # Another seed deals other folds, and the same people are held out.
    other = faces.train(store, projection="lda", far=0.02, layers=BOTH, seed=1)
    assert other.classes == trained.classes
    assert other.matching.calibration != trained.matching.calibration


def test_the_split_of_the_source_counts(tmp_path: Path) -> None:
    X, names = people(30, 4)
    splits = ["test" if i >= 80 else "train" for i in range(120)]
    bundle = faces.train(filled(tmp_path / "s", X, names, splits=splits), projection="none", far=0.1)
    assert bundle.classes == tuple(sorted(set(names[:80])))
    assert bundle.report["score"]["people"] == 10
    assert bundle.matching.projection is None


def test_a_person_on_both_sides_is_refused(tmp_path: Path) -> None:
    X, names = people(30, 4)
    splits = ["test" if i >= 78 else "train" for i in range(120)]
    with pytest.raises(UsageError, match=r"1 people are on both sides of the split \(first: 'person 0-19'\)"):
        faces.train(filled(tmp_path / "s", X, names, splits=splits), projection="none")


def test_images_without_a_face_copies_and_contradictions_take_no_part(tmp_path: Path) -> None:
    X, names = people(30, 4)
    contents = list(range(120))
    contents[1] = 0  # a copy of the same person's
    contents[9] = 4  # one image of two people
    found = [FIRST_PASS] * 120
    found[20] = found[21] = CENTRE_BOX
    path = filled(tmp_path / "s", X, names, contents=contents, found=found)
    bundle = faces.train(path, projection="none", far=0.1)
    assert bundle.report["left_out"] == {
        "other_splits": 0,
        "no_face": 2,
        "copies": 1,
        "contradicting": 2,
        "held_out": 0,
    }
    assert bundle.report["n"] + bundle.report["score"]["images"] == 115
    items = FeatureStore.open(path).items()
    assert not bundle.overlap([items[i].sha256 for i in (4, 9, 20, 21)])


def test_too_few_people_or_pairs_are_refused_with_numbers(tmp_path: Path) -> None:
    X, names = people(15, 4)
    with pytest.raises(UsageError, match=r"15 people to train and test on, 15 of them with .* 16 such people"):
        faces.train(filled(tmp_path / "few", X, names))
    splits = ["test" if i >= 32 else "train" for i in range(60)]
    with pytest.raises(UsageError, match=r"7 people to test on, 7 of them with two or more usable .* 8 such people"):
        faces.train(filled(tmp_path / "few-scored", X, names, splits=splits))
    with pytest.raises(UsageError, match="0 of them with two"):
        faces.train(filled(tmp_path / "single", X, [str(i) for i in range(60)]))
    X, names = people(20, 2)
    with pytest.raises(UsageError, match="at least 3000 pairs of different people"):
        faces.train(filled(tmp_path / "rare", X, names), projection="none", far=0.001)


def test_wrong_words_are_refused(store: Path) -> None:
    with pytest.raises(UnknownNameError, match="siamese"):
        faces.train(store, projection="siamse")
    with pytest.raises(UsageError, match="between 0 and 1"):
        faces.train(store, far=1.0)
    with pytest.raises(UnknownNameError, match="the source has none"):
        faces.train(store, split="train")


def test_such_a_head_names_no_labels(store: Path, trained: Bundle) -> None:
    for asked in (
        lambda: trained.predict_vectors(np.zeros((1, WIDTH))),
        lambda: trained.predict_proba_vectors(np.zeros((1, WIDTH))),
        lambda: trained.predict("a.jpg"),
        lambda: trained.to_torch(),
        lambda: evaluate(trained, store),
    ):
        with pytest.raises(UsageError, match="compares two images"):
            asked()
    assert trained.task == "match"


def test_few_people_are_enough_to_score_on(tmp_path: Path) -> None:
    X, names = people(20, 3)
    report = faces.train(filled(tmp_path / "s", X, names), projection="none", far=0.1).report
    assert (report["people"], report["score"]["people"]) == (12, 8)
    assert report["score"]["protocol"] == "a hold-out of 8 of 20 people (by name, seed 0)"
    # Those with one image are not counted: more are set aside, until eight have several.
    single = [*names, *(f"one {n}" for n in range(60))]
    X = np.concatenate([X, people(60, 1, 1)[0]])
    report = faces.train(filled(tmp_path / "t", X, single), projection="none", far=0.1).report
    assert report["score"]["people"] == 8 + sum(below(f"one {n}") for n in range(60))
    assert report["people"] + report["score"]["people"] == 80


def relabeled(path: Path, labels: Sequence[str], kept: Sequence[int]) -> None:
    """Give the images other names, and list only some of them."""
    keys = [hashlib.sha256(b"%d" % i).digest() for i in range(len(labels))]
    with StoreWriter(path, create=False) as writer:
        records = SourceRecords(writer.catalogue, "people", "/nowhere")
        records.remove([f"{i:05}.jpg" for i in range(len(labels)) if i not in set(kept)])
        records.save([Record(f"{i:05}.jpg", keys[i], labels[i], None, None, 1, 2, 3, 4, 5) for i in kept])


def test_people_stay_held_out_whoever_comes_and_goes(tmp_path: Path) -> None:
    X, names = people(60, 4)
    path = filled(tmp_path / "s", X, names)
    tested: set[str] = set()
    tested_images: set[bytes] = set()
    held_images = 0
    for draw in range(12):
        rng = np.random.default_rng(draw)
        kept = [i for i in range(240) if draw == 0 or (i // 4 * 7 + draw) % 11 > 2]
        labels = list(names)
        for i in rng.choice(240, 12, replace=False) if draw % 3 == 1 else ():
            labels[i] = names[int(rng.integers(240))]
        relabeled(path, labels, kept)
        bundle = faces.train(path, projection="none", far=0.1, seed=draw)
        items = FeatureStore.open(path).items()
        learned = {item.sha256 for item in items if bundle.overlap([item.sha256])}
        assert not tested & set(bundle.classes)
        assert not tested_images & learned
        recorded = FeatureStore.open(path).sides()
        now = {name for name in names if hashlib.sha256(f"identity:{name}".encode()).digest() in recorded}
        assert tested <= now
        tested = now
        tested_images |= {item.sha256 for item in items if item.label in tested}
        held_images += bundle.report["left_out"]["held_out"]
        assert bundle.report["left_out"]["held_out"] + len(learned) + bundle.report["score"]["images"] == len(items)
    assert held_images > 0
    # The images of the store have a hold-out of their own.
    head = train(path, "ridge", progress=False)
    assert set(head.classes) == {item.label for item in FeatureStore.open(path).items()}


def test_as_many_people_are_left_to_learn_from_as_are_needed(tmp_path: Path) -> None:
    for seed in range(6):
        X, names = people(16, 3, seed)
        report = faces.train(filled(tmp_path / f"{seed}", X, names), projection="none", far=0.2).report
        assert (report["people"], report["score"]["people"]) == (8, 8)


def test_every_image_is_accounted_for_where_splits_are_not_used(tmp_path: Path) -> None:
    X, names = people(40, 4)
    contents = list(range(160))
    contents[0] = 100  # in a split that nobody uses, the first copy of an image to learn from
    splits: list[str | None] = [*["val"] * 40, *["train"] * 80, *[None] * 8, *["test"] * 32]
    names = [names[100] if i == 0 else name for i, name in enumerate(names)]
    path = filled(tmp_path / "s", X, names, splits=splits, contents=contents)
    report = faces.train(path, projection="none", far=0.1).report
    assert report["left_out"] == {"other_splits": 48, "no_face": 0, "copies": 0, "contradicting": 0, "held_out": 0}
    assert (report["n"], report["score"]["images"]) == (80, 32)


def test_groups_stay_on_one_side_of_all_that_is_parted(tmp_path: Path) -> None:
    X, names = people(40, 4)
    # The last image of each even person and the first of the next are of one group.
    groups = [f"g{i // 8}" if i % 8 in (3, 4) else None for i in range(160)]
    path = filled(tmp_path / "s", X, names, groups=groups)
    bundle = faces.train(path, projection="lda", far=0.05, layers=BOTH)
    learned = {int(name.split("-")[1]) // 2 for name in bundle.classes}
    assert len(bundle.classes) == 2 * len(learned) == 40 - 2 * sum(below(f"person 0-{n}") for n in range(0, 40, 2))
    # The threshold is that of a head that was held out by the same groups, which those without them are not.
    order = [i for i, name in enumerate(names) if name in bundle.classes]
    stored, _, _ = FeatureStore.open(path).arrays(layers=BOTH)
    units = np.array([i if groups[i] is None else 1000 + int(groups[i][1:]) for i in order])
    for tied, agrees in ((units, True), (None, False)):
        head = SiameseHead(loss="none").fit(bundle.scaled(stored[order]), np.array(names)[order], tied)
        expected = slow_threshold(head.out_of_fold_, np.array(names)[order], head.fold_, 0.05)
        assert (bundle.matching.calibration.threshold == pytest.approx(expected, abs=1e-6)) == agrees
    splits = ["test" if i >= 124 else "train" for i in range(160)]
    names = [f"person {i}" if 120 <= i < 128 else name for i, name in enumerate(names)]
    with pytest.raises(UsageError, match="Images of one group are on both sides"):
        faces.train(filled(tmp_path / "t", X, names, groups=groups, splits=splits), projection="none")


def slow_threshold(Z: np.ndarray, y: np.ndarray, fold: np.ndarray, far: float) -> float:
    """Where pairs within a fold, each ranked among those of other people, are accepted at this rate."""
    Z = Z.astype(np.float64)
    pairs = [
        (float(Z[i] @ Z[j] / np.sqrt((Z[i] @ Z[i]) * (Z[j] @ Z[j]))), {y[i], y[j]})
        for i, j in combinations(range(len(Z)), 2)
        if fold[i] == fold[j] and y[i] != y[j]
    ]
    ranks = []
    for score, two in pairs:
        others = [other for other, both in pairs if not both & two]
        ranks.append((sum(other > score for other in others) + 1) / (len(others) + 1))
    share = np.quantile(ranks, far, method="weibull")
    return float(np.quantile([score for score, _ in pairs], 1 - share, method="weibull"))


@pytest.mark.parametrize("projection", ["lda", "none"])
def test_the_threshold_is_the_one_of_a_plain_loop(projection: str, tmp_path: Path) -> None:
    X, names = people(24, 4, 5)
    path = filled(tmp_path / "s", X, names)
    bundle = faces.train(path, projection=projection, far=0.05, layers=BOTH)
    stored, _, _ = FeatureStore.open(path).arrays(layers=BOTH)
    rows = [i for i, name in enumerate(names) if name in bundle.classes]
    y, vectors = np.array(names)[rows], bundle.scaled(stored[rows])
    fold = np.zeros(len(rows), int)
    if projection == "lda":
        head = SiameseHead(loss="none").fit(vectors, y)
        assert head.out_of_fold_ is not None
        vectors, fold = head.out_of_fold_, head.fold_
    expected = slow_threshold(vectors, y, fold, 0.05)
    assert bundle.matching.calibration is not None
    assert bundle.matching.calibration.threshold == pytest.approx(expected, abs=1e-6)


def test_few_couples_for_the_rate_are_warned_of(tmp_path: Path) -> None:
    X, names = people(20, 12)
    path = filled(tmp_path / "s", X, names)
    report = faces.train(path, projection="none", far=0.02).report
    # Of twelve people 66 couples can be made, and it takes 150 pairs.
    assert report["calibrated_on"] == {"people": 12, "pairs": 66 * 144, "couples": 66, "couples_needed": 150}
    assert "66 couples of different people" in report["warning"]
    assert "150" in report["warning"]
    report = faces.train(path, projection="lda", far=0.05).report
    # Four folds of three people have three couples each.
    assert report["calibrated_on"] == {"people": 12, "pairs": 12 * 144, "couples": 12, "couples_needed": 60}
    assert faces.train(path, projection="none", far=0.05).report["warning"] is None


def test_a_rate_that_is_too_small_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, names = people(20, 12)
    path = filled(tmp_path / "s", X, names)
    asked = []
    monkeypatch.setattr(SiameseHead, "fit", lambda *_: asked.append("fit"))
    with pytest.raises(UsageError, match=r"at least 3000 pairs of different people, for three .* there are 1728"):
        faces.train(path, projection="siamese", far=0.001)
    assert not asked


def test_a_fit_that_does_not_fit_into_memory_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "available_memory", lambda: 10)
    with pytest.raises(UsageError, match="Take fewer layers"):
        faces.train(store, projection="lda")


def test_the_rates_of_the_report_are_those_at_the_threshold_with_intervals_over_people(
    store: Path, trained: Bundle
) -> None:
    items = FeatureStore.open(store).items()
    rest = [i for i, item in enumerate(items) if item.label not in trained.classes]
    X, _, _ = FeatureStore.open(store).arrays(layers=BOTH)
    Z = trained.matching.embed(trained.scaled(X[rest])).astype(np.float64)
    y = np.array([items[i].label for i in rest])
    first, second = np.triu_indices(len(rest), 1)
    same = y[first] == y[second]
    assert trained.matching.calibration is not None
    scores = np.einsum("np,np->n", Z[first], Z[second])
    accepted = scores >= trained.matching.calibration.threshold
    score = trained.report["score"]
    assert score["far"]["value"] == pytest.approx(accepted[~same].mean())
    assert score["tar"]["value"] == pytest.approx(accepted[same].mean())
    for name, kind in (("far", ~same), ("tar", same)):
        low, high = wilson(score[name]["value"], int(kind.sum()))
        assert score[name]["low"] <= score[name]["value"] <= score[name]["high"]
        # Twelve people tell less than so many pairs would that shared nobody.
        assert score[name]["high"] - score[name]["low"] > high - low
