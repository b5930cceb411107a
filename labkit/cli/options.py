"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from labkit.gradients.gradient import Gradient

Base = Annotated[str, typer.Argument(help="Base model: a folder, or owner/name from the hub.")]
AdapterName = Annotated[str, typer.Argument(help="LoRA: a folder, or owner/name from the hub.")]
Weights = Annotated[
    str, typer.Option(help="One weight for each layer: 0,0,0.5,1 or with runs 0x2,0.5,1.")
]
WeightsFor = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=W", help="Other weights for the modules of that name."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing on success.")]


def patterns_of(weights_for: list[str] | None) -> dict[str, Gradient]:
    """Read `--weights-for`: module pattern -> gradient.

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
        patterns[pattern] = Gradient.parse(text)
    return patterns
