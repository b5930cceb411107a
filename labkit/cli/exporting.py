"""The command that exports a merged model for the programs that run models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.options import Quiet


def export(
    merged: Annotated[str, typer.Argument(help="A merged model's folder, or a baked LoRA's.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    format: Annotated[str, typer.Option(help="One of those above; gguf for a baked LoRA.")],
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
    """Convert a merged model for the programs that run models, run it there, and compare it.

    \b
    gguf-bf16, gguf-q8_0, gguf-q6_k,    llama.cpp, Ollama, LM Studio
    gguf-q5_k_m, gguf-q4_k_m            (pip install 'labkit[gguf]')
    gptq, awq                           transformers, vLLM
                                        (pip install 'labkit[gptq]')
    fp8, w4a16                          vLLM (uv gets the tool)
    mlx                                 MLX on Macs (uv likewise)
    exl3, exl2                          ExLlama: a job for a machine with a GPU

    What was measured stands in the card: KL to the merge, how often the most probable token is the
    same, NLL, size. Formats of few bits are calibrated on text of the merge's own domain, where
    that is known or given. A baked LoRA becomes, with --format gguf, a file that llama.cpp puts on
    the base.
    """  # noqa: D301 # typer knows paragraphs to leave as they are by this letter
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
