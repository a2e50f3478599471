"""`check_live`: right vectors pass, wrong ones fail, and what cannot be compared is counted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import featcache as fc
from featcache.backbones import Backbone, bfloat16_floor, get, tiny_backbone
from featcache.cli import main
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, UnknownNameError, UsageError
from featcache.store.writer import StoreWriter
from tests.backbones.making import randomised, saved
from tests.images.making_datasets import Pairs
from tests.images.tars import image_bytes, write_tar

LAYERS = ["body.0:mean", "pooled"]


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path], net: Backbone) -> Path:
    """A folder with ``photos``, ``s.fcache`` and a head ``s.fch``."""
    folder = tmp_path_factory.mktemp("made")
    draw_images(folder / "photos", each=6)
    fc.extract(folder / "photos", folder / "s.fcache", backbone=net, layers=LAYERS, progress=False)
    fc.train(folder / "s.fcache", "ridge", progress=False).save(folder / "s.fch")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store that may be changed; its source is the folder of all."""
    return Path(shutil.copytree(made / "s.fcache", tmp_path / "s.fcache"))


def change(store: Path, uri: str, to: Callable[[np.ndarray], np.ndarray], layer: str = "pooled") -> None:
    """Change the stored vector of one image on the disk."""
    (item,) = [item for item in fc.open(store).items() if item.uri == uri]
    for shard in store.glob("shards/*/*.h5"):
        with h5py.File(shard, "a") as file:
            for row in np.flatnonzero((file["sha256"][:] == np.frombuffer(item.sha256, np.uint8)).all(axis=1)):
                vectors = file["vectors"][layer]["0"]
                vectors[row] = to(vectors[row])


def test_right_vectors_pass_with_the_figures_of_torchvision_and_torch(made: Path, net: Backbone) -> None:
    report = fc.check_live(made / "s.fcache", backbone=net, progress=False)
    assert report.ok
    assert (report.drawn, report.compared, report.failed, report.flips) == (12, 12, 0, None)
    assert report.layers == LAYERS
    assert report.reference == "the published transform, eager torch, float32"
    published = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    X, _, items = fc.open(made / "s.fcache").arrays(layers="pooled")
    cosines, errors = {}, {}
    for a, item in zip(X.astype(np.float64), items, strict=True):
        with Image.open(made / "photos" / item.uri) as image, torch.inference_mode():
            b = net.module(published(image)[None])[0].numpy().astype(np.float64)
        cosines[item.uri] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        errors[item.uri] = np.linalg.norm(a - b) / np.linalg.norm(b)
    alone = fc.check_live(made / "s.fcache", backbone=net, progress=False)
    for one in (w for w in alone.worst if w.layer == "pooled"):
        assert one.cosine == pytest.approx(cosines[one.uri], abs=1e-7)
        assert one.relative_error == pytest.approx(errors[one.uri], abs=1e-5)
    assert report.cosine_least is not None
    assert report.cosine_least <= min(cosines.values()) + 1e-7
    assert report.relative_error_largest is not None
    assert report.relative_error_largest >= max(errors.values()) - 1e-5


@pytest.mark.parametrize(
    "to",
    [lambda v: -v, lambda v: 2 * v, lambda v: 0 * v, lambda v: v[::-1], lambda v: v * np.nan],
    ids=["turned round", "too long", "zero", "permuted", "not a number"],
)
def test_a_vector_that_was_changed_fails_and_is_named(
    store: Path, net: Backbone, to: Callable[[np.ndarray], np.ndarray]
) -> None:
    change(store, "cats/cat-03.jpg", to)
    report = fc.check_live(store, backbone=net, progress=False)
    assert not report.ok
    assert (report.compared, report.failed) == (12, 1)
    assert (report.worst[0].uri, report.worst[0].layer) == ("cats/cat-03.jpg", "pooled")
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_an_earlier_layer_is_checked_too(store: Path, net: Backbone) -> None:
    change(store, "dogs/dog-00.jpg", lambda v: v[::-1], "body.0:mean")
    report = fc.check_live(store, backbone=net, progress=False)
    assert (report.failed, report.worst[0].layer) == (1, "body.0:mean")


def test_the_draw_depends_on_the_seed_alone(made: Path, net: Backbone) -> None:
    def drawn(seed: int) -> set[str]:
        report = fc.check_live(made / "s.fcache", 2, seed=seed, backbone=net, progress=False)
        assert (report.drawn, report.compared) == (2, 2)
        return {one.uri for one in report.worst}

    assert drawn(3) == drawn(3)
    assert len(set.union(*(drawn(seed) for seed in range(8)))) > 4


