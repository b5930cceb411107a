"""mergekit's forms of one merge: linear, passthrough, slices; and what labkit does not make."""

from __future__ import annotations

import re
import shutil

import pytest

import labkit as lk
from labkit.merging.methods.dare import Dare
from labkit.merging.methods.della import Della
from labkit.merging.methods.slerp import Slerp
from labkit.merging.methods.ties import Ties
from labkit.publishing.mergekit_recipe import from_mergekit
from tests.publishing.test_interchange import weight_there
from tests.tiny import make_adapter, make_base

LAYERS = 4


@pytest.fixture
def read(tmp_path, tiny_base, tiny_adapter):
    """Read a configuration in which BASE, LORA and OTHER stand for folders."""
    other = shutil.copytree(tiny_adapter, tmp_path / "other")

    def read(text):
        path = tmp_path / "mergekit.yaml"
        for word, folder in (("BASE", tiny_base), ("LORA", tiny_adapter), ("OTHER", other)):
            text = text.replace(word, str(folder))
        path.write_text(text)
        return from_mergekit(path)[0]

    return read


def weights(recipe):
    """The weights of each term, as lists."""
    return [list(term.weights) for term in recipe.terms]


def there(value, start=0, stop=LAYERS):
    """What mergekit makes of a list over the layers of a slice."""
    last = stop - start - 1
    return [weight_there(value, "", i / last if last else 1) for i in range(last + 1)]


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: passthrough\nmodels:\n- model: BASE+LORA\n",
        "merge_method: passthrough\nmodels:\n- {model: BASE+LORA, parameters: {scale: 1.0}}\n",
        "merge_method: linear\nmodels:\n- {model: BASE+LORA, parameters: {weight: 0.3}}\n",
        "merge_method: linear\nmodels:\n- model: BASE+LORA\nparameters: {weight: [1, 2]}\n",
        "merge_method: linear\nbase_model: BASE\nmodels:\n"
        "- {model: BASE, parameters: {weight: 0}}\n"
        "- {model: BASE+LORA, parameters: {weight: 1}}\nparameters: {normalize: false}\n",
        "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n"
        "parameters: {weight: 1, normalize: false, lambda: 1.0, int8_mask: true}\n",
        "merge_method: passthrough\nslices:\n- sources:\n"
        "  - {model: BASE+LORA, layer_range: [0, 4]}\n",
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: BASE+LORA, layer_range: [0, 1]}]\n"
        "- sources: [{model: BASE+LORA, layer_range: [1, 4]}]\n",
    ],
)
def test_forms_of_the_whole_lora(read, text):
    recipe = read(text + "dtype: float32\n")
    assert weights(recipe) == [[1, 1, 1, 1]]
    assert recipe.dtype == "float32"


def test_linear_divides_by_the_sum(read):
    two = read(
        "merge_method: linear\nmodels:\n- {model: BASE, parameters: {weight: 1}}\n"
        "- {model: BASE+LORA, parameters: {weight: [0, 3]}}\n"
        "- {model: BASE+OTHER, parameters: {weight: 2}}\n"
    )
    first = there([0, 3])
    assert weights(two)[0] == pytest.approx([w / (w + 3) for w in first])
    assert weights(two)[1] == pytest.approx([2 / (w + 3) for w in first])
    filtered = read(
        "merge_method: linear\nmodels:\n- {model: BASE, parameters: {weight: 1}}\n"
        "- model: BASE+LORA\n  parameters:\n    weight: [{filter: mlp, value: 3}, {value: 1}]\n"
    )
    [term] = filtered.terms
    assert list(term.weights) == [0.5] * 4
    assert {name: list(each) for name, each in term.weights_for.items()} == {"*mlp*": [0.75] * 4}
    as_they_are = read(
        "merge_method: linear\nmodels:\n- {model: BASE, parameters: {weight: [1, 0]}}\n"
        "- {model: BASE+LORA, parameters: {weight: [0, 1]}}\nparameters: {normalize: false}\n"
    )
    assert weights(as_they_are) == [there([0, 1])]


def test_slices_have_depths_of_their_own(read):
    recipe = read(
        "merge_method: task_arithmetic\nbase_model: BASE\nslices:\n"
        "- sources:\n  - {model: BASE, layer_range: [0, 3]}\n"
        "  - {model: BASE+LORA, layer_range: [0, 3], parameters: {weight: [0, 1]}}\n"
        "- sources:\n  - {model: BASE, layer_range: [3, 4]}\n"
        "  - {model: BASE+OTHER, layer_range: [3, 4]}\n"
        "  parameters: {weight: [5, 7]}\n"
    )
    assert weights(recipe) == [[*there([0, 1], 0, 3), 0], [0, 0, 0, *there([5, 7], 3, 4)]]
    half = read(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: BASE+LORA, layer_range: [0, 2]}]\n"
        "- sources: [{model: BASE, layer_range: [2, 4]}]\n"
    )
    assert weights(half) == [[1, 1, 0, 0]]


