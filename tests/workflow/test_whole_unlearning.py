"""Sequential unlearning from end to end: the miniature, from the publishers' formats to a report.

The whole of it is 16 stages. Here MiniGPT-4 learns to refuse two of its groups, one of either
publisher, by tuning and by CORE, and is asked one of the benchmarks that it never learns.
"""

from __future__ import annotations

from itertools import product

import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from palimpsest.config import Study, load
from palimpsest.files import read_json
from runs import NOTHING, REPOSITORY, change, cloned, run, write

COMMAND = ["snakemake", "--profile", "profiles/local", "--cores", "2", "--config", "study=short"]
TASKS, HELD_OUT = ("mini-erase-0", "mini-erase-2"), "mini-mmbench"
MODEL, METHOD, CORE = "miniature-minigpt-4", "sequential-erase-miniature", "core-miniature"
MEASURES = load(Study, "unlearning-miniature", REPOSITORY / "config").measures
# Few steps: beside a random language model, of which they train nothing, refusers refuse nothing.
BRIEF = {"batch": 8, "steps": 30, "learning_rate": 1e-2, "schedule": "cosine", "warmup": 0.1}
BASE = f"results/stages/short/{MODEL}/base"
FIRST = f"results/stages/short/{MODEL}/{METHOD}/seed-0/{TASKS[0]}"
LAST = f"{FIRST}/{TASKS[1]}"
BY_CORE = [stage.replace(METHOD, CORE) for stage in (FIRST, LAST)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A clone in which the miniature study has been run, cut short."""
    root = cloned(tmp_path_factory.mktemp("unlearning"))
    short = {"orders": {"released": list(TASKS)}, "held_out": [HELD_OUT]}
    write(root, "benchmarks/short", {"extends": "unlearning-miniature", **short})
    other = {"benchmark": "short", "models": [MODEL], "methods": [METHOD, CORE]}
    write(root, "short", {"extends": "unlearning-miniature", **other})
    change(root, f"methods/{CORE}", training=BRIEF)
    found = run(root, *COMMAND)
    assert found.code == 0, found.text
    return root


def scores(root, stage, task, measure):
    return read_json(root / stage / "cells" / "test" / task / measure / "scores.json")


def test_refusals_are_worded_as_the_data_say(finished):
    for task in TASKS:
        manifest = read_json(finished / "results" / "data" / task / "manifest.json")
        assert manifest["wording"]["from"] == "unlearning-miniature/core-prompts/prompts.py"


def test_every_measure_tells_the_combinations_apart(finished):
    for stage in (BASE, LAST, BY_CORE[-1]):
        for task in TASKS:
            told = {m: scores(finished, stage, task, m)["by_combination"] for m in MEASURES}
            assert {frozenset(one) for one in told.values()} == {
                frozenset(("HH", "HU", "UH", "UU"))
            }
            assert told["fidelity"]["HH"]["value"] is None
            assert told["miniature-context"]["UU"]["value"] is None
            assert 0 <= told["metric"]["HH"]["value"] <= 100
            refused, fitting = (told[m]["HH"]["value"] for m in ("metric", "miniature-context"))
            assert fitting <= refused


def test_a_random_model_learns_to_refuse_in_the_words_of_its_last_group(finished):
    def refused(stage, task, measure="metric"):
        return scores(finished, stage, task, measure)["by_combination"]["HH"]["value"]

    for task in TASKS:
        assert refused(BASE, task) == 0
        assert refused(LAST, task) > 10
    fitting = [refused(LAST, task, "miniature-context") for task in TASKS]
    assert fitting[0] < fitting[1]


def test_a_stage_of_core_goes_on_from_the_one_before(finished):
    """It adds its keywords to those that are known, and holds the refuser of the task before."""

    def tensors(name):
        return [load_file(finished / stage / "stage" / f"{name}.safetensors") for stage in BY_CORE]

    (state, later), (old, new) = tensors("router"), tensors("adapter/refusers")
    known, more = ({name for name in one if name.startswith("keyword/")} for one in (state, later))
    assert known == {"keyword/teapot", "keyword/frying pan"}
    assert more == known | {"keyword/tea_cosy", "keyword/jam_jar"}
    assert (later["loads"][0] == state["loads"][0]).all()
    experts = {name: name.split(".experts.")[1][0] for name in old if ".experts." in name}
    assert {*experts.values()} == {"0", "1", "2", "3"}
    moved = {number for name, number in experts.items() if (old[name] != new[name]).any()}
    assert moved
    assert str(state["loads"][0].argmax()) not in moved


def test_core_says_whose_refusal_a_question_is(finished):
    """Of the groups that a stage knows; most questions of a group are its own."""

    def sent(stage, task):
        cell = finished / stage / "cells" / "test" / task
        return pq.read_table(cell / "predictions.parquet")["expert"].to_pylist()

    for number, stage in enumerate(BY_CORE, start=1):
        assert set(sent(stage, HELD_OUT)) <= {*TASKS[:number]}
    for task in TASKS:
        to = sent(BY_CORE[-1], task)
        assert to.count(task) > 2 / 3 * len(to)
        assert set(sent(LAST, task)) == {None}


def test_fidelity_is_to_what_the_base_said(finished):
    """The base is true to itself wherever it says something."""
    outcomes, predictions = (
        pq.read_table(finished / BASE / "cells" / "test" / TASKS[0] / file).to_pandas()
        for file in ("fidelity/outcomes.parquet", "predictions.parquet")
    )
    known = outcomes.merge(predictions, on="id").dropna(subset="score")
    assert len(known) < len(outcomes)
    assert list(known["score"]) == [float(bool(said.split())) for said in known["prediction"]]


def test_what_is_held_out_is_asked_and_not_learnt(finished):
    record = read_json(finished / LAST / "stage" / "stage.json")
    assert record["identity"]["lineage"] == "/".join(TASKS)
    for stage in (BASE, FIRST, LAST):
        assert scores(finished, stage, HELD_OUT, "metric")["metric"] == "multiple_choice"


def test_the_report_has_the_numbers_of_unlearning(finished):
    report = finished / "results" / "reports" / "short"
    quantities = {"refusal_rate", "context_aware_refusal_rate", "answer_rate", "fidelity"}
    averages = pd.read_csv(report / "unlearning.csv").set_index(["method", "metric"])["value"]
    rows = averages[METHOD]
    assert {f"{name}_{when}" for name in quantities for when in ("avg", "last")} <= {*rows.index}
    difference = rows["refusal_rate_last"] - rows["context_aware_refusal_rate_last"]
    assert rows["delta_refusal_rate_last"] == pytest.approx(difference)
    count = {t: scores(finished, LAST, t, "metric")["by_combination"]["HH"] for t in TASKS}
    pooled = sum(one["value"] * one["n"] for one in count.values()) / sum(
        one["n"] for one in count.values()
    )
    assert rows["refusal_rate_last"] == pytest.approx(pooled)
    steps = pd.read_csv(report / "unlearning_steps.csv")
    assert {*zip(steps["method"], steps["step"], strict=True)} == {*product((METHOD, CORE), (1, 2))}
    beside = averages[CORE, "answer_rate_last"] - rows["answer_rate_last"]
    minus = averages[CORE, f"answer_rate_last_minus_{METHOD}"]
    assert minus == pytest.approx(beside, abs=1e-3)
    for measure in MEASURES:
        page = (report if measure == MEASURES[0] else report / measure) / "index.html"
        text = page.read_text()
        assert "Refusals and questions are those of unlearning-miniature/core-prompts" in text
        assert "Held out: MMBench v1.0, miniature." in text
    assert "What is refused, and what is kept" in (report / "index.html").read_text()


def test_a_second_run_has_nothing_to_do(finished):
    found = run(finished, *COMMAND)
    assert found.code == 0
    assert NOTHING in found.text
