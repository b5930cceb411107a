"""NLL, KL and gradients of passages, against plain transformers and finite differences."""

import gc

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import live
from labkit.inference.merged_tensors import MergedTensor
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term
from labkit.probing import scores
from labkit.probing.scores import UNCOUNTED, Reader, _windows, tokens_and_labels
from labkit.probing.texts import Passage, Texts

TEXTS = Texts("t", ["In the beginning.", "A", "And the earth was void", "So: so."])
TEXTS_OF_LETTERS = Texts("t", ["In the beginning.", "And the earth was void", "So: so it was."])
MERGE = Gradient.parse("0,0.5,1,-0.5")


def texts_of(model):
    return Texts("t", [one for one in TEXTS if model.tokens(one.text).shape[1] > 1])


def by_plain_model(model, tokens):
    with torch.inference_mode():
        logs = model(tokens).logits[0, :-1].double().log_softmax(-1)
    return -logs.gather(1, tokens[0, 1:, None]).sum().item(), logs


def test_an_nll_is_measured_once_and_cannot_be_changed_from_outside(loud, monkeypatch):
    reader = Reader(loud, texts_of(loud))
    first = reader.nll(loud.mix(MERGE))
    kept = first.copy()
    first += 1
    monkeypatch.setattr(reader, "_measure", None)
    assert np.array_equal(reader.nll(loud.mix(MERGE)), kept)
    with pytest.raises(TypeError):
        reader.nll(loud.mix(0.5))


def test_nll_and_kl_are_those_of_plain_models(loud, plain_models):
    texts = texts_of(loud)
    reader = Reader(loud, texts, rows=2)
    found = {
        "base": reader.nll(loud.mix(0.0)),
        "merged": reader.nll(loud.mix(MERGE)),
        "full": reader.nll(loud.mix(1.0)),
    }
    kl = reader.kl_from_base(loud.mix(MERGE))
    for number, passage in enumerate(texts):
        tokens = loud.tokens(passage.text)
        assert reader.counts[number] == tokens.shape[1] - 1
        logs = {}
        for name, model in plain_models.items():
            expected, logs[name] = by_plain_model(model, tokens)
            assert found[name][number] == pytest.approx(expected, rel=1e-4), name
        expected = (logs["base"].exp() * (logs["base"] - logs["merged"])).sum().item()
        assert kl[number] == pytest.approx(expected, rel=1e-3)


def test_the_base_is_read_once_for_the_kl_of_several(loud, monkeypatch):
    reader = Reader(loud, TEXTS_OF_LETTERS)
    first = reader.kl_from_base(loud.mix(MERGE))
    passes = []
    forward = type(loud).forward_weighted
    monkeypatch.setattr(type(loud), "forward_weighted", lambda *a: passes.append(1) or forward(*a))
    np.testing.assert_array_equal(reader.kl_from_base(loud.mix(MERGE)), first)
    assert passes == []  # what was measured is remembered
    reader.kl_from_base(loud.mix(0.5))
    assert len(passes) == len(reader.batches) == 1
    assert not reader.kl_from_base(loud.mix(0.0)).any()  # of the base, without a pass
    assert len(passes) == 1


def test_the_pass_for_a_kl_tells_the_nll(loud, monkeypatch):
    expected = Reader(loud, texts_of(loud)).nll(loud.mix(MERGE))
    reader = Reader(loud, texts_of(loud))
    reader.kl_from_base(loud.mix(MERGE))
    monkeypatch.setattr(loud, "forward_weighted", None)
    np.testing.assert_array_equal(reader.nll(loud.mix(MERGE)), expected)


def test_a_merge_in_memory_and_the_base_do_not_take_turns_for_each_batch(loud, monkeypatch):
    reader = Reader(loud, TEXTS_OF_LETTERS, rows=1)
    recipe = Recipe(loud.base, [Term(loud.adapters[0], MERGE)], method="ties")
    expected = reader.kl_from_base(loud.mix(recipe))
    assert expected.min() > 0
    merged, merge = [], MergedTensor.merge

    def counted(one, change, *rest):
        merged.append((one.tensor.name, change is None))
        merge(one, change, *rest)

    monkeypatch.setattr(MergedTensor, "merge", counted)
    name = next(iter(plan(recipe).changes))
    # Nothing of the base fits: it reads one batch, and the merge after it, three times.
    monkeypatch.setattr(scores, "KEPT_BYTES", 0)
    again = Reader(loud, TEXTS_OF_LETTERS, rows=1)
    np.testing.assert_array_equal(again.kl_from_base(loud.mix(recipe)), expected)
    assert [put_back for one, put_back in merged if one == name] == [True, False] * 3
    merged.clear()
    # Two batches fit in one run, and are not kept: two runs.
    sizes = sorted(97 * 4 * count for count in again.counts)
    monkeypatch.setattr(scores, "KEPT_BYTES", sum(sizes[:2]))
    monkeypatch.setattr(scores.BaseLogits, "of", lambda kept, batch, read: read())
    np.testing.assert_array_equal(again.kl_from_base(loud.mix(recipe)), expected)
    assert [put_back for one, put_back in merged if one == name] == [True, False] * 2


