"""Images that are asked about give the vectors, and so the answers, that the store would give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import LinearSVC

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.cli import main
from featcache.core.errors import (
    MissingVectorsError,
    RecipeMismatchError,
    SourceError,
    UnknownNameError,
    UnusableImageError,
    UsageError,
)
from featcache.core.recipe import StandardTransform
from featcache.heads import HEADS
from tests.images.tars import write_tar

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle, Prediction

LAYERS = ["body.0:mean", "pooled"]


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path], net: Backbone) -> Path:
    """``photos/``, three classes of 8, where the first cat has a copy among the dogs, and ``s.fcache/``."""
    root = tmp_path_factory.mktemp("prediction")
    draw_images(root / "photos", ("cats", "dogs", "emus"), 8)
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::6, 0] = 255  # like no other image
    Image.fromarray(stripes).save(root / "photos/cats/cat-00.jpg")
    shutil.copy(root / "photos/cats/cat-00.jpg", root / "photos/dogs/copied.jpg")
    fc.extract(root / "photos", root / "s.fcache", backbone=net, layers=LAYERS, progress=False)
    return root


@pytest.fixture(scope="module")
def bundle(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A head on both layers, trained on a copy of the store."""
    store = shutil.copytree(place / "s.fcache", tmp_path_factory.mktemp("training") / "s.fcache")
    return fc.train(store, layers=LAYERS, progress=False)


def say(bundle: Bundle, images: Any, net: Backbone, **options: Any) -> list[Prediction]:
    return bundle.predict(images, backbone=net, progress=False, **options)


def stored(place: Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """Probabilities by URI, from the store's vectors."""
    X, _, items = fc.open(place / "s.fcache").arrays(layers=LAYERS)
    p = bundle.predict_proba_vectors(X)
    assert p is not None
    return {item.uri: row for item, row in zip(items, p, strict=True)}


def check(bundle: Bundle, got: Prediction, wanted: np.ndarray) -> None:
    assert got.problem is None
    assert [p for _, p in got.labels] == sorted((p for _, p in got.labels), reverse=True)  # type: ignore[type-var]
    by_label = dict(got.labels)
    np.testing.assert_allclose([by_label[name] for name in bundle.classes], wanted, atol=1e-4)


def test_a_file_an_image_and_an_array_are_answered_as_from_the_store(
    place: Path, bundle: Bundle, net: Backbone
) -> None:
    path = place / "photos/emus/emu-03.jpg"
    picture = Image.open(path).convert("RGB")
    images = [path, str(path), picture, np.asarray(picture)]
    answers = say(bundle, images, net)
    assert [answer.uri for answer in answers] == [str(path), str(path), "image 2", "image 3"]
    for answer in answers:
        check(bundle, answer, stored(place, bundle)["emus/emu-03.jpg"])
    for image in images:
        (alone,) = say(bundle, image, net)
        check(bundle, alone, stored(place, bundle)["emus/emu-03.jpg"])


def test_a_folder_stands_for_the_images_in_it(place: Path, bundle: Bundle, net: Backbone) -> None:
    answers = say(bundle, place / "photos", net)
    wanted = stored(place, bundle)
    assert [Path(answer.uri).relative_to(place / "photos").as_posix() for answer in answers] == sorted(wanted)
    for answer in answers:
        check(bundle, answer, wanted[Path(answer.uri).relative_to(place / "photos").as_posix()])
    mixed = say(bundle, [place / "photos/dogs/dog-00.jpg", place / "photos/cats"], net)
    assert [Path(answer.uri).name for answer in mixed] == ["dog-00.jpg", *(f"cat-{i:02}.jpg" for i in range(8))]


def test_a_tar_stands_for_the_images_in_it(place: Path, bundle: Bundle, net: Backbone, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    wanted = stored(place, bundle)
    inside = {f"train-{i:03}.tar": names for i, names in enumerate((sorted(wanted)[:9], sorted(wanted)[9:]))}
    for tar, names in inside.items():
        files: list[tuple[str, bytes | str]] = [(name, (place / "photos" / name).read_bytes()) for name in names]
        write_tar(shards / tar, [*files, ("z/bad.jpg", b"no image"), ("cats/cat-01.txt", b"caf\xe9")])
    for given in (shards, shards / "train-*.tar", [str(shards / tar) for tar in inside]):
        answers = say(bundle, given, net)
        names = [f"{tar}/{name}" for tar in inside for name in [*inside[tar], "z/bad.jpg"]]
        assert [answer.uri for answer in answers] == names
        for answer in answers:
            name = answer.uri.partition("/")[2]
            if name == "z/bad.jpg":
                assert "not an image" in str(answer.problem)
            else:
                check(bundle, answer, wanted[name])
    photo = place / "photos" / "cats" / "cat-01.jpg"
    mixed = say(bundle, [photo, shards / "train-000.tar"], net)
    assert [answer.uri for answer in mixed[:2]] == [str(photo), f"train-000.tar/{inside['train-000.tar'][0]}"]
    with pytest.raises(SourceError, match=r"nothing at .*none\.tar"):
        say(bundle, tmp_path / "none.tar", net)


def test_top_limits_the_labels(place: Path, bundle: Bundle, net: Backbone) -> None:
    path = place / "photos/cats/cat-01.jpg"
    (whole,), (two,) = say(bundle, path, net), say(bundle, path, net, top=2)
    assert len(whole.labels) == 3
    assert two.labels == whole.labels[:2]


def test_an_image_that_cannot_be_used_has_a_problem(place: Path, bundle: Bundle, net: Backbone, tmp_path: Path) -> None:
    good = place / "photos/cats/cat-01.jpg"
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:900])
    answers = say(bundle, [tmp_path / "text.jpg", good, tmp_path / "cut.jpg", good], net)
    assert [answer.labels == [] for answer in answers] == [True, False, True, False]
    assert "not an image" in str(answers[0].problem)
    assert "cut off" in str(answers[2].problem)
    assert answers[1] == answers[3]


