"""From stored images to a scored head: what is learned from is never scored on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import BundleError, MissingVectorsError, RecipeMismatchError, UnknownNameError, UsageError
from featcache.heads import resolve_head
from featcache.heads.ridge import RidgeHead
from featcache.heads.softmax import SoftmaxPathClassifier
from featcache.metrics import splits
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import fit
from tests.training.sides import sides_of

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    """24 images; the first three cats are one image under three names."""
    root = draw_images(tmp_path_factory.mktemp("images") / "photos")
    for name in ("cat-01.jpg", "cat-02.jpg"):
        shutil.copy(root / "cats" / "cat-00.jpg", root / "cats" / name)
    return root


@pytest.fixture(scope="module")
def kept_store(images: Path) -> Path:
    """The images' vectors; not to be written to."""
    path = images.parent / "kept.fcache"
    fc.extract(images, path, backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], progress=False)
    return path


@pytest.fixture
def store(kept_store: Path, tmp_path: Path) -> Path:
    """A copy of the store of this test's own."""
    return shutil.copytree(kept_store, tmp_path / "s.fcache")


def train(store: Path, head: Any = "softmax", **options: Any) -> Bundle:
    return fc.train(store, head, progress=False, **options)


def kept(store: Path, source: str = "photos") -> dict[bytes, str]:
    return sides_of(store, source)


def contents(bundle: Bundle) -> set[bytes]:
    return {row.tobytes() for row in bundle.trained_on}


