"""A store is data: what cannot be a store is refused, and `verify` finds what was changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.core.errors import (
    DamagedStoreError,
    FeatcacheError,
    MissingVectorsError,
    NotAStoreError,
    StoreError,
    StoreFormatError,
)
from featcache.store import FeatureStore, StoreWriter
from featcache.store.catalogue import Catalogue
from featcache.store.repair import repair
from featcache.store.shard import read_layout
from featcache.store.shard_maps import ShardMaps
from featcache.store.verify import named_shards, verify
from tests.store.making import fill, recipe, values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "s.fcache", 20)
    return tmp_path / "s.fcache"


def shards(path: Path) -> list[Path]:
    return sorted((path / "shards").rglob("*.h5"))


def test_a_path_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="featcache extract"):
        FeatureStore.open(tmp_path / "none.fcache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAStoreError, match=r"catalog\.sqlite"):
        FeatureStore.open(tmp_path / "empty")
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotAStoreError):
        FeatureStore.open(tmp_path / "file")


def test_a_writer_does_not_move_into_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(NotAStoreError, match=r"a\.jpg"):
        StoreWriter(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotAStoreError, match="is a file"):
        StoreWriter(tmp_path / "file")


def test_a_lost_catalogue_points_to_repair(path: Path) -> None:
    (path / "catalog.sqlite").unlink()
    with pytest.raises(DamagedStoreError, match="featcache repair"):
        FeatureStore.open(path)
    with pytest.raises(DamagedStoreError, match="featcache repair"):
        StoreWriter(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(StoreFormatError, match=r"format 3.*Upgrade"):
        FeatureStore.open(path)


def test_some_other_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with sqlite3.connect(tmp_path / "s" / "catalog.sqlite") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(NotAStoreError, match="not the catalogue"):
        FeatureStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE holdout",
        "ALTER TABLE items ADD COLUMN more TEXT",
    ],
)
def test_a_catalogue_with_other_tables_is_refused(path: Path, statement: str) -> None:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedStoreError, match="tables"):
        FeatureStore.open(path)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE items SET label = 'z' WHERE uri = '00003.jpg'", "items"),
        ("UPDATE items SET uri = 'x' WHERE uri = '00003.jpg'", "items"),
        ("UPDATE rows SET row = 9 - row", "rows"),
        ("DELETE FROM rows WHERE rowid IN (SELECT 1)", None),
        ("INSERT INTO holdout VALUES (x'00', 'test', 'recorded')", "holdout"),
    ],
)
def test_verify_finds_a_change_made_behind_its_back(path: Path, statement: str, table: str | None) -> None:
    if table is None:
        statement, table = "DELETE FROM rows WHERE row = 3", "rows"
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    report = FeatureStore.open(path).verify()
    assert not report.ok
    assert any(d["shard"] == "catalog.sqlite" and repr(table) in d["problem"] for d in report.damaged)


def test_verify_finds_a_flipped_bit_and_a_lost_shard(path: Path) -> None:
    first, second = shards(path)
    data = bytearray(first.read_bytes())
    data[-1] ^= 4
    first.write_bytes(data)
    second.unlink()
    report = FeatureStore.open(path).verify()
    problems = {d["shard"]: d["problem"] for d in report.damaged}
    assert "not those that were sealed" in problems[first.stem]
    assert "is gone" in problems[second.stem]
    assert report.shards == 2
    assert report.rows == 20


def test_reading_says_which_shard_is_gone_or_of_another_size(path: Path) -> None:
    first, second = shards(path)
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(MissingVectorsError, match=second.stem):
        FeatureStore.open(path).arrays()
    second.write_bytes(whole)
    first.write_bytes(first.read_bytes() + bytes(10))
    with pytest.raises(DamagedStoreError, match=f"{first.stem}.* bytes where the catalogue says"):
        FeatureStore.open(path).arrays()


def change(shard: Path, what: str, tmp_path: Path) -> None:
    with h5py.File(shard, "a") as file:
        vectors = file["vectors/pooled/0"][:]
        if what == "newer format":
            file.attrs["featcache_shard"] = 3
        elif what == "other recipe":
            file.attrs["recipe"] = recipe("test:other").to_json()
        elif what == "no recipe":
            del file.attrs["recipe"]
        else:
            del file["vectors/pooled/0"]
            if what == "external link":
                with h5py.File(tmp_path / "elsewhere.h5", "w") as other:
                    other["x"] = vectors
                file["vectors/pooled/0"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "x")
            elif what == "soft link":
                file["kept"] = vectors
                file["vectors/pooled/0"] = h5py.SoftLink("/kept")
            elif what == "chunked":
                file.create_dataset("vectors/pooled/0", data=vectors, chunks=(2, 8))
            elif what == "external storage":
                (tmp_path / "raw").write_bytes(vectors.tobytes())
                file.create_dataset(
                    "vectors/pooled/0",
                    vectors.shape,
                    "f4",
                    external=[(str(tmp_path / "raw"), 0, vectors.nbytes)],
                )
            elif what == "virtual":
                layout = h5py.VirtualLayout(vectors.shape, "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "elsewhere.h5"), "x", vectors.shape)
                file.create_virtual_dataset("vectors/pooled/0", layout)
            elif what == "object dtype":
                file.create_dataset("vectors/pooled/0", data=["x"] * len(vectors), dtype=h5py.string_dtype())
            elif what == "big-endian":
                file["vectors/pooled/0"] = vectors.astype(">f4")
            elif what == "integers":
                file["vectors/pooled/0"] = vectors.astype("i4")
            elif what == "fewer rows":
                file["vectors/pooled/0"] = vectors[:-1]
            elif what == "absurd shape":
                file.create_dataset("vectors/pooled/0", (1 << 40, 8), "f4")
            if "vectors/pooled/0" in file and what not in ("external link", "soft link"):
                file["vectors/pooled/0"].attrs["position"] = 0
                file["vectors/pooled/0"].attrs["sha256"] = hashlib.sha256(vectors.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "what",
    ["newer format", "other recipe", "no recipe", "external link", "soft link", "chunked", "external storage",
     "virtual", "object dtype", "big-endian", "integers", "fewer rows", "absurd shape"],
)  # fmt: skip
def test_the_one_door_refuses_what_no_shard_can_be(path: Path, what: str, tmp_path: Path) -> None:
    shard = shards(path)[0]
    assert read_layout(shard).rows == 10
    change(shard, what, tmp_path)
    with pytest.raises((DamagedStoreError, StoreFormatError)):
        read_layout(shard)


@pytest.mark.parametrize("keep", [0, 1, 100, 2000])
def test_a_shard_cut_off_is_refused(path: Path, keep: int) -> None:
    shard = shards(path)[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(DamagedStoreError):
        read_layout(shard)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", ".."])
def test_a_shard_name_cannot_leave_the_store(path: Path, name: str) -> None:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute("UPDATE shards SET name = ? WHERE id = (SELECT min(id) FROM shards)", (name,))
    connection.close()
    with pytest.raises((DamagedStoreError, MissingVectorsError)):
        FeatureStore.open(path).arrays()


def test_a_catalogue_that_is_no_database(path: Path) -> None:
    (path / "catalog.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DamagedStoreError, match="featcache repair"):
        FeatureStore.open(path)


def test_a_catalogue_opened_for_reading_refuses_to_write(path: Path) -> None:
    catalogue = Catalogue(path / "catalog.sqlite")
    with pytest.raises(StoreError, match="reading"), catalogue.transaction():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StoreError, match="locked"):
        StoreWriter(tmp_path / "locked" / "s.fcache")


def test_vectors_that_are_not_finite_are_found(path: Path) -> None:
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        bad = values(2, start=100)
        bad[1, 2] = np.nan
        space.append([bytes(32), bytes([1]) * 32], {("pooled", "0"): bad})
    report = FeatureStore.open(path).verify()
    assert any("not finite" in d["problem"] for d in report.damaged)


LIES = [
    "UPDATE shards SET rows = 'many'",
    "UPDATE shards SET rows = 1099511627776",
    "UPDATE shards SET rows = -3",
    "UPDATE shards SET rows = 9",
    "UPDATE shards SET bytes = bytes + 1",
    "UPDATE shards SET name = upper(name)",
    "UPDATE shards SET name = x'00ff' WHERE id = (SELECT min(id) FROM shards)",
    "UPDATE shards SET sha256 = x'00'",
    "UPDATE shard_columns SET shape = '[1099511627776]'",
    "UPDATE shard_columns SET shape = '[-8]'",
    "UPDATE shard_columns SET shape = '[8, 1.5]'",
    "UPDATE shard_columns SET shape = '[9]' WHERE shard_id = (SELECT min(id) FROM shards)",
    "UPDATE shard_columns SET shape = printf('%.100000c', '[')",
    "UPDATE shard_columns SET shape = 'eight'",
    "UPDATE shard_columns SET dtype = 'object'",
    "UPDATE shard_columns SET dtype = 'float16'",
    "UPDATE shard_columns SET live = 'all'",
    "UPDATE rows SET row = 'first' WHERE row = 1",
    "UPDATE rows SET row = -1 WHERE row = 1",
    "UPDATE rows SET row = 1099511627776 WHERE row = 1",
    "UPDATE rows SET shard_id = 77",
    "UPDATE rows SET shard_id = (SELECT sum(id) FROM shards) - shard_id",
    "UPDATE items SET sha256 = 'text'",
    "UPDATE items SET sha256 = x'00' WHERE uri = '00001.jpg'",
    "UPDATE items SET uri = x'ff00' WHERE uri = '00001.jpg'",
    "UPDATE items SET label = x'ff00' WHERE uri = '00001.jpg'",
    "UPDATE items SET label = CAST(x'ff' AS TEXT) WHERE uri = '00001.jpg'",
    "UPDATE columns SET position = 'first'",
    "UPDATE columns SET layer = 'other'",
    "UPDATE spaces SET fingerprint = substr(fingerprint, 1, 16) || printf('%.48c', '0')",
    "UPDATE spaces SET fingerprint = '../../../../../../etc/passwd'",
    "UPDATE spaces SET recipe = 'no recipe'",
    "UPDATE spaces SET recipe = printf('%.100000c', '[')",
    "UPDATE spaces SET recipe = 7",
    "UPDATE sources SET name = x'00'",
    "UPDATE digests SET value = 'x'",
    "DELETE FROM digests",
    "DELETE FROM columns",
    "DELETE FROM shards WHERE id = (SELECT min(id) FROM shards)",
]


@pytest.mark.parametrize("lie", LIES)
def test_a_catalogue_that_lies_is_found_and_gives_no_wrong_vector(path: Path, lie: str) -> None:
    right = FeatureStore.open(path).arrays()[0]
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute(lie)
    connection.close()
    try:
        got, _, items = FeatureStore.open(path).arrays()
    except FeatcacheError as error:
        assert "`featcache " in str(error)  # noqa: PT017 - some of the lies are harmless to reading
    else:
        # Which row is whose stands in the catalogue alone: only `verify` finds two that changed places.
        if "- shard_id" not in lie:
            assert {item.uri: row.tobytes() for item, row in zip(items, got, strict=True)}.items() <= {
                f"{i:05}.jpg": row.tobytes() for i, row in enumerate(right)
            }.items()
    assert not verify(path, progress=False).ok
    assert not verify(path, quick=True, progress=False).ok
    repair(path, progress=False)
    assert verify(path, progress=False).ok
    np.testing.assert_array_equal(FeatureStore.open(path).arrays()[0], right)


def test_shards_that_changed_places_are_refused(path: Path, tmp_path: Path) -> None:
    first, second = shards(path)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(DamagedStoreError, match="another name"):
        FeatureStore.open(path).arrays()
    assert {d["shard"] for d in verify(path).damaged} == {first.stem, second.stem}


@pytest.mark.parametrize("what", ["a link to a file", "a folder that is a link", "a pipe", "a folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(path: Path, what: str, tmp_path: Path) -> None:
    shard = shards(path)[0]
    if what == "a folder that is a link":
        shard.parent.rename(tmp_path / "elsewhere")
        shard.parent.symlink_to(tmp_path / "elsewhere")
    else:
        shard.rename(tmp_path / "elsewhere")
        if what == "a link to a file":
            shard.symlink_to(tmp_path / "elsewhere")
        elif what == "a pipe":
            os.mkfifo(shard)
        else:
            shard.mkdir()
    with pytest.raises(DamagedStoreError):
        FeatureStore.open(path).arrays()
    assert not verify(path, quick=True).ok
    assert not verify(path).ok
    kept = (tmp_path / "elsewhere").stat().st_mtime_ns
    repair(path)
    assert verify(path).ok
    assert (tmp_path / "elsewhere").stat().st_mtime_ns == kept


@pytest.mark.parametrize("part", ["tmp", "shards", "damaged", "catalog.sqlite", "shards/*"])
@pytest.mark.parametrize("work", ["write", "repair"])
def test_nothing_is_written_or_removed_behind_a_link(path: Path, tmp_path: Path, part: str, work: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "photos").mkdir(parents=True)
    (elsewhere / "photos" / "a.jpg").write_bytes(b"somebody's own")
    fill(elsewhere / "other.fcache", 5, start=700)
    (link,) = [path / part] if "*" not in part else path.glob(part)
    if link.is_dir():
        link.rename(tmp_path / "aside")
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere / "other.fcache" / part if part == "catalog.sqlite" else elsewhere)
    before = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()}
    if part == "shards/*" and work == "repair":
        repair(path, progress=False)
        assert verify(path, progress=False).ok
    else:
        with pytest.raises(DamagedStoreError, match="is a link"):
            fill(path, 5, start=500) if work == "write" else repair(path, progress=False)
    assert {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} == before


def test_a_store_may_be_reached_by_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    fill(tmp_path / "link", 5, start=500)
    assert verify(tmp_path / "link", progress=False).ok
    assert len(FeatureStore.open(path).arrays()[0]) == 25


@pytest.mark.parametrize(
    "lie",
    [{"size": 1}, {"rows": 9}, {"fingerprint": "0" * 64}, {"name": "0" * 32}],
)
def test_a_shard_that_is_not_as_the_catalogue_describes_it_is_not_mapped(path: Path, lie: dict[str, Any]) -> None:
    """Each by itself, since a catalogue from elsewhere may keep its digests in order."""
    ref = named_shards(Catalogue(path / "catalog.sqlite"))[0].ref
    assert len(ShardMaps(path).sha256s(ref)) == 10
    if "fingerprint" in lie:  # of the same folder
        lie = {"fingerprint": ref.fingerprint[:16] + lie["fingerprint"][16:]}
    if "name" in lie:
        shutil.copy(ref.path(path), replace(ref, **lie).path(path))
    with pytest.raises(DamagedStoreError):
        ShardMaps(path).sha256s(replace(ref, **lie))


def test_rows_of_a_layer_that_their_shard_does_not_hold_are_found_and_given_up(path: Path) -> None:
    fill(path, 10, layers={"blocks.1:mean": 8})
    right = FeatureStore.open(path).arrays()[0]
    catalogue = Catalogue(path / "catalog.sqlite", writable=True)
    with catalogue.transaction() as connection:  # so that the digests are in order
        connection.execute(
            "INSERT INTO rows SELECT k.id, r.sha256, r.shard_id, r.row FROM rows r, columns k "
            "WHERE k.layer = 'blocks.1:mean' AND r.column_id <> k.id ON CONFLICT DO NOTHING"
        )
    catalogue.close()
    report = verify(path, progress=False)
    assert [d["problem"] for d in report.damaged] == ["10 rows name a shard that does not hold their layer"]
    done = repair(path, progress=False)
    assert (done.rows_lost, done.to_compute[0]["layer"], done.to_compute[0]["images"]) == (10, "blocks.1:mean", 10)
    assert verify(path, progress=False).ok
    np.testing.assert_array_equal(FeatureStore.open(path).arrays(layers="pooled")[0], right)


@pytest.mark.parametrize("how", ["the file says so", "a log lies beside it"])
def test_a_catalogue_with_a_write_ahead_log_is_refused_and_nothing_is_written(path: Path, how: str) -> None:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE items SET label = 'z'")
        log = (path / "catalog.sqlite-wal").read_bytes()
    connection.close()
    if how == "a log lies beside it":
        shutil.copy(path / "catalog.backup.sqlite", path / "catalog.sqlite")
        (path / "catalog.sqlite-wal").write_bytes(log)
    before = sorted(p.name for p in path.iterdir())
    for opened in (FeatureStore.open, StoreWriter):
        with pytest.raises(DamagedStoreError, match="write-ahead"):
            opened(path)
    assert not verify(path, progress=False).ok
    assert sorted(p.name for p in path.iterdir()) == before
    repair(path, progress=False)
    assert verify(path, progress=False).ok
    assert len(FeatureStore.open(path).arrays()[0]) == 20


@pytest.mark.parametrize(
    "what",
    ["no rows", "position of text", "position below 0", "several formats", "a name that is no text", "long name"],
)
def test_the_one_door_refuses_what_no_writer_writes(path: Path, what: str) -> None:
    shard = shards(path)[0]
    with h5py.File(shard, "a") as file:
        if what == "no rows":
            for name, width in (("sha256", 32), ("vectors/pooled/0", 8)):
                kept = dict(file[name].attrs)
                dtype = file[name].dtype
                del file[name]
                file.create_dataset(name, (0, width), dtype).attrs.update(kept)
        elif what == "position of text":
            file["vectors/pooled/0"].attrs["position"] = "first"
        elif what == "position below 0":
            file["vectors/pooled/0"].attrs["position"] = -1
        elif what == "several formats":
            file.attrs["featcache_shard"] = [1, 1]
        elif what == "a name that is no text":
            file.move("vectors/pooled", "vectors/\x1b[2Jpooled")
        else:
            file.attrs["libraries"] = "x"
            file.attrs["name"] = np.array(shard.stem.encode() + bytes(2 << 20), dtype=f"S{(2 << 20) + 32}")
    with pytest.raises(DamagedStoreError):
        read_layout(shard)
