"""The demo's texts as sets of passages to measure on, none of which an adapter was trained on."""

from __future__ import annotations

from labkit.demonstration.stepwise import held_out_examples, held_out_problems
from labkit.demonstration.texts import general_prose, held_out_kjv
from labkit.inference.prompts import PLAIN
from labkit.probing.texts import Passage, Texts

ANSWERS = 96


def demo_texts() -> dict[str, Texts]:
    """Passages to measure a merge of the demo's on, in named sets.

    No adapter of the demo was trained on any of them.

    Returns:
        "scripture": books of the King James Bible, in passages of six verses; what the adapter
            `kjv` is to be good at. Documents are chapters.
        "numbered steps": questions, and their answers in steps; what the adapter `stepwise` is to
            be good at. Only the answers count. The questions stand in the Alpaca format already.
            Documents are kinds of question, every second question of a kind never trained on.
        "modern prose": plain paragraphs on everyday subjects; what an adapter may harm. Documents
            are the pieces they are from.
    """
    problems, examples = held_out_problems(ANSWERS), held_out_examples(ANSWERS)
    answers = [
        Passage(example.answer, example.prompt, problem.kind, PLAIN)
        for problem, example in zip(problems, examples, strict=True)
    ]
    return {
        "scripture": Texts("scripture", held_out_kjv()),
        "numbered steps": Texts("numbered steps", answers),
        "modern prose": Texts("modern prose", general_prose()),
    }