def test_a_missing_path_and_what_is_no_image(bundle: Bundle, net: Backbone, tmp_path: Path) -> None:
    (gone,) = say(bundle, tmp_path / "none.jpg", net)
    assert (gone.uri, gone.labels, gone.problem) == (
        str(tmp_path / "none.jpg"),
        [],
        f"There is no image {tmp_path / 'none.jpg'}",
    )
    with pytest.raises(SourceError):
        say(bundle, tmp_path, net)
    with pytest.raises(UsageError, match="uint8"):
        say(bundle, np.zeros((5, 5)), net)
    with pytest.raises(UsageError, match="Image 0 is 3"):
        say(bundle, [3], net)


def test_a_module_must_be_given_again(place: Path, bundle: Bundle) -> None:
    with pytest.raises(RecipeMismatchError, match=r"backbone=Backbone\.from_module"):
        bundle.predict(place / "photos/cats/cat-01.jpg", progress=False)
    again = say(bundle, place / "photos/cats/cat-01.jpg", tiny_backbone())
    assert again[0].problem is None


def test_another_module_is_refused_field_by_field(place: Path, bundle: Bundle) -> None:
    path = place / "photos/cats/cat-01.jpg"
    with pytest.raises(RecipeMismatchError, match=r"weights is .*needed is") as caught:
        say(bundle, path, tiny_backbone(seed=1))
    assert "module:tiny1" in str(caught.value)
    # The size of its input is the head's; its mean cannot be.
    assert say(bundle, path, tiny_backbone(size=40)) == say(bundle, path, tiny_backbone())
    pixels = StandardTransform((32,), (32, 32), "bilinear", (0.1, 0.1, 0.1), (0.5, 0.5, 0.5))
    other = Backbone.from_module(tiny_backbone().module, transform=pixels, name="tiny0", axes="NCHW")
    with pytest.raises(RecipeMismatchError, match=r"pixels\.transform\.mean"):
        say(bundle, path, other)


