"""Folders that appear whole or not at all: a merge's, and a baked adapter's.

A folder is built beside its final name, flushed, and put in place in one step. Until that step
there is nothing new at the final name, and after it all is there. What a process leaves that was
killed is taken away by the next one that builds for the same name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labkit.errors import LabkitError, shown

RENAME_EXCHANGE = 2
AT_FDCWD = -100
ASIDE = "labkit-old-"
"""Marks the folder that was at the final name, where the system cannot exchange two names."""


def check_target(out: Path, overwrite: bool) -> None:
    """Check that a folder can be made at `out`.

    Raises:
        LabkitError: no parent folder; something is there, and may not or must not be replaced.
    """
    if not out.parent.is_dir():
        raise LabkitError(
            f"{shown(out.parent)} is no folder; make it first, or choose another --out"
        )
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise LabkitError(
                f"{shown(out)} exists already; choose another name, or replace it with --overwrite"
            )
        if out.is_symlink() or not out.is_dir() or not (out / "receipt.json").is_file():
            raise LabkitError(
                f"{shown(out)} was not made by labkit (it holds no receipt.json), and is not "
                "replaced; choose another name, or remove it yourself"
            )


def require_apart(out: Path, adapter: Path) -> None:
    """Check that the folder `out` would not take an adapter's place.

    Raises:
        LabkitError: it is the adapter's folder, or one around it.
    """
    resolved, source = out.resolve(), adapter.resolve()
    if resolved == source or resolved in source.parents:
        raise LabkitError(
            f"the output {shown(out)} would replace the adapter {shown(source)}, which is never "
            "written to; choose another folder"
        )


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Make a folder beside `out` to build in; take it away again unless it was put in place."""
    folder = out.parent / f".{out.name}.labkit-{secrets.token_hex(4)}"
    lock = None
    try:
        # One at a time looks after what others left, so that nobody takes away a folder that
        # another has made and not locked yet.
        with _locked(out.parent):
            for left in out.parent.glob(f".{_literal(out.name)}.labkit-*"):
                _remove_if_left(left, out)
            folder.mkdir()
            # The lock says that someone is still building; it ends with the process, however.
            lock = os.open(folder, os.O_RDONLY)
            _lock(lock)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    with suppress(OSError):  # file systems without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _remove_if_left(folder: Path, out: Path) -> None:
    """Remove what an interrupted build left behind, unless its process still runs."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.name.startswith(f".{out.name}.{ASIDE}") and not out.exists():
                folder.rename(out)  # killed between moving the old one aside and putting the new
            else:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def flush_folder(folder: Path) -> None:
    """Flush every file of a folder, and the folder, to disk."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(folder: Path, out: Path, overwrite: bool) -> None:
    """Give a finished folder its final name, in one step.

    Raises:
        LabkitError: someone else put one there meanwhile, and it is not to be replaced.
        OSError: the system refused.
    """
    if overwrite and out.exists():
        if not _exchange(folder, out):
            # Between its two steps another that cleans up would take the old folder for left.
            with _locked(out.parent):
                _replace(folder, out)
    else:
        try:
            # Of two for one name one comes first; the other finds a folder that is not empty.
            folder.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise LabkitError(
                    f"{shown(out)} was made by someone else meanwhile, and is not "
                    "replaced; choose another name, or replace it with --overwrite"
                ) from error
            raise
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(folder: Path, out: Path) -> bool:
    """Let two folders change their names in one step, where the system can (Linux, renameat2)."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done: int = call(AT_FDCWD, os.fsencode(folder), AT_FDCWD, os.fsencode(out), RENAME_EXCHANGE)
    return done == 0


def _replace(folder: Path, out: Path) -> None:
    """Move the old folder aside, and the new one in its place: two steps, the way back open."""
    old = out.parent / f".{out.name}.{ASIDE}{secrets.token_hex(4)}"
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def explain(error: OSError, out: Path) -> str:
    """Say in one line what the system refused while `out` was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk became full while {shown(out)} was written; nothing is left of it: make "
            "room, or choose a folder on another disk"
        )
    if error.errno == errno.EFBIG:
        return (
            f"a file of {shown(out)} became larger than the system allows here (ulimit -f, or the "
            "file system); nothing is left of it: choose a folder on another disk"
        )
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    if name and out.parent not in Path(name).parents:
        return f"cannot read {shown(name)}: {error.strerror}; nothing is left of {shown(out)}"
    where = f" ({shown(name)})" if name else ""
    return f"cannot write {shown(out)}: {error.strerror}{where}; nothing is left of it"
