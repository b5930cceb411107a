"""Gradients by name: plain shapes, and the presets of LoRA-block-weight.

The shapes are functions of the number of layers. The presets of LoRA-block-weight come from image
generators. Each gives one weight to every block of an image model: 12 blocks that lead in, one in
the middle and the rest that lead out, with the text encoder's weight in front. A language model has
other blocks, so what is taken over is how deep each block lies. The first number, the text
encoder's, has no counterpart and is left out. Their names and numbers are those of
hako-mikan/sd-webui-lora-block-weight.
"""

from __future__ import annotations

from collections.abc import Callable

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import MOST_LAYERS, Gradient


def _half_and_half(layers: int) -> Gradient:
    """0, one half-way layer, then 1: the shape of Pygmalion-2-13b-SuperCOT-weighed.

    Its 40 layers are `ramp(40, 18, 20)`; another depth gets the same shape in its own middle.
    """
    start = round(18 / 40 * layers)
    return Gradient.ramp(layers, start, min(start + 2, layers - 1)) if layers > 1 else Gradient([1])


SHAPES: dict[str, Callable[[int], Gradient]] = {
    "constant 0": lambda layers: Gradient.constant(layers, 0.0),
    "constant 0.5": lambda layers: Gradient.constant(layers, 0.5),
    "constant 1": lambda layers: Gradient.constant(layers, 1.0),
    "ramp up": lambda layers: Gradient.ramp(layers, 0, layers - 1),
    "ramp down": lambda layers: Gradient.ramp(layers, 0, layers - 1, first=1.0, last=0.0),
    "step": lambda layers: Gradient.step(layers, layers // 2),
    "bell": Gradient.bell,
    "valley": Gradient.valley,
    "half and half (SuperCOT)": _half_and_half,
}
"""Name -> what makes the shape for a number of layers, in the order of the editor's list."""
BLOCK_PRESETS = """
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
    """Read presets of blocks, one a line: `NAME:0,0,1,…`.

    Empty lines, and lines that start with #, are passed over.

    Returns:
        name -> the blocks' weights, without the text encoder's.

    Raises:
        LabkitError: a line of another form, a name that stands twice, an entry that is no number
            (such as the random weights `R` and `U`), or a count of numbers that no such preset has.
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


def preset(name: str, layers: int, presets: str = BLOCK_PRESETS) -> Gradient:
    """The preset or shape of a name, for a model of so many layers.

    A preset of blocks is stretched over the layers, and each layer gets the block that lies as
    deep: layer `l` of `L` has its middle at depth `(l + ½) / L`, and of `n` blocks, block
    `⌊n · depth⌋` lies there.

    Args:
        name: the name, as it is written.
        layers: number of layers.
        presets: the presets of blocks as text, one a line. Their names go before those of `SHAPES`.

    Raises:
        LabkitError: a name that is neither among the presets nor among the shapes, or a number of
            layers below 1 or above 10,000.
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise LabkitError(f"the number of layers lies from 1 to {MOST_LAYERS}, found {layers}")
    known = parse_presets(presets)
    if name in known:
        return _stretched(known[name], layers)
    if name in SHAPES:
        return SHAPES[name](layers)
    raise LabkitError(
        f"the preset {shown(name)!r} is unknown; known are {', '.join((*known, *SHAPES))}"
    )


def _stretched(blocks: tuple[float, ...], layers: int) -> Gradient:
    # In whole numbers, so that no rounding moves a layer into the next block.
    depths = ((2 * layer + 1) * len(blocks) // (2 * layers) for layer in range(layers))
    return Gradient(blocks[block] for block in depths)
