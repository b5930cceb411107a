import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import labkit as lk
from tests.tiny import make_base


def folder_with(path, config, tensors):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(2) for name in tensors}, path / "model.safetensors")
    return path


@pytest.fixture
def broken(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_opens_shards_and_reads_tensors(tiny_base):
    base = lk.Checkpoint(tiny_base)
    assert base.layers == 4
    assert base.layer_prefix == "model.layers"
    assert len(base.files) > 1
    assert base.read("model.norm.weight").dtype == torch.bfloat16
    assert base.name == "tiny-llama"
    assert "4 layers" in repr(base)


def test_opens_a_single_file(tmp_path):
    base = lk.Checkpoint(make_base(tmp_path / "one", layers=2, shard="1GB"))
    assert [file.path.name for file in base.files] == ["model.safetensors"]


def test_layer_of(tiny_base):
    base = lk.Checkpoint(tiny_base)
    assert base.layer_of("model.layers.3.mlp.up_proj.weight") == 3
    assert base.layer_of("model.norm.weight") is None
    # Prediction layers behind the declared ones are no layers of the stack.
    assert base.layer_of("model.layers.4.mlp.up_proj.weight") is None


@pytest.mark.parametrize(
    ("config", "names", "prefix"),
    [
        ({"n_layer": 2}, ["h.0.attn.weight", "h.1.attn.weight"], "h"),
        (
            {"num_hidden_layers": 2},
            [f"model.layers.{i}.mlp.experts.{e}.w" for i in range(2) for e in range(2)],
            "model.layers",
        ),
        (
            {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 3}},
            [f"model.layers.{i}.w" for i in range(2)] + [f"vision.blocks.{i}.w" for i in range(3)],
            "model.layers",
        ),
    ],
)
def test_layers_are_found_from_config_and_names(tmp_path, config, names, prefix):
    base = lk.Checkpoint(folder_with(tmp_path / "base", config, names))
    assert (base.layer_prefix, base.layers) == (prefix, 2)


def test_folders_that_are_no_model(tmp_path, broken):
    def error(path):
        with pytest.raises(lk.LabkitError) as caught:
            lk.Checkpoint(path)
        return str(caught.value)

    assert "does not exist: expected a folder, or a hub id" in error(tmp_path / "no" / "such" / "x")
    assert "is a file; name the folder" in error(broken / "config.json")
    index = broken / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = content["weight_map"]
    first = next(iter(names))

    index.write_text(json.dumps({"weight_map": {**names, first: "../x.safetensors"}}))
    assert "expected the name of a .safetensors file in the same folder" in error(broken)
    index.write_text(json.dumps({"weight_map": {**names, first: "x.safetensors"}}))
    assert "names 'x.safetensors', which is not in the folder" in error(broken)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in names.items() if k != first}}))
    assert f"'{first}' stands in only one of them" in error(broken)
    index.write_text("{}")
    assert "has no weight_map" in error(broken)
    index.write_text("no JSON")
    assert "is not JSON" in error(broken)
    index.unlink()
    assert "holds neither model.safetensors.index.json nor model.safetensors" in error(broken)


def test_configs_that_do_not_fit(tmp_path):
    one = folder_with(tmp_path / "one", {}, ["model.layers.0.w", "model.layers.1.w", "tower.0.w"])
    assert lk.Checkpoint(one).layers == 2  # the one complete stack of that name
    for names in (["model.layers.0.w", "h.0.w"], ["model.layers.1.w"], ["w"]):
        path = folder_with(tmp_path / "a", {}, names)
        with pytest.raises(lk.LabkitError, match="does not say how many layers"):
            lk.Checkpoint(path)
        shutil.rmtree(path)
    path = folder_with(tmp_path / "b", {"n_layer": 3}, ["h.0.w", "h.1.w"])
    with pytest.raises(lk.LabkitError, match="says 3 layers, but .* show 2 under 'h'"):
        lk.Checkpoint(path)
    (path / "config.json").write_text("[]")
    with pytest.raises(lk.LabkitError, match="holds list, expected a JSON object"):
        lk.Checkpoint(path)


def test_a_hub_id_that_cannot_be_had():
    with pytest.raises(lk.LabkitError, match="is no folder here, and the hub did not give it"):
        lk.Checkpoint("nobody/nothing")
