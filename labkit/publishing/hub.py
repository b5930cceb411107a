"""Uploads a merged model or a baked adapter to the hub, in one commit, when it is asked to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError, shown
from labkit.files.references import HUB_ID
from labkit.merging.recipe import FILE_NAME
from labkit.writing.front_matter import CARD


@dataclass(frozen=True)
class Published:
    """What was uploaded.

    Attributes:
        url: the repository's page.
        files: how many files.
        nbytes: their size in bytes.
        notes: what is not wrong, but worth knowing.
    """

    url: str
    files: int
    nbytes: int
    notes: tuple[str, ...]


def check_repository(repository: str) -> None:
    """Check a hub id to upload to, before a long merge begins.

    Raises:
        LabkitError: not of the form owner/name.
    """
    match = HUB_ID.fullmatch(repository)
    if not match or match["repository"] != repository:
        raise LabkitError(f"{shown(repository)!r} is no repository of the hub; expected owner/name")


def push(folder: str | Path, repository: str, *, private: bool = False) -> Published:
    """Upload a folder that labkit made, card included; the repository is made if it is not there.

    In the uploaded card the snippet names the repository in place of the folder.

    Args:
        folder: a merged model or a baked adapter.
        repository: the hub id, as owner/name.
        private: make the repository private, if it is made.

    Raises:
        LabkitError: the folder is not one of labkit's, or the hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repository)
    where = Path(folder).expanduser().resolve()
    needed = ("receipt.json", CARD)
    if not all((where / name).is_file() for name in needed):
        raise LabkitError(
            f"{shown(where)} is no folder that labkit made (expected {' and '.join(needed)}); "
            "name the folder of a merged model or a baked adapter"
        )
    paths = [path for path in sorted(where.iterdir()) if path.is_file()]
    operations = [
        CommitOperationAdd(path.name, _named_card(path, repository) if path.name == CARD else path)
        for path in paths
    ]
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message="Upload with labkit")
    # No network, no token, no permission, a card that the hub refuses: one answer for all.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LabkitError(
            f"the hub did not take {shown(repository)}: {shown(reason[0])}; check the name and "
            "the network, and log in with hf auth login"
        ) from error
    size = sum(path.stat().st_size for path in paths)
    return Published(str(url), len(paths), size, tuple(_notes(where)))


def _named_card(path: Path, repository: str) -> bytes:
    folder = repr(shown(path.parent.name))
    text = path.read_text(encoding="utf-8")
    for before, after in (("name = ", "\n"), ("from_pretrained(model, ", ")")):
        text = text.replace(f"{before}{folder}{after}", f"{before}{repository!r}{after}")
    return text.encode()


def _notes(folder: Path) -> list[str]:
    """Name the local folders that others will not find."""
    from labkit.merging.recipe_file import compose, read_text

    if not (folder / FILE_NAME).is_file():
        return []
    root = compose(read_text(folder / FILE_NAME, "recipe"), FILE_NAME).members("a recipe")
    sources = [root["base"], *(
        term.members("a term")["adapter"] for term in root["terms"].items("terms")
    )]  # fmt: skip
    references = [source.members("a source")["reference"].text("a reference") for source in sources]
    local = [shown(reference) for reference in references if not HUB_ID.fullmatch(reference)]
    if not local:
        return []
    return [
        f"{FILE_NAME} names local folders ({', '.join(local)}), which others do not have; they can "
        "say where theirs are: labkit merge BASE ADAPTER --recipe recipe.yaml"
    ]
