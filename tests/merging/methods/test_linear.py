import re

import pytest

import labkit as lk
from tests.merging.methods.dense import assert_merged, deltas_of, layer_of, merge, numbers_of

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


def test_a_term_has_one_weight_for_a_tensor(tmp_path):
    from tests.architectures import make_architecture
    from tests.oracle import train

    base = make_architecture(tmp_path / "base", "phi3")  # holds gate and up in one tensor
    adapter = train(tmp_path / "lora", base, target_modules=["qkv_proj"])
    half = lk.Gradient([0.5] * 3)
    terms = [lk.Term(adapter, half, {"qkv_proj": lk.Gradient([1] * 3)}), lk.Term(adapter, half)]
    change = lk.plan(lk.Recipe(lk.Checkpoint(base), terms, method="linear")).changes
    assert {one.term_weights for one in change.values()} == {(1.0, 0.5)}
