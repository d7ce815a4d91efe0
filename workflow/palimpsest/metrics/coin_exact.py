"""VizWiz and VQAv2 as CoIN's released scorers compare them: equality in upper case.

There is one answer, though ten people were asked; white space and punctuation count.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_vizwiz.py and eval_vqav2.py (4122465).
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if prediction and reference are equal in upper case, else 0.0."""
    return float(prediction.upper() == example.references[0].upper())
