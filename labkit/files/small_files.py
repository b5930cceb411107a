"""Reads the small files beside a model's weights, and looks where they lie.

What is read must be a plain file of a size that is said: a FIFO would be waited for without end,
and a device or a huge file would fill the memory.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown

LARGEST_TEXT = 1_000_000
"""Bytes of a recipe, a model card or a list of presets."""
LARGEST_JSON = 50_000_000
"""Bytes of a config or an index. The index of the largest open models has 15 million."""
MOST_VALUES = 1_000_000
"""Values in a config or an index; short ones would take fifty times their bytes of memory."""

WEIGHTS = (".safetensors", ".bin")
"""The endings of files of weights."""
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""How the hub's cache names a file: its SHA-1 as git takes it, or the SHA-256 of a large file."""
MOST_LINKS = 40
"""Links in a row that the system follows."""


def require_plain(path: Path) -> os.stat_result:
    """Check that a path names a plain file, or a link to one, before it is opened.

    Returns:
        what the system says of the file.

    Raises:
        LabkitError: it is a folder, a FIFO, a socket or a device.
        OSError: nothing is there, or it may not be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LabkitError(f"{shown(path)} is {_kind(status.st_mode)}; expected a plain file")
    return status


def _kind(mode: int) -> str:
    for is_kind, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(mode):
            return name
    return "a device"


def read_text(path: Path, what: str, largest: int = LARGEST_TEXT) -> str:
    """Read a small text file.

    Args:
        path: the file.
        what: what it is to be, for the error: "recipe", "model card".
        largest: bytes that it may have.

    Raises:
        LabkitError: no such file, one that is no plain file or too large, or no UTF-8.
    """
    try:
        text = _bytes(path, largest, what).decode()
    except OSError as error:
        raise LabkitError(f"cannot read the {what} {shown(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabkitError(f"{shown(path)} is no text in UTF-8; a {what} is") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str, path: Path) -> Iterator[tuple[int, str, Any]]:
    """The lines of a file of JSON lines: number from 1, text and value; empty lines are none.

    Args:
        text: what `read_text` read.
        path: the file, to name in the error.

    Raises:
        LabkitError: a line that is not JSON.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LabkitError(
                    f"{shown(path)}, line {number}: not JSON: {shown(error)}"
                ) from error
            yield number, line, value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        LabkitError: no such file, one that is no plain file or too large, not JSON, or not an
            object.
    """
    try:
        data = _bytes(path, LARGEST_JSON, "config or an index")
        if data.count(b",") >= MOST_VALUES:
            raise LabkitError(
                f"{shown(path)} holds more than a config or an index (over {MOST_VALUES:,} values)"
            )
        value = json.loads(data.decode())
    except OSError as error:
        raise LabkitError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LabkitError(f"{shown(path)} is not JSON: {shown(error)}") from error
    if not isinstance(value, dict):
        raise LabkitError(f"{shown(path)} holds {type(value).__name__}, expected a JSON object")
    return value


def _bytes(path: Path, largest: int, what: str) -> bytes:
    status = require_plain(path)
    if status.st_size <= largest:
        with path.open("rb") as file:
            data = file.read(status.st_size + 1)  # it may have grown since
        if len(data) <= status.st_size:
            return data
    raise LabkitError(f"{shown(path)} is too large for a {what} (over {largest // 1_000_000} MB)")


def require_inside(path: Path) -> None:
    """Check that a file lies in its folder, or that a link out of it leads to a model's file.

    A folder that came from somewhere else may hold links that lead anywhere: to a key, to a device.
    What is copied or published from such a folder would give away what the link leads to. So a link
    may leave its folder in three ways only, which people and programs do use:

    - From a snapshot of the hub's cache to a file of its `blobs`; where those lie elsewhere, to one
      that is named by its hash, as no key is.
    - From a file of weights to a file with the same ending. Weights are never copied before their
      header has been read and found to describe the whole file.
    - From any other file to one of the same name in a folder that holds weights: people make a
      model's folder anew out of links to the files of another one. Whoever made the links would
      have to know where a model lies here, and could reach nothing but that model's own files.

    Links that lead to links are followed, and each must lead in one of these ways.

    Raises:
        LabkitError: the file is a link that leads out of the folder otherwise.
    """
    link = path
    for _ in range(MOST_LINKS):  # whoever opens a circle of links is told
        if not link.is_symlink():
            return
        folder = Path(os.path.realpath(link.parent))
        target = folder / os.readlink(link)
        # The folders on the way may be links themselves.
        target = Path(os.path.realpath(target.parent)) / target.name
        if not _may_lead(link.name, folder, target):
            raise LabkitError(
                f"{shown(path)} is a link to {shown(target)}, outside its folder; put the file "
                "itself there"
            )
        link = target


def _may_lead(name: str, folder: Path, target: Path) -> bool:
    if folder == target.parent or folder in target.parents:
        return True
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and (
            target.parent == parent.parent / "blobs" or BLOB.fullmatch(target.name)
        ):
            return True
    ending = Path(name).suffix
    if ending in WEIGHTS:
        return target.suffix == ending
    if BLOB.fullmatch(name):  # a blob that lies elsewhere
        return folder.name == "blobs" and target.name == name
    return target.name == name and any(
        found for ending in WEIGHTS for found in target.parent.glob(f"*{ending}")
    )


def require_same_json(path: Path, content: dict[str, Any]) -> None:
    """Check that a JSON file still says what it said when it was read.

    Raises:
        LabkitError: it was changed or removed since.
    """
    try:
        same = read_json(path) == content
    except LabkitError:
        same = False
    if not same:
        raise LabkitError(
            f"{shown(path)} was changed or removed while labkit worked with it; leave it alone, "
            "and start again"
        )
