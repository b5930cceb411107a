"""Commands that make a model or an adapter, and the one that makes a model again to compare it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.cli.options import (
    WEIGHTS_HELP,
    AdapterName,
    Device,
    Quiet,
    Stretch,
    Weights,
    WeightsFor,
    gradient_for,
    patterns_of,
)
from labkit.cli.uploading import upload
from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from labkit.merging.planning import Plan


def merge(
    base: Annotated[str | None, typer.Argument(help="Base model: a folder or hub id.")] = None,
    adapter: Annotated[
        str | None, typer.Argument(help="LoRA or full model: a folder or hub id.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    stretch: Stretch = False,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A recipe; BASE and ADAPTER then say where its inputs are here."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    rest: Annotated[
        float | None, typer.Option(help="Weight of what the LoRA changes outside the layers.")
    ] = None,
    weights_for: WeightsFor = None,
    dtype: Annotated[
        str, typer.Option(help="auto (keep the base's), float16, bfloat16 or float32.")
    ] = "auto",
    method: Annotated[
        str, typer.Option(help="sum, slerp, ties, dare or della; parameters: in a recipe.")
    ] = "sum",
    device: Annotated[
        str, typer.Option(help="cpu, cuda or auto; the bytes are the same.")
    ] = "auto",
    untie: Annotated[
        bool, typer.Option("--untie", help="Write a separate head where the base's is tied.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard-link untouched files.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing merge.")
    ] = False,
    earlier: Annotated[
        Path | None,
        typer.Option("--from", metavar="MERGED", help="Take over what an earlier merge has."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, write nothing.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: let everyone see the repository.")
    ] = False,
    no_hash: Annotated[bool, typer.Option("--no-hash", help="Leave SHA-256 sums out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge a LoRA or a full model into a base model, each layer with its own weight."""
    from labkit.merging.planning import plan
    from labkit.merging.recipe import Recipe

    if recipe is not None:
        given = {"--weights": weights, "--weights-for": weights_for, "--rest": rest}
        extra = [name for name, value in given.items() if value is not None]
        if extra or dtype != "auto" or untie or method != "sum":
            raise LabkitError(
                "--recipe says all that is merged; leave out "
                f"{', '.join(extra) or '--dtype, --method and --untie'}"
            )
        # BASE and ADAPTER beside a recipe say where its inputs are on this machine.
        if not quiet:
            say_what_is_read(recipe, base, [adapter] if adapter else None)
        resolved = plan(Recipe.load(recipe, base, [adapter] if adapter else None))
    else:
        if base is None or adapter is None or weights is None:
            raise LabkitError(
                "a merge needs BASE, ADAPTER and --weights, or --recipe FILE "
                "(see labkit merge --help)"
            )
        resolved = _plan(base, adapter, weights, rest, weights_for, dtype, method, untie, stretch)
    if dry_run:
        typer.echo(resolved)
        return
    if out is None:
        raise LabkitError("a merge needs --out DIR, the folder to make")
    if push is not None:
        from labkit.publishing.hub import check_repository

        check_repository(push)  # now, and not after the merge
    if not quiet:
        typer.echo(resolved)
    receipt = resolved.write(
        out,
        device=device,
        link=link,
        overwrite=overwrite,
        hashes=not no_hash,
        reuse=earlier,
        progress=not quiet,
    )
    if not quiet:
        typer.echo(receipt)
    if push is not None:
        upload(out, push, public, quiet)


def bake(
    adapter: AdapterName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    weights_for: WeightsFor = None,
    rest: Annotated[
        float | None, typer.Option(help="Weight of modules outside the layers.")
    ] = None,
    alpha_pattern: Annotated[
        bool,
        typer.Option("--alpha-pattern", help="Leave the tensors; only peft reads it then."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing adapter that labkit made.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Put a gradient into a LoRA itself: the factor B of each module is scaled."""
    from labkit.publishing.baking import bake as run

    receipt = run(
        adapter,
        weights,
        out,
        weights_for=patterns_of(weights_for),
        rest=rest,
        alpha_pattern=alpha_pattern,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(receipt)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model's folder.")],
    base: Annotated[
        str | None, typer.Option(help="Where the base is here, if not where the recipe says.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Likewise the adapter; once for each term, in order.")
    ] = None,
    device: Device = "auto",
    yes: Annotated[
        bool, typer.Option("--yes", help="Download what the recipe names and is not here.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compute a merge again from its recipe and compare every byte."""
    from labkit.merging.recipe import FILE_NAME
    from labkit.writing.verification import verify as run

    if not quiet:
        say_what_is_read(folder / FILE_NAME, base, adapter or None)
    verified = run(
        folder,
        base=base,
        adapters=adapter or None,
        device=device,
        progress=not quiet,
        download=yes,
    )
    if not quiet:
        typer.echo(f"{shown(folder)} is, byte for byte, what its recipe makes.")
        typer.echo(verified)


def say_what_is_read(recipe: Path, base: str | None, adapters: list[str] | None) -> None:
    """Say on standard error what a recipe, perhaps somebody else's, will read on this machine."""
    from labkit.merging.recipe_sources import named_sources

    for source in named_sources(recipe, base, adapters):
        print(f"labkit: reads {source}", file=sys.stderr)


def _plan(
    base: str,
    adapter: str,
    weights: str,
    rest: float | None,
    weights_for: list[str] | None,
    dtype: str,
    method: str,
    untie: bool,
    stretch: bool,
) -> Plan:
    from labkit.merging.methods import as_method
    from labkit.merging.planning import plan
    from labkit.merging.recipe import Recipe, Term
    from labkit.models.checkpoint import Checkpoint
    from labkit.models.full_model import open_source

    checkpoint = Checkpoint(base)
    patterns = patterns_of(weights_for, checkpoint.layers, stretch)
    gradient = gradient_for(weights, checkpoint.layers, stretch)
    terms = [Term(open_source(adapter), gradient, patterns)]
    return plan(Recipe(checkpoint, terms, rest, dtype, method=as_method(method), untie=untie))
