"""A head that would outgrow the memory is refused before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featcache.errors import UsageError
from featcache.fitting import fit
from featcache.heads import HEADS, make_head
from featcache.heads.memory import available_memory, check_memory
from featcache.heads.softmax_path import SoftmaxPathClassifier
from featcache.labelled_vectors import LabelledVectors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(tmp_path: Path) -> LabelledVectors:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)).astype(np.float32), labels=np.arange(40) % 2)
    return LabelledVectors.from_file(tmp_path / "x.npz")


def enormous(examples: LabelledVectors) -> LabelledVectors:
    """The same items with vectors of 10^12 numbers, which nobody may read."""

    def read(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("was read")

    return replace(examples, shapes=[(10**12,)], read=read)


@pytest.mark.parametrize("head", ["softmax", "logreg", LogisticRegression()])
def test_too_many_vectors_are_refused_unread(small: LabelledVectors, head: object) -> None:
    with pytest.raises(UsageError, match=r"needs about .*GB .* has .*GB.*--head torch.*ridge"):
        fit(enormous(small), np.arange(40), head, 0)


def test_what_is_needed_and_what_there_is_are_told(small: LabelledVectors) -> None:
    needed = SoftmaxPathClassifier().memory_needed(40, 5, 2)
    assert needed == 4 * (4 * 40 * 5 + 18 * 6 * 2 * 5) + (8 * 6 + 8) * 40 * 2
    with pytest.raises(UsageError, match=r"softmax needs about 0\.0 MB .* 40 vectors of 5 numbers and 2 classes"):
        fit(small, np.arange(40), "softmax", 0, available_memory=needed - 1)
    assert fit(small, np.arange(40), "softmax", 0, available_memory=needed).fitted_on == 40


def test_heads_that_read_piece_by_piece_are_never_refused(small: LabelledVectors) -> None:
    streaming = [name for name in HEADS if hasattr(make_head(name), "fit_stream")]
    assert {"ridge", "torch"} <= set(streaming)
    assert fit(small, np.arange(40), "ridge", 0, available_memory=0).fitted_on == 40


def test_one_problem_alone_needs_less() -> None:
    one = SoftmaxPathClassifier(Cs=[1.0]).memory_needed(1000, 100, 10)
    logits = 8 * 5 * 1000 * 10
    assert one == SoftmaxPathClassifier().memory_needed(1000, 100, 10) - 4 * 18 * 5 * 10 * 100 - logits


def test_others_are_taken_to_need_the_vectors_twice() -> None:
    check_memory(LogisticRegression(), "mine", 1000, 100, 3, streaming="", available=800_000)
    with pytest.raises(UsageError, match=r"mine needs about 0\.8 MB.*has 0\.8 MB"):
        check_memory(LogisticRegression(), "mine", 1000, 100, 3, streaming="", available=799_999)


def test_the_machine_is_asked() -> None:
    have = available_memory()
    assert have is not None
    assert 0 < have <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="nothing tells the peak of one process")
@pytest.mark.parametrize(("n", "d", "k"), [(40_000, 300, 3), (16_000, 8, 400)])
def test_the_estimate_holds_for_real(n: int, d: int, k: int) -> None:
    """The peak of a fit above what the process had before is at most what was foretold, and not far below."""
    code = (
        "import numpy as np\n"
        "from featcache.heads.softmax_path import SoftmaxPathClassifier\n"
        # Not ru_maxrss, which begins at the size of the process that started this one.
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(1024 * int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "draw = np.random.default_rng(0)\n"
        "SoftmaxPathClassifier().fit(draw.normal(size=(60, 4)), np.arange(60) % 3)\n"
        "before = peak()\n"
        f"X = draw.standard_normal(({n}, {d}), dtype=np.float32)\n"
        "head = SoftmaxPathClassifier(Cs=[1e-6, 1e-5], cv=2)\n"
        f"head.fit(X, np.arange({n}) % {k})\n"
        f"print(peak() - before, head.memory_needed({n}, {d}, {k}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, foretold = map(int, done.stdout.split())
    assert foretold / 2 < took < 1.1 * foretold
