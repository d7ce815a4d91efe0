"""Colours, shapes, letters and backgrounds from which every rendered picture is made.

A picture is a 64 x 64 RGB image seen as 4 x 4 cells of 16 pixels. Colours follow those that are
safe for colour-blind readers (Paul Tol's "vibrant" set, Okabe and Ito's yellow). Shapes and letters
are drawn at four times their size and scaled down, so that edges are smooth, and kept as masks.
"""

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 64
CELL = 16
CELLS = SIDE // CELL
GRID = 16  # answers give boxes in sixteenths of the picture
UNIT = SIDE // GRID

COLOURS = {
    "red": (214, 51, 25),
    "blue": (0, 119, 200),
    "green": (0, 158, 110),
    "yellow": (240, 228, 66),
    "pink": (238, 120, 180),
    "cyan": (70, 200, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WHITE, BLACK = (245, 245, 245), (20, 20, 24)
_SMOOTH = 4

Box = tuple[int, int, int, int]
Random = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """One coloured shape; ``box`` is (x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""

    colour: str
    shape: str
    box: Box

    @property
    def name(self) -> str:
        """Colour and shape, as it is called in questions."""
        return f"{self.colour} {self.shape}"

    @property
    def row(self) -> int:
        """The row of cells in which its middle is."""
        return (self.box[1] + self.box[3]) // 2 // CELL

    @property
    def column(self) -> int:
        """The column of cells in which its middle is."""
        return (self.box[0] + self.box[2]) // 2 // CELL


def pick(random: Random, options):
    """One of a sequence, uniformly."""
    return options[int(random.integers(len(options)))]


def sample(random: Random, options, number: int) -> list:
    """``number`` different ones of a sequence, in random order."""
    return [options[i] for i in random.permutation(len(options))[:number]]


def background(random: Random) -> Image.Image:
    """A plain dark picture, slightly tinted."""
    base = int(random.integers(22, 56))
    red, green, blue = (base + int(v) for v in random.integers(0, 9, 3))
    return Image.new("RGB", (SIDE, SIDE), (red, green, blue + 4))


@cache
def shape_mask(shape: str, side: int) -> Image.Image:
    """The mask (mode L, ``side`` x ``side``) of a shape that fills its box."""
    n = side * _SMOOTH
    mask = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(mask)
    last = n - 1
    match shape:
        case "circle":
            draw.ellipse((0, 0, last, last), fill=255)
        case "square":
            draw.rectangle((0, 0, last, last), fill=255)
        case "triangle":
            draw.polygon([(last / 2, 0), (0, last), (last, last)], fill=255)
        case "diamond":
            draw.polygon(
                [(last / 2, 0), (last, last / 2), (last / 2, last), (0, last / 2)], fill=255
            )
        case "cross":
            arm = n // 3
            draw.rectangle((arm, 0, last - arm, last), fill=255)
            draw.rectangle((0, arm, last, last - arm), fill=255)
        case "ring":
            draw.ellipse((0, 0, last, last), fill=255)
            hole = round(n * 0.27)
            draw.ellipse((hole, hole, last - hole, last - hole), fill=0)
        case _:
            raise AssertionError(shape)
    return mask.resize((side, side), Image.Resampling.BOX)


def draw_thing(picture: Image.Image, thing: Thing) -> None:
    """Put a thing into a picture."""
    x0, y0, x1, _ = thing.box
    picture.paste(COLOURS[thing.colour], (x0, y0), shape_mask(thing.shape, x1 - x0))


@cache
def glyph_mask(character: str, height: int = 12, bold: float = 0.6) -> Image.Image:
    """The mask of a character in Pillow's own font, cropped to its ink."""
    font = ImageFont.load_default(height * _SMOOTH * 1.4)
    canvas = Image.new("L", (height * _SMOOTH * 3, height * _SMOOTH * 3), 0)
    ImageDraw.Draw(canvas).text(
        (height * _SMOOTH, height * _SMOOTH), character, fill=255, font=font,
        stroke_width=round(bold * _SMOOTH), stroke_fill=255,
    )  # fmt: skip
    ink = canvas.crop(canvas.getbbox())
    size = (max(2, round(ink.width / _SMOOTH)), max(2, round(ink.height / _SMOOTH)))
    return ink.resize(size, Image.Resampling.BOX)


def write(picture: Image.Image, text: str, cell_x: int, y: int, ink: tuple[int, int, int]) -> None:
    """Write ``text`` one letter a cell, from column ``cell_x``, in the 16 pixels below ``y``."""
    for k, character in enumerate(text):
        mask = glyph_mask(character)
        left = (cell_x + k) * CELL + (CELL - mask.width) // 2
        picture.paste(ink, (left, y + (CELL - mask.height) // 2), mask)


def letters(random: Random, number: int) -> str:
    """A made-up word in capitals, so that it must be read and cannot be guessed."""
    return "".join(LETTERS[i] for i in random.integers(0, len(LETTERS), number))


def blur(picture: Image.Image, radius: float) -> Image.Image:
    """The picture out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(radius))


def darken(picture: Image.Image, share: float) -> Image.Image:
    """The picture with a share of its light."""
    return picture.point(lambda value: int(value * share))


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of the picture's PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def box_in_grid(box: Box) -> tuple[int, ...]:
    """A box in pixels as sixteenths of the picture (the grid that answers use)."""
    return tuple(round(value / UNIT) for value in box)
