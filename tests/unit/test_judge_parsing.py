"""What a reply is worth, and what a judge reads: as published and corrected, side by side."""

from __future__ import annotations

import pytest

from palimpsest.data.example import Example, Turn
from palimpsest.judging import parsing
from palimpsest.judging.judge import published_value, value
from palimpsest.judging.prompts import BOXES, RATE, prompt

NOT = None

# reply, as published, corrected; the quirks are those of spec/coin.md 4.4 and 4.5
REPLIES = [
    ("8", 8.0, 8.0),
    ("0", 0.0, 0.0),
    ("10", 10.0, 10.0),
    (" 7.5\n", 7.5, 7.5),
    ("10.0", 10.0, 10.0),
    ("11", 0.0, NOT),  # above 10: ignored
    ("100", 0.0, NOT),
    ("inf", 0.0, NOT),
    ("nan", 0.0, NOT),
    ("-3", -3.0, NOT),  # subtracted
    ("-inf", NOT, NOT),  # the sum cannot be rounded
    ("1_0", 10.0, NOT),  # a number to Python
    ("8/10", 8.0, 8.0),
    ("80/100", 0.0, NOT),
    ("7.5/10", 0.0, 7.5),  # not numeric
    ("8 / 10", 0.0, 8.0),
    ("Score: 8/10", 0.0, 8.0),
    ("-3/10", 0.0, NOT),
    ("½/10", NOT, NOT),  # numeric, and no number: the scorer stops
    ("½", 0.0, NOT),
    ("/10", 0.0, NOT),
    ("Score: 10", 1.0, 10.0),  # the first digit from 1 to 9
    ("Score: 0", 0.0, 0.0),
    ("Score: 0.5", 5.0, 0.5),
    ("0.5 points", 5.0, 0.5),
    ("The score is 9.", 9.0, 9.0),
    ("Assistant: 6", 6.0, 6.0),
    ("**Rating:** 4", 4.0, 4.0),
    ("I would rate this 3 out of 10.", 3.0, 3.0),
    ("8\nThe answer is nearly the same.", 8.0, 8.0),
    ("Score: -3", 3.0, NOT),
    ("The ground truth is 7.", 7.0, NOT),
    ("Out of 10, I give 8", 1.0, NOT),
    ("8 or 9", 8.0, NOT),
    ("I cannot see the picture.", 0.0, NOT),
    ("", 0.0, NOT),
]


@pytest.mark.parametrize(("reply", "published", "corrected"), REPLIES)
def test_replies(reply, published, corrected):
    assert parsing.parse(reply, "as-published") == published
    assert parsing.parse(reply, "corrected") == corrected


def test_lines_after_the_first_may_explain():
    assert parsing.corrected("\n8\n9 would be too much.") == 8.0


@pytest.mark.parametrize(
    ("scores", "exact", "published"),
    [
        ([10.0, 0.0], 50.0, 50),
        ([10.0] * 11 + [5.0] + [0.0] * 8, 57.5, 57),  # 115/200, with its float error
        ([10.0, None], 100.0, None),  # the released scorer stops
        ([None, None], None, None),
    ],
)
def test_values(scores, exact, published):
    assert value(scores) == (exact and pytest.approx(exact))
    assert published_value(scores) == published


def example(question, answer="a cup", box=None):
    return Example("1", None, (Turn(question, answer),), (answer,), box=box, image_size=(64, 64))


PROMPT = """[Context]
[Question]
{question}

[Ground truth answer]
{gold}

[End of ground truth answer]

[Assistant]
{answer}

[End of Assistant]

[System]
{rule}"""


@pytest.mark.parametrize("protocol", ["as-published", "corrected"])
def test_the_line_that_says_the_form_is_left_out(protocol):
    asked = example("Context: a shelf.\nWhat is it?\nUse a single word.")
    assert prompt(asked, "a mug", protocol) == PROMPT.format(
        question="Context: a shelf.\nWhat is it?", gold="a cup", answer="a mug", rule=RATE
    )


@pytest.mark.parametrize(("protocol", "left"), [("as-published", ""), ("corrected", "What?")])
def test_a_question_of_one_line(protocol, left):
    expected = PROMPT.format(question=left, gold="a cup", answer="", rule=RATE)
    assert prompt(example("What?"), "", protocol) == expected


@pytest.mark.parametrize("protocol", ["as-published", "corrected"])
def test_a_question_about_a_box_is_kept_whole(protocol):
    asked = example("Give the box:\nthe red cup", "[0.1, 0.2, 0.3, 0.4]", (6.0, 12.0, 19.0, 25.0))
    assert prompt(asked, "[0, 0, 1, 1]", protocol) == PROMPT.format(
        question="Give the box:\nthe red cup",
        gold="[0.1, 0.2, 0.3, 0.4]",
        answer="[0, 0, 1, 1]",
        rule=BOXES + RATE,
    )


def test_the_mark_of_a_picture_is_left_out():
    asked = example("<image>\nWhat is it?\nUse a single word.")
    assert "[Question]\n\nWhat is it?" in prompt(asked, "a mug", "as-published")
    assert "<image>" not in prompt(asked, "<image>", "as-published")
