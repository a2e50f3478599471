"""Stores of format 1: read without a change, and made format 2 by the first writer, whole at every moment."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import pytest
from PIL import Image
from typer.testing import CliRunner

import featcache as fc
from featcache.cli.app import app
from featcache.core import failpoints
from featcache.core.errors import DamagedStoreError, StoreBusyError
from featcache.store import FeatureStore, StoreWriter, schema
from featcache.store.catalogue import Catalogue, row_digest
from featcache.store.journal import writer_lock
from featcache.store.shard import read_layout
from featcache.store.sources import save_holdout
from tests.store import scenarios
from tests.store.making import fill

if TYPE_CHECKING:
    from types import FrameType

OLD = Path(__file__).parents[1] / "old" / "data" / "store.fcache"
POINTS = [point for point in failpoints.POINTS if point.startswith("migrate")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of format 1 in which two sources hold one image on different sides."""
    path = shutil.copytree(OLD, tmp_path / "s.fcache")
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        sha256s = [row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM items ORDER BY sha256 LIMIT 3")]
        sides = [(1, sha256s[0], "train"), (2, sha256s[0], "test"), (1, sha256s[1], "train"), (1, sha256s[2], "test")]
        connection.executemany("INSERT INTO holdout VALUES (?, ?, ?)", sides)
        digest = sum(row_digest(*side) for side in sides) % (1 << 256)
        connection.execute("UPDATE digests SET value = ? WHERE name = 'holdout'", (digest.to_bytes(32, "big"),))
    connection.close()
    shutil.copy(path / "catalog.sqlite", path / "catalog.backup.sqlite")
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def answers(path: Path) -> dict[str, object]:
    store = FeatureStore.open(path)
    status = store.status()
    return {
        "vectors": {
            (space.fingerprint, layer): len(store.vectors(layer, space=space.fingerprint))
            for space in store.spaces
            for layer in space.layers
        },
        "items": [store.items(source=name) for name in store.sources()],
        "quarantine": status["quarantine"],
        "sides": store.sides(),
        "shards": sorted(p.name for p in (path / "shards").rglob("*.h5")),
    }


def version(path: Path) -> int:
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.close()
    return found


def test_readers_write_nothing_and_see_format_2(store: Path) -> None:
    before = files(store)
    opened = FeatureStore.open(store)
    assert sorted(opened.sides().values()) == [("test", "recorded"), ("test", "recorded"), ("train", "recorded")]
    for name in opened.sources():
        assert (opened.pending(name), opened.requests(name), opened.source_settings(name)) == ([], {}, {})
    assert opened.settings() == {}
    assert fc.verify(store, progress=False).ok
    assert opened.status()["items"] > 0
    assert files(store) == before
    assert version(store) == 1


def test_migrated_tables_are_those_of_a_new_store(store: Path, tmp_path: Path) -> None:
    before = answers(store)
    scenarios.migrate(store)
    assert version(store) == schema.STORE_FORMAT
    assert answers(store) == before
    assert fc.verify(store, progress=False).ok
    assert Catalogue(store / "catalog.backup.sqlite").format == 1
    fill(store, 20)
    assert fc.verify(store, progress=False).ok
    assert Catalogue(store / "catalog.backup.sqlite").format == schema.STORE_FORMAT


def test_the_former_catalogue_is_kept_until_gc(store: Path) -> None:
    before = answers(store)
    former = store / "catalog.format-1.sqlite"
    assert fc.gc(store, apply=True, force=True).former is None  # the run that makes it leaves it
    fill(store, 20)
    kept = Catalogue(former)
    assert (kept.format, kept.problems()) == (1, [])
    kept.close()
    changed = shutil.copytree(store, store.with_name("changed.fcache"))
    shutil.copy(former, store / "catalog.sqlite")
    assert answers(store) | {"shards": []} == before | {"shards": []}
    assert CliRunner().invoke(app, ["gc", str(changed)]).output.count("goes with --yes") == 1
    assert (changed / former.name).exists()
    report = fc.gc(changed, apply=True, force=True)
    assert report.former == str(changed / former.name)
    assert not (changed / former.name).exists()
    assert fc.gc(changed).former is None


@pytest.mark.parametrize("verb", ["gc", "compact", "repair", "extract", "train"])
def test_whoever_migrates_says_so_once(store: Path, tmp_path: Path, verb: str) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(photos / "ab"[number % 2] / f"{number}.png")
    if verb == "train":
        words = ["train", str(store), "-o", str(tmp_path / "h.fch"), "--head", "centroid"]
        words += ["--source", "faces", "--space", "dlib:face_resnet", "--layers", "mirrored"]
    elif verb == "extract":
        words = ["extract", str(photos), "-o", str(store), "--backbone", "bundled:efficientnet_lite0", "--limit", "2"]
    else:
        words = [verb, str(store)]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert version(store) == schema.STORE_FORMAT
    assert answer.output.count("earlier versions of featcache cannot open") == 1
    again = CliRunner().invoke(app, [*words, "--force"] if verb == "train" else words)
    assert again.exit_code == 0, again.output
    assert "earlier versions" not in again.output


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step(store: Path, point: str) -> None:
    before = answers(store)
    assert scenarios.run("migrate", store, point) == -signal.SIGKILL
    assert version(store) == (schema.STORE_FORMAT if point == "migrate: committed" else 1)
    assert Catalogue(store / "catalog.backup.sqlite").problems() == []
    assert answers(store) == before
    assert fc.verify(store, progress=False).ok
    assert scenarios.run("migrate", store) == 0
    assert version(store) == schema.STORE_FORMAT
    assert answers(store) == before
    assert [p for p in (store / "tmp").iterdir() if p.is_dir()] == []


def test_readers_go_on_while_the_store_is_migrated(store: Path) -> None:
    opened = FeatureStore.open(store)
    before = opened.sides()
    problems: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert opened.sides() == before
                assert opened.status()["items"] > 0
                assert opened.catalogue.problems() == []
        except BaseException as error:  # told in the test's own thread
            problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        scenarios.migrate(store)
        fill(store, 20)
    finally:
        done.set()
        thread.join()
    assert problems == []
    assert opened.pending("images") == []
    save_holdout(store, 0, {bytes(32): ("test", "topped up")})
    assert bytes(32) in opened.sides()  # the views are gone: it is the new table that is read
    assert opened.catalogue.format == schema.STORE_FORMAT


def test_a_migration_does_not_come_between_the_format_and_the_tables(store: Path) -> None:
    migration = threading.Thread(target=scenarios.migrate, args=(store,))

    def migrate_now(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code is schema.version_of.__code__ and migration.ident is None:
            migration.start()
            migration.join(3)  # it has committed by then, unless it has to wait for this reader

    sys.setprofile(migrate_now)
    try:
        opened = FeatureStore.open(store)
    finally:
        sys.setprofile(None)
        migration.join()
    assert version(store) == schema.STORE_FORMAT
    assert opened.status()["items"] > 0


def test_a_damaged_catalogue_is_not_migrated(store: Path) -> None:
    with sqlite3.connect(store / "catalog.sqlite") as connection:
        connection.execute("UPDATE items SET label = 'other' WHERE id = 1")
    connection.close()
    backup = (store / "catalog.backup.sqlite").read_bytes()
    with pytest.raises(DamagedStoreError, match="featcache repair"):
        scenarios.migrate(store)
    assert version(store) == 1
    assert (store / "catalog.backup.sqlite").read_bytes() == backup
    assert fc.repair(store, progress=False).catalogue == "taken from the backup"
    assert version(store) == schema.STORE_FORMAT
    assert fc.verify(store, progress=False).ok


def test_it_waits_for_writers_that_know_only_format_1(store: Path) -> None:
    folder = store / "tmp" / ("0" * 32)
    folder.mkdir(parents=True)
    lock = writer_lock(folder)
    with lock, pytest.raises(StoreBusyError):
        scenarios.migrate(store)
    assert version(store) == 1
    scenarios.migrate(store)
    assert version(store) == schema.STORE_FORMAT


@pytest.mark.parametrize("verb", ["gc", "compact", "repair", "export"])
def test_every_verb_works_on_both(store: Path, tmp_path: Path, verb: str) -> None:
    before = answers(store)
    words = {"gc": ["--yes", "--force"], "export": ["-o", str(tmp_path / "x.h5"), "--source", "pictures"]}.get(verb, [])
    if verb == "export":
        words += ["--space", FeatureStore.open(store).spaces[0].fingerprint]
    answer = CliRunner().invoke(app, [verb, str(store), *words])
    assert answer.exit_code == 0, answer.output
    assert version(store) == (1 if verb == "export" else schema.STORE_FORMAT)
    assert answers(store)["items"] == before["items"]
    assert fc.verify(store, progress=False).ok


@pytest.mark.parametrize(
    ("verb", "lost"),
    [
        *((verb, False) for verb in ("status", "verify", "repair", "compact", "gc", "extract", "export", "train")),
        ("repair", True),
    ],
)
def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path, verb: str, lost: bool) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    for name in ("catalog.sqlite", "catalog.backup.sqlite"):
        with sqlite3.connect(path / name) as connection:
            connection.execute("CREATE TABLE more (x)")
            connection.execute(f"PRAGMA user_version = {schema.STORE_FORMAT + 1}")
        connection.close()
    shutil.rmtree(path / "tmp")
    if lost:
        (path / "catalog.sqlite").unlink()
    before = files(path)
    words = {
        "extract": ["-o", str(path)],
        "export": ["-o", str(tmp_path / "x.h5")],
        "train": ["-o", str(tmp_path / "h")],
    }
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "a.png")
    first = tmp_path / "photos" if verb == "extract" else path
    answer = CliRunner().invoke(app, [verb, str(first), *words.get(verb, [])])
    assert answer.exit_code != 0
    assert "pgrade featcache" in " ".join(answer.output.split()), answer.output
    assert files(path) == before
    assert not (path / "tmp").exists()


