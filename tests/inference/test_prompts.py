"""What a prompt becomes before a live model reads it."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
from transformers import AutoTokenizer

from labkit.errors import LabkitError
from labkit.inference.prompts import formats, formatted
from tests.tiny import make_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    return AutoTokenizer.from_pretrained(
        make_tokenizer(tmp_path_factory.mktemp("chatty"), TEMPLATE)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_tokenizer(tmp_path_factory.mktemp("plain")))


def test_the_choices(chatty, plain):
    assert formats(chatty) == ["plain", "chat template", "Alpaca", "Metharme"]
    assert formats(plain) == ["plain", "Alpaca", "Metharme"]


def test_a_plain_prompt_stays_as_it_is(plain):
    assert formatted("### Go {there}!\n", "plain", plain) == "### Go {there}!\n"


def test_the_models_own_template(chatty, plain):
    assert formatted("Go!", "chat template", chatty) == "<|user|>Go!\n<|assistant|>"
    with pytest.raises(LabkitError, match=re.escape("no prompt format 'chat template' for this")):
        formatted("Go!", "chat template", plain)


def test_a_template_means_what_transformers_makes_of_it(chatty):
    for prompt in ("Go!", "two\nlines", "ünïcödé 漢字 \u2028 {{ x }}", ""):
        messages = [{"role": "user", "content": prompt}]
        expected = chatty.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert formatted(prompt, "chat template", chatty) == expected


def test_turns_before_the_prompt(chatty, plain):
    turns = [("Hi", "Hello."), ("ünï\n", "")]
    messages = [
        {"role": role, "content": said}
        for turn in turns
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "Go!"})
    expected = chatty.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert formatted("Go!", "chat template", chatty, turns) == expected
    with pytest.raises(LabkitError, match="the prompt format 'plain' has no turns; the chat te"):
        formatted("Go!", "plain", plain, turns)


def test_several_templates_without_a_usual_one(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path))
    tokenizer.chat_template = {"rag": TEMPLATE, "default": "{{ messages[0].content }}?"}
    assert formatted("Go", "chat template", tokenizer) == "Go?"
    tokenizer.chat_template = {"rag": TEMPLATE}
    with pytest.raises(LabkitError, match="no chat template to choose for this model: This model"):
        formatted("Go", "chat template", tokenizer)


class WithStart:
    """A tokenizer that writes the start token itself, as its template does."""

    chat_template = "{{ bos_token }}[INST]{{ messages[0].content }}</s>"
    bos_token, bos_token_id = "<s>", 7
    special_tokens_map: ClassVar = {"bos_token": "<s>"}

    def __init__(self, writes: list[int]) -> None:
        self.writes = writes

    def get_chat_template(self):
        return self.chat_template

    def __call__(self, text):
        return type("Encoded", (), {"input_ids": self.writes})


def test_the_start_token_is_written_once():
    assert formatted("Go!", "chat template", WithStart([7])) == "[INST]Go!</s>"
    assert formatted("Go!", "chat template", WithStart([])) == "<s>[INST]Go!</s>"
