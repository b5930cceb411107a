"""Measures gradients of the demo for the book's page "Try it here", and writes measured.json.

    OMP_NUM_THREADS=1 uv run python docs/book/measure.py

The page has no kernel: what it says of a gradient is what this script measured of it. Texts are the
demo's, held out from the search of the fitted lists; NLL and KL are in nats a token.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import labkit as lk

OUT = Path(__file__).with_name("measured.json")
PASSAGES, WORDS = 10, 40
DTYPE = "bfloat16"
QUESTION = "Tell me a story about a dog that lost its home."
TOKENS = 40
STRENGTHS = (0.3, 1.0, 3.0)
BLOCKS = ("INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")


def shapes(layers: int) -> dict[str, lk.Gradient]:
    """The gradients that people try first, by a name that says what they are."""
    tenths = [round(tenth / 10, 1) for tenth in range(1, 10)]
    found = {f"{share:g} everywhere": lk.Gradient.constant(layers, share) for share in tenths}
    for at in range(3, layers, 3):
        late = lk.Gradient.step(layers, at)
        half = at == layers // 2
        found["late half" if half else f"from layer {at} on"] = late
        found["early half" if half else f"up to layer {at - 1}"] = 1 - late
    for share in (0.3, 0.5, 0.7):
        late = lk.Gradient.step(layers, layers // 2)
        found[f"late half at {share:g}"] = share * late
        found[f"early half at {share:g}"] = share * (1 - late)
    up = lk.Gradient.ramp(layers, 0, layers - 1)
    found |= {"ramp up": up, "ramp down": up.reversed()}
    for start in (0, 5, 10, 15, 19):
        ramp = lk.Gradient.ramp(layers, start, start + 10)
        found[f"ramp up, layers {start} to {start + 10}"] = ramp
        found[f"ramp down, layers {start} to {start + 10}"] = (1 - ramp).rounded()
    for first in range(0, layers, 6):
        found[f"layers {first} to {first + 5}"] = lk.Gradient(
            float(first <= layer < first + 6) for layer in range(layers)
        )
    for first in range(0, layers, 10):
        found[f"all but layers {first} to {first + 9}"] = lk.Gradient(
            float(not first <= layer < first + 10) for layer in range(layers)
        )
    named = ("bell", "valley", "half and half (SuperCOT)")
    found |= {name: lk.preset(name, layers) for name in named}
    found["half and half, turned round"] = lk.preset(named[2], layers).reversed()
    found |= {f"block preset {name}": lk.preset(name, layers) for name in BLOCKS}
    found["every second layer"] = lk.Gradient(float(layer % 2) for layer in range(layers))
    return found


def without_doubles(gradients: dict[str, lk.Gradient]) -> dict[str, lk.Gradient]:
    """The first name of each gradient; later ones say the same."""
    first: dict[lk.Gradient, str] = {}
    for name, gradient in gradients.items():
        first.setdefault(gradient, name)
    return {name: gradient for gradient, name in first.items()}


def cut(texts: lk.Texts) -> lk.Texts:
    """The beginnings of a few passages, from as many documents as there are."""
    some = texts.take(PASSAGES)
    beginnings = [" ".join(one.text.split()[:WORDS]) for one in some]
    return lk.Texts(texts.name, beginnings, [one.document for one in some])


def interval(row, column: str) -> list[float]:
    """A column of `lk.evaluate` with its interval."""
    ends = [f"{column}_low", f"{column}_high"] if column == "from_base" else ["low", "high"]
    return [round(float(row[name]), 4) for name in (column, *ends)]


def said(what: str) -> None:
    print(f"{what}: {time.process_time():.0f} s of processor time so far", flush=True)


def main() -> None:
    base, loras = lk.demo()
    model = lk.live(base, loras["kjv"], dtype=DTYPE)
    sets = lk.demo_texts()
    (target, target_held), (keep, keep_held) = (
        sets[name].split() for name in ("scripture", "modern prose")
    )
    measured = cut(target_held), cut(keep_held)
    gradients = without_doubles(shapes(base.layers))
    search = {"smooth": 0.1, "evaluations": 6, "passages": 8, "tokens": 48, "progress": False}
    front = lk.pareto(model, target, keep, STRENGTHS, held_out=measured, **search)
    said("fitted")
    for strength in STRENGTHS:
        gradients[f"fitted, strength {strength:g}"] = front.gradients[strength].rounded()
    nll = lk.evaluate(model, gradients, measured[0], ["nll"]).set_index("gradient")
    said("NLL")
    kl = lk.evaluate(model, gradients, measured[1], ["kl"]).set_index("gradient")
    said("KL")
    ends = {"base": 0.0, "full LoRA": 1.0}
    gradients = {
        name: lk.Gradient.constant(base.layers, weight) for name, weight in ends.items()
    } | gradients
    chat = [{"role": "user", "content": QUESTION}]
    prompt = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    points = []
    for name, gradient in gradients.items():
        model.weights = gradient
        points.append(
            {
                "name": name,
                "weights": gradient.runs(),
                "nll": interval(nll.loc[name], "estimate"),
                "from_base": interval(nll.loc[name], "from_base"),
                "kl": interval(kl.loc[name], "estimate"),
                "answer": "".join(model.generate(prompt, TOKENS)).strip(),
            }
        )
    seconds = time.process_time()
    about = {
        "command": "OMP_NUM_THREADS=1 uv run python docs/book/measure.py",
        "labkit": lk.__version__,
        "base": base.name,
        "lora": loras["kjv"].name,
        "layers": base.layers,
        "norms": [
            round(float(norm), 6)
            for norm in lk.totals(lk.survey(base, loras["kjv"], progress=False))["relative_norm"]
        ],
        "dtype": DTYPE,
        "passages": PASSAGES,
        "words": WORDS,
        "tokens": {"scripture": int(nll.tokens.iloc[0]), "modern prose": int(kl.tokens.iloc[0])},
        "question": QUESTION,
        "answer_tokens": TOKENS,
        "fits": {f"fitted, strength {key:g}": said for key, said in front.sentences.items()},
        "processor_seconds": round(seconds),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    text = ",\n    ".join(json.dumps(point, ensure_ascii=False) for point in points)
    head = json.dumps(about, ensure_ascii=False, indent=2)
    OUT.write_text(
        f'{{\n  "about": {head},\n  "points": [\n    {text}\n  ]\n}}\n', encoding="utf-8"
    )
    print(f"{OUT}: {len(points)} gradients in {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
