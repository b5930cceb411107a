import shutil

import pytest

from labkit.demonstration.base import adapter_folders
from labkit.demonstration.passages import demo_texts
from labkit.errors import LabkitError
from labkit.exporting.calibration import (
    calibration_for,
    calibration_tokens,
    check_texts,
    domains_of,
    own_domains,
    shortage,
    training_texts,
)
from labkit.exporting.formats import FORMATS
from labkit.exporting.job import Job
from labkit.files.direct_io import hash_file
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.probing.texts import Texts

MAY, NEVER = FORMATS["gguf-q4_k_m"], FORMATS["gguf-bf16"]
MUST = type("Must", (), {"name": "gptq", "calibration": "must"})


def merged_of(tmp_path, model, *names):
    """A folder whose recipe has the SHA-256 sums of some of the demo's adapters."""
    folder = shutil.copytree(model, tmp_path / "-".join(("merge", *names)))
    sums = [hash_file(adapter_folders()[name] / "adapter_model.safetensors") for name in names]
    (folder / "recipe.yaml").write_text("\n".join(sums))
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def kjv(tmp_path_factory, words):
    return merged_of(tmp_path_factory.mktemp("merged"), words, "kjv")


def test_a_merge_of_the_demos_adapters_knows_its_domains(tmp_path, kjv, words):
    assert own_domains(kjv) == ["kjv"]
    assert own_domains(merged_of(tmp_path, words, "kjv", "stepwise")) == ["kjv", "stepwise"]
    assert own_domains(Checkpoint(words)) == []


def test_a_plan_knows_the_domains_of_its_merge(tmp_path, words, tiny_adapter):
    copy = shutil.copytree(adapter_folders()["stepwise"], tmp_path / "another name")
    terms = [Term(Adapter(one), Gradient.constant(4)) for one in (tiny_adapter, copy)]
    assert domains_of(Recipe(Checkpoint(words), terms)) == ["stepwise"]
    assert domains_of(Recipe(Checkpoint(words), terms[:1])) == []


def test_a_merge_is_calibrated_on_its_domain_and_measured_on_what_no_adapter_saw():
    texts = calibration_for(MAY, "merge", ["kjv"], None)
    assert texts.name == "the training text of kjv"
    sets = check_texts(["kjv"], None)
    assert [one.name for one in sets] == ["scripture", "modern prose"]
    read = {passage.text for passage in texts}
    assert not read & {passage.text for one in sets for passage in one}
    assert len(texts) > 100


def test_two_domains_are_read_in_turns():
    mixed = training_texts(["kjv", "stepwise"])
    assert [one.document.split()[0] for one in mixed.passages[:4]] == ["kjv", "stepwise"] * 2
    held_out = {one.text for one in demo_texts()["numbered steps"]}
    prompts = {one.prompt for one in demo_texts()["numbered steps"]}
    assert not prompts & {one.prompt for one in mixed if one.prompt}
    assert not held_out & {one.text for one in mixed}


def test_a_model_of_unknown_origin_is_not_calibrated_unless_it_must_be(words):
    assert own_domains(Checkpoint(words)) == []
    assert calibration_for(MAY, "tiny-llama", [], None) is None
    assert [one.name for one in check_texts([], None)] == ["modern prose"]
    with pytest.raises(LabkitError) as caught:
        calibration_for(MUST, "tiny-llama", [], None)
    assert str(caught.value) == (
        "gptq must be calibrated, and what tiny-llama is for is not known; give texts of its "
        "domain: a .txt or .jsonl file, with calibration"
    )


def test_texts_a_file_and_a_name_are_understood(tmp_path):
    given = Texts("mine", ["one two three"])
    assert calibration_for(MAY, "merge", ["kjv"], given) is given
    (tmp_path / "mine.txt").write_text("first passage\n\nsecond passage")
    assert len(calibration_for(MAY, "merge", ["kjv"], tmp_path / "mine.txt")) == 2
    assert (
        calibration_for(MAY, "merge", ["kjv"], "stepwise").name == "the training text of stepwise"
    )
    assert calibration_for(MAY, "merge", ["kjv"], "none") is None
    with pytest.raises(LabkitError, match="cannot read the file of texts"):
        calibration_for(MAY, "merge", ["kjv"], tmp_path / "nothing.txt")


def test_texts_for_a_format_that_takes_none_are_refused():
    with pytest.raises(LabkitError) as caught:
        calibration_for(NEVER, "merge", ["kjv"], "kjv")
    assert str(caught.value) == "gguf-bf16 is not calibrated; leave calibration out"
    assert calibration_for(NEVER, "merge", ["kjv"], None) is None


def test_sequences_are_of_one_length_and_of_the_texts_tokens(words, tmp_path):
    """The model's tokenizer has a token for each letter, so lengths can be counted by hand."""
    model = Checkpoint(words)
    texts = Texts("t", ["a" * 30, "b" * 30, "c" * 30, "d" * 30])
    job = Job(model, "n", tmp_path, tmp_path, tmp_path, texts)
    found = calibration_tokens(job, sequences=2, length=40)
    assert [len(one) for one in found] == [40, 40]
    assert [len(set(one)) for one in found] == [2, 2]
    # All of the 120 letters are read, those that were cut off last.
    assert [len(one) for one in calibration_tokens(job, sequences=9, length=100)] == [100, 20]
    assert [len(one) for one in calibration_tokens(job, sequences=9, length=50)] == [50, 50, 20]
    assert (
        calibration_tokens(job, sequences=2, length=50)
        == (calibration_tokens(job, sequences=9, length=50)[:2])
    )


def test_a_long_passage_gives_as_many_sequences_as_short_ones(words, tmp_path):
    """Such as a text file without blank lines."""
    letters = "abcdefghij" * 500
    texts = Texts("t", [letters])
    job = Job(Checkpoint(words), "n", tmp_path, tmp_path, tmp_path, texts)
    found = calibration_tokens(job)
    assert [len(one) for one in found] == [256] * 16
    whole = calibration_tokens(job, sequences=1, length=5000)[0]
    assert len(whole) == 5000
    assert [token for row in found for token in row] == whole[: 16 * 256]


def test_fewer_sequences_than_wanted_are_noted():
    rows = [[1] * 256] * 3
    assert shortage(rows) == (
        "the calibration's texts gave 3 of 16 sequences of 256 tokens; longer texts give more",
    )
    assert shortage(rows, 3) == shortage([], 3) == ()
