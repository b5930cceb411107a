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


def test_of_two_whole_models_the_one_that_transformers_loads(tiny_base, tmp_path):
    """Its order: model.safetensors, shards by their index, then pickled files likewise."""
    from tests.oracle import load
    from tests.tiny import load_file_of, pickled

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    shards = load_file_of(folder)
    single = {name: values + 1 for name, values in shards.items()}
    one = pickled(tiny_base, tmp_path / "bins", 1)
    shutil.copy(one / "pytorch_model.bin", folder)
    index = "model.safetensors.index.json"
    name = "model.norm.weight"

    base = lk.Checkpoint(folder)
    assert torch.equal(base.read(name), shards[name])
    assert base.notes == (
        f"base also holds pytorch_model.bin, which is not read: transformers would load {index}",
    )
    save_file(single, folder / "model.safetensors", {"format": "pt"})
    base = lk.Checkpoint(folder)
    assert torch.equal(base.read(name), single[name])
    assert [note.split(" also holds ")[1].split(",")[0] for note in base.notes] == [
        index,
        "pytorch_model.bin",
    ]
    assert torch.equal(load(folder, torch.bfloat16).state_dict()[name], single[name])


def test_a_stale_index_beside_a_whole_file_is_not_read(tiny_base, tmp_path):
    from tests.tiny import load_file_of

    folder = tmp_path / "base"
    folder.mkdir()
    shutil.copy(tiny_base / "config.json", folder)
    save_file(load_file_of(tiny_base), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text("no JSON")
    base = lk.Checkpoint(folder)
    assert len(base.files) == 1
    assert "also holds model.safetensors.index.json, which is not read" in base.notes[0]


def test_a_layer_count_that_only_the_names_show(tmp_path):
    """LLaVA-1.5's text_config names no number of layers; the vision tower's is its own."""
    config = {"text_config": {"model_type": "llama"}, "vision_config": {"num_hidden_layers": 3}}
    names = [f"language_model.model.layers.{i}.w" for i in range(5)]
    tower = [f"vision_tower.vision_model.encoder.layers.{i}.w" for i in range(3)]
    base = lk.Checkpoint(folder_with(tmp_path / "base", config, names + tower))
    assert (base.layer_prefix, base.layers) == ("language_model.model.layers", 5)


@pytest.mark.parametrize("count", [0, -1, None, True, 1.5, "2"])
def test_impossible_layer_counts_are_refused(tmp_path, count):
    path = folder_with(tmp_path / "base", {"num_hidden_layers": count}, ["model.layers.0.w"])
    with pytest.raises(lk.LabkitError, match="has num_hidden_layers .*; expected a number of lay"):
        lk.Checkpoint(path)


def test_which_sign_of_quantisation_was_seen(tiny_base, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "awq"}})
    )
    with pytest.raises(
        lk.LabkitError,
        match=r"is quantised \(awq\); so says config.json, though its tensors are plain numbers: "
        "if they are the unquantised ones, take quantization_config out of it; a merge needs",
    ):
        lk.plan(folder, tiny_adapter, "1x4")
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("model*"):
        path.unlink()
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(2, 2, dtype=torch.int32)}
    rest = {f"model.layers.{i}.w": torch.zeros(2) for i in range(4)}
    save_file(packed | rest, folder / "model.safetensors")
    with pytest.raises(
        lk.LabkitError,
        match=r"is quantised \(by the names of its tensors\); 'model.layers.0.mlp.up_proj.qweight' "
        "is packed, though config.json is silent",
    ):
        lk.plan(folder, tiny_adapter, "1x4")


def test_a_model_one_folder_down_is_named(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "inner")
    with pytest.raises(lk.LabkitError, match=r"no config.json, but its folder 'inner' does; name"):
        lk.Checkpoint(tmp_path)
