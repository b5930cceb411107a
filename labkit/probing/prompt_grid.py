"""Many prompts at many gradients: what each answers, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.small_files import json_lines, read_text
from labkit.inference.live_model import LiveModel, Mix, whole_answers
from labkit.inference.prompts import PLAIN, formatted
from labkit.probing.evaluation import BASE, FULL, Row, mix_of, name_taken

if TYPE_CHECKING:
    import pandas as pd

LARGEST_FILE = 10_000_000
ROWS = 8
"""Gradients that answer side by side."""
KL_TOKENS = 128
"""Tokens of an answer, at most, along which its KL to the base is measured."""


def answers(
    model: LiveModel,
    prompts: Sequence[str] | str | Path,
    gradients: Mapping[str, Row],
    tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    format: str = PLAIN,
) -> pd.DataFrame:
    """Let gradients answer prompts: one row for each prompt and gradient.

    Base and full LoRA are always among the rows. All gradients answer a prompt with the same dice.

    Args:
        model: the live model.
        prompts: a list, or a file: a `.txt` with a prompt a line, or a `.jsonl` with an object
            that has a `prompt`, or a text, a line.
        gradients: name -> gradient for every adapter of the model, or a recipe, as in `evaluate`.
            What is merged in memory is merged anew for each prompt.
        tokens: the longest answer.
        temperature: 0 always takes the most probable token.
        seed: of the random numbers.
        format: the prompts' format: "plain", "chat template", "Alpaca" or "Metharme".

    Returns:
        `prompt`, `gradient` (its name), `answer`, `tokens` (that it has), `kl`: the mean of
        KL(merge ‖ base) of the next token along the first 128 tokens of the answer, in nats.

    Raises:
        LabkitError: no prompts, a file that cannot be read, a name that stands for one of the rows
            that are always there, a gradient of the wrong length, or an unknown format; or as
            `LiveModel.mix`.
    """
    import pandas as pd

    listed = prompts_of(prompts)
    mixes = {BASE: model.mix(0.0), FULL: model.mix(1.0)}
    for name, given in gradients.items():
        if name in mixes:
            raise name_taken(name)
        mixes[name] = mix_of(model, given)
    rows = answer_each(model, listed, mixes, tokens, temperature, seed, format)
    columns = ["prompt", "gradient", "answer", "tokens", "kl"]
    return pd.DataFrame(list(rows), columns=columns)


def answer_each(
    model: LiveModel,
    prompts: Sequence[str],
    mixes: Mapping[str, Mix],
    tokens: int,
    temperature: float,
    seed: int,
    format: str,
) -> Iterator[dict[str, Any]]:
    """The rows of `answers`, one after the other; those of a prompt come together."""
    named = list(mixes.items())
    for prompt in prompts:
        asked = formatted(prompt, format, model.tokenizer)
        for start in range(0, len(named), ROWS):
            some = named[start : start + ROWS]
            steps = model.stream(asked, [mix for _, mix in some], tokens, temperature, seed)
            found = whole_answers(steps, len(some))
            for (name, mix), answer in zip(some, found, strict=True):
                yield {
                    "prompt": prompt,
                    "gradient": name,
                    "answer": str(model.tokenizer.decode(answer, skip_special_tokens=True)),
                    "tokens": len(answer),
                    "kl": _kl_along(model, asked, answer[:KL_TOKENS], mix),
                }


def prompts_of(given: Sequence[str] | str | Path) -> list[str]:
    """Prompts as a list, or out of a file.

    Raises:
        LabkitError: none, one that is no text or empty, or a file that cannot be read.
    """
    if not isinstance(given, (str, Path)):
        listed, where = list(given), "the list of prompts"
    else:
        path = user_path(given)
        where = shown(path)
        text = read_text(path, "file of prompts", LARGEST_FILE)
        if path.suffix == ".jsonl":
            listed = [
                _in_line(entry, line, f"{where}, line {number}")
                for number, line, entry in json_lines(text, path)
            ]
        elif path.suffix == ".txt":
            listed = [line for line in text.splitlines() if line.strip()]
        else:
            raise LabkitError(f"{where} is no file of prompts; expected .txt or .jsonl")
    for number, prompt in enumerate(listed):
        if not isinstance(prompt, str) or not prompt.strip():
            raise LabkitError(f"prompt {number} of {where} is {shown(repr(prompt))}; write a text")
    if not listed:
        raise LabkitError(f"{where} holds no prompt; write at least one, one a line")
    return listed


def _in_line(entry: Any, line: str, where: str) -> str:
    found = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(found, str):
        raise LabkitError(
            f"{where}: expected a text, or an object with a prompt, found {shown(line)}"
        )
    return found


def _kl_along(model: LiveModel, prompt: str, answer: Sequence[int], mix: Mix) -> float:
    """The mean KL(merge ‖ base) of the next token, where the answer's tokens were chosen."""
    if not answer:
        return float("nan")
    asked = model.tokens(prompt)
    # The last token predicts what is not in the answer.
    whole = torch.cat([asked, torch.tensor([list(answer[:-1])], dtype=asked.dtype)], dim=1)
    logits = model.forward(whole.expand(2, -1), [mix, model.mix(0.0)]).logits
    merged, base = logits[:, asked.shape[1] - 1 :].double().log_softmax(-1)
    return max(0.0, float((merged.exp() * (merged - base)).sum(-1).mean()))
