"""Names and layers of what an adapter changes."""

from __future__ import annotations

from labkit.surveys.surveyed_tensors import layers_by_name, short_names


def test_short_names_tell_the_modules_of_one_layer_apart():
    names = [
        ("model.layers.0.mlp.experts.0.w1", 0),
        ("model.layers.0.mlp.experts.1.w1", 0),
        ("model.layers.1.mlp.experts.0.w1", 1),
        ("lm_head", None),
    ]
    assert list(short_names(names).values()) == ["0.w1", "1.w1", "0.w1", "lm_head"]


def test_layers_by_name_takes_the_largest_group():
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(3)] + ["vision.blocks.0.fc", "lm_head"]
    assert list(layers_by_name(names).values()) == [0, 1, 2, None, None]