def test_the_first_filter_that_applies_counts(read):
    recipe = read(
        "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n"
        "  parameters:\n    weight: [{filter: up_proj.weight, value: 2}, {filter: mlp, value: 3}, "
        "{filter: nothing, value: 4}, {filter: up_proj, value: 5}]\nparameters: {weight: 1}\n"
    )
    everything = read(
        "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n"
        "  parameters:\n    weight: [{filter: weight, value: 2}, {value: 1}]\n"
    ).terms[0]
    assert everything.gradient_for("model.layers.0.mlp.up_proj")[0] == 2
    [term] = recipe.terms
    assert "*nothing*" not in term.weights_for
    for module, weight in (("mlp.up_proj", 2), ("mlp.down_proj", 3), ("self_attn.q_proj", 1)):
        assert term.gradient_for(f"model.layers.0.{module}")[0] == weight


def test_outside_the_layers_the_slice_at_that_end_counts(tmp_path):
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    lora = make_adapter(tmp_path / "lora", base, target_modules=["up_proj", "lm_head"])
    file = lora / "adapter_model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if "base_layer" not in n}, file)
    path = tmp_path / "mergekit.yaml"
    path.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\nslices:\n"
        f"- sources:\n  - {{model: {base}+{lora}, layer_range: [0, 2]}}\n"
        f"  parameters: {{weight: 1}}\n"
        f"- sources:\n  - {{model: {base}+{lora}, layer_range: [2, 4]}}\n"
        f"  parameters: {{weight: [0.25, 0.75]}}\n"
    )
    recipe, (note,) = from_mergekit(path)
    assert recipe.rest == 0.25  # 0.75 in mergekit 0.0.6
    assert note == (
        "behind the layers (final norm, head) the first weight of a list counts, as in mergekit "
        "0.1.4 and 0.1.5; in 0.0.6 it was the last one"
    )
    path.write_text(path.read_text().replace("[0.25, 0.75]", "0.25"))
    assert from_mergekit(path)[1] == ()  # no version tells the two apart


def test_full_models(read, tiny_base, tiny_adapter, tmp_path):
    """`linear` of two models is the first, and a share of what the second has beyond it."""
    model = shutil.copytree(tiny_base, tmp_path / "model")
    recipe = read(
        "merge_method: linear\nmodels:\n- {model: BASE, parameters: {weight: [3, 1]}}\n"
        f"- {{model: {model}, parameters: {{weight: 1}}}}\n"
    )
    (term,) = recipe.terms
    assert (recipe.base.folder, term.source.kind, term.source.folder) == (tiny_base, "model", model)
    first = there([3, 1])
    assert list(term.weights) == pytest.approx([1 / (1 + weight) for weight in first])
    assert recipe.rest == pytest.approx(1 / 4)
    both = read(
        "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n"
        "- {model: BASE+LORA, parameters: {weight: [0, 1]}}\n"
        f"- {{model: {model}, parameters: {{weight: 0.5}}}}\n"
    )
    assert [term.source.kind for term in both.terms] == ["adapter", "model"]
    assert weights(both) == [there([0, 1]), [0.5] * 4]
    # What is written for mergekit is read again as the same.
    (tmp_path / "again.yaml").write_text(lk.export_recipe(both))
    again, _ = from_mergekit(tmp_path / "again.yaml")
    assert weights(again) == weights(both)
    assert again.rest == both.rest == 0.5
    with pytest.raises(lk.LabkitError, match=r"'other\+x' is not .*LORA; labkit adds LoRAs to one"):
        read("merge_method: linear\nmodels:\n- model: BASE\n- model: other+x\n")


