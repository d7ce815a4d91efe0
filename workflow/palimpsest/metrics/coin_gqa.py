"""GQA as CoIN's released scripts compare it: exact equality with the official answer.

The prediction loses all full stops at its end and is put in lower case; white space counts, and the
official answer stays as it is.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/convert_gqa_for_eval.py and eval_gqa.py (4122465).
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the trimmed prediction equals the reference, else 0.0."""
    return float(prediction.rstrip(".").lower() == example.references[0])
