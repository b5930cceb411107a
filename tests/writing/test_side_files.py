"""Which files go along with a merged model, and which tokenizer it gets."""

import json
import os
import re
import shutil

import pytest
from transformers import AutoTokenizer

import labkit as lk
import labkit.writing.side_files
from labkit.models.model_files import is_side_file
from labkit.writing.side_files import side_files
from tests.tiny import make_letters, make_tokenizer

CARRIED = (
    "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "tokenizer.model.v3", "qwen.tiktoken", "vocab.bpe", "vocab.json", "vocab.txt", "merges.txt",
    "source.spm", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json",
    "added_tokens.json", "tekken.json", "encoder.json", "dict.txt", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/tool.jinja", "LICENSE", "LICENSE.txt",
    "LICENCE.md", "NOTICE", "USE_POLICY.md", "LICENSE-2.0", "MODEL_LICENSE",
)  # fmt: skip
LEFT = (
    "credentials.json", ".secret.json", ".env", "notes.txt", "token", ".token.json", "train.py",
    "adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "training_args.bin",
    "README.md", "results.json", "LICENSE_KEY.json", "LICENSE.key",
    ".tokenizer.json", "id_rsa", "original/params.json", "additional_chat_templates/deep/a.jinja",
    "vision/config.json", "additional_chat_templates/note.txt",
)  # fmt: skip


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


@pytest.fixture
def lora(tiny_adapter, tmp_path):
    return shutil.copytree(tiny_adapter, tmp_path / "lora")


def merged(base, lora, out, **options):
    receipt = lk.plan(base, lora, "1x4", **options).write(out, progress=False, device="cpu")
    assert lk.verify(out, progress=False)
    return receipt


