"""Gradients side by side: base, full LoRA and the best constant are always there."""

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.inference.merged_tensors import MergedTensor
from labkit.probing.intervals import expanded_tail
from labkit.probing.texts import Texts
from tests.probing.written import merged

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


def test_compared_with_one_row_passage_by_passage(loud):
    gradients = {"mine": "0,0.5,1,-0.5", "yours": "1,1,0,0"}
    plain = lk.evaluate(loud, gradients, [TARGET, KEEP])
    table = lk.evaluate(loud, gradients, [TARGET, KEEP], against="yours")
    shared = [name for name in plain if not name.startswith(("difference", "verdict"))]
    assert table[shared].equals(plain[shared])
    for end in ("", "_low", "_high"):  # beside the base, unless said otherwise
        assert plain[f"difference{end}"].equals(plain[f"from_base{end}"])
    assert (plain.attrs["against"], table.attrs["against"]) == ("base", "yours")
    for (_, metric), rows in table.groupby(["text", "metric"]):
        estimates = rows.set_index("gradient")["estimate"]
        found = rows.set_index("gradient")["difference"]
        assert list(found) == pytest.approx(list(estimates - estimates["yours"]), abs=1e-6), metric
    for row in table.itertuples():
        expected = "lower" if row.difference_high < 0 else "higher"
        if row.difference_low <= 0 <= row.difference_high:
            expected = "not told apart"
        assert row.verdict == ("" if row.gradient == "yours" else expected)
    assert set(table["verdict"]) >= {"lower", "higher"}


def test_the_difference_is_drawn_by_document(loud):
    """Against the plain arithmetic of the bootstrap, on the numbers of each passage."""
    table = lk.evaluate(loud, {"mine": "0,0.5,1,-0.5"}, TARGET, ["nll"], against="best constant")
    best = table.attrs["best_constant"]
    assert table.attrs["against"] == best
    alone = [
        lk.evaluate(loud, {"mine": "0,0.5,1,-0.5", "c": f"{best.split()[1]}x4"}, Texts("one", [p]),
                    ["nll"], against="c").set_index("gradient")
        for p in TARGET
    ]  # fmt: skip
    sums = np.array([(one["difference"] * one["tokens"])["mine"] for one in alone])
    counts = np.array([one["tokens"]["mine"] for one in alone])
    drawn = np.random.default_rng(1).integers(0, 3, (20000, 3))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = expanded_tail(3)
    row = table.set_index("gradient").loc["mine"]
    assert row["difference"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-3)
    low, high = np.quantile(means, [tail, 1 - tail])
    assert [row["difference_low"], row["difference_high"]] == pytest.approx(
        [low, high], abs=0.05 * (high - low) + 1e-6
    )


def test_the_terms_of_a_recipe_with_weights_for_some_modules(loud):
    (lora,) = loud.adapters
    attention = [lk.Term(lora, "0x4", {"*.self_attn.*": "1x4"})]
    rows = lk.evaluate(loud, {"attention": attention}, TARGET, ["nll"]).set_index("gradient")
    texts = [passage.text for passage in TARGET]
    assert rows["estimate"]["attention"] == pytest.approx(
        loud.nll_of(texts, [loud.mix(attention)])[0], rel=1e-4
    )
    assert rows["estimate"]["attention"] != pytest.approx(rows["estimate"]["base"], rel=1e-3)
    assert 0 < rows["mean_weight"]["attention"] < 1


