"""GPTQ, AWQ, FP8 and W4A16: what the tools are told, and what is made of what they write.

Most tests have tools that say what they were told; the last ones run where the extra is installed.
"""

import json
import os
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting.calibration import calibration_tokens
from labkit.exporting.exports import forecast_bytes
from labkit.exporting.formats import FORMATS
from labkit.exporting.job import Converted, Job, Questions
from labkit.exporting.transformers_formats import answer
from labkit.exporting.workers.llm_compressor_convert import LEFT
from labkit.probing.texts import Texts

PROSE = lk.demo_texts()["modern prose"]
CALIBRATION = Texts("prose", PROSE.passages[5:])
needs_gptqmodel = pytest.mark.skipif(
    find_spec("gptqmodel") is None or find_spec("optimum") is None,
    reason="the extra labkit[gptq] is not installed",
)


def export(model, out, name, **options):
    return lk.export(model, out, name, check=False, progress=False, **options)


def said(made, key="quantization_config"):
    return json.loads((made.folder / "config.json").read_text())[key]


def expected_tokens(model, tmp_path, sequences=16):
    job = Job(lk.Checkpoint(model), "", tmp_path, tmp_path, tmp_path, CALIBRATION)
    return calibration_tokens(job, sequences)


@pytest.mark.parametrize(
    ("name", "told", "sequences"),
    [
        ("gptq", {"method": "gptq", "format": "gptq", "sym": True}, 16),
        ("awq", {"method": "awq", "format": "gemm", "sym": False}, 8),
    ],
)
def test_gptqmodel_is_told_what_to_make(small_model, tmp_path, tools, name, told, sequences):
    tools("gptqmodel", "torch")
    made = export(small_model, tmp_path / "out", name, calibration=CALIBRATION)
    config = said(made)
    tokens = expected_tokens(small_model, tmp_path, sequences)
    assert len(tokens) == sequences
    assert {key: config[key] for key in told} == told
    assert config["bits"] == 4
    assert config["group_size"] == 128
    assert config["trust_remote_code"] is False
    assert config["read"] == tokens
    # With as many workers as processors it fails on a machine that has two.
    assert int(config["workers"]) >= 2
    assert config["meta"] == {"uri": "https://example.com", "list": []}
    assert "/tmp" not in (made.folder / "config.json").read_text()
    assert "/tmp" not in (made.folder / "quantize_config.json").read_text()
    assert made.calibrated == sum(map(len, tokens))
    assert made.tools == {"gptqmodel": "7.7.0"}
    assert made.notes == ("128 weights in a row share a scale", "not checked, as was asked for")
    assert not {"recipe.yaml", "quant_log.csv"} & {path.name for path in made.folder.iterdir()}


def test_short_texts_are_noted(small_model, tmp_path, tools):
    tools("gptqmodel", "torch")
    made = export(small_model, tmp_path / "out", "gptq", calibration=Texts("t", ["one text"]))
    note = "the calibration's texts gave 1 of 16 sequences of 256 tokens; longer texts give more"
    assert note in made.notes
    assert note in json.loads((made.folder / "receipt.json").read_text())["notes"]


def test_gptq_without_texts_is_refused(small_model, tmp_path, tools):
    tools()
    with pytest.raises(LabkitError, match=r"^gptq must be calibrated, and what small-llama is for"):
        export(small_model, tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="the extra is installed")
def test_gptq_without_its_extra_is_refused(small_model, tmp_path):
    with pytest.raises(LabkitError, match=r"^gptq needs labkit\[gptq\]: gptqmodel.* not installed"):
        export(small_model, tmp_path / "out", "gptq", calibration=CALIBRATION)


def test_fp8_is_rounded_file_by_file_but_for_embeddings_and_head(small_model, tmp_path, tools):
    tools("llmcompressor", "compressed_tensors")
    made = export(small_model, tmp_path / "out", "fp8")
    assert said(made) == {
        "by": "file",
        "scheme": "FP8_DYNAMIC",
        "ignore": LEFT,
        "max_workers": 1,
        "device": "cpu",
    }
    assert made.tools == {"llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0"}
    assert not made.calibration


