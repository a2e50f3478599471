"""What the report of a fine-tuning has besides its scores, and the store's record of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import FeatcacheError
from featcache.metrics.calibration import expected_calibration_error, with_temperature
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np

    from featcache.core.progress import Progress
    from featcache.finetuning.config import Schedule
    from featcache.finetuning.trainers import TrainingResult


def of_training(
    result: TrainingResult, config: Schedule, probabilities: np.ndarray | None, right: np.ndarray
) -> dict[str, Any]:
    """The part of the report that is about the training.

    Args:
        result: of the training.
        config: its settings.
        probabilities: (m, k) of the scored items.
        right: (m,) whether their likeliest class is theirs.
    """
    calibration = None
    if result.temperature is not None and probabilities is not None:
        before = with_temperature(probabilities, 1 / result.temperature)
        calibration = {
            "temperature": result.temperature,
            "ece_before": expected_calibration_error(before, right),
            "ece_after": expected_calibration_error(probabilities, right),
        }
    return {
        "validation": len(result.validation),
        "curve": result.curve.to_dict(),
        "schedule": config.to_dict(),
        "calibration": calibration,
    }


def keep_record(store: Path, started: datetime, report: Mapping[str, Any], progress: Progress) -> None:
    """Keep a report in the store's table ``runs``; a store that cannot be written to costs the record alone.

    Args:
        store: the store.
        started: when the training began.
        report: plain values.
        progress: gets a note if that failed, and what the writer tells.
    """
    try:
        with StoreWriter(store, create=False) as writer:
            for note in writer.notes:
                progress.note(note)
            writer.record_run("finetune", started, report)
    except FeatcacheError as error:
        progress.note(f"The training is done, but it could not be recorded in the store: {error}")
