"""Reads passages with a live model: the NLL of each, its KL to the base, and gradients of both.

A text longer than the window is read in windows that overlap by half; each of its tokens counts
once, in the window where it has the most before it. Shorter ones are padded at the right, where a
decoder does not look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from labkit.errors import LabkitError, shown
from labkit.inference.layer_outputs import LayerOutputs
from labkit.inference.live_model import LiveModel, Mix
from labkit.inference.prompts import CHAT, PLAIN, formats, formatted
from labkit.probing.texts import Passage, Texts

ROWS = 4
"""Passages of a batch."""
WINDOW = 512
"""Tokens that are read at once, at most."""
UNCOUNTED = -100
"""The label of a token that does not count, as torch's cross entropy has it."""
KEPT_BYTES = 1_000_000_000
"""The base's logits are kept up to this size, and computed again for each pass beyond it."""


class HasTokenizer(Protocol):
    """A live model; or what has its tokenizer alone."""

    @property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer."""


@dataclass(frozen=True)
class Batch:
    """Windows of passages, padded to one length.

    Attributes:
        passages: the number of the passage of each row.
        tokens: rows × length.
        mask: 1 where there is a token, of the same shape.
        labels: the token, or `UNCOUNTED`, of the same shape.
    """

    passages: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def counted(self) -> Tensor:
        """Which positions predict a token that counts: rows × (length - 1)."""
        return self.labels[:, 1:] != UNCOUNTED


class BaseLogits:
    """The base's logits at the tokens that count, computed once where they fit into memory."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}
        self._bytes = 0

    def of(self, batch: Any, read: Callable[[], Tensor]) -> Tensor:
        """Those of a batch, which `read` computes.

        Args:
            batch: what tells batches apart.
            read: a pass of the base.
        """
        if batch in self._kept:
            return self._kept[batch]
        with torch.no_grad():
            logits = read()
        size = logits.numel() * logits.element_size()
        if self._bytes + size <= KEPT_BYTES:
            self._kept[batch] = logits
            self._bytes += size
        return logits


