"""Small questions, their steps and their answers, made from a random source.

Each kind of question is a function from that source to what a Problem holds; its phrasings, names
and numbers vary.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from labkit.demonstration.words import NAMES, SHOPPING, THINGS, WEEK, WORDS

CONVERSIONS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
)


@dataclass(frozen=True)
class Problem:
    """A question, the steps to its answer, and the answer; `kind` names the maker."""

    kind: str
    question: str
    steps: tuple[str, ...]
    answer: str


Random = random.Random
Made = tuple[str, tuple[str, ...], object]


def add_three(rng: Random) -> Made:
    a, b, c = (rng.randint(11, 199) for _ in range(3))
    question = rng.choice(
        [
            f"What is {a} + {b} + {c}?",
            f"Add {a}, {b} and {c}.",
            f"Find the sum of {a}, {b} and {c}.",
        ]
    )
    return question, (f"{a} + {b} = {a + b}", f"{a + b} + {c} = {a + b + c}"), a + b + c


def give_away(rng: Random) -> Made:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b, c = rng.randint(30, 99), rng.randint(2, 20), rng.randint(2, 29)
    question = rng.choice(
        [
            f"{name} has {a} {thing}, gives away {b} and then finds {c} more. "
            + "How many are there now?",
            f"There are {a} {thing} in a box. {name} takes out {b} and puts in {c}. "
            + "How many are left?",
            f"{name} starts with {a} {thing}, loses {b} and buys {c}. How many does {name} have?",
        ]
    )
    steps = f"Start with {a} and take away {b}: {a} - {b} = {a - b}", f"{a - b} + {c} = {a - b + c}"
    return question, steps, f"{a - b + c} {thing}"


def multiply(rng: Random) -> Made:
    a, b = rng.randint(12, 99), rng.randint(3, 9)
    tens, ones = a // 10 * 10, a % 10
    question = rng.choice(
        [f"What is {a} times {b}?", f"Multiply {a} by {b}.", f"Calculate {a} * {b}."]
    )
    steps = (
        f"Split {a} into {tens} and {ones}",
        f"{tens} * {b} = {tens * b} and {ones} * {b} = {ones * b}",
        f"{tens * b} + {ones * b} = {a * b}",
    )
    return question, steps, a * b


def share(rng: Random) -> Made:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    friends, each = rng.randint(3, 9), rng.randint(4, 12)
    left = rng.randint(0, friends - 1)
    total = friends * each + left
    get = "How many does each get, and how many are left over?"
    pack = "How many are in a bag, and how many are left?"
    question = rng.choice(
        [
            f"{name} shares {total} {thing} equally among {friends} friends. {get}",
            f"{total} {thing} are packed into {friends} bags with the same number in each. {pack}",
        ]
    )
    steps = f"{friends} * {each} = {friends * each}", f"{total} - {friends * each} = {left}"
    return question, steps, f"{each} each, {left} left over"


def change(rng: Random) -> Made:
    name, item = rng.choice(NAMES), rng.choice(SHOPPING)
    price, count = rng.randint(2, 9), rng.randint(2, 5)
    paid = rng.choice([note for note in (20, 50, 100) if note > price * count])
    pays = f"and pays with {paid} dollars."
    question = rng.choice(
        [
            f"{item.capitalize()} costs {price} dollars. {name} buys {count} of them {pays} "
            + "What is the change?",
            f"One ticket costs {price} dollars. {name} buys {count} {pays} How much comes back?",
        ]
    )
    cost = price * count
    return (
        question,
        (f"{count} * {price} = {cost}", f"{paid} - {cost} = {paid - cost}"),
        (f"{paid - cost} dollars"),
    )


def percentage(rng: Random) -> Made:
    percent, whole = rng.choice([5, 10, 20, 25, 30, 40, 50, 75]), rng.randint(2, 40) * 20
    question = rng.choice(
        [f"What is {percent}% of {whole}?", f"Find {percent} percent of {whole}."]
    )
    part = percent * whole // 100
    steps = f"{percent} * {whole} = {percent * whole}", f"{percent * whole} / 100 = {part}"
    return question, steps, part


def discount(rng: Random) -> Made:
    item, percent = rng.choice(SHOPPING), rng.choice([10, 20, 25, 30, 50])
    price = rng.randint(2, 20) * 20
    off = price * percent // 100
    question = rng.choice(
        [
            f"The price of {item} is {price} dollars. It is reduced by {percent}%. "
            + "What is the new price?",
            f"A shop takes {percent}% off {item} that costs {price} dollars. "
            + "What does it cost now?",
        ]
    )
    steps = f"{percent}% of {price} is {off}", f"{price} - {off} = {price - off}"
    return question, steps, f"{price - off} dollars"


def weekday(rng: Random) -> Made:
    first, days = rng.choice(WEEK), rng.randint(8, 40)
    last = WEEK[(WEEK.index(first) + days) % 7]
    question = rng.choice(
        [
            f"Today is {first}. What day is it in {days} days?",
            f"If it is {first} now, which day of the week comes {days} days later?",
        ]
    )
    rest = days % 7
    steps = (
        f"A week has 7 days, and {days} = {days // 7} * 7 + {rest}",
        f"{rest} days after {first} is {last}",
    )
    return question, steps, last


def clock(rng: Random) -> Made:
    hour, minute, length = rng.randint(6, 18), rng.randint(0, 59), rng.randint(15, 130)
    past = minute + length
    end = hour * 60 + past
    question = rng.choice(
        [
            f"A film starts at {hour}:{minute:02} and lasts {length} minutes. When does it end?",
            f"{rng.choice(NAMES)} leaves at {hour}:{minute:02} and travels for {length} minutes. "
            + "What time is it at the end?",
        ]
    )
    steps = (
        f"{minute} + {length} = {past} minutes",
        f"That is {past // 60} hours and {past % 60} minutes after {hour}:00",
    )
    return question, steps, f"{end // 60}:{end % 60:02}"


def compare(rng: Random) -> Made:
    whole = rng.randint(1, 40)
    first, second = rng.sample(range(11, 100), 2)
    a, b = f"{whole}.{first}", f"{whole}.{second}"
    bigger, smaller = (first, second) if first > second else (second, first)
    question = rng.choice(
        [f"Which is larger, {a} or {b}?", f"Compare {a} and {b}. Which one is greater?"]
    )
    steps = (
        f"Both have {whole} before the point",
        f"After the point, {bigger} is more than {smaller}",
    )
    return question, steps, f"{whole}.{bigger}"


def count_letter(rng: Random) -> Made:
    word = rng.choice(WORDS)
    letter = rng.choice(word)
    places = [str(place) for place, found in enumerate(word, 1) if found == letter]
    question = rng.choice(
        [
            f'How many times does the letter "{letter}" occur in "{word}"?',
            f'Count the letter "{letter}" in the word "{word}".',
        ]
    )
    steps = f"The letters are {'-'.join(word)}", f'"{letter}" stands at {", ".join(places)}'
    return question, steps, len(places)


def sort_numbers(rng: Random) -> Made:
    numbers = rng.sample(range(1, 100), 4)
    listed = ", ".join(map(str, numbers))
    question = rng.choice(
        [f"Sort these numbers from small to large: {listed}.", f"Put {listed} in increasing order."]
    )
    ordered = sorted(numbers)
    steps = (
        f"The smallest is {ordered[0]} and the largest is {ordered[3]}",
        f"Between them come {ordered[1]} and {ordered[2]}",
    )
    return question, steps, ", ".join(map(str, ordered))


def convert(rng: Random) -> Made:
    big, small, factor = rng.choice(CONVERSIONS)
    amount = rng.randint(2, 30)
    question = rng.choice(
        [f"How many {small} are {amount} {big}?", f"Convert {amount} {big} to {small}."]
    )
    steps = (
        f"One of the {big} is {factor} {small}",
        f"{amount} * {factor} = {amount * factor}",
    )
    return question, steps, f"{amount * factor} {small}"


def even_or_odd(rng: Random) -> Made:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    word = "odd" if (a + b) % 2 else "even"
    question = rng.choice([f"Is {a} + {b} even or odd?", f"Is the sum of {a} and {b} odd or even?"])
    return question, (f"{a} + {b} = {a + b}", f"The last digit is {(a + b) % 10}"), word


def tallest(rng: Random) -> Made:
    a, b, c = rng.sample(NAMES, 3)
    most, more = rng.choice(
        [
            ("tallest", "taller"),
            ("oldest", "older"),
            ("fastest", "faster"),
            ("strongest", "stronger"),
        ]
    )
    facts = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
    rng.shuffle(facts)
    question = " ".join([*facts, f"Who is the {most}?"])
    steps = f"{a} comes before {b}, and {b} comes before {c}", f"The order is {a}, {b}, {c}"
    return question, steps, a


def average(rng: Random) -> Made:
    mean, spread = rng.randint(10, 60), rng.randint(1, 9)
    a, b, c = mean - spread, mean + 2 * spread, mean - spread
    numbers = [a, b, c]
    rng.shuffle(numbers)
    a, b, c = numbers
    question = rng.choice(
        [f"What is the average of {a}, {b} and {c}?", f"Find the mean of {a}, {b} and {c}."]
    )
    total = a + b + c
    return question, (f"{a} + {b} + {c} = {total}", f"{total} / 3 = {total // 3}"), total // 3


def perimeter(rng: Random) -> Made:
    a, b = rng.randint(3, 40), rng.randint(3, 40)
    question = rng.choice(
        [
            f"A garden is {a} metres long and {b} metres wide. How long is the fence around it?",
            f"What is the perimeter of a rectangle of {a} by {b} metres?",
        ]
    )
    steps = f"{a} + {b} = {a + b}", f"2 * {a + b} = {2 * (a + b)}"
    return question, steps, f"{2 * (a + b)} metres"


def sequence(rng: Random) -> Made:
    first, step = rng.randint(1, 40), rng.randint(2, 12)
    terms = [first + place * step for place in range(5)]
    listed = ", ".join(map(str, terms[:4]))
    question = rng.choice(
        [f"What number comes next: {listed}?", f"Continue the sequence {listed} by one number."]
    )
    steps = (
        f"The difference is {terms[1]} - {terms[0]} = {step}",
        f"{terms[3]} + {step} = {terms[4]}",
    )
    return question, steps, terms[4]


def alphabet(rng: Random) -> Made:
    words = rng.sample(WORDS, 3)
    while len({word[0] for word in words}) < 3:
        words = rng.sample(WORDS, 3)
    question = rng.choice(
        [
            f"Which comes first in the alphabet: {words[0]}, {words[1]} or {words[2]}?",
            f"Of the words {words[0]}, {words[1]} and {words[2]}, which is first in a dictionary?",
        ]
    )
    letters = ", ".join(word[0] for word in words)
    steps = f"The first letters are {letters}", f'The earliest of them is "{min(words)[0]}"'
    return question, steps, min(words)


def travel(rng: Random) -> Made:
    speed, hours = rng.randint(3, 24) * 5, rng.randint(2, 8)
    question = rng.choice(
        [
            f"A train goes {speed} kilometres an hour. How far does it go in {hours} hours?",
            f"{rng.choice(NAMES)} drives for {hours} hours at {speed} kilometres an hour. How far?",
        ]
    )
    steps = (
        f"Each hour adds {speed} kilometres",
        f"{hours} * {speed} = {speed * hours}",
    )
    return question, steps, f"{speed * hours} kilometres"


def area(rng: Random) -> Made:
    a, b = rng.randint(3, 20), rng.randint(3, 12)
    question = f"A room is {a} metres long and {b} metres wide. What is its area?"
    steps = "The area is the length times the width", f"{a} * {b} = {a * b}"
    return question, steps, f"{a * b} square metres"


def backwards(rng: Random) -> Made:
    word = rng.choice(WORDS)
    question = f'Write the word "{word}" backwards.'
    steps = f"The letters are {'-'.join(word)}", f"From the end they are {'-'.join(word[::-1])}"
    return question, steps, word[::-1]


def ages(rng: Random) -> Made:
    name, other = rng.sample(NAMES, 2)
    age, gap, later = rng.randint(5, 40), rng.randint(2, 12), rng.randint(2, 10)
    question = (
        f"{name} is {age} years old. {other} is {gap} years older. "
        f"How old will {other} be in {later} years?"
    )
    steps = f"{age} + {gap} = {age + gap}", f"{age + gap} + {later} = {age + gap + later}"
    return question, steps, f"{age + gap + later} years old"


def recipe(rng: Random) -> Made:
    grams, people, guests = rng.randint(2, 15) * 10, rng.randint(2, 4), rng.randint(5, 9)
    question = (
        f"A recipe for {people} people needs {grams * people} grams of flour. "
        f"How much is needed for {guests} people?"
    )
    steps = f"{grams * people} / {people} = {grams}", f"{guests} * {grams} = {guests * grams}"
    return question, steps, f"{guests * grams} grams"


Maker = Callable[[Random], Made]
TRAINED: tuple[Maker, ...] = (
    add_three, give_away, multiply, share, change, percentage, discount, weekday, clock, compare,
    count_letter, sort_numbers, convert, even_or_odd, tallest, average, perimeter, sequence,
    alphabet, travel,
)  # fmt: skip
NEVER_TRAINED: tuple[Maker, ...] = (area, backwards, ages, recipe)


def problem(maker: Maker, rng: Random) -> Problem:
    """One problem of a kind."""
    question, steps, answer = maker(rng)
    return Problem(maker.__name__, question, steps, str(answer))
