"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.core.files import absolute, read_at, written_whole


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, steps = tmp_path / "a.txt", []
    target.write_text("old")
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append(("fsync", os.fstat(handle).st_size, target.read_text()))
        fsync(handle)

    def replaced(self: Path, other: Path) -> Path:
        steps.append(("replace", self.stat().st_size, target.read_text()))
        return replace(self, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with written_whole(target) as aside:
        assert aside.parent == tmp_path
        aside.write_text("new text")
    assert steps == [("fsync", 8, "old"), ("replace", 8, "old")]
    assert target.read_text() == "new text"
    assert list(tmp_path.iterdir()) == [target]


def test_an_absolute_path_leads_where_the_system_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "real" / "here").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for path in (
        "a.txt",
        "real/../a.txt",
        "link/a.txt",
        "link/../a.txt",
        "link/..",
        "..",
        ".",
        "none/../a.txt",
        "real/here/../a.txt",
    ):
        found = absolute(path)
        assert os.path.isabs(found)
        assert ".." not in Path(found).parts
        assert os.path.realpath(found) == os.path.realpath(path)
        assert absolute(found) == found
    assert absolute("link/a.txt") == f"{tmp_path}/link/a.txt"  # other links stay


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with written_whole(target) as aside:
            aside.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_at_a_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with (tmp_path / "a").open("rb") as file:
        assert read_at(file.fileno(), 3, 4) == b"456"
        assert read_at(file.fileno(), 9, 8) == b"89"
