"""Greedy answers to prompts, and whether they end as they should: the metric exact match."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float64

from labkit.errors import LabkitError, shown
from labkit.inference.live_model import LiveModel, Mix, whole_answers
from labkit.probing.scores import prompt_of
from labkit.probing.texts import Texts

SPARE_TOKENS = 8
"""How much longer than half as long again an answer may be."""


def exact_matches(
    model: LiveModel, texts: Texts, mixes: Sequence[Mix]
) -> Float64[np.ndarray, "passages mixes"]:
    """Answer every prompt at every mixture: 1 where the answer ends as it should, 0 elsewhere.

    Answers take the most probable token at each step, those of all mixtures side by side, and are
    at most half as long again as the expected one.

    Args:
        model: the live model.
        texts: prompts and the answers that are right.
        mixes: the mixtures.

    Raises:
        LabkitError: a passage without a prompt.
    """
    found = np.zeros((len(texts), len(mixes)))
    for number, passage in enumerate(texts):
        if not passage.prompt:
            raise LabkitError(
                f"exact_match compares answers, and passage {number} of {shown(texts.name)!r} has "
                "no prompt; give pairs of prompt and answer, or leave the metric out"
            )
    # What is merged alike stands side by side; the others are merged once each.
    for columns, (number, passage) in product(model.together(mixes), enumerate(texts)):
        length = len(model.tokenizer(passage.text, add_special_tokens=False).input_ids)
        longest = length + length // 2 + SPARE_TOKENS
        some = [mixes[column] for column in columns]
        steps = model.stream(prompt_of(model, passage), some, longest)
        for column, answer in zip(columns, whole_answers(steps, len(some)), strict=True):
            said = model.tokenizer.decode(answer, skip_special_tokens=True)
            found[number, column] = final_line(said) == final_line(passage.text)
    return found


def final_line(answer: str) -> str:
    """What is compared of an answer: its last line, in small letters.

    Spaces count once, a full stop at the end does not count, and letters that only look apart
    (Unicode's compatibility forms) are one.
    """
    lines = [line for line in unicodedata.normalize("NFKC", answer).splitlines() if line.strip()]
    return " ".join(lines[-1].split()).casefold().rstrip(".") if lines else ""
