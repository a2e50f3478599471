"""The number of threads of linear algebra is put back, however fits overlap."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from featcache.heads.ridge_axes import _eigh
from featcache.heads.row_threads import row_threads


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
