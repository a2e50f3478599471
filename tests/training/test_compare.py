"""Two heads on the items that neither has seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.svm import LinearSVC

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, UnknownNameError
from featcache.heads.predictors import LinearPredictor


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("compared")
    draw_images(root / "photos", ("cats", "dogs"), 20)
    fc.extract(
        root / "photos", root / "s.fcache", backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], progress=False
    )
    return root / "s.fcache"


@pytest.fixture(scope="module")
def good(store: Path) -> fc.Bundle:
    return fc.train(store, progress=False)


@pytest.fixture(scope="module")
def guess(store: Path) -> fc.Bundle:
    return fc.train(store, DummyClassifier(strategy="constant", constant="cats"), progress=False)


CATS, SCORED = 4, 10
"""Of the 40 images the cats in the hold-out, and all of it."""


def test_the_better_head_is_told(store: Path, good: fc.Bundle, guess: fc.Bundle) -> None:
    found = fc.compare(good, guess, store)
    alone = fc.evaluate(good, store, progress=False)
    assert (found.n, found.overlap) == (alone.n, 0) == (SCORED, 0)
    assert found.protocol == "the held-out items that neither head was trained on"
    assert (found.accuracy.a, found.accuracy.b) == (alone.accuracy, CATS / SCORED)
    assert found.accuracy.difference == alone.accuracy - CATS / SCORED
    assert found.accuracy.better > 0.95
    assert found.log_loss is not None
    assert found.log_loss.a == pytest.approx(alone.log_loss)
    assert found.log_loss.difference < 0
    assert found.log_loss.better > 0.95
    swapped = fc.compare(guess, good, store)
    assert swapped.accuracy.difference == -found.accuracy.difference
    assert found.to_dict()["accuracy"]["a"] == alone.accuracy


def test_what_either_was_trained_on_takes_no_part(store: Path, tmp_path: Path, good: fc.Bundle) -> None:
    items = fc.open(store).items()
    half = [item for i, item in enumerate(items) if i % 2]
    lines = ["path,label", *(f"{item.uri},{item.label}" for item in half)]
    (tmp_path / "half.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = shutil.copytree(store, tmp_path / "other.fcache")
    theirs = fc.train(other, labels_only=tmp_path / "half.csv", cv=2, progress=False)
    unseen = [item for item in items if not good.overlap([item.sha256]) and not theirs.overlap([item.sha256])]
    assert 0 < len(unseen) < SCORED
    found = fc.compare(good, theirs, store)
    assert (found.n, found.overlap) == (len(unseen), 0)


def test_heads_of_different_layers_and_spaces(store: Path, tmp_path: Path, good: fc.Bundle) -> None:
    both = shutil.copytree(store, tmp_path / "both.fcache")
    photos = store.parent / "photos"
    network = tiny_backbone(seed=5)
    fc.extract(photos, both, backbone=network, progress=False)
    fingerprint = network.recipe.fingerprint
    elsewhere = fc.train(both, space=fingerprint, progress=False)
    early = fc.train(both, layers="body.0:mean", space=good.recipe.fingerprint, progress=False)
    for other in (elsewhere, early):
        found = fc.compare(good, other, both)
        assert found.n == SCORED
        assert found.accuracy.b == fc.evaluate(other, both, progress=False).accuracy
    with pytest.raises(RecipeMismatchError, match="weights"):
        fc.compare(good, elsewhere, store)


def test_a_head_without_probabilities_is_compared_by_accuracy(store: Path, good: fc.Bundle) -> None:
    found = fc.compare(good, fc.train(store, LinearSVC(), progress=False), store)
    assert found.log_loss is None
    assert found.to_dict()["log_loss"] is None
    assert 0 <= found.accuracy.b <= 1


def test_nothing_left_or_no_such_split(store: Path, good: fc.Bundle) -> None:
    with pytest.raises(MissingVectorsError, match="One of the heads was trained on all"):
        fc.compare(good, fc.train(store, cv=2, progress=False), store)
    with pytest.raises(UnknownNameError):
        fc.compare(good, good, store, split="nowhere")


def test_evaluate_has_a_table_of_classes(store: Path, guess: fc.Bundle) -> None:
    found = fc.evaluate(guess, store, progress=False)
    cats, dogs = found.per_class
    assert (cats.label, cats.items, cats.recall, cats.precision) == ("cats", CATS, 1.0, CATS / SCORED)
    assert (dogs.label, dogs.items, dogs.recall, dogs.precision) == ("dogs", SCORED - CATS, 0.0, None)
    np.testing.assert_array_equal(found.confusion, [[CATS, 0], [SCORED - CATS, 0]])
    # Always sure, right as often as there are cats.
    assert found.ece == pytest.approx(1 - CATS / SCORED)
    plain = found.to_dict()
    assert plain["per_class"][0]["recall_low"] == pytest.approx(4 / (4 + 1.959964**2))
    assert not {"confusion", "labels"} & plain.keys()


@pytest.fixture
def said(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[fc.Bundle, fc.Bundle], dict[str, str]]:
    def run(a: fc.Bundle, b: fc.Bundle) -> dict[str, str]:
        """What `evaluate --against` says of each measure."""
        for bundle, name in ((a, "a.fch"), (b, "b.fch")):
            bundle.save(tmp_path / name, force=True)
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "a.fch"), str(store), "--against", str(tmp_path / "b.fch")]) == 0
        lines = capsys.readouterr().out.replace(f"{tmp_path}/", "").split("\n")
        return {
            line.split(":")[0].strip(): lines[place + 1].strip()
            for place, line in enumerate(lines)
            if line.startswith(("  Accuracy: a.fch", "  Log-loss: a.fch"))
        }

    return run


def test_differences_within_rounding_are_called_equal(
    store: Path, good: fc.Bundle, said: Callable[[fc.Bundle, fc.Bundle], dict[str, str]]
) -> None:
    predictor = good.predictor
    assert isinstance(predictor, LinearPredictor)
    noise = np.random.default_rng(0).normal(scale=1e-7, size=predictor.weight.shape).astype(np.float32)
    other = replace(good, predictor=replace(predictor, weight=predictor.weight * (1 + noise)))
    difference = fc.compare(good, other, store).log_loss
    assert difference is not None
    assert 0 < abs(difference.difference) < 1e-5
    assert said(good, other) == {
        "Accuracy": "Equal; no interval: equal on all items.",
        "Log-loss": "Equal, to the digits shown.",
    }


def test_what_the_interval_does_not_decide_is_said_in_words(
    store: Path, good: fc.Bundle, said: Callable[[fc.Bundle, fc.Bundle], dict[str, str]]
) -> None:
    predictor = good.predictor
    assert isinstance(predictor, LinearPredictor)
    unsure = replace(predictor, weight=predictor.weight * np.float32(0.1), bias=predictor.bias * np.float32(0.1))
    # Surer of one class: better on some items and worse on others.
    other = replace(good, predictor=replace(unsure, bias=unsure.bias + np.array([0.3, 0], np.float32)))
    first = replace(good, predictor=unsure)
    found = fc.compare(first, other, store).log_loss
    assert found is not None
    assert found.low <= 0 <= found.high
    told = said(first, other)["Log-loss"]
    assert told.startswith(f"They cannot be told apart on {SCORED} items: a.fch is ")
    assert "resamples" not in told
    told = said(good, first)["Log-loss"]
    assert told.startswith("a.fch is 0.")
    assert " better (95 % interval: " in told
    assert told.endswith("and better in 100.0 % of the resamples.")
