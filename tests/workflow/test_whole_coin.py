"""CoIN from end to end: its miniature, from the publishers' formats to a report by each measure.

The whole of it, `config/coin-miniature.yaml`, is 160 processes that import torch. Here LLaVA learns
all eight tasks by one method; the other two models learn two, of which one has boxes, by both.
"""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from palimpsest.files import read_json
from runs import NOTHING, change, cloned, run, write

COMMAND = ["snakemake", "--profile", "profiles/local", "--cores", "2"]
LLAVA, OTHERS = "miniature-llava", ("miniature-qwen-vl", "miniature-minigpt-v2")
METHODS = ("lora-coin-miniature", "moelora-coin-miniature")
TASKS = (
    "mini-scienceqa", "mini-textvqa", "mini-imagenet", "mini-gqa", "mini-vizwiz", "mini-grounding",
    "mini-vqav2", "mini-ocrvqa",
)  # fmt: skip
TWO = ("mini-scienceqa", "mini-grounding")
LEARNT = {LLAVA: (TASKS, METHODS[:1]), **dict.fromkeys(OTHERS, (TWO, METHODS))}
STUDIES = ("coin-miniature", "others")
MEASURES = ("metric", "as-published", "miniature-judge")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A clone in which the miniature study has been run, by the command of docs/coin.md."""
    root = cloned(tmp_path_factory.mktemp("coin"))
    beside = {"as-published": {f"{LLAVA} {METHODS[0]} coin": "R1"}}
    change(
        root, "coin-miniature", models=[LLAVA], methods=list(METHODS[:1]), published__beside=beside
    )
    orders = {"coin": list(TWO)}
    write(root, "benchmarks/two", {"extends": "coin-miniature", "title": "Two", "orders": orders})
    other = {"extends": "coin-miniature", "benchmark": "two", "published": None}
    write(root, "others", {**other, "models": list(OTHERS), "methods": list(METHODS)})
    for study in STUDIES:
        found = run(root, *COMMAND, *configfile(study))
        assert found.code == 0, found.text
    return root


def configfile(study):
    return ["--configfile", f"config/{study}.yaml"]


def place(model):
    """The folder of a model's stages."""
    return f"results/stages/{'coin-miniature' if model == LLAVA else 'two'}/{model}"


def test_every_stage_of_three_models_and_two_methods(finished):
    for model, (tasks, methods) in LEARNT.items():
        for method in methods:
            for learnt in range(1, len(tasks) + 1):
                lineage = f"{method}/seed-0/{'/'.join(tasks[:learnt])}"
                record = finished / place(model) / lineage / "stage" / "stage.json"
                assert read_json(record)["steps"] == 36
        joint = f"{METHODS[0]}/seed-0/{'+'.join(sorted(tasks))}"
        assert (finished / place(model) / joint / "stage" / "adapter").is_dir()


def test_random_models_learn_the_most_frequent_answers(finished):
    for model, (_, methods) in LEARNT.items():
        for method in methods:
            cell = f"{method}/seed-0/{TASKS[0]}/cells/test/{TASKS[0]}/metric/scores.json"
            scores = read_json(finished / place(model) / cell)
            assert scores["right_kind"] > 50, (model, method)
            assert scores["value"] > 20, (model, method)  # most answers are A


def test_what_a_stage_may_train_is_its_models(finished):
    def projector(model):
        stage = f"{METHODS[0]}/seed-0/{TASKS[0]}/stage"
        return (finished / place(model) / stage / "projector.safetensors").exists()

    assert {model: projector(model) for model in LEARNT} == {
        "miniature-llava": True,
        "miniature-qwen-vl": False,
        "miniature-minigpt-v2": True,
    }


def test_bad_records_are_counted_and_named(finished):
    for task in TASKS:
        splits = read_json(finished / "results" / "data" / task / "manifest.json")["splits"]
        assert (splits["train"]["examples"], splits["test"]["examples"]) == (24, 24)
        (rejected,) = splits["train"]["rejected"]
        assert rejected["file"].endswith("train.json")
        assert rejected["line"] == 25
        assert rejected["reason"]


def test_every_measure_has_a_page_of_its_own_numbers(finished):
    report = finished / "results" / "reports" / "coin-miniature"
    pages = [report, report / "as-published", report / "miniature-judge"]
    for page, measure in zip(pages, MEASURES, strict=True):
        assert (page / "index.html").stat().st_size > 10_000
        rows = pd.read_csv(page / "matrix.csv")
        # After a stage, the tasks learnt by then: 36 cells, and 8 of the base.
        assert len(rows[rows["order"] == "coin"]) == 36 + 8
        assert rows["value"].dropna().between(0, 100).all()
        assert (measure == "miniature-judge") == (set(rows["metric"]) == {"miniature-judge"})
        published = rows["version"].astype(str).str.endswith("/as-published")
        assert published.all() if measure == "as-published" else not published.any()
    published = pd.read_csv(report / "as-published" / "published.csv")
    assert "R1" in set(published["matrix"])
    assert not (report / "published.csv").exists()  # another measure: nothing to compare


def test_a_judge_that_says_numbers_is_understood(finished):
    cells = finished.glob("results/stages/**/cells/test/*/miniature-judge/scores.json")
    scores = [read_json(path) for path in cells]
    # A job judges all cells of a stage: the base, the joint stage, and those of the methods.
    assert len(scores) == 8 * (2 + 8) + 2 * 2 * (2 + 2 * 2)
    assert sum(score["unparsable"] for score in scores) < 0.5 * sum(s["n"] for s in scores)
    assert all(score["value"] is None or math.isfinite(score["value"]) for score in scores)
    replies = (finished / "results" / "judgements").rglob("*.jsonl")
    assert all(json.loads(line) for path in replies for line in path.read_text().splitlines())


def test_a_second_run_has_nothing_to_do(finished):
    for study in STUDIES:
        found = run(finished, *COMMAND, *configfile(study))
        assert found.code == 0
        assert NOTHING in found.text
