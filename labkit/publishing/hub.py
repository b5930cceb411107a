"""Uploads a merged model or a baked adapter to the hub, in one commit, when it is asked to.

Only what labkit wrote goes there: a folder may hold notes, keys or a link to something private.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import RECEIPT, is_export, written_files
from labkit.files.direct_io import hash_file
from labkit.files.hub_answers import explain_hub
from labkit.files.paths import user_path
from labkit.files.references import HUB_ID
from labkit.files.small_files import read_json, read_text
from labkit.merging.recipe import FILE_NAME
from labkit.merging.recipe_sources import named_sources
from labkit.models.adapter_config import CONFIG as ADAPTER_CONFIG
from labkit.models.model_files import INDEX, is_side_file
from labkit.summary import Summary
from labkit.writing.front_matter import CARD
from labkit.writing.side_files import OWN_FILES

WEIGHTS = ("*.safetensors", "*.gguf", "adapter_model.bin")


@dataclass(frozen=True)
class Upload:
    """What of a folder goes to the hub, and what does not.

    Attributes:
        paths: the files that go, by their names in the folder.
        left: the names of what stays.
    """

    paths: dict[str, Path]
    left: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Published(Summary):
    """What was uploaded.

    Attributes:
        url: the repository's page.
        public: whether everyone can see it.
        sizes: name -> bytes of every file that was uploaded.
        notes: what is not wrong, but worth knowing.
    """

    url: str
    public: bool
    sizes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        """How many files."""
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(self.sizes.values())

    def summary(self) -> Iterator[tuple[str, str]]:
        """What was uploaded in a few lines: a label and a text each."""
        yield "uploaded", f"{self.url}, {'public' if self.public else 'private'}"
        yield "size", f"{self.files} files, {self.nbytes / 1e9:.2f} GB"
        yield "files", ", ".join(self.sizes)
        for note in self.notes:
            yield "note", note


def check_repository(repository: str) -> None:
    """Check a hub id to upload to, before a long merge begins.

    Raises:
        LabkitError: not of the form owner/name.
    """
    match = HUB_ID.fullmatch(repository)
    if not match or match["repository"] != repository:
        raise LabkitError(f"{shown(repository)!r} is no repository of the hub; expected owner/name")


def push(
    folder: str | Path, repository: str, *, public: bool = False, progress: bool = True
) -> Published:
    """Upload a folder that labkit made, card included; the repository is made if it is not there.

    What goes is what labkit wrote: weights, config, tokenizer, recipe, receipt, card, picture and
    licence; of an export also what its tools made, unless it was changed since. Other files,
    folders and links stay behind, and are named in a note. In the uploaded card the snippet names
    the repository in place of the folder.

    Args:
        folder: a merged model, an export or a baked adapter.
        repository: the hub id, as owner/name.
        public: let everyone see the repository; otherwise one that is public already is refused.
        progress: print each file that goes, before it goes.

    Raises:
        LabkitError: the folder is not one of labkit's, or the hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repository)
    where = user_path(folder).resolve()
    upload = select_files(where)
    sizes = {name: path.stat().st_size for name, path in upload.paths.items()}
    notes = tuple(_notes(where, upload))
    if progress:
        for name, size in sizes.items():
            print(f"{name}\t{size / 1e6:.2f} MB")  # noqa: T201 # said before anything is sent
    operations = [
        CommitOperationAdd(name, _named_card(path, repository) if name == CARD else path)
        for name, path in upload.paths.items()
    ]
    api = HfApi()
    try:
        url, seen = _make_repository(api, repository, public)
        api.create_commit(repository, operations, commit_message="Upload with labkit")
    except LabkitError:
        raise
    # No network, no token, no permission, a card that the hub refuses.
    except Exception as error:
        raise LabkitError(
            f"the hub did not take {shown(repository)}: {explain_hub(error, repository)}"
        ) from error
    if public and not seen:
        notes += ("the repository is private and stays so; its settings on the hub change that",)
    return Published(url, seen, sizes, notes)


def select_files(folder: Path) -> Upload:
    """Tell what of a folder is a model that labkit wrote.

    Raises:
        LabkitError: the folder is not one of labkit's.
    """
    written = written_files(folder)
    if not written or not (folder / CARD).is_file():
        raise LabkitError(
            f"{shown(folder)} is no folder that labkit made (expected {RECEIPT} and {CARD}); "
            "name the folder of a merged model, an export or a baked adapter"
        )
    tools = _of_tools(folder) if is_export(folder) else set()
    names = sorted(name for name in written if _may_go(name) or name in tools)
    chosen = {name: folder / name for name in names if _plain(folder, name)}
    left = {path.name for path in folder.iterdir()} - {name.split("/")[0] for name in chosen}
    return Upload(chosen, tuple(sorted(left)))


def _may_go(name: str) -> bool:
    """Whether a file of a name is one that labkit writes, whatever a receipt says."""
    return (
        name in (*OWN_FILES, INDEX, ADAPTER_CONFIG)
        or is_side_file(name)
        or any(fnmatchcase(name, pattern) for pattern in (*WEIGHTS, "*.py"))
    ) and not name.startswith(".")


def _of_tools(folder: Path) -> set[str]:
    """The files of an export, which its tools name as they like: those with the receipt's sums."""
    sums = read_json(folder / RECEIPT)["files_written"]
    return {
        name
        for name, digest in (sums.items() if isinstance(sums, dict) else ())
        if not _may_go(name) and _plain(folder, name) and hash_file(folder / name) == digest
    }


def _plain(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder itself, and not behind a link."""
    path = folder / name
    return path.is_file() and path.resolve() == folder.resolve() / name


def _make_repository(api: Any, repository: str, public: bool) -> tuple[str, bool]:
    """Make the repository if it is not there; give its page, and whether everyone can see it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repository)
    except RepositoryNotFoundError:
        return str(api.create_repo(repository, private=not public)), public
    if not there.private and not public:
        raise LabkitError(
            f"the repository {shown(repository)} is there already, and everyone can see it; say "
            f"that they may see this with {spelled('public=True', '--public')}, or choose another "
            "name"
        )
    return f"{api.endpoint}/{repository}", not there.private


def _named_card(path: Path, repository: str) -> bytes:
    folder = repr(shown(path.parent.name))
    text = read_text(path, "model card")
    for before, after in (("name = ", "\n"), ("from_pretrained(model, ", ")")):
        text = text.replace(f"{before}{folder}{after}", f"{before}{repository!r}{after}")
    return text.encode()


def _notes(folder: Path, upload: Upload) -> Iterator[str]:
    """Name what stays behind, and the local folders that others will not find."""
    if upload.left:
        yield (
            f"left behind, as labkit did not write it: {', '.join(map(shown, upload.left[:20]))}"
            f"{f' and {len(upload.left) - 20} more' if len(upload.left) > 20 else ''}"
        )
    if FILE_NAME not in upload.paths:
        return
    sources = named_sources(folder / FILE_NAME)
    local = [shown(source.reference) for source in sources if not source.on_hub]
    if local:
        yield (
            f"{FILE_NAME} names local folders ({', '.join(local)}), which others do not have; they "
            "can say where theirs are: labkit merge BASE ADAPTER --recipe recipe.yaml"
        )
