"""Folders that appear whole or not at all.

A folder is built beside its final name, flushed to disk and renamed once. Whoever fails or is
interrupted on the way takes away what was built.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labkit.errors import LabkitError, shown


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


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Make a folder beside `out` to build in; take it away again unless it was renamed."""
    for left in out.parent.glob(f".{_literal(out.name)}.labkit-*"):
        _remove_if_left(left)
    folder = out.parent / f".{out.name}.labkit-{secrets.token_hex(4)}"
    folder.mkdir()
    # The lock says that someone is still building; it ends with the process, however that ends.
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _remove_if_left(folder: Path) -> None:
    """Remove what an interrupted merge left behind, unless its process still runs."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def flush_folder(folder: Path) -> None:
    """Send a folder and its files to the disk, and wait until they are there."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(folder: Path, out: Path) -> None:
    """Rename a whole folder to its final name, in place of what was there."""
    old = None
    if out.exists():
        old = out.parent / f".{out.name}.labkit-{secrets.token_hex(4)}"
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old:
            old.rename(out)
        raise
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def explain(error: OSError, out: Path) -> str:
    """Say what went wrong with the disk while `out` was written."""
    if error.errno in (28, 122):  # no space left, over quota
        return (
            f"the disk became full while {shown(out)} was written; nothing is left of it: make "
            "room, or choose a folder on another disk"
        )
    where = f" ({shown(error.filename)})" if error.filename else ""
    return f"cannot write {shown(out)}: {error.strerror}{where}; nothing is left of it"
