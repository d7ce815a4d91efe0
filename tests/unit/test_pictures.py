"""The demo's tasks: drawn the same every time, answerable, in the form their YAML promises."""

import re
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from palimpsest.data.pictures import drawing, handwriting
from palimpsest.data.pictures.drawing import COLOURS, GRID, SHAPES, SIDE, UNIT
from palimpsest.data.pictures.layouts import bar_chart, in_cells, scattered
from palimpsest.data.pictures.scenes import (
    INSTRUCTIONS,
    REFUSALS,
    SCENES,
    UNANSWERABLE,
    line_and_corner,
)
from palimpsest.data.pictures.strokes import CHARACTERS, big_character
from palimpsest.data.readers.rendered import SPLITS, read

CONFIGS = {
    path.stem.removeprefix("demo-"): yaml.safe_load(path.read_text())
    for path in sorted((Path(__file__).parents[2] / "config/tasks").glob("demo-*.yaml"))
}
TASKS = {name: task for name, task in CONFIGS.items() if "scene" in task["source"]}
NUMBER = 150
seeds = st.integers(0, 2**32 - 1)


def examples(scene: str, split: str, number: int = NUMBER, seed: int | None = None) -> list:
    source = TASKS[scene]["source"] | ({} if seed is None else {"seed": seed})
    return list(islice(read(source, split, Path(".")), number))


def box_of(answer: str) -> list[int]:
    return [int(value) * UNIT for value in re.findall(r"\d+", answer)]


def intersection_over_union(a, b) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_every_scene_is_a_task_and_every_task_a_scene():
    assert set(TASKS) == set(SCENES)
    assert len(TASKS) == 9
    for name, task in TASKS.items():
        assert task["source"]["scene"] == name
        assert 200 <= task["source"]["sizes"]["test"] <= 400


def test_what_follows_a_question_is_what_the_tasks_say():
    prompts = {name: f"{{question}}\n{words}" for name, words in INSTRUCTIONS.items()}
    assert prompts | {"manners": "{question}"} == {n: t["prompt"] for n, t in TASKS.items()}


@pytest.mark.parametrize("scene", SCENES)
class TestScene:
    def test_the_same_every_time(self, scene):
        assert examples(scene, "train", 30) == examples(scene, "train", 30)

    def test_a_longer_split_begins_like_a_shorter_one(self, scene):
        longer = {**TASKS[scene]["source"], "sizes": {"train": 20}}
        assert list(read(longer, "train", Path(".")))[:10] == examples(scene, "train", 10)

    def test_splits_and_seeds_differ(self, scene):
        drawn = [examples(scene, split) for split in SPLITS] + [examples(scene, "test", seed=5)]
        pictures = [{example.image for example in split} for split in drawn]
        for k, first in enumerate(pictures):
            for second in pictures[k + 1 :]:
                assert len(first & second) < 0.03 * NUMBER

    def test_ids_are_unique_and_stable(self, scene):
        ids = [example.id for example in examples(scene, "test")]
        assert len(set(ids)) == NUMBER
        assert ids[17] == f"demo-{scene}/test/000017"

    def test_pictures_are_png_of_the_size_said(self, scene):
        for example in examples(scene, "validation", 20):
            picture = Image.open(BytesIO(example.image))
            assert picture.format == "PNG"
            assert picture.size == example.image_size == (SIDE, SIDE)

    def test_answers_have_the_form_the_task_promises(self, scene):
        for example in examples(scene, "train"):
            (turn,) = example.turns
            assert turn.answer in example.references
            assert len(example.references) == 1 or example.references in REFUSALS.values()
            assert re.fullmatch(TASKS[scene]["answer_format"], turn.answer), turn

    def test_no_answer_dominates(self, scene):
        answers = [example.references[0] for example in examples(scene, "test", 400)]
        most = max(answers.count(answer) for answer in set(answers))
        assert most <= 0.45 * len(answers)


