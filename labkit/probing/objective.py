"""What a fit minimises: the NLL of target texts, and the KL to the base on texts to keep.

Both come with their derivatives by the weight of every module, from one backward pass. What the
base says of the texts to keep is computed once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from labkit.inference.live_model import LiveModel
from labkit.probing.scores import (
    UNCOUNTED,
    BaseLogits,
    Batch,
    Reader,
    counted_logits,
    kl_of_tokens,
    nll_of_tokens,
)
from labkit.probing.texts import Texts


@dataclass(frozen=True)
class Value:
    """What one pass found at some weights.

    Attributes:
        nll: mean NLL of the target for each token that counts, over its sets alike, in nats.
        kl: mean KL(base ‖ merge) on the texts to keep, likewise.
        nll_slopes: `∂nll/∂w` of each module, in the order of `LiveModel.module_names`.
        kl_slopes: `∂kl/∂w`, likewise.
    """

    nll: float
    kl: float
    nll_slopes: Float64[np.ndarray, " modules"]
    kl_slopes: Float64[np.ndarray, " modules"]


@dataclass(frozen=True)
class Scores:
    """What each passage has of NLL and KL, summed over its tokens that count, in nats.

    Attributes:
        nll: for each target set, an array of its passages.
        kl: for each set to keep, likewise.
    """

    nll: tuple[Float64[np.ndarray, " passages"], ...]
    kl: tuple[Float64[np.ndarray, " passages"], ...]


Measured = dict[bytes, Scores]
_measured: weakref.WeakKeyDictionary[LiveModel, dict[str, Measured]] = weakref.WeakKeyDictionary()
"""What was measured of a model, as long as it lives: by texts, then by weights. A front then need
not read again what a fit has read."""


class Objective:
    """Target texts and texts to keep, ready for one live model.

    Args:
        model: the live model.
        targets: sets of texts that are to become more likely.
        keeps: sets of texts on which the merge is to stay near the base.
        tokens: of each passage (of each window of a long one) the first so many tokens that count.

    Attributes:
        targets: the sets, read.
        keeps: likewise.
        counts: how many tokens of each passage count, by the set's name.

    Raises:
        LabkitError: a passage with nothing to predict.
    """

    def __init__(
        self, model: LiveModel, targets: Sequence[Texts], keeps: Sequence[Texts], tokens: int
    ) -> None:
        self._model = model
        self.targets = [_Read(model, texts, tokens) for texts in targets]
        self.keeps = [_Read(model, texts, tokens) for texts in keeps]
        self._base = BaseLogits()
        read = repr((tokens, *([one.sha256 for one in texts] for texts in (targets, keeps))))
        self._measured = _measured.setdefault(model, {}).setdefault(read, {})

    def value(self, weights: Float64[np.ndarray, " modules"]) -> Value:
        """One pass over all texts, forwards and backwards, at a weight for every module."""
        found = []
        for reads, losses in ((self.targets, self._nll), (self.keeps, self._kl)):
            value, slopes = 0.0, np.zeros(len(weights))
            for number, read in enumerate(reads):
                share = 1 / (len(reads) * read.counts.sum())
                for index, batch in enumerate(read.batches):
                    leaf = self._on_device(weights).requires_grad_(True)
                    with self._model.alone():
                        loss = losses(batch, leaf, (number, index)).sum()
                        (slope,) = torch.autograd.grad(loss, leaf)
                    value += share * float(loss.detach())
                    slopes += share * slope.double().cpu().numpy()
            found.append((value, slopes))
        (nll, nll_slopes), (kl, kl_slopes) = found
        return Value(nll, kl, nll_slopes, kl_slopes)

    def scores(self, weights: Float64[np.ndarray, " modules"]) -> Scores:
        """One pass forwards: the sums of each passage. Nothing is measured twice of a model."""
        key = weights.tobytes()
        if key not in self._measured:
            with torch.no_grad():
                self._measured[key] = self._scores(weights)
        return self._measured[key]

    def _scores(self, weights: Float64[np.ndarray, " modules"]) -> Scores:
        found = []
        is_base = not weights.any()  # whose KL to itself is 0
        for reads, losses, known in (
            (self.targets, self._nll, False),
            (self.keeps, self._kl, is_base),
        ):
            of_sets = []
            for number, read in enumerate(reads):
                sums = np.zeros(len(read.counts))
                for index, batch in enumerate([] if known else read.batches):
                    values = losses(batch, self._on_device(weights), (number, index)).double().cpu()
                    rows = batch.passages[batch.counted.nonzero()[:, 0]].numpy()
                    np.add.at(sums, rows, values.numpy())
                of_sets.append(sums)
            found.append(tuple(of_sets))
        return Scores(*found)

    def means(self, scores: Scores) -> tuple[float, float]:
        """Mean NLL and mean KL, as `Value` has them."""
        pairs = zip((self.targets, self.keeps), (scores.nll, scores.kl), strict=True)
        nll, kl = (
            float(np.mean([one.sum() / read.counts.sum() for read, one in zip(*pair, strict=True)]))
            for pair in pairs
        )
        return nll, kl

    def _on_device(self, weights: Float64[np.ndarray, " modules"]) -> Tensor:
        return torch.tensor(weights, dtype=torch.float32, device=self._model.device)

    def _logits(self, batch: Batch, weights: Tensor) -> Tensor:
        logits = self._model.forward_weighted(batch.tokens, batch.mask, weights)
        return counted_logits(logits, batch)

    def _nll(self, batch: Batch, weights: Tensor, _: tuple[int, int]) -> Tensor:
        return nll_of_tokens(self._logits(batch, weights), batch)

    def _kl(self, batch: Batch, weights: Tensor, key: tuple[int, int]) -> Tensor:
        expected = self._base.of(key, lambda: self._logits(batch, torch.zeros_like(weights)))
        return kl_of_tokens(expected, self._logits(batch, weights))


class _Read:
    """A set of texts in batches, its passages cut to their first tokens that count."""

    def __init__(self, model: LiveModel, texts: Texts, tokens: int) -> None:
        self.texts = texts
        self.batches = [_cut(batch, tokens) for batch in Reader(model, texts).batches]
        self.counts: Float64[np.ndarray, " passages"] = np.zeros(len(texts))
        for batch in self.batches:
            np.add.at(self.counts, batch.passages.numpy(), batch.counted.sum(1).numpy())


def _cut(batch: Batch, tokens: int) -> Batch:
    """Keep the first so many tokens that count of each row, and no column behind the last."""
    labels = batch.labels.clone()
    late = (labels[:, 1:] != UNCOUNTED).cumsum(1) > tokens
    labels[:, 1:][late] = UNCOUNTED
    width = int((labels != UNCOUNTED).nonzero()[:, 1].max()) + 1
    return Batch(batch.passages, batch.tokens[:, :width], batch.mask[:, :width], labels[:, :width])
