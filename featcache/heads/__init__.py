"""Heads: scikit-learn estimators that are trained on vectors. They know nothing of images or stores.

A head has ``fit(X, y, groups=None)``, ``predict``, ``predict_proba``, ``classes_`` and ``chosen_``, the
hyper-parameters that it chose. One that can learn from more vectors than fit in memory has ``fit_stream``
(`featcache.heads.streaming`) besides.
"""

from __future__ import annotations

import importlib
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from featcache.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from featcache.heads.softmax import SoftmaxPathClassifier

__all__ = ["HEADS", "SoftmaxPathClassifier", "head_name", "make_head"]

HEADS = {
    "softmax": "featcache.heads.softmax:SoftmaxPathClassifier",
    "logreg": "featcache.heads.logreg:LogRegHead",
    "torch": "featcache.heads.sgd_softmax:TorchSoftmaxHead",
    "ridge": "featcache.heads.ridge:RidgeHead",
    "knn": "featcache.heads.knn:KnnHead",
    "centroid": "featcache.heads.centroid:CentroidHead",
    "mlp": "featcache.heads.mlp:MLPHead",
}
"""For each name its class; it is imported when it is used."""

WEIGHING = ("softmax", "logreg", "torch")
"""Those that can weigh classes."""

MULTILABEL_HEADS = {"softmax": "featcache.heads.multilabel:SigmoidPathClassifier"}
"""The same for several labels an item."""


def __getattr__(name: str) -> Any:
    # Imported on first use: scikit-learn takes most of a second, and the names alone need it not.
    if name == "SoftmaxPathClassifier":
        return getattr(importlib.import_module("featcache.heads.softmax"), name)
    raise AttributeError(f"module 'featcache.heads' has no attribute {name!r}")


def make_head(head: Any, seed: int = 0, task: str = "classify") -> Any:
    """An unfitted head.

    Args:
        head: a name in `HEADS`, or any scikit-learn classifier, which is cloned.
        seed: of our own heads, those that draw something.
        task: ``classify``, or ``multilabel`` for several labels an item.

    Raises:
        UnknownNameError: no head of that name.
        UsageError: the object is no classifier, or the head cannot do the task; those that can are named.
    """
    home = _home(head, task)
    if home is not None:
        return _made(home, seed)
    from sklearn.base import clone

    return clone(head)


def check_head(head: Any, task: str = "classify") -> None:
    """Refuse what is no head, without importing anything.

    Raises:
        UnknownNameError, UsageError: as of `make_head`.
    """
    _home(head, task)


def prepare(head: Any, task: str = "classify") -> None:
    """Begin to import a head's module in the background.

    scikit-learn takes a second to import; meanwhile arrays can be computed with. Rows of a catalogue should not be
    read then: for each of them two threads would take turns.

    Raises:
        UnknownNameError, UsageError: as of `make_head`.
    """
    home = _home(head, task)
    if home is not None:
        threading.Thread(target=_import, args=(home.partition(":")[0],), name="featcache import").start()


def _import(module: str) -> None:
    with suppress(Exception):  # who makes the head imports it again, and is told
        importlib.import_module(module)


def _home(head: Any, task: str) -> str | None:
    """Module and class of one of our own heads, or None for an object that can be a head."""
    if task == "multilabel":
        if not isinstance(head, str) or head not in MULTILABEL_HEADS:
            raise UsageError(
                f"The head {head_name(head)} gives one label an item. With --task multilabel the heads are: "
                f"{', '.join(MULTILABEL_HEADS)}."
            )
        return MULTILABEL_HEADS[head]
    if isinstance(head, str):
        if head not in HEADS:
            raise UnknownNameError.among("head", head, HEADS)
        return HEADS[head]
    if not (hasattr(head, "fit") and hasattr(head, "predict") and hasattr(head, "get_params")):
        raise UsageError(
            f"A head is one of {', '.join(HEADS)} or a scikit-learn classifier, not {type(head).__name__}."
        )
    return None


def _made(home: str, seed: int) -> Any:
    module, _, name = home.partition(":")
    made = getattr(importlib.import_module(module), name)()
    return made.set_params(random_state=seed) if "random_state" in made.get_params() else made


def with_class_weight(head: Any, class_weight: Any, seed: int = 0, task: str = "classify") -> Any:
    """An unfitted head that weighs its classes.

    Args:
        head: a name in `HEADS`, or a scikit-learn classifier or pipeline, which is cloned.
        class_weight: ``"balanced"``, or a weight for each label.
        seed: of our own heads.
        task: as for `make_head`.

    Raises:
        UnknownNameError: no head of that name, or a text that is not ``balanced``.
        UsageError: the head cannot weigh classes; the message names our heads that can.
    """
    if isinstance(class_weight, str) and class_weight != "balanced":
        raise UnknownNameError.among("class_weight", class_weight, ["balanced"], "Or give a weight for each label.")
    _home(head, task)
    if task == "multilabel":
        raise UsageError("With --task multilabel no head can weigh classes. Leave --class-weight away.")
    if isinstance(head, str) and head not in WEIGHING:  # told before anything is imported
        raise _cannot_weigh(head)
    made = make_head(head, seed, task)
    # A pipeline hands its parameters on under the names of its steps; the last step is the classifier.
    name = f"{made.steps[-1][0]}__class_weight" if hasattr(made, "steps") else "class_weight"
    if name not in made.get_params():
        raise _cannot_weigh(head)
    return made.set_params(**{name: class_weight})


def with_hidden_layers(head: str, hidden: str | None, dropout: float | None, seed: int = 0) -> Any:
    """An unfitted head ``mlp`` with layers of one's own.

    Args:
        head: a name in `HEADS`.
        hidden: how wide each hidden layer is, with commas between (``512,256``); None for what the head has.
        dropout: the share of hidden values that a step does without; None for what the head has.
        seed: of the head.

    Raises:
        UsageError: it is another head, *hidden* are not whole numbers from 1 on, or *dropout* is not from 0 to
            less than 1.
    """
    check_head(head)
    if head != "mlp":
        raise UsageError(f"--hidden and --dropout are for --head mlp; the head {head} has no hidden layers.")
    widths = [] if hidden is None else hidden.split(",")
    if not all(width.strip().isascii() and width.strip().isdecimal() and int(width) >= 1 for width in widths):
        raise UsageError(f"--hidden are whole numbers from 1 on with commas between, as in 512,256, not {hidden!r}.")
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"--dropout is a number from 0 to less than 1, not {dropout:g}.")
    made = make_head(head, seed)
    if widths:
        made.set_params(hidden=tuple(int(width) for width in widths))
    return made if dropout is None else made.set_params(dropout=dropout)


def _cannot_weigh(head: Any) -> UsageError:
    return UsageError(
        f"The head {head_name(head)} cannot weigh classes. Heads that can: {', '.join(WEIGHING)}, and scikit-learn "
        "classifiers with a parameter class_weight."
    )


def head_name(head: Any) -> str:
    """How a head is called in reports: our own by their names in `HEADS`."""
    if isinstance(head, str):
        return head
    kind = f"{type(head).__module__}:{type(head).__name__}"
    return next((name for name, home in HEADS.items() if home == kind), type(head).__name__)
