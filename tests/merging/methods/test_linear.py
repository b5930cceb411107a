import re

import numpy as np
import pytest

import labkit as lk
from tests.architectures import make_architecture
from tests.merging.methods.dense import assert_merged, deltas_of, layer_of, merge, numbers_of
from tests.models.kinds.helpers import factors, write_adapter

FIRST, SECOND = [1.0, 0.25, 0.0], [0.5, 0.75, 2.0]


def test_the_mean_of_the_models(pair, tmp_path):
    base, *adapters = pair
    old = numbers_of(base)
    first, second = (deltas_of(adapter, old) for adapter in adapters)
    expected = {}
    for name in first:
        a, b = FIRST[layer_of(name)], SECOND[layer_of(name)]
        # The mean of the two models, as a model soup is made; where the second LoRA changes
        # nothing, its model has the base's tensor.
        mean = (a * (old[name] + first[name]) + b * (old[name] + second.get(name, 0))) / (a + b)
        expected[name] = mean - old[name]
    terms = [(adapters[0], FIRST), (adapters[1], SECOND)]
    assert_merged(merge(base, terms, "linear", tmp_path / "out"), old, expected)


def planned(pair, first, second=None, **options):
    base, *adapters = pair
    terms = [lk.Term(adapters[0], lk.Gradient(first), options.pop("weights_for", {}))]
    terms += [] if second is None else [lk.Term(adapters[1], lk.Gradient(second))]
    return lk.plan(lk.Recipe(lk.Checkpoint(base), terms, method="linear", **options))


def test_what_is_refused(llamas):
    cases = [
        (([0, 0.5, 0.5],), "tensor 'model.layers.1.mlp.down_proj.weight' in layer 1: the method "
         "linear divides by the sum of the weights, so that the weight 0.5 of one term alone "
         "would change nothing; merge with the method sum, or with two terms"),
        (([1, 0.1, 1], [1, -0.1, 1]), "tensor 'model.layers.1.mlp.down_proj.weight' in layer 1: "
         "the method linear divides by the sum of the weights 0.1, -0.1, which is 0; choose "
         "others, or the method sum"),
    ]  # fmt: skip
    for weights, message in cases:
        with pytest.raises(lk.LabkitError, match=re.escape(message)):
            planned(llamas, *weights)


def test_a_weight_that_is_alone_is_noted(llamas):
    notes = planned(llamas, [0.5, 1, 0], [0, 0, 0.25]).notes
    assert notes == (
        "the method linear divides by the weights: where one term alone has one, it counts as 1 "
        "(layers 0, 2)",
    )
    assert planned(llamas, [0.5, 1, 0], [0.5, 0, 1]).notes == ()


@pytest.fixture
def fused(tmp_path):
    """A base that holds gate and up in one tensor, and a LoRA on each of the two."""
    base = make_architecture(tmp_path / "phi3", "phi3")
    tensors = {}
    for module in ("gate_proj", "up_proj"):
        tensors |= factors(f"model.layers.0.mlp.{module}", 48, 32)[0]
    adapter = write_adapter(tmp_path / "lora", tensors, target_modules=["gate_proj", "up_proj"])
    return base, adapter, adapter


def test_a_term_has_one_weight_for_a_tensor(fused):
    half, fused_tensor = [0.5] * 3, "model.layers.0.mlp.gate_up_proj.weight"
    message = (
        "lora has the weights 0 and 0.5 for parts of the base's "
        f"'{fused_tensor}', and the method linear needs one weight for a tensor; give the modules "
        "in it one weight, or merge with the method sum"
    )
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        planned(fused, half, half, weights_for={"up_proj": lk.Gradient([0] * 3)})
    (change,) = planned(fused, half, [1, 0, 0]).changes.values()
    assert (change.tensor.name, change.term_weights) == (fused_tensor, (0.5, 1.0))


def test_the_shares_of_one_term_are_one_delta(fused, tmp_path):
    """Density 0.5 of a fused tensor are its largest, and not half of each of its modules."""
    base, adapter, _ = fused
    name = "model.layers.0.mlp.gate_up_proj.weight"
    method = {"ties": {"density": 0.1}}
    plain = merge(base, [(adapter, [1] * 3)], "sum", tmp_path / "sum")[name].numpy()
    found = merge(base, [(adapter, [1] * 3)], method, tmp_path / "ties")[name].numpy()
    old = numbers_of(base)[name]
    change = np.abs(plain - old)
    kept = change >= np.partition(change, -int(0.1 * old.size), axis=None)[-int(0.1 * old.size)]
    np.testing.assert_array_equal(found, np.where(kept, plain, old.astype(np.float32)))
