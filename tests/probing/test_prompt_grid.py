"""Many prompts at many gradients, against plain transformers."""

from __future__ import annotations

import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Recipe, Term
from labkit.probing import prompt_grid
from labkit.probing.prompt_grid import prompts_of
from tests.probing.written import merged

PROMPTS = ["In the", "Out of"]
MERGE = Gradient.parse("0,0.5,1,-0.5")


def expected(model, tokenizer, prompt, length):
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
    )[0]


def test_each_answer_is_that_of_its_plain_model(loud, plain_models, monkeypatch):
    monkeypatch.setattr(prompt_grid, "ROWS", 2)  # more gradients than answer side by side
    recipe = Recipe(loud.base, [Term(loud.adapters[0], MERGE)])
    gradients = {"mine": MERGE, "the same": str(MERGE), "recipe": recipe}
    table = lk.answers(loud, PROMPTS, gradients, tokens=6)
    names = ["base", "full LoRA", *gradients]
    assert list(table["gradient"]) == names * 2
    assert list(table["prompt"]) == [PROMPTS[0]] * 5 + [PROMPTS[1]] * 5
    kinds = dict(zip(names, ("base", "full", "merged", "merged", "merged"), strict=True))
    ends = loud._end_tokens()
    for row in table.itertuples():
        model = plain_models[kinds[row.gradient]]
        whole = expected(model, loud.tokenizer, row.prompt, 6)
        asked = loud.tokens(row.prompt).shape[1]
        answer = [token for token in whole[asked:].tolist() if token not in ends]
        assert row.answer == loud.tokenizer.decode(answer)
        assert row.tokens == len(answer)
        # KL of the merge to the base, where each of the answer's tokens was chosen.
        read = torch.cat([whole[:asked], torch.tensor(answer[:-1], dtype=torch.long)])[None]
        with torch.inference_mode():
            found, base = (
                one(read).logits[0, asked - 1 :].double().log_softmax(-1)
                for one in (model, plain_models["base"])
            )
        kl = torch.nn.functional.kl_div(base, found, log_target=True, reduction="sum") / len(answer)
        assert row.kl == pytest.approx(float(kl), rel=1e-4, abs=1e-9)
    assert len(set(table["answer"])) > 4


def test_a_recipe_with_a_method_answers_as_its_written_merge(loud, tmp_path):
    recipe = Recipe(loud.base, [Term(loud.adapters[0], MERGE)], method="ties")
    table = lk.answers(loud, PROMPTS, {"mine": recipe, "sum": MERGE}, tokens=6)
    model = merged(recipe, tmp_path / "merged")
    ends = loud._end_tokens()
    for prompt in PROMPTS:
        rows = table[table["prompt"] == prompt].set_index("gradient")
        whole = expected(model, loud.tokenizer, prompt, 6)[loud.tokens(prompt).shape[1] :].tolist()
        answer = [token for token in whole if token not in ends]
        assert rows["answer"]["mine"] == loud.tokenizer.decode(answer)
        assert list(rows.index) == ["base", "full LoRA", "mine", "sum"]
    mine, plain = (list(table["answer"][table["gradient"] == name]) for name in ("mine", "sum"))
    assert mine != plain


def test_the_same_dice(loud):
    one = lk.answers(loud, ["In"], {"a": "1x4"}, tokens=12, temperature=1.0, seed=1)
    assert one["answer"][1] == one["answer"][2]
    other = lk.answers(loud, ["In"], {"a": "1x4"}, tokens=12, temperature=1.0, seed=2)
    assert list(one["answer"]) != list(other["answer"])


def test_formats_are_those_of_the_lab(loud):
    plain = lk.answers(loud, ["<|user|>In<|model|>"], {}, tokens=4)
    metharme = lk.answers(loud, ["In"], {}, tokens=4, format="Metharme")
    assert list(plain["answer"]) == list(metharme["answer"])
    assert set(metharme["prompt"]) == {"In"}


def test_prompts_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("In the\n\n  Out of \r\n")
    assert prompts_of(tmp_path / "a.txt") == ["In the", "  Out of "]
    (tmp_path / "b.jsonl").write_text('{"prompt": "In\\nthe", "answer": "x"}\n"Out"\n')
    assert prompts_of(str(tmp_path / "b.jsonl")) == ["In\nthe", "Out"]


def test_what_is_wrong_is_said(loud, tmp_path):
    def refused(content, name="a.jsonl"):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(LabkitError) as caught:
            prompts_of(path)
        return str(caught.value).removeprefix(str(path))

    assert refused("{") == (
        ", line 1: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)"
    )
    expected = ", line 2: expected a text, or an object with a prompt, found "
    assert refused('"a"\n{"text": "b"}') == f'{expected}{{"text": "b"}}'
    assert refused('"a"\n3') == f"{expected}3"
    assert refused('"a"\n" "') == f"prompt 1 of {tmp_path / 'a.jsonl'} is ' '; write a text"
    assert refused("\n", "a.txt") == " holds no prompt; write at least one, one a line"
    assert refused("a", "a.csv") == " is no file of prompts; expected .txt or .jsonl"
    for given, said in (
        ([], "the list of prompts holds no prompt; write at least one, one a line"),
        (["a", ""], "prompt 1 of the list of prompts is ''; write a text"),
        (["a", 3], "prompt 1 of the list of prompts is 3; write a text"),
    ):
        with pytest.raises(LabkitError) as caught:
            prompts_of(given)
        assert str(caught.value) == said
    with pytest.raises(LabkitError, match="the name 'base' is that of a row which is always there"):
        lk.answers(loud, ["In"], {"base": "1x4"})
    with pytest.raises(LabkitError, match="3 weights for 4 layers"):
        lk.answers(loud, ["In"], {"a": "1x3"})
    with pytest.raises(LabkitError, match="no prompt format 'odd'"):
        lk.answers(loud, ["In"], {}, format="odd")
