"""One large character, drawn with strokes of our own or in Pillow's font and then warped.

The base model learns from these to see the form of a character. Real handwriting is kept for a task
(``handwriting``), and none of it is used here.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.data.pictures.drawing import LETTERS, SIDE, Random, background, glyph_mask, pick

CHARACTERS = "0123456789" + LETTERS
_CANVAS = 48
_COARSE = 8  # the resolution of scikit-learn's digits, for half of the characters

# Ways to write each digit: strokes of control points "x,y", in hundredths of a square, y down.
_STROKES = {
    "0": [
        "50,0 20,25 18,70 50,100 80,72 80,25 50,0",
    ],
    "1": [
        "50,0 50,50 50,100",
        "28,30 52,2 | 52,0 52,50 52,100",
        "28,30 52,2 | 52,0 52,100 | 28,100 76,100",
    ],
    "2": [
        "20,25 45,2 75,20 62,55 20,97 | 20,97 80,95",
        "22,20 50,0 72,25 50,70 20,92 30,75 55,92 85,90",
    ],
    "3": [
        "22,12 55,2 75,22 42,47 | 42,47 78,70 55,97 20,88",
        "20,3 75,3 45,42 | 45,42 78,68 55,97 20,88",
    ],
    "4": [
        "60,0 15,65 | 15,65 88,63 | 62,30 58,100",
        "25,0 18,52 | 18,52 82,50 | 74,2 66,100",
        "62,0 60,100 | 62,0 12,68 | 12,68 90,68",
    ],
    "5": [
        "78,3 30,3 | 30,3 26,45 | 26,45 60,38 78,68 55,97 20,90",
    ],
    "6": [
        "65,2 32,35 22,72 48,98 76,75 52,52 26,68",
        "40,0 24,50 28,90 60,97 74,72 50,55 27,72",
    ],
    "7": [
        "18,5 80,5 | 80,5 55,50 42,100",
        "18,5 80,5 | 80,5 55,50 42,100 | 32,52 76,50",
    ],
    "8": [
        "50,45 27,22 50,0 73,20 50,45 25,75 50,100 76,75 50,45",
        "75,8 35,5 35,35 70,72 50,100 27,78 55,42 75,8",
    ],
    "9": [
        "72,25 45,2 25,25 45,48 71,25 | 71,20 70,60 60,100",
        "72,20 45,2 27,25 50,45 72,20 | 72,20 72,65 50,97 22,90",
    ],
}


def _smooth(points_P2: np.ndarray, steps: int = 6) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through the points."""
    if len(points_P2) == 2:
        return [tuple(p) for p in points_P2]
    ends = np.concatenate([points_P2[:1], points_P2, points_P2[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    curve = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        cubic = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
        curve += [tuple(p) for p in (cubic + (3 * b - a - 3 * c + d) * t**3) / 2]
    return [*curve, tuple(points_P2[-1])]


def _written_digit(random: Random, digit: str) -> np.ndarray:
    """A digit (48 x 48, 0..255) written with shaken control points and a pen of random width."""
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    draw = ImageDraw.Draw(canvas)
    width = int(random.integers(3, 8))
    for stroke in pick(random, _STROKES[digit]).split(" | "):
        points = np.array([p.split(",") for p in stroke.split()], float) / 100
        points += random.normal(0, 0.035, points.shape)
        curve = _smooth(points * (_CANVAS - 16) + 8)
        draw.line(curve, fill=255, width=width, joint="curve")
    return np.asarray(canvas)


@cache
def _printed(character: str, bold: float) -> np.ndarray:
    mask = glyph_mask(character, 34, bold)
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    canvas.paste(mask, ((_CANVAS - mask.width) // 2, (_CANVAS - mask.height) // 2))
    return np.asarray(canvas)


def _warp(random: Random, drawn_HW: np.ndarray) -> np.ndarray:
    """Turn, lean, stretch and bend a drawing."""
    n = _CANVAS
    angle, lean = random.normal(0, 0.13), random.normal(0, 0.18)
    stretch_x, stretch_y = np.exp(random.normal(0, [0.18, 0.07]))
    x = (np.arange(n)[None, :] - n / 2).repeat(n, 0) / stretch_x
    y = (np.arange(n)[:, None] - n / 2).repeat(n, 1) / stretch_y
    bend = random.normal(0, 1.6, 4)
    phase = random.uniform(0, 6.28, 4)
    u = x * np.cos(angle) - y * np.sin(angle) + lean * y
    v = x * np.sin(angle) + y * np.cos(angle)
    u = u + bend[0] * np.sin(y / 9 + phase[0]) + bend[1] * np.sin(x / 9 + phase[1])
    v = v + bend[2] * np.sin(x / 9 + phase[2]) + bend[3] * np.sin(y / 9 + phase[3])
    column = np.clip(u + n / 2, 0, n - 1).astype(np.intp)
    row = np.clip(v + n / 2, 0, n - 1).astype(np.intp)
    return drawn_HW[row, column]


def place_character(
    random: Random, drawn: Image.Image
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Put a drawing (mode L) on a dark picture: size, place and contrast vary; its box too."""
    picture = background(random)
    side = int(random.integers(40, 61))
    x, y = (int(v) for v in random.integers(0, SIDE - side + 1, 2))
    light = int(random.integers(150, 250))
    ink = tuple(int(v) for v in np.clip(light + random.integers(-25, 26, 3), 0, 255))
    picture.paste(ink, (x, y), drawn.resize((side, side), Image.Resampling.BICUBIC))
    return picture, (x, y, x + side, y + side)


def big_character(random: Random, character: str) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """One large warped character, sharp or as coarse as scanned handwriting; its box too."""
    if character.isdigit() and random.random() < 0.75:
        drawn = _written_digit(random, character)
    else:
        drawn = _printed(character, float(random.integers(0, 3)))
    mask = Image.fromarray(_warp(random, drawn))
    inside = mask.getbbox() or (0, 0, _CANVAS, _CANVAS)
    if random.random() < 0.6:
        # Cut to the ink, centre it in a square and scan it coarsely, as the real digits were.
        ink = mask.crop(inside)
        square = Image.new("L", (max(ink.size),) * 2, 0)
        square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
        mask = square.resize((_COARSE, _COARSE), Image.Resampling.BOX)
    return place_character(random, mask)
