"""How many threads work at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MOST_WORKERS = 4
"""Processors that are used. More than this wait for the disk."""


def workers() -> int:
    """How many processors are used."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, there or 1))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep numpy's matrix products in the thread that calls them.

    The matrices are thin or the blocks small, and several threads are at them already: the
    library's own would only wait for each other, which measured twice as slow.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield
