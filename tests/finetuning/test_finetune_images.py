"""What a whole-network training says of images that changed, are gone or are of no use to it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import (
    FeatcacheError,
    MissingVectorsError,
    RecipeMismatchError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.store.writer import StoreWriter
from tests.finetuning.problems import Heard
from tests.finetuning.stores import TRANSFORM, colour_blind, draw_hues, extracted

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

pytestmark = pytest.mark.slow
SHORT = Schedule(epochs=1, lr=1e-3, batch_size=16)


def run(store: Path, **options: Any) -> Bundle:
    return finetune(store, **({"config": SHORT, "backbone": colour_blind(), "progress": False} | options))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A store of this test's own, of 16 images in ``photos`` beside it."""
    return extracted(draw_hues(tmp_path / "photos", each=8), tmp_path / "s.fcache", colour_blind())


VERBS: dict[str, dict[str, Any]] = {
    "full": {},
    "scratch": {"init": "scratch", "arch": "scratch:small_cnn"},
    "partial": {"from_layer": "body.0", "views": 1},
    "new": {"from_layer": "body.0", "init": "new", "views": 1},
}


@pytest.mark.parametrize("verb", VERBS)
def test_images_that_are_gone_or_changed_are_told_and_passed_over(own: Path, tmp_path: Path, verb: str) -> None:
    options = dict(VERBS[verb])
    if verb == "scratch":
        options["backbone"] = None
    (tmp_path / "photos" / "red" / "03.png").unlink()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "photos" / "green" / "05.png")
    heard = Heard()
    bundle = run(own, **options, progress=heard)
    (told,) = [note for note in heard.notes if "passed over" in note]
    assert told.startswith(
        "Warning: of 16 images 1 cannot be read where the store knows them (first: red/03.png) and 1"
    )
    assert "have changed since (first: green/05.png)" in told
    assert bundle.fitted_on + bundle.report["score"]["n"] <= 14


@pytest.mark.parametrize("verb", VERBS)
def test_a_class_that_is_gone_is_named(own: Path, tmp_path: Path, verb: str) -> None:
    shutil.rmtree(tmp_path / "photos" / "red")
    heard = Heard()
    with pytest.raises(FeatcacheError):  # of one class alone nothing is learned
        run(own, **VERBS[verb] | ({"backbone": None} if verb == "scratch" else {}), progress=heard)
    assert any("No image is left of 'red'." in note for note in heard.notes)


@pytest.mark.parametrize("verb", VERBS)
def test_where_all_images_are_gone(own: Path, tmp_path: Path, verb: str) -> None:
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(MissingVectorsError, match=r"Of 16 images 16 cannot be read.*There is nothing at .*--moved"):
        run(own, **VERBS[verb] | ({"backbone": None} if verb == "scratch" else {}))


def of_verb(verb: str) -> dict[str, Any]:
    return VERBS[verb] | ({"backbone": None} if verb == "scratch" else {})


@pytest.mark.parametrize("verb", VERBS)
def test_how_long_it_takes_is_told_after_a_few_steps(own: Path, verb: str) -> None:
    heard = Heard()
    # It would be long, but ends at once, as nothing gets better.
    run(own, **of_verb(verb), config=replace(SHORT, epochs=100_000, lr=1e-12, patience=5), progress=heard)
    (told,) = [note for note in heard.notes if note.startswith("An epoch takes about ")]
    assert "the training at most " in told


@pytest.mark.parametrize("verb", VERBS)
def test_a_loss_that_is_not_finite_is_told_with_what_is_kept(own: Path, verb: str) -> None:
    heard = Heard()
    try:
        run(own, **of_verb(verb), config=replace(SHORT, epochs=4, lr=1e30), progress=heard)
    except TrainingError as error:  # in the first epoch; later it is a warning
        heard.notes.append(f"Warning: {error}")
    assert any(
        re.match(r"Warning: The .* is (nan|inf) in epoch .* The network has the weights of ", note)
        for note in heard.notes
    )


def test_one_in_quarantine_is_passed_over(own: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "red" / "99.png").write_bytes(b"no image")
    extracted(tmp_path / "photos", own, colour_blind())
    bundle = run(own)
    report = fc.evaluate(bundle, own, backbone=colour_blind(), progress=False)
    assert report.n == bundle.report["score"]["n"]
    assert bundle.fitted_on + report.n == 16
    assert report.without_vectors == 0


def test_one_that_another_network_refused_is_seen(own: Path, tmp_path: Path) -> None:
    """A second space in which every image is in quarantine, since its network gives no finite values."""
    module = tiny_backbone().module
    with torch.no_grad():
        module.get_parameter("stem.0.bias").fill_(torch.nan)
    broken = Backbone.from_module(module, transform=TRANSFORM, name="broken", axes="NCHW")
    with pytest.raises(FeatcacheError):
        extracted(tmp_path / "photos", own, broken)
    assert len(fc.open(own).quarantine()) == 16
    space = fc.open(own).space(colour_blind().recipe.fingerprint).fingerprint
    bundle = run(own, space=space)
    assert bundle.report["score"]["n"] == 3
    assert fc.evaluate(bundle, own, backbone=colour_blind(), progress=False).n == 3
    tuned = finetune(own, "body.0", views=1, space=space, config=SHORT, backbone=colour_blind(), progress=False)
    assert tuned.fitted_on == 13


def test_aligned_faces_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.fcache") as writer:
        writer.space(replace(tiny_backbone().recipe, detection="a" * 64))
    with pytest.raises(UsageError, match="aligned faces"):
        run(tmp_path / "s.fcache", backbone=tiny_backbone())
    with pytest.raises(RecipeMismatchError, match="aligned faces"):
        finetune(tmp_path / "s.fcache", "body.0", backbone=tiny_backbone(), progress=False)


def test_labels_of_a_file_that_names_no_image(own: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\nred/00.png,red\nred/xx.png,red\n")
    with pytest.raises(UsageError, match=r" are not images of source 'photos' \(first: red/xx\.png\)"):
        run(own, labels=tmp_path / "labels.csv")
    bundle = run(own)
    with pytest.raises(UsageError, match=r"red/xx\.png"):
        fc.evaluate(bundle, own, labels=tmp_path / "labels.csv", backbone=colour_blind(), progress=False)
    with pytest.raises(UsageError, match=r"red/xx\.png"):
        finetune(own, "body.0", labels=tmp_path / "labels.csv", backbone=colour_blind(), progress=False)


def test_what_cannot_be_finetuned(own: Path, tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"--init new needs --from LAYER.*Valid are: "):
        run(own, init="new")
    with pytest.raises(UnknownNameError, match="init"):
        run(own, init="old")
    with pytest.raises(UsageError, match="--arch scratch:small_cnn does not go with --init pretrained"):
        run(own, arch="scratch:small_cnn")
    with pytest.raises(UsageError, match=r"Only the code of .* knows.*--arch"):
        run(own, init="scratch")
    with pytest.raises(TrainingError, match="Try a lower learning rate"):
        run(own, config=Schedule(epochs=2, lr=1e30, batch_size=8))

    def transform(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((32, 32)), np.float32).transpose(2, 0, 1)

    custom = Backbone.from_module(tiny_backbone().module, transform=transform, name="own", version="1", axes="NCHW")
    store = extracted(draw_images(tmp_path / "others"), tmp_path / "c.fcache", custom)
    with pytest.raises(UsageError, match="is a callable"):
        run(store, backbone=custom)
