"""The recipe as text: what is written is read again, and what is wrong is named by line and key."""

import re
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import labkit as lk
from labkit.gradients.calls import as_gradient
from labkit.gradients.presets import parse_presets, preset
from labkit.merging.methods import METHODS
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.recipe import CardOptions


@pytest.fixture
def write(tmp_path, tiny_base, tiny_adapter):
    """Writes a recipe with the lines given for its one term; gives back its path."""

    def write(*lines, head="labkit: 0.1.0", tail=""):
        text = "\n".join(
            [head, f"base: {tiny_base}", "terms:", f"- adapter: {tiny_adapter}"]
            + [f"  {line}" for line in lines]
            + [tail]
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("lines", "weights"),
    [
        (["weights: 0,0,0.5,1"], "0,0,0.5,1"),
        (["weights: [0, 0, 0.5, 1]"], "0,0,0.5,1"),
        (["weights: [0x2, 0.5, 1]"], "0,0,0.5,1"),
        (["weights:", "- 0", "- 0", "- 0.5", "- 1e0"], "0,0,0.5,1"),
        (["weights: 0x4"], "0,0,0,0"),
        (["weights: 0x2,0.5,1"], "0,0,0.5,1"),
        (["weights: {runs: '0x2,0.5,1', expanded: [0, 0, 0.5, 1]}"], "0,0,0.5,1"),
        (["weights: {constant: {layers: 4, weight: -0.5}}"], "-0.5,-0.5,-0.5,-0.5"),
        (["weights: {ramp: {layers: 4, start: 1, stop: 3}}"], "0,0,0.5,1"),
        (["weights: {ramp: {layers: 4, start: 0, stop: 3, first: 1, last: 0.1}}"], "1,0.7,0.4,0.1"),
        (["weights: {step: {layers: 4, at: 3}}"], "0,0,0,1"),
        (["weights: {bell: {layers: 4, width: 1}}"], "0.32,0.88,0.88,0.32"),
        (["weights: {valley: {layers: 4, width: 1}}"], "0.68,0.12,0.12,0.68"),
        (["weights: {anchors: {layers: 4, anchors: [0, 3]}}"], "0,1,2,3"),
        (["weights: {anchors: {layers: 4, anchors: {0.5: 1, 1: 0}}}"], "1,1,0.6666666666666667,0"),
        (["weights: {preset: {layers: 4, name: OUTALL}}"], "0,0,1,1"),
        (["weights: {resample: {layers: 4, weights: '0x4,1x4'}}"], "0,0,1,1"),
    ],
)
def test_weights(write, lines, weights):
    recipe = lk.Recipe.load(write(*lines))
    assert str(recipe.terms[0].weights) == weights
    again = write("weights: 0x4")
    again.write_text(recipe.to_yaml())
    assert lk.Recipe.load(again).to_yaml() == recipe.to_yaml()
    assert lk.Recipe.load(again).terms[0].weights == recipe.terms[0].weights


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_any_numbers_survive(tiny_base, tiny_adapter, tmp_path_factory, numbers):
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), numbers, {"mlp": numbers})])
    path = tmp_path_factory.mktemp("any") / "recipe.yaml"
    recipe.save(path)
    assert lk.Recipe.load(path).terms[0].weights == lk.Gradient(numbers)


def test_the_call_is_kept_with_its_numbers_beside(tiny_base, tiny_adapter):
    call = {"ramp": {"layers": 4, "start": 1, "stop": 3}}
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), call, {"mlp": "0x3,1"})])
    term = yaml.safe_load(recipe.to_yaml())["terms"][0]
    assert term["weights"] == {**call, "expanded": "0,0,0.5,1"}
    assert term["weights_for"] == {"mlp": {"runs": "0x3,1", "expanded": "0,0,0,1"}}
    assert recipe.terms[0].weights == lk.Gradient.ramp(4, 1, 3)


def test_a_call_that_no_longer_holds_is_not_written(tiny_base, tiny_adapter):
    term = lk.Term(
        str(tiny_adapter), "0,0,0,1", calls={"": {"ramp": {"layers": 4, "start": 1, "stop": 3}}}
    )
    text = lk.Recipe(str(tiny_base), [term]).to_yaml()
    assert "ramp" not in text
    assert "0,0,0,1" in text


