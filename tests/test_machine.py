"""One thread each, whoever else asks for it meanwhile."""

import numpy as np  # noqa: F401 - its library is what is limited
from threadpoolctl import threadpool_info, threadpool_limits

from labkit.machine import one_thread_each, workers


def blas_threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_the_limit_ends_with_the_last_that_asked():
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        first, second = one_thread_each(), one_thread_each()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before


def test_there_is_a_worker():
    assert 1 <= workers() <= 4
