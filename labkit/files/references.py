"""Finds what a reference names: a folder, or a hub id as `owner/name[@revision][:subfolder]`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from labkit.errors import LabkitError, shown
from labkit.files.hub_answers import explain_hub
from labkit.files.paths import user_path

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
    path = user_path(reference)
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
    if ".." in re.split(r"[/@:]", text):
        raise LabkitError(
            f"the {what} {shown(text)!r} leads out of its repository with ..; name a folder in it"
        )
    repository, subfolder = match["repository"], match["subfolder"]
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(
            snapshot_download(
                repository,
                revision=match["revision"],
                allow_patterns=[prefix + pattern for pattern in patterns],
            )
        )
    # The library, and those it is built on, raise errors of many kinds.
    except Exception as error:
        raise LabkitError(
            f"the {what} {shown(text)!r} is no folder here, and the hub did not give it: "
            f"{explain_hub(error, repository)}; or name a folder"
        ) from error
    folder = snapshot / prefix
    if not folder.is_dir():
        raise LabkitError(f"the hub's {repository} has no folder {shown(subfolder)!r}")
    return Located(text, folder, repository.split("/")[1], repository, snapshot.name)
