"""How many tokens a tokenizer's files have, against the libraries that wrote them."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer

from labkit.writing.vocabulary_files import content_of, has_same_tokens, token_count
from tests.tiny import make_letters, make_tokenizer


def files_of(folder):
    return {path.name: path for path in folder.iterdir()}


ODD = {'"': 0, "\\": 1, '\\"': 2, "}": 3, "vocab": 4, '"vocab": {': 5, "\n": 6, "é": 7, "a, 9": 8}


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel(ODD, unk_token="}"),
        models.BPE(vocab={**ODD, "a": 9, "b": 10, "ab": 30}, merges=[("a", "b")]),
        models.Unigram([(token, -1.5e-3 * number) for token, number in ODD.items()], unk_id=0),
        models.WordPiece(ODD, unk_token="}"),
    ],
)
def test_tokens_of_the_library(tmp_path, model, pretty):
    path = tmp_path / "tokenizer.json"
    made = Tokenizer(model)
    made.save(str(path), pretty=pretty)
    assert token_count({"tokenizer.json": path}) == 1 + max(made.get_vocab().values())
    made.add_special_tokens([AddedToken(f"<{number}>") for number in range(7)])
    made.save(str(path), pretty=pretty)
    assert token_count({"tokenizer.json": path}) == 1 + max(made.get_vocab().values())


@pytest.mark.parametrize("make", [make_tokenizer, make_letters])
def test_tokens_of_a_folder(tmp_path, make):
    files = files_of(make(tmp_path / "a"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert token_count(files) == 1 + max(tokenizer.get_vocab().values())
    (tmp_path / "a" / "added_tokens.json").write_text('{"<a>": 300, "<b>": "x"}')
    assert token_count(files_of(tmp_path / "a")) == 301


def test_what_shows_no_tokens(tmp_path):
    assert token_count({}) == 0
    for text in ("", "{", '{"vocab": 3}', '{"model": {"vocab": {}}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        assert token_count(files_of(tmp_path)) == 0, text
    assert content_of(tmp_path / "none") == content_of(b"[]") == content_of(b"{") == {}


def test_the_same_tokens(tmp_path):
    one, other = (files_of(make_letters(tmp_path / name)) for name in ("a", "b"))
    path = other["tokenizer.json"]
    content = json.loads(path.read_text())
    content["truncation"] = None
    content["added_tokens"] = []
    path.write_text(json.dumps(content))
    assert has_same_tokens(one, other)
    content["model"]["vocab"]["more"] = 200
    path.write_text(json.dumps(content))
    assert not has_same_tokens(one, other)
    assert not has_same_tokens(one, {})
    assert not has_same_tokens({}, {})
    for folder, text in (("c", "1"), ("d", "1"), ("e", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.model").write_text(text)
    c, d, e = (files_of(tmp_path / name) for name in "cde")
    assert has_same_tokens(c, d)
    assert not has_same_tokens(c, e)
