"""A row exists if and only if its transaction committed; reading writes nothing; nothing stays in tmp/."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from featcache.store import FeatureStore, StoreWriter
from featcache.store.folder import has_catalogue
from featcache.store.shard import read_layout
from tests.store.making import fill, keys, recipe, values

ROOT = Path(__file__).parents[2]


def files(path: Path) -> dict[str, tuple[int, str]]:
    return {
        str(p.relative_to(path)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in path.rglob("*")
        if p.is_file()
    }


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20)
    before = files(path)
    store = FeatureStore.open(path)
    store.arrays()
    store.status()
    store.verify()
    store.vectors()[[1, 2]]
    assert files(path) == before


def test_a_read_only_store_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 5)
    for p in [path, *path.rglob("*")]:
        p.chmod(0o555 if p.is_dir() else 0o444)
    try:
        np.testing.assert_array_equal(FeatureStore.open(path).arrays()[0], values(5))
    finally:
        for p in [path, *path.rglob("*")]:
            p.chmod(0o755)


def test_what_is_not_sealed_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    writer = StoreWriter(path)
    space = writer.space(recipe())
    space.declare("pooled", "0", 0)
    space.append(keys(4), {("pooled", "0"): values(4)})
    assert FeatureStore.open(path).space().layers == {}
    space.seal()
    assert len(FeatureStore.open(path).vectors()) == 4
    writer.close()
    assert [p.name for p in (path / "tmp").iterdir() if p.is_dir()] == []


def interrupted_run(path: Path) -> None:
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(4), {("pooled", "0"): values(4)})
        raise RuntimeError("on the way")


def test_leaving_with_an_exception_seals_what_is_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on the way"):
        interrupted_run(tmp_path / "s.fcache")
    store = FeatureStore.open(tmp_path / "s.fcache")
    np.testing.assert_array_equal(store.gather(keys(4), ["pooled"])[0], values(4))


def test_size_and_time_seal(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "size.fcache", seal_bytes=values(6).nbytes) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(5), {("pooled", "0"): values(5)})
        assert FeatureStore.open(tmp_path / "size.fcache").space().layers == {}
        space.append(keys(1, 5), {("pooled", "0"): values(1, start=5)})
        assert len(FeatureStore.open(tmp_path / "size.fcache").vectors()) == 6
    with StoreWriter(tmp_path / "views.fcache", seal_bytes=values(6).nbytes) as writer:
        space = writer.space(recipe())
        for view in ("0", "other"):
            space.declare("pooled", view, 0)
            assert FeatureStore.open(tmp_path / "views.fcache").space().layers == {}
            space.append(keys(3), {("pooled", view): values(3)})
        # What waits counts together, or each view more would take as much memory again.
        assert FeatureStore.open(tmp_path / "views.fcache").space().layers["pooled"].rows == 6
    with StoreWriter(tmp_path / "time.fcache", seal_seconds=0) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(1), {("pooled", "0"): values(1)})
        assert len(FeatureStore.open(tmp_path / "time.fcache").vectors()) == 1


def test_the_backup_holds_what_the_catalogue_holds(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    fill(path, 20)
    (path / "catalog.sqlite").unlink()
    (path / "catalog.backup.sqlite").rename(path / "catalog.sqlite")
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.arrays()[0], values(20))
    assert store.verify().ok


def killed_between(path: Path, where: str) -> None:
    """Let another process append ten rows and die by SIGKILL just before or after the rename."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from featcache.store import StoreWriter
        from featcache.store import writer as module
        from tests.store.making import keys, recipe, values
        writer = StoreWriter(Path({str(path)!r}))
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        rename = os.rename
        def stop(a, b):
            if {where!r} == "after":
                rename(a, b)
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename = stop
        space.append(keys(10), {{("pooled", "0"): values(10)}})
        space.seal()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_shard_renamed_but_not_committed_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    killed_between(path, "after")
    assert FeatureStore.open(path).spaces[0].layers == {}
    StoreWriter(path).close()
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.gather(keys(10), ["pooled"])[0], values(10))
    assert store.verify().ok
    assert [p.name for p in (path / "tmp").iterdir() if p.is_dir()] == []


def test_an_orphan_that_was_altered_is_not_adopted(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    killed_between(path, "after")
    (shard,) = (path / "shards").rglob("*.h5")
    data = bytearray(shard.read_bytes())
    # A bit of a vector: the file is sound as HDF5, and only its hash tells.
    data[read_layout(shard).vectors["pooled", "0"].offset] ^= 1
    shard.write_bytes(data)
    assert read_layout(shard).rows == 10
    StoreWriter(path).close()
    assert FeatureStore.open(path).spaces[0].layers == {}


def test_an_orphan_in_the_folder_of_another_space_is_not_adopted(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    killed_between(path, "after")
    (shard,) = (path / "shards").rglob("*.h5")
    (journal,) = (path / "tmp").rglob("journal")
    moved = path / "shards" / ("0" * 16)
    moved.mkdir()
    shard.rename(moved / shard.name)
    journal.write_text(journal.read_text().replace(shard.parent.name, moved.name))
    StoreWriter(path).close()
    assert FeatureStore.open(path).spaces[0].layers == {}


def test_work_killed_before_the_rename_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    killed_between(path, "before")
    assert list((path / "tmp").rglob("*.h5"))
    fill(path, 10)
    assert not list((path / "tmp").rglob("*.h5"))
    np.testing.assert_array_equal(FeatureStore.open(path).arrays()[0], values(10))


def test_the_folder_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    code = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from featcache.store import StoreWriter
        from tests.store.making import keys, recipe, values
        writer = StoreWriter(Path({str(path)!r}))
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(5), {{("pooled", "0"): values(5)}})
        print("ready", flush=True)
        sys.stdin.readline()
        writer.close()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        fill(path, 10, start=3)
        assert len([p for p in (path / "tmp").iterdir() if p.is_dir()]) == 1
        other.communicate("\n", timeout=60)
    assert other.returncode == 0
    store = FeatureStore.open(path)
    assert len(store.vectors()) == 13
    assert store.verify().ok


@pytest.mark.slow
def test_several_writers_at_once_make_one_union(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tests.store.making import fill
        fill(Path({str(path)!r}), 60, start=int(sys.argv[1]), shard=5, source="s" + sys.argv[1])
    """
    running = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(start)]) for start in (0, 20, 40)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.gather(keys(100), ["pooled"])[0], values(100))
    assert len(store.vectors()) == 100
    assert store.verify().ok


def test_a_kill_at_any_moment_loses_no_committed_row(tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tests.store.making import fill
        fill(Path({str(path)!r}), 400, shard=2)
    """
    committed = 0
    for pause in (0.05, 0.15, 0.3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        # Before it has a catalogue with something in it there is no store, and nothing to lose.
        while not has_catalogue(path):
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        store = FeatureStore.open(path)
        assert store.verify().ok
        rows = len(store.vectors()) if store.spaces and store.spaces[0].layers else 0
        assert rows >= committed
        committed = rows
    fill(path, 400, shard=50)
    np.testing.assert_array_equal(FeatureStore.open(path).arrays()[0], values(400))
