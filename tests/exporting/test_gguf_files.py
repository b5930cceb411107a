"""GGUF files, made by llama.cpp's converter and read by llama.cpp: of a small model."""

from collections import Counter
from enum import Enum
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting.gguf_files import ask_llama
from labkit.exporting.job import Questions
from labkit.exporting.workers.gguf_convert import Quantiser, is_product, know_newer_names
from labkit.probing.texts import Texts
from labkit.publishing.hub import select_files
from tests.exporting.conftest import PROSE
from tests.tiny import load_file_of

CALIBRATION = Texts("calibration", [one.text for one in PROSE.passages[5:20]])


@pytest.fixture(scope="module")
def mixed(small_model, tmp_path_factory):
    """Q4_K_M, calibrated."""
    out = tmp_path_factory.mktemp("gguf") / "mixed"
    return lk.export(
        small_model, out, "Q4_K_M", calibration=CALIBRATION, check=False, progress=False
    )


@cache
def reader(path):
    """The file; reading the names of its 49152 tokens takes seconds."""
    import gguf

    return gguf.GGUFReader(path)


def fields(export):
    return reader(export.folder / export.runs).fields


def tensors(export):
    return {one.name: one for one in reader(export.folder / export.runs).tensors}


def values(tensor):
    import gguf

    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def rows_for_llama(weight, heads):
    """llama.cpp turns pairs of neighbours; transformers turns the halves of each head."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def test_bfloat16_has_every_number_of_the_model(whole, small_model):
    """q and k have their rows in llama.cpp's order; all else is as it was."""
    model = {name: t.float().numpy() for name, t in load_file_of(small_model).items()}
    found = {name: values(tensor) for name, tensor in tensors(whole).items()}
    for layer in (0, 1):
        here, there = f"model.layers.{layer}.self_attn", f"blk.{layer}.attn"
        for one, heads in (("q", 4), ("k", 2)):
            expected = rows_for_llama(model[f"{here}.{one}_proj.weight"], heads)
            np.testing.assert_array_equal(found[f"{there}_{one}.weight"], expected)
        for here, there in (
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            name = f"model.layers.{layer}.{here}.weight"
            np.testing.assert_array_equal(found[f"blk.{layer}.{there}.weight"], model[name])
    np.testing.assert_array_equal(found["token_embd.weight"], model["model.embed_tokens.weight"])
    assert len(found) == len(model) == 20


def test_bfloat16_is_hardly_to_be_told_from_the_model_in_llama_cpp(whole):
    checked = whole.checked
    assert 0 <= checked.texts[0].kl.value < 0.0005
    assert checked.texts[0].nll_change.value == pytest.approx(0, abs=0.003)
    assert checked.greedy >= 40
    assert checked.same_tokens is True
    assert checked.same_template is True
    assert checked.reference == "float32"


def test_a_mixed_file_has_the_types_that_llama_cpp_gives(mixed):
    """Q4_K_M of 2 layers: v and down of the last layer get more bits, and the tied embedding."""
    types = {name: tensor.tensor_type.name for name, tensor in tensors(mixed).items()}
    assert types["token_embd.weight"] == "Q6_K"
    assert [types[f"blk.{layer}.attn_v.weight"] for layer in (0, 1)] == ["Q4_K", "Q6_K"]
    assert [types[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1)] == ["Q4_K", "Q6_K"]
    assert Counter(types.values()) == {"Q4_K": 12, "Q6_K": 3, "F32": 5}
    assert "tensors: 5 of F32, 12 of Q4_K, 3 of Q6_K" in mixed.notes


def test_quantised_numbers_are_near_those_of_the_model(mixed, whole):
    """4 bits in blocks of 32 miss normal numbers by 7 to 9 % of their size, 6 bits by 2 %."""
    exact = tensors(whole)
    for name, tensor in tensors(mixed).items():
        kind = tensor.tensor_type.name
        if kind == "F32":
            np.testing.assert_array_equal(values(tensor), values(exact[name]))
        elif name != "token_embd.weight":
            expected = values(exact[name])
            error = np.sqrt(((values(tensor) - expected) ** 2).mean() / (expected**2).mean())
            low, high = {"Q4_K": (0.06, 0.09), "Q6_K": (0.01, 0.03)}[kind]
            assert low < error < high, (name, error)


def importance_of(small_model, module_name):
    """The mean square of what enters each column of a module over the calibration text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    seen = []
    model.get_submodule(module_name).register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
    with torch.inference_mode():
        for passage in CALIBRATION:
            model.model(**tokenizer(passage.text, return_tensors="pt"))
    return torch.cat(seen).square().mean(0).numpy()


def test_calibration_makes_columns_that_matter_more_exact(mixed, whole, small_model):
    """The error that the calibration text sees, `Σ E[x²]·(W - Q)²`, is smaller than without it."""
    import gguf

    importance = importance_of(small_model, "model.layers.0.mlp.down_proj")
    name = "blk.0.ffn_down.weight"
    weight = values(tensors(whole)[name])
    kind = gguf.GGMLQuantizationType.Q4_K
    plain = Quantiser(1).now(weight, kind, None, (256, 2 * 144))
    errors = [
        float(((found - weight) ** 2 @ importance).sum())
        for found in (values(tensors(mixed)[name]), gguf.quants.dequantize(plain, kind))
    ]
    assert errors[0] < 0.97 * errors[1]


def test_a_conversion_that_is_called_off_leaves_nothing(small_model, tmp_path):
    def tell(text):
        if text in said:  # at first for the step, and then from the conversion
            raise Stop
        said.append(text)

    class Stop(Exception):  # noqa: N818 - what a notebook may call it
        pass

    said = []
    with pytest.raises(Stop):
        lk.export(small_model, tmp_path / "out", "gguf-q8_0", check=False, progress=tell)
    assert list(tmp_path.iterdir()) == []


def test_all_of_it_goes_to_the_hub(whole):
    assert not select_files(whole.folder).left


def test_the_calibration_is_told_in_file_and_receipt(mixed, whole):
    told = fields(mixed)
    assert told["quantize.imatrix.dataset"].contents() == "calibration"
    assert told["quantize.imatrix.entries_count"].contents() == 14
    assert 500 < mixed.calibrated <= 16 * 256
    assert mixed.calibration_sha256 == CALIBRATION.sha256
    assert "quantize.imatrix.dataset" not in fields(whole)
    assert whole.calibration == ""


def test_files_are_called_after_the_model_and_say_what_they_are(mixed, whole):
    assert list(mixed.files) == ["small-llama-Q4_K_M.gguf"]
    assert fields(mixed)["general.architecture"].contents() == "llama"
    assert fields(mixed)["general.file_type"].contents() == 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert fields(whole)["general.file_type"].contents() == 32  # LLAMA_FTYPE_MOSTLY_BF16
    assert "{% for message" in fields(mixed)["tokenizer.chat_template"].contents()
    assert mixed.nbytes < whole.nbytes / 2
    assert set(whole.tools) == {"auto-round", "gguf"}
    assert mixed.tools["xllamacpp"]


def test_the_converter_can_be_imported_beside_an_older_gguf(tmp_path):
    """As today's is: its file of Qwen's models names DFLASH, which the newest gguf does not."""
    (tmp_path / "qwen.py").write_text("a = gguf.MODEL_ARCH.QWEN2\nb = gguf.MODEL_ARCH.DFLASH\n")
    (tmp_path / "vision.py").write_text("c = gguf.MODEL_TENSOR.NEW, gguf.LlamaFileType.NEWER")
    older = SimpleNamespace(
        MODEL_ARCH=Enum("MODEL_ARCH", {"QWEN2": 7}), MODEL_TENSOR=Enum("MODEL_TENSOR", {"Q": 1})
    )
    know_newer_names(older, tmp_path)
    assert older.MODEL_ARCH.QWEN2.value == 7
    assert older.MODEL_ARCH.DFLASH == "DFLASH, which this gguf does not know"
    assert older.MODEL_TENSOR.NEW == "NEW, which this gguf does not know"


def test_a_factor_follows_only_what_is_done_to_rows():
    a, b = np.float32([[1, 2, 3], [0, 1, 1]]), np.float32([[1, 0], [2, 1], [0, 3]])
    turned = b[[2, 0, 1]]
    assert is_product(turned, a, turned @ a)
    assert not is_product(b, a, turned @ a)
    assert not is_product(b.T, a, (b @ a).T)
    assert not is_product(b, a, (b @ a)[:, :2])


def test_a_file_that_llama_cpp_cannot_load_says_why(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    questions = Questions([[1, 2]], [])
    with pytest.raises(LabkitError, match=r"llama.cpp failed: llama.cpp cannot load the file: \S"):
        ask_llama(tmp_path / "broken.gguf", tmp_path / "work", questions, lambda: None)
