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
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown, spelled
from labkit.files.interruptions import Interruptions
from labkit.files.small_files import read_json

RENAME_EXCHANGE = 2
AT_FDCWD = -100
ASIDE = "labkit-old-"
"""Marks the folder that was at the final name, where the system cannot exchange two names."""
RECEIPT = "receipt.json"
EXPORT = "format"
"""The key that receipts of exports have, and no others."""
MARK = ".labkit-builds-here"
"""A file that says of a folder that labkit is building it, or taking it away."""
OF_THE_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers put into any folder, and that nobody misses."""
MOST_NAMED = 5
"""How many unknown files an error names."""


def written_files(folder: Path) -> set[str]:
    """The names of the files that labkit wrote into a folder, as its receipt has them.

    None if the folder holds no receipt of labkit's.
    """
    receipt = _receipt(folder)
    listed = [name for key in ("files", "files_written") for name in receipt.get(key) or ()]
    return {RECEIPT, *map(str, listed)} if receipt else set()


def is_export(folder: Path) -> bool:
    """Whether a folder is an export that labkit made, by its receipt."""
    return EXPORT in _receipt(folder)


def _receipt(folder: Path) -> dict[str, Any]:
    """What labkit's receipt in a folder says; nothing if there is none of labkit's."""
    if not (folder / RECEIPT).is_file():
        return {}
    try:
        receipt = read_json(folder / RECEIPT)
    except LabkitError:
        return {}
    ours = isinstance(receipt.get("labkit"), str) and "files_written" in receipt
    return receipt if ours else {}


def check_target(out: Path, overwrite: bool, kind: str = "") -> None:
    """Check that a folder can be made at `out`.

    Args:
        out: the folder.
        overwrite: whether it may replace another of its kind.
        kind: a key that receipts of the kind have: "tensors" for a merge, "modules" for a bake.

    Raises:
        LabkitError: no parent folder; something is there, and may not or must not be replaced.
    """
    if not out.parent.is_dir():
        raise LabkitError(
            f"{shown(out.parent)} is no folder; make it first, or choose another place"
        )
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise LabkitError(
                f"{shown(out)} exists already; choose another name, or replace it with "
                f"{spelled('overwrite=True', '--overwrite')}"
            )
        _require_replaceable(out, kind)


def _require_replaceable(out: Path, kind: str) -> None:
    """Check that all that a folder holds was written by labkit, and is of the same kind."""
    receipt = {} if out.is_symlink() else _receipt(out)
    if not receipt:
        raise LabkitError(
            f"{shown(out)} was not made by labkit (it holds no {RECEIPT} of labkit's), and is not "
            "replaced; choose another name, or remove it yourself"
        )
    if kind not in receipt:
        raise LabkitError(
            f"{shown(out)} holds something else that labkit made (a merged model is no baked "
            "adapter), and is not replaced; choose another name, or remove it yourself"
        )
    unknown = sorted(files_in(out) - written_files(out))
    if unknown:
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise LabkitError(
            f"{shown(out)} holds files that labkit did not write "
            f"({', '.join(map(shown, unknown[:MOST_NAMED]))}{more}), and is not replaced; move "
            "them away, or choose another name"
        )


def files_in(folder: Path) -> set[str]:
    """What lies in a folder at any depth, by name from there; links and empty folders too."""
    found = set()
    for where, folders, files in os.walk(folder):
        inside = Path(where).relative_to(folder)
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        found |= {(inside / name).as_posix() for name in (*files, *links)}
        if not folders and not files and where != str(folder):
            found.add(f"{inside.as_posix()}/")
    return {name for name in found if name not in OF_THE_SYSTEM}


def is_or_lies_in(inner: Path, outer: Path) -> bool:
    """Whether a folder is another or lies in it, whatever name each of them is reached by.

    Compared are devices and inodes: a bind mount and, on a disk that takes `AD` for `Ad`, another
    spelling lead to the same folder. What is not there yet lies where its parents lie.
    """
    wanted = _identity(outer)
    resolved = inner.resolve()
    ways = (resolved, *resolved.parents)
    return outer.resolve() in ways or (
        wanted is not None and any(_identity(way) == wanted for way in ways)
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def require_apart(out: Path, adapter: Path) -> None:
    """Check that the folder `out` would not take an adapter's place.

    Raises:
        LabkitError: it is the adapter's folder, or one around it.
    """
    if is_or_lies_in(adapter, out):
        raise LabkitError(
            f"the output {shown(out.resolve())} would replace the adapter "
            f"{shown(adapter.resolve())}, which is never written to; choose another folder"
        )


class Building:
    """A folder that is being built beside its final name.

    Attributes:
        folder: where to build.
        out: its final name.
    """

    def __init__(self, out: Path, interruptions: Interruptions) -> None:
        self.folder = out.parent / f".{out.name}.labkit-{secrets.token_hex(4)}"
        self.out = out
        self._interruptions = interruptions

    def put_in_place(self, overwrite: bool, kind: str = "") -> None:
        """Flush the finished folder and give it its final name, in one step.

        Args:
            overwrite: whether it may replace another of its kind.
            kind: see `check_target`.

        Raises:
            LabkitError: someone else put one there meanwhile, and it is not to be replaced; or the
                system did not say that the new name is on the disk.
            OSError: the system refused, and the folder is not in place.
        """
        (self.folder / MARK).unlink()
        _flush_all(self.folder)
        # From here on, an interruption waits: it would not know whether the folder is in place.
        self._interruptions.hold(f"{shown(self.out)} is in place and whole")
        _take_place(self.folder, self.out, overwrite, kind)
        try:
            _flush(self.out.parent)
        except OSError as error:
            raise LabkitError(
                f"{shown(self.out)} is in place and whole, but the system did not confirm that it "
                f"is on the disk ({error.strerror}); look after the disk, and then check the "
                "folder with labkit verify"
            ) from error


@contextmanager
def building(out: Path) -> Iterator[Building]:
    """Make a folder beside `out` to build in; take it away again unless it was put in place.

    The first Ctrl-C (or SIGTERM, SIGHUP) ends the building; those that follow wait until all is
    taken away.

    Raises:
        LabkitError: what was built, or what it replaced, could not be taken away again.
    """
    with Interruptions() as interruptions:
        made = Building(out, interruptions)
        lock = None
        try:
            # One at a time looks after what others left, so that nobody takes away a folder that
            # another has made and not locked yet.
            with _locked(out.parent):
                for left in _left_behind(out):
                    _remove_if_left(left, out)
                made.folder.mkdir()
                (made.folder / MARK).touch()
                # The lock says that someone is still building; it ends with the process, however.
                lock = os.open(made.folder, os.O_RDONLY)
                _lock(lock)
            yield made
        except BaseException as error:
            interruptions.hold()
            remains = _clean_up(made, lock)
            if remains and isinstance(error, LabkitError):
                raise LabkitError(f"{error}; {remains}") from error
            if remains:
                error.add_note(remains)
            raise
        interruptions.hold()
        remains = _clean_up(made, lock)
        if remains:
            raise LabkitError(f"{shown(out)} is in place and whole, but {remains}")


def _clean_up(made: Building, lock: int | None) -> str:
    """Take away what was built, or what it replaced; say what could not be."""
    remains = ""
    try:
        _remove(made.folder)
    except OSError as error:
        remains = (
            f"{shown(made.folder)} could not be taken away ({error.strerror}); remove it yourself"
        )
    if lock is not None:
        with suppress(OSError):
            os.close(lock)
    return remains


def _remove(folder: Path) -> None:
    """Remove a folder of labkit's, and last of it what says that it is labkit's.

    Raises:
        OSError: the system refused; as much as it allows is gone.
    """
    refused: list[OSError] = []

    def attempt(remove: Callable[[Path], None], path: Path) -> None:
        try:
            remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            refused.append(error)

    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return
    with suppress(OSError):
        (folder / MARK).touch()
    for path in sorted(paths, key=lambda path: path.name == RECEIPT):
        if path.name != MARK:
            whole = path.is_dir() and not path.is_symlink()
            attempt(shutil.rmtree if whole else Path.unlink, path)
    if not refused:
        attempt(Path.unlink, folder / MARK)
        attempt(Path.rmdir, folder)
    if refused:
        raise refused[0]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    with suppress(OSError):  # file systems without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _left_behind(out: Path) -> list[Path]:
    """The folders beside `out` that have names and marks as only labkit gives them."""
    name = re.compile(rf"\.{re.escape(out.name)}\.labkit-(old-)?[0-9a-f]{{8}}")
    return [
        path
        for path in sorted(out.parent.iterdir())
        if name.fullmatch(path.name) and not path.is_symlink() and _is_marked(path)
    ]


def _is_marked(folder: Path) -> bool:
    try:
        return (folder / MARK).is_file() or not any(folder.iterdir()) or bool(_receipt(folder))
    except OSError:
        return False


def _remove_if_left(folder: Path, out: Path) -> None:
    """Remove what an interrupted build left behind, unless its process still runs."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.name.startswith(f".{out.name}.{ASIDE}") and not out.exists():
                folder.rename(out)  # killed between moving the old one aside and putting the new
            else:
                _remove(folder)
        finally:
            os.close(lock)


