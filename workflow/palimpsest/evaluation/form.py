"""What kind of answer each is: is the answer wrong, or only its form?

    right   its score is at least one half
    form    right content in the wrong form: what it says would be right, had it been said plainly
    wrong   a wrong answer in the task's form (its `answer_format`)
    other   a wrong answer in another form, such as another task's
    none    no answer: not a letter and not a digit

What an answer says plainly, its readings, are looked for by rule, and the same metric scores each:

    a reference   whose words stand in the answer, one after another
    an option     by its letter in upper case, or by its text; only if no other option is named (an
                  A before a word may be the article, and a text within another named one is none)
    a box         the first four numbers, written `[x0, y0, x1, y1]`

Words are compared without case, punctuation and articles, number words up to ten as digits. An
answer that denies or hedges, by a word that what is looked for lacks (no, not, never, or, …), says
something else. So a right answer among several counts, and one in other words does not.

Nothing here needs a model: it is a rule, and a judge may see more.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from string import ascii_uppercase

from palimpsest.metrics import Scored
from palimpsest.metrics.box_iou import NUMBER
from palimpsest.metrics.vqa_accuracy import ARTICLES, NUMBERS

VERSION = "1"  # raised when a change alters what an answer is said to be
SAID = ("right", "form", "wrong", "other", "none")
ENOUGH = 0.5  # the score of a right answer
LIKENESS = {"cider", "rouge_l", "fidelity"}  # metrics by which no answer is right or wrong
WORD = re.compile(r"\d+(?:\.\d+)?(?!\w)|\w+")
LETTER = re.compile(r"\b(?:A(?!\s+\w)|[B-Z])\b")
DOUBT = {"no", "not", "never", "neither", "nor", "or", "cannot", "without"}


def said(
    answer: str,
    score: float,
    right_kind: bool,
    example: Scored,
    scorer: Callable[[str], float],
) -> str | None:
    """Return which of SAID an answer is, None if the metric leaves it out (NaN).

    `score` is that of the answer, `scorer` gives that of another answer to the same question.
    """
    if math.isnan(score):
        return None
    if score >= ENOUGH:
        return "right"
    if any(scorer(reading) >= ENOUGH for reading in readings(answer, example)):
        return "form"
    if not any(map(str.isalnum, answer)):
        return "none"
    return "wrong" if right_kind else "other"


def readings(answer: str, example: Scored) -> list[str]:
    """Return what an answer may say, each plainly as a reference is; the metric judges them."""
    heard = words(answer)
    options = dict(zip(ascii_uppercase, map(words, example.choices), strict=False))
    right = example.references[0]
    if right in options:
        found = [right] if _named(answer, heard, options) == {right} else []
        return [right for right in found if _plain(heard, options[right])]
    references = {reference: words(reference) for reference in example.references}
    found = [r for r, run in references.items() if _holds(heard, run) and _plain(heard, run)]
    numbers = NUMBER.findall(answer)[:4] if example.box else []
    if len(numbers) == 4:
        found.append(f"[{', '.join(f'{float(number):.4f}' for number in numbers)}]")
    return found


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared; articles stay if there is nothing else."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("n't", " not")
    found = [NUMBERS.get(word, word) for word in WORD.findall(text)]
    return [word for word in found if word not in ARTICLES] or found


def _named(answer: str, heard: list[str], options: dict[str, list[str]]) -> set[str]:
    """Return the letters of all options that an answer names, by letter or by text."""
    texts = {letter: run for letter, run in options.items() if _holds(heard, run)}
    whole = {
        letter
        for letter, run in texts.items()
        if not any(len(run) < len(longer) and _holds(longer, run) for longer in texts.values())
    }
    return whole | set(LETTER.findall(answer)) & options.keys()


def _holds(heard: list[str], run: list[str]) -> bool:
    """Return whether some words stand among others, one after another; no words never do."""
    starts = range(len(heard) - len(run) + 1)
    return bool(run) and any(heard[k : k + len(run)] == run for k in starts)


def _plain(heard: list[str], run: list[str]) -> bool:
    return not (DOUBT & set(heard)) - set(run)
