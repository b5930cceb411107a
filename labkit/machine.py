"""What this machine has to calculate with: processors, and perhaps a GPU."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from labkit.errors import LabkitError, shown

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 4
"""Processors that are used. More than this wait for the disk."""


def workers() -> int:
    """How many processors are used."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, there or 1))


@contextmanager
def many_objects() -> Iterator[None]:
    """Let Python not look for circles of dead objects while many objects are made that have none.

    It would look through all of them again and again: two thirds of the time of opening a file of
    100,000 tensors.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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


@contextmanager
def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Iterator[Result]]:
    """Map in threads, one for each processor, in order."""
    pool = ThreadPoolExecutor(workers(), "labkit", calculate_by_the_standard)
    try:
        with one_thread_each():
            yield pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def shortage(error: BaseException) -> str | None:
    """What to say of an error if it means that the process may use too little; None if it does not.

    Such errors are Python's own, and come from anywhere: limits hold for the whole process.
    """
    text = str(error)
    if isinstance(error, MemoryError) or "failed to map segment" in text:
        return (
            "there is too little memory for this process; allow it more (ulimit -v, or the limit "
            "of the container), or end others"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return (
            "this process may start too few threads, or has too little memory for them; allow it "
            "more (ulimit -u, ulimit -v, or the limits of the container)"
        )
    return None


def require_address_space(size: int) -> None:
    """Check that the process may take so much more memory, where the system limits it.

    Libraries that find too little end the process at once, and nothing can be cleaned up.

    Raises:
        LabkitError: it may not.
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):  # systems that do not tell
        return
    left = limit - pages * resource.getpagesize()
    if limit != resource.RLIM_INFINITY and left < size:
        raise LabkitError(
            f"there is too little memory for this process: it may take {max(left, 0) >> 20} MB "
            f"more (ulimit -v), and needs {size >> 20} MB; allow it more"
        )


def free_memory() -> int | None:
    """Bytes of memory that can be taken: what the system has left, or a container's limit leaves.

    None where the system does not tell.
    """
    left = []
    with suppress(OSError, ValueError, KeyError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        left.append(1024 * int(lines["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError, KeyError):  # "max" is no number: there is no limit
        group = Path("/sys/fs/cgroup")
        limit, taken = (int((group / f"memory.{one}").read_text()) for one in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that nobody has looked at lately give way.
        left.append(limit - taken + int(stat["inactive_file"]))
    return max(0, min(left)) if left else None


def calculate_by_the_standard() -> None:
    """Let this thread's processor calculate by IEEE 754, whatever other code has set.

    `torch.set_flush_denormal(True)`, and libraries linked with -Ofast, make a thread and those that
    it starts take every subnormal number for 0; they are a good part of float16's small numbers.
    To be called at the start of threads of labkit's own; elsewhere see `standard_arithmetic`.
    """
    system = _floating_point()
    if system is not None:
        system.fesetenv(_default_of(system))


@contextmanager
def standard_arithmetic() -> Iterator[None]:
    """The same for a while, in a thread that is not labkit's: what was set comes back."""
    system = _floating_point()
    if system is None:
        yield
        return
    before = ctypes.create_string_buffer(1024)  # longer than any system's
    system.fegetenv(before)
    calculate_by_the_standard()
    try:
        yield
    finally:
        system.fesetenv(before)


@cache
def _floating_point() -> ctypes.CDLL | None:
    """The library of C's fenv.h."""
    for name in (None, "libm.so.6"):
        with suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "fesetenv") and hasattr(library, "fegetenv"):
                return library
    return None


def _default_of(library: ctypes.CDLL) -> ctypes.c_void_p:
    """C's `FE_DFL_ENV`: -1 in Linux's libraries, a variable in Apple's."""
    try:
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")))
    except ValueError:
        return ctypes.c_void_p(-1)


def choose_device(device: str, usable: Sequence[str] = ("cuda", "cpu")) -> str:
    """Turn "auto" into the best device there is, and check any other name.

    Args:
        device: "auto", or a device's name.
        usable: the devices that the caller can use, the best one first.

    Raises:
        LabkitError: an unknown name, or a device that is not there.
    """
    if device not in ("auto", *usable):
        raise LabkitError(
            f"the device {shown(device)!r} is unknown; expected {', '.join(usable)} or auto"
        )
    if device != "auto" and not _has(device):
        raise LabkitError(f"there is no {device.upper()} device here; choose the device cpu")
    return next(name for name in usable if _has(name)) if device == "auto" else device


def _has(device: str) -> bool:
    if device == "cpu":
        return True
    if device == "cuda" and not _may_have_cuda():
        return False
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_available())
    return bool(torch.backends.mps.is_available())


def _may_have_cuda() -> bool:
    """Whether it is worth importing torch, which takes seconds, to ask it for a GPU.

    Nvidia's driver for Linux makes this device; elsewhere it comes with this program.
    """
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
