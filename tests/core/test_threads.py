"""The number of threads of linear algebra is put back, however fits overlap."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from featcache.core.threads import row_threads
from featcache.heads.ridge import _eigh


def counts() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("first_out", [0, 1])
def test_fits_that_overlap_leave_the_threads_as_they_were(first_out: int) -> None:
    with threadpool_limits(2, user_api="blas"):
        fits = [ExitStack(), ExitStack()]
        for fit in fits:
            fit.enter_context(row_threads())
            assert counts() == {1}
        fits[first_out].close()
        assert counts() == {1}
        _eigh(np.eye(3))
        assert counts() == {1}
        fits[1 - first_out].close()
        assert counts() == {2}
        _eigh(np.eye(3))
        assert counts() == {2}


def test_an_error_puts_them_back_too() -> None:
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(ZeroDivisionError), row_threads():
            raise ZeroDivisionError
        assert counts() == {2}


@pytest.mark.parametrize("limit", [1, 2])
def test_there_are_as_many_threads_as_linear_algebra_has(limit: int) -> None:
    cores = len(os.sched_getaffinity(0))
    with threadpool_limits(limit, user_api="blas"), row_threads() as threads:
        assert threads.count == min(limit, cores)
        # A fit within another's time is no reason for fewer.
        with row_threads() as more:
            assert more.count == threads.count


def test_a_worker_of_joblib_has_the_threads_that_joblib_gives_it() -> None:
    # Without tests' modules in the worker, which cannot import them.
    code = (
        "import joblib\n"
        "def count():\n"
        "    from featcache.core.threads import row_threads\n"
        "    import numpy\n"
        "    with row_threads() as threads: return threads.count\n"
        "with joblib.parallel_config('loky', n_jobs=2, inner_max_num_threads=1):\n"
        "    print(joblib.Parallel()(joblib.delayed(count)() for _ in range(2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 1]"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_the_environment_limits_them(name: str) -> None:
    code = "from featcache.core.threads import row_threads\nwith row_threads() as t: print(t.count)"
    plain = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", "import numpy\n" + code],
        capture_output=True,
        text=True,
        check=True,
        env=plain | {name: "1"},
    )
    assert done.stdout.strip() == "1"