def with_manifest(images: Path, tmp_path: Path, row: Callable[[int, str], str], heading: str) -> Path:
    """A store of the images listed in a manifest; *row* gives what stands behind the path."""
    root = shutil.copytree(images, tmp_path / "listed")
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    lines = [f"path,{heading}", *(f"{path},{row(i, path)}" for i, path in enumerate(paths))]
    (root / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fc.extract(root / "list.csv", tmp_path / "listed.fcache", backbone=tiny_backbone(), progress=False)
    return tmp_path / "listed.fcache"


class Memory(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Knows by heart what it was fitted on, and answers anything else with ``unseen``."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Memory:
        self.classes_ = np.unique(y)
        self.known_ = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.array([self.known_.get(row.tobytes(), "unseen") for row in X])


def test_the_holdout_is_kept_and_shared_by_heads(store: Path) -> None:
    assert kept(store) == {}
    first = train(store)
    parts = kept(store)
    items = fc.open(store).items()
    assert parts.keys() == {item.sha256 for item in items}
    second = train(store, KNeighborsClassifier(1), seed=7)
    assert kept(store) == parts
    learned = {sha256 for sha256, part in parts.items() if part == "train"}
    assert contents(first) == contents(second) == learned
    tested = [item for item in items if parts[item.sha256] == "test"]
    assert {item.label for item in tested} == {"cats", "dogs"}
    assert first.report["score"]["n"] == second.report["score"]["n"] == len(tested)
    assert "hold-out" in first.report["score"]["protocol"]


def test_the_score_is_that_of_the_head_returned_on_the_holdout(store: Path) -> None:
    bundle = train(store)
    parts = kept(store)
    X, y, items = fc.open(store).arrays(layers="pooled")
    test = np.array([parts[item.sha256] == "test" for item in items])
    score = bundle.report["score"]
    assert score["accuracy"] == (bundle.predict_vectors(X[test]) == y[test]).mean()
    assert score["low"] <= score["accuracy"] <= score["high"]
    assert (bundle.fitted_on, bundle.report["n"], score["n"]) == ((~test).sum(), (~test).sum(), test.sum())
    assert bundle.recipe == tiny_backbone().recipe
    assert bundle.report["head"] == bundle.head == "softmax"
    assert bundle.report["classes"] == ["cats", "dogs"]
    assert bundle.report["chosen"] == bundle.chosen != {}


@pytest.mark.parametrize("seed", range(4))
def test_one_image_under_several_names_lies_on_one_side(store: Path, seed: int) -> None:
    # Whoever knows by heart what was learned knows nothing of the hold-out.
    bundle = train(store, Memory(), seed=seed)
    assert bundle.report["score"]["accuracy"] == 0.0
    assert bundle.report["log_loss"]["value"] is None
    items = fc.open(store).items()
    assert bundle.fitted_on == sum(item.sha256 in contents(bundle) for item in items)
    assert bundle.fitted_on + bundle.report["score"]["n"] == 24


def test_an_open_store_serves_like_its_path(store: Path) -> None:
    opened = fc.train(fc.open(store), "ridge", progress=False)  # draws the hold-out and keeps it
    by_path = train(store, "ridge")
    assert by_path.report["score"]["protocol"] == opened.report["score"]["protocol"]
    assert opened.report["score"]["accuracy"] == by_path.report["score"]["accuracy"]
    assert opened.trained_on.tobytes() == by_path.trained_on.tobytes()
    X = fc.open(store).arrays()[0]
    np.testing.assert_array_equal(opened.predict_proba_vectors(X), by_path.predict_proba_vectors(X))


def test_items_that_come_later_move_nothing(images: Path, tmp_path: Path) -> None:
    root = shutil.copytree(images, tmp_path / "photos")
    later = sorted(root.rglob("*-1?.jpg"))
    for path in later:
        path.rename(tmp_path / path.name)
    store = tmp_path / "s.fcache"
    fc.extract(root, store, backbone=tiny_backbone(), progress=False)
    train(store)
    before = kept(store)
    for path in later:
        (tmp_path / path.name).rename(path)
    fc.extract(root, store, backbone=tiny_backbone(), progress=False)
    train(store)
    after = kept(store)
    assert len(after) == len(before) + 4
    assert {key: after[key] for key in before} == before


def test_a_group_is_kept_together(images: Path, tmp_path: Path) -> None:
    store = with_manifest(images, tmp_path, lambda i, path: f"{path.split('/')[0]},g{i // 3}", "label,group")
    train(store)
    parts = kept(store, "list")
    sides: dict[str | None, set[str]] = {}
    for item in fc.open(store).items():
        sides.setdefault(item.group, set()).add(parts[item.sha256])
    assert len(sides) == 8
    assert all(len(side) == 1 for side in sides.values())
    assert sorted(next(iter(side)) for side in sides.values()).count("test") == 2


SPLITS = ["train", "train", "val", "test"]


def test_a_new_item_of_a_learned_group_is_not_scored_by_evaluate(images: Path, tmp_path: Path) -> None:
    store = with_manifest(images, tmp_path, lambda i, path: f"{path.split('/')[0]},g{i // 3}", "label,group")
    bundle = train(store)
    whole = fc.evaluate(bundle, store)
    # As if two images had come to the store after the training, of groups that were learned from.
    fewer = replace(bundle, trained_on=bundle.trained_on[2:])
    found = fc.evaluate(fewer, store)
    assert (found.n, found.accuracy, found.overlap) == (whole.n, whole.accuracy, 0)
    assert found.protocol == whole.protocol + ", without 2 whose group has items that it was trained on"
    assert fc.compare(bundle, fewer, store).n == whole.n
    everything = train(store, refit_all=True)
    with pytest.raises(MissingVectorsError, match="or on others of their groups, so none is left"):
        fc.evaluate(replace(everything, trained_on=everything.trained_on[2:]), store)


def test_the_sources_own_split_is_used(images: Path, tmp_path: Path) -> None:
    store = with_manifest(images, tmp_path, lambda i, path: f"{path.split('/')[0]},{SPLITS[i % 4]}", "label,split")
    bundle = train(store)
    items = fc.open(store).items()
    assert contents(bundle) == {item.sha256 for item in items if item.split == "train"}
    assert bundle.report["score"]["n"] == 6
    assert "own split 'test'" in bundle.report["score"]["protocol"]
    assert kept(store, "list") == {}
    other = train(store, split="val")
    assert contents(other) == {item.sha256 for item in items if item.split == "val"}
    with pytest.raises(UnknownNameError, match="'train'"):
        train(store, split="tran")


def test_splits_without_one_to_score_on(images: Path, tmp_path: Path) -> None:
    store = with_manifest(
        images, tmp_path, lambda i, path: f"{path.split('/')[0]},{['train', 'extra'][i % 2]}", "label,split"
    )
    score = train(store).report["score"]
    assert (score["accuracy"], score["n"]) == (None, 0)
    assert "nothing to score on: the source has the splits extra, train, but no 'test' or 'val'" in score["protocol"]
    assert train(store, cv=2, split="train").report["score"]["n"] == 12


def test_the_split_to_score_on_is_not_learned_from(images: Path, tmp_path: Path) -> None:
    store = with_manifest(
        images, tmp_path, lambda i, path: f"{path.split('/')[0]},{['train', 'test'][i % 2]}", "label,split"
    )
    score = train(store, split="test").report["score"]
    assert (score["accuracy"], score["n"]) == (None, 0)
    assert "but no 'test' or 'val' besides 'test'" in score["protocol"]


def test_a_split_of_a_source_that_has_none(store: Path) -> None:
    with pytest.raises(UnknownNameError, match="the source has no splits"):
        train(store, split="train")


def test_labels_from_a_file_cost_no_extraction(store: Path, tmp_path: Path) -> None:
    items = fc.open(store).items()
    lines = [f"{item.uri},{'even' if i % 2 else 'odd'}" for i, item in enumerate(items) if i < 20]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    before = fc.open(store).catalogue.query("ih", "SELECT id, sha256 FROM shards")
    bundle = train(store, labels_only=tmp_path / "labels.csv")
    assert bundle.classes == ("even", "odd")
    assert bundle.fitted_on + bundle.report["score"]["n"] == 20
    assert fc.open(store).catalogue.query("ih", "SELECT id, sha256 FROM shards") == before
    assert {item.label for item in fc.open(store).items()} == {"cats", "dogs"}


def test_labels_of_other_images_are_an_error(store: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\nelsewhere/a.jpg,x\n", encoding="utf-8")
    with pytest.raises(
        UsageError,
        match=r"1 of 1 paths in .* are not images of source 'photos' \(first: elsewhere/a\.jpg\)",
    ):
        train(store, labels=tmp_path / "labels.csv")


@pytest.mark.parametrize("cv", [None, 3])
def test_one_class_only(store: Path, tmp_path: Path, cv: int | None) -> None:
    lines = [f"{item.uri},all" for item in fc.open(store).items()]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    with pytest.raises(UsageError, match=r"All 24 labeled items are of one class, 'all'"):
        train(store, labels=tmp_path / "labels.csv", cv=cv)


def test_items_without_vectors_are_counted(images: Path, store: Path, tmp_path: Path) -> None:
    assert train(store).report["without_vectors"] == 0
    (images / "cats" / "text.jpg").write_text("no image")  # in quarantine: nothing is waited for
    half = tmp_path / "half.fcache"
    fc.extract(images, half, backbone=tiny_backbone(), progress=False)
    (images / "cats" / "text.jpg").unlink()
    fc.extract(images, half, backbone=tiny_backbone(seed=1), limit=10, progress=False)
    spaces = fc.open(half).spaces
    counts = [train(half, space=space.fingerprint).report["without_vectors"] for space in spaces]
    assert counts == [0, 14]
    labels = tmp_path / "labels.csv"
    listed = [item.uri for item in fc.open(half).items()][::2]
    labels.write_text("path,label\n" + "".join(f"{uri},{'ab'[i % 2]}\n" for i, uri in enumerate(listed)))
    got = train(half, space=spaces[1].fingerprint, labels_only=labels).report
    having = {item.uri for item in fc.open(half).arrays(space=spaces[1].fingerprint)[2]}
    assert got["without_vectors"] == len(set(listed) - having) > 0


def test_images_that_lack_a_layer_are_told_in_the_protocol(images: Path, tmp_path: Path) -> None:
    fewer, store = tmp_path / "fewer", tmp_path / "s.fcache"
    for path in sorted(images.rglob("*.jpg"))[::2]:
        (fewer / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, fewer / path.parent.name)
    fc.extract(images, store, backbone=tiny_backbone(), progress=False)
    fc.extract(fewer, store, backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], progress=False)
    told = "; 11 of 24 labeled images without vectors of 'body.0:mean' left out"
    bundle = train(store, "ridge", layers="body.0:mean", source="photos")
    assert bundle.report["score"]["protocol"].endswith(told)
    assert fc.evaluate(bundle, store, source="photos").protocol.endswith(told)
    assert "left out" not in train(store, "ridge", source="photos").report["score"]["protocol"]


def test_one_class_left_for_want_of_vectors(images: Path, tmp_path: Path) -> None:
    root, store = shutil.copytree(images, tmp_path / "photos"), tmp_path / "s.fcache"
    fc.extract(root, store, backbone=tiny_backbone(), progress=False)
    shutil.move(root / "dogs", tmp_path / "dogs")
    fc.extract(root, store, backbone=tiny_backbone(seed=1), progress=False)
    shutil.move(tmp_path / "dogs", root / "dogs")
    fc.extract(root, store, backbone=tiny_backbone(), progress=False)
    (space,) = [s.fingerprint for s in fc.open(store).spaces if s.layers["pooled"].rows < 20]
    with pytest.raises(MissingVectorsError, match="12 more have no vectors"):
        train(store, space=space)


def test_an_unknown_head_or_layer(store: Path) -> None:
    with pytest.raises(UnknownNameError, match="head"):
        train(store, "forest")
    with pytest.raises(UnknownNameError, match="layer"):
        train(store, layers="body.1:mean")


def test_cross_validation_scores_each_item_by_a_head_that_has_not_seen_it(store: Path) -> None:
    bundle = train(store, Memory(), cv=3)
    assert bundle.report["score"]["n"] == bundle.fitted_on == 24
    assert bundle.report["score"]["accuracy"] == 0.0
    assert "3-fold" in bundle.report["score"]["protocol"]
    assert contents(bundle) == {item.sha256 for item in fc.open(store).items()}
    assert kept(store) == {}
    # The head that is returned has seen all of them.
    X, y, _ = fc.open(store).arrays(layers="pooled")
    assert (bundle.predict_vectors(X) == y).all()


@pytest.mark.slow
def test_the_choice_is_made_inside_each_fold(store: Path) -> None:
    from sklearn.metrics import log_loss

    bundle = train(store, "ridge", cv=3, seed=2)
    X, y, items = fc.open(store).arrays(layers="pooled")
    units = splits.units(items)
    p = np.zeros((24, 2))
    for train_rows, test in splits.folds(y, units, 3, 2):
        p[test] = RidgeHead(random_state=2).fit(X[train_rows], y[train_rows], units[train_rows]).predict_proba(X[test])
    assert bundle.report["score"]["accuracy"] == (np.array(["cats", "dogs"])[p.argmax(1)] == y).mean()
    assert bundle.report["log_loss"]["value"] == pytest.approx(log_loss(y, p), rel=1e-4)


def test_too_few_for_the_folds(store: Path) -> None:
    # 12 cats, but three of them are one image.
    with pytest.raises(UsageError, match=r"'cats' has 10 independent items, too few for 11 folds"):
        train(store, cv=11)


@pytest.mark.parametrize("cv", [0, 1, -2])
def test_folds_below_two_are_wrong_usage(store: Path, cv: int) -> None:
    with pytest.raises(UsageError, match="at least 2 folds"):
        train(store, cv=cv)


def test_refit_all_learns_everything_after_scoring(store: Path) -> None:
    scored = train(store)
    bundle = train(store, refit_all=True)
    assert bundle.fitted_on == 24
    assert len(contents(bundle)) == 22
    for name in ("score", "log_loss"):
        got, wanted = (dict(b.report[name]) for b in (bundle, scored))
        assert "fitted again" in got.pop("protocol", "fitted again")
        wanted.pop("protocol", None)
        assert got == wanted


@pytest.mark.parametrize("head", [None, "softmax", "ridge", "torch"])
def test_several_layers_are_weighed_by_what_was_learned_from(store: Path, tmp_path: Path, head: str | None) -> None:
    bundle = train(store, head, layers=["pooled", "body.0:mean"])
    assert bundle.head == (head or "stack")
    X, _, items = fc.open(store).arrays(layers=["pooled", "body.0:mean"])
    learned = X[np.array([item.sha256 in contents(bundle) for item in items])].astype(np.float64)
    assert [(use.name, use.shape) for use in bundle.layers] == [("body.0:mean", (12,)), ("pooled", (16,))]
    weighting = bundle.report["layer_weighting"]
    assert weighting["log_loss"][weighting["weighting"]] <= min(weighting["log_loss"].values()) + 1e-4
    wanted = []
    for part in (learned[:, :12], learned[:, 12:]):
        part = part - part.mean(axis=0) if "centred" in weighting["weighting"] else part
        width = part.shape[1] if weighting["weighting"] == "per element" else 14
        wanted.append(np.sqrt((part**2).sum(axis=1).mean() / width))
    assert [use.scale for use in bundle.layers] == pytest.approx(wanted, rel=1e-5)
    bundle.save(tmp_path / "a.fch")
    assert fc.load(tmp_path / "a.fch").layers == bundle.layers


def test_one_layer_is_left_as_it_is(store: Path) -> None:
    assert [use.scale for use in train(store).layers] == [1.0]


def test_training_again_gives_the_same_head(store: Path) -> None:
    first, second = train(store), train(store)
    np.testing.assert_array_equal(first.predictor.weight, second.predictor.weight)  # type: ignore[union-attr]
    np.testing.assert_array_equal(first.predictor.bias, second.predictor.bias)  # type: ignore[union-attr]


def test_an_estimator_that_cannot_be_saved_trains_and_scores(store: Path, tmp_path: Path) -> None:
    mine = RandomForestClassifier(5, random_state=0)
    bundle = train(store, mine)
    assert not hasattr(mine, "classes_")
    assert bundle.head == "RandomForestClassifier"
    assert 0 <= bundle.report["score"]["accuracy"] <= 1
    X, _, _ = fc.open(store).arrays(layers="pooled")
    assert bundle.predict_proba_vectors(X).shape == (24, 2)  # type: ignore[union-attr]
    with pytest.raises(BundleError, match="Supported"):
        bundle.save(tmp_path / "a.fch")


@pytest.mark.parametrize("name", ["x.h5", "x.npz"])
def test_from_a_file_that_knows_its_recipe(store: Path, tmp_path: Path, name: str) -> None:
    fc.open(store).export(tmp_path / name, layers="pooled")
    bundle = train(tmp_path / name)
    assert bundle.recipe == tiny_backbone().recipe
    assert bundle.fitted_on + bundle.report["score"]["n"] == 24
    bundle.save(tmp_path / "a.fch")
    with pytest.raises(RecipeMismatchError, match="from_module"):
        fc.load(tmp_path / "a.fch").predict(np.zeros((40, 40, 3), np.uint8))
    (answer,) = fc.load(tmp_path / "a.fch").predict(np.zeros((40, 40, 3), np.uint8), backbone=tiny_backbone())
    assert answer.problem is None


def test_from_a_file_of_unknown_origin(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)) + y[:, None] * 3, labels=y)
    bundle = train(tmp_path / "x.npz")
    assert bundle.recipe is None
    assert bundle.report["score"]["accuracy"] > 0.7
    bundle.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    assert back.predict_vectors(np.zeros((1, 5))).tolist() in (["0"], ["1"])
    with pytest.raises(RecipeMismatchError, match="unknown origin"):
        back.predict(np.zeros((40, 40, 3), np.uint8))


