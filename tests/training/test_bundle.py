"""A bundle comes back bit for bit, and what does not fit together is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.ensemble import RandomForestClassifier

import featcache as fc
from featcache.core.errors import BundleError, RecipeMismatchError, StoreFormatError, UsageError
from featcache.heads.matching import MatchingPredictor
from featcache.heads.predictors import KnnPredictor, LinearPredictor, normalized
from featcache.metrics.likelihood_ratio import Calibration
from featcache.training import bundle_file
from featcache.training.bundle import Bundle
from featcache.training.layer_use import LayerUse
from tests.store.making import keys, recipe, values

CLASSES = ("ant", "bee", "čmelák")


def made(link: str = "softmax", known: bool = True) -> Bundle:
    """A bundle for vectors (n, 8) of two layers."""
    rng = np.random.default_rng(0)
    predictor = LinearPredictor(
        rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=3).astype(np.float32), CLASSES, link
    )
    return Bundle(
        head="softmax",
        classes=CLASSES,
        layers=(LayerUse("body:mean", (5,), 0.37), LayerUse("pooled", (3,), 2.5)),
        recipe=recipe() if known else None,
        predictor=predictor,
        trained_on=np.frombuffer(b"".join(sorted(keys(4))), np.uint8).reshape(-1, 32),
        fitted_on=6,
        chosen={"C": 0.1},
        report={"score": {"accuracy": 0.5, "low": None, "protocol": "none"}},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made().save(tmp_path / "a.fch")
    return tmp_path / "a.fch"


def rewrite(path: Path, tensors: dict[str, np.ndarray | None] | None = None, **changes: Any) -> None:
    """Write the bundle anew with other tensors (None: without) or other words."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        data = json.loads(file.metadata()["featcache"])
    parts = {name: v for name, v in (load_file(path) | (tensors or {})).items() if v is not None}
    save_file(parts, path, metadata={"featcache": json.dumps(data | changes | {"sha256": "0" * 64})})
    bundle_file.seal(path)  # as a forger would, so that it is what it says that is refused


@pytest.mark.parametrize("link", ["softmax", "margin"])
@pytest.mark.parametrize("known", [True, False])
def test_it_comes_back_bit_for_bit(tmp_path: Path, link: str, known: bool) -> None:
    bundle = made(link, known)
    bundle.save(tmp_path / "new" / "a.fch")
    back = fc.load(tmp_path / "new" / "a.fch")
    X = values(20)
    p, again = bundle.predict_proba_vectors(X), back.predict_proba_vectors(X)
    if link == "softmax":
        assert p is not None
        assert again is not None
        assert p.tobytes() == again.tobytes()
        np.testing.assert_allclose(p.sum(1), 1)
    else:
        assert p is None
        assert again is None
    assert back.predict_vectors(X).tolist() == bundle.predict_vectors(X).tolist()
    for name in ("head", "classes", "layers", "recipe", "fitted_on", "chosen", "report", "created", "width"):
        assert getattr(back, name) == getattr(bundle, name), name
    np.testing.assert_array_equal(back.trained_on, bundle.trained_on)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.fch"]


def votes() -> Bundle:
    """A bundle of the other form: 12 vectors that vote."""
    bundle, rng = made(), np.random.default_rng(1)
    vectors = normalized(rng.normal(size=(12, 8)).astype(np.float32))
    vectors[5] = 0
    bundle.predictor = KnnPredictor(vectors, np.arange(12) % 3, 4, CLASSES)
    return bundle


