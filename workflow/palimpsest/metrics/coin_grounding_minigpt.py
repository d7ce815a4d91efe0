"""Grounding as CoIN's released scorer for MiniGPT-v2 reads boxes.

A number is digits from 1 on with a decimal point after them, or a zero, a point and digits that
are not all zeros; the first four of an answer count, its sign and all other characters do not. So
`0`, `1` and `0.00` are passed over, and a perfect box at the picture's left or upper border is
wrong. Right if the IoU with `origin_answer_bbox` is above 0.5; that box is the example's, relative
to the width and the height of the picture without padding.
Follows the behaviour of ETrain/Eval/MiniGPT/eval_grounding.py (4122465).
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored
from palimpsest.metrics.box_iou import area, iou

VERSION = "1/as-published"
NUMBER = re.compile(r"[1-9]\d*\.\d*|0\.(?=\d*[1-9])\d+")


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the IoU with the example's box is above 0.5, else 0.0.

    ValueError if the example has no box, or no image size.
    """
    if example.box is None or example.image_size is None:
        raise ValueError(
            f"coin_grounding_minigpt: needs a box and the image's size, found box {example.box} "
            f"and image_size {example.image_size}; does the task's reader give both?"
        )
    answered = tuple(float(number) for number in NUMBER.findall(prediction)[:4])
    sides = example.image_size * 2
    true = tuple(pixels / side for pixels, side in zip(example.box, sides, strict=True))
    if len(answered) < 4 or area(true) <= 0:
        return 0.0
    return float(iou(answered, true) > 0.5)