class Reader:
    """Texts, cut and padded for one model, and measured by it at any mixture.

    Args:
        model: the live model.
        texts: what to read.
        rows: windows of a batch.
        window: tokens of a window, at most.

    Attributes:
        texts: what is read.
        counts: how many tokens of each passage count.

    Raises:
        LabkitError: a passage with nothing to predict.
    """

    def __init__(
        self, model: LiveModel, texts: Texts, rows: int = ROWS, window: int = WINDOW
    ) -> None:
        self.model, self.texts = model, texts
        self._base = BaseLogits()
        longest = getattr(model.config, "max_position_embeddings", None) or window
        window = max(2, min(window, longest))
        windows: list[tuple[int, list[int], list[int]]] = []
        self.counts: Float64[np.ndarray, " passages"] = np.zeros(len(texts))
        for number, passage in enumerate(texts):
            tokens, labels = tokens_and_labels(model, passage)
            self.counts[number] = sum(label != UNCOUNTED for label in labels[1:])
            if not self.counts[number]:
                raise LabkitError(
                    f"passage {number} of {shown(texts.name)!r} has nothing to predict; give at "
                    "least two tokens"
                )
            windows += [(number, *cut) for cut in _windows(tokens, labels, window)]
        # Of like length together, so that little is padded.
        windows.sort(key=lambda one: len(one[1]))
        self.batches = [_padded(windows[i : i + rows]) for i in range(0, len(windows), rows)]
        self._kl: dict[object, Float64[np.ndarray, " passages"]] = {}
        self._nll: dict[object, Float64[np.ndarray, " passages"]] = {}

    def nll(self, mix: Mix) -> Float64[np.ndarray, " passages"]:
        """`-Σ log p(token | those before it)` over each passage's tokens that count, in nats.

        What was measured is remembered: constants are asked for again and again.
        """
        if mix.key not in self._nll:
            self._nll[mix.key] = self._measure(mix, _nll)
        return self._nll[mix.key].copy()

    def nll_of_each(
        self, reference: Mix, changed: Sequence[tuple[int, Mix]]
    ) -> tuple[Float64[np.ndarray, " passages"], Float64[np.ndarray, "passages changed"]]:
        """The NLL at one mixture, and at others that differ from it only from some layer on.

        The layers below the first that differs are not run again: what they gave at the reference
        is the same. Where a model's layers cannot be stood in for so, which the first batch shows,
        every pass is a whole one. The numbers are the same either way, bit for bit.

        Args:
            reference: what the others are like.
            changed: for each other one the number of the first layer in which it differs.

        Returns:
            each passage's NLL at the reference, and at each of the others.
        """
        found = np.zeros((len(self.texts), 1 + len(changed)))
        layers = self.model.decoder_layers
        with torch.no_grad():
            for batch in self.batches:
                outputs = LayerOutputs(layers)
                whole = self._logits(batch, reference, outputs.kept())
                if batch is self.batches[0] and not self._same(batch, reference, outputs, whole):
                    layers = []
                    outputs = LayerOutputs(layers)
                numbers = batch.passages.numpy()
                for column, (layer, mix) in enumerate([(-1, reference), *changed]):
                    logits = whole
                    if column:
                        logits = self._logits(batch, mix, outputs.standing_in(layer))
                    losses = _by_row(_nll(logits, batch), batch).double().cpu().numpy()
                    np.add.at(found[:, column], numbers, losses)
        return found[:, 0], found[:, 1:]

    def _same(self, batch: Batch, mix: Mix, outputs: LayerOutputs, whole: Tensor) -> bool:
        """Whether a pass in which the lower half of the layers is stood in for gives the same."""
        half = self.model.base.layers // 2
        try:
            again = self._logits(batch, mix, outputs.standing_in(half))
            return bool(torch.equal(again, whole))
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            # The layers of this model need each other in other ways than by what they give.
            return False

    def kl_from_base(self, mix: Mix) -> Float64[np.ndarray, " passages"]:
        """`Σ KL(base ‖ merge)` of the next token, over each passage's tokens that count (nats).

        It is remembered, and so is the NLL, which the same pass tells.
        """
        if mix.key not in self._kl:
            self._kl[mix.key], self._nll[mix.key] = self._kl_and_nll(mix)
        return self._kl[mix.key].copy()

    def _kl_and_nll(
        self, mix: Mix
    ) -> tuple[Float64[np.ndarray, " passages"], Float64[np.ndarray, " passages"]]:
        base = self.model.mix(0)
        # Where each turn would merge the model anew, the base reads as many batches at once as fit.
        most = 0 if self.model.merged_alike([base, mix]) else KEPT_BYTES
        sums, losses = np.zeros(len(self.texts)), np.zeros(len(self.texts))
        waiting: list[tuple[Batch, Tensor]] = []
        with torch.no_grad():
            for batch in self.batches:
                expected = self._base.of(id(batch), partial(self._counted, batch, base))
                waiting.append((batch, expected))
                size = sum(one.numel() * one.element_size() for _, one in waiting)
                if size >= most or batch is self.batches[-1]:
                    for read, one in waiting:
                        logits = one if mix.key == base.key else self._counted(read, mix)
                        for total, of_tokens in (
                            (sums, kl_of_tokens(one, logits)),
                            (losses, nll_of_tokens(logits, read)),
                        ):
                            found = _by_row(of_tokens, read).double().cpu().numpy()
                            np.add.at(total, read.passages.numpy(), found)
                    waiting.clear()
        return sums, losses

    def _counted(self, batch: Batch, mix: Mix) -> Tensor:
        """A mixture's logits at the tokens that count."""
        return counted_logits(self._logits(batch, mix), batch)

    def log_probabilities(self, mix: Mix) -> list[Tensor]:
        """What a mixture expects: for each batch `log p`, tokens that count × vocabulary."""
        with torch.no_grad():
            return [
                self._logits(batch, mix)[batch.counted].float().log_softmax(-1)
                for batch in self.batches
            ]

    def nll_and_kl(
        self, mix: Mix, expected: Sequence[Tensor]
    ) -> tuple[Float64[np.ndarray, " passages"], Float64[np.ndarray, " passages"]]:
        """The NLL of a mixture and another's KL to it, from one pass, in nats over each passage.

        Args:
            mix: the mixture.
            expected: the `log_probabilities` of the other one, such as the base.
        """
        divergences = np.zeros(len(self.texts))
        reference = iter(expected)

        def measure(logits: Tensor, batch: Batch) -> Tensor:
            logs = next(reference)
            found = logits[batch.counted].float().log_softmax(-1)
            parts = _by_row((logs.exp() * (logs - found)).sum(-1), batch)
            np.add.at(divergences, batch.passages.numpy(), parts.double().cpu().numpy())
            return _nll(logits, batch)

        return self._measure(mix, measure), divergences

    def gradient(
        self, mix: Mix
    ) -> tuple[Float64[np.ndarray, " passages"], Float64[np.ndarray, "passages modules"]]:
        """The NLL, and its derivative by the weight of each module, from one backward pass.

        Returns:
            each passage's NLL, and `∂NLL/∂w`; the modules are those of `LiveModel.module_names`.
        """
        sums = np.zeros(len(self.texts))
        slopes = np.zeros((len(self.texts), len(self.model.module_names)))
        flat = torch.tensor(mix.flat(), dtype=torch.float32, device=self.model.device)
        for batch in self.batches:
            weights = flat.expand(len(batch.tokens), -1).clone().requires_grad_(True)
            with self.model.alone():
                logits = self.model.forward_weighted(batch.tokens, batch.mask, weights)
                losses = _by_row(_nll(logits, batch), batch)
                (found,) = torch.autograd.grad(losses.sum(), weights)
            numbers = batch.passages.numpy()
            np.add.at(sums, numbers, losses.detach().double().cpu().numpy())
            np.add.at(slopes, numbers, found.double().cpu().numpy())
        return sums, slopes

    def _logits(
        self, batch: Batch, mix: Mix, around: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        return self.model.forward_weighted(batch.tokens, batch.mask, mix, around)

    def _measure(
        self, mix: Mix, measure: Callable[[Tensor, Batch], Tensor]
    ) -> Float64[np.ndarray, " passages"]:
        sums = np.zeros(len(self.texts))
        with torch.no_grad():
            for batch in self.batches:
                found = _by_row(measure(self._logits(batch, mix), batch), batch)
                np.add.at(sums, batch.passages.numpy(), found.double().cpu().numpy())
        return sums


def tokens_and_labels(model: LiveModel, passage: Passage) -> tuple[list[int], list[int]]:
    """A passage's tokens, and the label of each: itself where it counts.

    A prompt is put into its format, and does not count; an answer ends with the model's end token,
    which counts.
    """
    tokenizer: Any = model.tokenizer
    if not passage.prompt:
        tokens = model.tokens(passage.text)[0].tolist()
        return tokens, tokens
    before = model.tokens(prompt_of(model, passage))[0].tolist()
    after = tokenizer(passage.text, add_special_tokens=False).input_ids
    if tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]
    return before + after, [UNCOUNTED] * len(before) + after