def test_what_is_gone_or_changed_is_counted_not_compared(
    tmp_path: Path, draw_images: Callable[..., Path], net: Backbone
) -> None:
    photos = draw_images(tmp_path / "photos", each=3)
    fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    (photos / "cats" / "cat-00.jpg").unlink()
    (photos / "cats" / "cat-01.jpg").write_bytes((photos / "dogs" / "dog-00.jpg").read_bytes())
    (photos / "dogs" / "dog-01.jpg").write_bytes(b"")
    report = fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.drawn, report.compared, report.gone, report.changed) == (6, 3, 2, 1)
    assert report.ok
    shutil.rmtree(photos)
    report = fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.compared, report.gone, report.cosine_least, report.worst) == (0, 6, None, [])
    assert not report.ok
    assert "There is nothing at" in report.notes[0]


def test_flips_of_a_head_are_counted(store: Path, made: Path, net: Backbone) -> None:
    head = fc.Bundle.load(made / "s.fch")
    assert fc.check_live(store, head=head, backbone=net, progress=False).flips == 0
    X, _, items = fc.open(store).arrays(layers="pooled")
    called = head.predict_vectors(X)
    assert set(called) == {"cats", "dogs"}
    at, other = (int(np.flatnonzero(called == name)[0]) for name in ("cats", "dogs"))
    change(store, items[at].uri, lambda v: X[other])
    report = fc.check_live(store, head=head, backbone=net, progress=False)
    assert report.flips == 1


def test_a_head_of_another_recipe_is_refused(made: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(made / "photos", tmp_path / "t.fcache", backbone=tiny_backbone(1), progress=False)
    head = fc.train(tmp_path / "t.fcache", "ridge", progress=False)
    with pytest.raises(RecipeMismatchError, match="another recipe"):
        fc.check_live(made / "s.fcache", head=head, backbone=net, progress=False)
    with pytest.raises(RecipeMismatchError, match="weights"):
        fc.check_live(made / "s.fcache", backbone=tiny_backbone(1), progress=False)


def test_images_in_tar_files_also_beside_other_files(tmp_path: Path, net: Backbone) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{i}.png", image_bytes(i + ord(name))) for i in range(3)])
    (tmp_path / "c").mkdir()
    fc.extract(tmp_path / "b.tar", tmp_path / "s.fcache", backbone=net, progress=False)
    report = fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.compared, report.gone, report.ok, report.notes) == (3, 0, True, [])
    assert {one.uri for one in report.worst} == {f"b.tar/{i}.png" for i in range(3)}


def test_labels_that_nobody_asked_for_make_no_image_unusable(tmp_path: Path, net: Backbone) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "a.tar", [("0.png", image_bytes(0)), ("0.txt", b"caf\xe9")])
    fc.extract(shards, tmp_path / "s.fcache", backbone=net, labels="none", progress=False)
    for images in (None, shards):
        report = fc.check_live(tmp_path / "s.fcache", backbone=net, images=images, progress=False)
        assert (report.compared, report.unusable) == (1, 0)


def test_a_manifest_that_is_given_again(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "odd.bin").write_bytes(image_bytes(0))
    (tmp_path / "list.csv").write_text("path,label\nodd.bin,a\n")
    fc.extract(tmp_path / "list.csv", tmp_path / "s.fcache", backbone=net, progress=False)
    assert fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False).gone == 0
    again = fc.check_live(tmp_path / "s.fcache", images=tmp_path / "list.csv", backbone=net, progress=False)
    assert (again.compared, again.ok) == (1, True)


def test_a_dataset_is_given_again_by_python_alone(tmp_path: Path, net: Backbone) -> None:
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)) for i in range(3)]
    data = Pairs([(image, 0) for image in pictures])
    fc.extract(data, tmp_path / "s.fcache", name="mine", backbone=net, progress=False)
    with pytest.raises(UsageError, match="given in Python"):
        fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False)
    report = fc.check_live(tmp_path / "s.fcache", images=data, backbone=net, progress=False)
    assert (report.compared, report.ok) == (3, True)


