"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from labkit.gradients.gradient import Gradient

Base = Annotated[str, typer.Argument(help="Base model: a folder, or owner/name from the hub.")]
AdapterName = Annotated[str, typer.Argument(help="LoRA: a folder, or owner/name from the hub.")]
LIST_HELP = "One weight for each layer: 0,0,0.5,1 or with runs 0x2,0.5,1."
Weights = Annotated[str, typer.Option(help=LIST_HELP)]
Stretch = Annotated[
    bool, typer.Option("--stretch", help="Stretch weights of another length over the layers.")
]
WeightsFor = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=W", help="Other weights for the modules of that name."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")]


WEIGHTS_HELP = (
    "One for each layer (0x2,0.5,1), one for all (0.5), a call (ramp(18,20)), or a preset's name."
)


def gradient_for(text: str, layers: int, stretch: bool, option: str = "--weights") -> Gradient:
    """Read the weights of an option for a model of so many layers.

    Raises:
        LabkitError: weights that cannot be read, or of another length.
    """
    from labkit.gradients.worded import gradient_of_text

    gradient = gradient_of_text(text, layers)
    if len(gradient) == layers:
        return gradient
    if stretch:
        return gradient.resample(layers)
    raise LabkitError(
        f"{option} has {len(gradient)} weights for {layers} layers; write one for each layer, one "
        "number for all of them, or add --stretch"
    )


def patterns_of(
    weights_for: list[str] | None, layers: int | None = None, stretch: bool = False
) -> dict[str, Gradient]:
    """Read `--weights-for`: module pattern -> gradient, for a model of so many layers, if known.

    Raises:
        LabkitError: an entry that is not of the form PATTERN=W.
    """
    from labkit.gradients.gradient import Gradient

    patterns = {}
    for entry in weights_for or []:
        pattern, equals, text = entry.partition("=")
        if not (pattern and equals):
            raise LabkitError(
                f"--weights-for {shown(entry)!r} is not of the form PATTERN=W, such as "
                "mlp=0x15,1x15"
            )
        patterns[pattern] = (
            Gradient.parse(text)
            if layers is None
            else gradient_for(text, layers, stretch, f"--weights-for {shown(pattern)}")
        )
    return patterns
