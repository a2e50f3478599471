"""What a head that chose its C by cross-validation measured on the way: the held-out log-loss over C."""

from __future__ import annotations

from typing import Any

import numpy as np


def loss_curve(fitted: Any) -> dict[str, list[list[float | None]]]:
    """The curve for a head's report.

    Args:
        fitted: an estimator; one of our own heads has a curve if it has ``scores_`` over ``Cs_`` or ``Cs``:
            either (c,) mean log-losses, or (folds, c) negative log-losses, NaN where a C was skipped, which count by
            ``held_out_weights_`` (folds,).

    Returns:
        ``{"loss_over_C": [[C, log-loss or None], …]}`` from small to large C, or ``{}``.
    """
    if getattr(fitted, "scoring", "neg_log_loss") != "neg_log_loss":
        return {}
    Cs = getattr(fitted, "Cs_", getattr(fitted, "Cs", None))
    scores = getattr(fitted, "scores_", None)
    if Cs is None or scores is None or not len(scores) or not type(fitted).__module__.startswith("featcache.heads."):
        return {}
    if np.ndim(scores) == 2:
        # By the same weights as the choice of C.
        losses = -np.average(scores, axis=0, weights=getattr(fitted, "held_out_weights_", None))
        order = np.argsort(Cs)
    else:
        losses, order = np.asarray(scores), np.arange(len(scores))  # these are sorted already
    points = zip(np.sort(np.asarray(Cs, dtype=np.float64)).tolist(), losses[order].tolist(), strict=True)
    return {"loss_over_C": [[C, None if loss != loss else loss] for C, loss in points]}
