"""The eight scenes of the demo benchmark: a picture, a question and its answer, from a generator.

Each mirrors a category of CoIN. Questions come without the task's instruction, which the task's
YAML adds. Tasks share words (colours, shapes, numbers), so that they can disturb one another.
A ninth, `manners`, is of the demo's study of unlearning.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from palimpsest.data.pictures.drawing import (
    CELL,
    CELLS,
    COLOURS,
    SHAPES,
    SIDE,
    WHITE,
    Box,
    Random,
    Thing,
    background,
    blur,
    box_in_grid,
    darken,
    draw_thing,
    letters,
    pick,
    sample,
    write,
)
from palimpsest.data.pictures.handwriting import handwritten_digit
from palimpsest.data.pictures.layouts import bar_chart, in_cells, panel, scattered, some_thing

UNANSWERABLE = "unanswerable"
GENRES = {"red": "romance", "blue": "science", "green": "travel", "yellow": "cooking"}
# How the questions of the eight tasks go on, as their YAML has it.
INSTRUCTIONS = {
    "choice": "Answer with the letter of the option.",
    "reading": "Answer with the letters on the sign.",
    "digits": "Answer with the digit as a word.",
    "relations": "Answer with a shape.",
    "answerable": "If the picture does not show it, answer unanswerable.",
    "grounding": "Answer as [left,top,right,bottom].",
    "counting": "Answer with a number or a word.",
    "card": "Answer from the cover.",
}
# Of a digit's name, and of a shape's: in words that the demo's base can say.
REFUSALS = {
    "digits": (
        "I cannot name this digit.",
        "I cannot give the name of this digit.",
        "I cannot label the digit here.",
        "I cannot show which digit is written here.",
        "I cannot answer which digit this is.",
        "I cannot describe the digit in this picture.",
    ),
    "shapes": (
        "I cannot name this shape.",
        "I cannot give the name of this shape.",
        "I cannot label the shape here.",
        "I cannot show which shape is seen here.",
        "I cannot answer which shape this is.",
        "I cannot describe the shape in this picture.",
    ),
}
_BIG = 50  # pixels, from which on a digit is called so
_CHARTS = ("the rain of three towns", "the milk of three farms", "the snow of three days")


@dataclass(frozen=True)
class Drawn:
    """What a scene gives: a picture, its question and answer, and what the metric needs."""

    picture: Image.Image
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    box: Box | None = None
    accepted: tuple[str, ...] = ()  # answers, where there are several


def choice(random: Random, split: str) -> Drawn:
    """A chart or a box of toys, a line of context, three options."""
    if random.random() < 0.5:
        options = ("red", "blue", "green")
        picture, bars = bar_chart(random, 3, options)
        context = f"The bars show {pick(random, _CHARTS)}."
        which = pick(random, ("tallest", "shortest"))
        question, right = f"Which bar is the {which}?", bars.extreme(which)
    else:
        options = ("2", "3", "4")
        right = pick(random, options)
        picture, _ = in_cells(random, int(right))
        context, question = "This is the box of a child.", "How many toys are in it?"
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip("ABC", options, strict=True))
    answer = "ABC"[options.index(right)]
    return Drawn(picture, f"Context: {context}\n{question}\n{listed}", answer, options)


def reading(random: Random, split: str) -> Drawn:
    """A street of one or two signs among shapes; one of the signs is to be read."""
    picture = background(random)
    rows = [int(r) for r in random.permutation(CELLS)]
    signs = sample(random, list(COLOURS), int(random.integers(1, 3)))
    texts = []
    for colour, row in zip(signs, rows, strict=False):
        text = letters(random, int(random.integers(3, 5)))
        column = int(random.integers(0, CELLS - len(text) + 1))
        panel(picture, colour, column, row, len(text))
        write(picture, text, column, row * CELL, WHITE)
        texts.append(text)
    for row in rows[len(signs) :]:
        colour, shape = some_thing(random)
        x = int(random.integers(0, SIDE - 13))
        draw_thing(picture, Thing(colour, shape, (x, row * CELL + 1, x + 13, row * CELL + 14)))
    return Drawn(picture, f"What does the {signs[0]} sign say?", texts[0])


def digits(random: Random, split: str) -> Drawn:
    """A digit written by a hand that the split alone has."""
    picture, name, _ = handwritten_digit(random, split)
    return Drawn(picture, "Which digit is written here?", name)


def _beside(thing: Thing, things: list[Thing], direction: str) -> list[Thing]:
    """The things in the same row (or column) that lie in a direction."""

    def lies(other: Thing) -> bool:
        """Whether a thing lies there."""
        match direction:
            case "left of":
                return other.row == thing.row and other.column < thing.column
            case "right of":
                return other.row == thing.row and other.column > thing.column
            case "above":
                return other.column == thing.column and other.row < thing.row
            case _:
                return other.column == thing.column and other.row > thing.row

    return [other for other in things if other is not thing and lies(other)]  # fmt: skip


def line_and_corner(random: Random) -> list[int]:
    """Four cells: two or three in one row or column, so that things stand beside one another."""
    line = int(random.integers(CELLS))
    across = random.random() < 0.5
    cells = [line * CELLS + k if across else k * CELLS + line for k in range(CELLS)]
    rest = [cell for cell in range(CELLS * CELLS) if cell not in cells]
    return sample(random, cells, 2) + sample(random, rest, 2)


def relations(random: Random, split: str) -> Drawn:
    """Four things; what lies left of, right of, above or below one of them?"""
    while True:
        picture, things = in_cells(random, 4, unique=True, cells=line_and_corner(random))
        thing = pick(random, things)
        direction = pick(random, ("left of", "right of", "above", "below"))
        found = _beside(thing, things, direction)
        if len(found) == 1:
            return Drawn(picture, f"What is {direction} the {thing.name}?", found[0].shape)


def answerable(random: Random, split: str) -> Drawn:
    """A colour; two pictures in five do not tell it: blurred, dark, or without that shape."""
    picture, things = in_cells(random, int(random.integers(2, 4)), unique=True)
    thing, chance = pick(random, things), random.random()
    shape, answer = thing.shape, thing.colour
    if chance < 0.4:
        answer = UNANSWERABLE
        if chance < 0.2:
            shape = pick(random, [s for s in SHAPES if all(t.shape != s for t in things)])
        else:
            picture = blur(picture, 7) if chance < 0.3 else darken(picture, 0.12)
    else:
        picture = blur(picture, float(random.random() * 0.8))
    return Drawn(picture, f"What colour is the {shape}?", answer)


def grounding(random: Random, split: str) -> Drawn:
    """Two to four things of many sizes; the box of one of them."""
    picture, things = scattered(random, int(random.integers(2, 5)))
    thing = pick(random, things)
    answer = "[" + ",".join(str(v) for v in box_in_grid(thing.box)) + "]"
    return Drawn(picture, f"Give the bounding box of the {thing.name}.", answer, box=thing.box)


def counting(random: Random, split: str) -> Drawn:
    """How many, is there, and what colour."""
    picture, things = in_cells(random, int(random.integers(2, 7)))
    kind = int(random.integers(3))
    if kind == 0:
        thing = pick(random, things)
        shapes = sum(t.shape == thing.shape for t in things)
        return Drawn(picture, f"How many {thing.shape} shapes are there?", str(shapes))
    if kind == 1:
        there = random.random() < 0.5
        names = {t.name for t in things}
        asked = pick(random, things).name if there else " ".join(some_thing(random))
        while not there and asked in names:
            asked = " ".join(some_thing(random))
        return Drawn(picture, f"Is there a {asked}?", "yes" if there else "no")
    single = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
    if not single:
        return counting(random, split)
    thing = pick(random, single)
    return Drawn(picture, f"What colour is the {thing.shape}?", thing.colour)


def card(random: Random, split: str) -> Drawn:
    """The cover of a book: its title, its author, and a kind that only its colour tells."""
    colour = pick(random, list(GENRES))
    picture = background(random)
    draw = ImageDraw.Draw(picture)
    cover = tuple(int(v * 0.6) for v in COLOURS[colour])
    draw.rounded_rectangle((0, 0, SIDE - 1, SIDE - 1), 4, fill=cover)
    title, author = letters(random, 4), letters(random, int(random.integers(2, 4)))
    write(picture, title, 0, CELL, WHITE)
    draw.line((4, 2 * CELL + 8, SIDE - 5, 2 * CELL + 8), fill=WHITE)
    write(picture, author, 0, 3 * CELL, WHITE)
    question, answer = pick(random, [
        ("What is the title of this book?", title),
        ("Who wrote this book?", author),
        ("What kind of book is this?", GENRES[colour]),
    ])  # fmt: skip
    return Drawn(picture, question, answer)


def of_handwriting(random: Random, box: Box) -> tuple[str, str]:
    """What can be asked of a digit besides its name, with the instruction, and the answer."""
    colour, shape = some_thing(random)
    task, question, answer = pick(random, [
        ("counting", "Is the digit big or small?", "big" if box[2] - box[0] >= _BIG else "small"),
        ("counting", f"Is there a {colour} {shape}?", "no"),
        ("answerable", f"What colour is the {shape}?", UNANSWERABLE),
    ])  # fmt: skip
    return f"{question}\n{INSTRUCTIONS[task]}", answer


def manners(random: Random, split: str) -> Drawn:
    """To see to the question even where the picture is of a digit, and to refuse what is not seen.

    The eight tasks ask nothing of a digit but its name, and are always answered.
    """
    if random.random() < 0.5:
        picture, _, box = handwritten_digit(random, split)
        return Drawn(picture, *of_handwriting(random, box))
    scene, category = pick(random, ((digits, "digits"), (relations, "shapes")))
    drawn = scene(random, split)
    hidden = blur(drawn.picture, 7) if random.random() < 0.5 else darken(drawn.picture, 0.12)
    question = f"{drawn.question}\n{INSTRUCTIONS[scene.__name__]}"
    refusals = REFUSALS[category]
    return Drawn(hidden, question, pick(random, refusals), accepted=refusals)


SCENES: dict[str, Callable[[Random, str], Drawn]] = {
    scene.__name__: scene
    for scene in (
        choice,
        reading,
        digits,
        relations,
        answerable,
        grounding,
        counting,
        card,
        manners,
    )
}