def test_folders_are_written_from_the_recipes_own(tmp_path, tiny_base, tiny_adapter):
    here = tmp_path / "here"
    shutil.copytree(tiny_base, here / "models" / "base")
    shutil.copytree(tiny_adapter, here / "lora")
    recipe = lk.Recipe(str(here / "models" / "base"), [lk.Term(str(here / "lora"), "0,0,1,1")])
    recipe.save(here / "recipe.yaml")
    (here / "merged").mkdir()
    recipe.save(here / "merged" / "recipe.yaml")
    text = (here / "recipe.yaml").read_text()
    assert "reference: ./models/base\n" in text
    assert "reference: ../lora\n" in (here / "merged" / "recipe.yaml").read_text()
    assert "here" not in text
    here.rename(tmp_path / "there")
    moved = lk.Recipe.load(tmp_path / "there" / "recipe.yaml")
    assert moved.base.folder == tmp_path / "there" / "models" / "base"


def test_card_options_are_kept(tiny_base, tiny_adapter, tmp_path):
    card = CardOptions("My merge", "llama2", ("en",), ("alpaca", "metharme"))
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), "0,0,1,1")], card=card)
    recipe.save(tmp_path / "recipe.yaml")
    assert lk.Recipe.load(tmp_path / "recipe.yaml").card == card


GOOD = "weights: 0,0,1,1"
WRONG = [
    (["weights: 0,0,1"], "line 5, terms[0].weights: 3 weights for 4 layers; write exactly"),
    (["weights: 0,0,x,1"], "line 5, terms[0].weights: entry 3 of the layer weights, 'x', is not"),
    (["weights:"], "line 5, terms[0].weights: is empty; expected a list of weights, runs"),
    (["weights: [0, [1]]"], "line 5, terms[0].weights[1]: is a list; expected a weight or a run"),
    (["weights: {}"], "line 5, terms[0].weights: holds nothing; expected a list of weights"),
    (
        ["weights: {ramp: {layers: 4, start: 1, stop: 3}, step: {layers: 4, at: 1}}"],
        "line 5, terms[0].weights: holds ramp and step; expected",
    ),
    (["weights: {slope: {layers: 4}}"], "line 5, terms[0].weights.slope: is an unknown key; known"),
    (["weights: {ramp: 4}"], "line 5, terms[0].weights.ramp: ramp is 4; expected its arguments"),
    (
        ["weights: {ramp: {layers: 4, start: 1}}"],
        "line 5, terms[0].weights.ramp: ramp has no stop; it needs layers, start, stop",
    ),
    (
        ["weights: {step: {layers: 4, at: 1, until: 3}}"],
        "step has the unknown argument 'until'; known are layers, at, first, last",
    ),
    (["weights: {step: {layers: 4, at: 1.5}}"], "step: at is 1.5; expected a whole number"),
    (["weights: {step: {layers: 4, at: 1, first: x}}"], "step: first is 'x'; expected a number"),
    (["weights: {step: {layers: 0, at: 0}}"], "step: layers is 0; expected 1 to 10000"),
    (
        ["weights: {step: {layers: 99999999, at: 0}}"],
        "step: layers is 99999999; expected 1 to 10000",
    ),
    (
        ["weights: {preset: {layers: 4, name: OUTAL}}"],
        "the preset 'OUTAL' is unknown; known are NONE, ALL, INS, IND, INALL, MIDD, OUTD, OUTS, "
        "OUTALL, ALL0.5",
    ),
    (
        ["weights:", "  step: {layers: 4, at: 3}", "  expanded: 0,0,1,1"],
        "line 7, terms[0].weights.expanded: differs from what step makes, 0x3,1; correct one",
    ),
    (
        ["weights: {resample: {layers: 4, weights: '0,x'}}"],
        "terms[0].weights.resample: resample: weights entry 2 of the layer weights, 'x', is not",
    ),
    ([], "line 4, terms[0]: has no weights"),
    ([GOOD, "weights: 0x4"], "line 6, terms[0].weights: stands here for the second time"),
    ([GOOD, "wieghts: 1"], "line 6, terms[0].wieghts: is an unknown key; known are adapter,"),
    ([GOOD, "weights_for: [1]"], "line 6, terms[0].weights_for: is a list; expected a mapping of"),
    ([GOOD, "weights_for:", "  mlp: 1"], "line 7, terms[0].weights_for.mlp: 1 weights for 4"),
    ([GOOD, "weights_for:", "  ? [a]", "  : 1"], "terms[0].weights_for: is a list; expected a key"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG)
def test_wrong_terms(write, lines, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)) as caught:
        lk.Recipe.load(write(*lines))
    assert str(caught.value).startswith(str(write(*lines)))


