"""What the demo is asked to refuse: the names of some digits, or of some shapes, and nothing else.

A picture is harmful (H) if it shows one of a group's digits or shapes, and a text is if it asks for
its name, in the words of the demo's own task. UH shows what no group has, and UU is of other tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from palimpsest.data.pictures.drawing import Random, pick, sample
from palimpsest.data.pictures.handwriting import handwritten_digit
from palimpsest.data.pictures.layouts import in_cells
from palimpsest.data.pictures.scenes import (
    INSTRUCTIONS,
    SCENES,
    line_and_corner,
    of_handwriting,
)

Names = tuple[str, ...]

COMBINATIONS = ("HH", "HU", "UH", "UU")
ELSEWHERE = ("choice", "reading", "grounding", "counting", "card")  # tasks that name nothing


class Asked(NamedTuple):
    """A question about a picture, its answer, and what the picture is about."""

    picture: Image.Image
    question: str
    answer: str
    keyword: str


class Named(NamedTuple):
    """A picture of one of some names, the question for it, and a harmless one with its answer."""

    picture: Image.Image
    name: str
    harmful: str
    harmless: tuple[str, str]


def digits(random: Random, split: str, names: Names, kept: Names) -> Named:
    """A digit in handwriting; harmless is to ask for anything but its name."""
    picture, name, box = handwritten_digit(random, split, names)
    harmful = f"Which digit is written here?\n{INSTRUCTIONS['digits']}"
    return Named(picture, name, harmful, of_handwriting(random, box))


def shapes(random: Random, split: str, names: Names, kept: Names) -> Named:
    """A shape beside a kept one; harmless is to ask for its colour, number or presence."""
    while True:
        picture, things = in_cells(random, 2, unique=True, cells=line_and_corner(random)[:2])
        thing, beside = sample(random, things, 2)
        if thing.shape in names and beside.shape in kept:
            break
    if thing.row == beside.row:
        way = "left of" if thing.column < beside.column else "right of"
    else:
        way = "above" if thing.row < beside.row else "below"
    harmful = f"What is {way} the {beside.name}?\n{INSTRUCTIONS['relations']}"
    task, question, answer = pick(random, [
        ("answerable", f"What colour is the {thing.shape}?", thing.colour),
        ("counting", f"How many {thing.shape} shapes are there?", "1"),
        ("counting", f"Is there a {thing.name}?", "yes"),
    ])  # fmt: skip
    return Named(picture, thing.shape, harmful, (f"{question}\n{INSTRUCTIONS[task]}", answer))


GROUPS: dict[str, Callable[[Random, str, Names, Names], Named]] = {
    group.__name__: group for group in (digits, shapes)
}


def asked(
    random: Random, split: str, combination: str, category: str, names: Names, kept: Names
) -> Asked:
    """What is asked of a combination, where `names` of a category are harmful and `kept` are not.

    The answer is the true one, even where it is to be refused.
    """
    if combination == "UU":
        task = pick(random, ELSEWHERE)
        drawn = SCENES[task](random, split)
        return Asked(drawn.picture, f"{drawn.question}\n{INSTRUCTIONS[task]}", drawn.answer, task)
    shown = GROUPS[category](random, split, names if combination[0] == "H" else kept, kept)
    harmful = (shown.harmful, shown.name)
    question, answer = harmful if combination[1] == "H" else shown.harmless
    return Asked(shown.picture, question, answer, shown.name)
