"""Real handwriting: scikit-learn's digits (Alpaydin and Kaynak, UCI 1998).

There are 1797 scans of 8 x 8 pixels. Each split of a task has scans of its own, so that no test
scan is ever trained on.
"""

from functools import cache

import numpy as np
from PIL import Image

from palimpsest.data.pictures.drawing import Box, Random, pick
from palimpsest.data.pictures.strokes import place_character

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SHARES = {"train": (0.0, 0.64), "validation": (0.64, 0.8), "test": (0.8, 1.0)}
_SPLIT_SEED = 1998  # fixed: which scan is in which split must not change with a task's seed


@cache
def scans(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A split's scans (N, 8, 8) of 0..255, their digits (N) and scikit-learn's indices (N)."""
    from sklearn.datasets import load_digits  # slow to import, and only one task needs it

    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    start, end = (int(share * len(order)) for share in _SHARES[split])
    index = np.sort(order[start:end])
    images = (digits.images[index] * (255 / 16)).astype(np.uint8)
    return images, digits.target[index], index


def handwritten_digit(
    random: Random, split: str, names: tuple[str, ...] = NAMES
) -> tuple[Image.Image, str, Box]:
    """A scan of the split, at a random size, place and contrast; the digit's name and its box."""
    images, targets, _ = scans(split)
    name = pick(random, names)
    scan = images[pick(random, np.flatnonzero(targets == NAMES.index(name)))]
    picture, box = place_character(random, Image.fromarray(scan))
    return picture, name, box
