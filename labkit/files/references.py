"""Finds what a reference names: a folder, or a hub id as `owner/name[@revision][:subfolder]`."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from labkit.errors import LabkitError, shown

HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[\w./-]+))?"
)


@dataclass(frozen=True)
class Located:
    """A reference and the folder it stands for.

    Attributes:
        reference: as the user wrote it; a local folder as its absolute path.
        folder: the files on this machine.
        name: a short name to show.
        repository: the hub id, or None for a local folder.
        revision: the commit of the hub's repository, where it is known.
    """

    reference: str
    folder: Path
    name: str
    repository: str | None = None
    revision: str | None = None


class Opened(ABC):
    """What was opened by a reference, and knows where it came from."""

    _located: Located

    @abstractmethod
    def __init__(self, reference: str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`)."""

    @classmethod
    def open(cls, source: Self | str | Path) -> Self:
        """Return `source` itself if it is open already, else open the folder or hub id it names.

        Raises:
            LabkitError: it cannot be opened.
        """
        return source if isinstance(source, cls) else cls(source)  # type: ignore[arg-type]

    @property
    def folder(self) -> Path:
        """Where the files are on this machine."""
        return self._located.folder

    @property
    def reference(self) -> str:
        """The folder or hub id it was opened by."""
        return self._located.reference

    @property
    def repository(self) -> str | None:
        """The hub id without revision; None for a local folder."""
        return self._located.repository

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository; None for a local folder."""
        return self._located.revision

    @property
    def name(self) -> str:
        """A short name to show: the folder's, or the hub repository's."""
        return self._located.name


def locate(reference: str | Path, what: str, patterns: Sequence[str]) -> Located:
    """Find a folder on this machine, or download what is needed from the hub.

    Args:
        reference: a folder, or `owner/name[@revision][:subfolder]`.
        what: what it is to be, for the error: "base model", "adapter".
        patterns: the file names to download, as huggingface_hub's `allow_patterns`.

    Raises:
        LabkitError: neither a folder nor a hub id, or the hub could not give it.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return Located(str(path.resolve()), path, path.resolve().name)
    text = str(reference)
    match = HUB_ID.fullmatch(text)
    if path.exists():
        raise LabkitError(f"the {what} {shown(text)!r} is a file; name the folder that holds it")
    if not match:
        raise LabkitError(
            f"the {what} {shown(text)!r} does not exist: expected a folder, or a hub id as "
            "owner/name[@revision][:subfolder]"
        )
    repository, subfolder = match["repository"], match["subfolder"]
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        snapshot = Path(
            snapshot_download(
                repository,
                revision=match["revision"],
                allow_patterns=[prefix + pattern for pattern in patterns],
            )
        )
    # Whatever goes wrong here (no network, no such repository, no permission) has one answer.
    except Exception as error:
        raise LabkitError(
            f"the {what} {shown(text)!r} is no folder here, and the hub did not give it: "
            f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}; check "
            "the name and the network, or name a folder"
        ) from error
    folder = snapshot / prefix
    if not folder.is_dir():
        raise LabkitError(f"the hub's {repository} has no folder {shown(subfolder)!r}")
    return Located(text, folder, repository.split("/")[1], repository, snapshot.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        LabkitError: no such file, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabkitError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LabkitError(f"{shown(path)} is not JSON: {shown(error)}") from error
    if not isinstance(value, dict):
        raise LabkitError(f"{shown(path)} holds {type(value).__name__}, expected a JSON object")
    return value


def require_inside(path: Path) -> None:
    """Check that a file of a folder lies in the folder, or in the hub cache that the folder is of.

    The hub's cache keeps a snapshot's files as links to its `blobs` folder. Any other link out of a
    folder that came from somewhere else may lead anywhere: to a key, to a device.

    Raises:
        LabkitError: the file is a link that leads out of the folder.
    """
    if not path.is_symlink():
        return
    folder, real = path.parent.resolve(), path.resolve()
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
