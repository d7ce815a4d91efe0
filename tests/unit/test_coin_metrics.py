"""Released scorers, as published and corrected, on every quirk of theirs (*_cases.yaml)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coin_cases
from palimpsest import metrics
from palimpsest.config import modules
from palimpsest.metrics import Scored, box_iou, multiple_choice, vqa_accuracy
from palimpsest.metrics.vqa_accuracy import CONTRACTIONS, agreement, normal

SECTIONS = coin_cases.sections()
CASES = [(section, case) for section in SECTIONS for case in section.cases]
PAIRS = [(s.published, {}, s.cases[0].example) for s in SECTIONS]
PAIRS += [(s.corrected, s.options, s.cases[0].example) for s in SECTIONS]
PIECES = ["A", "b", ".", " ", "\n", "(", ")", "The answer is", "salt", "0.25", "1", ",", "[", "]"]


@pytest.mark.parametrize(
    ("section", "case"), CASES, ids=lambda x: getattr(x, "title", None) or x.quirk
)
def test_as_published_and_corrected_side_by_side(section, case):
    published = metrics.metric(section.published).score(case.prediction, case.example)
    corrected = metrics.metric(section.corrected).score(
        case.prediction, case.example, **section.options
    )
    assert (published, corrected) == pytest.approx(case.scores, nan_ok=True)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_no_report_can_take_one_for_the_other(section):
    assert metrics.metric(section.published).VERSION.endswith("/as-published")
    assert not metrics.options(section.published)
    assert not metrics.metric(section.corrected).VERSION.endswith("/as-published")
    assert section.options.keys() <= metrics.options(section.corrected).keys()
    assert any(published != corrected for published, corrected in (c.scores for c in section.cases))


@pytest.mark.parametrize("page", coin_cases.PAGES)
def test_the_documentation_shows_these_cases(page):
    _, _, shown = (coin_cases.DOCS / page).read_text().partition(coin_cases.MARK)
    assert shown == coin_cases.PAGES[page]() + "\n", "run python tests/unit/coin_cases.py"


@pytest.mark.parametrize("name", sorted(modules("metrics")))
def test_the_documentation_names_every_version(name):
    text = (coin_cases.DOCS / "metrics.md").read_text()
    assert f"| `{name}` | {metrics.metric(name).VERSION} |" in text


@pytest.mark.parametrize(("name", "options", "example"), PAIRS, ids=[name for name, _, _ in PAIRS])
@given(prediction=st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_has_a_score(name, options, example, prediction):
    score = metrics.metric(name).score(prediction, example, **options)
    assert 0 <= score <= 1 or (math.isnan(score) and not prediction.strip())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
@given(
    prediction=st.text() | st.lists(st.sampled_from(PIECES)).map("".join),
    before=st.text(" \n\t", max_size=3),
    after=st.text(" \n\t", max_size=3),
)
def test_white_space_around_an_answer_changes_no_corrected_score(
    section, prediction, before, after
):
    score = metrics.metric(section.corrected).score
    example = section.cases[0].example
    assert score(before + prediction + after, example, **section.options) == score(
        prediction, example, **section.options
    )


# Multiple choice ---------------------------------------------------------------------------------

CHOICES = ("salt", "vitamin C. elegans", "C. elegans", "It is a metal")
FORMS = ["{0}", "{0}.", "({0})", "({0}).", "{0})", "{0}:", "{0}. {1}", "{0}) {1}.", "({0}) {1}"]
FORMS += ["The answer is {0}", "the correct answer is: ({0}).", "Answer: {0}", "It's {0}."]
FORMS += ["Option {0}", "The answer is option {0}.", "The answer is {0}. {1}", "{1}", "{1}."]
FORMS += ["answer: {1}"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("letter", "ABCD")
def test_an_option_is_named_in_many_ways(form, letter):
    text = CHOICES["ABCD".index(letter)]
    for answer in (form.format(letter, text), form.format(letter.lower(), text.upper())):
        for right in "ABCD":
            example = Scored((right,), choices=CHOICES)
            assert multiple_choice.score(answer, example) == (right == letter), answer


@pytest.mark.parametrize(
    "answer",
    ["A, B", "A. salt B. iron", "B. salt", "A and not B", "E", "A salt", "not salt", "A is wrong"],
)
def test_multiple_choice_never_guesses(answer):
    choices = ("salt", "iron", "tin")
    scores = [multiple_choice.score(answer, Scored((r,), choices=choices)) for r in "ABC"]
    assert scores == [0, 0, 0]


def test_the_text_of_two_equal_options_names_neither():
    assert multiple_choice.score("salt", Scored(("A",), choices=("salt", "salt"))) == 0
    assert multiple_choice.score("A. salt", Scored(("A",), choices=("salt", "salt"))) == 1


@pytest.mark.parametrize(
    "example", [Scored(("A",)), Scored(("C",), choices=("x", "y")), Scored(("x",), choices=("x",))]
)
def test_multiple_choice_refuses_a_reference_that_is_no_choice(example):
    with pytest.raises(ValueError, match="does the task's reader give letter and choices"):
        multiple_choice.score("A", example)


# VQA accuracy ------------------------------------------------------------------------------------


def leave_one_out(answer: str, answers: list[str]) -> float:
    """Leave each human answer out in turn and count the rest."""
    scores = []
    for left_out in range(len(answers)):
        others = [a for i, a in enumerate(answers) if i != left_out]
        scores.append(min(1, sum(a == answer for a in others) / min(3, len(others))))
    return sum(scores) / len(scores)


@given(st.sampled_from("xyz"), st.lists(st.sampled_from("xyz"), min_size=2, max_size=12))
def test_agreement_leaves_each_answer_out_in_turn(answer, answers):
    assert agreement(answer, answers) == pytest.approx(leave_one_out(answer, answers))


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_agreement_among_ten(matches, expected):
    assert agreement("x", ["x"] * matches + ["y"] * (10 - matches)) == pytest.approx(expected)


def test_a_single_answer_is_matched_or_not():
    assert vqa_accuracy.score("The Can.", Scored(("can",))) == 1
    assert vqa_accuracy.score("The Tin.", Scored(("can",))) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("None of the TEN", "0 of 10"),
        ("one\ttwo\nthree", "1 2 3"),
        ("a.b.", "ab"),
        ("3.5.", "3.5"),
        (".5", ".5"),
        ("mary's", "mary 's"),
        ("let's", "let 's"),
        ("rock'n'roll", "rock'n'roll"),
        ("x/y", "x y"),
        ("x / y/z", "x yz"),  # a mark beside a blank anywhere goes everywhere
        ("couldnt've", "couldn't've"),
        ("'ows'at", "'ow's'at"),
        ("'ow'sat", "'ow 'sat"),
        ("twas wont", "'twas won't"),
        ("I'dve Im", "i'dve im"),  # the table's capital I never meets lower case
        ("shed wed well ill its", "shed wed well ill its"),  # words of their own
        ("somebody'd", "somebodyd"),
    ],
)
def test_answers_are_compared_as_the_server_does(answer, expected):
    assert normal(answer) == expected


def test_a_contraction_lacks_one_apostrophe():
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS.pop("somebody'd") == "somebodyd"
    for found, meant in CONTRACTIONS.items():
        assert found.count("'") == meant.count("'") - 1
        assert found.replace("'", "") == meant.replace("'", "")


def test_textvqa_as_published_needs_ten_answers():
    with pytest.raises(ValueError, match="needs ten human answers as references, found 9"):
        metrics.metric("coin_textvqa").score("x", Scored(("x",) * 9))


@given(st.lists(st.sampled_from(["x", "the", "two", "dont", "3.5", "-", ".", " "])).map("".join))
def test_textvqa_differs_only_where_the_quirks_are(prediction):
    example = Scored(("x", "2", "two x", "3.5", "dont", "x.", "x", "-x", "2 x", "x x"))
    published = metrics.metric("coin_textvqa").score(prediction, example)
    assert prediction.count(".") > 32 or published == vqa_accuracy.score(prediction, example)


# Boxes -------------------------------------------------------------------------------------------


@st.composite
def boxes(draw) -> Scored:
    """A box within a picture, with the answer that CoIN's files hold for it."""
    width, height = draw(st.integers(20, 640)), draw(st.integers(20, 640))
    x0, y0 = draw(st.integers(0, width - 10)), draw(st.integers(0, height - 10))
    x1, y1 = draw(st.integers(x0 + 10, width)), draw(st.integers(y0 + 10, height))
    return Scored(
        (squared((x0, y0, x1, y1), width, height),), (), (x0, y0, x1, y1), (width, height)
    )


