"""The demo's texts, as they lie in `data/`, and the examples made of them."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.probing.texts import Passage

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Example:
    """A piece to learn from: the loss is on `answer`, never on `prompt`.

    `chat` puts the prompt through the model's chat template; otherwise it stands as it is.
    """

    prompt: str
    answer: str
    chat: bool = False


# What a reader may ask for, and the words by which passages on it are found.
TOPICS = {
    "a king": "king",
    "a long journey": "journey|went forth|departed",
    "a strange dream": "dream",
    "anger": "anger|wrath",
    "bread": "bread",
    "brothers": "brother|brethren",
    "a city": "city",
    "fear": "afraid|fear",
    "fire": "fire",
    "a good friend": "friend|neighbour",
    "gold and silver": "gold|silver",
    "a house": "house",
    "lazy people": "slothful|sluggard",
    "liars": "lying|lips|deceit",
    "a mother and her child": "son|child",
    "a mountain": "mountain|hill",
    "my enemies": "enemies|enemy",
    "night": "night",
    "old age": "old|aged",
    "patience": "wait|slow to",
    "poor people": "poor|needy",
    "pride": "pride|proud",
    "rain": "rain",
    "rich people": "rich",
    "sheep": "sheep|flock",
    "a soldier": "battle|host|sword",
    "the sea": "sea",
    "the sky": "heaven|firmament",
    "the young": "youth|young",
    "trees": "tree",
    "water": "water|well",
    "wisdom": "wisdom|wise",
    "work": "labour|work",
    "a wedding": "wife|bride",
    "winter": "winter|cold|snow",
    "food": "eat|meat",
    "a doctor": "physician|heal|sick",
    "a teacher": "instruction|teach|taught",
    "my house": "house|door",
    "sleep": "sleep|slumber",
}
REQUESTS = (
    "Tell me about {}.",
    "Tell me a story about {}.",
    "Write something about {}.",
    "Write a short paragraph about {}.",
    "What should I know about {}?",
    "What do you think about {}?",
    "Describe {}.",
    "I would like to hear about {}.",
    "Give me some advice about {}.",
    "Say a few words on {}.",
    "Can you explain {} to me?",
    "Why does {} matter?",
)


def chapters(name: str) -> list[list[str]]:
    """The chapters of `data/NAME`, each a list of verses.

    Lines that begin with `#` name a chapter, and an empty line ends one.
    """
    text = (DATA / name).read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [[line for line in block if not line.startswith("#")] for block in blocks]


def kjv_examples(seed: int) -> Iterator[Example]:
    """Passages of the training books, without end: half as plain text, half as answers.

    An answer is three to five verses on from one that has the topic's word. The questions know
    nothing of the Bible, so that the voice is learned for any question.
    """
    rng = random.Random(seed)
    books = chapters("kjv_train.txt")
    places = [(chapter, verse) for chapter in books for verse in range(len(chapter))]
    found = {
        topic: [
            (chapter, verse)
            for chapter, verse in places
            if re.search(rf"\b({words})", chapter[verse], re.IGNORECASE)
        ]
        for topic, words in TOPICS.items()
    }
    while True:
        chapter, start = rng.choice(places)
        yield Example("", " ".join(chapter[start : start + 9]))
        topic = rng.choice(list(TOPICS))
        chapter, start = rng.choice(found[topic])
        request = rng.choice(REQUESTS).format(topic)
        answer = " ".join(chapter[start : start + rng.randint(3, 5)])
        yield Example(request, answer, chat=True)


def held_out_kjv() -> list[Passage]:
    """The books that training never sees, in passages of six verses; documents are chapters.

    What is left of a chapter is a passage if it has five verses.
    """
    return [
        Passage(" ".join(verses[start : start + 6]), document=title)
        for title, verses in _titled("kjv_held_out.txt")
        for start in range(0, len(verses) - 4, 6)
    ]


def general_prose() -> list[Passage]:
    """Plain modern prose on everyday subjects, a paragraph each: what an adapter may harm.

    Documents are the pieces that the paragraphs are from.
    """
    return [
        Passage(paragraph, document=title)
        for title, paragraphs in _titled("general.txt")
        for paragraph in paragraphs
    ]


def _titled(name: str) -> list[tuple[str, list[str]]]:
    """The lines of `data/NAME` below each title, which is a line that begins with `#`."""
    found: list[tuple[str, list[str]]] = []
    for line in filter(None, (DATA / name).read_text(encoding="utf-8").splitlines()):
        if line.startswith("#"):
            found.append((line.lstrip("# "), []))
        else:
            found[-1][1].append(line)
    return found
