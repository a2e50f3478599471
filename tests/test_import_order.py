"""Imports point only down the list below, wherever in a file they stand; and light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import featcache

ROOT = Path(featcache.__file__).parent

# From the top of the house to the ground. A module may import what stands below it, and inside its
# own package anything.
ORDER = (
    "__main__",
    "cli",
    "demo",
    "checks",
    "faces",
    "strategies",
    "comparison",
    "sweeping",
    "embedder",
    "prediction",
    "training",
    "extraction",
    "similarity",
    "score_report",
    "parts",
    "scorable",
    "image_vectors",
    "leakage",
    "multilabel",
    "fitting",
    "labelled_vectors",
    "bundle",
    "bundle_file",
    "joined",
    "suffix_form",
    "layer_use",
    "embedding",
    "known_images",
    "heads",
    "evaluation",
    "backbones",
    "images",
    "store",
    "recipe",
    "interrupts",
    "progress",
    "failpoints",
    "blas_threads",
    "errors",
)
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    """The parts of featcache that a file imports, type checking apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom) or _only_for_types(node, parents):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("featcache.")}
    return found


def _only_for_types(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in ORDER, f"featcache.{part} has no place in ORDER yet"
    for name in imported(path) - {part}:
        assert name in ORDER, f"{path.name} imports featcache.{name}, which has no place in ORDER"
        assert ORDER.index(name) > ORDER.index(part), f"featcache.{part} must not import featcache.{name}"


def test_the_list_names_nothing_that_is_gone():
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert parts == set(ORDER)


HEAVY = ("torch", "openvino", "sklearn", "timm", "torchvision", "matplotlib")


def heavy_after(code: str, *arguments: str) -> list[str]:
    """The heavy packages that a fresh Python has imported after running *code*."""
    tell = f"\nimport sys; print('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tell, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_heavy_imports_are_seen():
    assert heavy_after("import sklearn") == ["sklearn"]


def test_importing_featcache_is_light():
    assert heavy_after("import featcache") == []


@pytest.mark.parametrize("head", ["softmax", "ridge", "knn", "centroid", "logreg"])
def test_heads_need_no_torch(head, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)), labels=np.arange(40) % 2)
    code = "import sys, featcache as fc; fc.train(sys.argv[1], sys.argv[2], progress=False).save(sys.argv[3])"
    assert heavy_after(code, str(tmp_path / "x.npz"), head, str(tmp_path / "a.fch")) == ["sklearn"]


def test_help_is_light():
    assert heavy_after("from featcache.cli import main; main(['--help']); main(['train', '--help'])") == []