def test_neighbours_come_back_bit_for_bit(tmp_path: Path) -> None:
    bundle = votes()
    bundle.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    p, again = bundle.predict_proba_vectors(values(20)), back.predict_proba_vectors(values(20))
    assert p is not None
    assert again is not None
    assert p.tobytes() == again.tobytes()
    assert back.predict_vectors(values(20)).tolist() == np.array(CLASSES)[p.argmax(1)].tolist()
    assert back.predictor.k == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"vectors": np.zeros((12, 7), np.float32)}, {}),
        ({"vectors": np.zeros((11, 8), np.float32)}, {}),
        ({"vectors": np.zeros((12, 8), np.float64)}, {}),
        ({"vectors": np.zeros(12, np.float32)}, {}),
        ({"vectors": np.full((12, 8), np.nan, np.float32)}, {}),
        ({"vectors": np.full((12, 8), 1e38, np.float32)}, {}),
        ({"vectors": np.full((12, 8), 0.5, np.float32)}, {}),
        ({"vectors": np.zeros((0, 8), np.float32), "numbers": np.zeros(0, np.int64)}, {}),
        ({"numbers": np.full(12, 3)}, {}),
        ({"numbers": np.full(12, -1)}, {}),
        ({"numbers": np.zeros(12, np.int32)}, {}),
        ({"numbers": np.zeros((12, 1), np.int64)}, {}),
        ({}, {"neighbours": 0}),
        ({}, {"neighbours": 13}),
        ({}, {"neighbours": 2.0}),
        ({}, {"neighbours": True}),
        ({}, {"link": "softmax"}),
        ({}, {"kind": "linear head on votes"}),
        ({}, {"classes": ["ant", "bee"]}),
    ],
)
def test_neighbours_that_do_not_fit_are_damage(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    votes().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", tensors, **changes)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(tmp_path / "a.fch")


@pytest.mark.parametrize(("tensors", "changes"), [({"numbers": None}, {}), ({}, {"kind": "linear head on vectors"})])
def test_neighbours_without_what_they_need(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    votes().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", tensors, **changes)
    with pytest.raises(BundleError, match=r"a\.fch"):
        Bundle.load(tmp_path / "a.fch")


def matching(projects: bool = True, calibrated: bool = True) -> Bundle:
    """A bundle of the third form, which compares."""
    bundle, rng = made(), np.random.default_rng(2)
    mean, projection = rng.normal(size=8).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    calibration = Calibration(8.25, -3.1, 0.1 + 0.2, 1e-3) if calibrated else None
    bundle.predictor = MatchingPredictor(mean, projection if projects else None, calibration, CLASSES)
    return bundle


@pytest.mark.parametrize("projects", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_projection_comes_back_bit_for_bit(tmp_path: Path, projects: bool, calibrated: bool) -> None:
    bundle = matching(projects, calibrated)
    bundle.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    a, b = bundle.scaled(values(20)), bundle.scaled(values(20, start=50))
    assert back.matching.scores(a, b).tobytes() == bundle.matching.scores(a, b).tobytes()
    assert back.matching.calibration == bundle.matching.calibration
    assert (back.matching.projection is None) == (not projects)
    assert back.task == bundle.task == "match"


def calibration(**changes: Any) -> dict[str, Any]:
    return {"calibration": {"slope": 8.25, "offset": -3.1, "threshold": 0.3, "far": 1e-3} | changes}


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"mean": np.zeros(7, np.float32)}, {}),
        ({"mean": np.zeros(8, np.float64)}, {}),
        ({"mean": np.full(8, np.inf, np.float32)}, {}),
        ({"projection": np.zeros((4, 7), np.float32)}, {}),
        ({"projection": np.zeros((3, 8), np.float32)}, {}),
        ({"projection": np.zeros((4, 8), np.float64)}, {}),
        ({"projection": np.zeros(8, np.float32)}, {}),
        ({"projection": np.full((4, 8), np.nan, np.float32)}, {}),
        ({"projection": np.zeros((0, 8), np.float32)}, {"dimensions": 0}),
        ({}, {"dimensions": 4.0}),
        ({"projection": np.zeros((1, 8), np.float32)}, {"dimensions": True}),
        ({}, {"link": "softmax"}),
        ({}, {"classes": ["ant", "ant", "bee"]}),
        ({}, calibration(slope=-1.0)),
        ({}, calibration(slope=float("nan"))),
        ({}, calibration(offset=float("inf"))),
        ({}, calibration(threshold="0.3")),
        ({}, calibration(threshold=None)),
        ({}, calibration(far=0)),
        ({}, calibration(far=1.0)),
        ({}, calibration(far=True)),
        ({}, calibration(prior=0.5)),
        ({}, {"calibration": {"slope": 1.0}}),
        ({}, {"calibration": [1.0, 2.0, 3.0, 0.1]}),
    ],
)
def test_a_projection_that_does_not_fit_is_damage(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    matching().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", tensors, **changes)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(tmp_path / "a.fch")


@pytest.mark.parametrize("lost", ["mean", "projection"])
def test_a_projection_without_what_it_needs(tmp_path: Path, lost: str) -> None:
    matching().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", {lost: None})
    with pytest.raises(BundleError, match=r"a\.fch"):
        Bundle.load(tmp_path / "a.fch")


def test_heads_of_the_two_kinds_are_not_taken_for_each_other() -> None:
    with pytest.raises(UsageError, match="compares two images"):
        matching().predict_vectors(values(2))
    with pytest.raises(UsageError, match="compares two images"):
        matching().predict(Path("there_is_no_such.jpg"))
    with pytest.raises(UsageError, match="compares two images"):
        matching().to_torch()
    with pytest.raises(UsageError, match="cannot compare two images"):
        _ = made().matching


def test_each_layer_is_divided_by_its_scale() -> None:
    bundle, X = made(), values(4)
    assert bundle.predictor is not None
    by_hand = np.hstack([X[:, :5] / np.float32(0.37), X[:, 5:] / np.float32(2.5)])
    np.testing.assert_array_equal(bundle.scaled(X), by_hand)
    np.testing.assert_array_equal(bundle.predict_proba_vectors(X), bundle.predictor.probabilities(by_hand))


def test_saving_again_replaces_the_bundle(saved: Path) -> None:
    other = made("margin")
    other.save(saved)
    assert Bundle.load(saved).predictor.link == "margin"  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"notes of last summer", pickle.dumps({"a": 1})])
