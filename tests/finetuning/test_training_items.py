"""Which items train and which validate, their numbers and batches, and the stages of a network."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featcache.backbones import tiny_backbone
from featcache.core.errors import UsageError
from featcache.core.progress import Silent
from featcache.finetuning.batches import CachedBatches, activations_in_order, batch_count, shuffled
from featcache.finetuning.config import network_stages
from featcache.finetuning.linear_probe import linear_predictor, linear_probe_init, refit, scale_by_temperature
from featcache.finetuning.validation import class_ids_of, items_digest, validation_rows
from featcache.heads import resolve_head
from featcache.metrics import splits
from featcache.metrics.calibration import fit_temperature
from featcache.store import Item
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import fit


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def dataset(rows: list[tuple[str, str | None, str | None]], views: int = 1) -> FeatureDataset:
    """Items of (label, split, group); the vector of row r in view v is (r, v)."""
    items = [Item("s", f"{i}", bytes([i]) * 32, *row) for i, row in enumerate(rows)]
    return FeatureDataset(
        items=items,
        y=np.array([item.label for item in items], dtype=str),
        groups=splits.units(items),
        layers=["pooled"],
        shapes=[(2,)],
        recipe=None,
        read=lambda at: np.stack([at, np.zeros_like(at)], axis=1).astype(np.float32),
        views=tuple(str(view) for view in range(views)),
        view_reader=None if views == 1 else lambda at: np.stack(np.divmod(at, views), axis=1).astype(np.float32),
    )


LABELS = st.sampled_from("abc")
GROUPS = st.one_of(st.none(), st.sampled_from("uvwxyz"))
SPLITS = st.sampled_from(["train", "val", "test", None])


@given(st.lists(st.tuples(LABELS, SPLITS, GROUPS), min_size=4, max_size=30), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_no_unit_is_trained_on_and_validated_on(rows: list[Any], seed: int) -> None:
    those = dataset(rows)
    train_rows = np.array([i for i, row in enumerate(rows) if row[1] in ("train", None)], dtype=np.int64)
    scored = np.array([i for i, row in enumerate(rows) if row[1] == "test"], dtype=np.int64)
    train_rows = train_rows[~np.isin(those.groups[train_rows], those.groups[scored])]
    if len(set(those.y[train_rows].tolist())) < 2:
        return
    told = Notes()
    try:
        fit, validation = validation_rows(those, train_rows, scored, seed, told)
    except UsageError:
        return
    assert not set(those.groups[fit].tolist()) & set(those.groups[validation].tolist())
    assert not set(those.groups[validation].tolist()) & set(those.groups[scored].tolist())
    assert set(fit.tolist()) <= set(train_rows.tolist())
    assert set(those.y[fit].tolist()) == set(those.y[train_rows].tolist()) >= set(those.y[validation].tolist())
    own = {i for i, row in enumerate(rows) if row[1] == "val"}
    if set(validation.tolist()) <= own:
        assert validation.tolist() == sorted(validation.tolist())
    else:
        assert sorted([*fit, *validation]) == train_rows.tolist()
    unheard = set(those.y[fit].tolist()) - set(those.y[validation].tolist())
    assert bool(told.told) == bool(unheard)
    again = validation_rows(those, train_rows, scored, seed, Silent())
    assert (again[0].tolist(), again[1].tolist()) == (fit.tolist(), validation.tolist())


def test_a_part_of_each_class_is_set_aside() -> None:
    those = dataset([("a", None, None)] * 40 + [("b", None, None)] * 20)
    _, validation = validation_rows(those, np.arange(60), np.zeros(0, np.int64), 0, Silent())
    assert np.unique(those.y[validation], return_counts=True)[1].tolist() == [6, 3]
    other = validation_rows(those, np.arange(60), np.zeros(0, np.int64), 1, Silent())[1]
    assert other.tolist() != validation.tolist()


def test_a_class_that_nothing_validates_is_told() -> None:
    told = Notes()
    those = dataset([("a", "train", None)] * 3 + [("b", "train", None)] * 3 + [("a", "val", None), ("c", "val", None)])
    fit, validation = validation_rows(those, np.arange(6), np.zeros(0, np.int64), 0, told)
    assert (fit.tolist(), validation.tolist()) == ([0, 1, 2, 3, 4, 5], [6])
    assert len(told.told) == 1
    assert "1 of 2 classes ('b') have no item that validates" in told.told[0]


def test_a_class_that_only_lies_in_mixed_units_is_trained_on() -> None:
    those = dataset([("a", None, f"g{i // 3}") for i in range(30)] + [("b", None, "g0")])
    for seed in range(12):
        fit, validation = validation_rows(those, np.arange(31), np.zeros(0, np.int64), seed, Silent())
        assert 30 in fit
        assert len(validation)


def test_too_few_items_to_validate_on() -> None:
    those = dataset([("a", None, None), ("b", None, None)])
    with pytest.raises(UsageError, match="every class needs two independent images"):
        validation_rows(those, np.arange(2), np.zeros(0, np.int64), 0, Silent())
    grouped = dataset([("a", "train", "g"), ("b", "train", None), ("a", "val", "g"), ("b", "val", None)])
    with pytest.raises(UsageError, match="All training items of class 'a'"):
        validation_rows(grouped, np.arange(2), np.zeros(0, np.int64), 0, Silent())


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 5), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_an_epoch_has_each_item_once(items: int, size: int, seed: int, epoch: int) -> None:
    batches = list(shuffled(items, size, seed, epoch))
    assert len(batches) == batch_count(items, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(items))
    lengths = [len(batch) for batch in batches]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= min(2, items)
    # Where batches of one are asked for they are of two or three, as batch normalization needs.
    assert max(lengths) <= max(size, 3)
    again = list(shuffled(items, size, seed, epoch))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_each_item_once_an_epoch_in_one_of_its_views() -> None:
    those, rows = dataset([("a", None, None)] * 30, views=3), np.arange(5, 25)
    batches = CachedBatches(those, rows, np.arange(20), 8, seed=3)
    assert batches.steps == 3
    seen = np.zeros((20, 3), dtype=int)
    for epoch in range(1, 61):
        drawn = [(x.numpy(), y.numpy()) for x, y in batches(epoch)]
        X, y = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        assert sorted(y.tolist()) == list(range(20))
        assert X[:, 0].tolist() == rows[y].tolist()
        np.add.at(seen, (y, X[:, 1].astype(int)), 1)
        repeated = [x.numpy() for x, _ in batches(epoch)]
        assert all(np.array_equal(a, b) for (a, _), b in zip(drawn, repeated, strict=True))
    # 60 draws of three: all but surely between 5 and 40 of each.
    assert (seen.sum(axis=1) == 60).all()
    assert seen.min() >= 5
    assert seen.max() <= 40
    parts = [(x.numpy(), y.numpy()) for x, y in activations_in_order(those, rows, np.arange(20), 8)]
    assert [len(y) for _, y in parts] == [8, 8, 4]
    assert np.concatenate([x[:, 0] for x, _ in parts]).tolist() == rows.tolist()
    assert np.concatenate([y for _, y in parts]).tolist() == list(range(20))


def test_the_numbers_of_classes_are_those_of_learned_items() -> None:
    y = np.array(["d", "a", "b", "d", "c", "e"])
    classes, numbers = class_ids_of(y, np.array([0, 2, 3]))
    assert classes == ("b", "d")
    assert numbers.tolist() == [1, -1, 0, 1, -1, -1]


def test_the_digest_tells_items_labels_and_parts_apart() -> None:
    rows = [("a", None, None), ("b", None, None), ("a", None, None)]
    first = items_digest(dataset(rows), np.array([0, 1]), np.array([2]))
    assert first == items_digest(dataset(rows), np.array([0, 1]), np.array([2]))
    others = [
        items_digest(dataset(rows), np.array([1, 0]), np.array([2])),
        items_digest(dataset(rows), np.array([0, 1, 2]), np.array([], dtype=np.int64)),
        items_digest(dataset(rows), np.array([0]), np.array([1, 2])),
        items_digest(dataset([("b", None, None), *rows[1:]]), np.array([0, 1]), np.array([2])),
    ]
    assert len({first, *others}) == 5
    assert dataset(rows).contents(np.array([2, 0, 2])).tolist() == [[0] * 32, [2] * 32]


def overlapping(n: int) -> tuple[FeatureDataset, np.ndarray]:
    rng = np.random.default_rng(0)
    given = dataset([("ab"[i % 2], None, None) for i in range(n)])
    return given, (rng.normal(size=(n, 5)) + 0.7 * (given.y == "b")[:, None]).astype(np.float32)


def test_the_output_begins_as_the_path_solver_ends() -> None:
    given, X = overlapping(60)
    rows = np.arange(5, 60)
    output, chosen = linear_probe_init(lambda at: X[at], given, rows, 0, Silent())
    path = resolve_head("softmax").make().fit(X[rows], given.y[rows], groups=given.groups[rows])
    predictor = linear_predictor(output, ("a", "b"))
    np.testing.assert_allclose(predictor.probabilities(X), path.predict_proba(X), atol=1e-6)
    assert chosen == {f"output_{name}": value for name, value in path.chosen_.items()}
    assert output.weight.requires_grad


def test_refitted_it_is_the_head_of_train() -> None:
    given, X = overlapping(60)
    given = replace(given, read=lambda at: X[at], view_reader=None, views=("0",), layers=("pooled",), shapes=((5,),))
    output, _ = linear_probe_init(given.read, given, np.arange(5, 60), 0, Silent())
    rows = np.random.default_rng(1).permutation(60)
    chosen, temperature = refit(output, given.read, given, rows, 0, Silent())
    head = fit(given, rows, resolve_head("softmax"))
    assert temperature == head.report["calibration"]["temperature"] != 1
    assert chosen == {f"output_{name}": value for name, value in head.chosen.items()}
    np.testing.assert_allclose(
        linear_predictor(output, ("a", "b")).probabilities(X), head.predict_proba_vectors(X), atol=1e-6
    )


def test_an_output_is_divided_by_the_temperature_of_fifty_items() -> None:
    rng = np.random.default_rng(0)
    numbers = torch.from_numpy(np.arange(50) % 3)
    scores = torch.from_numpy(rng.normal(size=(50, 3)) + 2 * np.eye(3)[np.arange(50) % 3]) * 5
    output = nn.Linear(4, 3)
    before = copy.deepcopy(output)
    assert scale_by_temperature(output, scores[:49], numbers[:49]) is None
    assert torch.equal(output.weight, before.weight)
    temperature = scale_by_temperature(output, scores, numbers)
    assert temperature is not None
    assert temperature > 2
    assert temperature == pytest.approx(fit_temperature(scores.numpy(), numbers.numpy())[0])
    x = torch.randn(7, 4)
    torch.testing.assert_close(output(x) * temperature, before(x))


@pytest.mark.parametrize(
    "module",
    [
        tiny_backbone().module,
        torchvision.models.shufflenet_v2_x0_5(),
        torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32),
        nn.Linear(3, 2),
    ],
    ids=["tiny", "shufflenet", "vit", "linear"],
)
def test_each_parameter_is_in_one_stage(module: nn.Module) -> None:
    stages = network_stages(module)
    inside = [id(parameter) for _, parameters in stages for parameter in parameters]
    assert sorted(inside) == sorted(id(parameter) for parameter in module.parameters())
    assert all(any(parameter.ndim > 1 for parameter in parameters) for _, parameters in stages)
    assert len({name for name, _ in stages}) == len(stages)
    assert len(stages) >= (1 if isinstance(module, nn.Linear) else 3)


def test_an_encoder_is_taken_apart() -> None:
    names = [name for name, _ in network_stages(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32))]
    layers = [f"encoder.layers.encoder_layer_{number}" for number in range(2)]
    assert names == ["conv_proj", *layers, "heads.head"]
