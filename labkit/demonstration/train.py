"""Trains the demo's two adapters: `python -m labkit.demonstration.train kjv|stepwise`.

Plain LoRA by PEFT on all seven linear modules of every layer, rank 8, alpha 16. The base stays as
it is; the loss is the mean cross-entropy of the answers' tokens, never of the questions'. The
commands that made the demo's own adapters are in this folder's README.md.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit.demonstration.base import HUB_ID, adapter_folders, base_folder
from labkit.demonstration.stepwise import training_examples
from labkit.demonstration.texts import Example, kjv_examples

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = 8  # examples in a step
LENGTH = 128  # tokens of an example, at most
IGNORED = -100  # the label of a token without loss


def examples(name: str, seed: int) -> Iterator[Example]:
    """The training examples of an adapter, without end and the same for the same seed."""
    return kjv_examples(seed) if name == "kjv" else training_examples(seed)


def tokens_and_labels(
    example: Example, tokenizer: Any, length: int = LENGTH
) -> tuple[list[int], list[int]]:
    """The token ids of an example, at most `length`, and its labels: IGNORED in the prompt."""
    prompt, answer = example.prompt, example.answer
    if example.chat:
        question = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt).input_ids if prompt else []
    after = tokenizer(answer).input_ids
    if prompt:  # An answer ends; a passage of plain text only stops here.
        after = [*after, tokenizer.eos_token_id]
    ids = (before + after)[:length]
    return ids, ([IGNORED] * len(before) + after)[:length]


def batches(
    name: str, seed: int, tokenizer: Any, device: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids, attention mask and labels of each step: int64, ROWS × tokens, padded right."""
    endless = examples(name, seed)
    while True:
        pairs = [tokens_and_labels(next(endless), tokenizer) for _ in range(ROWS)]
        width = max(len(ids) for ids, _ in pairs)
        fill = tokenizer.pad_token_id
        ids = torch.tensor([ids + [fill] * (width - len(ids)) for ids, _ in pairs])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in pairs])
        labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in pairs])
        yield ids.to(device), mask.to(device), labels.to(device)


def answer_loss(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, in nats, of the tokens that have a label.

    The head is applied at those positions only: with 49 152 tokens to choose from it is a fifth
    of a step's work.
    """
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    learned = wanted != IGNORED
    return torch.nn.functional.cross_entropy(causal.lm_head(hidden[learned]), wanted[learned])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Up to `peak` over the first 5 % of the steps, then down to a tenth of it along a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    name: str, steps: int, peak: float, device: str, out: Path, seed: int, start: Path | None
) -> None:
    """Trains the adapter `name`, or goes on from `start`; writes it, as bfloat16, into `out`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    base = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32)
    if start:
        model = PeftModel.from_pretrained(base, start, is_trainable=True)
    else:
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    model.to(device).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=peak, weight_decay=0.0)
    begun, seen = time.monotonic(), 0
    for step, batch in enumerate(itertools.islice(batches(name, seed, tokenizer, device), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = answer_loss(model, *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int(batch[1].sum())
        if step % 5 == 0 or step == steps - 1:
            elapsed = time.monotonic() - begun
            print(f"{name} step {step:4d} loss {loss.item():.3f} tokens {seen} {elapsed:.0f} s")
        if step % 50 == 49:
            write(model, out)
    write(model, out)


def write(model: Any, out: Path) -> None:
    """Writes the adapter's two files into `out`: bfloat16, and the base by its public name."""
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = HUB_ID
        settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written by hand
    file = out / "adapter_model.safetensors"
    tensors = {key: value.to(torch.bfloat16) for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["kjv", "stepwise"])
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=2026, help="of the start and of the examples")
    parser.add_argument("--start", type=Path, help="go on from the adapter in this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, help="the adapter's folder; else its place in the demo")
    given = parser.parse_args()
    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = given.out or adapter_folders()[given.name]
    steps, peak = given.steps, given.learning_rate
    train(given.name, steps, peak, device, out, given.seed, given.start)


if __name__ == "__main__":
    main()
