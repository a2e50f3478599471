"""Which of the items that are learned from decide when a training ends."""

from __future__ import annotations

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.metrics.splits import draw_holdout
from featcache.training.dataset import LabelledVectors

SHARE = 0.15


def validation_rows(
    examples: LabelledVectors, learn: np.ndarray, scored: np.ndarray, seed: int, shown: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to validate on.

    The source's own split ``val`` validates where it is neither learned from nor scored on, but for its items of
    classes that nobody learns; else a part of the rows to learn from is set aside, in each class the same share and
    whole units. A unit that is trained on is not validated on.

    Args:
        examples: labelled items.
        learn: (m,) rows to learn from.
        scored: rows that the result is scored on.
        seed: of the draw.
        shown: is told of classes that no item validates.

    Raises:
        UsageError: no item is left to validate on.
    """
    own = np.array([i for i, item in enumerate(examples.items) if item.split == "val"], dtype=np.int64)
    own = np.setdiff1d(own[~np.isin(examples.units[own], examples.units[scored])], learn)
    own = own[np.isin(examples.y[own], examples.y[learn])]
    if len(own):
        fit, validation = learn[~np.isin(examples.units[learn], examples.units[own])], own
    else:
        keys = [str(unit) for unit in examples.units[learn]]
        parts = draw_holdout(examples.y[learn], keys, fraction=SHARE, seed=seed)
        aside = np.array([parts[key] == "test" for key in keys])
        # A unit of several classes may hold all items of one of them; then it is trained on.
        alone = ~np.isin(examples.y[learn], examples.y[learn[~aside]])
        aside &= ~np.isin(examples.units[learn], examples.units[learn[alone]])
        fit, validation = learn[~aside], learn[aside]
    if not len(validation) or not len(fit):
        raise UsageError(
            f"Of the {len(learn)} items to learn from none can be set aside to tell when the training should end: "
            "every class needs two independent images or more."
        )
    known = set(examples.y[fit].tolist())
    unlearned = sorted(set(examples.y[learn].tolist()) - known)
    if unlearned:
        raise UsageError(
            f"All items of class {unlearned[0]!r} that are learned from belong together with some of the split 'val', "
            "so none is left to train on. Put each group on one side."
        )
    missing = sorted(known - set(examples.y[validation].tolist()))
    if missing:
        listed = ", ".join(repr(name) for name in missing[:3]) + (" …" if len(missing) > 3 else "")
        shown.note(
            f"{len(missing)} of {len(known)} classes ({listed}) have no item that validates, so the training ends "
            "without regard to them."
        )
    return fit, validation
