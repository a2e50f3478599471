"""A file's bytes are read once, and never from what is no regular file or was changed meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from featcache.core.errors import UnusableImageError
from featcache.images import entry
from featcache.images.entry import FileStat, read_image_file


def test_bytes_and_state(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc" * 1000)
    assert read_image_file(path) == (b"abc" * 1000, FileStat.of(path.stat()))
    first = read_image_file(path)[1]
    path.write_bytes(b"abd" * 1000)
    os.utime(path, ns=(0, first.mtime_ns + 10**9))
    assert read_image_file(path)[1] != first


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableImageError, match="cannot be read: No such file"):
        read_image_file(tmp_path / "none.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnusableImageError, match="empty"):
        read_image_file(tmp_path / "empty.jpg")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    with pytest.raises(UnusableImageError, match="cannot be read"):
        read_image_file(tmp_path / "round.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(UnusableImageError, match="Permission denied"):
        read_image_file(path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open descriptors cannot be counted")
def test_a_folder_is_refused_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(UnusableImageError, match="directory"):
            read_image_file(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    errors: list[str] = []

    def read() -> None:
        try:
            read_image_file(tmp_path / "pipe.jpg")
        except UnusableImageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert errors == ["it is not a regular file"]


def test_a_device_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or really(path, *rest, **more))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "terminal.jpg").symlink_to("/dev/tty")
    for name in ("pipe.jpg", "zero.jpg", "terminal.jpg"):
        with pytest.raises(UnusableImageError, match="not a regular file"):
            read_image_file(tmp_path / name)
    assert opened == []
    (tmp_path / "a.jpg").write_bytes(b"abc")
    read_image_file(tmp_path / "a.jpg")
    assert opened == [str(tmp_path / "a.jpg")]


def test_a_pipe_put_in_a_files_place_after_it_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    stat = os.stat

    def look_then_change(where: Path) -> os.stat_result:
        monkeypatch.setattr(os, "stat", stat)
        state = stat(where)
        path.unlink()
        os.mkfifo(path)
        return state

    monkeypatch.setattr(os, "stat", look_then_change)
    with pytest.raises(UnusableImageError, match="not a regular file"):
        read_image_file(path)


def test_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "LIMIT_BYTES", 3 << 20)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\0" * (3 << 20))
    assert len(read_image_file(path)[0]) == 3 << 20
    path.write_bytes(b"\0" * ((3 << 20) + 1))
    with pytest.raises(UnusableImageError, match="it has 3 MiB, more than 3"):
        read_image_file(path)


@pytest.mark.parametrize("content", [b"longer than before", b"ab", b"", b"xyz"])
def test_changed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 0))
    fstat = os.fstat

    def look_then_change(handle: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        state = fstat(handle)
        path.write_bytes(content)
        return state

    monkeypatch.setattr(os, "fstat", look_then_change)
    with pytest.raises(UnusableImageError, match="changed while it was read"):
        read_image_file(path)
    path.write_bytes(b"whole")
    assert read_image_file(path)[0] == b"whole"