# Shards.


def test_shards_have_no_heap_and_few_attributes(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10, layers={"pooled": 8, "blocks.1:mean": 3})
    (shard,) = (path / "shards").rglob("*.h5")
    assert b"GCOL" not in shard.read_bytes()
    with h5py.File(shard) as file:
        nodes: list[h5py.HLObject] = [file]
        file.visititems(lambda _, node: nodes.append(node))
        assert max(len(node.attrs) for node in nodes) <= 8
        assert file.attrs["featcache_shard"] == 2
        text = file.attrs["name"]
        assert (text.decode() if isinstance(text, bytes) else text) == shard.stem
    layout = read_layout(shard)
    store = FeatureStore.open(path)
    ((offset, sha256),) = store.catalogue.query("ih", "SELECT keys_offset, keys_sha256 FROM shards")
    assert (offset, sha256.hex()) == (layout.sha256.offset, layout.sha256.sha256)
    known = store.catalogue.query(
        "tih", "SELECT k.layer, c.offset, c.sha256 FROM shard_columns c JOIN columns k ON k.id = c.column_id"
    )
    found = [(layer, extent.offset, bytes.fromhex(extent.sha256)) for (layer, _), extent in layout.vectors.items()]
    assert sorted(known) == sorted(found)


def test_old_shards_are_read_and_their_place_is_noted_when_rewritten(store: Path) -> None:
    scenarios.migrate(store)
    catalogue = Catalogue(store / "catalog.sqlite")
    assert catalogue.query("i", "SELECT count(*) FROM shards WHERE layout IS NOT NULL") == [(0,)]
    before = answers(store)["vectors"]
    for name in ("catalog.sqlite", "catalog.backup.sqlite"):
        (store / name).unlink()
    fc.repair(store, progress=False)  # adopts them all
    catalogue = Catalogue(store / "catalog.sqlite")
    assert catalogue.query("i", "SELECT count(*) FROM shards WHERE layout IS NULL") == [(0,)]
    assert answers(store)["vectors"] == before
    assert fc.verify(store, progress=False).ok


def test_verify_compares_the_layout_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 10)
    with StoreWriter(path) as writer, writer.catalogue.transaction() as connection:
        connection.execute("UPDATE shards SET layout = ?", (bytes(32),))
    report = fc.verify(path, progress=False)
    assert [d["problem"] for d in report.damaged] == ["its data do not lie where the catalogue says"]
