r"""ScienceQA as CoIN's released scorer parses it: the first word of one character is the option.

The word (`\b\w\b`) is put in upper case, be it a letter alone, before a text, an article, or what
follows an apostrophe. The scorer tries two other forms first, `A` and `A. text`, which this reads
alike. It also asks that the letter be one of the choices, which no reference fails.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_science_qa.py (4122465).
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored

VERSION = "1/as-published"
WORD = re.compile(r"\b\w\b")


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the first single character is the reference, else 0.0."""
    first = WORD.search(prediction)
    return float(first is not None and first[0].upper() == example.references[0])
