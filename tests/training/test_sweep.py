"""Heads × layers: right scores, a choice that the held-out items take no part in, nothing computed twice."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import FeatcacheError, UnknownNameError
from featcache.heads.ridge import RidgeHead
from featcache.metrics import splits
from featcache.training.dataset import FeatureDataset
from featcache.training.sweep_cells import Cell, digest_of_items
from featcache.training.sweep_report import SweepReport, ranked
from tests.training.sides import sides_of

KNN = KNeighborsClassifier(3)
LINEAR = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8)
# Which converges in single precision on layers whose mean is many times their spread.
CENTRED = make_pipeline(StandardScaler(with_std=False), LINEAR)


@pytest.fixture(scope="module")
def kept_store(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    """36 images in 3 classes, two of them one image; not to be written to."""
    root = draw_images(tmp_path_factory.mktemp("images") / "photos", classes=("cats", "dogs", "elks"))
    shutil.copy(root / "cats" / "cat-00.jpg", root / "cats" / "cat-01.jpg")
    path = root.parent / "kept.fcache"
    layers = ["pooled", "body.0:mean", "body.1:none"]
    fc.extract(root, path, backbone=tiny_backbone(), layers=layers, progress=False)
    return path


@pytest.fixture
def store(kept_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept_store, tmp_path / "s.fcache")


def sweep(store: Path, heads: Any = (KNN,), layers: Any = ("pooled",), **options: Any) -> SweepReport:
    return fc.sweep(fc.open(store), heads, layers, progress=False, **options)


def parts(store: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, units, and which rows are of the training part."""
    opened = fc.open(store)
    kept = sides_of(opened, "photos")
    items = opened.items()
    return (
        np.array([item.label for item in items]),
        splits.units(items),
        np.array([kept[item.sha256] == "train" for item in items]),
    )


