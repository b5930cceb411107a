"""The command line: `labkit --help`.

Success is 0. Wrong input is 2 and one line on standard error, never a traceback.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from labkit.gradients.gradient import Gradient
    from labkit.merging.planning import Plan

app = typer.Typer(
    add_completion=False,
    # Plain help: drawing it with rich takes longer to import than all of labkit's command line.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

recipes = typer.Typer(rich_markup_mode=None, help="Recipes from and for other tools.")
app.add_typer(recipes, name="recipe")

# Typer brings its own copy of click or uses the installed one, by its version; the class that all
# its errors of usage share has one name in both.
USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.mro() if kind.__name__ == "ClickException"
)

STOPPED = 130
"""The status of a command that Ctrl-C ended, as shells have it."""

Base = Annotated[str, typer.Argument(help="Base model: a folder, or owner/name from the hub.")]
AdapterName = Annotated[str, typer.Argument(help="LoRA: a folder, or owner/name from the hub.")]
Weights = Annotated[
    str, typer.Option(help="One weight for each layer: 0,0,0.5,1 or with runs 0x2,0.5,1.")
]


@app.callback(invoke_without_command=True)
def labkit(context: typer.Context) -> None:
    """A lab bench for layer-weighted LoRA merges."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
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


@app.command()
def inspect(
    base: Base,
    adapter: AdapterName,
    weights: Annotated[
        str | None, typer.Option(help="The layer weights to look at it with: 0x2,0.5,1.")
    ] = None,
    by: Annotated[str, typer.Option(help="A row for each layer, module or tensor.")] = "layer",
    csv: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw it here: .png or .svg.")] = None,
) -> None:
    """Show how much a LoRA changes where, and what a merge would do: ledger and forecast."""
    from labkit.cli.inspection import inspect as run

    run(base, adapter, weights, by, csv, figure)


@app.command()
def merge(
    base: Annotated[str | None, typer.Argument(help="Base model: a folder or hub id.")] = None,
    adapter: Annotated[str | None, typer.Argument(help="LoRA: a folder or hub id.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One weight for each layer: 0,0,0.5,1 or 0x2,0.5,1.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A recipe; BASE and ADAPTER then say where its inputs are here."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    rest: Annotated[
        float | None, typer.Option(help="Weight of what the LoRA changes outside the layers.")
    ] = None,
    weights_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=W", help="Other weights for the modules of that name."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (keep the base's), float16, bfloat16 or float32.")
    ] = "auto",
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, write nothing.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the hub.")
    ] = None,
    no_hash: Annotated[bool, typer.Option("--no-hash", help="Leave SHA-256 sums out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")] = False,
) -> None:
    """Merge a LoRA into a base model, each layer with its own weight."""
    from labkit.merging.planning import plan
    from labkit.merging.recipe import Recipe

    if recipe is not None:
        given = {"--weights": weights, "--weights-for": weights_for, "--rest": rest}
        extra = [name for name, value in given.items() if value is not None]
        if extra or dtype != "auto" or untie:
            raise LabkitError(
                "--recipe says all that is merged; leave out "
                f"{', '.join(extra) or '--dtype and --untie'}"
            )
        # BASE and ADAPTER beside a recipe say where its inputs are on this machine.
        resolved = plan(Recipe.load(recipe, base, [adapter] if adapter else None))
    else:
        if base is None or adapter is None or weights is None:
            raise LabkitError(
                "a merge needs BASE, ADAPTER and --weights, or --recipe FILE "
                "(see labkit merge --help)"
            )
        resolved = _plan(base, adapter, weights, rest, weights_for or [], dtype, untie)
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
        out, device=device, link=link, overwrite=overwrite, hashes=not no_hash, progress=not quiet
    )
    if not quiet:
        typer.echo(receipt)
    if push is not None:
        _push(out, push, False, quiet)


@app.command(name="push")
def push_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that labkit made.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to upload it.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")] = False,
) -> None:
    """Upload a merged model or a baked adapter to the hub, with its card."""
    _push(folder, repository, private, quiet)


