"""`check_live` on aligned faces: the same faces, the pixels of the space's own recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import RecipeMismatchError, UsageError
from tests.faces.drawing import draw_face

pytestmark = pytest.mark.faces


def test_aligned_faces_are_compared_with_their_own_pixels(tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    (tmp_path / "people" / "ann").mkdir(parents=True)
    for number in range(3):
        draw_face(150 + 20 * number).save(tmp_path / "people" / "ann" / f"{number}.png")
    base = tiny_backbone()
    made = fc.faces.extract(tmp_path / "people", tmp_path / "s.fcache", backbone=base, progress=False)
    aligned = fc.faces.aligned_backbone(tmp_path / "s.fcache", made.space, backbone=base)
    report = fc.check_live(tmp_path / "s.fcache", space=made.space, backbone=aligned, progress=False)
    assert report.ok
    assert (report.compared, report.space, report.layers) == (3, made.space, ["pooled", "mirrored"])
    assert report.reference == "its recipe's pixels, eager torch, float32"
    assert report.relative_error_largest is not None
    assert report.relative_error_largest <= 1e-4
    with pytest.raises(UsageError, match="holds detections"):
        fc.faces.aligned_backbone(tmp_path / "s.fcache", made.detection, backbone=base)
    fc.extract(tmp_path / "people", tmp_path / "t.fcache", backbone=base, progress=False)
    with pytest.raises(UsageError, match="whole images"):
        fc.faces.aligned_backbone(tmp_path / "t.fcache", backbone=base)
    with pytest.raises(RecipeMismatchError, match="aligned faces"):
        fc.check_live(tmp_path / "s.fcache", space=made.space, backbone=base, progress=False)
    other = fc.faces.aligned_backbone(tmp_path / "s.fcache", made.space, backbone=tiny_backbone(1))
    with pytest.raises(RecipeMismatchError, match="cannot be recomputed here: backbone"):
        fc.check_live(tmp_path / "s.fcache", space=made.space, backbone=other, progress=False)


def test_the_command_finds_what_made_aligned_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dlib")
    (tmp_path / "people" / "ann").mkdir(parents=True)
    draw_face(150).save(tmp_path / "people" / "ann" / "0.png")
    store = tmp_path / "s.fcache"
    made = fc.faces.extract(tmp_path / "people", store, progress=False)
    assert main(["check-live", str(store), "--space", made.space, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] == 1
    assert main(["check-live", str(store), "--space", made.detection]) == 2
    assert "holds detections" in capsys.readouterr().err
