"""Scores of a cell, and chance, on a dataset of four questions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palimpsest.config import Task, load
from palimpsest.data.example import Example, Turn
from palimpsest.data.shards import Shards, write_dataset
from palimpsest.evaluation.chance import chance
from palimpsest.evaluation.score import score_cell
from palimpsest.files import read_json
from palimpsest.study import scorer

ANSWERS = {"d": "ABC", "b": "XYZ", "a": "KLMN", "c": "ABC"}  # in the split's order
OURS = "0123456789abcdef"


def example(id, answer):
    box = (16.0, 16.0, 48.0, 48.0)
    turns = (Turn("An earlier question?", "never"), Turn("What is written?", answer))
    return Example(id, b"no picture is read", turns, (answer,), (), box, (64, 64))


@pytest.fixture
def task(workplace):
    """A task of reading letters."""
    return load(Task, "signs")


@pytest.fixture
def dataset(tmp_path):
    """Six training examples, and the four of the test split."""
    train = [example(str(n), answer) for n, answer in enumerate(["XYZ", "ABC"] * 2 + ["Q", "q"])]
    test = [example(id, answer) for id, answer in ANSWERS.items()]
    write_dataset(tmp_path / "signs", {"train": train, "test": test}, {})
    return tmp_path / "signs"


@pytest.fixture
def cell(tmp_path):
    """An empty cell."""
    (tmp_path / "cells" / "signs").mkdir(parents=True)
    return tmp_path / "cells" / "signs"


def predict(cell, predictions, fingerprint=OURS, references=ANSWERS):
    """Write predictions, in the given order, as generation does."""
    rows = [
        {"id": id, "prediction": text, "references": [references.get(id, "?")]}
        for id, text in predictions
    ]
    about = {b"palimpsest": json.dumps({"stage_fingerprint": fingerprint})}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    pq.write_table(table, cell / "predictions.parquet")


def scored(cell, task, examples):
    """Score a cell by the task's metric."""
    by = (task.metric, task.metric_options)
    score_cell(cell, "metric", by, task.answer_format, examples, OURS)


def test_scores_of_a_cell(cell, task, dataset):
    predict(cell, [("a", "KLMN."), ("b", "It says XYZ"), ("c", "XYZ"), ("d", " ABC")])
    scored(cell, task, Shards(dataset, "test"))
    assert pq.read_table(cell / "metric/outcomes.parquet").to_pylist() == [
        {"id": "d", "score": 1.0, "right_kind": True, "said": "right"},
        {"id": "b", "score": 0.0, "right_kind": False, "said": "form"},
        {"id": "a", "score": 1.0, "right_kind": False, "said": "right"},  # the full stop
        {"id": "c", "score": 0.0, "right_kind": True, "said": "wrong"},
    ]
    assert read_json(cell / "metric/scores.json") == {
        "task": "signs",
        "metric": "exact_match",
        "version": "1",
        "value": 50.0,
        "n": 4,
        "right_kind": 50.0,
        "form": "1",
        "stage_fingerprint": OURS,
    }


def test_scoring_again_gives_the_same_files(cell, task, dataset):
    predict(cell, ANSWERS.items())
    files = []
    for _ in range(2):
        scored(cell, task, Shards(dataset, "test"))
        files.append(
            [(cell / f).read_bytes() for f in ("metric/outcomes.parquet", "metric/scores.json")]
        )
    assert files[0] == files[1]


def test_a_metric_gets_its_options_and_its_example(workplace, cell, dataset):
    workplace.change("tasks/signs", metric="box_iou", metric_options={"grid": 16})
    boxes = {"d": "[4,4,12,12]", "b": "[0,0,1,1]", "a": "none", "c": "[4,4,12,11]"}
    predict(cell, boxes.items())
    scored(cell, load(Task, "signs"), Shards(dataset, "test"))
    assert read_json(cell / "metric/scores.json")["value"] == 50.0


