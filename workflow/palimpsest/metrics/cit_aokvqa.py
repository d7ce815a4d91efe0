"""A-OKVQA as He et al.'s released scorer for InstructBLIP reads it: the letter in parentheses.

What is in the first parentheses, or the whole answer if no line has any, is compared with the
letter as `cit_exact` compares. The letter A is an article, of which nothing is left: so an empty
answer, `the`, and `()` are right where A is.
Follows the behaviour of llava_cl/instruct_blip/eval/eval_vqa.py of yueluoshuangtian/MLLM-CTBench
(dcc05c7), where the authors' code is preserved; for LLaVA no letter is taken out (`cit_exact`).
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored, cit_exact

VERSION = "1/as-published"
WITHIN = re.compile(r"(?<=\().*?(?=\))")


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the letter that is read from the prediction is the reference, else 0.0."""
    found = WITHIN.search(prediction)
    return cit_exact.score(found[0] if found else prediction, example)