def test_recipes_are_measured_as_their_written_merges(loud, plain_models, tmp_path, monkeypatch):
    (lora,) = loud.adapters
    mine, other = "0,0.5,1,-0.5", "1,0,0.25,1"
    gradients = {"sum": mine}
    recipes = {
        "ties": lk.Recipe(loud.base, [lk.Term(lora, mine)], method="ties"),
        "twice": lk.plan(
            lk.Recipe(loud.base, [lk.Term(lora, mine), lk.Term(lora, other)], method="dare")
        ),
        "sum by recipe": lk.Recipe(loud.base, [lk.Term(lora, mine)]),
    }
    alone = lk.evaluate(loud, gradients, [TARGET, KEEP])
    put, merges = MergedTensor._put, []

    def counted(one, *rest):
        merges.append(one.tensor.name)
        put(one, *rest)

    monkeypatch.setattr(MergedTensor, "_put", counted)
    table = lk.evaluate(loud, gradients | recipes, [TARGET, KEEP])
    # Each tensor once for each of the two that are merged, whatever is measured of them.
    touched = [name for one in (recipes["ties"], recipes["twice"].recipe)
               for name in lk.plan(one).changes]  # fmt: skip
    assert sorted(merges) == sorted(touched)
    # What stands beside them is as ever: gradients, and the sum's own rows.
    rest = table[~table["gradient"].isin(recipes)].reset_index(drop=True)
    assert rest.equals(alone)
    keys = ["text", "metric"]
    by_name = {name: rows.set_index(keys) for name, rows in table.groupby("gradient")}
    numbers = ["estimate", "low", "high", "from_base", "mean_weight"]
    assert by_name["sum by recipe"][numbers].equals(by_name["sum"][numbers])
    assert by_name["ties"]["mean_weight"].iloc[0] == pytest.approx(0.25)
    assert by_name["twice"]["mean_weight"].iloc[0] == pytest.approx((0.25 + 0.5625) / 2)
    for name, recipe in (("ties", recipes["ties"]), ("twice", recipes["twice"].recipe)):
        model = merged(recipe, tmp_path / name)
        for texts in (TARGET, KEEP):
            nll = kl = count = 0.0
            for passage in texts:
                tokens = loud.tokens(passage.text)
                with torch.inference_mode():
                    base, found = (
                        one(tokens).logits[0, :-1].double().log_softmax(-1)
                        for one in (plain_models["base"], model)
                    )
                nll -= float(found.gather(1, tokens[0, 1:, None]).sum())
                kl += float((base.exp() * (base - found)).sum())
                count += len(found)
            rows = by_name[name]["estimate"]
            assert rows[texts.name, "nll"] == pytest.approx(nll / count, rel=1e-5)
            assert rows[texts.name, "kl"] == pytest.approx(kl / count, rel=1e-4)


def test_gradients_are_by_the_method_of_a_model_that_has_one(loud):
    terms = [lk.Term(loud.adapters[0], "1x4")]
    of_method = lk.live(lk.Recipe(loud.base, terms, method="ties"), device="cpu")
    assert of_method is loud
    table = lk.evaluate(of_method, {"g": "0,0.5,1,1", "t": terms}, TARGET, ["nll"])
    recipes = {
        "g": lk.Recipe(loud.base, [lk.Term(loud.adapters[0], "0,0.5,1,1")], method="ties"),
        "t": lk.Recipe(loud.base, terms, method="ties"),
    }
    plain = lk.live(loud.base, loud.adapters[0], device="cpu")
    assert table.equals(lk.evaluate(plain, recipes, TARGET, ["nll"]))
    rows = table.set_index("gradient")["estimate"]
    assert rows["t"] != rows["full LoRA"]  # which is a sum, as the constants are


def test_what_cannot_be_evaluated(loud):
    with pytest.raises(
        LabkitError, match="the metric 'bleu' is unknown; known are nll, kl, exact_match"
    ):
        lk.evaluate(loud, {}, TARGET, ["bleu"])
    for name in ("base", "full LoRA", "constant 0.3", "best constant"):
        with pytest.raises(LabkitError, match="is that of a row which is always there"):
            lk.evaluate(loud, {name: "1x4"}, TARGET)
    with pytest.raises(
        LabkitError,
        match="no row 'yours' to compare with; there are base, full LoRA, mine, best constant",
    ):
        lk.evaluate(loud, {"mine": "1x4"}, TARGET, against="yours")
    with pytest.raises(LabkitError, match="2 weights for 4 layers"):
        lk.evaluate(loud, {"short": "1,1"}, TARGET)
