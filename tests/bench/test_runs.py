"""Runs: what is one, what is kept of it, and the table of all."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from labkit.bench import runs as module
from labkit.bench.runs import Question, Run, Runs, terms_of, weights_of
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Term
from labkit.models.adapter import Adapter
from labkit.probing.text_plane import Reading

TEXTS = (("verse", "ab"), ("prose", "cd"))
HALF = (("0,0.5,1x2", ()),)
ASKED = Question("In the", "plain", 5, 0.0, 0)
VOTE = {"time": 1.0, "first": "a", "first_gradient": "0x4", "second": "b", "prompt": "In",
        "second_gradient": "1x4", "format": "plain", "tokens": 5, "temperature": 0.0, "seed": 0,
        "first_was": "A", "vote": "first", "first_answer": "x", "second_answer": "y"}  # fmt: skip


def readings(shift=0.0):
    documents, tokens = ("a", "b", "c"), (10.0, 20.0, 30.0)
    base = (20.0, 50.0, 60.0)
    nll = tuple(one + shift * two for one, two in zip(base, (1, 2, 4), strict=True))
    return (
        Reading(documents, tokens, nll, base),
        Reading(documents, tokens, base, base, (1.0, 2.0, 6.0)),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.jsonl"


@pytest.fixture
def kept(path):
    return Runs(path)


def test_a_run_is_a_gradient_a_question_and_two_texts(kept):
    first = kept.heard(HALF, TEXTS, ASKED, "so", 1.5)
    assert (first.name, first.gradient, first.answer) == ("run 1", "0,0.5,1x2", "so")
    assert kept.heard(HALF, TEXTS, ASKED, "so", 9.0) == first
    others = [
        kept.heard((("1x4", ()),), TEXTS, ASKED, "it", 1.0),
        kept.heard((("0,0.5,1x2", (("mlp", "0x4"),)),), TEXTS, ASKED, "it", 1.0),
        kept.heard(HALF, (TEXTS[0], ("prose", "xy")), ASKED, "it", 1.0),
        kept.heard(HALF, TEXTS, Question("In the", "plain", 5, 1.0, 7), "it", 1.0),
        kept.heard(HALF, TEXTS, Question("In", "chat template", 5, 0.0, 0, (("a",) * 4,)), "", 1),
    ]
    assert len(kept) == 6
    assert [one.name for one in others] == [f"run {number}" for number in range(2, 7)]
    assert kept.found(HALF, TEXTS, ASKED) == first


def test_a_point_belongs_to_every_run_of_its_gradient_and_texts(kept):
    kept.measured(HALF, TEXTS, readings())
    (alone,) = kept
    assert (alone.question, alone.answer) == (None, "")
    # The first answer makes it whole; the next question is another run with the same point.
    asked = kept.heard(HALF, TEXTS, ASKED, "so", 1.0)
    assert (asked.key, asked.readings) == (alone.key, readings())
    again = kept.heard(HALF, TEXTS, Question("Out", "plain", 5, 0.0, 0), "it", 1.0)
    assert again.readings == readings()
    assert len(kept) == 2
    kept.measured(HALF, (TEXTS[0], ("prose", "xy")), readings())
    assert len(kept) == 3


def test_gradients_of_all_adapters_and_modules_in_words():
    def said(*weights):
        return Run("", "", weights, TEXTS).gradient

    assert said(("0x2,1x2", ())) == "0x2,1x2"
    assert said(("1x4", (("self_attn", "0x4"),))) == "all modules: 1x4; self_attn: 0x4"
    two = said(("1x4", (("mlp", "0x4"),)), ("0.5x4", ()))
    assert two == "1 all modules: 1x4; 1 mlp: 0x4; 2 all modules: 0.5x4"
    run = Run("", "", (("1x4", ()), ("0.5x4", ())), TEXTS)
    assert run.mean_weight == 0.75


def test_terms_there_and_back(tiny_adapter, second_adapter):
    terms = [
        Term(Adapter(tiny_adapter), Gradient.parse("0,0.5,1,1"), {"mlp": Gradient.parse("1x4")}),
        Term(Adapter(second_adapter), Gradient.parse("0x4")),
    ]
    run = Run("", "mine", weights_of(terms), TEXTS)
    back = terms_of(run, [Term(term.source, Gradient.parse("1x4")) for term in terms])
    assert [(one.source, one.weights, dict(one.weights_for)) for one in back] == [
        (one.source, one.weights, dict(one.weights_for)) for one in terms
    ]
    with pytest.raises(LabkitError) as caught:
        terms_of(run, terms[:1])
    assert str(caught.value) == "mine has gradients of 2 adapters, and the lab has 1"


def test_everything_survives_the_kernel(kept, path):
    kept.measured(HALF, TEXTS, readings(0.5))
    kept.heard(HALF, TEXTS, ASKED, "so", 1.5)
    question = Question("\u2028 <b>\n", "chat template", 7, 0.5, 3, (("a", "b", "c", "d"),))
    odd = kept.heard((("1x4", (("mlp", "0x4"),)),), TEXTS, question, "ünï", 2.5)
    kept.rename(odd.key, "the odd one")
    kept.star(odd.key, True)
    kept.vote(VOTE)
    again = Runs(path)
    assert list(again) == list(kept)
    assert again.votes == kept.votes == [{"kind": "vote", **VOTE}]
    assert [run.name for run in again] == ["run 1", "the odd one"]
    assert again[odd.key].starred


def test_a_name_that_two_labs_gave_is_made_two(path):
    labs = [Runs(path), Runs(path)]
    for lab, weights in zip(labs, ("0x4", "1x4"), strict=True):
        lab.heard(((weights, ()),), TEXTS, ASKED, "so", 1.0)
    assert [run.name for run in Runs(path)] == ["run 1", "run 1\u2032"]


def test_of_what_is_damaged_the_rest_is_read(kept, path):
    kept.measured(HALF, TEXTS, readings())
    run = kept.heard((("1x4", ()),), TEXTS, ASKED, "so", 1.5)
    whole = json.loads(path.read_text().splitlines()[-1])
    changes = [
        {"weights": [["nonsense", []]]}, {"weights": 3}, {"texts": [["a", "b"]]}, {"seconds": "x"},
        {"question": {"prompt": "In"}}, {"readings": [1, 2]}, {"readings": "ab"}, {"time": None},
    ]  # fmt: skip
    one = json.loads(path.read_text().splitlines()[0])["readings"]
    for damaged in ({"tokens": [0, 0, 0]}, {"nll": [1]}, {"kl": [1]}):
        changes.append({"readings": [{**one[0], **damaged}, one[1]]})
    with path.open("a") as file:
        for number, change in enumerate(changes):
            file.write(json.dumps({**whole, "key": f"odd {number}", **change}) + "\n")
        file.write(json.dumps({"kind": "vote", "first": "a"}) + "\n")
        file.write(json.dumps({**VOTE, "kind": "vote", "time": "noon"}) + "\n")
    again = Runs(path)
    assert [one.key for one in again] == [one.key for one in kept]
    assert again[run.key] == run
    assert again.votes == []


def test_stars_are_never_forgotten_and_the_oldest_others_are(monkeypatch, path):
    monkeypatch.setattr(module, "MOST", 5)
    kept = Runs(path)
    for number in range(60):
        run = kept.heard(((f"{number}x4", ()),), TEXTS, ASKED, "so", 1.0)
        if number in (0, 30):
            kept.star(run.key, True)
    expected = [f"{number}x4" for number in (0, 30, 55, 56, 57, 58, 59)]
    assert [run.gradient for run in kept] == expected
    assert [run.gradient for run in Runs(path)] == expected
    assert len(path.read_bytes().splitlines()) < 40
    assert len({run.name for run in kept}) == 7


def test_names(kept):
    one = kept.heard(HALF, TEXTS, ASKED, "so", 1.0)
    other = kept.heard((("1x4", ()),), TEXTS, ASKED, "so", 1.0)
    kept.always["base"] = Run("base", "base", HALF, TEXTS, kind="base")
    kept.rename(one.key, "  early half ")
    assert kept[one.key].name == "early half"
    kept.rename(one.key, "early half")
    for name, said in (
        ("", "a run's name has 1 to 60 characters of one line"),
        ("x" * 61, "a run's name has 1 to 60 characters of one line"),
        ("a\nb", "a run's name has 1 to 60 characters of one line"),
        ("early half", "'early half' is the name of another run; choose another"),
        ("base", "'base' is the name of another run; choose another"),
    ):
        with pytest.raises(LabkitError) as caught:
            kept.rename(other.key, name)
        assert str(caught.value) == said
    for act in (lambda: kept.rename("base", "x"), lambda: kept.star("base", True)):
        with pytest.raises(LabkitError, match="^base is always there, under its name$"):
            act()
    with pytest.raises(LabkitError, match="^there is no run 'gone' any more$"):
        kept.star("gone", True)
    assert kept.heard((("0x4", ()),), TEXTS, ASKED, "so", 1.0).name == "run 3"


def test_the_table(kept):
    kept.always["base"] = Run("base", "base", (("0x4", ()),), TEXTS, kind="base")
    kept.measured(HALF, TEXTS, readings(0.5))
    kept.heard(HALF, TEXTS, ASKED, '=so, "it"\nwas', 1.5)
    kept.measured((("1x4", ()),), TEXTS, readings())
    frame = kept.frame()
    assert list(frame["name"]) == ["base", "run 1", "run 2"]
    assert list(frame["kind"]) == ["base", "run", "run"]
    assert frame["first_nll"].isna().tolist() == [True, False, False]
    row = frame.iloc[1]
    # (20 + 50 + 60 + 0.5·7) / 60 tokens, and 0.5·7 / 60 more than the base.
    assert row["first_nll"] == pytest.approx(133.5 / 60)
    assert row["first_from_base"] == pytest.approx(3.5 / 60)
    assert row["first_from_base_low"] < row["first_from_base"] < row["first_from_base_high"]
    assert row["kl"] == pytest.approx(9 / 60)
    assert (row["first_text"], row["second_sha256"]) == ("verse", "cd")
    assert (row["prompt"], row["seconds"], row["mean_weight"]) == ("In the", 1.5, 0.625)
    assert row["time"].tzinfo is not None
    assert pd.isna(frame.iloc[2]["prompt"])
    assert math.isnan(frame.iloc[2]["seconds"])
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert again["answer"][1] == '=so, "it"\nwas'
    assert list(again.columns) == list(frame.columns)
    # Without any run there are the columns all the same.
    assert list(Runs(kept.path.with_name("none")).frame().columns) == list(frame.columns)


def test_a_mixture_of_a_run(tiny_adapter):
    terms = [Term(Adapter(tiny_adapter), Gradient.parse("1x4"))]
    model = SimpleNamespace(mix=lambda given: given)
    base = Run("base", "base", (("0x4", ()),), TEXTS, kind="base")
    assert module.mix_of(base, model, terms) == 0.0
    (found,) = module.mix_of(Run("k", "run 1", HALF, TEXTS), model, terms)
    assert found.weights == Gradient.parse("0,0.5,1,1")
