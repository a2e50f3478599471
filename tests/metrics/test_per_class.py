"""The table of classes and the confusion matrix are scikit-learn's; the image shows them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as reference

from featcache.core.errors import UsageError
from featcache.metrics.classification import confusion_matrix, per_class, units_of_each
from featcache.metrics.intervals import wilson
from featcache.metrics.plots import draw_confusion

LABELS = ["a", "b", "c", "d"]
PAIRS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.integers(0, 5)), min_size=1, max_size=50
)


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_values_are_those_of_scikit_learn(rows: list[tuple[str, str, int]]) -> None:
    y, said, units = (np.array(column) for column in zip(*rows, strict=True))
    counts = confusion_matrix(y, said, LABELS)
    np.testing.assert_array_equal(counts, reference.confusion_matrix(y, said, labels=LABELS))
    table = per_class(counts, LABELS, units_of_each(y, units, LABELS))
    precision, recall, f1, items = reference.precision_recall_fscore_support(
        y, said, labels=LABELS, zero_division=np.nan
    )
    for i, got in enumerate(table):
        assert (got.label, got.items) == (LABELS[i], items[i])
        for value, wanted in ((got.precision, precision[i]), (got.recall, recall[i]), (got.f1, f1[i])):
            assert (value is None and np.isnan(wanted)) or value == pytest.approx(wanted)
        if got.items:
            trials = len(set(units[y == LABELS[i]].tolist()))
            assert (got.recall_low, got.recall_high) == wilson(got.recall or 0.0, trials)
        else:
            assert got.recall is got.recall_low is got.recall_high is None


@pytest.mark.parametrize("k", [2, 7, 40])  # from 22 on all cells are the smallest
def test_the_image_has_a_coloured_cell_for_each_count(k, tmp_path) -> None:
    counts = np.diag(np.arange(1, k + 1))
    draw_confusion(counts, [f"class $_{i}" for i in range(k)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # The darkest blue fills the diagonal (and the top of the color bar), so a kth part of the matrix.
    dark = (np.abs(pixels - [8, 48, 107]).sum(2) < 30).nonzero()
    side = np.ptp(dark[0]) + 1
    share = len(dark[0]) / side**2
    assert 0.7 / k < share < 1.3 / k
    assert side / k > 25  # pixels a cell: enough to read a number in


def test_rows_without_items_are_drawn_empty(tmp_path) -> None:
    draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 0


def test_an_image_that_cannot_be_written(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"call it .*c\.png"):
        draw_confusion(np.eye(2, dtype=int), ["a", "b"], tmp_path / "c.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        draw_confusion(np.eye(2, dtype=int), ["a", "b"], tmp_path / "file" / "c.png")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(UsageError, match="not overwritten"):
        draw_confusion(np.eye(2, dtype=int), ["a", "b"], tmp_path / "d.png")
