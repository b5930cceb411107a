"""The data of the adapter `stepwise`: small questions answered step by step, made from a seed.

Some kinds of question are never trained on, so that held-out loss is not mere parroting.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from labkit.demonstration.problems import NEVER_TRAINED, TRAINED, Problem, problem
from labkit.demonstration.texts import Example

OPENINGS = (
    "Let's go step by step.",
    "Let's think step by step.",
    "We take it one step at a time.",
    "Step by step:",
)
HELD_OUT_SEED = 7_000_000


def prompt(question: str) -> str:
    """An instruction in the Alpaca format, up to where the answer begins."""
    return f"### Instruction:\n{question}\n\n### Response:\n"


def example(made: Problem, opening: str) -> Example:
    """The problem as text to learn from."""
    steps = "\n".join(f"{place}. {step}." for place, step in enumerate(made.steps, 1))
    return Example(prompt(made.question), f"{opening}\n{steps}\nAnswer: {made.answer}")


def held_out_problems(count: int) -> list[Problem]:
    """Problems for measuring: in turn one of a trained kind, one of a kind never trained."""
    rng = Random(HELD_OUT_SEED)
    return [problem(rng.choice((TRAINED, NEVER_TRAINED)[n % 2]), rng) for n in range(count)]


def held_out_examples(count: int) -> list[Example]:
    """`held_out_problems` as text."""
    rng = Random(HELD_OUT_SEED + 1)
    return [example(made, rng.choice(OPENINGS)) for made in held_out_problems(count)]


def training_problems(seed: int) -> Iterator[Problem]:
    """Problems of the trained kinds, without end, and no held-out question among them."""
    rng = Random(seed)
    kept_out = {made.question for made in held_out_problems(400)}
    while True:
        made = problem(rng.choice(TRAINED), rng)
        if made.question not in kept_out:
            yield made


def training_examples(seed: int) -> Iterator[Example]:
    """`training_problems` as text."""
    rng = Random(seed + 1)
    for made in training_problems(seed):
        yield example(made, rng.choice(OPENINGS))


def harness_documents(**_: object) -> dict[str, Any]:
    """The held-out questions, as the tasks of lm-evaluation-harness in this folder take them.

    361 questions, each once; in turn of a kind trained and of one never trained, so that the first
    ones (`limit=`) are of both.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(distinct_questions())}


def distinct_questions() -> list[dict[str, str]]:
    """Each held-out question once: what is asked, the whole answer, and its result."""
    made = zip(held_out_problems(400), held_out_examples(400), strict=True)
    questions = {
        text.prompt: {"prompt": text.prompt, "answer": text.answer, "result": asked.answer}
        for asked, text in made
    }
    return list(questions.values())


def harness_bits_per_byte(
    document: dict[str, str], results: list[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """What lm-evaluation-harness adds up: an answer's log-likelihood in nats, and its bytes."""
    (log_likelihood, _), *_others = results
    return {"bits_per_byte": (log_likelihood, len(document["answer"].encode()))}
