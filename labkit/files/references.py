"""Finds what a reference names: a folder, or a hub id as `owner/name[@revision][:subfolder]`."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import unquote

from labkit.errors import LabkitError, shown
from labkit.files.hub_answers import explain_hub
from labkit.files.paths import user_path

HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[^:\x00-\x1f\x7f]+))?"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_ADDRESS = re.compile(
    r"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<repository>[^/?#]+/[^/?#]+)"
    r"(/tree/(?P<revision>[^/?#]+)(/(?P<subfolder>[^?#]+))?)?/?"
)
"""The address of a repository's page, or of a folder's in it, as the browser shows it."""
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/].*|\\\\.*", re.DOTALL)
MOVED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "openai-gpt": "openai-community/openai-gpt",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Where the hub's first language models are, which had names without an owner."""

Fetch = Callable[[Sequence[str]], Path]
"""Downloads files of a hub's folder, by their names in it, and gives the folder here."""
Choose = Callable[[str, Sequence[str], Fetch], Sequence[str]]
"""Says which files of a hub's folder are needed: given the reference, the names of all files in the
folder and below it, and how to fetch some first whose content tells of others."""


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


def locate(reference: str | Path, what: str, choose: Choose) -> Located:
    """Find a folder on this machine, or download what is needed from the hub.

    Args:
        reference: a folder, or `owner/name[@revision][:subfolder]`, or the address of the hub's
            page of one.
        what: what it is to be, for the error: "base model", "adapter".
        choose: which of the files to download.

    Raises:
        LabkitError: neither a folder nor a hub id, or the hub could not give it.
    """
    path = user_path(reference)
    if path.is_dir():
        return Located(str(path.resolve()), path, path.resolve().name)
    text = hub_id(str(reference))
    match = HUB_ID.fullmatch(text)
    if path.exists():
        raise LabkitError(f"the {what} {shown(text)!r} is a file; name the folder that holds it")
    if not match:
        raise LabkitError(
            f"the {what} {shown(text)!r} does not exist: expected a folder, or a hub id as "
            f"owner/name[@revision][:subfolder]{_advice(text)}"
        )
    if ".." in re.split(r"[/@:]", text):
        raise LabkitError(
            f"the {what} {shown(text)!r} leads out of its repository with ..; name a folder in it"
        )
    repository, revision = match["repository"], match["revision"]
    subfolder = PurePosixPath((match["subfolder"] or "").strip("/")).as_posix()
    prefix = "" if subfolder == "." else f"{subfolder}/"
    try:
        names = _list_files(repository, revision)
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if prefix and not inside:
            raise LabkitError(f"the hub's {repository} has no folder {shown(subfolder)!r}")

        def fetch(wanted: Sequence[str]) -> Path:
            return _download(repository, revision, [prefix + name for name in wanted]) / subfolder

        folder = fetch(choose(text, inside, fetch))
    except LabkitError:
        raise
    # The library, and those it is built on, raise errors of many kinds.
    except Exception as error:
        raise LabkitError(
            f"the {what} {shown(text)!r} is no folder here, and the hub did not give it: "
            f"{explain_hub(error, repository)}; or name a folder"
        ) from error
    commit = folder.parents[len(PurePosixPath(prefix).parts) - 1] if prefix else folder
    return Located(text, folder, repository.split("/")[1], repository, commit.name)


def require_as_on_hub(path: Path, sha256: str) -> None:
    """Check that a large file in the hub's cache is the one that the hub has.

    The cache names a large file by its SHA-256, and never looks at it again: one that was damaged
    on the way or on the disk, at the right size, would stay for good. Small files are named by what
    git calls them, and are not checked.

    Args:
        path: a file that was read; any other than a link into the cache is passed over.
        sha256: its SHA-256, which a merge takes of all that it reads.

    Raises:
        LabkitError: the file is not what its name says.
    """
    blob = Path(os.path.realpath(path))
    named = path.is_symlink() and SHA256.fullmatch(blob.name)
    if named and blob.name != sha256:
        raise LabkitError(
            f"{shown(path)} is not the file that the hub has (SHA-256 {blob.name[:12]}…, here "
            f"{sha256[:12]}…): its download is damaged; remove {shown(blob, 1000)}, and start again"
        )


def _list_files(repository: str, revision: str | None) -> list[str]:
    """The names of all files of a repository; of those in the cache where the hub is silent."""
    from huggingface_hub import HfApi, errors

    try:
        # Other than `list_repo_files`, it is not tried again for half a minute without a network.
        found = HfApi().model_info(repository, revision=revision).siblings
        return [file.rfilename for file in found or []]
    except (errors.HTTPError, OSError):  # type: ignore[attr-defined]
        # It gives what is in the cache, or an error that says what is the matter.
        snapshot = _download(repository, revision, [])
        return [
            path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()
        ]


def _download(repository: str, revision: str | None, names: Sequence[str]) -> Path:
    """Download files of a repository, where the cache lacks them.

    Returns:
        the snapshot's folder in the cache.
    """
    from huggingface_hub import snapshot_download

    # The library takes patterns, and names may hold their marks.
    exactly = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=exactly))


def hub_id(text: str) -> str:
    """A hub id for the address of a hub's page; anything else as it is."""
    match = HUB_ADDRESS.fullmatch(text)
    if not match:
        return text
    revision, subfolder = match["revision"], match["subfolder"]
    # What a browser shows of a name with spaces is written with %20.
    return unquote(
        match["repository"]
        + (f"@{revision}" if revision and revision != "main" else "")
        + (f":{subfolder.rstrip('/')}" if subfolder else "")
    )


def _advice(text: str) -> str:
    """What else to say of a name that is neither a folder nor a hub id."""
    if "://" in text:
        return "; of an address of the hub, write what stands behind huggingface.co/"
    if WINDOWS_PATH.fullmatch(text) and os.name != "nt":
        drive, rest = text[0].lower(), text[2:].replace("\\", "/")
        there = f", where it may be {shown('/mnt/' + drive + rest)}" if text[1] == ":" else ""
        return f"; this is a path of Windows, and here is another system{there}"
    if text in MOVED:
        return f"; {text} is {MOVED[text]} there"
    return ""
