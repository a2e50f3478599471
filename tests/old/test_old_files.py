"""Stores and heads that were written before open, verify and answer the same.

`data/` was made by `make.py` with featcache at commit e261107, and stays as it is. From stored vectors the answers are
the same to the last digit, from images within 1e-4.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

import featcache as fc
from featcache.core.errors import UsageError

from .network import DATA, kernels, network, scratch_head

STORE = DATA / "store.fcache"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
NUMBERS = np.load(DATA / "expected.npy")
SPACES = EXPECTED["spaces"]
PRIOR = 0.3


@pytest.fixture(scope="module")
def backbone() -> fc.Backbone:
    """The network of the store's first space, made again."""
    transform = fc.open(STORE).space(SPACES["old"]).recipe.pixels.transform
    return fc.Backbone.from_module(network(), transform=transform, name="old", axes="NCHW")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of heads, with the one whose tensors are drawn."""
    folder = shutil.copytree(DATA / "heads", tmp_path_factory.mktemp("old") / "heads")
    header = folder / "scratch.header"
    (folder / "scratch.fch").write_bytes(scratch_head(header.read_bytes()))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy to write to."""
    return shutil.copytree(STORE, tmp_path / "store.fcache")


def number(place: list[int]) -> np.ndarray:
    """An array of expected.npy, by where it begins and its shape."""
    begin, *shape = place
    return NUMBERS[begin : begin + int(np.prod(shape))].reshape(shape)


def assert_same_digits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the last digit, where sums of products are added up by the same kernels; else to rounding."""
    assert found.dtype == expected.dtype
    if kernels() == EXPECTED["made_with"]:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of all files."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same_vectors(store: Path, rows: list[dict[str, Any]] = EXPECTED["vectors"]) -> None:
    """All stored vectors are those of then, bit by bit."""
    opened = fc.open(store)
    for row in rows:
        X, _, items = opened.arrays(
            layers=row["layer"], source=row["source"], space=SPACES[row["space"]], views=row["views"]
        )
        assert (list(X.shape), len(items)) == (row["shape"], row["items"]), row
        assert hashlib.sha256(X.tobytes()).hexdigest() == row["sha256"], row


def of_then(found: Any, expected: Any) -> Any:
    """*found* without the fields that records got since; all that was there then stays to be compared."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {name: of_then(found[name], expected[name]) for name in expected}
    if isinstance(found, list) and isinstance(expected, list):
        return [of_then(*pair) for pair in zip(found, expected, strict=True)]
    return found


def as_counted_then(status: dict[str, Any], store: fc.FeatureStore) -> dict[str, Any]:
    """Images in quarantine whose bytes could be read were counted as items too, and are still in the catalogue."""
    sources = [source | {"items": len(store.items(source=source["name"]))} for source in status["sources"]]
    return status | {"sources": sources, "items": sum(source["items"] for source in sources)}


# The store.


def test_the_store_is_read_and_nothing_is_written(store: Path) -> None:
    for path in [*store.rglob("*"), store]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(store)
    opened = fc.open(store)
    status = opened.status()
    assert of_then(as_counted_then(status, opened), EXPECTED["status"]) == EXPECTED["status"]
    assert status["items"] + status["quarantined"] == EXPECTED["status"]["items"]
    report = fc.verify(store, progress=False).to_dict()
    assert {name: report[name] for name in EXPECTED["verify"]} == EXPECTED["verify"]
    for source, rows in EXPECTED["items"].items():
        items = opened.items(source=source)
        assert [[i.uri, i.sha256.hex()[:12], i.label, i.split, i.group] for i in items] == rows
        broken = [[row["uri"], row["reason"]] for row in status["quarantine"] if row["source"] == source]
        assert [list(pair) for pair in opened.quarantine(source)] == broken
    assert_same_vectors(store)
    assert contents(store) == before
    for path in [store, *store.rglob("*")]:  # so that pytest can remove it
        path.chmod(0o755)


def test_what_is_there_is_not_computed_again(store: Path, backbone: fc.Backbone) -> None:
    """Today's code finds the vectors of then, adds to them, merges shards, and all stay the same."""
    source = DATA / "pictures" / "pictures.csv"
    report = fc.extract(
        source, store, backbone=backbone, views=2, config=fc.ExtractionConfig(moved=True), progress=False
    )
    assert (report.space, report.items, report.computed) == (SPACES["old"], 19, 0)
    assert (report.reused, report.quarantined, report.removed) == (18, 1, 0)
    report = fc.extract(source, store, backbone=backbone, layers=["stem:mean"], progress=False)
    assert report.computed == 18
    fc.compact(store, progress=False)
    assert fc.verify(store, progress=False).ok
    assert_same_vectors(store)


