"""What a training of layers tells beside its scores, also kept in the store's record of runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import FeatcacheError
from featcache.core.progress import Progress
from featcache.finetuning.schedule import TrainingConfig
from featcache.finetuning.trainers import Trained
from featcache.metrics.calibration import expected_calibration_error, with_temperature
from featcache.store.writer import StoreWriter
from featcache.training.dataset import FeatureDataset
from featcache.training.leakage import LeakageReport


def of_training(
    trained: Trained,
    schedule: TrainingConfig,
    guard: LeakageReport,
    dataset: FeatureDataset,
    init: str,
    probabilities: np.ndarray | None,
    right: np.ndarray,
) -> dict[str, Any]:
    """What the report says of a training.

    Args:
        trained: what came of it.
        schedule: its settings.
        guard: near-duplicates that were looked for.
        dataset: the items.
        init: how it began.
        probabilities: (m, k) of the scored items.
        right: (m,) whether their likeliest class is theirs.
    """
    calibration = None
    if trained.temperature is not None and probabilities is not None:
        before = with_temperature(probabilities, 1 / trained.temperature)
        calibration = {
            "temperature": trained.temperature,
            "ece_before": expected_calibration_error(before, right),
            "ece_after": expected_calibration_error(probabilities, right),
        }
    return {
        "init": init,
        "validation": len(trained.validation),
        "curve": trained.curve.to_dict(),
        "schedule": schedule.to_dict(),
        "calibration": calibration,
        "near_duplicates": {**guard.report(dataset), "grouped": False},
    }


def keep_record(store: Path, verb: str, started: datetime, report: Mapping[str, Any], progress: Progress) -> None:
    """Keep a report in the store's table ``runs``; where that cannot be written, say so and lose nothing else.

    Args:
        store: the store.
        verb: ``tune`` or ``finetune``.
        started: when the training began.
        report: plain values.
        progress: is told what went wrong.
    """
    try:
        with StoreWriter(store, create=False) as writer:
            writer.record_run(verb, started, report)
    except FeatcacheError as error:
        progress.note(f"The training is done, but the store keeps no record of it: {error}")