def squared(box: tuple[float, ...], width: int, height: int) -> str:
    """Return a box's answer: padded to a square as PIL's `paste` would, then relative to it."""
    side = max(width, height)
    x, y = (side - width) / 2, (side - height) / 2
    corners = [box[0] + x, box[1] + y, box[2] + x, box[3] + y]
    return "[" + ", ".join(f"{corner / side:.4f}" for corner in corners) + "]"


@given(boxes())
def test_the_answer_of_the_files_is_right(example):
    answer = example.references[0]
    assert box_iou.score(answer, example, square=True, threshold=0.9) == 1
    if not answer.startswith("[1."):
        assert metrics.metric("coin_grounding").score(answer, example) == 1


@given(boxes())
def test_minigpt_is_asked_for_the_box_in_the_picture(example):
    sides = example.image_size * 2
    relative = [pixels / side for pixels, side in zip(example.box, sides, strict=True)]
    answer = ", ".join(f"{number:.4f}" for number in relative)
    readable = 0 not in example.box
    assert metrics.metric("coin_grounding_minigpt").score(answer, example) == readable


@given(boxes(), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_square_picture_needs_no_padding(example, numbers):
    side = max(example.image_size)
    example = Scored(example.references, (), example.box, (side, side))
    answer = str(list(numbers))
    assert box_iou.score(answer, example, square=True) == box_iou.score(answer, example)


@pytest.mark.parametrize("reference", ["", "[0.1, 0.2, 0.3]", "a box"])
def test_grounding_as_published_refuses_a_reference_that_is_no_box(reference):
    with pytest.raises(ValueError, match="coin_grounding: needs a box"):
        metrics.metric("coin_grounding").score("[]", Scored((reference,), image_size=(9, 9)))


@pytest.mark.parametrize("name", ["coin_grounding", "coin_grounding_minigpt"])
def test_grounding_as_published_needs_the_picture(name):
    with pytest.raises(ValueError, match="the image's size"):
        metrics.metric(name).score("[]", Scored(("[0.1, 0.2, 0.3, 0.4]",)))
