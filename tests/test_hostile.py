"""Broken and hostile input: one line of error or a merge, and nothing else."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks import fuzz
from labkit import Adapter, Checkpoint, Gradient, LabkitError, Recipe, plan
from labkit.errors import shown
from labkit.files.pickled import open_pickled
from labkit.files.tensor_file import open_tensor_file
from labkit.models.adapter_config import read_config
from labkit.models.names import canonical, split_layer
from labkit.writing.front_matter import own_card
from tests.tiny import make_adapter, make_base

CASES = 120
"""Of the fuzzer's cases, those that run here; the script runs 20,000."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("hostile") / "base", layers=2, shard="20KB")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    return make_adapter(tmp_path_factory.mktemp("hostile") / "adapter", base)


@pytest.fixture
def broken_base(tmp_path, base):
    return shutil.copytree(base, tmp_path / "base")


@pytest.fixture
def broken_adapter(tmp_path, adapter):
    return shutil.copytree(adapter, tmp_path / "adapter")


def refusal(action):
    """The error's text, after checking that it is one line and safe to show."""
    with pytest.raises(LabkitError) as caught:
        action()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1500
    return text


def bounded(action):
    """What a refusal says that takes 2 seconds and 100 MB at most, in a process of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        began = time.process_time()
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
            action()
            said = "no error"
        except LabkitError as error:
            said = str(error)
        except BaseException as error:  # noqa: BLE001 - what it must not end in
            said = f"TRACEBACK {error!r}"
        os.write(theirs, f"{time.process_time() - began} {said}".encode()[:4000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        seconds, _, said = pipe.read().partition(" ")
    assert os.waitpid(child, 0)[1] == 0
    assert float(seconds) < 4, said  # twice what it may take on a machine with nothing else to do
    assert said.isprintable()
    return said


def with_header(path, header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_fixed_sample_of_the_fuzzers_cases(tmp_path, monkeypatch):
    from labkit.figures import picture

    monkeypatch.setattr(picture, "picture_bytes", picture.picture_bytes)
    ended = fuzz.run(CASES, 7, tmp_path, show=False)
    assert set(ended) <= {"merged", "refused"}
    assert ended["merged"] > 10
    assert ended["refused"] > 50


# safetensors.


def test_a_file_cut_anywhere_is_refused(tmp_path, adapter):
    data = (adapter / "adapter_model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    cut = tmp_path / "cut.safetensors"
    points = {*range(10), 8 + length - 1, 8 + length, 8 + length + 1, len(data) - 1}
    points |= set(range(11, len(data), len(data) // 60))
    for point in sorted(points):
        cut.write_bytes(data[:point])
        assert "get the file again" in refusal(lambda: open_tensor_file(cut)), point


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry(offsets=(0, 4))}, b"\0" * 4, "has 4 bytes, but F32 of shape .* takes 8"),
        ({"a": entry(offsets=(8, 16))}, b"\0" * 16, "starts at byte .*, expected"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, "without gap or overlap"),
        ({"a": entry(offsets=(0, 2**62), shape=(2**60,))}, b"\0" * 8, "and the file at byte"),
        ({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8, "takes"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, "expected lists of whole numbers from 0"),
        ({"a": entry(shape=(2.0,))}, b"\0" * 8, "expected lists of whole numbers from 0"),
        ({"a": entry(offsets=(8, 0))}, b"\0" * 8, "has -8 bytes"),
        ({"a": entry(dtype="F31")}, b"\0" * 8, "unknown dtype 'F31'"),
        ({"a": entry(dtype=["F32"])}, b"\0" * 8, "unknown dtype"),
        ({"a": 3}, b"", "has no dtype, shape or data_offsets"),
        ({"__metadata__": [1]}, b"", "__metadata__ is not an object"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not an object"),
        (b'{"a": 1, "a": 2}', b"", "names 'a' twice"),
        (b"[]", b"", "is not a JSON object"),
        (b"{", b"", "is not JSON"),
        (b"\xff\xfe", b"", "is not JSON"),
        (b"[" * 100_000, b"", "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "is not JSON"),
    ],
)
def test_headers_that_disagree_are_refused(tmp_path, header, data, said):
    import re

    path = with_header(tmp_path / "x.safetensors", header, data)
    assert re.search(said, refusal(lambda: open_tensor_file(path)))


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused_at_once(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    text = refusal(lambda: open_tensor_file(path))
    assert "is not a whole safetensors file" in text or "is not JSON" in text


def named(name, shape=(0,)):
    return f'"{name}":{{"dtype":"F32","shape":{list(shape)},"data_offsets":[0,0]}}'.encode()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (lambda: named("a", (2,) * 300_000), "a shape of 300000 numbers; expected at most 64"),
        (lambda: named("a", (2**62,) * 300_000), "a shape of 300000 numbers; expected at most 64"),
        (lambda: b",".join(named(i) for i in [*range(50_000), 49_999]), "names '49999' twice"),
        (lambda: named("a" * 1_000_000), "a name of 1000000 characters; expected at most 1000"),
        (lambda: named("a" + ".a" * 200_000), "a name of 400001 characters"),
        (lambda: b'"a":[' + b"0," * 2_000_000 + b"0]", "holds more than 1,000,000 values"),
        (lambda: named("a") + b" " * 30_000_000, "labkit reads 25000000 at most"),
        (lambda: named("\\ud800"), "surrogates not allowed"),
        (lambda: b'"__metadata__":{"a":"\\udfff"},' + named("a"), "surrogates not allowed"),
        (lambda: b",".join(named(i) for i in range(100_000)), "no error"),
    ],
)  # fmt: skip
def test_endless_headers_take_little_time_and_memory(tmp_path, header, said):
    path = with_header(tmp_path / "x.safetensors", b"{" + header() + b"}")
    assert said in bounded(lambda: open_tensor_file(path))


def many_factors(folder):
    """Make an adapter's file hold 50,000 modules of as many kinds: 100,000 names."""
    leaves = [f"m{number}_proj" for number in range(50_000)]
    one = '"base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight":'
    one += '{{"dtype":"F32","shape":[2,2],"data_offsets":[{},{}]}}'
    entries = (
        one.format(number // 7, leaves[number], factor, start, start + 16)
        for number in range(50_000)
        for factor, start in (("A", 32 * number), ("B", 32 * number + 16))
    )
    header = b"{" + ",".join(entries).encode() + b"}"
    with_header(folder / "adapter_model.safetensors", header, bytes(32 * 50_000))
    path = folder / "adapter_config.json"
    changed = {"r": 2, "target_modules": leaves, "ensure_weight_tying": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_an_adapter_of_100_000_names_takes_little_time(base, broken_adapter):
    many_factors(broken_adapter)
    said = bounded(lambda: plan(base, broken_adapter, Gradient([1, 1])))
    assert said.startswith("50000 of the adapter adapter's tensors match nothing")


FIELDS_OF_NAMES = [
    ("target_modules", [f"m{number}" for number in range(100_000)], "selects none"),
    ("exclude_modules", [f"m{number}" for number in range(100_000)], "no error"),
    ("modules_to_save", [f"m{number}" for number in range(100_000)], "no error"),
    ("rank_pattern", {f"m{number}": 4 for number in range(100_000)}, "no error"),
    ("alpha_pattern", {f"m{number}.*": 4 for number in range(100_000)}, "takes more than 1.5 s"),
    ("target_parameters", [f"m{number}.up" for number in range(100_000)], "no error"),
]


@pytest.mark.parametrize(("field", "value", "said"), FIELDS_OF_NAMES)
def test_a_config_of_100_000_names_takes_little_time(base, broken_adapter, field, value, said):
    path = broken_adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert said in bounded(lambda: plan(base, broken_adapter, Gradient([1, 1])))


def test_a_base_of_100_000_names_is_planned_in_little_time(tmp_path, adapter):
    folder = make_base(tmp_path / "base", layers=2)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8 : 8 + length]), len(data) - 8 - length
    for number in range(100_000):
        header[f"model.layers.{number % 2}.m{number}.weight"] = entry(
            shape=(0,), offsets=(end, end)
        )
    path.unlink()
    with_header(folder / "model-1.safetensors", header, data[8 + length :])
    index = {"weight_map": dict.fromkeys(header.keys() - {"__metadata__"}, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert bounded(lambda: plan(folder, adapter, Gradient([1, 1]))) == "no error"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80))
