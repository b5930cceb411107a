"""The NLLs on two texts as a point in a plane: of base, full LoRA, constants, and merges tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from labkit.errors import LabkitError
from labkit.inference.live_model import LiveModel, Mix
from labkit.probing.scores import Reader
from labkit.probing.texts import Passage, Texts

Point = tuple[float, float]
"""The NLL on the first text and on the second, in nats per token."""
Given = Texts | str | Iterable[str | tuple[str, str] | Passage]
"""What can stand for a text: passages, as `Texts` takes them, or one passage."""
LONGEST_TRAIL = 40
PASSAGES = 4
"""Passages of each text that are read while somebody waits."""
TOKENS = 64
"""Tokens of each passage that are read then."""


@dataclass(frozen=True)
class TextPlane:
    """Where models lie that were measured on the same two texts.

    Attributes:
        texts: the two texts by name; the first is the horizontal axis, the second the vertical one.
        base: the base model's point.
        full: the point of the full LoRA.
        trail: the points of the merges tried, the latest last, `LONGEST_TRAIL` at most.
        constants: the points of constant gradients, by their weight.
    """

    texts: Mapping[str, Given]
    base: Point
    full: Point
    trail: tuple[Point, ...] = ()
    constants: Mapping[float, Point] = field(default_factory=dict)

    def with_merge(self, model: LiveModel, merge: Mix) -> TextPlane:
        """Measure a merge: the same plane, with its point at the end of the trail.

        A merge that lies where the last one does adds no point.

        Args:
            model: the live model that the plane was measured with.
            merge: the merge's mixture.
        """
        (point,) = points(model, self.texts, [merge])
        if point in self.trail[-1:]:
            return self
        return replace(self, trail=(*self.trail, point)[-LONGEST_TRAIL:])

    def with_constant(self, model: LiveModel, weight: float) -> TextPlane:
        """Measure a constant gradient: the same plane, with its point."""
        (point,) = points(model, self.texts, [model.mix(weight)])
        return replace(self, constants={**self.constants, weight: point})

    @property
    def best_constant(self) -> float | None:
        """The weight of the measured constant with the lowest NLL on the first text."""
        return min(self.constants, key=lambda weight: self.constants[weight][0], default=None)


def text_plane(model: LiveModel, texts: Mapping[str, Given]) -> TextPlane:
    """Measure base and full LoRA on two texts; no merge has been tried yet.

    Raises:
        LabkitError: not two texts, or one with nothing to predict (fewer than two tokens).
    """
    base, full = points(model, texts, [model.mix(0), model.mix(1)])
    return TextPlane(dict(texts), base, full)


def points(model: LiveModel, texts: Mapping[str, Given], mixes: Sequence[Mix]) -> list[Point]:
    """The point of each mixture, on the beginnings of a few passages of each text.

    Raises:
        LabkitError: as `text_plane`.
    """
    if len(texts) != 2:
        raise LabkitError(f"a plane is made of two texts, found {len(texts)}")
    first, second = (Reader(model, excerpt(model, *each)) for each in texts.items())
    return [(_nll(first, mix), _nll(second, mix)) for mix in mixes]


def excerpt(model: LiveModel, name: str, given: Given, tokens: int = TOKENS) -> Texts:
    """The beginnings of a few passages: what can be read while somebody waits.

    Returns:
        `PASSAGES` of the passages, of many documents, each with its first `tokens` tokens.
    """
    drawn = as_texts(name, given).take(PASSAGES)
    return Texts(name, [replace(one, text=_beginning(model, one.text, tokens)) for one in drawn])


def as_texts(name: str, given: Given) -> Texts:
    """Passages under a name.

    Raises:
        LabkitError: as `Texts`.
    """
    return Texts(name, [given] if isinstance(given, str) else given)


def _beginning(model: LiveModel, text: str, count: int) -> str:
    tokenizer: Any = model.tokenizer
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    return text if len(tokens) <= count else str(tokenizer.decode(tokens[:count]))


def _nll(reader: Reader, mix: Mix) -> float:
    return float(reader.nll(mix).sum() / reader.counts.sum())