def test_a_lost_catalogue_comes_back(store: Path) -> None:
    shutil.copy(store / "catalog.sqlite", store / "catalog.backup.sqlite")  # a backup is a copy
    (store / "catalog.sqlite").unlink()
    fc.repair(store, progress=False)
    assert fc.verify(store, progress=False).ok
    assert_same_vectors(store)
    for path in store.glob("*.sqlite"):
        path.unlink()
    fc.repair(store, progress=False)  # from the shards alone
    opened = fc.open(store)
    assert {space.fingerprint for space in opened.spaces} == set(SPACES.values())
    report = fc.verify(store, progress=False)
    assert (report.ok, report.shards, report.rows) == (True, 6, 136)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["old", "faces", "bfloat16"])
def test_vectors_from_images_are_those_of_then(tmp_path: Path, backbone: fc.Backbone, space: str) -> None:
    store = tmp_path / "new.fcache"
    if space == "old":
        layers = ["pooled", "body.0:mean_std", "body.1:mean_std"]
        made = fc.extract(
            DATA / "pictures" / "pictures.csv", store, backbone=backbone, layers=layers, views=2, progress=False
        )
        fc.extract(DATA / "pictures" / "pictures.csv", store, backbone=backbone, layers=["body.0:none"], progress=False)
    elif space == "faces":
        faces = fc.faces.extract(DATA / "faces", store, layers=["mirrored"], progress=False)
        assert (faces.space, faces.detection) == (SPACES["faces"], SPACES["detection"])
        assert (faces.first_pass, faces.second_pass, faces.no_face) == (3, 1, 1)
    else:
        name = "bundled:efficientnet_lite0"
        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            with pytest.raises(UsageError, match="does not compute in bfloat16"):
                fc.backbones.get(name, precision="bfloat16", runtime="openvino")
            return
        reduced = fc.backbones.get(name, precision="bfloat16", runtime="openvino")
        half = fc.ExtractionConfig(dtype="float16")
        made = fc.extract(DATA / "few" / "few.csv", store, backbone=reduced, config=half, progress=False)
    if space != "faces":
        assert made.space == SPACES[space]
    then, now = fc.open(STORE), fc.open(store)
    for row in EXPECTED["vectors"]:
        if SPACES[row["space"]] in {one.fingerprint for one in now.spaces}:
            where = {"layers": row["layer"], "source": row["source"], "space": SPACES[row["space"]]}
            A, _, items = then.arrays(views=row["views"], **where)
            B, _, again = now.arrays(views=row["views"], **where)
            assert [item.uri for item in items] == [item.uri for item in again]
            # Stored float16 has steps of 1/1024 of a value.
            tolerance = 1e-4 if row["layer"] != "body.0:none" and space != "bfloat16" else 2e-3
            assert np.linalg.norm(A - B) <= tolerance * np.linalg.norm(A), row


# Heads that name labels.


def loaded(heads: Path, name: str) -> fc.Bundle:
    """The head, after checking what it says of itself."""
    bundle, expected = fc.load(heads / f"{name}.fch"), EXPECTED["heads"][name]
    assert (bundle.head, bundle.task, list(bundle.classes)) == (expected["head"], expected["task"], expected["classes"])
    assert [use.name for use in bundle.layers] == expected["layers"]
    assert (bundle.chosen, bundle.fitted_on) == (expected["chosen"], expected["fitted_on"])
    assert len(bundle.trained_on) == expected["trained_on"]
    return bundle


