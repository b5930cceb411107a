"""Quantised models in memory, and what that changes of them."""

from __future__ import annotations

import builtins

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit.errors import LabkitError
from labkit.inference import live_model
from labkit.inference.live_model import free, live
from labkit.probing.scores import Reader
from labkit.probing.texts import Texts
from tests.tiny import make_adapter, make_base, make_letters


@pytest.fixture(scope="module")
def broad(tmp_path_factory):
    """A base and a LoRA of sizes that bitsandbytes packs."""
    folder = tmp_path_factory.mktemp("broad")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    base = make_base(folder / "base", initializer_range=0.2, vocab_size=97, **sizes)
    return make_letters(base), make_adapter(folder / "lora", base, scale=0.2)


@pytest.fixture(scope="module", params=["nf4", "int8"])
def quantised(broad, request):
    pytest.importorskip("bitsandbytes")
    yield live(*broad, device="cpu", quantize=request.param)
    free()


def test_a_quantised_model_is_near_the_other_and_says_that_it_is_another(quantised, broad):
    kind = quantised.quantize
    assert repr(quantised).endswith(f"on cpu, an approximation, as it is quantised to {kind}")
    layer = quantised.loras[0]["model.layers.0.mlp.up_proj"][0]
    assert layer.base_layer.weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind]
    # The weights of its LoRA count as ever, also several in one batch.
    mixes = [quantised.mix(weight) for weight in (0, 0.5, 1)]
    plain = AutoModelForCausalLM.from_pretrained(broad[0], dtype=torch.bfloat16)
    tokens = quantised.tokens("In the beginning was the Word")
    logits = quantised.forward(tokens.expand(3, -1), mixes).logits.float()
    with torch.inference_mode():
        expected = plain(tokens).logits[0].float()
    distance = [float((row - expected).norm() / expected.norm()) for row in logits]
    assert distance[0] < {"nf4": 0.7, "int8": 0.1}[kind]
    assert distance[0] < distance[1] < distance[2]


def test_its_kl_is_that_of_two_models(quantised, broad):
    texts = ["In the beginning was the Word", "light of men"]
    quantised.weights = "0x4"
    plain = AutoModelForCausalLM.from_pretrained(broad[0], dtype=torch.bfloat16)
    sums, count = 0.0, 0
    for text in texts:
        tokens = quantised.tokens(text)
        with torch.inference_mode():
            expected = plain(tokens).logits[0].float().softmax(-1)
        mine = quantised.logits(text).softmax(-1)
        sums += float((expected * (expected / mine).log()).sum())
        count += tokens.shape[1]
    found = quantised.quantised_kl(texts)
    assert found == pytest.approx(sums / count, rel=1e-3)
    assert found > 0
    quantised.weights = "1x4"
    assert quantised.quantised_kl(texts) != pytest.approx(found, rel=1e-3)


def test_no_slopes_flow_through_a_quantised_model(quantised):
    reader = Reader(quantised, Texts("some", ["In the beginning was the Word"]))
    with pytest.raises(LabkitError) as caught:
        reader.gradient(quantised.mix(0.5))
    assert str(caught.value) == (
        f"no gradient flows through a model that is quantised to {quantised.quantize}; use "
        "ablation in place of sensitivity, fit with method='optuna', or leave out quantize"
    )
    assert reader.nll(quantised.mix(0.5)) == pytest.approx(reader.nll(quantised.mix(0.5)))


def test_a_model_that_is_not_quantised_has_no_such_kl(loud):
    with pytest.raises(LabkitError) as caught:
        loud.quantised_kl()
    assert str(caught.value) == ("the model is not quantised; lk.live(…, quantize=…) makes one")


def test_too_little_memory_for_the_unquantised_model(quantised, monkeypatch):
    monkeypatch.setattr(live_model, "free_memory", lambda: 200_000_000)
    with pytest.raises(LabkitError) as caught:
        quantised.quantised_kl()
    assert str(caught.value) == (
        "the unquantised model needs 0.5 GB, and 0.2 GB are free: what quantising changes cannot "
        "be measured here"
    )


def test_what_is_merged_in_memory_cannot_be_quantised(words, tmp_path):
    pytest.importorskip("bitsandbytes")
    dora = make_adapter(tmp_path / "dora", words, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(LabkitError) as caught:
        live(words, dora, device="cpu", quantize="int8")
    assert str(caught.value) == (
        "the model is quantised in memory, where plain LoRA alone can be turned, and "
        "'model.layers.0.self_attn.q_proj.weight' would have to be merged; leave out quantize, or "
        "merge it (lk.plan)"
    )


def test_sizes_that_bitsandbytes_does_not_pack(words, tiny_adapter):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(LabkitError) as caught:
        live(words, tiny_adapter, device="cpu", quantize="nf4")
    assert str(caught.value) == (
        "bitsandbytes calculates with nf4 on a CPU where modules have a multiple of 64 inputs and "
        "of 32 outputs, and 'model.layers.0.self_attn.q_proj' has 32 and 32; choose int8"
    )


def test_other_ways_to_quantise_are_unknown(words, tiny_adapter):
    with pytest.raises(LabkitError, match="^quantize is 'gptq'; expected nf4 or int8$"):
        live(words, tiny_adapter, device="cpu", quantize="gptq")


def test_a_device_that_bitsandbytes_does_not_know(words, tiny_adapter, monkeypatch):
    monkeypatch.setattr(live_model, "choose_device", lambda device, usable: "mps")
    with pytest.raises(LabkitError) as caught:
        live(words, tiny_adapter, quantize="int8")
    assert str(caught.value) == ("bitsandbytes quantises on cpu and cuda, not on mps; choose one")


def test_without_bitsandbytes_it_says_what_to_install(words, tiny_adapter, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == "bitsandbytes":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LabkitError) as caught:
        live(words, tiny_adapter, device="cpu", quantize="nf4")
    assert str(caught.value) == (
        "bitsandbytes is not installed, which quantises models in memory; install it with pip "
        "install 'labkit[quantize]'"
    )
