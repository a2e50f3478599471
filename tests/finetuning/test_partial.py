"""The later layers train on cached activations; what comes of it is what torch computes of the images."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, TrainingError, UnknownNameError, UsageError
from featcache.finetuning.checkpoint import remove
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import activations_needed, finetune
from featcache.training.bundle import Bundle
from featcache.training.partial_model import PartialModel
from tests.finetuning.stores import blind_behind_stem, contents, draw_hues, extracted

pytestmark = pytest.mark.slow
SHORT = Schedule(epochs=9, lr=3e-2, batch_size=12, layer_decay=1.0)
BACKBONE = blind_behind_stem()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ``pooled`` of 60 images, and a broken one in quarantine; not to be written to.

    The frozen network cannot tell them apart, so that training is better than the beginning, which is kept else.
    """
    root = draw_hues(tmp_path_factory.mktemp("images") / "photos", names=("cats", "dogs"))
    (root / "cats" / "broken.jpg").write_bytes(b"no image")
    return extracted(root, root.parent / "kept.fcache", BACKBONE)


@pytest.fixture
def store(kept: Path, tmp_path: Path) -> Path:
    """A copy of the store of this test's own."""
    return shutil.copytree(kept, tmp_path / "s.fcache")


@pytest.fixture(scope="module")
def tuned(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A store after a training, and what came of it."""
    path = shutil.copytree(kept, tmp_path_factory.mktemp("tuned") / "s.fcache")
    return path, run(path)


def run(store: Path, layer: str = "body.0", **options: Any) -> Bundle:
    return finetune(store, layer, **({"backbone": BACKBONE, "views": 2, "config": SHORT, "progress": False} | options))


def bits(bundle: Bundle) -> dict[str, bytes]:
    predictor = bundle.predictor
    assert isinstance(predictor, PartialModel)
    return {name: t.tobytes() for name, t in predictor.tensors.items()} | {
        "weight": predictor.output.weight.tobytes(),
        "bias": predictor.output.bias.tobytes(),
    }


def pictures(store: Path) -> list[Path]:
    root = Path(fc.open(store).sources()["photos"])
    return sorted(path for path in root.rglob("*.png"))


def by_hand(bundle: Bundle, paths: list[Path]) -> torch.Tensor:
    """Probabilities by the network with the trained tensors in the places of its own."""
    predictor = bundle.predictor
    assert isinstance(predictor, PartialModel)
    module = copy.deepcopy(BACKBONE.module)
    module.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in predictor.tensors.items()}, strict=False)
    module.eval()
    pixels = np.stack([BACKBONE.prepare(BACKBONE.decode(path.read_bytes())) for path in paths])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        scores = module((x - 0.5) / 0.5) @ torch.from_numpy(predictor.output.weight).T + torch.from_numpy(
            predictor.output.bias
        )
    return scores.softmax(1)


def test_it_answers_as_the_whole_network_with_the_trained_tensors(tuned: tuple[Path, Bundle], tmp_path: Path) -> None:
    store, bundle = tuned
    paths = pictures(store)
    expected = by_hand(bundle, paths).numpy()
    answers = bundle.predict(paths)
    got = np.array([[dict(a.labels)[name] for name in bundle.classes] for a in answers])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    module = bundle.to_torch()
    x = torch.stack([module.transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        np.testing.assert_allclose(module(x).softmax(1).numpy(), expected, atol=1e-5)
    bundle.save(tmp_path / "a.fch")
    back = Bundle.load(tmp_path / "a.fch")
    assert bits(back) == bits(bundle)
    for name in ("head", "classes", "layers", "recipe", "fitted_on", "chosen", "created"):
        assert getattr(back, name) == getattr(bundle, name), name
    assert json.dumps(back.report) == json.dumps(bundle.report)
    assert [a.labels for a in back.predict(paths, backbone=BACKBONE)] == [a.labels for a in answers]
    assert back.to_torch(BACKBONE)(x).tolist() == module(x).tolist()
    with pytest.raises(RecipeMismatchError, match="module given in Python"):
        back.predict(paths)
    with pytest.raises(RecipeMismatchError, match="weights"):
        back.predict(paths, backbone=tiny_backbone(1))


def test_training_what_to_torch_gave_leaves_the_bundle_as_it_is(tuned: tuple[Path, Bundle]) -> None:
    _, bundle = tuned
    X = np.random.default_rng(0).normal(size=(4, bundle.width)).astype(np.float32)
    before = bundle.predict_proba_vectors(X)
    module = bundle.to_torch().train()
    optimizer = torch.optim.SGD(module.head.parameters(), lr=1.0)
    module.head(torch.from_numpy(X)).logsumexp(1).sum().backward()
    optimizer.step()
    after = bundle.predict_proba_vectors(X)
    assert before is not None
    assert after is not None
    assert after.tobytes() == before.tobytes()


def test_evaluate_reads_the_cached_maps(tuned: tuple[Path, Bundle], tmp_path: Path) -> None:
    store, bundle = tuned
    report = fc.evaluate(bundle, store, progress=False)
    opened = fc.open(store)
    X, y, items = opened.arrays(layers="stem:none")
    X = X.reshape(len(X), -1)
    learned = {row.tobytes() for row in bundle.trained_on}
    test = np.array([item.sha256 not in learned for item in items])
    assert report.n == test.sum() == bundle.report["score"]["n"]
    assert report.overlap == 0
    assert report.accuracy == (bundle.predict_vectors(X[test]) == y[test]).mean() == bundle.report["score"]["accuracy"]
    bundle.save(tmp_path / "a.fch")
    again = fc.evaluate(tmp_path / "a.fch", store, backbone=BACKBONE, progress=False)
    assert again.to_dict() == report.to_dict()


def test_the_store_is_as_before_but_for_the_layer(kept: Path, tuned: tuple[Path, Bundle]) -> None:
    store, _ = tuned
    assert contents(store) == contents(kept)
    assert [uri for uri, _ in contents(store)["quarantine"]] == ["cats/broken.jpg"]
    opened = fc.open(store)
    assert set(opened.spaces[0].layers) == {"pooled", "stem:none"}
    assert len(opened.view_names(layers="stem:none")) == 2
    assert fc.verify(store, progress=False).ok


def test_scored_on_the_hold_out_of_train(store: Path) -> None:
    plain = fc.train(store, progress=False)
    bundle = run(store)
    assert bundle.trained_on.tobytes() == plain.trained_on.tobytes()
    assert bundle.report["score"]["n"] == plain.report["score"]["n"]
    assert "by content" in bundle.report["score"]["protocol"]
    shared = {"head", "task", "classes", "n", "score", "chosen", "balanced_accuracy", "macro_f1", "log_loss"}
    shared |= {"views", "calibration", "near_duplicates", "fit_seconds", "seconds", "predicts", "unscored"}
    assert shared <= set(plain.report) & set(bundle.report)
    text = json.dumps(bundle.report)
    assert json.dumps(json.loads(text)) == text
    # What only decided when to stop taught nothing, where an epoch was kept and not the linear probe.
    unseen = bundle.report["validation"] if bundle.chosen.get("epoch") else 0
    assert bundle.report["n"] == bundle.fitted_on == plain.report["n"] - unseen


def test_a_second_training_computes_no_activations_and_gives_the_same_bits(
    tuned: tuple[Path, Bundle], tmp_path: Path
) -> None:
    store = shutil.copytree(tuned[0], tmp_path / "s.fcache")
    needed = activations_needed(store, "body.0", views=2, backbone=BACKBONE)
    assert (needed.images, needed.stored, needed.bytes) == (60, 120, 0)
    # With all in the store the images are not needed any more, also where one was unusable.
    assert bits(run(store)) == bits(tuned[1])
    # Views of another seed and more views of this one, in the store since, change nothing.
    other = run(store, seed=5)
    assert bits(other) != bits(tuned[1])
    run(store, views=3)
    assert bits(run(store)) == bits(tuned[1])
    assert run(store).report["views"] == tuned[1].report["views"]
    assert run(store, views=1).report["curve"] != tuned[1].report["curve"]


def test_the_store_keeps_a_record_of_the_training(tuned: tuple[Path, Bundle], tmp_path: Path) -> None:
    store, bundle = tuned
    with sqlite3.connect(f"file:{store / 'catalog.sqlite'}?mode=ro", uri=True) as connection:
        kept = connection.execute("SELECT record FROM runs WHERE verb = 'finetune'").fetchall()
    (record,) = (json.loads(text) for (text,) in kept)
    assert record["curve"] == bundle.report["curve"]
    assert len(record["curve"]["epochs"]) == SHORT.epochs
    assert record["schedule"] == SHORT.to_dict()
    assert record["score"] == json.loads(json.dumps(bundle.report["score"]))


def test_what_is_needed(store: Path) -> None:
    needed = activations_needed(store, "body.0", views=3, backbone=BACKBONE)
    assert needed.to_dict() | {"free": 0} == {
        "layer": "stem:none", "shape": (8, 16, 16), "dtype": "float16", "images": 60, "views": 3, "stored": 0,
        "bytes": 60 * 3 * 8 * 16 * 16 * 2, "free": 0,
    }  # fmt: skip
    assert activations_needed(store, "pooled", init="new", views=1, backbone=BACKBONE).bytes == 0
    assert activations_needed(store, "body.0", init="new", views=1, backbone=BACKBONE).layer == "stem:mean"


def test_a_checkpoint_stays_and_gives_the_same(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    first = run(store, checkpoint=path)
    assert path.is_file()
    again = run(store, checkpoint=path)
    assert bits(again) == bits(first)
    assert again.report["curve"] == first.report["curve"]
    with pytest.raises(UsageError, match=r"--from was .body\.0. and is now .body\.1."):
        run(store, "body.1", checkpoint=path)
    remove(path)
    assert not path.exists()


def test_what_cannot_be_tuned(store: Path) -> None:
    with pytest.raises(UnknownNameError, match="body"):
        run(store, "bodi.0")
    with pytest.raises(UsageError, match=r"--init scratch does not go with --from body\.0.*Valid are: --from LAYER"):
        run(store, init="scratch")
    with pytest.raises(UnknownNameError, match="init"):
        run(store, init="old")
    with pytest.raises(UsageError, match="Behind `pooled` the network has no layers"):
        run(store, "pooled")
    with pytest.raises(UsageError, match=r"cannot be split at 'stem'.*'body'"):
        run(store, "stem")
    with pytest.raises(RecipeMismatchError, match="module given in Python"):
        run(store, backbone=None)
    assert set(fc.open(store).spaces[0].layers) == {"pooled"}


def test_images_that_are_gone(store: Path, tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    root = draw_images(tmp_path / "photos", each=8)
    path = extracted(root, tmp_path / "own.fcache", BACKBONE)
    (root / "cats" / "cat-00.jpg").unlink()
    bundle = run(path)
    assert bundle.report["without_vectors"] == 1
    assert "cats/cat-00.jpg" in {item.uri for item in fc.open(path).items()}
    shutil.rmtree(root)
    with pytest.raises(MissingVectorsError, match=r"There is nothing at .*--moved"):
        run(path, "body.1")


def test_labels_of_a_file(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    root = draw_images(tmp_path / "photos", each=6)
    path = extracted(root, tmp_path / "s.fcache", BACKBONE, labels="none")
    before = contents(path)
    uris = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((uri, uri.split("/")[0]) for uri in uris[1:])])
    options = {"labels": tmp_path / "labels.csv", "views": 1}
    assert activations_needed(path, "body.0", backbone=BACKBONE, **options).images == 11  # type: ignore[arg-type]
    bundle = run(path, **options)
    assert bundle.classes == ("cats", "dogs")
    assert len(fc.open(path).arrays(layers="stem:none")[0]) == 11
    assert contents(path) == before


def test_classes_that_are_scored_alone_are_no_classes_of_the_bundle(tmp_path: Path) -> None:
    """The source's own splits: ``val`` validates, and neither it nor ``test`` adds a class."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for split, names in (("train", "bd"), ("val", "bcd"), ("test", "abd")):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 100, (32, 32, 3)) + np.array([0, 0, 0, 50])["abcd".index(name)]
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    store = extracted(root, tmp_path / "s.fcache", BACKBONE, split="folder")
    bundle = run(store)
    assert bundle.classes == ("b", "d")
    assert (bundle.report["validation"], bundle.fitted_on, bundle.report["score"]["n"]) == (12, 12, 18)
    assert bundle.report["score"]["accuracy"] <= 12 / 18
    assert len(bundle.trained_on) == 24
    assert fc.evaluate(bundle, store, split="val", progress=False).overlap == 12


def test_a_loss_that_is_not_finite_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Try a lower learning rate"):
        run(store, config=Schedule(epochs=3, lr=1e30, batch_size=8), checkpoint=tmp_path / "c.ckpt")
    assert contents(store)["quarantine"]
    assert not list(tmp_path.glob("*.fch"))


def test_it_learns_what_the_frozen_layers_behind_the_cut_cannot_tell(tmp_path: Path) -> None:
    """The layers behind the cut see the sum of all maps alone, so hues look the same until they are trained."""
    store = extracted(draw_hues(tmp_path / "photos"), tmp_path / "s.fcache", BACKBONE)
    frozen = fc.train(store, progress=False).report["score"]
    config = Schedule(epochs=12, lr=3e-2, batch_size=12, layer_decay=1.0)
    made = finetune(store, "body.0", views=2, config=config, backbone=BACKBONE, progress=False)
    assert frozen["accuracy"] <= 0.75
    assert made.report["score"]["accuracy"] >= 0.9
