"""The plane of NLLs, against the loss of plain transformers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.probing.text_plane import (
    LONGEST_TRAIL,
    PASSAGES,
    TOKENS,
    TextPlane,
    excerpt,
    points,
    text_plane,
)
from labkit.probing.texts import Texts

TEXTS = {"one": "In the beginning was the Word", "two": "The train leaves at nine."}
MERGE = Gradient.parse("0,0.5,1,-0.5")


def losses(model, tokenizer):
    """The loss on each text, as transformers itself shifts and averages it."""
    with torch.inference_mode():
        encoded = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS.values()]
        return tuple(model(tokens, labels=tokens).loss.item() for tokens in encoded)


def test_points_are_the_losses_of_plain_models(loud, plain_models):
    plane = text_plane(loud, TEXTS).with_merge(loud, loud.mix(MERGE))
    expected = {name: losses(model, loud.tokenizer) for name, model in plain_models.items()}
    assert plane.base == pytest.approx(expected["base"], rel=1e-5)
    assert plane.full == pytest.approx(expected["full"], rel=1e-5)
    assert len(plane.trail) == 1
    assert plane.trail[0] == pytest.approx(expected["merged"], rel=1e-5)
    # All six numbers differ by more than that, so that none stands in another's place.
    numbers = sorted(number for point in expected.values() for number in point)
    assert min(high / low for low, high in pairwise(numbers)) > 1 + 1e-4


def test_the_trail_keeps_what_was_tried(loud):
    plane = text_plane(loud, TEXTS)
    assert plane.trail == ()
    half, whole = loud.mix(0.5), loud.mix(1)
    plane = plane.with_merge(loud, half).with_merge(loud, half).with_merge(loud, whole)
    assert len(plane.trail) == 2  # what lies where the last one does adds no point
    assert plane.trail[1] == pytest.approx(plane.full, rel=1e-6)
    plane = plane.with_merge(loud, half)
    assert plane.trail[2] == plane.trail[0]
    earlier = tuple((float(index), 0.0) for index in range(LONGEST_TRAIL))
    longer = TextPlane(TEXTS, (0, 0), (1, 1), earlier).with_merge(loud, half)
    assert longer.trail == (*earlier[1:], plane.trail[0])


def test_two_texts_that_can_be_predicted(loud):
    with pytest.raises(LabkitError, match="a plane is made of two texts, found 1"):
        points(loud, {"one": "text"}, [loud.mix(1)])
    with pytest.raises(LabkitError, match="nothing to predict"):
        text_plane(loud, {"one": "text", "two": "a"})


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
    (found,) = points(loud, {"one": ["In the beginning", "was"], "two": several}, [loud.mix(1)])
    loud.weights = "1x4"
    assert found[0] == pytest.approx(loud.nll(["In the beginning", "was"]), rel=1e-5)
    assert found[1] == pytest.approx(loud.nll([one.text for one in read]), rel=1e-5)


def test_constants_are_points_and_the_best_is_best_on_the_first_text(loud):
    plane = text_plane(loud, TEXTS)
    assert plane.best_constant is None
    for weight in (0.25, 0.5, 0.75):
        plane = plane.with_constant(loud, weight)
        assert plane.constants[weight] == points(loud, TEXTS, [loud.mix(weight)])[0]
    on_first = {weight: point[0] for weight, point in plane.constants.items()}
    assert on_first[plane.best_constant] == min(on_first.values())
    assert plane.trail == ()