def _flush_all(folder: Path) -> None:
    """Flush every file of a folder, and the folder, to disk."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    """Flush a file or a folder to disk.

    Raises:
        OSError: the system could not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush a folder, and say so.
        cannot = error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
        if not (cannot and path.is_dir()):
            raise
    finally:
        with suppress(OSError):  # what was written is flushed; nothing was through this
            os.close(descriptor)


def _take_place(folder: Path, out: Path, overwrite: bool, kind: str) -> None:
    if overwrite and out.exists():
        _require_replaceable(out, kind)  # it may be another than when the building began
        if not _exchange(folder, out):
            # Between its two steps another that cleans up would take the old folder for left.
            with _locked(out.parent):
                _replace(folder, out)
        return
    try:
        # Of two for one name one comes first; the other finds a folder that is not empty.
        folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise LabkitError(
                f"{shown(out)} was made by someone else meanwhile, and is not "
                "replaced; choose another name, or replace it with "
                f"{spelled('overwrite=True', '--overwrite')}"
            ) from error
        raise


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
    try:
        old.rename(folder)  # where the cleaning up looks for it
    except OSError as error:
        raise LabkitError(
            f"{shown(out)} is in place and whole, but {shown(old)}, which it replaced, could not "
            f"be taken away ({error.strerror}); remove it yourself"
        ) from error


def explain(error: OSError, out: Path) -> str:
    """Say in one line what the system refused while `out` was written."""
    left = "; ".join(getattr(error, "__notes__", ())) or f"nothing is left of {shown(out)}"
    of_it = left.replace(f"of {shown(out)}", "of it")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk became full while {shown(out)} was written; {of_it}: make "
            "room, or choose a folder on another disk"
        )
    if error.errno == errno.EFBIG:
        return (
            f"a file of {shown(out)} became larger than the system allows here (ulimit -f, or the "
            f"file system); {of_it}: choose a folder on another disk"
        )
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    if name and out.parent not in Path(name).parents:
        return f"cannot read {shown(name)}: {error.strerror}; {left}"
    where = f" ({shown(name)})" if name else ""
    return f"cannot write {shown(out)}: {error.strerror}{where}; {of_it}"
