"""The demo's texts as sets of passages to measure on, none of which an adapter was trained on."""

from __future__ import annotations

from labkit.demonstration.stepwise import held_out_examples
from labkit.demonstration.texts import general_prose, held_out_kjv

ANSWERS = 24


def demo_texts() -> dict[str, list[str]]:
    """Passages to measure a merge of the demo's on, in named sets.

    No adapter of the demo was trained on any of them.

    Returns:
        "scripture": books of the King James Bible, in passages of six verses; what the adapter
            `kjv` is to be good at.
        "numbered steps": questions and their answers in steps, in the Alpaca format; what the
            adapter `stepwise` is to be good at.
        "modern prose": plain paragraphs on everyday subjects; what an adapter may harm.
    """
    return {
        "scripture": held_out_kjv(),
        "numbered steps": [each.prompt + each.answer for each in held_out_examples(ANSWERS)],
        "modern prose": general_prose(),
    }