def test_any_bytes_are_opened_or_refused(tmp_path, data):
    for content in (data, len(data).to_bytes(8, "little") + data):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        try:
            open_tensor_file(path)
        except LabkitError as error:
            said = str(error)
            assert said.isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_in_an_adapter(base, broken_adapter, value):
    path = broken_adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = value
    save_file(tensors, path)
    text = refusal(lambda: plan(base, broken_adapter, Gradient([1, 1])))
    assert "holds 1 numbers that are NaN or infinite" in text
    assert name in text


# The index.


@pytest.mark.parametrize(
    "name",
    ["../base/model.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "x.safetensors\n",
     3, None, ["a"], "config.json", "x" * 10_000 + ".safetensors"],
)  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(broken_base, name):
    path = broken_base / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = name
    path.write_text(json.dumps(content))
    text = refusal(lambda: Checkpoint(broken_base))
    said = ("in the same folder", "is not in the folder", "do not hold the same tensors")
    assert any(part in text for part in said)


def test_a_link_out_of_the_folder_is_refused_and_the_hubs_cache_is_not(tmp_path, base, adapter):
    elsewhere = tmp_path / "elsewhere"
    linked = tmp_path / "linked"
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "0123abc"
    for folder in (elsewhere, linked, cache / "blobs", snapshot):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, elsewhere)
        (linked / path.name).symlink_to(elsewhere / path.name)
        shutil.copy(path, cache / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    out = tmp_path / "out"
    # A folder of links to a model's own files is one that people make.
    for source in (snapshot, linked):
        plan(source, adapter, Gradient([1, 1])).write(out, progress=False, overwrite=True)
        assert not any(path.is_symlink() for path in out.iterdir())
    for path in linked.glob("*.safetensors"):
        path.unlink()
        path.symlink_to(shutil.copy(elsewhere / path.name, tmp_path / "secret"))
    text = refusal(lambda: Checkpoint(linked))
    assert "is a link to" in text
    assert "outside its folder; put the file itself there" in text


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_behind_links_to_other_files_is_refused(tmp_path, adapter, name):
    linked = shutil.copytree(adapter, tmp_path / "linked")
    (linked / name).rename(tmp_path / "other")
    (linked / name).symlink_to("../other")
    assert refusal(lambda: Adapter(linked)) == (
        f"{linked / name} is a link to {tmp_path / 'other'}, outside its folder; put the file "
        "itself there"
    )


def test_a_tokenizer_that_is_a_link_to_a_secret_is_not_copied(tmp_path, broken_base, adapter):
    secret = tmp_path / "secret"
    secret.write_text("key")
    (broken_base / "tokenizer.json").symlink_to(secret)
    out = tmp_path / "out"
    text = refusal(lambda: plan(broken_base, adapter, Gradient([1, 1])).write(out, progress=False))
    assert "tokenizer.json" in text
    assert not out.exists()


@pytest.mark.parametrize("layers", [0, -1, 10**18, 10**400, 1.5, "4", None, True, [2]])
def test_a_config_with_an_impossible_number_of_layers_is_refused(broken_base, layers):
    path = broken_base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    began = time.monotonic()
    text = refusal(lambda: Checkpoint(broken_base))
    assert "layers" in text
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("model_type", [{"": []}, ["llama"], 3, None, "\ud800"])
def test_a_config_of_a_strange_type_is_that_of_no_type(broken_base, adapter, model_type):
    path = broken_base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    assert plan(broken_base, adapter, Gradient([1, 1])).changes


# adapter_config.json.


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("r", 0, "has rank 0"), ("r", -4, "has rank -4"), ("r", "4", "has rank 4"),
        ("r", 10**30, "but its rank in"), ("r", True, "has rank True"),
        ("lora_alpha", "8", "has alpha '8'"), ("lora_alpha", None, "has alpha 'None'"),
        ("lora_alpha", 10**400, "has alpha inf"), ("lora_alpha", float("nan"), "has alpha nan"),
        ("lora_alpha", True, "has alpha 'True'"),
        ("target_modules", [1], "expected a list of names"),
        ("target_modules", {"a": 1}, "expected a list of names"),
        ("target_modules", 7, "expected a list of names"),
        ("target_modules", "(", "is no regular expression"),
        ("rank_pattern", [1], "is not an object"),
        ("rank_pattern", {"[": 1}, "is no regular expression"),
        ("layers_to_transform", ["a"], "expected layer numbers"),
        ("layers_to_transform", 0.5, "expected layer numbers"),
        ("target_parameters", "experts", "expected a list of names"),
        ("target_modules", "x" * 50_000, "a pattern of 50000 characters"),
    ],
)  # fmt: skip
def test_impossible_values_in_the_adapters_config_are_refused(
    base, broken_adapter, field, value, said
):
    path = broken_adapter / "adapter_config.json"
    content = json.loads(path.read_text()) | {field: value}
    if field == "layers_to_transform":
        content["target_modules"] = ["q_proj", "k_proj"]
    path.write_text(json.dumps(content))
    assert said in refusal(lambda: plan(base, Adapter(broken_adapter), Gradient([1, 1])))


