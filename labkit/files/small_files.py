"""Reads the small files beside a model's weights, and looks where they lie.

What is read must be a plain file of a size that is said: a FIFO would be waited for without end,
and a device or a huge file would fill the memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown

LARGEST_TEXT = 1_000_000
"""Bytes of a recipe, a model card or a list of presets."""
LARGEST_JSON = 50_000_000
"""Bytes of a config or an index. The index of the largest open models has 15 million."""
MOST_VALUES = 1_000_000
"""Values in a config or an index; short ones would take fifty times their bytes of memory."""


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
            data = file.read(largest + 1)  # it may have grown since
        if len(data) <= largest:
            return data
    raise LabkitError(f"{shown(path)} is too large for a {what} (over {largest // 1_000_000} MB)")


def require_inside(path: Path) -> None:
    """Check that a file of a folder lies in the folder, or in the hub cache that the folder is of.

    The hub's cache keeps a snapshot's files as links to its `blobs` folder. Any other link out of a
    folder that came from somewhere else may lead anywhere: to a key, to a device.

    Raises:
        LabkitError: the file is a link that leads out of the folder.
    """
    if not path.is_symlink():
        return
    # Other than `resolve`, it takes a circle of links as it is; whoever opens that is told.
    folder, real = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if folder == real.parent or folder in real.parents:
        return
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and real.parent == parent.parent / "blobs":
            return
    raise LabkitError(
        f"{shown(path)} is a link to {shown(real)}, outside its folder; put the file itself there"
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
