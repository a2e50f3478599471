"""`compact` and `gc`: less on the disk, the same answers, and readers that were open go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.core import failpoints
from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError
from featcache.store import FeatureStore, StoreWriter, compact
from featcache.store.rows import ItemRows
from featcache.store.sources import SourceRecords
from tests.store import scenarios
from tests.store.making import fill, keys, recipe, values

ROOT = Path(__file__).parents[2]


def files(path: Path) -> list[Path]:
    return sorted((path / "shards").rglob("*.h5"))


def remove(path: Path, numbers: range, source: str = "images", root: str = "/") -> None:
    """Let a source, which lies at *root* now, list some items no longer."""
    with StoreWriter(path) as writer:
        records = SourceRecords(writer.catalogue, source, root, moved=True)
        records.remove([f"{i:05}.jpg" for i in numbers])


def test_small_shards_become_one_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 60, shard=7, layers={"pooled": 8, "body:mean": 2})
    before = scenarios.contents(path)
    report = fc.compact(path)
    assert (report.shards_before, report.shards_after) == (9, 1)
    assert report.bytes_after < report.bytes_before
    assert len(files(path)) == 1
    assert scenarios.contents(path) == before
    assert fc.verify(path).ok
    assert fc.compact(path).shards_after == 1
    assert len(files(path)) == 1


def test_a_full_shard_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    with StoreWriter(path, seal_bytes=values(100).nbytes) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        for start in range(0, 400, 100):
            space.append(keys(100, start), {("pooled", "0"): values(100, start=start)})
        names = {p.stem for p in files(path)}
        assert len(names) == 4
        compact.merge_small_shards(writer)
        assert {p.stem for p in files(path)} == names


def test_a_run_that_leaves_many_small_shards_merges_them(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        for start in range(compact.MANY - 1):
            space.append(keys(1, start), {("pooled", "0"): values(1, start=start)})
            space.seal()
        compact.merge_small_shards(writer)
        assert len(files(path)) == compact.MANY - 1
        space.append(keys(1, 50), {("pooled", "0"): values(1, start=50)})
        space.seal()
        compact.merge_small_shards(writer)
        assert len(files(path)) == 1
    assert len(FeatureStore.open(path).vectors()) == compact.MANY


def test_rows_that_were_replaced_leave_their_shards(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30, dtype="float16", layers={"pooled": 8, "body:mean": 2})
    fill(path, 10, start=5, layers={"pooled": 8})
    fc.compact(path)
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.gather(keys(10, 5), ["pooled"])[0], values(10, start=5))
    np.testing.assert_array_equal(store.arrays(layers="body:mean")[0], values(30, 2).astype(np.float16))
    assert fc.verify(path).ok
    dead = store.catalogue.query(
        "i", "SELECT count(*) FROM shards s JOIN shard_columns c ON c.shard_id = s.id WHERE c.live < s.rows"
    )
    assert dead == [(0,)]


def test_damage_is_not_sealed_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 40, shard=10)
    bad = files(path)[0]
    data = bytearray(bad.read_bytes())
    data[-9] ^= 1
    bad.write_bytes(data)
    report = fc.compact(path)
    assert report.damaged == [bad.stem]
    assert report.shards_after == 2
    assert [d["shard"] for d in fc.verify(path).damaged] == [bad.stem]


@pytest.mark.parametrize("opened", ["before anything was read", "after one row was read"])
def test_open_readers_go_on_through_compaction(tmp_path: Path, opened: str) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 60, shard=7, layers={"pooled": 8, "body:mean": 2})
    store = FeatureStore.open(path)
    vectors, rows = store.vectors("pooled"), ItemRows.of(store, "pooled+body:mean")
    expected = np.concatenate([values(60, 8), values(60, 2)], axis=1)
    expected = rows.read(np.arange(60)) if opened.startswith("after") else expected[:, [8, 9, *range(8)]]
    store.maps = type(store.maps)(path)
    fill(path, 10, start=100, source="more")
    fc.compact(path)
    assert len(files(path)) == 2
    np.testing.assert_array_equal(vectors[0:60], values(60))
    np.testing.assert_array_equal(vectors[[59, 3]], values(60)[[59, 3]])
    np.testing.assert_array_equal(np.sort(rows.read(np.arange(60))), np.sort(expected))
    np.testing.assert_array_equal(store.gather(keys(60), ["pooled"])[0], values(60))
    np.testing.assert_array_equal(store.arrays(layers="pooled", source="images")[0], values(60))


def test_readers_in_another_process_go_on_through_compaction_and_gc(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 60, shard=3)
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import numpy as np
        import featcache as fc
        from featcache.store.rows import ItemRows
        from tests.store.making import values
        store = fc.open({str(path)!r})
        rows, vectors = ItemRows.of(store, "pooled"), store.vectors()
        print("ready", flush=True)
        for line in sys.stdin:
            assert np.array_equal(rows.read(np.arange(60)), values(60))
            assert np.array_equal(vectors[:], values(60))
            print("right", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for change in (fc.compact, lambda p: fill(p, 9, start=200, shard=1, source="more"), fc.compact, scenarios.gc):
            change(path)
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "right\n"
        other.stdin.close()
        assert other.wait(60) == 0


def test_rows_taken_away_say_so_to_an_open_reader(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30, shard=10)
    rows = ItemRows.of(FeatureStore.open(path), "pooled")
    remove(path, range(10))
    fc.gc(path, apply=True)
    np.testing.assert_array_equal(rows.read(np.arange(10, 30)), values(30)[10:])
    with pytest.raises(MissingVectorsError, match="featcache gc"):
        rows.read(np.arange(30))


def test_gc_is_dry_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30, shard=10)
    remove(path, range(12))
    before = scenarios.contents(path)
    report = fc.gc(path)
    assert (report.applied, report.vectors, report.kept) == (False, 12, 18)
    assert report.bytes == files(path)[0].stat().st_size
    assert report.bytes_in_part > 0
    assert scenarios.contents(path) == before
    assert len(files(path)) == 3
    report = fc.gc(path, apply=True)
    assert report.applied
    assert len(files(path)) == 2
    store = FeatureStore.open(path)
    assert len(store.vectors()) == 18
    np.testing.assert_array_equal(store.arrays()[0], values(30)[12:])
    assert fc.verify(path).ok
    assert fc.gc(path).vectors == 0
    fc.compact(path)
    assert len(files(path)) == 1


def test_gc_keeps_what_another_source_still_has(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20)
    fill(path, 5, source="copies")
    remove(path, range(8))
    assert fc.gc(path).vectors == 3


def test_gc_refuses_a_source_that_is_absent_or_more_than_half_gone(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20)
    remove(path, range(11))
    with pytest.raises(UsageError, match=r"11 of its 20 images are gone.*--force"):
        fc.gc(path, apply=True)
    assert len(FeatureStore.open(path).vectors()) == 20
    remove(path, range(0), root="/nowhere/at/all")
    with pytest.raises(UsageError, match="there is nothing at /nowhere/at/all"):
        fc.gc(path, apply=True)
    assert fc.gc(path, apply=True, force=True).vectors == 11
    assert len(FeatureStore.open(path).vectors()) == 9


def test_what_comes_back_is_not_counted_as_gone(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20)
    remove(path, range(15), root="/nowhere")
    fill(path, 15)
    remove(path, range(0))
    assert fc.gc(path, apply=True).vectors == 0


def test_gc_by_space_and_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10, layers={"pooled": 8, "body:mean": 2})
    fill(path, 10, backbone="test:other")
    other = recipe("test:other").fingerprint
    assert fc.gc(path, layers="body:*", apply=True).vectors == 10
    assert list(FeatureStore.open(path).space("test:net").layers) == ["pooled"]
    with pytest.raises(UnknownNameError):
        fc.gc(path, layers="nothing")
    with pytest.raises(UnknownNameError):
        fc.gc(path, space="ffffffff")
    assert fc.gc(path, space=other[:12], apply=True).vectors == 10
    store = FeatureStore.open(path)
    assert [space.recipe.backbone for space in store.spaces] == ["test:net"]
    np.testing.assert_array_equal(store.arrays()[0], values(10))
    fc.compact(path)
    assert fc.verify(path).ok
    assert [p.name for p in (path / "shards").iterdir() if list(p.iterdir())] == [recipe().fingerprint[:16]]


def test_a_reader_that_stays_open_never_takes_a_new_shard_for_one_that_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.arrays()[0], values(10))
    not_read_yet = ItemRows.of(FeatureStore.open(path))
    remove(path, range(10), root="/nowhere")
    fc.gc(path, apply=True, force=True)
    fill(path, 10, start=500)  # as many rows of the same shape, in the only shard again
    np.testing.assert_array_equal(store.arrays()[0], values(10, start=500))
    with pytest.raises(MissingVectorsError, match="removed"):
        not_read_yet.read(np.arange(10))


@pytest.mark.parametrize("what", ["cut off", "gone", "a flipped bit"])
def test_of_a_damaged_shard_with_dead_rows_compact_keeps_its_hands(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30)
    remove(path, range(5), root="/nowhere")
    fc.gc(path, apply=True, force=True)
    store = FeatureStore.open(path)
    ((name,),) = store.catalogue.query(
        "t", "SELECT s.name FROM shards s JOIN shard_columns c ON c.shard_id = s.id WHERE c.live < s.rows"
    )
    (shard,) = (path / "shards").rglob(f"{name}.h5")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data[:-10] if what == "cut off" else data)
    if what == "gone":
        shard.unlink()
    report = fc.compact(path)
    assert report.damaged == [name]
    assert report.shards_after == 2  # the other two are one now
    fc.repair(path)
    assert fc.verify(path).ok
    np.testing.assert_array_equal(FeatureStore.open(path).gather(keys(20, 10), ["pooled"])[0], values(20, start=10))


def test_a_space_goes_with_what_a_dead_writer_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from featcache.core import failpoints
        from tests.store.making import fill
        def kill(point):
            if point == "seal: renamed":
                os.kill(os.getpid(), signal.SIGKILL)
        failpoints.on_reach = kill
        fill(Path({str(path)!r}), 10, layers={{"blocks.1:mean": 3}})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert len(files(path)) == 2
    report = fc.gc(path, space=recipe().fingerprint, apply=True)
    assert {layer["layer"]: layer["vectors"] for layer in report.layers} == {"pooled": 10, "blocks.1:mean": 10}
    assert FeatureStore.open(path).spaces == []
    assert files(path) == []
    assert fc.verify(path).ok


def meanwhile(monkeypatch: pytest.MonkeyPatch, point: str, work: Callable[[], object]) -> None:
    """Let another do something when the work first comes to *point*."""

    def on_reach(reached: str) -> None:
        if reached == point:
            monkeypatch.setattr(failpoints, "on_reach", None)
            work()

    monkeypatch.setattr(failpoints, "on_reach", on_reach)


def test_rows_that_others_replaced_meanwhile_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20, shard=5, dtype="float16")
    meanwhile(monkeypatch, "compact: renamed", lambda: fill(path, 5, dtype="float32"))
    fc.compact(path)
    got = FeatureStore.open(path).gather(keys(20), ["pooled"])[0]
    np.testing.assert_array_equal(got[:5], values(5))
    np.testing.assert_array_equal(got[5:], values(15, start=5).astype(np.float16))
    assert fc.verify(path).ok


def test_what_another_compaction_has_merged_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30)
    fill(path, 30, layers={"blocks.1:mean": 3})
    fill(path, 10, start=100, layers={"pooled": 8, "blocks.1:mean": 3})
    remove(path, range(5), root="/nowhere")
    fc.gc(path, apply=True, force=True)
    before = scenarios.contents(path)
    meanwhile(monkeypatch, "compact: committed", lambda: fc.compact(path))
    assert fc.compact(path).damaged == []
    assert scenarios.contents(path) == before
    assert fc.verify(path).ok


def test_vectors_that_move_between_their_place_and_the_reading_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 30)
    store = FeatureStore.open(path)
    find = store.where

    def then_moved(layers: list[str], sha256s: list[bytes], space: str | None = None) -> dict[str, np.ndarray]:
        places = find(layers, sha256s, space)
        monkeypatch.setattr(store, "where", find)
        assert fc.compact(path).shards_after == 1
        return places

    monkeypatch.setattr(store, "where", then_moved)
    np.testing.assert_array_equal(store.gather(keys(30), ["pooled"])[0], values(30))


def test_what_gc_has_dealt_with_is_no_doubt_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    remove(path, range(8))
    assert len(fc.gc(path).doubtful) == 1
    fc.gc(path, apply=True, force=True)
    assert fc.gc(path).doubtful == []
    remove(path, range(8, 9))
    assert fc.gc(path, apply=True).vectors == 1


def test_a_layer_of_several_views_is_one_row_of_the_report(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        for view in ("0", "a-0-1", "a-0-2"):
            space.declare("pooled", view, 0)
        space.append(keys(4), {("pooled", view): values(4) for view in ("0", "a-0-1", "a-0-2")})
        space.seal()
    (row,) = fc.gc(path, space=recipe().fingerprint).layers
    assert (row["layer"], row["vectors"]) == ("pooled", 12)
