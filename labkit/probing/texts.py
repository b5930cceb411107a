"""`Texts`: named sets of passages to measure a model on, and where each passage comes from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.small_files import json_lines, read_text

LONGEST_FILE = 50_000_000
SEARCHED_SHARE = 0.5


@dataclass(frozen=True)
class Passage:
    """A text, or the answer to a prompt.

    Attributes:
        text: what is measured; of a prompt and its answer, the answer.
        prompt: what stands before it and is not measured; put through the model's prompt format.
        document: what the passage is a part of. Passages of one document are alike, so intervals
            and splits take documents whole.
        prompt_format: the format that the prompt is put into, by its name in the lab: "chat
            template", "Alpaca", "Metharme", or "plain" where it stands as it is. Empty: the model's
            chat template where it has one, else plain.
    """

    text: str
    prompt: str = ""
    document: str = ""
    prompt_format: str = ""


@dataclass(frozen=True, init=False)
class Texts:
    """A named set of passages.

    Attributes:
        name: its name in tables and figures.
        passages: the passages, in order.
    """

    name: str
    passages: tuple[Passage, ...] = field(repr=False)

    def __init__(
        self,
        name: str,
        passages: Iterable[str | tuple[str, str] | Passage],
        documents: Iterable[Any] | None = None,
        prompt_format: str = "",
    ) -> None:
        """Take passages, or pairs of prompt and answer.

        Args:
            name: the set's name.
            passages: texts, pairs of prompt and answer, or both; a column of pandas is such a list.
            documents: the document of each passage; each passage is one of its own if left out.
            prompt_format: that of pairs, as in `Passage`.

        Raises:
            LabkitError: no passages, one that is no text or empty, or not one document for each.
        """
        if isinstance(passages, (str, bytes)):
            raise LabkitError(
                f"the texts {shown(name)!r} are one text, expected a list of passages; read a file "
                "with Texts.read"
            )
        made = [_passage(one, number, name, prompt_format) for number, one in enumerate(passages)]
        if not made:
            raise LabkitError(f"the texts {shown(name)!r} hold no passage")
        if documents is not None:
            labels = [str(document) for document in documents]
            if len(labels) != len(made):
                raise LabkitError(
                    f"the texts {shown(name)!r} have {len(made)} passages and {len(labels)} "
                    "documents; give one document for each passage"
                )
            made = [replace(one, document=label) for one, label in zip(made, labels, strict=True)]
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "passages", tuple(made))

    @classmethod
    def read(cls, path: str | Path, name: str | None = None, prompt_format: str = "") -> Texts:
        """Read a file, or all files of a folder, each a document.

        A `.txt` holds passages with a blank line between them. A `.jsonl` holds an object a line:
        `text`, or `prompt` and `answer`, and perhaps `document`.

        Args:
            path: the file or folder.
            name: the set's name; that of the file if left out.
            prompt_format: that of the prompts, as in `Passage`.

        Raises:
            LabkitError: a file that cannot be read, of another ending, or a line of another form.
        """
        where = user_path(path)
        files = sorted(where.iterdir()) if where.is_dir() else [where]
        files = [file for file in files if file.suffix in (".txt", ".jsonl")] or files
        passages = [
            replace(passage, prompt_format=prompt_format)
            for file in files
            for passage in _of_file(file)
        ]
        return cls(name or where.stem, passages)

    def split(self, share: float = SEARCHED_SHARE, seed: int = 0) -> tuple[Texts, Texts]:
        """Split by document into a part to search on and a part that is held out.

        Args:
            share: the first part's share of the documents.
            seed: of the draw.

        Raises:
            LabkitError: fewer than two documents.
        """
        documents = sorted({passage.document for passage in self.passages})
        if len(documents) < 2:
            raise LabkitError(
                f"the texts {shown(self.name)!r} are one document, and cannot be split into two "
                "parts that do not know each other; give documents, or more of them"
            )
        random.Random(seed).shuffle(documents)  # noqa: S311 - drawn, not encrypted
        count = min(max(round(share * len(documents)), 1), len(documents) - 1)
        searched = set(documents[:count])
        parts = (
            [one for one in self.passages if (one.document in searched) == wanted]
            for wanted in (True, False)
        )
        first, second = parts
        return Texts(self.name, first), Texts(self.name, second)

    def take(self, count: int, seed: int = 0) -> Texts:
        """So many passages, drawn from as many documents as there are."""
        order = list(self.passages)
        random.Random(seed).shuffle(order)  # noqa: S311 - drawn, not encrypted
        turns: dict[str, int] = {}
        ranked = []
        for passage in order:
            turns[passage.document] = turns.get(passage.document, 0) + 1
            ranked.append((turns[passage.document], passage))
        ranked.sort(key=lambda pair: pair[0])
        return Texts(self.name, [passage for _, passage in ranked[:count]])

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that is measured: what a table was made from."""
        content = [astuple(one) for one in self.passages]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.passages)

    def __iter__(self) -> Iterator[Passage]:
        return iter(self.passages)

    def __repr__(self) -> str:
        documents = len({passage.document for passage in self.passages})
        return f"Texts {shown(self.name)}: {len(self)} passages of {documents} documents"


def _passage(one: Any, number: int, name: str, prompt_format: str) -> Passage:
    if isinstance(one, Passage):
        made = one
    elif isinstance(one, str):
        made = Passage(one)
    elif isinstance(one, Sequence) and len(one) == 2 and all(isinstance(x, str) for x in one):
        made = Passage(one[1], one[0], prompt_format=prompt_format)
    else:
        raise LabkitError(
            f"passage {number} of {shown(name)!r} is {shown(repr(one))}; expected a text, or a "
            "prompt and an answer"
        )
    if not made.text.strip():
        raise LabkitError(f"passage {number} of {shown(name)!r} is empty")
    return made if made.document else replace(made, document=f"passage {number}")


def _of_file(file: Path) -> Iterator[Passage]:
    text = read_text(file, "file of texts", LONGEST_FILE)
    if file.suffix == ".txt":
        for number, block in enumerate(text.split("\n\n")):
            if block.strip():
                yield Passage(" ".join(block.split()), document=f"{file.stem} {number}")
        return
    if file.suffix != ".jsonl":
        raise LabkitError(f"{shown(file)} is no file of texts; expected .txt or .jsonl")
    for number, line, entry in json_lines(text, file):
        found = entry if isinstance(entry, dict) else {}
        answer, prompt = found.get("text", found.get("answer")), found.get("prompt", "")
        if not isinstance(answer, str) or not isinstance(prompt, str):
            raise LabkitError(
                f"{shown(file)}, line {number}: expected an object with text, or with prompt and "
                f"answer, found {shown(line)}"
            )
        document = str(found.get("document", f"{file.stem} {number}"))
        yield Passage(answer, prompt, document)