def test_alpha_0_changes_nothing_and_says_so(base, broken_adapter):
    path = broken_adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 0}))
    notes = " ".join(plan(base, broken_adapter, Gradient([1, 1])).notes)
    assert "has alpha 0: it changes nothing at any weight" in notes


@pytest.mark.parametrize(
    "pattern", [r"(.*)*(.*)*(.*)*\d!", r"(([a-z_.0-9])+.)+[!]+", "(a|a.|.)+$!"]
)
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_a_catastrophic_pattern_ends(base, broken_adapter, field, pattern):
    path = broken_adapter / "adapter_config.json"
    value = pattern if field == "target_modules" else {pattern: 3}
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    began = time.monotonic()
    try:
        plan(base, Adapter(broken_adapter), Gradient([1, 1]))
    except LabkitError as error:
        said = str(error)
        reasons = ("takes more than 1.5 s", "its rank in", "selects none of")
        assert any(reason in said for reason in reasons)
    assert time.monotonic() - began < 15


MODULES = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(40) for m in "qkvo"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a{1000}){1000}", "whose repetitions stand for more than 20000"),
        ("((a{1000}){20}){2}", "whose repetitions stand for more than 20000"),
        ("(" * 30 + "a" + "+)" * 30, "whose repetitions stand for more than 20000"),
        ("(a{" + "9" * 5000 + "}){1}", "whose repetitions stand for more than 20000"),
        ("[]](a{1000}){1000}", "whose repetitions stand for more than 20000"),
        ("(?#[)(a{1000}){1000}]", "comments in it are not read"),
        ("(?R)", "is no regular expression: unknown extension"),
        ("(?:(?R)|a)*", "is no regular expression: unknown extension"),
        ("(?<=a*b*c*)" * 1500, "look-behind requires fixed-width"),
        ("(?:a*)*" * 1000, "which takes more than 1.5 s"),
        ("(?b)(?:abcdefghijk){e}", "is no regular expression"),
        ("((((.+)+)+)+)+!", "no error"),
        ("(?:abc){e<=50}.*", "no error"),
        ({f"(?:[a-z]+[.])*{i}": 1 for i in range(20_000)}, "which takes more than 1.5 s"),
    ],
)
def test_patterns_take_little_time_and_memory(pattern, said):
    field = "target_modules" if isinstance(pattern, str) else "rank_pattern"
    config = read_config({"peft_type": "LORA", "r": 8, field: pattern}, "name")

    def ask():
        for module in MODULES:
            config.targets(module)
            config.rank_of(module)

    assert said in bounded(ask)


