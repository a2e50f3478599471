"""`CachedEmbedder`: every image is computed once, whatever scikit-learn does around it."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_checks

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.backbones.runtimes.passes import GraphPasses
from featcache.core.errors import SourceError, UnknownNameError, UnusableImageError, UsageError
from featcache.extraction.embed import embed
from featcache.store import FeatureStore

LAYERS = "body.0:mean+pooled"


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "s.fcache"


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


def expected(images: list[Any], layers: str = "pooled") -> np.ndarray:
    """The vectors without a store."""
    found = [one.vector for one in embed(images, tiny_backbone(), [layers])]
    assert all(vector is not None for vector in found)
    return np.array(found)


def rows(store: Path) -> int:
    return FeatureStore.open(store).verify().rows


def labels(paths: list[Path]) -> list[str]:
    return [path.parent.name for path in paths]


def pipeline(backbone: Any, store: Path) -> Pipeline:
    return make_pipeline(fc.CachedEmbedder(backbone, store), LogisticRegression(C=10, max_iter=1000))


def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the backbone was run")

    monkeypatch.setattr(GraphPasses, "ready", refuse)  # whatever runtime it comes to, this comes first


def test_paths_images_and_arrays_give_the_vectors_of_embed(paths: list[Path], store: Path, backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    images = [
        paths[3],
        str(paths[0]),
        Image.open(paths[1]),
        Image.open(paths[0]).convert("L"),
        np.asarray(Image.open(paths[2])),
        rng.integers(0, 65536, (20, 30), dtype=np.uint16),
        rng.integers(0, 256, (20, 30, 4), dtype=np.uint8),
        paths[3],
    ]
    found = fc.CachedEmbedder(backbone, store, LAYERS).transform(images)
    assert found.dtype == np.float32
    assert found.shape == (8, 12 + 16)
    np.testing.assert_allclose(found, expected(images, LAYERS), rtol=0, atol=1e-6)
    assert FeatureStore.open(store).verify().ok


def test_what_is_stored_is_not_computed_again(
    paths: list[Path], store: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = fc.CachedEmbedder(backbone, store)
    pictures = [Image.open(path) for path in paths[:6]]
    first = embedder.transform([*paths, *pictures])
    assert rows(store) == 30
    nothing_is_computed(monkeypatch)
    np.testing.assert_array_equal(embedder.transform([*paths, *pictures]), first)
    np.testing.assert_array_equal(embedder.transform(paths[::-2]), first[len(paths) - 1 :: -1][::2])


def test_vectors_of_extract_serve_wherever_the_file_lies_now(
    photos: Path, paths: list[Path], store: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fc.extract(photos, store, backbone=backbone, progress=False)
    X, *_ = fc.open(store).arrays()
    moved = photos.rename(photos.with_name("moved"))
    nothing_is_computed(monkeypatch)
    np.testing.assert_array_equal(fc.CachedEmbedder(backbone, store).transform(sorted(moved.rglob("*.jpg"))), X)
    assert list(fc.open(store).sources()) == ["photos"]


def test_only_the_missing_layer_and_images_are_computed(paths: list[Path], store: Path, backbone: Backbone) -> None:
    fc.CachedEmbedder(backbone, store).transform(paths[:10])
    fc.CachedEmbedder(backbone, store, LAYERS).transform(paths[:12])
    layers = FeatureStore.open(store).space().layers
    assert {name: layer.rows for name, layer in layers.items()} == {"body.0:mean": 12, "pooled": 12}


def test_a_changed_file_is_another_image(paths: list[Path], store: Path, backbone: Backbone) -> None:
    embedder = fc.CachedEmbedder(backbone, store)
    before = embedder.transform(paths[:2])
    paths[0].write_bytes(paths[5].read_bytes())
    after = embedder.transform(paths[:2])
    np.testing.assert_allclose(after, expected(list(paths[:2])), rtol=0, atol=1e-6)
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_images_are_known_by_what_is_seen_not_by_how_it_is_kept(
    paths: list[Path], store: Path, backbone: Backbone
) -> None:
    gray = Image.open(paths[0]).convert("L")
    turned = gray.copy()
    turned.getexif()[0x0112] = 6
    kept = io.BytesIO()
    gray.save(kept, "PNG")
    palette = gray.copy()
    palette.putpalette([255 - i // 3 for i in range(768)])  # the same pixels in other colors
    same = [gray, gray.convert("RGB"), np.asarray(gray), np.asarray(gray)[..., None], Image.open(kept)]
    found = fc.CachedEmbedder(backbone, store).transform([*same, turned, palette])
    assert rows(store) == 3
    assert len(np.unique(found, axis=0)) == 3
    np.testing.assert_allclose(found, expected([*same, turned, palette]), rtol=0, atol=1e-6)


def test_inputs_may_be_object_arrays_stacks_and_nothing(paths: list[Path], store: Path, backbone: Backbone) -> None:
    embedder = fc.CachedEmbedder(backbone, store, LAYERS)
    stack = np.stack([np.asarray(Image.open(path)) for path in paths[:3]])
    objects = np.empty(3, dtype=object)
    objects[:] = list(paths[:3])
    np.testing.assert_allclose(embedder.transform(objects), expected(list(paths[:3]), LAYERS), rtol=0, atol=1e-6)
    np.testing.assert_allclose(embedder.transform(stack), expected(list(stack), LAYERS), rtol=0, atol=1e-6)
    assert embedder.transform([]).shape == (0, 28)


def test_names_of_features(store: Path, backbone: Backbone) -> None:
    names = fc.CachedEmbedder(backbone, store, LAYERS).get_feature_names_out()
    assert [names[0], names[11], names[12], names[-1]] == ["body.0:mean_0", "body.0:mean_11", "pooled_0", "pooled_15"]
    assert len(set(names)) == 28


def test_cross_validation_computes_each_image_once(
    paths: list[Path], store: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = labels(paths)
    given: list[Any] = [paths[i] if i % 2 else np.asarray(Image.open(paths[i])) for i in range(len(paths))]
    seen: list[int] = []
    forward = GraphPasses.forward

    def counted(self: GraphPasses, batch: np.ndarray, layers: Any) -> Any:
        seen.append(len(batch))
        return forward(self, batch, layers)

    monkeypatch.setattr(GraphPasses, "forward", counted)
    scores = cross_val_score(pipeline(backbone, store), given, y, cv=3)
    assert sum(seen) == len(paths)
    X = expected(given)
    np.testing.assert_array_equal(scores, cross_val_score(LogisticRegression(C=10, max_iter=1000), X, y, cv=3))
    assert scores.mean() > 0.8


def test_grid_search_goes_over_layers(paths: list[Path], store: Path, backbone: Backbone) -> None:
    grid = {
        "cachedembedder__layers": ["pooled", "body.0:mean", ["body.*:mean", "pooled"]],
        "logisticregression__C": [0.1, 10],
    }
    search = GridSearchCV(pipeline(backbone, store), grid, cv=2, error_score="raise").fit(paths, labels(paths))
    assert len(search.cv_results_["params"]) == 6
    assert (search.predict(paths) == np.array(labels(paths))).mean() > 0.8
    layers = FeatureStore.open(store).space().layers
    assert {name: layer.rows for name, layer in layers.items()} == dict.fromkeys(
        ["body.0:mean", "body.1:mean", "pooled"], 24
    )


@pytest.mark.slow
@pytest.mark.slow
def test_two_processes_write_one_store(paths: list[Path], store: Path, backbone: Backbone) -> None:
    scores = cross_val_score(pipeline(backbone, store), paths, labels(paths), cv=4, n_jobs=2, error_score="raise")
    report = FeatureStore.open(store).verify()
    assert report.ok
    assert (report.rows, report.unnamed) == (24, [])
    np.testing.assert_array_equal(scores, cross_val_score(pipeline(backbone, store), paths, labels(paths), cv=4))


def test_a_clone_shares_the_frozen_backbone(store: Path, backbone: Backbone) -> None:
    embedder = fc.CachedEmbedder(backbone, store, ["pooled"])
    copy = clone(embedder)
    assert copy is not embedder
    assert copy.backbone is backbone
    assert copy.get_params() == embedder.get_params()


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [True, False])
def test_joblib_keeps_a_fitted_pipeline(
    by_name: bool, paths: list[Path], store: Path, backbone: Backbone, tmp_path: Path
) -> None:
    fitted = pipeline("bundled:efficientnet_lite0" if by_name else backbone, store).fit(paths, labels(paths))
    joblib.dump(fitted, tmp_path / "p.joblib")
    again = joblib.load(tmp_path / "p.joblib")
    np.testing.assert_array_equal(again.predict_proba(paths), fitted.predict_proba(paths))
    assert fc.CachedEmbedder(again[0].backbone, store)._network().recipe == fitted[0]._network().recipe


@pytest.mark.slow
def test_without_anything_missing_torch_is_not_imported(paths: list[Path], store: Path) -> None:
    name = "bundled:efficientnet_lite0"
    first = fc.CachedEmbedder(name, store).transform([*paths[:2], Image.open(paths[2])])
    code = """
        import sys
        import numpy as np
        from PIL import Image
        import featcache as fc
        name, store, a, b, c = sys.argv[1:]
        found = fc.CachedEmbedder(name, store).fit([a]).transform([a, b, Image.open(c)])
        print("torch" in sys.modules, *found.sum(axis=1).tolist())
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), name, str(store), *map(str, paths[:3])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    assert done[0] == "False"
    assert [float(value) for value in done[1:]] == first.sum(axis=1).tolist()


