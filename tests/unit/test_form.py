"""What kind of answer each is, by the table of cases that docs/metrics.md explains."""

from __future__ import annotations

import math

import pytest

from palimpsest import metrics
from palimpsest.evaluation.form import SAID, said, words
from palimpsest.metrics import Scored
from palimpsest.report.matrix import SAID as READ

WORD = Scored(("dog",))
SEVEN = Scored(("seven",))
YES, NO = Scored(("yes",)), Scored(("no",))
SIGN = Scored(("KAT", "Kat & Co"))
OPTION = Scored(("A",), ("salt", "iron", "iron oxide", "no salt"))
IRON = Scored(("B",), OPTION.choices)
PEOPLE = Scored(("pepsi",) * 6 + ("pepsi co",) * 2 + ("cola",) * 2)
FEW = Scored(("pepsi",) * 9 + ("cola",))
BOX = Scored(("[0.25, 0.50, 0.75, 0.70]",), (), (50.0, 100.0, 150.0, 140.0), (200, 200))

CASES = [  # metric, example, answer, whether its form is the task's, what it is
    ("exact_match", WORD, "Dog.", False, "right"),
    ("exact_match", WORD, "a dog", True, "form"),
    ("exact_match", WORD, "It is a DOG!", False, "form"),
    ("exact_match", WORD, "dog or cat", False, "other"),
    ("exact_match", WORD, "That is not a dog", False, "other"),
    ("exact_match", WORD, "It isn’t a dog", False, "other"),
    ("exact_match", WORD, "hotdog", True, "wrong"),
    ("exact_match", WORD, "[0,6,4,10]", False, "other"),
    ("exact_match", WORD, "cat", True, "wrong"),
    ("exact_match", WORD, "", False, "none"),
    ("exact_match", WORD, " \n", True, "none"),
    ("exact_match", WORD, "[ ,.", True, "none"),
    ("exact_match", WORD, "犬", False, "other"),
    ("exact_match", WORD, "ｄｏｇ", False, "form"),
    ("exact_match", SEVEN, "7", False, "form"),
    ("exact_match", Scored(("7",)), "seven shapes", False, "form"),
    ("exact_match", SEVEN, "7th", False, "other"),
    ("exact_match", SEVEN, "0.7", False, "other"),
    ("exact_match", SEVEN, "eleven", True, "wrong"),
    ("exact_match", YES, "Yes, it is", False, "form"),
    ("exact_match", YES, "yes or no", False, "other"),
    ("exact_match", NO, "No, none", False, "form"),
    ("exact_match", NO, "yes or no", False, "other"),
    ("exact_match", SIGN, "the sign says kat", False, "form"),
    ("exact_match", SIGN, "Kat Co", False, "form"),
    ("exact_match", Scored(("?",)), "what?", False, "other"),
    ("multiple_choice", OPTION, "Salt.", False, "right"),
    ("multiple_choice", OPTION, "It is the salt in it", False, "form"),
    ("multiple_choice", OPTION, "I choose A", False, "form"),
    ("multiple_choice", OPTION, "A guess", False, "other"),
    ("multiple_choice", OPTION, "salt, iron", False, "other"),
    ("multiple_choice", OPTION, "A. iron", False, "other"),
    ("multiple_choice", OPTION, "It has no salt", False, "other"),
    ("multiple_choice", IRON, "B because it rusts", False, "form"),
    ("multiple_choice", IRON, "mostly iron", False, "form"),
    ("multiple_choice", IRON, "mostly iron oxide", False, "other"),
    ("multiple_choice", IRON, "C", True, "wrong"),
    ("exact_match", OPTION, "salt", False, "form"),
    ("vqa_accuracy", PEOPLE, "The pepsi", True, "right"),
    ("vqa_accuracy", PEOPLE, "a can of pepsi", True, "form"),
    ("vqa_accuracy", PEOPLE, "a can of cola", True, "form"),
    ("vqa_accuracy", FEW, "a can of cola", True, "wrong"),
    ("box_iou", BOX, "the box 0.25 0.5 0.75 0.7", False, "right"),
    ("box_iou", BOX, "[0.25, 0.5]", False, "other"),
    ("box_iou", BOX, "[0.9, 0.9, 1.0, 1.0]", True, "wrong"),
    ("coin_grounding", BOX, "at [0.25, 0.50, 0.75, 0.70]", False, "form"),
    ("coin_grounding", BOX, "at [0.9, 0.9, 1.0, 1.0]", False, "other"),
    ("coin_imagenet", WORD, "", False, "right"),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "example", "answer", "right_kind", "expected"), CASES)
def test_what_is_said(metric, example, answer, right_kind, expected):
    score = metrics.scorer(metric, {}, [example.references])
    found = said(
        answer, score(answer, example), right_kind, example, lambda text: score(text, example)
    )
    assert found == expected


def test_every_kind_has_a_case_and_the_report_knows_it():
    assert {case[-1] for case in CASES} == set(SAID)
    assert READ == SAID


def test_what_a_metric_leaves_out_is_left_open():
    assert said("dog", math.nan, True, WORD, lambda _: 1.0) is None


def test_words_of_articles_alone_stay():
    assert words("A") == ["a"]
    assert words("The 2 Dogs’ bowl, one") == ["2", "dogs", "bowl", "1"]
