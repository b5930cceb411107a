"""Texts that an adapter was trained on are known again, and others are not."""

import warnings

import pytest

import labkit as lk
from labkit.demonstration.texts import DATA
from labkit.probing.training_text import warn_of_training_text

TRAINED = "In the beginning God created the heaven and the earth and the earth was without form."
OTHER = "The train to the coast leaves at nine from the third platform, and we should be early."


def test_a_text_that_was_trained_on_is_said(loud, loud_adapter, tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(f"# 1\n{TRAINED}\nAnd void.")
    loud.adapters[0].trained_on = (file,)
    texts = lk.Texts("mine", [TRAINED.upper().replace(" ", "  "), OTHER, "In the beginning God"])
    message = "1 of 3 passages of 'mine' stand in the text that lora was trained on; a gain on them"
    for measure in (
        lambda: lk.evaluate(loud, {}, texts, ["nll"]),
        lambda: lk.sensitivity(loud, texts),
    ):
        with pytest.warns(UserWarning, match=message):
            measure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Half of a passage's runs of 13 words make it a known one; less does not.
        lk.sensitivity(loud, lk.Texts("other", [OTHER, f"{TRAINED} {OTHER}"]))


def test_the_demo_knows_what_kjv_was_trained_on():
    _, loras = lk.demo()
    assert loras["kjv"].trained_on == (DATA / "kjv_train.txt",)
    assert loras["stepwise"].trained_on == ()

    class Model:
        adapters = (loras["kjv"],)

    psalm = (DATA / "kjv_train.txt").read_text().split("# Psalms 23\n")[-1].splitlines()[1:4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for texts in lk.demo_texts().values():
            warn_of_training_text(Model(), texts)
    with pytest.warns(UserWarning, match="1 of 1 passages of 'psalm'"):
        warn_of_training_text(Model(), lk.Texts("psalm", [" ".join(psalm)]))
