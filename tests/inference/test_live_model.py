"""A live model answers what the written merge answers."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference import loading
from labkit.inference.live_model import LiveModel, free, live
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term
from tests.tiny import make_adapter, make_base, make_letters, merged_by_peft

GRADIENTS = ["0x4", "1x4", "0,0.5,1,1", "1,0,-0.5,2", "0.1,0.2,0.3,0.4"]


@pytest.fixture
def model(words, tiny_adapter):
    yield live(words, tiny_adapter, device="cpu")
    free()


def merged_logits(recipe, folder, text, model):
    plan(recipe).write(folder, progress=False)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return merged(model.tokens(text)).logits[0]


@pytest.mark.parametrize("weights", GRADIENTS)
def test_logits_are_those_of_the_written_merge(model, words, tiny_adapter, tmp_path, weights):
    gradient = Gradient.parse(weights)
    recipe = Recipe(words, [Term(tiny_adapter, gradient)], dtype="float32")
    expected = merged_logits(recipe, tmp_path / "merged", "In the beginning", model)
    model.weights = gradient
    torch.testing.assert_close(model.logits("In the beginning"), expected, atol=1e-4, rtol=0)


def test_a_baked_adapter_answers_the_same_in_plain_peft(model, words, tiny_adapter, tmp_path):
    from peft import PeftModel

    from labkit.publishing.baking import bake

    gradient = Gradient.parse("0,0.5,-1,2")
    bake(tiny_adapter, gradient, tmp_path / "baked")
    base = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    baked = PeftModel.from_pretrained(base, tmp_path / "baked")
    with torch.inference_mode():
        expected = baked(model.tokens("In the beginning")).logits[0]
    model.weights = "0x4"
    assert (model.logits("In the beginning") - expected).abs().max() > 1e-3
    model.weights = gradient
    torch.testing.assert_close(model.logits("In the beginning"), expected, atol=1e-4, rtol=0)


def test_several_adapters_and_module_patterns(words, tiny_adapter, second_adapter, tmp_path):
    model = live(words, tiny_adapter, second_adapter, device="cpu")
    terms = [
        Term(tiny_adapter, "0,0.5,1,1", {"mlp": "1x4"}),
        Term(second_adapter, "1,0.5,0,0"),
    ]
    expected = merged_logits(
        Recipe(words, terms, dtype="float32"), tmp_path / "merged", "light", model
    )
    model.use(terms)
    torch.testing.assert_close(model.logits("light"), expected, atol=1e-4, rtol=0)
    model.weights = {"tiny-lora": "0x4", "second": "0x4"}
    model.weights = {"tiny-lora": "0,0.5,1,1", "tiny-lora:mlp": "1x4", 1: "1,0.5,0,0"}
    torch.testing.assert_close(model.logits("light"), expected, atol=1e-4, rtol=0)
    assert model.weights["second"] == Gradient.parse("1,0.5,0,0")
    with pytest.raises(LabkitError, match="the model has 2 adapters \\(tiny-lora, second\\)"):
        model.weights = "0x4"
    with pytest.raises(LabkitError, match="no adapter 'third'; the model has tiny-lora, second"):
        model.weights = {"third": "0x4"}


def test_two_threads_that_ask_at_once_get_one_model(words, tiny_adapter):
    """As a lab, which loads in the background, and the next cell of its notebook do."""
    ready, found = threading.Barrier(2), []

    def ask():
        ready.wait()
        found.append(live(words, tiny_adapter, device="cpu"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] is found[1]
    free()


def test_mixtures_in_one_batch_answer_as_each_alone(model):
    mixes = [model.mix(0), model.mix(Gradient.parse("0,0.5,1,1")), model.mix(1)]
    tokens = model.tokens("In the beginning").expand(3, -1)
    together = model.forward(tokens, mixes).logits
    for row, mix in enumerate(mixes):
        alone = model.forward(tokens[:1], [mix]).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)
    assert not torch.equal(together[0], together[2])


def test_weight_0_is_the_base(model, words):
    base = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    model.weights = "0x4"
    with torch.inference_mode():
        expected = base(model.tokens("word")).logits[0]
    assert torch.equal(model.logits("word"), expected)


def test_new_weights_count_at_the_next_token(model):
    model.weights = "0x4"
    pieces = model.generate("In the", max_tokens=12)
    begun = next(pieces)
    scalings = {module.scaling[key] for module, key, _ in model.loras[0].values()}
    assert scalings == {0}
    model.weights = "0,0.5,1,1"
    begun += next(pieces, "")
    scalings = {module.scaling[key] for module, key, _ in model.loras[0].values()}
    assert scalings == {0, 1, 2}  # alpha / r is 2


def test_generating_stops_at_the_length_and_repeats_itself(model):
    answers = ["".join(model.generate("In the", 9, temperature=1.0, seed=3)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert 0 < len(answers[0]) <= 9


def test_columns_with_equal_weights_throw_the_same_dice(model):
    mixes = [model.mix(1), model.mix(Gradient.parse("1x4")), model.mix(0.5)]
    steps = list(model.stream("In", mixes, 8, temperature=1.5, seed=1))
    assert [step[0] for step in steps] == [step[1] for step in steps]


def test_nll_and_next_tokens(model):
    texts = ["In the beginning", "light"]
    logits = [model.logits(text)[:-1] for text in texts]
    targets = [model.tokens(text)[0, 1:] for text in texts]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
    assert model.nll(texts) == pytest.approx(expected.item(), rel=1e-5)
    assert model.nll_of(texts, [model.mix(1), model.mix(0)])[0] == pytest.approx(
        expected.item(), rel=1e-5
    )
    top = model.next_tokens("light", 5)
    assert len(top) == 5
    assert [share for _, share in top] == sorted((share for _, share in top), reverse=True)
    with pytest.raises(LabkitError, match="nothing to predict"):
        model.nll("a")


def plain_merge(base, adapter, weights):
    """transformers' own model of a merge that PEFT made, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(merged_by_peft(base, adapter, Gradient.parse(weights)))
    return model.eval()


