"""What the lab asks of a live model: next tokens, NLLs, answers, the norms of the deltas."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from labkit.bench.view import columns, divergence, next_tokens, plane
from labkit.inference.live_model import LiveModel, Mix
from labkit.merging.recipe import pattern_matches

DRAW_EVERY = 0.1
"""Seconds between two drawings of a streaming answer."""
LONGEST_TRAIL = 40


class Answers:
    """Answers of base, merge and full LoRA, keeping those that do not change with the gradient.

    Args:
        model: the live model.
        show: told what to show: "columns", "next" or "plane", and its HTML.
    """

    def __init__(self, model: LiveModel, show: Callable[[str, str], None]) -> None:
        self.model, self._show = model, show
        self._base, self._full = model.mix(0), model.mix(1)
        self._texts: dict[str, str] = {}
        self._ends: list[tuple[float, float]] = []
        self.trail: list[tuple[float, float]] = []
        self._asked: tuple[Any, ...] = ()
        self._kept: list[list[str]] | None = None

    def measure(self, prompt: str, texts: dict[str, str], merged: Mix) -> None:
        """Show the next tokens after a prompt, and the NLLs on two texts."""
        mixes = [self._base, merged, self._full]
        tokens = self.model.tokens(prompt)
        logits = self.model.forward(tokens.expand(3, -1), mixes).logits[:, -1]
        shares = logits.double().softmax(-1).cpu()
        # The tokens that any of the three finds most probable, the merge's order first.
        top = {token: None for row in (1, 0, 2) for token in shares[row].topk(4).indices.tolist()}
        decode = self.model.tokenizer.decode
        rows = [(decode([token]), shares[:, token].tolist()) for token in list(top)[:9]]
        rows.sort(key=lambda row: -row[1][1])
        base, merge, full = shares.tolist()
        apart = (divergence(merge, base), divergence(merge, full))
        self._show("next", next_tokens(rows, apart))
        self._place(texts, merged)

    def _place(self, texts: dict[str, str], merged: Mix) -> None:
        if texts != self._texts:
            both = [self.model.nll_of([text], [self._base, self._full]) for text in texts.values()]
            self._ends = [(both[0][row], both[1][row]) for row in (0, 1)]
            self._texts, self.trail = dict(texts), []
        first, second = (self.model.nll_of([text], [merged])[0] for text in texts.values())
        if not self.trail or self.trail[-1] != (first, second):
            self.trail = [*self.trail, (first, second)][-LONGEST_TRAIL:]
        self._show("plane", plane(list(texts), self._ends[0], self._ends[1], self.trail))

    def write(
        self,
        prompt: str,
        merged: Mix,
        length: int,
        temperature: float,
        weights: str,
        stopped: threading.Event,
    ) -> None:
        """Stream the three answers until they end or `stopped` is set."""
        asked = (prompt, length, temperature)
        kept = self._kept if asked == self._asked else None
        mixes = [merged] if kept else [self._base, merged, self._full]
        tokens: list[list[int]] = [[] for _ in mixes]
        drawn = 0.0

        def draw(note: str) -> None:
            texts = [pieces(self.model.tokenizer, row) for row in tokens]
            if kept:
                texts = [kept[0], texts[0], kept[1]]
            notes = ("", note, "") if kept else (note, note, note)
            self._show("columns", columns(texts, notes, weights))

        draw("…")
        for step in self.model.stream(prompt, mixes, length, temperature):
            for row, token in zip(tokens, step, strict=True):
                if token is not None:
                    row.append(token)
            if stopped.is_set():
                draw("(stopped)")
                return
            if time.monotonic() - drawn > DRAW_EVERY:
                draw("…")
                drawn = time.monotonic()
        draw("")
        if not kept:
            self._kept = [pieces(self.model.tokenizer, tokens[row]) for row in (0, 2)]
            self._asked = asked


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token; a letter of several tokens comes with its last one."""
    written, found = "", []
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if text.endswith("\ufffd") and end < len(tokens):
            continue
        found.append(text[len(written) :])
        written = text
    return found


def relative_norms(model: LiveModel, adapter: int, pattern: str = "") -> list[float]:
    """‖ΔW‖/‖W‖ of each layer, over the modules that an adapter changes there.

    Args:
        model: the live model; its base weights are read where they are.
        adapter: the number of the adapter.
        pattern: a module pattern; all modules if empty.
    """
    changed = [0.0] * model.base.layers
    whole = [0.0] * model.base.layers
    for name, (lora, _, _) in model.loras[adapter].items():
        layer = model.layer_of(adapter, name)
        if layer is None or (pattern and not pattern_matches(pattern, name)):
            continue
        changed[layer] += model.adapters[adapter].delta(name).norm() ** 2
        whole[layer] += float(lora.get_base_layer().weight.float().norm()) ** 2
    return [
        math.sqrt(part / total) if total > 0 else 0.0
        for part, total in zip(changed, whole, strict=True)
    ]
