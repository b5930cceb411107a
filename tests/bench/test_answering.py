"""The three answers: each in its column, and those of base and full LoRA written once."""

from __future__ import annotations

import html
import re
import threading

import pytest
import torch
from transformers import AutoTokenizer

from labkit.bench.answering import Answers, pieces
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free, live
from labkit.inference.merged_tensors import MergedTensors
from tests.tiny import make_adapter, make_letters

PROMPT = "In the"
MERGE = "0,0.5,1,-0.5"  # that of `plain_models`


@pytest.fixture
def shown():
    return {}


@pytest.fixture
def answers(loud, shown):
    return Answers(loud, shown.__setitem__)


def written(columns):
    """The text of each column."""
    found = re.findall(
        r'<div class="lab-column (\w+)">.*?<div class="lab-text">(.*?)</div>', columns
    )
    return {kind: html.unescape(re.sub("</?mark>", "", text)) for kind, text in found}


def expected(model, tokenizer, ends, length):
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    answer = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
    )[0, tokens.shape[1] :].tolist()
    return tokenizer.decode([token for token in answer if token not in ends])


def test_each_answer_is_that_of_its_plain_model(answers, shown, loud, plain_models):
    merge = loud.mix(Gradient.parse(MERGE))
    texts = {
        name: expected(model, loud.tokenizer, loud._end_tokens(), 6)
        for name, model in plain_models.items()
    }
    assert len(set(texts.values())) == 3
    # The second time only the merge is asked again.
    for _ in range(2):
        answers.write(PROMPT, merge, 6, 0.0, 0, "mean weight 0.25", threading.Event())
        assert written(shown["columns"]) == texts
        assert "merged · mean weight 0.25" in shown["columns"]


def test_base_and_full_lora_are_asked_once_for_a_question(answers, shown, loud, monkeypatch):
    rows = []
    stream = loud.stream

    def counted(prompt, mixes, length, temperature, seed):
        rows.append(len(mixes))
        return stream(prompt, mixes, length, temperature, seed)

    monkeypatch.setattr(loud, "stream", counted)
    questions = [
        (PROMPT, 5, 0.0, 0, "1x4"),
        (PROMPT, 5, 0.0, 0, MERGE),
        (PROMPT, 6, 0.0, 0, MERGE),
        ("Out", 6, 0.0, 0, MERGE),
        ("Out", 6, 1.0, 0, MERGE),
        ("Out", 6, 1.0, 1, MERGE),
        ("Out", 6, 1.0, 1, "1x4"),
    ]
    for prompt, length, temperature, seed, weights in questions:
        merge = loud.mix(Gradient.parse(weights))
        answers.write(prompt, merge, length, temperature, seed, "", threading.Event())
    assert rows == [3, 1, 3, 3, 3, 3, 1]
    columns = written(shown["columns"])
    assert columns["merged"] == columns["full"]  # whose random numbers are the same


def test_another_seed_is_another_answer(answers, shown, loud):
    found = []
    for seed in (0, 1, 0):
        answers.write(PROMPT, loud.mix(0.5), 12, 1.0, seed, "", threading.Event())
        found.append(written(shown["columns"]))
    assert found[0] != found[1]
    assert found[0] == found[2]


@pytest.fixture
def merges(words, tmp_path, monkeypatch):
    """A model whose DoRA is merged in memory, and the mixtures that it was merged to."""
    model = live(words, make_adapter(tmp_path / "dora", words, use_dora=True), device="cpu")
    put, seen = MergedTensors.put, []

    def counted(merged, weights):
        if weights is not merged._in_force:
            seen.append(weights)
        put(merged, weights)

    monkeypatch.setattr(MergedTensors, "put", counted)
    yield model, seen
    free()


def test_what_is_drawn_is_merged_once(merges, shown):
    model, seen = merges
    answers = Answers(model, shown.__setitem__)
    for weights in ("0,0.5,1,1", "0,0,1,1"):
        seen.clear()
        merge = model.mix(Gradient.parse(weights))
        answers.measure(PROMPT, merge)
        answers.write(PROMPT, merge, 4, 0.0, 0, "", threading.Event())
        compared = shown["next"]
    assert seen == [merge]
    Answers(model, shown.__setitem__).measure(PROMPT, merge)
    assert shown["next"] == compared


def test_where_they_are_merged_they_answer_prompts_of_their_own_in_turn(merges, shown):
    model, seen = merges
    prompts = ("In the", "Out of", "light")
    mixes = [model.mix(0), model.mix(Gradient.parse("0,0.5,1,1")), model.mix(1)]
    answers = Answers(model, shown.__setitem__)
    heard = answers.write(prompts, mixes[1], 5, 0.0, 0, "", threading.Event())
    assert len(seen) <= 3
    for prompt, mix, text in zip(prompts, mixes, heard.texts, strict=True):
        alone = [step[0] for step in model.stream(prompt, [mix], 5)]
        assert text == model.tokenizer.decode(alone, skip_special_tokens=True)


def test_an_answer_that_is_stopped_says_so_and_is_not_kept(answers, shown, loud):
    stopped = threading.Event()
    stopped.set()
    answers.write(PROMPT, loud.mix(1), 50, 0.0, 0, "", stopped)
    assert shown["columns"].count("(stopped)") == 3
    assert len(written(shown["columns"])["full"]) == 1
    answers.write(PROMPT, loud.mix(1), 4, 0.0, 0, "", threading.Event())
    assert "(stopped)" not in shown["columns"]
    assert "…" not in shown["columns"]


def test_the_text_of_each_token(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_letters(tmp_path))
    tokens = tokenizer("abc").input_ids
    assert pieces(tokenizer, tokens) == ["a", "b", "c"]
    assert pieces(tokenizer, []) == []


def test_a_letter_of_several_tokens_comes_with_its_last_one():
    class Bytes:
        def decode(self, tokens, skip_special_tokens):
            assert skip_special_tokens
            return bytes(tokens).decode("utf-8", errors="replace")

    assert pieces(Bytes(), list("aé!".encode())) == ["a", "é", "!"]
    # A last letter that is not whole yet is shown as what it is.
    assert pieces(Bytes(), list("aé".encode())[:-1]) == ["a", "\ufffd"]


def test_answers_that_are_older_say_so(answers, shown, loud):
    merge, other = loud.mix(Gradient.parse(MERGE)), loud.mix(Gradient.parse("1x4"))
    answers.mark_as_older(PROMPT, other, 5, 0.0, 0)  # there are none yet
    assert shown == {}
    answers.write(PROMPT, merge, 5, 0.0, 0, "", threading.Event())
    assert answers.current(PROMPT, merge, 5, 0.0, 0)
    answers.mark_as_older(PROMPT, merge, 5, 0.0, 0)
    assert "before)" not in shown["columns"]
    before = written(shown["columns"])
    answers.mark_as_older(PROMPT, other, 5, 0.0, 0)
    assert shown["columns"].count("(of the gradient before)") == 1
    assert written(shown["columns"]) == before
    answers.mark_as_older("Out", other, 5, 0.0, 0)
    assert shown["columns"].count("(of the question before)") == 3
    stopped = threading.Event()
    stopped.set()
    answers.write(PROMPT, merge, 50, 0.0, 0, "", stopped)
    assert not answers.current(PROMPT, merge, 50, 0.0, 0)
