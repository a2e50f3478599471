"""What was appended comes back, whatever the order, the dtype and the shards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords
from tests.store.making import fill, keys, recipe, values


def test_arrays_return_every_item_in_uri_order(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 25, shard=7)
    X, y, items = FeatureStore.open(tmp_path / "s.fcache").arrays()
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, values(25))
    assert [item.uri for item in items] == sorted(item.uri for item in items)
    assert y.tolist() == ["abc"[i % 3] for i in range(25)]
    assert items[3].sha256 == keys(4)[3]


def test_gather_keeps_the_order_asked_and_repeats(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 30, shard=7)
    order = [29, 3, 3, 17, 0, 8]
    (got,) = FeatureStore.open(tmp_path / "s.fcache").gather([keys(30)[i] for i in order], ["pooled"])
    np.testing.assert_array_equal(got, values(30)[order])


def test_gather_names_what_is_absent(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 5)
    with pytest.raises(MissingVectorsError, match=keys(1, 99)[0].hex()):
        FeatureStore.open(tmp_path / "s.fcache").gather(keys(1, 99), ["pooled"])


def test_layers_come_back_in_network_order(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 12, layers={"body.1:mean": 3, "body.2:mean": 4, "pooled": 8})
    store = FeatureStore.open(tmp_path / "s.fcache")
    assert store.layer_names("pooled+body.*:mean") == ["body.1:mean", "body.2:mean", "pooled"]
    X, _, _ = store.arrays(layers="pooled+body.1:mean")
    np.testing.assert_array_equal(X, np.concatenate([values(12, 3), values(12, 8)], axis=1))
    assert store.layer_names() == ["pooled"]
    with pytest.raises(UnknownNameError, match=r"body\.1:mean"):
        store.layer_names("body.1:means")


def test_a_glob_stays_within_one_part_of_the_path(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 3, layers={"a.0:mean": 2, "a.0.conv:mean": 2, "pooled": 2})
    assert FeatureStore.open(tmp_path / "s.fcache").layer_names("a.*:mean") == ["a.0:mean"]


def test_a_layer_that_only_some_items_have_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 10, layers={"pooled": 8, "body:mean": 2})
    fill(tmp_path / "s.fcache", 4, start=10, layers={"pooled": 8})
    store = FeatureStore.open(tmp_path / "s.fcache")
    assert len(store.arrays(layers="pooled")[0]) == 14
    with pytest.raises(MissingVectorsError, match="4 of 14"):
        store.arrays(layers="pooled+body:mean")


def test_the_same_vectors_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    fill(path, 15)
    store = FeatureStore.open(path)
    assert len(store.vectors()) == 15
    assert store.verify().ok
    np.testing.assert_array_equal(store.arrays()[0], values(15))


def test_a_shard_whose_rows_are_all_there_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    before = sorted(p.name for p in (path / "shards").rglob("*.h5"))
    fill(path, 10)
    assert sorted(p.name for p in (path / "shards").rglob("*.h5")) == before


def test_one_time_stands_in_a_shard(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 4, layers={"pooled": 8, "blocks.1:mean": 3})
    (shard,) = (tmp_path / "s.fcache" / "shards").rglob("*.h5")
    with h5py.File(shard) as file:
        assert "created" in file.attrs
        for name in ("sha256", "vectors/pooled/0", "vectors/blocks.1:mean/0"):
            assert not file[name].id.get_create_plist().get_obj_track_times()


def test_float16_is_kept_unless_it_cannot_hold_the_values(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("body:none", "0", 0, "float16")
        space.append(keys(3), {("body:none", "0"): np.full((3, 2), 0.1, np.float32)})
        space.seal()
        space.append(keys(3, 3), {("body:none", "0"): np.full((3, 2), 70000.0, np.float32)})
    store = FeatureStore.open(path)
    assert store.space().layers["body:none"].dtypes == ("float16", "float32")
    (got,) = store.gather(keys(6), ["body:none"])
    np.testing.assert_array_equal(got[:3], np.float16(0.1))
    np.testing.assert_array_equal(got[3:], 70000.0)


def test_float32_takes_the_place_of_float16(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10, dtype="float16")
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0, "float32")
        assert space.present("pooled", "0", keys(10)) == set(keys(10))
        assert space.present("pooled", "0", keys(10), at_least="float32") == set()
        space.append(keys(6), {("pooled", "0"): values(6)})
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.arrays()[0][:6], values(6))
    np.testing.assert_array_equal(store.arrays()[0][6:], values(10)[6:].astype(np.float16))
    assert store.verify().ok
    np.testing.assert_array_equal(store.vectors()[:], np.vstack([values(10)[6:].astype(np.float16), values(6)]))


def test_several_spaces_and_sources_have_to_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 4, backbone="test:one", source="first")
    fill(path, 4, backbone="test:two", source="second")
    store = FeatureStore.open(path)
    with pytest.raises(UsageError, match=r"test:one.*test:two"):
        store.space()
    with pytest.raises(UsageError, match=r"first \(4 images.*second \(4 images"):
        store.source()
    with pytest.raises(UnknownNameError, match="second"):
        store.source("secnd")
    assert store.space("test:two").fingerprint == recipe("test:two").fingerprint
    assert store.space(recipe("test:one").fingerprint[:8]).recipe.backbone == "test:one"
    assert len(store.arrays(source="first", space="test:one")[0]) == 4


def test_status_counts_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10, layers={"pooled": 8, "body:mean": 2})
    status = FeatureStore.open(path).status()
    assert status["items"] == 10
    assert status["quarantined"] == 0
    (space,) = status["spaces"]
    assert space["layers"] == ["pooled", "body:mean"]
    assert space["views"] == ["0"]
    assert space["rows"] == 20
    assert space["bytes"] == sum(p.stat().st_size for p in (path / "shards").rglob("*.h5"))


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dropped=st.sets(st.integers(0, 40)),
)
def test_vectors_by_position_are_those_of_one_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, chunks: list[int], dropped: set[int]
) -> None:
    path = tmp_path_factory.mktemp("positions") / "s.fcache"
    total = sum(chunks)
    earlier = sorted(i for i in dropped if i < total)
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        if earlier:
            # These rows exist already, so the later shards carry rows that the catalogue does not name.
            space.append([keys(total)[i] for i in earlier], {("pooled", "0"): values(total)[earlier]})
            space.seal()
        start = 0
        for n in chunks:
            space.append(keys(n, start), {("pooled", "0"): values(n, start=start)})
            space.seal()
            start += n
    vectors = FeatureStore.open(path).vectors()
    expected = values(total)[earlier + [i for i in range(total) if i not in earlier]]
    assert vectors.shape == expected.shape
    np.testing.assert_array_equal(vectors[:], expected)
    low, high = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    np.testing.assert_array_equal(vectors[low:high], expected[low:high])
    at = data.draw(st.lists(st.integers(-total, total - 1), max_size=20))
    np.testing.assert_array_equal(vectors[np.array(at, dtype=int)], expected[np.array(at, dtype=int)])
    with pytest.raises(IndexError):
        vectors[[total]]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_thread_is_reading_does_not_hang(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 20)
    store = FeatureStore.open(tmp_path / "s.fcache")
    expected = store.arrays()[0]
    with store.maps._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(store.arrays()[0], expected) else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process waits for a lock that nobody in it holds")
    assert os.waitstatus_to_exitcode(status) == 0


def test_an_image_that_departs_twice_leaves_the_digests_in_order(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 5)
    with StoreWriter(path) as writer:
        with writer.catalogue.transaction() as connection:
            connection.execute("INSERT INTO departed SELECT source_id, uri, sha256 FROM items")
        SourceRecords(writer.catalogue, "images", "/nowhere").remove(["00000.jpg"])
    assert FeatureStore.open(path).verify().ok


def test_a_fork_opens_the_catalogue_for_itself(tmp_path: Path) -> None:
    """SQLite forbids to use a connection that came through a fork, and says nothing when it is done."""
    fill(tmp_path / "s.fcache", 5)
    catalogue = FeatureStore.open(tmp_path / "s.fcache").catalogue
    inherited = catalogue.connection
    child = os.fork()
    if not child:
        os._exit(
            0
            if catalogue.connection is not inherited and len(catalogue.query("t", "SELECT uri FROM items")) == 5
            else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert catalogue.connection is inherited


def test_where_a_source_has_to_be_chosen_it_is_said_which_has_labels(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 5)
    with StoreWriter(tmp_path / "s.fcache") as writer:
        SourceRecords(writer.catalogue, "new", "/elsewhere").save(
            [Record("a.jpg", keys(1)[0], None, None, None, 1, 2, 3, 4, 5)]
        )
    with pytest.raises(UsageError, match=r"images \(5 images, 5 labels\), new \(1 images, no labels\)\. Choose one"):
        FeatureStore.open(tmp_path / "s.fcache").arrays()
