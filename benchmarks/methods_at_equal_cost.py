"""What methods gain over a plain sum of the same KL: the demo's two LoRAs, on held-out text.

Both LoRAs have the weight 1, in the late half of the layers or in all. Each method's merge is
written once, and measured at some strengths. Its NLL on scripture and on numbered steps is compared
with that of the sum whose KL to the base on modern prose is the same, passage by passage; between
the strengths at which the sum is measured, NLL and KL are polynomials.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import labkit as lk

# Sums of each passage, and draws by document; `lk.Evaluation` gives means of whole sets.
from labkit.probing.intervals import Bootstrap

# Likewise.
from labkit.probing.scores import Reader

METHODS = {
    "ties": "ties",
    "ties, density 0.5": {"ties": {"density": 0.5}},
    "dare": "dare",
    "della": "della",
}
STRENGTHS = {
    "late half": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    "all layers": (0, 0.2, 0.4, 0.6, 0.8, 1),
}
WORDS = 32
TARGETS, KEEP = ("scripture", "numbered steps"), "modern prose"


def openings(texts, passages):
    """The first words of some passages."""
    chosen = texts.take(passages)
    cut = [replace(one, text=" ".join(one.text.split()[:WORDS])) for one in chosen]
    return lk.Texts(texts.name, cut)


def measured(model, readers, strengths):
    """Of each merge and strength, what every passage has of NLL (targets) and KL (text to keep)."""
    layers = model.base.layers
    found = {}
    for name, some in strengths.items():
        for strength in some:
            weights = [strength if one.name == name else 0 for one in model.adapters]
            gradients = [lk.Gradient.constant(layers, weight) for weight in weights]
            terms = [
                lk.Term(one, gradient)
                for one, gradient in zip(model.adapters, gradients, strict=True)
            ]
            mix = model.mix(terms)
            found[name, strength] = {
                text: reader.kl_from_base(mix) if text == KEEP else reader.nll(mix)
                for text, reader in readers.items()
            }
    return found


def rows(found, readers, strengths):
    """A row for each merge and strength beside the sum of the same KL."""
    knots = strengths["sum"]
    of_sum = [found["sum", strength] for strength in knots]
    tokens = {text: reader.counts for text, reader in readers.items()}
    fine = np.linspace(0, knots[-1], 2001)
    degree = len(knots) - 1
    kl_of_sum = [one[KEEP].sum() / tokens[KEEP].sum() for one in of_sum]
    curve = np.polyval(np.polyfit(knots, kl_of_sum, degree), fine)
    for (name, strength), mine in found.items():
        if name == "sum":
            continue
        kl = mine[KEEP].sum() / tokens[KEEP].sum()
        same = np.interp(kl, curve, fine, right=np.nan)
        for text in TARGETS:
            documents = [passage.document for passage in readers[text].texts]
            at = np.polyval(np.polyfit(knots, [one[text] for one in of_sum], degree), same)
            gain = Bootstrap(documents, tokens[text]).estimate(mine[text] - at)
            yield name, strength, kl, same, text, gain


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=32, help="of each text")
    parser.add_argument("--layers", choices=STRENGTHS, default="late half")
    given = parser.parse_args()
    base, loras = lk.demo()
    step = lk.Gradient.step(base.layers, at=base.layers // 2)
    shape = step if given.layers == "late half" else lk.Gradient.constant(base.layers)
    terms = [lk.Term(loras[name], shape) for name in ("kjv", "stepwise")]
    with tempfile.TemporaryDirectory() as folder:
        lk.combine(terms, Path(folder, "sum"))
        for name, method in METHODS.items():
            recipe = lk.Recipe(base, terms, method=method)
            lk.plan(recipe).write(Path(folder, name), progress=False)
        sources = [Path(folder, name) for name in ("sum", *METHODS)]
        model = lk.live(base, *sources, rest=0)
        sets = lk.demo_texts()
        readers = {
            name: Reader(model, openings(sets[name], given.passages)) for name in (*TARGETS, KEEP)
        }
        strengths = {"sum": STRENGTHS[given.layers]} | dict.fromkeys(METHODS, (0.5, 1.0))
        found = measured(model, readers, strengths)
        print("| method | strength | KL | sum | text | NLL less the sum's |")
        print("|---|---|---|---|---|---|")
        for name, strength, kl, same, text, gain in rows(found, readers, strengths):
            said = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            print(
                f"| {name} | {strength:g} | {kl:.3f} | {same:.2f} | {text} | {said} |", flush=True
            )


if __name__ == "__main__":
    main()
