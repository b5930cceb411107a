"""Sets of passages: where they come from, how they are split, and what is wrong with others."""

import json

import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.probing.texts import Passage, Texts


def test_texts_pairs_and_columns():
    texts = Texts("mine", ["One two.", ("Why?", "Because.")])
    assert texts.passages[0] == Passage("One two.", "", "passage 0")
    assert texts.passages[1] == Passage("Because.", "Why?", "passage 1")
    column = pd.DataFrame({"t": ["a b", "c d"]})["t"]
    assert [one.text for one in Texts("column", column)] == ["a b", "c d"]
    assert repr(texts) == "Texts mine: 2 passages of 2 documents"


def test_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("One\ntwo.\n\n\n\nThree.\n")
    lines = [{"prompt": "Why?", "answer": "So."}, {"text": "Four.", "document": "book"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "c.md").write_text("not read")
    one = Texts.read(tmp_path / "a.txt")
    assert (one.name, [passage.text for passage in one]) == ("a", ["One two.", "Three."])
    both = Texts.read(tmp_path, "all")
    assert [(p.text, p.prompt) for p in both] == [
        ("One two.", ""), ("Three.", ""), ("So.", "Why?"), ("Four.", "")
    ]  # fmt: skip
    assert both.passages[3].document == "book"


def test_splits_take_documents_whole_and_are_drawn_by_a_seed():
    texts = Texts("t", [f"text {i}" for i in range(40)], [f"book {i // 4}" for i in range(40)])
    first, second = texts.split(0.3, seed=1)
    documents = [{one.document for one in part} for part in (first, second)]
    assert (len(first), len(second)) == (12, 28)
    assert not documents[0] & documents[1]
    assert texts.split(0.3, seed=1) == (first, second)
    assert texts.split(0.3, seed=2) != (first, second)
    taken = texts.take(10, seed=3)
    assert len({one.document for one in taken}) == 10
    assert texts.sha256 == Texts("other", list(texts)).sha256 != first.sha256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Texts("t", "one text"), "are one text, expected a list of passages"),
        (lambda: Texts("t", []), "hold no passage"),
        (lambda: Texts("t", ["a", " "]), "passage 1 of 't' is empty"),
        (lambda: Texts("t", [3]), "passage 0 of 't' is 3; expected a text, or a prompt and an"),
        (lambda: Texts("t", ["a", "b"], ["x"]), "have 2 passages and 1 documents"),
        (
            lambda: Texts("t", ["a", "b"], ["x", "x"]).split(),
            "are one document",
        ),
    ],
)
def test_what_is_no_set_of_texts(make, message):
    with pytest.raises(LabkitError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{', "line 2: not JSON"),
        ("a.jsonl", '{"prompt": "x"}', "line 1: expected an object with text, or with prompt and"),
        ("a.jsonl", '["x"]', "line 1: expected an object"),
        ("a.csv", "x", "is no file of texts; expected .txt or .jsonl"),
    ],
)
def test_what_is_no_file_of_texts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(LabkitError, match=message):
        Texts.read(tmp_path / name)
