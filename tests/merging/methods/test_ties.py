import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.deltas import passes
from labkit.deltas.low_rank import LowRank
from labkit.files.floats import ARRAYS
from labkit.machine import workers
from labkit.merging.formula import BaseTensor, WeightedDelta
from labkit.merging.methods.ties import Ties
from labkit.merging.rounding import BlockMerger
from labkit.merging.rounding_on_device import DeviceMerger
from tests.architectures import make_architecture
from tests.merging.methods.dense import assert_merged, deltas_of, layer_of, merge, numbers_of

FIRST, SECOND = [1.0, 0.25, 0.0], [0.5, -0.75, 2.0]


def trimmed(delta, density):
    count = max(1, int(density * delta.size))
    least = np.partition(np.abs(delta), delta.size - count, axis=None)[delta.size - count]
    return np.where(np.abs(delta) >= least, delta, 0.0)


def by_ties(deltas, weights, density, convention):
    """Element by element, as the paper says it."""
    kept = [trimmed(delta, density).reshape(-1) for delta in deltas]
    merged = np.zeros(kept[0].size)
    for at in range(merged.size):
        values = [one[at] for one in kept]
        weighted = [value * weight for value, weight in zip(values, weights, strict=True)]
        votes = weighted if convention == "mergekit" else values
        positive = sum(votes) >= 0
        on_side = [
            number for number, vote in enumerate(votes) if (vote > 0 if positive else vote < 0)
        ]
        top = sum(weighted[n] for n in on_side)
        below = sum(weights[n] for n in on_side) if convention == "mergekit" else len(on_side)
        merged[at] = top / below if below else top
    return merged.reshape(deltas[0].shape)


@pytest.mark.parametrize(
    ("density", "convention", "scale"), [(0.3, "mergekit", 0.5), (0.3, "peft", 1.0), (1, "peft", 1)]
)
def test_both_conventions(pair, tmp_path, density, convention, scale):
    base, *adapters = pair
    old = numbers_of(base)
    first, second = (deltas_of(adapter, old) for adapter in adapters)
    expected = {}
    for name in first:
        shares = [(FIRST[layer_of(name)], first[name])]
        shares += [(SECOND[layer_of(name)], second[name])] if name in second else []
        shares = [(weight, delta) for weight, delta in shares if weight]
        if shares:
            weights, deltas = zip(*shares, strict=True)
            expected[name] = scale * by_ties(deltas, weights, density, convention)
    method = {"ties": {"density": density, "convention": convention, "scale": scale}}
    terms = [(adapters[0], FIRST), (adapters[1], SECOND)]
    assert_merged(merge(base, terms, method, tmp_path / "out"), old, expected)


