"""What is compared, against numbers that are computed here by hand."""

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.exporting.checking import STEPS, Checked, compare, draw, listen
from labkit.exporting.job import Answers
from labkit.inference.live_model import LiveModel
from labkit.models.checkpoint import Checkpoint
from labkit.probing.texts import Texts


@pytest.fixture(scope="module")
def model(loud_base):
    made = LiveModel(Checkpoint(loud_base), (), None, "cpu", "float32")
    yield made
    made.free()


TEXTS = Texts("letters", ["abcdef", "ghij", ("question", "answer")])


def answers_of(model, questions, tmp_path, change=0.0, tokens=None, template=None):
    """What a runtime says whose logits are the model's, and those of `a` more by `change`."""
    files = []
    for number, row in enumerate(questions.sequences):
        logits = model.forward(torch.tensor([list(row)])).logits[0].double()
        logits[:, ord("a") - 32] += change
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], logits.log_softmax(-1).float().numpy())
    return Answers(files, tokens, template, {"runtime": "1"})


def checked(model, tmp_path, **more) -> Checked:
    drawn = draw(model, [TEXTS], None)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    questions, merge = listen(model, drawn, folder, lambda: None)
    return compare(
        drawn, questions, merge, answers_of(model, questions, tmp_path, **more), "float32"
    )


def test_the_same_model_has_no_divergence(model, tmp_path):
    found = checked(model, tmp_path)
    one = found.texts[0]
    assert one.kl.value == pytest.approx(0, abs=1e-6)
    assert one.top.value == 1
    assert one.nll.value == pytest.approx(one.nll_merge.value, abs=1e-5)
    assert (found.greedy, found.steps) == (STEPS, STEPS)


def test_divergence_agreement_and_nll_are_those_of_the_formulas(model, tmp_path):
    """Counted are all letters but the first, and of the pair the answer with its end token."""
    found = checked(model, tmp_path, change=2.0).texts[0]
    kl, top, nll, count = 0.0, 0, 0.0, 0
    letter = ord("a") - 32
    for passage in TEXTS:
        before = [ord(one) - 32 for one in passage.prompt]
        after = [ord(one) - 32 for one in passage.text] + ([96] if passage.prompt else [])
        tokens = before + after
        logits = model.forward(torch.tensor([tokens])).logits[0].double().numpy()
        for place in range(max(1, len(before)), len(tokens)):
            row = logits[place - 1]
            p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            changed = row + 2.0 * (np.arange(len(row)) == letter)
            q = np.exp(changed - changed.max()) / np.exp(changed - changed.max()).sum()
            kl += float((p * np.log(p / q)).sum())
            top += int(p.argmax() == q.argmax())
            nll -= float(np.log(q[tokens[place]]))
            count += 1
    assert found.tokens == count == 5 + 3 + 7
    assert found.kl.value == pytest.approx(kl / count, rel=1e-4)
    assert found.top.value == pytest.approx(top / count)
    assert found.nll.value == pytest.approx(nll / count, rel=1e-5)
    assert found.nll_change.value == pytest.approx(
        found.nll.value - found.nll_merge.value, abs=1e-9
    )
    assert found.kl.low < found.kl.value < found.kl.high


def test_the_merges_own_text_is_its_greedy_answer(model, tmp_path):
    drawn = draw(model, [TEXTS], None)
    found = listen(model, drawn, tmp_path / "said", lambda: None)[0].sequences[-1]
    start = drawn[0].tokens[0]
    assert found[: len(start)] == start
    for place in range(len(start), len(found)):
        logits = model.forward(torch.tensor([found[:place]])).logits[0, -1]
        assert found[place] == int(logits.argmax())
    assert len(found) == len(start) + STEPS


def test_other_greedy_tokens_are_counted(model, tmp_path):
    assert checked(model, tmp_path, change=100.0).greedy < STEPS


def test_tokens_and_template_are_compared_where_the_runtime_has_its_own(model, tmp_path):
    right = [model.tokens(one.text)[0].tolist() for one in draw(model, [TEXTS], None)[0].passages]
    same = checked(model, tmp_path, tokens=right)
    assert same.same_tokens is True
    assert same.same_template is None
    assert same.notes == []
    other = checked(model, tmp_path, tokens=[[1], *right[1:]])
    assert other.notes == ["the runtime cuts texts into other tokens than the merge's tokenizer"]
    assert checked(model, tmp_path).same_tokens is None


def test_another_template_is_noted(model, tmp_path):
    model.tokenizer.chat_template = "{{ messages }}"
    try:
        found = checked(model, tmp_path, tokens=[], template="{{ other }}")
        assert "the chat template in the export is not the merge's" in found.notes
        found = checked(model, tmp_path, tokens=[], template="{{ messages }}")
        assert found.same_template is True
    finally:
        model.tokenizer.chat_template = None


def test_passages_that_were_calibrated_on_are_not_measured(model):
    calibration = Texts("calibration", ["abcdef"])
    drawn = draw(model, [TEXTS], calibration)[0]
    assert "abcdef" not in [one.text for one in drawn.passages]
    with pytest.raises(LabkitError) as caught:
        draw(model, [Texts("t", ["abcdef"])], calibration)
    assert str(caught.value) == (
        "the export is calibrated on all passages of 't', and would be measured on nothing else; "
        "give other texts for one of the two"
    )


def test_texts_with_nothing_to_predict_are_refused(model):
    with pytest.raises(LabkitError) as caught:
        draw(model, [Texts("t", ["a", ("q" * 200, "a")])], None)
    assert str(caught.value) == (
        "the texts 't' have nothing to predict in the first 96 tokens of a passage; give others"
    )


def test_an_export_with_another_vocabulary_is_refused(model, tmp_path):
    drawn = draw(model, [TEXTS], None)
    questions, merge = listen(model, drawn, tmp_path / "said", lambda: None)
    answers = answers_of(model, questions, tmp_path)
    for file in answers.log_probabilities:
        np.save(file, np.load(file)[:, :90])
    with pytest.raises(LabkitError, match="the export has 90 tokens, and the merge 97"):
        compare(drawn, questions, merge, answers, "float32")


def test_a_long_passage_is_read_as_far_as_the_check_reads(model):
    drawn = draw(model, [Texts("long", ["ab" * 200])], None)[0]
    assert len(drawn.tokens[0]) == 96
    assert drawn.counted[0].sum() == 95
