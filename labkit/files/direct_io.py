"""Bytes from file to file: past the page cache where the system can, shared, hashed, linked.

A merge reads and writes every byte of a model once. Through the page cache, copying a gigabyte took
0.56 seconds of the processor where it was measured, and past it 0.08; and the cache's pages push
out of memory what other programs keep there. So whole pages go straight between the disk and
buffers here (`O_DIRECT`), and only what is left at the two ends of a run goes through the cache.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import read_fully

HASH_BYTES = 4 << 20
PAGE = 4096
"""Past the page cache, offsets, lengths and addresses in memory are multiples of this."""
LARGE_PAGE = 2 << 20
ALIGNED = 8
"""Only tensors that start at a multiple of this many bytes are read straight from the disk: numpy
works on them where they then lie in memory, and their numbers must not straddle its words."""
DIRECT = getattr(os, "O_DIRECT", 0)
SAMPLES = 32
"""How many single bytes of a file are tried, to tell whether it is in the page cache."""
CLONE_RANGE = 0x4020940D
"""Linux's FICLONERANGE, of include/uapi/linux/fs.h."""


def room_for(size: int) -> int:
    """How large a page buffer must be for `size` bytes, wherever in a page they begin."""
    return -(-size // PAGE) * PAGE + 2 * PAGE


def page_memory(size: int) -> memoryview:
    """Memory that begins at a page, and lies in pages of 2 MB where the system has them (Linux).

    A disk is asked for at most so many runs of memory at once; on a virtual one it was 254, which
    in pages of 4 KB is 1 MB, and large pages doubled what it read and wrote in a second.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, size))
    room = -(-size // LARGE_PAGE) * LARGE_PAGE + LARGE_PAGE
    memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    start = -address(view) % LARGE_PAGE
    return view[start : start + size]


def aligned_part(buffer: memoryview, position: int, count: int) -> memoryview:
    """The `count` bytes of a page buffer that belong to byte `position` of a file.

    They begin as many bytes after the start of a page in memory as `position` lies after the start
    of a page of the file, so that the whole pages between can go straight to or from the disk.

    Args:
        buffer: memory that begins at a page, of `room_for(count)` bytes at least.
        position: the first byte's place in the file.
        count: how many bytes.
    """
    skip = position % PAGE if position % ALIGNED == 0 else 0
    return buffer[skip : skip + count]


class SourceFile:
    """A file to read from, past the page cache unless its content is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = os.open(path, os.O_RDONLY)
        self._direct = None if _cached(self.plain) else _open_direct(path, os.O_RDONLY)

    def read(self, buffer: memoryview, start: int, count: int) -> memoryview:
        """Read `count` bytes from byte `start` on into a page buffer; return where they lie in it.

        Raises:
            LabkitError: the file ends too early: it changed since it was opened.
        """
        view = aligned_part(buffer, start, count)
        skip = start % PAGE
        done = 0
        if self._direct is not None and count and start % ALIGNED == 0:
            pages = -(-(skip + count) // PAGE) * PAGE
            while done < pages:
                try:
                    read = os.preadv(self._direct, [buffer[done:pages]], start - skip + done)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    break  # larger pages than here are known of
                done += read
                if read == 0 or done % PAGE:
                    break  # the file's end
        done = max(0, done - skip)
        if done < count:
            read_fully(self.plain, view[done:], start + done, self.path)
        return view

    def close(self) -> None:
        """Close it."""
        _close(self.plain, self._direct)


class TargetFile:
    """A new file of a known size to write to, past the page cache where the system can.

    Attributes:
        shares: the file system can let it share blocks with the source file, in place of copying.
        direct: whole pages go past the page cache.
    """

    def __init__(self, path: Path, size: int, source: SourceFile) -> None:
        self.plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct: int | None = None
        try:
            os.ftruncate(self.plain, size)
            self._direct = _open_direct(path, os.O_RDWR)
            self.shares = size >= PAGE and _shares_blocks(source.plain, self.plain)
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether whole pages go past the page cache."""
        return self._direct is not None

    def write(self, data: bytes | memoryview, start: int) -> None:
        """Write all of `data` from byte `start` on; quickest from its `aligned_part`."""
        view = memoryview(data)
        done = -start % PAGE
        pages = done + (len(view) - done) // PAGE * PAGE
        if self._direct is None or pages <= done or (address(view) + done) % PAGE:
            write_fully(self.plain, view, start)
            return
        write_fully(self.plain, view[:done], start)
        while done < pages:
            try:
                written = os.pwritev(self._direct, [view[done:pages]], start + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
            done += written
            if written % PAGE:
                break
        write_fully(self.plain, view[done:], start + done)

    def copy(self, source: SourceFile, start: int, count: int, to: int) -> None:
        """Let the kernel copy from byte `start` of the source: file systems that can share do.

        Raises:
            LabkitError: the source ends too early.
        """
        done = 0
        while done < count:
            copied = _copy_some(source.plain, self.plain, count - done, start + done, to + done)
            if copied == 0:
                raise LabkitError(
                    f"{shown(source.path)} became shorter while it was read; leave it alone, and "
                    "start again"
                )
            done += copied

    def flush(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self.plain)

    def close(self) -> None:
        """Close it."""
        _close(self.plain, self._direct)


def _open_direct(path: Path, flags: int) -> int | None:
    try:
        return os.open(path, flags | DIRECT) if DIRECT else None
    except OSError:
        return None  # a file system without it


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def address(view: memoryview) -> int:
    """Where memory begins."""
    if view.readonly:
        return 1  # of a Python object: no page begins there
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _cached(descriptor: int) -> bool:
    """Tell whether most of a file is in the page cache, where reading it takes no disk."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    size = os.fstat(descriptor).st_size
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # look at single pages
    found = 0
    # Never the same places twice: a page that is looked for is read into the cache.
    anywhere = int.from_bytes(os.urandom(4))
    for sample in range(SAMPLES):
        position = size * sample // SAMPLES + anywhere % max(1, size // SAMPLES)
        try:
            os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT)
        except OSError:
            continue
        found += 1
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    return found > SAMPLES // 2


def _shares_blocks(source: int, target: int) -> bool:
    """Try to let two files have their first page in common (Btrfs, XFS); it is written later."""
    try:
        import fcntl

        fcntl.ioctl(target, CLONE_RANGE, struct.pack("qQQQ", source, 0, PAGE, 0))
    except (ImportError, OSError):
        return False
    return True


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


def write_fully(descriptor: int, data: memoryview, start: int) -> None:
    """Write all of `data` to a file, from byte `start` on."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], start + done)


def hash_file(path: Path, stopped: threading.Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        stopped: when it is set, hashing breaks off, and the result means nothing.

    Raises:
        LabkitError: the file became shorter while it was read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hash_range(digest, file.fileno(), path, 0, size, stopped)
    return digest.hexdigest()


def hash_range(
    digest: Any,
    descriptor: int,
    path: Path,
    start: int,
    count: int,
    stopped: threading.Event | None = None,
) -> None:
    """Add a range of a file to a hash.

    Args:
        digest: hashlib's object.
        descriptor: the open file.
        path: its name, for the error.
        start: the first byte.
        count: how many bytes.
        stopped: when it is set, hashing breaks off.

    Raises:
        LabkitError: the file ends too early: it changed since it was opened.
    """
    buffer = memoryview(bytearray(min(HASH_BYTES, count)))
    for position in range(start, start + count, HASH_BYTES):
        if stopped and stopped.is_set():
            return
        part = buffer[: start + count - position]
        read_fully(descriptor, part, position, path)
        digest.update(part)


def linked(source: Path, target: Path) -> bool:
    """Hard-link a file, where the file system can."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False  # another file system, or one without links: copied in place of linked
    return True