class Recorder(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Keeps whatever it is shown, and always answers the same."""

    shown: ClassVar[list[np.ndarray]] = []

    def fit(self, X: np.ndarray, y: np.ndarray) -> Recorder:
        self.shown.append(X)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        self.shown.append(X)
        return np.full(len(X), self.classes_[0])


def weighed(columns: list[np.ndarray], y: np.ndarray, units: np.ndarray, fitting: np.ndarray) -> np.ndarray:
    """Layers side by side, divided by what the least leave-one-out loss of ridge on *fitting* says."""
    found = []
    for centred, by_number in ((True, False), (False, False), (False, True)):
        sizes = [X[fitting] - X[fitting].mean(axis=0) if centred else X[fitting] for X in columns]
        widths = [X.shape[1] if by_number else np.mean([X.shape[1] for X in columns]) for X in columns]
        scales = [np.sqrt((X**2).sum(axis=1).mean() / d) for X, d in zip(sizes, widths, strict=True)]
        X = np.hstack([X / scale for X, scale in zip(columns, scales, strict=True)]).astype(np.float32)
        found.append((RidgeHead().fit(X[fitting], y[fitting], units[fitting]).scores_.min(), X))
    least = min(loss for loss, _ in found)
    return next(X for loss, X in found if loss <= least + 1e-4)


@pytest.mark.parametrize("layers", ["pooled", "body.0:mean+pooled"])
@pytest.mark.parametrize("head", [KNN, CENTRED], ids=["knn", "linear"])
def test_scores_are_those_of_a_plain_loop_over_the_folds(store: Path, layers: str, head: Any) -> None:
    report = sweep(store, [head], [layers])
    y, units, train_rows = parts(store)
    names = layers.split("+")
    columns = [fc.open(store).arrays(layers=name)[0][train_rows].astype(np.float64) for name in names]
    y, units = y[train_rows], units[train_rows]
    probabilities = np.zeros((len(y), 3))
    for fitting, test in splits.folds(y, units, 5, 0):
        X = np.hstack(columns) if len(names) == 1 else weighed(columns, y, units, fitting)
        probabilities[test] = head.fit(X[fitting], y[fitting]).predict_proba(X[test])
    (cell,) = report.cells
    assert (cell.layers, cell.d, report.n, report.folds) == (names, X.shape[1], train_rows.sum(), 5)
    said = np.array(["cats", "dogs", "elks"])[probabilities.argmax(1)]
    assert cell.accuracy == pytest.approx(accuracy_score(y, said))
    clipped = np.clip(probabilities, np.finfo(float).eps, 1)
    assert cell.log_loss == pytest.approx(
        -np.log(clipped[np.arange(len(y)), np.searchsorted(np.unique(y), y)]).mean(), rel=1e-4
    )
    if head is CENTRED:
        assert cell.log_loss == pytest.approx(
            log_loss(y, probabilities / probabilities.sum(axis=1, keepdims=True)), rel=1e-4
        )
    assert cell.low <= cell.accuracy <= cell.high
    if len(np.unique(probabilities[np.arange(len(y)), np.searchsorted(np.unique(y), y)])) == 1:
        assert cell.log_loss_low is None  # the same on every resample
    else:
        assert cell.log_loss_low <= cell.log_loss <= cell.log_loss_high


def test_the_held_out_items_take_no_part_in_the_choice(store: Path) -> None:
    Recorder.shown.clear()
    report = sweep(store, [Recorder(), LINEAR])
    assert report.winner["head"] == "LogisticRegression"
    X, _, _ = fc.open(store).arrays(layers="pooled")
    _, _, train_rows = parts(store)
    shown = {row.tobytes() for part in Recorder.shown for row in part}
    assert shown == {row.tobytes() for row in X[train_rows]}
    assert not shown & {row.tobytes() for row in X[~train_rows]}


def test_the_winner_is_fitted_on_the_training_part_and_scored_on_the_rest(store: Path) -> None:
    report = sweep(store, [KNN, LINEAR], ["pooled", "body.0:mean", "body.0:mean+pooled"])
    assert [len(report.cells), report.computed, report.reused] == [6, 6, 0]
    losses = [cell.log_loss for cell in report.cells]
    assert losses == sorted(losses)
    best = report.cells[0]
    assert (report.winner["head"], report.winner["layers"]) == (best.head, best.layers)
    X, y, items = fc.open(store).arrays(layers=best.layers)
    _, _, train_rows = parts(store)
    bundle = report.bundle
    assert {row.tobytes() for row in bundle.trained_on} == {items[i].sha256 for i in np.flatnonzero(train_rows)}
    assert report.score["accuracy"] == (bundle.predict_vectors(X[~train_rows]) == y[~train_rows]).mean()
    assert (report.score["n"], bundle.fitted_on) == ((~train_rows).sum(), train_rows.sum())
    alone = fc.train(store, {"LogisticRegression": LINEAR}.get(best.head, KNN), layers=best.layers, progress=False)
    assert alone.report["score"] == {k: v for k, v in report.score.items() if k != "log_loss"}


def test_by_default_every_layer_stands_alone_and_all_together(store: Path) -> None:
    report = sweep(store, [KNN], None)
    assert sorted(cell.layers for cell in report.cells) == [["body.0:mean"], ["body.0:mean", "pooled"], ["pooled"]]
    assert [cell.layers for cell in sweep(store, [KNN], "body.*:none").cells] == [["body.1:none"]]


@pytest.mark.slow
def test_the_default_heads_are_there_and_quick(store: Path) -> None:
    report = fc.sweep(store, layers="pooled", progress=False)
    assert {cell.head for cell in report.cells} == {"softmax", "ridge", "centroid", "knn"}
    assert all(cell.problem is None for cell in report.cells)
    curve = next(cell.curve for cell in report.cells if cell.head == "softmax")
    assert len(curve) == 45
    assert sum(loss is not None for _, loss in curve) > 10


@pytest.mark.slow
def test_a_second_sweep_computes_only_what_is_new(store: Path) -> None:
    first = sweep(store, [KNN, "ridge"], ["pooled", "body.0:mean"])
    second = sweep(store, [KNN, "ridge"], ["pooled", "body.0:mean"])
    assert (second.computed, second.reused) == (0, 4)
    for old, new in zip(first.cells, second.cells, strict=True):
        assert new.to_dict() == old.to_dict() | {"reused": True}
    assert second.score == first.score
    more = sweep(store, [KNN, "ridge", KNeighborsClassifier(4)], ["pooled", "body.0:mean", "pooled+body.0:mean"])
    assert (more.computed, more.reused) == (5, 4)


def test_whatever_makes_a_cell_is_in_its_key(store: Path, tmp_path: Path) -> None:
    sweep(store)
    for head in (
        KNeighborsClassifier(2),
        KNeighborsClassifier(3, weights="distance"),
        make_pipeline(StandardScaler(), KNN),
    ):
        assert sweep(store, [head]).computed == 1
    assert sweep(store, seed=1).computed == 1
    y, _, train_rows = parts(store)
    items = fc.open(store).items()
    other = {"cats": "dogs", "dogs": "elks", "elks": "cats"}
    turned = int(np.flatnonzero(train_rows)[5])
    lines = [f"{item.uri},{other[y[i]] if i == turned else y[i]}" for i, item in enumerate(items)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    assert sweep(store, labels=tmp_path / "labels.csv").computed == 1
    assert sweep(store).reused == 1


def test_units_are_in_the_key_by_what_they_hold_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(8, dtype=np.float32), labels=np.arange(8) % 2)
    alone = FeatureDataset.from_file(tmp_path / "x.npz")
    folds = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]
    pairs, others = replace(alone, groups=np.arange(8) // 2), replace(alone, groups=np.array([0, 0, 1, 1, 2, 2, 3, 4]))
    named = replace(pairs, groups=70 - pairs.groups)
    digests = [digest_of_items(dataset, folds) for dataset in (alone, pairs, others)]
    assert len(set(digests)) == 3
    assert digest_of_items(named, folds) == digests[1]


def test_an_estimator_of_unknown_code_is_computed_each_time(store: Path) -> None:
    for heads in ([Recorder(), KNN], [make_pipeline(StandardScaler(), Recorder()), KNN]):
        sweep(store, heads)
        assert sweep(store, heads).computed == 1


@pytest.mark.parametrize("damage", ["cut", "text", "nan", "deep", "swapped", "lie", "folder"])
def test_a_damaged_cell_is_computed_again(store: Path, damage: str) -> None:
    first = sweep(store, [KNN, LINEAR])
    one, other = sorted((store / "runs" / "cells").glob("*.json"))
    data = json.loads(one.read_text())
    texts = {
        "cut": one.read_text()[:100],
        "text": "no JSON",
        "nan": json.dumps(data | {"cell": data["cell"] | {"accuracy": float("nan")}}),
        "deep": "[" * 100_000,
        "swapped": other.read_text(),
        "lie": json.dumps(data | {"cell": data["cell"] | {"chosen": {"C": "\x1b[2J"}}}),
    }
    if damage == "folder":
        one.unlink()
        one.mkdir()
    else:
        one.write_text(texts[damage])
    again = sweep(store, [KNN, LINEAR])
    assert (again.computed, again.reused) == (1, 1)
    assert [(c.head, c.accuracy, c.log_loss) for c in again.cells] == [
        (c.head, c.accuracy, c.log_loss) for c in first.cells
    ]


def test_what_was_finished_before_an_interruption_is_kept(store: Path) -> None:
    class Impatient:
        done = 0

        def start(self, what: str, total: int | None, unit: str) -> None:
            pass

        def advance(self, n: int = 1) -> None:
            self.done += n
            if self.done == 2:
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            pass

        def finish(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        fc.sweep(store, [KNN, LINEAR, "ridge"], ["pooled"], progress=Impatient())
    report = sweep(store, [KNN, LINEAR, "ridge"])
    assert (report.computed, report.reused) == (1, 2)


def test_a_cell_that_fails_stops_nothing(store: Path) -> None:
    report = sweep(store, [KNeighborsClassifier(1000), KNN])
    assert [cell.problem is None for cell in report.cells] == [True, False]
    assert "n_neighbors" in str(report.cells[1].problem)
    assert report.computed == 1
    with pytest.raises(FeatcacheError, match=r"No head could be scored.*KNeighborsClassifier: ValueError.*n_neighbors"):
        sweep(store, [KNeighborsClassifier(1000)])


def test_layers_that_some_items_lack_are_not_compared(
    store: Path, draw_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = draw_images(tmp_path / "photos")
    path = tmp_path / "part.fcache"
    for layers, limit in ((["pooled"], None), (["body.0:mean"], 16)):
        fc.extract(root, path, backbone=tiny_backbone(), layers=layers, limit=limit, progress=False)
    report = sweep(path, [KNN], None)
    problems = {"+".join(cell.layers): cell.problem for cell in report.cells}
    assert problems["pooled"] is None
    assert "not all of the 24 labeled items" in str(problems["body.0:mean"])
    assert "only part of the layers" in str(problems["body.0:mean+pooled"])


def test_too_few_items_and_unknown_names_say_so(store: Path, draw_images: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'softmax'"):
        sweep(store, ["softmaks"])
    with pytest.raises(UnknownNameError, match="pooled"):
        sweep(store, [KNN], ["poled"])
    few = tmp_path / "few.fcache"
    fc.extract(draw_images(tmp_path / "few", each=2), few, backbone=tiny_backbone(), progress=False)
    assert sweep(few, ["ridge"]).folds == 0  # each class has one image to learn from


def test_fewer_items_make_fewer_folds(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    few = tmp_path / "few.fcache"
    fc.extract(draw_images(tmp_path / "few", each=4), few, backbone=tiny_backbone(), progress=False)
    assert sweep(few, [KNeighborsClassifier(1)]).folds == 3


def cell(head: str, accuracy: float | None, loss: float | None) -> Cell:
    return Cell(head, ["pooled"], accuracy=accuracy, log_loss=loss)


def test_the_least_log_loss_wins_and_accuracy_where_there_is_none() -> None:
    a, b = cell("a", 0.9, 0.4), cell("b", 0.95, 0.5)
    better, worse, failed = cell("better", 0.93, None), cell("worse", 0.8, None), cell("failed", None, None)
    assert ranked([failed, worse, b, a]) == [a, b, worse, failed]
    assert ranked([failed, better, worse, b, a]) == [better, a, b, worse, failed]
    assert ranked([worse, better]) == [better, worse]
    assert ranked([a, cell("later", 0.99, 0.4)])[0] is a


def test_a_head_without_probabilities_takes_part(store: Path) -> None:
    report = sweep(store, [RidgeClassifier(), KNN])
    by_head = {one.head: one for one in report.cells}
    assert by_head["RidgeClassifier"].log_loss is None
    assert by_head["RidgeClassifier"].accuracy is not None
    alone = sweep(store, [RidgeClassifier()])
    assert alone.score["log_loss"] is None
    X, _, _ = fc.open(store).arrays(layers="pooled")
    y, _, learned = parts(store)
    fitted = RidgeClassifier().fit(X[learned], y[learned])
    assert alone.score["accuracy"] == fitted.score(X[~learned], y[~learned])


@pytest.mark.slow
def test_a_store_with_runs_stays_a_sound_store(store: Path, kept_store: Path) -> None:
    report = sweep(store, ["softmax"])
    assert fc.verify(store).ok
    assert not fc.repair(store).changed
    fc.extract(kept_store.parent / "photos", store, backbone=tiny_backbone(), progress=False)
    fc.compact(store)
    fc.gc(store, apply=True)
    assert sweep(store, ["softmax"]).reused == 1
    assert all(Path(str(path)).is_file() for path in report.paths.values())
    assert not list((store / "runs").rglob(".*"))


def test_what_cannot_be_written_is_said_and_the_report_comes_all_the_same(store: Path, capsys: Any) -> None:
    (store / "runs").write_text("in the way")
    report = fc.sweep(store, [KNN], ["pooled"], progress=True)
    assert report.paths == {"json": None, "markdown": None, "figure": None}
    said = capsys.readouterr().err
    assert "could not be kept" in said
    assert "could not be written" in said


@pytest.mark.slow
@pytest.mark.slow
def test_the_command_answers_and_leaves_files(store: Path, tmp_path: Path, capsys: Any) -> None:
    words = [
        "sweep",
        str(store),
        "--heads",
        "softmax",
        "--layers",
        "pooled",
        "body.0:mean",
        "-o",
        str(tmp_path / "w.fch"),
    ]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["cells"]) == 2
    fields = {"head", "layers", "d", "accuracy", "low", "high", "log_loss", "chosen", "seconds", "reused"}
    assert all(fields <= one.keys() for one in data["cells"])
    assert data["winner"]["chosen"].keys() == {"C"}
    assert fc.load(data["paths"]["head"]).predict_vectors(np.zeros((1, data["cells"][0]["d"]), np.float32)).shape == (
        1,
    )
    written = json.loads(Path(data["paths"]["json"]).read_text())
    assert written["cells"] == data["cells"]
    page = Path(data["paths"]["markdown"]).read_text()
    assert f"Winner: softmax on {data['winner']['layers'][0]}" in page
    figure = Path(data["paths"]["figure"])
    assert f"({figure.name})" in page
    image = Image.open(io.BytesIO(figure.read_bytes()))
    assert image.format == "PNG"
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 100
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("known") == 2
    assert "Accuracy on items that took no part" in shown
    assert data["near_duplicates"] == fc.load(tmp_path / "w.fch").report["near_duplicates"]
    assert main(["sweep", str(store), "--heads", "nope"]) == 2


def test_the_next_command_chooses_what_the_sweep_chose(store: Path, tmp_path: Path, capsys: Any) -> None:
    items = fc.open(store).items()
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(f"{x.uri},{'ab'[i % 2]}\n" for i, x in enumerate(items)))
    fc.extract(Path(fc.open(store).sources()["photos"]) / "dogs", store, backbone=tiny_backbone(seed=1), progress=False)
    space = fc.open(store).spaces[0].fingerprint
    chosen = ["--source", "photos", "--space", space, "--labels", str(tmp_path / "l.csv"), "--seed", "3"]
    assert main(["sweep", str(store), "--heads", "centroid", "--layers", "pooled", *chosen]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next:")]
    words = [str(tmp_path / "a.fch") if word == "HEAD.fch" else word for word in shlex.split(line)[2:]]
    assert main(words) == 0
    assert fc.load(tmp_path / "a.fch").classes == ("a", "b")


def test_the_table_fits_a_screen(store: Path, capsys: Any) -> None:
    assert main(["sweep", str(store), "--heads", "centroid,knn"]) == 0
    shown = capsys.readouterr().out
    table = shown[: shown.index("Out-of-fold")].splitlines()
    assert any("body.0:mean+pooled" in line for line in table)
    assert len(table) >= 2 + 6
    assert max(len(line.rstrip()) for line in table) <= 80


def test_neither_torch_nor_matplotlib_is_imported_without_need(store: Path) -> None:
    code = (
        "import sys, featcache as fc; from sklearn.neighbors import KNeighborsClassifier as K; "
        "r = fc.sweep(sys.argv[1], [K(3)], ['pooled'], progress=False); "
        "print(len(r.cells), *[m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
