"""The NLLs on two texts as a point in a plane: of the base, the full LoRA, and each merge tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from labkit.errors import LabkitError
from labkit.inference.live_model import LiveModel, Mix

Point = tuple[float, float]
"""The NLL on the first text and on the second, in nats per token."""
LONGEST_TRAIL = 40


@dataclass(frozen=True)
class TextPlane:
    """Where models lie that were measured on the same two texts.

    Attributes:
        texts: the two texts by name; the first is the horizontal axis, the second the vertical one.
        base: the base model's point.
        full: the point of the full LoRA.
        trail: the points of the merges tried, the latest last, `LONGEST_TRAIL` at most.
    """

    texts: Mapping[str, str]
    base: Point
    full: Point
    trail: tuple[Point, ...] = ()

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


def text_plane(model: LiveModel, texts: Mapping[str, str]) -> TextPlane:
    """Measure base and full LoRA on two texts; no merge has been tried yet.

    Raises:
        LabkitError: not two texts, or one with nothing to predict (fewer than two tokens).
    """
    base, full = points(model, texts, [model.mix(0), model.mix(1)])
    return TextPlane(dict(texts), base, full)


def points(model: LiveModel, texts: Mapping[str, str], mixes: Sequence[Mix]) -> list[Point]:
    """The point of each mixture.

    Raises:
        LabkitError: as `text_plane`.
    """
    if len(texts) != 2:
        raise LabkitError(f"a plane is made of two texts, found {len(texts)}")
    first, second = (model.nll_of([text], mixes) for text in texts.values())
    return list(zip(first, second, strict=True))