def test_padding_changes_nothing(loud):
    texts = texts_of(loud)
    together = Reader(loud, texts, rows=8).nll(loud.mix(MERGE))
    alone = Reader(loud, texts, rows=1).nll(loud.mix(MERGE))
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_gradients_are_those_of_finite_differences(loud):
    reader = Reader(loud, texts_of(loud))
    weights = [0.2, 0.7, -0.3, 1.0]
    sums, slopes = reader.gradient(loud.mix(Gradient(weights)))
    np.testing.assert_allclose(sums, reader.nll(loud.mix(Gradient(weights))), rtol=1e-5)
    layers = np.array([loud.layer_of(adapter, name) for adapter, name in loud.module_names])
    step = 0.001
    for layer in range(4):
        above, below = list(weights), list(weights)
        above[layer] += step
        below[layer] -= step
        up, down = (reader.nll(loud.mix(Gradient(one))) for one in (above, below))
        slope = slopes[:, layers == layer].sum(axis=1)
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=0.005, atol=0.05)


def test_nothing_is_left_in_the_model(loud):
    before = "".join(loud.generate("In", 12))
    Reader(loud, texts_of(loud)).gradient(loud.mix(MERGE))
    scalings = [s for modules in loud.loras for m, k, _ in modules.values() for s in [m.scaling[k]]]
    assert all(isinstance(scaling, float) for scaling in scalings)
    assert "".join(loud.generate("In", 12)) == before


def test_long_texts_are_read_in_windows_and_each_token_counts_once():
    tokens = list(range(100, 137))
    for window in (2, 3, 8, 20, 36, 37, 64):
        cuts = list(_windows(tokens, tokens, window))
        counted = [label for _, labels in cuts for label in labels[1:] if label != UNCOUNTED]
        assert sorted(counted) == tokens[1:], window
        assert all(len(cut) <= window for cut, _ in cuts)
    long, short = list(_windows(tokens, tokens, 20)), list(_windows(tokens, tokens, 64))
    assert len(long) == 3
    assert short == [(tokens, tokens)]
    # Behind the first window, a token has half a window before it at least.
    assert all(labels[: 10 - 1] == [UNCOUNTED] * 9 for _, labels in long[1:])


def test_windows_of_a_model(loud):
    texts = Texts("long", ["In the beginning God created the heaven and the earth. " * 3])
    whole = Reader(loud, texts)
    cut = Reader(loud, texts, window=40)
    assert len(cut.batches[0].tokens) > 1
    assert cut.counts == whole.counts
    assert cut.nll(loud.mix(1.0)) == pytest.approx(whole.nll(loud.mix(1.0)), rel=0.25)


def test_of_a_prompt_and_its_answer_the_answer_counts(loud):
    tokens, labels = tokens_and_labels(loud, Passage("yes", "Is it so?"))
    counted = [label for label in labels if label != UNCOUNTED]
    assert loud.tokenizer.decode(counted).startswith("yes")
    assert len(tokens) == len(labels)
    assert labels[: len(tokens) - len(counted)] == [UNCOUNTED] * (len(tokens) - len(counted))
    assert "Is it so?" in loud.tokenizer.decode(tokens)


def test_a_passage_with_nothing_to_predict(loud):
    with pytest.raises(LabkitError, match="passage 1 of 't' has nothing to predict"):
        Reader(loud, Texts("t", ["In the", "A"]))


def test_a_prompt_stands_in_the_format_that_it_asks_for(loud):
    def before(prompt_format):
        passage = Texts("t", [("Is it so?", "yes")], prompt_format=prompt_format).passages[0]
        tokens, labels = tokens_and_labels(loud, passage)
        return loud.tokenizer.decode(tokens[: labels.count(UNCOUNTED)])

    # The letters that the tests' tokenizer knows have no line break among them.
    assert before("plain") == "Is it so?"
    assert before("Alpaca") == "### Instruction:Is it so?### Response:"
    with pytest.raises(LabkitError, match="no prompt format 'alpine' for this model; there are"):
        before("alpine")