@pytest.mark.parametrize(
    ("module", "left"),
    [
        ("lm_head", True),
        ("model.embed_tokens", True),
        ("model.layers.0.mlp.gate", True),
        ("model.layers.0.block_sparse_moe.gate", True),
        ("model.layers.0.mlp.shared_expert_gate", True),
        ("model.layers.0.mlp.router", True),
        ("model.layers.0.mlp.router.linear", True),
        ("model.layers.0.mlp.gate_proj", False),
        ("model.layers.0.mlp.experts.3.gate_proj", False),
        ("model.layers.0.self_attn.q_proj", False),
    ],
)
def test_what_sends_tokens_to_experts_keeps_its_bits(module, left):
    """By the rule of compressed-tensors: after "re:", `re.match` on the module's name."""
    found = any(
        re.match(one[3:], module) if one.startswith("re:") else one == module for one in LEFT
    )
    assert bool(found) == left


def test_w4a16_is_rounded_without_texts_and_by_gptq_with_them(small_model, tmp_path, tools):
    tools("llmcompressor", "compressed_tensors", "transformers", "datasets")
    weights = {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 128,
        "symmetric": True,
    }
    rounded = said(export(small_model, tmp_path / "one", "w4a16"))
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    assert rounded["by"] == "file"
    assert rounded["config"] == {"config_groups": {"group_0": group}, "ignore": LEFT}

    made = export(small_model, tmp_path / "two", "w4a16", calibration=CALIBRATION)
    by_gptq, tokens = said(made), expected_tokens(small_model, tmp_path)
    assert by_gptq["by"] == "gptq"
    assert by_gptq["read"] == tokens
    assert by_gptq["max_seq_length"] == max(map(len, tokens))
    assert by_gptq["num_calibration_samples"] == len(tokens)
    assert by_gptq["config_groups"] == {
        "group_0": {"targets": ["Linear"], "weights": weights},
    }
    assert by_gptq["ignore"] == LEFT
    assert by_gptq["trust_remote_code"] is False
    assert by_gptq["save_compressed"] is True
    assert made.calibration == "prose"


def test_transformers_answers_in_float32(small_model, tmp_path):
    """A model that is not quantised, so that what is expected is known."""
    from transformers import AutoModelForCausalLM

    rows = [[1, 5, 7, 9], [3, 4]]
    (tmp_path / "work").mkdir()
    job = Job(lk.Checkpoint(small_model), "m", small_model, small_model, tmp_path / "work")
    answers = answer(
        ("numpy",), (sys.executable,), job, Converted((), ".", "", {}, 0, 0.0), Questions(rows, [])
    )
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    for row, file in zip(rows, answers.log_probabilities, strict=True):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        np.testing.assert_allclose(np.load(file), expected, atol=2e-5)
    assert answers.tools["numpy"] == np.__version__
    assert set(answers.tools) == {"transformers", "numpy"}


def test_the_forecast_counts_what_keeps_its_bits(small_model):
    model = lk.Checkpoint(small_model)
    outside = sum(t.elements for n, t in model.tensors.items() if model.layer_of(n) is None)
    inside = sum(tensor.elements for tensor in model.tensors.values()) - outside
    assert forecast_bytes(FORMATS["fp8"], model) == int((outside * 16 + inside * 8.1) / 8)


@needs_gptqmodel
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_gptqmodel_makes_what_transformers_reads(small_model, tmp_path, name):
    made = lk.export(
        small_model,
        tmp_path / "out",
        name,
        calibration=Texts("prose", PROSE.passages[5:11]),
        texts=Texts("prose", PROSE.passages[:2]),
        progress=False,
    )
    # Measured: 0.21 and 0.16, as the weights are random; of another such model it would be above 1.
    assert made.checked.texts[0].kl.value < 0.4
    assert made.nbytes < forecast_bytes(FORMATS[name], lk.Checkpoint(small_model)) + 4_000_000


@pytest.mark.skipif(
    not os.environ.get("LABKIT_TOOLS"), reason="LABKIT_TOOLS=1 runs tools that uv fetches first"
)
@pytest.mark.parametrize(("name", "kl"), [("fp8", 0.05), ("w4a16", 0.4)])
def test_llm_compressor_makes_what_transformers_reads(small_model, tmp_path, name, kl):
    texts = Texts("prose", PROSE.passages[:2])
    made = lk.export(small_model, tmp_path / "out", name, texts=texts, progress=False)
    assert made.checked.texts[0].kl.value < kl
