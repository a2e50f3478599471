"""Plain files for other programs, and the torch `Dataset` under workers."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.core.errors import SourceError, UsageError
from featcache.core.recipe import Recipe
from featcache.store import FeatureStore, export
from tests.store.making import fill, recipe, values


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    fill(tmp_path / "s.fcache", 20, layers={"body:mean": 3, "pooled": 8})
    return FeatureStore.open(tmp_path / "s.fcache")


def test_an_export_reads_with_three_lines_of_h5py(store: FeatureStore, tmp_path: Path) -> None:
    assert store.export(tmp_path / "x.h5", layers="pooled") == {
        "path": str(tmp_path / "x.h5"), "n": 20, "d": 8, "layers": ["pooled"], "views_left_out": 0
    }  # fmt: skip
    with h5py.File(tmp_path / "x.h5") as file:
        X, y, classes = file["features"][:], file["labels"][:], file["classes"].asstr()[:]
        assert Recipe.from_json(file.attrs["recipe"]) == recipe()
        assert file["uris"].asstr()[3] == "00003.jpg"
    np.testing.assert_array_equal(X, values(20))
    assert classes[y].tolist() == ["abc"[i % 3] for i in range(20)]


@pytest.mark.parametrize("name", ["x.h5", "x.npz"])
def test_an_export_can_be_read_back(store: FeatureStore, tmp_path: Path, name: str) -> None:
    store.export(tmp_path / name, layers="pooled+body:mean")
    back = export.read(tmp_path / name)
    X, y, items = store.arrays(layers="pooled+body:mean")
    np.testing.assert_array_equal(back.X, X)
    assert back.y.tolist() == y.tolist()
    assert back.uris == [item.uri for item in items]
    assert back.recipe == recipe()
    assert back.layers == ["body:mean", "pooled"]


def test_files_from_anywhere(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.eye(3), labels=np.array([1, 0, 1]))
    got = export.read(tmp_path / "a.npz")
    assert got.y.tolist() == ["1", "0", "1"]
    assert got.recipe is None
    assert got.X.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.eye(3)}, "labels"),
        ({"features": np.zeros(3), "labels": np.zeros(3, int)}, "shape"),
        ({"features": np.eye(3), "labels": np.zeros(2, int)}, "shape"),
        ({"features": np.eye(3), "labels": np.array([0, 1, 5]), "classes": np.array(["a", "b"])}, "classes"),
        ({"features": np.array([["a"]]), "labels": np.array([0])}, "numbers"),
        ({"features": np.array([[None]]), "labels": np.array([0])}, "allow_pickle"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        export.read(tmp_path / "a.npz")


def test_a_file_that_cannot_be_taken_in_says_why(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("features", (1 << 40, 1280), "f4", chunks=(1, 1280))
        file["labels"] = np.zeros(3, int)
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["features"], file["labels"] = np.eye(2), np.array([0, 1])
        file["classes"] = np.array([b"\xff\xfe", b"b"])
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("huge.h5", "text.h5", "zip.npz"):
        with pytest.raises(SourceError, match=name):
            export.read(tmp_path / name)


@pytest.mark.parametrize("how", ["external storage", "virtual", "external link"])
def test_a_plain_file_cannot_lead_to_other_files(tmp_path: Path, how: str) -> None:
    secret = np.arange(8, dtype="f4").reshape(4, 2)
    (tmp_path / "raw").write_bytes(secret.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = secret
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["labels"] = np.array([0, 1, 0, 1])
        if how == "external storage":
            file.create_dataset("features", secret.shape, "f4", external=[(str(tmp_path / "raw"), 0, secret.nbytes)])
        elif how == "virtual":
            layout = h5py.VirtualLayout(secret.shape, "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", secret.shape)
            file.create_virtual_dataset("features", layout)
        else:
            file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    with pytest.raises(SourceError, match="features"):
        export.read(tmp_path / "a.h5")


def test_an_unknown_suffix_and_a_missing_file(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.npz"):
        store.export(tmp_path / "x.csv", layers="pooled")
    with pytest.raises(SourceError, match="There is no file"):
        export.read(tmp_path / "none.h5")


def test_a_failed_export_leaves_the_old_file(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "x.h5").mkdir()
    with pytest.raises(Exception, match=r"x\.h5"):
        store.export(tmp_path / "x.h5", layers="pooled")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.fcache", "x.h5"]


def test_the_dataset_gives_the_arrays(store: FeatureStore) -> None:
    X, y, items = store.arrays(layers="pooled+body:mean")
    dataset = store.dataset("pooled+body:mean")
    assert len(dataset) == 20
    assert dataset.items == items
    assert [dataset.classes[t] for t in dataset.targets] == y.tolist()
    vector, target = dataset[7]
    np.testing.assert_array_equal(vector.numpy(), X[7])
    assert dataset.classes[target] == y[7]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_same_batches(store: FeatureStore, context: str) -> None:
    from torch.utils.data import DataLoader

    X, _, _ = store.arrays(layers="pooled")
    dataset = store.dataset("pooled")
    dataset[0]  # the parent holds open maps when the workers start
    loader = DataLoader(dataset, batch_size=6, num_workers=2, multiprocessing_context=context)
    got = np.concatenate([vectors.numpy() for vectors, _ in loader])
    np.testing.assert_array_equal(got, X)


def test_the_dataset_takes_other_labels(store: FeatureStore) -> None:
    dataset = store.dataset("pooled", labels={"00001.jpg": "x", "00004.jpg": "y"})
    assert dataset.classes == ["x", "y"]
    np.testing.assert_array_equal(dataset[1][0].numpy(), values(20)[4])
