"""Several labels an image, from a manifest to scored heads and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import UnknownNameError, UsageError
from featcache.metrics import multilabel
from featcache.training.dataset import FeatureDataset
from featcache.training.multilabel import several_labels
from featcache.training.selection import Selection
from tests.training.sides import sides_of

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``list.csv`` of 40 images, whose labels are the colors that they hold, and ``s.fcache``."""
    root, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(4)
    lines = ["path,label,group"]
    for i in range(40):
        held = [name for name in LABELS if rng.random() < 0.5] or ["red"]
        pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        for name in held:
            pixels[..., {"red": 0, "green": 1, "blue": 2}[name]] += 150
        Image.fromarray(pixels).save(root / f"{i:02}.jpg", quality=95)
        lines.append(f"{i:02}.jpg,{' | '.join(reversed(held))},g{i // 2}")
    (root / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fc.extract(root / "list.csv", root / "s.fcache", backbone=tiny_backbone(), progress=False)
    return root


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    return fc.train(place / "s.fcache", "softmax", task="multilabel", progress=False)


def truth(place: Path) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    X, y, items = fc.open(place / "s.fcache").arrays(layers="pooled")
    Y = np.array([[name in text.replace(" ", "").split("|") for name in LABELS] for text in y])
    return X, Y, [item.sha256 for item in items]


def test_the_score_is_that_of_the_head_on_its_holdout(place: Path, bundle: Bundle) -> None:
    X, Y, sha256s = truth(place)
    parts = sides_of(place / "s.fcache", "list")
    test = np.array([parts[sha256] == "test" for sha256 in sha256s])
    assert bundle.classes == LABELS
    assert bundle.task == bundle.report["task"] == "multilabel"
    assert {row.tobytes() for row in bundle.trained_on} == {s for s, t in zip(sha256s, test, strict=True) if not t}
    p = bundle.predict_proba_vectors(X[test])
    assert p is not None
    wanted = multilabel.score(Y[test], p, units=np.arange(40)[test] // 2)
    report = bundle.report
    assert report["score"]["mean_average_precision"] == wanted.mean_average_precision.value
    assert report["score"]["n"] == test.sum()
    for name in ("micro_f1", "macro_f1", "exact_match", "log_loss"):
        found = getattr(wanted, name)
        assert report[name]["value"] == found.value
        assert report[name]["low"] == (None if np.isnan(found.low) else found.low)
    assert report["score"]["mean_average_precision"] > 0.9
    json.dumps(report, allow_nan=False)
    # Groups are whole, and every label is on both sides.
    assert all(len(set(test[i : i + 2])) == 1 for i in range(0, 40, 2))
    assert (Y[test].any(axis=0) & Y[~test].any(axis=0)).all()


def test_it_comes_back_and_answers_for_every_label(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a.fch")
    with safe_open(tmp_path / "a.fch", framework="numpy") as file:
        assert json.loads(file.metadata()["featcache"])["link"] == "sigmoid"
    back = fc.load(tmp_path / "a.fch")
    X, Y, _ = truth(place)
    p = back.predict_proba_vectors(X)
    assert p is not None
    np.testing.assert_array_equal(p, bundle.predict_proba_vectors(X))
    said = back.predict_vectors(X)
    assert (said == (p > 0.5)).all()
    assert (said == Y).mean() > 0.9
    assert {round(total, 3) for total in p.sum(axis=1)} != {1.0}
    paths = [place / f"{i:02}.jpg" for i in range(6)]
    for row, answer, first in zip(
        p,
        back.predict(paths, backbone=tiny_backbone(), progress=False),
        back.predict(paths, backbone=tiny_backbone(), progress=False, top=1),
        strict=False,
    ):
        likely = [LABELS[i] for i in np.argsort(-row) if row[i] > 0.5]
        assert [label for label, _ in answer.labels] == likely
        assert first.labels[0][0] == LABELS[int(row.argmax())]
        assert len(first.labels) == 1


def test_as_one_torch_module_it_gives_log_odds(place: Path, bundle: Bundle) -> None:
    module = bundle.to_torch(tiny_backbone())
    images = [Image.open(place / f"{i:02}.jpg").convert("RGB") for i in range(5)]
    with torch.no_grad():
        p = torch.sigmoid(module(torch.stack([module.transform(image) for image in images])))  # type: ignore[operator]
    wanted = bundle.predict(images, backbone=tiny_backbone(), progress=False, top=3)
    for row, answer in zip(p, wanted, strict=True):
        by_label = dict(answer.labels)
        np.testing.assert_allclose(row, [by_label[name] for name in LABELS], atol=1e-4)


def test_evaluate_scores_what_it_has_not_learned(place: Path, bundle: Bundle) -> None:
    report = fc.evaluate(bundle, place / "s.fcache").to_dict()
    assert report["n"] == bundle.report["score"]["n"]
    assert report["overlap"] == 0
    assert report["mean_average_precision"] == bundle.report["score"]["mean_average_precision"]
    assert report["exact_match"] == bundle.report["exact_match"]["value"]
    assert (report["unknown_labels"], report["without_vectors"]) == ({}, 0)
    assert report["near_duplicates"].keys() == bundle.report["near_duplicates"].keys() - {"grouped"}
    assert set(report["intervals"]) == {"mean_average_precision", "micro_f1", "macro_f1", "exact_match", "log_loss"}


def test_labels_that_the_head_does_not_know_count_as_missed(place: Path, bundle: Bundle, tmp_path: Path) -> None:
    items = fc.open(place / "s.fcache").items()
    lines = ["path,label", *(f"{item.uri},{item.label}|striped" for item in items)]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    before = fc.evaluate(bundle, place / "s.fcache").to_dict()
    report = fc.evaluate(bundle, place / "s.fcache", labels=tmp_path / "labels.csv").to_dict()
    assert report["exact_match"] == 0
    assert report["unknown_labels"] == {"striped": report["n"]}
    assert report["macro_f1"] == pytest.approx(before["macro_f1"] * 3 / 4)
    assert report["log_loss"] > 5


def test_labels_of_the_head_that_occur_nowhere_are_told(
    place: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = fc.open(place / "s.fcache").items()
    (tmp_path / "labels.csv").write_text(
        "path,label\n" + "".join(f"{item.uri},{'red' if i % 2 else 'striped'}\n" for i, item in enumerate(items))
    )
    assert fc.evaluate(bundle, place / "s.fcache").to_dict()["unscored"] == []
    report = fc.evaluate(bundle, place / "s.fcache", labels=tmp_path / "labels.csv").to_dict()
    assert report["unscored"] == ["blue", "green"]
    bundle.save(tmp_path / "a.fch")
    words = ["evaluate", str(tmp_path / "a.fch"), str(place / "s.fcache")]
    assert main(words) == 0
    assert "occur in none" not in capsys.readouterr().out
    assert main([*words, "--labels", str(tmp_path / "labels.csv")]) == 0
    told = capsys.readouterr().out
    assert "2 labels of the head occur in none of these items: 'blue', 'green'" in told
    assert "trained with --labels FILE" in told


def test_every_label_has_scores_of_its_own(place: Path, bundle: Bundle) -> None:
    report = fc.evaluate(bundle, place / "s.fcache").to_dict()
    assert [label["label"] for label in report["per_label"]] == list(LABELS)
    found = [label["average_precision"] for label in report["per_label"]]
    assert np.mean(found) == pytest.approx(report["mean_average_precision"])
    assert np.mean([label["f1"] for label in report["per_label"]]) == pytest.approx(report["macro_f1"])


def test_cross_validation_scores_every_item(place: Path) -> None:
    bundle = fc.train(place / "s.fcache", "softmax", task="multilabel", cv=3, progress=False)
    assert bundle.fitted_on == bundle.report["score"]["n"] == 40
    assert bundle.report["score"]["mean_average_precision"] > 0.9


def test_the_holdout_is_that_of_other_heads(place: Path, bundle: Bundle) -> None:
    before = sides_of(place / "s.fcache", "list")
    fc.train(place / "s.fcache", "softmax", task="multilabel", seed=5, progress=False)
    assert sides_of(place / "s.fcache", "list") == before


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def finish(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_one_label_an_image_takes_the_text_whole_and_says_so(place: Path) -> None:
    heard = Notes()
    bundle = fc.train(place / "s.fcache", "centroid", progress=heard)
    assert any("|" in name for name in bundle.classes)
    assert len([note for note in heard.notes if "--task multilabel" in note]) == 1
    assert bundle.report["task"] == "classify"
    quiet = Notes()
    fc.train(place / "s.fcache", "softmax", task="multilabel", progress=quiet)
    assert quiet.notes == []


def test_plain_labels_need_no_hint(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    heard = Notes()
    fc.extract(draw_images(tmp_path / "p"), tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    fc.train(tmp_path / "s.fcache", "centroid", progress=heard)
    assert heard.notes == []


def test_wrong_tasks_and_heads(place: Path) -> None:
    with pytest.raises(UnknownNameError, match="'multilabel'"):
        fc.train(place / "s.fcache", "softmax", task="multi-label", progress=False)
    with pytest.raises(UsageError, match="--task multilabel takes only the heads softmax, not ridge"):
        fc.train(place / "s.fcache", "ridge", task="multilabel", progress=False)


@pytest.mark.parametrize(
    ("label", "match"),
    [
        (lambda i: "cat", "have one label, 'cat'; "),
        (lambda i: "a|b", "have all of the 2 labels"),
        (lambda i: "cat" if i else "|", "have one label, 'cat' or none; "),
        (lambda i: "|", "have one label, none; "),
    ],
)
def test_nothing_to_learn(place: Path, tmp_path: Path, label: Callable[[int], str], match: str) -> None:
    lines = ["path,label", *(f"{i:02}.jpg,{label(i)}" for i in range(40))]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UsageError, match=match):
        fc.train(place / "s.fcache", "softmax", task="multilabel", labels=tmp_path / "labels.csv", progress=False)


def test_a_label_that_names_nothing(place: Path, tmp_path: Path) -> None:
    lines = ["path,label", *(f"{i:02}.jpg,{'a|b' if i else '| |'}" for i in range(40))]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UsageError, match=r"00\.jpg has the label '\| \|', which names no label"):
        fc.train(place / "s.fcache", "softmax", task="multilabel", labels=tmp_path / "labels.csv", progress=False)


def test_none_of_the_labels_is_learned_and_an_empty_cell_is_left_out_and_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = fc.open(place / "s.fcache").items()
    text = [item.label if i > 9 else "" if i % 2 else " | " for i, item in enumerate(items)]
    rows = [f"{item.uri},{label}" for item, label in zip(items, text, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    words = ["train", str(place / "s.fcache"), "-o", str(tmp_path / "a.fch"), "--labels", str(tmp_path / "labels.csv")]
    assert main([*words, "--task", "multilabel", "--cv", "2"]) == 0
    out = capsys.readouterr().out
    assert "Left out: 5 images without a label\n" in out
    assert "give them the label |" in out
    bundle = fc.load(tmp_path / "a.fch")
    assert bundle.classes == LABELS
    assert (bundle.fitted_on, bundle.report["without_labels"]) == (35, 5)
    assert {items[i].sha256 for i in range(0, 10, 2)} < {row.tobytes() for row in bundle.trained_on}
    dataset = FeatureDataset.from_store(fc.open(place / "s.fcache"), select=Selection(labels=tmp_path / "labels.csv"))
    found = several_labels(dataset).y
    assert (found.any(axis=1) == [item.uri > "09.jpg" for item in dataset.items]).all()


def test_labels_are_told_apart(place: Path) -> None:
    dataset = FeatureDataset.from_store(fc.open(place / "s.fcache"))
    found = several_labels(dataset, ("red", "none"))
    assert found.labels == ("red", "none", "blue", "green")
    _, Y, _ = truth(place)
    assert (found.y == np.column_stack([Y[:, 2], np.zeros(40, bool), Y[:, 0], Y[:, 1]])).all()


def test_from_the_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A store of its own: what other heads were scored on stays held out.
    head, store = str(tmp_path / "a.fch"), tmp_path / "s.fcache"
    fc.extract(place / "list.csv", store, backbone=tiny_backbone(), progress=False)
    options = ["--head", "softmax", "--task", "multilabel"]
    assert main(["train", str(store), "-o", head, *options]) == 0
    assert "Mean average precision: " in capsys.readouterr().out
    assert main(["train", str(store), "-o", head, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"]["mean_average_precision"] > 0.9
    assert main(["evaluate", head, str(store)]) == 0
    shown = capsys.readouterr().out
    assert "All labels right: " in shown
    (heading,) = [line for line in shown.splitlines() if line.startswith("label")]
    assert heading.split() == ["label", "items", "precision", "recall", "95", "%", "interval", "F1", "AP"]
    assert main(["evaluate", head, str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] > 0.5
    assert main(["train", str(store), "-o", head, "--task", "multilabel", "--head", "knn"]) == 2
    assert "softmax" in capsys.readouterr().err


def test_what_is_meant_for_one_label_an_image_is_refused(
    place: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = place / "s.fcache"
    with pytest.raises(UsageError, match="no head takes class weights"):
        fc.train(store, task="multilabel", class_weight="balanced", progress=False)
    with pytest.raises(UsageError, match="cannot be compared"):
        fc.compare(bundle, bundle, store)
    bundle.save(tmp_path / "a.fch")
    (tmp_path / "no.fch").write_text("no head")
    capsys.readouterr()
    for option, value, told in (
        ("--confusion", tmp_path / "a.png", "Omit --confusion"),
        ("--against", tmp_path / "a.fch", "Omit --against"),
    ):
        assert main(["evaluate", str(tmp_path / "a.fch"), str(store), option, str(value)]) == 2
        heard = capsys.readouterr().err
        assert told in heard
        assert heard.count("\n") == 1  # before any work began
    assert not (tmp_path / "a.png").exists()
    one = tmp_path / "one.fch"
    fc.train(store, "centroid", progress=False).save(one)
    for other, told in ((tmp_path / "a.fch", "several labels"), (tmp_path / "no.fch", "is not a featcache head")):
        assert main(["evaluate", str(one), str(store), "--against", str(other)]) == 2
        heard = capsys.readouterr().err
        assert told in heard
        assert heard.count("\n") == 1


def test_near_duplicates_are_kept_together_on_request(place: Path) -> None:
    bundle = fc.train(place / "s.fcache", task="multilabel", group_near_duplicates=True, progress=False)
    found = bundle.report["near_duplicates"]
    assert found["across"] in (0, None)
    assert found["grouped"] == (found["note"] is None)