def test_files_given_one_by_one_and_images_in_memory(made: Path, tmp_path: Path, net: Backbone) -> None:
    files = sorted((made / "photos").rglob("*.jpg"))[:3]
    embedder = fc.CachedEmbedder(net, tmp_path / "s.fcache")
    embedder.fit_transform(files)
    embedder.fit_transform([np.zeros((40, 40, 3), np.uint8)])
    report = fc.check_live(tmp_path / "s.fcache", source="paths", backbone=net, progress=False)
    assert (report.compared, report.ok) == (3, True)
    with pytest.raises(UsageError, match="given in Python"):
        fc.check_live(tmp_path / "s.fcache", source="memory", backbone=net, progress=False)


def test_scaled_photographs_are_compared_with_their_own_pixels(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (160, 200, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.jpg", quality=90)
    fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net.scaled(), progress=False)
    report = fc.check_live(tmp_path / "s.fcache", backbone=net, progress=False)
    assert report.ok
    assert report.reference == "its recipe's pixels, eager torch, float32"
    assert report.relative_error_largest is not None
    assert report.relative_error_largest <= 1e-4


@pytest.mark.parametrize(("noise", "ok"), [(0.004, True), (0.3, False)])
def test_vectors_in_bfloat16_have_a_floor_of_their_own(
    made: Path, tmp_path: Path, net: Backbone, noise: float, ok: bool
) -> None:
    """Written as a machine with bfloat16 would; the reference needs no such machine."""
    X, _, items = fc.open(made / "s.fcache").arrays(layers="pooled")
    recipe = replace(net.recipe, precision="bfloat16", runtime="openvino")
    store = Path(shutil.copytree(made / "s.fcache", tmp_path / "s.fcache"))
    with StoreWriter(store) as writer:
        space = writer.space(recipe)
        space.declare("pooled", "0", 9)
        away = np.random.default_rng(0).normal(size=X.shape)
        away *= noise * np.linalg.norm(X, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
        space.append([item.sha256 for item in items], {("pooled", "0"): (X + away).astype(np.float32)})
    report = fc.check_live(store, space=recipe.fingerprint, backbone=net, progress=False)
    assert (report.precision, report.cosine_floor) == ("bfloat16", bfloat16_floor(net.name))
    assert report.ok is ok


def test_wrong_usage(made: Path, net: Backbone) -> None:
    with pytest.raises(UsageError, match="1 image or more"):
        fc.check_live(made / "s.fcache", 0, backbone=net)
    with pytest.raises(UnknownNameError, match="source"):
        fc.check_live(made / "s.fcache", source="phots", backbone=net)
    with pytest.raises(RecipeMismatchError, match="module given in Python"):
        fc.check_live(made / "s.fcache", progress=False)


def test_weights_from_a_file_are_given_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that never saw the file; another file's weights are refused."""
    name, files = "torchvision:mobilenet_v3_small", [tmp_path / "0.pth", tmp_path / "1.pth"]
    for seed, file in enumerate(files):
        saved(randomised(torchvision.models.get_model("mobilenet_v3_small", weights=None), seed), file)
    store = tmp_path / "s.fcache"
    fc.extract(made / "photos", store, backbone=get(name, files[0], runtime="torch"), limit=4, progress=False)
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(["check-live", str(store), "--weights", str(files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] == 4
    assert main(["check-live", str(store), "--weights", str(files[1])]) == 1
    assert "weights" in capsys.readouterr().err
    with pytest.raises(UsageError, match="one of the two"):
        fc.check_live(store, weights=files[0], backbone=tiny_backbone(), progress=False)


def test_a_source_without_vectors(made: Path, store: Path, tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(image_bytes(99))
    fc.extract(tmp_path / "other", store, backbone=tiny_backbone(1), progress=False)
    with pytest.raises(MissingVectorsError, match="No image of the source 'other'"):
        fc.check_live(store, source="other", space=net.recipe.fingerprint, backbone=net, progress=False)


def test_the_command_ends_with_1_where_a_vector_is_wrong(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(made / "photos", store, limit=4, progress=False)
    assert main(["check-live", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["compared"]) == (True, 4)
    assert found["cosine_least"] >= 0.9999
    uri = fc.open(store).items()[1].uri
    change(store, uri, lambda v: v[::-1])
    assert main(["check-live", str(store), "-n", "200"]) == 1
    said = capsys.readouterr().out
    assert uri in said
    assert re.search(r"Beyond the tolerance \(.*\): 1 image\.", said)
