"""The plane of NLLs, against the loss of plain transformers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.probing.text_plane import (
    PASSAGES,
    TOKENS,
    TextPlane,
    excerpt,
)
from labkit.probing.texts import Texts

TEXTS = {"one": "In the beginning was the Word", "two": "The train leaves at nine."}
MERGE = Gradient.parse("0,0.5,1,-0.5")


def losses(model, tokenizer):
    """The loss on each text, as transformers itself shifts and averages it."""
    with torch.inference_mode():
        encoded = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS.values()]
        return tuple(model(tokens, labels=tokens).loss.item() for tokens in encoded)


def means(pair):
    return tuple(reading.mean.value for reading in pair)


def test_points_are_the_losses_of_plain_models(loud, plain_models):
    plane = TextPlane(loud, TEXTS)
    expected = {name: losses(model, loud.tokenizer) for name, model in plain_models.items()}
    assert means(plane.base) == pytest.approx(expected["base"], rel=1e-5)
    assert means(plane.full) == pytest.approx(expected["full"], rel=1e-5)
    merged = plane.read(loud.mix(MERGE))
    assert means(merged) == pytest.approx(expected["merged"], rel=1e-5)
    # All six numbers differ by more than that, so that none stands in another's place.
    numbers = sorted(number for point in expected.values() for number in point)
    assert min(high / low for low, high in pairwise(numbers)) > 1 + 1e-4


def test_intervals_and_kl_are_those_of_evaluate(loud):
    """`lk.evaluate` measures the same passages by other passes of the model."""
    texts = {
        "one": Texts("one", ["In the beginning", "was the Word,", "and the Word", "was with God"]),
        "two": Texts("two", ["The train", "leaves at nine.", "Nobody", "remembers them"]),
    }
    plane = TextPlane(loud, texts)
    found = plane.read(loud.mix(MERGE))
    read = [excerpt(loud, *each) for each in texts.items()]
    table = lk.evaluate(loud, {"it": MERGE}, read)
    rows = table[table["gradient"] == "it"].set_index(["text", "metric"])
    for name, reading in zip(texts, found, strict=True):
        row = rows.loc[name, "nll"]
        for estimate, start in ((reading.mean, ""), (reading.from_base, "from_base")):
            ends = [f"{start}_{end}".strip("_") for end in ("low", "high")]
            expected = [row[start or "estimate"], *row[ends]]
            assert [estimate.value, estimate.low, estimate.high] == pytest.approx(
                expected, rel=1e-4, abs=1e-6
            )
    assert found[0].divergence is None
    row = rows.loc["two", "kl"]
    divergence = found[1].divergence
    assert [divergence.value, divergence.low, divergence.high] == pytest.approx(
        list(row[["estimate", "low", "high"]]), rel=1e-4
    )
    # A merge less itself is nothing; less the base it is what it is from the base.
    assert found[0].less(found[0]).high == 0
    assert found[1].less(plane.base[1]) == found[1].from_base
    assert plane.base[1].divergence.value == pytest.approx(0, abs=1e-7)


def test_two_texts_that_can_be_predicted(loud):
    with pytest.raises(LabkitError, match="a plane is made of two texts, found 1"):
        TextPlane(loud, {"one": "text"})
    with pytest.raises(LabkitError, match="nothing to predict"):
        TextPlane(loud, {"one": "text", "two": "a"})


def test_a_text_is_a_few_beginnings_of_passages(loud):
    several = Texts("one", [f"{number} is a number; " * 20 for number in range(9)])
    read = excerpt(loud, "one", several)
    assert len(read) == PASSAGES
    assert {one.text[0] for one in read} == {one.text[0] for one in several.take(PASSAGES)}
    assert all(loud.tokens(one.text).shape[1] == TOKENS for one in read)
    assert [one.text for one in excerpt(loud, "two", "In the")] == ["In the"]
    pair = excerpt(loud, "three", [("Why?", "Because.")]).passages[0]
    assert (pair.prompt, pair.text) == ("Why?", "Because.")
    # Its number is that of the passages together, each token counting as much as any other.
    found = means(TextPlane(loud, {"one": ["In the beginning", "was"], "two": several}).full)
    loud.weights = "1x4"
    assert found[0] == pytest.approx(loud.nll(["In the beginning", "was"]), rel=1e-5)
    assert found[1] == pytest.approx(loud.nll([one.text for one in read]), rel=1e-5)


def test_constants_are_points_and_the_best_is_best_on_the_first_text(loud):
    plane = TextPlane(loud, TEXTS)
    assert plane.best_constant is None
    for weight in (0.25, 0.5, 0.75):
        plane.read_constant(weight)
        assert plane.constants[weight] == plane.read(loud.mix(weight))
    on_first = {weight: means(pair)[0] for weight, pair in plane.constants.items()}
    assert on_first[plane.best_constant] == min(on_first.values())


def test_of_one_passage_there_is_no_interval(loud):
    reading, _ = TextPlane(loud, TEXTS).full
    assert math.isfinite(reading.mean.value)
    assert math.isnan(reading.mean.low)
