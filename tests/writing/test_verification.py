"""`verify` computes a merge again, and says what is missing, changed or different."""

import json
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
    assert [note.partition(",")[0] for note in receipt.notes] == ["b holds no tokenizer"]
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
    assert receipt.notes[1:] == (
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


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "adapter_config.json", "chat_template.jinja", "pytorch_model.bin",
        "special_tokens_map.json", "added_tokens.json", "generation.gguf", "modeling_llama.py",
        "custom_generate/generate.py", "additional_chat_templates/tool.jinja", "vocab.txt",
        "preprocessor_config.json", "consolidated.00.pth", "params.json", "quantize_config.json",
        "pytorch_model.bin.index.json", "tf_model.h5",
    ],
)  # fmt: skip
def test_a_folder_that_loads_as_another_model_is_refused(merged, name):
    (merged / name).parent.mkdir(exist_ok=True)
    (merged / name).write_text("{}")
    fails(
        merged,
        f"{merged} loads as another model than the recipe's: it holds {name} beside what the "
        "recipe makes; remove what does not belong there",
    )


def test_other_files_are_named(merged):
    (merged / "gguf").mkdir()
    for name in ("notes.md", "gguf/model.gguf", ".gitattributes", "log.txt", "a.png", "b.png"):
        (merged / name).write_text("")
    verified = lk.verify(merged, progress=False)
    assert verified.others == (
        ".gitattributes", "a.png", "b.png", "gguf/model.gguf", "log.txt", "notes.md",
    )  # fmt: skip
    assert str(verified).endswith(
        "not labkit's: .gitattributes, a.png, b.png, gguf/model.gguf, log.txt and 1 more"
    )


def test_what_is_covered_is_said(merged):
    recipe, receipt = (merged / name for name in ("recipe.yaml", "receipt.json"))
    sums = len(re.findall(r"[0-9a-f]{64}", recipe.read_text()))
    sums += len(json.loads(receipt.read_text())["files_written"])
    verified = lk.verify(merged, progress=False)
    assert sums == verified.sums > 10
    assert str(verified) == (
        f"verified {merged}: {verified.files} files, 0.00 GB, 14 tensors computed again, every "
        f"byte equal; {sums} SHA-256 sums of recipe and receipt are those of the files; not "
        "compared: README.md, receipt.json but for its sums"
    )
    for name in ("README.md", "gradient.png", "receipt.json"):
        (merged / name).unlink()
    assert lk.verify(merged, progress=False).not_compared == (
        "receipt.json, which is missing", "gradient.png, which is not as labkit draws it here",
    )  # fmt: skip
    (merged / "gradient.png").write_bytes(b"another")
    assert "gradient.png, which is not" in str(lk.verify(merged, progress=False))


def test_sums_that_are_not_those_of_the_files_are_refused(merged, tmp_path):
    recipe, receipt = (merged / name for name in ("recipe.yaml", "receipt.json"))
    text = recipe.read_text()
    for digest in re.findall(r"[0-9a-f]{64}", text):
        recipe.write_text(text.replace(digest, "0" * 64))
        fails(merged, "is not the file that the recipe was made from")
    recipe.write_text(text)
    content = json.loads(receipt.read_text())
    for name in content["files_written"]:
        changed = {**content["files_written"], name: "0" * 64}
        receipt.write_text(json.dumps({**content, "files_written": changed}))
        fails(merged, f"{receipt} says another SHA-256 of {name} than the file has")
    more = {**content["files_written"], "no.bin": "0"}
    receipt.write_text(json.dumps({**content, "files_written": more}))
    fails(merged, f"{receipt} names no.bin, which the recipe does not make")


def test_a_merge_without_sums(tiny_base, tiny_adapter, tmp_path):
    plan(tiny_base, tiny_adapter, "1x4").write(tmp_path / "out", progress=False, hashes=False)
    assert lk.verify(tmp_path / "out", progress=False).sums == 0


def test_nothing_is_downloaded_unasked(merged):
    recipe = merged / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("reference: ../lora", "reference: owner/lora"))
    fails(
        merged,
        f"{recipe} names owner/lora from the hub, which is not on this machine; let it be "
        "downloaded with download=True, or say where it is (base=, adapters=)",
    )
    fails(merged, "the hub did not give it", download=True)
    lk.verify(merged, progress=False, adapters=[merged.parent / "lora"])


def test_what_is_no_merge(tmp_path):
    fails(tmp_path / "none", "is no folder; name the folder of a merged model")
    fails(tmp_path, "holds no recipe.yaml; name the folder of a model that labkit merged")


def test_an_export_is_no_merge(merged):
    """The recipe of an exported plan lies in its folder, without the weights of the merge."""
    receipt = json.loads((merged / "receipt.json").read_text())
    (merged / "receipt.json").write_text(json.dumps({**receipt, "format": "gguf-bf16"}))
    fails(
        merged,
        "merged is an export, and only merged models are verified; where it holds a recipe.yaml, "
        "lk.plan(lk.Recipe.load(…)).write makes the model again",
    )