def plain_nll(model, rows):
    """The loss of every token but the first, as transformers shifts it, over all rows."""
    with torch.inference_mode():
        summed = sum(model(row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows)
    return summed / sum(row.shape[1] - 1 for row in rows)


def test_nll_is_the_loss_of_plain_transformers(loud, loud_base, loud_adapter):
    # Of different lengths: the mean is over tokens, not over texts. One has nothing to predict.
    texts = ["In the beginning was the Word", "a", "light of men"]
    rows = [loud.tokens(text) for text in (texts[0], texts[2])]
    expected = [
        plain_nll(plain_merge(loud_base, loud_adapter, weights), rows) for weights in GRADIENTS
    ]
    mixes = [loud.mix(Gradient.parse(weights)) for weights in GRADIENTS]
    assert loud.nll_of(texts, mixes) == pytest.approx(expected, rel=1e-6)
    assert min(abs(a - b) for a, b in pairwise(sorted(expected))) > 1e-4
    for weights, value in zip(GRADIENTS, expected, strict=True):
        loud.weights = weights
        assert loud.nll(texts) == pytest.approx(value, rel=1e-6)
    assert loud.nll(texts[0]) == pytest.approx(
        plain_nll(plain_merge(loud_base, loud_adapter, GRADIENTS[-1]), rows[:1]), rel=1e-6
    )


def test_nll_reads_no_further_than_the_model_can(loud, loud_base, loud_adapter, monkeypatch):
    text = "In the beginning was the Word"
    monkeypatch.setattr(loud._model.config, "max_position_embeddings", 9)
    plain = plain_merge(loud_base, loud_adapter, "1x4")
    expected = plain_nll(plain, [loud.tokens(text)[:, :9]])
    assert loud.nll(text) == pytest.approx(expected, rel=1e-6)


def test_next_tokens_are_those_of_plain_transformers(loud, loud_base, loud_adapter):
    loud.weights = "0,0.5,1,-0.5"
    plain = plain_merge(loud_base, loud_adapter, "0,0.5,1,-0.5")
    with torch.inference_mode():
        shares = plain(loud.tokens("light")).logits[0, -1].softmax(-1)
    best = sorted(range(97), key=lambda token: -shares[token])[:5]
    found = loud.next_tokens("light", 5)
    assert [text for text, _ in found] == [loud.tokenizer.decode([token]) for token in best]
    assert [share for _, share in found] == pytest.approx(
        [shares[token].item() for token in best], rel=1e-5
    )


def test_greedy_answers_are_those_of_plain_transformers(loud, loud_base, loud_adapter):
    tokens = loud.tokens("In the")
    mixes = [loud.mix(Gradient.parse(weights)) for weights in GRADIENTS]
    steps = list(loud.stream("In the", mixes, 12))
    for row, weights in enumerate(GRADIENTS):
        plain = plain_merge(loud_base, loud_adapter, weights)
        written = plain.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        expected = written[0, tokens.shape[1] :].tolist()
        found = [step[row] for step in steps if step[row] is not None]
        assert found == [token for token in expected if token not in loud._end_tokens()]


class Scripted:
    """In place of a forward pass: the same scores at every step, or one after the other."""

    def __init__(self, *steps):
        self.steps, self.asked = steps, []

    def __call__(self, tokens, mixes=(), cache=None):
        self.asked.append((tokens.tolist(), cache))
        scores = self.steps[min(len(self.asked), len(self.steps)) - 1]
        logits = torch.zeros(tokens.shape[0], tokens.shape[1], len(scores[0]))
        logits[:, -1] = torch.tensor(scores)
        return SimpleNamespace(logits=logits, past_key_values=len(self.asked))


def test_each_token_is_drawn_as_often_as_it_is_probable(model, monkeypatch):
    scores = [2.0, 1.0, 0.0, -1.0]
    # The first tokens, one of which is an end, are never drawn.
    monkeypatch.setattr(model, "forward", Scripted([[-torch.inf] * 3 + scores]))
    temperature, draws = 2.0, 4000
    counts = [0] * 4
    for seed in range(draws):
        ((token,),) = model.stream("x", (), 1, temperature, seed)
        counts[token - 3] += 1
    shares = (torch.tensor(scores, dtype=torch.float64) / temperature).softmax(0).tolist()
    for count, share in zip(counts, shares, strict=True):
        # Five standard errors of a share; the seeds are fixed, and so is the result.
        assert abs(count / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5
    assert min(abs(share - other) for share, other in pairwise(shares)) > 0.05


def test_a_row_that_has_ended_says_nothing_and_the_others_go_on(model, monkeypatch):
    def row(best):
        return [float(token == best) for token in range(128)]

    end = model.tokenizer.eos_token_id
    scripted = Scripted([row(5), row(6)], [row(end), row(7)], [row(8), row(9)], [row(8), row(end)])
    monkeypatch.setattr(model, "forward", scripted)
    steps = list(model.stream("ab", [model.mix(0), model.mix(1)], 10))
    assert steps == [[5, 6], [None, 7], [None, 9]]
    # Only the new token is read again, with what the passes before it left.
    prompt = model.tokens("ab")[0].tolist()
    assert scripted.asked[0] == ([prompt, prompt], None)
    assert scripted.asked[1] == ([[5], [6]], 1)
    assert len(scripted.asked) == 4


def test_what_the_generation_config_calls_an_end_is_one(model, monkeypatch):
    for declared, ends in ((7, {7, 96}), ([7, 8], {7, 8, 96}), (None, {96})):
        monkeypatch.setattr(model._model.generation_config, "eos_token_id", declared)
        assert model._end_tokens() == ends


@pytest.fixture(scope="module")
def with_head(tmp_path_factory):
    """A base with a head of its own, and a LoRA on the head and one module of each layer."""
    folder = tmp_path_factory.mktemp("head")
    base = make_letters(make_base(folder / "base", tie_word_embeddings=False))
    adapter = make_adapter(folder / "lora", base, scale=0.15, target_modules=["q_proj", "lm_head"])
    # PEFT saves a copy of the head beside its factors, which is no part of the LoRA.
    file = adapter / "adapter_model.safetensors"
    factors = {name: each for name, each in load_file(file).items() if ".lora_" in name}
    save_file(factors, file, {"format": "pt"})
    return base, adapter


@pytest.mark.parametrize("rest", [0.0, 0.5, 1.0, -1.0])
def test_rest_is_the_weight_outside_the_layers(with_head, tmp_path, rest):
    base, adapter = with_head
    model = live(base, adapter, rest=rest, device="cpu")
    gradient = Gradient.parse("0,0.5,1,-0.5")
    recipe = Recipe(base, [Term(adapter, gradient)], rest=rest, dtype="float32")
    expected = merged_logits(recipe, tmp_path / "merged", "light", model)
    mix = model.mix(gradient)
    assert mix.weights[0]["lm_head"] == rest
    assert mix.weights[0]["model.layers.3.self_attn.q_proj"] == -0.5
    found = model.forward(model.tokens("light"), [mix]).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # One number is the weight of everything: 0 is the base and 1 the whole LoRA, head and all.
    for weight in (0, 0.25, 1):
        everything = Recipe(
            base, [Term(adapter, Gradient.constant(4, weight))], rest=weight, dtype="float32"
        )
        expected = merged_logits(everything, tmp_path / f"all {weight}", "light", model)
        found = model.forward(model.tokens("light"), [model.mix(weight)]).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.layer_of(0, "lm_head") is None
    assert model.layer_of(0, "model.layers.3.self_attn.q_proj") == 3
    free()


def test_terms_of_other_adapters_are_refused(model, second_adapter):
    with pytest.raises(LabkitError, match="the terms are not of this model's adapters, in its ord"):
        model.mix([Term(second_adapter, "1x4")])


def test_an_empty_text_is_the_start_token_or_refused(model):
    assert model.tokens("").tolist() == [[95]]
    model.tokenizer.bos_token = None
    with pytest.raises(LabkitError, match="the text is empty; write at least one word"):
        model.tokens("")


def test_a_held_model_is_transformers_own_with_that_mixture(model, words):
    tokens = model.tokens("held")
    before = model.logits("held")
    with model.held(model.mix(0.0)) as held:
        assert held is model._model
        waiting = threading.Thread(target=model.logits, args=("other",), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()  # nobody else turns the weights meanwhile
        found = held(tokens).logits[0].detach()
    waiting.join(60)
    assert not waiting.is_alive()
    base = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    torch.testing.assert_close(found, base(tokens).logits[0].detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.logits("held"), before)


def test_asking_again_gives_the_same_model_back(model, words, tiny_adapter):
    assert live(words, tiny_adapter, device="cpu") is model
    assert model.weights == Gradient.constant(4)


def test_free_gives_the_memory_back(words, tiny_adapter):
    model = live(words, tiny_adapter, device="cpu")
    inside = weakref.ref(model._model)
    free()
    gc.collect()
    assert inside() is None
    assert model.freed
    for ask in (
        lambda: model.logits("light"),
        lambda: model.nll("light"),
        lambda: model.next_tokens("light"),
        lambda: list(model.generate("light")),
        lambda: list(model.stream("light", [model.mix(0)], 5)),
    ):
        with pytest.raises(LabkitError, match="this model was freed; call lk"):
            ask()
    assert live(words, tiny_adapter, device="cpu") is not model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "the device 'tpu' is unknown; expected cuda, mps, cpu or auto"),
        ({"dtype": "int8"}, "the dtype 'int8' is unknown; expected auto, float32"),
    ],
)
def test_what_is_not_there_is_said(words, tiny_adapter, arguments, message):
    with pytest.raises(LabkitError, match=message):
        live(words, tiny_adapter, **arguments)