def test_an_unusable_image_is_named_and_the_others_are_kept(
    paths: list[Path], store: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths[4].write_bytes(paths[4].read_bytes()[:-400])
    embedder = fc.CachedEmbedder(backbone, store)
    for _ in range(2):
        with pytest.raises(UnusableImageError, match=rf"{paths[4].name}: the file is cut off"):
            embedder.transform(paths)
    assert rows(store) == 23
    assert [uri.endswith(paths[4].name) for uri, _ in fc.open(store).quarantine("paths")] == [True]
    del paths[4]
    nothing_is_computed(monkeypatch)
    assert embedder.transform(paths).shape == (23, 16)


def test_a_file_that_is_no_image_leaves_no_trace(paths: list[Path], store: Path, backbone: Backbone) -> None:
    wrong = paths[0].with_name("labels.csv")
    wrong.write_text("path,label\na.jpg,cat\n")
    embedder = fc.CachedEmbedder(backbone, store)
    with pytest.raises(UnusableImageError, match=r"labels\.csv: it is not an image"):
        embedder.transform([wrong])
    assert not store.exists()
    with pytest.raises(UnusableImageError, match=r"labels\.csv: it is not an image"):
        embedder.transform([*paths, wrong])
    assert rows(store) == 24
    status = fc.open(store).status()
    assert (status["items"], status["quarantined"]) == (24, 0)


def test_images_and_files_that_cannot_be_had_are_named(paths: list[Path], store: Path, backbone: Backbone) -> None:
    embedder = fc.CachedEmbedder(backbone, store)
    with pytest.raises(UnusableImageError, match=r"image 1: its pixels \(mode F\) have no defined range"):
        embedder.transform([paths[0], Image.open(paths[0]).convert("F")])
    paths[1].write_bytes(b"")
    with pytest.raises(UnusableImageError, match=rf"{paths[1].name}: the file is empty"):
        embedder.transform(paths)
    with pytest.raises(SourceError, match=r"There is no image nowhere\.jpg"):
        embedder.transform(["nowhere.jpg"])


def test_all_images_that_cannot_be_used_are_told_at_once(paths: list[Path], store: Path, backbone: Backbone) -> None:
    """Whether they cannot be read, are no images, or cannot be decoded; those that can be used are stored."""
    paths[1].write_bytes(b"")
    paths[2].write_text("no image")
    paths[4].write_bytes(paths[4].read_bytes()[:-400])
    embedder = fc.CachedEmbedder(backbone, store)
    with pytest.raises(UnusableImageError) as told:
        embedder.transform(paths)
    text = str(told.value)
    assert text.startswith("3 images cannot be used: ")
    assert all(f"{paths[i].name}: " in text for i in (1, 2, 4))
    assert rows(store) == 21
    for path in paths[:7]:
        path.write_bytes(b"")
    with pytest.raises(UnusableImageError, match=r"^7 images cannot be used: .*; and 2 more\."):
        embedder.transform(paths)


def test_the_items_of_arrays_are_a_list_without_what_cannot_be_used(
    paths: list[Path], store: Path, backbone: Backbone
) -> None:
    paths[1].write_bytes(b"")
    paths[2].write_text("no image")
    photos = paths[0].parents[1]
    fc.extract(photos, store, backbone=backbone, progress=False)
    _, y, items = fc.open(store).arrays()
    usable = [photos / item.uri for item in items]
    assert usable == [path for path in sorted(paths) if path not in (paths[1], paths[2])]
    assert list(y) == [path.parent.name for path in usable]
    assert fc.CachedEmbedder(backbone, store).transform(usable).shape == (22, 16)


@pytest.mark.parametrize("wrong", ["a.jpg", Path("a.jpg"), 3, np.zeros((4, 5)), [7], [None], np.array([["a.jpg"]])])
def test_what_is_no_list_of_images_is_refused(wrong: Any, store: Path, backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"list|An image is"):
        fc.CachedEmbedder(backbone, store).transform(wrong)


def test_fit_checks_the_names(paths: list[Path], store: Path, backbone: Backbone) -> None:
    with pytest.raises(UnknownNameError, match="efficientnet_lite0"):
        fc.CachedEmbedder("bundled:eficientnet_lite0", store).fit(paths)
    with pytest.raises(UnknownNameError, match=r"body\.0"):
        fc.CachedEmbedder(backbone, store, "bodi.0:mean").transform(paths)
    with pytest.raises(UsageError, match="Give a list of images"):
        fc.CachedEmbedder(backbone, store).fit(str(paths[0]))


def test_given_images_belong_to_sources_that_gc_empties_only_by_name(
    photos: Path, paths: list[Path], store: Path, backbone: Backbone
) -> None:
    fc.extract(photos, store, backbone=backbone, progress=False)
    new = photos.with_name("new.jpg")
    Image.new("RGB", (40, 30), (250, 10, 10)).save(new)
    pictures = [Image.new("RGB", (30, 40), (0, i, 0)) for i in range(3)]
    embedder = fc.CachedEmbedder(backbone, store)
    embedder.transform([*paths, new, *pictures])
    embedder.transform(pictures[:1])  # the others are not gone because they are not given again
    opened = fc.open(store)
    assert {name: len(opened.items(source=name)) for name in opened.sources()} == {
        "memory": 3,
        "paths": 1,
        "photos": 24,
    }
    assert (Path("/") / opened.items(source="paths")[0].uri).read_bytes() == new.read_bytes()
    # They have no labels, so nobody is asked to choose between them and the source that was scanned.
    trained = fc.train(store, progress=False)
    assert len(opened.arrays()[2]) == trained.fitted_on + trained.report["score"]["n"] == 24
    new.unlink()
    report = fc.gc(store, apply=True)
    assert (report.vectors, report.kept, report.doubtful) == (0, 28, [])
    assert fc.gc(store, source="memory").to_dict()["forgotten"] == 3
    assert rows(store) == 28
    assert fc.gc(store, source="memory", apply=True).vectors == 3
    assert fc.gc(store, source="paths", apply=True).vectors == 1
    assert list(fc.open(store).sources()) == ["photos"]
    assert fc.open(store).verify().ok
    np.testing.assert_allclose(embedder.transform(pictures), expected(pictures), rtol=0, atol=1e-6)


def test_gc_of_a_source_keeps_what_another_one_lists(
    photos: Path, paths: list[Path], store: Path, backbone: Backbone
) -> None:
    embedder = fc.CachedEmbedder(backbone, store)
    embedder.transform(paths)
    fc.extract(photos / "cats", store, backbone=backbone, progress=False)
    report = fc.gc(store, source="paths", apply=True)
    assert (report.forgotten, report.vectors, report.kept) == (24, 12, 12)
    with pytest.raises(UnknownNameError, match="memory"):
        fc.gc(store, source="memory")
    with pytest.raises(UsageError, match="not both"):
        fc.gc(store, source="cats", layers="pooled")


def test_vectors_that_lost_their_source_are_noted_again(
    photos: Path, paths: list[Path], store: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fc.extract(photos, store, backbone=backbone, progress=False)
    gone = paths.pop().rename(photos.with_name("kept.jpg"))
    fc.extract(photos, store, backbone=backbone, progress=False)
    nothing_is_computed(monkeypatch)
    fc.CachedEmbedder(backbone, store).transform([gone])
    assert fc.gc(store, apply=True).vectors == 0


@pytest.mark.parametrize("name", ["memory", "paths"])
def test_no_folder_takes_the_name_of_a_given_source(name: str, photos: Path, store: Path, backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=rf"'{name}' is reserved.*--name"):
        fc.extract(photos.rename(photos.with_name(name)), store, backbone=backbone, progress=False)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_mixin_order,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_scikit_learn(check: Callable[[str, Any], None], store: Path) -> None:
    check("CachedEmbedder", fc.CachedEmbedder("bundled:efficientnet_lite0", store))
