"""Which layers matter: rows that add up, exact turns of single layers, errors."""

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.probing.texts import Texts
from tests.tiny import make_adapter, make_base, make_letters

TEXTS = Texts(
    "t",
    ["In the beginning was", "And the earth was void", "Let there be light: and", "So it was so."],
)


def nll(model, weights):
    total = sum(model.nll_of([p.text], [model.mix(lk.Gradient(weights))])[0]
                * (model.tokens(p.text).shape[1] - 1) for p in TEXTS)  # fmt: skip
    return total / sum(model.tokens(p.text).shape[1] - 1 for p in TEXTS)


def test_an_attribution_adds_up_to_the_change(loud):
    # The model of the tests is far from linear, so the weights are small.
    for gradient in ([0.02, 0.04, 0.02, 0.02], [0.02, 0, 0.03, -0.02]):
        whole = nll(loud, gradient) - nll(loud, [0, 0, 0, 0])
        for nodes, error in ((4, 0.02), (12, 0.002)):
            table = lk.attribution(loud, TEXTS, lk.Gradient(gradient), nodes=nodes)
            assert list(table["layer"]) == [0, 1, 2, 3]
            size = table["estimate"].abs().sum()
            assert table["estimate"].sum() == pytest.approx(whole, abs=error * size)
            left = abs(table["estimate"].sum() / whole - 1)
            assert table.attrs["completeness"]["t"] == pytest.approx(left, abs=1e-3)
            assert (table["low"] <= table["estimate"]).all()
            assert (table["estimate"] <= table["high"]).all()
    assert table["estimate"][1] == 0


def test_rows_by_module_and_kind_add_up_to_those_by_layer(loud):
    layers = lk.sensitivity(loud, TEXTS, "0,0.5,1,1")
    modules = lk.sensitivity(loud, TEXTS, "0,0.5,1,1", by="module")
    kinds = lk.sensitivity(loud, TEXTS, "0,0.5,1,1", by="kind")
    assert len(modules) == len(kinds) == 28
    assert set(kinds["module"]) >= {"q_proj", "down_proj"}
    for table in (modules, kinds):
        summed = table.groupby("layer")["estimate"].sum().to_numpy()
        np.testing.assert_allclose(summed, layers["estimate"], rtol=1e-6)


def test_a_sensitivity_is_the_slope_at_what_is_in_force(loud):
    loud.weights = "0.5,0.5,0.5,0.5"
    table = lk.sensitivity(loud, TEXTS)
    for layer in range(4):
        up, down = [0.5] * 4, [0.5] * 4
        up[layer] += 0.001
        down[layer] -= 0.001
        slope = (nll(loud, up) - nll(loud, down)) / 0.002
        assert table["estimate"][layer] == pytest.approx(slope, rel=0.01, abs=0.02)


def test_single_layers_are_turned_exactly(loud):
    gradient = [1, 0.5, 1, -0.5]
    out = lk.ablation(loud, TEXTS, of=lk.Gradient(gradient))
    alone = lk.ablation(loud, TEXTS, "only_one", of=lk.Gradient(gradient))
    for layer, weight in enumerate(gradient):
        without = [0 if one == layer else each for one, each in enumerate(gradient)]
        only = [weight if one == layer else 0 for one in range(4)]
        adds = nll(loud, gradient) - nll(loud, without)
        assert out["estimate"][layer] == pytest.approx(adds, rel=1e-4, abs=1e-5)
        brings = nll(loud, only) - nll(loud, [0] * 4)
        assert alone["estimate"][layer] == pytest.approx(brings, rel=1e-4, abs=1e-5)
    assert set(out["method"]) == {"leave_one_out"}


def test_a_scan_is_that_of_written_merges_in_plain_transformers(
    loud, loud_base, loud_adapter, tmp_path
):
    from transformers import AutoModelForCausalLM

    def written(weights):
        term = lk.Term(loud_adapter, lk.Gradient(weights))
        folder = tmp_path / "-".join(map(str, weights))
        plan = lk.plan(lk.Recipe(loud_base, [term], dtype="float32"))
        plan.write(folder, progress=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        lost = tokens = 0
        with torch.inference_mode():
            for passage in TEXTS:
                ids = loud.tokens(passage.text)
                lost += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
                tokens += ids.shape[1] - 1
        return lost / tokens

    out = lk.ablation(loud, TEXTS, of="1,0.5,1,-0.5")["estimate"]
    alone = lk.ablation(loud, TEXTS, "only_one", of="1,0.5,1,-0.5")["estimate"]
    whole = written([1.0, 0.5, 1.0, -0.5])
    assert out[1] == pytest.approx(whole - written([1.0, 0.0, 1.0, -0.5]), rel=1e-4, abs=1e-5)
    assert out[3] == pytest.approx(whole - written([1.0, 0.5, 1.0, 0.0]), rel=1e-4, abs=1e-5)
    base = written([0.0, 0.0, 0.0, 0.0])
    assert alone[3] == pytest.approx(written([0.0, 0.0, 0.0, -0.5]) - base, rel=1e-4, abs=1e-5)


def test_rows_are_in_the_order_of_layers(tmp_path):
    """Files name layer 10 before layer 2; each row has its own layer's number all the same."""
    base = make_letters(make_base(tmp_path / "base", layers=12, vocab_size=97))
    adapter = make_adapter(tmp_path / "lora", base, scale=0.3, target_modules=["v_proj"])
    model = lk.live(base, adapter, device="cpu")
    table = lk.ablation(model, TEXTS, "only_one")
    assert list(table["layer"]) == list(range(12))
    for layer in (2, 10):
        only = [float(one == layer) for one in range(12)]
        brings = nll(model, only) - nll(model, [0.0] * 12)
        assert table["estimate"][layer] == pytest.approx(brings, rel=1e-3, abs=1e-6)


def test_the_columns(loud):
    expected = "adapter layer module text metric estimate low high passages tokens method".split()
    for table in (
        lk.sensitivity(loud, TEXTS),
        lk.attribution(loud, TEXTS, nodes=1),
        lk.ablation(loud, TEXTS),
    ):
        assert list(table) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: lk.sensitivity(model, TEXTS, "1,1"), "2 weights for 4 layers"),
        (
            lambda model: lk.sensitivity(model, TEXTS, by="row"),
            "by is 'row'; expected layer,",
        ),
        (lambda model: lk.attribution(model, TEXTS, nodes=0), "takes nodes ≥ 1, found 0"),
        (lambda model: lk.ablation(model, TEXTS, "all"), "expected leave_one_out or only_one"),
        (lambda model: lk.sensitivity(model, [TEXTS, TEXTS]), "sets of different names"),
        (lambda model: lk.sensitivity(model, []), "sets of different names, at least one"),
    ],
)
def test_what_cannot_be_measured(loud, call, message):
    with pytest.raises(LabkitError, match=message):
        call(loud)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lk.sensitivity, "a sensitivity"),
        (lk.attribution, "an attribution"),
        (lk.ablation, "an ablation"),
    ],
)
def test_through_a_method_nothing_is_measured(loud, call, what):
    loud.use(lk.Recipe(loud.base, [lk.Term(loud.adapters[0], "1x4")], method="ties"))
    with pytest.raises(LabkitError, match=f"^{what} needs a plain sum, and the model has the meth"):
        call(loud, TEXTS)
