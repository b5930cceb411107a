"""The next token after a prompt: what base, merge and full LoRA expect, and how they differ."""

from __future__ import annotations

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


def compare_next_token(model: LiveModel, prompt: str, merge: Mix) -> NextToken:
    """Compare what base, merge and full LoRA expect after a prompt, in one pass of the model.

    Args:
        model: the live model.
        prompt: the text before the token.
        merge: the merge's mixture.

    Raises:
        LabkitError: an empty prompt, or a model that was freed.
    """
    mixes = [model.mix(0), merge, model.mix(1)]
    logits = model.forward(model.tokens(prompt).expand(3, -1), mixes).logits[:, -1]
    logs = logits.double().log_softmax(-1).cpu()
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
