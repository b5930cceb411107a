"""Looks into a tokenizer's files: how many tokens it has, and whether two have the same.

`tokenizer.json` of the tokenizers library can have tens of megabytes. It is read past as text, not
built up as objects, so that a merge's memory stays what was forecast.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files.small_files import read_json

Files = Mapping[str, bytes | Path]
"""Name in the model's folder -> the content, or the file."""

VOCABULARY = re.compile(rb'"vocab"\s*:\s*([\[{])')
"""Where the tokens begin: an object of numbers by token, or (Unigram) a list of pairs."""
ENTRY = re.compile(rb'[\s,\[\]]*("(?:[^"\\]|\\.)*")\s*[:,]\s*(-?\d[\d.eE+-]*)')
"""A token and its number; or, of Unigram, its score."""
ADDED = re.compile(rb'"id"\s*:\s*(\d+)')
"""The number of an added token."""


def token_count(files: Files) -> int:
    """How many tokens a tokenizer has: its largest number and 1. 0 if its files do not show it."""
    tokens = _scan(files.get("tokenizer.json"))[1]
    decoder = content_of(files.get("tokenizer_config.json")).get("added_tokens_decoder")
    numbers: list[Any] = [*decoder] if isinstance(decoder, dict) else []
    numbers += content_of(files.get("added_tokens.json")).values()
    return max([tokens, *(int(n) + 1 for n in numbers if re.fullmatch(r"\d{1,9}", str(n)))])


def has_same_tokens(one: Files, other: Files) -> bool:
    """Whether two tokenizers have the same vocabulary, by `tokenizer.json` or `tokenizer.model`."""
    ours, theirs = (_scan(files.get("tokenizer.json"))[0] for files in (one, other))
    if ours or theirs:
        return ours == theirs
    mine, its = one.get("tokenizer.model"), other.get("tokenizer.model")
    if not isinstance(mine, Path) or not isinstance(its, Path):
        return False
    return mine.read_bytes() == its.read_bytes()


def _scan(tokenizer: bytes | Path | None) -> tuple[str, int]:
    """The hash of the vocabulary in a `tokenizer.json` ("" if there is none), and its size."""
    if not isinstance(tokenizer, Path) or not tokenizer.stat().st_size:
        return "", 0
    with tokenizer.open("rb") as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last match
    begins = VOCABULARY.search(text)
    if begins is None:
        return "", 0
    digest, position, count, largest = hashlib.sha256(), begins.end(), 0, -1
    while entry := ENTRY.match(text, position):
        digest.update(entry[1] + b" " + entry[2] + b"\n")
        position, count = entry.end(), count + 1
        if begins[1] == b"{" and entry[2].isdigit():
            largest = max(largest, int(entry[2][:9]))
    # The library writes the added tokens before the model.
    added = [int(match[1][:9]) for match in ADDED.finditer(text, 0, begins.start())]
    tokens = count if begins[1] == b"[" else largest + 1
    return digest.hexdigest(), max([tokens, *(number + 1 for number in added)])


def content_of(config: bytes | Path | None) -> dict[str, Any]:
    """What a tokenizer's config says; nothing if it cannot be read: it is copied, not judged."""
    try:
        content = read_json(config) if isinstance(config, Path) else json.loads(config or b"{}")
    except (LabkitError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