def test_in_the_papers_own_example_of_one_element():
    """Two deltas agree, a larger one stands against both: the side of the greater sum counts."""
    three = [np.array([0.4]), np.array([0.5]), np.array([-0.6])]
    kept = [np.array([-1])] * 3
    found, _ = Ties(density=1.0, convention="peft")._mean_of_agreeing(three, kept, [1.0, 1.0, 1.0])
    assert found == pytest.approx([0.45])
    ties = Ties(density=1.0, convention="mergekit")
    found, _ = ties._mean_of_agreeing(three, kept, [1.0, 3.0, 4.0])
    assert found == pytest.approx([-0.6])  # 0.4 + 1.5 − 2.4 is negative


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": 0}, "density is 0; expected a share above 0 and at most 1"),
        ({"density": 1.5}, "density is 1.5; expected a share above 0 and at most 1"),
        ({"density": True}, "density is True; expected a finite number"),
        ({"scale": "large"}, "scale is 'large'; expected a finite number"),
        ({"convention": "paper"}, "the convention 'paper' is unknown; expected mergekit or peft"),
        ({"top": 1}, "'top' is no parameter of the method ties; known are density, convention, "),
    ],
)
def test_wrong_parameters(llamas, parameters, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        lk.Recipe(llamas[0], [lk.Term(llamas[1], [1, 1, 1])], method={"ties": parameters})


def test_one_term_alone_by_mergekits_convention(llamas):
    def planned(convention):
        terms = [lk.Term(llamas[1], lk.Gradient([0.5, 1, 1]))]
        method = {"ties": {"convention": convention}}
        return lk.plan(lk.Recipe(lk.Checkpoint(llamas[0]), terms, method=method))

    message = (
        "ties by mergekit's convention divides by the weights, so that the weights of one term "
        "alone would change nothing; take convention: peft, or two terms"
    )
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        planned("mergekit")
    assert planned("peft").notes == ()


def test_a_lora_and_a_model_where_no_last_bit_decides(llamas, tmp_path):
    """Elements of a model are read one by one only where there are such."""
    base, first, second = llamas
    model = tmp_path / "model"
    lk.plan(lk.Checkpoint(base), lk.Adapter(second), [1.0] * 3).write(model, progress=False)
    terms = [lk.Term(lk.Adapter(first), [1.0] * 3), lk.Term(lk.Checkpoint(model), [1.0] * 3)]
    plan = lk.plan(lk.Recipe(lk.Checkpoint(base), terms, 0.0, method="ties"))
    receipt = plan.write(tmp_path / "merged", progress=False)
    assert 0 < receipt.lost < 0.01


def test_other_tokens_than_the_bases_are_refused(tmp_path):
    base = make_architecture(tmp_path / "base", "llama")
    larger = make_architecture(tmp_path / "larger", "llama", vocab_size=100)
    message = (
        "tensor 'model.embed_tokens.weight' outside the layers gets 100 rows in place of 96, and "
        "the method {} has no base to compare new rows with; merge with the method sum"
    )
    for method in ("slerp", "ties", "dare", "della"):
        terms = [lk.Term(lk.Checkpoint(larger), lk.Gradient([1] * 3))]
        with pytest.raises(lk.LabkitError, match=re.escape(message.format(method))):
            lk.plan(lk.Recipe(lk.Checkpoint(base), terms, 1.0, method=method))


def test_the_plan_says_its_method_and_forecasts_its_memory(llamas):
    def planned(method):
        terms = [lk.Term(adapter, lk.Gradient([1] * 3)) for adapter in llamas[1:]]
        return lk.plan(lk.Recipe(lk.Checkpoint(llamas[0]), terms, method=method))

    plain, ties = planned("sum"), planned({"ties": {"density": 0.25}})
    assert dict(ties.summary())["method"] == "ties (density 0.25, convention peft, scale 1.0)"
    assert "method" not in dict(plain.summary())
    # Blocks of 2¹⁷ elements in float64, for each piece under way and each of two files.
    blocks = (4 * workers() + 2) * 14 * 8 * 2**17
    # Of each of two files the elements near a cut, 16 bytes each, and once more to join them.
    largest = max(change.tensor.elements for change in ties.changes.values())
    held = 2 * 2 * 16 * largest
    assert ties.forecast().peak_memory - plain.forecast().peak_memory == blocks + held


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("sources", ["loras", "models", "both"])
@pytest.mark.parametrize(
    "method",
    ["linear", "slerp", "ties", {"ties": {"convention": "mergekit"}}, "dare",
     {"dare": {"rescale": "density"}}, "della"],
)  # fmt: skip
def test_a_gpu_makes_the_same_bytes(llamas, another, monkeypatch, method, sources, device):
    """What torch finds in whole tensors, and makes of them; on the processor where there is no GPU.

    Signs and thresholds do not hang on how a device adds up products. By the name "cpu:0" torch
    calculates where numpy does by the name "cpu".
    """
    monkeypatch.setattr(passes, "NORM_ELEMENTS", 333)  # some rows; a device gets some of those runs
    monkeypatch.setattr(passes, "BLOCKS_ON_DEVICE", 3)
    monkeypatch.setattr(passes, "FEW", 20)
    given = {"loras": llamas[1:], "models": another, "both": (llamas[1], another[1])}[sources]
    terms = [lk.Term(one, lk.Gradient([0.7, 1.5, -0.25])) for one in given]
    terms = terms[1:] if method == "slerp" else terms
    resolved = lk.plan(lk.Recipe(lk.Checkpoint(llamas[0]), terms, 0.5, method=method))
    for change in resolved.changes.values():
        base = change.tensor.read().astype(np.float32).reshape(change.tensor.matrix_shape)
        here, there = change.update(), change.update(device)
        for dtype in ("BF16", "F16", "F32", "F64"):
            found = []
            for update, merger in ((here, BlockMerger()), (there, DeviceMerger(device))):
                out = np.empty(base.shape, ARRAYS[dtype])
                sums = merger.merge(base, "F32", update, 0, dtype, out)[1:]
                found.append((out.tobytes(), sums))
            assert found[0][0] == found[1][0]
            assert found[0][1] == pytest.approx(found[1][1], rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("convention", ["mergekit", "peft"])
def test_products_may_be_off_by_their_bound(llamas, monkeypatch, convention):
    """Whatever order a library sums products in, the same elements are kept, by the same signs."""
    dice = np.random.default_rng(5)
    rows = LowRank.rows
    # Factors of few values: many elements are equal, or 0, but for how they are summed.
    few = [(dice.integers(-2, 3, (24, 3)) * 0.1, dice.integers(-2, 3, (3, 30)) * 0.1)
           for _ in range(2)]  # fmt: skip

    def disturbed(delta, start, stop):
        exact = rows(delta, start, stop)
        return exact + delta.uncertainty(start, stop) * dice.uniform(-1, 1, exact.shape)

    method = Ties(density=0.3, convention=convention)
    name = "model.layers.0.self_attn.k_proj.weight"
    tensor = lk.Checkpoint(llamas[0]).tensors[name]
    assert tensor.matrix_shape != (24, 30)
    tensor = replace(tensor, shape=(24, 30), stop=tensor.start + 24 * 30 * 4)
    target = BaseTensor(tensor, 24, 0, (1.0, -0.5))
    numbers, found = tensor.read(), []
    for noise in (False, True, True):
        if noise:
            monkeypatch.setattr(LowRank, "rows", disturbed)
        terms = [WeightedDelta(w, LowRank(*pair), n)
                 for n, (w, pair) in enumerate(zip((1.0, -0.5), few, strict=True))]  # fmt: skip
        change = np.zeros((24, 30))
        method.combine(target, terms).add_rows_to(change, 0, numbers)
        found.append(change)
    exact = np.zeros(24 * 30)
    at, columns = (each.reshape(-1) for each in np.indices((24, 30)))
    method.combine(target, terms).add_entries_to(exact, numbers.reshape(-1), at, columns)
    for change in found:
        assert ((change == 0) == (exact.reshape(24, 30) == 0)).all()
        np.testing.assert_allclose(change.reshape(-1), exact, rtol=1e-12)


def test_a_name_that_is_no_method(llamas):
    for method in ("tyes", 5, {"tyes": {}}):
        with pytest.raises(lk.LabkitError, match="is no method of merging; known are sum, linear"):
            lk.Recipe(llamas[0], [lk.Term(llamas[1], [1, 1, 1])], method=method)