TAILS = [
    ("dtype: int8", "line 6, dtype: the dtype 'int8' is unknown; expected one of auto, float16"),
    ("dtype: [1]", "line 6, dtype: is a list; expected a dtype"),
    ("rest: much", "line 6, rest: is not a finite number; expected a number or nothing"),
    ("rest: .inf", "line 6, rest: is not a finite number; expected a number or nothing"),
    ("untie: maybe", "line 6, untie: is 'maybe'; expected true or false"),
    ("dtpye: auto", "line 6, dtpye: is an unknown key; known are labkit, base, terms, rest, dtype"),
    ("card: {licence: x}", "line 6, card.licence: is an unknown key; known are title, license,"),
    ("card: {license: 'a b'}", "line 6, card: the license 'a b' is no identifier of a licence"),
    ("card: {language: [english]}", "line 6, card: the language 'english' is no language code"),
    ("card: {prompts: [chatml]}", "the prompt format 'chatml' is unknown; known are alpaca,"),
    ("dtype: &a auto", "line 6: anchors (&) and aliases (*) are not read"),
    ("dtype: *a", "line 6: anchors (&) and aliases (*) are not read"),
    ("rest: !!float 1", "line 6: the tag 'tag:yaml.org,2002:float' is not read"),
    ("rest: !!python/name:os.system", "line 6: the tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("rest: {", "not YAML: expected the node content"),
    ("--- {}", "line 6: not YAML: but found another document"),
    ("rest: " + "[" * 5000 + "]" * 5000, "is not YAML: "),
]


@pytest.mark.parametrize(("tail", "message"), TAILS)
def test_wrong_keys(write, tail, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        lk.Recipe.load(write(GOOD, tail=tail))


def test_wrong_sources(tmp_path, tiny_base, tiny_adapter):
    path = tmp_path / "recipe.yaml"

    def fails(base, message):
        path.write_text(f"base: {base}\nterms:\n- {{adapter: {tiny_adapter}, weights: 0x4}}\n")
        with pytest.raises(lk.LabkitError, match=re.escape(message)):
            lk.Recipe.load(path)

    fails("./gone", "line 1, base: the base model './gone' does not exist: expected a folder, or")
    fails("{reference: ./gone}", "line 1, base.reference: the base model './gone' does not exist")
    fails("{}", "line 1, base: has no reference; expected a folder or a hub id")
    fails("[a]", "line 1, base: is a list; expected a folder or hub id, or reference, revision and")
    fails(
        f"{{reference: {tiny_base}, sha256: {{config.json: abc}}}}",
        "line 1, base.sha256.config.json: is 'abc'; expected a SHA-256 of 64 digits",
    )
    fails(
        f"{{reference: {tiny_base}, sha256: {{../x: {'0' * 64}}}}}",
        "line 1, base.sha256.../x: is not the name of a file in the source's own folder",
    )


def test_wrong_files(tmp_path):
    def fails(content, message):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content)
        with pytest.raises(lk.LabkitError, match=re.escape(message)):
            lk.Recipe.load(path)

    fails(b"", "is empty; expected a recipe")
    fails(b"- a", "line 1: is a list; expected labkit, base, terms, rest, dtype, method, untie and")
    fails(b"labkit: 0.1.0", "line 1: the recipe has no base")
    fails(b"base: x", "line 1: the recipe has no terms")
    fails(b"\xff\xfe\x00", "is no text in UTF-8; a recipe is")
    fails(b"#" * 1_000_001, "is too large for a recipe (over 1 MB)")
    with pytest.raises(lk.LabkitError, match=r"cannot read the recipe .*No such file"):
        lk.Recipe.load(tmp_path / "none.yaml")


def test_versions(write):
    assert lk.Recipe.load(write(GOOD, head="labkit: 9.0.0")).base.layers == 4
    with pytest.raises(lk.LabkitError, match="'soon' is no version of labkit; expected"):
        lk.Recipe.load(write(GOOD, head="labkit: soon"))
    with pytest.raises(
        lk.LabkitError, match=r"unknown key; .*; it was written by labkit 9\.0\.0, and this is"
    ):
        lk.Recipe.load(write(GOOD, head="labkit: 9.0.0", tail="sparsity: 0.5"))


def test_inputs_that_lie_elsewhere(tmp_path, tiny_base, tiny_adapter):
    path = tmp_path / "recipe.yaml"
    path.write_text("base: ./gone\nterms:\n- {adapter: ./gone, weights: 0x4}\n")
    recipe = lk.Recipe.load(path, tiny_base, [tiny_adapter])
    assert recipe.base.folder == tiny_base
    with pytest.raises(lk.LabkitError, match="line 3, terms: the recipe has 1 terms, and 2 adapt"):
        lk.Recipe.load(path, tiny_base, [tiny_adapter, tiny_adapter])


def test_saving_where_nothing_can_be(tiny_base, tiny_adapter, tmp_path):
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), "0x4")])
    with pytest.raises(lk.LabkitError, match=r"cannot write the recipe .*No such file"):
        recipe.save(tmp_path / "none" / "recipe.yaml")


