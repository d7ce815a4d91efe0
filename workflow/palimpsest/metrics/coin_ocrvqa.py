"""OCR-VQA as CoIN's released scorer compares it: equality in lower case.

A prediction that contains "Unanswerable", so written, is wrong whatever the answer is; white space
and punctuation count.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_ocrvqa.py (4122465).
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if prediction and reference are equal in lower case, else 0.0."""
    equal = prediction.lower() == example.references[0].lower()
    return float(equal and "Unanswerable" not in prediction)
