"""The image of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.core.errors import UsageError
from featcache.finetuning.history import Curve, Epoch, ProbeScore, draw_learning_curve


def curve(losses: list[float]) -> Curve:
    """Its raw validation loss falls all the time: what counts is that at the best temperature."""
    epochs = (Epoch(n, loss / 2, 9 / n, loss, 1 / (1 + loss), 1e-3 / n, 1.5) for n, loss in enumerate(losses, 1))
    return Curve(tuple(epochs), "epochs", ProbeScore(1.0, 0.9, 0.5, kept=len(losses) > 3))


@pytest.mark.parametrize("losses", [[0.7], [2.0, 1.0, 0.5, 0.6], [1.0 / n for n in range(1, 120)]])
def test_it_is_drawn(losses: list[float], tmp_path: Path) -> None:
    draw_learning_curve(curve(losses), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    # Training, validation and the mark of the best epoch.
    assert {(31, 119, 180), (255, 127, 14), (214, 39, 40)} <= colours


def test_the_best_epoch_is_the_first_of_the_least_loss() -> None:
    assert curve([2.0, 0.5, 0.6, 0.5]).best.number == 2
    assert curve([2.0, 0.5, 0.6, 0.5]).kept == 0
    assert curve([2.0, 0.5, 0.6]).kept == 2


def test_places_and_names_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"call it .*c\.png"):
        draw_learning_curve(curve([1.0]), tmp_path / "c.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        draw_learning_curve(curve([1.0]), tmp_path / "file" / "c.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(UsageError, match="not overwritten"):
        draw_learning_curve(curve([1.0]), tmp_path / "c.png")