@pytest.mark.parametrize("name", EXPECTED["heads"])
def test_a_head_answers_the_same(heads: Path, backbone: fc.Backbone, name: str) -> None:
    bundle, expected = loaded(heads, name), EXPECTED["heads"][name]
    given = backbone if expected["of_module"] else None
    if "stored" in expected:
        X, _, _ = fc.open(STORE).arrays(layers=expected["stored"], source="pictures", space=SPACES["old"])
        ready = bundle if given is None else bundle.on(given)
        p, labels = ready.predict_proba_vectors(X), ready.predict_vectors(X)
        assert (p is None) == ("probabilities" not in expected)
        if p is not None:
            assert_same_digits(p, number(expected["probabilities"]))
        wanted = np.array(expected["predicted"])
        assert (labels == (wanted.astype(bool) if wanted.ndim == 2 else np.array(bundle.classes)[wanted])).all()
    if "images" in expected:
        predictions = bundle.predict([DATA / path for path in expected["images"]], top=9, backbone=given)
        for found, labels in zip(predictions, expected["images"].values(), strict=True):
            assert found.problem is None
            assert_same_probabilities(found.labels, labels)


def assert_same_probabilities(found: list[tuple[str, float | None]], expected: list[list[Any]]) -> None:
    """The same labels, and probabilities within 1e-4; where there are none, only the label."""
    a, b = dict(found), dict(map(tuple, expected))
    assert a.keys() == b.keys()
    if None in b.values():
        assert a == b
    else:
        assert a == pytest.approx(b, abs=1e-4)


def test_heads_are_scored_the_same(heads: Path, store: Path, backbone: fc.Backbone) -> None:
    """On stored vectors, and of a network that was trained whole on the images."""
    source = DATA / "pictures" / "pictures.csv"
    fc.extract(
        source, store, backbone=backbone, config=fc.ExtractionConfig(moved=True), progress=False
    )  # the images lie elsewhere now
    for name, expected in EXPECTED["heads"].items():
        if "evaluate" in expected:
            report = fc.evaluate(
                heads / f"{name}.fch", store, source="pictures", space=None if name == "finetune" else SPACES["old"],
                labels=DATA / "multilabel.csv" if name == "multilabel" else None, backbone=backbone, progress=False,
            ).to_dict()  # fmt: skip
            tolerance = 1e-4 if name == "finetune" else 1e-9
            wanted = expected["evaluate"]
            assert {field: report[field] for field in wanted} == pytest.approx(wanted, abs=tolerance), name


def test_a_head_is_written_as_it_was_read(heads: Path, tmp_path: Path) -> None:
    """But for the versions of what wrote it, and the format."""
    for path in sorted(heads.glob("*.fch")):
        fc.load(path).save(tmp_path / path.name)
        (described, tensors), (again, written) = read(path), read(tmp_path / path.name)
        assert described.pop("versions").keys() == again.pop("versions").keys()
        assert (described.pop("format"), again.pop("format")) == (1, 2)
        assert len(again.pop("sha256")) == 64
        assert (again, written) == (described, tensors), path.name


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON in a head's file, and its tensors."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return json.loads(header.pop("__metadata__")["featcache"]) | {"tensors": header}, data[end:]


# Heads that compare two images.


@pytest.mark.parametrize("name", EXPECTED["matching"])
def test_a_matching_head_decides_the_same(heads: Path, backbone: fc.Backbone, name: str) -> None:
    bundle, expected = fc.load(heads / f"{name}.fch"), EXPECTED["matching"][name]
    assert (bundle.task, len(bundle.classes)) == ("match", expected["people"])
    assert [use.name for use in bundle.layers] == expected["layers"]
    where = {"layers": expected["layers"], "source": expected["source"], "space": SPACES[expected["space"]]}
    Z = bundle.scaled(fc.open(STORE).arrays(**where)[0])
    calibration = bundle.matching.calibration
    assert calibration is not None
    scores = bundle.matching.scores(Z[:-1], Z[1:])
    assert_same_digits(np.stack([scores, calibration.probability(scores, PRIOR)]), number(expected["scores"]))
    assert calibration.decide(scores).tolist() == expected["decisions"]
    first, *others = (DATA / path for path in expected["images"])
    given = backbone if expected["space"] == "old" else None
    for other, wanted in zip(others, expected["verify"], strict=True):
        found = fc.faces.verify(first, other, head=bundle, prior=PRIOR, backbone=given).to_dict()
        assert {field: found[field] for field in wanted} == pytest.approx(wanted, abs=1e-4)


def test_faces_without_a_head_are_as_far_apart() -> None:
    found = fc.faces.verify(DATA / "faces/p0/0.jpg", DATA / "faces/p1/0.jpg").to_dict()
    wanted = EXPECTED["uncalibrated"]
    assert {field: found[field] for field in wanted} == pytest.approx(wanted, abs=1e-4)
