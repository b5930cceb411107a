"""The next token after a prompt: what base, merge and full LoRA expect, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.inference.live_model import LiveModel, Mix

MOST_PROBABLE = 4
"""How many of the most probable tokens of each model are looked at."""
MOST_ROWS = 9


@dataclass(frozen=True)
class NextToken:
    """The probabilities of the next token after a prompt.

    Attributes:
        rows: a token's text, and its probability in base, merge and full LoRA; the most probable
            for the merge first. No probability is rounded, and they do not add up to 1, since most
            tokens are left out.
        from_base: KL(merge‖base) over all tokens, in nats.
        from_full: KL(merge‖full LoRA) over all tokens, in nats.
    """

    rows: list[tuple[str, tuple[float, float, float]]]
    from_base: float
    from_full: float


def expected_next(model: LiveModel, prompt: str, mixes: Sequence[Mix]) -> Tensor:
    """What mixtures expect after a prompt.

    Args:
        model: the live model.
        prompt: the text before the token.
        mixes: the mixtures.

    Returns:
        natural logarithms of the probabilities, of shape mixtures × vocabulary, in float64.

    Raises:
        LabkitError: an empty prompt, or a model that was freed.
    """
    logits = model.forward(model.tokens(prompt).expand(len(mixes), -1), mixes).logits[:, -1]
    return logits.double().log_softmax(-1).cpu()


def compare_next_token(
    model: LiveModel, prompt: str, merge: Mix, ends: Tensor | None = None
) -> NextToken:
    """Compare what base, merge and full LoRA expect after a prompt.

    Args:
        model: the live model.
        prompt: the text before the token.
        merge: the merge's mixture.
        ends: what base and full LoRA expect, as `expected_next` gives it, where that is known.

    Raises:
        LabkitError: an empty prompt, or a model that was freed.
    """
    if ends is None:
        ends = expected_next(model, prompt, [model.mix(0), model.mix(1)])
    logs = torch.stack([ends[0], expected_next(model, prompt, [merge])[0], ends[1]])
    # The tokens that any of the three finds most probable, the merge's first.
    found = [
        logs[row].topk(min(MOST_PROBABLE, logs.shape[1])).indices.tolist() for row in (1, 0, 2)
    ]
    top = list(dict.fromkeys(token for tokens in found for token in tokens))[:MOST_ROWS]
    rows = []
    for token in top:
        base, merged, full = logs[:, token].exp().tolist()
        rows.append((str(model.tokenizer.decode([token])), (base, merged, full)))
    rows.sort(key=lambda row: -row[1][1])
    return NextToken(rows, kl_divergence(logs[1], logs[0]), kl_divergence(logs[1], logs[2]))


def kl_divergence(first: Tensor, second: Tensor) -> float:
    """KL(first‖second) = `Σ p·(log p − log q)` of two distributions, in nats.

    It says how surprised one is who expects `second`, and sees what `first` draws. It is not the
    same the other way round.

    Args:
        first: the logarithms `log p`, one for each token.
        second: the logarithms `log q`.
    """
    possible = first > -torch.inf
    parts = first.exp() * (first - second)
    # Rounding can bring the sum below 0, where the divergence of two distributions never is.
    return max(0.0, float(parts[possible].sum()))
