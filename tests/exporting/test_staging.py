import json
import shutil

import pytest
import torch

from labkit.errors import LabkitError
from labkit.exporting.staging import stage
from labkit.models.checkpoint import Checkpoint
from tests.tiny import load_file_of, make_letters


@pytest.fixture
def model(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "merged")
    make_letters(folder)
    for name in ("recipe.yaml", "receipt.json", "README.md", "gradient.png", "modeling.py", ".env"):
        (folder / name).write_text("not for tools")
    return folder


def test_tools_see_weights_config_and_tokenizer_and_nothing_else(model, tmp_path):
    stage(Checkpoint(model), tmp_path / "staged")
    there = {path.name for path in (tmp_path / "staged").iterdir()}
    shards = {path.name for path in model.glob("*.safetensors")}
    assert len(shards) == 2
    assert there == shards | {
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_weights_are_links_and_what_a_tool_might_rewrite_are_copies(model, tmp_path):
    stage(Checkpoint(model), tmp_path / "staged")
    for path in (tmp_path / "staged").iterdir():
        assert path.is_symlink() == (path.suffix == ".safetensors")
    before = (model / "config.json").read_bytes()
    (tmp_path / "staged" / "config.json").write_text("rewritten")
    assert (model / "config.json").read_bytes() == before


def test_one_file_of_another_name_gets_the_usual_one(tmp_path, loud_base):
    folder = shutil.copytree(loud_base, tmp_path / "one")
    from safetensors.torch import save_file

    tensors = load_file_of(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(tensors, folder / "consolidated.safetensors", metadata={"format": "pt"})
    stage(Checkpoint(folder), tmp_path / "staged")
    linked = tmp_path / "staged" / "model.safetensors"
    assert linked.resolve() == (folder / "consolidated.safetensors").resolve()
    assert not (tmp_path / "staged" / "model.safetensors.index.json").exists()


def test_pickled_weights_are_refused(model, tmp_path):
    tensors = load_file_of(model)
    for path in [*model.glob("*.safetensors"), *model.glob("*.index.json")]:
        path.unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    with pytest.raises(LabkitError) as caught:
        stage(Checkpoint(model), tmp_path / "staged")
    assert str(caught.value) == (
        f"{model} keeps its weights in pytorch_model.bin, and tools would run what is pickled "
        "there; save it as safetensors first (transformers' save_pretrained)"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_config_that_names_code_is_refused(model, tmp_path, name):
    config = json.loads((model / name).read_text()) | {"auto_map": {"AutoModel": "modeling.M"}}
    (model / name).write_text(json.dumps(config))
    with pytest.raises(LabkitError) as caught:
        stage(Checkpoint(model), tmp_path / "staged")
    assert str(caught.value) == (
        f"{model / name} has auto_map, which names code that a tool would have to run; labkit runs "
        "none: export a model that transformers knows by itself"
    )
    assert not (tmp_path / "staged").exists()


def test_a_model_that_is_quantised_already_is_refused(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(LabkitError, match=r"is quantised \(gptq\)"):
        stage(Checkpoint(model), tmp_path / "staged")
