"""Recipes of other tools say the same merge here, and labkit's say the same merge there."""

import re
import shutil

import pytest
import yaml

import labkit as lk
from labkit.publishing.interchange import export_recipe, from_command_line, import_recipe
from tests.tiny import make_adapter


def weight_there(setting, tensor, depth):
    """What mergekit's `evaluate_setting` makes of a weight (arcee-ai/mergekit, config.py)."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        for condition in setting:
            if condition.get("filter", "*") == "*" or condition["filter"] in tensor:
                return weight_there(condition["value"], tensor, depth)
        return None
    if not isinstance(setting, list):
        return setting
    place = depth * (len(setting) - 1)
    low = int(place)
    share = place - low
    high = min(low + 1, len(setting) - 1)
    return setting[low] * (1 - share) + setting[high] * share


def weights_there(text, modules, layers):
    """The weight of each module under a mergekit configuration."""
    parameters = yaml.safe_load(text)["models"][-1]["parameters"]
    return {
        module: weight_there(
            parameters["weight"], f"{module}.weight", int(module.split(".")[2]) / (layers - 1)
        )
        for module in modules
    }


def weights_here(recipe):
    term = recipe.terms[0]
    return {m: term.gradient_for(m)[int(m.split(".")[2])] for m in term.adapter.modules}


def test_the_script_of_2023(tiny_base, tiny_adapter):
    recipe = import_recipe(
        f"python apply-lora-weight-ltl.py --base_model_name_or_path {tiny_base} "
        f"--peft_model_path '{tiny_adapter}' --peft_model_weights 0,0,0.5,1 --output_dir x "
        "--cpu_mode"
    )
    assert recipe.terms[0].weights == lk.Gradient([0, 0, 0.5, 1])
    assert recipe.dtype == "float16"
    assert "expanded: 0,0,0.5,1" in recipe.to_yaml()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--peft_model_weights 0,1", "the following arguments are required: --base_model_name"),
        ("--peft_model_weights '0,1", "apply-lora-weight-ltl.py is not whole: No closing quota"),
        ("--base_model_name_or_path BASE --peft_model_path LORA --peft_model_weights 1 --gpu",
         "the command line of apply-lora-weight-ltl.py: unrecognized arguments: --gpu"),
        ("--base_model_name_or_path BASE --peft_model_path LORA --peft_model_weights 0,1,1",
         "3 weights for 4 layers"),
    ],
)  # fmt: skip
def test_wrong_command_lines(tiny_base, tiny_adapter, command, message):
    command = command.replace("BASE", str(tiny_base)).replace("LORA", str(tiny_adapter))
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        from_command_line(command)


@pytest.fixture
def mergekit(tmp_path, tiny_base, tiny_adapter):
    def write(weight="weight: [0, 1]", head="merge_method: task_arithmetic", model=None, more=""):
        model = model or f"{tiny_base}+{tiny_adapter}"
        path = tmp_path / "mergekit.yaml"
        path.write_text(
            f"{head}\nbase_model: {tiny_base}\nmodels:\n- model: {tiny_base}\n"
            f"- model: {model}\n  parameters:\n    {weight}\n{more}"
        )
        return path

    return write


@pytest.mark.parametrize(
    "weight",
    [
        "weight: 0.5",
        "weight: [0, 1]",
        "weight: [0, 0.5, -1]",
        "weight: [0.1, 0.2, 0.7, 0.3]",
        "weight: [{filter: mlp, value: [1, 0]}, {filter: up_proj, value: 7}, {value: 0.25}]",
        "weight: [{filter: '*', value: 1}, {filter: mlp, value: 0}]",
    ],
)
def test_mergekit_in_and_out(mergekit, weight):
    path = mergekit(weight, more="out_dtype: bfloat16\ndtype: float32\n")
    recipe = import_recipe(path)
    here = weights_here(recipe)
    assert here == pytest.approx(weights_there(path.read_text(), here, 4), abs=1e-15)
    assert recipe.dtype == "bfloat16"
    if "up_proj" in weight:
        return  # up_proj is a part of mlp.up_proj: here it is hidden, and selects nothing new
    assert weights_there(export_recipe(recipe), here, 4) == pytest.approx(here, abs=1e-15)


def test_the_seed_for_mergekit(tiny_base, tiny_adapter):
    ramp = {"ramp": {"layers": 4, "start": 1, "stop": 3}}
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), ramp, {"mlp": "1,0x3"})])
    text = export_recipe(recipe)
    content = yaml.safe_load(text)
    assert text.splitlines()[0] == (
        "# mergekit-yaml THIS_FILE merged --lora-merge-cache merged-loras"
    )
    assert content["merge_method"] == "task_arithmetic"
    assert content["models"][0]["model"] == f"{tiny_base}+{tiny_adapter}"
    assert "value: [0, 0, 0.5, 1]" in text
    assert "mean weight 0.375, 0x2,0.5,1\n" in text
    assert content["out_dtype"] == "bfloat16"
    assert weights_there(text, weights_here(recipe), 4) == weights_here(recipe)


def test_outside_the_layers(tmp_path, tiny_base, mergekit):
    from safetensors.torch import load_file, save_file

    from tests.tiny import make_base

    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    lora = make_adapter(tmp_path / "lora", base, target_modules=["up_proj", "lm_head"])
    file = lora / "adapter_model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if "base_layer" not in n}, file)
    recipe = lk.Recipe(str(base), [lk.Term(str(lora), "0,0,0.5,1")], rest=0.25)
    text = export_recipe(recipe)
    setting = yaml.safe_load(text)["models"][0]["parameters"]["weight"]
    assert weight_there(setting, "lm_head.weight", 1) == 0.25
    path = mergekit("weight: [0, 1]", model=f"{base}+{lora}")
    path.write_text(path.read_text().replace(str(tiny_base), str(base)))
    # Since 0.1 mergekit gives what lies behind the layers depth 0, like what lies before them.
    assert import_recipe(path).rest == 0
    path.write_text(text)
    assert import_recipe(path).rest == 0.25


def test_wrong_mergekit(mergekit, tiny_base):
    def fails(message, **changes):
        with pytest.raises(lk.LabkitError, match=re.escape(message)):
            import_recipe(mergekit(**changes))

    fails("line 1, merge_method: 'nuslerp' is a merge that labkit does not make; expected task_ar",
          head="merge_method: nuslerp")  # fmt: skip
    fails("line 1: merge_method and models are needed", head="dtype: float16")
    fails("line 8, slices: stands beside models; expected one of the two", more="slices: []\n")
    fails("line 8, layer_slices: is an unknown key; known are merge_method",
          more="layer_slices: []\n")  # fmt: skip
    fails("line 9, parameters.normalize: is true, which scales the weights again; expected false",
          more="parameters:\n  normalize: true\n")  # fmt: skip
    fails("line 9, parameters.lambda: is 2, which scales the weights again; expected 1",
          more="parameters:\n  lambda: 2\n")  # fmt: skip
    fails("line 5, models[1].model: 'a/b+c/d' is not", model="a/b+c/d")
    fails(
        "line 4, models: all models are the base itself; expected base+lora, or",
        model=str(tiny_base),
    )
    fails("line 7, models[1].parameters.density: is an unknown key", weight="density: 1")
    fails("line 7, models[1].parameters.weight: entry 1 of the layer weights, 'x'",
          weight="weight: x")  # fmt: skip
    fails("has no value without a filter, which is needed for all other modules",
          weight="weight: [{filter: mlp, value: 1}]")  # fmt: skip
    fails("models[1].parameters.weight[0]: has no value", weight="weight: [{filter: mlp}]")
    fails("line 5, models[1].model: the adapter './gone' does not exist",
          model=f"{tiny_base}+./gone")  # fmt: skip


def test_what_mergekit_cannot_say(tmp_path, tiny_base, tiny_adapter):
    recipe = lk.Recipe(
        str(tiny_base), [lk.Term(str(tiny_adapter), "1x4", {"self_attn.*_proj": "0x4"})]
    )
    with pytest.raises(lk.LabkitError, match="selects other modules than the part of a name"):
        export_recipe(recipe)

    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tiny_adapter), "1x4")], method="dare")
    with pytest.raises(lk.LabkitError, match="the method dare is not written as mergekit's"):
        export_recipe(recipe)

    shutil.copytree(tiny_adapter, tmp_path / "c+d")
    recipe = lk.Recipe(str(tiny_base), [lk.Term(str(tmp_path / "c+d"), "1x4")])
    with pytest.raises(lk.LabkitError, match=r"mergekit cannot name .*, which has a \+ or a sub"):
        export_recipe(recipe)