def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.fch").write_bytes(content)
    with pytest.raises(UsageError, match="not overwritten"):
        made().save(tmp_path / "a.fch")
    assert (tmp_path / "a.fch").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.fch").mkdir()
    with pytest.raises(UsageError, match="not overwritten"):
        made().save(tmp_path / "a.fch")


def test_a_failed_write_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(UsageError, match=r"cannot be written to .*a\.fch"):
        made().save(tmp_path / "file" / "a.fch")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_name_too_long_for_the_disk(tmp_path: Path) -> None:
    # The name itself may be 255 bytes long; the partial file's is longer.
    with pytest.raises(UsageError, match="cannot be written"):
        made().save(tmp_path / ("x" * 251 + ".fch"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="featcache train"):
        fc.load(tmp_path / "none.fch")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file(saved: Path, kept: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    with pytest.raises(BundleError, match="is not a featcache head"):
        Bundle.load(saved)


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.fch").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(BundleError, match="not a featcache head"):
        Bundle.load(tmp_path / "a.fch")
    assert not (tmp_path / "sprung").exists()


DEEP = {"featcache": "[" * 200_000}  # deeper than JSON is read


def test_another_safetensors_file(tmp_path: Path) -> None:
    for name, metadata in (("a", None), ("b", {"format": "pt"}), ("c", {"featcache": "[1, 2]"}), ("d", DEEP)):
        save_file({"weight": np.eye(3, dtype=np.float32)}, tmp_path / name, metadata=metadata)
        with pytest.raises(BundleError, match="not a featcache head"):
            Bundle.load(tmp_path / name)


def test_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    rewrite(saved, format=99)
    with pytest.raises(StoreFormatError, match=r"99.*Upgrade"):
        Bundle.load(saved)


def test_a_bundle_of_a_newer_format_is_not_overwritten(saved: Path) -> None:
    rewrite(saved, format=99)
    before = saved.read_bytes()
    with pytest.raises((UsageError, StoreFormatError)):
        made().save(saved)
    assert saved.read_bytes() == before


NAN = np.full((3, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"weight": np.zeros((3, 7), np.float32)}, {}),
        ({"weight": np.zeros((2, 8), np.float32)}, {}),
        ({"weight": np.zeros((3, 8), np.float64)}, {}),
        ({"weight": NAN}, {}),
        ({"bias": np.zeros(2, np.float32)}, {}),
        ({"bias": np.array([0, np.inf, 0], np.float32)}, {}),
        ({"trained_on": np.zeros((4, 31), np.uint8)}, {}),
        ({"trained_on": np.zeros(64, np.uint8)}, {}),
        ({"trained_on": np.zeros((4, 32), np.float32)}, {}),
        ({}, {"classes": ["ant", "bee"]}),
        ({}, {"classes": ["ant", "bee", "bee"]}),
        ({}, {"link": "tanh"}),
        ({}, {"kind": "a whole network"}),
        ({}, {"layers": [{"name": "pooled", "shape": [9], "scale": 1.0}]}),
        ({}, {"layers": [{"name": "pooled", "shape": [8], "scale": 0.0}]}),
        ({}, {"layers": [{"name": "pooled", "shape": [8], "scale": float("nan")}]}),
        ({}, {"layers": [{"name": "a", "shape": [9], "scale": 1}, {"name": "b", "shape": [-1], "scale": 1}]}),
        # In float32, by which vectors are divided, these are 0 and infinity.
        ({}, {"layers": [{"name": "pooled", "shape": [8], "scale": 1e-60}]}),
        ({}, {"layers": [{"name": "pooled", "shape": [8], "scale": 1e60}]}),
        # In 64 bits these products are 0 and no number at all.
        ({}, {"layers": [{"name": "a", "shape": [2**32, 2**32], "scale": 1}, {"name": "b", "shape": [8], "scale": 1}]}),
        ({}, {"layers": [{"name": "pooled", "shape": [2**70], "scale": 1}]}),
    ],
)
def test_parts_that_do_not_fit_are_damage(
    saved: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    rewrite(saved, tensors, **changes)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({"bias": None}, {}),
        ({}, {"layers": [{"name": "pooled"}]}),
        ({}, {"layers": 3}),
        ({}, {"layers": ["pooled"]}),
        ({}, {"classes": None}),
        ({}, {"report": [1]}),
        ({}, {"fitted_on": "many"}),
        ({}, {"fitted_on": float("inf")}),
        ({}, {"layers": [{"name": "pooled", "shape": [float("inf")], "scale": 1}]}),
        ({}, {"recipe": "{}"}),
        ({}, {"recipe": "[]"}),
        ({}, {"recipe": 3}),
        ({}, {"recipe": "not JSON"}),
    ],
)
def test_parts_that_are_missing_or_of_another_kind(
    saved: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    rewrite(saved, tensors, **changes)
    with pytest.raises((BundleError, StoreFormatError), match=r"a\.fch|recipe"):
        Bundle.load(saved)


def test_vectors_of_another_width_name_the_layers() -> None:
    with pytest.raises(RecipeMismatchError, match=r"\(n, 8\) of body:mean \(5\) \+ pooled \(3\), not \(2, 7\)"):
        made().predict_vectors(np.zeros((2, 7)))
    with pytest.raises(RecipeMismatchError, match="8"):
        made().predict_proba_vectors(np.zeros(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_a_row_that_is_not_finite_is_named(bad: float) -> None:
    X = values(6).astype(np.float64)
    X[4, 2] = bad
    with np.errstate(over="ignore"), pytest.raises(UsageError, match="Row 4"):
        made().predict_vectors(X)


def test_no_vectors_give_no_answers() -> None:
    assert made().predict_vectors(np.zeros((0, 8))).tolist() == []
    assert made().predict_proba_vectors(np.zeros((0, 8))).shape == (0, 3)  # type: ignore[union-attr]


def test_overlap_counts_the_images_it_was_fitted_on(saved: Path) -> None:
    for bundle in (made(), Bundle.load(saved)):
        assert bundle.overlap(keys(10)) == 4
        assert bundle.overlap(keys(3, 2)) == 2
        assert bundle.overlap([]) == 0


def test_another_recipe_is_refused_field_by_field() -> None:
    made().require(recipe())
    with pytest.raises(RecipeMismatchError, match=r"backbone: 'test:net' in the head, 'test:other' here") as caught:
        made().require(recipe("test:other"))
    assert "weights" in str(caught.value)
    made(known=False).require(recipe("test:other"))


def test_unknown_vectors_have_no_images() -> None:
    bundle = made(known=False)
    with pytest.raises(RecipeMismatchError, match="predict_vectors"):
        bundle.predict("a.jpg")
    with pytest.raises(RecipeMismatchError, match="unknown origin"):
        bundle.to_torch()


def test_an_estimator_without_linear_form_predicts_and_is_not_saved(tmp_path: Path) -> None:
    X = values(30)
    y = np.array(CLASSES)[np.arange(30) % 3]
    bundle = made()
    bundle.predictor, bundle.estimator = None, RandomForestClassifier(5, random_state=0).fit(bundle.scaled(X), y)
    assert (bundle.predict_vectors(X) == y).mean() > 0.5
    assert bundle.predict_proba_vectors(X).shape == (30, 3)  # type: ignore[union-attr]
    with pytest.raises(BundleError, match=r"RandomForestClassifier.*Supported:"):
        bundle.save(tmp_path / "a.fch")
    with pytest.raises(BundleError, match="no linear form"):
        bundle.to_torch()
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made().save(tmp_path / "a.fch")
    data = bytearray((tmp_path / "a.fch").read_bytes())
    for at in range(len(data)):
        bit = 1 << int(rng.integers(8))
        data[at] ^= bit
        (tmp_path / "b.fch").write_bytes(data)
        with pytest.raises((BundleError, StoreFormatError)):
            Bundle.load(tmp_path / "b.fch")
        data[at] ^= bit
    (tmp_path / "b.fch").write_bytes(data)
    Bundle.load(tmp_path / "b.fch")
