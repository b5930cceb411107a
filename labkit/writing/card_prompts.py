"""The prompt formats that a merged model's card describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import shown
from labkit.models.prompt_formats import CHAT, FORMATS
from labkit.writing.vocabulary_files import content_of

if TYPE_CHECKING:
    from pathlib import Path

    from labkit.merging.recipe import Recipe


def formats(recipe: Recipe, files: dict[str, bytes | Path]) -> tuple[str, ...]:
    """Choose the formats: those that the recipe says; else what tokenizer and names suggest.

    Args:
        recipe: the recipe.
        files: the merged model's small files, by name.
    """
    if recipe.card.prompts is not None:
        return recipe.card.prompts
    names = [source.name.lower() for source in recipe.sources]
    found = [
        key
        for key, each in FORMATS.items()
        if any(part in name for part in each.name_parts for name in names)
    ]
    return (*found, CHAT) if has_chat_template(files) else tuple(found)


def has_chat_template(files: dict[str, bytes | Path]) -> bool:
    """Whether the tokenizer brings a template for conversations."""
    if "chat_template.jinja" in files or "chat_template.json" in files:
        return True
    return bool(content_of(files.get("tokenizer_config.json")).get("chat_template"))


def snippet(name: str, prompts: tuple[str, ...]) -> str:
    """Python that loads the model and lets it write, with the first format that applies."""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {shown(name)!r}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")',
        "",
    ]
    if CHAT in prompts:
        lines += [
            'messages = [{"role": "user", "content": "Why is the sky blue?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        prompt = FORMATS[prompts[0]].example if prompts else "Once upon a time"
        lines += [
            f"prompt = {prompt!r}",
            'inputs = tokenizer(prompt, return_tensors="pt")',
        ]
    return "\n".join(
        [
            *lines,
            "output = model.generate(**inputs, max_new_tokens=64)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))',
        ]
    )
