"""`advise` on images that are in no store yet."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.cli import main

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_images_are_extracted_into_the_store_that_is_named(
    tmp_path: Path, draw_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos, store = draw_images(tmp_path / "photos", each=8), tmp_path / "p.fcache"
    assert main(["advise", str(photos), "--budget", "5s"]) == 2
    said = capsys.readouterr().err
    assert "holds no catalog.sqlite" in said
    assert "-o photos.fcache" in said
    assert main(["advise", str(tmp_path / "nothing"), "--budget", "5s"]) == 2
    assert "-o nothing" not in capsys.readouterr().err.replace(f"-o {tmp_path / 'nothing'}", "")

    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = ((f"{path.parent.name}/{path.name}", path.parent.name[:1]) for path in sorted(photos.rglob("*.jpg")))
        csv.writer(file).writerows([("path", "label"), *rows])
    words = ["--budget", "5s", "--labels", str(tmp_path / "labels.csv"), "--json"]
    assert main(["advise", str(photos), "-o", str(store), *words]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice["classes"] == ["c", "d"]
    assert set(fc.open(store).spaces[0].layers) == {f"blocks.{i}:mean_std" for i in range(7)} | {"pooled"}
    assert {item.label for item in fc.open(store).items()} == {"cats", "dogs"}  # the file corrects for the advice alone
    # The command that is printed runs.
    command = shlex.split(advice["command"].replace("HEAD.fch", str(tmp_path / "h.fch")))
    assert command[0] == "featcache"
    assert main(command[1:]) == 0
    assert fc.load(tmp_path / "h.fch").classes == ("c", "d")
