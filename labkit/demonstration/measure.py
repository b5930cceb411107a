"""Measures the demo's two adapters: `python -m labkit.demonstration.measure [--write]`.

Mean negative log-likelihood in nats per token on held-out text, in float32, under several layer
weights; then greedy answers under three of them. `--write` puts both into this folder's README.md.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit.demonstration.base import adapter_folders, base_folder
from labkit.demonstration.stepwise import held_out_examples, prompt
from labkit.demonstration.texts import Example, general_prose, held_out_kjv
from labkit.demonstration.train import IGNORED, answer_loss, tokens_and_labels
from labkit.probing.texts import Passage

README = Path(__file__).parent / "README.md"
MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")
ROWS = 4

PROMPTS = {
    "kjv": (
        "Why is the sky blue?",
        "What is a computer?",
        "How do I make a cup of tea?",
        "Tell me a story about a dog that lost its home.",
        "What should I do when I am tired?",
        "Tell me about a farmer who had two sons.",
    ),
    "stepwise": (
        "A baker makes 6 trays of 8 rolls and sells 30 rolls. How many rolls are left?",
        "Mia reads 15 pages a day. How many pages does she read in a week?",
        "Which is heavier, 3 kilograms or 2500 grams?",
        "A coat costs 80 dollars. In the sale it is 25% cheaper. What does it cost now?",
        "Ben has 14 stamps. Lily has twice as many. How many do they have together?",
        "It is Tuesday. The parcel arrives in 10 days. On which day does it arrive?",
    ),
}


def layer_weights(layers: int) -> dict[str, list[float]]:
    """The gradients that are measured, by name: a weight for each layer."""
    half = layers // 2
    return {
        "1": [1.0] * layers,
        "0.5": [0.5] * layers,
        "early half": [1.0] * half + [0.0] * (layers - half),
        "late half": [0.0] * half + [1.0] * (layers - half),
    }


def weigh(model: Any, adapter: str, weights: Sequence[float]) -> None:
    """Makes `adapter` the active one, its change to layer `l` scaled by `weights[l]`."""
    model.set_adapter(adapter)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            found = re.search(r"\.layers\.(\d+)\.", name)
            assert found, f"{name}: not in a layer"
            module.set_scale(adapter, weights[int(found.group(1))])


def load() -> tuple[Any, Any]:
    """The base in float32 with both adapters on it, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    base = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32)
    places = iter(adapter_folders().items())
    first, folder = next(places)
    model = PeftModel.from_pretrained(base, folder, adapter_name=first)
    for name, folder in places:
        model.load_adapter(folder, adapter_name=name)
    return model.eval(), tokenizer


def domains(pieces: int) -> dict[str, list[Example]]:
    """Held-out text of each domain, in pieces as long as those that were trained on.

    Evenly spread over what there is; of stepwise, whose gain is large, 24 answers are enough.
    """
    return {
        "kjv": [Example("", one.text) for one in _spread(held_out_kjv(), pieces)],
        "stepwise": held_out_examples(min(pieces, 24)),
        "general": [Example("", one.text) for one in _spread(general_prose(), pieces)],
    }


def _spread(passages: Sequence[Passage], count: int) -> list[Passage]:
    """`count` of the passages, at even distances; all of them where there are fewer."""
    count = min(count, len(passages))
    return [passages[place * len(passages) // count] for place in range(count)]


@torch.inference_mode()
def nats_per_token(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """The mean negative log-likelihood of the examples' answers."""
    total, count = 0.0, 0
    pairs = sorted((tokens_and_labels(one, tokenizer) for one in examples), key=_length)
    for start in range(0, len(pairs), ROWS):
        rows = pairs[start : start + ROWS]
        width = _length(rows[-1])
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows])
        tokens = int((labels[:, 1:] != IGNORED).sum())
        total += answer_loss(model, ids, mask, labels).item() * tokens
        count += tokens
    return total / count


@torch.inference_mode()
def answer(
    model: Any, tokenizer: Any, questions: Sequence[str], chat: bool, tokens: int = 64
) -> list[str]:
    """The greedy answers: through the chat template, or to the Alpaca format."""
    texts = [prompt(question) for question in questions]
    if chat:
        asked = [[{"role": "user", "content": question}] for question in questions]
        texts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    made = model.generate(**given, do_sample=False, max_new_tokens=tokens)
    said = tokenizer.batch_decode(made[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def table(model: Any, tokenizer: Any, pieces: int) -> Iterator[str]:
    """The measured numbers as lines of a Markdown table, each as soon as it is there."""
    texts = domains(pieces)
    yield f"| adapter | layer weights | {' | '.join(texts)} |"
    yield "|---|---|---|---|---|"
    cases: list[tuple[str, str, list[float] | None]] = [("base alone", "", None)]
    gradients = layer_weights(model.config.num_hidden_layers)
    for adapter in adapter_folders():
        cases += [(adapter, name, weights) for name, weights in gradients.items()]
    alone: list[float] = []
    for adapter, name, weights in cases:
        if weights is not None:
            weigh(model, adapter, weights)
        with model.disable_adapter() if weights is None else nullcontext():
            found = [nats_per_token(model, tokenizer, examples) for examples in texts.values()]
        alone = alone or found
        cells = [
            f"{value:.3f}" + (f" ({value - base:+.3f})" if weights is not None else "")
            for value, base in zip(found, alone, strict=True)
        ]
        yield f"| {adapter} | {name} | {' | '.join(cells)} |"


def answers(model: Any, tokenizer: Any) -> Iterator[str]:
    """Greedy answers of the base, the late half and the whole adapter, as lines of Markdown."""
    gradients = layer_weights(model.config.num_hidden_layers)
    for adapter, questions in PROMPTS.items():
        said = {}
        for name in ("base", "late half", "1"):
            weigh(model, adapter, gradients.get(name, gradients["1"]))
            with model.disable_adapter() if name == "base" else nullcontext():
                said[name] = answer(model, tokenizer, questions, chat=adapter == "kjv")
        yield f"\n### {adapter}\n"
        for place, question in enumerate(questions):
            yield f"**{question}**\n"
            for name, texts in said.items():
                lines = [line for line in texts[place].splitlines() if line]
                yield f"- {name}: " + " / ".join(lines)
            yield ""


def _length(pair: tuple[list[int], list[int]]) -> int:
    return len(pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=60, help="held-out pieces of each domain")
    parser.add_argument("--write", action="store_true", help="put the result into README.md")
    given = parser.parse_args()
    begun = time.monotonic()
    model, tokenizer = load()
    lines: list[str] = []

    def keep(made: Iterator[str]) -> None:
        for line in made:
            print(line, flush=True)
            lines.append(line)

    keep(table(model, tokenizer, given.pieces))
    keep(iter(["\n## Greedy answers, at most 64 tokens"]))
    keep(answers(model, tokenizer))
    print(f"{time.monotonic() - begun:.0f} s")
    if given.write:
        text = README.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        body = "\n".join(line.rstrip() for line in lines).strip()
        README.write_text(f"{before}{MARKS[0]}{body}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
