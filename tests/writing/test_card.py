"""The model card: complete, valid for the hub, and safe against what names may hold."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard

import labkit as lk
from labkit.figures.gradient_figure import layer_groups
from labkit.merging.recipe import CardOptions
from labkit.writing.card import as_text, fenced
from labkit.writing.front_matter import own_card
from tests.tiny import make_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
HOSTILE = "<script>alert(1)<|script>\n---\n# x `a` | ![x](y) {{z}} $m$"


@pytest.fixture
def merge(tmp_path, tiny_base, tiny_adapter):
    """Copies base and adapter under names, merges them, and gives back the folder."""

    def merge(base="base", adapter="lora", card="", base_card=None, adapter_card=None,
              template=None, out="merged", weights_for=None, **recipe):  # fmt: skip
        shutil.copytree(tiny_base, tmp_path / base)
        shutil.copytree(tiny_adapter, tmp_path / adapter)
        make_tokenizer(tmp_path / base, template)
        (tmp_path / adapter / "README.md").unlink(missing_ok=True)
        for name, text in ((base, base_card), (adapter, adapter_card)):
            if text is not None:
                (tmp_path / name / "README.md").write_text(text)
        options = CardOptions(**card) if card else CardOptions()
        term = lk.Term(str(tmp_path / adapter), "0,0,0.5,1", weights_for or {})
        made = lk.Recipe(str(tmp_path / base), [term], card=options, **recipe)
        lk.plan(made).write(tmp_path / out, progress=False)
        return tmp_path / out

    return merge


def read(folder):
    return ModelCard((folder / "README.md").read_text())


def test_the_ratio_counts_modules_that_have_a_gradient_of_their_own(merge):
    folder = merge(weights_for={"self_attn": "1x4"})
    card = (folder / "README.md").read_text()
    # Of the seven modules of each layer, four are attention's.
    whole = (4 * 1 + 3 * 0.375) / 7
    assert (
        f"The mean weight over all modules, the ratio of the merge, is {whole:.2f}. This first "
        "list is for the modules that no pattern below selects, and has the mean 0.38." in card
    )
    assert "Modules named `self_attn`, mean weight 1.00:" in card
    assert f"| 0–1 | {4 / 7:.2f} | 8 |" in card
    assert "| 3 | 1.00 | 7 |" in card
    assert "Modules that have a gradient of their own are drawn below all others." in card


def test_the_whole_card(merge):
    folder = merge("Pygmalion-2-13b", "supercot")
    card = read(folder)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "lora", "gradient-merge", "labkit"],
    }
    text = (folder / "README.md").read_text()  # the hub's reader drops the comment
    for part in (
        "# license: fill in the license that the base model and the adapters allow\n---",
        "# merged",
        "- Base model: Pygmalion-2-13b\n- LoRA: supercot\n- Made with: labkit 0.1.0",
        "The mean weight, the ratio of the merge, is 0.38.\n\n```\n0,0,0.5,1\n```",
        "![Layer weights of supercot in Pygmalion-2-13b as bars, 4 layers, mean weight 0.38, "
        "0–1: 0; 2: 0.5; 3: 1](gradient.png)",
        "The light blue is Pygmalion-2-13b and the light green is supercot: the higher the green",
        "14 tensors were changed; 24 keep the base's own bytes.",
        "| layers | weight | tensors | norm asked for | norm after rounding |",
        "| 0–1 | 0.00 | 0 | 0 | 0 |\n| 2 | 0.50 | 7 | 0.0",
        "Alpaca:\n\n```\n### Instruction:\n",
        "Metharme:\n\n```\n<|system|>This is a text adventure game.",
        "## Bias, risks and limitations",
        "labkit merge --recipe recipe.yaml --out again",
    ):
        assert part in text
    digests = re.findall(r"`[0-9a-f]{64}`", text)
    assert len(digests) == len(lk.Recipe.load(folder / "recipe.yaml").sha256[
        str(folder.parent / "Pygmalion-2-13b")]) + 2  # fmt: skip


@pytest.mark.parametrize(
    ("base_card", "adapter_card", "expected", "comment"),
    [
        ("---\nlicense: llama2\nlanguage: en\n---\n", None, "llama2", None),
        ("---\nlicense: llama2\n---", "---\nlicense: llama2\n---", "llama2", None),
        (
            "---\nlicense: llama2\n---",
            "---\nlicense: mit\n---",
            None,
            "# license: fill in; the inputs differ (base: llama2, lora: mit)",
        ),
        (None, "---\nlicense: mit\n---", None, "# license: fill in the license that the base"),
        ("---\nlicense: &a [x]\n---", None, None, "# license: fill in the license that the base"),
        ("---\nlicense: 'x\n\n---", None, None, "# license: fill in the license that the base"),
        ("no front matter", None, None, "# license: fill in the license that the base"),
    ],
)
def test_the_licence_is_the_inputs_or_left_open(merge, base_card, adapter_card, expected, comment):
    folder = merge(base_card=base_card, adapter_card=adapter_card)
    card = read(folder)
    assert card.data.license == expected
    if comment:
        assert comment in (folder / "README.md").read_text()
    else:
        assert "# license" not in (folder / "README.md").read_text()
    if base_card and "language" in base_card:
        assert card.data.language == ["en"]


def test_the_recipe_speaks_for_the_card(merge):
    options = {"title": "My *merge*", "license": "llama2", "language": ("en", "de")}
    card = read(merge("alpaca", card={**options, "prompts": ("metharme",)}))
    assert card.data.license == "llama2"
    assert card.data.language == ["en", "de"]
    assert "\n# My \\*merge\\*\n" in card.content
    assert "Metharme:" in card.content
    assert "Alpaca:" not in card.content


def test_hub_ids_are_named_and_linked(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), "0,0,0.5,1")])
    for source, name in zip(recipe.sources, ("owner/base", "owner/lora"), strict=True):
        located = source._located
        changed = type(located)(name, located.folder, name.split("/")[1], name, "abc123")
        monkeypatch.setattr(source, "_located", changed)
    lk.plan(recipe).write(tmp_path / "merged", progress=False)
    card = read(tmp_path / "merged")
    assert card.data.base_model == ["owner/base", "owner/lora"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert "[lora](https://huggingface.co/owner/lora), revision `abc123`" in card.content
    text = (tmp_path / "merged" / "recipe.yaml").read_text()
    assert "base:\n  reference: owner/base\n  revision: abc123\n" in text


def test_hostile_names(merge):
    folder = merge(HOSTILE.replace("/", "|"), "`x` | <b> &amp; --- {", out="__*<i>`'\"")
    card = read(folder)
    assert card.data.tags == ["merge", "lora", "gradient-merge", "labkit"]
    body = card.text
    outside = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    for mark in ("<script", "<b>", "<i>", "![x]", "&amp;", "\n---\n"):
        assert not re.search(rf"(?<!\\){re.escape(mark)}", outside)
    compile(re.search(r"```python\n(.*?)\n```", body, re.DOTALL)[1], "card", "exec")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("- a", "\\- a"),
        ("1. a", "1\\. a"),
        ("=", "\\="),
        ("a-b_c.d", "a-b\\_c.d"),
        ("1.5", "1\\.5"),
    ],
)
def test_names_are_text(name, text):
    assert as_text(name) == text


def test_fences_are_longer_than_what_they_hold():
    assert fenced("a ```` b")[0] == "`````"


def test_layer_groups():
    assert layer_groups([lk.Gradient.ramp(40, 18, 20)]) == [(0, 18), (19, 19), (20, 39)]
    assert layer_groups([lk.Gradient(range(40))]) == [(5 * i, 5 * i + 4) for i in range(8)]
    assert layer_groups([lk.Gradient([0, 1]), lk.Gradient([1, 1])]) == [(0, 0), (1, 1)]


def test_a_card_that_is_not_there_is_silent(tmp_path):
    assert own_card(tmp_path) == CardOptions()


def test_of_another_card_only_licence_and_languages_are_read(tmp_path):
    results = "model-index:\n- name: x\n  results:\n" + "  - value: [1, &a 2]\n" * 40_000
    text = f"\ufeff---\r\n{results}language:\n- en\n# and\n- de\nlicense: MIT\n---\nbody"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert own_card(tmp_path) == CardOptions(license="mit", language=("en", "de"))


@pytest.mark.parametrize(
    "text",
    [
        "---\n" + "\n" * 990_000,
        "---" + "\n" * 990_000 + "-",
        "---\nlicense: " + "[" * 990_000 + "\n---\n",
        "---\n" + "license: mit\n" * 70_000 + "---\n",
        "---\nlicense: mit\n",
        "license: mit\n---\n",
        "---\nlicense_name: mit\n---\n",
    ],
)
def test_odd_cards_are_silent_at_once(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    began = time.monotonic()
    assert own_card(tmp_path) == CardOptions()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("language", ["3", "{a: b}", "[[]]"])
def test_an_odd_language_does_not_silence_the_licence(tmp_path, language):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\nlanguage: {language}\n---\n")
    assert own_card(tmp_path) == CardOptions(license="mit")


def test_a_card_that_is_no_plain_file_is_silent(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert own_card(tmp_path) == CardOptions()


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_snippet_runs(merge, template):
    folder = merge("alpaca", template=template)
    card = (folder / "README.md").read_text()
    assert ("apply_chat_template" in card) == (template is not None)
    code = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
