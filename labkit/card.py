"""The model card of a merge, in the form that published gradient merges have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from labkit.adapter import Adapter
from labkit.checkpoint import Checkpoint
from labkit.errors import shown

if TYPE_CHECKING:
    from labkit.plan import Plan
    from labkit.receipt import Receipt

ALPACA = """### Instruction:
Your instruction or question here.

### Response:
"""


def model_card(plan: Plan, receipt: Receipt) -> str:
    """Write the README.md of a merged model: front matter, weights, picture, usage, recipe."""
    base = plan.base
    terms = plan.recipe.terms
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "lora", "gradient-merge", "labkit"],
        "base_model": [source.repository for source in plan.recipe.sources if source.repository],
        "base_model_relation": "merge",
    }
    if not front["base_model"]:
        del front["base_model"], front["base_model_relation"]
    title = _text(receipt.folder.name)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "# license: fill in the licence that the base and the adapters allow",
        "---",
        "",
        f"# {title}",
        "",
        "A gradient merge of",
        *(f"- {_linked(source)}" for source in plan.recipe.sources),
        "",
        "made with labkit: every decoder layer of the base model gets its own share of the LoRA.",
        "",
    ]
    for term in terms:
        lines += [
            f"## Layer weights of {_text(term.adapter.name)}",
            "",
            f"One weight for each of the {base.layers} layers, mean weight "
            f"{term.weights.mean:.2f}:",
            "",
            "```",
            str(term.weights),
            "```",
            "",
        ]
        for pattern, gradient in term.weights_for.items():
            lines += [
                f"Modules `{_code(pattern)}`, mean weight {gradient.mean:.2f}:",
                "",
                "```",
                str(gradient),
                "```",
                "",
            ]
    first = terms[0]
    lines += [
        f"![The layer weights as bars, layer 0 at the left: {first.weights.runs()}](gradient.png)",
        "",
        f"Light blue is {_text(base.name)}, light green is {_text(first.adapter.name)}.",
        "",
        "## Usage",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {receipt.folder.name!r}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
        "```",
        "",
        "The prompt formats of the base model and of the LoRA should work, Alpaca's for instance:",
        "",
        "```",
        ALPACA.rstrip(),
        "```",
        "",
        "## How it was made",
        "",
        f"{len(receipt.tensors)} tensors were changed, and {receipt.untouched} keep the base's "
        "bytes. `recipe.yaml` says what was merged, with the SHA-256 of what was read where it was "
        "computed; `receipt.json` lists every changed tensor. With the same inputs, "
        "`labkit merge --recipe recipe.yaml --out merged` makes the same files again, to the byte, "
        "and `labkit verify` proves it.",
        "",
        "## Limitations",
        "",
        "The merge shows the biases of the base model and of the data the LoRA was trained on. It "
        "is experimental: nobody trained the combination, so try it before relying on it.",
        "",
    ]
    return "\n".join(lines)


def _linked(source: Checkpoint | Adapter) -> str:
    name = _text(source.name)
    if not source.repository:
        return name
    return f"[{name}](https://huggingface.co/{source.repository})"


def _text(name: str) -> str:
    """A name from a file, as text in Markdown that is nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$&])", r"\\\1", shown(name))


def _code(name: str) -> str:
    return shown(name).replace("`", "'")
