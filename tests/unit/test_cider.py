"""CIDEr against the official tool's numbers and against the paper's formula; captions in words."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import metrics
from palimpsest.data.example import Example, Turn
from palimpsest.data.shards import Shards, write_dataset
from palimpsest.evaluation.score import score_all
from palimpsest.metrics import Scored, cider
from palimpsest.metrics.tokenisers import ptb

CAPTIONS = yaml.safe_load((Path(__file__).parent / "ptb_captions.yaml").read_text())
REFERENCES = {
    "dog": (
        "A brown dog runs on the grass.",
        "The dog's running over a green field",
        "A dog in the park, off its leash.",
    ),
    "bus": ("A red bus stops at St. James' Street.", "A double-decker bus on a street."),
    "cup": (
        "Two cups of coffee (with milk) on a table.",
        "A man's cup and another one stand on the table",
        "There are two cups.",
    ),
    "sign": ('A sign that says "STOP"!', "A stop sign by the road"),
}
OFFICIAL = {  # Cider and PTBTokenizer of pycocoevalcap 1.2, on these references
    "dog": ("A brown dog runs over the grass .", 2.3580602800808053),
    "bus": ("A red bus, a red bus, a red bus.", 0.6894339894894785),
    "cup": ("", 0.0),
    "sign": ('A sign that says "STOP"!', 5.613088027848251),
}

PARTS = ["a", "dog's", "t-shirt", "can't", "10:30", "1,000", "St.", "u.s.", "(x)", "5%"]


def scores(predictions, references):
    """Score captions of several pictures, as of a cell."""
    score = metrics.scorer("cider", {}, references)
    return [score(p, Scored(r)) for p, r in zip(predictions, references, strict=True)]


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CAPTIONS, ids=lambda case: case["caption"][:30])
def test_captions_are_taken_apart_as_the_official_tool_does(case):
    assert ptb.words(case["caption"]) == case["words"].split()


@given(st.text() | st.lists(st.sampled_from([*"aA.'’-1,&<>() \n½", "n't", "St."])).map("".join))
def test_any_text_has_words(text):
    for word in ptb.words(text):
        assert word
        assert word == word.lower()
        assert not any(sign.isspace() for sign in word)


@given(
    st.lists(
        st.sampled_from(
            ["a", "dog's", "t-shirt", "can't", "10:30", "1,000", "St.", "u.s.", "(x)", "5%"]
        )
    )
)
def test_words_come_one_after_the_other(parts):
    apart = [word for part in parts for word in ptb.words(f"{part} x")[:-1]]
    assert ptb.words(" ".join([*parts, "x"])) == [*apart, "x"]


# CIDEr -------------------------------------------------------------------------------------------


def test_the_official_scores():
    found = scores([caption for caption, _ in OFFICIAL.values()], list(REFERENCES.values()))
    assert found == pytest.approx([score for _, score in OFFICIAL.values()], rel=1e-12)


def by_the_formula(predictions, references):
    """CIDEr-D with a vector over all n-grams, for captions that are words between blanks."""
    everything = [*predictions, *(text for several in references for text in several)]

    def grams(text, n):
        words = text.split()
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    found = np.zeros(len(predictions))
    for n in (1, 2, 3, 4):
        vocabulary = sorted({gram for text in everything for gram in grams(text, n)})
        having = [
            sum(any(gram in grams(text, n) for text in several) for several in references)
            for gram in vocabulary
        ]
        idf_V = np.log(len(references)) - np.log(np.maximum(1, having))

        def vector(text, n=n, vocabulary=vocabulary, idf_V=idf_V):
            return np.array([grams(text, n).count(gram) for gram in vocabulary]) * idf_V

        for k, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
            for text in several:
                caption_V, reference_V = vector(prediction), vector(text)
                norms = np.linalg.norm(caption_V) * np.linalg.norm(reference_V)
                if norms > 0:
                    cosine = np.minimum(caption_V, reference_V) @ reference_V / norms
                    delta = len(prediction.split()) - len(text.split())
                    found[k] += cosine * np.exp(-(delta**2) / 72) / len(several) / 4 * 10
    return found


words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9).map(
    lambda letters: " ".join(letter + letter for letter in letters)
)
pictures = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1)


@given(pictures)
def test_the_formula_of_the_paper(drawn):
    predictions = [prediction for prediction, _ in drawn]
    references = [tuple(several) for _, several in drawn]
    found = scores(predictions, references)
    assert found == pytest.approx(by_the_formula(predictions, references), abs=1e-9)
    assert all(0 <= score <= 10 + 1e-9 for score in found)


def test_a_perfect_caption_of_four_words_scores_ten():
    references = [("one two three four",), ("five six seven eight nine",)]
    assert scores([text for (text,) in references], references) == pytest.approx([10, 10])
    assert scores(["One, two: three four!", "ten"], references) == pytest.approx([10, 0])


def test_each_right_word_counts():
    references = [("a b c d e f g h",), ("x y",), ("z",)]
    said = ["", "a", "a b", "a b c d", "a b c d e f", "a b c d e f g h"]
    score = metrics.scorer("cider", {}, references)
    found = [score(caption, Scored(references[0])) for caption in said]
    assert found[0] == 0
    assert all(less < more for less, more in pairwise(found))
    assert found[-1] == pytest.approx(10)


def test_length_and_repetition_are_paid_for():
    references = [("a red bus on the road",), ("a dog",), ("two cups",)]
    score = metrics.scorer("cider", {}, references)
    right = score("a red bus on the road", Scored(references[0]))
    assert score("a red bus on the road on the road on the road", Scored(references[0])) < right
    assert score("road the on bus red a", Scored(references[0])) < right


def test_what_all_pictures_have_says_nothing():
    assert scores(["a dog", "a dog"], [("a dog",), ("a dog",)]) == [0, 0]
    assert scores(["a dog"], [("a dog",)]) == [0]  # a single picture


def test_an_empty_prediction_or_reference():
    assert scores(["", "..."], [("a dog runs",), ("a cup",)]) == [0, 0]
    assert scores(["a dog", "a cup"], [("...",), ("a cup",)])[0] == 0


@given(st.text())
def test_any_text_has_a_score(text):
    assert 0 <= scores([text, "a"], [REFERENCES["dog"], ("a cup",)])[0] <= 10 + 1e-9


# A cell ------------------------------------------------------------------------------------------


def test_the_pictures_of_a_cell_are_those_that_were_asked(tmp_path):
    test = [
        Example(name, None, (Turn("What is shown?", captions[0]),), captions)
        for name, captions in REFERENCES.items()
    ]
    write_dataset(tmp_path / "captions", {"test": test}, {})
    examples = Shards(tmp_path / "captions", "test")
    predictions = [OFFICIAL[id][0] for id in examples.ids]
    found = list(score_all(predictions, examples, ("cider", {})))
    assert found == pytest.approx([OFFICIAL[id][1] for id in examples.ids])
    two = examples.sample(2)
    references = [REFERENCES[id] for id in two.ids]
    asked = [OFFICIAL[id][0] for id in two.ids]
    assert list(score_all(asked, two, ("cider", {}))) == scores(asked, references)
    assert list(score_all(asked, two, ("cider", {}))) != pytest.approx(
        [OFFICIAL[id][1] for id in two.ids]
    )


def test_a_metric_that_needs_no_other_example_is_not_told_of_any():
    score = metrics.scorer("exact_match", {}, iter(()))
    assert score("A dog.", Scored(("a dog",))) == 1


def test_frequencies_count_pictures_not_captions():
    frequencies = cider.prepare([("a dog", "a dog", "a cat"), ("a cup",)])
    assert frequencies.pictures == 2
    assert frequencies.having[("a",)] == 2
    assert frequencies.having[("dog",)] == 1
    assert frequencies.having[("a", "dog")] == 1
