"""From a judge's reply to its score, as published (CoIN's evaluate_score.py) and corrected."""

from __future__ import annotations

import math
import re

VERSION = "1"
HIGHEST = 10
# One number, whole or with decimals, and little around it: "8", "Score: 7.5/10", "**9** points."
ONE_SCORE = re.compile(
    r"([^\d\n]{0,40}\b(scores?|rat(e|ing)|value|assistant)\b[^\d\n−–-]{0,20})?"
    r"(?P<score>\d+(\.\d+)?)\s*(/\s*10(\.0)?|out of (10|ten)|points?)?\s*[.!]?",
    re.IGNORECASE,
)
MARKUP = str.maketrans("", "", "*`\"'[]")


def parse(reply: str, protocol: str) -> float | None:
    """Return the score in a reply by a protocol; None if there is none."""
    return {"as-published": as_published, "corrected": corrected}[protocol](reply)


def corrected(reply: str) -> float | None:
    """Return the one number from 0 to 10 of a reply's first line; None if it holds anything else.

    Lines after the first may explain.
    """
    first, *_ = reply.strip().splitlines() or [""]
    found = ONE_SCORE.fullmatch(first.translate(MARKUP).strip())
    score = float(found["score"]) if found else math.inf
    return score if score <= HIGHEST else None


def as_published(reply: str) -> float | None:
    """Return what the released scorer adds for a reply; None where it stops with an error.

    A number as Python reads it counts, negative ones too, and 0 if it is above 10 or NaN. Else,
    with a slash, what stands before it, if all of that is digits; else the first digit from 1 to 9,
    so that "Score: 10" gives 1 and "0.5 points" gives 5. Nothing found is 0.
    """
    try:
        return _up_to_ten(float(reply))
    except ValueError:
        before, slash, _ = reply.partition("/")
    if not slash:
        digit = re.search("[1-9]", reply)
        return float(digit[0]) if digit else 0.0
    try:
        return _up_to_ten(float(before)) if before.isnumeric() else 0.0
    except ValueError:  # "½" is numeric, and no number
        return None


def _up_to_ten(score: float) -> float | None:
    if score == -math.inf:  # the sum cannot be rounded
        return None
    return score if score <= HIGHEST else 0.0
