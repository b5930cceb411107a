"""The command that exports a merged model for the programs that run models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.options import Quiet


def export(
    merged: Annotated[str, typer.Argument(help="A merged model's folder, or a baked LoRA's.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    format: Annotated[
        str, typer.Option(help="Such as gguf-bf16, gguf-q8_0, gguf-q4_k_m; a wrong one lists all.")
    ],
    base: Annotated[
        str | None, typer.Option(help="A LoRA's base, if not the one that its config names.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Texts (.txt, .jsonl) to calibrate on; kjv or stepwise: a demo's; or none.",
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Texts to measure on, the model's domain first."),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not run it and compare it with the merge.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing export.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Convert a merged model for llama.cpp and other programs, run it, and compare it.

    What was measured stands in the card: KL to the merge, how often the most probable token is the
    same, NLL, size. A baked LoRA becomes, with --format gguf, a file that llama.cpp puts on the
    base.
    """
    from labkit.exporting.exports import export as run
    from labkit.probing.texts import Texts

    receipt = run(
        merged,
        out,
        format,
        base=base,
        calibration=calibration,
        texts=[Texts.read(path) for path in texts] if texts else None,
        check=not no_check,
        overwrite=overwrite,
        progress=not quiet,
    )
    if not quiet:
        typer.echo(receipt)
