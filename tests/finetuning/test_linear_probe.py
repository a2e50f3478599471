"""The linear probe is returned where fine-tuning does not beat it, and then all items teach it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.optimize import minimize_scalar
from scipy.stats import permutation_test
from torch import nn

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.progress import Silent
from featcache.finetuning import loop
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.finetuning.history import Curve
from featcache.finetuning.linear_probe import CHANCE, train_from_probe
from tests.finetuning.problems import Rows, bits, clouds, perceptron, stages, whole
from tests.finetuning.stores import extracted

LONG = Schedule(epochs=30, lr=3e-2, batch_size=50, patience=30)


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def trained(start: nn.Sequential, config: Schedule, seed: int, **options: object) -> tuple[nn.Sequential, Curve]:
    x, y = clouds(300, 4, 3)
    seen, told = clouds(60, 4, 3, seed=seed)
    model = copy.deepcopy(start)
    given = {"progress": Silent(), "units": np.arange(60)} | options
    curve = train_from_probe(
        model, stages(model), Rows(x.float(), y, 50), whole(seen.float(), told), config,
        **given,  # type: ignore[arg-type]
    )  # fmt: skip
    return model, curve


def test_training_that_helps_is_taken() -> None:
    start = perceptron(4, 3)
    model, curve = trained(start, LONG, seed=0)
    assert curve.kept == curve.best.number > 0
    assert curve.linear_probe is not None
    assert not curve.linear_probe.kept
    assert curve.best.validation_loss < curve.linear_probe.validation_loss
    assert bits(model)["0.weight"] != bits(start)["0.weight"]
    assert Curve.from_dict(curve.to_dict()) == curve


def test_training_that_does_not_help_is_undone() -> None:
    start, _ = trained(perceptron(4, 3), LONG, seed=0)
    notes = Notes()
    model, curve = trained(start, Schedule(epochs=2, lr=1.0, batch_size=50), seed=0, progress=notes)
    assert curve.kept == 0
    assert curve.to_dict()["kept_epoch"] == 0
    assert bits(model) == bits(start)
    assert not model.training
    assert any("On 60 validation items epoch" in text for text in notes.told)
    said = "is worse than the linear probe (a lower learning rate than 1 may change that): validation loss "
    assert any(said in text for text in notes.told)


def temperature(scores: np.ndarray, numbers: np.ndarray) -> float:
    """That of the least log-loss, where each is right but for a small part as by Platt (1999)."""
    wrong = 1 / (len(numbers) + 2)
    rows = np.arange(len(numbers))
    others = scores.copy()
    others[rows, numbers] = -np.inf

    def loss(slope: float) -> float:
        z = scores * slope
        target = (1 - wrong) * z[rows, numbers] + wrong * z[rows, others.argmax(1)]
        return float((np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - target).mean())

    return 1 / float(minimize_scalar(loss, bounds=(1e-3, 1e3), method="bounded", options={"xatol": 1e-10}).x)


def test_a_gain_that_may_be_chance_is_not_taken() -> None:
    """Of one epoch on validation sets drawn at random, what is taken is what scipy's permutation test calls a gain."""
    start, _ = trained(perceptron(4, 3), LONG, seed=0)
    brief = Schedule(epochs=1, lr=1e-3, batch_size=50)
    decided = []
    for seed in range(12):
        seen, told = clouds(60, 4, 3, seed=seed)
        model, x, y = copy.deepcopy(start), *clouds(300, 4, 3)
        check = whole(seen.float(), told)
        loop.train(model, stages(model), Rows(x.float(), y, 50), check, brief, keep_statistics=True)
        with torch.no_grad():
            before, after = (
                nn.functional.cross_entropy(z / temperature(z.numpy(), told.numpy()), told, reduction="none").numpy()
                for z in (net.eval()(seen.float()).double() for net in (start, model))
            )
        gains = before - after
        tested = permutation_test(
            (before, after), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
            alternative="greater", n_resamples=5000, vectorized=True, rng=np.random.default_rng(seed),
        )  # fmt: skip
        _, curve = trained(start, brief, seed=seed)
        assert curve.linear_probe is not None
        assert curve.linear_probe.p == pytest.approx(float(tested.pvalue), abs=0.03) or gains.mean() <= 0
        assert (curve.kept > 0) == (curve.linear_probe.p <= CHANCE)
        decided.append((curve.kept > 0, bool(gains.mean() > 0)))
    # Some are ahead, some are behind, and some are ahead by what may be chance.
    assert {(True, True), (False, False), (False, True)} <= set(decided)


