"""VQA accuracy: the share of the people asked who would have to agree, as the VQA servers count it.

Antol et al. 2015 (arXiv 1505.00468): an answer that three people gave is right. The score is the
mean, over all ways of leaving one human answer out, of min(1, matches among the others / 3). Where
fewer than three others are left, all of them must match; with a single human answer there is
nobody to leave out, and the score is 1 if the prediction equals it.

Answers are compared as the EvalAI server normalises them: lower case, most punctuation dropped,
number words up to ten as digits, no articles, apostrophes put back (`dont` is `don't`). An answer
of which this leaves nothing, as of `A`, is compared as it stands, so that no empty prediction
equals it.
"""

from __future__ import annotations

import re

from palimpsest.metrics import Scored

VERSION = "1"
ENOUGH = 3  # matches that make an answer right
MARKS = ';/[]"{}()=+\\_-><@`!'  # a comma or a question mark is dropped before
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = {"a", "an", "the"}
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

# The server's table holds each of these with one of its apostrophes left out. Three quirks of it:
# "she's" and "let's" are only found whole and so change nothing, an "I" is never found, since the
# words are in lower case, and one entry takes its apostrophe out instead.
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in APOSTROPHES.split()
    for at, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}


def score(prediction: str, example: Scored) -> float:
    """Return the agreement of the prediction with the references, the human answers."""
    return agreement(_kept(prediction), [_kept(answer) for answer in example.references])


def agreement(answer: str, answers: list[str]) -> float:
    """Return the mean of min(1, matches / 3) over all ways of leaving one of `answers` out."""
    matches = answers.count(answer)
    others = len(answers) - 1
    if not others:
        return float(matches)
    enough = min(ENOUGH, others)
    without_match = matches * min(1, (matches - 1) / enough)
    without_other = (len(answers) - matches) * min(1, matches / enough)
    return (without_match + without_other) / len(answers)


def normal(answer: str, periods: int = 0) -> str:
    """Return an answer as the EvalAI server compares it.

    At most `periods` full stops are dropped; 0 stands for all that no digit follows.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    beside_blank = {mark for mark in MARKS if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in beside_blank else " " for mark in MARKS})
    text = PERIOD.sub("", text, count=periods)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _kept(answer: str) -> str:
    return normal(answer) or answer.strip().lower()
