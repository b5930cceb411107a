"""The formats of prompts: plain, the model's own chat template, Alpaca, Metharme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.inference.chat_templates import rendered
from labkit.models.prompt_formats import FORMATS

PLAIN, CHAT = "plain", "chat template"
TEMPLATES = {each.heading: each.template for each in FORMATS.values()}
"""What the user chooses by -> the text around a prompt, with `{prompt}` in it."""


def formats(tokenizer: Any) -> list[str]:
    """The formats that can be used with a tokenizer; that of a base often has no chat template."""
    chat = [CHAT] if getattr(tokenizer, "chat_template", None) else []
    return [PLAIN, *chat, *TEMPLATES]


def formatted(prompt: str, kind: str, tokenizer: Any, turns: Sequence[tuple[str, str]] = ()) -> str:
    """Put a prompt into a format.

    Args:
        prompt: what the user says.
        kind: the format.
        tokenizer: transformers' tokenizer.
        turns: what the user and the model said before, in turns; for the chat template alone.

    Raises:
        LabkitError: an unknown format, turns in one that has none, or a chat template that the
            tokenizer does not have or that cannot be used.
    """
    if turns and kind != CHAT:
        raise LabkitError(f"the prompt format {kind!r} has no turns; the chat template has")
    if kind == PLAIN:
        return prompt
    if kind in TEMPLATES:
        return TEMPLATES[kind].format(prompt=prompt)
    if kind not in formats(tokenizer):
        raise LabkitError(
            f"no prompt format {shown(kind)!r} for this model; there are "
            f"{', '.join(formats(tokenizer))}"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them is the usual one
        raise LabkitError(f"no chat template to choose for this model: {shown(error)}") from error
    text = rendered(template, prompt, tokenizer.special_tokens_map, turns)
    # Templates write the start token, and so does the tokenizer; once is what the model knows.
    start = tokenizer.bos_token
    if start and tokenizer.bos_token_id in tokenizer("").input_ids:
        text = text.removeprefix(start)
    return text
