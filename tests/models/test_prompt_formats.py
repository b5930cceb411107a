"""The prompt formats, letter by letter, where the lab and the card use them."""

from __future__ import annotations

from types import SimpleNamespace

from labkit.inference.prompts import formatted
from labkit.merging.recipe import PROMPTS
from labkit.models.prompt_formats import FORMATS
from labkit.writing.card_prompts import formats, snippet

ALPACA = "### Instruction:\nYour instruction or question here.\n\n### Response:\n"
METHARME = (
    "<|system|>This is a text adventure game. Describe the scenario to the user and give him three "
    "options to pick from on each turn.<|user|>Start!<|model|>"
)


def named(*names, prompts=None):
    sources = [SimpleNamespace(name=name) for name in names]
    return SimpleNamespace(card=SimpleNamespace(prompts=prompts), sources=sources)


def test_what_a_recipe_can_ask_for():
    assert PROMPTS == ("alpaca", "metharme", "chat")


def test_one_turn_as_the_lab_writes_it():
    assert formatted("Go!", "Alpaca", None) == "### Instruction:\nGo!\n### Response:\n"
    assert formatted("Go {prompt}!", "Metharme", None) == "<|user|>Go {prompt}!<|model|>"


def test_the_example_on_the_card():
    assert [each.example for each in FORMATS.values()] == [ALPACA, METHARME]
    assert f"prompt = {ALPACA!r}\n" in snippet("x", ("alpaca", "metharme"))
    assert f"prompt = {METHARME!r}\n" in snippet("x", ("metharme", "alpaca"))
    assert "prompt = 'Once upon a time'\n" in snippet("x", ())
    assert "apply_chat_template" in snippet("x", ("alpaca", "chat"))


def test_names_suggest_formats():
    assert formats(named("Llama", "some-lora"), {}) == ()
    assert formats(named("pygmalion-6b"), {}) == ()  # the first one was no Metharme
    assert formats(named("Stanford-Alpaca", "x"), {}) == ("alpaca",)
    assert formats(named("x", "13b-SuperCOT"), {}) == ("alpaca",)
    for name in ("metharme-7b", "Pygmalion-2-13b", "Mythalion-13b"):
        assert formats(named(name), {}) == ("metharme",)
    chat = {"chat_template.jinja": b""}
    assert formats(named("Pygmalion-2-13b", "supercot"), chat) == ("alpaca", "metharme", "chat")
    assert formats(named("Pygmalion-2-13b", prompts=("chat",)), {}) == ("chat",)