def test_a_model_without_a_tokenizer(tiny_base, tiny_adapter):
    with pytest.raises(LabkitError) as caught:
        live(tiny_base, tiny_adapter, device="cpu")
    assert str(caught.value) == (
        f"{tiny_base} holds no tokenizer, which a model needs to read a prompt; put the model's "
        "own there (tokenizer.json and tokenizer_config.json)"
    )


def test_an_adapter_is_needed_and_gradients_fit(model, words):
    with pytest.raises(LabkitError, match="needs at least one adapter"):
        live(words)
    with pytest.raises(LabkitError, match="3 weights for 4 layers \\(adapter tiny-lora\\)"):
        model.weights = "1x3"
    assert isinstance(model, LiveModel)


def test_a_model_with_code_of_its_own_is_not_run(tmp_path, words, tiny_adapter):
    import json
    import shutil

    folder = tmp_path / "own-code"
    shutil.copytree(words, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own_kind"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(LabkitError, match="transformers cannot load"):
        live(folder, tiny_adapter)
    assert not (tmp_path / "ran").exists()


def test_a_merge_tells_its_progress_and_can_be_ended(words, tiny_adapter, tmp_path):
    merge = plan(Recipe(words, [Term(tiny_adapter, "1x4")]))
    told = []
    merge.write(tmp_path / "merged", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0

    def enough(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge.write(tmp_path / "ended", progress=enough)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    "spelling",
    [
        lambda key: key.removeprefix("base_model.model.model."),
        lambda key: f"module.{key}",
        lambda key: key.replace(".weight", ".default.weight"),
    ],
)
def test_factors_are_heard_however_their_keys_are_spelled(words, tiny_adapter, tmp_path, spelling):

    usual = live(words, tiny_adapter, device="cpu").logits("In the beginning")
    base = live(words, tiny_adapter, device="cpu")
    base.weights = "0x4"
    silent = base.logits("In the beginning")
    free()
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    file = other / "adapter_model.safetensors"
    save_file({spelling(key): value for key, value in load_file(file).items()}, file)
    heard = live(words, other, device="cpu").logits("In the beginning")
    assert not torch.equal(usual, silent)
    torch.testing.assert_close(heard, usual)
    free()


def test_modules_that_peft_does_not_attach_are_not_passed_over(words, tiny_adapter, monkeypatch):
    monkeypatch.setattr("peft.inject_adapter_in_model", lambda config, model, key: model)
    with pytest.raises(LabkitError) as caught:
        live(words, tiny_adapter, device="cpu")
    assert str(caught.value) == (
        "PEFT attached 0 of 28 modules (such as 'model.layers.0.mlp.down_proj'); this version of "
        "PEFT does not know the model: merge instead (lk.plan)"
    )


def test_in_too_little_memory_float32_is_left_and_said(words, tiny_adapter, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda: 400_000_000)
    small = live(words, tiny_adapter, device="cpu")
    assert small._model.dtype == torch.bfloat16
    assert repr(small) == (
        "LiveModel tiny-llama + tiny-lora on cpu (in bfloat16: float32 needs 0.5 GB, and 0.4 GB "
        "are free)"
    )
    assert live(words, tiny_adapter, device="cpu") is small
    asked = live(words, tiny_adapter, device="cpu", dtype="float32")
    assert asked._model.dtype == torch.float32
    assert repr(asked) == "LiveModel tiny-llama + tiny-lora on cpu"
    free()