class TestContent:
    def test_the_right_option_carries_the_answers_letter(self):
        letters = []
        for example in examples("choice", "test"):
            option = example.choices["ABC".index(example.references[0])]
            assert f"\n{example.references[0]}. {option}" in example.turns[0].question
            assert len(set(example.choices)) == 3
            letters.append(example.references[0])
        assert all(letters.count(letter) > NUMBER / 5 for letter in "ABC")

    def test_boxes_lie_in_the_picture_and_agree_with_the_answer(self):
        for example in examples("grounding", "test", 400):
            x0, y0, x1, y1 = example.box
            assert 0 <= x0 < x1 <= SIDE
            assert 0 <= y0 < y1 <= SIDE
            assert intersection_over_union(box_of(example.references[0]), example.box) > 0.5

    def test_the_box_holds_the_thing_that_is_asked_for(self):
        for example in examples("grounding", "test"):
            colour, shape = re.search(r"of the (\w+) (\w+)\.", example.turns[0].question).groups()
            x0, y0, x1, y1 = example.box
            pixels = np.asarray(Image.open(BytesIO(example.image)))
            centre = pixels[(y0 + y1) // 2, (x0 + x1) // 2]
            assert shape == "ring" or tuple(centre) == COLOURS[colour]

    def test_the_grid_of_the_answers_is_the_tasks(self):
        assert TASKS["grounding"]["metric_options"] == {"grid": GRID}

    def test_digits_of_train_validation_and_test_are_other_scans(self):
        indices = [set(handwriting.scans(split)[2]) for split in SPLITS]
        assert not indices[0] & indices[1]
        assert not indices[0] & indices[2]
        assert not indices[1] & indices[2]
        assert len(set.union(*indices)) == 1797

    def test_the_unanswerable_cannot_be_guessed_from_the_question(self):
        told = {}
        for example in examples("answerable", "train", 1500):
            told.setdefault(example.turns[0].question, []).append(example.references[0])
        for answers in told.values():
            assert 0.25 < answers.count(UNANSWERABLE) / len(answers) < 0.55

    def test_a_dark_picture_is_darker_than_any_that_can_be_answered(self):
        drawn = [SCENES["answerable"](np.random.default_rng(k), "train") for k in range(200)]
        light = [np.asarray(d.picture).max() for d in drawn if d.answer != UNANSWERABLE]
        dark = [np.asarray(d.picture).max() for d in drawn if d.answer == UNANSWERABLE]
        assert min(light) > 100
        assert min(dark) < 60


@given(seeds, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_things_in_cells_stay_in_their_cells(seed, number):
    _, things = in_cells(np.random.default_rng(seed), number)
    assert len({thing.name for thing in things}) == number
    for thing in things:
        assert thing.box[0] // drawing.CELL == (thing.box[2] - 1) // drawing.CELL == thing.column
        assert thing.box[1] // drawing.CELL == (thing.box[3] - 1) // drawing.CELL == thing.row
    assert len({(thing.row, thing.column) for thing in things}) == number


@given(seeds, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_scattered_things_never_overlap(seed, number):
    _, things = scattered(np.random.default_rng(seed), number)
    for k, thing in enumerate(things):
        assert min(thing.box) >= 0
        assert max(thing.box) <= SIDE
        for other in things[k + 1 :]:
            assert intersection_over_union(thing.box, other.box) == 0


@given(seeds, st.integers(3, 4))
@settings(max_examples=30, deadline=None)
def test_one_bar_is_the_tallest(seed, number):
    _, bars = bar_chart(np.random.default_rng(seed), number)
    assert len(set(bars.heights)) == len(set(bars.colours)) == number
    tallest = bars.heights[bars.colours.index(bars.extreme("tallest"))]
    assert tallest == max(bars.heights)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_two_of_the_four_cells_share_a_line(seed):
    first, second, *rest = line_and_corner(np.random.default_rng(seed))
    assert first // 4 == second // 4 or first % 4 == second % 4
    assert len({first, second, *rest}) == 4


@given(seeds, st.sampled_from(CHARACTERS))
@settings(max_examples=40, deadline=None)
def test_a_big_character_leaves_ink(seed, character):
    picture, (x0, y0, x1, y1) = big_character(np.random.default_rng(seed), character)
    inside = np.asarray(picture)[y0:y1, x0:x1]
    assert inside.max() - int(inside.min()) > 50


def test_colours_and_shapes_can_be_told_apart():
    for k, colour in enumerate(COLOURS.values()):
        for other in list(COLOURS.values())[k + 1 :]:
            assert np.abs(np.subtract(colour, other)).sum() > 90
    masks = [np.asarray(drawing.shape_mask(shape, 12)) for shape in SHAPES]
    for k, mask in enumerate(masks):
        assert mask.any(axis=0).all()  # a shape fills its box
        assert mask.any(axis=1).all()
        for other in masks[k + 1 :]:
            assert (mask != other).mean() > 0.1


def test_an_unknown_scene_or_split_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"source.scene is 'zoo'; allowed are choice, reading"):
        next(read({"scene": "zoo", "seed": 0, "sizes": {"test": 1}}, "test", Path(".")))
    with pytest.raises(ValueError, match=r"no split 'dev'.*has train, validation, test"):
        next(read(TASKS["card"]["source"], "dev", Path(".")))
