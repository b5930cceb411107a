"""Commands that show something: the demo, a LoRA by layer, the picture of a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.options import LIST_HELP, WEIGHTS_HELP, AdapterName, Base, Stretch
from labkit.errors import LabkitError, shown


def demo(
    out: Annotated[Path | None, typer.Option(help="Copy base/ and adapters/ into here.")] = None,
) -> None:
    """Print where the demo's base model and adapters are."""
    import shutil

    from labkit.demonstration.base import adapter_folders, base_folder

    folders = {"base": base_folder()}
    folders |= {f"adapters/{name}": folder for name, folder in adapter_folders().items()}
    for name, folder in folders.items():
        if out is not None:
            target = out / name
            if target.exists():
                raise LabkitError(f"{shown(target)} exists already; choose another --out")
            shutil.copytree(folder, target)
            folder = target
        typer.echo(f"{name}\t{folder}")


def inspect(
    base: Base,
    adapter: AdapterName,
    weights: Annotated[
        str | None, typer.Option(help=f"The weights to look at it with. {WEIGHTS_HELP}")
    ] = None,
    stretch: Stretch = False,
    by: Annotated[str, typer.Option(help="A row for each layer, module or tensor.")] = "layer",
    csv: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw it here: .png or .svg.")] = None,
) -> None:
    """Show how much a LoRA changes where, and what a merge would do: ledger and forecast."""
    from labkit.cli.inspection import inspect as run

    run(base, adapter, weights, by, csv, figure, stretch)


def picture(
    out: Annotated[Path, typer.Option(help="The file to write: .png or .svg.")],
    weights: Annotated[str | None, typer.Option(help=LIST_HELP)] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe, of which every LoRA is drawn.")
    ] = None,
    base_name: Annotated[str, typer.Option(help="The base model's name.")] = "base model",
    adapter_name: Annotated[str, typer.Option(help="The LoRA's name.")] = "LoRA",
) -> None:
    """Draw the picture of a gradient, or of a recipe."""
    from labkit.figures import gradient_picture, recipe_picture, save_picture
    from labkit.gradients.gradient import Gradient
    from labkit.merging.recipe import Recipe

    if (weights is None) == (recipe is None):
        raise LabkitError("give either --weights, or --recipe")
    figure = (
        recipe_picture(Recipe.load(recipe))
        if recipe
        else gradient_picture(Gradient.parse(weights or ""), base_name, adapter_name)
    )
    typer.echo(save_picture(figure, out))
