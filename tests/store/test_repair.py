"""Damage is found, said, set aside; what can be saved comes back; the rest becomes "missing"."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.core.errors import FeatcacheError, NotAStoreError, StoreBusyError
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords
from tests.store import scenarios
from tests.store.making import fill, keys, recipe, values

FLIPS = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.fcache"
    scenarios.start(path)
    with StoreWriter(path) as writer:
        records = SourceRecords(writer.catalogue, "images", "/nowhere")
        records.save(
            [
                Record(f"{i:05}.jpg", key, f"räuber {i % 3}", "train" if i % 2 else "test", f"g{i % 7}", 1, 2, 3, 4, 5)
                for i, key in enumerate(keys(scenarios.ITEMS))
            ]
        )
    assert fc.verify(path, progress=False).ok
    return path


@pytest.fixture(scope="module")
def before(whole: Path) -> dict[str, object]:
    return scenarios.contents(whole)


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "s.fcache")
    return tmp_path / "s.fcache"


def holding(path: Path, vectors: np.ndarray) -> Path:
    """The shard in which these bytes stand."""
    return next(shard for shard in (path / "shards").rglob("*.h5") if vectors.tobytes() in shard.read_bytes())


def finish(path: Path) -> None:
    """What `extract` does after a repair: the missing vectors are computed."""
    scenarios.start(path)


def vectors(path: Path) -> dict[str, object]:
    return vectors_of(scenarios.contents(path))


def vectors_of(contents: dict[str, object]) -> dict[str, object]:
    return {name: held for name, held in contents.items() if isinstance(held, dict)}


# Every tenth is quick enough for each run.
@pytest.mark.parametrize("flip", [pytest.param(i, marks=[pytest.mark.slow] if i % 10 else []) for i in range(FLIPS)])
def test_every_flipped_bit_is_found_or_harmless_and_repaired(path: Path, before: dict[str, object], flip: int) -> None:
    chance = random.Random(flip)
    shards = sorted((path / "shards").rglob("*.h5"))
    file = [chance.choice(shards), path / "catalog.sqlite", path / "catalog.backup.sqlite"][flip % 3]
    data = bytearray(file.read_bytes())
    place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
    data[place] ^= bit
    file.write_bytes(data)
    report = fc.verify(path, progress=False)
    if report.ok:
        # Then nothing that a store answers may differ; a flipped bit in a shard is never in order.
        assert file.suffix == ".sqlite", (place, bit)
        assert scenarios.contents(path) == before, (place, bit)
    else:
        name = file.name if file.suffix == ".sqlite" else file.stem
        assert name in {damage["shard"] for damage in report.damaged}
    assert fc.repair(path, progress=False).changed or report.ok
    after = fc.verify(path, progress=False)
    assert after.ok, after.damaged
    held = scenarios.contents(path)
    assert scenarios.are_right(held)
    assert held["items of images"] == before["items of images"]
    finish(path)
    assert vectors(path) == vectors_of(before)


@pytest.mark.parametrize("how", ["deleted", "emptied", "zeroed", "cut off", "another database"])
def test_a_lost_catalogue_comes_back_with_labels_names_and_splits(whole: Path, path: Path, how: str) -> None:
    catalogue = path / "catalog.sqlite"
    if how == "deleted":
        catalogue.unlink()
    elif how == "emptied":
        catalogue.write_bytes(b"")
    elif how == "zeroed":
        catalogue.write_bytes(bytes(catalogue.stat().st_size))
    elif how == "cut off":
        catalogue.write_bytes(catalogue.read_bytes()[:10_000])
    else:
        catalogue.unlink()
        with sqlite3.connect(catalogue) as connection:
            connection.execute("CREATE TABLE t (x)")
        connection.close()
    assert not fc.verify(path, progress=False).ok
    with pytest.raises(FeatcacheError):
        StoreWriter(path)
    report = fc.repair(path, progress=False)
    assert report.catalogue == "taken from the backup"
    assert report.rows_lost == 0
    assert scenarios.contents(path) == scenarios.contents(whole)
    assert fc.verify(path, progress=False).ok


def test_without_catalogue_and_backup_the_vectors_are_kept(whole: Path, path: Path) -> None:
    (path / "catalog.sqlite").unlink()
    (path / "catalog.backup.sqlite").write_bytes(b"no database")
    report = fc.repair(path, progress=False)
    assert report.catalogue == "made anew"
    assert report.adopted == 2 * scenarios.ITEMS + 5
    assert vectors(path) == vectors(whole)
    finish(path)
    assert len(FeatureStore.open(path).arrays()[0]) == scenarios.ITEMS
    assert fc.verify(path, progress=False).ok


def test_shards_younger_than_the_backup_are_adopted(whole: Path, path: Path) -> None:
    old = (path / "catalog.backup.sqlite").read_bytes()
    fill(path, 20, start=scenarios.ITEMS, layers={"pooled": 8, "blocks.1:mean": 3})
    fc.compact(path, progress=False)
    (path / "catalog.sqlite").unlink()
    (path / "catalog.backup.sqlite").write_bytes(old)
    fc.repair(path, progress=False)
    held = vectors(path)
    assert set(keys(scenarios.ITEMS + 20)) <= set(held["pooled"])
    assert scenarios.is_right(path)
    assert fc.verify(path, progress=False).ok


def test_a_journal_of_the_damaged_catalogue_is_not_applied_to_the_new_one(whole: Path, path: Path) -> None:
    # A transaction that was cut off leaves a journal; it belongs to the file that it was written for.
    (path / "catalog.sqlite").write_bytes(b"\0" * 100)
    (path / "catalog.sqlite-journal").write_bytes(os.urandom(3000))
    fc.repair(path, progress=False)
    assert not (path / "catalog.sqlite-journal").exists()
    assert scenarios.contents(path) == scenarios.contents(whole)


def test_a_damaged_orphan_is_set_aside_and_not_adopted(path: Path) -> None:
    (path / "catalog.sqlite").unlink()
    (path / "catalog.backup.sqlite").unlink()
    shard = holding(path, values(1))
    data = bytearray(shard.read_bytes())
    data[data.find(values(1).tobytes()) + 5] ^= 16
    shard.write_bytes(data)
    report = fc.repair(path, progress=False)
    assert [shard.stem in entry["file"] for entry in report.set_aside] == [True]
    assert "not those that were sealed" in report.set_aside[0]["reason"]
    assert scenarios.is_right(path)


def test_strange_files_among_the_shards_are_set_aside(whole: Path, path: Path, tmp_path: Path) -> None:
    folder = next((path / "shards").iterdir())
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ("0" * 32 + ".h5")).write_text("somebody else's")
    (path / "shards" / ("0" * 16)).symlink_to(tmp_path / "elsewhere")
    assert len(fc.verify(path, progress=False).unnamed) == 2
    report = fc.repair(path, progress=False)
    assert len(report.set_aside) == 2
    assert (tmp_path / "elsewhere" / ("0" * 32 + ".h5")).read_text() == "somebody else's"
    assert fc.verify(path, progress=False).unnamed == []
    assert scenarios.contents(path) == scenarios.contents(whole)


def test_repair_of_a_whole_store_changes_nothing(path: Path) -> None:
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert not fc.repair(path, progress=False).changed
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_nobody_repairs_or_collects_under_a_living_writer(path: Path) -> None:
    with StoreWriter(path):
        with pytest.raises(StoreBusyError, match="at work"):
            fc.repair(path)
        with pytest.raises(StoreBusyError, match="at work"):
            fc.gc(path)
    assert not fc.repair(path, progress=False).changed


def test_no_store_is_no_store(tmp_path: Path) -> None:
    for work in (fc.verify, fc.repair, fc.compact, fc.gc):
        with pytest.raises(NotAStoreError):
            work(tmp_path / "none.fcache")
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "mine.txt").write_text("x")
        with pytest.raises(NotAStoreError):
            work(tmp_path / "other")
        assert [p.name for p in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_a_label_that_is_no_text_any_more(path: Path) -> None:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute("UPDATE items SET label = CAST(x'72ff' AS TEXT) WHERE uri = '00000.jpg'")
    connection.close()
    with pytest.raises(FeatcacheError, match="featcache repair"):
        FeatureStore.open(path).arrays()
    report = fc.verify(path, progress=False)
    assert [damage["shard"] for damage in report.damaged] == ["catalog.sqlite"]
    fc.repair(path, progress=False)
    assert FeatureStore.open(path).items()[0].label == "räuber 0"


def test_quick_looks_at_everything_but_the_vectors(path: Path) -> None:
    shard = holding(path, values(1))
    data = bytearray(shard.read_bytes())
    data[data.find(values(1).tobytes())] ^= 1
    shard.write_bytes(data)
    assert fc.verify(path, quick=True, progress=False).ok
    assert not fc.verify(path, progress=False).ok
    shard.unlink()
    report = fc.verify(path, quick=True, progress=False)
    assert [damage["shard"] for damage in report.damaged] == [shard.stem]
    assert "gone" in report.damaged[0]["problem"]


def test_the_values_of_a_repaired_store_are_those_of_before(whole: Path, path: Path) -> None:
    for shard in sorted((path / "shards").rglob("*.h5"))[:2]:
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    report = fc.repair(path, progress=False)
    assert len(report.lost) == 2
    finish(path)
    assert vectors(path) == vectors(whole)


@pytest.mark.parametrize("what", ["another shape", "another space's folder", "a value that is not finite"])
def test_an_orphan_that_would_spoil_what_is_there_is_set_aside(path: Path, tmp_path: Path, what: str) -> None:
    """Shards that are whole by their own hashes, as a store from elsewhere may carry them."""
    before = scenarios.contents(path)
    other = tmp_path / "other.fcache"
    with StoreWriter(other) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        vectors = values(4, 9 if what == "another shape" else 8, 2000)
        vectors[2, 3] = np.nan if what == "a value that is not finite" else 1
        space.append(keys(4, 2000), {("pooled", "0"): vectors})
    (shard,) = (other / "shards").rglob("*.h5")
    folder = "0" * 16 if what == "another space's folder" else shard.parent.name
    (path / "shards" / folder).mkdir(exist_ok=True)
    shutil.copy(shard, path / "shards" / folder / shard.name)
    report = fc.repair(path, progress=False)
    assert report.adopted == 0
    assert [Path(entry["file"]).name.endswith(shard.name) for entry in report.set_aside] == [True]
    assert scenarios.contents(path) == before
    assert fc.verify(path, progress=False).ok