def prompt_of(model: HasTokenizer, passage: Passage) -> str:
    """A passage's prompt in its format, as the model is asked."""
    tokenizer: Any = model.tokenizer
    kind = passage.prompt_format or (CHAT if CHAT in formats(tokenizer) else PLAIN)
    return formatted(passage.prompt, kind, tokenizer)


def _windows(
    tokens: Sequence[int], labels: Sequence[int], window: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into windows in which each token counts once."""
    counted_until = 0
    for start in range(0, max(1, len(tokens)), max(1, window // 2)):
        stop = min(start + window, len(tokens))
        mine = [UNCOUNTED] * (max(counted_until, start) - start)
        mine += labels[start + len(mine) : stop]
        if any(label != UNCOUNTED for label in mine[1:]):
            yield list(tokens[start:stop]), mine
        counted_until = stop
        if stop == len(tokens):
            return


def _padded(windows: Sequence[tuple[int, list[int], list[int]]]) -> Batch:
    width = max(len(tokens) for _, tokens, _ in windows)
    return Batch(
        torch.tensor([number for number, _, _ in windows]),
        torch.tensor([tokens + [0] * (width - len(tokens)) for _, tokens, _ in windows]),
        torch.tensor([[1] * len(t) + [0] * (width - len(t)) for _, t, _ in windows]),
        torch.tensor([labels + [UNCOUNTED] * (width - len(labels)) for *_, labels in windows]),
    )


def counted_logits(logits: Tensor, batch: Batch) -> Tensor:
    """The logits from which the tokens that count are predicted; of all positions but the last."""
    return logits[batch.counted.to(logits.device)]


def nll_of_tokens(logits: Tensor, batch: Batch) -> Tensor:
    """The NLL of each token that counts, from `counted_logits`."""
    wanted = batch.labels[:, 1:][batch.counted].to(logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")


def kl_of_tokens(expected: Tensor, found: Tensor) -> Tensor:
    """`KL(expected ‖ found)` of the next token at each token that counts."""
    expected, found = expected.float().log_softmax(-1), found.float().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1)


def _nll(logits: Tensor, batch: Batch) -> Tensor:
    return nll_of_tokens(counted_logits(logits, batch), batch)


def _by_row(values: Tensor, batch: Batch) -> Tensor:
    """Sum numbers of tokens that count over each row."""
    rows = batch.counted.nonzero()[:, 0].to(values.device)
    # Of the values' dtype: the usual one is another while a second thread loads a model.
    return values.new_zeros(len(batch.tokens)).index_add(0, rows, values)