def test_braces_around_letters_are_letters_as_for_peft():
    config = read_config({"peft_type": "LORA", "target_modules": ".*(?:q_prox){e<=1}"}, "name")
    assert not config.targets("model.layers.0.self_attn.q_proj")
    assert config.targets("model.layers.0.self_attn.q_prox{e<=1}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    "r lora_alpha target_modules exclude_modules rank_pattern alpha_pattern layers_to_transform "
    "layers_pattern use_rslora use_dora bias init_lora_weights target_parameters "
    "trainable_token_indices peft_type lora_parameters fine_tune_type".split()
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans())
def test_any_config_is_read_or_refused(values, lora):
    values = {"peft_type": "LORA", **values} if lora else values
    module = "model.layers.3.self_attn.q_proj"
    try:
        config = read_config(values, "name")
        config.targets(module)
        config.parameters(module)
        config.scaling_of(module, config.rank_of(module))
        config.token_indices(module)
    except LabkitError as error:
        said = str(error)
        assert said.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_name_has_a_canonical_form_and_can_be_shown(name):
    split_layer(name)
    assert canonical(canonical(name)) == canonical(name)
    assert shown(name).isprintable()


# Names that reach terminals, notebooks and cards.


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "a\nlabkit: error: b", "\x1b[31mred\x1b[0m", "x" * 10_000,
     "\u202egnp.exe", "a|b`c`*d*[e](http://f)", "\r\x08"],
)  # fmt: skip
def test_names_are_escaped_wherever_they_appear(tmp_path, base, broken_adapter, name):
    path = broken_adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    tensors[key.replace("model.layers.0", f"model.{name}.0", 1)] = tensors.pop(key)
    save_file(tensors, path)
    refusal(lambda: plan(base, broken_adapter, Gradient([1, 1])))
    path = broken_adapter / "adapter_config.json"
    content = json.loads(path.read_text())
    for field in ("peft_type", "bias", "unheard_of"):
        path.write_text(json.dumps(content | {field: name}))
        refusal(lambda: Adapter(broken_adapter))