def put(folder, names, text="{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_takes_along_what_it_needs_and_nothing_else(base, lora, tmp_path):
    before = names_in(base)
    put(base, (*CARRIED, *LEFT))
    receipt = merged(base, lora, tmp_path / "out")
    made = names_in(tmp_path / "out")
    own = {"README.md", "recipe.yaml", "receipt.json", "gradient.png"}
    assert made == before | set(CARRIED) | own
    listed = json.loads((tmp_path / "out" / "receipt.json").read_text())["files"]
    assert listed == sorted(made)
    assert receipt.notes == ("not copied, as no config of base names it: train.py",)
    put(tmp_path / "out", ["added_config.json"])
    with pytest.raises(lk.LabkitError, match=r"\.json beside"):
        lk.verify(tmp_path / "out", progress=False)


def test_a_bake_takes_along_tokenizer_and_licence(lora, tmp_path):
    put(lora, (*CARRIED, *{*LEFT} - names_in(lora)))
    lk.bake(lora, "1x4", tmp_path / "out")
    others = {name for name in CARRIED if not name.endswith("processor_config.json")}
    others -= {"generation_config.json"}
    own = {"README.md", "receipt.json", "gradient.png"}
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    assert names_in(tmp_path / "out") == others | own | weights
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["files"] == sorted(
        others | own | weights
    )


def test_code_goes_along_where_a_config_names_it(base, lora, tmp_path):
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {
        "AutoModelForCausalLM": "modeling_x.Model", "AutoConfig": "owner/other--elsewhere.Config",
        "AutoModel": 3, "AutoOdd": "../odd.Odd",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    auto_map = {"AutoTokenizer": ["tokenization_x.Slow", None]}
    put(base, ["tokenizer_config.json"], json.dumps({"auto_map": auto_map}))
    put(base, ["modeling_x.py"], "from .parts import A\nimport .more\nraise SystemExit(3)\n")
    put(base, ["parts.py"], "from .modeling_x import B\n  from .gone import C\n")
    put(base, ["tokenization_x.py", "more.py", "elsewhere.py", "train.py"], "raise SystemExit(3)")
    receipt = merged(base, lora, tmp_path / "out")
    code = {name for name in names_in(tmp_path / "out") if name.endswith(".py")}
    assert code == {"modeling_x.py", "parts.py", "more.py", "tokenization_x.py"}
    assert receipt.notes == ("not copied, as no config of base names it: elsewhere.py, train.py",)


@pytest.mark.parametrize("name", ["tokenizer.json", "modeling_x.py", "LICENSE.txt",
                                  "additional_chat_templates"])  # fmt: skip
def test_links_out_of_the_folder_are_refused(base, lora, tmp_path, name):
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.Model"}
    (base / "config.json").write_text(json.dumps(config))
    secret = tmp_path / "secret"
    if name == "additional_chat_templates":
        put(secret, ["a.jinja"])
    else:
        secret.write_text("key")
    (base / name).symlink_to(secret)
    with pytest.raises(lk.LabkitError, match=re.escape(f"{name} is a link to {secret}, outside")):
        merged(base, lora, tmp_path / "out")


def test_what_is_left_out_is_said(base, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(labkit.writing.side_files, "LARGEST_SIDE_FILE", 5_000_000)
    (base / "tokenizer.json").symlink_to("nowhere")
    (base / "vocab.txt").write_bytes(bytes(5_000_001))
    os.mkfifo(base / "merges.txt")
    receipt = merged(base, lora, tmp_path / "out")
    said = "is not copied: it is no plain file, or a link that leads nowhere"
    assert receipt.notes == (
        f"merges.txt of base {said}",
        f"tokenizer.json of base {said}",
        "vocab.txt of base is not copied: it is larger than 5 MB",
        "base holds no tokenizer, and so does the merged model: put one beside it to let it answer",
    )


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
KEPT = "the tokenizer is that of lora, which has no chat template; base's is kept"


def test_the_bases_chat_template_is_kept_where_the_adapter_has_none(base, lora, tmp_path):
    make_tokenizer(base, template=TEMPLATE)
    put(base, ["additional_chat_templates/tool.jinja", "vocab.json", "merges.txt"])
    make_tokenizer(lora)
    receipt = merged(base, lora, tmp_path / "out")
    assert receipt.notes == (KEPT,)
    assert {"vocab.json", "merges.txt", "additional_chat_templates/tool.jinja"} < names_in(
        tmp_path / "out"
    )
    (tmp_path / "out" / "vocab.json").unlink()  # it was none
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.chat_template == {"default": TEMPLATE, "tool": "{}"}


def test_a_chat_template_in_the_bases_config_is_kept_too(base, lora, tmp_path):
    make_tokenizer(base)
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    make_tokenizer(lora)
    receipt = merged(base, lora, tmp_path / "out")
    assert receipt.notes == (KEPT,)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config == {
        **json.loads((lora / "tokenizer_config.json").read_text()), "chat_template": TEMPLATE,
    }  # fmt: skip
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def test_an_adapters_own_chat_template_counts(base, lora, tmp_path):
    make_tokenizer(base, template=TEMPLATE)
    make_tokenizer(lora, template="{{ bos_token }}")
    assert merged(base, lora, tmp_path / "out").notes == ()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ bos_token }}"


def test_another_vocabulary_takes_the_place_of_all_files(base, lora, tmp_path):
    make_tokenizer(base)
    put(base, ["vocab.json", "merges.txt", "special_tokens_map.json"])
    make_letters(lora)
    assert merged(base, lora, tmp_path / "out").notes == ()
    assert not {"vocab.json", "merges.txt", "special_tokens_map.json"} & names_in(tmp_path / "out")


def test_an_adapters_code_never_takes_the_place_of_the_models(base, lora, tmp_path):
    put(base, ["tokenizer_config.json"], json.dumps({"auto_map": {"AutoTokenizer": "one.T"}}))
    put(base, ["one.py"], "base")
    auto_map = {"AutoTokenizer": ["one.T", "two.T"]}
    put(lora, ["tokenizer_config.json"], json.dumps({"auto_map": auto_map}))
    put(lora, ["tokenizer.json", "one.py", "two.py", "three.py"], "lora")
    merged(base, lora, tmp_path / "out")
    assert (tmp_path / "out" / "one.py").read_text() == "base"
    assert (tmp_path / "out" / "two.py").read_text() == "lora"
    assert not (tmp_path / "out" / "three.py").exists()


def test_more_tokens_than_rows_are_said(base, lora, tmp_path):
    make_tokenizer(lora)
    put(lora, ["added_tokens.json"], '{"<more>": 130}')
    assert merged(base, lora, tmp_path / "out").notes == (
        "the tokenizer has 131 tokens, and the merged model's embedding 128 rows: it has no "
        "numbers for the last ones",
    )


def test_a_stale_index_beside_a_whole_model_is_left(base, lora, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {}
    for path in sorted(base.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert (base / "model.safetensors.index.json").is_file()
    merged(base, lora, tmp_path / "out")
    assert "model.safetensors.index.json" not in names_in(tmp_path / "out")
    assert "model.safetensors" in names_in(tmp_path / "out")


@pytest.mark.parametrize("name", CARRIED)
def test_names_that_go(name):
    assert is_side_file(name)


def test_what_verify_and_write_see_is_the_same(base, lora):
    put(base, CARRIED)
    plan = lk.plan(base, lora, "1x4")
    assert side_files(plan) == side_files(plan)
    assert set(CARRIED) < side_files(plan).files.keys()
