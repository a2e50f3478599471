"""Names and labels reach a screen on one line, with nothing in them that acts on a terminal."""

from __future__ import annotations

import logging
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featcache as fc
from featcache.cli import main, output
from featcache.core.errors import UsageError
from featcache.core.html import html_table
from featcache.core.progress import Lines
from featcache.core.visible import visible
from featcache.metrics.plots import draw_confusion

NASTY = "a\x1b[2J\x07\u202eb\u2066c\u200f\r\nd\x9b[red]e[/red]:dog:"
SHOWN = r"a\x1b[2J\x07\u202eb\u2066c\u200f\r\nd\x9b[red]e[/red]:dog:"


@given(st.text())
def test_nothing_acts_and_nothing_breaks_the_line(text):
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in shown)
    assert not any(unicodedata.bidirectional(sign) in ("RLE", "LRE", "RLO", "LRO", "PDF", "RLI") for sign in shown)


def test_all_that_prints_escapes(capsys, caplog, tmp_path):
    output.say(NASTY)
    output.table(["name"], [[NASTY], [[NASTY, "second"]]])
    with caplog.at_level(logging.INFO, "featcache"):
        Lines().note(NASTY)
    Lines().start(NASTY, 1, "images")
    said = capsys.readouterr()
    assert said.out.count(SHOWN) == 3
    assert said.err.count(SHOWN) == 2
    assert SHOWN in caplog.text
    assert str(UsageError(NASTY)) == SHOWN
    assert SHOWN in html_table(NASTY, {"n": 1})
    assert not {"\x1b", "\u202e", "\r", "\x9b"} & set(said.out + said.err)
    draw_confusion(np.eye(2, dtype=int), [NASTY, "\x1b$x$"], tmp_path / "c.png")


@pytest.mark.parametrize("verb", ["status", "train", "evaluate", "predict", "similar", "extract"])
def test_verbs_show_names_and_labels_escaped(verb, world, capsys):
    nasty = NASTY.replace("/", "")
    (world["photos/cats"]).rename(world["photos"] / nasty)
    store, head, photos = str(world["n.fcache"]), str(world["n.fch"]), str(world["photos"])
    (world["photos"] / nasty / "bad\x1b[31m.jpg").write_text("no image")
    assert main(["extract", photos, "-o", store, "--backbone", world.network]) == 0
    assert main(["train", store, "-o", head, "--head", "ridge"]) == 0
    image = str(world["photos"] / nasty / "cat-00.jpg")
    words = {
        "status": [store], "train": [store, "-o", head, "--head", "ridge"], "evaluate": [head, store],
        "predict": [head, photos], "similar": [store, image], "extract": [photos, "-o", store],
    }[verb]  # fmt: skip
    capsys.readouterr()
    assert main([verb, *words]) == 0
    said = capsys.readouterr()
    assert not {"\x1b", "\u202e", "\r", "\x9b", "\x07"} & set(said.out + said.err)
    if verb != "train":
        assert r"\x1b[" in said.out
    exact = {item.label for item in fc.open(store).items()}
    assert nasty in exact
