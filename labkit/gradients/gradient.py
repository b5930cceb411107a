"""A gradient: one weight for each decoder layer, as a value.

Weight 0 leaves a layer as the base model has it, weight 1 gives it the whole LoRA. Any finite
number is allowed: negative weights subtract the LoRA, weights above 1 exaggerate it.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from labkit.errors import LabkitError, shown, spelled

MOST_LAYERS = 10_000
"""Longest gradient that `parse` expands: far above any model, far below any memory."""


@dataclass(frozen=True, init=False)
class Gradient:
    """The layer weights `w_l` of a merge, one finite float for each layer `l` from 0.

    Immutable, comparable and hashable. In a notebook it shows itself as the picture.

    Raises:
        LabkitError: no weights, or a weight that is not a finite number.
    """

    weights: tuple[float, ...]

    def __init__(self, weights: Iterable[float]) -> None:
        if isinstance(weights, str):
            raise LabkitError(
                "a Gradient is made from numbers, found text; use Gradient.parse(text)"
            )
        checked = tuple(_finite(weight, layer) for layer, weight in enumerate(weights))
        if not checked:
            raise LabkitError("a gradient needs at least one layer weight, found none")
        object.__setattr__(self, "weights", checked)

    # Ways to make one

    @classmethod
    def parse(cls, text: str, layers: int | None = None) -> Gradient:
        """Read a list such as `0,0,0.5,1,1`, with runs as `0x19,0.5,1x20`.

        Commas or white space separate the entries; a trailing comma is allowed. The run `0x19`
        means the weight 0 for nineteen layers.

        Args:
            text: the list.
            layers: how many weights there must be, where that is known.

        Raises:
            LabkitError: an empty list, an entry that is no number (which, and where), NaN or
                infinity, a bad run, or a count that is not `layers`.
        """
        # Spaces around a run's x are allowed, so they are taken out before splitting.
        joined = re.sub(r"(?<=[\d.])\s*[x×]\s*(?=\d)", "x", text.strip().strip("[]"))
        entries = [part.strip() for part in joined.strip().rstrip(",").split(",")]
        if entries == [""]:
            raise LabkitError("the list of layer weights is empty; write one number for each layer")
        weights: list[float] = []
        position = 0
        for entry in entries:
            words = entry.split()
            if not words:
                raise LabkitError(
                    f"entry {position + 1} of the layer weights is empty: "
                    "two commas follow each other"
                )
            for word in words:
                position += 1
                weights.extend(_run(word, position))
                if len(weights) > MOST_LAYERS:
                    raise LabkitError(
                        f"the list of layer weights has more than {MOST_LAYERS} entries "
                        f"(at entry {position}, {shown(word)!r}); no model has so many layers"
                    )
        gradient = cls(weights)
        if layers is not None:
            gradient.require(layers)
        return gradient

    @classmethod
    def constant(cls, layers: int, weight: float = 1.0) -> Gradient:
        """The same weight for every layer: a plain, ungraded merge at that strength."""
        return cls([weight] * _count(layers))

    @classmethod
    def ramp(
        cls, layers: int, start: int, stop: int, first: float = 0.0, last: float = 1.0
    ) -> Gradient:
        """`first` before layer `start`, `last` after layer `stop`, a straight line between.

        The rule of zaraki-tools' gradient generator (2023), with its rounding to two decimals:
        `ramp(40, 18, 20)` is 0 nineteen times, 0.5, and 1 twenty times. With `start == stop` that
        layer already has `last`.

        Raises:
            LabkitError: unless 0 ≤ start ≤ stop ≤ layers - 1.
        """
        _count(layers)
        if not 0 <= start <= stop <= layers - 1:
            raise LabkitError(
                f"a ramp over {layers} layers needs 0 ≤ start ≤ stop ≤ {layers - 1}, "
                f"found start={start}, stop={stop}"
            )

        def weight(layer: int) -> float:
            if layer < start:
                return first
            if layer >= stop:
                return last
            return round(first + (last - first) * (layer - start) / (stop - start), 2)

        return cls(map(weight, range(layers)))

    @classmethod
    def step(cls, layers: int, at: int, first: float = 0.0, last: float = 1.0) -> Gradient:
        """`first` before layer `at`, `last` from it on.

        Raises:
            LabkitError: unless 0 ≤ at ≤ layers.
        """
        _count(layers)
        if not 0 <= at <= layers:
            raise LabkitError(f"a step over {layers} layers needs 0 ≤ at ≤ {layers}, found at={at}")
        return cls([first] * at + [last] * (layers - at))

    @classmethod
    def bell(
        cls,
        layers: int,
        center: float | None = None,
        width: float | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> Gradient:
        """`high` in the middle, falling to `low` on both sides as a normal curve does.

        Rounded to two decimals, so that the list stays short enough to read and to post.

        Args:
            layers: number of layers.
            center: the layer of the peak; the middle of the stack if left out.
            width: the curve's standard deviation in layers; a sixth of the stack if left out.
            low: weight far from the center.
            high: weight at the center.

        Raises:
            LabkitError: if `width` is not positive.
        """
        _count(layers)
        middle = (layers - 1) / 2 if center is None else center
        spread = layers / 6 if width is None else width
        if not spread > 0:
            raise LabkitError(f"the width of a bell is a positive number of layers, found {spread}")
        return cls(
            round(low + (high - low) * math.exp(-(((layer - middle) / spread) ** 2) / 2), 2)
            for layer in range(layers)
        )

    @classmethod
    def valley(
        cls,
        layers: int,
        center: float | None = None,
        width: float | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> Gradient:
        """`low` in the middle, rising to `high` on both sides: a `bell` upside down."""
        return cls.bell(layers, center, width, low=high, high=low)

    @classmethod
    def from_anchors(
        cls, layers: int, anchors: Sequence[float] | Mapping[float, float]
    ) -> Gradient:
        """Values at relative depth, interpolated linearly: what mergekit means by a gradient.

        Layer `i` of `L` lies at depth `i / (L - 1)`: 0 is the first layer and 1 the last.

        Args:
            layers: number of layers.
            anchors: values spread evenly from depth 0 to depth 1, or a mapping of depth to value
                (constant beyond its outermost depths).

        Raises:
            LabkitError: no anchors, or a depth outside 0 to 1.
        """
        _count(layers)
        if isinstance(anchors, Mapping):
            points = sorted((float(depth), float(value)) for depth, value in anchors.items())
            for depth, _ in points:
                if not 0 <= depth <= 1:
                    raise LabkitError(f"an anchor's depth lies from 0 to 1, found {depth}")
        else:
            last = max(len(anchors) - 1, 1)
            points = [(index / last, float(value)) for index, value in enumerate(anchors)]
        if not points:
            raise LabkitError("a gradient from anchors needs at least one anchor, found none")
        return cls(_interpolate(points, depth) for depth in _depths(layers))

    # What it says

    @property
    def mean(self) -> float:
        """The mean weight: what model cards call the ratio of the merge."""
        return math.fsum(self.weights) / len(self.weights)

    def require(self, layers: int, where: str = "") -> None:
        """Check that there is one weight for each of a model's `layers`.

        Args:
            layers: number of layers of the model.
            where: what the weights are for, to name in the error.

        Raises:
            LabkitError: `41 weights for 40 layers`.
        """
        if len(self) != layers:
            place = f" ({where})" if where else ""
            raise LabkitError(
                f"{len(self)} weights for {layers} layers{place}; write exactly one weight for "
                "each layer, or stretch the list "
                f"({spelled(f'Gradient.resample({layers})', 'labkit merge --weights … --stretch')})"
            )

    # Ways to make another from it

    def resample(self, layers: int) -> Gradient:
        """The same shape for a model of another depth, interpolated linearly over depth."""
        points = list(zip(_depths(len(self)), self.weights, strict=True))
        return Gradient(_interpolate(points, depth) for depth in _depths(_count(layers)))

    def reversed(self) -> Gradient:
        """The same weights from the last layer to the first."""
        return Gradient(self.weights[::-1])

    def rounded(self, decimals: int = 2) -> Gradient:
        """Every weight rounded to so many decimals."""
        return Gradient(round(weight, decimals) for weight in self.weights)

    def __add__(self, other: Gradient | float) -> Gradient:
        return self._combine(other, lambda mine, theirs: mine + theirs)

    __radd__ = __add__

    def __mul__(self, other: Gradient | float) -> Gradient:
        return self._combine(other, lambda mine, theirs: mine * theirs)

    __rmul__ = __mul__

    def __neg__(self) -> Gradient:
        return self * -1.0

    def __sub__(self, other: Gradient | float) -> Gradient:
        return self._combine(other, lambda mine, theirs: mine - theirs)

    def __rsub__(self, other: float) -> Gradient:
        return self._combine(other, lambda mine, theirs: theirs - mine)

    def _combine(
        self, other: Gradient | float, operation: Callable[[float, float], float]
    ) -> Gradient:
        if isinstance(other, Gradient):
            if len(other) != len(self):
                raise LabkitError(
                    f"two gradients of {len(self)} and {len(other)} layers do not combine; "
                    f"use resample({len(self)}) on the second"
                )
            return Gradient(map(operation, self.weights, other.weights))
        if isinstance(other, (int, float)):
            return Gradient(operation(weight, other) for weight in self.weights)
        return NotImplemented

    # How it behaves as a sequence and shows itself

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[float]:
        return iter(self.weights)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        return self.weights[index]

    def __str__(self) -> str:
        """The plain list, as forum posts and model cards print it: `0,0,0.5,1,1`."""
        return ",".join(map(plain, self.weights))

    def runs(self) -> str:
        """The list with repeated weights written once: `0x2,0.5,1x2`. `parse` reads it back."""
        written: list[str] = []
        start = 0
        for end in range(1, len(self) + 1):
            if end == len(self) or self[end] != self[start]:
                length = end - start
                number = plain(self[start])
                written.append(number if length == 1 else f"{number}x{length}")
                start = end
        return ",".join(written)

    def __repr__(self) -> str:
        return f"Gradient.parse({self.runs()!r})  # {len(self)} layers, mean weight {self.mean:.2f}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from labkit.figures import gradient_picture, picture_html

        text = f"{len(self)} layers · mean weight {self.mean:.2f}<br><code>{html.escape(str(self))}"
        return {
            "text/plain": repr(self),
            "text/html": picture_html(
                gradient_picture(self),
                f"Gradient of {len(self)} layers, mean weight {self.mean:.2f}",
                f"{text}</code>",
            ),
        }


def plain(number: float) -> str:
    """A float as a person writes it, losing nothing: `1`, `0.5`, `0.30000000000000004`."""
    return repr(number).removesuffix(".0")


def _finite(weight: float, layer: int) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError, OverflowError):
        raise LabkitError(
            f"the weight of layer {layer} is not a number: {shown(repr(weight))}"
        ) from None
    if not math.isfinite(value):
        raise LabkitError(f"the weight of layer {layer} is {value}; a layer weight is finite")
    return value + 0.0  # -0.0 becomes 0.0, so that equal gradients print alike


def _count(layers: int) -> int:
    if not 1 <= layers <= MOST_LAYERS:
        raise LabkitError(f"the number of layers lies from 1 to {MOST_LAYERS}, found {layers}")
    return layers


def _run(word: str, position: int) -> list[float]:
    number, marked, count = word.lower().replace("×", "x").partition("x")
    where = f"entry {position} of the layer weights, {shown(word)!r},"
    times = 1
    if marked:
        # The length is looked at first: converting a million digits takes minutes.
        readable = count.isascii() and count.isdigit() and len(count) <= len(str(MOST_LAYERS))
        times = int(count) if readable else 0
        if not 1 <= times <= MOST_LAYERS:
            raise LabkitError(
                f"{where} is not a run: expected a weight, an x and how many layers have it "
                f"(from 1 to {MOST_LAYERS}), such as 0.5x3"
            )
    try:
        weight = float(number) if "_" not in number else math.nan
    except ValueError:
        raise LabkitError(
            f"{where} is not a number; write the weights as 0,0,0.5,1 or with runs as 0x2,0.5,1"
        ) from None
    if not math.isfinite(weight):
        raise LabkitError(f"{where} is not a finite number; a layer weight is finite")
    return [weight] * times


def _depths(layers: int) -> list[float]:
    # A single layer lies at both ends at once; the start is as good a choice as any.
    return [layer / max(layers - 1, 1) for layer in range(layers)]


def _interpolate(points: Sequence[tuple[float, float]], depth: float) -> float:
    before = [point for point in points if point[0] <= depth]
    after = [point for point in points if point[0] >= depth]
    if not before:
        return after[0][1]
    if not after:
        return before[-1][1]
    (left, low), (right, high) = before[-1], after[0]
    if right == left:
        return low
    # This form, unlike low + t * (high - low), keeps equal neighbours exactly equal.
    share = (depth - left) / (right - left)
    return low if low == high else low * (1 - share) + high * share