def test_a_claimed_base_name_is_escaped_in_a_notebook(base, broken_adapter, tmp_path, monkeypatch):
    path = broken_adapter / "adapter_config.json"
    claimed = "owner/<img src=x onerror=alert(1)>\n\x1b[31m"
    content = json.loads(path.read_text()) | {"base_model_name_or_path": claimed}
    path.write_text(json.dumps(content))
    monkeypatch.setattr(Checkpoint, "repository", "owner/another")
    resolved = plan(base, broken_adapter, Gradient([1, 1]))
    assert any("says it was trained on" in note for note in resolved.notes)
    assert "<img" not in resolved._repr_html_()
    assert "\x1b" not in repr(resolved)


# Recipes.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: !!python/object/apply:os.mkdir [x]\n", "the tag 'tag:yaml.org"),
        ("base: b\nterms: []\nexecute: rm\n", "execute: is an unknown key"),
        ("[" * 3000, "not YAML"), ("- a\n- b\n", "expected"), ("base: [1, 2]\nterms: []\n", ""),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "aliases (*) are not read"), ("\x00", "is not YAML"),
        ("", "expected"),
        ("base: b\nterms: 3\n", "expected a list"), ("base: b\nterms:\n- 3\n", ""),
        ("x" * 2_000_000, "too large"),
    ],
)  # fmt: skip
def test_recipes_that_are_none_are_refused(base, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert said in refusal(lambda: Recipe.load(path, base))
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


NESTED = "{resample: {layers: 2, weights: "
TERM = "base: BASE\nterms:\n- adapter: ADAPTER\n  weights: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 100_000 + "]" * 100_000, "or 40 lists and mappings in each other"),
        ("a: " + "{a: " * 70_000, "or 40 lists and mappings in each other"),
        ("- " * 100_000, "or 40 lists and mappings in each other"),
        ("? x\n" * 70_000, "more than 20000 values"),
        ("terms:\n" + "- x\n" * 70_000, "more than 20000 values"),
        ("terms:\n" + "- x\n" * 200_000, "has 800007 characters; expected 300000 at most"),
        ("base: BASE\nterms:\n" + "- x\n" * 101, "has 101 terms; expected 100 at most"),
        (TERM + NESTED * 5000 + "[1,1]" + "}}" * 5000, "or 40 lists and mappings in each other"),
        (TERM + NESTED * 15 + "[1,1]" + "}}" * 15, "no error"),
        (TERM + "1x9999," * 40_000, "has more than 10000 entries"),
        ("a" * 290_000 + ": 3", "mapping values are not allowed here"),
        ('a: "' + "x\n\n" * 90_000 + '"', "is an unknown key"),
        ("\n" * 290_000, "is empty"),
    ],
)
def test_endless_recipes_take_little_time_and_memory(tmp_path, base, adapter, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("BASE", str(base)).replace("ADAPTER", str(adapter)))
    assert said in bounded(lambda: Recipe.load(path))