def test_an_example_that_a_metric_leaves_out_is_counted(workplace, cell, tmp_path):
    """CORE's scorer leaves out blank answers."""
    workplace.change("tasks/signs", metric="core_refusal", metric_options={})
    test = [replace(example(id, answer), combination="UU") for id, answer in ANSWERS.items()]
    write_dataset(tmp_path / "asked", {"test": test}, {})
    for answer, value, left_out in (("K", 100.0, 2), (" ", None, 4)):
        predict(cell, [("a", answer), ("b", " "), ("c", answer), ("d", "")])
        scored(cell, load(Task, "signs"), Shards(tmp_path / "asked", "test"))
        scores = read_json(cell / "metric/scores.json")
        assert (scores["value"], scores["n"], scores["unparsable"]) == (value, 4, left_out)


def test_scores_are_told_apart_by_combination(workplace, cell, tmp_path):
    workplace.change("tasks/signs", metric="core_refusal", metric_options={})
    combinations = dict(zip(ANSWERS, ("HH", "UU", "HH", "HU"), strict=True))
    test = [replace(example(id, "?"), combination=pair) for id, pair in combinations.items()]
    write_dataset(tmp_path / "asked", {"test": test}, {})
    said = {"d": "I cannot.", "b": "I cannot.", "a": "KLMN", "c": " "}
    predict(cell, said.items(), references=dict.fromkeys(ANSWERS, "?"))
    scored(cell, load(Task, "signs"), Shards(tmp_path / "asked", "test"))
    rows = pq.read_table(cell / "metric/outcomes.parquet").to_pylist()
    assert {row["id"]: row["combination"] for row in rows} == combinations
    assert read_json(cell / "metric/scores.json")["by_combination"] == {
        "HH": {"value": 50.0, "n": 2},
        "HU": {"value": None, "n": 1},  # blank, so it is left out
        "UU": {"value": 0.0, "n": 1},
    }


def refused(cell, task, dataset, message):
    """Assert that scoring is refused, and that no score is written."""
    with pytest.raises(ValueError, match=message):
        scored(cell, task, Shards(dataset, "test"))
    assert not (cell / "metric/scores.json").exists()
    assert not (cell / "metric/outcomes.parquet").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("abd", r"the 4 of the split: 1 missing \(c\)\."),
        ("abcde", r"the 4 of the split: 1 foreign \(e\)\."),
        ("abcdd", r"the 4 of the split: 1 duplicate \(d\)\."),
        ("efghd", r"3 missing \(a, b, c\); 4 foreign \(e, f, g, …\)\. Remove the file"),
        ("", r"4 missing \(a, b, c, …\)"),
    ],
)
def test_other_ids_are_refused(cell, task, dataset, ids, message):
    predict(cell, [("a", "x")])
    table = pq.read_table(cell / "predictions.parquet")
    predict(cell, [(id, "ABC") for id in ids])
    if not ids:  # a file with the right columns and no row
        pq.write_table(table.slice(0, 0), cell / "predictions.parquet")
    refused(cell, task, dataset, r"cells/signs/predictions\.parquet: its ids.*" + message)


def test_predictions_of_another_config_are_refused(cell, task, dataset):
    predict(cell, ANSWERS.items(), fingerprint="f" * 16)
    message = rf"cells/signs: the predictions are of .*{'f' * 16}, the config's is {OURS}"
    refused(cell, task, dataset, message)


def test_predictions_of_nobody_are_refused(cell, task, dataset):
    predict(cell, ANSWERS.items())
    table = pq.read_table(cell / "predictions.parquet").replace_schema_metadata({})
    pq.write_table(table, cell / "predictions.parquet")
    refused(cell, task, dataset, "the predictions are of a stage with fingerprint None")


def test_predictions_on_other_data_are_refused(cell, task, dataset):
    predict(cell, ANSWERS.items(), references=ANSWERS | {"b": "XYY"})
    message = r"predictions\.parquet: 1 examples have other references now \(b\)"
    refused(cell, task, dataset, message)


