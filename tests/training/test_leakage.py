"""One image learned from and its near-duplicate scored: counted, listed, and kept together on request."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.metrics import near_duplicates
from featcache.store import FeatureStore
from featcache.store.sources import save_holdout
from tests.training.sides import sides_of

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

COPIED = 12


def draw(folder: Path, each: int, copied: int) -> Path:
    """Two classes of smooth images; of the first ones of each class there is a copy with one pixel changed."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            small = rng.integers(0, 180, (6, 8, 3), dtype=np.uint8)
            small[..., number] += 60
            image = Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{i:02}.png")
            if i < copied:
                r, g, b = image.getpixel((5, 5))  # type: ignore[misc]
                image.putpixel((5, 5), (r, g, (b + 4) % 256))
                image.save(folder / name / f"{i:02}-copy.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("near") / "photos", 30, COPIED // 2)


@pytest.fixture(scope="module")
def kept_store(images: Path) -> Path:
    path = images.parent / "kept.fcache"
    fc.extract(images, path, backbone=tiny_backbone(), progress=False)
    return path


@pytest.fixture
def store(kept_store: Path, tmp_path: Path) -> Path:
    """A copy of the store of this test's own."""
    return shutil.copytree(kept_store, tmp_path / "s.fcache")


def train(store: Path, head: Any = "ridge", **options: Any) -> Bundle:
    return fc.train(store, head, progress=False, **options)


def sides(store: Path, source: str = "photos") -> dict[str, str]:
    """The part of the hold-out that each image is in."""
    opened = FeatureStore.open(store)
    parts = sides_of(opened, source)
    return {item.uri: parts[item.sha256] for item in opened.items()}


def torn(parts: dict[str, str]) -> set[tuple[str, str]]:
    """The copies that lie on another side than what they are copies of."""
    return {
        (uri, uri.replace("-copy", ""))
        for uri, part in parts.items()
        if "-copy" in uri and parts[uri.replace("-copy", "")] != part
    }


def listed(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {tuple(sorted((e["a"], e["b"]))) for e in report["examples"]}


@pytest.mark.parametrize("grouped", [False, True])
def test_near_duplicates_of_heldout_images_are_on_neither_side(store: Path, grouped: bool) -> None:
    bundle = train(store, group_near_duplicates=grouped)
    report = bundle.report["near_duplicates"]
    parts = sides(store)
    across = torn(parts)
    lost = {uri for uri, part in parts.items() if part == "neither"}
    assert lost == {uri for pair in across for uri in pair if parts[uri] != "test"}
    assert len(lost) == report["left_out"] >= 3
    assert (report["across"], report["note"], report["grouped"]) == (0, None, grouped)
    assert report["pairs"] == COPIED if grouped else len(lost) <= report["pairs"] <= COPIED
    assert listed(report) <= {tuple(sorted(pair)) for pair in across}
    assert len(report["examples"]) == min(5, len(across))
    assert all(e["cosine"] > 0.99 for e in report["examples"])
    assert 0 < report["threshold"] < 0.6
    learned = {item.uri for item in fc.open(store).items() if bundle.overlap([item.sha256])}
    assert learned == {uri for uri, part in parts.items() if part == "train"}
    assert f"{len(lost)} near-duplicates of held-out items left out" in bundle.report["score"]["protocol"]
    found = fc.evaluate(bundle, store, progress=False)
    assert found.n == bundle.report["score"]["n"] == sum(part == "test" for part in parts.values())
    assert f"; {len(lost)} other items left out, because the store does not hold them out" in found.protocol
    assert found.near_duplicates is not None
    assert found.near_duplicates["across"] == 0
    # Another head learns from the same ones, whatever it asks for.
    later = train(store, "centroid", group_near_duplicates=not grouped)
    assert sides(store) == parts
    assert later.report["score"]["n"] == bundle.report["score"]["n"]
    assert later.trained_on.tobytes() == bundle.trained_on.tobytes()


def test_a_recorded_side_to_learn_from_gives_way_to_a_heldout_near_duplicate(store: Path) -> None:
    records = {item.sha256: ("test" if "-copy" in item.uri else "train", "recorded") for item in fc.open(store).items()}
    save_holdout(store, 0, records)
    bundle = train(store)
    learned = {item.uri for item in fc.open(store).items() if bundle.overlap([item.sha256])}
    assert not {uri for uri in learned if "-copy" in uri or uri.replace(".png", "-copy.png") in sides(store)}
    assert bundle.report["near_duplicates"]["left_out"] == COPIED
    assert sorted(set(fc.open(store).sides().values())) == [
        ("neither", "near-duplicate"), ("test", "recorded"), ("train", "recorded"),
    ]  # fmt: skip


def test_those_of_images_that_are_gone_are_not_learned_from(images: Path, tmp_path: Path) -> None:
    """The held-out image was deleted and its copy came: the vectors still know it, and later the record does."""
    photos, store = shutil.copytree(images, tmp_path / "photos"), tmp_path / "s.fcache"
    aside = tmp_path / "aside"
    for path in sorted(photos.rglob("*-copy.png")):
        (aside / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.parent.name / path.name)
    fc.extract(photos, store, backbone=tiny_backbone(), progress=False)
    train(store)
    held = {uri for uri, part in sides(store).items() if part == "test"}
    copies = {path.relative_to(aside).as_posix() for path in aside.rglob("*.png")}
    of_held = {uri for uri in copies if uri.replace("-copy", "") in held}
    assert of_held
    for uri in held:
        (photos / uri).unlink()
    shutil.copytree(aside, photos, dirs_exist_ok=True)
    fc.extract(photos, store, backbone=tiny_backbone(), progress=False)
    bundle = train(store)

    def learned(head: Bundle) -> set[str]:
        return {item.uri for item in fc.open(store).items() if head.overlap([item.sha256])}

    assert not of_held & learned(bundle)
    assert copies & learned(bundle)
    fc.gc(store, apply=True)
    assert not of_held & learned(train(store, "centroid"))


@pytest.mark.parametrize("way", ["cv", "refit_all", "split"])
def test_a_head_that_learns_from_them_says_so(images: Path, store: Path, tmp_path: Path, way: str) -> None:
    train(store)
    parts = sides(store)
    counts = {side: sum(part == side for part in parts.values()) for side in ("test", "neither")}
    options: dict[str, Any] = {"cv": {"cv": 3}, "refit_all": {"refit_all": True}, "split": {}}[way]
    if way == "split":
        lines = ["path,label,split"]
        lines += [f"{uri},{uri.split('/')[0]},{'test' if part == 'train' else 'train'}" for uri, part in parts.items()]
        (images / "split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        fc.extract(
            images,
            store,
            backbone=tiny_backbone(),
            labels=images / "split.csv",
            split=images / "split.csv",
            progress=False,
        )
    bundle = train(store, **options)
    told = (
        f"; the head has learned from {counts['test']} items that the store holds out and "
        f"{counts['neither']} near-duplicates of held-out items"
    )
    assert told in bundle.report["score"]["protocol"]
    if way == "split":
        assert told in fc.evaluate(bundle, store, progress=False).protocol


def test_grouping_leaves_the_holdout_of_the_other_heads_alone(store: Path) -> None:
    earlier = train(store)
    before = sides(store)
    grouped = train(store, group_near_duplicates=True)
    assert sides(store) == before
    assert grouped.report["score"]["n"] == earlier.report["score"]["n"]
    tested = [item.sha256 for item in fc.open(store).items() if before[item.uri] == "test"]
    assert grouped.overlap(tested) == earlier.overlap(tested) == 0
    assert train(store).report["score"] == earlier.report["score"]


@pytest.mark.parametrize("grouped", [False, True])
def test_folds(store: Path, grouped: bool) -> None:
    report = train(store, cv=3, group_near_duplicates=grouped).report["near_duplicates"]
    assert report["pairs"] == COPIED
    assert report["across"] == 0 if grouped else report["across"] > 2


def with_splits(images: Path, tmp_path: Path, split_of: Sequence[str]) -> Path:
    """A store whose source is split: by turns, and copies by the last."""
    root = shutil.copytree(images, tmp_path / "listed")
    lines = ["path,label,split"]
    for i, path in enumerate(sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))):
        split = split_of[-1] if "-copy" in path else split_of[i % (len(split_of) - 1)]
        lines.append(f"{path},{path.split('/')[0]},{split}")
    (root / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fc.extract(root / "list.csv", tmp_path / "listed.fcache", backbone=tiny_backbone(), progress=False)
    return tmp_path / "listed.fcache"


def test_with_the_sources_own_split_twins_of_learned_images_are_not_scored(images: Path, tmp_path: Path) -> None:
    store = with_splits(images, tmp_path, ["train", "train", "test", "test"])
    plain = train(store).report
    across = plain["near_duplicates"]["across"]
    assert across > 3
    grouped = train(store, group_near_duplicates=True).report
    assert grouped["score"]["n"] == plain["score"]["n"] - across
    assert f"without {across} copies and near-duplicates" in grouped["score"]["protocol"]
    assert grouped["near_duplicates"]["across"] == 0


class Notes:
    """A progress that writes down what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def finish(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_among_few_items_nothing_is_looked_for_and_that_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)), labels=np.arange(40) % 2)
    heard = Notes()
    bundle = fc.train(tmp_path / "x.npz", group_near_duplicates=True, progress=heard)
    report = bundle.report["near_duplicates"]
    assert (report["pairs"], report["across"], report["examples"], report["grouped"]) == (None, None, [], False)
    assert "fewer than 50" in report["note"]
    assert any("could not be grouped" in note for note in heard.notes)


def test_several_layers_count_alike(tmp_path: Path, images: Path) -> None:
    """Each layer is divided by its root mean square first, so a layer of large numbers does not decide alone."""
    store = tmp_path / "s.fcache"
    fc.extract(images, store, backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], progress=False)
    bundle = train(store, layers=["pooled", "body.0:mean"], group_near_duplicates=True)
    assert bundle.report["near_duplicates"]["pairs"] == COPIED


def test_a_sweep_leaves_out_the_same_and_says_so(store: Path, capsys: Any) -> None:
    report = fc.sweep(store, ["centroid"], progress=False)
    trained = train(store, "centroid")
    assert report.near_duplicates == trained.report["near_duplicates"]
    assert report.bundle.trained_on.tobytes() == trained.trained_on.tobytes()
    assert report.n == trained.report["n"]
    told = f"{report.near_duplicates['left_out']} near-duplicates of held-out items"
    assert f"{told} left out" in Path(str(report.paths["markdown"])).read_text(encoding="utf-8")
    assert main(["sweep", str(store), "--heads", "centroid"]) == 0
    assert f"Left out: {told} (first: " in capsys.readouterr().out


def test_each_run_searches_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    find = near_duplicates.find

    def counting(read: Any, units: np.ndarray, **options: Any) -> Any:
        searches.append(len(units))
        return find(read, units, **options)

    monkeypatch.setattr(near_duplicates, "find", counting)
    for run in (
        lambda: train(store),
        lambda: train(store, group_near_duplicates=True),
        lambda: train(store, cv=3),
        lambda: fc.sweep(store, ["centroid", "ridge"], progress=False),
        lambda: fc.finetune(
            store, "body.1", views=1, config=fc.TrainingConfig(epochs=1), backbone=tiny_backbone(), progress=False
        ),
    ):
        run()
        assert searches == [72]
        searches.clear()
    fc.advise(store, budget=0.01, backbone=tiny_backbone(), progress=False)
    assert searches == []  # no time for it
