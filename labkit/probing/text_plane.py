"""The NLLs on two texts as a point in a plane: of base, full LoRA, constants, and any merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from labkit.errors import LabkitError
from labkit.inference.live_model import LiveModel, Mix
from labkit.probing.intervals import Bootstrap, Estimate
from labkit.probing.scores import Reader
from labkit.probing.texts import Passage, Texts

Given = Texts | str | Iterable[str | tuple[str, str] | Passage]
"""What can stand for a text: passages, as `Texts` takes them, or one passage."""
PASSAGES = 4
"""Passages of each text that are read while somebody waits."""
TOKENS = 64
"""Tokens of each passage that are read then."""


@dataclass(frozen=True)
class Reading:
    """What a mixture has on the passages of one text: sums of each passage, in nats.

    Attributes:
        documents: the document of each passage.
        tokens: how many tokens of each passage count.
        nll: the mixture's NLL.
        base: the base model's NLL.
        kl: the KL of the mixture to the base; empty where it was not measured.
    """

    documents: tuple[str, ...]
    tokens: tuple[float, ...]
    nll: tuple[float, ...]
    base: tuple[float, ...]
    kl: tuple[float, ...] = ()

    @cached_property
    def mean(self) -> Estimate:
        """The NLL in nats per token, with its 95 % interval."""
        return self._draws.estimate(np.array(self.nll))

    @cached_property
    def from_base(self) -> Estimate:
        """The NLL less the base's, in nats per token, paired by passage."""
        return self._draws.estimate(np.array(self.nll) - np.array(self.base))

    @cached_property
    def divergence(self) -> Estimate | None:
        """KL(base ‖ mixture) of the next token, in nats per token."""
        return self._draws.estimate(np.array(self.kl)) if self.kl else None

    def less(self, other: Reading) -> Estimate:
        """The NLL less another mixture's on the same passages, paired by passage."""
        return self._draws.estimate(np.array(self.nll) - np.array(other.nll))

    @property
    def _draws(self) -> Bootstrap:
        return _draws(self.documents, self.tokens)


Pair = tuple[Reading, Reading]
"""The readings of the first text and of the second: a point of the plane."""


class TextPlane:
    """Where mixtures of one model lie that are measured on the same two texts.

    Of each text the beginnings of a few passages are read.

    Args:
        model: the live model.
        texts: the two texts by name; the first is the horizontal axis, the second the vertical
            one, on which the KL to the base is measured, too.

    Attributes:
        texts: as given.
        model: likewise.
        base: the base model's point.
        full: the point of the full LoRA.
        constants: the points of constant gradients that were measured, by their weight.

    Raises:
        LabkitError: not two texts, or one with nothing to predict (fewer than two tokens).
    """

    def __init__(self, model: LiveModel, texts: Mapping[str, Given]) -> None:
        if len(texts) != 2:
            raise LabkitError(f"a plane is made of two texts, found {len(texts)}")
        self.texts = dict(texts)
        self.model = model
        first, second = (Reader(model, excerpt(model, *each)) for each in texts.items())
        self._readers = first, second
        base = model.mix(0)
        # What the base expects does not change, and is kept: tokens × vocabulary numbers.
        self._expected = second.log_probabilities(base)
        self._base = tuple(tuple(reader.nll(base).tolist()) for reader in self._readers)
        self.base = self.read(base)
        self.full = self.read(model.mix(1))
        self.constants: dict[float, Pair] = {}

    def read(self, mix: Mix) -> Pair:
        """Measure a mixture: its point."""
        first, second = self._readers
        nll, kl = second.nll_and_kl(mix, self._expected)
        found = ((first, first.nll(mix), None), (second, nll, kl))
        one, other = (
            Reading(
                tuple(passage.document for passage in reader.texts),
                tuple(reader.counts.tolist()),
                tuple(sums.tolist()),
                base,
                () if divergences is None else tuple(divergences.tolist()),
            )
            for (reader, sums, divergences), base in zip(found, self._base, strict=True)
        )
        return one, other

    def read_constant(self, weight: float) -> None:
        """Measure a constant gradient."""
        self.constants[weight] = self.read(self.model.mix(weight))

    @property
    def best_constant(self) -> float | None:
        """The weight of the measured constant with the lowest NLL on the first text."""
        found = dict(self.constants)
        return min(found, key=lambda weight: found[weight][0].mean.value, default=None)


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


@lru_cache(maxsize=64)
def _draws(documents: tuple[str, ...], tokens: tuple[float, ...]) -> Bootstrap:
    return Bootstrap(documents, np.array(tokens))
