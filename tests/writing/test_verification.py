"""`verify` computes a merge again, and says what is missing, changed or different."""

import re
import shutil

import pytest

import labkit as lk
import labkit.writing.layout
from labkit.merging.planning import plan


@pytest.fixture
def merged(tmp_path, tiny_base, tiny_adapter):
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(tiny_adapter, tmp_path / "lora")
    plan(tmp_path / "base", tmp_path / "lora", "0,0,0.5,1").write(
        tmp_path / "merged", progress=False
    )
    return tmp_path / "merged"


def fails(folder, message, **where):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        lk.verify(folder, progress=False, **where)


def test_an_untouched_merge(merged):
    verified = lk.verify(merged, progress=False)
    assert verified.tensors_computed == 14
    written = {path.name for path in merged.iterdir()}
    assert verified.files == len(
        written - {"README.md", "gradient.png", "receipt.json", "recipe.yaml"}
    )


def test_a_recipe_from_another_machine_gives_the_same_bytes(merged, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base").rename(tmp_path / "elsewhere" / "b")
    (tmp_path / "lora").rename(tmp_path / "elsewhere" / "l")
    fails(merged, "recipe.yaml, line 3, base.reference: the base model '../base' does not exist")
    where = {"base": tmp_path / "elsewhere" / "b", "adapters": [tmp_path / "elsewhere" / "l"]}
    lk.verify(merged, progress=False, **where)
    again = lk.plan(lk.Recipe.load(merged / "recipe.yaml", *where.values()))
    receipt = again.write(tmp_path / "again", progress=False)
    assert receipt.notes == ()
    for file in merged.glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_changed_input_is_named(merged, tmp_path):
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fails(merged, "lora: adapter_model.safetensors is not the file that the recipe was made from")
    recipe = lk.Recipe.load(merged / "recipe.yaml")
    receipt = lk.plan(recipe).write(tmp_path / "other", progress=False)
    assert receipt.notes == (
        "lora: adapter_model.safetensors is not the file that the recipe was made from",
    )


def test_a_missing_input_is_named(merged, tmp_path):
    (tmp_path / "base" / "generation_config.json").unlink()
    (merged / "config.json").unlink()
    fails(merged, "config.json is missing or not as the recipe makes it")
    fails(merged, "generation_config.json is missing")


def test_a_changed_merge_is_named(merged):
    file = next(merged.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    fails(merged, f"in {file} differs from")
    file.write_bytes(data[:-1])
    fails(merged, f"{file} has {len(data) - 1} bytes; the recipe makes {len(data)}")
    data[20] ^= 1
    file.write_bytes(data)
    fails(merged, f"the header of {file} differs from what the recipe makes")
    file.unlink()
    fails(merged, f"{file} is missing")


def test_of_several_differences_the_first_is_named(merged, monkeypatch):
    """The first in the order of the files and of their bytes, whichever is found first."""
    monkeypatch.setattr(labkit.writing.layout, "PIECE_BYTES", 1000)
    monkeypatch.setitem(labkit.writing.layout.MERGE_BYTES, "cpu", 1000)
    files = sorted(merged.glob("*.safetensors"))
    assert len(files) > 1
    for file in reversed(files):
        data = bytearray(file.read_bytes())
        tensors = lk.Checkpoint(merged).files[files.index(file)].tensors
        # The last tensor of the last file, and then one more before it, until all differ.
        for tensor in reversed(tensors):
            data[tensor.stop - 1] ^= 1
            file.write_bytes(data)
            fails(merged, f"tensor '{tensor.name}' in {file} differs from")


def test_what_is_no_merge(tmp_path):
    fails(tmp_path / "none", "is no folder; name the folder of a merged model")
    fails(tmp_path, "holds no recipe.yaml; name the folder of a model that labkit merged")
