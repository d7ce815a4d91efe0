"""One large character, drawn with strokes of our own or in Pillow's font and then warped.

The base model learns from these to see the form of a character. Real handwriting is kept for a task
(``handwriting``), and none of it is used here.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.data.pictures.drawing import LETTERS, SIDE, Random, background, glyph_mask, pick

CHARACTERS = "0123456789" + LETTERS
_CANVAS = 48
_COARSE = 8  # the resolution of scikit-learn's digits, for half of the characters

# Ways to write each digit: strokes of control points (x to the right, y down, in a unit square).
_STROKES: dict[str, list[list[list[tuple[float, float]]]]] = {
    "0": [[[(0.5, 0), (0.2, 0.25), (0.18, 0.7), (0.5, 1), (0.8, 0.72), (0.8, 0.25), (0.5, 0)]]],
    "1": [
        [[(0.5, 0), (0.5, 0.5), (0.5, 1)]],
        [[(0.28, 0.3), (0.52, 0.02)], [(0.52, 0), (0.52, 0.5), (0.52, 1)]],
        [[(0.28, 0.3), (0.52, 0.02)], [(0.52, 0), (0.52, 1)], [(0.28, 1), (0.76, 1)]],
    ],
    "2": [
        [[(0.2, 0.25), (0.45, 0.02), (0.75, 0.2), (0.62, 0.55), (0.2, 0.97)], [(0.2, 0.97), (0.8, 0.95)]],
        [[(0.22, 0.2), (0.5, 0.0), (0.72, 0.25), (0.5, 0.7), (0.2, 0.92), (0.3, 0.75), (0.55, 0.92), (0.85, 0.9)]],
    ],
    "3": [
        [[(0.22, 0.12), (0.55, 0.02), (0.75, 0.22), (0.42, 0.47)], [(0.42, 0.47), (0.78, 0.7), (0.55, 0.97), (0.2, 0.88)]],
        [[(0.2, 0.03), (0.75, 0.03), (0.45, 0.42)], [(0.45, 0.42), (0.78, 0.68), (0.55, 0.97), (0.2, 0.88)]],
    ],
    "4": [
        [[(0.6, 0), (0.15, 0.65)], [(0.15, 0.65), (0.88, 0.63)], [(0.62, 0.3), (0.58, 1)]],
        [[(0.25, 0), (0.18, 0.52)], [(0.18, 0.52), (0.82, 0.5)], [(0.74, 0.02), (0.66, 1)]],
        [[(0.62, 0), (0.6, 1)], [(0.62, 0), (0.12, 0.68)], [(0.12, 0.68), (0.9, 0.68)]],
    ],
    "5": [
        [[(0.78, 0.03), (0.3, 0.03)], [(0.3, 0.03), (0.26, 0.45)], [(0.26, 0.45), (0.6, 0.38), (0.78, 0.68), (0.55, 0.97), (0.2, 0.9)]],
    ],
    "6": [
        [[(0.65, 0.02), (0.32, 0.35), (0.22, 0.72), (0.48, 0.98), (0.76, 0.75), (0.52, 0.52), (0.26, 0.68)]],
        [[(0.4, 0.0), (0.24, 0.5), (0.28, 0.9), (0.6, 0.97), (0.74, 0.72), (0.5, 0.55), (0.27, 0.72)]],
    ],
    "7": [
        [[(0.18, 0.05), (0.8, 0.05)], [(0.8, 0.05), (0.55, 0.5), (0.42, 1)]],
        [[(0.18, 0.05), (0.8, 0.05)], [(0.8, 0.05), (0.55, 0.5), (0.42, 1)], [(0.32, 0.52), (0.76, 0.5)]],
    ],
    "8": [
        [[(0.5, 0.45), (0.27, 0.22), (0.5, 0), (0.73, 0.2), (0.5, 0.45), (0.25, 0.75), (0.5, 1), (0.76, 0.75), (0.5, 0.45)]],
        [[(0.75, 0.08), (0.35, 0.05), (0.35, 0.35), (0.7, 0.72), (0.5, 1), (0.27, 0.78), (0.55, 0.42), (0.75, 0.08)]],
    ],
    "9": [
        [[(0.72, 0.25), (0.45, 0.02), (0.25, 0.25), (0.45, 0.48), (0.71, 0.25)], [(0.71, 0.2), (0.7, 0.6), (0.6, 1)]],
        [[(0.72, 0.2), (0.45, 0.02), (0.27, 0.25), (0.5, 0.45), (0.72, 0.2)], [(0.72, 0.2), (0.72, 0.65), (0.5, 0.97), (0.22, 0.9)]],
    ],
}  # fmt: skip


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
    for stroke in pick(random, _STROKES[digit]):
        points = np.array(stroke) + random.normal(0, 0.035, (len(stroke), 2))
        curve = _smooth(points * (_CANVAS - 16) + 8)
        draw.line(curve, fill=255, width=width, joint="curve")
    return np.asarray(canvas)


@lru_cache(maxsize=None)
def _printed(character: str, bold: float) -> np.ndarray:
    mask = glyph_mask(character, 34, bold)
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    canvas.paste(mask, ((_CANVAS - mask.width) // 2, (_CANVAS - mask.height) // 2))
    return np.asarray(canvas)


def _warp(random: Random, drawn_HW: np.ndarray) -> np.ndarray:
    """Turn, lean, stretch and bend a drawing; bilinear would be no better at this size."""
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


def place_character(random: Random, drawn: Image.Image) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Put a drawing (mode L) on a dark picture at a random size, place and contrast; its box too."""
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
