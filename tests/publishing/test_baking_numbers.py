"""What a bake tells: its receipt, its card and the alphas it writes, by hand."""

import json
import math
from pathlib import Path

import pytest

import labkit as lk
from labkit.publishing.baking import BakedModule, BakeReceipt
from tests.publishing.test_baking import without_base_layers
from tests.tiny import make_adapter


def module(weight, into="alpha_pattern"):
    return BakedModule("model.layers.0.q_proj", 0, weight, 8.0, 8.0 * weight, into)


def receipt(*modules):
    return BakeReceipt(
        folder=Path("out/baked"),
        adapter="lora",
        gradient=lk.Gradient([0.25, 1.0]),
        modules=modules,
        files_written={"adapter_config.json": "ab"},
        nbytes=2_345_000,
        seconds=0.0123456,
    )


def test_the_receipt_in_words():
    mixed = receipt(module(0.5), module(1.0), module(0.0), module(2.0, "lora_B"))
    assert mixed.how == "alpha_pattern and lora_B"
    assert list(mixed.summary()) == [
        ("written", "out/baked"),
        ("baked", "lora, mean weight 0.62"),
        ("how", "alpha_pattern scales 2 of 3 modules"),
        ("how", "lora_B is scaled, and rounded, in 1 of 1 modules"),
        ("took", "12 ms, 2.35 MB"),
    ]


def test_the_receipts_file():
    assert receipt(module(0.5)).to_json() == {
        "labkit": "0.1.0",
        "adapter": "lora",
        "weights": [0.25, 1.0],
        "baked_into": "alpha_pattern",
        "seconds": 0.012,
        "files_written": {"adapter_config.json": "ab"},
        "files": [],
        "modules": [
            {"name": "model.layers.0.q_proj", "layer": 0, "weight": 0.5, "alpha": 8.0,
             "baked": 4.0, "into": "alpha_pattern"},
        ],
    }  # fmt: skip


ALPHA = 10
"""Of those that √5 does not give back: `ALPHA / √5 · √5` is another number."""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("baking") / "lora"
    settings = {"target_modules": ["up_proj", "embed_tokens"], "use_rslora": True, "r": 5}
    make_adapter(folder, tiny_base, lora_alpha=ALPHA, **settings)
    without_base_layers(folder)
    return folder


def test_the_alpha_is_one_that_rounding_changes():
    assert ALPHA / math.sqrt(5) * math.sqrt(5) != ALPHA


@pytest.mark.parametrize("rest", [0, 0.5, 1])
def test_alphas_and_the_weight_outside_the_layers(adapter, tmp_path, rest):
    made = lk.bake(adapter, "0.5,0,1,-2", tmp_path / "baked", rest=rest, alpha_pattern=True)
    weights = {one.layer: (one.weight, one.alpha, one.baked) for one in made.modules}
    assert weights[1] == (0, ALPHA, 0)
    assert weights[3] == (-2, ALPHA, -2 * ALPHA)
    assert weights[None][0] == rest
    # √5 does not divide evenly, and yet the file says what the user wrote, times the weight.
    config = json.loads((tmp_path / "baked" / "adapter_config.json").read_text())
    patterns = {name.split(".")[-1]: value for name, value in config["alpha_pattern"].items()
                if r"layers\.0\." in name}  # fmt: skip
    assert patterns == {"up_proj": ALPHA / 2}
    up = lk.Adapter(tmp_path / "baked").modules["model.layers.0.mlp.up_proj"]
    assert up.scaling == pytest.approx(ALPHA / 2 / math.sqrt(5), rel=1e-15)


def test_what_the_files_are_in_bytes_and_seconds(adapter, tmp_path):
    made = lk.bake(adapter, "0.5x4", tmp_path / "baked", rest=1)
    files = ("adapter_model.safetensors", "adapter_config.json")
    assert made.nbytes == sum((tmp_path / "baked" / name).stat().st_size for name in files)
    assert sorted(made.files_written) == sorted(files)
    assert 0 < made.seconds < 60


@pytest.mark.parametrize("alpha_pattern", [False, True])
def test_the_card_says_how_it_was_baked(tiny_base, tmp_path, alpha_pattern):
    plain = make_adapter(tmp_path / "lora", tiny_base, target_modules=["up_proj"])
    lk.bake(plain, "0,0.5,1,1", tmp_path / "baked", alpha_pattern=alpha_pattern)
    card = (tmp_path / "baked" / "README.md").read_text()
    assert "The mean weight is 0.62. " in card
    scaled = "The factor B of each module was scaled by its layer's weight, and rounded once."
    untouched = "The tensors are the LoRA's own, byte for byte: `alpha_pattern`"
    assert (scaled in card) == (not alpha_pattern)
    assert (untouched in card) == alpha_pattern
    assert "base = 'tiny-llama'" in card
    assert "PeftModel.from_pretrained(model, 'baked')" in card