def test_merges_that_labkit_does_not_make(read):
    def fails(message, text):
        with pytest.raises(lk.LabkitError, match=re.escape(message)) as caught:
            read(text)
        assert "\n" not in str(caught.value)

    one = "models:\n- {model: BASE+LORA, parameters: {weight: 1}}\n"
    linear, passing = "merge_method: linear\n", "merge_method: passthrough\n"
    task = "merge_method: task_arithmetic\nbase_model: BASE\n"
    fails("line 1: base_model is missing", f"merge_method: task_arithmetic\n{one}")
    fails("line 2, base_model: is a model with a LoRA; expected a plain base",
          f"{linear}base_model: BASE+LORA\n{one}")  # fmt: skip
    for text in ("models: []\n", "slices: []\n", "slices:\n- {sources: []}\n"):
        fails("names no model; expected a list of models", linear + text)
    fails("line 3, models: passthrough takes one model, found 2",
          f"{passing}models:\n- model: BASE+LORA\n- model: BASE\n")  # fmt: skip
    fails("models[0].parameters.scale: is 2, which scales the weights again; expected 1",
          f"{passing}models:\n- {{model: BASE+LORA, parameters: {{scale: 2}}}}\n")  # fmt: skip
    fails("line 4, parameters.normalize: is x; expected true or false",
          f"{linear}{one}parameters: {{normalize: x}}\n")  # fmt: skip
    fails("the weights add up to 0.5, which scales the base itself; expected 1, or normalize: true",
          f"{linear}{one.replace('1', '0.5')}parameters: {{normalize: false}}\n")  # fmt: skip
    fails("the weights add up to 0, by which mergekit divides", linear + one.replace("1", "[0, 1]"))
    fails("models[1].model: stands here for the second time", f"{task}{one}- model: BASE+LORA\n")
    fails("models[0].model: has no weight", f"{linear}models:\n- model: BASE+LORA\n")
    fails(
        "the models have different filters; give all of them the same ones",
        f"{linear}models:\n"
        "- {model: BASE, parameters: {weight: [{filter: a, value: 1}, {value: 1}]}}\n"
        "- {model: BASE+LORA, parameters: {weight: [{filter: b, value: 1}, {value: 1}]}}\n",
    )
    source = "slices:\n- sources: [{model: BASE+LORA, layer_range: RANGE}]\n"
    for given, where in (("[0, 3]", "slices: the slices hold 3 layers and the base has 4"),
                         ("[0, 5]", "layer_range: is [0, 5]; labkit keeps the base's 4 layers as"),
                         ("[1, 4]", "expected a range that begins with 0"),
                         ("[0]", "layer_range: is [0];"), ("[0, x]", "is [0, x];"),
                         ("4", "is '4'; expected a list of two numbers")):  # fmt: skip
        fails(where, passing + source.replace("RANGE", given))
    fails("slices[0].sources[0]: has no layer_range", passing + source.replace(
        ", layer_range: RANGE", ""))  # fmt: skip
    fails("slices[0]: has no sources", f"{task}slices:\n- parameters: {{weight: 1}}\n")
    fails("slices[0].base_model: is another base than",
          f"{task}slices:\n- {{base_model: x, sources: []}}\n")  # fmt: skip
    fails("slices[0].sources: have different layers; expected the same of each",
          f"{task}parameters: {{weight: 1}}\nslices:\n- sources:\n"
          "  - {model: BASE+LORA, layer_range: [0, 2]}\n"
          "  - {model: BASE, layer_range: [0, 4]}\n")  # fmt: skip
    part = "  - {model: BASE+LORA, layer_range: [RANGE], parameters: {weight: [{filter: NAME, " \
        "value: 1}, {value: 1}]}}\n"  # fmt: skip
    fails("has different filters in different slices; give it the same ones",
          f"{task}slices:\n- sources:\n{part.replace('RANGE', '0, 2').replace('NAME', 'mlp')}"
          f"- sources:\n{part.replace('RANGE', '2, 4').replace('NAME', 'proj')}")  # fmt: skip


def test_a_filter_that_no_pattern_says(read):
    with pytest.raises(lk.LabkitError, match=r"has the filter 'p_proj\.wei', which no module patt"):
        read(
            "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n"
            "  parameters: {weight: [{filter: p_proj.wei, value: 2}, {value: 1}]}\n"
        )


def two(method, first="", second="", more=""):
    """A configuration of a method for two LoRAs."""
    return (
        f"merge_method: {method}\nbase_model: BASE\nmodels:\n"
        f"- {{model: BASE+LORA, parameters: {{weight: 0.5{first}}}}}\n"
        f"- {{model: BASE+OTHER, parameters: {{weight: [0, 1]{second}}}}}\n{more}"
    )


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (two("ties", ", density: 0.3", ", density: 0.3"),
         Ties(density=0.3, convention="mergekit")),
        (two("ties", more="parameters: {density: [0.2, 0.8], lambda: 0.5, normalize: true}\n"),
         Ties(density=lk.Gradient.ramp(4, 0, 3, 0.2, 0.8), convention="mergekit", scale=0.5)),
        (two("ties"), Ties(density=1.0, convention="mergekit")),
        (two("dare_linear", more="parameters: {density: 0.4}\n"), Dare(density=0.4)),
        (two("dare_linear", more="parameters: {density: 0.4, rescale: false, lambda: 1}\n"),
         Dare(density=0.4, rescale="none")),
        (two("della_linear", more="parameters: {density: 0.5, epsilon: 0.1}\n"),
         Della(density=0.5, epsilon=0.1)),
        (two("della_linear", more="parameters: {density: 0.5}\n"), Della(epsilon=0.15)),
    ],
)  # fmt: skip
def test_methods_with_their_parameters(read, text, method):
    recipe = read(text)
    assert (recipe.method.name, str(recipe.method_words)) == (
        method.name, lk.Recipe(recipe.base, recipe.terms, method=method).method_words,
    )  # fmt: skip
    for key, value in vars(method).items():
        found = getattr(recipe.method, key)
        is_list = isinstance(value, lk.Gradient)
        assert list(found) == pytest.approx(list(value)) if is_list else found == value
    assert weights(recipe) == [[0.5] * LAYERS, pytest.approx(there([0, 1]))]


