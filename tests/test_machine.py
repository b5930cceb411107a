"""One thread each, whoever else asks for it meanwhile."""

import subprocess
import sys

from labkit.machine import workers

ALONE = """
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
from labkit.machine import one_thread_each

def threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

with threadpool_limits(2, "blas"):
    before = threads()
    first, second = one_thread_each(), one_thread_each()
    first.__enter__()
    second.__enter__()
    assert threads() == {1}, threads()
    first.__exit__(None, None, None)
    assert threads() == {1}, threads()
    second.__exit__(None, None, None)
    assert threads() == before, threads()
"""


def test_the_limit_ends_with_the_last_that_asked():
    # In a process of its own: other tests' labs may still be calculating in this one.
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_there_is_a_worker():
    assert 1 <= workers() <= 4
