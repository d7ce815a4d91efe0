"""Pictures of several things: in cells, freely placed, or as bars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.data.pictures.drawing import (
    CELL,
    CELLS,
    COLOURS,
    SHAPES,
    SIDE,
    UNIT,
    Random,
    Thing,
    background,
    draw_thing,
    pick,
    sample,
)


def distinct_names(random: Random, number: int, unique: bool) -> list[tuple[str, str]]:
    """(colour, shape) pairs, no pair twice; ``unique``: no colour and no shape twice either."""
    if unique:
        colours, shapes = sample(random, list(COLOURS), number), sample(random, SHAPES, number)
        return list(zip(colours, shapes, strict=True))
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return sample(random, every, number)


def in_cells(
    random: Random, number: int, *, unique: bool = False, cells: list[int] | None = None
) -> tuple[Image.Image, list[Thing]]:
    """Up to 16 things, one a cell (``cells``: which ones, counted row by row); in reading order."""
    picture = background(random)
    chosen = cells or [int(c) for c in random.permutation(CELLS * CELLS)[:number]]
    things = []
    names = distinct_names(random, number, unique)
    for cell, (colour, shape) in zip(chosen, names, strict=True):
        side = int(random.integers(11, CELL))
        dx, dy = (int(v) for v in random.integers(0, CELL - side + 1, 2))
        x, y = cell % CELLS * CELL + dx, cell // CELLS * CELL + dy
        things.append(Thing(colour, shape, (x, y, x + side, y + side)))
    for thing in things:
        draw_thing(picture, thing)
    return picture, sorted(things, key=lambda thing: (thing.row, thing.column))


def _apart(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def scattered(
    random: Random, number: int, *, unique: bool = False
) -> tuple[Image.Image, list[Thing]]:
    """Up to five things of 16 to 28 pixels anywhere on the grid of sixteenths, none touching."""
    picture = background(random)
    boxes: list[tuple[int, int, int, int]] = []
    while len(boxes) < number:
        side = int(random.integers(4, 8 if number < 4 else 6)) * UNIT
        x, y = (int(v) * UNIT for v in random.integers(0, (SIDE - side) // UNIT + 1, 2))
        box = (x, y, x + side, y + side)
        if all(_apart(box, other) for other in boxes):
            boxes.append(box)
    names = distinct_names(random, number, unique)
    things = [Thing(c, s, box) for (c, s), box in zip(names, boxes, strict=True)]
    for thing in things:
        draw_thing(picture, thing)
    return picture, things


@dataclass(frozen=True)
class Bars:
    """Bars from left to right: their colours, and heights of 1 to 4 cells, all different."""

    colours: tuple[str, ...]
    heights: tuple[int, ...]

    def extreme(self, which: str) -> str:
        """The colour of the ``tallest`` or the ``shortest`` bar."""
        k = np.argmax(self.heights) if which == "tallest" else np.argmin(self.heights)
        return self.colours[int(k)]


def bar_chart(
    random: Random, number: int, colours: Sequence[str] = tuple(COLOURS)
) -> tuple[Image.Image, Bars]:
    """Three or four bars, one a column of cells."""
    picture = background(random)
    colours = tuple(sample(random, colours, number))
    heights = tuple(int(h) + 1 for h in random.permutation(CELLS)[:number])
    draw = ImageDraw.Draw(picture)
    for k, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        top = SIDE - height * CELL + 3
        draw.rectangle((k * CELL + 3, top, k * CELL + 12, SIDE - 1), fill=COLOURS[colour])
    return picture, Bars(colours, heights)


def panel(picture: Image.Image, colour: str, column: int, row: int, width: int) -> None:
    """A coloured plate of ``width`` cells on which letters can stand."""
    x, y = column * CELL, row * CELL
    dark = tuple(int(value * 0.62) for value in COLOURS[colour])
    ImageDraw.Draw(picture).rounded_rectangle(
        (x, y, x + width * CELL - 1, y + CELL - 1), 3, fill=dark
    )


def some_thing(random: Random) -> tuple[str, str]:
    """A colour and a shape."""
    return pick(random, list(COLOURS)), pick(random, SHAPES)
