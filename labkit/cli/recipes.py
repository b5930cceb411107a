"""Commands for recipes from and for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.errors import LabkitError, shown

recipes = typer.Typer(rich_markup_mode=None, help="Recipes from and for other tools.")


@recipes.command(
    name="import", epilog="\b\nExample: labkit recipe import mergekit.yaml --out recipe.yaml"
)
def import_recipe(
    source: Annotated[
        str, typer.Argument(help="mergekit's YAML file, or the 2023 script's command line.")
    ],
    out: Annotated[Path | None, typer.Option(help="The recipe to write; else printed.")] = None,
) -> None:
    """Make a recipe from what another tool was told."""
    from labkit.publishing.interchange import imported

    recipe, notes = imported(source)
    for note in notes:
        print(f"labkit: note: {note}", file=sys.stderr)
    if out is None:
        typer.echo(recipe.to_yaml(), nl=False)
    else:
        recipe.save(out)


@recipes.command(epilog="\b\nExample: labkit recipe export recipe.yaml --out mergekit.yaml")
def export(
    recipe: Annotated[Path, typer.Argument(help="The recipe.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; else printed.")] = None,
) -> None:
    """Write a recipe as mergekit's YAML, for the same merge there."""
    from labkit.merging.recipe import Recipe
    from labkit.publishing.interchange import export_recipe

    text = export_recipe(Recipe.load(recipe))
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabkitError(f"cannot write {shown(out)}: {error.strerror}") from error


@recipes.command(epilog="\b\nExample: labkit recipe preset OUTALL --layers 40")
def preset(
    name: Annotated[str, typer.Argument(help="Its name, such as OUTALL or MIDD.")],
    layers: Annotated[int, typer.Option(help="The model's number of layers.")],
    presets: Annotated[
        Path | None, typer.Option(help="A file of presets, one NAME:0,0,1,… a line.")
    ] = None,
) -> None:
    """Print a LoRA-block-weight preset as layer weights, at the same relative depth."""
    from labkit.files.small_files import read_text
    from labkit.gradients.presets import BLOCK_PRESETS
    from labkit.gradients.presets import preset as run

    blocks = read_text(presets, "file of presets") if presets else BLOCK_PRESETS
    typer.echo(run(name, layers, blocks))
