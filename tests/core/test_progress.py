"""What progress says, and where."""

from __future__ import annotations

import io
import logging
import threading

import pytest

from featcache.core.progress import Bar, Lines, Silent, choose, counted, phase_if_slow


def report(shown, total=40):
    shown.start("extract", total, "images")
    for _ in range(40):
        shown.advance()
    shown.note("one line")
    shown.finish()


def test_true_is_lines_where_there_is_no_terminal(capsys):
    with choose(True) as shown:
        report(shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "extract: 40 images …\none line\n"


@pytest.mark.parametrize("choice", [None, False])
def test_nothing_is_said_unasked_where_there_is_no_terminal(choice, capsys):
    with choose(choice) as shown:
        report(shown)
    assert capsys.readouterr() == ("", "")


def test_an_object_is_used_as_it_is():
    mine = Silent()
    with choose(mine) as shown:
        assert shown is mine


def test_lines_tell_the_pace_and_the_time_left():
    said = io.StringIO()
    lines = Lines(said, every=0)
    lines.start("extract", 40, "images")
    lines.advance(10)
    lines.advance(10)
    assert "extract: 20 of 40 images, " in said.getvalue()
    assert "images/s, " in said.getvalue()
    assert said.getvalue().endswith(" left\n")


def test_what_is_done_in_no_time_is_no_phase():
    said = io.StringIO()
    with phase_if_slow(Lines(said), "list", "images", seconds=3600):
        pass
    with pytest.raises(KeyError), phase_if_slow(Lines(said), "list", "images", seconds=3600):
        raise KeyError
    assert said.getvalue() == ""


def test_a_phase_without_a_count_is_told():
    told = threading.Event()

    class Told(Lines):
        def start(self, *phase):
            super().start(*phase)
            told.set()

    said = io.StringIO()
    with phase_if_slow(Told(said), "list", "images", seconds=0):
        assert told.wait(30)
    assert said.getvalue() == "list …\n"


def test_loading_a_network_is_no_pace():
    said = io.StringIO()
    lines = Lines(said, every=0)
    for _ in range(2):  # the second phase begins anew
        lines.start("extract", 40, "images")
        lines.advance(10)
        assert said.getvalue().endswith("extract: 10 of 40 images\n")
        lines.advance(1)
        assert said.getvalue().endswith(" left\n")


def test_one_thing_is_singular():
    said = io.StringIO()
    Lines(said).start("predict", 1, "images")
    assert said.getvalue() == "predict: 1 image …\n"
    assert counted(2000, "images") == "2,000 images"
    assert counted(0, "images") == "0 images"


@pytest.mark.parametrize("total", [40, None])
def test_a_bar_writes_to_stderr_and_goes_away(total, capsys):
    bar = Bar()
    report(bar, total)
    bar.start("train", None, "passes")
    bar.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert "one line" in err


def test_the_bar_stops_when_the_work_fails(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(RuntimeError), choose(None) as shown:  # noqa: PT012 - the block is the point
        shown.start("extract", 40, "images")
        raise RuntimeError
    assert isinstance(shown, Bar)
    assert shown._task is None


@pytest.mark.parametrize("progress", [False, True])
def test_notes_are_logged_whatever_is_shown(progress: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "featcache"), choose(progress) as shown:
        shown.start("decode", 3, "images")
        shown.note("Warning: 1 image could not be used.")
        shown.note("2 images are new.")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Warning: 1 image could not be used."),
        ("INFO", "2 images are new."),
    ]
