"""Any scikit-learn classifier as a head, by its import path and literals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

import featcache as fc
from featcache.cli import main
from featcache.core.errors import BundleError, UnknownNameError, UsageError
from featcache.heads import Head, resolve_head, split_heads

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
        "from sklearn.base import BaseEstimator, ClassifierMixin\n\n\n"
        "class Strong(ClassifierMixin, BaseEstimator):\n"
        "    def __init__(self, C=1):\n        self.C = C\n\n"
        "    def fit(self, X, y):\n        return self\n\n"
        "    def predict(self, X):\n        return X\n"
    )
    with pytest.raises(UsageError, match=r"no module 'our_heads'.*PYTHONPATH"):
        resolve_head("our_heads:Strong")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_head("our_heads:Strong(C=2)").make().C == 2
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(UsageError, match="SystemExit: 3"):
        resolve_head("leaves:Strong")


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


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """200 vectors of two classes in a file."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(200, 4)) + 2 * y[:, None], labels=np.array(["a", "b"])[y])
    return tmp_path / "x.npz"


def test_a_linear_one_is_saved_and_answers_the_same(vectors: Path, tmp_path: Path) -> None:
    bundle = fc.train(vectors, f"{LOGISTIC}(C=0.1)", progress=False)
    bundle.save(tmp_path / "a.fch")
    loaded = fc.load(tmp_path / "a.fch")
    X, y = (np.load(vectors)[name] for name in ("features", "labels"))
    assert loaded.head == f"{LOGISTIC}(C=0.1)"
    np.testing.assert_array_equal(loaded.predict_proba_vectors(X), bundle.predict_proba_vectors(X))
    assert (loaded.predict_vectors(X) == y).mean() > 0.9


def test_the_name_in_a_file_is_never_imported(vectors: Path, tmp_path: Path) -> None:
    bundle = fc.train(vectors, f"{LOGISTIC}(C=0.1)", progress=False)
    bundle.head = "this_module_would_be_imported:Head(C=1)"
    bundle.save(tmp_path / "a.fch")
    (tmp_path / "this_module_would_be_imported.py").write_text("raise SystemExit('it was imported')")
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import featcache as fc;"
        "bundle = fc.load(sys.argv[1] + '/a.fch'); bundle.predict_vectors(np.ones((1, 4), np.float32));"
        "print(bundle.head);"
        "bundle.save(sys.argv[1] + '/b.fch'); print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["this_module_would_be_imported:Head(C=1)", "False"]


def test_one_that_is_not_linear_is_scored_and_save_says_what_is_supported(vectors: Path, tmp_path: Path) -> None:
    bundle = fc.train(vectors, "sklearn.naive_bayes:GaussianNB()", progress=False)
    assert bundle.report["score"]["accuracy"] > 0.8
    with pytest.raises(BundleError, match=r"GaussianNB cannot be saved .*Supported: .*LogisticRegression"):
        bundle.save(tmp_path / "a.fch")


def test_the_command_line_refuses_what_it_cannot_save_before_the_training(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(vectors), "-o", str(tmp_path / "a.fch"), "--head"]
    for head in ("sklearn.naive_bayes:GaussianNB(var_smoothing=1e-8)", "sklearn.ensemble:RandomForestClassifier"):
        assert main([*words, head]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert " cannot be saved" in told.err
        assert "Supported: the named heads" in told.err
        assert main(["sweep", str(tmp_path / "no.fcache"), "-o", str(tmp_path / "a.fch"), "--heads", head]) == 2
        assert " cannot be saved" in capsys.readouterr().err
    assert main([*words, "sklearn.svm:SVC(kernel='linear')"]) == 2
    assert not (tmp_path / "a.fch").exists()
    assert main([*words, f"{LOGISTIC}(C=0.5)"]) == 0
    assert (tmp_path / "a.fch").is_file()
    assert main([*words, f"{LOGISTIC}(D=0.5)"]) == 2


def test_commas_of_arguments_do_not_part_heads() -> None:
    assert split_heads(f" ridge, {LOGISTIC}(C=1, tol=0.1),knn,") == ["ridge", f"{LOGISTIC}(C=1, tol=0.1)", "knn"]
    assert split_heads("a:B(c=(1, 2), d=[3, 4]),mlp") == ["a:B(c=(1, 2), d=[3, 4])", "mlp"]


def test_train_imports_its_own_head_alone(vectors: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from featcache.cli import main; "
        "main(['train', sys.argv[1], '-o', sys.argv[2], '--head', 'ridge']); "
        "print(sorted(m for m in sys.modules if m in ('featcache.heads.ridge', 'featcache.heads.softmax', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(vectors), str(tmp_path / "a.fch")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "['featcache.heads.ridge']"


@pytest.mark.parametrize("module", ["serialize", "predictors", "matching", "streaming"])
def test_predicting_needs_no_heavy_import(module: str) -> None:
    code = f"import sys, featcache.heads.{module}; print(sorted({{'torch', 'sklearn', 'scipy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