@app.command()
def bake(
    adapter: AdapterName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    weights_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=W", help="Other weights for the modules of that name."),
    ] = None,
    rest: Annotated[
        float | None, typer.Option(help="Weight of modules outside the layers.")
    ] = None,
    scale_factors: Annotated[
        bool, typer.Option("--scale-factors", help="Scale the factor B, not alpha_pattern.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing adapter that labkit made.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")] = False,
) -> None:
    """Put a gradient into a LoRA itself, for peft: no tensor changes."""
    from labkit.publishing.baking import bake as run

    receipt = run(
        adapter,
        weights,
        out,
        weights_for=_patterns(weights_for or []),
        rest=rest,
        scale_factors=scale_factors,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(receipt)


@recipes.command(name="import")
def import_recipe(
    source: Annotated[
        str, typer.Argument(help="mergekit's YAML file, or the 2023 script's command line.")
    ],
    out: Annotated[Path | None, typer.Option(help="The recipe to write; else printed.")] = None,
) -> None:
    """Make a recipe from what another tool was told."""
    from labkit.publishing.interchange import import_recipe as run

    recipe = run(source)
    if out is None:
        typer.echo(recipe.to_yaml(), nl=False)
    else:
        recipe.save(out)


@recipes.command()
def export(
    recipe: Annotated[Path, typer.Argument(help="The recipe.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; else printed.")] = None,
) -> None:
    """Write a recipe as mergekit's YAML, for the same merge there."""
    from labkit.merging.recipe import Recipe
    from labkit.publishing.interchange import to_mergekit

    text = to_mergekit(Recipe.load(recipe))
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabkitError(f"cannot write {shown(out)}: {error.strerror}") from error


@recipes.command()
def preset(
    name: Annotated[str, typer.Argument(help="Its name, such as OUTALL or MIDD.")],
    layers: Annotated[int, typer.Option(help="The model's number of layers.")],
    presets: Annotated[
        Path | None, typer.Option(help="A file of presets, one NAME:0,0,1,… a line.")
    ] = None,
) -> None:
    """Print a LoRA-block-weight preset as layer weights, at the same relative depth."""
    from labkit.gradients.presets import BLOCK_PRESETS
    from labkit.gradients.presets import preset as run
    from labkit.merging.recipe_file import read_text

    blocks = read_text(presets, "file of presets") if presets else BLOCK_PRESETS
    typer.echo(run(name, layers, blocks))


@app.command()
def picture(
    weights: Weights,
    out: Annotated[Path, typer.Option(help="The file to write: .png or .svg.")],
    base_name: Annotated[str, typer.Option(help="The base model's name.")] = "base model",
    adapter_name: Annotated[str, typer.Option(help="The LoRA's name.")] = "LoRA",
) -> None:
    """Draw the picture of a gradient."""
    from labkit.figures.picture import gradient_picture, save_picture
    from labkit.gradients.gradient import Gradient

    figure = gradient_picture(Gradient.parse(weights), base_name, adapter_name)
    typer.echo(save_picture(figure, out))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model's folder.")],
    base: Annotated[
        str | None, typer.Option(help="Where the base is here, if not where the recipe says.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Likewise the adapter; once for each term, in order.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")] = False,
) -> None:
    """Compute a merge again from its recipe and compare every byte."""
    from labkit.writing.verification import verify as run

    verified = run(folder, base=base, adapters=adapter or None, device=device, progress=not quiet)
    if not quiet:
        typer.echo(
            f"verified {verified.folder}: {verified.files} files, {verified.nbytes / 1e9:.2f} GB, "
            f"{verified.tensors_computed} tensors computed again, every byte equal"
        )


def _plan(
    base: Any,
    adapter: str,
    weights: str,
    rest: float | None,
    weights_for: list[str],
    dtype: str,
    untie: bool = False,
) -> Plan:
    from labkit.gradients.gradient import Gradient
    from labkit.merging.planning import plan
    from labkit.merging.recipe import Recipe, Term
    from labkit.models.adapter import Adapter
    from labkit.models.checkpoint import Checkpoint

    patterns = _patterns(weights_for)
    checkpoint = base if isinstance(base, Checkpoint) else Checkpoint(base)
    gradient = Gradient.parse(weights, checkpoint.layers)
    terms = [Term(Adapter(adapter), gradient, patterns)]
    return plan(Recipe(checkpoint, terms, rest, dtype, untie=untie))


def _push(folder: Path, repository: str, private: bool, quiet: bool) -> None:
    from labkit.publishing.hub import push as run

    published = run(folder, repository, private=private)
    for note in published.notes:
        print(f"labkit: note: {note}", file=sys.stderr)
    if not quiet:
        size = published.nbytes / 1e9
        typer.echo(f"uploaded {published.files} files, {size:.2f} GB: {published.url}")


def _patterns(weights_for: list[str]) -> dict[str, Gradient]:
    from labkit.gradients.gradient import Gradient

    patterns = {}
    for entry in weights_for:
        pattern, equals, text = entry.partition("=")
        if not (pattern and equals):
            raise LabkitError(
                f"--weights-for {shown(entry)!r} is not of the form PATTERN=W, such as "
                "mlp=0x15,1x15"
            )
        patterns[pattern] = Gradient.parse(text)
    return patterns


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; turn every expected error into one line and a status."""
    # A merge that is told to end takes away what it had built, as it does for Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    try:
        status = app(standalone_mode=False)
    except LabkitError as error:
        _fail(str(error))
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "labkit"
        _fail(f"{shown(error.format_message(), 400)} (see {command} --help)")
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    if status == STOPPED:  # typer's own answer to Ctrl-C, in some of its versions
        _fail("stopped; nothing was left behind", STOPPED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int = 2) -> None:
    print(f"labkit: error: {message}", file=sys.stderr)
    sys.exit(status)
