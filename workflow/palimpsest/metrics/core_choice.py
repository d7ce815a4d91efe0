r"""Multiple choice as CORE's released scorer parses it: a letter in a typical place, or the text.

The letter (A to E, offered or not) is looked for in three places, in this order:

    the whole answer     "B", "(b)", "B."
    at the beginning     "B. …", "(b) …": with a mark and a blank after it
    after a word         a capital, with no letter behind it, after "answer", "option" or "choice",
                         and "is", ":", "=" or "->" if need be

If there is one it decides. Else the answer is right if it contains the text of the right option,
after both are put in lower case, marks become blanks, number words up to ten digits, and words of
four letters and more lose an s at the end. The right text is read up to a vertical bar, and an
answer without its line breaks. Follows the behaviour of
CORE_2026_CVPR/metrics/calculate_metric_LVLM_bench.py of Jin0316/CORE (1fe383c), which serves
MMBench, ScienceQA and SEED-Bench.
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored

VERSION = "1/as-published"
LETTERS = "ABCDE"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WHOLE = re.compile(r"\(?([A-E])\)?[.):：,。、]?", re.IGNORECASE)
LABEL = re.compile(r"\(?([A-E])\)?\s*[.):：,]\s", re.IGNORECASE)
NAMED = re.compile(r"(?i:answer|option|choice)\s*(?:(?i:is)|:|=|->)?\s*\(?([A-E])\)?(?![A-Za-z])")


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the letter found, or else the text, is that of the right option, else 0.0.

    ValueError if the reference is not the letter of one of the example's first five choices.
    """
    right = example.references[0]
    options = dict(zip(LETTERS, example.choices, strict=False))
    if right not in options:
        raise ValueError(
            f"core_choice: needs the letter of one of the first {len(LETTERS)} choices as "
            f"reference, found {right!r} of {len(options)}; does the task's reader give both?"
        )
    answer = prediction.replace("\n", "").strip()
    if found := WHOLE.fullmatch(answer) or LABEL.match(answer) or NAMED.search(answer):
        return float(found[1].upper() == right)
    text = _normal(options[right].partition("|")[0])
    return float(bool(text) and text in _normal(answer))


def _normal(text: str) -> str:
    text = re.sub(r"[^\w\s]", " ", text.lower())
    for digit, word in enumerate(NUMBERS):
        text = re.sub(rf"\b{word}\b", str(digit), text)
    return " ".join(re.sub(r"\b(\w{3,}?)s\b", r"\1", text).split())
