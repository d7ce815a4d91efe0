"""Metrics against cases that were worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import metrics
from palimpsest.config import modules
from palimpsest.metrics import Scored, box_iou, exact_match

SQUARE = Scored(("[4,4,12,12]",), box=(16, 16, 48, 48), image_size=(64, 64))
FITTING = {  # for the metrics that refuse SQUARE
    "multiple_choice": Scored(("A",), choices=("red", "blue")),
    "core_choice": Scored(("A",), choices=("red", "blue")),
    "coin_textvqa": Scored(("red",) * 10),
    **dict.fromkeys(("refusal", "core_refusal"), Scored(("I cannot.",), combination="HH")),
}


@pytest.mark.parametrize("name", sorted(modules("metrics")))
def test_every_metric_keeps_the_contract(name):
    module = metrics.metric(name)
    assert isinstance(module.VERSION, str)
    assert module.VERSION
    options = dict.fromkeys(metrics.options(name), 1)
    example = FITTING.get(name, SQUARE)
    score = metrics.scorer(name, options, [example.references])
    assert 0 <= score("no answer", example) <= 1


def test_an_unknown_metric_is_refused():
    with pytest.raises(ModuleNotFoundError, match=r"palimpsest\.metrics\.nothing"):
        metrics.metric("nothing")


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("ABC", ("ABC",), 1),
        (" abc\n", ("ABC",), 1),
        ("Abc.", ("ABC",), 1),
        ("ABC", ("abc.",), 1),
        ("second", ("first", "second"), 1),
        ("STRASSE", ("Straße",), 1),
        ("ABC..", ("ABC",), 0),
        ("A BC", ("ABC",), 0),
        ("ABCD", ("ABC",), 0),
        ("", ("ABC",), 0),
        ("", (".",), 0),
        ("3.5", ("3",), 0),
    ],
)
def test_exact_match(prediction, references, expected):
    assert exact_match.score(prediction, Scored(references)) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("[4,4,12,12]", 1),  # the box itself
        ("[4, 4, 12, 12].", 1),
        ("the box is 4 4 12 12, I think", 1),
        ("[4,4,12,12,0,0]", 1),  # the first four count
        ("[12,12,4,4]", 1),  # corners in the other order
        ("[4,12,12,4]", 1),
        ("[4.0,4.0,12.0,12.0]", 1),
        ("[4,4,12,9]", 1),  # IoU 5/8
        ("[4,4,12,8]", 0),  # IoU exactly 1/2 is not above it
        ("[0,4,12,12]", 1),  # IoU 8/12
        ("[-4,4,12,12]", 0),  # outside the picture counts: IoU 8/16
        ("[0,0,4,4]", 0),  # touches
        ("[4,4,4,4]", 0),  # no area
        ("[4,4,12]", 0),
        ("", 0),
        ("unanswerable", 0),
        ("9" * 400 + " 0 0 0", 0),  # infinite
        ("0 0 " + "9" * 400 + " " + "9" * 400, 0),
    ],
)
def test_box_iou_on_a_grid_of_sixteenths(prediction, expected):
    assert box_iou.score(prediction, SQUARE, grid=16) == expected


def test_box_iou_is_relative_unless_told_otherwise():
    assert box_iou.score("[0.25,0.25,0.75,0.75]", SQUARE) == 1
    assert box_iou.score("[.25,.25,.75,.75]", SQUARE) == 1


def test_box_iou_scales_width_and_height_apart():
    wide = Scored(("",), box=(50, 10, 100, 20), image_size=(100, 20))
    assert box_iou.score("[500,500,1000,1000]", wide, grid=1000) == 1
    assert box_iou.score("[250,500,1000,1000]", wide, grid=1000) == 1  # IoU 2/3
    assert box_iou.score("[250,500,1000,1000]", wide, grid=1000, threshold=0.7) == 0


@pytest.mark.parametrize(
    "example",
    [
        Scored(("x",), image_size=(64, 64)),
        Scored(("x",), box=(0, 0, 8, 8)),
        Scored(("x",), box=(8, 0, 8, 8), image_size=(64, 64)),
        Scored(("x",), box=(9, 9, 8, 8), image_size=(64, 64)),
    ],
)
def test_box_iou_refuses_an_example_without_a_box(example):
    with pytest.raises(ValueError, match="needs a box with an area and the image's size"):
        box_iou.score("[0,0,1,1]", example)


def boxes():
    corner = st.integers(0, 20)
    side = st.integers(1, 20)
    return st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)


@given(boxes(), boxes())
def test_iou_counts_pixels(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    assert box_iou.iou(a, b) == len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))