def test_copies_of_items_are_no_further_evidence() -> None:
    """Each validation item five times: the same decision with units, while as single items they look surer."""
    start, _ = trained(perceptron(4, 3), LONG, seed=0)
    brief = Schedule(epochs=1, lr=1e-3, batch_size=50)
    x, y = clouds(300, 4, 3)
    decided = []
    for seed in range(12):
        seen, told = clouds(60, 4, 3, seed=seed)
        five = whole(seen.float().repeat(5, 1), told.repeat(5))
        kept = []
        for units in (np.tile(np.arange(60), 5), np.arange(300)):
            model = copy.deepcopy(start)
            rows = Rows(x.float(), y, 50)
            kept.append(
                train_from_probe(model, stages(model), rows, five, brief, units=units, progress=Silent()).kept > 0
            )
        decided.append((trained(start, brief, seed=seed)[1].kept > 0, *kept))
    # The temperature takes one row to be wrong, so it differs a little with the number of rows.
    assert sum(once != units for once, units, _ in decided) <= 1
    assert sum(single for _, _, single in decided) > sum(units for _, units, _ in decided)


def test_normalizations_keep_their_statistics_and_learn_their_scale() -> None:
    start, _ = trained(perceptron(4, 3), LONG, seed=0)
    x, y = clouds(300, 4, 3)
    model = copy.deepcopy(start)
    loop.train(
        model, stages(model), Rows(x.float(), y, 50), whole(x.float(), y), LONG, keep_statistics=True, progress=False
    )
    before, after = start.state_dict(), model.state_dict()
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_a_checkpoint_leads_to_the_same_decision(tmp_path: Path) -> None:
    start = perceptron(4, 3)
    whole_model, whole_curve = trained(start, LONG, seed=0)
    path = tmp_path / "c.ckpt"

    class CutOffError(Exception):
        pass

    def cut_off(epoch: int, step: int) -> None:
        if epoch == 20:
            raise CutOffError

    x, y = clouds(300, 4, 3)
    seen, told = clouds(60, 4, 3)
    model = copy.deepcopy(start)
    with pytest.raises(CutOffError):
        train_from_probe(
            model, stages(model), Rows(x.float(), y, 50, before=cut_off), whole(seen.float(), told), LONG,
            checkpoint=path, units=np.arange(60), progress=Silent(),
        )  # fmt: skip
    again, curve = trained(start, LONG, seed=0, checkpoint=path)
    assert bits(again) == bits(whole_model)
    assert curve.linear_probe == whole_curve.linear_probe


@pytest.fixture
def solved(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    """A store of images that the frozen network tells apart."""
    return extracted(draw_images(tmp_path / "photos"), tmp_path / "s.fcache", tiny_backbone())


@pytest.mark.parametrize("layer", ["body.0", None])
def test_what_gains_nothing_is_saved_as_the_head_of_train(solved: Path, tmp_path: Path, layer: str | None) -> None:
    """A small file that reads ``pooled``, whatever layers were trained, and to the bit the head of `train`."""
    head = fc.train(solved, progress=False)
    config = Schedule(epochs=1, lr=1e-2, batch_size=8)
    made = finetune(solved, layer, views=2, config=config, backbone=tiny_backbone(), progress=False)
    assert made.chosen == {"epoch": 0, **{f"output_{name}": value for name, value in head.chosen.items()}}
    assert (made.layers, made.recipe, made.weights, made.fitted_on) == (head.layers, head.recipe, None, head.fitted_on)
    assert made.report["score"]["accuracy"] == head.report["score"]["accuracy"]
    for bundle, name in ((head, "head.fch"), (made, "made.fch")):
        bundle.save(tmp_path / name)
    back = fc.load(tmp_path / "made.fch")
    X = fc.open(solved).arrays(layers="pooled")[0]
    p, expected = back.predict_proba_vectors(X), head.predict_proba_vectors(X)
    assert p is not None
    assert expected is not None
    assert p.tobytes() == expected.tobytes()
    size = {name: len(load_file(tmp_path / name)) for name in ("head.fch", "made.fch")}
    assert size["head.fch"] == size["made.fch"]
    photos = sorted((tmp_path / "photos").rglob("*.jpg"))
    assert back.predict(photos, backbone=tiny_backbone()) == head.predict(photos, backbone=tiny_backbone())
    assert fc.evaluate(back, solved, progress=False).accuracy == made.report["score"]["accuracy"]
    assert fc.compare(back, head, solved).accuracy.difference == 0
    module = back.to_torch(tiny_backbone())
    assert module.classes == head.classes
