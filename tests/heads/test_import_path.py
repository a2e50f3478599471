"""Any scikit-learn classifier as a head, by its import path and literals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from featcache.core.errors import UnknownNameError, UsageError
from featcache.heads import Head, resolve_head

LOGISTIC = "sklearn.linear_model:LogisticRegression"


def test_with_and_without_arguments() -> None:
    head = resolve_head(f" {LOGISTIC}(C=0.1, class_weight={{'a': 2.0}}) ", seed=3)
    assert head.name == f"{LOGISTIC}(C=0.1, class_weight={{'a': 2.0}})"
    made = head.make()
    assert type(made) is LogisticRegression
    assert (made.C, made.class_weight, made.random_state) == (0.1, {"a": 2.0}, 3)
    assert head.make() is not made
    assert resolve_head(LOGISTIC).make().get_params() == LogisticRegression(random_state=0).get_params()
    assert resolve_head(f"{LOGISTIC}()").name == f"{LOGISTIC}()"
    made = resolve_head(
        "sklearn.neural_network:MLPClassifier(hidden_layer_sizes=(8, 4), random_state=1)", seed=3
    ).make()
    assert type(made) is MLPClassifier
    assert (made.hidden_layer_sizes, made.random_state) == ((8, 4), 1)


def test_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_heads.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n\n\nclass Strong(LogisticRegression):\n    pass\n"
    )
    with pytest.raises(UsageError, match=r"no module 'our_heads'.*PYTHONPATH"):
        resolve_head("our_heads:Strong")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_head("our_heads:Strong(C=2)").make().C == 2


def test_class_weights_of_an_import_path() -> None:
    assert resolve_head(LOGISTIC, class_weight="balanced").make().class_weight == "balanced"
    with pytest.raises(UsageError, match=r"KNeighborsClassifier takes no class weights.*softmax"):
        resolve_head("sklearn.neighbors:KNeighborsClassifier", class_weight="balanced")


def test_a_resolved_head_is_resolved_again() -> None:
    head = resolve_head("softmax", seed=1, class_weight="balanced")
    again = resolve_head(head, seed=2)
    assert isinstance(again, Head)
    assert (again.name, again.seed, again.class_weight) == ("softmax", 2, "balanced")
    assert again.make().get_params().items() >= {"random_state": 2, "class_weight": "balanced"}.items()


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("sklearn.linear_mod:LogisticRegression", UsageError, r"no module 'sklearn\.linear_mod'.*spelling"),
        ("sklearn.linear_model:LogisticRegresion", UnknownNameError, "Did you mean 'LogisticRegression'"),
        ("json:dumps", UsageError, "'json'.* has no scikit-learn classifiers"),
        ("sklearn.linear_model:Ridge(alpha=1)", UsageError, "Ridge in sklearn.linear_model is not a classifier"),
        (f"{LOGISTIC}(D=1)", UnknownNameError, r"takes no argument 'D'.*It takes: .*\bC, .*max_iter"),
        (f"{LOGISTIC}(C=-1)", UsageError, r"cannot be made: The 'C' parameter .* Got -1"),
        (f"{LOGISTIC}(solver=saga)", UsageError, r"the value of solver is no literal: saga\. Give .* a text in quotes"),
        (f"{LOGISTIC}(C=__import__('os').getpid())", UsageError, "the value of C is no literal"),
        (f"{LOGISTIC}(C=1, C=2)", UsageError, "gives the argument C twice"),
        (f"{LOGISTIC}(0.1)", UsageError, "keyword arguments only, for example"),
        (f"{LOGISTIC}(**{{'C': 1}})", UsageError, "keyword arguments only"),
        (f"{LOGISTIC}(C=1)(2)", UsageError, "keyword arguments only"),
        (f"{LOGISTIC}(C=)", UsageError, "are not Python"),
        (f"{LOGISTIC}(C=1", UsageError, 'is not "module:Class" or "module:Class'),
        ("..linear_model:LogisticRegression", UsageError, 'is not "module:Class"'),
        ("sklearn.multiclass:OneVsRestClassifier", UsageError, "lacks the argument estimator.* in Python"),
    ],
)
def test_what_is_wrong_is_said_at_once(text: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        resolve_head(text)


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_heads.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"'broken_heads' .* cannot be imported: .*no_such_dependency"):
        resolve_head("broken_heads:Any")


def test_a_named_head_is_resolved_without_an_import() -> None:
    code = (
        "import sys; from featcache.heads import resolve_head; resolve_head('ridge'); "
        "print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_learns() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 4)) + 3 * y[:, None]
    assert resolve_head("sklearn.naive_bayes:GaussianNB").make().fit(X, y).score(X, y) > 0.9
