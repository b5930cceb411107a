"""The command that uploads to the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.options import Quiet


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that labkit made.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to upload it.")],
    public: Annotated[
        bool, typer.Option("--public/--private", help="Let everyone see the repository, or not.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Upload a merged model, an export or a baked adapter to the hub, with its card."""
    upload(folder, repository, public, quiet)


def upload(folder: Path, repository: str, public: bool, quiet: bool) -> None:
    """Upload a folder and say so: its files before they go, notes on standard error."""
    from labkit.publishing.hub import push as run

    published = run(folder, repository, public=public, progress=not quiet)
    for note in published.notes:
        print(f"labkit: note: {note}", file=sys.stderr)
    if not quiet:
        size = published.nbytes / 1e9
        typer.echo(f"uploaded {published.files} files, {size:.2f} GB: {published.url}")
