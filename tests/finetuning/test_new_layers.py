"""New hidden layers on the frozen part: trained like any other cell, and saved as a perceptron on its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import UsageError
from featcache.core.progress import Silent
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.finetuning.linear_probe import CHANCE
from featcache.finetuning.loop import validation_scores
from featcache.finetuning.trainers import TrainingRun, mlp_predictor, train_new_layers
from featcache.heads.predictors import LinearPredictor, MLPPredictor
from featcache.training.bundle import Bundle
from tests.finetuning.problems import Heard
from tests.finetuning.stores import blind_behind_stem, contents, draw_hues, extracted
from tests.finetuning.test_training_items import dataset

pytestmark = pytest.mark.slow
BACKBONE = tiny_backbone()
SHORT = Schedule(epochs=3, lr=1e-2, batch_size=8, dropout=0.2, hidden=(8,))


@pytest.fixture
def store(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    return extracted(draw_images(tmp_path / "photos"), tmp_path / "s.fcache", BACKBONE)


def run(store: Path, layer: str | None, **options: Any) -> Bundle:
    given = {"init": "new", "config": SHORT, "views": 2, "backbone": BACKBONE, "progress": False}
    return finetune(store, layer, **(given | options))


def bits(bundle: Bundle) -> list[bytes]:
    predictor = bundle.predictor
    if isinstance(predictor, LinearPredictor):  # the linear probe was kept
        return [predictor.weight.tobytes(), predictor.bias.tobytes()]
    assert isinstance(predictor, MLPPredictor)
    return [array.tobytes() for array in (*predictor.weights, *predictor.biases)]


def test_at_a_split_point(tmp_path: Path) -> None:
    network = blind_behind_stem()
    store = extracted(draw_hues(tmp_path / "photos"), tmp_path / "s.fcache", network)
    given = {"backbone": network, "config": replace(SHORT, epochs=12)}
    before = contents(store)
    bundle = run(store, "body.0", **given)
    assert contents(store) == before
    assert bundle.head == "finetune"
    assert [use.name for use in bundle.layers] == ["stem:mean"]
    said = [bundle.report[name] for name in ("strategy", "init", "from_layer")]
    assert said == ["finetune", "new", "body.0"]
    assert len(bundle.report["views"]) == 2
    assert 1 < len(bundle.report["curve"]["epochs"]) <= 12
    probe = bundle.report["curve"]["linear_probe"]  # of what the whole network sees, which is the sum of the colors
    assert (probe["kept"], probe["p"] < CHANCE) == (False, True)
    assert bundle.chosen["epoch"] == bundle.report["curve"]["best_epoch"] == bundle.report["curve"]["kept_epoch"]
    # Other views that lie there are not learned from.
    fc.extract(tmp_path / "photos", store, backbone=network, layers=["stem:mean"], views=3, seed=4, progress=False)
    assert bits(run(store, "body.0", **given)) == bits(bundle)
    assert bits(run(store, "body.0", seed=1, **given)) != bits(bundle)


def test_where_they_do_not_beat_the_linear_probe_it_is_the_head_of_train(store: Path, tmp_path: Path) -> None:
    heard = Heard()
    bundle = run(store, "body.0", config=replace(SHORT, epochs=1, lr=1e-6), progress=heard)
    assert bundle.report["curve"]["linear_probe"]["kept"]
    assert bundle.chosen["epoch"] == 0
    assert [use.name for use in bundle.layers] == ["pooled"]
    trained = fc.train(store, views="first", progress=False)
    assert bits(bundle) == bits(trained)
    assert (bundle.fitted_on, bundle.report["score"]["accuracy"]) == (
        trained.fitted_on,
        trained.report["score"]["accuracy"],
    )
    assert bundle.report["score"]["protocol"].endswith("learned from view 0 of each image, scored on view 0")
    assert any("does not beat the linear probe" in note or "is worse than" in note for note in heard.notes)
    bundle.save(tmp_path / "a.fch")
    assert fc.load(tmp_path / "a.fch").predict(tmp_path / "photos", backbone=BACKBONE)


def test_the_vectors_of_the_linear_probe_are_extracted_where_they_lack(tmp_path: Path) -> None:
    network = blind_behind_stem()
    store = extracted(draw_hues(tmp_path / "photos", each=10), tmp_path / "s.fcache", network, layers=["stem:mean"])
    bundle = run(store, "body.0", views=1, backbone=network)
    assert bundle.report["curve"]["linear_probe"] is not None
    assert fc.open(store).space().layers["pooled"].rows == 20


def test_behind_the_whole_network(store: Path, tmp_path: Path) -> None:
    bundle = run(store, "pooled", views=1)
    assert [use.name for use in bundle.layers] == ["pooled"]
    assert bundle.report["views"] == ["0"]
    bundle.save(tmp_path / "a.fch")
    paths = sorted((tmp_path / "photos").rglob("*.jpg"))
    back = Bundle.load(tmp_path / "a.fch")
    assert bits(back) == bits(bundle)
    assert back.predict(paths, backbone=BACKBONE) == bundle.predict(paths, backbone=BACKBONE)
    report = fc.evaluate(back, store, backbone=BACKBONE, progress=False)
    assert (report.accuracy, report.overlap) == (bundle.report["score"]["accuracy"], 0)
    x = torch.rand(2, 3, *BACKBONE.network.size)
    assert back.to_torch(BACKBONE)(x).shape == (2, 2)


def test_it_learns_what_the_frozen_layers_behind_the_split_cannot_tell(tmp_path: Path) -> None:
    store = extracted(draw_hues(tmp_path / "photos"), tmp_path / "s.fcache", blind_behind_stem())
    assert fc.train(store, progress=False).report["score"]["accuracy"] <= 0.75
    config = replace(SHORT, epochs=20, hidden=(16, 8))
    bundle = run(store, "body.0", config=config, backbone=blind_behind_stem())
    assert bundle.report["score"]["accuracy"] >= 0.9
    assert [weight.shape[0] for weight in bundle.predictor.weights] == [16, 8, 2]  # type: ignore[union-attr]


def test_a_stopped_training_resumes_to_the_same_bits(store: Path, tmp_path: Path) -> None:
    whole = run(store, "pooled", checkpoint=tmp_path / "whole.ckpt")

    class StoppedError(Exception):
        pass

    class Stopping(Silent):
        def start(self, what: str, total: int | None, unit: str) -> None:
            if what.startswith("epoch 3"):
                raise StoppedError

    path = tmp_path / "c.ckpt"
    with pytest.raises(StoppedError):
        run(store, "pooled", checkpoint=path, progress=Stopping())
    assert path.is_file()
    resumed = run(store, "pooled", checkpoint=path)
    assert bits(resumed) == bits(whole)
    first, second = (
        [{**epoch, "seconds": 0} for epoch in bundle.report["curve"]["epochs"]] for bundle in (whole, resumed)
    )
    assert first == second
    with pytest.raises(UsageError, match=r"--hidden was \[8\] and is now \[9\]"):
        run(store, "pooled", config=replace(SHORT, hidden=(9,)), checkpoint=path)


def test_patience_ends_it(store: Path) -> None:
    curve = run(store, "pooled", config=replace(SHORT, epochs=60, lr=0.3, patience=2)).report["curve"]
    assert curve["ended"] == "patience"
    assert len(curve["epochs"]) < 60


def test_the_saved_layers_are_those_that_were_trained() -> None:
    """Their first layer takes vectors as they are, where the one that was trained took standardized ones."""
    rng = np.random.default_rng(0)
    given = dataset([("ab"[i % 2], None, None) for i in range(60)])
    X = (5 + 3 * rng.normal(size=(60, 2)) + 20 * (given.y == "b")[:, None]).astype(np.float32)
    X = np.c_[X, np.full(60, 7, np.float32)]  # one number never varies
    given = replace(given, read=lambda at: X[at], shapes=[(3,)])
    run_of = TrainingRun(given, np.arange(60), np.arange(0), SHORT, Silent())
    result = train_new_layers(run_of, lambda at: np.zeros((len(at), 2), np.float32), "cpu")
    assert result.curve.kept
    scores, _ = validation_scores(result.model, lambda: [(torch.from_numpy(X), torch.zeros(60))], "float32")
    np.testing.assert_allclose(mlp_predictor(result).scores(X), scores.numpy(), atol=1e-4)


def test_without_a_layer_it_is_refused(store: Path) -> None:
    with pytest.raises(UsageError, match=r"--init new needs --from LAYER.*Valid are: --from LAYER with --init pretr"):
        run(store, None)
