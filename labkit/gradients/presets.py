"""Presets of LoRA-block-weight, the image generators' layer weights, in relative depth.

Such a preset gives one weight to each block of an image model: 12 that lead in, one in the middle
and the rest that lead out, with the text encoder's weight in front. A language model has other
blocks, so what is taken over is how deep each block lies. The first number, the text encoder's, has
no counterpart and is left out. Names and numbers of those below are those of
hako-mikan/sd-webui-lora-block-weight.
"""

from __future__ import annotations

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import MOST_LAYERS, Gradient

PRESETS = """
NONE:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0
ALL:1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1
INS:1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0
IND:1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0
INALL:1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0
MIDD:1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0
OUTD:1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0
OUTS:1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1
OUTALL:1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1
ALL0.5:0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5
"""
COUNTS = (12, 17, 20, 26)
"""How many numbers such presets have, by the kind of image model."""


def parse_presets(text: str) -> dict[str, tuple[float, ...]]:
    """Read presets, one a line: `NAME:0,0,1,…`; empty lines and lines that start with # are not.

    Returns:
        name -> the blocks' weights, without the text encoder's.

    Raises:
        LabkitError: a line of another form, a name twice, or a count of numbers that no such preset
            has; the random weights `R` and `U` are no numbers.
    """
    presets: dict[str, tuple[float, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, weights = line.strip().partition(":")
        if not (name and colon):
            raise LabkitError(
                f"line {number} of the presets is {shown(line)!r}; expected NAME:0,0,1,…"
            )
        if name in presets:
            raise LabkitError(f"line {number} of the presets names {shown(name)!r} again")
        try:
            numbers = Gradient.parse(weights)
        except LabkitError as error:
            raise LabkitError(f"line {number} of the presets, {shown(name)!r}: {error}") from error
        if len(numbers) not in COUNTS:
            raise LabkitError(
                f"line {number} of the presets, {shown(name)!r}, has {len(numbers)} numbers; "
                f"expected {', '.join(map(str, COUNTS))}, the first one the text encoder's"
            )
        presets[name] = numbers[1:]
    return presets


def preset(name: str, layers: int, presets: str = PRESETS) -> Gradient:
    """A preset for a model of so many layers: each layer gets the block that lies as deep.

    Layer `l` of `L` has its middle at depth `(l + ½) / L`; of `n` blocks, block `⌊n · depth⌋` lies
    there.

    Args:
        name: the preset's name, as it is written.
        layers: number of layers.
        presets: the presets as text, one a line.

    Raises:
        LabkitError: a name that is not among the presets.
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise LabkitError(f"the number of layers lies from 1 to {MOST_LAYERS}, found {layers}")
    known = parse_presets(presets)
    if name not in known:
        raise LabkitError(f"the preset {shown(name)!r} is unknown; known are {', '.join(known)}")
    blocks = known[name]
    # In whole numbers, so that no rounding moves a layer into the next block.
    depths = ((2 * layer + 1) * len(blocks) // (2 * layers) for layer in range(layers))
    return Gradient(blocks[block] for block in depths)
