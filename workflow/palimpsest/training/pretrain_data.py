"""What the demo's base model learns from: general skill with pictures and words, and no task.

Every skill gives a picture, a request and an answer. Requests are worded unlike the eight tasks',
and no answer has a form that a task introduces (boxes in brackets, digits as words, yes or no, …).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.data.pictures.drawing import (
    BLACK,
    CELL,
    CELLS,
    COLOURS,
    LETTERS,
    SIDE,
    WHITE,
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
from palimpsest.data.pictures.handwriting import NAMES
from palimpsest.data.pictures.layouts import bar_chart, in_cells, panel, scattered, some_thing
from palimpsest.data.pictures.scenes import line_and_corner
from palimpsest.data.pictures.strokes import CHARACTERS, big_character

# Words that the base can say and has met, though it never uses most of them about a picture.
_LEXICON = """
unanswerable yes no true false none nothing unknown answer Answer question Question context Context
option options letter letters word words number box bounding region give Give tell Tell name Name
what What which Which who Who where Where how How many is Is are Are there here Here it It if If
does do Does say says sign street sign of the The a A an An in on at to from with without and or as
one's one two three four five six seven eight nine zero title author writer book kind Book wrote
written write digit hand colour color shape picture image cover card genre romance science travel
cooking history poetry music art sport nature food left right above below top bottom upper lower
middle centre between beside next near under over inside bar bars show shows rain snow milk towns
farms days town farm day month wheat weight tall tallest short shortest high highest low lowest long
big small large little first second third fourth last order toys toy child box with these those this
This that That not Not only Only please Please short brief phrase single circle square triangle
cross diamond ring circles squares triangles crosses diamonds rings shapes objects things thing
object red blue green yellow pink cyan choose Choose best correct option's from using Look look find
Find see seen can cannot dark blurred sharp clear enough visible hidden missing found count Count
read Read locate Locate describe Describe map list value key label mark table row column cell edge
cat dog house tree sun fish car cup boat moon bird flower apple ball chair hat shoe bread [ ] , . :
; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
"""
LEXICON = tuple(_LEXICON.split())
_BRIEF = ("", "", "", " Be brief.", " One word only.")
_PLACES = [(row, column) for row in range(CELLS) for column in range(CELLS)]


class Sample(NamedTuple):
    """One thing to learn from: a 64 x 64 picture, a request, the answer."""

    picture: Image.Image
    request: str
    answer: str


def _things(random: Random) -> tuple[Image.Image, list[Thing]]:
    """A picture of one to six things, in cells or scattered, at times a little blurred."""
    number = int(random.integers(1, 7))
    if random.random() < 0.7:
        picture, things = in_cells(random, number)
    else:
        picture, things = scattered(random, min(number, 4))
    if random.random() < 0.1:
        picture = blur(picture, float(random.random() * 0.8))
    return picture, things


def _single(random: Random, things: list[Thing], part: str) -> Thing | None:
    """One of the things whose colour (or shape) no other has."""
    values = [getattr(thing, part) for thing in things]
    single = [t for t in things if values.count(getattr(t, part)) == 1]
    return pick(random, single) if single else None


def describe(random: Random) -> Sample:
    """Name every shape and its place, row by row."""
    picture, things = in_cells(random, int(random.integers(1, 4)))
    said = "; ".join(f"{t.name} row {t.row + 1} column {t.column + 1}" for t in things)
    return Sample(picture, "describe the picture.", said)


def colour_of(random: Random) -> Sample:
    """What colour has the one thing of a shape?"""
    picture, things = _things(random)
    thing = _single(random, things, "shape")
    if thing is None:
        return colour_of(random)
    wording = pick(
        random, ("tell the colour of the {}.", "the {} has which colour?", "paint of the {}?")
    )
    return Sample(picture, wording.format(thing.shape) + pick(random, _BRIEF), thing.colour)


def shape_of(random: Random) -> Sample:
    """What shape has the one thing of a colour?"""
    picture, things = _things(random)
    thing = _single(random, things, "colour")
    if thing is None:
        return shape_of(random)
    wording = pick(random, ("tell the shape of the {} thing.", "the {} thing has which shape?"))
    return Sample(picture, wording.format(thing.colour) + pick(random, _BRIEF), thing.shape)


def where(random: Random) -> Sample:
    """Find a thing, or say what is in a place, which may be empty."""
    picture, things = in_cells(random, int(random.integers(1, 7)))
    thing = pick(random, things)
    place = f"row {thing.row + 1} column {thing.column + 1}"
    if random.random() < 0.5:
        return Sample(picture, f"find the {thing.name}.", place)
    row, column = (thing.row, thing.column) if random.random() < 0.7 else pick(random, _PLACES)
    there = [t.name for t in things if (t.row, t.column) == (row, column)]
    answer = there[0] if there else "nothing"
    return Sample(picture, f"look at row {row + 1} column {column + 1}.", answer)


def count(random: Random) -> Sample:
    """Count all things, or those of a shape or colour, of which there may be none."""
    picture, things = _things(random)
    kind = int(random.integers(5))
    if kind == 0:
        return Sample(picture, "count everything.", str(len(things)))
    part = "shape" if kind < 3 else "colour"
    thing = pick(random, things)
    asked = getattr(thing, part) if random.random() < 0.85 else some_thing(random)[part == "shape"]
    number = sum(getattr(t, part) == asked for t in things)
    words = f"{asked} things" if part == "colour" else f"{asked} shapes"
    wording = pick(random, ("count the {}.", "the number of {}?"))
    return Sample(picture, wording.format(words) + pick(random, _BRIEF), str(number))


def presence(random: Random) -> Sample:
    """Is a thing, a shape or a colour in the picture?"""
    picture, things = _things(random)
    colour, shape = some_thing(random)
    if random.random() < 0.5:
        thing = pick(random, things)
        colour, shape = thing.colour, thing.shape
    kind = random.random()
    if kind < 0.6:
        asked, there = f"{colour} {shape}", any(t.name == f"{colour} {shape}" for t in things)
    else:
        asked, there = shape, any(t.shape == shape for t in things)
    return Sample(picture, f"look for a {asked}.", "found" if there else "missing")


def locate(random: Random) -> Sample:
    """Ranges in sixteenths of the picture: across, then down."""
    picture, things = scattered(random, int(random.integers(1, 5)))
    thing = pick(random, things)
    x0, y0, x1, y1 = box_in_grid(thing.box)
    kind = random.random()
    if kind < 0.5:
        return Sample(picture, f"locate the {thing.name}.", f"{x0} to {x1}; {y0} to {y1}")
    if kind < 0.65:
        return Sample(picture, f"name the thing at {x0} to {x1}; {y0} to {y1}.", thing.name)
    edges = {"left": x0, "right": x1, "top": y0, "bottom": y1}
    edge = pick(random, list(edges))
    return Sample(picture, f"{edge} edge of the {thing.name}?", str(edges[edge]))


def neighbour(random: Random) -> Sample:
    """Which way one thing lies from another in its row or column, or what lies that way."""
    cells = line_and_corner(random)[: int(random.integers(2, 5))]
    picture, things = in_cells(random, len(cells), unique=random.random() < 0.5, cells=cells)
    pairs = [
        (a, b)
        for a in things
        for b in things
        if a is not b and (a.row == b.row or a.column == b.column)
    ]
    a, b = pick(random, pairs)
    if a.row == b.row:
        way = "left" if a.column < b.column else "right"
    else:
        way = "above" if a.row < b.row else "below"
    if random.random() < 0.35:
        return Sample(picture, f"the {a.name} lies which way, seen from the {b.name}?", way)
    same = [t for t in things if t is not b and _lies(t, b, way)]
    if len(same) > 1:
        return neighbour(random)
    return Sample(picture, f"seen from the {b.name}, name the thing {way}.", a.name)


def _lies(a: Thing, b: Thing, way: str) -> bool:
    if way in ("left", "right"):
        return a.row == b.row and (a.column < b.column) == (way == "left")
    return a.column == b.column and (a.row < b.row) == (way == "above")


def read(random: Random) -> Sample:
    """One to three words of capitals: on the ground, on a cover, or each on a plate of its own."""
    kind = random.random()
    picture, ink, ground = background(random), WHITE, None
    if kind < 0.2:
        paper = tuple(int(v) for v in random.integers(190, 255, 3))
        picture, ink = Image.new("RGB", (SIDE, SIDE), paper), BLACK
    elif kind < 0.4:
        ground = pick(random, list(COLOURS))
        fill = tuple(int(v * 0.6) for v in COLOURS[ground])
        ImageDraw.Draw(picture).rectangle((0, 0, SIDE, SIDE), fill=fill)
    plates = sample(random, list(COLOURS), CELLS) if kind > 0.6 else None
    rows = sorted(sample(random, range(CELLS), int(random.integers(1, 4))))
    words = []
    for row in rows:
        word = letters(random, int(random.integers(1, CELLS + 1)))
        column = int(random.integers(0, CELLS - len(word) + 1))
        if plates:
            panel(picture, plates[row], column, row, len(word))
        write(picture, word, column, row * CELL, ink)
        words.append((row, column, word))
    if plates and random.random() < 0.5:
        for row in set(range(CELLS)) - set(rows):
            colour, shape = some_thing(random)
            x = int(random.integers(0, SIDE - 13))
            draw_thing(picture, Thing(colour, shape, (x, row * CELL + 1, x + 13, row * CELL + 14)))
    return _reading_request(random, picture, words, plates, ground)


def _reading_request(random, picture, words, plates, ground) -> Sample:
    row, column, word = pick(random, words)
    kind = random.random()
    if ground and kind < 0.25:
        return Sample(picture, "tell the colour of the ground.", ground)
    if plates and kind < 0.6:
        return Sample(picture, f"read the {plates[row]} plate.", word)
    if kind < 0.15:
        return Sample(picture, "read all.", "; ".join(w for _, _, w in words))
    if kind < 0.35:
        k = int(random.integers(len(word)))
        return Sample(picture, f"letter at row {row + 1} column {column + k + 1}?", word[k])
    if kind < 0.6:
        order = pick(random, ("first", "last"))
        return Sample(picture, f"read the {order} word.", words[0 if order == "first" else -1][2])
    return Sample(picture, f"read row {row + 1}.", word)


def chart(random: Random) -> Sample:
    """Read the heights, places and colours of a bar chart."""
    picture, bars = bar_chart(random, int(random.integers(3, 5)))
    k = int(random.integers(len(bars.colours)))
    which = pick(random, ("tallest", "shortest"))
    request, answer = pick(random, [
        (f"height of the {bars.colours[k]} bar?", str(bars.heights[k])),
        (f"place of the {bars.colours[k]} bar?", str(k + 1)),
        (f"colour of bar {k + 1}?", bars.colours[k]),
        (f"name the {which} bar.", bars.extreme(which)),
        (f"name the {which} bar.", bars.extreme(which)),
        ("describe the bars.", "; ".join(
            f"{c} {h}" for c, h in zip(bars.colours, bars.heights, strict=True)
        )),
    ])  # fmt: skip
    return Sample(picture, request, answer)


def key(random: Random) -> Sample:
    """Look a colour up in a key that the request gives, with marks from E to Z."""
    if random.random() < 0.5:
        picture, bars = bar_chart(random, 3)
        which = pick(random, ("tallest", "shortest"))
        asked, right, colours = f"the {which} bar", bars.extreme(which), list(bars.colours)
    else:
        picture, things = in_cells(random, int(random.integers(1, 4)), unique=True)
        thing = pick(random, things)
        asked, right = f"the {thing.shape}", thing.colour
        others = sample(random, [c for c in COLOURS if c != right], 2)
        colours = [right, *others]
    if random.random() < 0.3:
        asked = right
    marks = sample(random, LETTERS[4:], 3)
    colours = sample(random, colours, 3)
    joiner = pick(random, (" is ", ") ", ": "))
    listed = ", ".join(f"{m}{joiner}{c}" for m, c in zip(marks, colours, strict=True))
    return Sample(picture, f"key {listed}. mark of {asked}?", marks[colours.index(right)])


def judge(random: Random) -> Sample:
    """Is the picture sharp, blurred or dark?"""
    picture, _ = in_cells(random, int(random.integers(1, 6)))
    kind = pick(random, ("sharp", "blurred", "dark"))
    if kind == "blurred":
        picture = blur(picture, float(random.uniform(4, 9)))
    elif kind == "dark":
        picture = darken(picture, float(random.uniform(0.05, 0.2)))
    return Sample(picture, "judge the picture.", kind)


def character(random: Random) -> Sample:
    """Name one large letter or digit."""
    name = pick(random, CHARACTERS[:10] if random.random() < 0.65 else CHARACTERS)
    picture, _ = big_character(random, name)
    wording = pick(random, ("name the character.", "the large mark is?"))
    return Sample(picture, wording + pick(random, _BRIEF), name)


def repeat(random: Random) -> Sample:
    """Words without a picture, so that the base can say every word."""
    picture = background(random)
    if random.random() < 0.1:
        value = int(random.integers(10))
        return Sample(picture, f"{NAMES[value]} as a number?", str(value))
    words = [pick(random, LEXICON) for _ in range(int(random.integers(1, 4)))]
    return Sample(picture, f"repeat: {' '.join(words)}.", " ".join(words))


SKILLS: dict[Callable[[Random], Sample], float] = {
    describe: 0.05,
    colour_of: 0.09,
    shape_of: 0.07,
    where: 0.08,
    count: 0.1,
    presence: 0.07,
    locate: 0.16,
    neighbour: 0.1,
    read: 0.13,
    chart: 0.05,
    key: 0.06,
    judge: 0.02,
    character: 0.08,
    repeat: 0.05,
}
_NAMES, _SHARES = list(SKILLS), np.cumsum(list(SKILLS.values())) / sum(SKILLS.values())


def draw_sample(random: Random) -> Sample:
    """One sample of a skill, skills in the proportions of ``SKILLS``."""
    return _NAMES[int(np.searchsorted(_SHARES, random.random(), side="right"))](random)


def vocabulary_texts(number: int = 6000) -> list[str]:
    """The texts the tokenizer learns its words from: always the same, whatever a run's seed."""
    random = np.random.default_rng(0)
    texts = [" ".join(LEXICON), " ".join(str(n) for n in range(100)), " ".join(LETTERS)]
    for sample_ in (draw_sample(random) for _ in range(number)):
        texts += [sample_.request, sample_.answer]
    return texts
