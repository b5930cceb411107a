"""Names and layers of what an adapter changes."""

from __future__ import annotations

import pytest

from labkit import Adapter, LabkitError
from labkit.surveys.surveyed_tensors import (
    layers_by_name,
    short_names,
    table_order,
    tensors_to_survey,
)
from tests.tiny import make_adapter


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


def test_tables_go_by_layer_then_by_use_and_end_outside():
    rows = [(None, "lm_head"), (1, "q_proj"), (0, "up_proj"), (0, "other"), (0, "experts.1.k_proj")]
    assert sorted(rows, key=lambda row: table_order(*row)) == [
        (0, "experts.1.k_proj"), (0, "up_proj"), (0, "other"), (1, "q_proj"), (None, "lm_head")
    ]  # fmt: skip


def test_an_adapter_that_selects_nothing_is_refused(tmp_path, tiny_base):
    folder = make_adapter(tmp_path / "lora", tiny_base, target_modules=["q_proj"])
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "none"))
    with pytest.raises(LabkitError, match="target_modules of lora selects none of the 4 modules"):
        tensors_to_survey(None, Adapter(folder))
