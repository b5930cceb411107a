"""Exact match: what is compared, and that the answers are those of plain greedy decoding."""

import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Recipe, Term
from labkit.probing.greedy_answers import exact_matches, final_line

MERGE = Gradient.parse("0,0.5,1,-0.5")
PROMPTS = ["In the", "And there was", "So"]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("Step.\n1. 2 + 2 = 4.\nAnswer:  42  Rolls.\n\n", "answer: 42 rolls"),
        ("42", "42"),
        ("", ""),
        ("\n \n", ""),
        ("ﬁne", "fine"),
    ],
)
def test_the_last_line_is_what_counts(answer, line):
    assert final_line(answer) == line


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_answer_is_right_at_the_mixture_that_gives_it(loud, plain_models, monkeypatch, prompt):
    """Expected is what a plain model of the merge says greedily, up to a token made its end."""
    tokens = loud.tokens(prompt)
    said = {}
    for name, model in plain_models.items():
        given = tokens
        with torch.inference_mode():
            for _ in range(12):
                given = torch.cat([given, model(given).logits[:, -1:].argmax(-1)], dim=1)
        said[name] = given[0, tokens.shape[1] :].tolist()
    length = next(n for n in range(3, 12) if said["merged"][n] not in said["merged"][:n])
    end = said["merged"][length]
    monkeypatch.setattr(loud, "_end_tokens", lambda: {end})
    right = loud.tokenizer.decode(said["merged"][:length])
    mixes = [loud.mix(0.0), loud.mix(MERGE), loud.mix(1.0)]
    texts = lk.Texts("t", [(prompt, right), (prompt, right + " not")], prompt_format="plain")
    found = exact_matches(loud, texts, mixes)
    until = [answer[: answer.index(end)] if end in answer else None for answer in said.values()]
    expected = [answer == said["merged"][:length] for answer in until]
    assert found.tolist() == [[float(one) for one in expected], [0, 0, 0]]
    assert expected == [False, True, False]


def test_what_is_merged_answers_all_prompts_before_the_next(loud, monkeypatch):
    recipe = Recipe(loud.base, [Term(loud.adapters[0], MERGE)], method="ties")
    mixes = [loud.mix(0.0), loud.mix(recipe), loud.mix(1.0)]
    right = ["".join(loud.generate(prompt, 3)) for prompt in PROMPTS]
    texts = lk.Texts("t", list(zip(PROMPTS, right, strict=True)), prompt_format="plain")
    alone = [exact_matches(loud, texts, [mix])[:, 0].tolist() for mix in mixes]
    asked, stream = [], loud.stream
    monkeypatch.setattr(loud, "stream", lambda prompt, some, *rest: asked.append(len(some))
                        or stream(prompt, some, *rest))  # fmt: skip
    assert exact_matches(loud, texts, mixes).T.tolist() == alone
    assert asked == [2] * 3 + [1] * 3


def test_exact_match_is_a_share_of_passages_in_the_table(loud, monkeypatch):
    answers = {0.0: "no", 1.0: "well not. "}

    def stream(prompt, mixes, longest):
        assert prompt in ("a?", "b?")
        assert longest == {"a?": 4 + 2 + 8, "b?": 5 + 2 + 8}[prompt]  # half as long again
        said = [answers.get(mix.flat()[0], "Well") for mix in mixes]
        for step in range(longest):
            row = [one[step : step + 1] for one in said]
            yield [
                loud.tokenizer(c, add_special_tokens=False).input_ids[0] if c else None for c in row
            ]

    monkeypatch.setattr(loud, "stream", stream)
    texts = lk.Texts("t", [("a?", "well"), ("b?", "Well.")], ["x", "y"], prompt_format="plain")
    table = lk.evaluate(loud, {"mine": "0.3x4"}, texts, ["exact_match"]).set_index("gradient")
    assert table["estimate"].to_dict() == {
        "base": 0, "full LoRA": 0, "mine": 1, table.attrs["best_constant"]: 1
    }  # fmt: skip
    assert set(table["method"]) == {"greedy answers"}


def test_passages_without_a_prompt_have_no_answer(loud):
    with pytest.raises(LabkitError, match="exact_match compares answers, and passage 1 of 't' has"):
        lk.evaluate(loud, {}, lk.Texts("t", [("a", "b c"), "In the"]), ["exact_match"])
