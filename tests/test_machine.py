"""One thread each, whoever else asks for it meanwhile."""

import subprocess
import sys
from pathlib import Path

from labkit.machine import free_memory, workers

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


def test_free_memory_is_the_systems_or_what_a_containers_limit_leaves(monkeypatch):
    """Read from what Linux says; files that nobody looks at give way."""
    texts = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n",
        "/sys/fs/cgroup/memory.max": "4000000\n",
        "/sys/fs/cgroup/memory.current": "3000000\n",
        "/sys/fs/cgroup/memory.stat": "anon 2000000\ninactive_file 500000\n",
    }

    def read(path, **_):
        if str(path) not in texts:
            raise FileNotFoundError(path)
        return texts[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory() == 1_500_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory() == 5000 * 1024
    texts.clear()  # another system
    assert free_memory() is None
