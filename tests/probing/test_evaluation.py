"""Gradients side by side: base, full LoRA and the best constant are always there."""

import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.probing.texts import Texts

TARGET = Texts("target", ["In the beginning was", "And the earth was void", "Let there be light"])
KEEP = Texts("keep", ["The train leaves at nine", "We should be early"])


def test_rows_that_are_always_there(loud):
    table = lk.evaluate(loud, {"mine": "0,0.5,1,-0.5"}, [TARGET, KEEP])
    constants = {value: loud.nll_of([p.text for p in TARGET], [loud.mix(value)])[0]
                 for value in (0.25, 0.5, 0.75)}  # fmt: skip
    best = f"constant {min(constants, key=constants.get):g}"
    assert table.attrs["best_constant"] == best
    for text in ("target", "keep"):
        for metric in ("nll", "kl"):
            rows = table[(table["text"] == text) & (table["metric"] == metric)]
            assert list(rows["gradient"]) == ["base", "full LoRA", "mine", best]
    rows = table[(table["metric"] == "nll") & (table["text"] == "target")].set_index("gradient")
    texts = [passage.text for passage in TARGET]
    mine = loud.mix(lk.Gradient.parse("0,0.5,1,-0.5"))
    expected = loud.nll_of(texts, [loud.mix(0.0), loud.mix(1.0), mine])
    for name, value in zip(("base", "full LoRA", "mine"), expected, strict=True):
        assert rows["estimate"][name] == pytest.approx(value, rel=1e-4)
        assert rows["from_base"][name] == pytest.approx(value - expected[0], rel=1e-3, abs=1e-5)
    assert rows["from_base_low"]["base"] == rows["from_base_high"]["base"] == 0
    assert rows["mean_weight"]["mine"] == pytest.approx(0.25)
    kl = table[table["metric"] == "kl"].set_index(["gradient", "text"])["estimate"]
    assert kl["base", "target"] == pytest.approx(0, abs=1e-6)
    assert kl["full LoRA", "target"] > kl["mine", "target"] > 0


def test_what_cannot_be_evaluated(loud):
    with pytest.raises(
        LabkitError, match="the metric 'bleu' is unknown; known are nll, kl, exact_match"
    ):
        lk.evaluate(loud, {}, TARGET, ["bleu"])
    for name in ("base", "full LoRA", "constant 0.3"):
        with pytest.raises(LabkitError, match="is that of a row which is always there"):
            lk.evaluate(loud, {name: "1x4"}, TARGET)
    with pytest.raises(LabkitError, match="2 weights for 4 layers"):
        lk.evaluate(loud, {"short": "1,1"}, TARGET)
