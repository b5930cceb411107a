"""What a prompt becomes before a live model reads it."""

from __future__ import annotations

import re

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


class WithStart:
    """A tokenizer that writes the start token itself, as its template does."""

    chat_template, bos_token, bos_token_id = "…", "<s>", 7

    def __init__(self, writes: list[int]) -> None:
        self.writes = writes

    def apply_chat_template(self, messages, **options):
        assert messages == [{"role": "user", "content": "Go!"}]
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return "<s>[INST]Go!</s>"

    def __call__(self, text):
        return type("Encoded", (), {"input_ids": self.writes})


def test_the_start_token_is_written_once():
    assert formatted("Go!", "chat template", WithStart([7])) == "[INST]Go!</s>"
    assert formatted("Go!", "chat template", WithStart([])) == "<s>[INST]Go!</s>"
