"""He et al.'s settings from end to end: the miniature, from the publishers' formats to a report.

The whole of it is some 110 stages. Here InstructBLIP learns one task by every method, after two
that it is taken to know, so that all of them look back; LLaVA learns two by the one that grows.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from palimpsest.config import Study, load
from palimpsest.data.shards import read_examples
from palimpsest.files import read_json
from runs import NOTHING, REPOSITORY, cloned, run, write

COMMAND = ["snakemake", "--profile", "profiles/local", "--cores", "2"]
KNOWN, LEARNT = ("mini-cit-okvqa", "mini-cit-textcaps"), "mini-cit-gqa"
METHODS = load(Study, "cit-warm-miniature", REPOSITORY / "config").methods
INSTRUCTBLIP = "results/stages/short/miniature-instructblip"
LLAVA = "results/stages/two/miniature-llava/eproj-miniature/seed-0"
TWICE = f"{LLAVA}/{LEARNT}/mini-cit-okvqa"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A clone in which the setting that starts from known tasks has been run, cut short."""
    root = cloned(tmp_path_factory.mktemp("cit"))
    short = {
        "extends": "cit-miniature-warm",
        "initial": list(KNOWN),
        "orders": {"order1": [LEARNT]},
    }
    write(root, "benchmarks/short", short)
    write(root, "short", {"extends": "cit-warm-miniature", "benchmark": "short", "references": {}})
    two = {"extends": "cit-miniature-pretrained", "orders": {"order3": [LEARNT, "mini-cit-okvqa"]}}
    write(root, "benchmarks/two", two)
    other = {"models": ["miniature-llava"], "methods": ["eproj-miniature"], "references": {}}
    write(
        root, "two", {"extends": "cit-miniature", "benchmark": "two", "similarity": False, **other}
    )
    last = f"{TWICE}/cells/test/{LEARNT}/metric/scores.json"
    for study, target in (("short", []), ("two", [last])):
        found = run(root, *COMMAND, *target, "--config", f"study={study}")
        assert found.code == 0, found.text
    return root


def place(root, method):
    """The stage of InstructBLIP by a method, without `-miniature`."""
    return root / INSTRUCTBLIP / f"{method}-miniature" / "seed-0" / LEARNT / "stage"


def test_every_method_of_the_paper_learnt(finished):
    assert len(METHODS) == 7
    steps = {
        m: read_json(place(finished, m.split("-")[0]) / "stage.json")["steps"] for m in METHODS
    }
    # 24 examples x 12 epochs / 8 a step; a quarter of 24 and of 5 x 24 are rehearsed beside them.
    assert steps == {**dict.fromkeys(METHODS, 36), "replay-miniature": (24 + 6 + 30) * 12 // 8}


def test_a_random_model_learns_the_most_frequent_answers(finished):
    """But for EProj, which leaves the language model as it is."""
    for method in METHODS:
        cell = f"{method}/seed-0/{LEARNT}/cells/test/{LEARNT}/metric/scores.json"
        scores = read_json(finished / INSTRUCTBLIP / cell)
        assert (scores["value"] > 10) == (method != "eproj-miniature"), (method, scores["value"])


@pytest.mark.parametrize("method", ["lwf", "ewc", "mas", "tir"])
def test_what_the_base_knows_is_protected_from_the_first_stage_on(finished, method):
    lines = (place(finished, method) / "metrics.jsonl").read_text().splitlines()
    penalties = [json.loads(line)["penalty"] for line in lines]
    assert penalties[-1] > 1e-6
    if method != "lwf":  # its teacher has no dropout, as the Q-Former that learns has
        assert penalties[0] == 0  # every weight is where it was


def test_what_is_handed_on_is_of_known_and_learnt_tasks(finished):
    state = load_file(place(finished, "tir") / "regulariser.safetensors")
    assert state["entries"] == 3
    sources = [array for name, array in state.items() if name.startswith("source/")]
    assert set(np.concatenate([array.ravel() for array in sources])) == {0, 1, 2}
    router = load_file(place(finished, "eproj") / "router.safetensors")
    assert len(router["image"]) == len(router["instruction"]) == 3
    buffer = list(read_examples(place(finished, "replay") / "rehearsal.arrow"))
    assert len(buffer) == 6 + 30 + 6


def test_each_question_goes_to_an_expert_of_its_own(finished):
    cells = finished / INSTRUCTBLIP / "eproj-miniature" / "seed-0" / LEARNT / "cells" / "test"
    sent = pq.read_table(cells / KNOWN[1] / "predictions.parquet")["expert"].to_pylist()
    assert set(sent) <= {*KNOWN, LEARNT}
    # All captions are asked for in the same words, which no other task has.
    assert sent.count(KNOWN[1]) == len(sent)


def test_a_second_expert_leaves_the_first_as_it_was(finished):
    first, second = (
        load_file(finished / stage / "stage" / "adapter" / "experts.safetensors")
        for stage in (f"{LLAVA}/{LEARNT}", TWICE)
    )
    assert len(second) == 2 * len(first)
    assert all((second[name] == array).all() for name, array in first.items())
    assert len(load_file(finished / TWICE / "stage" / "router.safetensors")["image"]) == 2


def test_the_report_has_both_measures_and_the_similarity(finished):
    report = finished / "results" / "reports" / "short"
    for page in (report, report / "as-published"):
        rows = pd.read_csv(page / "matrix.csv")
        assert len(rows) == len(METHODS) * 2 * 3  # base and stage on all three
        assert rows["value"].notna().all()
        page = (page / "index.html").read_text()
        assert "Known to the base from the start, and trained by no stage: OK-VQA" in page
        assert "cider" in page
    summary = pd.read_csv(report / "summary.csv")
    assert (summary["metric"] == "final_minus_best").sum() == len(METHODS)
    alike = pd.read_csv(report / "similarity.csv")
    assert {*alike["task_i"], *alike["task_j"]} == {*KNOWN, LEARNT}


def test_a_second_run_has_nothing_to_do(finished):
    found = run(finished, *COMMAND, "--config", "study=short")
    assert found.code == 0
    assert NOTHING in found.text
