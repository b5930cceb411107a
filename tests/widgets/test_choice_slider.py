"""The slider over a few numbers: what it takes, and what it refuses."""

import pytest
import traitlets

from labkit.widgets.choice_slider import ChoiceSlider


def test_it_has_one_of_its_options():
    slider = ChoiceSlider([0.1, 0.3, 1.0], 0.3, "strength")
    assert (slider.value, slider.description) == (0.3, "strength")
    seen = []
    slider.observe(lambda change: seen.append(change.new), "value")
    slider.value = 1
    slider.value = 1.0
    assert seen == [1.0]
    with pytest.raises(traitlets.TraitError, match=r"0.5 is none of 0.1, 0.3, 1"):
        slider.value = 0.5
    assert slider.value == 1.0
