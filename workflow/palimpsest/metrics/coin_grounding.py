"""Grounding as CoIN's released scorer for LLaVA and Qwen-VL reads boxes.

All square brackets are dropped, then the first and the last character of what remains, and the
rest must be four numbers between commas. So the first digit of x1 is lost, which turns 1.0 into 0,
and the last one of y2, which turns 0.8 into 0; a box of integers cannot be read. Right if the IoU
with `answer_bbox` is above 0.5.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_grounding.py (4122465).
"""

from __future__ import annotations

from palimpsest.metrics import Scored
from palimpsest.metrics.box_iou import area, iou

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the IoU with the reference, a box as `[0.1, 0.2, 0.3, 0.4]`, is above 0.5.

    Both are relative to the picture padded to a square. ValueError if the reference is no such
    box, or if there is no image size.
    """
    if example.image_size is None:
        raise ValueError("coin_grounding: needs the image's size; does the task's reader give it?")
    side = max(example.image_size)
    true = _box(_without_brackets(example.references[0]), side)
    if true is None:
        raise ValueError(
            f"coin_grounding: needs a box [x1, y1, x2, y2] as reference, found "
            f"{example.references[0]!r}; does the task's reader check it?"
        )
    answered = _box(_without_brackets(prediction)[1:-1], side)
    if answered is None or area(true) <= 0:
        return 0.0
    return float(iou(answered, true) > 0.5)


def _without_brackets(text: str) -> str:
    return text.replace("[", "").replace("]", "")


def _box(text: str, side: int) -> tuple[float, ...] | None:
    try:
        box = tuple(float(number) * side for number in text.split(","))
    except ValueError:
        return None
    return box if len(box) == 4 else None
