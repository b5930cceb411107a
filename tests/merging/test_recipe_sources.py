"""What a recipe will read, told before it is read."""

import pytest

from labkit.merging.recipe_sources import named_sources


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "base").mkdir()
    path = tmp_path / "merged" / "recipe.yaml"

    def write(text):
        path.write_text(text)
        return path

    return write


TWO = """
base:
  reference: owner/name
  revision: abc
terms:
- adapter: ../base
- adapter: {reference: owner/lora:deep}
- adapter: ../base
- adapter: /no/where
"""


def test_sources_are_named_once(recipe, tmp_path):
    path = recipe(TWO)
    sources = named_sources(path)
    assert [str(source) for source in sources] == [
        "owner/name from the hub",
        str(tmp_path / "base"),
        "owner/lora:deep from the hub",
        "/no/where",
    ]
    assert [source.on_hub for source in sources] == [True, False, True, False]
    assert sources[0].revision == "abc"
    assert [str(source) for source in named_sources(path, base="x")] == [
        str(tmp_path / "base"), "owner/lora:deep from the hub", "/no/where",
    ]  # fmt: skip
    assert [source.reference for source in named_sources(path, adapters=["x"])] == ["owner/name"]


def test_addresses_are_the_hubs_and_folders_may_lie_here(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "x").mkdir(parents=True)
    text = "base: https://huggingface.co/owner/name/tree/main/deep\nterms: [{adapter: models/x}]"
    base, adapter = named_sources(recipe(text))
    assert base.on_hub
    assert not base.is_cached
    assert adapter.folder == tmp_path / "models" / "x"


@pytest.mark.parametrize("text", ["", "[]", "base: [", "base: {}", "base: a\nterms: 3",
                                  "terms: [{weights: 1}]"])  # fmt: skip
def test_what_is_wrong_is_said_when_it_is_read(recipe, text):
    assert named_sources(recipe(text)) == []


def test_the_cache_is_asked(recipe, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def ask(repository, name, revision):
        asked.append((repository, name, revision))
        return "/a/file" if repository == "owner/name" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", ask)
    base, folder, lora, nowhere = named_sources(recipe(TWO))
    assert base.is_cached
    assert not lora.is_cached
    assert not folder.is_cached
    assert not nowhere.is_cached
    assert asked == [
        ("owner/name", "config.json", "abc"),
        ("owner/lora", "deep/adapter_config.json", None),
    ]