def test_equal_vectors_of_a_file_are_one_image(tmp_path: Path) -> None:
    X = np.repeat(np.random.default_rng(0).normal(size=(20, 5)), 2, axis=0)
    np.savez(tmp_path / "x.npz", features=X, labels=np.arange(40) // 2 % 2)
    assert train(tmp_path / "x.npz", Memory()).report["score"]["accuracy"] == 0.0
    assert train(tmp_path / "x.npz", Memory(), cv=4).report["score"]["accuracy"] == 0.0


def test_class_weights_reach_the_head(store: Path) -> None:
    plain, balanced = train(store), train(store, class_weight="balanced")
    given = train(store, class_weight={"cats": 50.0})
    assert balanced.head == "softmax"
    # A temperature for the shares of the classes as they are would undo the weights.
    assert (plain.report["calibration"] is None, given.report["calibration"] is None) == (False, True)
    X, _, _ = fc.open(store).arrays(layers="pooled")
    assert not np.array_equal(plain.predictor.weight, given.predictor.weight)  # type: ignore[union-attr]
    # The classes are far apart; a strong penalty leaves doubt, and the weights decide on which side.
    doubtful = SoftmaxPathClassifier(Cs=[1e-5])
    cats = [
        train(store, doubtful, class_weight=weights).predict_proba_vectors(X)[:, 0].mean()  # type: ignore[index]
        for weights in (None, {"cats": 50.0})
    ]
    assert cats[1] > cats[0] + 0.1
    with pytest.raises(UsageError, match=r"takes no class weights.*softmax"):
        train(store, KNeighborsClassifier(1), class_weight="balanced")
    with pytest.raises(UnknownNameError, match="'cats'"):
        train(store, class_weight={"cat": 2.0})


class Overconfident(LogisticRegression):
    """Logistic regression that is ten times too sure of itself, and knows what it said out of fold."""

    __module__ = "featcache.heads.for_this_test"

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Overconfident:
        super().fit(X, y)
        self.held_out_logits_ = np.full((len(y), len(self.classes_)), np.nan, np.float32)
        for train_rows, test in splits.folds(y, groups, 3):
            z = LogisticRegression().fit(X[train_rows], y[train_rows]).decision_function(X[test])
            z = z if z.ndim == 2 else np.column_stack([np.zeros_like(z), z])
            self.held_out_logits_[test] = 10 * z
        self.held_out_logits_[0] = np.nan
        self.coef_, self.intercept_ = 10 * self.coef_, 10 * self.intercept_
        return self


@pytest.mark.slow
@pytest.mark.parametrize("cv", [None, 4])
def test_a_head_with_out_of_fold_logits_is_calibrated_by_them(tmp_path: Path, cv: int | None) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(600) % 3
    X = (rng.normal(size=(600, 6)) + 0.8 * rng.normal(size=(3, 6))[y]).astype(np.float32)
    np.savez(tmp_path / "x.npz", features=X, labels=y)
    bundle = train(tmp_path / "x.npz", Overconfident(), cv=cv)
    found = bundle.report["calibration"]
    assert 5 < found["temperature"] < 20
    assert found["ece_after"] < found["ece_before"] / 2
    # The saved head is the one that is scored, and the temperature is in its weights.
    plain = fit(FeatureDataset.from_file(tmp_path / "x.npz"), np.arange(600), resolve_head(LogisticRegression()))
    assert plain.report["calibration"] is None
    bundle.save(tmp_path / "a.fch")
    p = fc.load(tmp_path / "a.fch").predict_proba_vectors(X)
    assert p is not None
    assert np.abs(p - plain.predict_proba_vectors(X)).max() < 0.25
    np.testing.assert_allclose(p, bundle.predict_proba_vectors(X))
    assert (p.argmax(1) == plain.predict_proba_vectors(X).argmax(1)).mean() > 0.9  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", SoftmaxPathClassifier(Cs=[3e1, 3e2])], ids=["softmax", "too sure"])
def test_softmax_is_calibrated_by_its_own_folds(tmp_path: Path, head: Any) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    X = (rng.normal(size=(240, 20)) + 0.5 * rng.normal(size=(3, 20))[y]).astype(np.float32)
    np.savez(tmp_path / "x.npz", features=X, labels=y)
    report = train(tmp_path / "x.npz", head).report["calibration"]
    assert report.keys() == {"temperature", "ece_before", "ece_after"}
    dataset = FeatureDataset.from_file(tmp_path / "x.npz")
    bundle = fit(dataset, np.arange(240), resolve_head(head))
    alone = resolve_head(head).make().fit(X, y, groups=dataset.groups)
    logits = alone.held_out_logits_.astype(np.float64)

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        return float((logsumexp(z, axis=1) - z[np.arange(240), y]).mean())

    wanted = np.exp(minimize_scalar(loss, bounds=(-5, 5), options={"xatol": 1e-9}).x)
    temperature = bundle.report["calibration"]["temperature"]
    assert temperature == pytest.approx(wanted, rel=1e-3)
    assert abs(temperature - 1) > 0.01
    if head != "softmax":
        assert temperature > 1.2
    np.testing.assert_allclose(bundle.predictor.weight * temperature, alone.coef_, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


def test_other_heads_are_not_calibrated(store: Path) -> None:
    assert train(store, "torch").report["calibration"] is None


class Notes:
    """A progress that writes down what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: dict[str, list[int | None]] = {}

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.phases[what] = [total, 0]
        self._done = self.phases[what]

    def advance(self, n: int = 1) -> None:
        self._done[1] = (self._done[1] or 0) + n

    def finish(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_holdout_that_cannot_be_kept_is_said(store: Path) -> None:
    # Nothing can be written where the folder of the writers is a file; permissions would not stop root.
    shutil.rmtree(store / "tmp")
    (store / "tmp").write_text("")
    heard = Notes()
    bundle = fc.train(store, progress=heard)
    assert bundle.report["score"]["n"] > 0
    assert len(heard.notes) == 1
    assert "could not be kept" in heard.notes[0]
    assert kept(store) == {}


@pytest.mark.parametrize(("head", "steps"), [("softmax", [45, 45]), ("ridge", [None, 0])])
def test_the_fit_tells_how_far_it_is(store: Path, head: str, steps: list[int | None]) -> None:
    heard = Notes()
    fc.train(store, head, progress=heard)
    assert heard.phases[f"train {head}"] == steps


@pytest.mark.parametrize("option", ["layers", "source", "space", "labels"])
def test_what_a_file_cannot_choose_is_refused(option: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(8, dtype=np.float32), labels=np.arange(8) % 2)
    with pytest.raises(UsageError, match=rf"file of features and has no {option} to choose"):
        fc.train(tmp_path / "x.npz", "ridge", progress=False, **{option: "other"})
