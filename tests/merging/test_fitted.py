"""What fitted weights came from, in the recipe and in the card."""

import shutil

import pytest
import yaml

import labkit as lk
from labkit.errors import LabkitError
from labkit.merging.fitted import Fitted, FittedText, HeldOutRow, fitted_from
from tests.tiny import make_tokenizer

FITTED = Fitted(
    "better than the constant 0.44 by 0.032 [0.021, 0.042] on 7 at the same KL (nats a token)",
    0.3,
    0.1,
    "free",
    8,
    (FittedText("target", "7", "1" * 64, 66), FittedText("keep", "modern | prose", "ab" * 32, 64)),
    (
        HeldOutRow("fit", "7", "nll", 3.25, 3.125, 3.5),
        HeldOutRow("base", "modern | prose", "kl", 0.0, 0.0, 0.0),
    ),
)


def test_a_recipe_keeps_it(tmp_path, tiny_base, tiny_adapter):
    adapter = lk.Adapter(tiny_adapter)
    made = lk.Recipe(tiny_base, [lk.Term(adapter, "0,0,0.5,1", fitted=FITTED)])
    made.save(tmp_path / "recipe.yaml")
    read = lk.Recipe.load(tmp_path / "recipe.yaml")
    assert read.terms[0].fitted == FITTED
    assert read.to_yaml(tmp_path) == made.to_yaml(tmp_path)
    # What is merged does not depend on it.
    assert made.terms[0] == lk.Term(adapter, "0,0,0.5,1")


def test_numbers_are_written_with_six_digits():
    row = HeldOutRow("fit", "t", "nll", 3.2075123456, 3.1, 3.3)
    assert row == HeldOutRow("fit", "t", "nll", 3.2075123456, 3.1, 3.3)
    data = Fitted("s", 0.3, 0.1, "free", 8, (), (row,)).data()
    assert data["held_out"][0]["estimate"] == 3.20751
    assert fitted_from(data).held_out[0].estimate == 3.20751


def changed(*path, value):
    data = FITTED.data()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("yes", "fitted has 'yes'; expected said, strength, smooth, family"),
        ({"said": "x"}, "fitted has said; expected said, strength"),
        (changed("strength", value="much"), "strength is 'much'; expected a finite number"),
        (changed("strength", value=float("inf")), "strength is inf; expected a finite number"),
        (changed("evaluations", value=1.5), "evaluations is 1.5; expected a whole number"),
        (changed("said", value=[1]), r"said is '?\[1\]'?; expected text"),
        (changed("texts", value="all"), "texts is no list of at most 200 entries"),
        (changed("held_out", value=[{}] * 201), "held_out is no list of at most 200"),
        (changed("texts", 0, "role", value="test"), "the role 'test' is neither target nor keep"),
        (changed("texts", 0, "sha256", value="12"), "the sha256 of the text '7' is no SHA-256"),
        (changed("texts", 1, value={"name": "a"}), "a text has name; expected role, name"),
        (changed("held_out", 0, "low", value=None), "low is None; expected a finite number"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(LabkitError, match=message):
        fitted_from(data)


def test_a_recipe_names_line_and_key(tmp_path, tiny_base, tiny_adapter):
    recipe = lk.Recipe(tiny_base, [lk.Term(tiny_adapter, "0,0,0.5,1", fitted=FITTED)])
    data = yaml.safe_load(recipe.to_yaml())
    data["terms"][0]["fitted"]["strength"] = "much"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(LabkitError, match=r"line \d+, terms\[0\].fitted: strength is 'much'"):
        lk.Recipe.load(tmp_path / "recipe.yaml")


def test_the_card_shows_it(tmp_path, tiny_base, tiny_adapter):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    make_tokenizer(base)
    terms = [lk.Term(tiny_adapter, "0,0,0.5,1", fitted=FITTED)] * 2
    lk.plan(lk.Recipe(base, terms)).write(tmp_path / "merged", progress=False)
    text = (tmp_path / "merged" / "README.md").read_text()
    assert text.count("## Where the layer weights come from") == 1  # fitted together
    for part in (
        "They were fitted: the NLL of 7 (66 passages, SHA-256 `" + "1" * 64 + "`) plus 0.3 times",
        "the KL to the base on modern \\| prose (64 passages, SHA-256 `" + "ab" * 32 + "`), in 8 ",
        "On passages that the fit did not read they are better than the constant 0.44 by 0.032 ",
        "| fit | 7 | nll | 3.2500 | 3.1250 to 3.5000 |",
        "| base | modern \\| prose | kl | 0.0000 | 0.0000 to 0.0000 |",
    ):
        assert part in text, part
    again = lk.Recipe.load(tmp_path / "merged" / "recipe.yaml")
    assert again.terms[0].fitted == FITTED
