"""How many threads work at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_WORKERS = 4
"""Processors that are used. More than this wait for the disk."""


def workers() -> int:
    """How many processors are used."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, there or 1))


_lock = threading.Lock()
_users = 0
_limits: Any = None


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep numpy's matrix products in the thread that calls them.

    The matrices are thin or the blocks small, and several threads are at them already: the
    library's own would only wait for each other, which measured twice as slow for a survey, and
    many times for an overlap. The limit counts for the whole process, from the first that asks for
    it to the last.
    """
    global _users, _limits
    from threadpoolctl import threadpool_limits

    with _lock:
        if _users == 0:
            _limits = threadpool_limits(1, "blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limits.restore_original_limits()
