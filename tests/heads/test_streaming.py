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

from featcache.core.errors import UsageError
from featcache.heads import HEADS, resolve_head
from featcache.heads.softmax import SoftmaxPathClassifier
from featcache.heads.streaming import available_memory, check_memory
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import fit


@pytest.fixture
def small(tmp_path: Path) -> FeatureDataset:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)).astype(np.float32), labels=np.arange(40) % 2)
    return FeatureDataset.from_file(tmp_path / "x.npz")


def enormous(dataset: FeatureDataset) -> FeatureDataset:
    """The same items with vectors of 10^12 numbers, which nobody may read."""

    def read(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("was read")

    return replace(dataset, shapes=[(10**12,)], read=read)


@pytest.mark.parametrize("head", ["softmax", "sklearn.linear_model:LogisticRegression", LogisticRegression()])
def test_too_many_vectors_are_refused_unread(small: FeatureDataset, head: object) -> None:
    with pytest.raises(UsageError, match=r"needs about .*GB .* has .*GB.*--head torch.*ridge"):
        fit(enormous(small), np.arange(40), resolve_head(head))


def test_what_is_needed_and_what_there_is_are_told(small: FeatureDataset) -> None:
    needed = SoftmaxPathClassifier().memory_needed(40, 5, 2)
    assert needed == 4 * (4 * 40 * 5 + 18 * 6 * 2 * 5) + (8 * 6 + 8) * 40 * 2
    with pytest.raises(UsageError, match=r"softmax needs about 0\.0 MB .* 40 vectors of 5 numbers and 2 classes"):
        fit(small, np.arange(40), resolve_head("softmax"), available_memory=needed - 1)
    assert fit(small, np.arange(40), resolve_head("softmax"), available_memory=needed).fitted_on == 40


@pytest.mark.parametrize("head", ["ridge", "torch", "mlp"])
def test_heads_that_read_piece_by_piece_are_refused_for_what_they_hold_alone(small: FeatureDataset, head: str) -> None:
    reading = {name for name in HEADS if hasattr(resolve_head(name).make(), "fit_stream")}
    assert reading == {"stack", "torch", "ridge", "mlp"}
    made = resolve_head(head).make()
    # A million vectors more are none that they hold.
    assert made.memory_needed(2_000_000, 1280, 10) == made.memory_needed(1_000_000, 1280, 10) < 4 * 1_000_000 * 1280
    with pytest.raises(UsageError, match=rf"{head} needs about .*GB .* has .*GB.*Use fewer layers"):
        fit(enormous(small), np.arange(40), resolve_head(head))
    needed = made.memory_needed(40, 5, 2)
    with pytest.raises(UsageError, match=f"{head} needs about"):
        fit(small, np.arange(40), resolve_head(head), available_memory=needed - 1)
    assert fit(small, np.arange(40), resolve_head(head), available_memory=needed).fitted_on == 40


@pytest.mark.parametrize("k", [2, 50])
def test_they_hold_their_gram_matrix_and_their_weights(k: int) -> None:
    assert resolve_head("ridge").make().memory_needed(10_000, 1000, k) > 2 * 8 * 1000**2
    assert resolve_head("torch").make().memory_needed(10_000, 1000, k) > 4 * 4 * 1000 * k * 4


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with 8 GB available, this list of control groups and these files of theirs."""
    files = {
        "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_limits_of_control_groups_count(tmp_path: Path) -> None:
    own = {"job/memory.max": "3000000000\n", "job/memory.current": "1200000000\n"}
    own |= {"job/memory.stat": "anon 900000000\ninactive_file 200000000\n"}
    assert available_memory(machine(tmp_path / "2", "0::/job\n", own)) == 2_000_000_000
    # One above binds as well, and none binds where there is no limit or where the machine has less.
    above = {"memory.max": "1500000000\n", "memory.current": "1400000000\n", "memory.stat": "inactive_file 0\n"}
    assert available_memory(machine(tmp_path / "above", "0::/job\n", own | above)) == 100_000_000
    free = own | {"job/memory.max": "max\n"}
    assert available_memory(machine(tmp_path / "free", "0::/job\n", free)) == 8_192_000_000
    over = own | {"job/memory.current": "4000000000\n"}
    assert available_memory(machine(tmp_path / "over", "0::/job\n", over)) == 0


def test_version_1_of_them_counts_too(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "2000000000\n",
        "memory/memory.usage_in_bytes": "700000000\n",
        "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100000000\n",
    }
    # In a container the path is that of the host.
    listed = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/docker/1\n0::/docker/1\n"
    assert available_memory(machine(tmp_path, listed, files)) == 1_400_000_000
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(tmp_path) == 8_192_000_000


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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="nothing tells the peak of one process")
@pytest.mark.parametrize(("n", "d", "k"), [(40_000, 300, 3), (16_000, 8, 400)])
def test_the_estimate_holds_for_real(n: int, d: int, k: int) -> None:
    """The peak of a fit above what the process had before is at most what was foretold, and not far below."""
    code = (
        "import numpy as np\n"
        "from featcache.heads.softmax import SoftmaxPathClassifier\n"
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