def test_a_density_over_slices(read):
    def part(start, stop, density):
        return (f"- sources:\n  - {{model: BASE+LORA, layer_range: [{start}, {stop}], "
                f"parameters: {{weight: 1, density: {density}}}}}\n")  # fmt: skip

    head = "merge_method: dare_linear\nbase_model: BASE\nslices:\n"
    recipe = read(head + part(0, 2, "[0.2, 0.4]") + part(2, 4, "0.2"))
    assert list(recipe.method.density) == [0.2, 0.4, 0.2, 0.2]
    with pytest.raises(lk.LabkitError, match="different values of density outside the layers"):
        read(head + part(0, 2, "0.5") + part(2, 4, "0.2"))


def test_slerp_from_the_base_to_a_model(read):
    recipe = read(
        "merge_method: slerp\nbase_model: BASE\nmodels:\n- model: BASE\n- model: BASE+LORA\n"
        "parameters:\n  t:\n  - {filter: self_attn, value: [0, 1]}\n  - value: 0.25\n"
    )
    assert recipe.method == Slerp()
    assert weights(recipe) == [[0.25] * LAYERS]
    assert list(recipe.terms[0].weights_for["*self_attn*"]) == pytest.approx(there([0, 1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (two("dare_ties"), "line 1, merge_method: dare_ties draws what stays and elects signs as "
         "well, and labkit's methods do one of the two; expected ties, or dare_linear"),
        (two("della"), "line 1, merge_method: della draws what stays and elects signs as well, and "
         "labkit's methods do one of the two; expected ties, or della_linear"),
        (two("ties", ", density: 0.3"),
         "the models have different values of density; labkit has one for all"),
        (two("ties", more="parameters: {normalize: false}\n"),
         "is false, and labkit's ties by mergekit's convention divides by the weights; expected"),
        (two("ties", more="parameters: {rescale: true}\n"), "rescale: is true"),
        (two("dare_linear", more="parameters: {lambda: 2}\n"), "lambda: is 2"),
        (two("della_linear", more="parameters: {density: 0.95}\n"),
         "density 0.95 ± epsilon 0.15 must lie between 0 and 1"),
        (two("della_linear", more="parameters: {density: 0.5, epsilon: [0.1, 0.2]}\n"),
         "epsilon is a list over the layers; labkit has one number for all"),
        (two("ties", more="parameters: {density: [{filter: mlp, value: 0.1}, {value: 1}]}\n"),
         "density has filters; labkit has one for all modules"),
        (two("ties", more="parameters: {lambda: much}\n"), "lambda is 'much'; expected a finite"),
        ("merge_method: ties\nmodels:\n- {model: BASE+LORA, parameters: {weight: 1}}\n",
         "base_model is missing; ties counts from it"),
        ("merge_method: slerp\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n",
         "line 4, models[0].model: has no t"),
        ("merge_method: slerp\nbase_model: BASE\nmodels:\n- model: BASE+LORA\n"
         "- model: BASE+OTHER\nparameters: {t: 0.5}\n",
         "slerp goes from the base to one model; expected the base and one other"),
        ("merge_method: dare_linear\nbase_model: BASE\nslices:\n"
         "- sources: [{model: BASE, layer_range: [0, 2]}]\n"
         "- sources: [{model: BASE+LORA, layer_range: [2, 4], parameters: {weight: 1}}]\n",
         "a slice holds the base alone; density is not known there"),
        ("merge_method: ties\nbase_model: BASE\nslices:\n"
         "- sources: [{model: BASE+LORA, layer_range: [0, 2], parameters: {weight: 1}}]\n"
         "- sources: [{model: BASE+LORA, layer_range: [2, 4], parameters: {weight: 1}}]\n"
         "  parameters: {lambda: 2}\n",
         "the slices have different values of lambda; expected one"),
    ],
)  # fmt: skip
def test_methods_that_cannot_be_the_same(read, text, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        read(text)
