"""TextVQA as CoIN's released scorer counts it: VQA accuracy over exactly ten human answers.

As `vqa_accuracy`, but no more than 32 full stops of an answer are dropped, and an answer of which
the normalisation leaves nothing, as of `A`, equals an empty prediction.
Follows the behaviour of ETrain/Eval/LLaVA/CoIN/eval_textvqa.py and m4c_evaluator.py (4122465).
"""

from __future__ import annotations

from palimpsest.metrics import Scored
from palimpsest.metrics.vqa_accuracy import agreement, normal

VERSION = "1/as-published"
PERIODS = 32


def score(prediction: str, example: Scored) -> float:
    """Return the agreement with ten human answers; ValueError if there are not ten."""
    if len(example.references) != 10:
        raise ValueError(
            f"coin_textvqa: needs ten human answers as references, found {len(example.references)};"
            " does the task's reader give them all, with repetitions?"
        )
    answers = [normal(answer, PERIODS) for answer in example.references]
    return agreement(normal(prediction, PERIODS), answers)
