"""Box IoU: 1 if the box that is answered overlaps the true one by more than a threshold, else 0.

IoU is intersection over union. An answer is read by its first four numbers, x0, y0, x1, y1 as in
`[3,4,9,12]`, whatever stands around them; later numbers are ignored. The two corners may come in
either order. Fewer than four numbers, or a box without an area, score 0. A box is not clipped to
the picture: what lies outside counts in the union.
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored

VERSION = "1"
NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")

Box = tuple[float, float, float, float]


def score(
    prediction: str,
    example: Scored,
    *,
    grid: float = 1,
    square: bool = False,
    threshold: float = 0.5,
) -> float:
    """Return 1.0 if the IoU with `example.box` is above the threshold, else 0.0.

    `grid` is what the answer gives the picture's width and its height: a number x of the answer
    lies at x / grid * width pixels. With 1 answers are relative, with 1000 in thousandths.
    `square` is for answers on the picture padded to a square, half of the padding on either side.

    ValueError if the example has no box, or one without an area, or no image size.
    """
    if example.box is None or example.image_size is None or area(example.box) <= 0:
        raise ValueError(
            f"box_iou: needs a box with an area and the image's size, found box {example.box} "
            f"and image_size {example.image_size}; does the task's reader give both?"
        )
    width, height = example.image_size
    numbers = [float(n) / grid for n in NUMBER.findall(prediction)[:4]]
    if len(numbers) < 4:
        return 0.0
    side_x, side_y = (max(width, height),) * 2 if square else (width, height)
    left, top = (side_x - width) / 2, (side_y - height) / 2  # of padding
    x0, y0, x1, y1 = numbers
    answered = (
        min(x0, x1) * side_x - left, min(y0, y1) * side_y - top,
        max(x0, x1) * side_x - left, max(y0, y1) * side_y - top,
    )  # fmt: skip
    return float(iou(answered, example.box) > threshold)


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, of which one at least has an area."""
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (area(a) + area(b) - shared)


def area(box: Box) -> float:
    """Return the area of a box; 0 where a corner lies beyond the opposite one."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
