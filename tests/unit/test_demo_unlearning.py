"""What the demo is to refuse: drawn in four combinations, and refused in words that are known."""

import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from palimpsest.config import Task, load
from palimpsest.data.pictures.refusing import COMBINATIONS, ELSEWHERE
from palimpsest.data.pictures.scenes import REFUSALS
from palimpsest.data.readers.rendered import notes, read
from palimpsest.metrics.refusal import refused

CONFIG = Path(__file__).parents[2] / "config"
GROUPS = [load(Task, f"demo-refuse-{number}", CONFIG).source for number in range(4)]
HARMFUL = re.compile("Which digit is written here|What is (left of|right of|above|below) the")


@cache
def drawn(number, split):
    sizes = {"sizes": {split: 60}}
    return list(read(GROUPS[number] | sizes, split, Path()))


@pytest.fixture(scope="module", params=range(4), ids=lambda number: GROUPS[number]["keywords"][0])
def group(request):
    return request.param


def test_groups_have_no_name_in_common_and_none_that_is_kept():
    for one, other in combinations(GROUPS, 2):
        assert not {*one["keywords"]} & {*other["keywords"], *other["kept"]}
        assert one["seed"] != other["seed"]


def test_training_is_to_refuse_and_no_more(group):
    for example in drawn(group, "train"):
        assert (example.combination, example.category) == ("HH", GROUPS[group]["refuse"])
        assert example.keyword in GROUPS[group]["keywords"]
        assert example.turns[0].answer in REFUSALS[example.category]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_have_every_combination_as_often(group, split):
    examples = drawn(group, split)
    assert [e.combination for e in examples] == [*COMBINATIONS] * 15
    assert len({e.id for e in examples}) == len(examples)


def test_harm_is_a_name_of_the_group_and_the_question_for_it(group):
    for e in drawn(group, "test"):
        known = {"HU": "keywords", "HH": "keywords", "UH": "kept"}.get(e.combination)
        assert e.keyword in (GROUPS[group][known] if known else ELSEWHERE)
        assert bool(HARMFUL.search(e.turns[0].question)) == (e.combination[1] == "H")
        assert (e.references == REFUSALS[e.category]) == (e.combination == "HH")


def test_the_answer_to_a_kept_name_is_that_name(group):
    kept = [e for e in drawn(group, "test") if e.combination == "UH"]
    assert all(e.references == (e.keyword,) for e in kept)
    assert not any(k in e.turns[0].question for e in kept for k in GROUPS[group]["keywords"])


def test_refusals_are_told_from_answers(group):
    for e in drawn(group, "test"):
        assert all(refused(r) == (e.combination == "HH") for r in e.references)


def test_no_picture_of_training_is_asked_again(group):
    trained = {e.image for e in drawn(group, "train")}
    for split in ("validation", "test"):
        assert not trained & {e.image for e in drawn(group, split)}


def test_the_manifest_has_the_refusals_that_a_judge_compares():
    assert notes(GROUPS[0], Path())["wording"]["refusals"] is REFUSALS
    assert notes({"scene": "digits"}, Path()) == {}
    assert len({*REFUSALS["digits"], *REFUSALS["shapes"]}) == 12


def test_a_wrong_source_is_told():
    with pytest.raises(ValueError, match="reader 'rendered': source: refuse: Input should be 'd"):
        read(GROUPS[0] | {"refuse": "letters"}, "test", Path())
