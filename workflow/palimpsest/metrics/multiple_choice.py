"""Multiple choice: 1 if the answer names the right option and no other, else 0.

An option is named by its letter, alone or before the option's text (`B`, `b.`, `(B)`, `B) salt`),
or by its text; "The answer is", "Answer:", "It is" and "Option" may stand before. Case, white space
around an answer and one full stop after it do not count.

It never guesses: an answer with the labels of two options, or with one option's letter before the
text of another, scores 0, and so does a letter within a sentence.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from palimpsest.metrics import Scored

VERSION = "1"
LEAD = re.compile(
    r"\A(?:(?:it is|it's|(?:the )?(?:correct )?answer(?: is)?)\b:?\s*)?"
    r"(?:(?:option|choice)\s+(?=\(?[a-z]\b))?",
    re.IGNORECASE,
)
LETTER = re.compile(r"\(?([a-z])\)?[.:]?", re.IGNORECASE)
LABEL = re.compile(r"(?:^|(?<=\s))\(?([a-z])[.:)]{1,2}(?:\s+|$)", re.IGNORECASE)


def score(prediction: str, example: Scored) -> float:
    """Return 1.0 if the prediction names the option whose letter is the reference, else 0.0.

    ValueError if the reference is not the letter of one of the example's choices.
    """
    options = dict(zip(ascii_uppercase, map(_normal, example.choices), strict=False))
    if example.references[0] not in options:
        raise ValueError(
            f"multiple_choice: needs the letter of one of the {len(options)} choices as reference, "
            f"found {example.references[0]!r}; does the task's reader give letter and choices?"
        )
    return float(_named(prediction, options) == {example.references[0]})


def _named(answer: str, options: dict[str, str]) -> set[str]:
    """Return the letters of all options that an answer names; `options` is letter -> text."""
    answer = answer.strip()
    claim = LEAD.sub("", answer)
    if alone := LETTER.fullmatch(claim):
        return {alone[1].upper()}
    if meant := _meant(answer, options) | _meant(claim, options):
        return meant
    if (label := LABEL.match(claim)) and (letter := label[1].upper()) in options:
        meant = _meant(claim[label.end() :], options)
        others = {other[1].upper() for other in LABEL.finditer(claim)} & options.keys()
        return {letter} if letter in meant else {letter} | meant | others
    return set()


def _meant(text: str, options: dict[str, str]) -> set[str]:
    return {letter for letter, option in options.items() if option == _normal(text)}


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
