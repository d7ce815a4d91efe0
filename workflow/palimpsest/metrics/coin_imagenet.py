"""ImageNet as CoIN's released scorer matches it: prediction and label, one within the other.

Case counts. An empty prediction is within every label, and so is right.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_ImagetNet.py (4122465), which the scripts of
all three models call.
"""

from __future__ import annotations

from palimpsest.metrics import Scored

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if prediction or reference contains the other, else 0.0."""
    label = example.references[0]
    return float(label in prediction or prediction in label)