def test_a_saved_head_answers_alike(place: Path, bundle: Bundle, net: Backbone, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a.fch")
    images = place / "photos/emus"
    assert say(fc.load(tmp_path / "a.fch"), images, net) == say(bundle, images, net)


def test_a_head_without_probabilities(place: Path, net: Backbone, tmp_path: Path) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    bundle = fc.train(store, LinearSVC(), progress=False)
    (answer,) = say(bundle, place / "photos/dogs/dog-02.jpg", net)
    X, _, items = fc.open(store).arrays(layers="pooled")
    row = [item.uri for item in items].index("dogs/dog-02.jpg")
    assert answer.labels == [(bundle.predict_vectors(X[row : row + 1])[0], None)]
    assert fc.evaluate(bundle, store).log_loss is None


def test_many_images_are_answered_in_order_whatever_batch_they_fall_into(
    place: Path, bundle: Bundle, net: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    wanted = stored(place, bundle)
    uris = sorted(wanted)[:20]
    paths = [place / "photos" / uri for uri in uris]
    found = say(bundle, [*paths[:10], tmp_path / "broken.jpg", *paths[10:]], net, top=3)
    assert found[10].problem is not None
    assert found[10].labels == []
    answered = [*found[:10], *found[11:]]
    for uri, path, got in zip(uris, paths, answered, strict=True):
        assert got.uri == str(path)
        check(bundle, got, wanted[uri])


def test_evaluate_takes_the_items_it_was_not_trained_on(place: Path, bundle: Bundle) -> None:
    got = fc.evaluate(bundle, place / "s.fcache")
    assert got.n == bundle.report["score"]["n"] == 25 - bundle.fitted_on
    assert got.overlap == 0
    for name in ("accuracy", "low", "high"):
        assert getattr(got, name) == bundle.report["score"][name]
    assert got.log_loss == pytest.approx(bundle.report["log_loss"]["value"])
    low, high = (bundle.report["macro_f1"][end] for end in ("low", "high"))
    assert got.intervals["macro_f1"] == (None if low is None else [low, high])
    assert got.to_dict()["balanced_accuracy"] == bundle.report["balanced_accuracy"]["value"]


def test_evaluate_takes_the_test_split_and_tells_the_overlap(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    root = shutil.copytree(place / "photos", tmp_path / "photos")
    uris = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    lines = [f"{uri},{'test' if i % 5 else 'val'}" for i, uri in enumerate(uris)]
    (tmp_path / "split.csv").write_text("\n".join(["path,split", *lines]), encoding="utf-8")
    store = tmp_path / "s.fcache"
    fc.extract(root, store, backbone=tiny_backbone(), layers=LAYERS, split=tmp_path / "split.csv", progress=False)
    tested = [item for item in fc.open(store).items() if item.split == "test"]
    got = fc.evaluate(bundle, store)
    assert (got.n, got.protocol) == (20, "the split 'test'")
    assert got.overlap == bundle.overlap(item.sha256 for item in tested) > 0
    assert fc.evaluate(bundle, store, split="val").n == 5
    with pytest.raises(UnknownNameError, match="'val'"):
        fc.evaluate(bundle, store, split="vall")


def test_evaluate_names_labels_that_the_head_does_not_know(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    assert fc.evaluate(bundle, place / "s.fcache").unknown_labels == {}
    uris = [item.uri for item in fc.open(place / "s.fcache").items()]
    lines = [f"{uri},{'gnus' if uri.startswith('emus') else uri.split('/')[0]}" for uri in uris]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    got = fc.evaluate(bundle, place / "s.fcache", labels=tmp_path / "labels.csv")
    scored = [item for item in fc.open(place / "s.fcache").items() if not bundle.overlap([item.sha256])]
    assert got.unknown_labels == {"gnus": sum(item.uri.startswith("emus") for item in scored)}
    assert got.unknown_labels["gnus"] > 0


def test_evaluate_takes_other_labels(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    uris = [item.uri for item in fc.open(place / "s.fcache").items()]
    lines = [f"{uri},{'cats' if uri.startswith('cats') else 'zebra'}\n" for uri in uris]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines), encoding="utf-8")
    got = fc.evaluate(bundle, place / "s.fcache", labels=tmp_path / "labels.csv")
    zebras = got.unknown_labels["zebra"] / got.n
    assert 0 < got.accuracy <= 1 - zebras
    assert got.log_loss is not None
    assert got.log_loss > zebras * -np.log(np.finfo(np.float64).eps)


def test_a_head_with_none_of_the_classes_is_not_scored(
    place: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    uris = [item.uri for item in fc.open(store).items()]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{uri},zebra\n" for uri in uris), encoding="utf-8")
    mixed = [f"{uri},{'zebra' if i % 2 else 'gnu'}\n" for i, uri in enumerate(uris)]
    (tmp_path / "mixed.csv").write_text("path,label\n" + "".join(mixed), encoding="utf-8")
    with pytest.raises(UsageError, match=r"The head knows 'cats', 'dogs', 'emus'; the items have 'zebra'\."):
        fc.evaluate(bundle, store, labels=tmp_path / "labels.csv")
    other = fc.train(store, "ridge", labels=tmp_path / "mixed.csv", progress=False)
    with pytest.raises(UsageError, match=r"The head knows 'gnu', 'zebra'; the items have 'cats'"):
        fc.compare(bundle, other, store)
    several = fc.train(store, task="multilabel", labels=tmp_path / "mixed.csv", progress=False)
    with pytest.raises(UsageError, match=r"The head knows 'gnu', 'zebra'; the items have 'cats'"):
        fc.evaluate(several, store)
    bundle.save(tmp_path / "a.fch")
    other.save(tmp_path / "b.fch")
    for words in (["b.fch", str(store)], ["a.fch", str(store), "--against", str(tmp_path / "b.fch")]):
        assert main(["evaluate", str(tmp_path / words[0]), *words[1:]]) == 2
        assert "'gnu', 'zebra'; the items have 'cats'" in capsys.readouterr().err


def test_several_labels_of_which_no_item_has_any_are_scored(place: Path, tmp_path: Path) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    uris = [item.uri for item in fc.open(store).items()]
    several = fc.train(store, task="multilabel", progress=False)
    (tmp_path / "none.csv").write_text("path,label\n" + "".join(f"{uri},|\n" for uri in uris), encoding="utf-8")
    report = fc.evaluate(several, store, labels=tmp_path / "none.csv")
    assert report.to_dict()["mean_average_precision"] is None


def test_nothing_is_left_to_score_a_head_that_saw_everything(place: Path, tmp_path: Path) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    bundle = fc.train(store, refit_all=True, progress=False)
    with pytest.raises(MissingVectorsError, match="all 25 labeled items"):
        fc.evaluate(bundle, store)


def test_evaluate_refuses_vectors_of_another_recipe(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    fc.extract(place / "photos", tmp_path / "o.fcache", backbone=tiny_backbone(1), layers=LAYERS, progress=False)
    with pytest.raises(RecipeMismatchError, match=r"backbone: 'module:tiny0' in the head, 'module:tiny1' here"):
        fc.evaluate(bundle, tmp_path / "o.fcache")


def test_evaluate_finds_its_space_among_several(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    for seed in (1, 0):
        fc.extract(place / "photos", store, backbone=tiny_backbone(seed), layers=LAYERS, progress=False)
    got = fc.evaluate(bundle, store)
    assert got.accuracy == bundle.report["score"]["accuracy"]
    with pytest.raises(RecipeMismatchError):
        fc.evaluate(bundle, store, space="module:tiny1")


def test_evaluate_names_a_layer_that_is_not_stored(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    fc.extract(place / "photos", tmp_path / "o.fcache", backbone=tiny_backbone(), progress=False)
    with pytest.raises(UnknownNameError, match="body"):
        fc.evaluate(bundle, tmp_path / "o.fcache")


def test_evaluate_a_head_of_unknown_origin(place: Path, tmp_path: Path) -> None:
    X, y, _ = fc.open(place / "s.fcache").arrays(layers="pooled")
    np.savez(tmp_path / "x.npz", features=X, labels=y)
    bundle = fc.train(tmp_path / "x.npz", progress=False)
    with pytest.raises(RecipeMismatchError, match="unknown origin"):
        fc.evaluate(bundle, place / "s.fcache")


def test_evaluate_takes_an_estimator_that_cannot_be_saved(place: Path, tmp_path: Path) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    bundle = fc.train(store, RandomForestClassifier(5, random_state=0), progress=False)
    assert fc.evaluate(bundle, store).accuracy == bundle.report["score"]["accuracy"]


def test_a_known_image_is_found_without_a_network(place: Path) -> None:
    # The module is not given, so any look at a network would fail.
    found = fc.similar(place / "s.fcache", place / "photos/cats/cat-00.jpg", k=30)
    assert found[0][0].uri == "dogs/copied.jpg"
    assert found[0][1] == pytest.approx(1, abs=1e-6)
    assert len(found) == 24
    assert "cats/cat-00.jpg" not in [item.uri for item, _ in found]
    X, _, items = fc.open(place / "s.fcache").arrays(layers="pooled")
    query = X[[item.uri for item in items].index("cats/cat-00.jpg")]
    cosines = {
        i.uri: float(x @ query / np.linalg.norm(x) / np.linalg.norm(query)) for i, x in zip(items, X, strict=True)
    }
    assert [cosine for _, cosine in found] == pytest.approx([cosines[item.uri] for item, _ in found], abs=1e-5)
    assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)


def test_the_same_bytes_elsewhere_show_every_copy(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "photos/cats/cat-00.jpg", tmp_path / "mine.jpg")
    found = fc.similar(place / "s.fcache", tmp_path / "mine.jpg", k=3)
    assert {item.uri for item, _ in found[:2]} == {"cats/cat-00.jpg", "dogs/copied.jpg"}
    assert [cosine for _, cosine in found[:2]] == pytest.approx([1, 1], abs=1e-6)
    assert len(found) == 3


def test_an_unknown_image_needs_the_network(place: Path, net: Backbone, tmp_path: Path) -> None:
    picture = Image.open(place / "photos/emus/emu-02.jpg").convert("RGB")
    with pytest.raises(RecipeMismatchError, match="from_module"):
        fc.similar(place / "s.fcache", picture)
    found = fc.similar(place / "s.fcache", picture, k=2, backbone=net, layers=LAYERS)
    assert found[0][0].uri == "emus/emu-02.jpg"
    assert found[0][1] == pytest.approx(1, abs=1e-4)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UnusableImageError, match=r"text\.jpg"):
        fc.similar(place / "s.fcache", tmp_path / "text.jpg", backbone=net)
    with pytest.raises(SourceError, match=r"none\.jpg"):
        fc.similar(place / "s.fcache", tmp_path / "none.jpg", backbone=net)


def test_as_one_torch_module_it_says_the_same(place: Path, bundle: Bundle, net: Backbone) -> None:
    paths = sorted((place / "photos").rglob("*.jpg"))
    module = bundle.to_torch(net)
    assert tuple(module.classes) == bundle.classes
    batch = torch.stack([module.transform(Image.open(path).convert("RGB")) for path in paths])  # type: ignore[operator]
    with torch.no_grad():
        logits = module(batch)
    assert logits.shape == (25, 3)
    wanted = [dict(answer.labels) for answer in say(bundle, paths, net)]
    np.testing.assert_allclose(
        torch.softmax(logits, 1).numpy(), [[w[name] for name in bundle.classes] for w in wanted], atol=1e-5
    )


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_of_ours_saves_and_converts(place: Path, net: Backbone, tmp_path: Path, head: str) -> None:
    store = shutil.copytree(place / "s.fcache", tmp_path / "s.fcache")
    trained = fc.train(store, head, layers=LAYERS, progress=False)
    trained.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    X, _, _ = fc.open(store).arrays(layers=LAYERS)
    p = trained.predict_proba_vectors(X)
    assert p is not None
    np.testing.assert_array_equal(back.predict_proba_vectors(X), p)
    assert back.predict_vectors(X).tolist() == np.array(back.classes)[p.argmax(1)].tolist()
    assert (back.head, back.chosen, back.report["score"]) == (head, trained.chosen, trained.report["score"])
    paths = sorted((place / "photos").rglob("*.jpg"))
    module = back.to_torch(net)
    batch = torch.stack([module.transform(Image.open(path).convert("RGB")) for path in paths])  # type: ignore[operator]
    with torch.no_grad():
        found = torch.softmax(module(batch), 1).numpy()
    wanted = [dict(answer.labels) for answer in say(back, paths, net)]
    np.testing.assert_allclose(found, [[w[name] for name in back.classes] for w in wanted], atol=1e-4)


def test_its_backbone_stays_in_eval_mode(place: Path, bundle: Bundle, net: Backbone) -> None:
    module = bundle.to_torch(net)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: v.clone() for name, v in module.state_dict().items()}
    with torch.no_grad():
        first = module(x)
        module.train()
        assert module.training
        assert module.head.training  # type: ignore[union-attr]
        assert not any(part.training for part in module.backbone.modules())  # type: ignore[union-attr]
        torch.testing.assert_close(module(x), first)
    module.eval()
    assert all(torch.equal(v, before[name]) for name, v in module.state_dict().items())
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {"head.weight", "head.bias"}


def test_its_head_can_be_trained_further(bundle: Bundle, net: Backbone) -> None:
    module = bundle.to_torch(net).train()
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), torch.tensor([0, 1, 2, 0, 1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_to_torch_needs_the_module_too(bundle: Bundle) -> None:
    with pytest.raises(RecipeMismatchError, match="from_module"):
        bundle.to_torch()