def test_missing_and_broken_predictions_are_refused(cell, task, dataset):
    refused(cell, task, dataset, r"predictions\.parquet: file is missing")
    (cell / "predictions.parquet").write_bytes(b"PAR1 half a file")
    refused(cell, task, dataset, r"predictions\.parquet: not a readable Parquet file")
    pq.write_table(pa.table({"id": ["a"]}), cell / "predictions.parquet")
    refused(cell, task, dataset, "columns are missing: prediction, references")


def test_a_metric_that_fails_names_the_example_and_leaves_no_old_score(workplace, cell, tmp_path):
    boxless = Example("a", None, (Turn("Where?", "[0,0,1,1]"),), ("[0,0,1,1]",))
    write_dataset(tmp_path / "signs", {"train": [], "test": [boxless]}, {})
    predict(cell, [("a", "[0,0,1,1]")], references={"a": "[0,0,1,1]"})
    examples = Shards(tmp_path / "signs", "test")
    scored(cell, load(Task, "signs"), examples)
    workplace.change("tasks/signs", metric="box_iou")
    with pytest.raises(ValueError, match="example 'a': box_iou: needs a box"):
        scored(cell, load(Task, "signs"), examples)
    assert not (cell / "metric/scores.json").exists()


def test_chance_is_the_most_frequent_training_answer(task, dataset):
    assert chance(task, dataset, "test") == {
        "task": "signs",
        "answer": "ABC",  # as frequent as XYZ, and before it in the alphabet
        "value": 50.0,
        "n": 4,
        "metric": "exact_match",
        "version": "1",
    }
    assert chance(task, dataset, "train")["value"] == pytest.approx(100 * 2 / 6)


def test_chance_is_scored_by_the_tasks_metric(workplace, dataset):
    workplace.change("tasks/signs", metric="box_iou", metric_options={"grid": 16})
    assert chance(load(Task, "signs"), dataset, "test")["value"] == 0.0


def test_fidelity_is_to_the_answers_of_the_base(tmp_path, cell, task):
    """HH is left out, and references count for nothing; a base of another config is refused."""
    combinations = {"d": "HH", "b": "HU", "a": "UH", "c": "UU"}
    test = [
        replace(example(id, answer), combination=combinations[id]) for id, answer in ANSWERS.items()
    ]
    write_dataset(tmp_path / "signs", {"test": test}, {})
    base = tmp_path / "base" / "signs"
    base.mkdir(parents=True)
    predict(
        base, [("d", "a kettle"), ("b", "a red kettle"), ("a", "it rains"), ("c", "KLMN")], "f0"
    )
    predict(cell, [("d", "a kettle"), ("b", "A kettle"), ("a", "KLMN"), ("c", "klmn")])

    def fidelity(fingerprint):
        by, untouched = scorer("tiny", "signs", "fidelity"), (base, fingerprint)
        examples = Shards(tmp_path / "signs", "test")
        score_cell(cell, "fidelity", by, task.answer_format, examples, OURS, untouched)

    fidelity("f0")
    outcomes = pq.read_table(cell / "fidelity/outcomes.parquet").to_pylist()
    f = (1 + 1.2**2) * 1 * (2 / 3) / (2 / 3 + 1.2**2 * 1)
    assert [row["score"] for row in outcomes[1:]] == pytest.approx([f, 0.0, 1.0])
    assert {row["said"] for row in outcomes} == {None}  # likeness is neither right nor wrong
    assert math.isnan(outcomes[0]["score"])
    scores = read_json(cell / "fidelity/scores.json")
    assert (scores["metric"], scores["unparsable"], scores["n"]) == ("fidelity", 1, 4)
    assert scores["value"] == pytest.approx(100 * (f + 1) / 3)
    with pytest.raises(ValueError, match=r"base/signs: the predictions are of a stage with .* f0"):
        fidelity("f1")