def test_passes_above_kept_layers_give_the_same_bits(loud, monkeypatch):
    reader = Reader(loud, texts_of(loud), rows=2)
    reference = loud.mix(MERGE)
    changed = [
        (layer, loud.mix(Gradient([0.3 if one == layer else w for one, w in enumerate(MERGE)])))
        for layer in range(4)
    ]
    runs = []
    for layer in loud.decoder_layers:
        plain = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn,
            "forward",
            lambda *a, _plain=plain, **k: runs.append(1) or _plain(*a, **k),
        )
    before, after = reader.nll_of_each(reference, changed)
    batches = len(reader.batches)
    # One pass of 4 layers, then 4, 3, 2 and 1 of them; and half a pass to see that it holds.
    assert len(runs) == batches * (4 + 4 + 3 + 2 + 1) + 2
    assert np.array_equal(before, reader.nll(reference))
    for column, (_, mix) in enumerate(changed):
        assert np.array_equal(after[:, column], reader.nll(mix))


@pytest.mark.parametrize("odd", ["other numbers", "an error"])
def test_layers_that_cannot_be_stood_in_for_run_again(loud, monkeypatch, odd):
    reader = Reader(loud, texts_of(loud), rows=2)
    changed = [(3, loud.mix(Gradient([0, 0.5, 1, 1])))]
    expected = reader.nll(changed[0][1])
    layer, seen = loud.decoder_layers[3], []
    plain = type(layer).forward

    def forward(self, hidden, *given, **named):
        """A last layer that needs the first one to have run, as layers with shared keys do."""
        if self is layer and seen.pop() != "first":
            if odd == "an error":
                raise KeyError("keys of layer 0")
            hidden = hidden * 2
        return plain(self, hidden, *given, **named)

    first = loud.decoder_layers[0].self_attn
    attend = first.forward
    monkeypatch.setattr(
        first, "forward", lambda *given, **named: seen.append("first") or attend(*given, **named)
    )
    seen.append("nothing")
    monkeypatch.setattr(type(layer), "forward", forward)
    _, after = reader.nll_of_each(loud.mix(MERGE), changed)
    assert np.array_equal(after[:, 0], expected)


def test_slopes_are_right_to_a_five_hundredth(words, tiny_adapter):
    """In float32, against central differences, in parts of the largest slope."""
    model = live(words, tiny_adapter, device="cpu", dtype="float32")
    reader = Reader(model, TEXTS_OF_LETTERS)
    weights = [8.0, -6.0, 4.0, 10.0]  # the adapter is small, so its weights are large
    slopes = reader.gradient(model.mix(Gradient(weights)))[1].sum(axis=0)
    layers = np.array([model.layer_of(adapter, name) for adapter, name in model.module_names])
    by_layer = np.bincount(layers, slopes)
    step = 0.5
    for layer in range(4):
        above, below = list(weights), list(weights)
        above[layer] += step
        below[layer] -= step
        up, down = (reader.nll(model.mix(Gradient(one))).sum() for one in (above, below))
        error = abs(by_layer[layer] - (up - down) / (2 * step))
        assert error <= 0.002 * np.abs(by_layer).max()


def test_slopes_in_bfloat16_are_those_in_float32_nearly(words, tiny_adapter):
    slopes = {}
    for dtype in ("float32", "bfloat16"):
        model = live(words, tiny_adapter, device="cpu", dtype=dtype)
        mix = model.mix(Gradient([8.0, -6.0, 4.0, 10.0]))
        slopes[dtype] = Reader(model, TEXTS_OF_LETTERS).gradient(mix)[1].sum(axis=0)
    assert np.corrcoef(slopes["float32"], slopes["bfloat16"])[0, 1] > 0.98


def tensors_of_graphs():
    """The tensors in memory that a backward pass could still be made from."""
    gc.collect()
    # By the type: `isinstance` asks objects for their class, and some of torch's warn of that.
    tensors = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return {id(x) for x in tensors if x.grad_fn}


def test_answers_after_measuring_are_those_before(loud, monkeypatch):
    tokens = loud.tokens("In the beginning")
    loud.weights = MERGE
    before = loud.forward(tokens).logits
    graphs = tensors_of_graphs()
    texts = texts_of(loud)
    reader = Reader(loud, texts)
    reader.gradient(loud.mix(0.3))
    reader.kl_from_base(loud.mix(0.7))
    reader.nll_of_each(loud.mix(1.0), [(2, loud.mix(Gradient([1, 1, 0, 1])))])
    with monkeypatch.context() as patch:
        patch.setattr(loud.decoder_layers[2].mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reader.gradient(loud.mix(0.3))
    assert torch.equal(loud.forward(tokens).logits, before)
    for module in loud._model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert tensors_of_graphs() <= graphs
    assert all(one.grad is None for one in loud._model.parameters())
