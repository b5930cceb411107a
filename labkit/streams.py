"""Bytes from file to file: copied, hashed, written, linked; and jobs beside the merging."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.layout import OutputFile, Piece

HASH_BYTES = 4 << 20


class Beside:
    """Does jobs one after the other in a thread of its own; the first error ends the merge."""

    def __init__(self, stopped: threading.Event) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stopped = stopped
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, job: Any) -> None:
        """Add a job; raise what went wrong before it."""
        if self._error:
            raise self._error
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait until all is done; raise what went wrong."""
        self.close()
        if self._error:
            raise self._error

    def close(self) -> None:
        """End the thread, whatever went wrong."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._stopped.is_set():
                continue
            try:
                job()
            # Whatever it is, it is raised again in the thread that waits.
            except BaseException as error:  # noqa: BLE001
                self._error = error
                self._stopped.set()


def hash_file(path: Path, stopped: threading.Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hash_range(digest, file.fileno(), 0, size, stopped or threading.Event())
    return digest.hexdigest()


def hash_range(
    digest: Any, descriptor: int, start: int, count: int, stopped: threading.Event
) -> None:
    """Add a range of a file to a hash; break off when the merge is stopped."""
    for position in range(start, start + count, HASH_BYTES):
        if stopped.is_set():
            return
        digest.update(os.pread(descriptor, min(HASH_BYTES, start + count - position), position))


def copy_range(source: int, target: int, piece: Piece, file: OutputFile) -> tuple[float, float]:
    """Let the kernel copy: file systems that can share blocks then do.

    Returns:
        what merging a piece gives too: the squares of its change and of what is missing, both 0.
    """
    done = 0
    while done < piece.nbytes:
        count = _copy_some(
            source, target, piece.nbytes - done, piece.source + done, piece.target + done
        )
        if count == 0:
            raise LabkitError(
                f"{shown(file.source.path)} became shorter while it was read; leave it alone, and "
                "start again"
            )
        done += count
    return 0.0, 0.0


def _copy_some(source: int, target: int, count: int, start: int, to: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, start, to)
        except OSError as error:
            # Some file systems, and some pairs of them, cannot; then the bytes go through memory.
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
    data = os.pread(source, min(count, HASH_BYTES), start)
    return os.pwrite(target, data, to)


def write_fully(descriptor: int, data: bytes | memoryview, start: int) -> None:
    """Write all of `data` to a file, from byte `start` on."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def linked(source: Path, target: Path) -> bool:
    """Hard-link a file, where the file system can."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False  # another file system, or one without links: copied in place of linked
    return True
