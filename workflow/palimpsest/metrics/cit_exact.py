"""GQA and OCR-VQA as He et al.'s released scorer compares them: equality as EvalAI normalises.

Only the first reference counts. As in `coin_textvqa`, no more than 32 full stops of an answer are
dropped, and an answer of which the normalisation leaves nothing, as of `A`, equals an empty one.
For LLaVA it scores A-OKVQA too, with the option's letter as the reference and nothing parsed.
Follows the behaviour of llava_cl/llava/eval/m4c_evaluator.py, GQAAccuracyEvaluator, of
yueluoshuangtian/MLLM-CTBench (dcc05c7), where the authors' code is preserved.
"""

from __future__ import annotations

from palimpsest.metrics import Scored
from palimpsest.metrics.coin_textvqa import PERIODS
from palimpsest.metrics.vqa_accuracy import normal

VERSION = "1/as-published"


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if prediction and first reference are equal when normalised, else 0.0."""
    return float(normal(prediction, PERIODS) == normal(example.references[0], PERIODS))
