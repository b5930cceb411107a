"""The prompt formats that models are trained on: one table for the lab and for the model card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt is written for models that are trained on a format.

    Attributes:
        heading: its name as people read it.
        template: one turn, with `{prompt}` where the prompt goes.
        example: how a model card shows the format.
        name_parts: a model whose name holds one of these, in small letters, is taken to be trained
            on the format.
    """

    heading: str
    template: str
    example: str
    name_parts: tuple[str, ...]


FORMATS = {
    "alpaca": PromptFormat(
        heading="Alpaca",
        template="### Instruction:\n{prompt}\n### Response:\n",
        example="### Instruction:\nYour instruction or question here.\n\n### Response:\n",
        name_parts=("alpaca", "supercot"),
    ),
    "metharme": PromptFormat(
        heading="Metharme",
        template="<|user|>{prompt}<|model|>",
        example="<|system|>This is a text adventure game. Describe the scenario to the user and "
        "give him three options to pick from on each turn.<|user|>Start!<|model|>",
        name_parts=("metharme", "pygmalion-2", "mythalion"),
    ),
}
"""The name that a recipe's card uses -> the format."""
CHAT = "chat"
"""What a recipe's card calls the chat template that a tokenizer brings."""
