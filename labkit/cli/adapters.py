"""Commands that make one LoRA of models or of other LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.options import AdapterName, Base, Quiet
from labkit.errors import LabkitError

Out = Annotated[Path, typer.Option(help="The folder to make.")]
Rank = Annotated[int | None, typer.Option(help="Rank of every module.")]
Energy = Annotated[
    float | None,
    typer.Option(help="In its place: the share of each change's squared norm to keep, as 0.95."),
]
Dtype = Annotated[str, typer.Option(help="Of the factors: float32, bfloat16 or float16.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing adapter that labkit made.")
]


def extract(
    model: Annotated[str, typer.Argument(help="A full model: a folder, or owner/name.")],
    base: Base,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Keep embeddings, norms and head whole.")
    ] = False,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a LoRA of what a model has beyond its base.

    Without --rank and --energy each module gets the rank that stands out of the noise of rounding.
    """
    from labkit.publishing.extraction import extract as run

    receipt = run(
        model,
        base,
        out,
        rank=rank,
        energy=energy,
        whole=whole,
        dtype=dtype,
        overwrite=overwrite,
        progress=not quiet,
    )
    if not quiet:
        typer.echo(receipt)


def resize(
    adapter: AdapterName,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a LoRA again with a smaller rank: the nearest there is."""
    from labkit.publishing.recombination import resize as run

    receipt = run(adapter, out, rank=rank, energy=energy, dtype=dtype, overwrite=overwrite)
    if not quiet:
        typer.echo(receipt)


def combine(
    adapters: Annotated[list[str], typer.Argument(help="LoRAs: folders, or owner/name.")],
    weights: Annotated[
        list[str], typer.Option(help="One weight for each layer; once for each LoRA, in order.")
    ],
    out: Out,
    rest: Annotated[
        float | None, typer.Option(help="Weight of modules outside the layers.")
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write several LoRAs, each with its gradient, as one LoRA."""
    from labkit.gradients.gradient import Gradient
    from labkit.merging.recipe import Term
    from labkit.models.adapter import Adapter
    from labkit.publishing.recombination import combine as run

    if len(adapters) != len(weights):
        raise LabkitError(
            f"{len(adapters)} adapters and {len(weights)} times --weights; give one for each, in "
            "order"
        )
    terms = [
        Term(Adapter(adapter), Gradient.parse(text))
        for adapter, text in zip(adapters, weights, strict=True)
    ]
    receipt = run(terms, out, rest=rest, rank=rank, energy=energy, dtype=dtype, overwrite=overwrite)
    if not quiet:
        typer.echo(receipt)
