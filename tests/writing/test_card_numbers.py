"""The card's numbers, out of a receipt whose numbers are made up and differ everywhere."""

import re
from pathlib import Path

import pytest

import labkit as lk
from labkit.figures.gradient_figure import MOST_GROUPS, description, layer_groups
from labkit.writing.card import MOST_FILES, fenced, model_card
from labkit.writing.receipt import Receipt, TensorReceipt


def tensor(layer, asked, achieved, name="t"):
    return TensorReceipt(name, layer, (1.0,), asked, achieved, missing=100.0)


TENSORS = (
    tensor(0, 3.0, 30.0), tensor(0, 4.0, 40.0), tensor(1, 12.0, 5.0), tensor(2, 7.0, 6.0),
    tensor(3, 0.125, 0.25), tensor(None, 8.0, 9.0), tensor(None, 6.0, 12.0),
)  # fmt: skip


@pytest.fixture
def card(tiny_base, tiny_adapter):
    """Makes the card of some terms and tensors."""

    def make(*gradients, tensors=TENSORS, rest=None, patterns=None, read=None):
        terms = [lk.Term(str(tiny_adapter), gradient, patterns or {}) for gradient in gradients]
        plan = lk.plan(lk.Recipe(str(tiny_base), terms, rest))
        receipt = Receipt(
            Path("out/merged"), "base", ("lora",), "cpu", 1.0, "today", tuple(tensors), 31, (),
            read or {}, {}, (),
        )  # fmt: skip
        return model_card(plan, receipt)

    return make


def rows(text):
    table = text.split("## What changed")[1].split("##")[0]
    return [line for line in table.splitlines() if line.startswith("| ")]


def test_norms_of_a_group_of_layers_add_as_squares_and_each_in_its_column(card):
    text = card("0.25x2,1,0.5")
    assert "7 tensors were changed; 31 keep the base's own bytes." in text
    assert rows(text) == [
        "| layers | weight | tensors | norm asked for | norm after rounding |",
        "| 0–1 | 0.25 | 3 | 13 | 50.25 |",
        "| 2 | 1.00 | 1 | 7 | 6 |",
        "| 3 | 0.50 | 1 | 0.125 | 0.25 |",
        "| outside | 0 | 2 | 10 | 15 |",
    ]


def test_each_lora_has_a_column_of_weights(card):
    text = card("0.25x4", "0,0,1,-0.5", rest=0.75)
    assert rows(text)[0].startswith(
        "| layers | weight of tiny-lora | weight of tiny-lora | tensors"
    )
    assert rows(text)[1:] == [
        "| 0–1 | 0.25 | 0.00 | 3 | 13 | 50.25 |",
        "| 2 | 0.25 | 1.00 | 1 | 7 | 6 |",
        "| 3 | 0.25 | -0.50 | 1 | 0.125 | 0.25 |",
        "| outside | 0.75 | 0.75 | 2 | 10 | 15 |",
    ]
    assert "\n|---|---:|---:|---:|---:|---:|\n" in text
    assert "Outside the layers the weight is 0.75." in text
    assert "the light green is the LoRA named above it: the higher the green" in text
    assert "From top to bottom: tiny-lora, tiny-lora." in text


def test_without_changes_outside_there_is_no_such_row(card):
    text = card("1x4", tensors=TENSORS[:5])
    assert "outside" not in text.split("## What changed")[1].split("##")[0]
    assert "Outside the layers" not in text
    assert "From top to bottom" not in text


def test_groups_follow_the_weights_of_patterns_too(card):
    text = card("1x4", patterns={"mlp": lk.Gradient.parse("0,1x3")}, tensors=TENSORS[:5])
    assert [row.split(" | ")[0] for row in rows(text)[1:]] == ["| 0", "| 1–3"]
    assert rows(text)[2] == "| 1–3 | 1.00 | 3 | 13.89 | 7.814 |"
    assert "Modules named `mlp`, mean weight 0.75:\n\n```\n0,1,1,1\n```" in text


def test_a_group_of_several_weights_has_their_mean(card, monkeypatch):
    monkeypatch.setattr("labkit.figures.gradient_figure.MOST_GROUPS", 2)
    table = rows(card("0,0.5,1,0.25", tensors=TENSORS[:5]))
    assert table[1:] == ["| 0–1 | 0.25 | 3 | 13 | 50.25 |", "| 2–3 | 0.62 | 2 | 7.001 | 6.005 |"]


def test_the_mean_is_the_ratio(card):
    text = card("0.1,0.2,0.9,0")
    assert "One weight for each of the 4 layers, the first layer first" in text
    assert "The mean weight, the ratio of the merge, is 0.30." in text


def test_as_many_groups_as_fit():
    assert MOST_GROUPS == 8
    eight = lk.Gradient(range(8))
    assert layer_groups([eight]) == [(layer, layer) for layer in range(8)]
    # One more, and they are equal parts of all layers.
    nine = layer_groups([lk.Gradient(range(9))])
    assert nine == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 8)]


def test_the_picture_in_words():
    said = description(lk.Gradient([0, 0, 0.5, 1]), "B", "L")
    assert said == (
        "Layer weights of L in B as bars, 4 layers, mean weight 0.38, 0–1: 0; 2: 0.5; 3: 1"
    )
    # Of equal parts only those of one weight are told.
    many = lk.Gradient([*range(14), 3, 3])
    assert description(many, "B", "L").endswith("mean weight 6.06, 14–15: 3")
    assert description(lk.Gradient(range(16)), "B", "L").endswith("16 layers, mean weight 7.50")


def test_files_that_were_read(card, tiny_base, tiny_adapter):
    read = {f"{tiny_base}/b.json": "2" * 64, f"{tiny_adapter}/a.json": "1" * 64,
            f"{tiny_base}/a.json": "3" * 64}  # fmt: skip
    text = card("1x4", read=read)
    found = re.findall(r"^\| ([^|]*) \| (\S+) \| `(\d)+` \|$", text, re.MULTILINE)
    assert found == [("tiny-llama", "a.json", "3"), ("tiny-llama", "b.json", "2"),
                     ("tiny-lora", "a.json", "1")]  # fmt: skip
    assert "SHA-256 of the files" not in card("1x4")


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_long_list_of_files_ends(card, tiny_base, more):
    assert MOST_FILES == 60
    read = {f"{tiny_base}/{number:03}": "0" * 64 for number in range(60 + more)}
    text = card("1x4", read=read)
    assert len(re.findall("`0{64}`", text)) == 60
    assert text.count(" more, see `recipe.yaml`") == bool(more)
    if more:
        assert f"| | {more} more, see `recipe.yaml` | |" in text


def test_usage_without_a_known_prompt_and_the_commands(card):
    text = card("1x4")
    assert "Write prompts as the base model and the LoRA were trained on them." in text
    assert "instruction formats should work" not in text
    assert "```bash\nlabkit merge --recipe recipe.yaml --out again\nlabkit verify .\n```\n" in text


def test_a_fence_is_longer_than_the_longest_run_in_it():
    assert fenced("a `` b ```` c ` d", "x") == ["`````x", "a `` b ```` c ` d", "`````"]
    assert fenced("a `` b")[0] == "```"
