"""Damaged images are read or refused: nothing else is raised, nothing crashes, and memory stays bounded.

``scripts/bench/fuzz.py`` does the same with a hundred thousand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from featcache.images import decode
from tests.images import fuzzing
from tests.images.mutations import CHANGES, damaged, sound_images

ROOT = Path(__file__).parents[2]
IMAGES = 500


def test_what_becomes_of_500_damaged_images() -> None:
    """In one process, so that a crash fails this test and not the others."""
    command = [sys.executable, "-m", "tests.images.fuzzing", "0", str(IMAGES)]
    places = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=places, capture_output=True, text=True, timeout=120)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"image {len(lines)}: {done.stderr}"
    assert [int(number) for number, _, _ in lines] == list(range(IMAGES))
    wrong = [(number, became) for number, became, _ in lines if became.startswith(fuzzing.WRONG)]
    assert wrong == []
    assert int(lines[-1][2]) < fuzzing.MOST_MIB
    # The damage is neither too little nor too much to say anything.
    became = Counter(became for _, became, _ in lines)
    assert IMAGES / 5 < became[fuzzing.USABLE] < IMAGES * 4 / 5
    assert len(became) >= 4


def test_the_same_number_is_the_same_image() -> None:
    for number in range(50):
        assert damaged(number) == damaged(number)
    assert len({damaged(number)[1] for number in range(200)}) > 190


def test_every_format_meets_every_kind_of_damage() -> None:
    seen = {tuple(damaged(number)[0].split(": ")) for number in range(6000)}
    assert {name for name, _ in seen} == set(sound_images())
    assert {change for _, done in seen for change in done.split(", ")} == {change.__name__ for change in CHANGES}


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), SystemExit(1)])
def test_another_error_would_be_seen(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise error

    monkeypatch.setattr(fuzzing, "decode_rgb", fail)
    assert fuzzing.outcome(b"").startswith(fuzzing.WRONG)
    monkeypatch.setattr(fuzzing, "decode_rgb", decode.decode_rgb)
    assert fuzzing.outcome(b"") == "no image"
