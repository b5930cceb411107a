"""A recipe that lies elsewhere names the same folders, and nothing that it names is opened."""

from __future__ import annotations

import pytest
import yaml

from labkit.exporting.recipe_copy import recipe_for

RECIPE = """labkit: 0.1.0
# made by hand
base: {reference: ../base, sha256: {model.safetensors: %s}}
terms:
- adapter: {reference: "./inside # it", revision: null}
  weights: 0x2,1x2
- source:
    model: ../gone
  weights: [0, 0, 1, 1]
- adapter: owner/name
  weights: 1x4
- adapter: %s
  weights: 1x4
rest: null
"""


def test_local_folders_are_named_from_the_new_folder_and_the_rest_stays(tmp_path):
    merged, out = tmp_path / "merges" / "merged", tmp_path / "out"
    for folder in (merged, out, tmp_path / "merges" / "base", tmp_path / "far"):
        folder.mkdir(parents=True)
    text = RECIPE % ("0" * 64, tmp_path / "far")
    (merged / "recipe.yaml").write_text(text)
    moved = recipe_for(out, merged)
    said = yaml.safe_load(moved)
    assert said["base"]["reference"] == "../merges/base"
    assert [term.get("adapter") or term["source"] for term in said["terms"]] == [
        {"reference": "../merges/merged/inside # it", "revision": None},
        {"model": "../merges/gone"},
        "owner/name",
        "../far",
    ]
    lines = zip(text.splitlines(), moved.splitlines(), strict=True)
    assert sum(before != after for before, after in lines) == 4


@pytest.mark.parametrize(
    "text",
    [
        None,
        "sparsity_stage: {oneshot: 1}",
        "base: x\nterms: 3",
        "base: x\nterms: [{weights: 1}]",
        "base: {reference: [1]}\nterms: [{adapter: x}]",
        "a: [",
    ],
)
def test_what_is_no_recipe_of_labkits_is_left_out(tmp_path, text):
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    assert recipe_for(tmp_path / "out", tmp_path) is None
