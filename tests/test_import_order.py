"""Light things stay light: what imports torch, scikit-learn and their like, and when."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

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


def test_heads_need_no_torch(tmp_path):
    """All in one process, since each start takes seconds."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)), labels=np.arange(40) % 2)
    code = (
        "import sys, featcache as fc\n"
        "for head in ('softmax', 'ridge', 'knn', 'centroid', 'sklearn.linear_model:LogisticRegression'):\n"
        "    fc.train(sys.argv[1], head, progress=False).save(f'{sys.argv[2]}/{head[:3]}.fch')\n"
        "    assert 'torch' not in sys.modules, head"
    )
    assert heavy_after(code, str(tmp_path / "x.npz"), str(tmp_path)) == ["sklearn"]


def test_training_does_not_import_what_compiles():
    code = (
        "import sys, numpy as np\n"
        "from featcache.heads import resolve_head\n"
        "from featcache.heads.siamese import SiameseHead\n"
        "X, y = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32), np.arange(40) % 10\n"
        "for head in (resolve_head('mlp').make(), resolve_head('torch').make(), SiameseHead(steps=2)):\n"
        "    head.fit(X, y)\n"
        "    assert 'torch._dynamo' not in sys.modules, head"
    )
    assert "torch" in heavy_after(code)


def test_help_is_light():
    assert heavy_after("from featcache.cli import main; main(['--help']); main(['train', '--help'])") == []
