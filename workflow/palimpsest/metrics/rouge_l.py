"""ROUGE-L: how much of the longest common subsequence of words two texts share (Lin 2004).

With it CORE measures how far the answers that are to be kept are still those of the untouched
model: the reference is then the base model's answer to the same question. Words are what stands
between blanks, in lower case, marks and all. Agrees with CORE_2026_CVPR/metrics/
calculate_metric_bertscore.py of Jin0316/CORE (1fe383c), but for a pair of which one is blank: it is
left out there, and is 0 here.
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1"


def score(prediction: str, example: Scored, *, beta: float = 1.2) -> float:
    """Return F = (1 + beta²) P R / (R + beta² P), the best over the references; 0.0 if P = R = 0.

    P and R are the length of the subsequence over that of the prediction and of the reference.
    """
    return max(_f(_words(prediction), _words(text), beta) for text in example.references)


def _f(said: list[str], right: list[str], beta: float) -> float:
    if not (common := _common(said, right)):
        return 0.0
    p, r = common / len(said), common / len(right)
    return (1 + beta**2) * p * r / (r + beta**2 * p)


def _common(a: list[str], b: list[str]) -> int:
    """Return the length of the longest common subsequence; a row of the table at a time."""
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(row[j], above[j + 1]))
    return row[-1]


def _words(text: str) -> list[str]:
    return text.lower().split()