@pytest.mark.parametrize(
    ("head", "licence", "languages"),
    [
        ("license: mit\nlanguage: 3\n---", "mit", ()),
        ("license: [a]\nlanguage: en\n---", None, ("en",)),
        ("license: mit\nlanguage:\n- no\n---", "mit", ("no",)),
        ("\n" * 990_000, None, ()),
        ("license: mit\n" + "\n" * 900_000 + "\n---", "mit", ()),
        ("license: " + "[" * 900_000 + "\n---", None, ()),
        ("language:\n" + "? x\n" * 200_000 + "\n---", None, ()),
    ],
)
def test_heads_of_cards(tmp_path, head, licence, languages):
    (tmp_path / "README.md").write_text(f"---\n{head}\ntext")

    def read():
        found = own_card(tmp_path)
        assert (found.license, found.language) == (licence, languages)

    assert bounded(read) == "no error"


def test_a_billion_laughs_do_not_fill_the_memory(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    assert "aliases (*) are not read" in refusal(lambda: Recipe.load(path))
    path.write_text("\n".join([*lines, "base: *a24", "terms: *a24"]).replace("a0:", "base:", 1))
    refusal(lambda: Recipe.load(path))


def test_a_pickle_of_numbers_of_another_shape_is_refused(broken_adapter):
    path = broken_adapter / "adapter_model.safetensors"
    torch.save([1, 2, 3], broken_adapter / "adapter_model.bin")
    path.unlink()
    assert "holds list, expected tensors by name" in refusal(lambda: Adapter(broken_adapter))
    torch.save({"a": "text"}, broken_adapter / "adapter_model.bin")
    assert "expected only tensors" in refusal(lambda: Adapter(broken_adapter))
    torch.save({"a": torch.zeros(4, 4).T[1:]}, broken_adapter / "adapter_model.bin")
    assert "does not lie in one piece" in refusal(lambda: Adapter(broken_adapter))
    (broken_adapter / "adapter_model.bin").write_bytes(b"not an archive")
    assert "is no whole archive of torch" in refusal(lambda: Adapter(broken_adapter))


@pytest.mark.parametrize(
    ("pickle", "said"),
    [
        (b"c__builtin__\nbytearray\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85R.", "bytearray"),
        (b"c_codecs\nencode\nX\x01\0\0\0xX\x06\0\0\0latin1\x86R.", "'_codecs encode'"),
        (b"cposix\nsystem\nX\x01\0\0\0x\x85R.", "'posix system', which would run code"),
        (b"]" * 2_000_000 + b".", "names more than a model's tensors"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1), "is no whole archive of torch"),
        (b"]" * 30_000_000, "names more than a model's tensors"),
    ],
)
def test_pickles_that_would_fill_the_memory_are_refused(tmp_path, pickle, said):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickle)
        archive.writestr("x/version", "3\n")
    assert said in bounded(lambda: open_pickled(path))


def test_an_archive_of_a_million_records_is_refused_before_they_are_read(tmp_path):
    path = tmp_path / "x.bin"
    record = b"PK\1\2" + struct.pack("<24xH16x", 1) + b"a"
    size = 1_000_000 * len(record)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65534, 65534, size, 0, 0)
    path.write_bytes(record * 1_000_000 + end)
    said = bounded(lambda: open_pickled(path))
    assert f"it lists its records in {size} bytes; expected 5000000 at most" in said


def test_archives_with_two_pickles_or_packed_ones_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("y/data.pkl", b"\x80\x02}.")
    assert "2 times data.pkl" in bounded(lambda: open_pickled(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"0" * 20_000_000)
    assert "holds compressed tensors" in bounded(lambda: open_pickled(path))


@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "folder"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors",
     "README.md", "adapter_config.json", "adapter_model.safetensors"],
)  # fmt: skip
def test_what_is_no_plain_file_is_never_waited_for(
    tmp_path, broken_base, broken_adapter, name, kind
):
    path = (broken_adapter if name.startswith("adapter") else broken_base) / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)

    def merge():
        plan(broken_base, broken_adapter, Gradient([1, 1])).write(tmp_path / "out", progress=False)

    said = bounded(lambda: plan(broken_base, broken_adapter, Gradient([1, 1])))
    assert name in said or "safetensors" in said or name == "README.md"
    if name == "README.md":
        merge()
        assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("kind", ["fifo", "device", "loop"])
def test_recipes_that_are_no_plain_files_are_refused(tmp_path, base, kind):
    path = tmp_path / "recipe.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    said = bounded(lambda: Recipe.load(path, base))
    assert "expected a plain file" in said or "Too many levels" in said
