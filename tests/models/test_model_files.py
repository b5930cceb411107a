"""Which files of a hub's repository a model and an adapter need."""

from __future__ import annotations

import json

import pytest

from labkit import LabkitError
from labkit.models.model_files import (
    adapter_downloads,
    is_legal,
    is_of_tokenizer,
    is_side_file,
    model_downloads,
)

BESIDE = [
    "LICENSE.txt", "NOTICE", "README.md", "USE_POLICY.md", "additional_chat_templates/tool.jinja",
    "chat_template.jinja", "config.json", "configuration_x.py", "generation_config.json",
    "merges.txt", "modeling_x.py", "qwen.tiktoken", "source.spm", "tokenizer.json",
    "tokenizer.model.v3", "tokenizer_config.json", "vocab.bpe",
]  # fmt: skip
NEVER = [
    ".gitattributes", "checkpoint-500/config.json", "checkpoint-500/model.safetensors",
    "consolidated.safetensors", "credentials.json", "flax_model.msgpack", "model.fp16.safetensors",
    "model.gguf", "notes.txt", "onnx/config.json", "onnx/model.onnx", "original/tokenizer.model",
    "original/consolidated.00.pth", "original/config.json", "tf_model.h5", "training_args.bin",
]  # fmt: skip


def chosen(tmp_path, *weights, index=None):
    """What is downloaded of a repository with files of weights, and what was read first."""
    first = []

    def fetch(names):
        first.extend(names)
        for name in names:
            (tmp_path / name).write_text(json.dumps(index))
        return tmp_path

    names = sorted([*BESIDE, *NEVER, *weights])
    return sorted(set(model_downloads("o/m", names, fetch)) - set(BESIDE)), first


def test_what_stands_beside_the_weights():
    def fetch(_):
        raise AssertionError

    names = [*BESIDE, *NEVER, "model.safetensors"]
    assert sorted(model_downloads("o/m", names, fetch)) == sorted([*BESIDE, "model.safetensors"])


def test_exactly_the_weights_that_transformers_would_load(tmp_path):
    single, index = "model.safetensors", "model.safetensors.index.json"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    assert chosen(tmp_path, index, *shards, index=weight_map) == ([*shards, index], [index])
    assert chosen(tmp_path, single, index, *shards) == ([single], [])
    assert chosen(tmp_path, single, "pytorch_model.bin") == ([single], [])
    pickled, pickled_index = "pytorch_model.bin", "pytorch_model.bin.index.json"
    assert chosen(tmp_path, pickled) == ([pickled], [])
    parts = {"weight_map": {"a": "pytorch_model-1.bin"}}
    assert chosen(tmp_path, pickled_index, "pytorch_model-1.bin", index=parts) == (
        ["pytorch_model-1.bin", pickled_index], [pickled_index])  # fmt: skip
    # Whoever opens the index says what is wrong with it.
    for wrong in ({}, {"weight_map": [1]}, {"weight_map": {"a": 3}}):
        assert chosen(tmp_path, index, *shards, index=wrong)[0] == [index]


def test_weights_under_other_names(tmp_path):
    names = ["config.json", "mymodel.safetensors", "onnx/x.safetensors"]
    assert model_downloads("o/m", names, None) == ["config.json", "mymodel.safetensors"]
    # None of two: which of them would be meant? The usual names are asked for, and not there.
    assert "model.safetensors" in chosen(tmp_path, "a.safetensors")[0]


def test_what_an_adapter_needs():
    names = [
        "README.md", "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors",
        "checkpoint-9/adapter_model.safetensors", "optimizer.pt", "tokenizer.json", "LICENSE",
        "non_lora_trainables.bin", "training_args.bin", "global_step9/x.pt",
    ]  # fmt: skip
    wanted = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
              "LICENSE", "non_lora_trainables.bin"}  # fmt: skip
    assert set(adapter_downloads("o/a", names, None)) == wanted
    assert "adapter_model.bin" in adapter_downloads("o/a", names[:3], None)
    assert "adapters.safetensors" in adapter_downloads(
        "o/a", ["adapter_config.json", "adapters.safetensors"], None
    )


def test_what_lies_deeper_is_named():
    names = ["README.md", "v1/lora/adapter_config.json", "epoch 2/adapter_config.json"]
    with pytest.raises(LabkitError) as caught:
        adapter_downloads("o/a", names, None)
    assert str(caught.value) == (
        "the hub's o/a holds no adapter_config.json, but 2 of its folders do: name one of them, "
        "epoch 2, v1/lora (such as o/a:epoch 2)"
    )
    with pytest.raises(LabkitError, match=r"\(such as o/a@x:runs/1\)"):
        adapter_downloads("o/a@x:runs", ["1/adapter_config.json"], None)
    with pytest.raises(LabkitError) as caught:
        model_downloads("o/m", ["README.md", "final/config.json"], None)
    assert str(caught.value) == (
        "the hub's o/m holds no config.json, but its folder 'final' does; name o/m:final"
    )


def test_what_goes_along_with_a_model():
    code = {"modeling_x.py", "configuration_x.py", "README.md"}
    assert {name for name in BESIDE if is_side_file(name)} == set(BESIDE) - code
    assert not any(map(is_side_file, NEVER))
    for name in ("LICENSE", "LICENSE.txt", "LICENCE-2.0", "NOTICE.md", "MODEL_LICENSE.pdf"):
        assert is_legal(name)
    for name in ("LICENSE.json", "deep/LICENSE", "license_keys.txt", "LICENSE.key"):
        assert not is_legal(name)
    for name in ("spiece.model", "vocab.txt", "entity_vocab.json", "tekken.json", "o200k.tiktoken"):
        assert is_of_tokenizer(name)
    for name in (
        "deep/spiece.model",
        ".vocab.json",
        "a.txt",
        "additional_chat_templates/x/y.jinja",
    ):
        assert not is_of_tokenizer(name)