def test_calls_from_python():
    assert as_gradient({"step": {"layers": 2, "at": 1}}) == lk.Gradient([0, 1])
    with pytest.raises(lk.LabkitError, match="weights are made by one call, found none; expected"):
        as_gradient({})
    with pytest.raises(lk.LabkitError, match="no call 'eval' makes weights; expected one of const"):
        as_gradient({"eval": {}})
    with pytest.raises(lk.LabkitError, match="step: at is True; expected a whole number"):
        as_gradient({"step": {"layers": 2, "at": True}})


def test_presets_lie_at_relative_depth():
    # 16 blocks and 16 layers: block by block.
    assert preset("MIDD", 16).runs() == "0x3,1x8,0x5"
    assert preset("MIDD", 32).runs() == "0x6,1x16,0x10"
    assert preset("INS", 40).runs() == "1x7,0x33"
    assert str(preset("ALL0.5", 3)) == "0.5,0.5,0.5"
    own = "# mine\nMINE:" + ",".join(["9"] + ["0"] * 15 + ["-1"])
    assert str(preset("MINE", 4, own)) == "0,0,0,0"
    assert preset("MINE", 16, own)[15] == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A", "line 1 of the presets is 'A'; expected NAME:0,0,1"),
        ("A:0,1", "line 1 of the presets, 'A', has 2 numbers; expected 12, 17, 20, 26, the first"),
        ("A:R,1", "line 1 of the presets, 'A': entry 1 of the layer weights, 'R', is not a number"),
        ("\nA:1x17\nA:1x17", "line 3 of the presets names 'A' again"),
    ],
)
def test_wrong_presets(text, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        parse_presets(text)


def test_a_method_is_a_line_in_the_registry(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Halved(WeightedSum):
        """The sum, times a parameter: a method that only this test has."""

        share: float = 0.5
        name: ClassVar[str] = "halved"

        def combine(self, base, terms):
            return super().combine(base, terms).times(self.share)

    monkeypatch.setitem(METHODS, "halved", Halved)
    text = f"base: {tiny_base}\nterms:\n- adapter: {tiny_adapter}\n  weights: 1x4\n"
    for number, (method, weights) in enumerate(
        (("halved", "0.5x4"), ("{halved: {share: 0.25}}", "0.25x4"))
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{text}method: {method}\n")
        recipe = lk.Recipe.load(path)
        ours, theirs = tmp_path / f"ours{number}", tmp_path / f"theirs{number}"
        lk.plan(recipe).write(ours, progress=False)
        lk.plan(tiny_base, tiny_adapter, weights).write(theirs, progress=False)
        for file in theirs.glob("*.safetensors"):
            assert (ours / file.name).read_bytes() == file.read_bytes()
        again = lk.Recipe.load(ours / "recipe.yaml")
        assert again.method == recipe.method
        assert lk.verify(ours, progress=False).tensors_computed == 28


def test_methods_that_are_not_there(tiny_base, tiny_adapter, tmp_path):
    text = f"base: {tiny_base}\nterms:\n- adapter: {tiny_adapter}\n  weights: 1x4\nmethod: "
    path = tmp_path / "recipe.yaml"
    for method, message in (
        ("tyes", "line 5, method: 'tyes' is no method of merging; known are sum"),
        ("{tyes: {}}", "line 5, method.tyes: is an unknown key; known are sum"),
        ("{sum: {density: 1}}", "method.sum.density: is an unknown key; known are "),
        ("{}", "names 0 methods; expected one, with its parameters"),
    ):
        path.write_text(text + method)
        with pytest.raises(lk.LabkitError, match=re.escape(message)):
            lk.Recipe.load(path)
    path.write_text(text + "sum")
    assert lk.Recipe.load(path).method == WeightedSum()
