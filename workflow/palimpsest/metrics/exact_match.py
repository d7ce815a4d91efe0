"""Exact match: 1 if the prediction is one of the references, else 0.

White space around an answer, its case, and one full stop after it do not count. White space and
punctuation inside do.
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the prediction equals any reference, else 0.0."""
    return float(_normal(prediction) in map(_normal, example.references))


def _normal(answer: str) -> str:
    answer = answer.strip().casefold()
    return answer.removesuffix(".").rstrip() or answer  # an answer "." stays what it is
