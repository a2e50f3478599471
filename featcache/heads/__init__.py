"""Heads: scikit-learn classifiers that are fitted on vectors. They know nothing of images or stores.

A head has ``fit(X, y, groups=None)``, ``predict``, ``predict_proba``, ``classes_`` and ``chosen_``, the
hyper-parameters that it chose. A head that can be fitted on more vectors than fit in memory also has ``fit_stream``
(`featcache.heads.streaming`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featcache.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from featcache.heads.softmax import SoftmaxPathClassifier

__all__ = ["HEADS", "Head", "SoftmaxPathClassifier", "resolve_head"]

HEADS = {
    "stack": "featcache.heads.stack:StackHead",
    "softmax": "featcache.heads.softmax:SoftmaxPathClassifier",
    "torch": "featcache.heads.sgd_softmax:TorchSoftmaxHead",
    "ridge": "featcache.heads.ridge:RidgeHead",
    "knn": "featcache.heads.knn:KnnHead",
    "centroid": "featcache.heads.centroid:CentroidHead",
    "mlp": "featcache.heads.mlp:MLPHead",
}
"""Module and class of each named head; imported on first use."""

WEIGHING = ("stack", "softmax", "torch")
"""Named heads that take class weights."""

MULTILABEL_HEADS = {"softmax": "featcache.heads.multilabel:SigmoidPathClassifier"}
"""Named heads for several labels per item."""

_IMPORT_PATH = re.compile(r"(\w+(?:\.\w+)*):(\w+)(\(.*\))?", re.DOTALL)


def __getattr__(name: str) -> Any:
    # Lazy: importing scikit-learn takes most of a second, and the names alone do not need it.
    if name == "SoftmaxPathClassifier":
        return getattr(importlib.import_module("featcache.heads.softmax"), name)
    raise AttributeError(f"module 'featcache.heads' has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class Head:
    """An unfitted head, made by `resolve_head`.

    Attributes:
        name: as reports show it.
        path: ``"module:Class"``; None for an estimator given as an object.
        arguments: keyword arguments of the class.
        estimator: the object given, if any; `make` clones it.
        seed: sets ``random_state`` of a class that has it, unless `arguments` do. Not for an object.
        class_weight: ``"balanced"``, a weight per label, or None.
    """

    name: str
    path: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    estimator: Any = None
    seed: int = 0
    class_weight: Any = None

    def make(self) -> Any:
        """A new, unfitted estimator.

        Raises:
            UsageError: the class takes no class weights.
        """
        if self.path is None:
            from sklearn.base import clone

            made = clone(self.estimator)
        else:
            module, _, name = self.path.partition(":")
            made = getattr(importlib.import_module(module), name)(**self.arguments)
            if "random_state" in made.get_params() and "random_state" not in self.arguments:
                made.set_params(random_state=self.seed)
        if self.class_weight is None:
            return made
        # The parameters of a pipeline carry the names of its steps; the last step is the classifier.
        parameter = f"{made.steps[-1][0]}__class_weight" if hasattr(made, "steps") else "class_weight"
        if parameter not in made.get_params():
            raise _takes_no_weights(self.name)
        return made.set_params(**{parameter: self.class_weight})

    def start_import(self) -> None:
        """Import the module in a background thread.

        scikit-learn takes a second to import. Start this before numerical work, not before reading the catalogue:
        both hold the interpreter lock.
        """
        if self.path is not None:
            module = self.path.partition(":")[0]
            threading.Thread(target=_import, args=(module,), name="featcache import").start()


def resolve_head(head: Any, *, seed: int = 0, task: str = "classify", class_weight: Any = None) -> Head:
    """What a head's name, import path or estimator stands for. A named head is not imported.

    Args:
        head: a name in `HEADS`; any scikit-learn classifier by its import path, ``"module:Class"`` or
            ``"module:Class(argument=value)"`` with values that are Python literals; an estimator, which is cloned;
            or a `Head`, which gets the other arguments.
        seed: ``random_state`` of a head that is given by name or import path.
        task: ``classify``, or ``multilabel`` for several labels per item.
        class_weight: ``"balanced"``, or a weight per label.

    Raises:
        UnknownNameError: no such head or class, or *class_weight* is another text.
        UsageError: the import path or an argument is wrong, the object is no classifier, or the head cannot do the
            task or take class weights.

    Example:
        >>> resolve_head("sklearn.linear_model:LogisticRegression(C=0.1)").make()
        LogisticRegression(C=0.1, random_state=0)
    """
    if isinstance(class_weight, str) and class_weight != "balanced":
        raise UnknownNameError.among("class_weight", class_weight, ["balanced"], "Or give a weight per label.")
    if task == "multilabel":
        found = _multilabel(head)
        if class_weight is not None:
            raise UsageError("With --task multilabel no head takes class weights. Omit --class-weight.")
    elif isinstance(head, Head):
        found = head
    elif not isinstance(head, str):
        found = _of_estimator(head)
    elif ":" in head:
        found = _of_import_path(head.strip())
    elif head in HEADS:
        found = Head(head, HEADS[head])
    else:
        raise UnknownNameError.among(
            "head", head, HEADS, 'Any scikit-learn classifier: "sklearn.linear_model:LogisticRegression(C=0.1)".'
        )
    if class_weight is None:
        return replace(found, seed=seed)
    found = replace(found, seed=seed, class_weight=class_weight)
    if found.name not in HEADS:
        found.make()  # nothing is left to import
    elif found.name not in WEIGHING:
        raise _takes_no_weights(found.name)
    return found


def split_heads(text: str) -> list[str]:
    """Heads separated by commas; commas within parentheses are part of a head.

    Example:
        >>> split_heads("ridge,sklearn.svm:LinearSVC(C=0.1, tol=0.01)")
        ['ridge', 'sklearn.svm:LinearSVC(C=0.1, tol=0.01)']
    """
    heads, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            heads.append("")
        else:
            heads[-1] += letter
    return [head.strip() for head in heads if head.strip()]


def with_hidden_layers(head: str, hidden: str | None, dropout: float | None) -> Head:
    """The head ``mlp`` with other hidden layers.

    Args:
        head: a name in `HEADS`.
        hidden: widths of the hidden layers, separated by commas (``512,256``); None for the default.
        dropout: fraction of hidden values that are dropped in a step; None for the default.

    Raises:
        UsageError: it is another head, *hidden* are not whole numbers from 1 on, or *dropout* is not from 0 to
            less than 1.
    """
    found = resolve_head(head)
    if found.name != "mlp":
        raise UsageError(f"--hidden and --dropout are for --head mlp; the head {found.name} has no hidden layers.")
    widths = [] if hidden is None else hidden.split(",")
    if not all(width.strip().isascii() and width.strip().isdecimal() and int(width) >= 1 for width in widths):
        raise UsageError(f"--hidden takes whole numbers from 1 on, separated by commas (512,256), not {hidden!r}.")
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"--dropout takes a number from 0 to less than 1, not {dropout:g}.")
    given = {"hidden": tuple(int(width) for width in widths) or None, "dropout": dropout}
    return replace(found, arguments={name: value for name, value in given.items() if value is not None})


def _multilabel(head: Any) -> Head:
    name = head.name if isinstance(head, Head) else head if isinstance(head, str) else type(head).__name__
    own = isinstance(head, Head) and (head.estimator is not None or head.arguments)
    if not isinstance(head, Head | str) or own or name not in MULTILABEL_HEADS:
        raise UsageError(
            f"--task multilabel takes only the heads {', '.join(MULTILABEL_HEADS)} by name, not {name} with arguments "
            "or as an object."
            if name in MULTILABEL_HEADS
            else f"--task multilabel takes only the heads {', '.join(MULTILABEL_HEADS)}, not {name}."
        )
    return Head(name, MULTILABEL_HEADS[name])


def _of_estimator(estimator: Any) -> Head:
    if isinstance(estimator, type) or not all(hasattr(estimator, name) for name in ("fit", "predict", "get_params")):
        what = f"the class {estimator.__name__}" if isinstance(estimator, type) else f"a {type(estimator).__name__}"
        raise UsageError(
            f"A head is one of {', '.join(HEADS)}, or a scikit-learn classifier: its import path or an object of it, "
            f"not {what}."
        )
    path = f"{type(estimator).__module__}:{type(estimator).__name__}"
    name = next((name for name, known in HEADS.items() if known == path), type(estimator).__name__)
    return Head(name, estimator=estimator)


def _of_import_path(text: str) -> Head:
    """A classifier by its import path, imported and made once, so that what is wrong is said before any work."""
    from sklearn.base import is_classifier

    parsed = _IMPORT_PATH.fullmatch(text)
    if parsed is None:
        raise UsageError(f'The head {text!r} is not "module:Class" or "module:Class(argument=value)".')
    module, name, call = parsed.groups()
    arguments = {} if call is None else _literals(text, call)
    kind = _class(text, module, name)
    parameters = inspect.signature(kind).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    unknown = sorted(arguments.keys() - named.keys())
    if unknown and all(p.kind != p.VAR_KEYWORD for p in parameters):
        raise UnknownNameError(
            f"{name} takes no argument {unknown[0]!r}, which the head {text!r} gives. It takes: {', '.join(named)}."
        )
    needed = [n for n, default in named.items() if default is inspect.Parameter.empty and n not in arguments]
    if needed:
        raise UsageError(
            f"The head {text!r} lacks the argument {needed[0]}. If that is no literal, make the {name} in Python and "
            "give it to featcache.train."
        )
    head = Head(text, f"{module}:{name}", arguments)
    try:
        made = head.make()
        if hasattr(made, "_parameter_constraints"):  # which fit does as well, but that is late
            made._validate_params()
        classifies = is_classifier(made)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"The head {text!r} cannot be made: {error}") from error
    if not classifies:
        raise UsageError(f"{name} in {module} is not a classifier, so it cannot be a head. Give a classifier.")
    return head


def _literals(text: str, call: str) -> dict[str, Any]:
    """Keyword arguments whose values are Python literals; nothing is evaluated.

    Raises:
        UsageError: anything else stands in the parentheses.
    """
    try:
        parsed = ast.parse(f"_{call}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"The arguments of the head {text!r} are not Python: {error}.") from error
    if (
        not isinstance(parsed, ast.Call)
        or not isinstance(parsed.func, ast.Name)
        or parsed.args
        or any(keyword.arg is None for keyword in parsed.keywords)
    ):
        raise UsageError(f"The head {text!r} takes keyword arguments only, for example (C=0.1, max_iter=500).")
    values: dict[str, Any] = {}
    for keyword in parsed.keywords:
        name = str(keyword.arg)
        if name in values:
            raise UsageError(f"The head {text!r} gives the argument {name} twice.")
        try:
            values[name] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise UsageError(
                f"In the head {text!r} the value of {name} is no literal: {ast.unparse(keyword.value)}. Give a "
                "number, a text in quotes, True, False, None, or a list, tuple or dict of these."
            ) from error
    return values


def _class(text: str, module: str, name: str) -> Any:
    """The class; its module is imported.

    Raises:
        UsageError: there is no such module, it cannot be imported, or it has no class of that name.
    """
    try:
        home = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        raise UsageError(
            f"There is no module {module!r}, which the head {text!r} names. Check the spelling; a module of your own "
            "must be on PYTHONPATH."
            if missing
            else f"The module {module!r} of the head {text!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    kind = getattr(home, name, None)
    if not isinstance(kind, type) or not hasattr(kind, "get_params"):
        classes = [n for n, value in vars(home).items() if isinstance(value, type) and hasattr(value, "predict")]
        if not classes:
            raise UsageError(f"The module {module!r} of the head {text!r} has no scikit-learn classifiers.")
        raise UnknownNameError.among(f"class in {module}", name, classes)
    return kind


def _import(module: str) -> None:
    with suppress(Exception):  # `Head.make` imports it again and raises
        importlib.import_module(module)


def _takes_no_weights(name: str) -> UsageError:
    return UsageError(
        f"The head {name} takes no class weights. Heads that do: {', '.join(WEIGHING)}, and scikit-learn classifiers "
        "with a parameter class_weight."
    )
